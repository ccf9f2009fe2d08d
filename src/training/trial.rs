//! Which arithmetic a model learns fastest in, tried on its own first batch.

use std::time::Instant;

use anyhow::{Context, Result};
use tch::{Cuda, Device, Tensor};

use super::config::TrainingConfig;
use super::precision::Precision;
use super::trainer::{generators, sampler};
use crate::data::order::{Parted, Sampler};
use crate::data::{Batch, Dataset, Draw};
use crate::distributed::Reducer;
use crate::models::Role;
use crate::native::{TensorList, gradients, random};
use crate::tasks::{Mode, Task};

/// Passes that are timed, after one that is not.
const PASSES: usize = 3;
/// A first pass of this many seconds is followed by one that is timed, not by all of them.
const SLOW: f64 = 1.0;
/// Digits are given up for this part of the time at least.
const WORTH: f64 = 0.05;

/// What became of a trial.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trial {
    /// The arithmetic to train in.
    pub precision: Precision,
    /// Seconds that forward and backward pass of a batch took in float32 and in bfloat16.
    pub seconds: [f64; 2],
}

impl Trial {
    fn of(seconds: [f64; 2]) -> Self {
        let [single, brain] = seconds;
        let precision = if brain < single * (1.0 - WORTH) { Precision::Bf16 } else { Precision::Fp32 };
        Self { precision, seconds }
    }
}

/// Times forward and backward pass of the run's first batch in float32 and in bfloat16. Nothing of it stays: weights, running statistics, carried states and
/// random numbers are what they were. Of several processes the slowest decides, for all of them.
///
/// # Errors
/// A batch cannot be made, or the model refuses it.
pub fn fastest_precision<T, D>(
    task: &mut T,
    data: &D,
    config: &TrainingConfig,
    reducer: &mut dyn Reducer,
) -> Result<Trial>
where
    T: Task,
    D: Dataset<Batch = T::Batch>,
{
    let device = task.parameters().device();
    let place = [reducer.rank(), reducer.world_size()];
    let whole = config.distributed.sync_batch_norm;
    let plan = Parted::new(sampler(config, data)?, place, config.processes(), whole)?.plan(0)?;
    let draw = Draw { seed: config.seed, epoch: 0, train: true, copies: plan.copies(0) };
    let batch = data.batch(plan.batch(0), draw)?.to_device(device)?;

    let kept = Kept::of(task)?;
    let seconds = time(task, &batch, device, reducer).context("trying float32 and bfloat16");
    kept.restore(task)?;
    Ok(Trial::of(seconds?))
}

/// Medians of the seconds in float32 and in bfloat16, taken in turns.
fn time<T: Task>(
    task: &mut T,
    batch: &T::Batch,
    device: Device,
    reducer: &mut dyn Reducer,
) -> Result<[f64; 2]> {
    const CHOICES: [Precision; 2] = [Precision::Fp32, Precision::Bf16];
    let trainable = task.parameters().trainable();
    let parameters = TensorList::new(trainable.iter().map(|(_, tensor)| tensor))?;
    let mut pass = |precision: Precision| -> Result<f64> {
        wait_for(device);
        let began = Instant::now();
        let output = {
            let _autocast = precision.autocast(device)?;
            task.step(batch, Mode::Train)?
        };
        output.loss_sum.f_backward().context("computing gradients")?;
        wait_for(device);
        let seconds = began.elapsed().as_secs_f64();
        gradients::clear(&parameters)?;
        // As long as the slowest of all processes, so that they go on together.
        Ok(reducer.gather(vec![seconds])?.into_iter().fold(0.0, f64::max))
    };
    // What is done once, such as the choice of kernels, is not counted.
    let first = CHOICES.map(&mut pass).into_iter().collect::<Result<Vec<f64>>>()?;
    let passes = if first.iter().any(|&seconds| seconds > SLOW) { 1 } else { PASSES };
    let mut timed = [Vec::new(), Vec::new()];
    for _ in 0..passes {
        for (precision, seconds) in CHOICES.into_iter().zip(&mut timed) {
            seconds.push(pass(precision)?);
        }
    }
    Ok(timed.map(|mut seconds| {
        seconds.sort_by(f64::total_cmp);
        seconds[seconds.len() / 2]
    }))
}

fn wait_for(device: Device) {
    if let Device::Cuda(number) = device {
        Cuda::synchronize(number as i64);
    }
}

/// What passes change besides gradients.
struct Kept {
    buffers: Vec<(Tensor, Tensor)>,
    generators: Vec<(Device, Tensor)>,
    state: Vec<(String, Tensor)>,
}

impl Kept {
    fn of<T: Task>(task: &T) -> Result<Self> {
        let entries = task.parameters().entries().into_iter();
        let buffers = entries
            .filter(|entry| entry.role == Role::Buffer)
            .map(|entry| Ok((entry.tensor.f_detach_copy()?, entry.tensor)))
            .collect::<Result<_>>()?;
        let generators = generators(task.parameters().device())
            .into_iter()
            .map(|device| Ok((device, random::rng_state(device)?)))
            .collect::<Result<_>>()?;
        Ok(Self { buffers, generators, state: task.state()? })
    }

    fn restore<T: Task>(self, task: &mut T) -> Result<()> {
        let _guard = tch::no_grad_guard();
        for (before, mut buffer) in self.buffers {
            buffer.f_copy_(&before)?;
        }
        for (device, state) in self.generators {
            random::set_rng_state(device, &state)?;
        }
        task.load_state(self.state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_given_up_for_time_only() {
        assert_eq!(Trial::of([1.0, 0.5]).precision, Precision::Bf16);
        assert_eq!(Trial::of([1.0, 0.96]).precision, Precision::Fp32);
        assert_eq!(Trial::of([1.0, 1.5]).precision, Precision::Fp32);
    }
}
