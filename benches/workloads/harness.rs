//! What the workloads share: their flags, the clock, and the JSON line.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};
use tch::Tensor;
use tch_suite::distributed::SingleProcess;
use tch_suite::native::system;
use tch_suite::tasks::Task;
use tch_suite::training::config::TrainingConfig;
use tch_suite::training::precision::Precision;
use tch_suite::training::step::Stepper;

/// Flags of every workload. A workload refuses none of them: those that mean nothing to it are without effect.
#[derive(Debug, Args)]
pub struct Options {
    /// Timed samples [default: the workload's]
    #[arg(long, value_name = "N")]
    pub steps: Option<usize>,
    /// Calls of the step before the clock starts [default: the workload's]
    #[arg(long, value_name = "N")]
    pub warmup: Option<usize>,
    /// Steps in one timed sample [default: the workload's]
    #[arg(long, value_name = "N")]
    pub inner: Option<usize>,
    /// Threads of libtorch's kernels
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub threads: usize,
    /// bf16: autocast
    #[arg(long, value_enum, default_value_t = Dtype::Fp32)]
    pub dtype: Dtype,
    /// Samples in a batch [default: the workload's]
    #[arg(long, value_name = "N")]
    pub batch: Option<usize>,
    /// Batches made before the clock starts, used in turn
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub pool: usize,
    /// What to time
    #[arg(long, value_enum, default_value_t = Mode::Train)]
    pub mode: Mode,
    /// Which network of mlp_small
    #[arg(long, value_enum, default_value_t = Net::Keras)]
    pub net: Net,
    /// Inner width of mlp_small's network `mnist`
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub width: i64,
    /// Where mlp_small's batches come from
    #[arg(long = "loop", value_name = "KIND", value_enum, default_value_t = Loop::Resident)]
    pub source: Loop,
    /// Lengths of bert_minilm_finetune's texts
    #[arg(long, value_enum, default_value_t = Lengths::Fixed)]
    pub lengths: Lengths,
    /// Tokens of a text, where all have as many
    #[arg(long, default_value_t = 64)]
    pub seq: usize,
    /// Texts that seq2seq_transformer follows side by side
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub beam: usize,
    /// Form of the loss of mlp_small's network `keras`
    #[arg(long, value_enum, default_value_t = Loss::Logits)]
    pub loss: Loss,
    /// Store convolution weights with the channels innermost: 0 or 1 [default: as recipes have it]
    #[arg(long, value_name = "0|1", value_parser = clap::value_parser!(u8).range(0..=1))]
    pub channels_last: Option<u8>,
    /// Where dataloading's images are, FOLDER/CLASS/FILE, or the data of tokenising
    #[arg(long, value_name = "FOLDER")]
    pub folder: Option<PathBuf>,
    /// Dataloading of large photographs: a random part of each, scaled to 224 × 224
    #[arg(long)]
    pub photographs: bool,
    /// Megabytes of decoded images that dataloading keeps
    #[arg(long, value_name = "MB", default_value_t = 0)]
    pub cache_mb: usize,
    /// Numbers of loader threads that dataloading tries
    #[arg(long, value_name = "N", num_args = 1.., default_values_t = [0, 2])]
    pub workers: Vec<usize>,
    /// Seed of weights and data
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Stop timing after this long; 0 for no limit
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0)]
    pub max_seconds: f64,
    /// OMP_WAIT_POLICY
    #[arg(long, value_enum, default_value_t = WaitPolicy::Default)]
    pub omp_wait: WaitPolicy,
}

/// Arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Dtype {
    Fp32,
    Bf16,
}

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Forward, backward, update.
    Train,
    /// Forward in evaluation mode.
    Infer,
}

/// Networks of `mlp_small`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Net {
    /// 100 → 2 → 1
    Keras,
    /// 784 → 256 → 10
    Mnist,
}

/// Where batches come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Loop {
    /// A pool made beforehand.
    Resident,
    /// 1000 rows in one tensor, gathered in a new order each epoch.
    Epoch,
}

/// Lengths of texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Lengths {
    /// All the same.
    Fixed,
    /// Drawn.
    Dynamic,
    /// Drawn and sorted.
    Bucketed,
}

/// Binary cross-entropy, on logits or on probabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Loss {
    Logits,
    Bce,
}

/// OMP_WAIT_POLICY.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WaitPolicy {
    /// Left as the environment has it.
    Default,
    Passive,
    Active,
}

/// The name of a choice on the command line.
pub fn name_of(choice: impl ValueEnum) -> String {
    choice.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

impl Options {
    /// As recipes say it.
    pub fn precision(&self) -> Precision {
        match self.dtype {
            Dtype::Fp32 => Precision::Fp32,
            Dtype::Bf16 => Precision::Bf16,
        }
    }

    /// `train-b128-fp32-t2`: what was run, for people.
    pub fn variant(&self, parts: &[&str]) -> String {
        let mut parts: Vec<String> = parts.iter().map(|&part| part.to_owned()).collect();
        parts.extend([name_of(self.dtype), format!("t{}", self.threads)]);
        if let Some(last) = self.channels_last {
            parts.push(["nchw", "nhwc"][usize::from(last)].to_owned());
        }
        if self.omp_wait != WaitPolicy::Default {
            parts.push(format!("omp{}", name_of(self.omp_wait)));
        }
        parts.join("-")
    }
}

/// Something whose steps are timed.
pub trait Work {
    /// One step with the batch of that number.
    fn step(&mut self, number: usize) -> Result<()>;

    /// The mean loss of the steps since the last call, or of inference the mean of the last output. Read outside the timed part only.
    fn value(&mut self) -> Result<f64>;
}

/// Makes the batch of a step.
pub type Batches<B> = Box<dyn FnMut(usize) -> Result<B>>;

/// Training as the trainer does it, without loader, log and checkpoints.
pub struct Training<T: Task> {
    task: T,
    batches: Batches<T::Batch>,
    stepper: Stepper,
    lr: f64,
}

impl<T: Task> Training<T> {
    pub fn new(config: &TrainingConfig, task: T, batches: Batches<T::Batch>) -> Result<Self> {
        Ok(Self { stepper: Stepper::new(config, &task)?, lr: config.optimizer.lr(), task, batches })
    }
}

impl<T: Task> Work for Training<T> {
    fn step(&mut self, number: usize) -> Result<()> {
        let batch = (self.batches)(number)?;
        self.stepper.step(&mut self.task, vec![batch], number as u64, self.lr, &mut SingleProcess)
    }

    fn value(&mut self) -> Result<f64> {
        let means = self.stepper.totals.means(&mut SingleProcess)?;
        self.stepper.totals.clear();
        means.get("loss").copied().context("the trainer has summed no loss")
    }
}

/// Forward passes; inference mode is the caller's.
pub struct Inference {
    forward: Box<dyn FnMut(usize) -> Result<Tensor>>,
    output: Option<Tensor>,
}

impl Inference {
    pub fn new(forward: Box<dyn FnMut(usize) -> Result<Tensor>>) -> Self {
        Self { forward, output: None }
    }
}

impl Work for Inference {
    fn step(&mut self, number: usize) -> Result<()> {
        self.output = Some((self.forward)(number)?);
        Ok(())
    }

    fn value(&mut self) -> Result<f64> {
        let output = self.output.as_ref().context("nothing has been computed")?;
        Ok(output.f_mean(tch::Kind::Float)?.f_double_value(&[])?)
    }
}

/// How often to do what, before flags.
pub struct Usual {
    /// Timed samples.
    pub steps: usize,
    /// Calls of the step before.
    pub warmup: usize,
    /// Steps in one timed sample: more than one where a step is so short that the clock would count.
    pub inner: usize,
}

/// Times `work` and prints its line. `items` are the samples of one step.
pub fn measure(
    workload: &str,
    variant: &str,
    options: &Options,
    usual: &Usual,
    items: usize,
    work: &mut dyn Work,
) -> Result<()> {
    let timed = time(options, usual, items, work)?;
    timed.emit(
        workload,
        variant,
        "samples/s",
        &[
            ("startup_s", json!(timed.startup.map(significant))),
            ("loss_first", json!(timed.first.map(significant))),
            ("loss_last", json!(significant(timed.last))),
            ("rss_now_mb", json!(status_megabytes("VmRSS:").map(significant))),
        ],
    )
}

/// What the clock said.
pub struct Timed {
    /// Items per second of each timed sample.
    rates: Vec<f64>,
    /// All items over all seconds.
    mean: f64,
    /// Median time of a step.
    step_milliseconds: f64,
    /// Steps in a timed sample.
    inner: usize,
    /// Seconds from the start of the process to the end of the first step; none without a warm-up.
    startup: Option<f64>,
    /// The value of the first step, likewise.
    pub first: Option<f64>,
    /// The value of one step after the timed part.
    last: f64,
}

impl Timed {
    /// Prints the JSON line of the rates, with further keys.
    pub fn emit(&self, workload: &str, variant: &str, unit: &str, further: &[(&str, Value)]) -> Result<()> {
        let best = self.rates.iter().copied().fold(f64::MIN, f64::max);
        let all = [
            ("mean", json!(significant(self.mean))),
            ("best", json!(significant(best))),
            ("step_ms", json!(significant(self.step_milliseconds))),
            ("inner", json!(self.inner)),
            ("rss_mb", json!(significant(peak_megabytes()?))),
        ];
        emit(workload, variant, unit, &self.rates, &[&all, further].concat())
    }

    /// The median rate.
    pub fn median(&self) -> f64 {
        percentile(&self.rates, 50.0)
    }
}

/// Times `work`. `items` are the samples of one step.
///
/// The rate of a sample is items · inner / seconds; median, p10 and p90 (linear between ranks) are over these rates. No value is read back
/// inside the timed part; `loss_last` is of one more step after it.
pub fn time(options: &Options, usual: &Usual, items: usize, work: &mut dyn Work) -> Result<Timed> {
    let steps = options.steps.unwrap_or(usual.steps);
    let warmup = options.warmup.unwrap_or(usual.warmup);
    let inner = options.inner.unwrap_or(usual.inner).max(1);
    if steps == 0 {
        bail!("--steps is 0: there is nothing to time");
    }
    // The first step ends the start-up, and belongs to the warm-up unless there is none.
    let mut number = 0;
    let mut startup = None;
    let mut first = None;
    for _ in 0..warmup {
        work.step(number)?;
        number += 1;
        if first.is_none() {
            startup = seconds_since_process_start();
            first = Some(work.value()?);
        }
    }
    let mut rates = Vec::with_capacity(steps);
    let mut step_milliseconds = Vec::with_capacity(steps);
    let began = Instant::now();
    for _ in 0..steps {
        let sample = Instant::now();
        for _ in 0..inner {
            work.step(number)?;
            number += 1;
        }
        let seconds = sample.elapsed().as_secs_f64();
        rates.push((items * inner) as f64 / seconds);
        step_milliseconds.push(1e3 * seconds / inner as f64);
        if options.max_seconds > 0.0 && began.elapsed().as_secs_f64() > options.max_seconds {
            break;
        }
    }
    let wall = began.elapsed().as_secs_f64();
    // Of all timed steps: read to forget it, so that the next is of one step.
    work.value()?;
    work.step(number)?;
    let last = work.value()?;
    Ok(Timed {
        mean: (rates.len() * inner * items) as f64 / wall,
        step_milliseconds: percentile(&step_milliseconds, 50.0),
        rates,
        inner,
        startup,
        first,
        last,
    })
}

/// Prints the JSON line of some values, with further keys.
pub fn emit(
    workload: &str,
    variant: &str,
    unit: &str,
    values: &[f64],
    further: &[(&str, Value)],
) -> Result<()> {
    let mut line = Map::new();
    line.insert("workload".to_owned(), json!(workload));
    line.insert("variant".to_owned(), json!(variant));
    line.insert("unit".to_owned(), json!(unit));
    for (key, rank) in [("median", 50.0), ("p10", 10.0), ("p90", 90.0)] {
        line.insert(key.to_owned(), json!(significant(percentile(values, rank))));
    }
    line.insert("steps".to_owned(), json!(values.len()));
    line.insert("load1".to_owned(), json!(load_average()));
    line.insert("impl".to_owned(), json!(concat!("tch-suite ", env!("CARGO_PKG_VERSION"))));
    line.extend(further.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
    println!("{}", serde_json::to_string(&line)?);
    Ok(())
}

/// The value at a rank in percent, linear between neighbours.
pub fn percentile(values: &[f64], rank: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let position = (sorted.len() - 1) as f64 * rank / 100.0;
    let below = position as usize;
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + (sorted[above] - sorted[below]) * (position - below as f64)
}

/// To six significant digits.
pub fn significant(value: f64) -> f64 {
    format!("{value:.5e}").parse().unwrap_or(value)
}

/// The most memory resident so far, in MiB.
pub fn peak_megabytes() -> Result<f64> {
    Ok(system::peak_memory_bytes()? as f64 / f64::from(1 << 20))
}

/// A line of /proc/self/status in MiB; `None` where there is no such file.
fn status_megabytes(key: &str) -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kilobytes = status.lines().find_map(|line| line.strip_prefix(key))?.split_whitespace().next()?;
    Some(kilobytes.parse::<f64>().ok()? / 1024.0)
}

/// Runnable processes, averaged over a minute; `None` where the system does not say.
fn load_average() -> Option<f64> {
    std::fs::read_to_string("/proc/loadavg").ok()?.split_whitespace().next()?.parse().ok()
}

/// How long this process has been there, to 10 ms; `None` where the system does not say.
fn seconds_since_process_start() -> Option<f64> {
    // The kernel shows times to programs in hundredths of a second on every processor.
    const TICKS_PER_SECOND: f64 = 100.0;
    let uptime = std::fs::read_to_string("/proc/uptime").ok()?;
    let uptime: f64 = uptime.split_whitespace().next()?.parse().ok()?;
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // Field 22; the name in field 2 may hold spaces and ends with the last parenthesis.
    let started: f64 = stat.rsplit_once(") ")?.1.split_whitespace().nth(19)?.parse().ok()?;
    Some(uptime - started / TICKS_PER_SECOND)
}
