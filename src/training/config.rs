//! The `training` section of a recipe: everything about optimisation that does not depend on the family.

use std::path::PathBuf;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::fine_tuning::FineTuneConfig;
use super::optimizer::OptimizerConfig;
use super::precision::Precision;
use super::schedule::ScheduleConfig;
use crate::bail_input;
use crate::distributed::DistributedConfig;
use crate::models::name_pattern;
use crate::tasks::explanation::Method;

/// How a model is trained. Every key has a default, so a recipe names only what it means to set.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainingConfig {
    /// Passes over the training data.
    pub epochs: u64,
    /// Optimizer steps after which to stop; wins over `epochs`.
    pub steps: Option<u64>,
    /// Samples in a micro-batch, per process.
    pub batch_size: usize,
    /// Samples in a batch of evaluation; `batch_size` if left out.
    pub eval_batch_size: Option<usize>,
    /// Micro-batches whose gradients are summed for one optimizer step.
    pub accumulate: usize,
    /// Decides initial weights, order of samples, dropout and splits.
    pub seed: u64,
    /// The update rule.
    pub optimizer: OptimizerConfig,
    /// Parameters that are treated differently, by name; the first group whose pattern matches counts.
    pub groups: Vec<GroupConfig>,
    /// Whether weight decay leaves out biases and the weights of norms (every parameter with one dimension or none).
    pub decay_bias_and_norm: bool,
    /// How the learning rate moves.
    pub schedule: ScheduleConfig,
    /// Linear warm-up before the schedule: a number of steps, or, below 1, a share of all steps.
    pub warmup: f64,
    /// The learning rate at the first step of the warm-up, as a share of the full rate.
    pub warmup_start: f64,
    /// Largest 2-norm of all gradients together.
    pub clip_norm: Option<f64>,
    /// Largest absolute value of each gradient.
    pub clip_value: Option<f64>,
    /// Strength of the L1 penalty: its gradient, l1 · sign(w), is added to the loss's.
    pub l1: f64,
    /// Strength of the L2 penalty l2/2 · ‖w‖², added to the loss's gradient before clipping, unlike weight decay.
    pub l2: f64,
    /// Share of the target's probability spread evenly over all classes.
    pub label_smoothing: f64,
    /// Exponent of the focal loss's factor (1 − p)^γ on what is already right with probability p; 0 for plain cross-entropy.
    pub focal_gamma: f64,
    /// Which samples an epoch has.
    pub sampling: Sampling,
    /// How often an epoch takes each of its samples in a row, varied anew each time (repeated augmentation). An epoch is as long as without it.
    pub repeats: usize,
    /// Weight of each class in the loss.
    pub class_weights: Option<ClassWeights>,
    /// Decay of an exponential moving average of the weights, which evaluation then uses.
    pub ema: Option<f64>,
    /// A run folder or weights (`weights::open`) whose values training starts from.
    pub init_from: Option<PathBuf>,
    /// Whether weights to start from must fit the model to the last tensor.
    pub init_strict: bool,
    /// Patterns of parameters that are not trained.
    pub freeze: Vec<String>,
    /// Which parts of a pretrained network learn, from when on, and how fast.
    pub fine_tune: FineTuneConfig,
    /// The validation metric that decides which checkpoint is best.
    pub metric: String,
    /// Evaluations without improvement after which training stops.
    pub early_stop: Option<u64>,
    /// The least change of the metric that counts as an improvement.
    pub early_stop_min_delta: f64,
    /// Steps between evaluations; every epoch if left out.
    pub eval_every: Option<u64>,
    /// Steps between checkpoints; every epoch if left out.
    pub save_every: Option<u64>,
    /// How many numbered checkpoints to keep besides `last` and `best`.
    pub keep: usize,
    /// Steps between lines of the log.
    pub log_every: u64,
    /// Steps between histograms of weights and gradients in the event files; none if left out. Gradients are shown as the optimizer takes them:
    /// with penalties, clipped.
    pub histograms_every: Option<u64>,
    /// How many samples the event files show with their predictions at each evaluation, where samples are pictures.
    pub examples: usize,
    /// How the report explains mistakes and uncertain predictions of images; not at all if left out.
    pub explain: Option<Method>,
    /// Arithmetic of the forward and backward pass.
    pub precision: Precision,
    /// `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
    pub device: String,
    /// Threads of libtorch's kernels; all cores if left out.
    pub threads: Option<usize>,
    /// Threads that prepare batches; chosen by the number of cores if left out.
    pub workers: Option<usize>,
    /// Use only deterministic kernels on CUDA, at a cost in speed.
    pub deterministic: bool,
    /// Store convolution weights with channels innermost; chosen by device and kind of image if left out.
    pub channels_last: Option<bool>,
    /// How several processes train together.
    pub distributed: DistributedConfig,
}

impl Default for TrainingConfig {
    fn default() -> Self {
        Self {
            epochs: 10,
            steps: None,
            batch_size: 64,
            eval_batch_size: None,
            accumulate: 1,
            seed: 0,
            optimizer: OptimizerConfig::default(),
            groups: Vec::new(),
            decay_bias_and_norm: true,
            schedule: ScheduleConfig::Constant {},
            warmup: 0.0,
            warmup_start: 0.0,
            clip_norm: None,
            clip_value: None,
            l1: 0.0,
            l2: 0.0,
            label_smoothing: 0.0,
            focal_gamma: 0.0,
            sampling: Sampling::Shuffled,
            repeats: 1,
            class_weights: None,
            ema: None,
            init_from: None,
            init_strict: false,
            freeze: Vec::new(),
            fine_tune: FineTuneConfig::default(),
            metric: "loss".to_owned(),
            early_stop: None,
            early_stop_min_delta: 0.0,
            eval_every: None,
            save_every: None,
            keep: 0,
            log_every: 50,
            histograms_every: None,
            examples: 8,
            explain: None,
            precision: Precision::Fp32,
            device: "auto".to_owned(),
            threads: None,
            workers: None,
            deterministic: false,
            channels_last: None,
            distributed: DistributedConfig::default(),
        }
    }
}

/// Parameters that are treated differently from the rest.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct GroupConfig {
    /// Regular expression searched for in parameter names.
    pub pattern: String,
    /// Factor on the learning rate.
    #[serde(default = "one")]
    pub lr_scale: f64,
    /// Weight decay in place of the optimizer's.
    pub weight_decay: Option<f64>,
}

fn one() -> f64 {
    1.0
}

/// Which samples an epoch has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sampling {
    /// Each once.
    #[default]
    Shuffled,
    /// As many as there are, drawn with replacement so that each class comes equally often.
    Balanced,
}

/// Weights of the classes in the loss.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(untagged)]
pub enum ClassWeights {
    /// One number for each class.
    Given(Vec<f64>),
    /// `"balanced"`: samples / (classes · samples of the class), scikit-learn's rule.
    Rule(BalancedRule),
}

/// The only rule there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum BalancedRule {
    /// Inversely proportional to frequency.
    Balanced,
}

/// Flags that may differ when a run is resumed: they do not change what a step computes, or only move the end.
pub const MAY_CHANGE_ON_RESUME: &[&str] = &[
    "training.epochs",
    "training.steps",
    "training.save_every",
    "training.keep",
    "training.histograms_every",
    "training.examples",
    "training.explain",
    "training.early_stop",
    "training.device",
    "training.threads",
    "training.workers",
    // Which format it is follows from the path.
    "data.format",
    "data.path",
    // Kept images are the same as decoded ones.
    "data.cache_mb",
];

impl TrainingConfig {
    /// For how many processes `batch_size` is meant.
    pub fn processes(&self) -> usize {
        self.distributed.processes.unwrap_or(1)
    }

    /// Samples in a micro-batch of all processes together.
    pub fn global_batch_size(&self) -> usize {
        self.batch_size.saturating_mul(self.processes())
    }

    /// Samples in a batch of evaluation.
    pub fn eval_batch_size(&self) -> usize {
        self.eval_batch_size.unwrap_or(self.batch_size)
    }

    /// Whether the learning rate depends on how many steps there are in all, so that changing the number of epochs changes every rate.
    pub fn rates_depend_on_length(&self) -> bool {
        let warmup_is_a_share = self.warmup > 0.0 && self.warmup < 1.0;
        warmup_is_a_share
            || matches!(
                self.schedule,
                ScheduleConfig::Cosine { cycle: None, .. }
                    | ScheduleConfig::Linear { length: None, .. }
                    | ScheduleConfig::Polynomial { .. }
                    | ScheduleConfig::OneCycle { .. }
            )
    }

    /// Checks every value on its own and against the others.
    pub fn validate(&self) -> Result<()> {
        let at_least_one = [
            ("epochs", self.epochs),
            ("batch_size", self.batch_size as u64),
            ("eval_batch_size", self.eval_batch_size() as u64),
            ("accumulate", self.accumulate as u64),
            ("repeats", self.repeats as u64),
            ("log_every", self.log_every),
            ("eval_every", self.eval_every.unwrap_or(1)),
            ("save_every", self.save_every.unwrap_or(1)),
            ("histograms_every", self.histograms_every.unwrap_or(1)),
            ("threads", self.threads.unwrap_or(1) as u64),
            ("early_stop", self.early_stop.unwrap_or(1)),
        ];
        for (key, value) in at_least_one {
            if value == 0 {
                bail_input!("training.{key} is 0: it must be at least 1");
            }
        }
        let not_negative = [
            ("warmup", self.warmup),
            ("warmup_start", self.warmup_start),
            ("l1", self.l1),
            ("l2", self.l2),
            ("early_stop_min_delta", self.early_stop_min_delta),
            ("focal_gamma", self.focal_gamma),
        ];
        for (key, value) in not_negative {
            if value.is_nan() || value < 0.0 {
                bail_input!("training.{key} is {value}: it must not be negative");
            }
        }
        for (key, value) in [("clip_norm", self.clip_norm), ("clip_value", self.clip_value)] {
            if value.is_some_and(|value| value.is_nan() || value <= 0.0) {
                bail_input!("training.{key} must be above 0");
            }
        }
        if self.warmup >= 1.0 && self.warmup.fract() != 0.0 {
            bail_input!(
                "training.warmup is {}: give whole steps, or a share of all steps below 1",
                self.warmup
            );
        }
        if !(0.0..1.0).contains(&self.label_smoothing) {
            bail_input!(
                "training.label_smoothing is {}: it must be at least 0 and below 1",
                self.label_smoothing
            );
        }
        if self.focal_gamma > 0.0 && self.label_smoothing > 0.0 {
            bail_input!(
                "training has both focal_gamma and label_smoothing: the focal loss is defined for one right class; leave one out"
            );
        }
        if self.repeats > 1 && self.sampling != Sampling::Shuffled {
            bail_input!(
                "training.repeats is for samples that come in turn: leave out it or training.sampling"
            );
        }
        if self.ema.is_some_and(|decay| !(0.0..1.0).contains(&decay)) {
            bail_input!("training.ema must be at least 0 and below 1");
        }
        if let Some(ClassWeights::Given(weights)) = &self.class_weights
            && weights.iter().any(|&weight| weight.is_nan() || weight < 0.0)
        {
            bail_input!("training.class_weights must not be negative");
        }
        if i64::try_from(self.seed).is_err() {
            bail_input!("training.seed is {}: it must be below 2^63", self.seed);
        }
        for group in &self.groups {
            name_pattern(&group.pattern)?;
            if group.lr_scale.is_nan() || group.lr_scale < 0.0 {
                bail_input!("training.groups: lr_scale of `{}` must not be negative", group.pattern);
            }
        }
        self.distributed.validate()?;
        self.fine_tune.validate()?;
        self.optimizer.validate()?;
        self.schedule.validate()
    }
}
