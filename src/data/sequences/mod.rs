//! Sequences: labelled texts and series of numbers, long texts in windows, time series with their future.

mod arrays;
mod config;
mod labelled;
mod series;
mod stream;
mod time;

pub use config::{SHAKESPEARE_MINI, SYNTHETIC, SequenceDataConfig};
pub use labelled::{
    LabelledSequences, OpenedSequences, RawSequences, SequenceBatch, Targets, encode_texts, open_labelled,
    sequences_of_table, synthetic,
};
pub use series::{BASELINES, Fields, OpenedSeries, SeriesBatch, SeriesTable, SeriesWindows, open_series};
pub use stream::{NO_TARGET, OpenedText, StreamBatch, TextWindows, embedded_text, open_text};
pub use time::{Interval, TimeAxis};

use std::sync::Arc;

use anyhow::Result;
use tch::Device;

use super::fingerprint::Fingerprint;
use super::order::Sampler;
use super::{Batch, Batching, Dataset, Draw};

/// The samples of any task on sequences.
#[derive(Debug)]
pub enum Sequences {
    /// Sequences with labels.
    Labelled(LabelledSequences),
    /// Windows of a text.
    Text(TextWindows),
    /// Windows of series.
    Series(SeriesWindows),
}

/// Samples of [`Sequences`] as tensors.
#[derive(Debug)]
pub enum AnyBatch {
    /// Sequences with labels.
    Labelled(SequenceBatch),
    /// Windows of a text.
    Text(StreamBatch),
    /// Windows of series.
    Series(SeriesBatch),
}

impl Batch for AnyBatch {
    fn to_device(self, device: Device) -> Result<Self> {
        Ok(match self {
            Self::Labelled(batch) => Self::Labelled(batch.to_device(device)?),
            Self::Text(batch) => Self::Text(batch.to_device(device)?),
            Self::Series(batch) => Self::Series(batch.to_device(device)?),
        })
    }
}

impl Dataset for Sequences {
    type Batch = AnyBatch;

    fn len(&self) -> usize {
        match self {
            Self::Labelled(data) => data.len(),
            Self::Text(data) => data.len(),
            Self::Series(data) => data.len(),
        }
    }

    fn batch(&self, samples: &[usize], draw: Draw) -> Result<AnyBatch> {
        Ok(match self {
            Self::Labelled(data) => AnyBatch::Labelled(data.batch(samples)?),
            Self::Text(data) => AnyBatch::Text(data.batch(samples)?),
            Self::Series(data) => AnyBatch::Series(data.batch(samples, draw.train)?),
        })
    }

    fn classes(&self) -> Option<Vec<i64>> {
        match self {
            Self::Labelled(data) => data.classes(),
            Self::Text(_) | Self::Series(_) => None,
        }
    }

    fn sampler(&self, wanted: Batching) -> Result<Option<Arc<dyn Sampler>>> {
        Ok(match self {
            Self::Labelled(data) => data.sampler(wanted),
            Self::Text(data) => Some(data.sampler()),
            Self::Series(_) => None,
        })
    }

    fn describe(&self, sample: usize) -> String {
        match self {
            Self::Labelled(data) => data.describe(sample),
            Self::Text(data) => data.describe(sample),
            Self::Series(data) => data.describe(sample),
        }
    }

    fn fingerprint(&self) -> Result<Fingerprint> {
        let mut print = Fingerprint::new(self.len());
        match self {
            Self::Labelled(data) => data.take_print(&mut print),
            Self::Text(data) => data.take_print(&mut print),
            Self::Series(data) => data.take_print(&mut print),
        }
        Ok(print)
    }
}
