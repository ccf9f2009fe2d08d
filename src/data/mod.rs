//! Data sets, the order in which their samples are seen, and the loader that prepares batches ahead of the training step.
//!
//! A data set holds bytes or maps, never tensors (a `Tensor` cannot be shared between threads); tensors are made in
//! [`Dataset::batch`], on the loader's threads. It never sees the model.

pub mod augment;
pub mod cifar;
pub mod decode;
pub mod encoder_texts;
pub mod fingerprint;
pub mod idx;
pub mod image_dataset;
pub mod image_list;
pub mod image_source;
pub mod image_tree;
pub mod images;
pub mod language;
pub mod loader;
pub mod order;
pub mod pixel_cache;
pub mod random;
pub mod resize;
pub mod sequences;
pub mod shards;
pub mod table;
pub mod text;
pub mod translation;

use std::sync::Arc;

use anyhow::Result;
use fingerprint::Fingerprint;
use order::Sampler;
use tch::Device;

/// The samples of one optimizer micro-step, as tensors.
pub trait Batch: Send + Sized {
    /// The same batch on another device.
    fn to_device(self, device: Device) -> Result<Self>;
}

/// What a random choice about a sample may depend on, besides the sample itself: never the order of threads, never the process.
#[derive(Clone, Copy, Debug)]
pub struct Draw<'a> {
    /// The run's seed.
    pub seed: u64,
    /// Passes over the data completed before this one.
    pub epoch: u64,
    /// Whether samples are varied for training (augmentation, masking) or taken as they are.
    pub train: bool,
    /// How often each sample of the batch came before in this pass; empty where each comes once.
    pub copies: &'a [u32],
}

/// Samples that lie one after the other where reading in sequence is much faster than leaping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stretches {
    /// Lengths of the stretches, which follow one another.
    pub lengths: Vec<usize>,
    /// Samples that may be held back to come in random order.
    pub buffer: usize,
}

/// What batches are for.
#[derive(Clone, Copy, Debug)]
pub struct Batching {
    /// Samples in a batch, of all processes together.
    pub batch_size: usize,
    /// For how many processes a batch is.
    pub processes: usize,
    /// The run's seed.
    pub seed: u64,
    /// Whether they are learned from, in an order of each epoch's own, or looked at.
    pub train: bool,
}

/// Samples by index.
pub trait Dataset: Send + Sync + 'static {
    /// What several samples become.
    type Batch: Batch;

    /// How many samples there are.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Makes one batch on the CPU; called from several threads.
    fn batch(&self, samples: &[usize], draw: Draw<'_>) -> Result<Self::Batch>;

    /// The class of each sample, where each has one: what sampling is balanced by.
    fn classes(&self) -> Option<Vec<i64>> {
        None
    }

    /// The batches of an epoch, where the data set has its own: texts of like lengths, windows of a text in their order. `None` leaves it to the
    /// caller: shuffled for training, in their own order for evaluation.
    fn sampler(&self, _wanted: Batching) -> Result<Option<Arc<dyn Sampler>>> {
        Ok(None)
    }

    /// Which samples lie together, where that should decide the order of training.
    fn stretches(&self) -> Option<Stretches> {
        None
    }

    /// What to call a sample in a message: its file, or its number in the file.
    fn describe(&self, sample: usize) -> String {
        format!("sample {sample}")
    }

    /// What tells these samples from others when a run is resumed: cheap, the same wherever they lie. By itself only how many there are; a data set
    /// adds what it has at hand, such as labels and names.
    fn fingerprint(&self) -> Result<Fingerprint> {
        Ok(Fingerprint::new(self.len()))
    }

    /// A small PNG of a sample; none where samples are no pictures.
    fn picture(&self, _sample: usize) -> Result<Option<Vec<u8>>> {
        Ok(None)
    }
}

/// The parts of a data set.
#[derive(Debug)]
pub struct Splits<D> {
    /// Learned from.
    pub train: D,
    /// Chosen by: model selection, early stopping, plateau schedule.
    pub validation: Option<D>,
    /// Looked at once, at the end.
    pub test: Option<D>,
}
