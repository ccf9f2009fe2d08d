//! `bench-distributed`: what several processes cost on these machines: the all-reduce by size, and a training step alone, side by side, and together.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use tch::{Cuda, Device, Kind, Tensor};

use super::args::{EvalFormat, TrainArgs};
use super::family::{Family, FamilyRecipe};
use super::{print, session, table};
use crate::bail_input;
use crate::data::order::{Parted, Sampler};
use crate::data::{Dataset, Draw};
use crate::distributed::health::{Meeting, with_processes};
use crate::distributed::{DistributedConfig, ProcessGroup, Reducer, SingleProcess};
use crate::reporting::{Log, Verbosity};
use crate::tasks::Task;
use crate::training::step::{MicroBatch, Stepper};
use crate::training::trainer;

/// Arguments of `bench-distributed`.
#[derive(Debug, Args)]
pub struct BenchDistributedArgs {
    /// The recipe, the processes, and what else `train` takes; --steps is how many are timed [default: 20]
    #[command(flatten)]
    train: TrainArgs,
    /// Steps before those that are timed
    #[arg(long, value_name = "N", default_value_t = 3)]
    warm_up_steps: usize,
    /// Largest tensor whose all-reduce is timed, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 64)]
    largest: usize,
    /// How to print
    #[arg(long, value_enum, default_value_t = EvalFormat::Table)]
    format: EvalFormat,
}

/// The all-reduce of one size.
#[derive(Debug, Serialize)]
struct AllReduce {
    /// Of the tensor.
    bytes: usize,
    /// Median of the slowest process.
    seconds: f64,
    /// What each link carries, 2 (n − 1) / n · bytes, in bytes per second: comparable over numbers of processes.
    bus_bandwidth: f64,
}

/// A training step.
#[derive(Debug, Serialize)]
struct Scaling {
    /// Samples that each process has of a step.
    samples_per_process: usize,
    /// Bytes of all gradients.
    gradient_bytes: usize,
    /// Samples per second of the first process while the others wait.
    alone: f64,
    /// Of all processes at once, without a word between them: what cores and memory allow.
    independent: f64,
    /// Of all processes, training together, with gradients sent while the backward pass goes on.
    together: f64,
    /// The same with gradients sent after it.
    without_overlap: f64,
    /// together / (processes · alone)
    efficiency: f64,
    /// together / independent
    efficiency_vs_independent: f64,
}

#[derive(Debug, Serialize)]
struct Figures {
    processes: usize,
    device: String,
    threads: usize,
    all_reduce: Vec<AllReduce>,
    step: Scaling,
}

/// Runs the verb.
pub fn run<F: Family>(arguments: &BenchDistributedArgs) -> Result<()> {
    with_processes(&arguments.train.group, |meeting| match meeting {
        Some(meeting) => measure::<F>(arguments, meeting),
        None => {
            bail_input!("bench-distributed measures several processes: give --processes N, or start several")
        }
    })
}

fn measure<F: Family>(arguments: &BenchDistributedArgs, meeting: &Rc<Meeting>) -> Result<()> {
    let log = Log::new(Verbosity::Quiet);
    let mut recipe = session::new_recipe::<F>(&arguments.train)?;
    let device = session::prepare_among(&mut recipe.training, Some(meeting.rendezvous()))?;
    let data = F::open(&mut recipe, &log)?.train;
    let mut group = Box::new(meeting.connect(device, &recipe.training.distributed)?);
    let all_reduce = all_reduces(&mut group, device, arguments.largest << 20)?;
    let step = scaling::<F>(arguments, &recipe, device, &data, &mut group)?;
    let figures = Figures {
        processes: group.world_size(),
        device: recipe.training.device.clone(),
        threads: recipe.training.threads.unwrap_or(1),
        all_reduce,
        step,
    };
    if meeting.is_first() {
        print(&match arguments.format {
            EvalFormat::Json => serde_json::to_string_pretty(&figures)?,
            EvalFormat::Table => describe(&figures),
        })?;
    }
    group.close()
}

/// Times sums over all processes from 4 KiB on, each size four times the one before.
fn all_reduces(group: &mut ProcessGroup, device: Device, largest: usize) -> Result<Vec<AllReduce>> {
    const REPETITIONS: usize = 9;
    let processes = group.world_size() as f64;
    let mut found = Vec::new();
    let sizes = std::iter::successors(Some(4096usize), |bytes| Some(bytes * 4));
    for bytes in sizes.take_while(|bytes| *bytes <= largest) {
        let tensor = Tensor::f_zeros([(bytes / 4) as i64], (Kind::Float, device))?;
        let mut times = Vec::new();
        for _ in 0..REPETITIONS {
            group.barrier()?;
            let began = Instant::now();
            group.collectives().sum(&tensor)?;
            wait_for(device);
            times.push(began.elapsed().as_secs_f64());
        }
        let seconds = median(slowest(group, times)?);
        let bus_bandwidth = 2.0 * (processes - 1.0) / processes * bytes as f64 / seconds;
        found.push(AllReduce { bytes, seconds, bus_bandwidth });
    }
    Ok(found)
}

/// Times training steps in each way.
fn scaling<F: Family>(
    arguments: &BenchDistributedArgs,
    recipe: &FamilyRecipe<F>,
    device: Device,
    data: &Arc<F::Dataset>,
    group: &mut ProcessGroup,
) -> Result<Scaling> {
    let steps = arguments.train.steps.unwrap_or(20) as usize;
    let processes = group.world_size() as f64;
    let mut workload = Workload::<F>::new(recipe, device, data, group, arguments.warm_up_steps, steps)?;
    let samples = workload.samples as f64;
    let per_second =
        |times: Vec<f64>| times.into_iter().map(|time| processes * samples / time).collect::<Vec<_>>();

    let alone = match group.rank() {
        0 => workload.times(&mut SingleProcess)?,
        _ => vec![0.0; steps],
    };
    group.barrier()?;
    let alone = median(slowest(group, alone)?.into_iter().map(|time| samples / time).collect());
    let own = workload.times(&mut SingleProcess)?;
    let independent = median(per_second(mean(group, own)?));
    let config = &recipe.training.distributed;
    let mut together = |overlap| -> Result<f64> {
        group.configure(&DistributedConfig { overlap, ..config.clone() });
        group.barrier()?;
        let times = workload.times(group)?;
        Ok(median(per_second(slowest(group, times)?)))
    };
    let (with_overlap, without_overlap) = (together(true)?, together(false)?);
    Ok(Scaling {
        samples_per_process: workload.samples,
        gradient_bytes: workload.gradient_bytes,
        alone,
        independent,
        together: with_overlap,
        without_overlap,
        efficiency: with_overlap / (processes * alone),
        efficiency_vs_independent: with_overlap / independent,
    })
}

/// A model with the first batches of its data.
struct Workload<'a, F: Family> {
    recipe: &'a FamilyRecipe<F>,
    data: &'a Arc<F::Dataset>,
    parts: Parted,
    task: F::Task,
    samples: usize,
    gradient_bytes: usize,
    warm_up: usize,
    steps: usize,
}

impl<'a, F: Family> Workload<'a, F> {
    fn new(
        recipe: &'a FamilyRecipe<F>,
        device: Device,
        data: &'a Arc<F::Dataset>,
        group: &ProcessGroup,
        warm_up: usize,
        steps: usize,
    ) -> Result<Self> {
        let sampler = trainer::sampler(&recipe.training, data.as_ref())?;
        let place = [group.rank(), group.world_size()];
        let parts = Parted::new(sampler, place, recipe.training.processes(), true)?;
        let task = session::build::<F>(recipe, device, true, &Log::new(Verbosity::Quiet))?;
        let trainable = task.parameters().trainable();
        let gradient_bytes =
            trainable.iter().map(|(_, tensor)| tensor.numel() * tensor.kind().elt_size_in_bytes());
        Ok(Self {
            recipe,
            data,
            samples: parts.plan(0)?.batch(0).len(),
            gradient_bytes: gradient_bytes.sum(),
            parts,
            task,
            warm_up,
            steps,
        })
    }

    /// Seconds of each step. Batches are made before the first, so that only steps are timed.
    fn times(&mut self, reducer: &mut dyn Reducer) -> Result<Vec<f64>> {
        let config = &self.recipe.training;
        let mut stepper = Stepper::new(config, &self.task)?;
        let plan = self.parts.plan(0)?;
        // The last batch may be smaller.
        let whole = plan.batches().saturating_sub(1).max(1);
        let make = |number: usize| {
            let draw = Draw { seed: config.seed, epoch: 0, train: true, copies: plan.copies(number % whole) };
            let batch = self.data.batch(plan.batch(number % whole), draw)?;
            Ok(vec![MicroBatch { batch, counts: true }])
        };
        let batches = (0..self.warm_up + self.steps).map(make).collect::<Result<Vec<_>>>()?;
        let (device, lr) = (self.task.parameters().device(), config.optimizer.lr());
        reducer.barrier()?;
        let mut times = Vec::with_capacity(self.steps);
        for (number, batch) in batches.into_iter().enumerate() {
            let began = Instant::now();
            stepper.step_of_parts(&mut self.task, batch, number as u64, lr, reducer)?;
            wait_for(device);
            if number >= self.warm_up {
                times.push(began.elapsed().as_secs_f64());
            }
        }
        Ok(times)
    }
}

/// Waits for what was begun on a GPU.
fn wait_for(device: Device) {
    if let Device::Cuda(number) = device {
        Cuda::synchronize(number as i64);
    }
}

/// The largest of each time over all processes.
fn slowest(group: &mut ProcessGroup, times: Vec<f64>) -> Result<Vec<f64>> {
    let count = times.len();
    let all = group.gather(times)?;
    Ok((0..count).map(|place| all.iter().skip(place).step_by(count).copied().fold(0.0, f64::max)).collect())
}

/// The harmonic mean of each time over all processes, which is what the sum of their rates comes to.
fn mean(group: &mut ProcessGroup, times: Vec<f64>) -> Result<Vec<f64>> {
    let (count, processes) = (times.len(), group.world_size() as f64);
    let all = group.gather(times)?;
    let rate = |place: usize| all.iter().skip(place).step_by(count).map(|time| 1.0 / time).sum::<f64>();
    Ok((0..count).map(|place| processes / rate(place)).collect())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn describe(figures: &Figures) -> String {
    let Figures { processes, device, threads, all_reduce, step } = figures;
    let mut rows = vec![["all-reduce", "milliseconds", "bus bandwidth"].map(str::to_owned)];
    rows.extend(all_reduce.iter().map(|one| {
        [
            crate::reporting::format::bytes(one.bytes as u64),
            format!("{:.3}", one.seconds * 1e3),
            format!("{:.3} GB/s", one.bus_bandwidth / 1e9),
        ]
    }));
    let mut lines = vec![
        format!("{processes} processes on {device}, {threads} threads each"),
        table::align(&rows, 1),
        String::new(),
        format!(
            "a step of {} samples in each process, {} of gradients",
            step.samples_per_process,
            crate::reporting::format::bytes(step.gradient_bytes as u64)
        ),
    ];
    let rows = [
        ("one process alone", step.alone, 1.0 / *processes as f64),
        ("all at once, independent", step.independent, step.independent / (*processes as f64 * step.alone)),
        ("together", step.together, step.efficiency),
        (
            "together, without overlap",
            step.without_overlap,
            step.without_overlap / (*processes as f64 * step.alone),
        ),
    ];
    let mut cells = vec![["", "samples/s", "of perfect"].map(str::to_owned)];
    cells.extend(rows.map(|(name, rate, share)| {
        [name.to_owned(), format!("{rate:.1}"), format!("{:.1} %", 100.0 * share)]
    }));
    lines.push(table::align(&cells, 1));
    lines.push(format!("together against independent: {:.1} %", 100.0 * step.efficiency_vs_independent));
    lines.join("\n")
}
