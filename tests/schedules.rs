//! Learning rates against PyTorch and transformers.

use serde::Deserialize;
use tch_suite::training::config::TrainingConfig;
use tch_suite::training::metrics::larger_is_better;
use tch_suite::training::schedule::{PlateauState, Schedule};

use crate::support::{data, fixture};

/// One case of `scripts/references/schedules.py`.
#[derive(Deserialize)]
struct Case {
    name: String,
    training: TrainingConfig,
    total_steps: u64,
    steps_per_epoch: u64,
    metric: Option<String>,
    metrics: Option<Vec<f64>>,
    rates: Vec<f64>,
}

fn cases() -> Vec<Case> {
    serde_json::from_value(fixture("lr_schedules.json")["cases"].clone()).unwrap()
}

impl Case {
    fn assert_rates(&self, expected: &[f64]) {
        self.training.validate().unwrap();
        let schedule = Schedule::new(&self.training, self.total_steps, self.steps_per_epoch);
        let mut plateau = PlateauState::default();
        for (step, &expected) in expected.iter().enumerate() {
            let rate = schedule.rate(step as u64, &plateau);
            assert!(
                (rate - expected).abs() <= 1e-6 * expected.abs(),
                "{}: step {step} has the rate {rate}, expected {expected}",
                self.name
            );
            if let (Some(metric), Some(metrics)) = (&self.metric, &self.metrics) {
                schedule.observe(metrics[step], larger_is_better(metric), &mut plateau);
            }
        }
    }
}

#[test]
fn rates_are_those_of_pytorch_and_transformers() {
    let cases = cases();
    let names: std::collections::BTreeSet<String> = cases
        .iter()
        .map(|case| {
            serde_json::to_value(&case.training.schedule).unwrap()["name"].as_str().unwrap().to_owned()
        })
        .collect();
    assert_eq!(names.len(), 10, "not every schedule has a reference: {names:?}");
    for case in &cases {
        assert_eq!(case.rates.len(), 40);
        case.assert_rates(&case.rates);
    }
}

#[test]
fn rates_are_those_of_the_larger_data() {
    let Some(path) = data("parity/lr_schedules.json") else { return };
    let reference: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let cases = cases();
    for (name, rates) in reference["schedules"].as_object().unwrap() {
        let case = cases.iter().find(|case| case.name == *name);
        let case = case.unwrap_or_else(|| panic!("scripts/references/schedules.py has no case {name}"));
        let rates: Vec<f64> = serde_json::from_value(rates.clone()).unwrap();
        case.assert_rates(&rates);
    }
}

#[test]
fn rates_are_defined_beyond_the_end_and_for_the_shortest_runs() {
    for case in cases() {
        for (total, steps_per_epoch) in [(1, 1), (2, 3), (case.total_steps, case.steps_per_epoch)] {
            let schedule = Schedule::new(&case.training, total, steps_per_epoch);
            for step in [0, 1, total, total + 1, 10 * total + 7] {
                let rate = schedule.rate(step, &PlateauState::default());
                assert!(rate.is_finite() && rate >= 0.0, "{}: {rate} at step {step} of {total}", case.name);
            }
        }
    }
}
