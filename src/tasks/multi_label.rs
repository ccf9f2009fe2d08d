//! Metrics of classification where a sample may have several labels, or none, with scikit-learn's definitions.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::json;
use tch::Kind;

use super::classification::{ClassScores, evenly, ratio, rows_by_sample};
use super::{Evaluation, Evaluator, Outcome, PredictedSample};
use crate::distributed::Reducer;

/// The metrics that [`MultiLabelEvaluator`] and the running sums of a multi-label task yield. `accuracy` asks for all labels of a sample.
pub const METRICS: &[&str] = &[
    "loss",
    "micro_f1",
    "accuracy",
    "macro_precision",
    "macro_recall",
    "macro_f1",
    "micro_precision",
    "micro_recall",
    "auroc",
    "average_precision",
];

/// A label is predicted from this probability on.
pub const THRESHOLD: f32 = 0.5;

/// Collects the labels of each sample and the probability of every label.
pub struct MultiLabelEvaluator {
    classes: Vec<String>,
    samples: Vec<usize>,
    /// `[sample, label]`
    targets: Vec<bool>,
    /// `[sample, label]`
    probabilities: Vec<f32>,
}

impl MultiLabelEvaluator {
    /// An empty collection for these labels.
    pub fn new(classes: Vec<String>) -> Self {
        Self { classes, samples: Vec::new(), targets: Vec::new(), probabilities: Vec::new() }
    }

    fn scores(&self) -> Vec<ClassScores> {
        let size = self.classes.len();
        let of = |(class, name): (usize, &String)| {
            let mut ranked: Vec<(f32, bool)> = (0..self.samples.len())
                .map(|sample| {
                    (self.probabilities[sample * size + class], self.targets[sample * size + class])
                })
                .collect();
            let right = ranked.iter().filter(|(p, target)| *p >= THRESHOLD && *target).count() as u64;
            let predicted = ranked.iter().filter(|(p, _)| *p >= THRESHOLD).count() as u64;
            let support = ranked.iter().filter(|(_, target)| *target).count() as u64;
            ClassScores::of(name, [right, predicted, support], &mut ranked)
        };
        self.classes.iter().enumerate().map(of).collect()
    }

    /// The names of the labels of a sample for which `holds`.
    fn names(&self, sample: usize, holds: impl Fn(usize) -> bool) -> String {
        let size = self.classes.len();
        let listed: Vec<&str> = (0..size)
            .filter(|&class| holds(sample * size + class))
            .map(|class| self.classes[class].as_str())
            .collect();
        if listed.is_empty() { "none".to_owned() } else { listed.join(", ") }
    }

    /// A sample in words; the probability is that of its least certain label.
    fn described(&self, sample: usize) -> PredictedSample {
        let size = self.classes.len();
        let certainty = |position: usize| {
            let probability = f64::from(self.probabilities[position]);
            probability.max(1.0 - probability)
        };
        PredictedSample {
            sample: self.samples[sample],
            label: self.names(sample, |position| self.targets[position]),
            prediction: self.names(sample, |position| self.probabilities[position] >= THRESHOLD),
            probability: (sample * size..(sample + 1) * size)
                .map(certainty)
                .reduce(f64::min)
                .filter(|probability| probability.is_finite()),
        }
    }
}

impl Evaluator for MultiLabelEvaluator {
    /// `prediction` is `[batch, labels]` logits, `target` `[batch, labels]` of 0 and 1.
    fn add(&mut self, samples: &[usize], outcome: &Outcome) -> Result<()> {
        let probabilities = outcome.prediction.f_to_kind(Kind::Float)?.f_sigmoid()?.f_flatten(0, -1)?;
        self.probabilities.extend(Vec::<f32>::try_from(probabilities)?);
        self.targets.extend(Vec::<bool>::try_from(outcome.target.f_gt(0.5)?.f_flatten(0, -1)?)?);
        self.samples.extend_from_slice(samples);
        Ok(())
    }

    fn gather(&mut self, reducer: &mut dyn Reducer) -> Result<()> {
        if reducer.world_size() == 1 {
            return Ok(());
        }
        let size = self.classes.len();
        let mut rows = Vec::with_capacity(self.samples.len() * (2 * size + 1));
        for (position, &sample) in self.samples.iter().enumerate() {
            rows.push(sample as f64);
            let of_sample = position * size..(position + 1) * size;
            rows.extend(self.targets[of_sample.clone()].iter().map(|&target| f64::from(u8::from(target))));
            rows.extend(self.probabilities[of_sample].iter().map(|&probability| f64::from(probability)));
        }
        let gathered = reducer.gather(rows)?;
        let rows = rows_by_sample(&gathered, 2 * size + 1);
        self.samples = rows.iter().map(|row| row[0] as usize).collect();
        self.targets = rows.iter().flat_map(|row| row[1..=size].iter().map(|&value| value > 0.5)).collect();
        self.probabilities =
            rows.iter().flat_map(|row| row[size + 1..].iter().map(|&value| value as f32)).collect();
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Evaluation> {
        let size = self.classes.len();
        let scores = self.scores();
        let decided: Vec<bool> = self.probabilities.iter().map(|&p| p >= THRESHOLD).collect();
        let count = |holds: fn(bool, bool) -> bool| {
            decided.iter().zip(&self.targets).filter(|(decided, target)| holds(**decided, **target)).count()
                as u64
        };
        let (right, predicted, support) = (
            count(|decided, target| decided && target),
            count(|decided, _| decided),
            count(|_, target| target),
        );
        let wrong_samples: Vec<usize> = (0..self.samples.len())
            .filter(|sample| {
                let of_sample = sample * size..(sample + 1) * size;
                decided[of_sample.clone()] != self.targets[of_sample]
            })
            .collect();
        let mean = |value: fn(&ClassScores) -> f64| scores.iter().map(value).sum::<f64>() / size as f64;
        let area = |value: fn(&ClassScores) -> Option<f64>| {
            let defined: Vec<f64> = scores.iter().filter_map(value).collect();
            if defined.is_empty() { f64::NAN } else { defined.iter().sum::<f64>() / defined.len() as f64 }
        };
        let samples = self.samples.len() as f64;
        let metrics = BTreeMap::from([
            ("accuracy".to_owned(), 1.0 - wrong_samples.len() as f64 / samples),
            ("macro_precision".to_owned(), mean(|scores| scores.precision)),
            ("macro_recall".to_owned(), mean(|scores| scores.recall)),
            ("macro_f1".to_owned(), mean(|scores| scores.f1)),
            ("micro_precision".to_owned(), ratio(right, predicted)),
            ("micro_recall".to_owned(), ratio(right, support)),
            ("micro_f1".to_owned(), ratio(2 * right, predicted + support)),
            ("auroc".to_owned(), area(|scores| scores.auroc)),
            ("average_precision".to_owned(), area(|scores| scores.average_precision)),
        ]);
        let mut mistakes: Vec<PredictedSample> =
            wrong_samples.iter().map(|&sample| self.described(sample)).collect();
        let confidence = |sample: &PredictedSample| sample.probability.unwrap_or_default();
        mistakes.sort_by(|a, b| confidence(b).total_cmp(&confidence(a)).then(a.sample.cmp(&b.sample)));
        mistakes.truncate(LISTED_MISTAKES);
        let examples: Vec<PredictedSample> =
            evenly(self.samples.len(), LISTED_EXAMPLES).map(|sample| self.described(sample)).collect();
        let mut uncertain: Vec<PredictedSample> =
            (0..self.samples.len()).map(|sample| self.described(sample)).collect();
        uncertain.sort_by(|a, b| confidence(a).total_cmp(&confidence(b)).then(a.sample.cmp(&b.sample)));
        uncertain.truncate(LISTED_MISTAKES);
        let details = json!({
            "classes": scores, "mistakes": mistakes, "uncertain": uncertain, "examples": examples,
        });
        Ok(Evaluation { metrics, details })
    }
}

const LISTED_MISTAKES: usize = 20;
const LISTED_EXAMPLES: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn metrics_are_scikit_learns() -> Result<()> {
        // Made by scripts/references/multi_label_metrics.py.
        let fixture: Value =
            serde_json::from_str(include_str!("../../tests/fixtures/multi_label_metrics.json"))?;
        let cases = fixture["cases"].as_array().cloned().unwrap_or_default();
        assert_eq!(cases.len(), 4);
        for case in cases {
            let name = case["name"].as_str().unwrap_or_default();
            let probabilities: Vec<Vec<f32>> = serde_json::from_value(case["probabilities"].clone())?;
            let targets: Vec<Vec<u8>> = serde_json::from_value(case["targets"].clone())?;
            let classes = (0..targets[0].len()).map(|class| class.to_string()).collect();
            let mut evaluator = Box::new(MultiLabelEvaluator::new(classes));
            evaluator.samples = (0..targets.len()).collect();
            evaluator.targets = targets.concat().into_iter().map(|target| target == 1).collect();
            evaluator.probabilities = probabilities.concat();
            let evaluation = evaluator.finish()?;
            let expected: BTreeMap<String, Option<f64>> = serde_json::from_value(case["metrics"].clone())?;
            assert_eq!(expected.len(), METRICS.len() - 1, "{name}");
            for (metric, expected) in expected {
                let value = evaluation.metrics[&metric];
                match expected {
                    Some(expected) => {
                        assert!((value - expected).abs() < 1e-9, "{name}, {metric}: {value}, not {expected}")
                    }
                    None => assert!(value.is_nan(), "{name}, {metric}: {value}"),
                }
            }
            let per_label = case["labels"].as_array().cloned().unwrap_or_default();
            for (label, expected) in per_label.iter().enumerate() {
                for key in ["precision", "recall", "f1", "support"] {
                    let (value, expected) = (&evaluation.details["classes"][label][key], &expected[key]);
                    let close = value
                        .as_f64()
                        .zip(expected.as_f64())
                        .is_some_and(|(value, expected)| (value - expected).abs() < 1e-9);
                    assert!(close, "{name}, label {label}, {key}: {value}, not {expected}");
                }
            }
        }
        Ok(())
    }
}
