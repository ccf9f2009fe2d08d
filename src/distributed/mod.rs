//! Training on several processes and machines, through libtorch's own engine (c10d): the same steps as one process makes on the whole batch.
//!
//! | file | what is in it |
//! | --- | --- |
//! | [`rendezvous`] | who takes part and where they meet: torchrun, SLURM, flags |
//! | [`group`] | the group of processes as the trainer sees it |
//! | [`gradients`] | the sum of gradients: buckets, overlap with the backward pass |
//! | [`agreement`] | the check that all processes are about to do the same |
//! | [`health`] | which process failed, and why |
//! | [`launcher`] | local processes without any other program |
//!
//! A global batch is the same samples on any number of processes ([`crate::data::order::Parted`]); losses are sums that are divided by what the whole batch
//! weighs, so that gradients are summed, not averaged, over processes.

pub mod agreement;
pub mod gradients;
pub mod group;
pub mod health;
pub mod launcher;
pub mod rendezvous;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::bail_input;
use crate::models::Parameters;
use crate::native::TensorList;
use crate::native::distributed::PendingSum;
pub use gradients::Layout;
pub use group::ProcessGroup;

/// The `training.distributed` section: how several processes train together.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct DistributedConfig {
    /// How many processes `training.batch_size` is meant for: a step learns from `processes · batch_size · accumulate` samples. Those that train if left
    /// out; a run keeps it when it is resumed on another number.
    pub processes: Option<usize>,
    /// Whether batch normalisation is over the batches of all processes.
    pub sync_batch_norm: bool,
    /// Type of the numbers in which gradients travel.
    pub compress: Compression,
    /// Whether gradients are sent while the backward pass goes on.
    pub overlap: bool,
    /// Megabytes of gradients that are sent together.
    pub bucket_mb: f64,
    /// The same of those that are sent first.
    pub first_bucket_mb: f64,
    /// Look in each step for parameters that the loss does not reach, where these change from step to step.
    pub find_unused_parameters: bool,
}

impl Default for DistributedConfig {
    fn default() -> Self {
        Self {
            processes: None,
            sync_batch_norm: false,
            compress: Compression::None,
            overlap: true,
            bucket_mb: 25.0,
            first_bucket_mb: 1.0,
            find_unused_parameters: false,
        }
    }
}

impl DistributedConfig {
    /// Checks every value on its own.
    pub fn validate(&self) -> Result<()> {
        if self.processes == Some(0) {
            bail_input!("training.distributed.processes is 0: it must be at least 1");
        }
        for (key, value) in [("bucket_mb", self.bucket_mb), ("first_bucket_mb", self.first_bucket_mb)] {
            if !(value > 0.0 && value <= 65536.0) {
                bail_input!("training.distributed.{key} is {value}: it must be above 0 and at most 65536");
            }
        }
        Ok(())
    }
}

/// Type of the numbers in which gradients travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compression {
    /// Their own.
    #[default]
    None,
    /// bfloat16: half the traffic of float32, three significant digits.
    Bf16,
}

/// What the trainer needs of the other processes. Every call but the first three is made by all of them, in the same order.
pub trait Reducer {
    /// How many processes there are.
    fn world_size(&self) -> usize;

    /// The number of this one, from 0.
    fn rank(&self) -> usize;

    /// The sum of a number over all processes.
    fn sum(&mut self, value: f64) -> Result<f64>;

    /// The rows of all processes, in the order of their ranks.
    fn gather(&mut self, rows: Vec<f64>) -> Result<Vec<f64>>;

    /// A text of each process, in the order of their ranks.
    fn gather_texts(&mut self, text: String) -> Result<Vec<String>>;

    /// A tensor of each process, all of one shape, on the CPU.
    fn gather_tensors(&mut self, tensor: &Tensor) -> Result<Vec<Tensor>>;

    /// Begins to sum two numbers over all processes.
    fn begin_sums(&mut self, values: [f64; 2]) -> Result<Sums>;

    /// Gives every tensor of a model the values that it has in the first process.
    fn broadcast(&mut self, parameters: &Parameters, which: Broadcast) -> Result<()>;

    /// Lets the coming backward pass from `loss`, the last of a step, sum gradients over all processes.
    fn begin_gradients(&mut self, parameters: &TensorList, loss: &Tensor) -> Result<()>;

    /// Ends that: the gradients are now the sums over all processes.
    fn end_gradients(&mut self, parameters: &TensorList) -> Result<()>;

    /// How gradients are cut into buckets, for a checkpoint.
    fn layout(&mut self) -> Result<Option<Layout>> {
        Ok(None)
    }

    /// Goes on with the buckets of a checkpoint.
    fn set_layout(&mut self, _layout: Option<Layout>) {}

    /// Says that this process has no sample of the batch at hand and only takes part because the others wait for it.
    fn stand_in(&mut self, _on: bool) {}

    /// Waits until all processes have come here.
    fn barrier(&mut self) -> Result<()> {
        Ok(())
    }

    /// Parts with the other processes once all have come here. One that failed just ends.
    fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

/// Two sums over all processes.
pub enum Sums {
    /// There is only one.
    Known([f64; 2]),
    /// On their way.
    Pending(PendingSum),
}

impl Sums {
    /// The sums, once every process has given its part.
    pub fn wait(self) -> Result<[f64; 2]> {
        match self {
            Self::Known(sums) => Ok(sums),
            Self::Pending(pending) => {
                let sums = pending.wait()?;
                Ok([sums.f_double_value(&[0])?, sums.f_double_value(&[1])?])
            }
        }
    }
}

/// Which tensors of a model are broadcast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broadcast {
    /// All.
    Everything,
    /// Running statistics and the like, which each process has of its own samples.
    Buffers,
}

/// Training in one process.
#[derive(Clone, Copy, Debug, Default)]
pub struct SingleProcess;

impl Reducer for SingleProcess {
    fn world_size(&self) -> usize {
        1
    }

    fn rank(&self) -> usize {
        0
    }

    fn sum(&mut self, value: f64) -> Result<f64> {
        Ok(value)
    }

    fn gather(&mut self, rows: Vec<f64>) -> Result<Vec<f64>> {
        Ok(rows)
    }

    fn gather_texts(&mut self, text: String) -> Result<Vec<String>> {
        Ok(vec![text])
    }

    fn gather_tensors(&mut self, tensor: &Tensor) -> Result<Vec<Tensor>> {
        Ok(vec![tensor.shallow_clone()])
    }

    fn begin_sums(&mut self, values: [f64; 2]) -> Result<Sums> {
        Ok(Sums::Known(values))
    }

    fn broadcast(&mut self, _parameters: &Parameters, _which: Broadcast) -> Result<()> {
        Ok(())
    }

    fn begin_gradients(&mut self, _parameters: &TensorList, _loss: &Tensor) -> Result<()> {
        Ok(())
    }

    fn end_gradients(&mut self, _parameters: &TensorList) -> Result<()> {
        Ok(())
    }
}
