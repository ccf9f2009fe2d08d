//! Metrics of classification from collected predictions, with scikit-learn's definitions.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tch::Kind;

use super::{Evaluation, Evaluator, Outcome};
use crate::distributed::Reducer;

/// Precision, recall and F1 of one class; 0 where the denominator is 0 (`zero_division=0`).
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct ClassScores {
    /// Name of the class.
    pub class: String,
    /// Right predictions of the class / predictions of it.
    pub precision: f64,
    /// Right predictions of the class / samples of it.
    pub recall: f64,
    /// Harmonic mean of the two.
    pub f1: f64,
    /// Samples of the class.
    pub support: u64,
}

/// One sample's outcome.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Judged {
    sample: usize,
    target: usize,
    predicted: usize,
    probability: f64,
}

/// Collects predicted and true classes.
pub struct ClassificationEvaluator {
    classes: Vec<String>,
    judged: Vec<Judged>,
}

impl ClassificationEvaluator {
    /// An empty collection for these classes.
    pub fn new(classes: Vec<String>) -> Self {
        Self { classes, judged: Vec::new() }
    }
}

impl Evaluator for ClassificationEvaluator {
    /// `prediction` is `[batch, classes]` logits, `target` `[batch]` class numbers.
    fn add(&mut self, samples: &[usize], outcome: &Outcome) -> Result<()> {
        let probabilities = outcome.prediction.f_to_kind(Kind::Float)?.f_softmax(-1, Kind::Float)?;
        let (probability, predicted) = probabilities.f_max_dim(-1, false)?;
        let probability = Vec::<f64>::try_from(probability.f_to_kind(Kind::Double)?)?;
        let predicted = Vec::<i64>::try_from(predicted)?;
        let target = Vec::<i64>::try_from(outcome.target.f_to_kind(Kind::Int64)?)?;
        for (position, &sample) in samples.iter().enumerate() {
            self.judged.push(Judged {
                sample,
                target: target[position] as usize,
                predicted: predicted[position] as usize,
                probability: probability[position],
            });
        }
        Ok(())
    }

    fn gather(&mut self, reducer: &mut dyn Reducer) -> Result<()> {
        let flat = |judged: &Judged| {
            [judged.sample as f64, judged.target as f64, judged.predicted as f64, judged.probability]
        };
        let rows = reducer.gather(self.judged.iter().flat_map(flat).collect())?;
        self.judged = rows
            .chunks_exact(4)
            .map(|row| Judged {
                sample: row[0] as usize,
                target: row[1] as usize,
                predicted: row[2] as usize,
                probability: row[3],
            })
            .collect();
        self.judged.sort_by_key(|judged| judged.sample);
        self.judged.dedup_by_key(|judged| judged.sample);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Evaluation> {
        let size = self.classes.len();
        let mut counts = vec![0u64; size * size];
        for judged in &self.judged {
            counts[judged.target * size + judged.predicted] += 1;
        }
        let scores = class_scores(&self.classes, &counts);
        // Classes that neither occur nor are predicted do not count, as in scikit-learn, which never sees them.
        let present: Vec<&ClassScores> = scores
            .iter()
            .enumerate()
            .filter(|(class, scores)| {
                scores.support > 0 || (0..size).any(|row| counts[row * size + class] > 0)
            })
            .map(|(_, scores)| scores)
            .collect();
        let mean = |value: fn(&ClassScores) -> f64| {
            present.iter().map(|scores| value(scores)).sum::<f64>() / present.len() as f64
        };
        let metrics = BTreeMap::from([
            ("macro_precision".to_owned(), mean(|scores| scores.precision)),
            ("macro_recall".to_owned(), mean(|scores| scores.recall)),
            ("macro_f1".to_owned(), mean(|scores| scores.f1)),
        ]);
        // The most confident mistakes first: what a person wants to see.
        let mut mistakes: Vec<&Judged> =
            self.judged.iter().filter(|judged| judged.target != judged.predicted).collect();
        mistakes.sort_by(|a, b| b.probability.total_cmp(&a.probability).then(a.sample.cmp(&b.sample)));
        let listed = |judged: &Judged| {
            json!({
                "sample": judged.sample,
                "label": judged.target,
                "predicted": judged.predicted,
                "probability": judged.probability,
            })
        };
        let details = json!({
            "classes": scores,
            "confusion": counts,
            "mistakes": mistakes.iter().take(20).map(|judged| listed(judged)).collect::<Vec<_>>(),
            "examples": self.judged.iter().take(40).map(listed).collect::<Vec<_>>(),
        });
        Ok(Evaluation { metrics, details })
    }
}

/// Scores of each class from a confusion matrix `[true, predicted]`, row-major.
pub fn class_scores(classes: &[String], counts: &[u64]) -> Vec<ClassScores> {
    let size = classes.len();
    let ratio = |part: u64, whole: u64| if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
    classes
        .iter()
        .enumerate()
        .map(|(class, name)| {
            let right = counts[class * size + class];
            let support: u64 = counts[class * size..(class + 1) * size].iter().sum();
            let predicted: u64 = (0..size).map(|row| counts[row * size + class]).sum();
            ClassScores {
                class: name.clone(),
                precision: ratio(right, predicted),
                recall: ratio(right, support),
                f1: ratio(2 * right, predicted + support),
                support,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::distributed::SingleProcess;
    use tch::Tensor;

    #[test]
    fn scores_are_scikit_learns() -> Result<()> {
        // precision_recall_fscore_support([0,0,1,1,1,2], [0,1,1,1,0,0], zero_division=0); class 3 never occurs.
        let classes: Vec<String> = ["a", "b", "c", "d"].map(str::to_owned).to_vec();
        let mut evaluator = Box::new(ClassificationEvaluator::new(classes));
        let predicted = [0i64, 1, 1, 1, 0, 0];
        let outcome = Outcome {
            prediction: Tensor::from_slice(&predicted).one_hot(4).to_kind(Kind::Float),
            target: Tensor::from_slice(&[0i64, 0, 1, 1, 1, 2]),
        };
        evaluator.add(&[0, 1, 2, 3, 4, 5], &outcome)?;
        evaluator.gather(&mut SingleProcess)?;
        let evaluation = evaluator.finish()?;
        let close = |name: &str, expected: f64| {
            let value = evaluation.metrics[name];
            assert!((value - expected).abs() < 1e-12, "{name}: {value}, expected {expected}");
        };
        close("macro_precision", (1.0 / 3.0 + 2.0 / 3.0 + 0.0) / 3.0);
        close("macro_recall", (0.5 + 2.0 / 3.0 + 0.0) / 3.0);
        close("macro_f1", (0.4 + 2.0 / 3.0 + 0.0) / 3.0);
        assert_eq!(evaluation.details["confusion"][4], json!(1));
        assert_eq!(evaluation.details["mistakes"].as_array().map(Vec::len), Some(3));
        Ok(())
    }
}
