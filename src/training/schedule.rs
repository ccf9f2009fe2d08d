//! Learning-rate schedules in closed form: the rate is a function of the step (and, on a plateau, of the metrics seen), so resuming
//! needs no replay. Values are those of `torch.optim.lr_scheduler` and of transformers' `get_*_schedule_with_warmup`.
//!
//! With a warm-up of w steps, the schedule proper begins at step w and spans the rest, as in `SequentialLR` and in transformers.

use std::f64::consts::PI;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::config::TrainingConfig;
use crate::bail_input;

/// What a schedule counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// Optimizer steps.
    Step,
    /// Passes over the data.
    Epoch,
}

fn epoch() -> Unit {
    Unit::Epoch
}
fn step() -> Unit {
    Unit::Step
}
fn tenth() -> f64 {
    0.1
}
fn one() -> f64 {
    1.0
}
fn one_u64() -> u64 {
    1
}

/// How the rate moves after the warm-up. `lr` stands for the optimizer's rate.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(tag = "name", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ScheduleConfig {
    /// The rate stays.
    Constant {},
    /// `StepLR`: times gamma after every `size`.
    Step {
        /// Length of a stair.
        size: u64,
        /// Factor.
        #[serde(default = "tenth")]
        gamma: f64,
        /// What `size` counts.
        #[serde(default = "epoch")]
        per: Unit,
    },
    /// `MultiStepLR`: times gamma at each milestone.
    MultiStep {
        /// Where, in ascending order.
        milestones: Vec<u64>,
        /// Factor.
        #[serde(default = "tenth")]
        gamma: f64,
        /// What the milestones count.
        #[serde(default = "epoch")]
        per: Unit,
    },
    /// `ExponentialLR`: times gamma each time.
    Exponential {
        /// Factor.
        gamma: f64,
        /// What it is applied for.
        #[serde(default = "epoch")]
        per: Unit,
    },
    /// `CosineAnnealingLR` over all steps, or `CosineAnnealingWarmRestarts` where a cycle is given.
    Cosine {
        /// The rate at the end.
        #[serde(default)]
        min_lr: f64,
        /// Length of the first cycle.
        cycle: Option<u64>,
        /// Factor on the length of each next cycle.
        #[serde(default = "one_u64")]
        cycle_mult: u64,
        /// What time is counted in.
        #[serde(default = "step")]
        per: Unit,
    },
    /// `LinearLR`, and transformers' linear decay: from one factor to another.
    Linear {
        /// Factor at the beginning.
        #[serde(default = "one")]
        start_factor: f64,
        /// Factor at the end.
        #[serde(default)]
        end_factor: f64,
        /// Steps from one to the other; all if left out.
        length: Option<u64>,
    },
    /// `PolynomialLR`, and transformers' polynomial decay.
    Polynomial {
        /// Exponent.
        #[serde(default = "one")]
        power: f64,
        /// The rate at the end.
        #[serde(default)]
        end_lr: f64,
    },
    /// `OneCycleLR` with cosine annealing; `lr` is the peak.
    OneCycle {
        /// Share of the steps on which the rate rises.
        #[serde(default = "one_cycle_rise")]
        pct_start: f64,
        /// Peak / first rate.
        #[serde(default = "one_cycle_div")]
        div_factor: f64,
        /// First rate / last rate.
        #[serde(default = "one_cycle_final_div")]
        final_div_factor: f64,
    },
    /// Transformers' inverse square root: sqrt(timescale / (step + timescale)), the schedule of "Attention is all you need".
    InverseSqrt {
        /// Steps after which the rate has fallen by √2; the warm-up (or 10,000) if left out.
        timescale: Option<u64>,
    },
    /// `ReduceLROnPlateau` on the validation metric, with its relative threshold.
    Plateau {
        /// Factor.
        #[serde(default = "tenth")]
        factor: f64,
        /// Evaluations without improvement that are borne.
        #[serde(default = "plateau_patience")]
        patience: u64,
        /// Relative change that counts as an improvement.
        #[serde(default = "plateau_threshold")]
        threshold: f64,
        /// Evaluations after a cut during which none counts as bad.
        #[serde(default)]
        cooldown: u64,
        /// The rate never falls below.
        #[serde(default)]
        min_lr: f64,
    },
}

fn one_cycle_rise() -> f64 {
    0.3
}
fn one_cycle_div() -> f64 {
    25.0
}
fn one_cycle_final_div() -> f64 {
    1e4
}
fn plateau_patience() -> u64 {
    10
}
fn plateau_threshold() -> f64 {
    1e-4
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self::Constant {}
    }
}

impl ScheduleConfig {
    /// Checks the constants.
    pub fn validate(&self) -> Result<()> {
        let positive = |key: &str, value: f64| match value > 0.0 {
            true => Ok(()),
            false => Err(crate::bad_input!("training.schedule.{key} is {value}: it must be above 0")),
        };
        let not_negative = |key: &str, value: f64| match value >= 0.0 {
            true => Ok(()),
            false => Err(crate::bad_input!("training.schedule.{key} is {value}: it must not be negative")),
        };
        match self {
            Self::Constant {} => Ok(()),
            Self::Step { size, gamma, .. } => {
                positive("size", *size as f64)?;
                positive("gamma", *gamma)
            }
            Self::MultiStep { milestones, gamma, .. } => {
                if !milestones.is_sorted() {
                    bail_input!("training.schedule.milestones must ascend");
                }
                positive("gamma", *gamma)
            }
            Self::Exponential { gamma, .. } => positive("gamma", *gamma),
            Self::Cosine { min_lr, cycle, cycle_mult, .. } => {
                not_negative("min_lr", *min_lr)?;
                positive("cycle", cycle.unwrap_or(1) as f64)?;
                positive("cycle_mult", *cycle_mult as f64)
            }
            Self::Linear { start_factor, end_factor, length } => {
                not_negative("start_factor", *start_factor)?;
                not_negative("end_factor", *end_factor)?;
                positive("length", length.unwrap_or(1) as f64)
            }
            Self::Polynomial { power, end_lr } => {
                positive("power", *power)?;
                not_negative("end_lr", *end_lr)
            }
            Self::OneCycle { pct_start, div_factor, final_div_factor } => {
                if !(0.0..=1.0).contains(pct_start) {
                    bail_input!("training.schedule.pct_start is {pct_start}: it must be between 0 and 1");
                }
                positive("div_factor", *div_factor)?;
                positive("final_div_factor", *final_div_factor)
            }
            Self::InverseSqrt { timescale } => positive("timescale", timescale.unwrap_or(1) as f64),
            Self::Plateau { factor, threshold, min_lr, .. } => {
                if !(0.0..1.0).contains(factor) {
                    bail_input!("training.schedule.factor is {factor}: it must be at least 0 and below 1");
                }
                not_negative("threshold", *threshold)?;
                not_negative("min_lr", *min_lr)
            }
        }
    }
}

/// A schedule with all that it depends on.
#[derive(Clone, Debug)]
pub struct Schedule {
    config: ScheduleConfig,
    lr: f64,
    warmup: u64,
    warmup_start: f64,
    /// Steps in all, warm-up included.
    total: u64,
    steps_per_epoch: u64,
}

impl Schedule {
    /// The schedule of a recipe for a run of `total` steps.
    pub fn new(config: &TrainingConfig, total: u64, steps_per_epoch: u64) -> Self {
        let warmup = match config.warmup {
            share if share < 1.0 => (share * total as f64).round() as u64,
            steps => steps as u64,
        };
        Self {
            config: config.schedule.clone(),
            lr: config.optimizer.lr(),
            warmup,
            warmup_start: config.warmup_start,
            total,
            steps_per_epoch: steps_per_epoch.max(1),
        }
    }

    /// The learning rate of the optimizer step with this number, from 0.
    pub fn rate(&self, step: u64, plateau: &PlateauState) -> f64 {
        if step < self.warmup {
            let progress = step as f64 / self.warmup as f64;
            return self.lr * (self.warmup_start + (1.0 - self.warmup_start) * progress);
        }
        let now = step - self.warmup;
        let span = (self.total.saturating_sub(self.warmup)).max(1);
        let share = (now as f64 / span as f64).min(1.0);
        let count = |per: Unit| match per {
            Unit::Step => now,
            // Epochs begin with the run, not with the end of the warm-up.
            Unit::Epoch => step / self.steps_per_epoch,
        };
        match &self.config {
            ScheduleConfig::Constant {} => self.lr,
            ScheduleConfig::Step { size, gamma, per } => self.lr * gamma.powf((count(*per) / size) as f64),
            ScheduleConfig::MultiStep { milestones, gamma, per } => {
                let passed = milestones.iter().filter(|&&milestone| milestone <= count(*per)).count();
                self.lr * gamma.powi(passed as i32)
            }
            ScheduleConfig::Exponential { gamma, per } => self.lr * gamma.powf(count(*per) as f64),
            ScheduleConfig::Cosine { min_lr, cycle, cycle_mult, per } => {
                let share = match cycle {
                    Some(first) => cycle_share(count(*per), *first, *cycle_mult),
                    None if *per == Unit::Epoch => {
                        let epochs = self.total.div_ceil(self.steps_per_epoch).max(1);
                        (count(Unit::Epoch) as f64 / epochs as f64).min(1.0)
                    }
                    None => share,
                };
                min_lr + (self.lr - min_lr) * (1.0 + (PI * share).cos()) / 2.0
            }
            ScheduleConfig::Linear { start_factor, end_factor, length } => {
                let share = length.map_or(share, |length| (now as f64 / length as f64).min(1.0));
                self.lr * (start_factor + (end_factor - start_factor) * share)
            }
            ScheduleConfig::Polynomial { power, end_lr } => {
                end_lr + (self.lr - end_lr) * (1.0 - share).powf(*power)
            }
            ScheduleConfig::OneCycle { pct_start, div_factor, final_div_factor } => {
                let first = self.lr / div_factor;
                let peak_at = pct_start * span as f64 - 1.0;
                let end_at = span as f64 - 1.0;
                let now = now as f64;
                // Short runs can have a phase without length: its end counts.
                let part =
                    |from: f64, to: f64| if to > from { ((now - from) / (to - from)).min(1.0) } else { 1.0 };
                match now <= peak_at {
                    true => anneal(first, self.lr, part(0.0, peak_at)),
                    false => anneal(self.lr, first / final_div_factor, part(peak_at, end_at)),
                }
            }
            ScheduleConfig::InverseSqrt { timescale } => {
                let timescale =
                    timescale.unwrap_or(if self.warmup > 0 { self.warmup } else { 10_000 }) as f64;
                self.lr * (timescale / (now as f64 + timescale)).sqrt()
            }
            ScheduleConfig::Plateau { min_lr, .. } => (self.lr * plateau.factor).max(min_lr.min(self.lr)),
        }
    }

    /// Tells a plateau schedule the metric of an evaluation; others ignore it.
    pub fn observe(&self, metric: f64, larger_is_better: bool, state: &mut PlateauState) {
        let ScheduleConfig::Plateau { factor, patience, threshold, cooldown, .. } = &self.config else {
            return;
        };
        let better = match state.best {
            _ if !metric.is_finite() => false,
            None => true,
            Some(best) if larger_is_better => metric > best * (1.0 + threshold),
            Some(best) => metric < best * (1.0 - threshold),
        };
        if better {
            state.best = Some(metric);
            state.bad = 0;
        } else {
            state.bad += 1;
        }
        if state.cooldown > 0 {
            state.cooldown -= 1;
            state.bad = 0;
        }
        if state.bad > *patience {
            // PyTorch leaves the rate alone where a cut would change it by less than 1e-8.
            if self.lr * state.factor * (1.0 - factor) > 1e-8 {
                state.factor *= factor;
            }
            state.cooldown = *cooldown;
            state.bad = 0;
        }
    }
}

/// Cosine interpolation, as `OneCycleLR` anneals.
fn anneal(from: f64, to: f64, share: f64) -> f64 {
    to + (from - to) * (1.0 + (PI * share).cos()) / 2.0
}

/// How far into its cycle a time is, cycles growing by a factor.
fn cycle_share(time: u64, first: u64, factor: u64) -> f64 {
    let (mut start, mut length) = (0, first);
    while time - start >= length {
        start += length;
        length *= factor;
    }
    (time - start) as f64 / length as f64
}

/// What a plateau schedule remembers.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PlateauState {
    best: Option<f64>,
    bad: u64,
    cooldown: u64,
    factor: f64,
}

impl Default for PlateauState {
    fn default() -> Self {
        Self { best: None, bad: 0, cooldown: 0, factor: 1.0 }
    }
}
