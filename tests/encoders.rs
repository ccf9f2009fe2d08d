//! Encoders of the BERT kind are those of transformers: scores, gradients, attention, initial values, pretrained weights.

use anyhow::Result;
use serde_json::Value;
use tch::{Device, Kind, Tensor};
use tch_suite::models::Parameters;
use tch_suite::models::encoders::{EncoderConfig, EncoderInputs, EncoderModel, HeadKind};
use tch_suite::native::random::manual_seed;
use tch_suite::native::trace::{Entry, Stored, trace_module};
use tch_suite::weights;

use crate::support::{Scratch, assert_close, data, exclusive_generator, fixture, formula, numbers};

/// Made by `scripts/references/encoder_models.py`.
fn reference() -> Value {
    fixture("encoder_models.json")
}

fn head_kind(name: &str, labels: i64) -> HeadKind {
    match name {
        "none" => HeadKind::None,
        "masked_lm" => HeadKind::MaskedLm,
        "sequence" => HeadKind::Sequence(labels),
        "tokens" => HeadKind::Tokens(labels),
        "answers" => HeadKind::Answers,
        other => panic!("unknown head {other}"),
    }
}

fn list(value: &Value) -> Vec<f64> {
    serde_json::from_value(value.clone()).unwrap()
}

/// `[batch, length]` int64.
fn matrix(value: &Value) -> Tensor {
    let rows: Vec<Vec<i64>> = serde_json::from_value(value.clone()).unwrap();
    Tensor::from_slice2(&rows)
}

/// Ids, segments and mask of a case.
struct Given {
    ids: Tensor,
    segments: Option<Tensor>,
    mask: Tensor,
}

impl Given {
    fn of(case: &Value) -> Given {
        let segments = case["inputs"].get("token_type_ids").map(matrix);
        Given {
            ids: matrix(&case["inputs"]["input_ids"]),
            segments,
            mask: matrix(&case["inputs"]["attention_mask"]),
        }
    }

    fn inputs(&self) -> EncoderInputs<'_> {
        EncoderInputs { ids: &self.ids, segments: self.segments.as_ref(), mask: Some(&self.mask) }
    }
}

fn config(case: &Value) -> EncoderConfig {
    EncoderConfig::from_json(&case["config"], "the fixture").unwrap()
}

/// Every pair of a configuration and a head, with its reference.
fn each(mut look: impl FnMut(&str, &EncoderConfig, HeadKind, &Given, &Value) -> Result<()>) {
    let reference = reference();
    let labels = reference["labels"].as_i64().unwrap();
    let mut count = 0;
    for (name, case) in reference["models"].as_object().unwrap() {
        let (config, given) = (config(case), Given::of(case));
        for (head, expected) in case["heads"].as_object().unwrap() {
            look(&format!("{name}, {head}"), &config, head_kind(head, labels), &given, expected).unwrap();
            count += 1;
        }
    }
    assert_eq!(count, 35);
}

#[test]
fn scores_and_gradients_are_those_of_transformers() {
    each(|name, config, head, given, expected| {
        // Gradient checkpointing changes nothing.
        for recompute in [false, true] {
            let parameters = Parameters::undrawn(Device::Cpu);
            let model = EncoderModel::new(&parameters.root(), config, head, recompute)?;
            formula::fill(&parameters)?;
            let mut names: Vec<String> = parameters.entries().into_iter().map(|entry| entry.name).collect();
            names.sort();
            assert_eq!(serde_json::to_value(&names)?, expected["names"], "{name}");

            let hidden = model.hidden(&given.inputs(), false);
            let scores = model.scores(&hidden, false);
            assert_close(&numbers(&scores), &list(&expected["scores"]), 1e-5, name);
            let mut weights = formula::tensor(&scores.size(), 2000);
            if !matches!(head, HeadKind::Sequence(_)) {
                weights *= given.mask.unsqueeze(-1);
            }
            let mut loss = (&scores * weights).sum(Kind::Float);
            if !expected["pooled"].is_null() {
                let pooled = model.pooled(&hidden);
                assert_close(&numbers(&pooled), &list(&expected["pooled"]), 1e-5, name);
                loss += (&pooled * formula::tensor(&pooled.size(), 2001)).sum(Kind::Float);
            }
            loss.backward();
            let norms: Vec<f64> = names
                .iter()
                .map(|key| numbers(&parameters.get(key).unwrap().grad().to_kind(Kind::Double).norm())[0])
                .collect();
            assert_close(&norms, &list(&expected["gradient_norms"]), 1e-5, name);
        }
        Ok(())
    });
}

#[test]
fn layers_that_are_computed_again_learn_the_same_with_dropout() -> Result<()> {
    let _lock = exclusive_generator();
    let reference = reference();
    let case = &reference["models"]["bert"];
    let (config, given) = (config(case), Given::of(case));
    let gradients = |recompute: bool| -> Result<Vec<Tensor>> {
        manual_seed(5)?;
        let parameters = Parameters::new(Device::Cpu);
        let model = EncoderModel::new(&parameters.root(), &config, HeadKind::Sequence(3), recompute)?;
        let scores = model.forward(&given.inputs(), true);
        scores.square().sum(Kind::Float).backward();
        // What is drawn afterwards must not depend on it either.
        let next = Tensor::randn([4], (Kind::Float, Device::Cpu));
        Ok(parameters.trainable().into_iter().map(|(_, tensor)| tensor.grad()).chain([next]).collect())
    };
    for (kept, again) in gradients(false)?.iter().zip(gradients(true)?) {
        assert_eq!(kept, &again);
    }
    Ok(())
}

#[test]
fn traced_models_take_other_batches_and_lengths() -> Result<()> {
    let folder = Scratch::new();
    let reference = reference();
    for (name, case) in reference["models"].as_object().unwrap() {
        for head in [HeadKind::None, HeadKind::Sequence(3), HeadKind::MaskedLm] {
            let parameters = Parameters::undrawn(Device::Cpu);
            let model = EncoderModel::new(&parameters.root(), &config(case), head, false)?;
            formula::fill(&parameters)?;
            let entries = parameters.entries();
            let named: Vec<Entry<'_>> = entries
                .iter()
                .map(|entry| Entry { name: &entry.name, tensor: &entry.tensor, is_buffer: false })
                .collect();
            let path = folder.join(format!("{name}-{head:?}.pt"));
            let forward = |inputs: &[Tensor]| {
                let segments = inputs.get(2);
                model.forward(&EncoderInputs { ids: &inputs[0], mask: Some(&inputs[1]), segments }, false)
            };
            // Traced with two rows of six, run with three of nine.
            let given = Given::of(case);
            let mut whole = vec![("input_ids", &given.ids), ("attention_mask", &given.mask)];
            whole.extend(given.segments.as_ref().map(|segments| ("token_type_ids", segments)));
            let short: Vec<(&str, Tensor)> =
                whole.iter().map(|(name, tensor)| (*name, tensor.narrow(0, 0, 2).narrow(1, 0, 6))).collect();
            let inputs: Vec<(&str, &Tensor)> = short.iter().map(|(name, tensor)| (*name, tensor)).collect();
            trace_module("Encoder", &named, Stored::All, &inputs, &path, &mut |inputs| {
                Ok(vec![forward(inputs)])
            })?;
            let module = tch::CModule::load(&path)?;
            let whole: Vec<Tensor> = whole.into_iter().map(|(_, tensor)| tensor.shallow_clone()).collect();
            let expected = numbers(&forward(&whole));
            assert_close(
                &numbers(&module.forward_ts(&whole)?),
                &expected,
                1e-5,
                &format!("{name}, {head:?}"),
            );
        }
    }
    Ok(())
}

#[test]
fn attention_weights_are_those_of_transformers() -> Result<()> {
    for (name, case) in reference()["models"].as_object().unwrap() {
        let given = Given::of(case);
        let parameters = Parameters::undrawn(Device::Cpu);
        let model = EncoderModel::new(&parameters.root(), &config(case), HeadKind::None, false)?;
        formula::fill(&parameters)?;
        let layers = model.encoder().unwrap().attention_weights(&given.inputs());
        let expected = case["attention"].as_array().unwrap();
        assert_eq!(layers.len(), expected.len());
        for (found, expected) in layers.iter().zip(expected) {
            assert_close(&numbers(found), &list(expected), 1e-5, name);
        }
    }
    Ok(())
}

#[test]
fn initial_weights_are_those_of_transformers_to_the_last_bit() {
    let _lock = exclusive_generator();
    each(|name, config, head, _, expected| {
        manual_seed(3)?;
        let parameters = Parameters::new(Device::Cpu);
        EncoderModel::new(&parameters.root(), config, head, false)?;
        let mut entries = parameters.entries();
        entries.sort_by(|one, other| one.name.cmp(&other.name));
        for (entry, expected) in entries.iter().zip(expected["beginning"].as_array().unwrap()) {
            let values = Vec::<f32>::try_from(entry.tensor.detach().flatten(0, -1))?;
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            let mut checksum = flate2::Crc::new();
            checksum.update(&bytes);
            assert_eq!(u64::from(checksum.sum()), expected.as_u64().unwrap(), "{name}: {}", entry.name);
        }
        Ok(())
    });
}

#[test]
fn bert_base_on_a_sentence() -> Result<()> {
    let reference = &reference()["bert_base"];
    let columns = reference["columns"].as_i64().unwrap();
    let config = EncoderConfig::usual("bert").unwrap();
    let parameters = Parameters::undrawn(Device::Cpu);
    let model = EncoderModel::new(&parameters.root(), &config, HeadKind::None, false)?;
    assert_eq!(parameters.count(), 109_482_240);
    formula::fill(&parameters)?;
    let _guard = tch::no_grad_guard();
    let ids = Tensor::from_slice(&list(&reference["input_ids"])).to_kind(Kind::Int64).unsqueeze(0);
    let inputs = EncoderInputs { ids: &ids, segments: None, mask: None };
    let hidden = model.forward(&inputs, false);
    let first = hidden.narrow(2, 0, columns);
    assert_close(&numbers(&first), &list(&reference["hidden"]), 1e-4, "hidden states");
    let pooled = model.pooled(&hidden).narrow(1, 0, columns);
    assert_close(&numbers(&pooled), &list(&reference["pooled"]), 1e-4, "pooled");
    Ok(())
}

#[test]
fn hidden_states_of_a_pretrained_minilm() -> Result<()> {
    let Some(folder) = data("pretrained/minilm-l6-h384") else { return Ok(()) };
    let Some(parity) = data("parity/bert_minilm.safetensors") else { return Ok(()) };
    let expected = weights::read_safetensors(&parity)?;
    let text = std::fs::read_to_string(folder.join("config.json"))?;
    let config = EncoderConfig::from_json(&serde_json::from_str(&text)?, "config.json")?;
    let parameters = Parameters::undrawn(Device::Cpu);
    let model = EncoderModel::new(&parameters.root(), &config, HeadKind::None, false)?;
    let loaded = weights::load_pretrained(&parameters, &folder, true, |_| false)?;
    assert_eq!(loaded.report.loaded.len(), 103);
    let _guard = tch::no_grad_guard();
    let inputs = EncoderInputs {
        ids: &expected["input_ids"],
        segments: Some(&expected["token_type_ids"]),
        mask: Some(&expected["attention_mask"]),
    };
    let hidden = model.forward(&inputs, false);
    let there = expected["attention_mask"].unsqueeze(-1);
    let difference =
        |found: &Tensor, expected: &Tensor| f64::try_from((found - expected).abs().max()).unwrap();
    assert!(difference(&(&hidden * &there), &(&expected["output"] * &there)) < 1e-5);
    assert!(difference(&model.pooled(&hidden), &expected["pooler_output"]) < 1e-5);
    Ok(())
}
