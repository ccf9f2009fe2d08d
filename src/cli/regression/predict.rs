//! `predict`: predictions for the rows of a table, a block at a time.

use std::io::{BufWriter, Write};
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use serde_json::{Value, json};

use super::trained::Trained;
use crate::bail_input;
use crate::cli::args::{PredictFormat, RunArgs};
use crate::data::table::{TableReader, TableSource};
use crate::regression::algebra::numbers;
use crate::regression::prepare::{RawBlock, refuse_gaps};

/// Arguments of `predict`.
#[derive(Debug, Args)]
pub struct TablePredictArgs {
    #[command(flatten)]
    run: RunArgs,
    /// Tables with the features of the run, or - for stdin
    #[arg(value_name = "INPUT", default_value = "-")]
    inputs: Vec<PathBuf>,
    /// How to print
    #[arg(long, value_enum, default_value_t = PredictFormat::Csv)]
    format: PredictFormat,
    /// Columns of the input to print before the prediction
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    keep: Vec<String>,
    /// Print the probability of every class
    #[arg(long)]
    probabilities: bool,
    /// Categories that no training row has: error, or reference
    #[arg(long, value_name = "POLICY")]
    unseen: Option<String>,
    #[command(flatten)]
    form: super::args::FormArgs,
}

/// Runs the verb.
pub fn run(arguments: &TablePredictArgs) -> Result<()> {
    let mut trained = Trained::open(&arguments.run)?;
    if let Some(policy) = &arguments.unseen {
        trained.recipe.data.unseen = crate::recipe::typed(json!(policy), "--unseen")?;
    }
    let mut data = serde_json::to_value(&trained.recipe)?;
    for (key, value) in arguments.form.settings()? {
        crate::recipe::set(&mut data, key, value)?;
    }
    trained.recipe = crate::recipe::typed(data, "the flags")?;
    let writer = Writer::new(arguments, &trained)?;
    let mut out = BufWriter::with_capacity(1 << 16, std::io::stdout().lock());
    writer.head(&mut out)?;
    for input in &arguments.inputs {
        predict_table(&trained, &TableSource::Path(input.clone()), &arguments.keep, &writer, &mut out)?;
    }
    out.flush().context("writing to stdout")
}

fn predict_table(
    trained: &Trained,
    source: &TableSource,
    keep: &[String],
    writer: &Writer,
    out: &mut dyn Write,
) -> Result<()> {
    let data = &trained.recipe.data;
    let encoding = trained.encoding();
    let mut reader = TableReader::open(source, &data.form())?;
    let name = reader.name().to_owned();
    let requests = encoding.requests(data.unseen);
    let threads = trained.recipe.training.threads.unwrap_or(1);
    let has_fills = encoding.is_filled();
    let _guard = tch::no_grad_guard();
    let mut first_row = 0;
    reader.read_keeping(&requests, keep, threads, &mut |block, kept| {
        let rows = RawBlock { y: block.f_select(1, 0)?, x: block, weight: None, group: None };
        if !has_fills {
            refuse_gaps(encoding, std::slice::from_ref(&rows), &name)?;
        }
        let predicted = trained.predictor().predict(&rows.x)?;
        let width = predicted.size()[1] as usize;
        let values = numbers(&predicted)?;
        for (row, values) in values.chunks_exact(width).enumerate() {
            writer.row(out, &kept[row * keep.len()..(row + 1) * keep.len()], values, first_row + row)?;
        }
        first_row += rows.rows() as usize;
        Ok(())
    })?;
    Ok(())
}

/// Prints rows in one of the formats.
struct Writer {
    format: PredictFormat,
    keep: Vec<String>,
    classes: Option<Vec<String>>,
    probabilities: bool,
}

impl Writer {
    fn new(arguments: &TablePredictArgs, trained: &Trained) -> Result<Self> {
        let classes = trained.encoding().classes.clone();
        if arguments.probabilities && classes.is_none() {
            bail_input!("--probabilities: the model predicts numbers, not classes");
        }
        Ok(Self {
            format: arguments.format,
            keep: arguments.keep.clone(),
            classes,
            probabilities: arguments.probabilities,
        })
    }

    /// Names of the printed columns.
    fn columns(&self) -> Vec<String> {
        let mut names = self.keep.clone();
        match &self.classes {
            None => names.push("prediction".to_owned()),
            Some(classes) => {
                names.extend(["label".to_owned(), "probability".to_owned()]);
                if self.probabilities {
                    names.extend(classes.iter().map(|class| format!("probability_{class}")));
                }
            }
        }
        names
    }

    fn head(&self, out: &mut dyn Write) -> Result<()> {
        let names = self.columns();
        match self.format {
            PredictFormat::Csv => {
                let names: Vec<String> = names.iter().map(|name| quoted(name)).collect();
                writeln!(out, "{}", names.join(","))?;
            }
            PredictFormat::Table => writeln!(out, "{}", names.join("\t"))?,
            PredictFormat::Jsonl => {}
        }
        Ok(())
    }

    fn row(&self, out: &mut dyn Write, kept: &[String], values: &[f64], row: usize) -> Result<()> {
        let chosen = self.classes.as_ref().map(|classes| {
            let all = match values {
                [second] => vec![1.0 - second, *second],
                all => all.to_vec(),
            };
            let best = (0..all.len()).rev().max_by(|&a, &b| all[a].total_cmp(&all[b])).unwrap_or(0);
            (classes.get(best).cloned().unwrap_or_else(|| best.to_string()), all[best], all)
        });
        if self.format == PredictFormat::Jsonl {
            let mut object = serde_json::Map::new();
            object.insert("row".to_owned(), json!(row + 1));
            for (name, text) in self.keep.iter().zip(kept) {
                object.insert(name.clone(), json!(text));
            }
            match (&chosen, &self.classes) {
                (Some((label, probability, all)), Some(classes)) => {
                    object.insert("label".to_owned(), json!(label));
                    object.insert("probability".to_owned(), json!(probability));
                    if self.probabilities {
                        let all: serde_json::Map<String, Value> =
                            classes.iter().cloned().zip(all.iter().map(|share| json!(share))).collect();
                        object.insert("probabilities".to_owned(), Value::Object(all));
                    }
                }
                _ => {
                    object.insert("prediction".to_owned(), json!(values[0]));
                }
            }
            serde_json::to_writer(&mut *out, &object).context("writing to stdout")?;
            writeln!(out)?;
            return Ok(());
        }
        let (separator, is_csv) = match self.format {
            PredictFormat::Csv => (",", true),
            _ => ("\t", false),
        };
        for text in kept {
            write!(out, "{}{separator}", if is_csv { quoted(text) } else { text.clone() })?;
        }
        match chosen {
            None => write!(out, "{}", values[0])?,
            Some((label, probability, all)) => {
                write!(out, "{}{separator}{probability}", if is_csv { quoted(&label) } else { label })?;
                if self.probabilities {
                    for share in all {
                        write!(out, "{separator}{share}")?;
                    }
                }
            }
        }
        writeln!(out)?;
        Ok(())
    }
}

fn quoted(text: &str) -> String {
    match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    }
}
