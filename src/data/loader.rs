//! Prepares batches ahead of the training step on its own threads, in an order that does not depend on them.
//!
//! Worker w of n makes the batches w, w + n, w + 2n, … and hands them over through a queue of its own with a fixed number of places;
//! the consumer takes from the queues in turn. So order, memory and the position to resume from need no further bookkeeping.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow};

use super::order::{EpochPlan, Part, Sampler};
use super::{Dataset, Draw};

/// Where in the sequence of batches something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Passes completed.
    pub epoch: u64,
    /// Batches of this pass already taken.
    pub batch: usize,
}

/// A batch with where it comes from.
pub struct Loaded<B> {
    /// The tensors, on the CPU.
    pub batch: B,
    /// Which pass it belongs to.
    pub epoch: u64,
    /// The samples in it.
    pub samples: Vec<usize>,
    /// Whether its pass ends with it.
    pub ends_epoch: bool,
    /// What it is a part of, where several processes share batches.
    pub part: Part,
}

/// How a loader works.
#[derive(Clone, Copy, Debug)]
pub struct LoaderConfig {
    /// Threads that make batches; 0 makes them in the consumer's thread, when asked for.
    pub workers: usize,
    /// Batches that each worker may be ahead.
    pub ahead: usize,
    /// Seed of the choices about samples.
    pub seed: u64,
    /// Whether samples are varied for training.
    pub train: bool,
}

/// An endless sequence of batches, pass after pass.
pub struct Loader<D: Dataset> {
    source: Arc<Source<D>>,
    lanes: Vec<Receiver<Result<Loaded<D::Batch>>>>,
    workers: Vec<JoinHandle<()>>,
    next: u64,
}

struct Source<D> {
    dataset: Arc<D>,
    sampler: Arc<dyn Sampler>,
    config: LoaderConfig,
    /// The plans of the passes being worked on: two at most, since the workers are close together.
    plans: Mutex<Vec<(u64, Arc<EpochPlan>)>>,
}

impl<D: Dataset> Loader<D> {
    /// Starts the threads at `start`.
    pub fn new(
        dataset: Arc<D>,
        sampler: Arc<dyn Sampler>,
        config: LoaderConfig,
        start: Position,
    ) -> Result<Self> {
        let next = start.epoch * sampler.batches_per_epoch() as u64 + start.batch as u64;
        let source = Arc::new(Source { dataset, sampler, config, plans: Mutex::default() });
        let (mut lanes, mut workers) = (Vec::new(), Vec::new());
        for lane in 0..config.workers as u64 {
            let (sender, receiver) = sync_channel(config.ahead.max(1));
            let source = source.clone();
            let stride = config.workers as u64;
            // The consumer takes batch `n` from lane `n % workers`.
            let first = next + (lane + stride - next % stride) % stride;
            let thread = std::thread::Builder::new()
                .name(format!("loader-{lane}"))
                .spawn(move || source.work(first, stride, &sender))
                .context("starting a loader thread")?;
            lanes.push(receiver);
            workers.push(thread);
        }
        Ok(Self { source, lanes, workers, next })
    }

    /// The next batch; waits for it if it is not ready.
    pub fn next_batch(&mut self) -> Result<Loaded<D::Batch>> {
        let loaded = match self.lanes.len() {
            0 => self.source.load(self.next)?,
            lanes => {
                let lane = (self.next % lanes as u64) as usize;
                self.lanes[lane].recv().map_err(|_| anyhow!("a loader thread ended early"))??
            }
        };
        self.next += 1;
        Ok(loaded)
    }
}

impl<D: Dataset> Drop for Loader<D> {
    fn drop(&mut self) {
        // A worker that finds its queue closed ends.
        self.lanes.clear();
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

impl<D: Dataset> Source<D> {
    fn work(&self, first: u64, stride: u64, queue: &SyncSender<Result<Loaded<D::Batch>>>) {
        let mut number = first;
        loop {
            let loaded = catch_unwind(AssertUnwindSafe(|| self.load(number)))
                .unwrap_or_else(|panic| Err(anyhow!("making a batch failed: {}", panic_message(&*panic))));
            let failed = loaded.is_err();
            if queue.send(loaded).is_err() || failed {
                return;
            }
            number += stride;
        }
    }

    fn load(&self, number: u64) -> Result<Loaded<D::Batch>> {
        let batches = self.sampler.batches_per_epoch() as u64;
        let (epoch, batch) = (number / batches, (number % batches) as usize);
        let plan = self.plan(epoch)?;
        let samples = plan.batch(batch).to_vec();
        let draw =
            Draw { seed: self.config.seed, epoch, train: self.config.train, copies: plan.copies(batch) };
        let tensors = self.dataset.batch(&samples, draw)?;
        let ends_epoch = batch + 1 == batches as usize;
        Ok(Loaded { batch: tensors, epoch, samples, ends_epoch, part: plan.part(batch) })
    }

    fn plan(&self, epoch: u64) -> Result<Arc<EpochPlan>> {
        let mut plans = self.plans.lock().map_err(|_| anyhow!("another loader thread failed"))?;
        if let Some((_, plan)) = plans.iter().find(|(known, _)| *known == epoch) {
            return Ok(plan.clone());
        }
        let plan = Arc::new(self.sampler.plan(epoch)?);
        plans.retain(|(known, _)| known + 1 >= epoch);
        plans.push((epoch, plan.clone()));
        Ok(plan)
    }
}

/// The text of a caught panic.
pub fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .map_or_else(|| "unknown reason".to_owned(), |text| crate::error::without_backtrace(&text))
}

#[cfg(test)]
mod tests {
    use super::super::Batch;
    use super::super::order::Shuffled;
    use super::*;
    use tch::Device;

    struct Numbers(usize);
    struct NumberBatch(Vec<usize>, u64);

    impl Batch for NumberBatch {
        fn to_device(self, _device: Device) -> Result<Self> {
            Ok(self)
        }
    }

    impl Dataset for Numbers {
        type Batch = NumberBatch;
        fn len(&self) -> usize {
            self.0
        }
        fn batch(&self, samples: &[usize], draw: Draw) -> Result<NumberBatch> {
            assert!(self.0 != 13 || !samples.contains(&12), "an unlucky sample");
            Ok(NumberBatch(samples.to_vec(), draw.epoch))
        }
    }

    fn sequence(
        len: usize,
        workers: usize,
        start: Position,
        count: usize,
    ) -> Result<Vec<(Vec<usize>, u64, bool)>> {
        let sampler = Arc::new(Shuffled { len, batch_size: 3, seed: 5 });
        let config = LoaderConfig { workers, ahead: 2, seed: 5, train: true };
        let mut loader = Loader::new(Arc::new(Numbers(len)), sampler, config, start)?;
        (0..count)
            .map(|_| {
                let loaded = loader.next_batch()?;
                assert_eq!(loaded.batch.0, loaded.samples);
                assert_eq!(loaded.batch.1, loaded.epoch);
                Ok((loaded.samples, loaded.epoch, loaded.ends_epoch))
            })
            .collect()
    }

    #[test]
    fn the_sequence_is_the_same_on_any_number_of_threads_and_from_any_position() -> Result<()> {
        let beginning = Position { epoch: 0, batch: 0 };
        let plain = sequence(10, 0, beginning, 20)?;
        assert!(plain[3].2 && !plain[4].2);
        for workers in [1, 2, 3, 5] {
            assert_eq!(sequence(10, workers, beginning, 20)?, plain, "{workers} workers");
            for skipped in [1, 4, 7] {
                let start = Position { epoch: skipped / 4, batch: (skipped % 4) as usize };
                let rest = sequence(10, workers, start, 20 - skipped as usize)?;
                assert_eq!(rest, plain[skipped as usize..], "{workers} workers from {start:?}");
            }
        }
        Ok(())
    }

    #[test]
    fn a_panic_in_a_worker_is_an_error_for_the_consumer() {
        let error = sequence(13, 2, Position { epoch: 0, batch: 0 }, 5).unwrap_err();
        assert!(error.to_string().contains("an unlucky sample"), "{error}");
    }
}
