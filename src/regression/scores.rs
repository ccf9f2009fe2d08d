//! Metrics of predictions, by the definitions of scikit-learn.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tch::{Kind, Tensor};

use super::algebra::numbers;
use super::design::RowSource;
use super::encoding::Encoding;
use crate::distributed::{Reducer, SingleProcess};
use crate::tasks::classification::ClassificationEvaluator;
use crate::tasks::{Evaluation, Evaluator, Outcome};

/// Points that are kept for drawing.
const DRAWN_POINTS: usize = 2000;
/// Points that a curve is told with.
const CURVE_POINTS: usize = 200;
/// Bins of the calibration curve.
const BINS: usize = 10;

/// Metrics of a prediction of numbers, most telling first.
pub const NUMBER_METRICS: &[&str] = &["loss", "r2", "rmse", "mae", "mse", "max_error"];

/// Running sums over predictions of numbers.
#[derive(Clone, Debug, Default)]
pub struct NumberScores {
    weight: f64,
    shift: Option<f64>,
    sum: f64,
    squares: f64,
    squared_error: f64,
    absolute_error: f64,
    largest_error: f64,
    points: Vec<(f64, f64)>,
    seen: usize,
    stride: usize,
}

impl NumberScores {
    /// Takes predictions with their targets.
    pub fn add(&mut self, predictions: &[f64], targets: &[f64], weights: Option<&[f64]>) {
        for (row, (&prediction, &target)) in predictions.iter().zip(targets).enumerate() {
            let weight = weights.map_or(1.0, |weights| weights[row]);
            let shifted = target - *self.shift.get_or_insert(target);
            let error = target - prediction;
            self.weight += weight;
            self.sum += weight * shifted;
            self.squares += weight * shifted * shifted;
            self.squared_error += weight * error * error;
            self.absolute_error += weight * error.abs();
            self.largest_error = f64::max(self.largest_error, error.abs());
            if self.seen.is_multiple_of(self.stride.max(1)) {
                self.points.push((prediction, target));
                if self.points.len() >= 2 * DRAWN_POINTS {
                    // Every other point goes, and from now on twice as many are passed over.
                    let mut keep = false;
                    self.points.retain(|_| {
                        keep = !keep;
                        keep
                    });
                    self.stride = self.stride.max(1) * 2;
                }
            }
            self.seen += 1;
        }
    }

    /// The metrics; `points` in the details are (prediction, target).
    pub fn finish(self) -> Evaluation {
        let mse = self.squared_error / self.weight;
        let total = self.squares - self.sum * self.sum / self.weight;
        let metrics = BTreeMap::from(
            [
                ("loss", mse),
                ("mse", mse),
                ("rmse", mse.sqrt()),
                ("mae", self.absolute_error / self.weight),
                ("max_error", self.largest_error),
                ("r2", if total > 0.0 { 1.0 - self.squared_error / total } else { f64::NAN }),
            ]
            .map(|(name, value)| (name.to_owned(), value)),
        );
        Evaluation { metrics, details: json!({ "points": self.points }) }
    }
}

/// Collects predictions of numbers over an evaluation by the trainer.
#[derive(Default)]
pub struct NumberEvaluator {
    /// (sample, prediction, target, weight)
    rows: Vec<[f64; 4]>,
}

impl Evaluator for NumberEvaluator {
    /// `prediction` is `[batch]`, `target` `[batch]` or `[batch, 2]` with weights.
    fn add(&mut self, samples: &[usize], outcome: &Outcome) -> Result<()> {
        let prediction = numbers(&outcome.prediction)?;
        let (target, weight) = match outcome.target.dim() {
            2 => (numbers(&outcome.target.f_select(1, 0)?)?, Some(numbers(&outcome.target.f_select(1, 1)?)?)),
            _ => (numbers(&outcome.target)?, None),
        };
        for (row, &sample) in samples.iter().enumerate() {
            let weight = weight.as_ref().map_or(1.0, |weight| weight[row]);
            self.rows.push([sample as f64, prediction[row], target[row], weight]);
        }
        Ok(())
    }

    fn gather(&mut self, reducer: &mut dyn Reducer) -> Result<()> {
        if reducer.world_size() > 1 {
            let gathered = reducer.gather(self.rows.concat())?;
            self.rows = gathered.chunks_exact(4).map(|row| [row[0], row[1], row[2], row[3]]).collect();
            self.rows.sort_by(|a, b| a[0].total_cmp(&b[0]));
            self.rows.dedup_by(|a, b| a[0] == b[0]);
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Evaluation> {
        let mut scores = NumberScores::default();
        for [_, prediction, target, weight] in &self.rows {
            scores.add(&[*prediction], &[*target], Some(&[*weight]));
        }
        let mut evaluation = scores.finish();
        // The trainer's own loss is in the units in which it was minimised.
        evaluation.metrics.remove("loss");
        Ok(evaluation)
    }
}

/// A curve or table of a classifier of two classes.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct TwoClassCurves {
    /// (false positive rate, true positive rate)
    pub roc: Vec<(f64, f64)>,
    /// (recall, precision)
    pub precision_recall: Vec<(f64, f64)>,
    /// (mean predicted probability, share of the second class, rows) of ten equally wide bins.
    pub calibration: Vec<(f64, f64, u64)>,
    /// (threshold, accuracy, precision, recall, F1)
    pub thresholds: Vec<[f64; 5]>,
    /// Mean squared distance of probability and outcome.
    pub brier: f64,
}

/// The curves from (probability of the second class, whether it is that).
pub fn two_class_curves(mut rows: Vec<(f64, bool)>) -> TwoClassCurves {
    rows.sort_by(|a, b| b.0.total_cmp(&a.0));
    let all = rows.len() as f64;
    let positives = rows.iter().filter(|row| row.1).count() as f64;
    let negatives = all - positives;
    let mut curves = TwoClassCurves {
        brier: rows.iter().map(|(p, y)| (p - f64::from(u8::from(*y))).powi(2)).sum::<f64>() / all,
        ..TwoClassCurves::default()
    };
    if positives > 0.0 && negatives > 0.0 {
        let (mut taken, mut right) = (0.0, 0.0);
        let mut roc = vec![(0.0, 0.0)];
        let mut precision_recall = Vec::new();
        for tied in rows.chunk_by(|a, b| a.0 == b.0) {
            taken += tied.len() as f64;
            right += tied.iter().filter(|row| row.1).count() as f64;
            roc.push(((taken - right) / negatives, right / positives));
            precision_recall.push((right / positives, right / taken));
        }
        curves.roc = thinned(&roc);
        curves.precision_recall = thinned(&precision_recall);
    }
    for bin in 0..BINS {
        let (low, high) = (bin as f64 / BINS as f64, (bin + 1) as f64 / BINS as f64);
        let inside = |p: f64| p >= low && (p < high || bin + 1 == BINS);
        let (mut sum, mut share, mut count) = (0.0, 0.0, 0u64);
        for (p, y) in rows.iter().filter(|row| inside(row.0)) {
            sum += p;
            share += f64::from(u8::from(*y));
            count += 1;
        }
        if count > 0 {
            curves.calibration.push((sum / count as f64, share / count as f64, count));
        }
    }
    for step in 1..10 {
        let threshold = f64::from(step) / 10.0;
        let predicted = rows.iter().filter(|row| row.0 >= threshold).count() as f64;
        let right = rows.iter().filter(|row| row.0 >= threshold && row.1).count() as f64;
        let true_negatives = negatives - (predicted - right);
        let ratio = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { 0.0 };
        curves.thresholds.push([
            threshold,
            (right + true_negatives) / all,
            ratio(right, predicted),
            ratio(right, positives),
            ratio(2.0 * right, predicted + positives),
        ]);
    }
    curves
}

/// At most so many points, the first and the last among them.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let every = points.len().div_ceil(CURVE_POINTS).max(1);
    let mut kept: Vec<(f64, f64)> = points.iter().copied().step_by(every).collect();
    if kept.last() != points.last() {
        kept.extend(points.last());
    }
    kept
}

/// What predicts table rows.
pub trait RowPredictor {
    /// How rows become what it takes.
    fn encoding(&self) -> &Encoding;

    /// Rows of the table `[rows, features]` to a number `[rows, 1]`, the probability of the second class `[rows, 1]`, or of all
    /// classes `[rows, classes]`.
    fn predict(&self, rows: &Tensor) -> Result<Tensor>;

    /// The same with the loss of each row `[rows]`; none where that is the squared error.
    fn predict_with_losses(&self, rows: &Tensor, y: &Tensor) -> Result<(Tensor, Option<Tensor>)>;
}

/// Metrics of a model on rows, with what reports draw of them.
pub fn evaluate(model: &dyn RowPredictor, rows: &dyn RowSource) -> Result<Evaluation> {
    let _guard = tch::no_grad_guard();
    let classes = model.encoding().classes.clone();
    let is_binary = classes.as_ref().is_some_and(|classes| classes.len() == 2);
    let mut scores = NumberScores::default();
    let mut collector = classes.map(ClassificationEvaluator::new);
    let (mut loss_sum, mut weight_sum, mut right, mut sample, mut has_losses) = (0.0, 0.0, 0.0, 0, false);
    let mut two = Vec::new();
    rows.visit(&mut |block| {
        let (mean, losses) = model.predict_with_losses(&block.x, &block.y)?;
        let weights = match &block.weight {
            Some(weight) => weight.shallow_clone(),
            None => block.y.f_ones_like()?,
        };
        weight_sum += weights.f_sum(Kind::Double)?.f_double_value(&[])?;
        if let Some(losses) = losses {
            has_losses = true;
            loss_sum += (losses * &weights).f_sum(Kind::Double)?.f_double_value(&[])?;
        }
        let Some(collector) = &mut collector else {
            let weights = block.weight.as_ref().map(numbers).transpose()?;
            scores.add(&numbers(&mean)?, &numbers(&block.y)?, weights.as_deref());
            return Ok(());
        };
        // Probabilities of all classes; of two classes only the second one's is predicted.
        let probabilities = match mean.size()[1] {
            1 => Tensor::f_cat(&[&(1f64 - &mean), &mean], 1)?,
            _ => mean.shallow_clone(),
        };
        let hits = probabilities.f_argmax(-1, false)?.f_eq_tensor(&block.y.f_to_kind(Kind::Int64)?)?;
        right += (hits.f_to_kind(Kind::Double)? * &weights).f_sum(Kind::Double)?.f_double_value(&[])?;
        if is_binary {
            let y = numbers(&block.y)?;
            two.extend(
                numbers(&probabilities.f_select(1, 1)?)?.into_iter().zip(y.into_iter().map(|y| y == 1.0)),
            );
        }
        let count = block.rows() as usize;
        let samples: Vec<usize> = (sample..sample + count).collect();
        sample += count;
        // The collector takes logits, whose softmax these are.
        collector
            .add(&samples, &Outcome { prediction: probabilities.f_log()?, target: block.y.shallow_clone() })
    })?;
    if weight_sum == 0.0 {
        crate::bail_input!("there is no row to evaluate on");
    }
    let mut evaluation = match collector {
        None => scores.finish(),
        Some(mut collector) => {
            collector.gather(&mut SingleProcess)?;
            let mut evaluation = Box::new(collector).finish()?;
            evaluation.metrics.insert("accuracy".to_owned(), right / weight_sum);
            if is_binary {
                let curves = two_class_curves(two);
                evaluation.metrics.insert("brier".to_owned(), curves.brier);
                evaluation.details["curves"] = serde_json::to_value(curves)?;
            }
            evaluation
        }
    };
    if has_losses {
        evaluation.metrics.insert("loss".to_owned(), loss_sum / weight_sum);
    }
    Ok(evaluation)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_of_numbers() {
        let mut scores = NumberScores::default();
        scores.add(&[2.5, 0.0], &[3.0, -0.5], None);
        scores.add(&[2.0, 8.0], &[2.0, 7.0], None);
        let metrics = scores.finish().metrics;
        // The example of sklearn.metrics.r2_score.
        assert!((metrics["r2"] - 0.948_608_137_044_967_9).abs() < 1e-12);
        assert!((metrics["mse"] - 0.375).abs() < 1e-12 && (metrics["mae"] - 0.5).abs() < 1e-12);
        assert_eq!(metrics["max_error"], 1.0);
    }

    #[test]
    fn weights_count_rows_and_points_stay_few() {
        let mut plain = NumberScores::default();
        plain.add(&[1.0, 2.0, 2.0], &[2.0, 4.0, 4.0], None);
        let mut weighted = NumberScores::default();
        weighted.add(&[1.0, 2.0], &[2.0, 4.0], Some(&[1.0, 2.0]));
        assert!((plain.finish().metrics["r2"] - weighted.finish().metrics["r2"]).abs() < 1e-12);
        let mut many = NumberScores::default();
        let values: Vec<f64> = (0..100_000).map(f64::from).collect();
        many.add(&values, &values, None);
        assert!(many.points.len() <= 2 * DRAWN_POINTS && many.points.len() > DRAWN_POINTS / 2);
    }

    #[test]
    fn curves_of_two_classes() {
        let curves = two_class_curves(vec![(0.1, false), (0.4, false), (0.35, true), (0.8, true)]);
        assert_eq!(curves.roc, [(0.0, 0.0), (0.0, 0.5), (0.5, 0.5), (0.5, 1.0), (1.0, 1.0)]);
        assert_eq!(curves.precision_recall[0], (0.5, 1.0));
        let half = curves.thresholds[4];
        assert_eq!(half, [0.5, 0.75, 1.0, 0.5, 2.0 / 3.0]);
        assert_eq!(curves.calibration.iter().map(|bin| bin.2).sum::<u64>(), 4);
    }
}
