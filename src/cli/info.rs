//! `info`: what is in a run, a weights file or an architecture.

use std::collections::HashSet;
use std::path::Path;

use anyhow::Result;
use serde_json::Value;
use tch::Device;

use super::args::InfoArgs;
use super::family::Family;
use super::print;
use super::session::trained_recipe;
use super::table::align;
use crate::models::Role;
use crate::models::summary::{LayerRow, layers_of};
use crate::reporting;
use crate::training::checkpoint::read_progress;
use crate::training::run::find_checkpoint;
use crate::weights::read_safetensors;
use crate::{bail_input, recipe};

/// Runs the verb.
pub fn run<F: Family>(arguments: &InfoArgs) -> Result<()> {
    match (&arguments.path, &arguments.model) {
        (_, Some(name)) => architecture::<F>(name, &arguments.set),
        (Some(path), None) if path.is_dir() => run_folder::<F>(path),
        (Some(path), None) => weights_file(path),
        (None, None) => {
            bail_input!("give a run folder, a safetensors file or --model NAME ({})", F::models().join(", "))
        }
    }
}

fn run_folder<F: Family>(path: &Path) -> Result<()> {
    let recipe = trained_recipe::<F>(path)?;
    let checkpoint = find_checkpoint(path, None)?;
    let progress = read_progress(&checkpoint)?;
    let mut lines = vec![
        format!("run         {}", path.display()),
        format!("recipe      {}", recipe.name),
        format!("checkpoint  {} (step {})", checkpoint.display(), progress.step),
    ];
    if let Some(best) = &progress.best {
        let listed: Vec<String> = best
            .metrics
            .iter()
            .map(|(name, value)| format!("{name} {}", reporting::format::metric(name, *value)))
            .collect();
        lines.push(format!("validation  {}", listed.join(", ")));
    }
    lines.push(String::new());
    lines.push(layer_table::<F>(&recipe.model)?);
    print(&lines.join("\n"))
}

fn architecture<F: Family>(name: &str, settings: &[String]) -> Result<()> {
    let mut value = serde_json::json!({ "model": F::usual_model(name)? });
    for setting in settings {
        let (key, setting) = recipe::parse_setting(setting)?;
        recipe::set(&mut value, &key, setting)?;
    }
    let model: F::Model =
        recipe::typed(value.get_mut("model").map(Value::take).unwrap_or_default(), "model")?;
    print(&layer_table::<F>(&model)?)
}

/// Layers with output shape, parameters and multiply-adds, for one input.
fn layer_table<F: Family>(model: &F::Model) -> Result<String> {
    let network = F::network(model, Device::Cpu)?;
    let inputs: Vec<tch::Tensor> =
        F::example_inputs(model, 1)?.into_iter().map(|(_, tensor)| tensor).collect();
    let _guard = tch::no_grad_guard();
    let (_, rows) = layers_of(|| (network.forward)(&inputs));
    let cells = |row: &LayerRow| {
        [
            row.name.clone(),
            row.kind.to_owned(),
            format!("{:?}", row.output),
            reporting::format::count(row.parameters as u64),
            reporting::format::count(row.multiply_adds as u64),
        ]
    };
    let head = ["layer", "kind", "output", "parameters", "multiply-adds"].map(str::to_owned);
    let total = [
        "total".to_owned(),
        String::new(),
        String::new(),
        reporting::format::count(network.parameters.count() as u64),
        reporting::format::count(rows.iter().map(|row| row.multiply_adds as u64).sum()),
    ];
    let mut table = vec![head];
    table.extend(rows.iter().map(cells));
    // What no layer told of: position tables and the like, and classifiers that only training uses.
    let told: HashSet<&str> = rows.iter().map(|row| row.name.as_str()).collect();
    let parameters = network.parameters.entries().into_iter().filter(|entry| entry.role == Role::Parameter);
    let untold = parameters
        .filter(|entry| !entry.name.rsplit_once('.').is_some_and(|(layer, _)| told.contains(layer)));
    table.extend(untold.map(|entry| {
        [
            entry.name,
            "Parameter".to_owned(),
            format!("{:?}", entry.tensor.size()),
            reporting::format::count(entry.tensor.numel() as u64),
            "0".to_owned(),
        ]
    }));
    table.push(total);
    Ok(align(&table, 3))
}

fn weights_file(path: &Path) -> Result<()> {
    let tensors = read_safetensors(path)?;
    let mut table = vec![["tensor", "type", "shape", "numbers"].map(str::to_owned)];
    table.extend(tensors.iter().map(|(name, tensor)| {
        [
            name.clone(),
            format!("{:?}", tensor.kind()),
            format!("{:?}", tensor.size()),
            reporting::format::count(tensor.numel() as u64),
        ]
    }));
    let numbers: u64 = tensors.values().map(|tensor| tensor.numel() as u64).sum();
    table.push([
        "total".to_owned(),
        String::new(),
        format!("{} tensors", tensors.len()),
        reporting::format::count(numbers),
    ]);
    print(&align(&table, 3))
}
