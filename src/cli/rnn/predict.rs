//! `predict`: classes of sequences, or the next values of series.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use serde_json::json;
use tch::{Kind, Tensor};

use super::family::{Rnn, known_tokenizer};
use crate::cli::args::{PredictFormat, RunArgs};
use crate::cli::family::Prediction;
use crate::cli::session::Session;
use crate::cli::table::align;
use crate::cli::{predict, print};
use crate::data::order::Sampler;
use crate::data::sequences::{SeriesTable, encode_texts, sequences_of_table};
use crate::data::text::{LengthBuckets, TextForm, TextFormat, pad, read_rows, rows_of};
use crate::native::modes::InferenceMode;
use crate::reporting::{Chart, Mark, Series, format, svg_document};
use crate::tasks::Mode;
use crate::tasks::forecasting::{Forecast, Forecasting};
use crate::tasks::multi_label::THRESHOLD;
use crate::tasks::sequence_classification::SequenceClassification;
use crate::tasks::sequences::SequenceTask;
use crate::{bad_input, bail_input, files};

/// Arguments of `predict`.
#[derive(Debug, Args)]
pub struct RnnPredictArgs {
    #[command(flatten)]
    run: RunArgs,
    /// Files: texts (TSV, CSV, JSON lines or plain), numbers (a CSV file for each sequence), or a series to go on with; - for texts on stdin, one a
    /// line [default for series: the run's own]
    #[arg(value_name = "FILE")]
    inputs: Vec<PathBuf>,
    /// A text to classify; may be repeated
    #[arg(long, value_name = "TEXT")]
    text: Vec<String>,
    /// How to print
    #[arg(long, value_enum, default_value_t = PredictFormat::Table)]
    format: PredictFormat,
    /// Best classes to print for each input
    #[arg(long, value_name = "K", default_value_t = 1)]
    top_k: usize,
    /// Draw a forecast with what comes before it
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
}

/// Runs the verb.
pub fn run(arguments: &RnnPredictArgs) -> Result<()> {
    if arguments.top_k == 0 {
        bail_input!("--top-k must be at least 1");
    }
    let session = Session::<Rnn>::open(&arguments.run.as_model())?;
    match &session.task {
        SequenceTask::Lm(_) => bail_input!(
            "the run is a language model: let it write with `generate`, or judge texts with `score`"
        ),
        SequenceTask::Forecast(task) => forecast(arguments, &session, task),
        SequenceTask::Classify(task) => {
            if arguments.plot.is_some() {
                bail_input!("--plot draws forecasts, but the run tells classes apart");
            }
            let predictions = classify(arguments, &session, task)?;
            match arguments.format {
                PredictFormat::Table => print(&predict::table(&predictions)),
                PredictFormat::Csv => print(&predict::csv(&predictions)),
                PredictFormat::Jsonl => print(&predict::json_lines(&predictions)?),
            }
        }
    }
}

fn classify(
    arguments: &RnnPredictArgs,
    session: &Session<Rnn>,
    task: &SequenceClassification,
) -> Result<Vec<Prediction>> {
    let (model, data) = (&session.recipe.model, &session.recipe.data);
    let device = task.parameters.device();
    let _inference = InferenceMode::enter()?;
    let _autocast = session.recipe.training.precision.autocast(device)?;
    if let (None, Some(features)) = (model.vocabulary, model.features) {
        if !arguments.text.is_empty() || arguments.inputs.is_empty() {
            bail_input!("the run takes sequences of numbers: give CSV files of {features} columns");
        }
        let sequences = sequences_of_table(&arguments.inputs, data, features as usize)?;
        return sequences
            .into_iter()
            .map(|(name, values)| {
                let lengths = Tensor::f_from_slice(&[values.size()[1]])?;
                let logits = task.forward(&values.f_to_device(device)?, &lengths, Mode::Evaluate);
                Ok(ranked(task, vec![name], &logits, arguments.top_k)?.remove(0))
            })
            .collect();
    }
    let (texts, places) = texts(arguments, &data.text)?;
    let tokenizer = known_tokenizer(&session.recipe)?;
    let encoded = encode_texts(&tokenizer, &texts, data.max_length).map_err(|error| {
        match error.downcast_ref::<crate::data::text::UnknownText>() {
            Some(unknown) => bad_input!("{}: {unknown}", places[unknown.text]),
            None => error,
        }
    })?;
    if let Some(empty) = (0..encoded.len()).find(|&text| encoded.length(text) == 0) {
        bail_input!("{}: there is no text to classify", places[empty]);
    }
    // Texts of like lengths together; then back into their order.
    let buckets = LengthBuckets {
        lengths: encoded.lengths(),
        batch_size: session.recipe.training.eval_batch_size(),
        seed: 0,
        shuffled: false,
    };
    let plan = buckets.plan(0)?;
    let mut predictions: Vec<Option<Prediction>> = vec![None; texts.len()];
    for number in 0..plan.batches() {
        let batch = plan.batch(number);
        let ids: Vec<Vec<i64>> = batch.iter().map(|&text| encoded.ids(text)).collect();
        let padded = pad(&ids, tokenizer.special().pad.unwrap_or(0))?;
        let logits = task.forward(&padded.ids.f_to_device(device)?, &padded.lengths, Mode::Evaluate);
        let names = batch.iter().map(|&text| texts[text].clone()).collect();
        for (&text, prediction) in batch.iter().zip(ranked(task, names, &logits, arguments.top_k)?) {
            predictions[text] = Some(prediction);
        }
    }
    Ok(predictions.into_iter().flatten().collect())
}

/// The classes of each row of logits, most probable first; of several labels all that are predicted, the most probable one at least.
fn ranked(
    task: &SequenceClassification,
    names: Vec<String>,
    logits: &Tensor,
    top_k: usize,
) -> Result<Vec<Prediction>> {
    let probabilities = task.criterion().probabilities(logits)?.f_to_kind(Kind::Double)?;
    let probabilities = Vec::<Vec<f64>>::try_from(probabilities)?;
    let predict = |(input, probabilities): (String, Vec<f64>)| {
        let mut ranked: Vec<(String, f64)> = task.classes().iter().cloned().zip(probabilities).collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
        let count = match task.criterion().is_multi_label() {
            true => {
                ranked.iter().filter(|(_, probability)| *probability >= f64::from(THRESHOLD)).count().max(1)
            }
            false => top_k,
        };
        ranked.truncate(count.max(top_k));
        Prediction { input, ranked }
    };
    Ok(names.into_iter().zip(probabilities).map(predict).collect())
}

/// The texts of the command line with where they are from.
fn texts(arguments: &RnnPredictArgs, column: &str) -> Result<(Vec<String>, Vec<String>)> {
    let mut texts: Vec<String> = arguments.text.clone();
    let mut places: Vec<String> = (0..texts.len()).map(|number| format!("--text {}", number + 1)).collect();
    for path in &arguments.inputs {
        let form = TextForm::default();
        let rows = match (path.as_os_str() == "-", form.of(path)) {
            (true, _) => {
                let rows = rows_of(Box::new(std::io::stdin()), "stdin", TextFormat::Plain, &form, &["text"])?;
                crate::data::text::TextTable { name: "stdin".to_owned(), rows }
            }
            (false, TextFormat::Plain) => read_rows(path, &form, &["text"])?,
            (false, _) => read_rows(path, &form, &[column])?,
        };
        for row in 0..rows.rows.len() {
            texts.push(rows.rows[row].text(0).to_owned());
            places.push(rows.place(row));
        }
    }
    if texts.is_empty() {
        bail_input!("there is nothing to classify: give files, - for stdin, or --text TEXT");
    }
    Ok((texts, places))
}

/// Values of a forecast in the units of the series.
struct Continued {
    time: String,
    column: String,
    value: f64,
    interval: Option<(f64, f64)>,
}

fn forecast(arguments: &RnnPredictArgs, session: &Session<Rnn>, task: &Forecasting) -> Result<()> {
    let data = &session.recipe.data;
    let path = match (&arguments.inputs[..], &data.path) {
        ([path], _) => path.clone(),
        ([], Some(path)) => path.clone(),
        ([], None) => bail_input!("give the series to go on with"),
        _ => bail_input!("give one series to go on with"),
    };
    let table = SeriesTable::read(&path, data)?;
    if !data.known.is_empty() {
        bail_input!(
            "the forecast looks at the future of {}, which {} does not have: `eval` forecasts within a series; to go on with it, train without data.known",
            data.known.join(", "),
            table.name
        );
    }
    let fields = &table.fields;
    let (columns, rows) = (fields.count(), table.rows);
    let (mean, std) =
        data.mean.as_ref().zip(data.std.as_ref()).context("the run has no scale of its columns")?;
    if mean.len() != columns {
        bail_input!("the model was trained on {} columns, but {} has {columns}", mean.len(), table.name);
    }
    if rows < data.input {
        bail_input!("{} has {rows} rows, but a forecast looks back {}", table.name, data.input);
    }
    let device = task.parameters.device();
    let scaled: Vec<f32> = table.values[(rows - data.input) * columns..]
        .iter()
        .enumerate()
        .map(|(place, value)| ((value - mean[place % columns]) / std[place % columns]) as f32)
        .collect();
    let window =
        Tensor::f_from_slice(&scaled)?.f_view([1, data.input as i64, columns as i64])?.f_to_device(device)?;
    let mut future = Vec::new();
    for step in 0..data.horizon {
        for what in &data.calendar {
            let axis = table.time.as_ref().ok_or_else(|| {
                bad_input!("{} has no column of times, which data.calendar needs", table.name)
            })?;
            future.push(axis.calendar(rows + step, what)? as f32);
        }
    }
    let future = Tensor::f_from_slice(&future)?
        .f_view([1, data.horizon as i64, data.calendar.len() as i64])?
        .f_to_device(device)?;
    let _inference = InferenceMode::enter()?;
    let _autocast = session.recipe.training.precision.autocast(device)?;
    let Forecast { value, interval } = task.forecast(&window, &future)?;
    let read = |tensor: &Tensor| -> Result<Vec<f64>> {
        Ok(Vec::try_from(tensor.f_to_kind(Kind::Double)?.f_flatten(0, -1)?)?)
    };
    let (values, ends) = (
        read(&value)?,
        interval.map(|(low, high)| Ok::<_, anyhow::Error>((read(&low)?, read(&high)?))).transpose()?,
    );

    let targets = fields.targets.len();
    let mut continued = Vec::new();
    for step in 0..data.horizon {
        let time =
            table.time.as_ref().map_or_else(|| (rows + step).to_string(), |axis| axis.text(rows + step));
        for (target, column) in fields.targets.iter().enumerate() {
            let in_units = |value: f64| value * std[target] + mean[target];
            let place = step * targets + target;
            continued.push(Continued {
                time: time.clone(),
                column: column.clone(),
                value: in_units(values[place]),
                interval: ends.as_ref().map(|(low, high)| (in_units(low[place]), in_units(high[place]))),
            });
        }
    }
    if let Some(out) = &arguments.plot {
        let svg = svg_document(&drawing(&table, &continued, data.input, task.nominal_coverage()));
        files::write_atomic(out, svg.as_bytes())?;
    }
    print(&written(&continued, arguments.format)?)
}

fn written(continued: &[Continued], form: PredictFormat) -> Result<String> {
    let has_interval = continued.iter().any(|one| one.interval.is_some());
    Ok(match form {
        PredictFormat::Jsonl => {
            let line = |one: &Continued| {
                let mut object = json!({"time": one.time, "column": one.column, "value": one.value});
                if let Some((low, high)) = one.interval {
                    object["low"] = json!(low);
                    object["high"] = json!(high);
                }
                object.to_string()
            };
            continued.iter().map(line).collect::<Vec<_>>().join("\n")
        }
        PredictFormat::Csv => {
            let head = if has_interval { "time,column,value,low,high" } else { "time,column,value" };
            let line = |one: &Continued| {
                let ends = one.interval.map_or(String::new(), |(low, high)| format!(",{low},{high}"));
                format!("{},{},{}{ends}", one.time, one.column, one.value)
            };
            std::iter::once(head.to_owned()).chain(continued.iter().map(line)).collect::<Vec<_>>().join("\n")
        }
        PredictFormat::Table => {
            let mut rows = vec![["time", "column", "value", "low", "high"].map(str::to_owned)];
            rows.extend(continued.iter().map(|one| {
                let (low, high) = one
                    .interval
                    .map_or(Default::default(), |(low, high)| (format::number(low), format::number(high)));
                [one.time.clone(), one.column.clone(), format::number(one.value), low, high]
            }));
            align(&rows, 2)
        }
    })
}

/// The window that a forecast looks back on and the forecast, the first column; interval ends as dashed lines.
fn drawing(table: &SeriesTable, continued: &[Continued], input: usize, coverage: Option<f64>) -> Chart {
    let (columns, rows) = (table.fields.count(), table.rows);
    let column = &table.fields.targets[0];
    let past = (rows - input..rows).map(|row| (row as f64, table.values[row * columns])).collect();
    let of_column: Vec<&Continued> = continued.iter().filter(|one| one.column == *column).collect();
    let points = |value: &dyn Fn(&Continued) -> Option<f64>| -> Vec<(f64, f64)> {
        of_column
            .iter()
            .enumerate()
            .filter_map(|(step, one)| Some(((rows + step) as f64, value(one)?)))
            .collect()
    };
    let series = vec![
        Series { name: column.clone(), points: past, mark: Mark::Line },
        Series {
            name: "forecast".to_owned(),
            points: points(&|one| Some(one.value)),
            mark: Mark::LineWithDots,
        },
        Series {
            name: "lower end".to_owned(),
            points: points(&|one| Some(one.interval?.0)),
            mark: Mark::Reference,
        },
        Series {
            name: "upper end".to_owned(),
            points: points(&|one| Some(one.interval?.1)),
            mark: Mark::Reference,
        },
    ];
    let note = coverage.map_or(String::new(), |share| {
        format!("Dashed: where {} of the values should fall.", format::percent(share))
    });
    Chart {
        title: format!("{column}: forecast of {} steps", of_column.len()),
        x_label: "row".to_owned(),
        series,
        note,
        ..Chart::default()
    }
}
