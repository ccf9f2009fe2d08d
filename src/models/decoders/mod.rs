//! Decoder language models: each token is guessed from those before it.
//!
//! [`gpt2`] and [`llama`] are transformers' models of these names; their folders load unchanged. The trait [`Decoder`] is all that training and
//! generation see.

pub mod gpt2;
pub mod llama;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::Scope;
use super::cache::{LayerCache, stacked};
use gpt2::{Gpt2, Gpt2Config};
use llama::{Llama, LlamaConfig};

/// Every architecture by the name that `config.json` has for it.
pub const MODEL_TYPES: [&str; 2] = ["gpt2", "llama"];

/// What a model is made of, by `model_type`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(tag = "model_type", rename_all = "lowercase")]
pub enum DecoderConfig {
    /// GPT-2.
    Gpt2(Gpt2Config),
    /// LLaMA.
    Llama(Box<LlamaConfig>),
}

impl DecoderConfig {
    /// An architecture's configuration with its usual values.
    pub fn usual(name: &str) -> Option<Self> {
        match name {
            "gpt2" => Some(Self::Gpt2(Gpt2Config::default())),
            "llama" => Some(Self::Llama(Box::default())),
            _ => None,
        }
    }

    /// Makes the model.
    ///
    /// # Errors
    /// The configuration does not fit itself.
    pub fn build(&self, scope: &Scope) -> Result<Box<dyn Decoder>> {
        Ok(match self.clone() {
            Self::Gpt2(config) => Box::new(Gpt2::new(scope, config)?),
            Self::Llama(config) => Box::new(Llama::new(scope, *config)?),
        })
    }

    /// Rows of the embedding.
    pub fn vocabulary(&self) -> i64 {
        match self {
            Self::Gpt2(config) => config.vocab_size,
            Self::Llama(config) => config.vocab_size,
        }
    }

    /// Changes the rows of the embedding, for a tokenizer of one's own.
    pub fn set_vocabulary(&mut self, tokens: i64) {
        match self {
            Self::Gpt2(config) => config.vocab_size = tokens,
            Self::Llama(config) => config.vocab_size = tokens,
        }
    }

    /// The longest text, in tokens.
    pub fn context(&self) -> i64 {
        match self {
            Self::Gpt2(config) => config.n_positions,
            Self::Llama(config) => config.max_position_embeddings,
        }
    }
}

/// A language model.
pub trait Decoder {
    /// What `tokens` `[batch, length]` (int64), which follow those in the cache, mean together with them: `[batch, length, width]`.
    fn read(&self, tokens: &Tensor, layout: Layout<'_>, cache: &mut DecoderCache, train: bool) -> Tensor;

    /// Scores of the token after each that has been read: `[…, width]` to `[…, vocabulary]`.
    fn scores(&self, read: &Tensor) -> Tensor;

    /// Scores of the token after each of `tokens` `[batch, length]` (int64), which follow those in the cache: `[batch, length, vocabulary]`.
    fn decode(&self, tokens: &Tensor, layout: Layout<'_>, cache: &mut DecoderCache, train: bool) -> Tensor {
        self.scores(&self.read(tokens, layout, cache, train))
    }

    /// Scores for whole texts from their beginning, as training needs them.
    fn forward(&self, tokens: &Tensor, layout: Layout<'_>, train: bool) -> Tensor {
        self.decode(tokens, layout, &mut DecoderCache::new(self.layers()), train)
    }

    /// Whether training on whole texts computes layers again in the backward pass instead of keeping what they computed.
    fn recompute_layers(&mut self, recompute: bool);

    /// Layers, each with keys and values of its own.
    fn layers(&self) -> usize;

    /// The longest text, in tokens.
    fn context(&self) -> i64;

    /// Different tokens.
    fn vocabulary(&self) -> i64;
}

/// A step of a model outside this program: reads `tokens` `[batch, new]` behind `past` `[layers, 2, batch, key heads, seen, head_dim]` and returns the
/// scores of the token after each, `[batch, new, vocabulary]`, and the keys and values of all. `there` `[batch, seen + new]` is not 0 where there is a
/// token; rows are filled up on the left. Can be traced for any sizes with one new token.
pub fn step(model: &dyn Decoder, tokens: &Tensor, there: &Tensor, past: &Tensor) -> Result<[Tensor; 2]> {
    let mut cache = DecoderCache::joined(past);
    let Some(first) = cache.layers.first() else { bail!("the model has no layer") };
    let newest = first.places(tokens); // [new]
    let rule = first.all_places(&newest).f_unsqueeze(0)?.f_le_tensor(&newest.f_unsqueeze(1)?)?; // [new, seen + new]
    let there = there.f_ne(0)?;
    let positions = (there.f_cumsum(1, Kind::Int64)? - 1).f_clamp_min(0)?.f_index_select(1, &newest)?;
    let mask = there.f_unsqueeze(1)?.f_logical_and(&rule)?.f_unsqueeze(1)?; // [batch, 1, new, seen + new]
    let layout = Layout { positions: Some(&positions), mask: Some(&mask) };
    let scores = model.decode(tokens, layout, &mut cache, false);
    let Some(past) = cache.past() else { bail!("the model has kept nothing") };
    Ok([scores, past])
}

/// Where tokens stand, and what they see besides the rule that none sees ahead.
#[derive(Clone, Copy, Debug, Default)]
pub struct Layout<'a> {
    /// The place of each token in its text, `[batch, length]` (int64); counted on from the cache if left out.
    pub positions: Option<&'a Tensor>,
    /// Which of all tokens, those in the cache first, each new one may see: booleans broadcast to `[batch, 1, length, seen + length]`. For rows
    /// that are filled up on the left, and for texts that share a row.
    pub mask: Option<&'a Tensor>,
}

impl Layout<'_> {
    fn positions(&self, tokens: &Tensor, seen: i64) -> Tensor {
        match self.positions {
            Some(positions) => positions.shallow_clone(),
            // Counted by the tensor, so that a traced model takes any length.
            None => tokens.ones_like().cumsum(1, Kind::Int64) + (seen - 1),
        }
    }
}

/// Keys and values of what a model has read.
#[derive(Debug)]
pub struct DecoderCache {
    layers: Vec<LayerCache>,
}

impl DecoderCache {
    /// Of a model that has read nothing.
    pub fn new(layers: usize) -> Self {
        Self { layers: (0..layers).map(|_| LayerCache::default()).collect() }
    }

    /// From what a traced step is given, `[layers, 2, batch, key heads, seen, head_dim]`. New keys and values are joined to it by operations of the graph.
    pub fn joined(past: &Tensor) -> Self {
        let layer = |layer| {
            let both = past.select(0, layer);
            LayerCache::joined([both.select(0, 0), both.select(0, 1)])
        };
        Self { layers: (0..past.size()[0]).map(layer).collect() }
    }

    /// Keys and values of all layers, `[layers, 2, batch, key heads, seen, head_dim]`; none where nothing has been read.
    pub fn past(&self) -> Option<Tensor> {
        stacked(self.layers.iter())
    }

    /// How many tokens have been read.
    pub fn len(&self) -> i64 {
        self.layers.first().map_or(0, LayerCache::len)
    }

    /// Whether none have.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Keeps the rows of the batch that are numbered, in that order.
    pub fn select(&mut self, rows: &Tensor) {
        self.layers.iter_mut().for_each(|layer| layer.select(rows));
    }
}
