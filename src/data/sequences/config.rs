//! The `data` section of a recipe on sequences.

use std::path::PathBuf;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::bail_input;
use crate::data::text::{TextFormat, TokenizerConfig};

/// The name of the compiled-in text.
pub const SHAKESPEARE_MINI: &str = "shakespeare-mini";
/// The name of the sequences that are made up.
pub const SYNTHETIC: &str = "synthetic";

/// Where sequences are and how they are read.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct SequenceDataConfig {
    /// `auto`, or the name of a compiled-in set.
    pub format: String,
    /// A file; or a folder with `train`, `dev` (or `validation`, `val`, `valid`) and `test` files, with a folder of CSV files for each class, or with
    /// `x_train.npy` and `y_train.npy`.
    pub path: Option<PathBuf>,
    /// A file to choose by, in place of a part of the training data.
    pub validation: Option<PathBuf>,
    /// A file to look at once at the end.
    pub test: Option<PathBuf>,
    /// How text files are written, where their names do not say it.
    pub text_format: Option<TextFormat>,
    /// Names of the columns of a TSV or CSV file of texts without a header.
    pub columns: Option<Vec<String>>,
    /// Whether fields of text files may stand in double quotes; in CSV if left out.
    pub quoting: Option<bool>,
    /// The column of texts.
    pub text: String,
    /// The column of labels.
    pub label: String,
    /// For numbers in a long table: the column that tells sequences apart.
    pub id: Option<String>,
    /// Whether a sequence may have several labels: JSON arrays, or commas between them.
    pub multi_label: bool,
    /// Names of the classes, by number; from the labels if left out.
    pub classes: Option<Vec<String>>,
    /// How texts become tokens.
    pub tokenizer: TokenizerConfig,
    /// Tokens, or steps, of the longest sequence; longer ones are cut at their end.
    pub max_length: Option<usize>,
    /// GloVe's or word2vec's text file, whose vectors the embedding begins with.
    pub vectors: Option<PathBuf>,
    /// Tokens of a window of a language model: as far as gradients go back.
    pub window: usize,
    /// Share of the training part that is held out; at the end of a text, drawn among sequences.
    pub val_fraction: f64,
    /// Share of a text that is looked at once at the end, behind what is held out.
    pub test_fraction: f64,
    /// For series: the column of times; none if there is none.
    pub time: Option<String>,
    /// Columns that are forecast; all columns of numbers that have no other part if left out.
    pub targets: Option<Vec<String>>,
    /// Columns that are looked at and whose future is not known.
    pub observed: Vec<String>,
    /// Columns whose future is known.
    pub known: Vec<String>,
    /// What of the calendar is known: `minute`, `hour`, `weekday`, `day`, `month`.
    pub calendar: Vec<String>,
    /// Steps that a forecast looks back.
    pub input: usize,
    /// Steps that are forecast.
    pub horizon: usize,
    /// Steps of a season, for the seasonal baseline.
    pub season: usize,
    /// Training, validation and test part of series, in this order: rows, or shares where none is above 1.
    pub split: [f64; 3],
    /// Rows between the beginnings of windows that are evaluated.
    pub stride: usize,
    /// Mean of each column of numbers in the training part; from the data.
    pub mean: Option<Vec<f64>>,
    /// Standard deviation of each column, likewise.
    pub std: Option<Vec<f64>>,
}

impl Default for SequenceDataConfig {
    fn default() -> Self {
        Self {
            format: "auto".to_owned(),
            path: None,
            validation: None,
            test: None,
            text_format: None,
            columns: None,
            quoting: None,
            text: "sentence".to_owned(),
            label: "label".to_owned(),
            id: None,
            multi_label: false,
            classes: None,
            tokenizer: TokenizerConfig::default(),
            max_length: None,
            vectors: None,
            window: 64,
            val_fraction: 0.1,
            test_fraction: 0.0,
            time: Some("date".to_owned()),
            targets: None,
            observed: Vec::new(),
            known: Vec::new(),
            calendar: Vec::new(),
            input: 96,
            horizon: 24,
            season: 24,
            split: [0.7, 0.1, 0.2],
            stride: 1,
            mean: None,
            std: None,
        }
    }
}

impl SequenceDataConfig {
    /// Checks what can be checked before files are opened.
    pub fn validate(&self) -> Result<()> {
        match (self.format.as_str(), &self.path) {
            ("auto", None) => bail_input!(
                "there are no data: give --data PATH, or the name of a compiled-in set ({SHAKESPEARE_MINI}, {SYNTHETIC})"
            ),
            ("auto", Some(_)) | (SHAKESPEARE_MINI | SYNTHETIC, None) => {}
            (SHAKESPEARE_MINI | SYNTHETIC, Some(_)) => {
                bail_input!("data.format is {}, which is compiled in: leave data.path out", self.format)
            }
            (other, _) => bail_input!(
                "data.format: there is no `{other}` (known: auto, {SHAKESPEARE_MINI}, {SYNTHETIC})"
            ),
        }
        for (key, value) in [
            ("window", self.window),
            ("input", self.input),
            ("horizon", self.horizon),
            ("season", self.season),
            ("stride", self.stride),
        ] {
            if value == 0 {
                bail_input!("data.{key} is 0: it must be at least 1");
            }
        }
        if self.max_length == Some(0) {
            bail_input!("data.max_length is 0: it must be at least 1");
        }
        for (key, value) in [("val_fraction", self.val_fraction), ("test_fraction", self.test_fraction)] {
            if !(0.0..1.0).contains(&value) {
                bail_input!("data.{key} is {value}: it must be at least 0 and below 1");
            }
        }
        if self.val_fraction + self.test_fraction >= 1.0 {
            bail_input!("data.val_fraction and data.test_fraction leave nothing to learn from");
        }
        if self.split.iter().any(|part| part.is_nan() || *part < 0.0) || self.split[0] == 0.0 {
            bail_input!("data.split must be three numbers of rows or shares, the first above 0");
        }
        if self.season > self.input {
            bail_input!(
                "data.season is {}, but a window has {} steps: the seasonal baseline repeats the last season of it",
                self.season,
                self.input
            );
        }
        self.tokenizer.validate()
    }
}
