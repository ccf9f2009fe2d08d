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
use crate::data::order::Sequential;
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

/// Every metric over all samples, in their own order; `None` if a signal came in between.
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
        .sampler(Batching { batch_size, seed: 0, train: false })?
        .unwrap_or_else(|| Arc::new(Sequential { len: data.len(), batch_size }));
    let batches = sampler.batches_per_epoch();
    let config = LoaderConfig { workers: settings.workers, ahead: 2, seed: 0, train: false };
    let mut loader = Loader::new(data.clone(), sampler, config, Position { epoch: 0, batch: 0 })?;
    let mut totals = Totals::new(device);
    let mut evaluator = task.evaluator();
    for _ in 0..batches {
        if interrupt.asked() {
            return Ok(None);
        }
        let loaded = loader.next_batch()?;
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
    let mut evaluation = match evaluator {
        Some(mut evaluator) => {
            evaluator.gather(reducer)?;
            evaluator.finish()?
        }
        None => Evaluation::default(),
    };
    let means: BTreeMap<String, f64> = totals.means()?;
    evaluation.metrics.extend(means);
    task.derive(&mut evaluation.metrics);
    Ok(Some(evaluation))
}
