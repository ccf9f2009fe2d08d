//! `report.html`: one page that holds everything, from plain data.
//!
//! The page needs no other file, no network and no script; a small script shows the values of a curve under the pointer where scripts
//! may run. It follows the reader's light or dark mode, fits a phone and prints.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use base64::prelude::{BASE64_STANDARD, Engine};
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
use super::plots::{COLORS, Chart, STYLE, figure};

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
    /// A duration in seconds; NaN as a dash.
    Seconds(f64),
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
            Cell::Number(value) | Cell::Percent(value) | Cell::Seconds(value) if value.is_nan() => {
                NOTHING.to_string()
            }
            Cell::Number(value) => number(*value),
            Cell::Percent(value) => percent(*value),
            Cell::Count(value) => count(*value),
            Cell::Seconds(value) => duration(*value),
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
    let Curves { learning, further, speed } = curves(&named, &primary);
    let (single, several) = match &report.runs[..] {
        [run] => (Some(run), None),
        runs => (None, (!runs.is_empty()).then_some(runs)),
    };
    let charts = |charts: &[Chart]| charts.iter().map(figure).collect::<Vec<String>>();
    let table = |table: Option<Table>| table.as_ref().map(table_view).transpose();

    let figures = report.figures.iter().map(|figure| {
        context! {
            title => figure.title.clone(),
            svg => figure.svg.clone(),
            description => figure.description.clone(),
        }
    });
    let recipe = |run: &RunData| -> Result<Value> {
        let json = serde_json::to_string_pretty(&run.recipe)?;
        Ok(context! { name => several.map(|_| run.name.clone()), json })
    };
    let recipes = report.runs.iter().filter(|run| !run.recipe.is_null()).map(recipe);
    let timings = report.timings.iter().map(|(name, seconds)| (name.clone(), Cell::Seconds(*seconds)));
    let machine = report.machine.iter().map(|(name, value)| (name.clone(), Cell::from(value.as_str())));

    let page = context! {
        version => env!("CARGO_PKG_VERSION"),
        style => STYLE,
        title => report.title.clone(),
        subtitle => report.subtitle.clone(),
        warnings => report.warnings.clone(),
        cards => single.map(|run| cards(run, &primary)),
        results => table(single.and_then(|run| results(run, &primary)))?,
        comparison => several.map(|runs| comparison(runs, &primary)).transpose()?,
        differences => table(several.and_then(differences))?,
        curves => charts(&learning),
        further_curves => charts(&further),
        evaluations => table(single.and_then(|run| evaluations(run, &primary)))?,
        confusion => report.confusion.as_ref().map(confusion).transpose()?,
        classes => class_tables(&report.classes)?,
        examples => examples(&report.examples, EXAMPLES)?,
        mistakes => examples(&report.mistakes, MISTAKES)?,
        charts => charts(&report.charts),
        figures => figures.collect::<Vec<Value>>(),
        tables => report.tables.iter().map(table_view).collect::<Result<Vec<Value>>>()?,
        speed => charts(&speed),
        timings => table(pairs("Timings", timings))?,
        machine => table(pairs("Machine", machine))?,
        recipes => recipes.collect::<Result<Vec<Value>>>()?,
    };
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).keep_trailing_newline(true).build()?);
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
fn results(run: &RunData, primary: &str) -> Option<Table> {
    let mut scores = scores(run);
    // The last evaluation is no news where it was the best.
    let best = scores.iter().find(|(part, _)| *part == "best validation").map(|(_, scores)| scores.step);
    scores.retain(|(part, scores)| *part != "last validation" || Some(scores.step) != best);
    let names = metric_names(scores.iter().map(|(_, scores)| scores), primary);
    let head = scores.iter().map(|(part, scores)| format!("{} ({})", capitalized(part), moment(scores)));
    let row = |name: &&str| {
        let values = scores.iter().map(|(_, scores)| Cell::metric(name, scores.values.get(*name).copied()));
        std::iter::once(Cell::from(capitalized(&metric_label(name)))).chain(values).collect()
    };
    (!names.is_empty()).then(|| Table {
        columns: std::iter::once("Metric".to_string()).chain(head).collect(),
        rows: names.iter().map(row).collect(),
        ..Table::default()
    })
}

/// Several runs side by side: their scores, the best of each row marked, and what they took. Each run has its colour.
fn comparison(runs: &[RunData], primary: &str) -> Result<Value> {
    let all: Vec<BTreeMap<&str, Scores>> = runs.iter().map(|run| scores(run).into_iter().collect()).collect();
    let mut rows: Vec<Vec<Cell>> = Vec::new();
    // Column numbers of the best values of each row.
    let mut best_columns: Vec<Vec<usize>> = Vec::new();
    for part in ["test", "best validation", "last validation"] {
        for name in metric_names(all.iter().filter_map(|scores| scores.get(part)), primary) {
            let value = |scores: &BTreeMap<&str, Scores>| scores.get(part)?.values.get(name).copied();
            let values: Vec<f64> = all.iter().map(|scores| value(scores).unwrap_or(f64::NAN)).collect();
            let best = match better(name) {
                Some(Better::Lower) => values.iter().copied().fold(f64::NAN, f64::min),
                Some(Better::Higher) => values.iter().copied().fold(f64::NAN, f64::max),
                None => f64::NAN,
            };
            best_columns
                .push((0..runs.len()).filter(|run| values[*run] == best).map(|run| run + 1).collect());
            let title = Cell::from(capitalized(&format!("{part} {}", metric_label(name))));
            let cells = values.into_iter().map(|value| Cell::metric(name, Some(value)));
            rows.push(std::iter::once(title).chain(cells).collect());
        }
    }
    let mut row = |title: &str, cell: &dyn Fn(&Summary) -> Option<Cell>| {
        let cells: Vec<Option<Cell>> = runs.iter().map(|run| run.summary.as_ref().and_then(cell)).collect();
        if cells.iter().any(Option::is_some) {
            let cells = cells.into_iter().map(|cell| cell.unwrap_or(Cell::Number(f64::NAN)));
            rows.push(std::iter::once(Cell::from(title)).chain(cells).collect());
            best_columns.push(Vec::new());
        }
    };
    row("Best step", &|summary| Some(Cell::Count(summary.best.as_ref()?.step)));
    row("Samples per second", &|summary| summary.throughput.samples_per_second.map(Cell::Number));
    row("Tokens per second", &|summary| summary.throughput.tokens_per_second.map(Cell::Number));
    row("Time", &|summary| Some(Cell::Seconds(summary.wall_seconds)));
    row("Peak memory (MB)", &|summary| summary.peak_memory_mb.map(|memory| Cell::Number(memory.round())));

    let marked = best_columns.iter().any(|columns| !columns.is_empty());
    let note = if marked { "The best value of a row is bold and underlined." } else { "" }.to_string();
    let columns = std::iter::once(String::new()).chain(runs.iter().map(|run| run.name.clone())).collect();
    let table = Table { title: String::new(), note, columns, rows };
    table_view_with(
        &table,
        |row, column| if best_columns[row].contains(&column) { "best" } else { "" },
        |column| column.checked_sub(1),
    )
}

/// The recipe keys in which runs differ; nothing where there are no recipes.
fn differences(runs: &[RunData]) -> Option<Table> {
    if runs.iter().all(|run| run.recipe.is_null()) {
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
    let epochs = shown.iter().any(|scores| scores.epoch > 0.0);
    let names = metric_names(shown.iter().copied(), primary);
    let row = |scores: &&Scores| {
        let epoch = epochs.then(|| Cell::Number((scores.epoch * 100.0).round() / 100.0));
        let values = names.iter().map(|name| Cell::metric(name, scores.values.get(*name).copied()));
        std::iter::once(Cell::Count(scores.step)).chain(epoch).chain(values).collect()
    };
    let head = names.iter().map(|name| capitalized(&metric_label(name)));
    let epoch = epochs.then(|| "Epoch".to_string());
    let note = if every > 1 { format!("One evaluation in {every} is listed.") } else { String::new() };
    Some(Table {
        title: String::new(),
        note,
        columns: std::iter::once("Step".to_string()).chain(epoch).chain(head).collect(),
        rows: shown.iter().map(row).collect(),
    })
}

fn pairs(title: &str, pairs: impl Iterator<Item = (String, Cell)>) -> Option<Table> {
    let rows: Vec<Vec<Cell>> = pairs.map(|(name, value)| vec![Cell::from(name), value]).collect();
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
            let share = share(row, column);
            let color = if row == column { [0x00, 0x72, 0xb2] } else { [0xd5, 0x5e, 0x00] };
            // A single mistake is a single pixel, which has to be seen.
            let strength = if share > 0.0 { 0.3 + 0.7 * share.sqrt() } else { 0.0 };
            pixels.extend_from_slice(&color);
            pixels.push((strength * 255.0).round() as u8);
        }
    }
    Ok(data_uri(&png(&pixels, size as u32, size as u32, ExtendedColorType::Rgba8)?))
}

/// Samples for the page: the first `most`, with a sentence where there are more.
fn examples(examples: &[Example], most: usize) -> Result<Option<Value>> {
    if examples.is_empty() {
        return Ok(None);
    }
    let shown = &examples[..examples.len().min(most)];
    let judged = shown.iter().filter(|example| example.label.is_some()).count();
    let right = shown.iter().filter(|example| example.label.as_ref() == Some(&example.prediction)).count();
    let more = (examples.len() > shown.len())
        .then(|| format!("The first {} of {}.", shown.len(), count(examples.len() as u64)));
    // Where all are wrong they were chosen for it.
    let tally = (right > 0).then(|| format!("{right} of {judged} right."));
    Ok(Some(context! {
        items => shown.iter().map(example).collect::<Result<Vec<Value>>>()?,
        note => tally.into_iter().chain(more).collect::<Vec<String>>().join(" "),
        texts => shown.iter().any(|example| matches!(example.input, Sample::Text(_))),
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
        // Lines may break behind a slash.
        name => example.name.split_inclusive('/').map(str::to_owned).collect::<Vec<String>>(),
        label => example.label.clone(),
        prediction => example.prediction.clone(),
        probability => example.probability.map(percent),
        right => example.label.as_ref().map(|label| *label == example.prediction),
    })
}

fn table_view(table: &Table) -> Result<Value> {
    table_view_with(table, |_, _| "", |_| None)
}

/// A table for the page. `class` gives a cell's class by row and column; `series` the series of a column, whose colour its head
/// then shows.
fn table_view_with(
    table: &Table,
    class: impl Fn(usize, usize) -> &'static str,
    series: impl Fn(usize) -> Option<usize>,
) -> Result<Value> {
    let width = table.rows.iter().map(Vec::len).max().unwrap_or(0);
    if !table.columns.is_empty() && width > table.columns.len() {
        bail!("the table `{}` has {} columns but a row of {width} cells", table.title, table.columns.len());
    }
    let numeric = |column: usize| {
        let cells = table.rows.iter().filter_map(|row| row.get(column));
        let mut known = cells.filter(|cell| cell.text() != NOTHING).peekable();
        known.peek().is_some() && known.all(|cell| !matches!(cell, Cell::Text(_)))
    };
    let numeric: Vec<bool> = (0..width.max(table.columns.len())).map(numeric).collect();
    let rows = table.rows.iter().enumerate().map(|(row, cells)| {
        let cells = cells.iter().enumerate().map(|(column, cell)| {
            context! { text => cell.text(), numeric => numeric[column], class => class(row, column) }
        });
        Value::from(cells.collect::<Vec<Value>>())
    });
    let columns = table.columns.iter().enumerate().map(|(column, name)| {
        let series = series(column).map(|series| series % COLORS);
        context! { name => name.clone(), numeric => numeric[column], series }
    });
    Ok(context! {
        title => table.title.clone(),
        note => table.note.clone(),
        columns => columns.collect::<Vec<Value>>(),
        rows => rows.collect::<Vec<Value>>(),
    })
}

/// A PNG as an address that holds the picture itself.
fn data_uri(png: &[u8]) -> String {
    format!("data:image/png;base64,{}", BASE64_STANDARD.encode(png))
}

#[cfg(test)]
mod tests {
    use super::super::images::png_thumbnail;
    use super::*;
    use serde_json::json;

    fn values(values: &[(&str, f64)]) -> BTreeMap<String, f64> {
        values.iter().map(|(name, value)| (name.to_string(), *value)).collect()
    }

    fn run(name: &str, accuracy: f64) -> RunData {
        let record = |split, step: u64, of: &[(&str, f64)]| Record {
            split,
            step,
            epoch: step as f64 / 10.0,
            values: values(of),
        };
        let mut records: Vec<Record> = (1..=30)
            .map(|step| record(Split::Train, step, &[("loss", 1.0 / step as f64), ("lr", 0.1)]))
            .collect();
        for step in [10, 20, 30] {
            records.push(record(Split::Validation, step, &[("loss", 0.3), ("accuracy", accuracy)]));
        }
        let scores =
            Scores { step: 20, epoch: 2.0, values: values(&[("accuracy", accuracy), ("loss", 0.25)]) };
        let summary = Summary {
            recipe: name.to_string(),
            best: Some(scores.clone()),
            last: Some(Scores { step: 30, epoch: 3.0, ..scores.clone() }),
            test: Some(Scores {
                values: values(&[("accuracy", accuracy - 0.01), ("loss", f64::NAN)]),
                ..scores
            }),
            wall_seconds: 83.0,
            ..Summary::default()
        };
        let recipe = json!({"optimizer": {"lr": 0.1, "betas": [0.9, 0.999]}, "seed": 1, "name": name});
        RunData { name: name.to_string(), records, summary: Some(summary), recipe }
    }

    fn headings(page: &str) -> Vec<&str> {
        page.split("<h2>").skip(1).filter_map(|part| part.split("</h2>").next()).collect()
    }

    fn picture() -> Vec<u8> {
        png_thumbnail(&[200; 28 * 28], 28, 28, 1, 64).unwrap()
    }

    fn example(label: Option<&str>, prediction: &str) -> Example {
        Example {
            input: Sample::Png(picture()),
            name: "7.png".to_string(),
            label: label.map(String::from),
            prediction: prediction.to_string(),
            probability: Some(0.9),
        }
    }

    /// Every opened element is closed, in order.
    fn assert_well_formed(page: &str) {
        let body = page.split("<script>").next().unwrap();
        let mut open = Vec::new();
        for part in body.split('<').skip(1).filter(|part| !part.starts_with('!')) {
            let (tag, _) = part.split_once('>').expect("a tag is closed");
            let name = tag.split([' ', '\n']).next().unwrap().trim_end_matches('/');
            if let Some(name) = name.strip_prefix('/') {
                assert_eq!(open.pop(), Some(name), "before {part:.60}");
            } else if !tag.ends_with('/') && !["meta", "img", "wbr"].contains(&name) {
                open.push(name);
            }
        }
        assert_eq!(open, ["html", "body"]);
    }

    #[test]
    fn an_empty_report_has_no_sections() -> Result<()> {
        let page = render(&Report { title: "empty".to_string(), ..Report::default() })?;
        assert!(page.starts_with("<!DOCTYPE html>") && page.contains("<title>empty</title>"));
        assert_eq!(headings(&page), Vec::<&str>::new());
        assert_well_formed(&page);
        Ok(())
    }

    #[test]
    fn a_full_report_has_all_sections_and_nothing_from_elsewhere() -> Result<()> {
        let classes = vec!["cat".to_string(), "dog".to_string()];
        let score = |name: &str| ClassScores {
            name: name.to_string(),
            precision: 0.5,
            recall: f64::NAN,
            f1: 0.25,
            support: 1234,
        };
        let page = render(&Report {
            title: "a run".to_string(),
            subtitle: "of a test".to_string(),
            runs: vec![run("a", 0.9)],
            confusion: Some(ConfusionMatrix { classes: classes.clone(), counts: vec![8, 2, 0, 10] }),
            classes: classes.iter().map(|class| score(class)).collect(),
            examples: vec![example(Some("cat"), "cat"), example(Some("cat"), "dog"), example(None, "dog")],
            mistakes: vec![example(Some("cat"), "dog")],
            charts: vec![Chart { title: "Residuals".to_string(), ..Chart::default() }],
            figures: vec![Figure {
                title: "Tree".to_string(),
                svg: "<svg viewBox=\"0 0 1 1\"></svg>".to_string(),
                description: "a tree".to_string(),
            }],
            tables: vec![Table {
                title: "Coefficients".to_string(),
                columns: vec!["Name".to_string(), "Value".to_string()],
                rows: vec![vec!["x".into(), 0.5.into()]],
                ..Table::default()
            }],
            machine: vec![("threads".to_string(), "2".to_string())],
            timings: vec![("training".to_string(), 81.2)],
            warnings: vec!["odd".to_string()],
            ..Report::default()
        })?;
        assert_eq!(
            headings(&page),
            [
                "Results",
                "Curves",
                "Confusion matrix",
                "Classes",
                "Most confident mistakes",
                "Predictions",
                "Figures",
                "Tables",
                "Machine and time",
                "Recipe"
            ]
        );
        assert_well_formed(&page);
        // No address but pictures in the page and the name of SVG in the script.
        assert_eq!(page.matches("http").count(), page.matches("http-equiv").count() + 1);
        assert!(!page.contains("<link") && !page.contains("@import") && !page.contains("url("));
        for text in [
            "Test accuracy",
            "89.00%",
            "epoch 2, step 20",
            "1 min 23 s",
            "80.0%",
            "1 of 2 right.",
            "1,234",
            "1 min 21 s",
        ] {
            assert!(page.contains(text), "{text}");
        }
        assert_eq!(
            (page.matches("<li class=\"right\">").count(), page.matches("<li class=\"wrong\">").count()),
            (1, 2)
        );
        assert!(page.contains("alt=\"7.png: predicted dog, label cat\""));
        Ok(())
    }

    #[test]
    fn texts_are_escaped_and_cut() -> Result<()> {
        let evil = "<script>alert('x')</script>";
        let long = "ä".repeat(TEXT_LETTERS + 1);
        let text = |text: &str| Example {
            input: Sample::Text(text.to_string()),
            name: evil.to_string(),
            ..example(Some(evil), "b")
        };
        let mut bad = run(evil, 0.5);
        bad.recipe = json!({evil: evil});
        bad.records
            .iter_mut()
            .for_each(|record| record.values.extend([(evil.to_string(), record.step as f64)]));
        let report = Report {
            title: evil.to_string(),
            runs: vec![bad, run("other", 0.6)],
            confusion: Some(ConfusionMatrix { classes: vec![evil.to_string()], counts: vec![1] }),
            examples: vec![text(evil), text(&long)],
            tables: vec![Table {
                title: evil.to_string(),
                columns: vec![evil.to_string()],
                rows: vec![vec![evil.into()]],
                note: evil.to_string(),
            }],
            machine: vec![(evil.to_string(), evil.to_string())],
            timings: vec![(evil.to_string(), 1.0)],
            warnings: vec![evil.to_string()],
            ..Report::default()
        };
        let page = render(&report)?;
        assert_eq!(page.matches("<script>").count(), 1, "the page's own");
        assert!(page.contains(&format!("{}…", "ä".repeat(TEXT_LETTERS))) && !page.contains(&long));
        assert_well_formed(&page);
        Ok(())
    }

    #[test]
    fn runs_are_compared_by_scores_and_by_what_differs_in_their_recipes() -> Result<()> {
        let mut third = run("third", 0.95);
        third.recipe =
            json!({"optimizer": {"lr": 0.2, "betas": [0.9, 0.999]}, "seed": 1, "name": "third", "ema": null});
        let page = render(&Report {
            title: "three".to_string(),
            runs: vec![run("first", 0.9), run("second", 0.8), third],
            ..Report::default()
        })?;
        assert_eq!(headings(&page), ["Results", "Where the recipes differ", "Curves", "Recipes"]);
        assert_eq!(
            page.matches("class=\"number best\">95.00%").count(),
            2,
            "best and last validation accuracy of the third run"
        );
        assert!(!page.contains("class=\"number best\">90.00%"));
        let part =
            page.split("Where the recipes differ</h2>").nth(1).unwrap().split("</section>").next().unwrap();
        let keys: Vec<&str> =
            part.split("<th scope=\"row\">").skip(1).map(|cell| cell.split('<').next().unwrap()).collect();
        assert_eq!(keys, ["ema", "name", "optimizer.lr"]);
        assert_well_formed(&page);
        Ok(())
    }

    #[test]
    fn equal_recipes_are_said_to_be_equal() {
        let table = differences(&[run("a", 0.5), run("a", 0.6)]).unwrap();
        assert!(table.rows.is_empty() && table.note.contains("equal"));
        let unknown = || RunData { recipe: Json::Null, ..run("a", 0.5) };
        assert!(differences(&[unknown(), unknown()]).is_none());
    }

    #[test]
    fn many_classes_are_shown_by_their_worst() -> Result<()> {
        let size = 120;
        let names: Vec<String> = (0..size).map(|class| format!("class {class}")).collect();
        let mut counts = vec![0; size * size];
        for class in 0..size {
            counts[class * size + class] = 50;
        }
        counts[7 * size + 9] = 12;
        counts[9 * size + 7] = 3;
        let classes = names.iter().enumerate().map(|(index, name)| ClassScores {
            name: name.clone(),
            precision: 1.0,
            recall: 1.0,
            f1: 1.0 - index as f64 / 200.0,
            support: 50,
        });
        let page = render(&Report {
            classes: classes.collect(),
            confusion: Some(ConfusionMatrix { classes: names, counts }),
            ..Report::default()
        })?;
        let pairs =
            page.split("most confused pairs</caption>").nth(1).unwrap().split("</table>").next().unwrap();
        assert_eq!(pairs.matches("<tr>").count(), 3, "a head and two pairs");
        assert!(pairs.find("19.35%").unwrap() < pairs.find("5.66%").unwrap());
        assert!(
            page.contains("15 mistakes in 6,015 samples.")
                && page.contains("alt=\"Confusion matrix of 120 classes")
        );
        let worst = page.split("lowest F1</caption>").nth(1).unwrap().split("</table>").next().unwrap();
        assert!(
            worst.matches("<tr>").count() == 11
                && worst.contains("class 119")
                && !worst.contains("class 109<")
        );
        assert_well_formed(&page);
        Ok(())
    }

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        let confusion = Some(ConfusionMatrix { classes: vec!["a".to_string()], counts: vec![1, 2] });
        assert!(render(&Report { confusion, ..Report::default() }).is_err());
        let bad = Example { input: Sample::Png(b"GIF".to_vec()), ..example(None, "a") };
        assert!(
            render(&Report { examples: vec![bad], ..Report::default() })
                .unwrap_err()
                .to_string()
                .contains("`7.png` is no PNG")
        );
        let table = Table {
            columns: vec!["a".to_string()],
            rows: vec![vec![1.0.into(), 2.0.into()]],
            ..Table::default()
        };
        assert!(render(&Report { tables: vec![table], ..Report::default() }).is_err());
    }

    #[test]
    fn without_a_summary_the_last_records_are_the_results() {
        let run = RunData { summary: None, ..run("a", 0.9) };
        let scores = scores(&run);
        assert_eq!(scores.len(), 1);
        assert_eq!((scores[0].0, scores[0].1.step), ("last validation", 30));
        assert_eq!(results(&run, "accuracy").unwrap().rows[0][1], Cell::Percent(0.9));
    }
}
