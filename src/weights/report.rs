//! What became of each tensor when a file was loaded into a model.

use anyhow::Result;

use crate::bail_input;

/// Names by fate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Copied into the model.
    pub loaded: Vec<String>,
    /// The model has it, the file does not.
    pub missing: Vec<String>,
    /// The file has it, the model does not.
    pub unexpected: Vec<String>,
    /// Both have it, in different shapes: name, the model's, the file's.
    pub mismatched: Vec<(String, Vec<i64>, Vec<i64>)>,
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
            if let Some(first) = names.first() {
                parts.push(format!("{} {what} ({})", names.len(), examples(names, first)));
            }
        }
        if let Some((name, model, file)) = self.mismatched.first() {
            parts.push(format!(
                "{} of another shape (`{name}` is {model:?} here and {file:?} there)",
                self.mismatched.len()
            ));
        }
        parts.join(", ")
    }

    /// Refuses anything but a complete load; `source` is the file, for the message.
    pub fn require_complete(&self, source: &str) -> Result<()> {
        if !self.is_complete() {
            bail_input!("{source} does not fit this model: {}", self.describe());
        }
        Ok(())
    }
}

fn examples(names: &[String], first: &str) -> String {
    if names.len() == 1 { format!("`{first}`") } else { format!("`{first}`, …") }
}
