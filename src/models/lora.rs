//! Low-rank adaptation: Hu et al., "LoRA: Low-rank adaptation of large language models", 2021, with the names and initial values of PEFT.
//!
//! A layer with an adapter computes x Wᵀ + b + (α/r) · x Aᵀ Bᵀ, where only A and B learn. The adapters belong to [`Linear`](super::layers::Linear) and to
//! GPT-2's `Conv1D`, which keeps W transposed: a model that is built in [`Parameters`] with a [`LoraConfig`] has them wherever its layers'
//! names are among the targets, and no model knows of them.

use anyhow::Result;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::init::Init;
use super::{Parameters, Role, Scope};
use crate::bail_input;
use crate::weights::NamedTensors;

/// What stands between a layer's name and its two matrices, as PEFT saves them.
const DOWN: &str = ".lora_A.weight";
const UP: &str = ".lora_B.weight";

/// Which layers get adapters, and how large.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraConfig {
    /// Rank of the change that a layer can learn.
    pub rank: i64,
    /// The change is multiplied by alpha / rank.
    pub alpha: f64,
    /// Layers by the end of their names: `query`, `attention.output.dense`. Those that PEFT takes for the known architectures if left out:
    /// the projections of queries and values.
    pub targets: Option<Vec<String>>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self { rank: 8, alpha: 16.0, targets: None }
    }
}

/// Queries and values in the names of BERT, DistilBERT, and the decoders; in GPT-2 they are one layer with the keys.
const USUAL_TARGETS: [&str; 7] = ["query", "value", "q_lin", "v_lin", "q_proj", "v_proj", "c_attn"];

impl LoraConfig {
    /// Checks the numbers.
    pub fn validate(&self) -> Result<()> {
        if self.rank < 1 {
            bail_input!("training.fine_tune.lora.rank is {}: it must be at least 1", self.rank);
        }
        if !(self.alpha > 0.0 && self.alpha.is_finite()) {
            bail_input!("training.fine_tune.lora.alpha is {}: it must be above 0", self.alpha);
        }
        if self.targets.as_ref().is_some_and(Vec::is_empty) {
            bail_input!("training.fine_tune.lora.targets is empty: name layers, or leave it out");
        }
        Ok(())
    }

    /// The ends of the names of layers with adapters.
    pub fn targets(&self) -> Vec<&str> {
        match &self.targets {
            Some(targets) => targets.iter().map(String::as_str).collect(),
            None => USUAL_TARGETS.to_vec(),
        }
    }

    /// Factor on what the matrices make.
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank as f64
    }

    fn is_target(&self, layer: &str) -> bool {
        self.targets().iter().any(|target| {
            layer.strip_suffix(target).is_some_and(|before| before.is_empty() || before.ends_with('.'))
        })
    }

    /// Takes everything but the adapters and the head out of training.
    ///
    /// # Errors
    /// No layer has an adapter.
    pub fn freeze_rest(&self, parameters: &Parameters, is_head: impl Fn(&str) -> bool) -> Result<()> {
        let mut found = false;
        for entry in parameters.entries() {
            if is_adapter(&entry.name) {
                found = true;
            } else if entry.role == Role::Parameter && !is_head(&entry.name) {
                let _ = entry.tensor.f_set_requires_grad(false)?;
            }
        }
        if !found {
            bail_input!(
                "training.fine_tune.lora.targets: no layer's name ends with {}; `info` lists the names",
                self.targets().join(" or ")
            );
        }
        Ok(())
    }
}

/// Whether a tensor belongs to an adapter.
pub fn is_adapter(name: &str) -> bool {
    name.ends_with(DOWN) || name.ends_with(UP)
}

/// The adapter of one layer.
#[derive(Debug)]
pub struct Adapter {
    /// `[rank, inputs]`
    down: Tensor,
    /// `[outputs, rank]`
    up: Tensor,
    scale: f64,
}

impl Adapter {
    /// The adapter that the layer of `scope` has in its model, if it is a target: A drawn as `nn.Linear` draws its weight, B zero, so that the layer
    /// begins as it was.
    pub(super) fn of_layer(scope: &Scope, inputs: i64, outputs: i64) -> Result<Option<Self>> {
        let Some(config) = scope.parameters().lora().filter(|config| config.is_target(scope.name())) else {
            return Ok(None);
        };
        let shape = [config.rank, inputs];
        let down = scope.child("lora_A").adapter_parameter("weight", &shape, Init::default_weight(&shape))?;
        let up = scope.child("lora_B").parameter("weight", &[outputs, config.rank], Init::ZEROS)?;
        Ok(Some(Self { down, up, scale: config.scale() }))
    }

    /// What the layer adds to its output: `[…, inputs]` to `[…, outputs]`.
    pub(super) fn forward(&self, input: &Tensor) -> Tensor {
        input.linear(&self.down, None::<&Tensor>).linear(&self.up, None::<&Tensor>) * self.scale
    }
}

/// All tensors of a model with every adapter added into its layer's weight: the same function without adapters.
pub fn merged(parameters: &Parameters) -> Result<NamedTensors> {
    let _guard = tch::no_grad_guard();
    let mut tensors: NamedTensors =
        parameters.entries().into_iter().map(|entry| (entry.name, entry.tensor)).collect();
    let Some(config) = parameters.lora() else { return Ok(tensors) };
    let layers: Vec<String> =
        tensors.keys().filter_map(|name| name.strip_suffix(DOWN).map(str::to_owned)).collect();
    for layer in layers {
        let down = tensors.remove(&format!("{layer}{DOWN}"));
        let up = tensors.remove(&format!("{layer}{UP}"));
        let weight = tensors.get_mut(&format!("{layer}.weight"));
        if let (Some(down), Some(up), Some(weight)) = (down, up, weight) {
            let change = up.f_matmul(&down)?.f_mul_scalar(config.scale())?; // [outputs, inputs]
            *weight = match parameters.is_transposed(&layer) {
                true => weight.f_add(&change.f_tr()?)?,
                false => weight.f_add(&change)?,
            };
        }
    }
    Ok(tensors)
}

/// The adapters alone under the names of PEFT's `adapter_model.safetensors`, with the tensors of the head (`modules_to_save`).
pub fn adapters(parameters: &Parameters, is_head: impl Fn(&str) -> bool) -> NamedTensors {
    let kept =
        parameters.entries().into_iter().filter(|entry| is_adapter(&entry.name) || is_head(&entry.name));
    kept.map(|entry| (format!("base_model.model.{}", entry.name), entry.tensor)).collect()
}
