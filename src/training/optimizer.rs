//! Optimizers with PyTorch's rules and names, whose state belongs to us and can be saved.
//!
//! The arithmetic is libtorch's own fused or foreach kernels ([`crate::native::optimizer_kernels`]); this module sorts parameters into groups and
//! names the state as `torch.optim` does: `exp_avg.<parameter>`.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::config::{GroupConfig, TrainingConfig};
use crate::models::name_pattern;
use crate::native::TensorList;
use crate::native::optimizer_kernels::Rule;
use crate::{bad_input, bail_input};

/// The update rule with its constants; defaults are those of `torch.optim`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(tag = "name", rename_all = "kebab-case", deny_unknown_fields)]
pub enum OptimizerConfig {
    /// `torch.optim.SGD`.
    Sgd {
        /// Learning rate.
        #[serde(default = "sgd_lr")]
        lr: f64,
        /// Share of the previous direction that is kept.
        #[serde(default)]
        momentum: f64,
        /// Share of the gradient that momentum leaves out.
        #[serde(default)]
        dampening: f64,
        /// Nesterov's look ahead.
        #[serde(default)]
        nesterov: bool,
        /// L2 penalty, added to the gradient.
        #[serde(default)]
        weight_decay: f64,
    },
    /// `torch.optim.Adam`.
    Adam {
        /// Learning rate.
        #[serde(default = "adam_lr")]
        lr: f64,
        /// Decay of the first and second moment.
        #[serde(default = "adam_betas")]
        betas: [f64; 2],
        /// Added to the denominator.
        #[serde(default = "adam_eps")]
        eps: f64,
        /// L2 penalty, added to the gradient.
        #[serde(default)]
        weight_decay: f64,
        /// Keep the largest second moment.
        #[serde(default)]
        amsgrad: bool,
    },
    /// `torch.optim.AdamW`.
    #[serde(rename = "adamw")]
    AdamW {
        /// Learning rate.
        #[serde(default = "adam_lr")]
        lr: f64,
        /// Decay of the first and second moment.
        #[serde(default = "adam_betas")]
        betas: [f64; 2],
        /// Added to the denominator.
        #[serde(default = "adam_eps")]
        eps: f64,
        /// Decoupled weight decay.
        #[serde(default = "adamw_decay")]
        weight_decay: f64,
        /// Keep the largest second moment.
        #[serde(default)]
        amsgrad: bool,
    },
    /// `torch.optim.Adagrad`.
    Adagrad {
        /// Learning rate.
        #[serde(default = "adagrad_lr")]
        lr: f64,
        /// Decay of the learning rate with the number of steps.
        #[serde(default)]
        lr_decay: f64,
        /// Added to the denominator.
        #[serde(default = "adagrad_eps")]
        eps: f64,
        /// L2 penalty, added to the gradient.
        #[serde(default)]
        weight_decay: f64,
    },
    /// `torch.optim.RMSprop`.
    Rmsprop {
        /// Learning rate.
        #[serde(default = "rmsprop_lr")]
        lr: f64,
        /// Decay of the mean square.
        #[serde(default = "rmsprop_alpha")]
        alpha: f64,
        /// Added to the denominator.
        #[serde(default = "adam_eps")]
        eps: f64,
        /// Share of the previous direction that is kept.
        #[serde(default)]
        momentum: f64,
        /// Divide by the deviation instead of the root mean square.
        #[serde(default)]
        centered: bool,
        /// L2 penalty, added to the gradient.
        #[serde(default)]
        weight_decay: f64,
    },
}

fn sgd_lr() -> f64 {
    1e-3
}
fn adam_lr() -> f64 {
    1e-3
}
fn adam_betas() -> [f64; 2] {
    [0.9, 0.999]
}
fn adam_eps() -> f64 {
    1e-8
}
fn adamw_decay() -> f64 {
    1e-2
}
fn adagrad_lr() -> f64 {
    1e-2
}
fn adagrad_eps() -> f64 {
    1e-10
}
fn rmsprop_lr() -> f64 {
    1e-2
}
fn rmsprop_alpha() -> f64 {
    0.99
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self::Adam { lr: adam_lr(), betas: adam_betas(), eps: adam_eps(), weight_decay: 0.0, amsgrad: false }
    }
}

impl OptimizerConfig {
    /// The learning rate before the schedule.
    pub fn lr(&self) -> f64 {
        match *self {
            Self::Sgd { lr, .. }
            | Self::Adam { lr, .. }
            | Self::AdamW { lr, .. }
            | Self::Adagrad { lr, .. }
            | Self::Rmsprop { lr, .. } => lr,
        }
    }

    /// The weight decay of groups that do not set their own.
    pub fn weight_decay(&self) -> f64 {
        match *self {
            Self::Sgd { weight_decay, .. }
            | Self::Adam { weight_decay, .. }
            | Self::AdamW { weight_decay, .. }
            | Self::Adagrad { weight_decay, .. }
            | Self::Rmsprop { weight_decay, .. } => weight_decay,
        }
    }

    /// Checks the constants as `torch.optim` does.
    pub fn validate(&self) -> Result<()> {
        let rate = |key: &str, value: f64| match value.is_finite() && value >= 0.0 {
            true => Ok(()),
            false => Err(bad_input!("training.optimizer.{key} is {value}: it must not be negative")),
        };
        let share = |key: &str, value: f64| match (0.0..1.0).contains(&value) {
            true => Ok(()),
            false => {
                Err(bad_input!("training.optimizer.{key} is {value}: it must be at least 0 and below 1"))
            }
        };
        rate("lr", self.lr())?;
        rate("weight_decay", self.weight_decay())?;
        match *self {
            Self::Sgd { momentum, dampening, nesterov, .. } => {
                rate("momentum", momentum)?;
                if nesterov && (momentum <= 0.0 || dampening != 0.0) {
                    bail_input!("training.optimizer.nesterov needs a momentum above 0 and no dampening");
                }
                Ok(())
            }
            Self::Adam { betas, eps, .. } | Self::AdamW { betas, eps, .. } => {
                rate("eps", eps)?;
                share("betas", betas[0])?;
                share("betas", betas[1])
            }
            Self::Adagrad { eps, lr_decay, .. } => {
                rate("eps", eps)?;
                rate("lr_decay", lr_decay)
            }
            Self::Rmsprop { alpha, eps, momentum, .. } => {
                rate("eps", eps)?;
                rate("alpha", alpha)?;
                rate("momentum", momentum)
            }
        }
    }

    /// The kernel's rule, with the weight decay of a group.
    fn rule(&self, weight_decay: f64) -> Rule {
        match *self {
            Self::Sgd { momentum, dampening, nesterov, .. } => {
                Rule::Sgd { momentum, dampening, nesterov, weight_decay }
            }
            Self::Adam { betas, eps, amsgrad, .. } => {
                Rule::Adam { betas: betas.into(), eps, weight_decay, amsgrad }
            }
            Self::AdamW { betas, eps, amsgrad, .. } => {
                Rule::AdamW { betas: betas.into(), eps, weight_decay, amsgrad }
            }
            Self::Adagrad { lr_decay, eps, .. } => {
                Rule::Adagrad { lr_decay, eps, weight_decay, initial_accumulator_value: 0.0 }
            }
            Self::Rmsprop { alpha, eps, momentum, centered, .. } => {
                Rule::RmsProp { alpha, eps, weight_decay, momentum, centered }
            }
        }
    }
}

/// Parameters with one rate and one weight decay.
struct Group {
    names: Vec<String>,
    parameters: TensorList,
    lr_scale: f64,
    rule: Rule,
    /// One list for each of the rule's state names.
    state: Vec<TensorList>,
}

/// The group of each trained parameter: the first whose pattern its name matches.
///
/// # Errors
/// A group's pattern matches no parameter, or there is nothing to train.
pub fn assign<'a>(
    config: &'a TrainingConfig,
    names: impl IntoIterator<Item = &'a str>,
) -> Result<Vec<Option<&'a GroupConfig>>> {
    let patterns =
        config.groups.iter().map(|group| name_pattern(&group.pattern)).collect::<Result<Vec<_>>>()?;
    let assigned: Vec<Option<usize>> =
        names.into_iter().map(|name| patterns.iter().position(|pattern| pattern.is_match(name))).collect();
    if assigned.is_empty() {
        bail_input!("training.freeze leaves no parameter to train");
    }
    if let Some(unused) = (0..patterns.len()).find(|&group| !assigned.contains(&Some(group))) {
        bail_input!(
            "training.groups: no trained parameter's name matches `{}`, or earlier groups take all of them; `info` lists the names",
            config.groups[unused].pattern
        );
    }
    Ok(assigned.into_iter().map(|group| group.map(|group| &config.groups[group])).collect())
}

/// An optimizer over the trainable parameters of a model.
pub struct Optimizer {
    groups: Vec<Group>,
}

impl Optimizer {
    /// Sorts the parameters into groups and makes their initial state. Parameters that share rate and decay share a group, so that a step
    /// is one call for each. `head` is what the names of the model's head begin with, for `training.fine_tune`.
    ///
    /// # Errors
    /// A group's pattern matches no parameter, or there is nothing to train.
    pub fn new(config: &TrainingConfig, parameters: &[(String, Tensor)], head: Option<&str>) -> Result<Self> {
        let assigned = assign(config, parameters.iter().map(|(name, _)| name.as_str()))?;
        let scales = config.fine_tune.rate_scales(parameters, head)?;
        /// Factor on the rate, and weight decay.
        type Treatment = (f64, f64);
        // The members of each treatment, in the order of first appearance.
        let mut sorted: Vec<(Treatment, Vec<&(String, Tensor)>)> = Vec::new();
        for ((parameter, group), scale) in parameters.iter().zip(assigned).zip(scales) {
            let inherited = match !config.decay_bias_and_norm && parameter.1.dim() <= 1 {
                true => 0.0,
                false => config.optimizer.weight_decay(),
            };
            let weight_decay = group.and_then(|group| group.weight_decay).unwrap_or(inherited);
            let key = (scale * group.map_or(1.0, |group| group.lr_scale), weight_decay);
            match sorted.iter_mut().find(|(known, _)| *known == key) {
                Some((_, members)) => members.push(parameter),
                None => sorted.push((key, vec![parameter])),
            }
        }
        let groups = sorted
            .into_iter()
            .map(|((lr_scale, weight_decay), members)| {
                let parameters = TensorList::new(members.iter().map(|(_, tensor)| tensor))?;
                let rule = config.optimizer.rule(weight_decay);
                let state = rule.initial_state(&parameters)?;
                let names = members.iter().map(|(name, _)| name.clone()).collect();
                Ok(Group { names, parameters, lr_scale, rule, state })
            })
            .collect::<Result<_>>()?;
        Ok(Self { groups })
    }

    /// One update with the learning rate `lr`. Where `found_inf` holds 1, nothing changes.
    pub fn step(&self, lr: f64, found_inf: Option<&Tensor>) -> Result<()> {
        for group in &self.groups {
            group.rule.step(&group.parameters, &group.state, lr * group.lr_scale, found_inf)?;
        }
        Ok(())
    }

    /// The state by name (`exp_avg.conv1.weight`): handles, not copies.
    pub fn state(&self) -> BTreeMap<String, Tensor> {
        let mut all = BTreeMap::new();
        for group in &self.groups {
            for (state_name, list) in group.rule.state_names().iter().zip(&group.state) {
                for (name, tensor) in group.names.iter().zip(list.tensors()) {
                    all.insert(format!("{state_name}.{name}"), tensor.shallow_clone());
                }
            }
        }
        all
    }

    /// Copies a saved state into this optimizer.
    ///
    /// # Errors
    /// A tensor is missing, of another shape, or left over: the state is of another model or rule.
    pub fn load_state(&self, saved: &mut BTreeMap<String, Tensor>) -> Result<()> {
        let _guard = tch::no_grad_guard();
        for (name, mut tensor) in self.state() {
            let value =
                saved.remove(&name).ok_or_else(|| bad_input!("the optimizer's state lacks `{name}`"))?;
            if value.size() != tensor.size() {
                bail_input!("the optimizer's state `{name}` is {:?}, not {:?}", value.size(), tensor.size());
            }
            tensor.f_copy_(&value).with_context(|| format!("loading the optimizer's state `{name}`"))?;
        }
        match saved.keys().next() {
            Some(name) => {
                Err(bad_input!("the optimizer's state has `{name}`, which this recipe's optimizer does not"))
            }
            None => Ok(()),
        }
    }
}
