//! Pairs of texts, one to be made of the other: translations, summaries, answers.
//!
//! Pairs come from two aligned files (`train.en`, `train.de`) or from two columns of a TSV, CSV or JSON lines file. Sources end with the tokenizer's end;
//! targets begin with its beginning and end with its end.

mod files;

pub use files::{PairFiles, PairPart, read_pairs};

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use super::fingerprint::Fingerprint;
use super::order::Sampler;
use super::text::{
    EncodeOptions, EncodedTexts, LengthBuckets, TextFormat, TextInput, TextTokenizer, TokenBudget,
    TokenizerConfig, pad,
};
use super::{Batch, Batching, Dataset, Draw};
use crate::bail_input;

/// What stands in targets where nothing is asked for.
pub const IGNORED: i64 = -100;

/// The `data` section of translation and other tasks from text to text.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct TranslationDataConfig {
    /// A folder with the parts, or a file of training pairs.
    pub path: Option<PathBuf>,
    /// The source: the ending of aligned files (`en` for `train.en`), or a column.
    pub source: String,
    /// The target likewise.
    pub target: String,
    /// The training part: the beginning of file names in the folder.
    pub train: String,
    /// The validation part likewise; `val`, `valid`, `validation` or `dev` if left out.
    pub validation: Option<String>,
    /// The test part likewise; `test` if left out.
    pub test: Option<String>,
    /// How a file of pairs is written; by its name if left out.
    pub format: Option<TextFormat>,
    /// What each source begins with, as T5's tasks do: `translate English to German: `.
    pub prefix: String,
    /// How texts become tokens, where the model does not come with tokenizers.
    pub tokenizer: TokenizerConfig,
    /// Whether both languages share a vocabulary.
    pub joint: bool,
    /// Most tokens of a source or target, their marks counted. Longer training pairs are left out and counted; in evaluation sources are cut.
    pub max_length: usize,
    /// Most tokens of a batch of sources or of targets, padding counted; batches then have as many pairs as fit, `training.batch_size` at most. If
    /// left out, each batch has `training.batch_size` pairs.
    pub batch_tokens: Option<usize>,
    /// Share of the training part held out where there is no validation part.
    pub val_fraction: f64,
}

impl Default for TranslationDataConfig {
    fn default() -> Self {
        Self {
            path: None,
            source: String::new(),
            target: String::new(),
            train: "train".to_owned(),
            validation: None,
            test: None,
            format: None,
            prefix: String::new(),
            tokenizer: TokenizerConfig::default(),
            joint: false,
            max_length: 128,
            batch_tokens: None,
            val_fraction: 0.1,
        }
    }
}

impl TranslationDataConfig {
    /// Checks what can be checked without files.
    ///
    /// # Errors
    /// Names the key whose value is impossible.
    pub fn validate(&self) -> Result<()> {
        if self.source.is_empty() || self.target.is_empty() {
            bail_input!(
                "data.source and data.target: say what is made of what, as in --set data.source=en --set data.target=de for train.en and train.de, or \
                 with the names of two columns"
            );
        }
        if self.source == self.target {
            bail_input!("data.source and data.target are both `{}`", self.source);
        }
        if self.max_length < 3 {
            bail_input!("data.max_length is {}: it must be at least 3", self.max_length);
        }
        if let Some(tokens) = self.batch_tokens.filter(|tokens| *tokens < self.max_length) {
            bail_input!(
                "data.batch_tokens, {tokens}, must be at least data.max_length, {}, so that each pair fits into a batch",
                self.max_length
            );
        }
        if !(0.0..1.0).contains(&self.val_fraction) {
            bail_input!("data.val_fraction is {}: it must be at least 0 and below 1", self.val_fraction);
        }
        self.tokenizer.validate()
    }
}

/// The tokenizers of both languages with the marks of a model.
#[derive(Clone, Debug)]
pub struct PairTokenizers {
    /// Of sources.
    pub source: Arc<TextTokenizer>,
    /// Of targets; the same for a joint vocabulary.
    pub target: Arc<TextTokenizer>,
    /// What fills rows up.
    pub pad: i64,
    /// What targets begin with.
    pub begin: i64,
    /// What sources and targets end with.
    pub end: i64,
}

impl PairTokenizers {
    /// Makes tokenizers from training pairs, or opens the one that the section names.
    ///
    /// # Errors
    /// A tokenizer without a token for padding, beginning or end.
    pub fn make(config: &TranslationDataConfig, pairs: &PairPart) -> Result<Self> {
        let sources = pairs.sources.iter().map(String::as_str);
        let targets = pairs.targets.iter().map(String::as_str);
        if config.joint || !config.tokenizer.needs_texts() {
            let both = Arc::new(TextTokenizer::train(&config.tokenizer, sources.chain(targets))?);
            return Self::of(both.clone(), both);
        }
        let source = TextTokenizer::train(&config.tokenizer, sources)?;
        let target = TextTokenizer::train(&config.tokenizer, targets)?;
        Self::of(Arc::new(source), Arc::new(target))
    }

    /// With the marks that the tokenizers have themselves.
    ///
    /// # Errors
    /// One of them has none, or they differ.
    pub fn of(source: Arc<TextTokenizer>, target: Arc<TextTokenizer>) -> Result<Self> {
        let marks = |tokenizer: &TextTokenizer| {
            let special = tokenizer.special();
            special.pad.zip(special.begin).zip(special.end)
        };
        let (Some(marks_of_source), Some(marks_of_target)) = (marks(&source), marks(&target)) else {
            bail_input!(
                "the tokenizer has no tokens for padding, beginning and end of a text (`<pad>`, `<s>`, `</s>`)"
            );
        };
        if marks_of_source != marks_of_target {
            bail_input!(
                "the tokenizers of source and target have other numbers for padding, beginning and end"
            );
        }
        let ((pad, begin), end) = marks_of_target;
        Ok(Self { source, target, pad, begin, end })
    }

    /// Sources as the model takes them, cut to `max_length` tokens; and how many were cut.
    ///
    /// # Errors
    /// A text that the tokenizer cannot encode.
    pub fn encode_sources(
        &self,
        texts: &[&str],
        prefix: &str,
        max_length: usize,
    ) -> Result<(Vec<Vec<i64>>, usize)> {
        let prefixed: Vec<String> = texts.iter().map(|text| format!("{prefix}{text}")).collect();
        let encoded = encode(&self.source, prefixed.iter().map(String::as_str))?;
        let mut cut = 0;
        let sources = (0..encoded.len()).map(|text| {
            let mut ids = encoded.ids(text);
            if ids.len() >= max_length {
                cut += 1;
                ids.truncate(max_length - 1);
            }
            ids.push(self.end);
            ids
        });
        Ok((sources.collect(), cut))
    }

    /// The text of target tokens without their marks.
    ///
    /// # Errors
    /// A token that the tokenizer does not have.
    pub fn decode(&self, tokens: &[i64]) -> Result<String> {
        Ok(self.target.decode(tokens, true)?.trim().to_owned())
    }
}

fn encode<'a>(tokenizer: &TextTokenizer, texts: impl Iterator<Item = &'a str>) -> Result<EncodedTexts> {
    let inputs: Vec<TextInput<'_>> = texts.map(TextInput::single).collect();
    tokenizer.encode_all(&inputs, EncodeOptions { special_tokens: false, max_length: None })
}

/// Encoded pairs.
pub struct Translations {
    sources: Vec<Vec<i64>>,
    targets: Vec<Vec<i64>>,
    /// The targets as they were written, for scores of what is made instead.
    references: Arc<[String]>,
    lengths: Arc<[u32]>,
    pad: i64,
    batch_tokens: Option<usize>,
}

/// What encoding left out or changed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Losses {
    /// Training pairs of which one side is too long.
    pub too_long: usize,
    /// Evaluation sources that were cut.
    pub cut: usize,
}

impl Translations {
    /// Encodes pairs. With `train` those of which one side is longer than allowed are left out; otherwise every pair counts, and long sources are cut.
    ///
    /// # Errors
    /// A text that cannot be encoded, with its place; no pair is short enough.
    pub fn new(
        pairs: &PairPart,
        tokenizers: &PairTokenizers,
        config: &TranslationDataConfig,
        train: bool,
    ) -> Result<(Self, Losses)> {
        let texts: Vec<&str> = pairs.sources.iter().map(String::as_str).collect();
        // One token more than allowed shows which are too long.
        let longest = if train { usize::MAX } else { config.max_length };
        let (mut sources, cut) = tokenizers
            .encode_sources(&texts, &config.prefix, longest)
            .map_err(|error| pairs.blame_source(error))?;
        let encoded = encode(&tokenizers.target, pairs.targets.iter().map(String::as_str))
            .map_err(|error| pairs.blame_target(error))?;
        let mut targets: Vec<Vec<i64>> = (0..encoded.len())
            .map(|text| [&[tokenizers.begin], &encoded.ids(text)[..], &[tokenizers.end]].concat())
            .collect();
        let mut losses = Losses { too_long: 0, cut };
        let mut references = pairs.targets.clone();
        if train {
            let fits: Vec<bool> = (0..sources.len())
                .map(|pair| {
                    sources[pair].len() <= config.max_length && targets[pair].len() <= config.max_length
                })
                .collect();
            losses.too_long = fits.iter().filter(|fits| !**fits).count();
            keep(&mut sources, &fits);
            keep(&mut targets, &fits);
            keep(&mut references, &fits);
            if sources.is_empty() {
                bail_input!(
                    "{}: every pair is longer than data.max_length, {} tokens",
                    pairs.name,
                    config.max_length
                );
            }
        }
        let length = |pair: usize| sources[pair].len().max(targets[pair].len() - 1) as u32;
        let lengths = (0..sources.len()).map(length).collect();
        let data = Self {
            lengths,
            references: references.into(),
            sources,
            targets,
            pad: tokenizers.pad,
            batch_tokens: config.batch_tokens.filter(|_| train),
        };
        Ok((data, losses))
    }

    /// The targets as they were written.
    pub fn references(&self) -> &Arc<[String]> {
        &self.references
    }

    /// Tokens of all targets that are learned, their ends counted.
    pub fn target_tokens(&self) -> usize {
        self.targets.iter().map(|target| target.len() - 1).sum()
    }
}

fn keep<T>(items: &mut Vec<T>, flags: &[bool]) {
    let mut flags = flags.iter();
    items.retain(|_| flags.next() == Some(&true));
}

/// Pairs of a step.
#[derive(Debug)]
pub struct TranslationBatch {
    /// `[batch, longest source]` int64.
    pub source: Tensor,
    /// True where there is a token, of the same shape.
    pub mask: Tensor,
    /// What the decoder reads: targets without their ends, `[batch, longest target]` int64.
    pub target: Tensor,
    /// What it is to guess: targets without their beginnings, [`IGNORED`] beyond their ends.
    pub labels: Tensor,
    /// The targets as they were written, in UTF-8, `[batch, longest]` uint8 and 0 beyond their ends.
    pub references: Tensor,
    /// Tokens to guess.
    pub tokens: usize,
}

impl Batch for TranslationBatch {
    fn to_device(self, device: Device) -> Result<Self> {
        let moved = |tensor: Tensor| tensor.f_to_device(device).context("moving a batch to the device");
        Ok(Self {
            source: moved(self.source)?,
            mask: moved(self.mask)?,
            target: moved(self.target)?,
            labels: moved(self.labels)?,
            // Texts are compared where they are.
            references: self.references,
            tokens: self.tokens,
        })
    }
}

impl Dataset for Translations {
    type Batch = TranslationBatch;

    fn len(&self) -> usize {
        self.sources.len()
    }

    fn batch(&self, samples: &[usize], _draw: Draw) -> Result<TranslationBatch> {
        let rows = |part: &dyn Fn(usize) -> Vec<i64>| -> Vec<Vec<i64>> {
            samples.iter().map(|&sample| part(sample)).collect()
        };
        let source = pad(&rows(&|sample| self.sources[sample].clone()), self.pad)?;
        let mask = source.mask()?;
        let target = rows(&|sample| self.targets[sample][..self.targets[sample].len() - 1].to_vec());
        let labels = rows(&|sample| self.targets[sample][1..].to_vec());
        let longest = samples.iter().map(|&sample| self.references[sample].len()).max().unwrap_or(0);
        let mut references = Vec::with_capacity(samples.len() * longest);
        for &sample in samples {
            let bytes = self.references[sample].as_bytes();
            references.extend_from_slice(bytes);
            references.resize(references.len() + longest - bytes.len(), 0);
        }
        Ok(TranslationBatch {
            source: source.ids,
            mask,
            tokens: labels.iter().map(Vec::len).sum(),
            target: pad(&target, self.pad)?.ids,
            labels: pad(&labels, IGNORED)?.ids,
            references: Tensor::f_from_slice(&references)?.f_view([samples.len() as i64, longest as i64])?,
        })
    }

    fn sampler(&self, wanted: Batching) -> Result<Option<Arc<dyn Sampler>>> {
        let lengths = self.lengths.clone();
        let Batching { batch_size, processes, seed, train } = wanted;
        Ok(Some(match self.batch_tokens.filter(|_| train) {
            Some(tokens) => {
                Arc::new(TokenBudget::new(lengths, tokens * processes, Some(batch_size), seed, train)?)
            }
            None => Arc::new(LengthBuckets { lengths, batch_size, seed, shuffled: train }),
        }))
    }

    fn describe(&self, sample: usize) -> String {
        format!("pair {} (`{}`)", sample + 1, self.references[sample])
    }

    fn fingerprint(&self) -> Result<Fingerprint> {
        let mut fingerprint = Fingerprint::new(self.len());
        for (source, target) in self.sources.iter().zip(&self.targets) {
            for tokens in [source, target] {
                fingerprint.add(&tokens.iter().flat_map(|token| token.to_le_bytes()).collect::<Vec<u8>>());
            }
        }
        Ok(fingerprint)
    }
}
