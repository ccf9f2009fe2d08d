//! Reading and writing weight files, and telling what fitted.

mod report;
mod safetensors;

pub use report::LoadReport;
pub use safetensors::{read_safetensors, write_safetensors};

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use tch::Tensor;

use crate::models::Parameters;

/// Named tensors of a file, on the CPU.
pub type NamedTensors = BTreeMap<String, Tensor>;

/// Everything a model is made of, for a file: parameters and buffers.
pub fn tensors_of(parameters: &Parameters) -> NamedTensors {
    parameters.entries().into_iter().map(|entry| (entry.name, entry.tensor)).collect()
}

/// Copies tensors into a model by name and says what fitted. The model keeps its dtype; a tensor of another shape is not loaded.
pub fn load_into(parameters: &Parameters, tensors: &NamedTensors) -> Result<LoadReport> {
    let _guard = tch::no_grad_guard();
    let mut report = LoadReport::default();
    for entry in parameters.entries() {
        match tensors.get(&entry.name) {
            None => report.missing.push(entry.name),
            Some(found) if found.size() != entry.tensor.size() => {
                report.mismatched.push((entry.name, entry.tensor.size(), found.size()));
            }
            Some(found) => {
                let mut tensor = entry.tensor;
                tensor.f_copy_(found).with_context(|| format!("copying `{}` into the model", entry.name))?;
                report.loaded.push(entry.name);
            }
        }
    }
    report.unexpected = tensors.keys().filter(|name| parameters.get(name).is_none()).cloned().collect();
    Ok(report)
}
