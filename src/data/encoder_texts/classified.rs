//! One or two texts with a label.

use std::sync::Arc;

use anyhow::Result;
use tch::{Device, Tensor};

use super::TokenBatch;
use crate::data::fingerprint::Fingerprint;
use crate::data::order::Sampler;
use crate::data::text::{EncodedTexts, LengthBuckets};
use crate::data::{Batch, Batching, Dataset, Draw};

/// What is to be predicted of each text.
#[derive(Clone, Debug)]
pub enum Targets {
    /// The number of its class.
    Classes(Vec<i64>),
    /// The numbers of its labels, out of so many.
    Sets {
        /// How many labels there are.
        labels: usize,
        /// Those of each text.
        sets: Vec<Vec<usize>>,
    },
    /// A number.
    Values(Vec<f32>),
}

/// Encoded texts with their targets.
#[derive(Debug)]
pub struct ClassifiedTexts {
    texts: EncodedTexts,
    lengths: Arc<[u32]>,
    targets: Targets,
    padding: i64,
    buckets: bool,
    places: Vec<String>,
}

impl ClassifiedTexts {
    /// Puts the parts together. `places` says where each text is from, for messages.
    pub fn new(
        texts: EncodedTexts,
        targets: Targets,
        padding: i64,
        buckets: bool,
        places: Vec<String>,
    ) -> Self {
        Self { lengths: texts.lengths(), texts, targets, padding, buckets, places }
    }

    /// What is to be predicted.
    pub fn targets(&self) -> &Targets {
        &self.targets
    }

    /// The tokens of a text.
    pub fn ids(&self, text: usize) -> Vec<i64> {
        self.texts.ids(text)
    }
}

/// Texts with their targets.
#[derive(Debug)]
pub struct LabelledBatch {
    /// The texts.
    pub tokens: TokenBatch,
    /// `[batch]` int64 classes, `[batch, labels]` float32 of 0 and 1, or `[batch]` float32 values.
    pub targets: Tensor,
}

impl Batch for LabelledBatch {
    fn to_device(self, device: Device) -> Result<Self> {
        Ok(Self { tokens: self.tokens.to_device(device)?, targets: self.targets.f_to_device(device)? })
    }
}

impl Dataset for ClassifiedTexts {
    type Batch = LabelledBatch;

    fn len(&self) -> usize {
        self.texts.len()
    }

    fn batch(&self, samples: &[usize], _draw: Draw) -> Result<LabelledBatch> {
        let sequences: Vec<(Vec<i64>, usize)> =
            samples.iter().map(|&sample| (self.texts.ids(sample), self.texts.second_from(sample))).collect();
        let targets = match &self.targets {
            Targets::Classes(classes) => {
                Tensor::f_from_slice(&samples.iter().map(|&sample| classes[sample]).collect::<Vec<_>>())?
            }
            Targets::Values(values) => {
                Tensor::f_from_slice(&samples.iter().map(|&sample| values[sample]).collect::<Vec<_>>())?
            }
            Targets::Sets { labels, sets } => {
                let mut rows = vec![0f32; samples.len() * labels];
                for (row, &sample) in samples.iter().enumerate() {
                    sets[sample].iter().for_each(|label| rows[row * labels + label] = 1.0);
                }
                Tensor::f_from_slice(&rows)?.f_view([samples.len() as i64, *labels as i64])?
            }
        };
        Ok(LabelledBatch { tokens: TokenBatch::of(&sequences, self.padding)?, targets })
    }

    fn classes(&self) -> Option<Vec<i64>> {
        match &self.targets {
            Targets::Classes(classes) => Some(classes.clone()),
            _ => None,
        }
    }

    fn sampler(&self, wanted: Batching) -> Result<Option<Arc<dyn Sampler>>> {
        Ok(buckets(&self.lengths, self.buckets, wanted))
    }

    fn describe(&self, sample: usize) -> String {
        self.places[sample].clone()
    }

    fn fingerprint(&self) -> Result<Fingerprint> {
        let mut print = Fingerprint::new(self.len());
        add_texts(&mut print, &self.texts);
        match &self.targets {
            Targets::Classes(classes) => classes.iter().for_each(|class| print.add(&class.to_le_bytes())),
            Targets::Values(values) => values.iter().for_each(|value| print.add(&value.to_le_bytes())),
            Targets::Sets { sets, .. } => {
                for set in sets {
                    print.add(&(set.len() as u64).to_le_bytes());
                    set.iter().for_each(|label| print.add(&(*label as u64).to_le_bytes()));
                }
            }
        }
        Ok(print)
    }
}

/// Batches by length, where they are wanted.
pub(super) fn buckets(lengths: &Arc<[u32]>, on: bool, wanted: Batching) -> Option<Arc<dyn Sampler>> {
    on.then(|| {
        let Batching { batch_size, seed, train, .. } = wanted;
        Arc::new(LengthBuckets { lengths: lengths.clone(), batch_size, seed, shuffled: train })
            as Arc<dyn Sampler>
    })
}

/// Takes all tokens into a fingerprint.
pub(super) fn add_texts(print: &mut Fingerprint, texts: &EncodedTexts) {
    for text in 0..texts.len() {
        let ids = texts.ids(text);
        print.add(&ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>());
    }
}

/// A number for each row of a column; an error names the line.
pub fn values_of(table: &crate::data::text::TextTable, column: usize) -> Result<Vec<f32>> {
    let value = |row: usize| {
        let text = table.rows[row].text(column).trim();
        match text.parse::<f32>() {
            Ok(value) if value.is_finite() => Ok(value),
            _ => Err(crate::bad_input!("{}: `{text}` is not a number", table.place(row))),
        }
    };
    (0..table.rows.len()).map(value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    #[test]
    fn targets_become_tensors_and_equal_lengths_need_no_mask() -> Result<()> {
        let mut texts = EncodedTexts::new(100);
        texts.push(&[1, 5, 2], 3);
        texts.push(&[1, 5, 2, 6, 2], 3);
        texts.push(&[1, 7, 2], 3);
        let sets = Targets::Sets { labels: 3, sets: vec![vec![2], vec![], vec![0, 1]] };
        let places = (0..3).map(|row| format!("line {row}")).collect();
        let data = ClassifiedTexts::new(texts, sets, 0, true, places);
        let draw = Draw { seed: 0, epoch: 0, train: true, copies: &[] };
        let batch = data.batch(&[0, 2], draw)?;
        assert!(batch.tokens.mask.is_none() && batch.tokens.segments.is_none());
        assert_eq!(Vec::<Vec<f32>>::try_from(&batch.targets)?, [[0.0, 0.0, 1.0], [1.0, 1.0, 0.0]]);
        let batch = data.batch(&[0, 1], draw)?;
        let segments = batch.tokens.segments.unwrap();
        assert_eq!(Vec::<Vec<i64>>::try_from(segments)?, [[0; 5], [0, 0, 0, 1, 1]]);
        assert_eq!(i64::try_from(batch.tokens.mask.unwrap().sum(Kind::Int64))?, 8);
        Ok(())
    }
}
