//! `predict`: predictions for inputs of the command line.

use std::io::BufRead;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::json;

use super::args::{PredictArgs, PredictFormat};
use super::family::{Family, Prediction};
use super::print;
use super::session::Session;
use crate::bail_input;
use crate::files;

/// Runs the verb.
pub fn run<F: Family>(arguments: &PredictArgs) -> Result<()> {
    if arguments.top_k == 0 {
        bail_input!("--top-k must be at least 1");
    }
    let mut run = arguments.run.clone();
    let mut inputs = arguments.inputs.clone();
    if run.weights.model.is_some() {
        // Without a run, the first path is an input too.
        inputs.splice(0..0, run.run.take());
    }
    let inputs = expand(&inputs)?;
    let mut session = Session::<F>::open(&run)?;
    let predictions = F::predict(&mut session.task, &session.recipe, &inputs, arguments.top_k)?;
    match arguments.format {
        PredictFormat::Table => print(&table(&predictions)),
        PredictFormat::Csv => print(&csv(&predictions)),
        PredictFormat::Jsonl => print(&json_lines(&predictions)?),
    }
}

/// Folders become the files in them, in order of their names; `-` becomes the files listed on stdin.
fn expand(inputs: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files_found = Vec::new();
    for input in inputs {
        if input.as_os_str() == "-" {
            for line in std::io::stdin().lock().lines() {
                let line = line.context("reading the list of files on stdin")?;
                files_found.extend((!line.is_empty()).then(|| PathBuf::from(line)));
            }
        } else if input.is_dir() {
            let mut inside = Vec::new();
            for entry in std::fs::read_dir(input).map_err(|error| files::cannot_read(input, &error))? {
                let path = entry.map_err(|error| files::cannot_read(input, &error))?.path();
                inside.extend(path.is_file().then_some(path));
            }
            inside.sort();
            files_found.extend(inside);
        } else {
            files_found.push(input.clone());
        }
    }
    if files_found.is_empty() {
        bail_input!("there is nothing to predict: the inputs hold no file");
    }
    Ok(files_found)
}

pub(super) fn table(predictions: &[Prediction]) -> String {
    let width = predictions.iter().map(|prediction| prediction.input.chars().count()).max().unwrap_or(0);
    let line = |prediction: &Prediction| {
        let ranked = prediction
            .ranked
            .iter()
            .map(|(label, probability)| format!("{label} {:.2} %", 100.0 * probability));
        format!("{:width$}  {}", prediction.input, ranked.collect::<Vec<_>>().join(", "))
    };
    predictions.iter().map(line).collect::<Vec<_>>().join("\n")
}

pub(super) fn csv(predictions: &[Prediction]) -> String {
    let quoted = |text: &str| match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    };
    let mut lines = vec!["input,rank,label,probability".to_owned()];
    for prediction in predictions {
        for (rank, (label, probability)) in prediction.ranked.iter().enumerate() {
            lines.push(format!("{},{},{},{probability}", quoted(&prediction.input), rank + 1, quoted(label)));
        }
    }
    lines.join("\n")
}

pub(super) fn json_lines(predictions: &[Prediction]) -> Result<String> {
    let line = |prediction: &Prediction| {
        let ranked: Vec<_> = prediction
            .ranked
            .iter()
            .map(|(label, probability)| json!({"label": label, "probability": probability}))
            .collect();
        let (label, probability) =
            prediction.ranked.first().map_or((None, None), |(l, p)| (Some(l), Some(p)));
        let mut object = json!({"input": prediction.input, "label": label, "probability": probability});
        if ranked.len() > 1 {
            object["top"] = json!(ranked);
        }
        Ok(serde_json::to_string(&object)?)
    };
    Ok(predictions.iter().map(line).collect::<Result<Vec<_>>>()?.join("\n"))
}
