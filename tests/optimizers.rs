//! Optimizers, penalties, clipping and averaged weights against PyTorch, and their state.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::Deserialize;
use tch::{Device, Kind, Tensor};
use tch_suite::data::Batch;
use tch_suite::distributed::SingleProcess;
use tch_suite::models::Parameters;
use tch_suite::native::{TensorList, gradients};
use tch_suite::tasks::{Mode, StepOutput, Task};
use tch_suite::training::config::TrainingConfig;
use tch_suite::training::optimizer::Optimizer;
use tch_suite::training::step::Stepper;
use tch_suite::weights::{NamedTensors, read_safetensors, write_safetensors};

use crate::support::{Scratch, assert_close, data, fixture, numbers};

/// One case of `scripts/references/optimizers.py`.
#[derive(Deserialize)]
struct Case {
    name: String,
    training: TrainingConfig,
    after: BTreeMap<u64, After>,
}

/// Parameters after a step, and their average where there is one.
#[derive(Deserialize)]
struct After {
    average: Option<BTreeMap<String, Vec<f64>>>,
    #[serde(flatten)]
    parameters: BTreeMap<String, Vec<f64>>,
}

#[derive(Deserialize)]
struct Initial {
    shape: Vec<i64>,
    values: Vec<f32>,
}

#[derive(Deserialize)]
struct Reference {
    initial: BTreeMap<String, Initial>,
    gradients: Vec<BTreeMap<String, Vec<f32>>>,
    cases: Vec<Case>,
}

fn reference() -> Reference {
    serde_json::from_value(fixture("optimizers.json")).unwrap()
}

/// A batch that says what the gradients shall be.
struct GivenGradients(BTreeMap<String, Tensor>);

impl Batch for GivenGradients {
    fn to_device(self, _device: Device) -> Result<Self> {
        Ok(self)
    }
}

/// A task whose loss, the sum of parameters times given numbers, has those numbers as its gradient.
struct Linear {
    parameters: Parameters,
}

impl Linear {
    fn new(initial: &BTreeMap<String, Initial>) -> Result<Linear> {
        let parameters = Parameters::new(Device::Cpu);
        for (name, Initial { shape, values }) in initial {
            let _ = parameters.root().given_parameter(name, Tensor::from_slice(values).reshape(shape))?;
        }
        Ok(Linear { parameters })
    }

    fn values(&self) -> NamedTensors {
        self.parameters
            .entries()
            .into_iter()
            .map(|entry| (entry.name, entry.tensor.detach().copy()))
            .collect()
    }
}

impl Task for Linear {
    type Batch = GivenGradients;

    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn metrics(&self) -> &'static [&'static str] {
        &["loss"]
    }

    fn weight(&self, _batch: &GivenGradients, _mode: Mode) -> Result<f64> {
        Ok(1.0)
    }

    fn step(&mut self, batch: &GivenGradients, _mode: Mode) -> Result<StepOutput> {
        let parts = self.parameters.entries().into_iter().map(|entry| {
            let gradient = batch.0[&entry.name].reshape(entry.tensor.size());
            (entry.tensor * gradient).sum(Kind::Float)
        });
        let loss_sum = parts.reduce(|sum, part| sum + part).unwrap();
        Ok(StepOutput { loss_sum, sums: Vec::new(), outcome: None })
    }
}

fn given(gradients: &BTreeMap<String, Vec<f32>>) -> GivenGradients {
    GivenGradients(
        gradients.iter().map(|(name, values)| (name.clone(), Tensor::from_slice(values))).collect(),
    )
}

#[test]
fn steps_are_pytorchs() -> Result<()> {
    let reference = reference();
    assert!(reference.cases.len() >= 20);
    for case in &reference.cases {
        case.training.validate()?;
        let mut task = Linear::new(&reference.initial)?;
        let mut stepper = Stepper::new(&case.training, &task)?;
        for (number, gradients) in (1u64..).zip(&reference.gradients) {
            stepper.step(
                &mut task,
                vec![given(gradients)],
                number - 1,
                case.training.optimizer.lr(),
                &mut SingleProcess,
            )?;
            let Some(after) = case.after.get(&number) else { continue };
            for (name, expected) in &after.parameters {
                let found = task.parameters.get(name).unwrap();
                assert_close(
                    &numbers(&found),
                    expected,
                    1e-6,
                    &format!("{}, step {number}, {name}", case.name),
                );
            }
            assert_eq!(after.average.is_some(), stepper.average.is_some());
            for (name, expected) in after.average.iter().flatten() {
                let average = stepper.average.as_ref().unwrap().tensors();
                assert_close(
                    &numbers(&average[name]),
                    expected,
                    1e-6,
                    &format!("{}, average of {name}", case.name),
                );
            }
        }
        assert_eq!(case.after.len(), 3);
    }
    Ok(())
}

#[test]
fn a_saved_state_goes_on_to_the_bit() -> Result<()> {
    let reference = reference();
    let folder = Scratch::new();
    for case in &reference.cases {
        let run = |save_after: Option<usize>| -> Result<Vec<u8>> {
            let mut task = Linear::new(&reference.initial)?;
            let mut stepper = Stepper::new(&case.training, &task)?;
            for (number, gradients) in reference.gradients.iter().enumerate() {
                if save_after == Some(number) {
                    let (state, model) = (folder.join("state"), folder.join("model"));
                    write_safetensors(&state, &stepper.optimizer.state())?;
                    write_safetensors(&model, &task.values())?;
                    task = Linear::new(&reference.initial)?;
                    let report = tch_suite::weights::load_into(&task.parameters, &read_safetensors(&model)?)?;
                    assert!(report.is_complete());
                    stepper = Stepper::new(&case.training, &task)?;
                    let mut saved = read_safetensors(&state)?;
                    stepper.optimizer.load_state(&mut saved)?;
                    assert!(saved.is_empty());
                }
                let lr = case.training.optimizer.lr();
                stepper.step(&mut task, vec![given(gradients)], number as u64, lr, &mut SingleProcess)?;
            }
            let mut all = task.values();
            all.extend(stepper.optimizer.state());
            let path = folder.join("all");
            write_safetensors(&path, &all)?;
            Ok(std::fs::read(path)?)
        };
        let undisturbed = run(None)?;
        for save_after in [0, 1, 3, 5] {
            assert!(run(Some(save_after))? == undisturbed, "{}, saved after {save_after} steps", case.name);
        }
    }
    Ok(())
}

/// An optimizer over parameters of these names and sizes.
fn optimizer(training: serde_json::Value, parameters: &[(&str, i64)]) -> Result<Optimizer> {
    let config: TrainingConfig = serde_json::from_value(training)?;
    let tensors: Vec<(String, Tensor)> = parameters
        .iter()
        .map(|(name, size)| {
            let tensor = Tensor::ones([*size], (Kind::Float, Device::Cpu)).set_requires_grad(true);
            ((*name).to_owned(), tensor)
        })
        .collect();
    Optimizer::new(&config, &tensors, None)
}

#[test]
fn a_state_of_another_model_or_rule_is_refused() -> Result<()> {
    let adam = || serde_json::json!({"optimizer": {"name": "adam"}});
    let momentum = serde_json::json!({"optimizer": {"name": "sgd", "momentum": 0.9}});
    let target = optimizer(adam(), &[("a", 2), ("b", 3)])?;
    let refusal = |source: Optimizer| target.load_state(&mut source.state()).unwrap_err().to_string();
    assert!(refusal(optimizer(momentum, &[("a", 2), ("b", 3)])?).contains("lacks `exp_avg.a`"));
    assert!(refusal(optimizer(adam(), &[("a", 2)])?).contains("lacks `exp_avg.b`"));
    assert!(refusal(optimizer(adam(), &[("a", 2), ("b", 3), ("c", 1)])?).contains("has `exp_avg.c`"));
    let reshaped = refusal(optimizer(adam(), &[("a", 2), ("b", 4)])?);
    assert!(reshaped.contains("`exp_avg.b` is [4], not [3]"), "{reshaped}");
    assert!(target.load_state(&mut target.state()).is_ok());
    Ok(())
}

#[test]
fn a_group_that_takes_no_parameter_is_refused() {
    let groups = |patterns: &[&str]| {
        let groups: Vec<_> = patterns.iter().map(|pattern| serde_json::json!({"pattern": pattern})).collect();
        optimizer(serde_json::json!({"groups": groups}), &[("conv.weight", 2), ("conv.bias", 1)])
    };
    assert!(groups(&["weight", "bias"]).is_ok());
    let unmatched = groups(&["head"]).err().unwrap().to_string();
    assert!(unmatched.contains("`head`"), "{unmatched}");
    assert!(groups(&["conv", "bias"]).err().unwrap().to_string().contains("`bias`"));
    assert!(groups(&["("]).err().unwrap().to_string().contains("no regular expression"));
    assert!(
        optimizer(serde_json::json!({}), &[]).err().unwrap().to_string().contains("no parameter to train")
    );
}

#[test]
fn trajectories_of_the_larger_data_are_pytorchs() -> Result<()> {
    let Some(settings) = data("parity/optimizers.json") else { return Ok(()) };
    let tensors = read_safetensors(&settings.with_extension("safetensors"))?;
    let settings: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(settings)?)?;
    for (name, arguments) in settings["configs"].as_object().unwrap() {
        // Keyword arguments of torch.optim are the keys of a recipe, and the defaults are the same.
        let mut arguments = arguments.clone();
        let class = arguments.as_object_mut().unwrap().remove("class").unwrap();
        arguments["name"] = class.as_str().unwrap().to_lowercase().into();
        let config: TrainingConfig = serde_json::from_value(serde_json::json!({ "optimizer": arguments }))?;
        let names: Vec<&str> = tensors.keys().filter_map(|key| key.strip_prefix("p0.")).collect();
        let parameters: Vec<(String, Tensor)> = names
            .iter()
            .map(|name| {
                let initial = tensors[&format!("p0.{name}")].copy().set_requires_grad(true);
                ((*name).to_owned(), initial)
            })
            .collect();
        let list = TensorList::new(parameters.iter().map(|(_, tensor)| tensor))?;
        let optimizer = Optimizer::new(&config, &parameters, None)?;
        for step in 1..=5 {
            gradients::clear(&list)?;
            for (name, parameter) in &parameters {
                (parameter * &tensors[&format!("grad.{step}.{name}")]).sum(Kind::Float).backward();
            }
            optimizer.step(config.optimizer.lr(), None)?;
            for (parameter, tensor) in &parameters {
                let expected = &tensors[&format!("{name}.{step}.{parameter}")];
                assert_close(
                    &numbers(tensor),
                    &numbers(expected),
                    1e-6,
                    &format!("{name}, step {step}, {parameter}"),
                );
            }
        }
    }
    Ok(())
}
