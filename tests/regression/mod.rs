//! The program `regression`.

mod bad_tables;
mod networks;
mod parity;
mod parquet;
mod runs;

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::Scratch;
use crate::support::process::{Finished, regression, run};
use crate::support::runs::read_json;

/// A folder for runs and tables.
struct Place(Scratch);

impl Place {
    fn new() -> Place {
        Place(Scratch::new())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        std::fs::write(self.path(name), content).unwrap();
        self.text(name)
    }

    /// `regression train --quiet --out NAME` with these arguments.
    fn try_train(&self, name: &str, arguments: &[&str]) -> Finished {
        let out = self.text(name);
        run(&mut regression(["train", "--quiet", "--threads", "1", "--out", &out].iter().chain(arguments)))
    }

    /// The same, which must succeed; returns the run's folder.
    fn train(&self, name: &str, arguments: &[&str]) -> PathBuf {
        let finished = self.try_train(name, arguments);
        assert_eq!(finished.code, Some(0), "{arguments:?}: {}", finished.stderr);
        self.path(name)
    }
}

/// Runs `regression` with these arguments, which must succeed, and returns its standard output.
fn stdout(arguments: &[&str]) -> String {
    let finished = run(&mut regression(arguments));
    assert_eq!(finished.code, Some(0), "{arguments:?}: {}", finished.stderr);
    finished.stdout
}

/// The coefficients of a run: intercept first, output by output, in the units of the table.
fn coefficients(run: &Path) -> Vec<f64> {
    let model = read_json(&run.join("model.json"));
    let intercepts = model["intercept"].as_array().unwrap().iter();
    let rows = model["coefficients"].as_array().unwrap().iter();
    intercepts
        .zip(rows)
        .flat_map(|(intercept, row)| std::iter::once(number(intercept)).chain(numbers(row)))
        .collect()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::NAN)
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(number).collect()
}
