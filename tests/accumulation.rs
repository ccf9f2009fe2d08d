//! Gradients accumulated over small batches equal those of one large batch.

use std::path::Path;

use anyhow::Result;
use tch::{Device, Kind, Tensor};
use tch_suite::data::Batch;
use tch_suite::distributed::SingleProcess;
use tch_suite::models::{Parameters, Scope};
use tch_suite::tasks::{Mode, StepOutput, Task};
use tch_suite::training::config::TrainingConfig;
use tch_suite::training::step::Stepper;

use crate::support::runs::{tensors, train};
use crate::support::{Scratch, assert_close, numbers, small_data};

/// A network of two layers in float64 whose summed loss is the squared error.
struct Regression {
    parameters: Parameters,
    layers: [(Tensor, Tensor); 2],
}

struct Rows {
    inputs: Tensor,
    targets: Tensor,
}

impl Batch for Rows {
    fn to_device(self, device: Device) -> Result<Self> {
        Ok(Rows { inputs: self.inputs.f_to_device(device)?, targets: self.targets.f_to_device(device)? })
    }
}

/// Numbers between −1 and 1 that do not repeat.
fn waves(shape: &[i64], frequency: f64) -> Tensor {
    let count = shape.iter().product::<i64>();
    (Tensor::arange(count, (Kind::Double, Device::Cpu)) * frequency).sin().reshape(shape)
}

impl Regression {
    fn new() -> Result<Regression> {
        let parameters = Parameters::new(Device::Cpu);
        let layer = |scope: &Scope, inputs, outputs, frequency: f64| -> Result<(Tensor, Tensor)> {
            let weight = scope.given_parameter("weight", waves(&[outputs, inputs], frequency) * 0.5)?;
            Ok((weight, scope.given_parameter("bias", waves(&[outputs], frequency + 1.0) * 0.1)?))
        };
        let root = parameters.root();
        let layers = [layer(&root.child("0"), 7, 11, 1.3)?, layer(&root.child("2"), 11, 3, 2.1)?];
        Ok(Regression { parameters, layers })
    }
}

impl Task for Regression {
    type Batch = Rows;

    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn metrics(&self) -> &'static [&'static str] {
        &["loss"]
    }

    fn weight(&self, batch: &Rows, _mode: Mode) -> Result<f64> {
        Ok(batch.inputs.size()[0] as f64)
    }

    fn step(&mut self, batch: &Rows, _mode: Mode) -> Result<StepOutput> {
        let [(first, first_bias), (second, second_bias)] = &self.layers;
        let hidden = batch.inputs.linear(first, Some(first_bias)).tanh();
        let error = hidden.linear(second, Some(second_bias)) - &batch.targets;
        Ok(StepOutput { loss_sum: error.square().sum(Kind::Double), sums: Vec::new(), outcome: None })
    }
}

/// Weights after twelve steps on 48 rows each, cut into micro-batches of these sizes.
fn weights_after(sizes: &[i64]) -> Result<Vec<(String, Tensor)>> {
    let config: TrainingConfig = serde_json::from_value(serde_json::json!({
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "nesterov": true, "weight_decay": 0.01},
        "clip_norm": 0.5,
        "l2": 0.01,
    }))?;
    let mut task = Regression::new()?;
    let mut stepper = Stepper::new(&config, &task)?;
    for step in 0..12 {
        let inputs = waves(&[48, 7], 0.7 + step as f64);
        let targets = waves(&[48, 3], 0.3 + step as f64);
        let mut start = 0;
        let micro_batches = sizes.iter().map(|&size| {
            let rows =
                Rows { inputs: inputs.narrow(0, start, size), targets: targets.narrow(0, start, size) };
            start += size;
            rows
        });
        let micro_batches: Vec<Rows> = micro_batches.collect();
        assert_eq!(start, 48);
        stepper.step(&mut task, micro_batches, step, 0.05, &mut SingleProcess)?;
    }
    Ok(task.parameters.entries().into_iter().map(|entry| (entry.name, entry.tensor)).collect())
}

#[test]
fn in_float64_the_weights_agree_to_ten_digits() -> Result<()> {
    let whole = weights_after(&[48])?;
    let initial = Regression::new()?;
    for sizes in [&[16, 16, 16][..], &[1, 30, 17], &[1; 48]] {
        for ((name, expected), (_, found)) in whole.iter().zip(weights_after(sizes)?) {
            assert_close(&numbers(&found), &numbers(expected), 1e-10, &format!("{name} in parts {sizes:?}"));
            let moved = (expected - initial.parameters.get(name).unwrap()).abs().max().double_value(&[]);
            assert!(moved > 0.01, "{name} was hardly trained");
        }
    }
    Ok(())
}

/// Trains the small perceptron with batches of 12 samples, as they are and in parts, and compares the final weights.
fn parts_equal_the_whole(settings: &[&str]) {
    let folder = Scratch::new();
    let data = folder.join("data");
    // 207 to train on: 17 batches of 12 and one of 3; in parts of 4, the last step is one part of 3.
    small_data::write(&data, 230, 0);
    let trained = |name: &str, parts: &[&str]| {
        let run = folder.join(name);
        let common = ["training.epochs=2", "training.optimizer={\"name\": \"sgd\", \"lr\": 0.02}"];
        train("mlp", &data, &run, &[&common, settings, parts].concat());
        run
    };
    let weights = |run: &Path| tensors(run, "last", "model");
    let whole = trained("whole", &["training.batch_size=12"]);
    let parts = trained("parts", &["training.batch_size=4", "training.accumulate=3"]);
    let other = trained("other", &["training.batch_size=4"]);
    for (name, expected) in weights(&whole) {
        assert_close(&numbers(&weights(&parts)[&name]), &numbers(&expected), 1e-6, &name);
        let distance = (&weights(&other)[&name] - &expected).abs().max().double_value(&[]);
        assert!(distance > 1e-4, "{name} is the same in another training, so this says nothing");
    }
}

#[test]
fn in_float32_the_weights_agree_to_six_digits() {
    parts_equal_the_whole(&[]);
}

#[test]
fn class_weights_are_counted_over_the_whole_step() {
    parts_equal_the_whole(&["training.class_weights=[0.2, 1.0, 3.0, 0.5]", "training.label_smoothing=0.1"]);
}
