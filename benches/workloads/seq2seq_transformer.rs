//! An encoder-decoder in training, and translating: `benches/pytorch/seq2seq_transformer.py`.

use std::sync::Arc;

use anyhow::{Context, Result};
use serde_json::json;
use tch::{Device, Kind, Tensor};
use tch_suite::data::text::{TextTokenizer, TokenizerConfig, TokenizerKind};
use tch_suite::data::translation::{PairTokenizers, TranslationBatch};
use tch_suite::generation::search::{Marks, SearchConfig};
use tch_suite::models::Parameters;
use tch_suite::models::encoder_decoder::transformer::{Transformer, TransformerConfig};
use tch_suite::native::modes::InferenceMode;
use tch_suite::recipe;
use tch_suite::tasks::translation::Translation;
use tch_suite::training::config::TrainingConfig;

use super::harness::{Batches, Inference, Mode, Options, Training, Usual, Work, measure, name_of};

const WORDS: i64 = 8000;
const FIRST_WORD: i64 = 4;
/// Tokens of a source and of a target in training, and of a target that is written.
const SOURCE: i64 = 20;
const TARGET: i64 = 20;
const WRITTEN: usize = 30;

/// Runs it.
pub fn run(options: &Options) -> Result<()> {
    let size = options.batch.unwrap_or(if options.mode == Mode::Train { 64 } else { 32 });
    let task = task()?;
    let pool = (0..options.pool.max(1)).map(|_| batch(size as i64)).collect::<Result<Vec<_>>>()?;
    match options.mode {
        Mode::Train => {
            let config: TrainingConfig = recipe::typed(
                json!({
                    "optimizer": {"name": "adam", "lr": 1e-4, "betas": [0.9, 0.98], "eps": 1e-9},
                    "label_smoothing": 0.1,
                    "precision": options.precision(),
                }),
                "seq2seq_transformer",
            )?;
            let batches: Batches<TranslationBatch> =
                Box::new(move |number| Ok(shared(&pool[number % pool.len()])));
            let variant = options.variant(&["train", &format!("b{size}")]);
            let usual = Usual { steps: 20, warmup: 3, inner: 1 };
            let items = size * TARGET as usize;
            let mut work = Training::new(&config, task, batches)?;
            measure("seq2seq_transformer", &variant, options, &usual, items, &mut work)
        }
        Mode::Infer => {
            let _inference = InferenceMode::enter()?;
            let _autocast = options.precision().autocast(Device::Cpu)?;
            let search = SearchConfig { beam: options.beam, max_length: WRITTEN, ..SearchConfig::default() };
            let mut work = Inference::new(Box::new(move |number| {
                let batch = &pool[number % pool.len()];
                let texts = task.write(&batch.source, &batch.mask, &search)?;
                let best = texts.first().and_then(|texts| texts.first()).context("no text was found")?;
                Ok(Tensor::f_from_slice(&[best.log_probability])?)
            }));
            let variant = options.variant(&[
                &name_of(options.mode),
                &format!("b{size}"),
                &format!("beam{}", options.beam),
            ]);
            let usual = Usual { steps: 8, warmup: 2, inner: 1 };
            let work: &mut dyn Work = &mut work;
            measure("seq2seq_transformer", &variant, options, &usual, size * WRITTEN, work)
        }
    }
}

fn task() -> Result<Translation> {
    let parameters = Parameters::new(Device::Cpu);
    let config = TransformerConfig {
        source_vocabulary: WORDS,
        target_vocabulary: WORDS,
        d_model: 256,
        nhead: 8,
        num_encoder_layers: 3,
        num_decoder_layers: 3,
        dim_feedforward: 512,
        ..TransformerConfig::default()
    };
    let model = Transformer::new(&parameters.root(), config)?;
    // No text is ever made of tokens here.
    let tokenizer = TokenizerConfig { kind: TokenizerKind::Bytes, ..TokenizerConfig::default() };
    let tokenizer = Arc::new(TextTokenizer::train(&tokenizer, std::iter::empty::<&str>())?);
    let tokenizers =
        PairTokenizers { source: tokenizer.clone(), target: tokenizer, pad: 0, begin: 1, end: 2 };
    // No token ends a text, so that all are equally long.
    let marks = Marks { begin: 1, end: -1, ..Marks::default() };
    Ok(Translation::new(parameters, Box::new(model), Arc::new(tokenizers), marks, 0.1, None))
}

fn batch(size: i64) -> Result<TranslationBatch> {
    let words =
        |length: i64| Tensor::f_randint_low(FIRST_WORD, WORDS, [size, length], (Kind::Int64, Device::Cpu));
    let (source, target) = (words(SOURCE)?, words(TARGET + 1)?);
    Ok(TranslationBatch {
        mask: source.f_ones_like()?.f_to_kind(Kind::Bool)?,
        source,
        labels: target.f_narrow(1, 1, TARGET)?.f_contiguous()?,
        target: target.f_narrow(1, 0, TARGET)?.f_contiguous()?,
        references: Tensor::f_zeros([size, 1], (Kind::Uint8, Device::Cpu))?,
        tokens: (size * TARGET) as usize,
    })
}

fn shared(batch: &TranslationBatch) -> TranslationBatch {
    TranslationBatch {
        source: batch.source.shallow_clone(),
        mask: batch.mask.shallow_clone(),
        target: batch.target.shallow_clone(),
        labels: batch.labels.shallow_clone(),
        references: batch.references.shallow_clone(),
        tokens: batch.tokens,
    }
}
