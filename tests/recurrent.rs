//! Recurrent layers and networks against PyTorch's.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::Deserialize;
use tch::{Device, Kind, Tensor};
use tch_suite::models::Parameters;
use tch_suite::models::recurrent::*;
use tch_suite::native::random::manual_seed;
use tch_suite::weights::{NamedTensors, read_safetensors};

use crate::support::{assert_close, data, exclusive_generator, fixture, numbers};

fn config(cell: Cell, bidirectional: bool, projection: Option<i64>) -> RecurrentConfig {
    RecurrentConfig {
        cell,
        input_size: 3,
        hidden_size: 4,
        num_layers: 2,
        bidirectional,
        proj_size: projection,
        dropout: 0.0,
        weight_dropout: 0.0,
        variational: false,
    }
}

#[derive(Deserialize)]
struct Described {
    shape: Vec<i64>,
    first_bits: Vec<u32>,
    crc32: u32,
    sum: f64,
}

#[derive(Deserialize)]
struct NetworkCase {
    name: String,
    parameters: BTreeMap<String, Described>,
}

#[test]
fn networks_begin_as_in_pytorch_to_the_last_bit() -> Result<()> {
    let _lock = exclusive_generator();
    let cases: Vec<NetworkCase> = serde_json::from_value(fixture("recurrent.json")["networks"].clone())?;
    assert_eq!(cases.len(), 3);
    for case in cases {
        manual_seed(11)?;
        let parameters = Parameters::new(Device::Cpu);
        let usual = RnnConfig::default();
        match case.name.as_str() {
            "lm" => {
                let config = RnnConfig {
                    embedding: 24,
                    hidden: 16,
                    layers: 2,
                    dropout: 0.3,
                    vocabulary: Some(65),
                    ..usual
                };
                LanguageModel::new(&parameters.root(), &config)?;
            }
            "classify" => {
                let config = RnnConfig {
                    name: Cell::Gru,
                    embedding: 12,
                    hidden: 10,
                    bidirectional: true,
                    pooling: Pooling::Attention,
                    vocabulary: Some(50),
                    classes: Some(3),
                    ..usual
                };
                SequenceClassifier::new(&parameters.root(), &config)?;
            }
            _ => {
                let config = RnnConfig {
                    name: Cell::RnnTanh,
                    hidden: 20,
                    features: Some(7),
                    targets: Some(7),
                    horizon: Some(24),
                    ..usual
                };
                Forecaster::new(&parameters.root(), &config)?;
            }
        }
        assert_eq!(parameters.entries().len(), case.parameters.len(), "{}", case.name);
        for (name, expected) in &case.parameters {
            let what = format!("{}, {name}", case.name);
            let tensor = parameters.get(name).unwrap_or_else(|| panic!("{what} is missing"));
            assert_eq!(tensor.size(), expected.shape, "{what}");
            let bits: Vec<u32> =
                Vec::<f32>::try_from(tensor.detach().flatten(0, -1))?.into_iter().map(f32::to_bits).collect();
            assert_eq!(bits[..expected.first_bits.len()], expected.first_bits, "{what}");
            let mut checksum = flate2::Crc::new();
            bits.iter().for_each(|bits| checksum.update(&bits.to_le_bytes()));
            assert_eq!(checksum.sum(), expected.crc32, "{what}: some value differs");
            let sum: f64 = numbers(&tensor).iter().sum();
            assert!((sum - expected.sum).abs() < 1e-9, "{what}");
        }
    }
    Ok(())
}

#[derive(Deserialize)]
struct LayerCase {
    name: Cell,
    bidirectional: bool,
    projection: Option<i64>,
    output: Vec<f64>,
    state: Vec<Vec<f64>>,
    gradients: BTreeMap<String, Vec<f64>>,
    input_gradient: Vec<f64>,
    packed_output: Vec<f64>,
    packed_state: Vec<Vec<f64>>,
}

#[test]
fn plain_layers_gru_and_projections_compute_what_torch_nn_does() -> Result<()> {
    let _lock = exclusive_generator();
    let cases: Vec<LayerCase> = serde_json::from_value(fixture("recurrent.json")["layers"].clone())?;
    assert_eq!(cases.len(), 5);
    for case in cases {
        let what = format!("{:?}, bidirectional {}", case.name, case.bidirectional);
        manual_seed(5)?;
        let parameters = Parameters::new(Device::Cpu);
        let layers =
            Recurrent::new(&parameters.root(), config(case.name, case.bidirectional, case.projection))?;
        let wave = |count: i64, step: f64| Tensor::arange(count, (Kind::Double, Device::Cpu)) * step;
        let x = wave(45, 0.7).sin().to_kind(Kind::Float).view([3, 5, 3]).set_requires_grad(true);
        let zero = layers.zero_state(&x);
        let (output, state) = layers.forward(&x, &zero, true);
        let probe = wave(output.numel() as i64, 0.3).cos().to_kind(Kind::Float).view(&output.size()[..]);
        (&output * probe).sum(Kind::Float).backward();
        assert_close(&numbers(&output), &case.output, 1e-5, &what);
        for (found, expected) in state.iter().zip(&case.state) {
            assert_close(&numbers(found), expected, 1e-5, &what);
        }
        assert_close(&numbers(&x.grad()), &case.input_gradient, 1e-5, &what);
        assert_eq!(parameters.entries().len(), case.gradients.len());
        for entry in parameters.entries() {
            let expected = &case.gradients[&entry.name];
            assert_close(&numbers(&entry.tensor.grad()), expected, 1e-5, &format!("{what}, {}", entry.name));
        }
        let lengths = Tensor::from_slice(&[2i64, 5, 3]);
        let (output, state) = layers.forward_packed(&x, &lengths, &zero, false);
        assert_close(&numbers(&output), &case.packed_output, 1e-5, &format!("{what}, packed"));
        for (found, expected) in state.iter().zip(&case.packed_state) {
            assert_close(&numbers(found), expected, 1e-5, &format!("{what}, packed"));
        }
    }
    Ok(())
}

/// One of the reference files: weights under `weight.`, gradients under `grad.`.
fn parity(file: &str, cell: Cell, num_layers: i64, bidirectional: bool) -> Result<()> {
    let Some(path) = data(&format!("parity/{file}.safetensors")) else { return Ok(()) };
    let reference: NamedTensors = read_safetensors(&path)?;
    let parameters = Parameters::undrawn(Device::Cpu);
    let layers = Recurrent::new(
        &parameters.root(),
        RecurrentConfig { input_size: 8, hidden_size: 12, num_layers, ..config(cell, bidirectional, None) },
    )?;
    for entry in parameters.entries() {
        let _guard = tch::no_grad_guard();
        let mut tensor = entry.tensor;
        tensor.copy_(&reference[&format!("weight.{}", entry.name)]);
    }
    let leaf = |name: &str| reference[name].detach().copy().set_requires_grad(true);
    let x = leaf("input.x");
    let mut state = vec![leaf("input.h0")];
    if cell == Cell::Lstm {
        state.push(leaf("input.c0"));
    }
    let (output, after) = layers.forward(&x, &state, true);
    (&output * &reference["probe"]).sum(Kind::Float).backward();
    let close = |found: &Tensor, name: &str| {
        let difference = (found - &reference[name]).abs().max().double_value(&[]);
        assert!(difference < 1e-5, "{file}: {name} differs by {difference}");
    };
    close(&output, "output");
    close(&after[0], "h_n");
    close(&x.grad(), "grad_input.x");
    close(&state[0].grad(), "grad_input.h0");
    if cell == Cell::Lstm {
        close(&after[1], "c_n");
        close(&state[1].grad(), "grad_input.c0");
    }
    for entry in parameters.entries() {
        close(&entry.tensor.grad(), &format!("grad.{}", entry.name));
    }
    let zero = layers.zero_state(&x);
    let (output, after) = layers.forward_packed(&x, &reference["packed.lengths"], &zero, false);
    close(&output, "packed.output");
    close(&after[0], "packed.h_n");
    Ok(())
}

#[test]
fn layers_agree_with_the_reference_files() -> Result<()> {
    parity("lstm_1layer", Cell::Lstm, 1, false)?;
    parity("lstm_2layer_bidirectional", Cell::Lstm, 2, true)?;
    parity("gru_2layer_bidirectional", Cell::Gru, 2, true)
}

#[test]
fn what_fills_a_sequence_up_changes_nothing() -> Result<()> {
    let _lock = exclusive_generator();
    for pooling in [Pooling::Last, Pooling::Mean, Pooling::Max, Pooling::Attention] {
        for bidirectional in [false, true] {
            let config = RnnConfig {
                embedding: 6,
                hidden: 5,
                layers: 2,
                bidirectional,
                pooling,
                vocabulary: Some(9),
                classes: Some(4),
                ..RnnConfig::default()
            };
            let network = SequenceClassifier::new(&Parameters::new(Device::Cpu).root(), &config)?;
            let tokens = Tensor::from_slice(&[1i64, 2, 3, 7, 7, 4, 5, 6, 7, 8]).view([2, 5]);
            let lengths = Tensor::from_slice(&[3i64, 5]);
            let together = network.forward(&tokens, &lengths, false);
            let other = Tensor::from_slice(&[1i64, 2, 3, 0, 8, 4, 5, 6, 7, 8]).view([2, 5]);
            assert!(network.forward(&other, &lengths, false).equal(&together), "{pooling:?}");
            let alone =
                network.forward(&tokens.narrow(0, 0, 1).narrow(1, 0, 3), &Tensor::from_slice(&[3i64]), false);
            assert!(
                alone.allclose(&together.narrow(0, 0, 1), 1e-5, 1e-6, false),
                "{pooling:?}, {bidirectional}"
            );
        }
    }
    Ok(())
}

#[test]
fn every_form_of_every_network_learns_with_all_its_parameters() -> Result<()> {
    let _lock = exclusive_generator();
    let check = |parameters: &Parameters, loss: Tensor, what: &str| {
        loss.backward();
        for (name, tensor) in parameters.trainable() {
            let gradient = tensor.grad();
            assert!(gradient.defined(), "{what}: no gradient of {name}");
            assert!(bool::try_from(gradient.isfinite().all()).unwrap(), "{what}: {name}");
            assert!(!name.contains("__"), "{name}");
        }
    };
    for cell in Cell::ALL {
        let usual = RnnConfig {
            name: cell,
            embedding: 6,
            hidden: 6,
            layers: 2,
            dropout: 0.2,
            embedding_dropout: 0.2,
            output_dropout: 0.2,
            ..RnnConfig::default()
        };
        for (tied, variational, weight_dropout) in [(false, false, 0.0), (true, true, 0.3)] {
            let config =
                RnnConfig { tied, variational, weight_dropout, vocabulary: Some(9), ..usual.clone() };
            config.validate()?;
            let parameters = Parameters::new(Device::Cpu);
            let network = LanguageModel::new(&parameters.root(), &config)?;
            let tokens = Tensor::from_slice(&[1i64, 2, 3, 4, 5, 6]).view([2, 3]);
            let state = network.recurrent().zero_state(&tokens);
            let (logits, after) = network.forward(&tokens, &state, true);
            assert_eq!((logits.size(), after.len()), (vec![2, 3, 9], network.recurrent().state_tensors()));
            check(&parameters, logits.square().sum(Kind::Float), "lm");
        }
        for mode in [ForecastMode::Direct, ForecastMode::Autoregressive] {
            for form in [ForecastForm::Point, ForecastForm::Gaussian, ForecastForm::Quantiles] {
                for last_value in [false, true] {
                    let config = RnnConfig {
                        task: RnnGoal::Forecast,
                        mode,
                        form,
                        last_value,
                        highway: last_value && mode == ForecastMode::Direct,
                        input: Some(7),
                        features: Some(4),
                        targets: Some(3),
                        known: Some(1),
                        horizon: Some(5),
                        ..usual.clone()
                    };
                    config.validate()?;
                    let parameters = Parameters::new(Device::Cpu);
                    let network = Forecaster::new(&parameters.root(), &config)?;
                    let window = Tensor::rand([2, 7, 4], (Kind::Float, Device::Cpu));
                    let future = Tensor::rand([2, 5, 1], (Kind::Float, Device::Cpu));
                    let values = network.forward(&window, &future, true).values;
                    assert_eq!(values.size(), [2, 5, 3, config.numbers_per_value()]);
                    if form == ForecastForm::Gaussian {
                        assert!(values.select(3, 1).min().double_value(&[]) > 0.0);
                    }
                    if form == ForecastForm::Quantiles {
                        let sorted = network.forward(&window, &future, false).values;
                        let gaps = sorted.narrow(3, 1, 2) - sorted.narrow(3, 0, 2);
                        assert!(gaps.min().double_value(&[]) >= 0.0, "quantiles cross");
                    }
                    check(&parameters, values.square().sum(Kind::Float), "forecast");
                }
            }
        }
    }
    Ok(())
}
