//! Whether a classifier's probabilities are true: of the predictions made with 80 % confidence, 80 % should be right. Guo, Pleiss, Sun,
//! Weinberger, "On calibration of modern neural networks", 2017.

use anyhow::Result;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::bail_input;

/// Bins of equal width that confidences are sorted into, as in the paper and in torchmetrics.
const BINS: usize = 15;

/// The predictions whose confidence falls into one bin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct Bin {
    /// How many there are.
    pub count: u64,
    /// Their mean confidence.
    pub confidence: f64,
    /// Which share of them is right.
    pub accuracy: f64,
}

/// Sorts predictions, as (confidence, whether it is right), into bins; those without a finite confidence belong to none.
pub fn bins(predictions: impl IntoIterator<Item = (f64, bool)>) -> Vec<Bin> {
    let mut sums = vec![(0u64, 0.0, 0u64); BINS];
    for (confidence, right) in predictions.into_iter().filter(|(confidence, _)| confidence.is_finite()) {
        // A bin reaches from its lower bound, excluded, to its upper one.
        let bin = ((confidence * BINS as f64).ceil() as usize).clamp(1, BINS) - 1;
        sums[bin].0 += 1;
        sums[bin].1 += confidence;
        sums[bin].2 += u64::from(right);
    }
    let mean = |(count, confidence, right): (u64, f64, u64)| match count {
        0 => Bin::default(),
        _ => Bin { count, confidence: confidence / count as f64, accuracy: right as f64 / count as f64 },
    };
    sums.into_iter().map(mean).collect()
}

/// Expected calibration error: the mean distance of confidence and accuracy over the bins, weighted by their counts.
pub fn expected_error(bins: &[Bin]) -> f64 {
    let all: u64 = bins.iter().map(|bin| bin.count).sum();
    let distance = |bin: &Bin| bin.count as f64 * (bin.confidence - bin.accuracy).abs();
    bins.iter().map(distance).sum::<f64>() / all as f64
}

/// The number that logits are divided by so that the cross-entropy is least.
///
/// `logits` are `[sample, class]`, `labels` `[sample]` class numbers. The loss is convex in the inverse temperature, so Newton's method, kept
/// between bounds, finds the one minimum.
///
/// # Errors
/// The loss has no minimum: every sample is right, so that no confidence is too much, or none is better than chance.
pub fn fit_temperature(logits: &Tensor, labels: &Tensor) -> Result<f64> {
    let logits = logits.f_to_kind(Kind::Double)?;
    let target = logits.f_gather(1, &labels.f_unsqueeze(1)?, false)?.f_squeeze_dim(1)?; // [sample]
    // With p = softmax(β · logits): the derivative of the mean loss in β is E_p[logit] − logit of the class, its second the variance under p.
    let slope = |inverse: f64| -> Result<(f64, f64)> {
        let probabilities = (&logits * inverse).f_softmax(1, Kind::Double)?;
        let mean = (&probabilities * &logits).f_sum_dim_intlist(1, false, Kind::Double)?;
        let square = (&probabilities * &logits * &logits).f_sum_dim_intlist(1, false, Kind::Double)?;
        let first = (&mean - &target).f_mean(Kind::Double)?;
        let second = (square - &mean * &mean).f_mean(Kind::Double)?;
        Ok((first.f_double_value(&[])?, second.f_double_value(&[])?))
    };
    let (mut low, mut high) = (1e-3, 1e3);
    if slope(low)?.0 >= 0.0 || slope(high)?.0 <= 0.0 {
        bail_input!(
            "there is no best temperature for these predictions: either every one is right, or they are no better than chance"
        );
    }
    let mut inverse = 1.0;
    for _ in 0..100 {
        let (first, second) = slope(inverse)?;
        if first > 0.0 {
            high = inverse
        } else {
            low = inverse
        }
        let newton = inverse - first / second;
        let next = if newton > low && newton < high { newton } else { (low * high).sqrt() };
        if (next / inverse - 1.0).abs() < 1e-12 {
            inverse = next;
            break;
        }
        inverse = next;
    }
    Ok(1.0 / inverse)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn error_and_temperature_are_the_references() -> Result<()> {
        // Made by scripts/references/calibration.py.
        let fixture: Value = serde_json::from_str(include_str!("../../tests/fixtures/calibration.json"))?;
        for case in fixture["cases"].as_array().into_iter().flatten() {
            let rows: Vec<Vec<f64>> = serde_json::from_value(case["logits"].clone())?;
            let labels: Vec<i64> = serde_json::from_value(case["labels"].clone())?;
            let width = rows[0].len() as i64;
            let logits = Tensor::from_slice(&rows.concat()).view([-1, width]);
            let (confidence, predicted) = logits.softmax(1, Kind::Double).max_dim(1, false);
            let confidence = Vec::<f64>::try_from(confidence)?;
            let predicted = Vec::<i64>::try_from(predicted)?;
            let right = predicted.iter().zip(&labels).map(|(predicted, label)| predicted == label);
            let error = expected_error(&bins(confidence.into_iter().zip(right)));
            let number = |key: &str| case[key].as_f64().unwrap();
            assert!((error - number("ece")).abs() < 1e-6, "{error}");
            let temperature = fit_temperature(&logits, &Tensor::from_slice(&labels))?;
            assert!((temperature / number("temperature") - 1.0).abs() < 1e-5, "{temperature}");
        }
        Ok(())
    }

    #[test]
    fn what_is_always_right_has_no_temperature() {
        let logits = Tensor::from_slice(&[2.0, 0.0, 0.0, 1.0]).view([2, 2]);
        assert!(fit_temperature(&logits, &Tensor::from_slice(&[0i64, 1])).is_err());
        assert!(fit_temperature(&logits, &Tensor::from_slice(&[1i64, 0])).is_err());
    }
}
