//! What stands on an encoder, as transformers' `…ForMaskedLM`, `…ForSequenceClassification` and so on.

use std::collections::HashSet;
use std::path::Path;

use anyhow::Result;
use tch::{Device, Kind, Tensor};

use super::config::{EncoderConfig, EncoderKind, ModuleConfig};
use super::encoder::{Encoder, EncoderInputs};
use crate::bail_input;
use crate::models::Scope;
use crate::models::blocks::{Activation, dropout};
use crate::models::init::Init;
use crate::models::layers::{LayerNorm, Linear, forward_linear};
use crate::models::lora::is_adapter;
use crate::models::scripted::{ScriptedLayer, ScriptedNetwork};

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

/// What makes hidden states of tokens.
#[derive(Debug)]
enum Stem {
    Encoder(Box<Encoder>),
    Module(ScriptedNetwork),
}

/// An encoder with a head.
#[derive(Debug)]
pub struct EncoderModel {
    kind: EncoderKind,
    head_kind: HeadKind,
    stem: Stem,
    pooler: Option<Linear>,
    head: Head,
}

impl EncoderModel {
    /// Makes the model under `scope`, which must be that of a whole model, with transformers' initial values: normal with the deviation of the
    /// configuration, biases zero, norms one. With `recompute` layers are computed again in the backward pass.
    pub fn new(scope: &Scope, config: &EncoderConfig, head_kind: HeadKind, recompute: bool) -> Result<Self> {
        if let EncoderConfig::TorchScript(config) = config {
            return Self::of_module(scope, config, head_kind);
        }
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
            EncoderConfig::TorchScript(config) => {
                (config.hidden_dropout_prob, 0.0, config.hidden_dropout_prob)
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
                EncoderKind::Bert | EncoderKind::Module => Head::Sequence {
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
        Ok(Self { kind, head_kind, stem: Stem::Encoder(Box::new(encoder)), pooler, head })
    }

    /// A module with a new head on it; the module's names begin with `backbone.` then. A head for whole texts takes the mean of its vectors.
    fn of_module(scope: &Scope, config: &ModuleConfig, head_kind: HeadKind) -> Result<Self> {
        let (width, dropout) = (config.hidden_size, config.hidden_dropout_prob);
        let names = match head_kind {
            HeadKind::None => scope.clone(),
            _ => scope.child("backbone"),
        };
        let network = ScriptedNetwork::new(&names, &config.script)?;
        let of_module: HashSet<String> =
            scope.parameters().entries().into_iter().map(|entry| entry.name).collect();
        let hidden = Self::hidden_of_module(&network, scope.parameters().device())?;
        let linear = |name: &str, outputs| Linear::new(&scope.child(name), width, outputs);
        let head = match (head_kind, hidden.dim()) {
            (HeadKind::MaskedLm, _) => bail_input!(
                "{}: hidden words are told by the rows of a word table, which a module does not show",
                network.name()
            ),
            (HeadKind::None, 3) => Head::None,
            (HeadKind::Sequence(labels), _) => Head::Sequence {
                dense: None,
                dropouts: [0.0, dropout],
                classifier: linear("classifier", labels)?,
            },
            (HeadKind::Tokens(labels), 3) => {
                Head::Tokens { dropout, classifier: linear("classifier", labels)? }
            }
            (HeadKind::Answers, 3) => Head::Tokens { dropout: 0.0, classifier: linear("qa_outputs", 2)? },
            _ => bail_input!(
                "{} makes one vector of a text, but a vector for each token is needed: choose --set model.script.method=… or model.script.output=…",
                network.name()
            ),
        };
        begin(scope, 0.02, |name| !of_module.contains(name))?;
        Ok(Self { kind: EncoderKind::Module, head_kind, stem: Stem::Module(network), pooler: None, head })
    }

    /// What a module makes of a text of some tokens, `[1, length, width]` or `[1, width]`.
    ///
    /// # Errors
    /// It takes no tokens, or makes something else.
    pub fn hidden_of_module(network: &ScriptedNetwork, device: Device) -> Result<Tensor> {
        const LENGTH: i64 = 8;
        let ids = Tensor::f_zeros([1, LENGTH], (Kind::Int64, device))?;
        let hidden = network.probe(&[&ids, &ids.f_ones_like()?, &ids], "tokens")?;
        match hidden.size()[..] {
            [1, LENGTH, _] | [1, _] => Ok(hidden),
            ref other => bail_input!(
                "{} makes {other:?} of one text of {LENGTH} tokens where [1, {LENGTH}, width] or [1, width] is needed: choose --set model.script.method=… or model.script.output=…",
                network.name()
            ),
        }
    }

    /// The encoder alone, where it is one of ours.
    pub fn encoder(&self) -> Option<&Encoder> {
        match &self.stem {
            Stem::Encoder(encoder) => Some(encoder),
            Stem::Module(_) => None,
        }
    }

    /// The hidden states of the last layer, `[batch, length, width]`; of some modules `[batch, width]`.
    pub fn hidden(&self, inputs: &EncoderInputs, train: bool) -> Tensor {
        match &self.stem {
            Stem::Encoder(encoder) => encoder.forward(inputs, train),
            Stem::Module(network) => {
                // As Python hands them over.
                let mask = match inputs.mask {
                    Some(mask) => mask.to_kind(Kind::Int64),
                    None => inputs.ids.ones_like(),
                };
                let segments = inputs.segments.map_or_else(|| inputs.ids.zeros_like(), Tensor::shallow_clone);
                network.forward(&[inputs.ids, &mask, &segments], train)
            }
        }
    }

    /// Writes it as TorchScript where it is made of such a module, with its control flow.
    pub fn save_script(&self, path: &Path) -> Option<Result<()>> {
        let Stem::Module(network) = &self.stem else { return None };
        let layer = match &self.head {
            Head::Sequence { classifier, .. } => {
                let mean = "if features.dim() == 3:\n  \
                            there = attention_mask.to(features.dtype).unsqueeze(-1)\n  \
                            features = (features * there).sum(1) / there.sum(1)";
                Some((mean, classifier))
            }
            Head::Tokens { classifier, .. } => Some(("", classifier)),
            Head::None | Head::MaskedLm(_) => None,
        };
        let layer = layer.map(|(features, linear)| ScriptedLayer {
            arguments: &["input_ids", "attention_mask", "token_type_ids"],
            features,
            linear,
        });
        Some(network.save(layer, path))
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
                EncoderKind::Module => return None,
            }),
        }
    }

    /// The model's scores: `[batch, labels]` for texts, `[batch, length, labels]` for tokens and answers (beginning, end), `[batch, length, vocabulary]` for hidden
    /// words, and for the plain encoder the hidden states `[batch, length, width]`.
    pub fn forward(&self, inputs: &EncoderInputs, train: bool) -> Tensor {
        let hidden = self.hidden(inputs, train);
        let hidden = match (&self.stem, self.head_kind) {
            // Which of a module's vectors tells of the whole text nobody knows: their mean over what is there does in any case.
            (Stem::Module(_), HeadKind::Sequence(_)) if hidden.dim() == 3 => match inputs.mask {
                None => hidden.mean_dim(1i64, false, None::<Kind>),
                Some(mask) => {
                    let there = mask.to_kind(hidden.kind()).unsqueeze(-1); // [batch, length, 1]
                    (hidden * &there).sum_dim_intlist(1i64, false, None::<Kind>)
                        / there.sum_dim_intlist(1i64, false, None::<Kind>)
                }
            },
            _ => hidden,
        };
        self.scores(&hidden, train)
    }

    /// The scores from the hidden states of the last layer.
    pub fn scores(&self, hidden: &Tensor, train: bool) -> Tensor {
        if let (Head::MaskedLm(head), Stem::Encoder(encoder)) = (&self.head, &self.stem) {
            return head.forward(hidden, encoder.word_table());
        }
        match &self.head {
            // The head of hidden words is never put on a module.
            Head::None | Head::MaskedLm(_) => hidden.shallow_clone(),
            Head::Sequence { dense, dropouts, classifier } => {
                let first = self.pooled(hidden); // [batch, width]
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
        let first = || hidden.select(1, 0);
        match &self.pooler {
            Some(pooler) => pooler.forward(&first()).tanh(),
            // One vector of a module for the whole text.
            None if hidden.dim() == 2 => hidden.shallow_clone(),
            None => first(),
        }
    }
}

impl MaskedLmHead {
    /// `[…, width]` to `[…, vocabulary]`.
    fn forward(&self, hidden: &Tensor, words: &Tensor) -> Tensor {
        let transformed = self.norm.forward(&self.activation.apply(self.dense.forward(hidden)));
        forward_linear(&transformed, words, Some(&self.bias))
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
        EncoderKind::DistilBert | EncoderKind::Module => MaskedLmHead {
            dense: Linear::new(&scope.child("vocab_transform"), width, width)?,
            activation: numbers.activation,
            norm: LayerNorm::new(&scope.child("vocab_layer_norm"), width, numbers.eps)?,
            bias: bias(&scope.child("vocab_projector"))?,
        },
    })
}
