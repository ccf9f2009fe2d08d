//! `train`: a recipe, then a solver or the trainer, then a run folder.

use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use tch::Device;

use super::args::{RegressionTrainArgs, merged, trainer_flags};
use super::family::{Regression, goal_of};
use super::report::{illustrate_evaluation, illustrate_inference};
use super::trained::{Fitted, Trained};
use crate::cli::family::FamilyRecipe;
use crate::cli::{TrainArgs, print, session};
use crate::data::table::TableSource;
use crate::distributed::rendezvous::is_first;
use crate::native::system;
use crate::regression::config::{Goal, ModelName};
use crate::regression::design::{Design, RowSource, StreamedRows};
use crate::regression::encoding::Encoding;
use crate::regression::fit::{Fit, Given, LinearModel, SolverReport, fit_design, is_scaled};
use crate::regression::inference::{Inference, infer};
use crate::regression::prepare::{Prepared, prepare, refuse_missing_classes, refuse_useless_columns};
use crate::regression::resampling::{CrossValidation, Sample, folds};
use crate::regression::scores::evaluate;
use crate::reporting::{
    self, Cell, Log, MetricsLog, Record, Report, RunData, Split, Summary, Table, Throughput, Verbosity,
};
use crate::tasks::Evaluation;
use crate::training::run::{RunFolder, read_recipe};
use crate::{bail_input, files, recipe};

/// The statistics of a fit in its run.
pub const STATISTICS: &str = "statistics.json";
/// The cross-validation of a fit in its run.
pub const CROSS_VALIDATION: &str = "cross_validation.json";

/// Runs the verb.
pub fn run(arguments: RegressionTrainArgs) -> Result<()> {
    let RegressionTrainArgs { train, table, model, cv, no_statistics } = arguments;
    let settings = [table.settings()?, model.settings()].concat();
    let given = trainer_flags(&train);
    let mut train = merged(train, settings);
    let trained = match &train.resume {
        Some(run) => {
            let known: FamilyRecipe<Regression> =
                recipe::typed(read_recipe(run)?, &format!("the recipe of {}", run.display()))?;
            if !known.model.is_trained() {
                bail_input!(
                    "--resume {}: a fit by a solver is done at once, so there is nothing to continue; fit again",
                    run.display()
                );
            }
            true
        }
        None => {
            // A rate without an optimizer, as for a solver's recipe, is no recipe: it is told below what is wrong with that.
            let (rate, decay) = (train.lr.take(), train.weight_decay.take());
            let trained = session::new_recipe::<Regression>(&train)?.model.is_trained();
            (train.lr, train.weight_decay) = (rate, decay);
            trained
        }
    };
    if trained {
        if cv.is_some() {
            bail_input!("--cv goes with solvers; the trainer chooses by validation rows (--val-fraction)");
        }
        let run = match (&train.resume, &train.out) {
            (Some(run), _) | (None, Some(run)) => run.clone(),
            (None, None) => {
                let run = RunFolder::default_path(&session::new_recipe::<Regression>(&train)?.name);
                train.out = Some(run.clone());
                run
            }
        };
        crate::cli::train::run::<Regression>(&train)?;
        return if train.dry_run || !is_first(&train.group)? { Ok(()) } else { write_linear(&run) };
    }
    if let [first, ..] = given.as_slice() {
        bail_input!(
            "{first} is for the trainer and a solver has no use for it: add --solver gradient, or leave it out"
        );
    }
    solve(&train, cv, !no_statistics)
}

/// A trained network without hidden layers is a linear model: its coefficients in the units of the table go beside its checkpoints.
fn write_linear(run: &std::path::Path) -> Result<()> {
    let trained = Trained::of(run)?;
    let Fitted::Network(task) = &trained.model else { return Ok(()) };
    if !trained.recipe.model.hidden.is_empty() || trained.recipe.model.script.is_some() {
        return Ok(());
    }
    let parameters = crate::tasks::Task::parameters(task.as_ref());
    let weight = parameters.get("0.weight").ok_or_else(|| anyhow!("the network has no layer `0`"))?;
    let weight =
        Vec::<Vec<f64>>::try_from(weight.detach().f_to_device(Device::Cpu)?.f_to_kind(tch::Kind::Double)?)?;
    let bias = match parameters.get("0.bias") {
        Some(bias) => crate::regression::algebra::numbers(&bias.detach())?,
        None => vec![0.0; weight.len()],
    };
    let encoding = task.encoding();
    let (centre, spread) = task.target_units();
    let (mut intercepts, mut coefficients) = (Vec::new(), Vec::new());
    for (row, bias) in weight.iter().zip(bias) {
        let (mut intercept, mut unscaled) = (bias * spread + centre, Vec::new());
        for (column, weight) in row.iter().enumerate() {
            let (mean, scale) = match task.standardized() {
                true => (encoding.mean[column], encoding.scale[column]),
                false => (0.0, 1.0),
            };
            unscaled.push(weight * spread / scale);
            intercept -= weight * spread / scale * mean;
        }
        intercepts.push(intercept);
        coefficients.push(unscaled);
    }
    let model = LinearModel {
        model: trained.recipe.model.name,
        encoding: encoding.clone(),
        columns: encoding.columns(),
        intercept: intercepts,
        coefficients,
        scale: None,
        quantile: None,
        solver: SolverReport {
            name: trained.recipe.model.solver,
            reason: "it was asked for".to_owned(),
            iterations: 0,
            gap: None,
            measure: String::new(),
            converged: true,
            objective: None,
            rank: None,
            condition: None,
        },
    };
    model.write(run)?;
    let log = Log::new(Verbosity::from_flags(false, true));
    for (output, (intercept, row)) in model.intercept.iter().zip(&model.coefficients).enumerate() {
        let mut terms = vec![format!("const {}", reporting::format::number(*intercept))];
        const LISTED: usize = 10;
        let named = model.columns.iter().zip(row).take(LISTED);
        terms.extend(named.map(|(name, value)| format!("{name} {}", reporting::format::number(*value))));
        if row.len() > LISTED {
            terms.push("…".to_owned());
        }
        let of =
            if model.intercept.len() > 1 { format!(" of {}", encoding.class(output)) } else { String::new() };
        log.result(format!("coefficients{of}: {}", terms.join(", ")));
    }
    Ok(())
}

/// The rows of a fit, in memory or streamed.
struct Rows {
    encoding: Encoding,
    train: Box<dyn RowSource>,
    test: Option<Box<dyn RowSource>>,
    warnings: Vec<String>,
}

fn open(recipe: &FamilyRecipe<Regression>, goal: Goal, threads: usize) -> Result<Rows> {
    let seed = recipe.training.seed;
    if !recipe.data.stream {
        let Prepared { encoding, train, test, warnings } = prepare(&recipe.data, goal, seed, threads)?;
        let test = (!test.is_empty()).then(|| Box::new(test) as Box<dyn RowSource>);
        return Ok(Rows { encoding, train: Box::new(train), test, warnings });
    }
    let streamed = StreamedRows::open(&recipe.data, goal, seed, threads)?;
    refuse_useless_columns(&streamed.encoding, &streamed.train)?;
    refuse_missing_classes(&streamed.encoding, &streamed.train)?;
    let test: Option<Box<dyn RowSource>> = match &recipe.data.test_path {
        Some(path) => {
            let source = TableSource::Path(path.clone());
            Some(Box::new(StreamedRows::with(&streamed.encoding, source, &recipe.data, threads)))
        }
        None => streamed.test.map(|test| Box::new(test) as Box<dyn RowSource>),
    };
    Ok(Rows {
        encoding: streamed.encoding,
        train: Box::new(streamed.train),
        test,
        warnings: streamed.warnings,
    })
}

fn solve(arguments: &TrainArgs, cv: Option<usize>, with_statistics: bool) -> Result<()> {
    let began = Instant::now();
    let log = Log::new(Verbosity::from_flags(arguments.quiet, arguments.no_progress));
    let mut recipe = session::new_recipe::<Regression>(arguments)?;
    let goal = goal_of(&recipe)?;
    if recipe.data.stream {
        if recipe.model.name == ModelName::Quantile {
            bail_input!("--stream does not fit quantile, which needs all rows at a time");
        }
        if cv.is_some() {
            bail_input!("--cv needs the table in memory: leave out --stream");
        }
    }
    let device = match session::prepare(&mut recipe.training)? {
        // Apple's GPUs have no float64.
        Device::Mps => {
            recipe.training.device = "cpu".to_owned();
            Device::Cpu
        }
        other => other,
    };
    let threads = recipe.training.threads.unwrap_or(1);
    if arguments.dry_run {
        return print(&serde_json::to_string_pretty(&recipe)?);
    }
    if let Some(out) = arguments.out.as_ref().filter(|out| {
        out.exists() && std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some())
    }) {
        bail_input!("the folder {} exists already: choose another --out", out.display());
    }
    let rows = open(&recipe, goal, threads)?;
    let read_seconds = began.elapsed().as_secs_f64();
    let fitting = Instant::now();
    let scaled = is_scaled(&recipe.model, recipe.data.standardize);
    let design = Design::new(rows.train.as_ref(), &rows.encoding, recipe.model.intercept, scaled, device);
    let fit = fit_design(&recipe.model, &design, Given::default())?;
    let fit_seconds = fitting.elapsed().as_secs_f64();
    if arguments.strict && !fit.model.solver.converged {
        return Err(anyhow!("{}", fit.warnings.join("; ")));
    }
    let validated = match cv {
        Some(k) => Some(cross_validate(&recipe, &rows, k, device)?),
        None => None,
    };

    let folder =
        RunFolder::create(&arguments.out.clone().unwrap_or_else(|| RunFolder::default_path(&recipe.name)))?;
    folder.write_recipe(&serde_json::to_value(&recipe)?)?;
    log.attach(&folder.file("log.txt"))?;
    log.info(format!(
        "{}: {} training rows of {}, {} columns from {} features; {} in float64 on {threads} threads",
        recipe.name,
        reporting::format::count(rows.train.rows() as u64),
        recipe.data.source()?.name(),
        rows.encoding.columns().len(),
        rows.encoding.features.len(),
        recipe.training.device,
    ));
    log.info(describe_solver(&fit.model.solver));
    for warning in rows.warnings.iter().chain(&fit.warnings) {
        log.warning(warning);
    }

    let (inference, residuals) = match with_statistics {
        true => {
            let (inference, residuals) = infer(&recipe.model, &design, &fit)?;
            write_json(&folder, STATISTICS, &serde_json::to_value(&inference)?)?;
            (Some(inference), residuals)
        }
        false => (None, None),
    };
    fit.model.write(folder.path())?;
    let looked_at = rows.test.as_deref().map(|test| evaluate(&fit.model, test)).transpose()?;
    if let Some(validated) = &validated {
        write_json(&folder, CROSS_VALIDATION, &serde_json::to_value(validated)?)?;
    }
    let done = Done {
        recipe: &recipe,
        folder: &folder,
        log: &log,
        fit: &fit,
        inference: inference.as_ref(),
        looked_at: looked_at.as_ref(),
        validated: validated.as_ref(),
        seconds: [("reading", read_seconds), ("fitting", fit_seconds)],
    };
    let summary = done.summarise(began.elapsed().as_secs_f64(), rows.train.rows())?;
    done.write_report(summary, &rows.encoding, residuals.as_ref())?;
    // A solver saves no checkpoints.
    let _ = std::fs::remove_dir(folder.file("checkpoints"));
    log.result(done.outcome());
    Ok(())
}

fn describe_solver(solver: &SolverReport) -> String {
    let mut text = format!("solver {}: {}", solver.name.name(), solver.reason);
    if let Some(gap) = solver.gap {
        text.push_str(&format!("; {} iterations, {} {gap:.2e}", solver.iterations, solver.measure));
    }
    text
}

fn cross_validate(
    recipe: &FamilyRecipe<Regression>,
    rows: &Rows,
    k: usize,
    device: Device,
) -> Result<CrossValidation> {
    let train = rows.train.blocks().ok_or_else(|| anyhow!("cross-validation without rows in memory"))?;
    let fold = folds(train, k, rows.encoding.classes.is_some(), recipe.training.seed)?;
    let sample = Sample { train, encoding: &rows.encoding, standardize: recipe.data.standardize, device };
    sample.cross_validate(&recipe.model, &fold)
}

fn write_json(folder: &RunFolder, name: &str, value: &serde_json::Value) -> Result<()> {
    files::write_atomic(&folder.file(name), (serde_json::to_string_pretty(value)? + "\n").as_bytes())
}

struct Done<'a> {
    recipe: &'a FamilyRecipe<Regression>,
    folder: &'a RunFolder,
    log: &'a Log,
    fit: &'a Fit,
    inference: Option<&'a Inference>,
    looked_at: Option<&'a Evaluation>,
    validated: Option<&'a CrossValidation>,
    seconds: [(&'static str, f64); 2],
}

impl Done<'_> {
    /// Writes `metrics.jsonl` and `summary.json`.
    fn summarise(&self, wall_seconds: f64, rows: usize) -> Result<Summary> {
        let mut metrics = MetricsLog::open(&self.folder.file("metrics.jsonl"))?;
        let step = self.fit.model.solver.iterations;
        if let Some(evaluation) = self.looked_at {
            metrics.append(&Record {
                split: Split::Test,
                step,
                epoch: 0.0,
                values: evaluation.metrics.clone(),
            })?;
        }
        metrics.sync()?;
        let scores =
            |values: &reporting::Values| reporting::Scores { step, epoch: 0.0, values: values.clone() };
        let summary = Summary {
            recipe: self.recipe.name.clone(),
            best: self.validated.map(|validated| {
                let means = validated.scores.keys().map(|name| (name.clone(), validated.mean(name)));
                scores(&means.collect())
            }),
            last: None,
            test: self.looked_at.map(|evaluation| scores(&evaluation.metrics)),
            throughput: Throughput {
                samples_per_second: Some(rows as f64 / self.seconds[1].1.max(1e-9)),
                tokens_per_second: None,
            },
            wall_seconds,
            peak_memory_mb: Some(system::peak_memory_bytes()? as f64 / 1e6),
        };
        write_json(self.folder, "summary.json", &serde_json::to_value(&summary)?)?;
        Ok(summary)
    }

    fn write_report(
        &self,
        summary: Summary,
        encoding: &Encoding,
        residuals: Option<&crate::regression::inference::Residuals>,
    ) -> Result<()> {
        let environment = session::environment(&self.recipe.training, 1)?;
        let mut timings: Vec<(String, f64)> =
            self.seconds.iter().map(|(name, seconds)| ((*name).to_owned(), *seconds)).collect();
        timings.push(("whole run".to_owned(), summary.wall_seconds));
        let mut report = Report {
            title: self.recipe.name.clone(),
            subtitle: self.recipe.description.clone(),
            primary_metric: match encoding.classes {
                Some(_) => "accuracy".to_owned(),
                None => "r2".to_owned(),
            },
            machine: vec![
                ("suite".to_owned(), environment.suite),
                ("libtorch".to_owned(), environment.libtorch),
                ("processor".to_owned(), environment.processor),
                ("device".to_owned(), environment.device),
                ("threads".to_owned(), environment.threads.to_string()),
            ],
            timings,
            warnings: self.log.warnings(),
            ..Report::default()
        };
        report.runs.push(RunData {
            name: self.recipe.name.clone(),
            records: reporting::read_metrics(&self.folder.file("metrics.jsonl"))?,
            summary: Some(summary),
            recipe: serde_json::to_value(self.recipe)?,
        });
        if let Some(evaluation) = self.looked_at {
            illustrate_evaluation(&mut report, encoding, evaluation)?;
        }
        if let Some(inference) = self.inference {
            illustrate_inference(&mut report, inference, residuals, encoding);
        }
        if let Some(validated) = self.validated {
            report.tables.push(cross_validation_table(validated));
        }
        let page = reporting::render(&report).context("making the report")?;
        files::write_atomic(&self.folder.file("report.html"), page.as_bytes())
    }

    fn outcome(&self) -> String {
        let mut lines = Vec::new();
        let figure = |key: &str| self.inference?.figure(key).map(reporting::format::number);
        if let Some(r2) = figure("r2")
            .map(|value| format!("R² {value}"))
            .or_else(|| figure("pseudo_r2").map(|value| format!("pseudo R² {value}")))
        {
            lines.push(format!("training rows: {r2}"));
        }
        if let Some(evaluation) = self.looked_at {
            let listed: Vec<String> = evaluation
                .metrics
                .iter()
                .filter(|(_, value)| value.is_finite())
                .map(|(name, value)| format!("{name} {}", reporting::format::metric(name, *value)))
                .collect();
            lines.push(format!("test: {}", listed.join(", ")));
        }
        if let Some(validated) = self.validated {
            let metric = if validated.scores.contains_key("r2") { "r2" } else { "accuracy" };
            lines.push(format!(
                "{}-fold cross-validation: {metric} {} ± {}",
                validated.folds,
                reporting::format::metric(metric, validated.mean(metric)),
                reporting::format::metric(metric, validated.standard_error(metric))
            ));
        }
        lines.push(format!("run: {}", self.folder.path().display()));
        lines.push(format!("report: {}", self.folder.file("report.html").display()));
        lines.join("\n")
    }
}

/// Mean, standard error and every fold of each metric.
fn cross_validation_table(validated: &CrossValidation) -> Table {
    let mut columns = vec!["Metric".to_owned(), "Mean".to_owned(), "Std. error".to_owned()];
    columns.extend((1..=validated.folds).map(|fold| format!("Fold {fold}")));
    let row = |(name, scores): (&String, &Vec<f64>)| {
        let summary = [validated.mean(name), validated.standard_error(name)];
        std::iter::once(Cell::from(reporting::format::metric_label(name)))
            .chain(summary.into_iter().chain(scores.iter().copied()).map(Cell::Number))
            .collect()
    };
    Table {
        title: "Cross-validation".to_owned(),
        note: "On the training rows; the test rows take no part.".to_owned(),
        columns,
        rows: validated.scores.iter().map(row).collect(),
    }
}
