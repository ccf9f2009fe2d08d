//! Fine-tuning and inference of a BERT of MiniLM's shape, through the family `transformer`: `benches/pytorch/bert_minilm_finetune.py`.

use anyhow::Result;
use serde_json::json;
use tch::{Device, Kind, Tensor};
use tch_suite::cli::Family;
use tch_suite::cli::transformer::{Classify, EncoderRecipe, Encoders};
use tch_suite::data::encoder_texts::{LabelledBatch, TokenBatch};
use tch_suite::models::Parameters;
use tch_suite::native::modes::InferenceMode;
use tch_suite::recipe;
use tch_suite::tasks;

use super::harness::{Batches, Inference, Lengths, Mode, Options, Training, Usual, Work, measure, name_of};

/// Lengths that texts of unequal length are drawn from.
const LENGTHS: [usize; 28] = [
    5, 7, 8, 9, 10, 11, 12, 12, 13, 14, 15, 16, 18, 19, 20, 21, 22, 24, 25, 26, 28, 30, 32, 35, 38, 42, 48,
    56,
];

/// The tokens of the vocabulary, and the first that is a word.
const VOCABULARY: i64 = 30522;
const FIRST_WORD: i64 = 1000;

/// Runs it.
pub fn run(options: &Options) -> Result<()> {
    let size = options.batch.unwrap_or(32);
    let recipe: EncoderRecipe = recipe::typed(
        json!({
            "name": "bert_minilm_finetune",
            "model": {
                "task": "classify",
                "num_labels": 2,
                "config": {
                    "model_type": "bert",
                    "vocab_size": VOCABULARY,
                    "hidden_size": 384,
                    "num_hidden_layers": 6,
                    "num_attention_heads": 12,
                    "intermediate_size": 1536,
                },
            },
            "data": { "classes": ["0", "1"] },
            "training": {
                "batch_size": size,
                "optimizer": { "name": "adamw", "lr": 2e-5, "weight_decay": 0.01 },
                "decay_bias_and_norm": false,
                "precision": options.precision(),
            },
        }),
        "bert_minilm_finetune",
    )?;
    let task = Encoders::<Classify>::build(&recipe, Parameters::new(Device::Cpu))?;
    let pool = pool(options, size)?;
    let length = match options.lengths {
        Lengths::Fixed => format!("s{}", options.seq),
        other => name_of(other),
    };
    let variant = options.variant(&[&name_of(options.mode), &format!("b{size}"), &length]);
    let usual = Usual { steps: 20, warmup: 3, inner: 1 };
    let timed = |work: &mut dyn Work| measure("bert_minilm_finetune", &variant, options, &usual, size, work);
    match options.mode {
        Mode::Train => {
            let batches: Batches<LabelledBatch> = Box::new(move |number| {
                let batch = &pool[number % pool.len()];
                Ok(LabelledBatch { tokens: shared(&batch.tokens), targets: batch.targets.shallow_clone() })
            });
            timed(&mut Training::new(&recipe.training, task, batches)?)
        }
        Mode::Infer => {
            let _inference = InferenceMode::enter()?;
            let _autocast = recipe.training.precision.autocast(Device::Cpu)?;
            timed(&mut Inference::new(Box::new(move |number| {
                task.scores(&pool[number % pool.len()].tokens, tasks::Mode::Evaluate)
            })))
        }
    }
}

fn shared(tokens: &TokenBatch) -> TokenBatch {
    TokenBatch {
        ids: tokens.ids.shallow_clone(),
        segments: None,
        mask: tokens.mask.as_ref().map(Tensor::shallow_clone),
    }
}

/// Batches of random words: all of one length, of drawn lengths, or of drawn lengths sorted.
fn pool(options: &Options, size: usize) -> Result<Vec<LabelledBatch>> {
    let whole = (Kind::Int64, Device::Cpu);
    let count = options.pool.max(1);
    let mut lengths: Vec<usize> = match options.lengths {
        Lengths::Fixed => vec![options.seq; size * count],
        Lengths::Dynamic | Lengths::Bucketed => {
            let drawn = Tensor::f_randint(LENGTHS.len() as i64, [(size * count) as i64], whole)?;
            Vec::<i64>::try_from(drawn)?.into_iter().map(|place| LENGTHS[place as usize]).collect()
        }
    };
    if options.lengths == Lengths::Bucketed {
        lengths.sort_unstable();
    }
    let batch = |lengths: &[usize]| -> Result<LabelledBatch> {
        let sequences = lengths
            .iter()
            .map(|&length| -> Result<(Vec<i64>, usize)> {
                let ids = Tensor::f_randint_low(FIRST_WORD, VOCABULARY, [length as i64], whole)?;
                Ok((Vec::try_from(ids)?, length))
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(LabelledBatch {
            tokens: TokenBatch::of(&sequences, 0)?,
            targets: Tensor::f_randint(2, [size as i64], whole)?,
        })
    };
    lengths.chunks(size).map(batch).collect()
}
