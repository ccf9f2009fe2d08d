//! Metrics of classification from collected predictions, with scikit-learn's definitions.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tch::Kind;

use super::calibration;
use super::{Evaluation, Evaluator, Outcome, PredictedSample};
use crate::distributed::Reducer;

/// The metrics that [`ClassificationEvaluator`] and the running sums of a classification task yield.
pub const METRICS: &[&str] = &[
    "loss",
    "accuracy",
    "top5_accuracy",
    "macro_precision",
    "macro_recall",
    "macro_f1",
    "weighted_precision",
    "weighted_recall",
    "weighted_f1",
    "auroc",
    "average_precision",
    "ece",
];

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
    /// Area under the ROC curve of this class against the rest; none where either side is empty.
    pub auroc: Option<f64>,
    /// Area under the precision-recall curve as a sum over thresholds; none where the class does not occur.
    pub average_precision: Option<f64>,
}

impl ClassScores {
    /// From the numbers of right predictions, of predictions and of samples of a class, and from the score of every sample with whether it is of the
    /// class, which are sorted.
    pub(super) fn of(
        class: &str,
        [right, predicted, support]: [u64; 3],
        ranked: &mut [(f32, bool)],
    ) -> ClassScores {
        ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
        ClassScores {
            class: class.to_owned(),
            precision: ratio(right, predicted),
            recall: ratio(right, support),
            f1: ratio(2 * right, predicted + support),
            support,
            auroc: area_under_roc(ranked),
            average_precision: average_precision(ranked),
        }
    }
}

impl From<ClassScores> for crate::reporting::ClassScores {
    fn from(scores: ClassScores) -> Self {
        let ClassScores { class: name, precision, recall, f1, support, .. } = scores;
        Self { name, precision, recall, f1, support }
    }
}

/// The rows of all processes in the order of their samples, which the first value numbers, each once.
pub(super) fn rows_by_sample(gathered: &[f64], width: usize) -> Vec<&[f64]> {
    let mut rows: Vec<&[f64]> = gathered.chunks_exact(width).collect();
    rows.sort_by(|a, b| a[0].total_cmp(&b[0]));
    rows.dedup_by(|a, b| a[0] == b[0]);
    rows
}

/// A sample that an evaluation lists (`examples`, `mistakes` of its details).
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Judged {
    /// Its number in the data set.
    pub sample: usize,
    /// Its class.
    pub label: usize,
    /// The most probable class.
    pub predicted: usize,
    /// The probability of that class; none where it was not finite, which JSON cannot say.
    pub probability: Option<f32>,
}

impl Judged {
    /// In words. Classes without a name are called by their numbers.
    pub fn named(&self, classes: &[String]) -> PredictedSample {
        let name = |class: usize| classes.get(class).cloned().unwrap_or_else(|| class.to_string());
        PredictedSample {
            sample: self.sample,
            label: name(self.label),
            prediction: name(self.predicted),
            probability: self.probability.map(f64::from),
        }
    }
}

/// Collects true classes and the probabilities of all classes.
pub struct ClassificationEvaluator {
    classes: Vec<String>,
    samples: Vec<usize>,
    targets: Vec<usize>,
    /// `[sample, class]`
    probabilities: Vec<f32>,
}

impl ClassificationEvaluator {
    /// An empty collection for these classes.
    pub fn new(classes: Vec<String>) -> Self {
        Self { classes, samples: Vec::new(), targets: Vec::new(), probabilities: Vec::new() }
    }

    /// The probabilities of one sample.
    fn row(&self, position: usize) -> &[f32] {
        let size = self.classes.len();
        &self.probabilities[position * size..(position + 1) * size]
    }

    /// The scores of each class against the rest.
    fn class_scores(&self, counts: &[u64]) -> Vec<ClassScores> {
        let size = self.classes.len();
        let scores = |(class, name): (usize, &String)| {
            let right = counts[class * size + class];
            let support: u64 = counts[class * size..(class + 1) * size].iter().sum();
            let predicted: u64 = (0..size).map(|row| counts[row * size + class]).sum();
            let mut ranked: Vec<(f32, bool)> = (0..self.targets.len())
                .map(|position| (self.row(position)[class], self.targets[position] == class))
                .collect();
            ClassScores::of(name, [right, predicted, support], &mut ranked)
        };
        self.classes.iter().enumerate().map(scores).collect()
    }

    /// Share of the samples whose class is among the `k` most probable; of equal ones the later class counts as more probable, as
    /// in `top_k_accuracy_score`.
    fn top_k_accuracy(&self, k: usize) -> f64 {
        let within = |position: usize| {
            let (row, target) = (self.row(position), self.targets[position]);
            let ahead =
                |class: usize| row[class] > row[target] || (row[class] == row[target] && class > target);
            (0..row.len()).filter(|&class| ahead(class)).count() < k
        };
        (0..self.targets.len()).filter(|&position| within(position)).count() as f64
            / self.targets.len() as f64
    }
}

impl Evaluator for ClassificationEvaluator {
    /// `prediction` is `[batch, classes]` logits, `target` `[batch]` class numbers.
    fn add(&mut self, samples: &[usize], outcome: &Outcome) -> Result<()> {
        let probabilities = outcome.prediction.f_softmax(-1, Kind::Float)?.f_flatten(0, -1)?;
        self.probabilities.extend(Vec::<f32>::try_from(probabilities)?);
        let targets = Vec::<i64>::try_from(outcome.target.f_to_kind(Kind::Int64)?)?;
        self.targets.extend(targets.into_iter().map(|target| target as usize));
        self.samples.extend_from_slice(samples);
        Ok(())
    }

    fn gather(&mut self, reducer: &mut dyn Reducer) -> Result<()> {
        if reducer.world_size() == 1 {
            return Ok(());
        }
        let size = self.classes.len();
        let mut rows = Vec::with_capacity(self.samples.len() * (size + 2));
        for (position, (&sample, &target)) in self.samples.iter().zip(&self.targets).enumerate() {
            rows.extend([sample as f64, target as f64]);
            rows.extend(self.row(position).iter().map(|&probability| f64::from(probability)));
        }
        let gathered = reducer.gather(rows)?;
        let rows = rows_by_sample(&gathered, size + 2);
        self.samples = rows.iter().map(|row| row[0] as usize).collect();
        self.targets = rows.iter().map(|row| row[1] as usize).collect();
        self.probabilities = rows.iter().flat_map(|row| row[2..].iter().map(|&value| value as f32)).collect();
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Evaluation> {
        let size = self.classes.len();
        let predicted: Vec<usize> =
            (0..self.targets.len()).map(|position| first_largest(self.row(position))).collect();
        let mut counts = vec![0u64; size * size];
        for (&target, &predicted) in self.targets.iter().zip(&predicted) {
            counts[target * size + predicted] += 1;
        }
        let scores = self.class_scores(&counts);
        let mut metrics = averages(&scores, &counts, self.top_k_accuracy(5));
        let confidence = |position: usize| self.row(position)[predicted[position]];
        let bins = calibration::bins((0..predicted.len()).map(|position| {
            (f64::from(confidence(position)), predicted[position] == self.targets[position])
        }));
        metrics.insert("ece".to_owned(), calibration::expected_error(&bins));

        let listed = |&position: &usize| Judged {
            sample: self.samples[position],
            label: self.targets[position],
            predicted: predicted[position],
            probability: Some(self.row(position)[predicted[position]]).filter(|value| value.is_finite()),
        };
        // The most confident mistakes first: what a person wants to see.
        let mut mistakes: Vec<usize> =
            (0..predicted.len()).filter(|&position| predicted[position] != self.targets[position]).collect();
        mistakes.sort_by(|&a, &b| confidence(b).total_cmp(&confidence(a)).then(a.cmp(&b)));
        let mut uncertain: Vec<usize> = (0..predicted.len()).collect();
        let entropies: Vec<f64> = uncertain.iter().map(|&position| entropy(self.row(position))).collect();
        uncertain.sort_by(|&a, &b| entropies[b].total_cmp(&entropies[a]).then(a.cmp(&b)));
        let details = json!({
            "classes": scores,
            "confusion": counts,
            "reliability": bins,
            "mistakes": mistakes.iter().take(LISTED_MISTAKES).map(listed).collect::<Vec<_>>(),
            "uncertain": uncertain.iter().take(LISTED_MISTAKES).map(listed).collect::<Vec<_>>(),
            "examples": evenly(predicted.len(), LISTED_EXAMPLES).map(|position| listed(&position)).collect::<Vec<_>>(),
        });
        Ok(Evaluation { metrics, details })
    }
}

/// Up to `most` of `count` positions at even distances: data are often sorted by class.
pub fn evenly(count: usize, most: usize) -> impl Iterator<Item = usize> {
    let taken = count.min(most);
    (0..taken).map(move |number| number * count / taken)
}

const LISTED_MISTAKES: usize = 20;
const LISTED_EXAMPLES: usize = 40;

/// How undecided probabilities are, in nats.
fn entropy(probabilities: &[f32]) -> f64 {
    let part = |&probability: &f32| {
        let probability = f64::from(probability);
        if probability > 0.0 { -probability * probability.ln() } else { 0.0 }
    };
    probabilities.iter().map(part).sum()
}

/// A share; 0 of nothing.
pub(super) fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// The first of the largest values, as `argmax` takes it.
fn first_largest(row: &[f32]) -> usize {
    let mut best = 0;
    for (class, value) in row.iter().enumerate() {
        if *value > row[best] {
            best = class;
        }
    }
    best
}

/// Averages over classes. Classes that neither occur nor are predicted do not count, as in scikit-learn, which never sees them.
fn averages(scores: &[ClassScores], counts: &[u64], top5_accuracy: f64) -> BTreeMap<String, f64> {
    let size = scores.len();
    let seen =
        |class: usize| scores[class].support > 0 || (0..size).any(|row| counts[row * size + class] > 0);
    let present: Vec<&ClassScores> =
        (0..size).filter(|&class| seen(class)).map(|class| &scores[class]).collect();
    let all: f64 = scores.iter().map(|scores| scores.support as f64).sum();
    let mut metrics = BTreeMap::from([("top5_accuracy".to_owned(), top5_accuracy)]);
    type Score = fn(&ClassScores) -> f64;
    let named: [(&str, Score); 3] = [
        ("precision", |scores| scores.precision),
        ("recall", |scores| scores.recall),
        ("f1", |scores| scores.f1),
    ];
    for (name, value) in named {
        let macro_mean = present.iter().map(|scores| value(scores)).sum::<f64>() / present.len() as f64;
        let weighted = present.iter().map(|scores| value(scores) * scores.support as f64).sum::<f64>() / all;
        metrics.insert(format!("macro_{name}"), macro_mean);
        metrics.insert(format!("weighted_{name}"), weighted);
    }
    // With two classes the second is the positive one; else the mean of one against the rest.
    let area = |value: fn(&ClassScores) -> Option<f64>| {
        let of = if size == 2 { &scores[1..] } else { scores };
        let defined: Vec<f64> = of.iter().filter_map(value).collect();
        if defined.is_empty() { f64::NAN } else { defined.iter().sum::<f64>() / defined.len() as f64 }
    };
    metrics.insert("auroc".to_owned(), area(|scores| scores.auroc));
    metrics.insert("average_precision".to_owned(), area(|scores| scores.average_precision));
    metrics
}

/// Groups of equal scores in descending order, as (positives, negatives).
fn tied_groups(ranked: &[(f32, bool)]) -> impl Iterator<Item = (f64, f64)> {
    ranked.chunk_by(|a, b| a.0 == b.0).map(|group| {
        let positives = group.iter().filter(|(_, positive)| *positive).count();
        (positives as f64, (group.len() - positives) as f64)
    })
}

/// `roc_auc_score` from scores in descending order: the share of (positive, negative) pairs in the right order, ties counting half.
fn area_under_roc(ranked: &[(f32, bool)]) -> Option<f64> {
    let (mut positives, mut negatives, mut pairs) = (0.0, 0.0, 0.0);
    for (group_positives, group_negatives) in tied_groups(ranked) {
        pairs += group_negatives * (positives + group_positives / 2.0);
        positives += group_positives;
        negatives += group_negatives;
    }
    (positives > 0.0 && negatives > 0.0).then(|| pairs / (positives * negatives))
}

/// `average_precision_score` from scores in descending order: Σ (recall − previous recall) · precision over thresholds.
fn average_precision(ranked: &[(f32, bool)]) -> Option<f64> {
    let all = ranked.iter().filter(|(_, positive)| *positive).count() as f64;
    let (mut positives, mut taken, mut sum) = (0.0, 0.0, 0.0);
    for (group_positives, group_negatives) in tied_groups(ranked) {
        positives += group_positives;
        taken += group_positives + group_negatives;
        sum += group_positives / all * (positives / taken);
    }
    (all > 0.0).then_some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Tensor;

    fn evaluate(classes: usize, probabilities: &[f32], targets: &[i64]) -> Result<Evaluation> {
        let names = (0..classes).map(|class| class.to_string()).collect();
        let mut evaluator = Box::new(ClassificationEvaluator::new(names));
        let prediction = Tensor::from_slice(probabilities).view([-1, classes as i64]).log();
        let samples: Vec<usize> = (0..targets.len()).collect();
        evaluator.add(&samples, &Outcome { prediction, target: Tensor::from_slice(targets) })?;
        evaluator.finish()
    }

    #[test]
    fn hand_computed_scores() -> Result<()> {
        // Predicted 0 1 1 1 0 0 for 0 0 1 1 1 2; class 3 never occurs.
        let one_hot = |class: usize| (0..4).map(move |other| if other == class { 0.97f32 } else { 0.01 });
        let probabilities: Vec<f32> = [0, 1, 1, 1, 0, 0].into_iter().flat_map(one_hot).collect();
        let evaluation = evaluate(4, &probabilities, &[0, 0, 1, 1, 1, 2])?;
        let close = |name: &str, expected: f64| {
            let value = evaluation.metrics[name];
            assert!((value - expected).abs() < 1e-12, "{name}: {value}, expected {expected}");
        };
        close("macro_precision", (1.0 / 3.0 + 2.0 / 3.0 + 0.0) / 3.0);
        close("macro_recall", (0.5 + 2.0 / 3.0 + 0.0) / 3.0);
        close("macro_f1", (0.4 + 2.0 / 3.0 + 0.0) / 3.0);
        close("weighted_f1", (2.0 * 0.4 + 3.0 * (2.0 / 3.0) + 0.0) / 6.0);
        close("top5_accuracy", 1.0);
        assert_eq!(evaluation.details["confusion"][4], json!(1));
        assert_eq!(evaluation.details["mistakes"].as_array().map(Vec::len), Some(3));
        Ok(())
    }

    #[test]
    fn examples_are_spread_over_all_samples() {
        assert_eq!(evenly(10, 4).collect::<Vec<_>>(), [0, 2, 5, 7]);
        assert_eq!(evenly(3, 4).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(evenly(0, 4).count(), 0);
    }

    #[test]
    fn metrics_are_scikit_learns() -> Result<()> {
        // Made by scripts/references/classification_metrics.py.
        let fixture: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/fixtures/classification_metrics.json"))?;
        let cases = fixture["cases"].as_array().cloned().unwrap_or_default();
        assert_eq!(cases.len(), 7);
        for case in cases {
            let name = case["name"].as_str().unwrap_or_default();
            let classes: usize = serde_json::from_value(case["num_classes"].clone())?;
            let mut evaluator =
                Box::new(ClassificationEvaluator::new((0..classes).map(|class| class.to_string()).collect()));
            evaluator.probabilities = serde_json::from_value(case["probabilities"].clone())?;
            evaluator.targets = serde_json::from_value(case["targets"].clone())?;
            evaluator.samples = (0..evaluator.targets.len()).collect();
            let evaluation = evaluator.finish()?;
            let expected: BTreeMap<String, Option<f64>> = serde_json::from_value(case["metrics"].clone())?;
            for (metric, expected) in expected.into_iter().filter(|(metric, _)| metric != "accuracy") {
                let value = evaluation.metrics[&metric];
                match expected {
                    Some(expected) => {
                        assert!((value - expected).abs() < 1e-9, "{name}, {metric}: {value}, not {expected}")
                    }
                    None => assert!(value.is_nan(), "{name}, {metric}: {value}"),
                }
            }
            assert_eq!(evaluation.details["confusion"], case["confusion"], "{name}");
            let per_class = case["classes"].as_array().cloned().unwrap_or_default();
            for (class, expected) in per_class.iter().enumerate() {
                for key in ["precision", "recall", "f1", "support"] {
                    let (value, expected) = (&evaluation.details["classes"][class][key], &expected[key]);
                    let difference = value
                        .as_f64()
                        .zip(expected.as_f64())
                        .map(|(value, expected)| (value - expected).abs());
                    assert!(
                        difference.is_some_and(|difference| difference < 1e-9),
                        "{name}, class {class}, {key}"
                    );
                }
            }
        }
        Ok(())
    }

    #[test]
    fn areas_with_ties_and_without_a_side() -> Result<()> {
        // roc_auc_score([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]) = 0.75, average_precision_score = 0.8333…
        let binary: Vec<f32> = [0.1f32, 0.4, 0.35, 0.8].iter().flat_map(|&p| [1.0 - p, p]).collect();
        let metrics = evaluate(2, &binary, &[0, 0, 1, 1])?.metrics;
        assert!((metrics["auroc"] - 0.75).abs() < 1e-12);
        assert!((metrics["average_precision"] - 5.0 / 6.0).abs() < 1e-12);
        let tied = evaluate(2, &[0.5, 0.5, 0.5, 0.5], &[0, 1])?.metrics;
        assert_eq!((tied["auroc"], tied["average_precision"]), (0.5, 0.5));
        let single = evaluate(2, &[0.2, 0.8], &[1])?.metrics;
        assert!(single["auroc"].is_nan());
        assert_eq!(single["average_precision"], 1.0);
        Ok(())
    }
}
