//! One optimizer step: forward and backward over the micro-batches, then one update. The path that `train` ships and that benchmarks time.

use std::time::Instant;

use anyhow::{Context, Result, bail};
use tch::{Device, Kind, Tensor};

use super::config::TrainingConfig;
use super::ema::MovingAverage;
use super::metrics::Totals;
use super::optimizer::Optimizer;
use super::precision::{LossScaler, Precision};
use super::profile::{Phase, Profiler};
use crate::data::Batch;
use crate::distributed::Reducer;
use crate::native::{TensorList, gradients};
use crate::tasks::{Mode, Task};

/// Everything that one update needs and changes besides the model.
pub struct Stepper {
    device: Device,
    precision: Precision,
    /// The trainable parameters, for operations on all gradients.
    parameters: TensorList,
    /// The update rule with its state.
    pub optimizer: Optimizer,
    /// Loss scaling, in float16.
    pub scaler: Option<LossScaler>,
    /// Averaged weights, where the recipe has them.
    pub average: Option<MovingAverage>,
    /// Sums since the last logged line.
    pub totals: Totals,
    /// Where the time goes, if anyone asked.
    pub profiler: Profiler,
    /// Whether gradients stay after the update, for a look at them; [`Stepper::clear_gradients`] then has to follow.
    pub keep_gradients: bool,
    penalty: (f64, f64),
    clip_norm: Option<f64>,
    clip_value: Option<f64>,
    /// 2-norm of the latest gradients before clipping: a scalar on the device.
    gradient_norm: Tensor,
    /// Number of the first step with a loss or gradient that is not finite, or −1: on the device.
    first_bad_step: Tensor,
    /// Whether this process was asked to stop; told to the others with the next step.
    pub stop_asked: bool,
    /// Whether any process was, as all of them know after a step.
    pub stop_agreed: bool,
    /// Whether every micro-batch is a collective by itself.
    synchronises_norms: bool,
}

/// A micro-batch of one process.
pub struct MicroBatch<B> {
    /// Its samples.
    pub batch: B,
    /// Whether they count. A process without a sample of a batch takes part in its step with one that does not.
    pub counts: bool,
}

impl Stepper {
    /// Prepares optimizer, scaler and average for a task. `config` is resolved.
    pub fn new<T: Task>(config: &TrainingConfig, task: &T) -> Result<Self> {
        let device = task.parameters().device();
        let trainable = task.parameters().trainable();
        Ok(Self {
            device,
            precision: config.precision,
            parameters: TensorList::new(trainable.iter().map(|(_, tensor)| tensor))?,
            optimizer: Optimizer::new(config, &trainable, task.head_name())?,
            scaler: LossScaler::new(config.precision, device)?,
            average: config.ema.map(|decay| MovingAverage::new(decay, task.parameters())).transpose()?,
            totals: Totals::new(device),
            profiler: Profiler::new(false, device),
            keep_gradients: false,
            penalty: (config.l1, config.l2),
            clip_norm: config.clip_norm,
            clip_value: config.clip_value,
            gradient_norm: Tensor::f_zeros([0i64; 0], (Kind::Float, device))?,
            first_bad_step: Tensor::f_full([0i64; 0], -1, (Kind::Int64, device))?,
            stop_asked: false,
            stop_agreed: false,
            synchronises_norms: config.distributed.sync_batch_norm,
        })
    }

    /// One update at learning rate `lr` from the micro-batches of one step. The loss is the mean over all of them and all processes: sums are divided once, by the
    /// global weight, and gradients are summed.
    pub fn step<T: Task>(
        &mut self,
        task: &mut T,
        micro_batches: Vec<T::Batch>,
        number: u64,
        lr: f64,
        reducer: &mut dyn Reducer,
    ) -> Result<()> {
        let counted = micro_batches.into_iter().map(|batch| MicroBatch { batch, counts: true }).collect();
        self.step_of_parts(task, counted, number, lr, reducer)
    }

    /// The same where this process may have no sample of some.
    pub fn step_of_parts<T: Task>(
        &mut self,
        task: &mut T,
        mut micro_batches: Vec<MicroBatch<T::Batch>>,
        number: u64,
        lr: f64,
        reducer: &mut dyn Reducer,
    ) -> Result<()> {
        if !self.synchronises_norms && micro_batches.iter().any(|part| part.counts) {
            micro_batches.retain(|part| part.counts);
        }
        let weights = micro_batches
            .iter()
            .map(|part| if part.counts { task.weight(&part.batch, Mode::Train) } else { Ok(0.0) })
            .collect::<Result<Vec<f64>>>()?;
        // On their way during the first forward pass.
        let mut sums =
            Some(reducer.begin_sums([weights.iter().sum(), f64::from(u8::from(self.stop_asked))])?);
        let mut share = 0.0;
        let last = micro_batches.len().saturating_sub(1);
        for (place, (part, weight)) in micro_batches.into_iter().zip(weights).enumerate() {
            let began = Instant::now();
            let batch = part.batch.to_device(self.device).context("moving a batch to the device")?;
            reducer.stand_in(!part.counts);
            let output = {
                let _autocast = self.precision.autocast(self.device)?;
                task.step(&batch, Mode::Train)?
            };
            self.profiler.end(Phase::Forward, began);
            let began = Instant::now();
            if let Some(sums) = sums.take() {
                let [global_weight, stops] = sums.wait()?;
                self.stop_agreed = stops > 0.0;
                if global_weight <= 0.0 {
                    bail!(
                        "step {number}: no sample of the batch has a weight above 0, so its loss is undefined"
                    );
                }
                share = 1.0 / global_weight;
            }
            let loss = output.loss_sum.f_mul_scalar(if part.counts { share } else { 0.0 })?;
            let loss = match &self.scaler {
                Some(scaler) => scaler.scale(&loss)?,
                None => loss,
            };
            if place == last {
                reducer.begin_gradients(&self.parameters, &loss)?;
            }
            loss.f_backward().context("computing gradients")?;
            self.profiler.end(Phase::Backward, began);
            if !part.counts {
                continue;
            }
            let loss_sum = output.loss_sum.detach();
            self.totals.add("loss", &loss_sum, weight)?;
            for sum in &output.sums {
                self.totals.add(sum.name, &sum.total, sum.weight)?;
            }
            gradients::watch_finite(&[&loss_sum], number as i64, &self.first_bad_step)?;
        }
        reducer.stand_in(false);
        let began = Instant::now();
        reducer.end_gradients(&self.parameters)?;
        self.update(number, lr)?;
        self.profiler.end(Phase::Optimizer, began);
        Ok(())
    }

    fn update(&mut self, number: u64, lr: f64) -> Result<()> {
        if let Some(scaler) = &mut self.scaler {
            scaler.unscale(&self.parameters)?;
        }
        let (l1, l2) = self.penalty;
        if l1 > 0.0 || l2 > 0.0 {
            gradients::add_penalty(&self.parameters, l1, l2)?;
        }
        self.gradient_norm = gradients::norm(&self.parameters)?;
        if self.scaler.is_none() {
            // With a scaler an overflow is expected now and then, and skipped.
            gradients::watch_finite(&[&self.gradient_norm], number as i64, &self.first_bad_step)?;
        }
        if let Some(limit) = self.clip_value {
            gradients::clip_by_value(&self.parameters, limit)?;
        }
        if let Some(limit) = self.clip_norm {
            let norm = match self.clip_value {
                Some(_) => &gradients::norm(&self.parameters)?,
                None => &self.gradient_norm,
            };
            gradients::clip_by_norm(&self.parameters, norm, limit)?;
        }
        self.optimizer.step(lr, self.scaler.as_ref().map(LossScaler::found_inf))?;
        if let Some(scaler) = &self.scaler {
            scaler.update()?;
        }
        if let Some(average) = &self.average {
            average.update()?;
        }
        if self.keep_gradients { Ok(()) } else { self.clear_gradients() }
    }

    /// Forgets all gradients.
    pub fn clear_gradients(&self) -> Result<()> {
        gradients::clear(&self.parameters)
    }

    /// The 2-norm of the latest gradients before clipping, copied to the host.
    pub fn gradient_norm(&self) -> Result<f64> {
        Ok(self.gradient_norm.f_double_value(&[])?)
    }

    /// The first step whose loss or gradients were not finite in any process, copied to the host. In float16 also a loss scale that has sunk below any use,
    /// which many overflows in a row cause.
    pub fn first_bad_step(&self, latest: u64, reducer: &mut dyn Reducer) -> Result<Option<u64>> {
        let steps = reducer.gather(vec![self.first_bad_step.f_int64_value(&[])? as f64])?;
        let bad = steps.into_iter().filter(|step| *step >= 0.0).min_by(f64::total_cmp);
        if let Some(step) = bad {
            return Ok(Some(step as u64));
        }
        match &self.scaler {
            Some(scaler) if scaler.value()? < SMALLEST_SCALE => Ok(Some(latest)),
            _ => Ok(None),
        }
    }
}

/// A loss scale below this means that gradients overflow at any scale.
const SMALLEST_SCALE: f64 = 1e-4;
