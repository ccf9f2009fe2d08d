//! `eval`: metrics of a run on held-out rows or on another table.

use anyhow::Result;
use clap::Args;
use serde_json::json;

use super::family::{goal_of, prepare_again};
use super::trained::Trained;
use crate::bail_input;
use crate::cli::args::{EvalFormat, Part, RunArgs};
use crate::cli::print;
use crate::data::order::hold_out;
use crate::regression::config::TableDataConfig;
use crate::regression::design::{RowSource, StreamedRows};
use crate::regression::prepare::{RawBlock, count_rows, read_with};
use crate::regression::resampling::part;
use crate::regression::scores::evaluate;
use crate::reporting::{self, Log, Verbosity};

/// Arguments of `eval`.
#[derive(Debug, Args)]
pub struct TableEvalArgs {
    #[command(flatten)]
    run: RunArgs,
    /// A table in place of the run's; all of its rows are looked at
    #[arg(long, value_name = "FILE|NAME", conflicts_with = "split")]
    data: Option<String>,
    /// Which rows [default: test, else validation, else train]
    #[arg(long, value_enum)]
    split: Option<Part>,
    /// Categories that no training row has: error, or reference
    #[arg(long, value_name = "POLICY")]
    unseen: Option<String>,
    /// How to print
    #[arg(long, value_enum, default_value_t = EvalFormat::Table)]
    format: EvalFormat,
}

/// Runs the verb.
pub fn run(arguments: &TableEvalArgs) -> Result<()> {
    let mut trained = Trained::open(&arguments.run)?;
    let log = Log::new(Verbosity::from_flags(false, true));
    if let Some(policy) = &arguments.unseen {
        trained.recipe.data.unseen = crate::recipe::typed(json!(policy), "--unseen")?;
    }
    let threads = trained.recipe.training.threads.unwrap_or(1);
    let (name, rows): (String, Box<dyn RowSource>) = match &arguments.data {
        Some(argument) => {
            let mut data: TableDataConfig = trained.recipe.data.clone();
            for (key, value) in TableDataConfig::settings(argument) {
                match key {
                    "data.format" => data.format = serde_json::from_value(value)?,
                    "data.path" => data.path = serde_json::from_value(value)?,
                    _ => {}
                }
            }
            let source = data.source()?;
            match data.stream {
                true => {
                    (source.name(), Box::new(StreamedRows::with(trained.encoding(), source, &data, threads)))
                }
                false => {
                    let (rows, warnings) = read_with(trained.encoding(), &source, &data, threads)?;
                    warnings.iter().for_each(|warning| log.warning(warning));
                    (source.name(), Box::new(rows))
                }
            }
        }
        None => own_rows(&trained, arguments.split, threads)?,
    };
    let evaluation = evaluate(trained.predictor(), rows.as_ref())?;
    match arguments.format {
        EvalFormat::Json => print(&serde_json::to_string_pretty(&json!({
            "split": name,
            "samples": rows.rows(),
            "metrics": evaluation.metrics,
            "details": evaluation.details,
        }))?),
        EvalFormat::Table => {
            let width = evaluation.metrics.keys().map(String::len).max().unwrap_or(0);
            let lines: Vec<String> = evaluation
                .metrics
                .iter()
                .map(|(metric, value)| {
                    format!("{metric:width$}  {}", reporting::format::metric(metric, *value))
                })
                .collect();
            let count = match rows.rows() {
                0 => String::new(),
                rows => format!(", {} rows", reporting::format::count(rows as u64)),
            };
            print(&format!("{name}{count}\n{}", lines.join("\n")))
        }
    }
}

/// The rows that the run learned from or held out.
fn own_rows(trained: &Trained, split: Option<Part>, threads: usize) -> Result<(String, Box<dyn RowSource>)> {
    let recipe = &trained.recipe;
    let goal = goal_of(recipe)?;
    if recipe.data.stream {
        let streamed = StreamedRows::open(&recipe.data, goal, recipe.training.seed, threads)?;
        return match (split, streamed.test) {
            (None | Some(Part::Test), Some(test)) => Ok(("test".to_owned(), Box::new(test))),
            (None | Some(Part::Train), _) => Ok(("train".to_owned(), Box::new(streamed.train))),
            _ => bail_input!("the data have no such part; choose another --split"),
        };
    }
    let (train, test) = prepare_again(recipe, trained.encoding(), goal, threads)?;
    let (train, validation): (Vec<RawBlock>, Vec<RawBlock>) = match recipe.model.is_trained() {
        false => (train, Vec::new()),
        true => {
            let rows = count_rows(&train);
            let mut fold = vec![0; rows];
            for row in hold_out(rows, recipe.data.val_fraction, recipe.training.seed)?.1 {
                fold[row] = 1;
            }
            part(&train, &fold, 1)?
        }
    };
    let parts = [("test", test), ("validation", validation), ("train", train)];
    let wanted = split.map(|split| format!("{split:?}").to_lowercase());
    for (name, rows) in parts {
        if wanted.as_deref().is_none_or(|wanted| wanted == name) && !rows.is_empty() {
            return Ok((name.to_owned(), Box::new(rows)));
        }
    }
    bail_input!("the data have no {} part; choose another --split", wanted.unwrap_or_default())
}
