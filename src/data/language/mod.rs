//! Texts for decoder language models: one long text in blocks, or conversations of which the answers are learned.

mod instructions;

pub use instructions::{ChatTemplate, Conversation, Message, read_conversations};

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use super::fingerprint::Fingerprint;
use super::order::{Sampler, permutation};
use super::text::{LengthBuckets, TokenizerConfig, Tokens, pad};
use super::translation::IGNORED;
use super::{Batch, Batching, Dataset, Draw};
use crate::bail_input;

/// The `data` section of decoder language models.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct LanguageDataConfig {
    /// A text, a JSON lines file of conversations, or a folder with `train`, `validation` (`val`, `valid`, `dev`) and `test` files.
    pub path: Option<PathBuf>,
    /// A compiled-in text in place of a file.
    pub builtin: Option<String>,
    /// The validation file, where `path` is no folder that has one.
    pub validation: Option<PathBuf>,
    /// The test file likewise.
    pub test: Option<PathBuf>,
    /// How text becomes tokens, where the model does not come with a tokenizer.
    pub tokenizer: Option<TokenizerConfig>,
    /// Tokens of a training sample; the model's context if left out.
    pub block: Option<usize>,
    /// Share of the text held out at its end, or of the conversations, where there is no validation part.
    pub val_fraction: f64,
    /// Whether several conversations share a row, each seeing itself only.
    pub pack: bool,
}

impl Default for LanguageDataConfig {
    fn default() -> Self {
        Self {
            path: None,
            builtin: None,
            validation: None,
            test: None,
            tokenizer: None,
            block: None,
            val_fraction: 0.1,
            pack: false,
        }
    }
}

impl LanguageDataConfig {
    /// Checks what can be checked without files.
    ///
    /// # Errors
    /// Names the key whose value is impossible.
    pub fn validate(&self) -> Result<()> {
        if self.path.is_some() && self.builtin.is_some() {
            bail_input!("data.path and data.builtin: give one of them");
        }
        if self.block.is_some_and(|block| block < 2) {
            bail_input!("data.block must be at least 2 tokens");
        }
        if !(0.0..1.0).contains(&self.val_fraction) {
            bail_input!("data.val_fraction is {}: it must be at least 0 and below 1", self.val_fraction);
        }
        self.tokenizer.as_ref().map_or(Ok(()), TokenizerConfig::validate)
    }
}

/// Tokens with what follows each.
#[derive(Debug)]
pub struct LanguageBatch {
    /// `[batch, length]` int64.
    pub tokens: Tensor,
    /// What follows each token, of the same shape; [`IGNORED`] where nothing is learned.
    pub labels: Tensor,
    /// The number of the text that each token belongs to, and its place there, both of the same shape; none where each row is one text.
    pub packed: Option<Packed>,
    /// Tokens that are learned.
    pub learned: usize,
}

/// Where texts that share a row begin and end.
#[derive(Debug)]
pub struct Packed {
    /// The number of a token's text in its row; −1 beyond the last.
    pub texts: Tensor,
    /// The place of a token in its text.
    pub positions: Tensor,
}

impl Batch for LanguageBatch {
    fn to_device(self, device: Device) -> Result<Self> {
        let moved = |tensor: Tensor| tensor.f_to_device(device).context("moving a batch to the device");
        Ok(Self {
            tokens: moved(self.tokens)?,
            labels: moved(self.labels)?,
            packed: match self.packed {
                Some(Packed { texts, positions }) => {
                    Some(Packed { texts: moved(texts)?, positions: moved(positions)? })
                }
                None => None,
            },
            learned: self.learned,
        })
    }
}

/// Samples of a language model.
pub enum LanguageData {
    /// A long text.
    Blocks(TextBlocks),
    /// Texts with what is learned of each.
    Rows(Rows),
}

/// A long text cut into blocks. In training they begin at another place in each epoch, so that every token is guessed from near and from far; in evaluation
/// they cover the text, each token guessed once.
pub struct TextBlocks {
    tokens: Tokens,
    block: usize,
    train: bool,
}

impl TextBlocks {
    /// Blocks of `block` tokens.
    ///
    /// # Errors
    /// The text is too short.
    pub fn new(tokens: Tokens, block: usize, train: bool, name: &str) -> Result<Self> {
        let least = if train { 2 * block } else { 2 };
        if tokens.len() < least {
            bail_input!(
                "{name}: {} tokens are too few for blocks of {block}: at least {least} are needed; take a longer text or a smaller data.block",
                tokens.len()
            );
        }
        Ok(Self { tokens, block, train })
    }

    /// How many tokens there are.
    pub fn tokens(&self) -> usize {
        self.tokens.len()
    }

    fn len(&self) -> usize {
        match self.train {
            // Whatever the beginning, so many fit.
            true => (self.tokens.len() - self.block) / self.block,
            false => (self.tokens.len() - 1).div_ceil(self.block),
        }
    }

    fn rows(&self, samples: &[usize], draw: Draw) -> Result<Vec<Vec<i64>>> {
        let begin = match self.train {
            true => permutation(self.block, draw.seed.wrapping_add(draw.epoch))?[0],
            false => 0,
        };
        let row = |&sample: &usize| {
            let from = begin + sample * self.block;
            self.tokens.ids(from..(from + self.block + 1).min(self.tokens.len()))
        };
        Ok(samples.iter().map(row).collect())
    }
}

/// One text, or several that share a row.
#[derive(Clone, Debug, Default)]
pub struct Row {
    tokens: Vec<i64>,
    /// Whether a token is learned.
    learned: Vec<bool>,
    /// Tokens of each text.
    lengths: Vec<usize>,
}

/// Rows of different length.
pub struct Rows {
    rows: Vec<Row>,
    lengths: Arc<[u32]>,
    pad: i64,
}

impl Rows {
    /// From texts, each with which of its tokens are learned; texts longer than `context` are cut. With `pack` as many texts share a row as fit into
    /// `context` tokens, in the order of the texts.
    pub fn new(texts: Vec<(Vec<i64>, Vec<bool>)>, context: usize, pack: bool, pad: i64) -> Self {
        let mut rows: Vec<Row> = Vec::new();
        for (mut tokens, mut learned) in texts {
            tokens.truncate(context);
            learned.truncate(context);
            let fits = |row: &&mut Row| pack && row.tokens.len() + tokens.len() <= context;
            match rows.last_mut().filter(fits) {
                Some(row) => {
                    row.lengths.push(tokens.len());
                    row.tokens.append(&mut tokens);
                    row.learned.append(&mut learned);
                }
                None => rows.push(Row { lengths: vec![tokens.len()], tokens, learned }),
            }
        }
        let lengths = rows.iter().map(|row| row.tokens.len() as u32).collect();
        Self { rows, lengths, pad }
    }

    fn batch(&self, samples: &[usize]) -> Result<LanguageBatch> {
        let rows: Vec<&Row> = samples.iter().map(|&sample| &self.rows[sample]).collect();
        let tokens: Vec<Vec<i64>> = rows.iter().map(|row| row.tokens.clone()).collect();
        let mut learned = 0;
        let mut label_row = |row: &Row| {
            let mut labels = vec![IGNORED; row.tokens.len()];
            let mut from = 0;
            for length in &row.lengths {
                // The last token of a text says nothing about the next text.
                let text = from..from + length - 1;
                let next = row.tokens[from + 1..].iter().zip(&row.learned[from + 1..]);
                for (label, (&token, &is_learned)) in labels[text].iter_mut().zip(next) {
                    if is_learned {
                        *label = token;
                        learned += 1;
                    }
                }
                from += length;
            }
            labels
        };
        let labels: Vec<Vec<i64>> = rows.iter().map(|row| label_row(row)).collect();
        let is_packed = rows.iter().any(|row| row.lengths.len() > 1);
        let packed = is_packed
            .then(|| -> Result<Packed> {
                let texts: Vec<Vec<i64>> =
                    rows.iter().map(|row| numbers(&row.lengths, |text, _| text)).collect();
                let places: Vec<Vec<i64>> =
                    rows.iter().map(|row| numbers(&row.lengths, |_, place| place)).collect();
                Ok(Packed { texts: pad(&texts, -1)?.ids, positions: pad(&places, 0)?.ids })
            })
            .transpose()?;
        Ok(LanguageBatch {
            tokens: pad(&tokens, self.pad)?.ids,
            labels: pad(&labels, IGNORED)?.ids,
            packed,
            learned,
        })
    }
}

/// For each token of each text a number made of the text's number and the token's place in it.
fn numbers(lengths: &[usize], of: impl Fn(i64, i64) -> i64) -> Vec<i64> {
    let texts = lengths.iter().enumerate();
    texts
        .flat_map(|(text, &length)| (0..length).map(move |place| (text, place)))
        .map(|(text, place)| of(text as i64, place as i64))
        .collect()
}

impl Dataset for LanguageData {
    type Batch = LanguageBatch;

    fn len(&self) -> usize {
        match self {
            Self::Blocks(blocks) => blocks.len(),
            Self::Rows(rows) => rows.rows.len(),
        }
    }

    fn batch(&self, samples: &[usize], draw: Draw) -> Result<LanguageBatch> {
        let blocks = match self {
            Self::Blocks(blocks) => blocks.rows(samples, draw)?,
            Self::Rows(rows) => return rows.batch(samples),
        };
        let learned = blocks.iter().map(|tokens| tokens.len() - 1).sum();
        let part = |skipped: usize| -> Vec<Vec<i64>> {
            blocks.iter().map(|tokens| tokens[skipped..tokens.len() - 1 + skipped].to_vec()).collect()
        };
        // Only the last block of a text is shorter; what follows its end is not learned, so that any token may stand there.
        Ok(LanguageBatch {
            tokens: pad(&part(0), 0)?.ids,
            labels: pad(&part(1), IGNORED)?.ids,
            packed: None,
            learned,
        })
    }

    fn sampler(&self, wanted: Batching) -> Result<Option<Arc<dyn Sampler>>> {
        let Batching { batch_size, seed, train, .. } = wanted;
        Ok(match self {
            Self::Blocks(_) => None,
            Self::Rows(rows) => Some(Arc::new(LengthBuckets {
                lengths: rows.lengths.clone(),
                batch_size,
                seed,
                shuffled: train,
            })),
        })
    }

    fn describe(&self, sample: usize) -> String {
        match self {
            Self::Blocks(blocks) => format!("the block from token {} on", sample * blocks.block),
            Self::Rows(_) => format!("row {}", sample + 1),
        }
    }

    fn fingerprint(&self) -> Result<Fingerprint> {
        let mut fingerprint = Fingerprint::new(self.len());
        match self {
            Self::Blocks(blocks) => fingerprint.add(&blocks.tokens.checksum().to_le_bytes()),
            Self::Rows(rows) => {
                for row in &rows.rows {
                    let learned: Vec<u8> = row.learned.iter().map(|&learned| u8::from(learned)).collect();
                    fingerprint.add(&learned);
                    let tokens: Vec<u8> = row.tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
                    fingerprint.add(&tokens);
                }
            }
        }
        Ok(fingerprint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(tensor: &Tensor) -> Vec<Vec<i64>> {
        Vec::try_from(tensor).unwrap()
    }

    const DRAW: Draw<'static> = Draw { seed: 3, epoch: 1, train: true, copies: &[] };

    #[test]
    fn evaluation_guesses_every_token_but_the_first_once() -> Result<()> {
        let text: Vec<u32> = (0..23).collect();
        let mut buffer = super::super::text::TokenBuffer::new(23);
        buffer.extend(&text);
        let data = LanguageData::Blocks(TextBlocks::new(buffer.finish(), 5, false, "text")?);
        let batch = data.batch(&(0..data.len()).collect::<Vec<_>>(), Draw { train: false, ..DRAW })?;
        let mut labels: Vec<i64> = rows(&batch.labels).concat();
        labels.retain(|&label| label != IGNORED);
        assert_eq!(labels, (1..23).collect::<Vec<i64>>());
        assert_eq!(batch.learned, 22);
        Ok(())
    }

    #[test]
    fn training_blocks_begin_elsewhere_in_each_epoch_and_stay_inside() -> Result<()> {
        let text: Vec<u32> = (0..100).collect();
        let mut buffer = super::super::text::TokenBuffer::new(100);
        buffer.extend(&text);
        let data = LanguageData::Blocks(TextBlocks::new(buffer.finish(), 7, true, "text")?);
        let all: Vec<usize> = (0..data.len()).collect();
        let mut beginnings = std::collections::BTreeSet::new();
        for epoch in 0..30 {
            let batch = data.batch(&all, Draw { epoch, ..DRAW })?;
            assert_eq!(batch.learned, 7 * data.len());
            beginnings.insert(rows(&batch.tokens)[0][0]);
        }
        assert!(beginnings.len() > 4, "{beginnings:?}");
        Ok(())
    }

    #[test]
    fn packed_texts_learn_their_own_answers_only() -> Result<()> {
        let text = |first: i64, length: usize, from: usize| {
            let tokens: Vec<i64> = (first..first + length as i64).collect();
            (tokens, (0..length).map(|place| place >= from).collect::<Vec<bool>>())
        };
        let texts = vec![text(10, 3, 1), text(20, 4, 2), text(30, 5, 0)];
        let data = LanguageData::Rows(Rows::new(texts, 8, true, 0));
        assert_eq!(data.len(), 2);
        let batch = data.batch(&[0, 1], DRAW)?;
        assert_eq!(rows(&batch.tokens), [[10, 11, 12, 20, 21, 22, 23], [30, 31, 32, 33, 34, 0, 0]]);
        let none = IGNORED;
        assert_eq!(
            rows(&batch.labels),
            [[11, 12, none, none, 22, 23, none], [31, 32, 33, 34, none, none, none]]
        );
        let packed = batch.packed.unwrap();
        assert_eq!(rows(&packed.texts), [[0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, -1, -1]]);
        assert_eq!(rows(&packed.positions), [[0, 1, 2, 0, 1, 2, 3], [0, 1, 2, 3, 4, 0, 0]]);
        assert_eq!(batch.learned, 8);
        Ok(())
    }
}
