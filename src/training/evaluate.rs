//! Metrics of a task over a data set.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result};

use super::config::TrainingConfig;
use super::metrics::Totals;
use super::precision::Precision;
use super::signals::Interrupt;
use crate::bail_input;
use crate::data::loader::{Loader, LoaderConfig, Position};
use crate::data::order::{EveryNth, Parted, Sampler, Sequential};
use crate::data::{Batch, Batching, Dataset};
use crate::distributed::Reducer;
use crate::native::modes::InferenceMode;
use crate::reporting::Progress;
use crate::tasks::{Evaluation, Mode, Task};

/// How to go through the data.
#[derive(Clone, Copy, Debug)]
pub struct EvaluationSettings {
    /// Samples at a time.
    pub batch_size: usize,
    /// Threads that prepare batches.
    pub workers: usize,
    /// Arithmetic.
    pub precision: Precision,
}

impl EvaluationSettings {
    /// Those of a resolved recipe.
    pub fn of(config: &TrainingConfig) -> Self {
        Self {
            batch_size: config.eval_batch_size(),
            workers: config.workers.unwrap_or(1),
            precision: config.precision,
        }
    }
}

/// Every metric over all samples, in their own order, shared out over all processes; `None` if a signal came to any of them in between.
pub fn evaluate<T, D>(
    task: &mut T,
    data: &Arc<D>,
    settings: EvaluationSettings,
    reducer: &mut dyn Reducer,
    interrupt: &Interrupt,
    progress: &Progress,
) -> Result<Option<Evaluation>>
where
    T: Task,
    D: Dataset<Batch = T::Batch>,
{
    if data.is_empty() {
        bail_input!("there is no sample to evaluate on");
    }
    let device = task.parameters().device();
    let _inference = InferenceMode::enter()?;
    // Around all batches, so that the weights are cast once.
    let _autocast = settings.precision.autocast(device)?;
    let batch_size = settings.batch_size;
    let sampler = data
        .sampler(Batching { batch_size, processes: 1, seed: 0, train: false })?
        .unwrap_or_else(|| Arc::new(Sequential { len: data.len(), batch_size }));
    let sampler = share_of(sampler, reducer)?;
    let batches = sampler.batches_per_epoch();
    let config = LoaderConfig { workers: settings.workers, ahead: 2, seed: 0, train: false };
    let mut loader = Loader::new(data.clone(), sampler, config, Position { epoch: 0, batch: 0 })?;
    let mut totals = Totals::new(device);
    let mut evaluator = task.evaluator();
    let mut interrupted = false;
    for _ in 0..batches {
        interrupted = interrupt.asked();
        if interrupted {
            break;
        }
        let loaded = loader.next_batch()?;
        if loaded.part.stands_in {
            continue;
        }
        let weight = task.weight(&loaded.batch, Mode::Evaluate)?;
        let batch = loaded.batch.to_device(device).context("moving a batch to the device")?;
        let output = task.step(&batch, Mode::Evaluate)?;
        totals.add("loss", &output.loss_sum, weight)?;
        for sum in &output.sums {
            totals.add(sum.name, &sum.total, sum.weight)?;
        }
        if let (Some(evaluator), Some(outcome)) = (&mut evaluator, &output.outcome) {
            evaluator.add(&loaded.samples, outcome)?;
        }
        progress.advance(1);
    }
    // The others end theirs before they hear of it.
    if reducer.sum(f64::from(u8::from(interrupted)))? > 0.0 {
        return Ok(None);
    }
    let mut evaluation = match evaluator {
        Some(mut evaluator) => {
            evaluator.gather(reducer)?;
            evaluator.finish()?
        }
        None => Evaluation::default(),
    };
    let means: BTreeMap<String, f64> = totals.means(reducer)?;
    evaluation.metrics.extend(means);
    task.derive(&mut evaluation.metrics);
    Ok(Some(evaluation))
}

/// The batches that one of several processes looks at: whole ones, so that each is what one process would make of it, unless they follow one another; then
/// a part of each.
fn share_of(sampler: Arc<dyn Sampler>, reducer: &dyn Reducer) -> Result<Arc<dyn Sampler>> {
    let (rank, size) = (reducer.rank(), reducer.world_size());
    if size == 1 {
        return Ok(sampler);
    }
    Ok(match sampler.is_sequence() {
        true => Arc::new(Parted::new(sampler, [rank, size], size, true)?),
        false => Arc::new(EveryNth { sampler, first: rank, step: size }),
    })
}
