//! `train`: from arguments to a run folder with its summary and report.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};

use super::args::TrainArgs;
use super::family::{Family, FamilyRecipe};
use super::{print, session};
use crate::data::fingerprint::DataFingerprint;
use crate::data::{Dataset, Splits};
use crate::distributed::agreement::Agreement;
use crate::distributed::health::{Meeting, with_processes};
use crate::distributed::{Broadcast, Reducer, SingleProcess, launcher};
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
use crate::training::precision::Precision;
use crate::training::run::{RunFolder, find_checkpoint};
use crate::training::signals::Interrupt;
use crate::training::trainer::{self, Finished, Training, train};
use crate::training::trial::{self, Trial};

/// Runs the verb, on several processes where flags or environment say so.
pub fn run<F: Family>(arguments: &TrainArgs) -> Result<()> {
    // What is only looked at needs no company.
    if arguments.dry_run {
        return train_among::<F>(arguments, None);
    }
    with_processes(&arguments.group, |meeting| train_among::<F>(arguments, meeting))
}

fn train_among<F: Family>(arguments: &TrainArgs, meeting: Option<&Rc<Meeting>>) -> Result<()> {
    let interrupt = Interrupt::listen()?;
    let is_first = meeting.is_none_or(|meeting| meeting.is_first());
    let log = match is_first {
        true => Log::new(Verbosity::from_flags(arguments.quiet, arguments.no_progress)),
        false => Log::new(Verbosity::Silent),
    };
    let resume = match &arguments.resume {
        Some(run) => Some(run.clone()),
        None => run_to_go_on_with(arguments)?,
    };
    let mut recipe = match &resume {
        Some(run) => session::resumed_recipe::<F>(run, arguments, &log)?,
        None => session::new_recipe::<F>(arguments)?,
    };
    let place = meeting.map(|meeting| meeting.rendezvous());
    let wanted = recipe.training.precision;
    let device = session::prepare_among(&mut recipe.training, place)?;
    // A device that computes in float32 only leaves nothing to try.
    let on_trial = wanted == Precision::Auto && recipe.training.precision != Precision::Fp32;
    let data = F::open(&mut recipe, &log)?;
    if arguments.dry_run {
        if on_trial {
            recipe.training.precision = wanted;
        }
        return print(&serde_json::to_string_pretty(&recipe)?);
    }
    // A run that goes on takes its weights from its checkpoint: what it began with may be gone.
    let fresh = match &resume {
        Some(path) => find_checkpoint(path, Some("last")).is_err(),
        None => true,
    };
    let mut task = session::build::<F>(&recipe, device, fresh, &log)?;
    trainer::check(&task, &data, &recipe.training)?;
    let fingerprint = DataFingerprint::of(&data)?;
    let mut reducer: Box<dyn Reducer> = Box::new(SingleProcess);
    if let Some(meeting) = meeting {
        agree::<F>(meeting, &recipe, &data, &fingerprint, &task, resume.as_deref())?;
        reducer = Box::new(meeting.connect(device, &recipe.training.distributed)?);
    }
    let mut trial = None;
    if on_trial {
        let tried =
            trial::fastest_precision(&mut task, data.train.as_ref(), &recipe.training, reducer.as_mut())?;
        recipe.training.precision = tried.precision;
        trial = Some(tried);
    }

    // The first process makes or opens the folder and tells the others where it is.
    let folder = is_first
        .then(|| match &resume {
            Some(path) => {
                let folder = RunFolder::open(path)?;
                folder.require_data(&fingerprint)?;
                Ok(folder)
            }
            None => {
                let path = arguments.out.clone().unwrap_or_else(|| RunFolder::default_path(&recipe.name));
                RunFolder::create(&path)
            }
        })
        .transpose()?;
    let path = folder.as_ref().map_or("", |folder| folder.path().to_str().unwrap_or_default());
    let path = reducer.gather_texts(path.to_owned())?.swap_remove(0);
    let folder = folder.unwrap_or_else(|| RunFolder::follow(Path::new(&path)));
    if is_first {
        launcher::note_run(folder.path())?;
        recipe.attachments.write(folder.path())?;
        folder.write_recipe(&serde_json::to_value(&recipe)?)?;
        log.attach(&folder.file("log.txt"))?;
    } else if folder.path().is_dir() {
        // On another machine the folder may not be there: then nobody reads what this process says.
        log.attach(&folder.file(&format!("log-rank-{}.txt", reducer.rank())))?;
    }
    log.info(introduction::<F>(&recipe, &data, &task, reducer.world_size()));
    if let Some(Trial { precision, seconds: [single, brain] }) = trial {
        log.info(format!(
            "precision auto: {precision}, as forward and backward pass of the first batch took {:.3} ms in fp32 and {:.3} ms in bf16",
            1e3 * single,
            1e3 * brain,
        ));
    }
    let Some(data) = F::prepare_data(&recipe, &mut task, data, &log, &interrupt)? else {
        return Err(anyhow!(Interrupted(format!(
            "interrupted before the first step: begin with --resume {}",
            folder.path().display()
        ))));
    };
    let environment = session::environment(&recipe.training, reducer.world_size())?;
    let finished = train(Training {
        task: &mut task,
        data: &data,
        config: &recipe.training,
        run: &folder,
        log: &log,
        reducer: reducer.as_mut(),
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
        reducer.as_mut(),
    )?;
    reducer.close()
}

/// The run that goes on without being asked for by name: because a process failed, or because it may (`--auto-resume`).
fn run_to_go_on_with(arguments: &TrainArgs) -> Result<Option<PathBuf>> {
    let began = |run: &PathBuf| run.join("recipe.json").is_file();
    let failed = launcher::run_to_continue(arguments.out.as_deref())?;
    let wanted = arguments.out.clone().filter(|_| arguments.auto_resume);
    Ok(failed.or(wanted).filter(began))
}

/// Makes sure that all processes are about to train the same model in the same way on the same data.
fn agree<F: Family>(
    meeting: &Meeting,
    recipe: &FamilyRecipe<F>,
    data: &Splits<Arc<F::Dataset>>,
    fingerprint: &DataFingerprint,
    task: &F::Task,
    resume: Option<&Path>,
) -> Result<()> {
    let mut agreement = Agreement::default();
    agreement.add("the program", json!(env!("CARGO_PKG_VERSION")));
    agreement.add("libtorch", json!(system::facts()?.libtorch_version));
    let mut value = serde_json::to_value(recipe)?;
    // Where and how each process computes is its own affair.
    if let Some(training) = value["training"].as_object_mut() {
        for key in ["device", "threads", "workers"] {
            training.remove(key);
        }
    }
    agreement.add("the recipe", value);
    agreement.add("the data", json!(fingerprint));
    agreement.add("the number of test samples", json!(data.test.as_ref().map(|test| test.len())));
    let shapes = task.parameters().entries().into_iter().map(|entry| {
        let learns = if entry.tensor.requires_grad() { ", trained" } else { "" };
        (entry.name, json!(format!("{:?} {:?}{learns}", entry.tensor.kind(), entry.tensor.size())))
    });
    agreement.add("the model", Value::Object(shapes.collect()));
    let step = match resume.map(|run| find_checkpoint(run, Some("last"))) {
        Some(Ok(checkpoint)) => Some(read_progress(&checkpoint)?.step),
        _ => None,
    };
    agreement
        .add("the step of the checkpoint (--resume needs a folder that all machines share)", json!(step));
    agreement.check(meeting)
}

fn introduction<F: Family>(
    recipe: &FamilyRecipe<F>,
    data: &Splits<Arc<F::Dataset>>,
    task: &F::Task,
    processes: usize,
) -> String {
    let count = |part: &Option<Arc<F::Dataset>>| part.as_ref().map_or(0, |part| part.len()) as u64;
    let company = match processes {
        1 => String::new(),
        processes => format!(", {processes} processes"),
    };
    format!(
        "{}: {} parameters; {} training, {} validation and {} test samples; {} in {} on {} threads{company}",
        recipe.name,
        reporting::format::count(task.parameters().count() as u64),
        reporting::format::count(data.train.len() as u64),
        reporting::format::count(count(&data.validation)),
        reporting::format::count(count(&data.test)),
        recipe.training.device,
        recipe.training.precision,
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
    reducer: &mut dyn Reducer,
) -> Result<()> {
    let mut step = 0;
    if reducer.rank() == 0 {
        let checkpoint = find_checkpoint(of.folder.path(), None)?;
        load_weights(&checkpoint, task.parameters())?;
        step = read_progress(&checkpoint)?.step;
    }
    // The others may be on machines that do not see the folder.
    reducer.broadcast(task.parameters(), Broadcast::Everything)?;
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
        let evaluation = evaluate(&mut task, data, settings, reducer, of.interrupt, &bar)?;
        let Some(evaluation) = evaluation else {
            return Err(anyhow!(Interrupted(format!(
                "interrupted after the last step, before the {title}: finish with --resume {}",
                of.folder.path().display()
            ))));
        };
        looked_at = Some((data, evaluation));
    }
    if reducer.rank() > 0 {
        return Ok(());
    }

    let test = of.data.test.as_ref().and(looked_at.as_ref()).map(|(_, evaluation)| Scores {
        step,
        epoch: epoch_of(step),
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
