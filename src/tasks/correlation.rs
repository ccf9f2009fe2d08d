//! How predicted values go with given ones: Pearson's and Spearman's coefficients, with scipy's definitions, and errors.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::json;
use tch::Kind;

use super::classification::rows_by_sample;
use super::{Evaluation, Evaluator, Outcome};
use crate::distributed::Reducer;

/// What [`CorrelationEvaluator`] and the running sums of a task with values yield.
pub const METRICS: &[&str] = &["loss", "spearman", "pearson", "mse", "mae"];

/// Collects predicted and given values.
#[derive(Debug, Default)]
pub struct CorrelationEvaluator {
    samples: Vec<usize>,
    predicted: Vec<f64>,
    given: Vec<f64>,
}

impl Evaluator for CorrelationEvaluator {
    /// `prediction` is `[batch]` or `[batch, 1]`, `target` `[batch]`.
    fn add(&mut self, samples: &[usize], outcome: &Outcome) -> Result<()> {
        let values = |tensor: &tch::Tensor| -> Result<Vec<f64>> {
            Ok(Vec::try_from(tensor.f_to_kind(Kind::Double)?.f_flatten(0, -1)?)?)
        };
        self.predicted.extend(values(&outcome.prediction)?);
        self.given.extend(values(&outcome.target)?);
        self.samples.extend_from_slice(samples);
        Ok(())
    }

    fn gather(&mut self, reducer: &mut dyn Reducer) -> Result<()> {
        if reducer.world_size() == 1 {
            return Ok(());
        }
        let values = self.samples.iter().zip(self.predicted.iter().zip(&self.given));
        let rows =
            values.flat_map(|(&sample, (&predicted, &given))| [sample as f64, predicted, given]).collect();
        let gathered = reducer.gather(rows)?;
        let rows = rows_by_sample(&gathered, 3);
        self.samples = rows.iter().map(|row| row[0] as usize).collect();
        self.predicted = rows.iter().map(|row| row[1]).collect();
        self.given = rows.iter().map(|row| row[2]).collect();
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Evaluation> {
        let pairs = || self.predicted.iter().zip(&self.given);
        let count = self.given.len() as f64;
        let metrics = BTreeMap::from([
            ("pearson".to_owned(), pearson(&self.predicted, &self.given)),
            ("spearman".to_owned(), spearman(&self.predicted, &self.given)),
            ("mse".to_owned(), pairs().map(|(p, g)| (p - g) * (p - g)).sum::<f64>() / count),
            ("mae".to_owned(), pairs().map(|(p, g)| (p - g).abs()).sum::<f64>() / count),
        ]);
        Ok(Evaluation { metrics, details: json!({}) })
    }
}

/// `scipy.stats.pearsonr`: NaN where one side does not vary.
pub fn pearson(a: &[f64], b: &[f64]) -> f64 {
    let count = a.len() as f64;
    let mean = |values: &[f64]| values.iter().sum::<f64>() / count;
    let (mean_a, mean_b) = (mean(a), mean(b));
    let (mut both, mut square_a, mut square_b) = (0.0, 0.0, 0.0);
    for (a, b) in a.iter().zip(b) {
        let (a, b) = (a - mean_a, b - mean_b);
        both += a * b;
        square_a += a * a;
        square_b += b * b;
    }
    both / (square_a.sqrt() * square_b.sqrt())
}

/// `scipy.stats.spearmanr`: Pearson's coefficient of the ranks, of equal values the mean rank.
pub fn spearman(a: &[f64], b: &[f64]) -> f64 {
    pearson(&ranks(a), &ranks(b))
}

/// Ranks from 1, of equal values the mean.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&one, &other| values[one].total_cmp(&values[other]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    for group in order.chunk_by(|&one, &other| values[one] == values[other]) {
        let rank = (start + 1 + start + group.len()) as f64 / 2.0;
        group.iter().for_each(|&position| ranks[position] = rank);
        start += group.len();
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coefficients_are_scipys() {
        // scipy.stats.spearmanr([1, 2, 2, 4, 3.5], [10, 9, 30, 25, 25]), pearsonr of the same
        let (a, b) = ([1.0, 2.0, 2.0, 4.0, 3.5], [10.0, 9.0, 30.0, 25.0, 25.0]);
        assert!((spearman(&a, &b) - 0.368_421_052_631_579_04).abs() < 1e-12, "{}", spearman(&a, &b));
        assert!((pearson(&a, &b) - 0.593_625_493_200_581_9).abs() < 1e-9, "{}", pearson(&a, &b));
        assert!(pearson(&[1.0, 1.0], &[1.0, 2.0]).is_nan());
    }
}
