//! `info`: what is in a run, a weights file or an architecture.

use std::collections::HashSet;
use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};
use tch::Device;

use super::args::{EvalFormat, InfoArgs};
use super::family::Family;
use super::print;
use super::session::trained_recipe;
use super::table::align;
use crate::models::Role;
use crate::models::summary::{LayerRow, layers_of};
use crate::reporting;
use crate::training::checkpoint::read_progress;
use crate::training::run::find_checkpoint;
use crate::weights::{self, TensorForm, TensorSource};
use crate::{bail_input, recipe};

/// Runs the verb.
pub fn run<F: Family>(arguments: &InfoArgs) -> Result<()> {
    match (&arguments.path, &arguments.model) {
        (_, Some(name)) => architecture::<F>(name, &arguments.set, arguments.init_from.as_deref()),
        (Some(path), None) if path.join("recipe.json").is_file() => match arguments.format {
            EvalFormat::Table => run_folder::<F>(path),
            EvalFormat::Json => weights_file(path, EvalFormat::Json),
        },
        (Some(path), None) => weights_file(path, arguments.format),
        (None, None) => {
            bail_input!("give a run folder, weights or --model NAME ({})", F::models().join(", "))
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
    lines.push(layer_table::<F>(&F::model_of(&recipe))?);
    print(&lines.join("\n"))
}

fn architecture<F: Family>(name: &str, settings: &[String], init_from: Option<&Path>) -> Result<()> {
    let mut value = serde_json::json!({ "model": F::usual_model(name)? });
    for setting in settings {
        let (key, setting) = recipe::parse_setting(setting)?;
        recipe::set(&mut value, &key, setting)?;
    }
    let model: F::Model =
        recipe::typed(value.get_mut("model").map(Value::take).unwrap_or_default(), "model")?;
    let Some(source) = init_from else { return print(&layer_table::<F>(&model)?) };
    let weights = weights::open(source)?;
    let fit = weights::load_into(&F::network(&model, Device::Cpu)?.parameters, &weights)?;
    let fitted = format!("{}: {}", weights.origin, fit.describe());
    print(&[layer_table::<F>(&model)?, String::new(), fitted].join("\n"))
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

/// What weights hold: where they were found, and every tensor.
fn weights_file(path: &Path, format: EvalFormat) -> Result<()> {
    let weights = weights::open(path)?;
    let names = weights.names();
    let forms = names.iter().filter_map(|name| Some((*name, weights.form(name)?)));
    let forms: Vec<(&str, TensorForm)> = forms.collect();
    let numbers = |form: &TensorForm| form.shape.iter().product::<i64>() as u64;
    let bytes = |form: &TensorForm| numbers(form) * form.dtype.size() as u64;
    let (total, total_bytes) =
        forms.iter().fold((0, 0), |(total, size), (_, form)| (total + numbers(form), size + bytes(form)));
    if format == EvalFormat::Json {
        let tensor = |(name, form): &(&str, TensorForm)| json!({"name": name, "dtype": form.dtype.name(), "shape": form.shape, "bytes": bytes(form)});
        return print(&serde_json::to_string_pretty(&json!({
            "source": weights.origin,
            "format": weights.format.name(),
            "files": weights.file_count(),
            "container": weights.container,
            "left_out": weights.left_out,
            "prefix": weights.prefix,
            "other_values": weights.other_values,
            "metadata": weights.metadata,
            "numbers": total,
            "bytes": total_bytes,
            "tensors": forms.iter().map(tensor).collect::<Vec<_>>(),
        }))?);
    }
    let mut lines =
        vec![format!("weights   {}", weights.origin), format!("format    {}", weights.format.describe())];
    if weights.file_count() > 1 {
        lines.push(format!("files     {}", weights.file_count()));
    }
    if !weights.container.is_empty() {
        lines.push(format!("taken     {}", weights.container.join(".")));
    }
    if !weights.left_out.is_empty() {
        lines.push(format!("left out  {}", weights.left_out.join(", ")));
    }
    if !weights.prefix.is_empty() {
        lines.push(format!("prefix    {} (removed from the names)", weights.prefix));
    }
    if weights.other_values > 0 {
        lines.push(format!("besides   {} values that are no tensors", weights.other_values));
    }
    lines.extend(weights.metadata.iter().map(|(key, value)| format!("metadata  {key}: {value}")));
    lines.push(String::new());
    let mut table = vec![["tensor", "type", "shape", "numbers", "bytes"].map(str::to_owned)];
    table.extend(forms.iter().map(|(name, form)| {
        [
            (*name).to_owned(),
            form.dtype.name().to_owned(),
            format!("{:?}", form.shape),
            reporting::format::count(numbers(form)),
            reporting::format::count(bytes(form)),
        ]
    }));
    table.push([
        "total".to_owned(),
        String::new(),
        format!("{} tensors", forms.len()),
        reporting::format::count(total),
        reporting::format::count(total_bytes),
    ]);
    lines.push(align(&table, 3));
    print(&lines.join("\n"))
}
