//! Reading weight files of every kind, writing safetensors, and telling what fitted.
//!
//! [`open`] takes whatever a user may name and gives [`Weights`]: names, forms, and values that are read when asked for, so that memory holds the
//! model and little else. [`load`] is the whole way from there into a model. Reading a pickle runs nothing ([`pickle`]).

mod content;
mod dtype;
pub mod hub;
pub mod pickle;
mod pretrained;
mod report;
mod safetensors;
mod source;
mod torch_file;

pub use content::{Format, TensorForm, TensorSource, Weights};
pub use dtype::{Class, Dtype};
pub use pretrained::load_pretrained;
pub use report::{LoadReport, Mismatch};
pub use safetensors::{read_safetensors, write_safetensors};
pub use source::open;
pub use torch_file::script_modules;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use tch::Tensor;

use crate::models::Parameters;

/// Named tensors of a file, on the CPU.
pub type NamedTensors = BTreeMap<String, Tensor>;

/// Everything a model is made of, for a file: parameters and buffers.
pub fn tensors_of(parameters: &Parameters) -> NamedTensors {
    parameters.entries().into_iter().map(|entry| (entry.name, entry.tensor)).collect()
}

/// Copies tensors into a model by name and says what fitted. The model keeps its dtype; a tensor of another shape, or whose values are of
/// another class (whole numbers for floating-point ones), is not loaded.
pub fn load_into(parameters: &Parameters, source: &impl TensorSource) -> Result<LoadReport> {
    let _guard = tch::no_grad_guard();
    let mut report = LoadReport::default();
    for entry in parameters.entries() {
        let name = entry.name;
        let Some(file) = source.form(&name) else {
            report.missing.push(name);
            continue;
        };
        let kind = entry.tensor.kind();
        let dtype = Dtype::of_kind(kind).with_context(|| format!("`{name}` has the kind {kind:?}"))?;
        let model = TensorForm { dtype, shape: entry.tensor.size() };
        if file.shape != model.shape || file.dtype.class() != model.dtype.class() {
            report.mismatched.push(Mismatch { name, model, file });
            continue;
        }
        let mut tensor = entry.tensor;
        tensor.f_copy_(&source.tensor(&name)?).with_context(|| format!("copying `{name}` into the model"))?;
        report.loaded.push(name);
    }
    let unexpected = source.names().into_iter().filter(|name| parameters.get(name).is_none());
    report.unexpected = unexpected.map(str::to_owned).collect();
    Ok(report)
}

/// What [`load`] did.
#[derive(Debug)]
pub struct Loaded {
    /// Names by fate.
    pub report: LoadReport,
    /// What the user should know: a replaced head, tensors without a place, a container that was chosen.
    pub notes: Vec<String>,
}

/// Opens `path` ([`open`]) and copies what is in it into a model.
///
/// # Errors
/// It cannot be read, or does not fit: `strict` refuses any difference, otherwise a head for another number of classes keeps its initial
/// values, BatchNorm's counters may be missing, and tensors without a place are only noted ([`LoadReport::require_usable`]).
pub fn load(parameters: &Parameters, path: &Path, strict: bool) -> Result<Loaded> {
    load_opened(parameters, &open(path)?, strict)
}

/// [`load`] from weights that are open already.
pub fn load_opened(parameters: &Parameters, weights: &Weights, strict: bool) -> Result<Loaded> {
    let report = load_into(parameters, weights)?;
    let mut notes = weights.notes();
    notes.extend(report::judge(&report, &weights.origin, parameters, strict)?);
    Ok(Loaded { report, notes })
}
