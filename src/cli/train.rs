//! `train`: from arguments to a run folder with its summary and report.

use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use serde_json::Value;

use super::args::TrainArgs;
use super::family::{Family, FamilyRecipe};
use super::{print, session};
use crate::data::fingerprint::DataFingerprint;
use crate::data::{Dataset, Splits};
use crate::distributed::SingleProcess;
use crate::error::Interrupted;
use crate::files;
use crate::native::system;
use crate::reporting::{
    self, EventWriter, Log, MetricsLog, Record, Report, RunData, Split, Summary, Throughput, Verbosity,
};
use crate::tasks::{Evaluation, Task};
use crate::training::checkpoint::{Environment, Scores, load_weights, read_progress};
use crate::training::evaluate::{EvaluationSettings, evaluate};
use crate::training::examples::write_examples;
use crate::training::run::{RunFolder, find_checkpoint};
use crate::training::signals::Interrupt;
use crate::training::trainer::{self, Finished, Training, train};

/// Runs the verb.
pub fn run<F: Family>(arguments: &TrainArgs) -> Result<()> {
    let interrupt = Interrupt::listen()?;
    let log = Log::new(Verbosity::from_flags(arguments.quiet, arguments.no_progress));
    let mut recipe = match &arguments.resume {
        Some(run) => session::resumed_recipe::<F>(run, arguments, &log)?,
        None => session::new_recipe::<F>(arguments)?,
    };
    let device = session::prepare(&mut recipe.training)?;
    let data = F::open(&mut recipe, &log)?;
    if arguments.dry_run {
        return print(&serde_json::to_string_pretty(&recipe)?);
    }
    // A run that goes on takes its weights from its checkpoint: what it began with may be gone.
    let fresh = match &arguments.resume {
        Some(path) => find_checkpoint(path, Some("last")).is_err(),
        None => true,
    };
    let mut task = session::build::<F>(&recipe, device, fresh, &log)?;
    trainer::check(&task, &data, &recipe.training)?;

    let fingerprint = DataFingerprint::of(&data)?;
    let folder = match &arguments.resume {
        Some(path) => {
            let folder = RunFolder::open(path)?;
            folder.require_data(&fingerprint)?;
            folder
        }
        None => {
            let path = arguments.out.clone().unwrap_or_else(|| RunFolder::default_path(&recipe.name));
            RunFolder::create(&path)?
        }
    };
    recipe.attachments.write(folder.path())?;
    folder.write_recipe(&serde_json::to_value(&recipe)?)?;
    log.attach(&folder.file("log.txt"))?;
    log.info(introduction::<F>(&recipe, &data, &task));
    let Some(data) = F::prepare_data(&recipe, &mut task, data, &log, &interrupt)? else {
        return Err(anyhow!(Interrupted(format!(
            "interrupted before the first step: begin with --resume {}",
            folder.path().display()
        ))));
    };
    let environment = session::environment(&recipe.training)?;
    let finished = train(Training {
        task: &mut task,
        data: &data,
        config: &recipe.training,
        run: &folder,
        log: &log,
        reducer: &mut SingleProcess,
        interrupt: &interrupt,
        environment: environment.clone(),
        fingerprint,
        profile: arguments.profile,
    })?;
    conclude::<F>(
        &Conclusion { recipe: &recipe, data: &data, folder: &folder, log: &log, interrupt: &interrupt },
        task,
        finished,
        environment,
    )
}

fn introduction<F: Family>(
    recipe: &FamilyRecipe<F>,
    data: &Splits<Arc<F::Dataset>>,
    task: &F::Task,
) -> String {
    let count = |part: &Option<Arc<F::Dataset>>| part.as_ref().map_or(0, |part| part.len()) as u64;
    format!(
        "{}: {} parameters; {} training, {} validation and {} test samples; {} in {} on {} threads",
        recipe.name,
        reporting::format::count(task.parameters().count() as u64),
        reporting::format::count(data.train.len() as u64),
        reporting::format::count(count(&data.validation)),
        reporting::format::count(count(&data.test)),
        recipe.training.device,
        serde_json::to_value(recipe.training.precision)
            .ok()
            .and_then(|name| name.as_str().map(str::to_owned))
            .unwrap_or_default(),
        recipe.training.threads.unwrap_or(1),
    )
}

struct Conclusion<'a, F: Family> {
    recipe: &'a FamilyRecipe<F>,
    data: &'a Splits<Arc<F::Dataset>>,
    folder: &'a RunFolder,
    log: &'a Log,
    interrupt: &'a Interrupt,
}

/// Evaluates the best checkpoint once on the test part, and writes `summary.json` and `report.html`.
fn conclude<F: Family>(
    of: &Conclusion<'_, F>,
    mut task: F::Task,
    finished: Finished,
    environment: Environment,
) -> Result<()> {
    let checkpoint = find_checkpoint(of.folder.path(), None)?;
    load_weights(&checkpoint, task.parameters())?;
    let trained = read_progress(&checkpoint)?;
    let epoch_of = |step: u64| match (finished.progress.step, finished.progress.latest.as_ref()) {
        (_, Some(latest)) if latest.step > 0 => latest.epoch * step as f64 / latest.step as f64,
        _ => finished.progress.epoch as f64,
    };

    let settings = EvaluationSettings::of(&of.recipe.training);
    let last_look = match (&of.data.test, &of.data.validation) {
        (Some(test), _) => Some(("test", test)),
        (None, Some(validation)) => Some(("validation of the best checkpoint", validation)),
        (None, None) => None,
    };
    let mut looked_at = None;
    if let Some((title, data)) = last_look {
        let bar = of.log.progress(title, 0, Some(data.len().div_ceil(settings.batch_size) as u64));
        let evaluation = evaluate(&mut task, data, settings, &mut SingleProcess, of.interrupt, &bar)?;
        let Some(evaluation) = evaluation else {
            return Err(anyhow!(Interrupted(format!(
                "interrupted after the last step, before the {title}: finish with --resume {}",
                of.folder.path().display()
            ))));
        };
        looked_at = Some((data, evaluation));
    }

    let test = of.data.test.as_ref().and(looked_at.as_ref()).map(|(_, evaluation)| Scores {
        step: trained.step,
        epoch: epoch_of(trained.step),
        metrics: evaluation.metrics.clone(),
    });
    if let Some(test) = &test {
        let mut metrics = MetricsLog::open(&of.folder.file("metrics.jsonl"))?;
        metrics.truncate_to(finished.progress.metrics_lines)?;
        let record =
            Record { split: Split::Test, step: test.step, epoch: test.epoch, values: test.metrics.clone() };
        metrics.append(&record)?;
        metrics.sync()?;
        let mut events = EventWriter::conclude(of.folder.path(), finished.progress.step)?;
        events.record(&record)?;
        if let Some((data, evaluation)) = &looked_at {
            let count = of.recipe.training.examples;
            write_examples(&mut events, Split::Test, test.step, &task, data.as_ref(), evaluation, count)?;
        }
        events.sync()?;
    }
    let scores = |scores: &Scores| reporting::Scores {
        step: scores.step,
        epoch: scores.epoch,
        values: scores.metrics.clone(),
    };
    let summary = Summary {
        recipe: of.recipe.name.clone(),
        best: finished.progress.best.as_ref().map(scores),
        last: finished.progress.latest.as_ref().map(scores),
        test: test.as_ref().map(scores),
        throughput: Throughput { samples_per_second: finished.samples_per_second, tokens_per_second: None },
        wall_seconds: finished.wall_seconds,
        peak_memory_mb: Some(system::peak_memory_bytes()? as f64 / 1e6),
    };
    let text = serde_json::to_string_pretty(&serde_json::to_value(&summary)?)? + "\n";
    files::write_atomic(&of.folder.file("summary.json"), text.as_bytes())?;

    write_report::<F>(
        of,
        &task,
        looked_at.as_ref().map(|(data, evaluation)| (data.as_ref(), evaluation)),
        summary.clone(),
        &environment,
    )?;
    of.log.result(outcome(&summary, of.folder));
    Ok(())
}

fn outcome(summary: &Summary, folder: &RunFolder) -> String {
    let listed = |scores: &reporting::Scores| {
        let values = scores
            .values
            .iter()
            .map(|(name, value)| format!("{name} {}", reporting::format::metric(name, *value)));
        values.collect::<Vec<_>>().join(", ")
    };
    let mut lines = Vec::new();
    match (&summary.test, &summary.best) {
        (Some(test), _) => lines.push(format!("test, checkpoint of step {}: {}", test.step, listed(test))),
        (None, Some(best)) => {
            lines.push(format!("validation, checkpoint of step {}: {}", best.step, listed(best)))
        }
        (None, None) => {}
    }
    lines.push(format!("run: {}", folder.path().display()));
    lines.push(format!("report: {}", folder.file("report.html").display()));
    lines.join("\n")
}

fn write_report<F: Family>(
    of: &Conclusion<'_, F>,
    task: &F::Task,
    looked_at: Option<(&F::Dataset, &Evaluation)>,
    summary: Summary,
    environment: &Environment,
) -> Result<()> {
    let recipe: Value = serde_json::to_value(of.recipe)?;
    let mut report = Report {
        title: of.recipe.name.clone(),
        subtitle: of.recipe.description.clone(),
        primary_metric: of.recipe.training.metric.clone(),
        machine: vec![
            ("suite".to_owned(), environment.suite.clone()),
            ("libtorch".to_owned(), environment.libtorch.clone()),
            ("processor".to_owned(), environment.processor.clone()),
            ("device".to_owned(), environment.device.clone()),
            ("threads".to_owned(), environment.threads.to_string()),
        ],
        timings: vec![("whole run".to_owned(), summary.wall_seconds)],
        warnings: of.log.warnings(),
        ..Report::default()
    };
    report.runs.push(RunData {
        name: of.recipe.name.clone(),
        records: reporting::read_metrics(&of.folder.file("metrics.jsonl"))?,
        summary: Some(summary),
        recipe,
    });
    if let Some((data, evaluation)) = looked_at {
        F::illustrate(&mut report, of.recipe, task, data, evaluation)?;
    }
    let page = reporting::render(&report).context("making the report")?;
    files::write_atomic(&of.folder.file("report.html"), page.as_bytes())
}
