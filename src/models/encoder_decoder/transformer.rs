//! The transformer of Vaswani et al., "Attention is all you need", 2017, with the layers, names and initial weights of `torch.nn.Transformer`: the keys
//! under `transformer.` are that module's `state_dict`.

use anyhow::Result;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::positions::{Arrangement, sinusoidal};
use super::{DecoderState, EncoderDecoder, LayerState, key_mask};
use crate::bail_input;
use crate::models::attention::{AttentionOptions, MultiheadAttention};
use crate::models::blocks::{Activation, dropout};
use crate::models::cache::LayerCache;
use crate::models::init::Init;
use crate::models::layers::{Embedding, LayerNorm, Linear, forward_linear};
use crate::models::{Role, Scope};

/// Which tables are one and the same. Press and Wolf, "Using the output embedding to improve language models", 2016.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tying {
    /// Source embedding, target embedding and output layer are three.
    #[default]
    None,
    /// The output layer uses the target embedding.
    Output,
    /// All three are one, for a vocabulary that both languages share.
    All,
}

/// How the model knows where a token stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Positions {
    /// Sines and cosines.
    #[default]
    Sinusoidal,
    /// A table that is learned.
    Learned,
}

/// `torch.nn.Transformer`'s arguments, and what is around it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TransformerConfig {
    /// Source tokens; from the tokenizer.
    pub source_vocabulary: i64,
    /// Target tokens; from the tokenizer.
    pub target_vocabulary: i64,
    /// Features of a token.
    pub d_model: i64,
    /// Heads of each attention.
    pub nhead: i64,
    /// Layers of the encoder.
    pub num_encoder_layers: usize,
    /// Layers of the decoder.
    pub num_decoder_layers: usize,
    /// Hidden units of a layer's dense network.
    pub dim_feedforward: i64,
    /// Share of values that are dropped: of embeddings, in the dense network, and of what each part of a layer adds.
    pub dropout: f64,
    /// Share of attention weights that are dropped; as `dropout`, if left out.
    pub attention_dropout: Option<f64>,
    /// Inside the dense network.
    pub activation: Activation,
    /// Normalise before each part of a layer instead of after it.
    pub norm_first: bool,
    /// Added to the variance.
    pub layer_norm_eps: f64,
    /// How the model knows where a token stands.
    pub positions: Positions,
    /// The longest source and target, in tokens.
    pub max_length: i64,
    /// Which tables are one.
    pub tie_embeddings: Tying,
    /// The token that fills short rows of sources and targets up.
    pub pad_token_id: i64,
}

impl Default for TransformerConfig {
    fn default() -> Self {
        Self {
            source_vocabulary: 0,
            target_vocabulary: 0,
            d_model: 512,
            nhead: 8,
            num_encoder_layers: 6,
            num_decoder_layers: 6,
            dim_feedforward: 2048,
            dropout: 0.1,
            attention_dropout: None,
            activation: Activation::Relu,
            norm_first: false,
            layer_norm_eps: 1e-5,
            positions: Positions::Sinusoidal,
            max_length: 256,
            tie_embeddings: Tying::None,
            pad_token_id: 0,
        }
    }
}

impl TransformerConfig {
    /// Checks that the numbers fit each other.
    ///
    /// # Errors
    /// One sentence with the key that does not fit.
    pub fn validate(&self) -> Result<()> {
        if self.nhead < 1 || self.d_model < 1 || self.d_model % self.nhead != 0 {
            bail_input!("model.d_model: {} is no multiple of model.nhead, {}", self.d_model, self.nhead);
        }
        if self.positions == Positions::Sinusoidal && self.d_model % 2 != 0 {
            bail_input!("model.d_model: sinusoidal positions need an even number, not {}", self.d_model);
        }
        if self.tie_embeddings == Tying::All && self.source_vocabulary != self.target_vocabulary {
            bail_input!(
                "model.tie_embeddings: `all` needs one vocabulary for both languages, and these have {} and {} tokens",
                self.source_vocabulary,
                self.target_vocabulary
            );
        }
        for (key, rate) in
            [("dropout", self.dropout), ("attention_dropout", self.attention_dropout.unwrap_or(0.0))]
        {
            if !(0.0..1.0).contains(&rate) {
                bail_input!("model.{key}: {rate} is not from 0 to below 1");
            }
        }
        for (key, number) in [("dim_feedforward", self.dim_feedforward), ("max_length", self.max_length)] {
            if number < 1 {
                bail_input!("model.{key}: {number} is less than 1");
            }
        }
        Ok(())
    }

    fn rates(&self, train: bool) -> Rates {
        let dropout = if train { self.dropout } else { 0.0 };
        let attention = if train { self.attention_dropout.unwrap_or(self.dropout) } else { 0.0 };
        Rates { dropout, attention }
    }
}

/// What is dropped in this pass.
#[derive(Clone, Copy)]
struct Rates {
    dropout: f64,
    attention: f64,
}

/// Two dense layers and where a layer normalises: what encoder and decoder layers share.
#[derive(Debug)]
struct Block {
    linear1: Linear,
    linear2: Linear,
    activation: Activation,
    norm_first: bool,
}

impl Block {
    fn new(scope: &Scope, config: &TransformerConfig) -> Result<Self> {
        Ok(Self {
            linear1: Linear::new(&scope.child("linear1"), config.d_model, config.dim_feedforward)?,
            linear2: Linear::new(&scope.child("linear2"), config.dim_feedforward, config.d_model)?,
            activation: config.activation,
            norm_first: config.norm_first,
        })
    }

    /// The residual connection around one part of a layer, with the normalisation before or after it.
    fn around(
        &self,
        input: &Tensor,
        norm: &LayerNorm,
        rate: f64,
        part: impl FnOnce(&Tensor) -> Tensor,
    ) -> Tensor {
        if self.norm_first {
            dropout(part(&norm.forward(input)), rate, true) + input
        } else {
            norm.forward(&(dropout(part(input), rate, true) + input))
        }
    }

    fn dense(&self, input: &Tensor, rate: f64) -> Tensor {
        let hidden = self.activation.apply(self.linear1.forward(input));
        self.linear2.forward(&dropout(hidden, rate, true))
    }
}

/// `nn.TransformerEncoderLayer(batch_first=True)`.
#[derive(Debug)]
pub struct EncoderLayer {
    self_attn: MultiheadAttention,
    block: Block,
    norm1: LayerNorm,
    norm2: LayerNorm,
}

impl EncoderLayer {
    /// Draws its weights in PyTorch's order.
    pub fn new(scope: &Scope, config: &TransformerConfig) -> Result<Self> {
        let norm = |name| LayerNorm::new(&scope.child(name), config.d_model, config.layer_norm_eps);
        Ok(Self {
            self_attn: MultiheadAttention::new(&scope.child("self_attn"), config.d_model, config.nhead)?,
            block: Block::new(scope, config)?,
            norm1: norm("norm1")?,
            norm2: norm("norm2")?,
        })
    }

    /// `[batch, length, d_model]` to the same shape; `mask` `[batch, 1, 1, length]` is true where there is a token.
    fn pass(&self, input: &Tensor, mask: &Tensor, rates: Rates) -> Tensor {
        let options = AttentionOptions { mask: Some(mask), dropout: rates.attention, ..Default::default() };
        let x = self.block.around(input, &self.norm1, rates.dropout, |x| self.self_attn.forward(x, options));
        self.block.around(&x, &self.norm2, rates.dropout, |x| self.block.dense(x, rates.dropout))
    }

    /// The layer by itself, as in evaluation: `mask` `[batch, length]` is true where there is a token.
    pub fn forward(&self, input: &Tensor, mask: &Tensor) -> Tensor {
        self.pass(input, &key_mask(mask), Rates { dropout: 0.0, attention: 0.0 })
    }
}

/// `nn.TransformerDecoderLayer(batch_first=True)`.
#[derive(Debug)]
pub struct DecoderLayer {
    self_attn: MultiheadAttention,
    multihead_attn: MultiheadAttention,
    block: Block,
    norm1: LayerNorm,
    norm2: LayerNorm,
    norm3: LayerNorm,
}

impl DecoderLayer {
    /// Draws its weights in PyTorch's order.
    pub fn new(scope: &Scope, config: &TransformerConfig) -> Result<Self> {
        let norm = |name| LayerNorm::new(&scope.child(name), config.d_model, config.layer_norm_eps);
        let attention = |name| MultiheadAttention::new(&scope.child(name), config.d_model, config.nhead);
        Ok(Self {
            self_attn: attention("self_attn")?,
            multihead_attn: attention("multihead_attn")?,
            block: Block::new(scope, config)?,
            norm1: norm("norm1")?,
            norm2: norm("norm2")?,
            norm3: norm("norm3")?,
        })
    }

    /// `rule` says which tokens see which, in place of attention's own rule.
    fn pass(
        &self,
        input: &Tensor,
        state: &mut LayerState,
        memory_mask: &Tensor,
        rule: Option<&Tensor>,
        rates: Rates,
    ) -> Tensor {
        let options = AttentionOptions { dropout: rates.attention, ..Default::default() };
        let x = self.block.around(input, &self.norm1, rates.dropout, |x| {
            let [query, key, value] = self.self_attn.project(x);
            let [key, value] = state.own.append([key, value]);
            self.self_attn.attend(
                &query,
                &key,
                &value,
                AttentionOptions { causal: rule.is_none(), mask: rule, ..options },
            )
        });
        let x = self.block.around(&x, &self.norm2, rates.dropout, |x| {
            let options = AttentionOptions { mask: Some(memory_mask), ..options };
            state.look_at_memory(x, |x, key, value| {
                self.multihead_attn.attend(&self.multihead_attn.project_query(x), key, value, options)
            })
        });
        self.block.around(&x, &self.norm3, rates.dropout, |x| self.block.dense(x, rates.dropout))
    }

    /// The layer by itself, as in evaluation: `[batch, length, d_model]` that looks at itself backwards and at `memory`
    /// `[batch, source, d_model]`, whose `mask` `[batch, source]` is true where there is a token.
    pub fn forward(&self, input: &Tensor, memory: &Tensor, mask: &Tensor) -> Tensor {
        let memory = self.multihead_attn.project_memory(memory);
        let mut state = LayerState { own: Default::default(), memory };
        self.pass(input, &mut state, &key_mask(mask), None, Rates { dropout: 0.0, attention: 0.0 })
    }
}

/// Embeddings, `nn.Transformer` and an output layer.
#[derive(Debug)]
pub struct Transformer {
    config: TransformerConfig,
    source_embedding: Embedding,
    /// Absent where it is the source's.
    target_embedding: Option<Embedding>,
    /// `[max_length, d_model]` for source and target.
    positions: [Tensor; 2],
    encoder: Vec<EncoderLayer>,
    encoder_norm: LayerNorm,
    decoder: Vec<DecoderLayer>,
    decoder_norm: LayerNorm,
    generator: Generator,
}

#[derive(Debug)]
enum Generator {
    Own(Linear),
    /// The target embedding with a bias of its own.
    Tied {
        bias: Tensor,
    },
}

impl Transformer {
    /// Draws the embeddings from N(0, 1/d_model), the rest as `nn.Transformer` and `nn.Linear` do.
    ///
    /// # Errors
    /// The configuration does not fit itself.
    pub fn new(scope: &Scope, config: TransformerConfig) -> Result<Self> {
        config.validate()?;
        let width = config.d_model;
        let embedding = |name, tokens| {
            let table = Embedding::new(&scope.child(name), tokens, width, Some(config.pad_token_id))?;
            table.redraw(scope, Init::Normal { deviation: (width as f64).powf(-0.5) })?;
            anyhow::Ok(table)
        };
        let source_embedding = embedding("source_embedding", config.source_vocabulary)?;
        let target_embedding = match config.tie_embeddings {
            Tying::All => None,
            Tying::Output | Tying::None => Some(embedding("target_embedding", config.target_vocabulary)?),
        };
        let positions = match config.positions {
            Positions::Sinusoidal => {
                let device = scope.parameters().device();
                let table = sinusoidal(config.max_length, width, Arrangement::Interleaved, device);
                [table.shallow_clone(), table]
            }
            Positions::Learned => {
                let table = |name: &str| {
                    let shape = [config.max_length, width];
                    let deviation = (width as f64).powf(-0.5);
                    scope.child(name).parameter("weight", &shape, Init::Normal { deviation })
                };
                [table("source_positions")?, table("target_positions")?]
            }
        };
        let network = scope.child("transformer");
        let norm = |scope: &Scope| LayerNorm::new(&scope.child("norm"), width, config.layer_norm_eps);
        let encoder_scope = network.child("encoder");
        let encoder =
            repeated(&encoder_scope, config.num_encoder_layers, |scope| EncoderLayer::new(scope, &config))?;
        let encoder_norm = norm(&encoder_scope)?;
        let decoder_scope = network.child("decoder");
        let decoder =
            repeated(&decoder_scope, config.num_decoder_layers, |scope| DecoderLayer::new(scope, &config))?;
        let decoder_norm = norm(&decoder_scope)?;
        // nn.Transformer's own last word on every matrix.
        scope.parameters().redraw(|entry| {
            let shape = entry.tensor.size();
            let drawn =
                entry.role == Role::Parameter && entry.name.starts_with(network.name()) && shape.len() > 1;
            drawn.then(|| Init::xavier_uniform(&shape))
        })?;
        let generator = scope.child("generator");
        let generator = match config.tie_embeddings {
            Tying::None => Generator::Own(Linear::new(&generator, width, config.target_vocabulary)?),
            Tying::Output | Tying::All => Generator::Tied {
                bias: generator.parameter("bias", &[config.target_vocabulary], Init::ZEROS)?,
            },
        };
        Ok(Self {
            config,
            source_embedding,
            target_embedding,
            positions,
            encoder,
            encoder_norm,
            decoder,
            decoder_norm,
            generator,
        })
    }

    /// The configuration that it was made with.
    pub fn config(&self) -> &TransformerConfig {
        &self.config
    }

    fn target_embedding(&self) -> &Embedding {
        self.target_embedding.as_ref().unwrap_or(&self.source_embedding)
    }

    /// Tokens `[batch, length]` at `places` `[length]`, scaled.
    fn embed(
        &self,
        table: &Embedding,
        positions: &Tensor,
        tokens: &Tensor,
        places: &Tensor,
        rate: f64,
    ) -> Tensor {
        let scaled = table.forward(tokens) * (self.config.d_model as f64).sqrt();
        let at = Tensor::embedding(positions, places, -1, false, false); // [length, d_model]
        dropout(scaled + at, rate, true)
    }
}

/// Layers under `layers.0`, `layers.1`, …, all beginning as copies of the first, as PyTorch makes them.
fn repeated<T>(scope: &Scope, count: usize, make: impl Fn(&Scope) -> Result<T>) -> Result<Vec<T>> {
    let place = |number: usize| scope.child("layers").child(number);
    (0..count)
        .map(|number| match number {
            0 => make(&place(0)),
            _ => {
                let layer = make(&place(number).undrawn())?;
                place(number).copy_from(&place(0))?;
                Ok(layer)
            }
        })
        .collect()
}

impl EncoderDecoder for Transformer {
    fn encode(&self, source: &Tensor, mask: &Tensor, train: bool) -> Tensor {
        let rates = self.config.rates(train);
        let mask = key_mask(mask); // [batch, 1, 1, source]
        let places = LayerCache::default().places(source);
        let x = self.embed(&self.source_embedding, &self.positions[0], source, &places, rates.dropout);
        let x = self.encoder.iter().fold(x, |x, layer| layer.pass(&x, &mask, rates));
        self.encoder_norm.forward(&x) // [batch, source, d_model]
    }

    fn start(&self, memory: &Tensor, mask: &Tensor) -> DecoderState {
        let project = |layer: &DecoderLayer| layer.multihead_attn.project_memory(memory);
        DecoderState::new(self.decoder.iter().map(project), mask)
    }

    fn decode(&self, target: &Tensor, state: &mut DecoderState, train: bool) -> Tensor {
        let rates = self.config.rates(train);
        let places = state.places(target);
        let x = self.embed(self.target_embedding(), &self.positions[1], target, &places, rates.dropout);
        let rule = state.rule(&places);
        let DecoderState { layers, memory_mask } = state;
        let x = self
            .decoder
            .iter()
            .zip(layers)
            .fold(x, |x, (layer, state)| layer.pass(&x, state, memory_mask, rule.as_ref(), rates));
        let x = self.decoder_norm.forward(&x); // [batch, target, d_model]
        match &self.generator {
            Generator::Own(linear) => linear.forward(&x),
            Generator::Tied { bias } => forward_linear(&x, self.target_embedding().weight(), Some(bias)),
        }
    }
}
