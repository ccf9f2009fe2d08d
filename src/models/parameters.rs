//! A model's named tensors: what it learns, what it carries along, in the order in which it made them.
//!
//! tch's own variable store renames duplicates silently, refuses dots and keeps no order; checkpoints need the exact names of
//! PyTorch's `state_dict`, and optimizers its order. A layer takes a [`Scope`], makes its tensors under it and keeps handles to them.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use anyhow::{Context, Result, anyhow};
use regex::Regex;
use tch::{Device, Kind, Tensor};

use super::init::Init;
use super::lora::{LoraConfig, is_adapter};
use crate::bail_input;

/// Whether the optimizer changes a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Learned by gradient descent (`nn.Parameter`).
    Parameter,
    /// Carried along: running statistics, position tables (`register_buffer`).
    Buffer,
}

/// One named tensor of a model.
#[derive(Debug)]
pub struct Entry {
    /// PyTorch's name: field names joined by dots.
    pub name: String,
    /// The tensor that the model computes with; handles share its storage.
    pub tensor: Tensor,
    /// Learned or carried along.
    pub role: Role,
}

impl<'a> From<&'a Entry> for crate::native::trace::Entry<'a> {
    /// As a traced module knows it.
    fn from(entry: &'a Entry) -> Self {
        Self { name: &entry.name, tensor: &entry.tensor, is_buffer: entry.role == Role::Buffer }
    }
}

#[derive(Debug, Default)]
struct Entries {
    list: Vec<Entry>,
    positions: HashMap<String, usize>,
    /// Layers whose weights are `[inputs, outputs]`.
    transposed: HashSet<String>,
}

/// All named tensors of a model, shared between the model's layers and whoever saves, loads or optimizes them.
#[derive(Clone, Debug)]
pub struct Parameters {
    device: Device,
    draws: bool,
    /// The same of the model as a whole, whatever a scope leaves to later draws.
    model_draws: bool,
    lora: Option<Rc<LoraConfig>>,
    entries: Rc<RefCell<Entries>>,
}

impl Parameters {
    /// An empty collection whose tensors will live on `device` and begin with drawn values.
    pub fn new(device: Device) -> Self {
        Self { device, draws: true, model_draws: true, lora: None, entries: Rc::default() }
    }

    /// An empty collection whose tensors begin as zeros, without a single random draw: for a model whose weights come from a file, or
    /// whose shapes are all that matters.
    pub fn undrawn(device: Device) -> Self {
        Self { draws: false, model_draws: false, ..Self::new(device) }
    }

    /// The same, with adapters wherever a model makes a layer that the configuration names.
    pub fn with_lora(self, lora: Option<LoraConfig>) -> Self {
        Self { lora: lora.map(Rc::new), ..self }
    }

    /// The adapters that the model's layers have.
    pub fn lora(&self) -> Option<&LoraConfig> {
        self.lora.as_deref()
    }

    /// Whether tensors begin with drawn values, and not with those of a file.
    pub fn draws(&self) -> bool {
        self.draws
    }

    /// Where the tensors are.
    pub fn device(&self) -> Device {
        self.device
    }

    /// The scope that names start from.
    pub fn root(&self) -> Scope {
        Scope { parameters: self.clone(), prefix: String::new() }
    }

    /// Every tensor in the order of its making: name, handle, role.
    pub fn entries(&self) -> Vec<Entry> {
        let copy = |entry: &Entry| Entry {
            name: entry.name.clone(),
            tensor: entry.tensor.shallow_clone(),
            role: entry.role,
        };
        self.entries.borrow().list.iter().map(copy).collect()
    }

    /// The tensors that gradients are computed for: parameters that are not frozen.
    pub fn trainable(&self) -> Vec<(String, Tensor)> {
        let learned = |entry: Entry| entry.tensor.requires_grad().then_some((entry.name, entry.tensor));
        self.entries().into_iter().filter_map(learned).collect()
    }

    /// Notes that the weight of the layer `name` is `[inputs, outputs]`, the reverse of what is usual.
    pub fn note_transposed(&self, name: &str) {
        self.entries.borrow_mut().transposed.insert(name.to_owned());
    }

    /// Whether the weight of the layer `name` is `[inputs, outputs]`.
    pub fn is_transposed(&self, name: &str) -> bool {
        self.entries.borrow().transposed.contains(name)
    }

    /// The tensor of that name.
    pub fn get(&self, name: &str) -> Option<Tensor> {
        let entries = self.entries.borrow();
        entries.positions.get(name).map(|&position| entries.list[position].tensor.shallow_clone())
    }

    /// Makes all floating-point tensors double precision, in place: layers keep their handles.
    pub fn make_double(&self) -> Result<()> {
        let _guard = tch::no_grad_guard();
        for mut entry in self.entries() {
            if entry.tensor.is_floating_point() {
                let wide = entry.tensor.detach().f_to_kind(Kind::Double)?;
                entry.tensor.set_data(&wide);
            }
        }
        Ok(())
    }

    /// How many numbers the parameters hold, buffers not counted.
    pub fn count(&self) -> usize {
        let size = |entry: &Entry| if entry.role == Role::Parameter { entry.tensor.numel() } else { 0 };
        self.entries.borrow().list.iter().map(size).sum()
    }

    /// Takes the parameters whose names match a pattern out of training. Patterns are regular expressions searched for in the name, as in
    /// `^conv1\.` or `encoder`.
    ///
    /// # Errors
    /// A pattern is no regular expression or matches nothing.
    pub fn freeze(&self, patterns: &[String]) -> Result<()> {
        for pattern in patterns {
            let expression = name_pattern(pattern)?;
            let mut matched = false;
            for entry in self.entries() {
                if entry.role == Role::Parameter && expression.is_match(&entry.name) {
                    matched = true;
                    let _ = entry.tensor.f_set_requires_grad(false).context("freezing a parameter")?;
                }
            }
            if !matched {
                bail_input!(
                    "training.freeze: no parameter's name matches `{pattern}`; `info` lists the names"
                );
            }
        }
        Ok(())
    }

    /// Draws parameters anew, in the order of their making, where `choose` says from what: the loops over `self.modules()` at the end of many
    /// constructors in Python.
    pub fn redraw(&self, choose: impl Fn(&Entry) -> Option<Init>) -> Result<()> {
        // Adapters are no part of the architecture.
        let learned = |entry: &Entry| entry.role == Role::Parameter && !is_adapter(&entry.name);
        for entry in self.entries().into_iter().filter(learned) {
            if let Some(init) = choose(&entry) {
                self.redraw_tensor(&entry.tensor, init)?;
            }
        }
        Ok(())
    }

    /// Draws one parameter anew.
    pub fn redraw_tensor(&self, tensor: &Tensor, init: Init) -> Result<()> {
        if self.draws {
            let _guard = tch::no_grad_guard();
            tensor.shallow_clone().f_copy_(&init.draw(&tensor.size())?)?;
        }
        Ok(())
    }

    /// Draws values and forgets them: where PyTorch draws for a tensor that it then replaces by another, as it does for tied weights.
    pub fn skip_draw(&self, shape: &[i64], init: Init) -> Result<()> {
        if self.draws {
            let _ = init.draw(shape)?;
        }
        Ok(())
    }

    /// Stores convolution weights with the channels innermost, which libtorch's convolutions then keep for their outputs.
    pub fn to_channels_last(&self) -> Result<()> {
        let _guard = tch::no_grad_guard();
        for entry in self.entries() {
            if entry.tensor.dim() == 4 {
                let mut tensor = entry.tensor;
                let reordered = crate::native::layout::channels_last(&tensor.detach())?;
                tensor.set_data(&reordered);
            }
        }
        Ok(())
    }

    fn insert(&self, name: String, tensor: Tensor, role: Role) -> Result<Tensor> {
        let tensor = tensor
            .f_to_device(self.device)
            .with_context(|| format!("moving `{name}` to {:?}", self.device))?;
        let tensor = match role {
            Role::Parameter => tensor.detach().f_set_requires_grad(true)?,
            Role::Buffer => tensor.detach(),
        };
        self.enter(name, tensor.shallow_clone(), role)?;
        Ok(tensor)
    }

    fn enter(&self, name: String, tensor: Tensor, role: Role) -> Result<()> {
        let mut entries = self.entries.borrow_mut();
        let position = entries.list.len();
        if entries.positions.insert(name.clone(), position).is_some() {
            return Err(anyhow!("the model names two tensors `{name}`"));
        }
        entries.list.push(Entry { name, tensor, role });
        Ok(())
    }
}

/// Compiles a pattern that selects parameters by name.
pub fn name_pattern(pattern: &str) -> Result<Regex> {
    Regex::new(pattern).map_err(|error| {
        let reason =
            error.to_string().lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
        crate::bad_input!("`{pattern}` is no regular expression: {reason}")
    })
}

/// A place in the tree of names, as a module is in PyTorch.
#[derive(Clone, Debug)]
pub struct Scope {
    parameters: Parameters,
    prefix: String,
}

impl Scope {
    /// All tensors of the model that the scope belongs to.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The scope of the field `name` (or of the element `name` of a list).
    pub fn child(&self, name: impl std::fmt::Display) -> Scope {
        Scope { parameters: self.parameters.clone(), prefix: self.full_name(&name.to_string()) }
    }

    /// Registers a learned tensor of an adapter, which is drawn at once: no architecture draws it later, as it does what it makes in
    /// [`undrawn`](Scope::undrawn) scopes.
    pub(super) fn adapter_parameter(&self, name: &str, shape: &[i64], init: Init) -> Result<Tensor> {
        let initial = if self.parameters.model_draws { init } else { Init::ZEROS }.draw(shape)?;
        self.given_parameter(name, initial)
    }

    /// The same place, where tensors are made without a random draw, as zeros.
    pub fn undrawn(&self) -> Scope {
        let parameters = Parameters { draws: false, ..self.parameters.clone() };
        Scope { parameters, prefix: self.prefix.clone() }
    }

    /// Draws a parameter anew that was made in this scope.
    pub fn redraw(&self, tensor: &Tensor, init: Init) -> Result<()> {
        self.parameters.redraw_tensor(tensor, init)
    }

    /// Gives every tensor below this scope the values of the tensor of the same name below another: `copy.deepcopy` of a layer.
    ///
    /// # Errors
    /// A tensor of the other has no counterpart here.
    pub fn copy_from(&self, other: &Scope) -> Result<()> {
        let _guard = tch::no_grad_guard();
        let prefix = format!("{}.", other.prefix);
        for entry in self.parameters.entries() {
            if let Some(name) = entry.name.strip_prefix(&prefix) {
                let name = self.full_name(name);
                let mut copy =
                    self.parameters.get(&name).ok_or_else(|| anyhow!("the model has no tensor `{name}`"))?;
                copy.f_copy_(&entry.tensor)?;
            }
        }
        Ok(())
    }

    /// The name of this scope, empty for the model itself.
    pub fn name(&self) -> &str {
        &self.prefix
    }

    /// Registers a learned float32 tensor. Initial values are drawn on the CPU, so that they do not depend on the device, and moved.
    pub fn parameter(&self, name: &str, shape: &[i64], init: Init) -> Result<Tensor> {
        let initial = if self.parameters.draws { init } else { Init::ZEROS }.draw(shape)?;
        self.given_parameter(name, initial)
    }

    /// Registers a learned tensor that begins with the values given, in their dtype.
    pub fn given_parameter(&self, name: &str, initial: Tensor) -> Result<Tensor> {
        self.parameters.insert(self.full_name(name), initial, Role::Parameter)
    }

    /// Registers a tensor that is saved with the model and not learned.
    pub fn buffer(&self, name: &str, initial: Tensor) -> Result<Tensor> {
        self.parameters.insert(self.full_name(name), initial, Role::Buffer)
    }

    /// Registers a tensor that another module computes with, as it is: gradients reach that very tensor.
    pub fn adopt(&self, name: &str, tensor: Tensor, role: Role) -> Result<()> {
        let name = self.full_name(name);
        if role == Role::Parameter && tensor.is_floating_point() {
            let _ = tensor.f_set_requires_grad(true).with_context(|| format!("training `{name}`"))?;
        }
        self.parameters.enter(name, tensor, role)
    }

    fn full_name(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}.{name}", self.prefix) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    #[test]
    fn names_are_joined_by_dots_and_never_repeat() -> Result<()> {
        let parameters = Parameters::new(Device::Cpu);
        let layer = parameters.root().child("layer").child(0);
        let weight = layer.parameter("weight", &[2, 3], Init::ONES)?;
        let _ = layer.buffer("running_mean", Tensor::zeros([2], (Kind::Float, Device::Cpu)))?;
        assert!(layer.parameter("weight", &[1], Init::ZEROS).is_err());
        assert!(weight.requires_grad());
        assert_eq!(parameters.count(), 6);
        assert_eq!(parameters.trainable().len(), 1);
        assert!(parameters.get("layer.0.running_mean").is_some());
        parameters.freeze(&["^layer".to_owned()])?;
        assert!(parameters.trainable().is_empty());
        assert!(!weight.requires_grad(), "handles and entries are one tensor");
        assert!(parameters.freeze(&["head".to_owned()]).is_err());
        assert!(parameters.freeze(&["(".to_owned()]).is_err());
        Ok(())
    }
}
