//! Pairs of texts that mean the same, or whose likeness is known.

use std::sync::Arc;

use anyhow::Result;
use tch::{Device, Tensor};

use super::TokenBatch;
use super::classified::{add_texts, buckets};
use crate::data::fingerprint::Fingerprint;
use crate::data::order::Sampler;
use crate::data::text::EncodedTexts;
use crate::data::{Batch, Batching, Dataset, Draw};

/// Encoded pairs.
#[derive(Debug)]
pub struct TextPairs {
    first: EncodedTexts,
    second: EncodedTexts,
    lengths: Arc<[u32]>,
    scores: Option<Vec<f32>>,
    padding: i64,
    buckets: bool,
    places: Vec<String>,
}

impl TextPairs {
    /// Puts the parts together: as many first texts as second ones, and scores where there are some.
    pub fn new(
        first: EncodedTexts,
        second: EncodedTexts,
        scores: Option<Vec<f32>>,
        padding: i64,
        buckets: bool,
        places: Vec<String>,
    ) -> Self {
        let longer = |pair| first.length(pair).max(second.length(pair)) as u32;
        let lengths = (0..first.len()).map(longer).collect();
        Self { first, second, lengths, scores, padding, buckets, places }
    }
}

/// Pairs of texts.
#[derive(Debug)]
pub struct PairBatch {
    /// The first text of each pair.
    pub first: TokenBatch,
    /// The second.
    pub second: TokenBatch,
    /// How alike they are, `[batch]` float32.
    pub scores: Option<Tensor>,
}

impl Batch for PairBatch {
    fn to_device(self, device: Device) -> Result<Self> {
        Ok(Self {
            first: self.first.to_device(device)?,
            second: self.second.to_device(device)?,
            scores: self.scores.map(|scores| scores.f_to_device(device)).transpose()?,
        })
    }
}

impl Dataset for TextPairs {
    type Batch = PairBatch;

    fn len(&self) -> usize {
        self.first.len()
    }

    fn batch(&self, samples: &[usize], _draw: Draw) -> Result<PairBatch> {
        let tokens = |texts: &EncodedTexts| {
            let sequences: Vec<(Vec<i64>, usize)> =
                samples.iter().map(|&sample| (texts.ids(sample), texts.length(sample))).collect();
            TokenBatch::of(&sequences, self.padding)
        };
        let scores = self.scores.as_ref().map(|scores| {
            Tensor::f_from_slice(&samples.iter().map(|&sample| scores[sample]).collect::<Vec<f32>>())
        });
        Ok(PairBatch {
            first: tokens(&self.first)?,
            second: tokens(&self.second)?,
            scores: scores.transpose()?,
        })
    }

    fn sampler(&self, wanted: Batching) -> Result<Option<Arc<dyn Sampler>>> {
        Ok(buckets(&self.lengths, self.buckets, wanted))
    }

    fn describe(&self, sample: usize) -> String {
        self.places[sample].clone()
    }

    fn fingerprint(&self) -> Result<Fingerprint> {
        let mut print = Fingerprint::new(self.len());
        add_texts(&mut print, &self.first);
        add_texts(&mut print, &self.second);
        self.scores.iter().flatten().for_each(|score| print.add(&score.to_le_bytes()));
        Ok(print)
    }
}
