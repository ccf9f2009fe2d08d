//! `report.html`: one page that holds everything, from plain data.
//!
//! The page needs no other file, no network and no script; a small script shows the values of a curve under the pointer where scripts
//! may run. It follows the reader's light or dark mode, fits a phone and prints.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use image::ExtendedColorType;
use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, Value, context};
use serde_json::Value as Json;

use super::curves::{Curves, curves};
use super::format::{
    Better, better, capitalized, count, duration, is_fraction, metric, metric_label, number, percent,
};
use super::images::{png, png_size};
use super::metrics::{Record, Scores, Split, Summary};
use super::plots::{Chart, STYLE, figure};

const TEMPLATE: &str = include_str!("report.html.j2");

/// Predicted samples that are shown.
const EXAMPLES: usize = 40;
/// Mistakes that are shown.
const MISTAKES: usize = 20;
/// Letters of a text sample that are shown.
const TEXT_LETTERS: usize = 400;
/// A confusion matrix is a table of numbers up to this many classes, a picture above.
const MATRIX_CLASSES: usize = 20;
/// A confusion matrix is no picture either from this many classes on.
const PICTURE_CLASSES: usize = 1500;
/// Pairs of classes that are listed as confused.
const CONFUSED_PAIRS: usize = 20;
/// With more classes than this, the table of all is folded, and the worst are shown before it.
const OPEN_CLASSES: usize = 30;
/// How many of the worst.
const WORST_CLASSES: usize = 10;
/// Evaluations that are listed.
const EVALUATIONS: usize = 100;

/// What is known of a run, or of several that are compared. Parts without data are left out of the page.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The page's title.
    pub title: String,
    /// What it is about, in a few words; may be empty.
    pub subtitle: String,
    /// The metric that is shown first. When empty: the accuracy where there is one, else the loss.
    pub primary_metric: String,
    /// One run, or several to compare.
    pub runs: Vec<RunData>,
    /// Which classes were taken for which.
    pub confusion: Option<ConfusionMatrix>,
    /// Metrics of each class.
    pub classes: Vec<ClassScores>,
    /// Predicted samples; the first 40 are shown.
    pub examples: Vec<Example>,
    /// Wrongly predicted samples, the most confident first; the first 20 are shown.
    pub mistakes: Vec<Example>,
    /// Further charts.
    pub charts: Vec<Chart>,
    /// Further drawings.
    pub figures: Vec<Figure>,
    /// Further tables.
    pub tables: Vec<Table>,
    /// The machine and its software, as name and value.
    pub machine: Vec<(String, String)>,
    /// What took how long, in seconds.
    pub timings: Vec<(String, f64)>,
    /// What the reader should be wary of.
    pub warnings: Vec<String>,
}

/// A run as its folder tells it.
#[derive(Clone, Debug, Default)]
pub struct RunData {
    /// Its name among the others.
    pub name: String,
    /// `metrics.jsonl`.
    pub records: Vec<Record>,
    /// `summary.json`. Without it, the last evaluations of the records are shown.
    pub summary: Option<Summary>,
    /// `recipe.json`, or null.
    pub recipe: Json,
}

/// How often samples of one class were predicted as another.
#[derive(Clone, Debug)]
pub struct ConfusionMatrix {
    /// Names of the classes.
    pub classes: Vec<String>,
    /// Counts `[class, prediction]`, row by row.
    pub counts: Vec<u64>,
}

/// Metrics of one class, as fractions; NaN where one is not defined.
#[derive(Clone, Debug)]
pub struct ClassScores {
    /// Name of the class.
    pub name: String,
    /// Which share of the samples predicted as this class belong to it.
    pub precision: f64,
    /// Which share of this class's samples were predicted as such.
    pub recall: f64,
    /// Harmonic mean of both.
    pub f1: f64,
    /// How many samples the class has.
    pub support: u64,
}

/// A predicted sample. It is right where `label` and `prediction` are equal.
#[derive(Clone, Debug)]
pub struct Example {
    /// What was predicted from.
    pub input: Sample,
    /// File name or index.
    pub name: String,
    /// What it is, where that is known.
    pub label: Option<String>,
    /// What the model takes it for.
    pub prediction: String,
    /// How probable the model finds that.
    pub probability: Option<f64>,
}

/// What a model was given.
#[derive(Clone, Debug)]
pub enum Sample {
    /// A PNG file.
    Png(Vec<u8>),
    /// A text.
    Text(String),
}

/// A drawing made elsewhere.
#[derive(Clone, Debug)]
pub struct Figure {
    /// Its caption.
    pub title: String,
    /// An `<svg>` element, taken into the page as it is.
    pub svg: String,
    /// What it shows, in words.
    pub description: String,
}

/// A table.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// Its caption.
    pub title: String,
    /// A sentence below it; may be empty.
    pub note: String,
    /// Names of the columns.
    pub columns: Vec<String>,
    /// The rows; each begins with its name.
    pub rows: Vec<Vec<Cell>>,
}

/// A cell of a table.
#[derive(Clone, PartialEq, Debug)]
pub enum Cell {
    /// Text.
    Text(String),
    /// A number, shown with four significant digits; NaN as a dash.
    Number(f64),
    /// A fraction, shown as a percentage; NaN as a dash.
    Percent(f64),
    /// A count.
    Count(u64),
}

impl From<&str> for Cell {
    fn from(text: &str) -> Cell {
        Cell::Text(text.to_string())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Cell {
        Cell::Text(text)
    }
}

impl From<f64> for Cell {
    fn from(value: f64) -> Cell {
        Cell::Number(value)
    }
}

impl From<u64> for Cell {
    fn from(value: u64) -> Cell {
        Cell::Count(value)
    }
}

impl Cell {
    /// A metric's value, in the form that its name asks for.
    fn metric(name: &str, value: Option<f64>) -> Cell {
        let value = value.unwrap_or(f64::NAN);
        if is_fraction(name) { Cell::Percent(value) } else { Cell::Number(value) }
    }

    fn text(&self) -> String {
        match self {
            Cell::Text(text) => text.clone(),
            Cell::Number(value) | Cell::Percent(value) if value.is_nan() => NOTHING.to_string(),
            Cell::Number(value) => number(*value),
            Cell::Percent(value) => percent(*value),
            Cell::Count(value) => count(*value),
        }
    }
}

/// What stands where a value is missing.
const NOTHING: &str = "–";

/// The page as text.
///
/// Fails where parts do not fit together: a confusion matrix that is not square, an image that is no PNG, a table row that is longer
/// than its head.
pub fn render(report: &Report) -> Result<String> {
    let primary = primary_metric(report);
    let named: Vec<(&str, &[Record])> =
        report.runs.iter().map(|run| (run.name.as_str(), &run.records[..])).collect();
    let Curves { learning, speed } = curves(&named, &primary);
    let html = |charts: &[Chart]| charts.iter().map(figure).collect::<Vec<String>>();
    let single = match &report.runs[..] {
        [run] => Some(run),
        _ => None,
    };
    let recipes = report.runs.iter().filter(|run| !run.recipe.is_null());

    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).keep_trailing_newline(true).build()?);
    let page = context! {
        version => env!("CARGO_PKG_VERSION"),
        style => STYLE,
        title => report.title.clone(),
        subtitle => report.subtitle.clone(),
        warnings => report.warnings.clone(),
        cards => single.map(|run| cards(run, &primary)),
        results => single.map(|run| results(run, &primary)).filter(|table| !table.rows.is_empty()).map(|table| table_view(&table)).transpose()?,
        comparison => (report.runs.len() > 1).then(|| comparison(&report.runs, &primary)).transpose()?,
        differences => differences(&report.runs).as_ref().map(table_view).transpose()?,
        curves => html(&learning),
        evaluations => single.and_then(|run| evaluations(run, &primary)).as_ref().map(table_view).transpose()?,
        confusion => report.confusion.as_ref().map(confusion).transpose()?,
        classes => class_tables(&report.classes)?,
        examples => examples(&report.examples, EXAMPLES)?,
        mistakes => examples(&report.mistakes, MISTAKES)?,
        charts => html(&report.charts),
        figures => report.figures.iter().map(|figure| context! {
            title => figure.title.clone(), svg => figure.svg.clone(), description => figure.description.clone(),
        }).collect::<Vec<Value>>(),
        tables => report.tables.iter().map(table_view).collect::<Result<Vec<Value>>>()?,
        speed => html(&speed),
        timings => pairs("Timings", report.timings.iter().map(|(name, seconds)| (name.clone(), duration(*seconds)))).as_ref().map(table_view).transpose()?,
        machine => pairs("Machine", report.machine.iter().cloned()).as_ref().map(table_view).transpose()?,
        recipes => recipes.map(|run| Ok(context! {
            name => (report.runs.len() > 1).then(|| run.name.clone()),
            json => serde_json::to_string_pretty(&run.recipe)?,
        })).collect::<Result<Vec<Value>>>()?,
    };
    environment.render_str(TEMPLATE, page).context("cannot make the report")
}

fn primary_metric(report: &Report) -> String {
    if !report.primary_metric.is_empty() {
        return report.primary_metric.clone();
    }
    let accuracy =
        report.runs.iter().flat_map(|run| &run.records).any(|record| record.values.contains_key("accuracy"))
            || report
                .runs
                .iter()
                .any(|run| scores(run).iter().any(|(_, scores)| scores.values.contains_key("accuracy")));
    if accuracy { "accuracy" } else { "loss" }.to_string()
}

/// What a run has of best, last and test scores.
fn scores(run: &RunData) -> Vec<(&'static str, Scores)> {
    let of_records = |split: Split| {
        let record = run.records.iter().rev().find(|record| record.split == split)?;
        Some(Scores { step: record.step, epoch: record.epoch, values: record.values.clone() })
    };
    let (best, last, test) = match &run.summary {
        Some(summary) => (summary.best.clone(), summary.last.clone(), summary.test.clone()),
        None => (None, of_records(Split::Validation), of_records(Split::Test)),
    };
    [("test", test), ("best validation", best), ("last validation", last)]
        .into_iter()
        .filter_map(|(name, scores)| Some((name, scores?)))
        .collect()
}

/// The names of all metrics in some scores: the primary one, the loss, the others by name.
fn metric_names<'a>(scores: impl Iterator<Item = &'a Scores>, primary: &str) -> Vec<&'a str> {
    let names: BTreeSet<&str> = scores.flat_map(|scores| scores.values.keys().map(String::as_str)).collect();
    let mut names: Vec<&str> = names.into_iter().collect();
    names.sort_by_key(|name| (*name != primary, *name != "loss", *name));
    names
}

/// When scores were taken: "epoch 8, step 1,250".
fn moment(scores: &Scores) -> String {
    let step = format!("step {}", count(scores.step));
    if scores.epoch > 0.0 {
        format!("epoch {}, {step}", number((scores.epoch * 100.0).round() / 100.0))
    } else {
        step
    }
}

/// The numbers at the top of a run's page.
fn cards(run: &RunData, primary: &str) -> Vec<Value> {
    let card =
        |name: String, value: String, note: String| context! { name => capitalized(&name), value, note };
    let scores = scores(run);
    let mut cards = Vec::new();
    for (part, scores) in &scores {
        // Of the last evaluation only what is not the best anyway.
        let is_best = *part == "last validation"
            && scores.step > 0
            && run.summary.as_ref().and_then(|summary| summary.best.as_ref()).is_some();
        if let (Some(value), false) = (scores.values.get(primary), is_best) {
            cards.push(card(
                format!("{part} {}", metric_label(primary)),
                metric(primary, *value),
                moment(scores),
            ));
        }
    }
    if let (Some((part, scores)), true) = (scores.first(), primary != "loss")
        && let Some(loss) = scores.values.get("loss")
    {
        cards.push(card(format!("{part} loss"), number(*loss), String::new()));
    }
    if let Some(summary) = &run.summary {
        let rate = |value: Option<f64>, unit: &str| {
            value
                .map(|value| format!("{} {unit}", number(if value >= 100.0 { value.round() } else { value })))
        };
        let throughput = &summary.throughput;
        let rates = [
            rate(throughput.samples_per_second, "samples/s"),
            rate(throughput.tokens_per_second, "tokens/s"),
        ];
        let note = rates.into_iter().flatten().collect::<Vec<_>>().join(", ");
        cards.push(card("time".to_string(), duration(summary.wall_seconds), note));
        if let Some(memory) = summary.peak_memory_mb {
            cards.push(card(
                "peak memory".to_string(),
                format!("{} MB", count(memory.max(0.0).round() as u64)),
                String::new(),
            ));
        }
    }
    cards
}

/// All scores of a run.
fn results(run: &RunData, primary: &str) -> Table {
    let scores = scores(run);
    let head = scores.iter().map(|(part, scores)| format!("{} ({})", capitalized(part), moment(scores)));
    let rows = metric_names(scores.iter().map(|(_, scores)| scores), primary).into_iter().map(|name| {
        let values = scores.iter().map(|(_, scores)| Cell::metric(name, scores.values.get(name).copied()));
        std::iter::once(Cell::from(capitalized(&metric_label(name)))).chain(values).collect()
    });
    Table {
        columns: std::iter::once("Metric".to_string()).chain(head).collect(),
        rows: rows.collect(),
        ..Table::default()
    }
}

/// Several runs and their scores, the best of each column marked, each run with its colour.
fn comparison(runs: &[RunData], primary: &str) -> Result<Value> {
    let all: Vec<BTreeMap<&str, Scores>> = runs.iter().map(|run| scores(run).into_iter().collect()).collect();
    let mut columns = vec!["Run".to_string()];
    let mut rows: Vec<Vec<Cell>> = runs.iter().map(|run| vec![Cell::from(run.name.as_str())]).collect();
    let mut best_rows: Vec<Vec<usize>> = vec![Vec::new()];
    for part in ["test", "best validation", "last validation"] {
        for name in metric_names(all.iter().filter_map(|scores| scores.get(part)), primary) {
            let values: Vec<f64> = all
                .iter()
                .map(|scores| {
                    scores.get(part).and_then(|scores| scores.values.get(name)).copied().unwrap_or(f64::NAN)
                })
                .collect();
            columns.push(capitalized(&format!("{part} {}", metric_label(name))));
            let best = match better(name) {
                Some(Better::Lower) => values.iter().copied().fold(f64::NAN, f64::min),
                Some(Better::Higher) => values.iter().copied().fold(f64::NAN, f64::max),
                None => f64::NAN,
            };
            best_rows.push((0..runs.len()).filter(|row| values[*row] == best).collect());
            for (row, value) in rows.iter_mut().zip(values) {
                row.push(Cell::metric(name, Some(value)));
            }
        }
    }
    let summaries = || runs.iter().map(|run| run.summary.as_ref());
    let mut column = |name: &str, cells: Vec<Cell>| {
        if cells.iter().any(|cell| cell.text() != NOTHING) {
            columns.push(name.to_string());
            best_rows.push(Vec::new());
            rows.iter_mut().zip(cells).for_each(|(row, cell)| row.push(cell));
        }
    };
    let value = |value: Option<f64>| Cell::Number(value.unwrap_or(f64::NAN));
    column(
        "Best step",
        summaries()
            .map(|summary| summary?.best.as_ref().map(|best| best.step))
            .map(|step| step.map_or(value(None), Cell::Count))
            .collect(),
    );
    column(
        "Samples/s",
        summaries()
            .map(|summary| value(summary.and_then(|summary| summary.throughput.samples_per_second)))
            .collect(),
    );
    column(
        "Tokens/s",
        summaries()
            .map(|summary| value(summary.and_then(|summary| summary.throughput.tokens_per_second)))
            .collect(),
    );
    column(
        "Time",
        summaries()
            .map(|summary| {
                Cell::from(summary.map_or(NOTHING.to_string(), |summary| duration(summary.wall_seconds)))
            })
            .collect(),
    );
    column(
        "Peak memory (MB)",
        summaries()
            .map(|summary| value(summary.and_then(|summary| summary.peak_memory_mb).map(f64::round)))
            .collect(),
    );

    let marked = best_rows.iter().any(|rows| !rows.is_empty());
    let note = if marked { "The best value of a column is bold and underlined." } else { "" }.to_string();
    let table = Table { title: "Runs".to_string(), note, columns, rows };
    table_view_with(&table, |row, column| {
        let class = if best_rows[column].contains(&row) { "best" } else { "" };
        (class, (column == 0).then_some(row))
    })
}

/// The recipe keys in which runs differ; nothing for a single run or where there are no recipes.
fn differences(runs: &[RunData]) -> Option<Table> {
    if runs.len() < 2 || runs.iter().all(|run| run.recipe.is_null()) {
        return None;
    }
    let recipes: Vec<BTreeMap<String, String>> = runs
        .iter()
        .map(|run| {
            let mut leaves = BTreeMap::new();
            flatten(&run.recipe, "", &mut leaves);
            leaves
        })
        .collect();
    let keys: BTreeSet<&String> = recipes.iter().flat_map(BTreeMap::keys).collect();
    let differing =
        keys.into_iter().filter(|key| recipes.iter().any(|recipe| recipe.get(*key) != recipes[0].get(*key)));
    let rows: Vec<Vec<Cell>> = differing
        .map(|key| {
            let values =
                recipes.iter().map(|recipe| Cell::from(recipe.get(key).map_or(NOTHING, String::as_str)));
            std::iter::once(Cell::from(key.as_str())).chain(values).collect()
        })
        .collect();
    let note = if rows.is_empty() { "The recipes are equal.".to_string() } else { String::new() };
    let columns = std::iter::once("Key".to_string()).chain(runs.iter().map(|run| run.name.clone())).collect();
    Some(Table { title: String::new(), note, columns, rows })
}

/// The values of a JSON tree by their dotted keys. Arrays are values.
fn flatten(json: &Json, prefix: &str, leaves: &mut BTreeMap<String, String>) {
    match json {
        Json::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                flatten(value, &key, leaves);
            }
        }
        Json::Null if prefix.is_empty() => {}
        Json::String(text) => {
            leaves.insert(prefix.to_string(), text.clone());
        }
        other => {
            leaves.insert(prefix.to_string(), other.to_string());
        }
    }
}

/// The evaluations on validation data as a table, which says in numbers what the curves draw.
fn evaluations(run: &RunData, primary: &str) -> Option<Table> {
    let all: Vec<Scores> = run
        .records
        .iter()
        .filter(|record| record.split == Split::Validation)
        .map(|record| Scores { step: record.step, epoch: record.epoch, values: record.values.clone() })
        .collect();
    if all.len() < 2 {
        return None;
    }
    // Counted from the end, so that the last one is there.
    let every = all.len().div_ceil(EVALUATIONS);
    let mut shown: Vec<&Scores> = all.iter().rev().step_by(every).collect();
    shown.reverse();
    let names = metric_names(shown.iter().copied(), primary);
    let head = names.iter().map(|name| capitalized(&metric_label(name)));
    let row = |scores: &&Scores| {
        let values = names.iter().map(|name| Cell::metric(name, scores.values.get(*name).copied()));
        [Cell::Count(scores.step), Cell::Number((scores.epoch * 100.0).round() / 100.0)]
            .into_iter()
            .chain(values)
            .collect()
    };
    let note = if every > 1 { format!("One evaluation in {every} is listed.") } else { String::new() };
    let columns = ["Step".to_string(), "Epoch".to_string()].into_iter().chain(head).collect();
    Some(Table { title: String::new(), note, columns, rows: shown.iter().map(row).collect() })
}

fn pairs(title: &str, pairs: impl Iterator<Item = (String, String)>) -> Option<Table> {
    let rows: Vec<Vec<Cell>> = pairs.map(|(name, value)| vec![Cell::from(name), Cell::from(value)]).collect();
    (!rows.is_empty()).then(|| Table { title: title.to_string(), rows, ..Table::default() })
}

fn class_tables(classes: &[ClassScores]) -> Result<Option<Value>> {
    if classes.is_empty() {
        return Ok(None);
    }
    let table = |classes: &[&ClassScores], title: &str| Table {
        title: title.to_string(),
        note: String::new(),
        columns: ["Class", "Precision", "Recall", "F1", "Support"].map(String::from).to_vec(),
        rows: classes
            .iter()
            .map(|class| {
                let shares = [class.precision, class.recall, class.f1].map(Cell::Percent);
                [Cell::from(class.name.as_str())]
                    .into_iter()
                    .chain(shares)
                    .chain([Cell::Count(class.support)])
                    .collect()
            })
            .collect(),
    };
    let all: Vec<&ClassScores> = classes.iter().collect();
    if classes.len() <= OPEN_CLASSES {
        return Ok(Some(context! { all => table_view(&table(&all, ""))?, folded => false }));
    }
    let mut worst: Vec<&ClassScores> = all.iter().copied().filter(|class| !class.f1.is_nan()).collect();
    worst.sort_by(|left, right| left.f1.total_cmp(&right.f1));
    worst.truncate(WORST_CLASSES);
    let worst = table_view(&table(&worst, &format!("The {} classes with the lowest F1", worst.len())))?;
    Ok(Some(
        context! { all => table_view(&table(&all, ""))?, worst, folded => true, count => count(classes.len() as u64) },
    ))
}

fn confusion(matrix: &ConfusionMatrix) -> Result<Value> {
    let size = matrix.classes.len();
    if size == 0 || matrix.counts.len() != size * size {
        bail!(
            "a confusion matrix of {size} classes needs {} counts, not {}",
            size * size,
            matrix.counts.len()
        );
    }
    let rows: Vec<&[u64]> = matrix.counts.chunks(size).collect();
    let totals: Vec<u64> = rows.iter().map(|row| row.iter().sum()).collect();
    let share = |row: usize, column: usize| {
        if totals[row] == 0 { 0.0 } else { rows[row][column] as f64 / totals[row] as f64 }
    };
    if size <= MATRIX_CLASSES {
        let cell = |row: usize, column: usize| {
            context! {
                count => count(rows[row][column]),
                share => (rows[row][column] > 0).then(|| format!("{:.1}%", share(row, column) * 100.0)),
                right => row == column,
                // Small shares stand out by the square root, and letters stay readable below three quarters.
                strength => format!("{:.2}", share(row, column).sqrt() * 0.75),
            }
        };
        let row = |row: usize| {
            context! {
                name => matrix.classes[row].clone(),
                total => count(totals[row]),
                cells => (0..size).map(|column| cell(row, column)).collect::<Vec<Value>>(),
            }
        };
        return Ok(context! {
            classes => matrix.classes.clone(),
            rows => (0..size).map(row).collect::<Vec<Value>>(),
        });
    }

    let mut pairs: Vec<(usize, usize)> = (0..size * size)
        .map(|index| (index / size, index % size))
        .filter(|(row, column)| row != column && rows[*row][*column] > 0)
        .collect();
    pairs.sort_by(|left, right| {
        let key = |pair: &(usize, usize)| rows[pair.0][pair.1];
        key(right)
            .cmp(&key(left))
            .then(share(right.0, right.1).total_cmp(&share(left.0, left.1)))
            .then(left.cmp(right))
    });
    let mistakes: u64 = pairs.iter().map(|(row, column)| rows[*row][*column]).sum();
    pairs.truncate(CONFUSED_PAIRS);
    let table = Table {
        title: "The most confused pairs".to_string(),
        note: format!("{} mistakes in {} samples.", count(mistakes), count(totals.iter().sum())),
        columns: ["Class", "Predicted as", "Count", "Share of the class"].map(String::from).to_vec(),
        rows: pairs
            .iter()
            .map(|(row, column)| {
                let names = [*row, *column].map(|class| Cell::from(matrix.classes[class].as_str()));
                names
                    .into_iter()
                    .chain([Cell::Count(rows[*row][*column]), Cell::Percent(share(*row, *column))])
                    .collect()
            })
            .collect(),
    };
    let picture = (size < PICTURE_CLASSES).then(|| matrix_picture(size, share)).transpose()?;
    Ok(context! { pairs => table_view(&table)?, picture, size => count(size as u64) })
}

/// A confusion matrix as a picture of a pixel per pair, by shares of the rows: the diagonal blue, the rest vermilion, nothing transparent.
fn matrix_picture(size: usize, share: impl Fn(usize, usize) -> f64) -> Result<String> {
    let mut pixels = Vec::with_capacity(size * size * 4);
    for row in 0..size {
        for column in 0..size {
            let color = if row == column { [0x00, 0x72, 0xb2] } else { [0xd5, 0x5e, 0x00] };
            pixels.extend_from_slice(&color);
            pixels.push((share(row, column).sqrt() * 255.0).round() as u8);
        }
    }
    Ok(data_uri(&png(&pixels, size as u32, size as u32, ExtendedColorType::Rgba8)?))
}

/// Samples for the page: the first `most`, with a sentence where there are more.
fn examples(examples: &[Example], most: usize) -> Result<Option<Value>> {
    if examples.is_empty() {
        return Ok(None);
    }
    let views = examples.iter().take(most).map(example).collect::<Result<Vec<Value>>>()?;
    let shown = views.len();
    let judged = examples.iter().take(most).filter(|example| example.label.is_some()).count();
    let right = examples
        .iter()
        .take(most)
        .filter(|example| example.label.as_ref() == Some(&example.prediction))
        .count();
    Ok(Some(context! {
        items => views,
        note => (examples.len() > shown).then(|| format!("The first {shown} of {}.", count(examples.len() as u64))),
        tally => (judged > 0).then(|| format!("{right} of {judged} right.")),
        texts => examples.iter().take(most).any(|example| matches!(example.input, Sample::Text(_))),
    }))
}

fn example(example: &Example) -> Result<Value> {
    let (image, pixelated, text) = match &example.input {
        Sample::Png(bytes) => {
            let Some((height, width)) = png_size(bytes) else {
                bail!("the image of the sample `{}` is no PNG", example.name);
            };
            (Some(data_uri(bytes)), height.max(width) < 100, None)
        }
        Sample::Text(text) => {
            let mut shown: String = text.chars().take(TEXT_LETTERS).collect();
            if shown.len() < text.len() {
                shown.push('…');
            }
            (None, false, Some(shown))
        }
    };
    let description = match &example.label {
        Some(label) => format!("{}: predicted {}, label {label}", example.name, example.prediction),
        None => format!("{}: predicted {}", example.name, example.prediction),
    };
    Ok(context! {
        image,
        pixelated,
        text,
        description,
        name => example.name.clone(),
        label => example.label.clone(),
        prediction => example.prediction.clone(),
        probability => example.probability.map(percent),
        right => example.label.as_ref().map(|label| *label == example.prediction),
    })
}

fn table_view(table: &Table) -> Result<Value> {
    table_view_with(table, |_, _| ("", None))
}

/// A table for the page. `mark` gives a cell's class and the colour of the series that stands before it.
fn table_view_with(
    table: &Table,
    mark: impl Fn(usize, usize) -> (&'static str, Option<usize>),
) -> Result<Value> {
    let width = table.rows.iter().map(Vec::len).max().unwrap_or(0);
    if !table.columns.is_empty() && width > table.columns.len() {
        bail!("the table `{}` has {} columns but a row of {width} cells", table.title, table.columns.len());
    }
    let numeric = |column: usize| {
        let mut cells = table
            .rows
            .iter()
            .filter_map(|row| row.get(column))
            .filter(|cell| cell.text() != NOTHING)
            .peekable();
        cells.peek().is_some() && cells.all(|cell| !matches!(cell, Cell::Text(_)))
    };
    let numeric: Vec<bool> = (0..width.max(table.columns.len())).map(numeric).collect();
    let cell = |row: usize, column: usize, cell: &Cell| {
        let (class, series) = mark(row, column);
        context! { text => cell.text(), numeric => numeric[column], class, series => series.map(|series| series % 8) }
    };
    let rows = table.rows.iter().enumerate().map(|(row, cells)| {
        Value::from(
            cells.iter().enumerate().map(|(column, value)| cell(row, column, value)).collect::<Vec<Value>>(),
        )
    });
    let columns = table
        .columns
        .iter()
        .zip(&numeric)
        .map(|(name, numeric)| context! { name => name.clone(), numeric => *numeric });
    Ok(context! {
        title => table.title.clone(),
        note => table.note.clone(),
        columns => columns.collect::<Vec<Value>>(),
        rows => rows.collect::<Vec<Value>>(),
    })
}

/// A PNG as an address that holds the picture itself.
fn data_uri(png: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut uri = String::from("data:image/png;base64,");
    for group in png.chunks(3) {
        let bits =
            group.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for place in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * place) & 63) as usize];
            uri.push(if place <= group.len() { char::from(digit) } else { '=' });
        }
    }
    uri
}
