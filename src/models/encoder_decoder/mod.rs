//! Encoder-decoder transformers: what a source text becomes is looked at while a target text is made, token by token.
//!
//! Each architecture has a file: [`transformer`] is `torch.nn.Transformer`, [`marian`] and [`t5`] are transformers' models of these names, whose
//! folders load unchanged. They differ in names, in where they normalise, and in how they know positions; the trait [`EncoderDecoder`] is all that
//! training and decoding see.

pub mod marian;
pub mod positions;
pub mod t5;
pub mod transformer;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::Scope;
use super::cache::{LayerCache, stacked};
use marian::{Marian, MarianConfig};
use t5::{T5, T5Config};
use transformer::{Transformer, TransformerConfig};

/// Every architecture by the name that `config.json` has for it.
pub const MODEL_TYPES: [&str; 3] = ["transformer", "marian", "t5"];

/// What a model is made of, by `model_type`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(tag = "model_type", rename_all = "lowercase")]
pub enum EncoderDecoderConfig {
    /// `torch.nn.Transformer`.
    Transformer(TransformerConfig),
    /// Marian.
    Marian(MarianConfig),
    /// T5.
    T5(T5Config),
}

impl EncoderDecoderConfig {
    /// An architecture's configuration with its usual values.
    pub fn usual(name: &str) -> Option<Self> {
        match name {
            "transformer" => Some(Self::Transformer(TransformerConfig::default())),
            "marian" => Some(Self::Marian(MarianConfig::default())),
            "t5" => Some(Self::T5(T5Config::default())),
            _ => None,
        }
    }

    /// Makes the model.
    ///
    /// # Errors
    /// The configuration does not fit itself.
    pub fn build(&self, scope: &Scope) -> Result<Box<dyn EncoderDecoder>> {
        Ok(match self.clone() {
            Self::Transformer(config) => Box::new(Transformer::new(scope, config)?),
            Self::Marian(config) => Box::new(Marian::new(scope, config)?),
            Self::T5(config) => Box::new(T5::new(scope, config)?),
        })
    }

    /// Rows of the embeddings of source and target.
    pub fn vocabularies(&self) -> [i64; 2] {
        match self {
            Self::Transformer(config) => [config.source_vocabulary, config.target_vocabulary],
            Self::Marian(config) => {
                [config.vocab_size, config.decoder_vocab_size.unwrap_or(config.vocab_size)]
            }
            Self::T5(config) => [config.vocab_size; 2],
        }
    }

    /// The longest source or target in tokens, where there is a limit.
    pub fn longest(&self) -> Option<i64> {
        match self {
            Self::Transformer(config) => Some(config.max_length),
            Self::Marian(config) => Some(config.max_position_embeddings),
            // Distances have no end.
            Self::T5(_) => None,
        }
    }

    /// Padding, what targets begin with and what texts end with, where the configuration says so; else the tokenizer does.
    pub fn marks(&self) -> Option<[i64; 3]> {
        match self {
            Self::Transformer(_) => None,
            Self::Marian(config) => {
                Some([config.pad_token_id, config.decoder_start_token_id, config.eos_token_id])
            }
            Self::T5(config) => {
                Some([config.pad_token_id, config.decoder_start_token_id, config.eos_token_id])
            }
        }
    }
}

/// A model that reads a source and writes a target.
pub trait EncoderDecoder {
    /// What the tokens of sources mean: `[batch, source, width]` of int64 `source` `[batch, source]`. `mask` is boolean of the same shape,
    /// true where there is a token.
    fn encode(&self, source: &Tensor, mask: &Tensor, train: bool) -> Tensor;

    /// The state of a decoder that has written nothing, for encoded sources with their mask.
    fn start(&self, memory: &Tensor, mask: &Tensor) -> DecoderState;

    /// Scores of the token after each of `target` `[batch, length]`, which follow those that the state has seen:
    /// `[batch, length, target vocabulary]`.
    fn decode(&self, target: &Tensor, state: &mut DecoderState, train: bool) -> Tensor;

    /// Scores for whole targets, as training needs them: `[batch, target, target vocabulary]`.
    fn forward(&self, source: &Tensor, mask: &Tensor, target: &Tensor, train: bool) -> Tensor {
        let memory = self.encode(source, mask, train);
        self.decode(target, &mut self.start(&memory, mask), train)
    }
}

/// What a model outside this program reads a source with: `source` `[batch, source]` and its `mask`, not 0 where there is a token, become what the tokens
/// mean, `[batch, source, width]`, and the keys and values that the decoder looks at, `[layers, 2, batch, heads, source, head_dim]`.
pub fn encode(model: &dyn EncoderDecoder, source: &Tensor, mask: &Tensor) -> [Tensor; 2] {
    let mask = mask.ne(0);
    let encoded = model.encode(source, &mask, false);
    let memory = model.start(&encoded, &mask).memory();
    [encoded, memory]
}

/// A step of such a model: `target` `[batch, new]` behind `past` `[layers, 2, batch, heads, seen, head_dim]`, for sources with their `mask` and `memory` as
/// [`encode`] gives it. Returns the scores of the token after each, `[batch, new, vocabulary]`, and the keys and values of all.
///
/// # Errors
/// The model has no layer that keeps anything.
pub fn step(
    model: &dyn EncoderDecoder,
    target: &Tensor,
    mask: &Tensor,
    memory: &Tensor,
    past: &Tensor,
) -> Result<[Tensor; 2]> {
    let mut state = DecoderState::joined(memory, &mask.f_ne(0)?, past);
    let scores = model.decode(target, &mut state, false);
    let Some(past) = state.past() else { bail!("the model has no layer that keeps what it has seen") };
    Ok([scores, past])
}

/// What a decoder keeps between steps.
#[derive(Debug)]
pub struct DecoderState {
    layers: Vec<LayerState>,
    /// `[batch, 1, 1, source]`, true where there is a token.
    memory_mask: Tensor,
}

#[derive(Debug)]
struct LayerState {
    own: LayerCache,
    /// Keys and values of the source, `[batch, heads, source, head_dim]`.
    memory: [Tensor; 2],
}

impl DecoderState {
    fn new(memories: impl Iterator<Item = [Tensor; 2]>, mask: &Tensor) -> Self {
        let layers = memories.map(|memory| LayerState { own: LayerCache::default(), memory }).collect();
        Self { layers, memory_mask: key_mask(mask) }
    }

    /// From what a traced step is given: keys and values of the source, `[layers, 2, batch, heads, source, head_dim]`, its mask `[batch, source]`, and keys
    /// and values of the target so far, of the same form. New ones are joined to them by operations of the graph.
    pub fn joined(memory: &Tensor, mask: &Tensor, past: &Tensor) -> Self {
        let layers = memory.size()[0];
        let parts = |all: &Tensor, layer: i64| {
            let both = all.select(0, layer);
            [both.select(0, 0), both.select(0, 1)]
        };
        let layer =
            |layer| LayerState { own: LayerCache::joined(parts(past, layer)), memory: parts(memory, layer) };
        Self { layers: (0..layers).map(layer).collect(), memory_mask: key_mask(mask) }
    }

    /// Keys and values of the source, `[layers, 2, batch, heads, source, head_dim]`.
    pub fn memory(&self) -> Tensor {
        let layers: Vec<Tensor> = self.layers.iter().map(|layer| Tensor::stack(&layer.memory, 0)).collect();
        Tensor::stack(&layers, 0)
    }

    /// Keys and values of the target so far, `[layers, 2, batch, heads, seen, head_dim]`; none before the first token.
    pub fn past(&self) -> Option<Tensor> {
        stacked(self.layers.iter().map(|layer| &layer.own))
    }

    /// The places of new `tokens` `[batch, length]`: `[length]`.
    fn places(&self, tokens: &Tensor) -> Tensor {
        match self.layers.first() {
            Some(layer) => layer.own.places(tokens),
            None => LayerCache::default().places(tokens),
        }
    }

    /// Which of all tokens each new one sees, where attention's own causal rule will not do.
    fn rule(&self, places: &Tensor) -> Option<Tensor> {
        self.layers.first().and_then(|layer| layer.own.rule(places))
    }

    /// How many target tokens have been seen.
    pub fn len(&self) -> i64 {
        self.layers.first().map_or(0, |layer| layer.own.len())
    }

    /// Whether none have.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Keeps the rows of the batch that are numbered, in that order, and of the sources those that `sources` numbers, all if left out. A source may
    /// have several rows, as many as the others; they stand side by side, and look at one memory.
    pub fn select(&mut self, rows: &Tensor, sources: Option<&Tensor>) {
        for layer in &mut self.layers {
            layer.own.select(rows);
            if let Some(sources) = sources {
                layer.memory = layer.memory.each_ref().map(|tensor| tensor.index_select(0, sources));
            }
        }
        if let Some(sources) = sources {
            self.memory_mask = self.memory_mask.index_select(0, sources);
        }
    }
}

impl LayerState {
    /// What `attend` makes of target tokens `[batch, length, width]` that look at the keys and values of the source. Rows of one source are given to it
    /// as one longer row: none sees another there, and the memory need not be repeated.
    fn look_at_memory(
        &self,
        input: &Tensor,
        attend: impl FnOnce(&Tensor, &Tensor, &Tensor) -> Tensor,
    ) -> Tensor {
        let [key, value] = &self.memory;
        let size = input.size();
        let sources = key.size()[0];
        if size[0] == sources {
            return attend(input, key, value);
        }
        attend(&input.reshape([sources, -1, size[2]]), key, value).reshape(&size)
    }
}

/// A mask `[batch, length]` in the form that attention takes: `[batch, 1, 1, length]`.
fn key_mask(mask: &Tensor) -> Tensor {
    mask.unsqueeze(1).unsqueeze(1)
}
