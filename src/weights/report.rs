//! What became of each tensor when weights were loaded into a model, and whether that is good enough.

use anyhow::Result;

use super::content::{TensorForm, quoted};
use crate::models::{Parameters, Role};
use crate::{bad_input, bail_input};

/// A tensor that model and file have in different forms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Its name.
    pub name: String,
    /// In the model.
    pub model: TensorForm,
    /// In the file.
    pub file: TensorForm,
}

/// Names by fate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Copied into the model.
    pub loaded: Vec<String>,
    /// The model has it, the file does not.
    pub missing: Vec<String>,
    /// The file has it, the model does not.
    pub unexpected: Vec<String>,
    /// Both have it, in different shapes or in types that do not convert into each other.
    pub mismatched: Vec<Mismatch>,
}

impl LoadReport {
    /// Whether file and model hold the same tensors.
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.mismatched.is_empty()
    }

    /// Counts, and the first names of each kind that did not fit.
    pub fn describe(&self) -> String {
        let mut parts = vec![format!("{} loaded", self.loaded.len())];
        for (what, names) in [("missing", &self.missing), ("unexpected", &self.unexpected)] {
            if !names.is_empty() {
                parts.push(format!("{} {what} ({})", names.len(), quoted(names)));
            }
        }
        if let Some(Mismatch { name, model, file }) = self.mismatched.first() {
            parts.push(format!(
                "{} of another form (`{name}` is {model} here and {file} there)",
                self.mismatched.len()
            ));
        }
        parts.join(", ")
    }

    /// Refuses anything but a complete load; `source` is the file, for the message.
    pub fn require_complete(&self, source: &str) -> Result<()> {
        if !self.is_complete() {
            return Err(self.refusal(source));
        }
        Ok(())
    }

    /// Refuses weights that leave a part of the model as it was, except that BatchNorm's counters may be missing (PyTorch before 0.4.1 had
    /// none) and a head for another number of classes keeps its initial values. Returns what the user should know.
    pub fn require_usable(&self, source: &str, parameters: &Parameters) -> Result<Vec<String>> {
        let missing = self.missing.iter().any(|name| !name.ends_with("num_batches_tracked"));
        let head = self.replaced_head(parameters);
        if missing || self.loaded.is_empty() || (head.is_none() && !self.mismatched.is_empty()) {
            return Err(self.refusal(source));
        }
        let mut notes = Vec::new();
        if let Some((classes, in_file)) = head {
            let names: Vec<&str> = self.mismatched.iter().map(|mismatch| mismatch.name.as_str()).collect();
            notes.push(format!(
                "{source} tells {in_file} classes apart and this model {classes}: {} keep their initial values",
                quoted(&names)
            ));
        }
        if !self.unexpected.is_empty() {
            notes.push(format!(
                "{source} holds {} tensors that this model has no place for ({})",
                self.unexpected.len(),
                quoted(&self.unexpected)
            ));
        }
        Ok(notes)
    }

    /// The model's number of classes and the file's, where only classifiers' outputs differ: every tensor that does not fit differs in its first
    /// size alone and by the same two numbers, and the model's last layer is among them.
    pub fn replaced_head(&self, parameters: &Parameters) -> Option<(i64, i64)> {
        let last = parameters.entries().into_iter().rfind(|entry| entry.role == Role::Parameter)?;
        let mut classes = None;
        for Mismatch { model, file, .. } in &self.mismatched {
            let (Some((&here, rest_here)), Some((&there, rest_there))) =
                (model.shape.split_first(), file.shape.split_first())
            else {
                return None;
            };
            let same = model.dtype.class() == file.dtype.class() && rest_here == rest_there;
            if !same || *classes.get_or_insert((here, there)) != (here, there) {
                return None;
            }
        }
        let is_last = self.mismatched.iter().any(|mismatch| mismatch.name == last.name);
        classes.filter(|_| is_last)
    }

    fn refusal(&self, source: &str) -> anyhow::Error {
        let common = self.loaded.len() + self.mismatched.len();
        let all = common + self.missing.len();
        let foreign = match 2 * common < all {
            true => format!(
                ", so these look like weights of another architecture: {common} of {all} names are in both"
            ),
            false => String::new(),
        };
        bad_input!("{source} does not fit this model: {}{foreign}", self.describe())
    }
}

/// Refuses or accepts what was loaded: strictly nothing but a complete load, else as [`LoadReport::require_usable`] says.
pub(super) fn judge(
    report: &LoadReport,
    source: &str,
    parameters: &Parameters,
    strict: bool,
) -> Result<Vec<String>> {
    if strict {
        if !report.is_complete() {
            bail_input!("{} (--strict)", report.refusal(source));
        }
        return Ok(Vec::new());
    }
    report.require_usable(source, parameters)
}
