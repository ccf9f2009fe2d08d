//! What stands on an encoder, as transformers' `…ForMaskedLM`, `…ForSequenceClassification` and so on.

use std::collections::HashSet;

use anyhow::Result;
use tch::Tensor;

use super::config::{EncoderConfig, EncoderKind};
use super::encoder::{Encoder, EncoderInputs};
use crate::models::Scope;
use crate::models::blocks::{Activation, dropout};
use crate::models::init::Init;
use crate::models::layers::{LayerNorm, Linear};
use crate::models::lora::is_adapter;

/// What a model computes from the hidden states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadKind {
    /// Nothing: the plain encoder, for embeddings.
    None,
    /// Scores of all words for hidden ones.
    MaskedLm,
    /// Scores of so many labels, or values, for the whole text.
    Sequence(i64),
    /// Scores of so many labels for each token.
    Tokens(i64),
    /// Scores of each token as the beginning and as the end of an answer.
    Answers,
}

impl HeadKind {
    /// The ending of transformers' class name: `BertForMaskedLM`, `BertModel`.
    pub fn class_ending(self) -> &'static str {
        match self {
            Self::None => "Model",
            Self::MaskedLm => "ForMaskedLM",
            Self::Sequence(_) => "ForSequenceClassification",
            Self::Tokens(_) => "ForTokenClassification",
            Self::Answers => "ForQuestionAnswering",
        }
    }
}

/// A dense layer with activation and norm, then the word table as the last layer.
#[derive(Debug)]
struct MaskedLmHead {
    dense: Linear,
    activation: Activation,
    norm: LayerNorm,
    bias: Tensor,
}

#[derive(Debug)]
enum Head {
    None,
    MaskedLm(MaskedLmHead),
    /// Dense layer of the first token with its activation, and the dropouts before and behind.
    Sequence {
        dense: Option<(Linear, Activation)>,
        dropouts: [f64; 2],
        classifier: Linear,
    },
    Tokens {
        dropout: f64,
        classifier: Linear,
    },
}

/// An encoder with a head.
#[derive(Debug)]
pub struct EncoderModel {
    kind: EncoderKind,
    head_kind: HeadKind,
    encoder: Encoder,
    pooler: Option<Linear>,
    head: Head,
}

impl EncoderModel {
    /// Makes the model under `scope`, which must be that of a whole model, with transformers' initial values: normal with the deviation of the
    /// configuration, biases zero, norms one. With `recompute` layers are computed again in the backward pass.
    pub fn new(scope: &Scope, config: &EncoderConfig, head_kind: HeadKind, recompute: bool) -> Result<Self> {
        let (kind, numbers) = (config.kind(), config.dimensions());
        let width = numbers.width;
        // The plain encoder's names begin without its name.
        let inside = match head_kind {
            HeadKind::None => scope.clone(),
            _ => scope.child(kind.name()),
        };
        let encoder = Encoder::new(&inside, config, recompute)?;
        let has_pooler = matches!(
            (kind, head_kind),
            (EncoderKind::Bert, HeadKind::None | HeadKind::Sequence(_))
                | (EncoderKind::Roberta, HeadKind::None)
        );
        let pooler = has_pooler
            .then(|| Linear::new(&inside.child("pooler").child("dense"), width, width))
            .transpose()?;
        // transformers gives the encoder its initial values before it makes the head.
        encoder.redraw_tables(scope, Init::Normal { deviation: numbers.deviation })?;
        let of_encoder: HashSet<String> =
            scope.parameters().entries().into_iter().map(|entry| entry.name).collect();
        begin(scope, numbers.deviation, |name| of_encoder.contains(name))?;
        if matches!(config, EncoderConfig::DistilBert(config) if config.sinusoidal_pos_embds) {
            encoder.set_sinusoidal_positions()?;
        }
        let (classifier_dropout, answer_dropout, text_dropout) = match config {
            EncoderConfig::Bert(config) | EncoderConfig::Roberta(config) | EncoderConfig::Electra(config) => {
                let dropout = config.classifier_dropout.unwrap_or(config.hidden_dropout_prob);
                (dropout, 0.0, dropout)
            }
            EncoderConfig::DistilBert(config) => {
                (config.dropout, config.qa_dropout, config.seq_classif_dropout)
            }
        };
        let linear = |name: &str, outputs| Linear::new(&scope.child(name), width, outputs);
        let head = match head_kind {
            HeadKind::None => Head::None,
            HeadKind::MaskedLm => {
                let head = masked_lm_head(scope, config)?;
                // The last layer's weight is drawn in Python before the word table takes its place.
                let shape = [numbers.vocabulary, numbers.embedding_width];
                scope.parameters().skip_draw(&shape, Init::default_weight(&shape))?;
                scope.parameters().skip_draw(&[numbers.vocabulary], Init::default_bias(&shape))?;
                Head::MaskedLm(head)
            }
            HeadKind::Sequence(labels) => match kind {
                EncoderKind::Bert => Head::Sequence {
                    dense: None,
                    dropouts: [0.0, text_dropout],
                    classifier: linear("classifier", labels)?,
                },
                EncoderKind::DistilBert => Head::Sequence {
                    dense: Some((linear("pre_classifier", width)?, Activation::Relu)),
                    dropouts: [0.0, text_dropout],
                    classifier: linear("classifier", labels)?,
                },
                EncoderKind::Roberta | EncoderKind::Electra => {
                    let activation =
                        if kind == EncoderKind::Roberta { Activation::Tanh } else { Activation::Gelu };
                    Head::Sequence {
                        dense: Some((linear("classifier.dense", width)?, activation)),
                        dropouts: [text_dropout; 2],
                        classifier: linear("classifier.out_proj", labels)?,
                    }
                }
            },
            HeadKind::Tokens(labels) => {
                Head::Tokens { dropout: classifier_dropout, classifier: linear("classifier", labels)? }
            }
            HeadKind::Answers => {
                Head::Tokens { dropout: answer_dropout, classifier: linear("qa_outputs", 2)? }
            }
        };
        begin(scope, numbers.deviation, |name| !of_encoder.contains(name))?;
        Ok(Self { kind, head_kind, encoder, pooler, head })
    }

    /// The encoder alone.
    pub fn encoder(&self) -> &Encoder {
        &self.encoder
    }

    /// Which head it has.
    pub fn head_kind(&self) -> HeadKind {
        self.head_kind
    }

    /// What the names of the head's parameters begin with.
    pub fn head_name(&self) -> Option<&'static str> {
        match self.head_kind {
            HeadKind::None => None,
            HeadKind::Sequence(_) | HeadKind::Tokens(_) => Some("classifier"),
            HeadKind::Answers => Some("qa_outputs"),
            HeadKind::MaskedLm => Some(match self.kind {
                EncoderKind::Bert => "cls",
                EncoderKind::Roberta => "lm_head",
                EncoderKind::Electra => "generator_predictions",
                EncoderKind::DistilBert => "vocab_transform",
            }),
        }
    }

    /// The model's scores: `[batch, labels]` for texts, `[batch, length, labels]` for tokens and answers (beginning, end), `[batch, length, vocabulary]` for hidden
    /// words, and for the plain encoder the hidden states `[batch, length, width]`.
    pub fn forward(&self, inputs: &EncoderInputs, train: bool) -> Tensor {
        self.scores(&self.encoder.forward(inputs, train), train)
    }

    /// The scores from the hidden states of the last layer.
    pub fn scores(&self, hidden: &Tensor, train: bool) -> Tensor {
        match &self.head {
            Head::None => hidden.shallow_clone(),
            Head::MaskedLm(head) => head.forward(hidden, self.encoder.word_table()),
            Head::Sequence { dense, dropouts, classifier } => {
                let first = match &self.pooler {
                    Some(_) => self.pooled(hidden),
                    None => hidden.select(1, 0),
                }; // [batch, width]
                let first = match dense {
                    Some((layer, activation)) => {
                        activation.apply(layer.forward(&dropout(first, dropouts[0], train)))
                    }
                    None => first,
                };
                classifier.forward(&dropout(first, dropouts[1], train))
            }
            Head::Tokens { dropout: probability, classifier } => {
                classifier.forward(&dropout(hidden.shallow_clone(), *probability, train))
            }
        }
    }

    /// `pooler_output`: a dense layer with tanh over the first token, `[batch, width]`; that token itself where there is no pooler.
    pub fn pooled(&self, hidden: &Tensor) -> Tensor {
        let first = hidden.select(1, 0);
        match &self.pooler {
            Some(pooler) => pooler.forward(&first).tanh(),
            None => first,
        }
    }
}

impl MaskedLmHead {
    /// `[…, width]` to `[…, vocabulary]`.
    fn forward(&self, hidden: &Tensor, words: &Tensor) -> Tensor {
        let transformed = self.norm.forward(&self.activation.apply(self.dense.forward(hidden)));
        transformed.linear(words, Some(&self.bias))
    }
}

/// transformers' `_init_weights` over the layers whose names are chosen; tables have their own way.
fn begin(scope: &Scope, deviation: f64, is_chosen: impl Fn(&str) -> bool) -> Result<()> {
    scope.parameters().redraw(|entry| {
        let name = &entry.name;
        if !is_chosen(name) || is_adapter(name) || name.contains("embeddings.") {
            None
        } else if name.ends_with("bias") {
            Some(Init::ZEROS)
        } else {
            (entry.tensor.dim() == 2).then_some(Init::Normal { deviation })
        }
    })
}

fn masked_lm_head(scope: &Scope, config: &EncoderConfig) -> Result<MaskedLmHead> {
    let numbers = config.dimensions();
    let (width, vocabulary) = (numbers.width, numbers.vocabulary);
    let bias = |scope: &Scope| scope.parameter("bias", &[vocabulary], Init::ZEROS);
    Ok(match config.kind() {
        EncoderKind::Bert => {
            let head = scope.child("cls.predictions");
            let transform = head.child("transform");
            MaskedLmHead {
                bias: bias(&head)?,
                dense: Linear::new(&transform.child("dense"), width, width)?,
                activation: numbers.activation,
                norm: LayerNorm::new(&transform.child("LayerNorm"), width, numbers.eps)?,
            }
        }
        EncoderKind::Roberta => {
            let head = scope.child("lm_head");
            MaskedLmHead {
                bias: bias(&head)?,
                dense: Linear::new(&head.child("dense"), width, width)?,
                activation: Activation::Gelu,
                norm: LayerNorm::new(&head.child("layer_norm"), width, numbers.eps)?,
            }
        }
        EncoderKind::Electra => {
            let head = scope.child("generator_predictions");
            MaskedLmHead {
                norm: LayerNorm::new(&head.child("LayerNorm"), numbers.embedding_width, numbers.eps)?,
                dense: Linear::new(&head.child("dense"), width, numbers.embedding_width)?,
                activation: Activation::Gelu,
                bias: bias(&scope.child("generator_lm_head"))?,
            }
        }
        EncoderKind::DistilBert => MaskedLmHead {
            dense: Linear::new(&scope.child("vocab_transform"), width, width)?,
            activation: numbers.activation,
            norm: LayerNorm::new(&scope.child("vocab_layer_norm"), width, numbers.eps)?,
            bias: bias(&scope.child("vocab_projector"))?,
        },
    })
}
