//! LLaMA: Touvron et al., "LLaMA: open and efficient foundation language models", 2023, as transformers' `LlamaForCausalLM` has it, with its
//! names: RMS normalisation, rotary positions (Su et al., "RoFormer", 2021), gated dense networks (Shazeer, "GLU variants improve
//! transformer", 2020) and grouped queries (Ainslie et al., 2023).

use std::f64::consts::TAU;
use std::rc::Rc;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::gpt2::untied_head;
use super::{Decoder, DecoderCache, Layout};
use crate::bail_input;
use crate::models::Scope;
use crate::models::attention::{AttentionOptions, attention, join_heads, split_heads};
use crate::models::blocks::Activation;
use crate::models::cache::LayerCache;
use crate::models::init::Init;
use crate::models::layers::{Embedding, Linear, RmsNorm, forward_linear};
use crate::native::checkpoint::checkpoint;

/// `config.json` of a LLaMA folder; the defaults are transformers'.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs, reason = "the names are those of transformers' LlamaConfig")]
pub struct LlamaConfig {
    pub vocab_size: i64,
    pub hidden_size: i64,
    pub intermediate_size: i64,
    pub num_hidden_layers: usize,
    pub num_attention_heads: i64,
    /// As many as heads, if left out.
    pub num_key_value_heads: Option<i64>,
    /// `hidden_size` / `num_attention_heads`, if left out.
    pub head_dim: Option<i64>,
    pub hidden_act: Activation,
    pub max_position_embeddings: i64,
    pub initializer_range: f64,
    pub rms_norm_eps: f64,
    pub tie_word_embeddings: bool,
    pub rope_theta: f64,
    pub rope_scaling: Option<RopeScaling>,
    /// Where newer files keep both.
    pub rope_parameters: Option<RopeScaling>,
    pub attention_bias: bool,
    pub attention_dropout: f64,
    pub mlp_bias: bool,
}

/// How positions are stretched for texts longer than those of the pretraining.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the names are transformers'")]
pub struct RopeScaling {
    #[serde(alias = "type")]
    pub rope_type: Option<String>,
    pub rope_theta: Option<f64>,
    pub factor: Option<f64>,
    pub low_freq_factor: Option<f64>,
    pub high_freq_factor: Option<f64>,
    pub original_max_position_embeddings: Option<f64>,
}

impl Default for LlamaConfig {
    fn default() -> Self {
        Self {
            vocab_size: 32_000,
            hidden_size: 4096,
            intermediate_size: 11_008,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: None,
            head_dim: None,
            hidden_act: Activation::Silu,
            max_position_embeddings: 2048,
            initializer_range: 0.02,
            rms_norm_eps: 1e-6,
            tie_word_embeddings: false,
            rope_theta: 10_000.0,
            rope_scaling: None,
            rope_parameters: None,
            attention_bias: false,
            attention_dropout: 0.0,
            mlp_bias: false,
        }
    }
}

impl LlamaConfig {
    fn head_dim(&self) -> i64 {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads)
    }

    /// How fast each pair of features turns, in radians for a token: `[head_dim / 2]`.
    ///
    /// # Errors
    /// A kind of scaling that is not here, or one of its numbers is missing.
    fn frequencies(&self) -> Result<Vec<f64>> {
        let scaling = self.rope_parameters.as_ref().or(self.rope_scaling.as_ref());
        let theta = scaling.and_then(|scaling| scaling.rope_theta).unwrap_or(self.rope_theta);
        let dim = self.head_dim();
        let plain = (0..dim / 2).map(|pair| theta.powf(-2.0 * pair as f64 / dim as f64));
        let Some(scaling) = scaling else { return Ok(plain.collect()) };
        let number = |name: &str, value: Option<f64>| {
            value.ok_or_else(|| crate::bad_input!("the model's rope scaling lacks the number `{name}`"))
        };
        match scaling.rope_type.as_deref().unwrap_or("default") {
            "default" => Ok(plain.collect()),
            "linear" => {
                let factor = number("factor", scaling.factor)?;
                Ok(plain.map(|frequency| frequency / factor).collect())
            }
            "llama3" => {
                let factor = number("factor", scaling.factor)?;
                let low = number("low_freq_factor", scaling.low_freq_factor)?;
                let high = number("high_freq_factor", scaling.high_freq_factor)?;
                let context =
                    number("original_max_position_embeddings", scaling.original_max_position_embeddings)?;
                let stretch = |frequency: f64| {
                    let turns = context * frequency / TAU;
                    // Fast pairs stay, slow ones are stretched, those between are mixed.
                    let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                    frequency * (kept + (1.0 - kept) / factor)
                };
                Ok(plain.map(stretch).collect())
            }
            other => bail_input!(
                "rope scaling of the type `{other}` is not here; `default`, `linear` and `llama3` are"
            ),
        }
    }
}

/// Cosines and sines that turn queries and keys, `[batch, 1, length, head_dim]`.
struct Rotation {
    cosines: Tensor,
    sines: Tensor,
}

impl Rotation {
    fn new(positions: &Tensor, frequencies: &Tensor, kind: Kind) -> Self {
        let angles = positions.to_kind(Kind::Float).unsqueeze(-1) * frequencies; // [batch, length, head_dim / 2]
        let angles = Tensor::cat(&[&angles, &angles], -1).unsqueeze(1);
        Self { cosines: angles.cos().to_kind(kind), sines: angles.sin().to_kind(kind) }
    }

    fn turn(&self, input: &Tensor) -> Tensor {
        let halves = input.chunk(2, -1);
        let turned = Tensor::cat(&[&halves[1].neg(), &halves[0]], -1);
        input * &self.cosines + turned * &self.sines
    }
}

#[derive(Debug)]
struct Layer {
    input_layernorm: RmsNorm,
    /// Queries, keys, values, output.
    attention: [Linear; 4],
    post_attention_layernorm: RmsNorm,
    /// Gate, up, down.
    mlp: [Linear; 3],
}

impl Layer {
    fn new(scope: &Scope, config: &LlamaConfig) -> Result<Self> {
        let (width, hidden) = (config.hidden_size, config.intermediate_size);
        let queries = config.num_attention_heads * config.head_dim();
        let keys = config.num_key_value_heads.unwrap_or(config.num_attention_heads) * config.head_dim();
        let norm = |name| RmsNorm::new(&scope.child(name), width, config.rms_norm_eps);
        let linear = |scope: &Scope, name: &str, inputs, outputs, bias| {
            let place = scope.child(name).undrawn();
            let layer = match bias {
                true => Linear::new(&place, inputs, outputs)?,
                false => Linear::without_bias(&place, inputs, outputs)?,
            };
            layer.redraw_weight(scope, Init::Normal { deviation: config.initializer_range })?;
            anyhow::Ok(layer)
        };
        let attention = scope.child("self_attn");
        let project =
            |name, inputs, outputs| linear(&attention, name, inputs, outputs, config.attention_bias);
        let mlp = scope.child("mlp");
        let dense = |name, inputs, outputs| linear(&mlp, name, inputs, outputs, config.mlp_bias);
        Ok(Self {
            attention: [
                project("q_proj", width, queries)?,
                project("k_proj", width, keys)?,
                project("v_proj", width, keys)?,
                project("o_proj", queries, width)?,
            ],
            mlp: [
                dense("gate_proj", width, hidden)?,
                dense("up_proj", width, hidden)?,
                dense("down_proj", hidden, width)?,
            ],
            input_layernorm: norm("input_layernorm")?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
        })
    }

    fn forward(
        &self,
        input: &Tensor,
        rotation: &Rotation,
        cache: &mut LayerCache,
        mask: Option<&Tensor>,
        dropout: f64,
        config: &LlamaConfig,
    ) -> Tensor {
        let options = AttentionOptions { mask, causal: true, dropout, scale: None };
        let normed = self.input_layernorm.forward(input);
        let [query, key, value, output] = &self.attention;
        let [query, key, value] =
            [query, key, value].map(|layer| split_heads(&layer.forward(&normed), config.head_dim()));
        let [key, value] = cache.append([rotation.turn(&key), value]);
        let mixed = attention(&rotation.turn(&query), &key, &value, options);
        let x = output.forward(&join_heads(&mixed)) + input;
        let normed = self.post_attention_layernorm.forward(&x);
        let [gate, up, down] = &self.mlp;
        let hidden = config.hidden_act.apply(gate.forward(&normed)) * up.forward(&normed);
        down.forward(&hidden) + x
    }
}

/// `LlamaForCausalLM`.
#[derive(Debug)]
pub struct Llama {
    config: Rc<LlamaConfig>,
    embed_tokens: Embedding,
    /// Shared with the backward pass where they are computed again.
    layers: Vec<Rc<Layer>>,
    recompute: bool,
    norm: RmsNorm,
    frequencies: Tensor,
    /// Absent where it is the embedding.
    lm_head: Option<Linear>,
}

impl Llama {
    /// Draws every matrix from N(0, `initializer_range`²), as transformers does.
    ///
    /// # Errors
    /// Heads that do not fit, or positions of a kind that is not here.
    pub fn new(scope: &Scope, config: LlamaConfig) -> Result<Self> {
        let heads = config.num_attention_heads;
        let groups = config.num_key_value_heads.unwrap_or(heads);
        if heads < 1 || (config.head_dim.is_none() && config.hidden_size % heads != 0) {
            bail_input!(
                "model.hidden_size: {} is no multiple of model.num_attention_heads, {heads}",
                config.hidden_size
            );
        }
        if groups < 1 || heads % groups != 0 {
            bail_input!(
                "model.num_attention_heads: {heads} is no multiple of model.num_key_value_heads, {groups}"
            );
        }
        let model = scope.child("model");
        let init = Init::Normal { deviation: config.initializer_range };
        let table = model.child("embed_tokens");
        let embed_tokens = Embedding::new(&table.undrawn(), config.vocab_size, config.hidden_size, None)?;
        embed_tokens.redraw(scope, init)?;
        let layers = (0..config.num_hidden_layers)
            .map(|number| Layer::new(&model.child("layers").child(number), &config).map(Rc::new))
            .collect::<Result<_>>()?;
        let frequencies: Vec<f32> = config.frequencies()?.into_iter().map(|value| value as f32).collect();
        Ok(Self {
            norm: RmsNorm::new(&model.child("norm"), config.hidden_size, config.rms_norm_eps)?,
            frequencies: Tensor::from_slice(&frequencies).to_device(scope.parameters().device()),
            lm_head: match config.tie_word_embeddings {
                true => None,
                false => Some(untied_head(scope, config.hidden_size, config.vocab_size, init)?),
            },
            config: Rc::new(config),
            embed_tokens,
            layers,
            recompute: false,
        })
    }

    /// The configuration that it was made with.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }
}

/// A layer in training that is computed again in the backward pass.
fn forward_again(
    layer: &Rc<Layer>,
    input: &Tensor,
    rotation: &Rc<Rotation>,
    mask: Option<&Tensor>,
    dropout: f64,
    config: &Rc<LlamaConfig>,
) -> Tensor {
    let (layer, rotation, config) = (layer.clone(), rotation.clone(), config.clone());
    let mask = mask.map(Tensor::shallow_clone);
    let segment = move |x: &Tensor| {
        layer.forward(x, &rotation, &mut LayerCache::default(), mask.as_ref(), dropout, &config)
    };
    checkpoint(input, segment).unwrap()
}

impl Decoder for Llama {
    fn read(&self, tokens: &Tensor, layout: Layout<'_>, cache: &mut DecoderCache, train: bool) -> Tensor {
        let x = self.embed_tokens.forward(tokens); // [batch, length, hidden_size]
        let positions = layout.positions(tokens, cache.len());
        let rotation = Rc::new(Rotation::new(&positions, &self.frequencies, x.kind()));
        let rate = if train { self.config.attention_dropout } else { 0.0 };
        let again = self.recompute && train && cache.is_empty();
        let x = self.layers.iter().zip(&mut cache.layers).fold(x, |x, (layer, cache)| match again {
            false => layer.forward(&x, &rotation, cache, layout.mask, rate, &self.config),
            true => forward_again(layer, &x, &rotation, layout.mask, rate, &self.config),
        });
        self.norm.forward(&x)
    }

    fn scores(&self, read: &Tensor) -> Tensor {
        match &self.lm_head {
            Some(head) => head.forward(read),
            None => forward_linear(read, self.embed_tokens.weight(), None),
        }
    }

    fn recompute_layers(&mut self, recompute: bool) {
        self.recompute = recompute;
    }

    fn layers(&self) -> usize {
        self.config.num_hidden_layers
    }

    fn context(&self) -> i64 {
        self.config.max_position_embeddings
    }

    fn vocabulary(&self) -> i64 {
        self.config.vocab_size
    }
}
