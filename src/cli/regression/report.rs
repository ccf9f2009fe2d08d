//! What a report shows of a fit.

use anyhow::Result;

use crate::regression::config::ModelName;
use crate::regression::distributions::normal_quantile;
use crate::regression::encoding::Encoding;
use crate::regression::inference::{Inference, Residuals};
use crate::regression::scores::TwoClassCurves;
use crate::reporting::{
    Cell, Chart, ConfusionMatrix, Interval, Mark, Report, Scale, Series, Table, interval_figure,
};
use crate::tasks::{Evaluation, classification};

/// Coefficients that are drawn.
const DRAWN: usize = 40;
/// A confusion matrix is shown up to this many classes.
const MATRIX: usize = 1000;

fn series(name: &str, mark: Mark, points: Vec<(f64, f64)>) -> Series {
    Series { name: name.to_owned(), points, mark }
}

fn scatter(title: &str, x: &str, y: &str, series: Vec<Series>, note: &str) -> Chart {
    Chart {
        title: title.to_owned(),
        x_label: x.to_owned(),
        y_label: y.to_owned(),
        series,
        y_scale: Scale::Linear,
        note: note.to_owned(),
        ..Chart::default()
    }
}

/// The smallest and the largest of some values.
fn ends(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)))
}

/// Adds what an evaluation says: predicted against actual numbers, or classes, confusion, and the curves of two classes.
pub fn illustrate_evaluation(
    report: &mut Report,
    encoding: &Encoding,
    evaluation: &Evaluation,
) -> Result<()> {
    let details = &evaluation.details;
    if let Some(points) = details.get("points") {
        let points: Vec<(f64, f64)> = serde_json::from_value(points.clone())?;
        let (low, high) = ends(points.iter().flat_map(|point| [point.0, point.1]));
        let mut lines = vec![series("held-out rows", Mark::Dots, points)];
        lines.push(series("prediction = actual", Mark::Reference, vec![(low, low), (high, high)]));
        report.charts.push(scatter("Predicted against actual", "predicted", "actual", lines, ""));
        return Ok(());
    }
    let Some(names) = &encoding.classes else { return Ok(()) };
    let scores: Vec<classification::ClassScores> = serde_json::from_value(details["classes"].clone())?;
    report.classes = scores.into_iter().map(Into::into).collect();
    if names.len() <= MATRIX {
        let counts: Vec<u64> = serde_json::from_value(details["confusion"].clone())?;
        report.confusion = Some(ConfusionMatrix { classes: names.clone(), counts });
    }
    if let Some(curves) = details.get("curves") {
        illustrate_curves(report, serde_json::from_value(curves.clone())?, &encoding.class(1));
    }
    Ok(())
}

fn illustrate_curves(report: &mut Report, curves: TwoClassCurves, positive: &str) {
    let share = |mut chart: Chart| {
        (chart.percent, chart.x_range) = (true, Some((0.0, 1.0)));
        chart
    };
    report.charts.push(share(scatter(
        "ROC",
        "false positive rate",
        "true positive rate",
        vec![
            series(&format!("class {positive}"), Mark::Line, curves.roc),
            series("chance", Mark::Reference, vec![(0.0, 0.0), (1.0, 1.0)]),
        ],
        "",
    )));
    report.charts.push(share(scatter(
        "Precision and recall",
        "recall",
        "precision",
        vec![series(&format!("class {positive}"), Mark::Line, curves.precision_recall)],
        "",
    )));
    let bins = curves.calibration.iter().map(|(predicted, share, _)| (*predicted, *share)).collect();
    report.charts.push(share(scatter(
        "Calibration",
        "mean predicted probability",
        "share of the class",
        vec![
            series(&format!("class {positive}"), Mark::LineWithDots, bins),
            series("calibrated", Mark::Reference, vec![(0.0, 0.0), (1.0, 1.0)]),
        ],
        "Ten bins of equal width; empty ones are left out.",
    )));
    report.tables.push(Table {
        title: "Thresholds".to_owned(),
        note: format!("A row counts as {positive} where its probability is at least the threshold."),
        columns: ["Threshold", "Accuracy", "Precision", "Recall", "F1"].map(str::to_owned).to_vec(),
        rows: curves
            .thresholds
            .iter()
            .map(|row| {
                std::iter::once(Cell::Text(format!("{:.1}", row[0])))
                    .chain(row[1..].iter().map(|share| Cell::Percent(*share)))
                    .collect()
            })
            .collect(),
    });
}

/// Adds coefficients, figures and residuals of a fit.
pub fn illustrate_inference(
    report: &mut Report,
    inference: &Inference,
    residuals: Option<&Residuals>,
    encoding: &Encoding,
) {
    let several = inference.coefficients.iter().any(|coefficient| coefficient.class.is_some());
    let columns = encoding.columns();
    let mut drawn: Vec<Interval> = inference
        .coefficients
        .iter()
        .filter(|coefficient| coefficient.name != "const")
        .map(|coefficient| {
            let place = columns.iter().position(|column| *column == coefficient.name);
            let scale = place.and_then(|place| encoding.scale.get(place)).copied().unwrap_or(1.0);
            Interval {
                name: match &coefficient.class {
                    Some(class) => format!("{}: {class}", coefficient.name),
                    None => coefficient.name.clone(),
                },
                value: coefficient.value * scale,
                ends: coefficient.low.zip(coefficient.high).map(|(low, high)| (low * scale, high * scale)),
            }
        })
        .collect();
    let all = drawn.len();
    drawn.sort_by(|a, b| b.value.abs().total_cmp(&a.value.abs()));
    drawn.truncate(DRAWN);
    let what = match inference.model {
        ModelName::Logistic | ModelName::Multinomial => "log-odds",
        ModelName::Poisson => "logarithm of the prediction",
        _ => "prediction",
    };
    let mut note = format!("Change of the {what} per standard deviation of the column.");
    if drawn.iter().any(|interval| interval.ends.is_some()) {
        note.push_str(" Lines are 95 % intervals.");
    }
    if all > DRAWN {
        note.push_str(&format!(" The {DRAWN} largest of {all} are shown."));
    }
    report.figures.push(interval_figure("Coefficients", &note, &drawn));
    if let Some(residuals) = residuals {
        illustrate_residuals(report, residuals);
    }

    let optional = |value: Option<f64>| Cell::Number(value.unwrap_or(f64::NAN));
    let has_errors = inference.coefficients.iter().any(|coefficient| coefficient.standard_error.is_some());
    let has_vif = inference.coefficients.iter().any(|coefficient| coefficient.vif.is_some());
    let has_ratio = inference.coefficients.iter().any(|coefficient| coefficient.odds_ratio.is_some());
    let mut head = vec!["Column".to_owned()];
    head.extend(several.then(|| "Class".to_owned()));
    head.push("Coefficient".to_owned());
    if has_errors {
        let statistic = &inference.statistic;
        head.extend([
            "Std. error".to_owned(),
            statistic.clone(),
            format!("P>|{statistic}|"),
            "2.5 %".to_owned(),
            "97.5 %".to_owned(),
        ]);
    }
    head.extend(has_vif.then(|| "VIF".to_owned()));
    head.extend(has_ratio.then(|| "exp".to_owned()));
    let rows = inference
        .coefficients
        .iter()
        .map(|coefficient| {
            let mut row = vec![Cell::from(coefficient.name.as_str())];
            row.extend(several.then(|| Cell::from(coefficient.class.clone().unwrap_or_default())));
            row.push(Cell::Number(coefficient.value));
            if has_errors {
                row.extend([
                    optional(coefficient.standard_error),
                    optional(coefficient.statistic),
                    optional(coefficient.p),
                    optional(coefficient.low),
                    optional(coefficient.high),
                ]);
            }
            row.extend(has_vif.then(|| optional(coefficient.vif)));
            row.extend(has_ratio.then(|| optional(coefficient.odds_ratio)));
            row
        })
        .collect();
    report.tables.push(Table {
        title: "Coefficients".to_owned(),
        note: inference.notes.join(" "),
        columns: head,
        rows,
    });
    if inference.coefficients.iter().any(|coefficient| coefficient.robust.is_some()) {
        let rows = inference
            .coefficients
            .iter()
            .filter_map(|coefficient| {
                let errors = coefficient.robust?;
                let plain = optional(coefficient.standard_error);
                Some(
                    [Cell::from(coefficient.name.as_str()), plain]
                        .into_iter()
                        .chain(errors.map(Cell::Number))
                        .collect(),
                )
            })
            .collect();
        report.tables.push(Table {
            title: "Standard errors that allow for unequal variances".to_owned(),
            note: String::new(),
            columns: ["Column", "Plain", "HC0", "HC1", "HC2", "HC3"].map(str::to_owned).to_vec(),
            rows,
        });
    }
    let mut rows = vec![
        vec![Cell::from("Training rows"), Cell::Count(inference.rows as u64)],
        vec![Cell::from("Df residuals"), Cell::Number(inference.df_residuals)],
        vec![Cell::from("Df model"), Cell::Number(inference.df_model)],
        vec![Cell::from("Solver"), Cell::from(inference.solver.as_str())],
    ];
    rows.extend(
        inference
            .figures
            .iter()
            .map(|figure| vec![Cell::from(figure.label.as_str()), Cell::Number(figure.value)]),
    );
    report.tables.push(Table {
        title: "The fit on its training rows".to_owned(),
        note: String::new(),
        columns: ["Figure", "Value"].map(str::to_owned).to_vec(),
        rows,
    });
}

fn illustrate_residuals(report: &mut Report, residuals: &Residuals) {
    let zip = |x: &[f64], y: &[f64]| x.iter().copied().zip(y.iter().copied()).collect::<Vec<_>>();
    let (low, high) = ends(residuals.fitted.iter().copied());
    report.charts.push(scatter(
        "Residuals against predictions",
        "predicted",
        "residual",
        vec![
            series("training rows", Mark::Dots, zip(&residuals.fitted, &residuals.residual)),
            series("no error", Mark::Reference, vec![(low, 0.0), (high, 0.0)]),
        ],
        "",
    ));
    if residuals.standardised.is_empty() {
        return;
    }
    let mut sorted = residuals.standardised.clone();
    sorted.sort_unstable_by(f64::total_cmp);
    let count = sorted.len() as f64;
    // Blom's plotting positions.
    let quantile = |place: usize| -normal_quantile((place as f64 + 1.0 - 0.375) / (count + 0.25));
    let points: Vec<(f64, f64)> =
        sorted.iter().enumerate().map(|(place, value)| (quantile(place), *value)).collect();
    let (low, high) = ends(points.iter().map(|point| point.0));
    report.charts.push(scatter(
        "Q–Q plot of the residuals",
        "quantile of a normal distribution",
        "standardised residual",
        vec![
            series("training rows", Mark::Dots, points),
            series("normal", Mark::Reference, vec![(low, low), (high, high)]),
        ],
        "",
    ));
    let (low, high) = ends(residuals.leverage.iter().copied());
    report.charts.push(scatter(
        "Leverage",
        "leverage",
        "standardised residual",
        vec![
            series("training rows", Mark::Dots, zip(&residuals.leverage, &residuals.standardised)),
            series("no error", Mark::Reference, vec![(low, 0.0), (high, 0.0)]),
        ],
        "Rows far to the right pull the fit towards themselves.",
    ));
}
