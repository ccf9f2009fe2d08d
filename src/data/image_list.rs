//! Tables of image files: CSV or TSV with the columns `path` and `label` (and, if there is one, `split`), or JSON lines with these keys.
//!
//! Paths are relative to the table's folder. Labels that are whole numbers from 0 are the class numbers; others are numbered in the order
//! of their names. Where images may have several labels, these are joined by `;`, or a list in JSON lines; a cell may be empty.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::Deserialize;

use super::image_source::Location;
use super::image_tree::{LabelledImages, Part, number_classes};
use crate::{bad_input, bail_input, files};

#[derive(Deserialize)]
struct Row {
    path: PathBuf,
    label: Label,
    split: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Label {
    Number(i64),
    Name(String),
    List(Vec<Label>),
}

impl Label {
    /// The one label, or, of several, all.
    fn names(self, multi_label: bool) -> Vec<String> {
        let clean = |name: &str| name.trim().to_owned();
        match self {
            Self::Number(number) => vec![number.to_string()],
            Self::Name(name) if multi_label => {
                name.split(';').map(clean).filter(|name| !name.is_empty()).collect()
            }
            Self::Name(name) => vec![clean(&name)],
            Self::List(labels) => labels.into_iter().flat_map(|label| label.names(false)).collect(),
        }
    }
}

/// Whether a file's name says that it is such a table.
pub fn is_list(path: &Path) -> bool {
    let extension = path.extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase());
    matches!(extension.as_deref(), Some("csv" | "tsv" | "jsonl"))
}

/// Reads a table, of images that have one label each or any number of them.
pub fn read_list(table: &Path, multi_label: bool) -> Result<LabelledImages> {
    let name = table.display().to_string();
    let text = files::read_text(table)?;
    let rows = match table
        .extension()
        .map(|extension| extension.to_string_lossy().to_ascii_lowercase())
        .as_deref()
    {
        Some("jsonl") => json_rows(&name, &text)?,
        Some("tsv") => table_rows(&name, &text, b'\t')?,
        _ => table_rows(&name, &text, b',')?,
    };
    let folder = table.parent().unwrap_or(Path::new("."));
    let mut labels: BTreeSet<String> = BTreeSet::new();
    let mut parts: BTreeMap<Part, Vec<(Vec<String>, Location)>> = BTreeMap::new();
    for (line, row) in rows {
        let part = match row.split.as_deref().map(str::trim).filter(|split| !split.is_empty()) {
            None => Part::Train,
            Some(split) => Part::of_name(split).ok_or_else(|| {
                bad_input!("{name} line {line}: there is no split `{split}` (train, val, test)")
            })?,
        };
        let names = row.label.names(multi_label);
        if names.iter().any(String::is_empty) {
            bail_input!("{name} line {line}: the label is empty");
        }
        if names.len() != 1 && !multi_label {
            bail_input!(
                "{name} line {line} has {} labels: set data.multi_label=true where images have several",
                names.len()
            );
        }
        let path = folder.join(row.path);
        if !path.is_file() {
            bail_input!("{name} line {line}: there is no file {}", path.display());
        }
        labels.extend(names.iter().cloned());
        parts.entry(part).or_default().push((names, Location::File(path)));
    }
    if !parts.contains_key(&Part::Train) {
        bail_input!("{name} lists no training image");
    }
    if labels.is_empty() {
        bail_input!("{name} gives no image a label");
    }
    let classes = order(labels);
    if multi_label {
        return Ok(number_sets(classes, parts));
    }
    let single =
        |(names, location): (Vec<String>, Location)| (names.into_iter().next().unwrap_or_default(), location);
    let parts =
        parts.into_iter().map(|(part, images)| (part, images.into_iter().map(single).collect())).collect();
    number_classes(classes, parts)
}

/// Turns the label names of each image into the number of their set.
fn number_sets(classes: Vec<String>, parts: BTreeMap<Part, Vec<(Vec<String>, Location)>>) -> LabelledImages {
    let numbers: BTreeMap<&String, i64> = classes.iter().zip(0..).collect();
    let mut sets: Vec<Vec<i64>> = Vec::new();
    let mut known: BTreeMap<Vec<i64>, i64> = BTreeMap::new();
    let mut number = |names: Vec<String>| {
        let set: BTreeSet<i64> = names.iter().filter_map(|name| numbers.get(name).copied()).collect();
        let set: Vec<i64> = set.into_iter().collect();
        *known.entry(set).or_insert_with_key(|set| {
            sets.push(set.clone());
            sets.len() as i64 - 1
        })
    };
    let parts = parts
        .into_iter()
        .map(|(part, images)| {
            (part, images.into_iter().map(|(names, location)| (location, number(names))).collect())
        })
        .collect();
    LabelledImages { parts, label_sets: Some(sets), classes }
}

/// Numbers in their own order where all labels are numbers, with gaps filled; names in theirs.
fn order(labels: BTreeSet<String>) -> Vec<String> {
    let numbers: Option<Vec<u32>> = labels.iter().map(|label| label.parse().ok()).collect();
    match numbers.and_then(|numbers| numbers.into_iter().max()) {
        Some(largest) if largest < 100_000 => (0..=largest).map(|number| number.to_string()).collect(),
        _ => labels.into_iter().collect(),
    }
}

fn json_rows(name: &str, text: &str) -> Result<Vec<(usize, Row)>> {
    let lines = text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty());
    lines
        .map(|(line, number)| {
            let row = serde_json::from_str(line).map_err(|error| {
                bad_input!("{name} line {number}: {error}; write {{\"path\": \"a.jpg\", \"label\": \"cat\"}}")
            })?;
            Ok((number, row))
        })
        .collect()
}

fn table_rows(name: &str, text: &str, delimiter: u8) -> Result<Vec<(usize, Row)>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).from_reader(text.as_bytes());
    let headers = reader.headers().map_err(|error| bad_input!("{name}: {error}"))?.clone();
    for column in ["path", "label"] {
        if !headers.iter().any(|header| header == column) {
            bail_input!(
                "{name} has no column `{column}`: its header is {}",
                headers.iter().collect::<Vec<_>>().join(", ")
            );
        }
    }
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|error| bad_input!("{name}: {error}"))?;
        let line = record.position().map_or(0, csv::Position::line) as usize;
        let row =
            record.deserialize(Some(&headers)).map_err(|error| bad_input!("{name} line {line}: {error}"))?;
        rows.push((line, row));
    }
    Ok(rows)
}
