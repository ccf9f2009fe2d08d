//! The training loop.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use tch::{Device, Kind, Tensor};

use super::checkpoint::{Checkpoint, Environment, Progress, Scores};
use super::config::{Sampling, TrainingConfig};
use super::evaluate::{EvaluationSettings, evaluate};
use super::examples::write_examples;
use super::fine_tuning::Unfreezing;
use super::metrics::{improves, larger_is_better};
use super::optimizer;
use super::profile::{Phase, Profiler};
use super::run::RunFolder;
use super::schedule::Schedule;
use super::signals::Interrupt;
use super::step::{MicroBatch, Stepper};
use crate::data::fingerprint::DataFingerprint;
use crate::data::loader::{Loader, LoaderConfig, Position};
use crate::data::order::{Buffered, Parted, Repeated, Sampler, Shuffled, Weighted, balanced_weights};
use crate::data::{Batching, Dataset, Splits};
use crate::distributed::{Broadcast, Reducer};
use crate::error::Interrupted;
use crate::native::random;
use crate::recipe::nearest_hint;
use crate::reporting::{EventWriter, Histogram, Log, MetricsLog, Record, Split, Status, Values};
use crate::tasks::Task;
use crate::weights::{self, NamedTensors};
use crate::{bad_input, bail_input};

/// What the loop works with.
pub struct Training<'a, T: Task, D: Dataset<Batch = T::Batch>> {
    /// Model and loss.
    pub task: &'a mut T,
    /// Training and validation data.
    pub data: &'a Splits<Arc<D>>,
    /// The `training` section, resolved.
    pub config: &'a TrainingConfig,
    /// Where everything is written.
    pub run: &'a RunFolder,
    /// What people read.
    pub log: &'a Log,
    /// The other processes.
    pub reducer: &'a mut dyn Reducer,
    /// Whether to stop.
    pub interrupt: &'a Interrupt,
    /// Where this runs.
    pub environment: Environment,
    /// What the data are.
    pub fingerprint: DataFingerprint,
    /// Whether to measure where the time goes.
    pub profile: bool,
}

/// How a training ended.
#[derive(Clone, Debug)]
pub struct Finished {
    /// The latest state.
    pub progress: Progress,
    /// Samples per second over all steps of this process, evaluation and saving not counted.
    pub samples_per_second: Option<f64>,
    /// Seconds since the run began, earlier processes included up to their last logged line.
    pub wall_seconds: f64,
}

/// Trains until the last step, an early stop, or a signal.
///
/// Continues from the run's `last` checkpoint where there is one.
///
/// # Errors
/// [`Interrupted`] after a signal, with everything saved; a loss or gradient that is not finite; a full disk. The last checkpoint is whole in each case.
pub fn train<T, D>(training: Training<'_, T, D>) -> Result<Finished>
where
    T: Task,
    D: Dataset<Batch = T::Batch>,
{
    let Training { task, data, config, run, log, reducer, interrupt, environment, fingerprint, profile } =
        training;
    let is_first = reducer.rank() == 0;
    let sampler = sampler(config, data.train.as_ref())?;
    let steps_per_epoch = sampler.batches_per_epoch().div_ceil(config.accumulate) as u64;
    let total = config.steps.unwrap_or(config.epochs * steps_per_epoch);
    let schedule = Schedule::new(config, total, steps_per_epoch);
    let mut unfreezing =
        Unfreezing::new(&config.fine_tune, &task.parameters().trainable(), task.head_name())?;
    let mut stepper = Stepper::new(config, task)?;
    stepper.profiler = Profiler::new(profile, task.parameters().device());
    let mut progress = Progress::default();
    let saved = run.last()?;
    let mut records = Records::open(run, saved.as_ref().map(|saved| &saved.progress), is_first)?;
    match saved {
        Some(checkpoint) => {
            for difference in checkpoint.environment.differences(&environment) {
                log.warning(format!(
                    "resuming under other conditions ({difference}): results may differ in the last digits"
                ));
            }
            progress = restore(checkpoint, task, &mut stepper, config.seed, reducer)?;
            log.info(format!("resuming after step {} of {total}", progress.step));
        }
        None if !is_first => random::manual_seed(seed_of(config.seed, 0, reducer.rank()))?,
        None => {}
    }
    reducer.broadcast(task.parameters(), Broadcast::Everything)?;
    let mut clock = Clock::after(is_first.then(|| run.file("metrics.jsonl")), &progress)?;

    let loader_config =
        LoaderConfig { workers: config.workers.unwrap_or(1), ahead: 4, seed: config.seed, train: true };
    let start = Position { epoch: progress.epoch, batch: progress.batch };
    let place = [reducer.rank(), reducer.world_size()];
    let whole = config.distributed.sync_batch_norm;
    let parts = Arc::new(Parted::new(sampler.clone(), place, config.processes(), whole)?);
    let parts_of_batch = parts.batches_per_epoch() / sampler.batches_per_epoch();
    let start = Position { batch: start.batch * parts_of_batch, ..start };
    let mut loader = Loader::new(data.train.clone(), parts, loader_config, start)?;
    let bar = log.progress("training", progress.step, Some(total));

    // Signals reach processes at different moments: several stop at the step at which all know of it.
    let alone = reducer.world_size() == 1;
    let mut evaluation_stopped = false;

    loop {
        let step = progress.step;
        let at_epoch_end = step > 0 && step.is_multiple_of(steps_per_epoch);
        let stopped = |progress: &Progress| {
            config.early_stop.is_some_and(|limit| progress.without_improvement >= limit)
        };
        let done = progress.step >= total || stopped(&progress);
        let due = |every: Option<u64>| every.map_or(at_epoch_end, |every| step.is_multiple_of(every));

        let mut is_best = false;
        if let Some(validation) = &data.validation
            && step > 0
            && progress.evaluated_at != Some(step)
            && (due(config.eval_every) || done)
        {
            refuse_non_finite(&stepper, &progress, sampler.as_ref(), config, data.train.as_ref(), reducer)?;
            let settings = EvaluationSettings::of(config);
            let title = format!("validation after step {}", progress.step);
            let evaluation_bar =
                log.progress(&title, 0, Some(validation.len().div_ceil(settings.batch_size) as u64));
            let began = Instant::now();
            swap_average(&stepper)?;
            // Running statistics are those of the first process, which are saved.
            reducer.broadcast(task.parameters(), Broadcast::Buffers)?;
            let evaluation = evaluate(task, validation, settings, reducer, interrupt, &evaluation_bar);
            swap_average(&stepper)?;
            stepper.profiler.end(Phase::Evaluation, began);
            let evaluation = evaluation?;
            evaluation_stopped = evaluation.is_none();
            if let Some(evaluation) = evaluation {
                let split = Split::Validation;
                if let Some(records) = &mut records {
                    let (events, count) = (&mut records.events, config.examples);
                    write_examples(events, split, step, task, validation.as_ref(), &evaluation, count)?;
                }
                let scores = Scores {
                    step: progress.step,
                    epoch: progress.step as f64 / steps_per_epoch as f64,
                    metrics: evaluation.metrics,
                };
                record(&mut records, split, &scores)?;
                is_best = judge(&mut progress, scores, config, &schedule)?;
                log.info(describe(&progress, task.metrics(), &config.metric, is_best));
            }
        }
        // An early stop is known only after the evaluation.
        let done = progress.step >= total || stopped(&progress);
        let interrupted = match alone {
            true => interrupt.asked(),
            false => stepper.stop_agreed || evaluation_stopped,
        };
        let save_due = done || is_best || due(config.save_every);
        if progress.step > 0 && (save_due || interrupted) {
            refuse_non_finite(&stepper, &progress, sampler.as_ref(), config, data.train.as_ref(), reducer)?;
            let began = Instant::now();
            progress.window = stepper.totals.save(reducer)?;
            if let Some(records) = &mut records {
                records.metrics.sync()?;
                records.events.sync()?;
                progress.metrics_lines = records.metrics.lines();
            }
            let checkpoint = collect(&progress, &environment, &fingerprint, task, &stepper, reducer)?;
            if is_first {
                // A run that is interrupted keeps the same numbered checkpoints as one that is not.
                let keep = if save_due { config.keep } else { 0 };
                run.save(&checkpoint, is_best, keep).context("saving a checkpoint")?;
            }
            stepper.profiler.end(Phase::Saving, began);
        }
        if interrupted && !done {
            return Err(anyhow!(Interrupted(match progress.step {
                0 =>
                    format!("interrupted before the first step: begin with --resume {}", run.path().display()),
                step => {
                    format!(
                        "interrupted after step {step} and saved: continue with --resume {}",
                        run.path().display()
                    )
                }
            })));
        }
        if done {
            break;
        }

        if let Some(unfreezing) = &mut unfreezing
            && let Some(learning) = unfreezing.apply(progress.epoch)?
        {
            log.info(format!("{learning} of {} stages learn", unfreezing.stages()));
        }

        // Wait for the data.
        let began = Instant::now();
        let mut micro_batches = Vec::with_capacity(config.accumulate * parts_of_batch);
        let mut batches = 0;
        while batches < config.accumulate {
            let loaded = loader.next_batch()?;
            progress.window_samples += loaded.part.whole as u64;
            micro_batches.push(MicroBatch { batch: loaded.batch, counts: !loaded.part.stands_in });
            if !loaded.part.is_last {
                continue;
            }
            batches += 1;
            progress.batch += 1;
            if loaded.ends_epoch {
                progress.epoch = loaded.epoch + 1;
                progress.batch = 0;
                break;
            }
        }
        let waited = began.elapsed();
        stepper.profiler.end(Phase::Data, began);

        // Forward, backward, update.
        let rate = schedule.rate(progress.step, &progress.plateau);
        let shows_tensors =
            config.histograms_every.is_some_and(|every| (progress.step + 1).is_multiple_of(every));
        stepper.keep_gradients = shows_tensors;
        stepper.stop_asked = interrupt.asked();
        stepper.step_of_parts(task, micro_batches, progress.step, rate, reducer)?;
        progress.step += 1;
        bar.advance(1);

        // Tell.
        let logged = progress.step.is_multiple_of(config.log_every) || progress.step == total;
        if logged {
            let began_logging = Instant::now();
            refuse_non_finite(&stepper, &progress, sampler.as_ref(), config, data.train.as_ref(), reducer)?;
            let mut values: Values = stepper.totals.means(reducer)?;
            values.insert("lr".to_owned(), rate);
            values.insert("grad_norm".to_owned(), stepper.gradient_norm()?);
            if let Some(scaler) = &stepper.scaler {
                values.insert("loss_scale".to_owned(), scaler.value()?);
            }
            stepper.totals.clear();
            clock.step(began, waited);
            let samples_per_second = clock.lap(progress.window_samples, &mut values);
            progress.window_samples = 0;
            bar.report(&Status {
                step: progress.step,
                loss: values.get("loss").copied().unwrap_or(f64::NAN),
                learning_rate: rate,
                samples_per_second,
                tokens_per_second: None,
            });
            let scores = Scores {
                step: progress.step,
                epoch: progress.step as f64 / steps_per_epoch as f64,
                metrics: values,
            };
            record(&mut records, Split::Train, &scores)?;
            stepper.profiler.end(Phase::Logging, began_logging);
        } else {
            clock.step(began, waited);
        }
        if shows_tensors {
            let began = Instant::now();
            if let Some(records) = &mut records {
                write_histograms(&mut records.events, task, progress.step)?;
            }
            stepper.clear_gradients()?;
            stepper.profiler.end(Phase::Logging, began);
        }
    }
    drop(bar);
    if let Some(unfreezing) = &unfreezing {
        unfreezing.finish()?;
    }
    if progress.step < total {
        let best = progress.best.as_ref().map_or(0, |best| best.step);
        log.info(format!("stopped early: {} has not improved since step {best}", config.metric));
    }
    if is_first && let Some(table) = stepper.profiler.table() {
        let trace = run.file("trace.json");
        stepper.profiler.write_trace(&trace)?;
        log.result(format!("where the time went (trace: {}):\n{table}", trace.display()));
    }
    Ok(Finished { samples_per_second: clock.average(), wall_seconds: clock.wall(), progress })
}

/// The samples of each epoch and their order.
///
/// # Errors
/// Balanced sampling is asked of data that have no classes.
pub fn sampler<D: Dataset>(config: &TrainingConfig, data: &D) -> Result<Arc<dyn Sampler>> {
    let (batch_size, processes, seed) = (config.global_batch_size(), config.processes(), config.seed);
    match config.sampling {
        Sampling::Shuffled if config.repeats > 1 => {
            Ok(Arc::new(Repeated { len: data.len(), repeats: config.repeats, batch_size, seed }))
        }
        Sampling::Shuffled => {
            if let Some(own) = data.sampler(Batching { batch_size, processes, seed, train: true })? {
                return Ok(own);
            }
            Ok(match data.stretches() {
                Some(stretches) => Arc::new(Buffered { stretches, batch_size, seed }),
                None => Arc::new(Shuffled { len: data.len(), batch_size, seed }),
            })
        }
        Sampling::Balanced => match data.classes() {
            Some(classes) => Ok(Arc::new(Weighted { weights: balanced_weights(&classes), batch_size, seed })),
            None => bail_input!("training.sampling is balanced but the samples are not of one class each"),
        },
    }
}

/// Refuses what only model and data together can tell is wrong, before there is a run folder.
///
/// # Errors
/// There is nothing to train on or nothing to train, a metric that no evaluation will yield, a group without a parameter.
pub fn check<T: Task, D: Dataset>(task: &T, data: &Splits<Arc<D>>, config: &TrainingConfig) -> Result<()> {
    if data.train.is_empty() {
        bail_input!("there is no sample to train on");
    }
    let trainable = task.parameters().trainable();
    optimizer::assign(config, trainable.iter().map(|(name, _)| name.as_str()))?;
    let known = task.metrics();
    if !known.contains(&config.metric.as_str()) {
        bail_input!(
            "training.metric: there is no metric `{}`{}",
            config.metric,
            nearest_hint(&config.metric, known.iter().copied())
        );
    }
    Ok(())
}

/// Puts the averaged weights in place of the trained ones, or back.
fn swap_average(stepper: &Stepper) -> Result<()> {
    stepper.average.as_ref().map_or(Ok(()), |average| average.swap())
}

/// Takes an evaluation into the progress and tells whether it is the best so far.
fn judge(
    progress: &mut Progress,
    scores: Scores,
    config: &TrainingConfig,
    schedule: &Schedule,
) -> Result<bool> {
    let metric = &config.metric;
    let value = scores.metrics.get(metric).copied().unwrap_or(f64::NAN);
    let best = progress.best.as_ref().and_then(|best| best.metrics.get(metric).copied());
    let is_best = improves(metric, value, best, 0.0);
    // Patience has a reference of its own: small gains make a better checkpoint at once, and reset the patience once they add up.
    if improves(metric, value, progress.patience_from, config.early_stop_min_delta) {
        progress.patience_from = Some(value);
        progress.without_improvement = 0;
    } else {
        progress.without_improvement += 1;
    }
    schedule.observe(value, larger_is_better(metric), &mut progress.plateau);
    progress.evaluated_at = Some(scores.step);
    if is_best {
        progress.best = Some(scores.clone());
    }
    progress.latest = Some(scores);
    Ok(is_best)
}

/// One line about the latest evaluation: the task's first metrics and the one that decides.
fn describe(progress: &Progress, known: &[&str], deciding: &str, is_best: bool) -> String {
    let Some(latest) = &progress.latest else { return String::new() };
    let told = |name: &str| name == deciding || known.iter().take(HEADLINE).any(|headline| *headline == name);
    let listed: Vec<String> = latest
        .metrics
        .iter()
        .filter(|(name, _)| told(name))
        .map(|(name, value)| format!("{name} {}", crate::reporting::format::metric(name, *value)))
        .collect();
    let mark = if is_best { " (best so far)" } else { "" };
    format!("epoch {:.2}, step {}: validation {}{mark}", latest.epoch, latest.step, listed.join(", "))
}

/// How many of a task's metrics are told after each evaluation; all of them are in `metrics.jsonl`.
const HEADLINE: usize = 2;

/// What is written of a run's course, by the first process alone.
struct Records {
    metrics: MetricsLog,
    events: EventWriter,
}

impl Records {
    /// Begins, or goes on behind what belongs to a saved state; `None` where another process writes.
    fn open(run: &RunFolder, saved: Option<&Progress>, writes: bool) -> Result<Option<Self>> {
        if !writes {
            return Ok(None);
        }
        let mut metrics = MetricsLog::open(&run.file("metrics.jsonl"))?;
        metrics.truncate_to(saved.map_or(0, |progress| progress.metrics_lines))?;
        let events = match saved {
            Some(progress) => EventWriter::resume(run.path(), progress.step)?,
            None => EventWriter::create(run.path())?,
        };
        Ok(Some(Self { metrics, events }))
    }
}

fn record(records: &mut Option<Records>, split: Split, scores: &Scores) -> Result<()> {
    let Some(Records { metrics, events }) = records else { return Ok(()) };
    let record = Record { split, step: scores.step, epoch: scores.epoch, values: scores.metrics.clone() };
    metrics.append(&record)?;
    events.record(&record)
}

/// Writes how the trainable parameters (`weights/NAME`) and their gradients (`gradients/NAME`) are distributed.
fn write_histograms<T: Task>(events: &mut EventWriter, task: &T, step: u64) -> Result<()> {
    let histogram = |tensor: &Tensor| -> Result<Histogram> {
        // The buckets are filled on the CPU.
        let values = tensor.detach().f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?.f_flatten(0, -1)?;
        Ok(Histogram::of(Vec::<f64>::try_from(values)?))
    };
    for (name, parameter) in task.parameters().trainable() {
        events.histogram(&format!("weights/{name}"), step, &histogram(&parameter)?)?;
        let gradient = parameter.f_grad()?;
        // A parameter that the loss does not reach has none.
        if gradient.defined() {
            events.histogram(&format!("gradients/{name}"), step, &histogram(&gradient)?)?;
        }
    }
    Ok(())
}

/// Ends the run if a loss or gradient was not finite, naming the first bad step and its samples. Read before each line and each save, so that
/// nothing that came of it reaches the disk.
fn refuse_non_finite<D: Dataset>(
    stepper: &Stepper,
    progress: &Progress,
    sampler: &dyn Sampler,
    config: &TrainingConfig,
    data: &D,
    reducer: &mut dyn Reducer,
) -> Result<()> {
    let Some(step) = stepper.first_bad_step(progress.step.saturating_sub(1), reducer)? else {
        return Ok(());
    };
    let batches = sampler.batches_per_epoch();
    let steps_per_epoch = batches.div_ceil(config.accumulate) as u64;
    let plan = sampler.plan(step / steps_per_epoch)?;
    let first = (step % steps_per_epoch) as usize * config.accumulate;
    let last = (first + config.accumulate).min(batches);
    let samples: Vec<String> = (first..last)
        .flat_map(|batch| plan.batch(batch))
        .take(8)
        .map(|&sample| data.describe(sample))
        .collect();
    Err(anyhow!(
        "the loss or its gradient became infinite or NaN in step {} (batch of {}, …): the checkpoint before it is kept; lower the learning rate, clip \
         gradients (--clip-norm 1) or look at these samples",
        step + 1,
        samples.join(", ")
    ))
}

/// Everything a checkpoint holds, from all processes.
fn collect<T: Task>(
    progress: &Progress,
    environment: &Environment,
    fingerprint: &DataFingerprint,
    task: &T,
    stepper: &Stepper,
    reducer: &mut dyn Reducer,
) -> Result<Checkpoint> {
    let device = task.parameters().device();
    let mut optimizer: NamedTensors = stepper.optimizer.state();
    for device in generators(device) {
        let states = reducer.gather_tensors(&random::rng_state(device)?)?;
        for (rank, state) in states.into_iter().enumerate() {
            optimizer.insert(generator_name(device, rank), state);
        }
    }
    if let Some(scaler) = &stepper.scaler {
        for (name, tensor) in scaler.state() {
            optimizer.insert(format!("scaler.{name}"), tensor.shallow_clone());
        }
    }
    for (name, tensor) in task.state()? {
        optimizer.insert(format!("task.{name}"), state_of_all(&tensor, reducer)?);
    }
    Ok(Checkpoint {
        progress: progress.clone(),
        environment: environment.clone(),
        data: Some(fingerprint.clone()),
        model: weights::tensors_of(task.parameters()),
        average: stepper.average.as_ref().map(|average| average.tensors()),
        optimizer,
        gradients: reducer.layout()?,
    })
}

/// Puts a checkpoint's state into task and stepper: of what each process has of its own, that of this one.
fn restore<T: Task>(
    checkpoint: Checkpoint,
    task: &mut T,
    stepper: &mut Stepper,
    seed: u64,
    reducer: &mut dyn Reducer,
) -> Result<Progress> {
    let Checkpoint { progress, model, average, mut optimizer, gradients, .. } = checkpoint;
    let device = task.parameters().device();
    let (rank, size) = (reducer.rank(), reducer.world_size());
    if let Some(moving) = &stepper.average {
        // The average takes its values through the model, whose own follow below.
        let average = average.ok_or_else(|| {
            bad_input!("the checkpoint has no ema.safetensors, but the recipe averages weights")
        })?;
        weights::load_into(task.parameters(), &average)?
            .require_complete("the checkpoint's ema.safetensors")?;
        moving.swap()?;
    }
    weights::load_into(task.parameters(), &model)?.require_complete("the checkpoint's model.safetensors")?;
    if rank > 0 {
        // Should the checkpoint be of fewer processes.
        random::manual_seed(seed_of(seed, progress.step, rank))?;
    }
    for device in generators(device) {
        // A run that moves to another kind of device has no state for its generator: it begins at the seed.
        if let Some(state) = optimizer.remove(&generator_name(device, rank)) {
            random::set_rng_state(device, &state)?;
        }
    }
    optimizer.retain(|name, _| !name.starts_with("rng."));
    if let Some(scaler) = &mut stepper.scaler {
        let mut saved = |name: &str| {
            optimizer
                .remove(&format!("scaler.{name}"))
                .ok_or_else(|| bad_input!("the checkpoint has no loss scale"))
        };
        scaler.load_state(&saved("scale")?, &saved("growth_tracker")?)?;
    }
    let (task_state, mut optimizer): (NamedTensors, NamedTensors) =
        optimizer.into_iter().partition(|(name, _)| name.starts_with("task."));
    let own = |(name, tensor): (String, Tensor)| -> Result<(String, Tensor)> {
        let name = name["task.".len()..].to_owned();
        match size {
            1 => Ok((name, tensor)),
            _ => Ok((name, tensor.f_slice(1, rank as i64, None, size as i64)?.f_contiguous()?)),
        }
    };
    task.load_state(task_state.into_iter().map(own).collect::<Result<_>>()?)?;
    stepper.optimizer.load_state(&mut optimizer)?;
    if rank == 0 {
        stepper.totals.load(&progress.window)?;
    }
    reducer.set_layout(gradients.filter(|_| size > 1));
    Ok(progress)
}

/// A tensor of a task's state with the samples of all processes in its second dimension, dealt out as batches are.
fn state_of_all(own: &Tensor, reducer: &mut dyn Reducer) -> Result<Tensor> {
    let size = reducer.world_size();
    if size == 1 {
        return Ok(own.shallow_clone());
    }
    let counts = reducer.gather(vec![own.size()[1] as f64])?;
    // Over the CPU: a checkpoint's tensors are on their way to a file in any case.
    let on_host = own.f_to_device(Device::Cpu)?;
    let numbers = Vec::<f64>::try_from(on_host.f_to_kind(Kind::Double)?.f_flatten(0, -1)?)?;
    let numbers = Tensor::f_from_slice(&reducer.gather(numbers)?)?;
    let mut shape = own.size();
    shape[1] = counts.iter().sum::<f64>() as i64;
    let whole = Tensor::f_zeros(&shape, (own.kind(), Device::Cpu))?; // read back from the CPU by a resumed run
    let mut place = 0;
    for (rank, count) in counts.into_iter().enumerate() {
        shape[1] = count as i64;
        let length = shape.iter().product();
        let part = numbers.f_narrow(0, place, length)?.f_view(&shape[..])?;
        whole.f_slice(1, rank as i64, None, size as i64)?.f_copy_(&part)?;
        place += length;
    }
    Ok(whole)
}

/// The seed of a process's own random numbers from a step on; the first process has the run's.
fn seed_of(seed: u64, step: u64, rank: usize) -> u64 {
    (seed ^ (step << 24)).wrapping_add(rank as u64)
}

/// The devices whose random numbers a run draws.
pub fn generators(device: Device) -> Vec<Device> {
    // The CPU's is there on every device: initial values come from it.
    let mut all = vec![Device::Cpu];
    if !all.contains(&device) {
        all.push(device);
    }
    all
}

fn generator_name(device: Device, rank: usize) -> String {
    let name = match device {
        Device::Cpu => "rng.cpu".to_owned(),
        Device::Cuda(_) => "rng.cuda".to_owned(),
        Device::Mps => "rng.mps".to_owned(),
        Device::Vulkan => "rng.vulkan".to_owned(),
    };
    if rank == 0 { name } else { format!("{name}.{rank}") }
}

/// Where the time goes.
struct Clock {
    began: Instant,
    /// Seconds of earlier processes of this run.
    before: f64,
    lap: std::time::Duration,
    lap_waited: std::time::Duration,
    total: std::time::Duration,
    samples: u64,
}

impl Clock {
    /// A clock that goes on from the last line of an earlier process.
    fn after(metrics: Option<PathBuf>, progress: &Progress) -> Result<Self> {
        let before = match metrics {
            Some(metrics) if progress.step > 0 => {
                let seconds = |record: &Record| record.values.get("seconds").copied();
                crate::reporting::read_metrics(&metrics)?.iter().rev().find_map(seconds).unwrap_or(0.0)
            }
            _ => 0.0,
        };
        Ok(Self {
            began: Instant::now(),
            before,
            lap: Default::default(),
            lap_waited: Default::default(),
            total: Default::default(),
            samples: 0,
        })
    }

    fn step(&mut self, began: Instant, waited: std::time::Duration) {
        self.lap += began.elapsed();
        self.lap_waited += waited;
    }

    /// Closes a lap: adds its rates to the values and returns samples per second.
    fn lap(&mut self, samples: u64, values: &mut BTreeMap<String, f64>) -> f64 {
        let seconds = self.lap.as_secs_f64().max(1e-9);
        let rate = samples as f64 / seconds;
        values.insert("samples_per_second".to_owned(), rate);
        values.insert("data_wait".to_owned(), self.lap_waited.as_secs_f64() / seconds);
        values.insert("seconds".to_owned(), self.wall());
        self.total += std::mem::take(&mut self.lap);
        self.lap_waited = Default::default();
        self.samples += samples;
        rate
    }

    fn average(&self) -> Option<f64> {
        (self.samples > 0).then(|| self.samples as f64 / self.total.as_secs_f64())
    }

    fn wall(&self) -> f64 {
        self.before + self.began.elapsed().as_secs_f64()
    }
}
