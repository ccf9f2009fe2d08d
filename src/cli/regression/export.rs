//! `export`: a TorchScript module that takes raw features, weights, or the readable model.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use tch::{Device, Kind, Tensor};

use super::trained::{Fitted, Trained};
use crate::cli::args::RunArgs;
use crate::cli::export::{place, refuse_existing};
use crate::native::trace::{Entry, Stored, trace_module};
use crate::regression::fit::LinearModel;
use crate::regression::objective::Loss;
use crate::tasks::Task;
use crate::weights::{NamedTensors, tensors_of, write_safetensors};
use crate::{bail_input, files};

/// Arguments of `export`.
#[derive(Debug, Args)]
pub struct TableExportArgs {
    #[command(flatten)]
    run: RunArgs,
    /// What to write
    #[arg(long, value_enum)]
    format: TableExportFormat,
    /// The file to write
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
}

/// Form of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum TableExportFormat {
    /// A traced module for torch.jit.load: float64 features [rows, features] in the table's units and order (categories as their position
    /// among the levels in model.json, missing values as NaN) to predictions
    Torchscript,
    /// Named weights
    Safetensors,
    /// Coefficients, categories and scales as readable JSON
    Json,
}

/// Runs the verb.
pub fn run(arguments: &TableExportArgs) -> Result<()> {
    refuse_existing(&arguments.out)?;
    let trained = Trained::open(&arguments.run)?;
    place(&arguments.out, |staged| match arguments.format {
        TableExportFormat::Torchscript => trace(&trained, staged),
        TableExportFormat::Safetensors => write_safetensors(staged, &tensors(&trained)?),
        TableExportFormat::Json => match &trained.model {
            Fitted::Linear(model) => write(staged, &serde_json::to_string_pretty(model)?),
            Fitted::Network(_) if LinearModel::is_in(&arguments.run.run) => {
                write(staged, &serde_json::to_string_pretty(&LinearModel::read(&arguments.run.run)?)?)
            }
            Fitted::Network(_) => {
                bail_input!("--format json is for linear models: a network has no readable coefficients")
            }
        },
    })
}

fn write(path: &Path, text: &str) -> Result<()> {
    files::write_synced(path, (text.to_owned() + "\n").as_bytes())
        .map_err(|error| files::cannot_write(path, &error))
}

fn tensors(trained: &Trained) -> Result<NamedTensors> {
    Ok(match &trained.model {
        Fitted::Network(task) => tensors_of(task.parameters()),
        Fitted::Linear(model) => {
            let (weight, bias) = model.tensors()?;
            NamedTensors::from([("weight".to_owned(), weight), ("bias".to_owned(), bias)])
        }
    })
}

fn trace(trained: &Trained, path: &Path) -> Result<()> {
    let features = trained.encoding().features.len() as i64;
    let example = Tensor::f_zeros([2, features], (Kind::Double, Device::Cpu))?;
    let inputs = [("features", &example)];
    let traced = match &trained.model {
        Fitted::Linear(model) => {
            let (weight, bias) = model.tensors()?;
            let entries = [
                Entry { name: "weight", tensor: &weight, is_buffer: false },
                Entry { name: "bias", tensor: &bias, is_buffer: false },
            ];
            let loss = model.loss().unwrap_or(Loss::Squared);
            trace_module("Regression", &entries, Stored::All, &inputs, path, &mut |inputs| {
                let design = model.encoding.encode(&inputs[0])?;
                Ok(vec![loss.mean(&design.f_linear(&weight, Some(&bias))?)?])
            })
        }
        Fitted::Network(task) => {
            let entries = task.parameters().entries();
            let entries: Vec<Entry<'_>> = entries.iter().map(Entry::from).collect();
            trace_module("Regression", &entries, Stored::All, &inputs, path, &mut |inputs| {
                Ok(vec![task.predict(&inputs[0])?])
            })
        }
    };
    traced.context("tracing the model")?;
    files::sync_file(path)
}
