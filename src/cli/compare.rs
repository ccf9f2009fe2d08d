//! `compare`: runs side by side.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::args::{CompareArgs, EvalFormat};
use super::print;
use super::table::align;
use crate::files;
use crate::recipe::{self, flatten};
use crate::reporting::{self, Log, Report, RunData, Summary, Verbosity};
use crate::training::run::read_recipe;

/// Keys that say what a run is called, not what it does.
const HEAD: [&str; 4] = ["name", "description", "source", "reaches"];

/// Runs the verb.
pub fn run(arguments: &CompareArgs) -> Result<()> {
    let runs = arguments.runs.iter().map(|path| read(path)).collect::<Result<Vec<_>>>()?;
    if let Some(out) = &arguments.out {
        let names: Vec<&str> = runs.iter().map(|run| run.name.as_str()).collect();
        let report = Report {
            title: names.join(" · "),
            subtitle: "runs side by side".to_owned(),
            runs: arguments.runs.iter().map(|path| read(path)).collect::<Result<Vec<_>>>()?,
            ..Report::default()
        };
        let page = reporting::render(&report).context("making the report")?;
        files::write_atomic(out, page.as_bytes())?;
        Log::new(Verbosity::from_flags(false, true)).result(format!("report: {}", out.display()));
    }
    let (differences, metrics) = (differing_keys(&runs), metric_rows(&runs));
    match arguments.format {
        EvalFormat::Json => {
            let named = |rows: &[(String, Vec<Value>)]| -> Value {
                rows.iter()
                    .map(|(key, values)| (key.clone(), json!(values)))
                    .collect::<serde_json::Map<_, _>>()
                    .into()
            };
            let names: Vec<&str> = runs.iter().map(|run| run.name.as_str()).collect();
            print(&serde_json::to_string_pretty(
                &json!({"runs": names, "recipe": named(&differences), "metrics": named(&metrics)}),
            )?)
        }
        EvalFormat::Table => {
            let head = |title: &str| {
                let names = runs.iter().map(|run| run.name.clone());
                std::iter::once(title.to_owned()).chain(names).collect::<Vec<String>>()
            };
            let mut table = vec![head("metric")];
            table.extend(metrics.iter().map(|(key, values)| {
                let told = |value: &Value| match value.as_f64() {
                    Some(number) => reporting::format::metric(key.rsplit(' ').next().unwrap_or(key), number),
                    None => "–".to_owned(),
                };
                std::iter::once(key.clone()).chain(values.iter().map(told)).collect()
            }));
            let measured = align(&table, 1);
            let mut table = vec![head("recipe")];
            table.extend(differences.iter().map(|(key, values)| {
                let told = |value: &Value| if value.is_null() { "–".to_owned() } else { value.to_string() };
                std::iter::once(key.clone()).chain(values.iter().map(told)).collect()
            }));
            match differences.is_empty() {
                true => print(&format!("{measured}\n\nThe recipes are equal.")),
                false => print(&format!("{measured}\n\n{}", align(&table, 1))),
            }
        }
    }
}

fn read(path: &Path) -> Result<RunData> {
    let recipe = read_recipe(path)?;
    let summary_file = path.join("summary.json");
    let summary: Option<Summary> = match summary_file.is_file() {
        true => {
            let name = summary_file.display().to_string();
            Some(recipe::typed(recipe::parse(&files::read_text(&summary_file)?, &name)?, &name)?)
        }
        false => None,
    };
    let name = path
        .file_name()
        .map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned());
    Ok(RunData { name, records: reporting::read_metrics(&path.join("metrics.jsonl"))?, summary, recipe })
}

/// Keys in which the recipes differ, with the value of each run.
fn differing_keys(runs: &[RunData]) -> Vec<(String, Vec<Value>)> {
    let flat: Vec<_> = runs.iter().map(|run| flatten(&run.recipe)).collect();
    let keys: BTreeSet<&String> = flat.iter().flat_map(|recipe| recipe.keys()).collect();
    let values = |key: &String| {
        flat.iter().map(|recipe| recipe.get(key).cloned().unwrap_or(Value::Null)).collect::<Vec<_>>()
    };
    keys.into_iter()
        .filter(|key| !HEAD.contains(&key.as_str()))
        .map(|key| (key.clone(), values(key)))
        .filter(|(_, values)| values.windows(2).any(|pair| pair[0] != pair[1]))
        .collect()
}

/// The summaries' figures: best validation, test, throughput, time and memory.
fn metric_rows(runs: &[RunData]) -> Vec<(String, Vec<Value>)> {
    let summaries: Vec<Value> =
        runs.iter().map(|run| serde_json::to_value(&run.summary).unwrap_or_default()).collect();
    let flat: Vec<_> = summaries.iter().map(flatten).collect();
    let keys: BTreeSet<&String> = flat.iter().flat_map(|summary| summary.keys()).collect();
    let mut rows = Vec::new();
    for section in ["test", "best", "throughput", "wall_seconds", "peak_memory_mb"] {
        for key in keys.iter().filter(|key| key.split('.').next() == Some(section)) {
            let values: Vec<Value> =
                flat.iter().map(|summary| summary.get(*key).cloned().unwrap_or(Value::Null)).collect();
            if values.iter().any(|value| value.is_number()) {
                rows.push((key.replace('.', " "), values));
            }
        }
    }
    rows
}
