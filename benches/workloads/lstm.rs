//! A character language model: `benches/pytorch/lstm_charlm.py`, and writing with it: `benches/pytorch/lstm_generate.py`.

use anyhow::Result;
use serde_json::json;
use tch::{Device, Kind, Tensor};
use tch_suite::data::sequences::{AnyBatch, StreamBatch};
use tch_suite::generation::{SamplingConfig, TokenSampler};
use tch_suite::models::Parameters;
use tch_suite::models::recurrent::{LanguageModel, RnnConfig};
use tch_suite::native::modes::InferenceMode;
use tch_suite::recipe;
use tch_suite::tasks::language_modelling::LanguageModelling;
use tch_suite::tasks::sequences::SequenceTask;
use tch_suite::training::config::TrainingConfig;

use super::harness::{Batches, Inference, Mode, Options, Training, Usual, Work, measure, name_of};

const VOCABULARY: i64 = 65;
const STEPS: i64 = 64;

fn network() -> Result<(Parameters, LanguageModel)> {
    let config = RnnConfig {
        embedding: 256,
        hidden: 256,
        layers: 2,
        vocabulary: Some(VOCABULARY),
        ..RnnConfig::default()
    };
    let parameters = Parameters::new(Device::Cpu);
    let network = LanguageModel::new(&parameters.root(), &config)?;
    Ok((parameters, network))
}

/// A pool of random windows; each begins its streams anew.
fn batches(options: &Options, size: i64) -> Result<Batches<AnyBatch>> {
    let window = || -> Result<(Tensor, Tensor)> {
        let tokens = Tensor::f_randint(VOCABULARY, [size, STEPS + 1], (Kind::Int64, Device::Cpu))?;
        let part = |start| tokens.f_narrow(1, start, STEPS)?.f_contiguous();
        Ok((part(0)?, part(1)?))
    };
    let pool = (0..options.pool.max(1)).map(|_| window()).collect::<Result<Vec<_>>>()?;
    Ok(Box::new(move |number| {
        let (tokens, targets) = &pool[number % pool.len()];
        Ok(AnyBatch::Text(StreamBatch {
            tokens: tokens.shallow_clone(),
            targets: targets.shallow_clone(),
            count: (size * STEPS) as f64,
            begins: true,
        }))
    }))
}

/// Runs training or inference.
pub fn run(options: &Options) -> Result<()> {
    let size = options.batch.unwrap_or(32);
    let (parameters, network) = network()?;
    let mut batches = batches(options, size as i64)?;
    let usual = Usual { steps: 40, warmup: 5, inner: 1 };
    let variant = options.variant(&[&name_of(options.mode), &format!("b{size}"), &format!("s{STEPS}")]);
    let items = size * STEPS as usize;
    let timed = |work: &mut dyn Work| measure("lstm_charlm", &variant, options, &usual, items, work);
    match options.mode {
        Mode::Train => {
            let config: TrainingConfig = recipe::typed(
                json!({
                    "optimizer": {"name": "adam", "lr": 0.002}, "clip_norm": 5.0, "precision": options.precision(),
                }),
                "lstm_charlm",
            )?;
            let characters = Tensor::f_ones([VOCABULARY], (Kind::Float, Device::Cpu))?;
            let task = SequenceTask::Lm(LanguageModelling::new(parameters, network, 0.0, characters)?);
            timed(&mut Training::new(&config, task, batches)?)
        }
        Mode::Infer => {
            let _inference = InferenceMode::enter()?;
            let _autocast = options.precision().autocast(Device::Cpu)?;
            timed(&mut Inference::new(Box::new(move |number| {
                let AnyBatch::Text(batch) = batches(number)? else { anyhow::bail!("no batch of texts") };
                let state = network.recurrent().zero_state(&batch.tokens);
                Ok(network.forward(&batch.tokens, &state, false).0)
            })))
        }
    }
}

/// Runs generation: each step computes the scores of one token and draws the next.
pub fn generate(options: &Options) -> Result<()> {
    let (_parameters, network) = network()?;
    let _inference = InferenceMode::enter()?;
    let _autocast = options.precision().autocast(Device::Cpu)?;
    let mut token = Tensor::f_zeros([1, 1], (Kind::Int64, Device::Cpu))?;
    let mut state = network.recurrent().zero_state(&token);
    let mut sampler = TokenSampler::new(SamplingConfig::default(), options.seed)?;
    let mut logits = vec![0f32; VOCABULARY as usize];
    let usual = Usual { steps: 20, warmup: 50, inner: 200 };
    let mut work = Inference::new(Box::new(move |_| {
        let (scores, after) = network.forward(&token, &state, false);
        state = after;
        let scores = scores.f_flatten(0, -1)?.f_to_kind(Kind::Float)?;
        scores.f_copy_data(&mut logits, VOCABULARY as usize)?;
        token = Tensor::f_from_slice(&[sampler.next(&logits, &[])])?.f_view([1, 1])?;
        Ok(scores)
    }));
    measure("lstm_generate", &options.variant(&["b1"]), options, &usual, 1, &mut work)
}
