//! Every form of the network that the trainer fits to tables, as it is.

use anyhow::{Context, Result};
use tch::{Device, Kind, Tensor};
use tch_suite::models::table_network::{HiddenActivation, TableNetwork, TableNetworkConfig};
use tch_suite::models::{Parameters, Role};
use tch_suite::weights::{load_into, read_safetensors, tensors_of, write_safetensors};

use crate::support::{Scratch, exclusive_generator, formula};

/// Hidden layers, activations, normalisation, dropout and biases in every combination.
fn forms() -> Vec<TableNetworkConfig> {
    let mut forms = Vec::new();
    for hidden in [&[][..], &[3], &[8, 5, 4]] {
        for outputs in [1, 3] {
            for activation in [HiddenActivation::Relu, HiddenActivation::Sigmoid, HiddenActivation::Tanh] {
                for batch_norm in [false, true] {
                    for dropout in [0.0, 0.3] {
                        for bias in [false, true] {
                            let widths = [&[6], hidden, &[outputs]].concat();
                            forms.push(TableNetworkConfig { widths, activation, dropout, batch_norm, bias });
                        }
                    }
                }
            }
        }
    }
    forms
}

fn rows(count: i64) -> Tensor {
    Tensor::arange(count * 6, (Kind::Float, Device::Cpu)).sin().view([count, 6])
}

fn is_finite(tensor: &Tensor) -> bool {
    tensor.isfinite().all().int64_value(&[]) == 1
}

#[test]
fn every_form_computes_learns_and_is_copied_whole() -> Result<()> {
    let _lock = exclusive_generator();
    tch::set_num_threads(1);
    let folder = Scratch::new();
    for (number, config) in forms().iter().enumerate() {
        check(config, &folder.join(format!("{number}.safetensors")))
            .with_context(|| format!("{config:?}"))?;
    }
    Ok(())
}

fn check(config: &TableNetworkConfig, path: &std::path::Path) -> Result<()> {
    let parameters = Parameters::undrawn(Device::Cpu);
    let network = TableNetwork::new(&parameters.root(), config)?;
    formula::fill(&parameters)?;
    let entries = parameters.entries();
    for entry in &entries {
        // A variable store that met a name twice would append `__` and a number.
        assert!(!entry.name.contains("__"), "{}", entry.name);
    }
    // A layer's place is the one it has in nn.Sequential.
    let hidden = config.widths.len() as i64 - 2;
    let each = 2 + i64::from(config.batch_norm) + i64::from(config.dropout > 0.0);
    assert!(
        parameters.get(&format!("{}.weight", hidden * each)).is_some(),
        "the output layer has another name"
    );
    assert_eq!(parameters.get("0.bias").is_some(), config.bias);

    let batch = rows(9);
    let outputs = *config.widths.last().context("no widths")?;
    let evaluated = tch::no_grad(|| network.forward(&batch, false));
    assert_eq!(evaluated.size(), [9, outputs]);
    assert!(is_finite(&evaluated));
    assert!(evaluated.equal(&tch::no_grad(|| network.forward(&batch, false))), "evaluation is random");
    let single = tch::no_grad(|| network.forward(&batch.narrow(0, 4, 1), false));
    let difference = (single - evaluated.narrow(0, 4, 1)).abs().max().double_value(&[]);
    assert!(difference < 1e-5, "a row depends on its batch by {difference}");

    network.forward(&batch, true).square().sum(Kind::Float).backward();
    for entry in entries.iter().filter(|entry| entry.role == Role::Parameter) {
        let gradient = entry.tensor.grad();
        assert!(gradient.defined(), "no gradient for {}", entry.name);
        assert!(is_finite(&gradient), "the gradient of {} is not finite", entry.name);
    }
    drop(entries);

    // A copy by way of a file computes the same.
    let evaluated = tch::no_grad(|| network.forward(&batch, false));
    write_safetensors(path, &tensors_of(&parameters))?;
    let copied = Parameters::undrawn(Device::Cpu);
    let copy = TableNetwork::new(&copied.root(), config)?;
    let report = load_into(&copied, &read_safetensors(path)?)?;
    assert!(report.is_complete(), "{}", report.describe());
    assert!(evaluated.equal(&tch::no_grad(|| copy.forward(&batch, false))), "a copy computes otherwise");
    Ok(())
}
