//! GPT-2: Radford et al., "Language models are unsupervised multitask learners", 2019, as transformers' `GPT2LMHeadModel` has it, with its names.

use std::rc::Rc;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{Decoder, DecoderCache, Layout};
use crate::bail_input;
use crate::models::Scope;
use crate::models::attention::{AttentionOptions, attention, join_heads};
use crate::models::blocks::{Activation, dropout};
use crate::models::cache::LayerCache;
use crate::models::init::Init;
use crate::models::layers::{Embedding, LayerNorm, Linear, forward_linear};
use crate::models::lora::Adapter;
use crate::models::summary::record;
use crate::native::checkpoint::checkpoint;
use crate::native::inference::packed_linear;

/// `config.json` of a GPT-2 folder; the defaults are transformers'.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs, reason = "the names are those of transformers' GPT2Config")]
pub struct Gpt2Config {
    pub vocab_size: i64,
    pub n_positions: i64,
    pub n_embd: i64,
    pub n_layer: usize,
    pub n_head: i64,
    pub n_inner: Option<i64>,
    pub activation_function: Activation,
    pub resid_pdrop: f64,
    pub embd_pdrop: f64,
    pub attn_pdrop: f64,
    pub layer_norm_epsilon: f64,
    pub initializer_range: f64,
    pub tie_word_embeddings: bool,
}

impl Default for Gpt2Config {
    fn default() -> Self {
        Self {
            vocab_size: 50_257,
            n_positions: 1024,
            n_embd: 768,
            n_layer: 12,
            n_head: 12,
            n_inner: None,
            activation_function: Activation::GeluTanh,
            resid_pdrop: 0.1,
            embd_pdrop: 0.1,
            attn_pdrop: 0.1,
            layer_norm_epsilon: 1e-5,
            initializer_range: 0.02,
            tie_word_embeddings: true,
        }
    }
}

/// `Conv1D`: a linear layer whose weight is `[inputs, outputs]`.
#[derive(Debug)]
struct Conv1D {
    name: String,
    weight: Tensor,
    bias: Tensor,
    adapter: Option<Adapter>,
}

impl Conv1D {
    fn new(scope: &Scope, inputs: i64, outputs: i64, deviation: f64) -> Result<Self> {
        let weight = scope.parameter("weight", &[inputs, outputs], Init::Normal { deviation })?;
        let bias = scope.parameter("bias", &[outputs], Init::ZEROS)?;
        scope.parameters().note_transposed(scope.name());
        let adapter = Adapter::of_layer(scope, inputs, outputs)?;
        Ok(Self { name: scope.name().to_owned(), weight, bias, adapter })
    }

    fn forward(&self, input: &Tensor, train: bool) -> Tensor {
        let weight = self.weight.tr();
        let packed = packed_linear(input, &weight, Some(&self.bias)).expect("a linear layer");
        let output = match packed {
            Some(output) => output,
            None if train => input.linear(&weight, Some(&self.bias)),
            // Under autocast a weight is cast once for all steps, a view of it in each.
            None => {
                let product = input.matmul(&self.weight);
                &product + self.bias.to_kind(product.kind())
            }
        };
        record(&self.name, "Conv1D", &output, &[Some(&self.weight), Some(&self.bias)], || {
            output.numel() * self.weight.size()[0] as usize
        });
        match &self.adapter {
            Some(adapter) => output + adapter.forward(input),
            None => output,
        }
    }
}

#[derive(Debug)]
struct Block {
    ln_1: LayerNorm,
    c_attn: Conv1D,
    attn_c_proj: Conv1D,
    ln_2: LayerNorm,
    c_fc: Conv1D,
    mlp_c_proj: Conv1D,
}

impl Block {
    fn new(scope: &Scope, config: &Gpt2Config) -> Result<Self> {
        let width = config.n_embd;
        let hidden = config.n_inner.unwrap_or(4 * width);
        let deviation = config.initializer_range;
        // What is added to the residual stream is scaled down by the number of additions.
        let added = deviation / (2.0 * config.n_layer as f64).sqrt();
        let norm = |name| LayerNorm::new(&scope.child(name), width, config.layer_norm_epsilon);
        let (attn, mlp) = (scope.child("attn"), scope.child("mlp"));
        Ok(Self {
            ln_1: norm("ln_1")?,
            c_attn: Conv1D::new(&attn.child("c_attn"), width, 3 * width, deviation)?,
            attn_c_proj: Conv1D::new(&attn.child("c_proj"), width, width, added)?,
            ln_2: norm("ln_2")?,
            c_fc: Conv1D::new(&mlp.child("c_fc"), width, hidden, deviation)?,
            mlp_c_proj: Conv1D::new(&mlp.child("c_proj"), hidden, width, added)?,
        })
    }

    fn forward(
        &self,
        input: &Tensor,
        mask: Option<&Tensor>,
        cache: &mut LayerCache,
        config: &Gpt2Config,
        train: bool,
    ) -> Tensor {
        let head_dim = config.n_embd / config.n_head;
        let projected = self.c_attn.forward(&self.ln_1.forward(input), train); // [batch, length, 3 · width]
        // [3, batch, heads, length, head_dim]
        let parts = projected.unflatten(-1, [3, -1, head_dim]).permute([2, 0, 3, 1, 4]);
        let [key, value] = cache.append([parts.select(0, 1), parts.select(0, 2)]);
        let rate = if train { config.attn_pdrop } else { 0.0 };
        let options = AttentionOptions { mask, causal: true, dropout: rate, scale: None };
        let mixed = join_heads(&attention(&parts.select(0, 0), &key, &value, options));
        let x = dropout(self.attn_c_proj.forward(&mixed, train), config.resid_pdrop, train) + input;
        let hidden = config.activation_function.apply(self.c_fc.forward(&self.ln_2.forward(&x), train));
        dropout(self.mlp_c_proj.forward(&hidden, train), config.resid_pdrop, train) + x
    }
}

/// `GPT2LMHeadModel`.
#[derive(Debug)]
pub struct Gpt2 {
    config: Rc<Gpt2Config>,
    wte: Embedding,
    wpe: Embedding,
    /// Shared with the backward pass where they are computed again.
    blocks: Vec<Rc<Block>>,
    recompute: bool,
    ln_f: LayerNorm,
    /// Absent where it is the embedding.
    lm_head: Option<Linear>,
}

impl Gpt2 {
    /// Draws weights as transformers does: N(0, `initializer_range`²), projections onto the residual stream narrower.
    ///
    /// # Errors
    /// The heads do not divide the width.
    pub fn new(scope: &Scope, config: Gpt2Config) -> Result<Self> {
        if config.n_head < 1 || config.n_embd % config.n_head != 0 {
            bail_input!("model.n_embd: {} is no multiple of model.n_head, {}", config.n_embd, config.n_head);
        }
        let model = scope.child("transformer");
        let init = Init::Normal { deviation: config.initializer_range };
        let table = |name: &str, rows| {
            let table = Embedding::new(&model.child(name).undrawn(), rows, config.n_embd, None)?;
            table.redraw(scope, init)?;
            anyhow::Ok(table)
        };
        let wte = table("wte", config.vocab_size)?;
        let wpe = table("wpe", config.n_positions)?;
        let blocks = (0..config.n_layer)
            .map(|number| Block::new(&model.child("h").child(number), &config).map(Rc::new))
            .collect::<Result<_>>()?;
        let ln_f = LayerNorm::new(&model.child("ln_f"), config.n_embd, config.layer_norm_epsilon)?;
        let lm_head = match config.tie_word_embeddings {
            true => None,
            false => Some(untied_head(scope, config.n_embd, config.vocab_size, init)?),
        };
        Ok(Self { config: Rc::new(config), wte, wpe, blocks, recompute: false, ln_f, lm_head })
    }

    /// The configuration that it was made with.
    pub fn config(&self) -> &Gpt2Config {
        &self.config
    }
}

/// A block in training that is computed again in the backward pass.
fn forward_again(
    block: &Rc<Block>,
    input: &Tensor,
    mask: Option<&Tensor>,
    config: &Rc<Gpt2Config>,
) -> Tensor {
    let (block, config, mask) = (block.clone(), config.clone(), mask.map(Tensor::shallow_clone));
    let segment =
        move |x: &Tensor| block.forward(x, mask.as_ref(), &mut LayerCache::default(), &config, true);
    checkpoint(input, segment).unwrap()
}

/// `lm_head` with a weight of its own.
pub(super) fn untied_head(scope: &Scope, width: i64, vocabulary: i64, init: Init) -> Result<Linear> {
    let head = Linear::without_bias(&scope.child("lm_head").undrawn(), width, vocabulary)?;
    head.redraw_weight(scope, init)?;
    Ok(head)
}

impl Decoder for Gpt2 {
    fn read(&self, tokens: &Tensor, layout: Layout<'_>, cache: &mut DecoderCache, train: bool) -> Tensor {
        let positions = layout.positions(tokens, cache.len());
        let embedded = self.wte.forward(tokens) + self.wpe.forward(&positions); // [batch, length, width]
        let x = dropout(embedded, self.config.embd_pdrop, train);
        let again = self.recompute && train && cache.is_empty();
        let x = self.blocks.iter().zip(&mut cache.layers).fold(x, |x, (block, cache)| match again {
            false => block.forward(&x, layout.mask, cache, &self.config, train),
            true => forward_again(block, &x, layout.mask, &self.config),
        });
        self.ln_f.forward(&x)
    }

    fn scores(&self, read: &Tensor) -> Tensor {
        match &self.lm_head {
            Some(head) => head.forward(read),
            None => forward_linear(read, self.wte.weight(), None),
        }
    }

    fn recompute_layers(&mut self, recompute: bool) {
        self.recompute = recompute;
    }

    fn layers(&self) -> usize {
        self.config.n_layer
    }

    fn context(&self) -> i64 {
        self.config.n_positions
    }

    fn vocabulary(&self) -> i64 {
        self.config.vocab_size
    }
}
