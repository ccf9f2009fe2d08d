//! Texts for encoders: one or two texts with a label, texts with hidden words, words with tags, questions with contexts, pairs to embed.
//!
//! Each kind of sample has its file; what they share is here: where the files are, which columns count, how texts become batches.

mod classified;
mod files;
mod masked;
mod pairs;
mod questions;
mod words;

pub use classified::{ClassifiedTexts, LabelledBatch, Targets, values_of};
pub use files::{BUILTIN, RawSplits, TextFiles, columns_of};
pub use masked::{MaskedBatch, MaskedTexts, Masking, WordStarts};
pub use pairs::{PairBatch, TextPairs};
pub use questions::{Answer, Passage, Question, QuestionBatch, QuestionSet, Questions, passages, read_squad};
pub use words::{EncodedWords, NO_TAG, TaggedBatch, TaggedSentence, TaggedWords, encode_words, read_tagged};

use std::path::PathBuf;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

pub use super::text::split_labels;
use super::text::{
    EncodeOptions, EncodedTexts, TextForm, TextFormat, TextInput, TextTokenizer, TokenizerConfig, pad,
};
use crate::bail_input;
use crate::models::encoders::EncoderInputs;

/// The `data` section of encoders. Which keys count depends on the task.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct EncoderDataConfig {
    /// A folder with `train`, `validation` (`dev`, `valid`) and `test` files, or the training file.
    pub path: Option<PathBuf>,
    /// A compiled-in set in place of files.
    pub builtin: Option<String>,
    /// The validation file, where `path` is no folder that has one.
    pub validation: Option<PathBuf>,
    /// The test file likewise.
    pub test: Option<PathBuf>,
    /// How files are written; by their names if left out.
    pub format: Option<TextFormat>,
    /// Names of the columns of files without a header.
    pub columns: Option<Vec<String>>,
    /// Whether fields may stand in double quotes; in CSV if left out.
    pub quoting: Option<bool>,
    /// The column of the text; the first of the usual names if left out.
    pub text: Option<String>,
    /// The column of the second text; the first of the usual names if left out, none where there is none.
    pub pair: Option<String>,
    /// The column of the label, or of the score of a pair.
    pub label: Option<String>,
    /// What a label is, for `classify`.
    pub goal: Goal,
    /// Names of the labels in the order of their numbers; found in the training part if left out.
    pub classes: Option<Vec<String>>,
    /// Most tokens of a sequence, special ones counted; as many as the model has positions for, 512 at most, if left out.
    pub max_length: Option<i64>,
    /// Refuse texts that are longer instead of cutting them.
    pub strict: bool,
    /// How texts become tokens, where the model does not come with a tokenizer.
    pub tokenizer: Option<TokenizerConfig>,
    /// Whether batches are of texts of like lengths.
    pub buckets: bool,
    /// Share of the training part held out where there is no validation part.
    pub val_fraction: f64,
    /// How tokens are hidden, for `mlm`.
    pub masking: Masking,
    /// Tokens by which the windows over a long context move, for `qa`.
    pub stride: i64,
    /// Most tokens of an answer, for `qa`.
    pub max_answer_length: i64,
    /// Whether a question may have no answer (SQuAD 2.0), for `qa`.
    pub unanswerable: bool,
    /// Then a question counts as unanswerable if that scores better than the best answer by more than this.
    pub null_threshold: f64,
}

impl Default for EncoderDataConfig {
    fn default() -> Self {
        Self {
            path: None,
            builtin: None,
            validation: None,
            test: None,
            format: None,
            columns: None,
            quoting: None,
            text: None,
            pair: None,
            label: None,
            goal: Goal::Class,
            classes: None,
            max_length: None,
            strict: false,
            tokenizer: None,
            buckets: true,
            val_fraction: 0.1,
            masking: Masking::default(),
            stride: 128,
            max_answer_length: 30,
            unanswerable: false,
            null_threshold: 0.0,
        }
    }
}

/// What the label of a text is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Goal {
    /// One of several classes.
    #[default]
    Class,
    /// Any number of several labels: a JSON array, or a field with commas.
    Labels,
    /// A number.
    Value,
}

impl EncoderDataConfig {
    /// How files are written.
    pub fn form(&self) -> TextForm {
        TextForm { format: self.format, columns: self.columns.clone(), quoting: self.quoting }
    }

    /// Checks what can be checked without files.
    pub fn validate(&self) -> Result<()> {
        if self.path.is_some() && self.builtin.is_some() {
            bail_input!("data.path and data.builtin: give one of them");
        }
        if let Some(name) = self.builtin.as_deref().filter(|name| *name != BUILTIN) {
            bail_input!("data.builtin: there is no compiled-in set `{name}`; `{BUILTIN}` is one");
        }
        if self.max_length.is_some_and(|length| length < 3) {
            bail_input!("data.max_length is {:?}: it must be at least 3", self.max_length.unwrap_or(0));
        }
        if !(0.0..1.0).contains(&self.val_fraction) {
            bail_input!("data.val_fraction is {}: it must be at least 0 and below 1", self.val_fraction);
        }
        if self.stride < 1 || self.max_answer_length < 1 {
            bail_input!("data.stride and data.max_answer_length must be at least 1");
        }
        self.tokenizer.as_ref().map_or(Ok(()), TokenizerConfig::validate)?;
        self.masking.validate()
    }
}

/// Token sequences of a batch.
#[derive(Debug)]
pub struct TokenBatch {
    /// `[batch, longest]` int64, filled up with the padding token.
    pub ids: Tensor,
    /// 1 from the beginning of a second text on, `[batch, longest]` int64; none where no sequence has one.
    pub segments: Option<Tensor>,
    /// True where there is a token, `[batch, longest]`; none where all are equally long.
    pub mask: Option<Tensor>,
}

impl TokenBatch {
    /// From sequences, each with the place where its second text begins (its length where there is none).
    pub fn of(sequences: &[(Vec<i64>, usize)], padding: i64) -> Result<Self> {
        let ids: Vec<Vec<i64>> = sequences.iter().map(|(ids, _)| ids.clone()).collect();
        let padded = pad(&ids, padding)?;
        let (batch, longest) = padded.ids.size2()?;
        let has_second = sequences.iter().any(|(ids, second)| *second < ids.len());
        let segments = has_second
            .then(|| -> Result<Tensor> {
                let row = |(ids, second): &(Vec<i64>, usize)| {
                    let (end, second) = (ids.len(), *second);
                    (0..longest as usize).map(move |place| i64::from(place >= second && place < end))
                };
                let values: Vec<i64> = sequences.iter().flat_map(row).collect();
                Ok(Tensor::f_from_slice(&values)?.f_view([batch, longest])?)
            })
            .transpose()?;
        let is_full = sequences.iter().all(|(ids, _)| ids.len() as i64 == longest);
        let mask = if is_full { None } else { Some(padded.mask()?) };
        Ok(Self { ids: padded.ids, segments, mask })
    }

    /// What the model takes.
    pub fn inputs(&self) -> EncoderInputs<'_> {
        EncoderInputs { ids: &self.ids, segments: self.segments.as_ref(), mask: self.mask.as_ref() }
    }

    /// How many sequences there are.
    pub fn len(&self) -> i64 {
        self.ids.size()[0]
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// True where there is a token, `[batch, longest]`.
    pub fn present(&self) -> Result<Tensor> {
        match &self.mask {
            Some(mask) => Ok(mask.shallow_clone()),
            None => Ok(self.ids.f_ones_like()?.f_to_kind(Kind::Bool)?),
        }
    }

    /// The same on another device.
    pub fn to_device(self, device: Device) -> Result<Self> {
        let moved = |tensor: Option<Tensor>| tensor.map(|tensor| tensor.f_to_device(device)).transpose();
        Ok(Self {
            ids: self.ids.f_to_device(device)?,
            segments: moved(self.segments)?,
            mask: moved(self.mask)?,
        })
    }
}

/// Encodes texts with special tokens, at most `max_length` long; tells how many were cut. With `strict` a text that would be is an error.
pub fn encode(
    tokenizer: &TextTokenizer,
    texts: &[TextInput<'_>],
    max_length: i64,
    strict: bool,
    place: impl Fn(usize) -> String,
) -> Result<(EncodedTexts, usize)> {
    let options =
        EncodeOptions { special_tokens: true, max_length: Some(usize::try_from(max_length).unwrap_or(0)) };
    let encoded = tokenizer.encode_all(texts, options)?;
    // Only what fills all places can have been cut.
    let full: Vec<usize> =
        (0..encoded.len()).filter(|&text| encoded.length(text) as i64 == max_length).collect();
    let inputs: Vec<TextInput<'_>> = full.iter().map(|&text| texts[text]).collect();
    let whole = tokenizer.encode_all(&inputs, EncodeOptions { special_tokens: true, max_length: None })?;
    let cut: Vec<usize> =
        (0..full.len()).filter(|&number| whole.length(number) as i64 > max_length).collect();
    if let (true, Some(&first)) = (strict, cut.first()) {
        bail_input!(
            "{}: the text has {} tokens, but {max_length} are the most (--strict): raise data.max_length, shorten it, or leave --strict out to have it cut",
            place(full[first]),
            whole.length(first)
        );
    }
    Ok((encoded, cut.len()))
}
