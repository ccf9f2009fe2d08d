//! Arguments, and what they set in a recipe.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use crate::data::image_dataset::Views;
use crate::distributed::rendezvous::GroupArgs;
use crate::tasks::explanation::Method;
use crate::training::precision::Precision;

/// The verbs of every family.
#[derive(Debug, Subcommand)]
pub enum CommonVerb {
    /// Train from a recipe, from given weights, or continue a run exactly
    Train(Box<TrainArgs>),
    /// Metrics of a run on one part of its data
    Eval(Box<EvalArgs>),
    /// Predictions for files
    Predict(Box<PredictArgs>),
    /// Write files that Python loads
    Export(Box<ExportArgs>),
    /// What is in a run, a weights file or an architecture
    Info(InfoArgs),
    /// Runs side by side: what differs in their recipes, their metrics, their curves
    Compare(CompareArgs),
    /// List the recipes, or print one
    Recipes(RecipesArgs),
    /// Check libtorch, devices, threads and memory settings
    Doctor(DoctorArgs),
}

/// Arguments of `train`.
#[derive(Debug, Default, Args)]
pub struct TrainArgs {
    /// A recipe of `recipes`, or a JSON file
    #[arg(long, value_name = "NAME|FILE")]
    pub recipe: Option<String>,
    /// What to train for, where the family does several things: classify, lm or forecast in `rnn`; without --recipe its usual recipe
    #[arg(long, value_name = "NAME")]
    pub task: Option<String>,
    /// Architecture in place of the recipe's
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// Data folder, or the name of a compiled-in set
    #[arg(long, value_name = "DIR|NAME")]
    pub data: Option<String>,
    /// Folder of the run [default: runs/RECIPE, numbered if it exists]
    #[arg(long, value_name = "RUN")]
    pub out: Option<PathBuf>,
    /// Continue this run; only --epochs, --steps, --data, --device, --threads, --workers, --save-every, --keep, --early-stop,
    /// --histograms-every and --explain may differ from it, and --data only says where the same data are now
    #[arg(long, value_name = "RUN", conflicts_with_all = ["recipe", "out", "init_from"])]
    pub resume: Option<PathBuf>,
    /// Start from weights: a run, safetensors, a file of torch.save or torch.jit.save, a Hugging Face folder, or hf:ORG/NAME[/FILE]
    #[arg(long, value_name = "RUN|FILE")]
    pub init_from: Option<PathBuf>,
    /// Take the TorchScript module of --init-from as it is and put this on top: linear, or none where its output is class scores
    #[arg(long, value_name = "NAME", requires = "init_from")]
    pub head: Option<String>,
    /// Refuse weights of --init-from that do not fit to the last tensor, and in `regression` a solver that has not converged
    #[arg(long)]
    pub strict: bool,
    /// Passes over the training data
    #[arg(long, value_name = "N")]
    pub epochs: Option<u64>,
    /// Stop after so many optimizer steps; wins over --epochs
    #[arg(long, value_name = "N")]
    pub steps: Option<u64>,
    /// Samples in a batch, per process
    #[arg(long, value_name = "N")]
    pub batch_size: Option<usize>,
    /// Batches whose gradients are summed for one step
    #[arg(long, value_name = "N")]
    pub accumulate: Option<usize>,
    /// sgd, adam, adamw, adagrad or rmsprop, with PyTorch's defaults
    #[arg(long, value_name = "NAME")]
    pub optimizer: Option<String>,
    /// Learning rate
    #[arg(long, value_name = "RATE")]
    pub lr: Option<f64>,
    /// Weight decay
    #[arg(long, value_name = "X")]
    pub weight_decay: Option<f64>,
    /// constant, step, multi-step, exponential, cosine, linear, polynomial, one-cycle, inverse-sqrt or plateau
    #[arg(long, value_name = "NAME")]
    pub schedule: Option<String>,
    /// Steps of linear warm-up, or below 1 a share of all steps
    #[arg(long, value_name = "N|SHARE")]
    pub warmup: Option<f64>,
    /// Clip the 2-norm of all gradients
    #[arg(long, value_name = "NORM")]
    pub clip_norm: Option<f64>,
    /// Share of the target's probability spread over all classes
    #[arg(long, value_name = "SHARE")]
    pub label_smoothing: Option<f64>,
    /// Evaluate with averaged weights of this decay
    #[arg(long, value_name = "DECAY")]
    pub ema: Option<f64>,
    /// Do not train parameters whose names match; may be repeated
    #[arg(long, value_name = "PATTERN")]
    pub freeze: Vec<String>,
    /// Train the head alone: the rest keeps its weights and running statistics
    #[arg(long)]
    pub freeze_backbone: bool,
    /// Begin with the head alone and let one more stage learn after each N epochs
    #[arg(long, value_name = "N")]
    pub unfreeze_every: Option<u64>,
    /// Factor on the learning rate for each stage further from the output
    #[arg(long, value_name = "FACTOR")]
    pub layer_decay: Option<f64>,
    /// Factor on the learning rate of the head
    #[arg(long, value_name = "FACTOR")]
    pub head_lr_scale: Option<f64>,
    /// The validation metric that decides which checkpoint is best
    #[arg(long, value_name = "NAME")]
    pub metric: Option<String>,
    /// Stop after so many evaluations without improvement
    #[arg(long, value_name = "N")]
    pub early_stop: Option<u64>,
    /// Steps between evaluations [default: an epoch]
    #[arg(long, value_name = "STEPS")]
    pub eval_every: Option<u64>,
    /// Steps between checkpoints [default: an epoch]
    #[arg(long, value_name = "STEPS")]
    pub save_every: Option<u64>,
    /// Numbered checkpoints to keep besides `last` and `best`
    #[arg(long, value_name = "N")]
    pub keep: Option<usize>,
    /// Steps between histograms of weights and gradients in the TensorBoard files [default: none are written]
    #[arg(long, value_name = "STEPS")]
    pub histograms_every: Option<u64>,
    /// Show in the report which pixels mistakes and uncertain predictions come from
    #[arg(long, value_enum, value_name = "METHOD")]
    pub explain: Option<Method>,
    /// Seed of initial weights, order, dropout and splits
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Share of the training part held out where the data have no validation part
    #[arg(long, value_name = "SHARE")]
    pub val_fraction: Option<f64>,
    /// Threads that prepare batches
    #[arg(long, value_name = "N")]
    pub workers: Option<usize>,
    /// Only deterministic kernels on CUDA
    #[arg(long)]
    pub deterministic: bool,
    /// Batch normalisation over the batches of all processes
    #[arg(long)]
    pub sync_batch_norm: bool,
    /// Continue the run of --out where it exists, else begin it: for jobs that a cluster starts again
    #[arg(long, requires = "out")]
    pub auto_resume: bool,
    #[command(flatten)]
    pub group: GroupArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Set any key of the recipe, as in training.optimizer.momentum=0.9; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Leave out image files that cannot be decoded, and say how many
    #[arg(long)]
    pub skip_bad: bool,
    /// Measure where the time goes: a table, and trace.json in the run for Chrome or Perfetto
    #[arg(long)]
    pub profile: bool,
    /// Print the resolved recipe and stop
    #[arg(long)]
    pub dry_run: bool,
    /// Only warnings and the result
    #[arg(long)]
    pub quiet: bool,
    /// Plain lines instead of a progress bar
    #[arg(long)]
    pub no_progress: bool,
}

/// Where and how to compute.
#[derive(Clone, Debug, Default, Args)]
pub struct DeviceArgs {
    /// auto, cpu, cuda, cuda:N or mps
    #[arg(long, value_name = "NAME")]
    pub device: Option<String>,
    /// Threads of libtorch's kernels [default: all cores]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// auto, fp32, bf16, fp16 or fp64; auto: bf16 where the device computes in it, and `train` tries both and takes the faster
    #[arg(long, value_name = "NAME")]
    pub precision: Option<Precision>,
}

/// A run and one of its checkpoints.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Run folder
    #[arg(value_name = "RUN")]
    pub run: PathBuf,
    /// best, last, step-N, or average:N for the mean of the weights of the newest N checkpoints, which `train --keep N` keeps [default: best, or last where
    /// there is no best]
    #[arg(long, value_name = "NAME")]
    pub checkpoint: Option<String>,
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Samples computed at a time
    #[arg(long, value_name = "N")]
    pub batch_size: Option<usize>,
}

impl RunArgs {
    /// The same where weights from elsewhere would do as well.
    pub fn as_model(&self) -> ModelArgs {
        ModelArgs {
            run: Some(self.run.clone()),
            checkpoint: self.checkpoint.clone(),
            weights: WeightsArgs::default(),
            device: self.device.clone(),
            batch_size: self.batch_size,
        }
    }
}

/// A run and one of its checkpoints, or an architecture with weights from elsewhere.
#[derive(Clone, Debug, Args)]
pub struct ModelArgs {
    /// Run folder
    #[arg(value_name = "RUN", required_unless_present = "model")]
    pub run: Option<PathBuf>,
    /// best, last, step-N, or average:N for the mean of the weights of the newest N checkpoints, which `train --keep N` keeps [default: best, or last where
    /// there is no best]
    #[arg(long, value_name = "NAME", conflicts_with = "model")]
    pub checkpoint: Option<String>,
    #[command(flatten)]
    pub weights: WeightsArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Samples computed at a time
    #[arg(long, value_name = "N")]
    pub batch_size: Option<usize>,
}

/// An architecture with weights, in place of a run.
#[derive(Clone, Debug, Default, Args)]
pub struct WeightsArgs {
    /// Architecture, in place of a run
    #[arg(long, value_name = "NAME", requires = "init_from")]
    pub model: Option<String>,
    /// Its weights: safetensors, a file of torch.save or torch.jit.save, a folder with one of them, or hf:ORG/NAME[/FILE]
    #[arg(long, value_name = "FILE", requires = "model")]
    pub init_from: Option<PathBuf>,
    /// Names of its classes, one a line [default: their numbers]
    #[arg(long, value_name = "FILE", requires = "model")]
    pub classes: Option<PathBuf>,
    /// Refuse weights that do not fit the model to the last tensor
    #[arg(long, requires = "model")]
    pub strict: bool,
    /// Set a key of the recipe, as in data.image_size=[160,160] or model.search.beam=5; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// Arguments of `eval`.
#[derive(Debug, Args)]
pub struct EvalArgs {
    #[command(flatten)]
    pub run: ModelArgs,
    /// Data in place of the run's
    #[arg(long, value_name = "DIR|NAME")]
    pub data: Option<String>,
    /// Which part [default: test, else validation]
    #[arg(long, value_enum)]
    pub split: Option<Part>,
    /// Average the probabilities of several looks at each image
    #[arg(long, value_enum, value_name = "VIEWS", default_value_t = Views::None)]
    pub tta: Views,
    /// How to print
    #[arg(long, value_enum, default_value_t = EvalFormat::Table)]
    pub format: EvalFormat,
    #[command(flatten)]
    pub group: GroupArgs,
}

/// A part of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// What was learned from.
    Train,
    /// What the best checkpoint was chosen by.
    Validation,
    /// What neither saw.
    Test,
}

/// Form of an evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EvalFormat {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// Arguments of `predict`.
#[derive(Debug, Args)]
pub struct PredictArgs {
    #[command(flatten)]
    pub run: ModelArgs,
    /// Files, folders, or - for a list of files on stdin
    #[arg(value_name = "INPUT", required_unless_present = "model")]
    pub inputs: Vec<PathBuf>,
    /// How to print
    #[arg(long, value_enum, default_value_t = PredictFormat::Table)]
    pub format: PredictFormat,
    /// Best classes to print for each input
    #[arg(long, value_name = "K", default_value_t = 1)]
    pub top_k: usize,
}

/// Form of predictions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PredictFormat {
    /// For people.
    Table,
    /// A header, then a row for each input and class.
    Csv,
    /// A JSON object for each input.
    Jsonl,
}

/// Arguments of `export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    #[command(flatten)]
    pub run: ModelArgs,
    /// What to write
    #[arg(long, value_enum)]
    pub format: ExportFormat,
    /// The file or folder to write
    #[arg(long, value_name = "PATH")]
    pub out: PathBuf,
}

/// Form of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ExportFormat {
    /// A traced module for torch.jit.load; of a translator a folder with encoder.pt and decoder.pt, of a language model a step with its cache.
    Torchscript,
    /// Named weights for load_state_dict; adapters are merged into them.
    Safetensors,
    /// A Hugging Face folder: configuration, weights, tokenizer; adapters are merged.
    Hf,
    /// The adapters alone, a folder that PEFT loads.
    Peft,
}

/// Arguments of `compare`.
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// Run folders
    #[arg(value_name = "RUN", required = true, num_args = 2..)]
    pub runs: Vec<PathBuf>,
    /// Write a report with the curves of all runs
    #[arg(long, value_name = "FILE.html")]
    pub out: Option<PathBuf>,
    /// How to print
    #[arg(long, value_enum, default_value_t = EvalFormat::Table)]
    pub format: EvalFormat,
}

/// Arguments of `info`.
#[derive(Debug, Args)]
pub struct InfoArgs {
    /// A run folder, or weights in any form: safetensors, a file of torch.save or torch.jit.save, a folder with one, hf:ORG/NAME[/FILE]
    #[arg(value_name = "RUN|FILE", required_unless_present = "model", conflicts_with = "model")]
    pub path: Option<PathBuf>,
    /// An architecture by name
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// Weights to try in the architecture
    #[arg(long, value_name = "FILE", requires = "model")]
    pub init_from: Option<PathBuf>,
    /// Set a key of the architecture, as in model.num_classes=100; may be repeated
    #[arg(long, value_name = "KEY=VALUE", requires = "model")]
    pub set: Vec<String>,
    /// How to print weights
    #[arg(long, value_enum, default_value_t = EvalFormat::Table, conflicts_with = "model")]
    pub format: EvalFormat,
}

/// Arguments of `recipes`.
#[derive(Debug, Args)]
pub struct RecipesArgs {
    /// Print this one as JSON
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
}

/// Arguments of `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// How to print
    #[arg(long, value_enum, default_value_t = EvalFormat::Table)]
    pub format: EvalFormat,
}

impl TrainArgs {
    /// The recipe keys that the flags set, in an order in which whole objects come before their keys.
    pub fn settings(&self) -> Vec<(&'static str, Value)> {
        fn put<T: serde::Serialize>(
            list: &mut Vec<(&'static str, Value)>,
            key: &'static str,
            value: &Option<T>,
        ) {
            if let Some(value) = value {
                list.push((key, json!(value)));
            }
        }
        let named = |name: &Option<String>| name.as_ref().map(|name| json!({ "name": name }));
        let mut list = Vec::new();
        put(&mut list, "model.task", &self.task);
        put(&mut list, "model.name", &self.model);
        put(&mut list, "training.optimizer", &named(&self.optimizer));
        put(&mut list, "training.schedule", &named(&self.schedule));
        match &self.head {
            Some(head) => {
                put(&mut list, "model.script.file", &self.init_from);
                list.push(("model.script.head", json!(head)));
            }
            None => put(&mut list, "training.init_from", &self.init_from),
        }
        put(&mut list, "training.init_strict", &self.strict.then_some(true));
        put(&mut list, "training.epochs", &self.epochs);
        put(&mut list, "training.steps", &self.steps);
        put(&mut list, "training.batch_size", &self.batch_size);
        put(&mut list, "training.accumulate", &self.accumulate);
        put(&mut list, "training.optimizer.lr", &self.lr);
        put(&mut list, "training.optimizer.weight_decay", &self.weight_decay);
        put(&mut list, "training.warmup", &self.warmup);
        put(&mut list, "training.clip_norm", &self.clip_norm);
        put(&mut list, "training.label_smoothing", &self.label_smoothing);
        put(&mut list, "training.ema", &self.ema);
        put(&mut list, "training.freeze", &(!self.freeze.is_empty()).then_some(&self.freeze));
        put(&mut list, "training.fine_tune.freeze_backbone", &self.freeze_backbone.then_some(true));
        put(&mut list, "training.fine_tune.unfreeze_every", &self.unfreeze_every);
        put(&mut list, "training.fine_tune.layer_decay", &self.layer_decay);
        put(&mut list, "training.fine_tune.head_lr_scale", &self.head_lr_scale);
        put(&mut list, "training.metric", &self.metric);
        put(&mut list, "training.early_stop", &self.early_stop);
        put(&mut list, "training.eval_every", &self.eval_every);
        put(&mut list, "training.save_every", &self.save_every);
        put(&mut list, "training.keep", &self.keep);
        put(&mut list, "training.histograms_every", &self.histograms_every);
        put(&mut list, "training.explain", &self.explain);
        put(&mut list, "training.seed", &self.seed);
        put(&mut list, "data.val_fraction", &self.val_fraction);
        put(&mut list, "training.workers", &self.workers);
        put(&mut list, "training.deterministic", &self.deterministic.then_some(true));
        put(&mut list, "training.distributed.sync_batch_norm", &self.sync_batch_norm.then_some(true));
        put(&mut list, "data.skip_bad", &self.skip_bad.then_some(true));
        self.device.settings(&mut list);
        list
    }
}

impl DeviceArgs {
    /// The recipe keys that the flags set.
    pub fn settings(&self, list: &mut Vec<(&'static str, Value)>) {
        list.extend(self.device.iter().map(|device| ("training.device", json!(device))));
        list.extend(self.threads.iter().map(|threads| ("training.threads", json!(threads))));
        list.extend(self.precision.iter().map(|precision| ("training.precision", json!(precision))));
    }
}
