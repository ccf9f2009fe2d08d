//! Embeddings and layers.

use std::rc::Rc;

use anyhow::Result;
use tch::{Kind, Tensor};

use super::config::{Dimensions, EncoderConfig, EncoderKind};
use crate::models::Scope;
use crate::models::attention::{AttentionOptions, attention, join_heads, split_heads};
use crate::models::blocks::{Activation, dropout};
use crate::models::init::Init;
use crate::models::layers::{Embedding, LayerNorm, Linear};
use crate::native::checkpoint::checkpoint;

/// A batch of texts as an encoder takes it.
#[derive(Debug)]
pub struct EncoderInputs<'a> {
    /// Tokens, `[batch, length]` int64.
    pub ids: &'a Tensor,
    /// Which of two texts each token belongs to, `[batch, length]` int64; the first if left out.
    pub segments: Option<&'a Tensor>,
    /// Which tokens are there and not padding, `[batch, length]` booleans or 0 and 1; all if left out, which is faster.
    pub mask: Option<&'a Tensor>,
}

/// What the parts of a layer are called.
struct Names {
    query: &'static str,
    key: &'static str,
    value: &'static str,
    attention_output: &'static str,
    attention_norm: &'static str,
    widen: &'static str,
    narrow: &'static str,
    norm: &'static str,
}

const BERT_NAMES: Names = Names {
    query: "attention.self.query",
    key: "attention.self.key",
    value: "attention.self.value",
    attention_output: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    widen: "intermediate.dense",
    narrow: "output.dense",
    norm: "output.LayerNorm",
};

const DISTILBERT_NAMES: Names = Names {
    query: "attention.q_lin",
    key: "attention.k_lin",
    value: "attention.v_lin",
    attention_output: "attention.out_lin",
    attention_norm: "sa_layer_norm",
    widen: "ffn.lin1",
    narrow: "ffn.lin2",
    norm: "output_layer_norm",
};

/// Attention and a feed-forward network, each with a residual connection and normalised behind it.
#[derive(Debug)]
struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    attention_output: Linear,
    attention_norm: LayerNorm,
    widen: Linear,
    narrow: Linear,
    norm: LayerNorm,
    activation: Activation,
    head_dim: i64,
    dropout: f64,
    attention_dropout: f64,
}

impl Layer {
    fn new(scope: &Scope, kind: EncoderKind, numbers: &Dimensions) -> Result<Self> {
        let names = if kind == EncoderKind::DistilBert { DISTILBERT_NAMES } else { BERT_NAMES };
        let &Dimensions { width, inner_width, eps, .. } = numbers;
        let linear = |name: &str, inputs, outputs| Linear::new(&scope.child(name), inputs, outputs);
        let norm = |name: &str| LayerNorm::new(&scope.child(name), width, eps);
        // In transformers' order, which is that of its random draws.
        Ok(Self {
            query: linear(names.query, width, width)?,
            key: linear(names.key, width, width)?,
            value: linear(names.value, width, width)?,
            attention_output: linear(names.attention_output, width, width)?,
            attention_norm: norm(names.attention_norm)?,
            widen: linear(names.widen, width, inner_width)?,
            narrow: linear(names.narrow, inner_width, width)?,
            norm: norm(names.norm)?,
            activation: numbers.activation,
            head_dim: width / numbers.heads,
            dropout: numbers.dropout,
            attention_dropout: numbers.attention_dropout,
        })
    }

    /// `[batch, length, width]` to the same shape; `mask` is `[batch, 1, 1, length]`.
    fn forward(&self, input: &Tensor, mask: Option<&Tensor>, train: bool) -> Tensor {
        let heads = |layer: &Linear| split_heads(&layer.forward(input), self.head_dim);
        let (query, key, value) = (heads(&self.query), heads(&self.key), heads(&self.value)); // [batch, heads, length, head_dim]
        let options = AttentionOptions {
            mask,
            dropout: if train { self.attention_dropout } else { 0.0 },
            ..AttentionOptions::default()
        };
        let attended = join_heads(&attention(&query, &key, &value, options)); // [batch, length, width]
        let attended = dropout(self.attention_output.forward(&attended), self.dropout, train);
        let attended = self.attention_norm.forward(&(attended + input));
        let wide = self.activation.apply(self.widen.forward(&attended)); // [batch, length, inner width]
        let narrow = dropout(self.narrow.forward(&wide), self.dropout, train);
        self.norm.forward(&(narrow + attended))
    }

    /// The weights of the attention in evaluation, `[batch, heads, queries, keys]`.
    fn attention_weights(&self, input: &Tensor, mask: Option<&Tensor>) -> Tensor {
        let heads = |layer: &Linear| split_heads(&layer.forward(input), self.head_dim);
        let scale = 1.0 / (self.head_dim as f64).sqrt();
        let scores: Tensor = heads(&self.query).matmul(&heads(&self.key).transpose(2, 3)) * scale;
        let scores = match mask {
            Some(mask) => scores.masked_fill(&mask.logical_not(), f64::NEG_INFINITY),
            None => scores,
        };
        scores.softmax(-1, Kind::Float)
    }
}

/// An encoder: tokens to one vector each.
#[derive(Debug)]
pub struct Encoder {
    kind: EncoderKind,
    words: Embedding,
    positions: Embedding,
    segments: Option<Embedding>,
    norm: LayerNorm,
    /// From the width of the embeddings to that of the layers, where they differ.
    project: Option<Linear>,
    layers: Vec<Rc<Layer>>,
    padding: i64,
    dropout: f64,
    recompute: bool,
}

impl Encoder {
    /// Makes the encoder under `scope`. With `recompute` a layer's intermediate values are computed again in the backward pass instead of being
    /// kept (gradient checkpointing).
    pub fn new(scope: &Scope, config: &EncoderConfig, recompute: bool) -> Result<Self> {
        let (kind, numbers) = (config.kind(), config.dimensions());
        let width = numbers.embedding_width;
        let embeddings = scope.child("embeddings");
        let padding = Some(numbers.padding);
        let words = Embedding::new(&embeddings.child("word_embeddings"), numbers.vocabulary, width, padding)?;
        let make_positions = |padding| {
            Embedding::new(&embeddings.child("position_embeddings"), numbers.positions, width, padding)
        };
        let make_segments = || {
            let scope = embeddings.child("token_type_embeddings");
            (numbers.segments > 0).then(|| Embedding::new(&scope, numbers.segments, width, None)).transpose()
        };
        let make_norm = || LayerNorm::new(&embeddings.child("LayerNorm"), width, numbers.eps);
        // In transformers' order, which is that of its random draws.
        let (positions, segments, norm) = match kind {
            EncoderKind::Roberta => {
                let (segments, norm) = (make_segments()?, make_norm()?);
                (make_positions(padding)?, segments, norm)
            }
            _ => (make_positions(None)?, make_segments()?, make_norm()?),
        };
        let project = (numbers.embedding_width != numbers.width)
            .then(|| Linear::new(&scope.child("embeddings_project"), width, numbers.width))
            .transpose()?;
        let stack = match kind {
            EncoderKind::DistilBert => scope.child("transformer"),
            _ => scope.child("encoder"),
        };
        let layers = (0..numbers.layers)
            .map(|number| Ok(Rc::new(Layer::new(&stack.child("layer").child(number), kind, &numbers)?)))
            .collect::<Result<_>>()?;
        Ok(Self {
            kind,
            words,
            positions,
            segments,
            norm,
            project,
            layers,
            padding: numbers.padding,
            dropout: numbers.dropout,
            recompute,
        })
    }

    /// Draws the tables anew, as transformers does at the end of a constructor, and zeros their padding rows.
    pub(super) fn redraw_tables(&self, scope: &Scope, init: Init) -> Result<()> {
        let tables = match self.kind {
            EncoderKind::Roberta => [Some(&self.words), self.segments.as_ref(), Some(&self.positions)],
            _ => [Some(&self.words), Some(&self.positions), self.segments.as_ref()],
        };
        tables.into_iter().flatten().try_for_each(|table| table.redraw(scope, init))
    }

    /// Puts sines and cosines into the position table: Vaswani et al., "Attention is all you need", 2017.
    pub(super) fn set_sinusoidal_positions(&self) -> Result<()> {
        let table = self.positions.weight();
        let (count, width) = table.size2()?;
        let value = |position: i64, column: i64| {
            let angle = position as f64 / 10_000f64.powf((2 * (column / 2)) as f64 / width as f64);
            (if column % 2 == 0 { angle.sin() } else { angle.cos() }) as f32
        };
        let values: Vec<f32> =
            (0..count).flat_map(|position| (0..width).map(move |column| value(position, column))).collect();
        let _guard = tch::no_grad_guard();
        table.shallow_clone().f_copy_(&Tensor::f_from_slice(&values)?.f_view([count, width])?)?;
        Ok(())
    }

    /// The table of words, `[vocabulary, embedding width]`.
    pub fn word_table(&self) -> &Tensor {
        self.words.weight()
    }

    /// The rows of the word table, `[batch, length, embedding width]`.
    pub fn embed_words(&self, ids: &Tensor) -> Tensor {
        self.words.forward(ids)
    }

    /// The hidden states of the last layer, `[batch, length, width]`.
    pub fn forward(&self, inputs: &EncoderInputs, train: bool) -> Tensor {
        self.forward_from(&self.embed_words(inputs.ids), inputs, train)
    }

    /// The same from word embeddings `[batch, length, embedding width]` in place of the rows of the table.
    pub fn forward_from(&self, words: &Tensor, inputs: &EncoderInputs, train: bool) -> Tensor {
        let mask = inputs.mask.map(attention_mask);
        let x = self.embed(words, inputs, train);
        self.layers.iter().fold(x, |x, layer| match self.recompute && train {
            false => layer.forward(&x, mask.as_ref(), train),
            true => {
                let (layer, mask) = (layer.clone(), mask.as_ref().map(Tensor::shallow_clone));
                checkpoint(&x, move |x| layer.forward(x, mask.as_ref(), train)).unwrap()
            }
        })
    }

    /// The weights of every layer's attention in evaluation, each `[batch, heads, queries, keys]`.
    pub fn attention_weights(&self, inputs: &EncoderInputs) -> Vec<Tensor> {
        let mask = inputs.mask.map(attention_mask);
        let mut x = self.embed(&self.embed_words(inputs.ids), inputs, false);
        let weights_and_next = |layer: &Rc<Layer>| {
            let weights = layer.attention_weights(&x, mask.as_ref());
            x = layer.forward(&x, mask.as_ref(), false);
            weights
        };
        self.layers.iter().map(weights_and_next).collect()
    }

    fn embed(&self, words: &Tensor, inputs: &EncoderInputs, train: bool) -> Tensor {
        let ids = inputs.ids;
        let segments = self.segments.as_ref().map(|table| match inputs.segments {
            Some(segments) if table.weight().size()[0] > 1 => table.forward(segments),
            // The first row for every token, [1, 1, embedding width]; the only one in RoBERTa.
            _ => table.weight().slice(0, 0, 1, 1).unsqueeze(0),
        });
        let positions = match self.kind {
            EncoderKind::Roberta => {
                // Padding keeps the padding's position, the rest is counted from behind it.
                let there = ids.ne(self.padding).to_kind(Kind::Int64);
                self.positions.forward(&(there.cumsum(1, Kind::Int64) * there + self.padding))
            }
            // Counted by a sum and not read from a size, so that a traced model takes any length: [length, embedding width].
            _ => {
                let ones = ids.select(0, 0).ones_like();
                self.positions.forward(&(ones.cumsum(0, Kind::Int64) - 1))
            }
        };
        // Sums in transformers' order.
        let sum = match segments {
            Some(segments) => words + segments + positions,
            None => words + positions,
        };
        let x = dropout(self.norm.forward(&sum), self.dropout, train);
        match &self.project {
            Some(project) => project.forward(&x),
            None => x,
        }
    }
}

/// `[batch, length]` to `[batch, 1, 1, length]` booleans.
fn attention_mask(mask: &Tensor) -> Tensor {
    mask.to_kind(Kind::Bool).unsqueeze(1).unsqueeze(1)
}
