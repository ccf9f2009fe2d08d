//! What is in a table, column by column.

use anyhow::Result;
use serde::Serialize;
use tch::Tensor;

use super::{ColumnRequest, ColumnType, TableReader, Wanted, find_column, read_all};

/// Distinct texts that are told apart.
const LEVELS: usize = 1000;
/// Categories that are listed for a column.
const LISTED: usize = 5;

/// A table in short.
#[derive(Clone, Debug, Serialize)]
pub struct Description {
    /// The file.
    pub table: String,
    /// How many rows there are.
    pub rows: u64,
    /// How many rows were left out because they cannot be read.
    pub skipped: u64,
    /// The columns in the order of the file.
    pub columns: Vec<ColumnDescription>,
}

/// A column in short.
#[derive(Clone, Debug, Serialize)]
pub struct ColumnDescription {
    /// Its name.
    pub name: String,
    /// What its values are.
    #[serde(rename = "type")]
    pub kind: ColumnType,
    /// Rows without a value.
    pub missing: u64,
    /// Values that are infinite.
    pub infinite: u64,
    /// Smallest number.
    pub min: Option<f64>,
    /// Mean of the numbers.
    pub mean: Option<f64>,
    /// Standard deviation of the numbers, with n − 1.
    pub std: Option<f64>,
    /// The number in the middle.
    pub median: Option<f64>,
    /// Largest number.
    pub max: Option<f64>,
    /// How many different values there are; of texts at most 1,000 are told apart.
    pub distinct: usize,
    /// The most frequent texts with their counts.
    pub frequent: Vec<(String, u64)>,
    /// Relation to the target: Pearson's r of two columns of numbers, else the correlation ratio η of a column of numbers over the
    /// categories of the other.
    pub relation: Option<f64>,
}

/// Describes every column of a table; with a target, also how each is related to it.
///
/// # Errors
/// The table cannot be read, or has no such target.
pub fn describe(reader: &mut TableReader, target: Option<&str>, threads: usize) -> Result<Description> {
    let head = reader.head().clone();
    if let Some(target) = target {
        find_column(&head.names, target, "--target", reader.name())?;
    }
    let requests: Vec<ColumnRequest> = head
        .names
        .iter()
        .map(|name| ColumnRequest { name: name.clone(), wanted: Wanted::Anything { limit: LEVELS } })
        .collect();
    let (blocks, levels) = read_all(reader, &requests, threads)?;
    let columns = (0..requests.len() as i64)
        .map(|column| {
            let parts = blocks
                .iter()
                .map(|block| block.f_select(1, column))
                .collect::<std::result::Result<Vec<_>, _>>()?;
            Ok(Vec::<f64>::try_from(Tensor::f_cat(&parts, 0)?)?)
        })
        .collect::<Result<Vec<_>>>()?;
    drop(blocks);
    let target = target.and_then(|target| head.names.iter().position(|name| name == target));
    let descriptions = columns
        .iter()
        .enumerate()
        .map(|(position, values)| {
            let texts = levels[position].as_ref().map(|levels| levels.texts.as_slice());
            let mut description = describe_column(&head.names[position], values, texts);
            if let Some(target) = target.filter(|&target| target != position) {
                description.relation =
                    relation(values, texts.is_some(), &columns[target], levels[target].is_some());
            }
            description
        })
        .collect();
    Ok(Description {
        table: reader.name().to_owned(),
        rows: columns.first().map_or(0, Vec::len) as u64,
        skipped: reader.skipped(),
        columns: descriptions,
    })
}

fn describe_column(name: &str, values: &[f64], texts: Option<&[String]>) -> ColumnDescription {
    let missing = values.iter().filter(|value| value.is_nan()).count() as u64;
    let mut finite: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
    let mut description = ColumnDescription {
        name: name.to_owned(),
        kind: if texts.is_some() { ColumnType::Category } else { ColumnType::Number },
        missing,
        infinite: values.iter().filter(|value| value.is_infinite()).count() as u64,
        min: None,
        mean: None,
        std: None,
        median: None,
        max: None,
        distinct: 0,
        frequent: Vec::new(),
        relation: None,
    };
    if let Some(texts) = texts {
        let mut counts = vec![0u64; texts.len()];
        for &code in &finite {
            if let Some(count) = counts.get_mut(code as usize) {
                *count += 1;
            }
        }
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|&level| std::cmp::Reverse(counts[level]));
        description.distinct = texts.len();
        description.frequent =
            order.iter().take(LISTED).map(|&level| (texts[level].clone(), counts[level])).collect();
        return description;
    }
    finite.sort_unstable_by(f64::total_cmp);
    if let (Some(&min), Some(&max)) = (finite.first(), finite.last()) {
        let count = finite.len() as f64;
        let mean = finite.iter().sum::<f64>() / count;
        let squares: f64 = finite.iter().map(|value| (value - mean).powi(2)).sum();
        let middle = finite.len() / 2;
        description.min = Some(min);
        description.max = Some(max);
        description.mean = Some(mean);
        description.std = (finite.len() > 1).then(|| (squares / (count - 1.0)).sqrt());
        description.median = Some(match finite.len() % 2 {
            1 => finite[middle],
            _ => (finite[middle - 1] + finite[middle]) / 2.0,
        });
    }
    finite.dedup();
    description.distinct = finite.len();
    description
}

/// How two columns are related, over the rows in which both have a value.
fn relation(values: &[f64], is_category: bool, target: &[f64], target_is_category: bool) -> Option<f64> {
    let pairs: Vec<(f64, f64)> = values
        .iter()
        .copied()
        .zip(target.iter().copied())
        .filter(|(value, target)| value.is_finite() && target.is_finite())
        .collect();
    match (is_category, target_is_category) {
        (false, false) => correlation(&pairs),
        (true, false) => correlation_ratio(&pairs),
        (false, true) => correlation_ratio(&pairs.iter().map(|&(x, y)| (y, x)).collect::<Vec<_>>()),
        (true, true) => None,
    }
}

/// Pearson's r.
fn correlation(pairs: &[(f64, f64)]) -> Option<f64> {
    let count = pairs.len() as f64;
    let (sum_x, sum_y) = pairs.iter().fold((0.0, 0.0), |(x, y), pair| (x + pair.0, y + pair.1));
    let (mean_x, mean_y) = (sum_x / count, sum_y / count);
    let (mut xx, mut yy, mut xy) = (0.0, 0.0, 0.0);
    for (x, y) in pairs {
        let (x, y) = (x - mean_x, y - mean_y);
        xx += x * x;
        yy += y * y;
        xy += x * y;
    }
    (xx > 0.0 && yy > 0.0).then(|| xy / (xx * yy).sqrt())
}

/// η: the root of the share of the variance of the second values that lies between the categories of the first.
fn correlation_ratio(pairs: &[(f64, f64)]) -> Option<f64> {
    let mut groups: std::collections::BTreeMap<u64, (f64, f64)> = std::collections::BTreeMap::new();
    for (category, value) in pairs {
        let group = groups.entry(*category as u64).or_default();
        group.0 += value;
        group.1 += 1.0;
    }
    let mean = pairs.iter().map(|pair| pair.1).sum::<f64>() / pairs.len() as f64;
    let total: f64 = pairs.iter().map(|pair| (pair.1 - mean).powi(2)).sum();
    let between: f64 = groups.values().map(|(sum, count)| count * (sum / count - mean).powi(2)).sum();
    (total > 0.0).then(|| (between / total).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relations_of_known_strength() {
        let line: Vec<f64> = (0..10).map(f64::from).collect();
        let down: Vec<f64> = line.iter().map(|x| 3.0 - 2.0 * x).collect();
        assert!((relation(&line, false, &down, false).unwrap_or(0.0) + 1.0).abs() < 1e-12);
        // Two categories that explain everything, and two that explain nothing.
        assert_eq!(relation(&[0.0, 0.0, 1.0, 1.0], true, &[5.0, 5.0, 7.0, 7.0], false), Some(1.0));
        assert_eq!(relation(&[0.0, 1.0, 0.0, 1.0], true, &[5.0, 5.0, 7.0, 7.0], false), Some(0.0));
        assert_eq!(relation(&[2.0, 2.0, 2.0], false, &[1.0, 2.0, 3.0], false), None);
    }

    #[test]
    fn a_column_in_short() {
        let column = describe_column("x", &[4.0, f64::NAN, 1.0, f64::INFINITY, 2.0, 2.0], None);
        assert_eq!((column.missing, column.infinite, column.distinct), (1, 1, 3));
        assert_eq!(
            (column.min, column.median, column.max, column.mean),
            (Some(1.0), Some(2.0), Some(4.0), Some(2.25))
        );
    }
}
