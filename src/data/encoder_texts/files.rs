//! Files of a data set of texts: which are there, and what is held out.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::Value;

use super::EncoderDataConfig;
use crate::data::order::hold_out;
use crate::data::table::open_bytes;
use crate::data::text::{TextForm, TextFormat, TextTable, read_rows, rows_of};
use crate::{bad_input, bail_input, files};

/// The compiled-in set: speeches of Shakespeare with the play that each is from.
pub const BUILTIN: &str = "shakespeare-plays";

const BUILTIN_TEXT: &[u8] = include_bytes!("../../../assets/texts/shakespeare-plays.tsv.gz");

/// The files of a data set.
#[derive(Clone, Debug, Default)]
pub struct TextFiles {
    /// What is learned from.
    pub train: PathBuf,
    /// What is chosen by.
    pub validation: Option<PathBuf>,
    /// What is looked at once.
    pub test: Option<PathBuf>,
}

impl TextFiles {
    /// Finds the files that a section names. `endings` are those that the task's files may have.
    ///
    /// # Errors
    /// There is no such path, or a folder without a training file.
    pub fn find(config: &EncoderDataConfig, endings: &[&str]) -> Result<Self> {
        let Some(path) = &config.path else {
            bail_input!("there are no data: give --data DIR or FILE");
        };
        let mut found = match path.is_dir() {
            true => {
                let listed = files_in(path)?;
                let named = |stems: &[&str]| {
                    let fits = |file: &&PathBuf| {
                        let name = file.file_name().map(|name| name.to_string_lossy().to_lowercase());
                        let name = name.unwrap_or_default();
                        let name = name.strip_suffix(".gz").unwrap_or(&name);
                        let (stem, ending) = name.rsplit_once('.').unwrap_or((name, ""));
                        // `train-v1.1.json`, `eng.train`
                        let stem_fits =
                            |wanted: &&str| stem == *wanted || stem.starts_with(&format!("{wanted}-v"));
                        stems.iter().any(stem_fits) && (ending.is_empty() || endings.contains(&ending))
                    };
                    listed.iter().find(fits).cloned()
                };
                let Some(train) = named(&["train", "training"]) else {
                    bail_input!(
                        "{} has no training file: name one train.{}",
                        path.display(),
                        endings.join(", train.")
                    );
                };
                Self {
                    train,
                    validation: named(&["validation", "valid", "val", "dev", "eval"]),
                    test: named(&["test"]),
                }
            }
            false if !path.exists() => bail_input!("there is no file or folder {}", path.display()),
            false => Self { train: path.clone(), ..Self::default() },
        };
        found.validation = config.validation.clone().or(found.validation);
        found.test = config.test.clone().or(found.test);
        Ok(found)
    }
}

fn files_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|error| files::cannot_read(folder, &error))? {
        let path = entry.map_err(|error| files::cannot_read(folder, &error))?.path();
        found.extend(path.is_file().then_some(path));
    }
    found.sort();
    Ok(found)
}

/// The names of the columns of a file of texts.
pub fn columns_of(path: &Path, form: &TextForm) -> Result<Vec<String>> {
    let format = form.of(path);
    if format == TextFormat::Plain {
        return Ok(vec!["text".to_owned()]);
    }
    if let (Some(columns), TextFormat::Tsv | TextFormat::Csv) = (&form.columns, format) {
        return Ok(columns.clone());
    }
    let mut line = String::new();
    let mut reader =
        BufReader::new(open_bytes(path).map_err(|error| match error.downcast::<std::io::Error>() {
            Ok(error) => files::cannot_read(path, &error),
            Err(error) => error,
        })?);
    while line.trim().is_empty() {
        line.clear();
        let read =
            reader.read_line(&mut line).map_err(|error| bad_input!("{}, line 1: {error}", path.display()))?;
        if read == 0 {
            bail_input!("{} is empty", path.display());
        }
    }
    let line = line.trim_end_matches(['\n', '\r']);
    Ok(match format {
        TextFormat::Jsonl => match serde_json::from_str(line) {
            Ok(Value::Object(object)) => object.keys().cloned().collect(),
            _ => bail_input!("{}, line 1: this is no JSON object", path.display()),
        },
        TextFormat::Csv => line.split(',').map(|name| name.trim().trim_matches('"').to_owned()).collect(),
        _ => line.split('\t').map(str::to_owned).collect(),
    })
}

/// Rows of all parts; the columns are text, pair where there is one, and label.
#[derive(Clone, Debug)]
pub struct RawSplits {
    /// What is learned from.
    pub train: TextTable,
    /// What is chosen by.
    pub validation: Option<TextTable>,
    /// What is looked at once.
    pub test: Option<TextTable>,
    /// Whether there is a second text in each row.
    pub has_pair: bool,
    /// Whether there is a label in each row.
    pub has_label: bool,
}

const TEXTS: [&str; 6] = ["sentence", "text", "sentence1", "premise", "question", "question1"];
const PAIRS: [&str; 5] = ["sentence2", "text2", "hypothesis", "question2", "positive"];
const LABELS: [&str; 3] = ["label", "labels", "score"];

/// The columns of a section in a file: text, pair, label. What the section does not name is looked for.
fn chosen_columns(
    config: &EncoderDataConfig,
    path: &Path,
) -> Result<(String, Option<String>, Option<String>)> {
    let known = columns_of(path, &config.form())?;
    let usual = |names: &[&str]| {
        names.iter().find(|name| known.iter().any(|known| known == *name)).map(|&name| name.to_owned())
    };
    let Some(text) = config.text.clone().or_else(|| usual(&TEXTS)) else {
        bail_input!(
            "{} has the columns {}: say which is the text (--text-column)",
            path.display(),
            known.join(", ")
        );
    };
    let pair = config.pair.clone().or_else(|| usual(&PAIRS)).filter(|pair| *pair != text);
    Ok((text, pair, config.label.clone().or_else(|| usual(&LABELS))))
}

impl RawSplits {
    /// Reads the files of a section, and parts the training part where there is no validation part. `needs_label` and `needs_pair` say what the task
    /// cannot do without.
    ///
    /// # Errors
    /// Those of reading; a column that the task needs is missing.
    pub fn read(config: &EncoderDataConfig, seed: u64, needs_label: bool, needs_pair: bool) -> Result<Self> {
        if config.builtin.is_some() {
            return Self::builtin();
        }
        let files = TextFiles::find(config, &["tsv", "csv", "jsonl", "ndjson", "txt", "tab"])?;
        let (text, pair, label) = chosen_columns(config, &files.train)?;
        let lacks = |what: &str, flag: &str| {
            bad_input!("{} has no column for the {what}: name it with {flag}", files.train.display())
        };
        if needs_label && label.is_none() {
            return Err(lacks("label", "--label-column"));
        }
        if needs_pair && pair.is_none() {
            return Err(lacks("second text", "--pair-column"));
        }
        let columns: Vec<&str> =
            [Some(text.as_str()), pair.as_deref(), label.as_deref()].into_iter().flatten().collect();
        let form = config.form();
        let read = |path: &PathBuf| read_rows(path, &form, &columns);
        // A test file that was published without labels tells nothing.
        let has_columns = |path: &PathBuf| -> Result<bool> {
            let known = columns_of(path, &form)?;
            Ok(columns.iter().all(|column| known.iter().any(|known| known == column)))
        };
        let test = match &files.test {
            Some(path) if config.test.is_some() || has_columns(path)? => Some(read(path)?),
            _ => None,
        };
        let validation = files.validation.as_ref().map(read).transpose()?;
        let mut splits = Self {
            train: read(&files.train)?,
            validation,
            test,
            has_pair: pair.is_some(),
            has_label: label.is_some(),
        };
        splits.hold_out(config.val_fraction, seed)?;
        Ok(splits)
    }

    /// The compiled-in set: every tenth speech is for validation, every tenth for the test.
    fn builtin() -> Result<Self> {
        let form = TextForm { format: Some(TextFormat::Tsv), ..TextForm::default() };
        let reader = flate2::read::GzDecoder::new(BUILTIN_TEXT);
        let columns: &[&str] = &["text", "label"];
        let rows = rows_of(Box::new(reader), BUILTIN, TextFormat::Tsv, &form, columns)?;
        let part = |wanted: &dyn Fn(usize) -> bool| TextTable {
            name: BUILTIN.to_owned(),
            rows: rows
                .iter()
                .enumerate()
                .filter(|(number, _)| wanted(*number))
                .map(|(_, row)| row.clone())
                .collect(),
        };
        Ok(Self {
            train: part(&|number| number % 10 < 8),
            validation: Some(part(&|number| number % 10 == 8)),
            test: Some(part(&|number| number % 10 == 9)),
            has_pair: false,
            has_label: true,
        })
    }

    fn hold_out(&mut self, fraction: f64, seed: u64) -> Result<()> {
        if self.validation.is_some() || fraction == 0.0 {
            return Ok(());
        }
        let (train, held_out) = hold_out(self.train.rows.len(), fraction, seed)?;
        let part = |numbers: &[usize]| TextTable {
            name: self.train.name.clone(),
            rows: numbers.iter().map(|&number| self.train.rows[number].clone()).collect(),
        };
        self.validation = (!held_out.is_empty()).then(|| part(&held_out));
        self.train = part(&train);
        Ok(())
    }

    /// The column of the label.
    pub fn label_column(&self) -> usize {
        1 + usize::from(self.has_pair)
    }

    /// All parts, the training part first.
    pub fn parts(&self) -> impl Iterator<Item = &TextTable> {
        [Some(&self.train), self.validation.as_ref(), self.test.as_ref()].into_iter().flatten()
    }
}
