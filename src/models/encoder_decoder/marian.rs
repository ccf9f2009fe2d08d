//! Marian: Junczys-Dowmunt et al., "Marian: fast neural machine translation in C++", 2018, as transformers' `MarianMTModel` has it, with its names.

use anyhow::Result;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::positions::{Arrangement, sinusoidal};
use super::{DecoderState, EncoderDecoder, LayerState, key_mask};
use crate::models::attention::{AttentionOptions, SeparateAttention};
use crate::models::blocks::{Activation, dropout};
use crate::models::cache::LayerCache;
use crate::models::init::Init;
use crate::models::layers::{Embedding, LayerNorm, Linear, forward_linear};
use crate::models::{Role, Scope};

/// `config.json` of a Marian folder; the defaults are transformers'.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs, reason = "the names are those of transformers' MarianConfig")]
pub struct MarianConfig {
    pub vocab_size: i64,
    pub decoder_vocab_size: Option<i64>,
    pub max_position_embeddings: i64,
    pub d_model: i64,
    pub encoder_layers: usize,
    pub decoder_layers: usize,
    pub encoder_attention_heads: i64,
    pub decoder_attention_heads: i64,
    pub encoder_ffn_dim: i64,
    pub decoder_ffn_dim: i64,
    pub activation_function: Activation,
    pub dropout: f64,
    pub attention_dropout: f64,
    pub activation_dropout: f64,
    pub init_std: f64,
    pub scale_embedding: bool,
    pub share_encoder_decoder_embeddings: bool,
    pub pad_token_id: i64,
    pub eos_token_id: i64,
    pub decoder_start_token_id: i64,
}

impl Default for MarianConfig {
    fn default() -> Self {
        Self {
            vocab_size: 58_101,
            decoder_vocab_size: None,
            max_position_embeddings: 1024,
            d_model: 1024,
            encoder_layers: 12,
            decoder_layers: 12,
            encoder_attention_heads: 16,
            decoder_attention_heads: 16,
            encoder_ffn_dim: 4096,
            decoder_ffn_dim: 4096,
            activation_function: Activation::Gelu,
            dropout: 0.1,
            attention_dropout: 0.0,
            activation_dropout: 0.0,
            init_std: 0.02,
            scale_embedding: false,
            share_encoder_decoder_embeddings: true,
            pad_token_id: 58_100,
            eos_token_id: 0,
            decoder_start_token_id: 58_100,
        }
    }
}

#[derive(Debug)]
struct Layer {
    self_attn: SeparateAttention,
    self_attn_layer_norm: LayerNorm,
    /// In the decoder.
    encoder_attn: Option<(SeparateAttention, LayerNorm)>,
    fc1: Linear,
    fc2: Linear,
    final_layer_norm: LayerNorm,
}

impl Layer {
    fn new(scope: &Scope, config: &MarianConfig, decoder: bool) -> Result<Self> {
        let width = config.d_model;
        let (heads, hidden) = match decoder {
            true => (config.decoder_attention_heads, config.decoder_ffn_dim),
            false => (config.encoder_attention_heads, config.encoder_ffn_dim),
        };
        let attention = |name| {
            let scope = scope.child(name);
            let linear = |name| Linear::new(&scope.child(name), width, width);
            let [key, value] = [linear("k_proj")?, linear("v_proj")?];
            let layers = [linear("q_proj")?, key, value, linear("out_proj")?];
            anyhow::Ok(SeparateAttention::new(layers, width / heads))
        };
        let norm = |name| LayerNorm::new(&scope.child(name), width, 1e-5);
        Ok(Self {
            self_attn: attention("self_attn")?,
            self_attn_layer_norm: norm("self_attn_layer_norm")?,
            encoder_attn: match decoder {
                true => Some((attention("encoder_attn")?, norm("encoder_attn_layer_norm")?)),
                false => None,
            },
            fc1: Linear::new(&scope.child("fc1"), width, hidden)?,
            fc2: Linear::new(&scope.child("fc2"), hidden, width)?,
            final_layer_norm: norm("final_layer_norm")?,
        })
    }

    fn dense(&self, input: &Tensor, config: &MarianConfig, train: bool) -> Tensor {
        let hidden = config.activation_function.apply(self.fc1.forward(input));
        let output = self.fc2.forward(&dropout(hidden, config.activation_dropout, train));
        self.final_layer_norm.forward(&(dropout(output, config.dropout, train) + input))
    }

    fn encode(&self, input: &Tensor, mask: &Tensor, config: &MarianConfig, train: bool) -> Tensor {
        let options = AttentionOptions { mask: Some(mask), ..config.attention(train) };
        let attended = dropout(self.self_attn.forward(input, options), config.dropout, train);
        self.dense(&self.self_attn_layer_norm.forward(&(attended + input)), config, train)
    }

    fn decode(
        &self,
        input: &Tensor,
        state: &mut LayerState,
        memory_mask: &Tensor,
        rule: Option<&Tensor>,
        config: &MarianConfig,
        train: bool,
    ) -> Tensor {
        let [key, value] = state.own.append(self.self_attn.project_memory(input));
        let options = AttentionOptions { causal: rule.is_none(), mask: rule, ..config.attention(train) };
        let attended = self.self_attn.attend(&self.self_attn.project_query(input), &key, &value, options);
        let mut x = self.self_attn_layer_norm.forward(&(dropout(attended, config.dropout, train) + input));
        if let Some((attention, norm)) = &self.encoder_attn {
            let options = AttentionOptions { mask: Some(memory_mask), ..config.attention(train) };
            let attended = state.look_at_memory(&x, |x, key, value| {
                attention.attend(&attention.project_query(x), key, value, options)
            });
            x = norm.forward(&(dropout(attended, config.dropout, train) + x));
        }
        self.dense(&x, config, train)
    }
}

impl MarianConfig {
    fn attention(&self, train: bool) -> AttentionOptions<'static> {
        let dropout = if train { self.attention_dropout } else { 0.0 };
        AttentionOptions { dropout, ..Default::default() }
    }
}

/// `MarianMTModel`.
#[derive(Debug)]
pub struct Marian {
    config: MarianConfig,
    source_embedding: Embedding,
    /// Absent where it is the source's.
    target_embedding: Option<Embedding>,
    positions: Tensor,
    encoder: Vec<Layer>,
    decoder: Vec<Layer>,
    final_logits_bias: Tensor,
}

impl Marian {
    /// Draws every matrix from N(0, `init_std`²), as transformers does.
    pub fn new(scope: &Scope, config: MarianConfig) -> Result<Self> {
        let model = scope.child("model");
        let (width, padding) = (config.d_model, Some(config.pad_token_id));
        let targets = config.decoder_vocab_size.unwrap_or(config.vocab_size);
        let embedding = |scope: Scope, tokens| Embedding::new(&scope.undrawn(), tokens, width, padding);
        let (source_embedding, target_embedding) = match config.share_encoder_decoder_embeddings {
            true => (embedding(model.child("shared"), config.vocab_size)?, None),
            false => (
                embedding(model.child("encoder").child("embed_tokens"), config.vocab_size)?,
                Some(embedding(model.child("decoder").child("embed_tokens"), targets)?),
            ),
        };
        let stack = |name: &str, layers: usize, decoder: bool| {
            let scope = model.child(name).child("layers").undrawn();
            (0..layers)
                .map(|number| Layer::new(&scope.child(number), &config, decoder))
                .collect::<Result<_>>()
        };
        let encoder = stack("encoder", config.encoder_layers, false)?;
        let decoder = stack("decoder", config.decoder_layers, true)?;
        scope.parameters().redraw(|entry| {
            let matrix = entry.role == Role::Parameter && entry.tensor.dim() == 2;
            matrix.then_some(Init::Normal { deviation: config.init_std })
        })?;
        for table in [Some(&source_embedding), target_embedding.as_ref()].into_iter().flatten() {
            table.redraw(scope, Init::Normal { deviation: config.init_std })?;
        }
        let length = config.max_position_embeddings;
        Ok(Self {
            positions: sinusoidal(length, width, Arrangement::Halves, scope.parameters().device()),
            final_logits_bias: scope.buffer("final_logits_bias", Init::ZEROS.draw(&[1, targets])?)?,
            config,
            source_embedding,
            target_embedding,
            encoder,
            decoder,
        })
    }

    /// The configuration that it was made with.
    pub fn config(&self) -> &MarianConfig {
        &self.config
    }

    fn target_embedding(&self) -> &Embedding {
        self.target_embedding.as_ref().unwrap_or(&self.source_embedding)
    }

    /// Tokens `[batch, length]` at `places` `[length]`.
    fn embed(&self, table: &Embedding, tokens: &Tensor, places: &Tensor, train: bool) -> Tensor {
        let scale = if self.config.scale_embedding { (self.config.d_model as f64).sqrt() } else { 1.0 };
        let at = Tensor::embedding(&self.positions, places, -1, false, false);
        dropout(table.forward(tokens) * scale + at, self.config.dropout, train)
    }
}

impl EncoderDecoder for Marian {
    fn encode(&self, source: &Tensor, mask: &Tensor, train: bool) -> Tensor {
        let mask = key_mask(mask);
        let x = self.embed(&self.source_embedding, source, &LayerCache::default().places(source), train);
        self.encoder.iter().fold(x, |x, layer| layer.encode(&x, &mask, &self.config, train))
    }

    fn start(&self, memory: &Tensor, mask: &Tensor) -> DecoderState {
        let attentions = self.decoder.iter().filter_map(|layer| layer.encoder_attn.as_ref());
        DecoderState::new(attentions.map(|(attention, _)| attention.project_memory(memory)), mask)
    }

    fn decode(&self, target: &Tensor, state: &mut DecoderState, train: bool) -> Tensor {
        let places = state.places(target);
        let x = self.embed(self.target_embedding(), target, &places, train);
        let rule = state.rule(&places);
        let DecoderState { layers, memory_mask } = state;
        let x = self.decoder.iter().zip(layers).fold(x, |x, (layer, state)| {
            layer.decode(&x, state, memory_mask, rule.as_ref(), &self.config, train)
        });
        forward_linear(&x, self.target_embedding().weight(), None) + &self.final_logits_bias
    }
}
