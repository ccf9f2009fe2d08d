//! `eval`: metrics of a run on one part of its data.

use std::rc::Rc;
use std::sync::Arc;

use anyhow::Result;
use serde_json::json;

use super::args::{EvalArgs, EvalFormat, Part};
use super::family::{Family, FamilyRecipe};
use super::print;
use super::session::Session;
use crate::data::fingerprint::DataFingerprint;
use crate::data::image_dataset::Views;
use crate::data::{Dataset, Splits};
use crate::distributed::agreement::Agreement;
use crate::distributed::health::{Meeting, with_processes};
use crate::distributed::{Broadcast, Reducer, SingleProcess};
use crate::recipe;
use crate::reporting::{self, Log, Verbosity};
use crate::tasks::Task;
use crate::training::evaluate::{EvaluationSettings, evaluate};
use crate::training::signals::Interrupt;
use crate::{bad_input, bail_input};

/// Runs the verb, on several processes where flags or environment say so.
pub fn run<F: Family>(arguments: &EvalArgs) -> Result<()> {
    with_processes(&arguments.group, |meeting| evaluate_among::<F>(arguments, meeting))
}

fn evaluate_among<F: Family>(arguments: &EvalArgs, meeting: Option<&Rc<Meeting>>) -> Result<()> {
    let place = meeting.map(|meeting| meeting.rendezvous());
    let mut session = Session::<F>::open_among(&arguments.run, place)?;
    if let Some(data) = &arguments.data {
        let mut value = serde_json::to_value(&session.recipe)?;
        for (key, setting) in F::evaluation_settings(data) {
            recipe::set(&mut value, key, setting)?;
        }
        let attachments = std::mem::take(&mut session.recipe.attachments);
        session.recipe = recipe::typed(value, "--data")?;
        session.recipe.attachments = attachments;
    } else if session.step.is_none() {
        bail_input!("weights without a run come without data: give --data");
    }
    F::validate(&session.recipe)?;
    let log = Log::new(match meeting.is_none_or(|meeting| meeting.is_first()) {
        true => Verbosity::from_flags(false, arguments.format == EvalFormat::Json),
        false => Verbosity::Silent,
    });
    let mut recipe = session.recipe.clone();
    let splits = F::open(&mut recipe, &log)?;
    let Session { task, origin, step, .. } = session;
    let mut reducer: Box<dyn Reducer> = Box::new(SingleProcess);
    if let Some(meeting) = meeting {
        agree(meeting, &splits, &task, step)?;
        reducer = Box::new(meeting.connect(task.parameters().device(), &recipe.training.distributed)?);
        // Each has read the weights by itself; this makes sure that they are the same.
        reducer.broadcast(task.parameters(), Broadcast::Everything)?;
    }
    let evaluated = Evaluated { recipe: &recipe, splits, task, origin: &origin, step };
    report::<F>(evaluated, arguments.split, arguments.tta, arguments.format, &log, reducer.as_mut())?;
    reducer.close()
}

/// Makes sure that all processes are about to judge the same model on the same data.
fn agree<D: Dataset, T: Task>(
    meeting: &Meeting,
    splits: &Splits<Arc<D>>,
    task: &T,
    step: Option<u64>,
) -> Result<()> {
    let mut agreement = Agreement::default();
    agreement.add("the program", json!(env!("CARGO_PKG_VERSION")));
    agreement.add("the data", json!(DataFingerprint::of(splits)?));
    agreement.add("the number of test samples", json!(splits.test.as_ref().map(|test| test.len())));
    agreement.add("the step of the checkpoint", json!(step));
    let shapes = task.parameters().entries().into_iter();
    let shapes = shapes.map(|entry| (entry.name, json!(entry.tensor.size()))).collect();
    agreement.add("the model", serde_json::Value::Object(shapes));
    agreement.check(meeting)
}

/// A model with the data that it is judged on.
pub(super) struct Evaluated<'a, F: Family> {
    /// As it was resolved.
    pub recipe: &'a FamilyRecipe<F>,
    /// The data.
    pub splits: Splits<Arc<F::Dataset>>,
    /// The model.
    pub task: F::Task,
    /// Where it comes from, for people.
    pub origin: &'a str,
    /// The step of its checkpoint, where it has one.
    pub step: Option<u64>,
}

/// Evaluates on one part and prints the metrics.
pub(super) fn report<F: Family>(
    evaluated: Evaluated<'_, F>,
    split: Option<Part>,
    views: Views,
    format: EvalFormat,
    log: &Log,
    reducer: &mut dyn Reducer,
) -> Result<()> {
    let Evaluated { recipe, splits, mut task, origin, step } = evaluated;
    let (part, data) = match split {
        Some(Part::Train) => (Part::Train, Some(splits.train)),
        Some(Part::Validation) => (Part::Validation, splits.validation),
        Some(Part::Test) => (Part::Test, splits.test),
        None if splits.test.is_some() => (Part::Test, splits.test),
        None => (Part::Validation, splits.validation),
    };
    let name = format!("{part:?}").to_lowercase();
    let data = data.ok_or_else(|| bad_input!("the data have no {name} part; choose another --split"))?;
    let data = match views {
        Views::None => data,
        views => Arc::new(F::with_views(&data, views)?),
    };

    let bar = log.progress(&name, 0, None);
    let settings = EvaluationSettings::of(&recipe.training);
    let evaluation = evaluate(&mut task, &data, settings, reducer, &Interrupt::default(), &bar)?;
    drop(bar);
    let Some(evaluation) = evaluation else { bail_input!("interrupted") };
    if reducer.rank() > 0 {
        return Ok(());
    }
    match format {
        EvalFormat::Json => print(&serde_json::to_string_pretty(&json!({
            "split": name,
            "step": step,
            "samples": crate::data::Dataset::len(data.as_ref()),
            "metrics": evaluation.metrics,
            "details": evaluation.details,
        }))?),
        EvalFormat::Table => {
            let width = evaluation.metrics.keys().map(String::len).max().unwrap_or(0);
            let rows = evaluation
                .metrics
                .iter()
                .map(|(metric, value)| {
                    format!("{metric:width$}  {}", reporting::format::metric(metric, *value))
                })
                .collect::<Vec<_>>();
            let samples = reporting::format::count(crate::data::Dataset::len(data.as_ref()) as u64);
            // What the task says in words of its own, such as how a score came about.
            let words = evaluation.details["lines"].as_array().into_iter().flatten();
            let lines = words.filter_map(|line| line.as_str().map(str::to_owned));
            let rows = rows.into_iter().chain(lines).collect::<Vec<_>>();
            print(&format!(
                "{name}, {samples} samples, {origin}
{}",
                rows.join(
                    "
"
                )
            ))
        }
    }
}
