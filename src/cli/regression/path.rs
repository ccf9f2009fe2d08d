//! `path`: the same model under a range of penalties, and the one that cross-validation chooses.

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use serde::Serialize;
use serde_json::json;

use super::args::{RegressionTrainArgs, merged, trainer_flags};
use super::family::{Regression, goal_of};
use crate::cli::args::EvalFormat;
use crate::cli::table::align;
use crate::cli::{print, session};
use crate::regression::config::{ModelName, RegressionModelConfig};
use crate::regression::design::Design;
use crate::regression::fit::{Fit, fit_path, is_scaled, largest_penalty};
use crate::regression::prepare::{measure, prepare};
use crate::regression::resampling::{folds, part};
use crate::regression::scores::evaluate;
use crate::reporting::format::number;
use crate::reporting::{self, Cell, Chart, Log, Mark, Report, RunData, Scale, Series, Table, Verbosity};
use crate::training::run::RunFolder;
use crate::{bail_input, files};

/// Arguments of `path`.
#[derive(Debug, Args)]
pub struct PathArgs {
    #[command(flatten)]
    train: RegressionTrainArgs,
    /// How many penalties
    #[arg(long, value_name = "N", default_value_t = 60)]
    points: usize,
    /// The smallest penalty as a share of the largest
    #[arg(long, value_name = "SHARE", default_value_t = 1e-3)]
    ratio: f64,
    /// Which fit the run keeps: the one with the best score, or the strongest penalty within one standard error of it
    #[arg(long, value_enum, default_value_t = Choice::OneStandardError)]
    choose: Choice,
    /// How to print
    #[arg(long, value_enum, default_value_t = EvalFormat::Table)]
    format: EvalFormat,
}

/// Which point of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Choice {
    /// The best mean score.
    Best,
    /// The strongest penalty whose mean score is within one standard error of the best.
    #[value(name = "1se")]
    OneStandardError,
}

/// One penalty.
#[derive(Debug, Serialize)]
struct PathPoint {
    /// `alpha`, or `c` for classifiers.
    parameter: f64,
    /// Strength of the penalty: alpha, or 1 / c.
    penalty: f64,
    /// Coefficients that are not zero.
    nonzero: usize,
    intercept: Vec<f64>,
    coefficients: Vec<Vec<f64>>,
    /// Mean score over the folds.
    score: f64,
    /// Its standard error.
    standard_error: f64,
}

/// Runs the verb.
pub fn run(arguments: PathArgs) -> Result<()> {
    let PathArgs {
        train: RegressionTrainArgs { train, table, model, cv, .. },
        points,
        ratio,
        choose,
        format,
    } = arguments;
    if points < 2 || !(ratio > 0.0 && ratio < 1.0) {
        bail_input!("--points must be at least 2 and --ratio between 0 and 1");
    }
    if let [first, ..] = trainer_flags(&train).as_slice() {
        bail_input!("{first} is for the trainer: a path is of fits by solvers");
    }
    let settings = [table.settings()?, model.settings()].concat();
    let mut train = merged(train, settings);
    train.recipe.get_or_insert_with(|| "lasso".to_owned());
    let log = Log::new(Verbosity::from_flags(train.quiet, true));
    let mut recipe = session::new_recipe::<Regression>(&train)?;
    use ModelName::{ElasticNet, Lasso, Logistic, Multinomial, Poisson, Ridge};
    if !matches!(recipe.model.name, Ridge | Lasso | ElasticNet | Logistic | Multinomial | Poisson)
        || recipe.model.is_trained()
    {
        bail_input!(
            "a path needs a penalty: choose --model ridge, lasso, elastic-net, logistic, multinomial or poisson"
        );
    }
    if recipe.data.stream {
        bail_input!("--stream: a path needs the table in memory");
    }
    let is_classifier = matches!(recipe.model.name, Logistic | Multinomial);
    match is_classifier {
        true => recipe.model.c = Some(1.0),
        false => recipe.model.alpha = Some(1.0),
    }
    if !recipe.model.is_penalised() {
        bail_input!("model.penalty is none: a path needs one");
    }
    let goal = goal_of(&recipe)?;
    let device = session::prepare(&mut recipe.training)?;
    let threads = recipe.training.threads.unwrap_or(1);
    if train.dry_run {
        return print(&serde_json::to_string_pretty(&recipe)?);
    }
    let prepared = prepare(&recipe.data, goal, recipe.training.seed, threads)?;
    for warning in &prepared.warnings {
        log.warning(warning);
    }
    let scaled = is_scaled(&recipe.model, recipe.data.standardize);
    let whole = Design::new(&prepared.train, &prepared.encoding, recipe.model.intercept, scaled, device);
    let largest = largest_penalty(&recipe.model, &whole)?;
    let with = |penalty: f64| -> RegressionModelConfig {
        match is_classifier {
            true => RegressionModelConfig { c: Some(1.0 / penalty), ..recipe.model.clone() },
            false => RegressionModelConfig { alpha: Some(penalty), ..recipe.model.clone() },
        }
    };
    let penalties: Vec<f64> =
        (0..points).map(|place| largest * ratio.powf(place as f64 / (points - 1) as f64)).collect();
    let configs: Vec<RegressionModelConfig> = penalties.iter().map(|&penalty| with(penalty)).collect();
    let fits = fit_path(&configs, &whole)?;

    // Scores: mean squared error or log-loss of held-out rows, smaller is better.
    let k = cv.unwrap_or(5);
    let fold = folds(&prepared.train, k, is_classifier, recipe.training.seed)?;
    let mut scores = vec![Vec::with_capacity(k); points];
    for held_out in 0..k {
        let (outside, inside) = part(&prepared.train, &fold, held_out)?;
        let mut encoding = prepared.encoding.clone();
        measure(&mut encoding, &outside, goal)?;
        let design = Design::new(&outside, &encoding, recipe.model.intercept, scaled, device);
        for (scores, fit) in scores.iter_mut().zip(fit_path(&configs, &design)?) {
            scores.push(evaluate(&fit.model, &inside)?.metrics.get("loss").copied().unwrap_or(f64::NAN));
        }
        log.info(format!("fold {} of {k}", held_out + 1));
    }
    let found: Vec<PathPoint> = fits
        .iter()
        .zip(&penalties)
        .zip(&scores)
        .map(|((fit, &penalty), scores)| {
            let mean = scores.iter().sum::<f64>() / k as f64;
            let variance = scores.iter().map(|score| (score - mean).powi(2)).sum::<f64>() / (k - 1) as f64;
            PathPoint {
                parameter: if is_classifier { 1.0 / penalty } else { penalty },
                penalty,
                nonzero: nonzero(fit),
                intercept: fit.model.intercept.clone(),
                coefficients: fit.model.coefficients.clone(),
                score: mean,
                standard_error: (variance / k as f64).sqrt(),
            }
        })
        .collect();
    let best = (0..points).min_by(|&a, &b| found[a].score.total_cmp(&found[b].score)).unwrap_or(0);
    let limit = found[best].score + found[best].standard_error;
    let simplest = (0..=best).find(|&place| found[place].score <= limit).unwrap_or(best);
    let chosen = match choose {
        Choice::Best => best,
        Choice::OneStandardError => simplest,
    };

    let mut kept = recipe.clone();
    kept.model = configs[chosen].clone();
    kept.name = format!("{}-path", recipe.name);
    let folder =
        RunFolder::create(&train.out.clone().unwrap_or_else(|| RunFolder::default_path(&kept.name)))?;
    folder.write_recipe(&serde_json::to_value(&kept)?)?;
    fits[chosen].model.write(folder.path())?;
    let (inference, residuals) = crate::regression::inference::infer(&kept.model, &whole, &fits[chosen])?;
    let text = serde_json::to_string_pretty(&inference)? + "\n";
    files::write_atomic(&folder.file(super::train::STATISTICS), text.as_bytes())?;
    let parameter = if is_classifier { "c" } else { "alpha" };
    let summary = json!({
        "parameter": parameter,
        "metric": if is_classifier { "log_loss" } else { "mse" },
        "folds": k,
        "best": found[best].parameter,
        "one_standard_error": found[simplest].parameter,
        "chosen": found[chosen].parameter,
        "columns": fits[chosen].model.columns,
        "path": found,
    });
    files::write_atomic(
        &folder.file("path.json"),
        (serde_json::to_string_pretty(&summary)? + "\n").as_bytes(),
    )?;

    let mut report = Report {
        title: kept.name.clone(),
        subtitle: format!("{} under {points} penalties, {k}-fold cross-validation", recipe.model.name.name()),
        warnings: log.warnings(),
        ..Report::default()
    };
    report.runs.push(RunData {
        name: kept.name.clone(),
        recipe: serde_json::to_value(&kept)?,
        ..RunData::default()
    });
    report.charts = charts(&found, &fits[chosen], best, simplest, is_classifier);
    if !prepared.test.is_empty() {
        super::report::illustrate_evaluation(
            &mut report,
            &prepared.encoding,
            &evaluate(&fits[chosen].model, &prepared.test)?,
        )?;
    }
    super::report::illustrate_inference(&mut report, &inference, residuals.as_ref(), &prepared.encoding);
    report.tables.insert(0, path_table(&found, parameter, best, simplest));
    let page = reporting::render(&report).context("making the report")?;
    files::write_atomic(&folder.file("report.html"), page.as_bytes())?;
    let _ = std::fs::remove_dir(folder.file("checkpoints"));

    match format {
        EvalFormat::Json => print(&serde_json::to_string_pretty(&summary)?)?,
        EvalFormat::Table => {
            let mut table = vec![[parameter, "nonzero", "score", "std. error", ""].map(str::to_owned)];
            table.extend(found.iter().enumerate().map(|(place, point)| {
                let mark = match (place == best, place == simplest) {
                    (true, true) => "best, one standard error",
                    (true, false) => "best",
                    (false, true) => "one standard error",
                    _ => "",
                };
                [
                    number(point.parameter),
                    point.nonzero.to_string(),
                    number(point.score),
                    number(point.standard_error),
                    mark.to_owned(),
                ]
            }));
            print(&align(&table, 0))?;
        }
    }
    log.result(format!(
        "kept {parameter} {}\nrun: {}\nreport: {}",
        number(found[chosen].parameter),
        folder.path().display(),
        folder.file("report.html").display()
    ));
    Ok(())
}

fn nonzero(fit: &Fit) -> usize {
    fit.model.coefficients.iter().flatten().filter(|value| **value != 0.0).count()
}

fn path_table(found: &[PathPoint], parameter: &str, best: usize, simplest: usize) -> Table {
    Table {
        title: "Path".to_owned(),
        note: format!(
            "Best: {parameter} {}. Within one standard error: {parameter} {}.",
            number(found[best].parameter),
            number(found[simplest].parameter)
        ),
        columns: [parameter, "Coefficients not zero", "Mean score", "Std. error"].map(str::to_owned).to_vec(),
        rows: found
            .iter()
            .map(|point| {
                vec![
                    Cell::Text(number(point.parameter)),
                    Cell::Count(point.nonzero as u64),
                    Cell::Number(point.score),
                    Cell::Number(point.standard_error),
                ]
            })
            .collect(),
    }
}

/// Coefficients and scores over the logarithm of the penalty.
fn charts(found: &[PathPoint], fit: &Fit, best: usize, simplest: usize, is_classifier: bool) -> Vec<Chart> {
    const LINES: usize = 8;
    let x = |point: &PathPoint| point.penalty.log10();
    let scale = &fit.model.encoding.scale;
    let outputs = fit.model.coefficients.len();
    let mut lines: Vec<(f64, Series)> = Vec::new();
    for output in 0..outputs {
        for (column, name) in fit.model.columns.iter().enumerate() {
            let points: Vec<(f64, f64)> = found
                .iter()
                .map(|point| (x(point), point.coefficients[output][column] * scale[column]))
                .collect();
            let size = points.iter().fold(0.0, |largest: f64, point| largest.max(point.1.abs()));
            let name = match outputs {
                1 => name.clone(),
                _ => format!("{name}: {}", fit.model.encoding.class(output)),
            };
            lines.push((size, Series { name, points, mark: Mark::Line }));
        }
    }
    let all = lines.len();
    lines.sort_by(|a, b| b.0.total_cmp(&a.0));
    lines.truncate(LINES);
    let x_label = if is_classifier { "log10 of 1/c" } else { "log10 of alpha" }.to_owned();
    let mut note = match is_classifier {
        true => "Change of the log-odds per standard deviation of the column.".to_owned(),
        false => "Change of the prediction per standard deviation of the column.".to_owned(),
    };
    if all > LINES {
        note.push_str(&format!(" The {LINES} largest of {all} are shown."));
    }
    let band = |factor: f64| {
        found.iter().map(|point| (x(point), point.score + factor * point.standard_error)).collect()
    };
    let (low, high) = found
        .iter()
        .flat_map(|point| [point.score - point.standard_error, point.score + point.standard_error])
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
    let upright = |place: usize| vec![(x(&found[place]), low), (x(&found[place]), high)];
    vec![
        Chart {
            title: "Coefficients over the penalty".to_owned(),
            x_label: x_label.clone(),
            y_label: "coefficient".to_owned(),
            series: lines.into_iter().map(|(_, series)| series).collect(),
            y_scale: Scale::Linear,
            note,
            ..Chart::default()
        },
        Chart {
            title: "Cross-validation over the penalty".to_owned(),
            x_label,
            y_label: if is_classifier { "log-loss" } else { "mean squared error" }.to_owned(),
            series: vec![
                Series { name: "mean".to_owned(), points: band(0.0), mark: Mark::LineWithDots },
                Series { name: "one standard error up".to_owned(), points: band(1.0), mark: Mark::Line },
                Series { name: "one standard error down".to_owned(), points: band(-1.0), mark: Mark::Line },
                Series { name: "best".to_owned(), points: upright(best), mark: Mark::Reference },
                Series {
                    name: "one standard error rule".to_owned(),
                    points: upright(simplest),
                    mark: Mark::Reference,
                },
            ],
            y_scale: Scale::Linear,
            note: format!(
                "Best at {:.2}; the strongest penalty within one standard error of it is at {:.2}.",
                x(&found[best]),
                x(&found[simplest])
            ),
            ..Chart::default()
        },
    ]
}
