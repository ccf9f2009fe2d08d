//! T5: Raffel et al., "Exploring the limits of transfer learning with a unified text-to-text transformer", 2019, as transformers'
//! `T5ForConditionalGeneration` has it, with its names; version 1.1 and Flan-T5 with their gated dense networks as well.

use anyhow::Result;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::{DecoderState, EncoderDecoder, LayerState, key_mask};
use crate::bail_input;
use crate::models::Scope;
use crate::models::attention::{AttentionOptions, SeparateAttention};
use crate::models::blocks::{Activation, dropout};
use crate::models::cache::LayerCache;
use crate::models::init::Init;
use crate::models::layers::{Embedding, Linear, RmsNorm, forward_linear};

/// `config.json` of a T5 folder; the defaults are transformers'.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs, reason = "the names are those of transformers' T5Config")]
pub struct T5Config {
    pub vocab_size: i64,
    pub d_model: i64,
    pub d_kv: i64,
    pub d_ff: i64,
    pub num_layers: usize,
    pub num_decoder_layers: Option<usize>,
    pub num_heads: i64,
    pub relative_attention_num_buckets: i64,
    pub relative_attention_max_distance: i64,
    pub dropout_rate: f64,
    pub layer_norm_epsilon: f64,
    pub initializer_factor: f64,
    /// An activation, or `gated-` and one.
    pub feed_forward_proj: String,
    /// Whether the output layer is the embedding, scaled by 1/√d_model, as in the first version.
    pub tie_word_embeddings: bool,
    pub pad_token_id: i64,
    pub eos_token_id: i64,
    pub decoder_start_token_id: i64,
}

impl Default for T5Config {
    fn default() -> Self {
        Self {
            vocab_size: 32_128,
            d_model: 512,
            d_kv: 64,
            d_ff: 2048,
            num_layers: 6,
            num_decoder_layers: None,
            num_heads: 8,
            relative_attention_num_buckets: 32,
            relative_attention_max_distance: 128,
            dropout_rate: 0.1,
            layer_norm_epsilon: 1e-6,
            initializer_factor: 1.0,
            feed_forward_proj: "relu".to_owned(),
            tie_word_embeddings: true,
            pad_token_id: 0,
            eos_token_id: 1,
            decoder_start_token_id: 0,
        }
    }
}

impl T5Config {
    /// Whether the dense network is gated, and its activation.
    fn dense(&self) -> Result<(bool, Activation)> {
        let (gated, name) = match self.feed_forward_proj.strip_prefix("gated-") {
            // transformers takes this one for the approximation.
            Some("gelu") => (true, "gelu_new"),
            Some(name) => (true, name),
            None => (false, self.feed_forward_proj.as_str()),
        };
        match serde_json::from_value(name.into()) {
            Ok(activation) => Ok((gated, activation)),
            Err(_) => {
                bail_input!("feed_forward_proj: the activation of `{}` is not known", self.feed_forward_proj)
            }
        }
    }

    fn normal(&self, variance: f64) -> Init {
        Init::Normal { deviation: self.initializer_factor * variance.powf(-0.5) }
    }
}

/// `DenseReluDense`: `wi` or `wi_0` and `wi_1`, then `wo`.
#[derive(Debug)]
struct Dense {
    inner: Vec<Linear>,
    outer: Linear,
    activation: Activation,
}

impl Dense {
    fn new(scope: &Scope, config: &T5Config) -> Result<Self> {
        let (gated, activation) = config.dense()?;
        let names: &[&str] = if gated { &["wi_0", "wi_1"] } else { &["wi"] };
        let layer = |name: &str, inputs, outputs| {
            let linear = Linear::without_bias(&scope.child(name).undrawn(), inputs, outputs)?;
            linear.redraw_weight(scope, config.normal(inputs as f64))?;
            anyhow::Ok(linear)
        };
        let inner =
            names.iter().map(|name| layer(name, config.d_model, config.d_ff)).collect::<Result<_>>()?;
        Ok(Self { inner, outer: layer("wo", config.d_ff, config.d_model)?, activation })
    }

    fn forward(&self, input: &Tensor, rate: f64) -> Tensor {
        let mut inner = self.inner.iter().map(|layer| layer.forward(input));
        let hidden = self.activation.apply(inner.next().unwrap());
        let hidden = inner.fold(hidden, |hidden, gate| hidden * gate);
        self.outer.forward(&dropout(hidden, rate, true))
    }
}

/// One block: attention to itself, in the decoder to the source, and a dense network, each behind a normalisation.
#[derive(Debug)]
struct Block {
    own: (RmsNorm, SeparateAttention),
    source: Option<(RmsNorm, SeparateAttention)>,
    dense: (RmsNorm, Dense),
}

impl Block {
    fn new(scope: &Scope, config: &T5Config, decoder: bool) -> Result<Self> {
        let norm = |scope: &Scope| {
            RmsNorm::new(&scope.child("layer_norm"), config.d_model, config.layer_norm_epsilon)
        };
        let attention = |scope: &Scope, name: &str| {
            let scope = scope.child(name);
            let (width, inner) = (config.d_model, config.num_heads * config.d_kv);
            let layer = |name: &str, inputs, outputs, variance: i64| {
                let linear = Linear::without_bias(&scope.child(name).undrawn(), inputs, outputs)?;
                linear.redraw_weight(&scope, config.normal(variance as f64))?;
                anyhow::Ok(linear)
            };
            let layers = [
                layer("q", width, inner, width * config.d_kv)?,
                layer("k", width, inner, width)?,
                layer("v", width, inner, width)?,
                layer("o", inner, width, inner)?,
            ];
            anyhow::Ok(SeparateAttention::new(layers, config.d_kv))
        };
        let layers = scope.child("layer");
        let own = layers.child(0);
        let own = (norm(&own)?, attention(&own, "SelfAttention")?);
        let source = match decoder {
            true => {
                let scope = layers.child(1);
                Some((norm(&scope)?, attention(&scope, "EncDecAttention")?))
            }
            false => None,
        };
        let last = layers.child(1 + i64::from(decoder));
        let dense = (norm(&last)?, Dense::new(&last.child("DenseReluDense"), config)?);
        Ok(Self { own, source, dense })
    }

    /// `bias` `[1 or batch, heads, queries, keys]` says how far each query is from each key, and hides keys that are not to be seen.
    fn forward(
        &self,
        input: &Tensor,
        bias: &Tensor,
        source: Option<(&mut LayerState, &Tensor)>,
        rate: f64,
    ) -> Tensor {
        let options =
            |mask| AttentionOptions { mask: Some(mask), causal: false, dropout: rate, scale: Some(1.0) };
        let (norm, attention) = &self.own;
        let normed = norm.forward(input);
        let mut memory = attention.project_memory(&normed);
        let mut source = source;
        if let Some((state, _)) = &mut source {
            memory = state.own.append(memory);
        }
        let [key, value] = &memory;
        let attended = attention.attend(&attention.project_query(&normed), key, value, options(bias));
        let mut x = dropout(attended, rate, true) + input;
        if let (Some((norm, attention)), Some((state, mask))) = (&self.source, source) {
            let attended = state.look_at_memory(&norm.forward(&x), |x, key, value| {
                attention.attend(&attention.project_query(x), key, value, options(mask))
            });
            x = dropout(attended, rate, true) + x;
        }
        let (norm, dense) = &self.dense;
        dropout(dense.forward(&norm.forward(&x), rate), rate, true) + x
    }
}

/// Blocks with the table of relative positions that the first holds for all.
#[derive(Debug)]
struct Stack {
    blocks: Vec<Block>,
    relative_attention_bias: Embedding,
    final_layer_norm: RmsNorm,
    decoder: bool,
    buckets: i64,
    farthest: i64,
}

impl Stack {
    fn new(scope: &Scope, config: &T5Config, layers: usize, decoder: bool) -> Result<Self> {
        let blocks = scope.child("block");
        let table =
            blocks.child(0).child("layer").child(0).child("SelfAttention").child("relative_attention_bias");
        let buckets = config.relative_attention_num_buckets;
        let relative_attention_bias = Embedding::new(&table.undrawn(), buckets, config.num_heads, None)?;
        relative_attention_bias.redraw(scope, config.normal(config.d_model as f64))?;
        let final_layer_norm = scope.child("final_layer_norm");
        Ok(Self {
            blocks: (0..layers)
                .map(|number| Block::new(&blocks.child(number), config, decoder))
                .collect::<Result<_>>()?,
            relative_attention_bias,
            final_layer_norm: RmsNorm::new(&final_layer_norm, config.d_model, config.layer_norm_epsilon)?,
            decoder,
            buckets,
            farthest: config.relative_attention_max_distance,
        })
    }

    /// What is added to the scores of `queries`, the last of `keys`, for their distances: `[1, heads, queries, keys]`. A decoder sees nothing
    /// ahead.
    fn bias(&self, queries: &Tensor, keys: &Tensor) -> Tensor {
        let distance = keys.unsqueeze(0) - queries.unsqueeze(1); // [queries, keys]
        let values = self.relative_attention_bias.forward(&self.bucket(&distance)); // [queries, keys, heads]
        let values = values.permute([2, 0, 1]).unsqueeze(0);
        if self.decoder { values.masked_fill(&distance.gt(0), f64::NEG_INFINITY) } else { values }
    }

    /// The number of the bucket for each distance of key from query: one for each near distance, the farther the wider.
    fn bucket(&self, distance: &Tensor) -> Tensor {
        let buckets = if self.decoder { self.buckets } else { self.buckets / 2 };
        let (ahead, distance) = match self.decoder {
            true => (distance.zeros_like(), -distance.clamp_max(0)),
            false => (distance.gt(0).to_kind(Kind::Int64) * buckets, distance.abs()),
        };
        let exact = buckets / 2;
        let ratio = (self.farthest as f64 / exact as f64).ln();
        // In single precision and cut off, as transformers computes it.
        let logarithm =
            (distance.to_kind(Kind::Float) / exact as f64).log() / ratio * (buckets - exact) as f64;
        // The logarithm of 0 is not looked at, but must not be cast.
        let far = logarithm.clamp_min(0).to_kind(Kind::Int64) + exact;
        ahead + distance.where_self(&distance.lt(exact), &far.clamp_max(buckets - 1))
    }
}

/// `T5ForConditionalGeneration`.
#[derive(Debug)]
pub struct T5 {
    config: T5Config,
    shared: Embedding,
    encoder: Stack,
    decoder: Stack,
    /// Absent where it is the embedding.
    lm_head: Option<Linear>,
}

impl T5 {
    /// Draws weights as transformers does.
    ///
    /// # Errors
    /// The activation is not known.
    pub fn new(scope: &Scope, config: T5Config) -> Result<Self> {
        let wide = Init::Normal { deviation: config.initializer_factor };
        let shared =
            Embedding::new(&scope.child("shared").undrawn(), config.vocab_size, config.d_model, None)?;
        shared.redraw(scope, wide)?;
        let encoder = Stack::new(&scope.child("encoder"), &config, config.num_layers, false)?;
        let layers = config.num_decoder_layers.unwrap_or(config.num_layers);
        let decoder = Stack::new(&scope.child("decoder"), &config, layers, true)?;
        let lm_head = match config.tie_word_embeddings {
            true => None,
            false => {
                let scope = scope.child("lm_head");
                let linear = Linear::without_bias(&scope.undrawn(), config.d_model, config.vocab_size)?;
                linear.redraw_weight(&scope, wide)?;
                Some(linear)
            }
        };
        Ok(Self { config, shared, encoder, decoder, lm_head })
    }

    /// The configuration that it was made with.
    pub fn config(&self) -> &T5Config {
        &self.config
    }

    fn rate(&self, train: bool) -> f64 {
        if train { self.config.dropout_rate } else { 0.0 }
    }
}

impl EncoderDecoder for T5 {
    fn encode(&self, source: &Tensor, mask: &Tensor, train: bool) -> Tensor {
        let rate = self.rate(train);
        let places = LayerCache::default().places(source);
        let bias = self.encoder.bias(&places, &places);
        let bias = bias.masked_fill(&key_mask(mask).logical_not(), f64::NEG_INFINITY); // [batch, heads, source, source]
        let x = dropout(self.shared.forward(source), rate, true);
        let x = self.encoder.blocks.iter().fold(x, |x, block| block.forward(&x, &bias, None, rate));
        dropout(self.encoder.final_layer_norm.forward(&x), rate, true)
    }

    fn start(&self, memory: &Tensor, mask: &Tensor) -> DecoderState {
        let attentions = self.decoder.blocks.iter().filter_map(|block| block.source.as_ref());
        DecoderState::new(attentions.map(|(_, attention)| attention.project_memory(memory)), mask)
    }

    fn decode(&self, target: &Tensor, state: &mut DecoderState, train: bool) -> Tensor {
        let rate = self.rate(train);
        let queries = state.places(target);
        let keys = match state.layers.first() {
            Some(layer) => layer.own.all_places(&queries),
            None => queries.shallow_clone(),
        };
        let bias = self.decoder.bias(&queries, &keys);
        let DecoderState { layers, memory_mask } = state;
        let x = dropout(self.shared.forward(target), rate, true);
        let x = self
            .decoder
            .blocks
            .iter()
            .zip(layers)
            .fold(x, |x, (block, state)| block.forward(&x, &bias, Some((state, memory_mask)), rate));
        let x = dropout(self.decoder.final_layer_norm.forward(&x), rate, true);
        match &self.lm_head {
            Some(linear) => linear.forward(&x),
            None => {
                let scaled = x * (self.config.d_model as f64).powf(-0.5);
                forward_linear(&scaled, self.shared.weight(), None)
            }
        }
    }
}
