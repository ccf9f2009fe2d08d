//! A GPT-2 of the size of the recipe `gpt-tinyshakespeare`, learning and writing: `benches/pytorch/gpt.py`.

use anyhow::Result;
use serde_json::json;
use tch::{Device, Kind, Tensor};
use tch_suite::data::language::LanguageBatch;
use tch_suite::generation::SamplingConfig;
use tch_suite::generation::search::{Marks, SearchConfig, sample};
use tch_suite::models::Parameters;
use tch_suite::models::decoders::DecoderConfig;
use tch_suite::native::modes::InferenceMode;
use tch_suite::recipe;
use tch_suite::tasks::language_model::{LanguageModel, TextWriter};
use tch_suite::training::config::TrainingConfig;

use super::harness::{Batches, Inference, Mode, Options, Training, Usual, measure, name_of};

const CHARACTERS: i64 = 65;
const CONTEXT: i64 = 64;

/// Runs it.
pub fn run(options: &Options) -> Result<()> {
    let size = options.batch.unwrap_or(if options.mode == Mode::Train { 12 } else { 1 });
    let config: DecoderConfig = recipe::typed(
        json!({
            "model_type": "gpt2",
            "vocab_size": CHARACTERS,
            "n_positions": CONTEXT,
            "n_embd": 128,
            "n_layer": 4,
            "n_head": 4,
            "activation_function": "gelu",
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        }),
        "gpt",
    )?;
    let parameters = Parameters::new(Device::Cpu);
    let model = config.build(&parameters.root())?;
    let task = LanguageModel::new(parameters, model);
    let variant = options.variant(&[&name_of(options.mode), &format!("b{size}")]);
    match options.mode {
        Mode::Train => {
            let config: TrainingConfig = recipe::typed(
                json!({
                    "optimizer": {"name": "adamw", "lr": 1e-3, "betas": [0.9, 0.99], "weight_decay": 0.1},
                    "decay_bias_and_norm": false,
                    "clip_norm": 1.0,
                    "precision": options.precision(),
                }),
                "gpt",
            )?;
            let usual = Usual { steps: 60, warmup: 5, inner: 1 };
            let mut work = Training::new(&config, task, batches(options, size)?)?;
            measure("gpt", &variant, options, &usual, size * CONTEXT as usize, &mut work)
        }
        Mode::Infer => {
            let _inference = InferenceMode::enter()?;
            let _autocast = options.precision().autocast(Device::Cpu)?;
            let written = CONTEXT as usize - 1;
            let search = SearchConfig { max_length: written, ..SearchConfig::default() };
            // Nothing ends a text before its length.
            let marks = Marks { end: -1, ..Marks::default() };
            let sampling = SamplingConfig::default();
            let prompts = vec![vec![0i64]; size];
            let mut work = Inference::new(Box::new(move |number| {
                let (mut writer, newest) = TextWriter::new(task.model(), &prompts, Device::Cpu)?;
                let seeds: Vec<u64> = (0..size).map(|row| (number * size + row) as u64).collect();
                let texts = sample(&mut writer, &newest, &marks, &search, &sampling, &seeds, &prompts)?;
                Ok(Tensor::f_from_slice(&[texts[0].log_probability])?)
            }));
            let usual = Usual { steps: 20, warmup: 3, inner: 1 };
            measure("gpt", &variant, options, &usual, size * written, &mut work)
        }
    }
}

/// A pool of random windows.
fn batches(options: &Options, size: usize) -> Result<Batches<LanguageBatch>> {
    let window = || -> Result<(Tensor, Tensor)> {
        let shape = [size as i64, CONTEXT + 1];
        let tokens = Tensor::f_randint(CHARACTERS, shape, (Kind::Int64, Device::Cpu))?;
        let part = |start| tokens.f_narrow(1, start, CONTEXT)?.f_contiguous();
        Ok((part(0)?, part(1)?))
    };
    let pool = (0..options.pool.max(1)).map(|_| window()).collect::<Result<Vec<_>>>()?;
    Ok(Box::new(move |number| {
        let (tokens, labels) = &pool[number % pool.len()];
        Ok(LanguageBatch {
            tokens: tokens.shallow_clone(),
            labels: labels.shallow_clone(),
            packed: None,
            learned: size * CONTEXT as usize,
        })
    }))
}
