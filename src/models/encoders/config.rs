//! `config.json` of the encoders, with the keys and defaults of transformers.

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::models::blocks::Activation;
use crate::models::scripted::{self, ScriptConfig};
use crate::{bail_input, recipe};

/// Size and constants of an encoder: what `config.json` says of the architecture.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(tag = "model_type", rename_all = "lowercase")]
pub enum EncoderConfig {
    /// Devlin et al., "BERT: Pre-training of deep bidirectional transformers for language understanding", 2018; MiniLM (Wang et al., 2020) is one.
    Bert(BertConfig),
    /// Liu et al., "RoBERTa: A robustly optimized BERT pretraining approach", 2019.
    Roberta(BertConfig),
    /// Clark et al., "ELECTRA: Pre-training text encoders as discriminators rather than generators", 2020.
    Electra(BertConfig),
    /// Sanh et al., "DistilBERT, a distilled version of BERT", 2019.
    DistilBert(DistilBertConfig),
    /// A TorchScript module in an encoder's place.
    TorchScript(ModuleConfig),
}

/// What is known of a module that stands in an encoder's place.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ModuleConfig {
    /// The module. Its method takes tokens, and, if it takes more, which of them are there (1 and 0) and which text they belong to, each `[batch, length]`
    /// int64; it gives `[batch, length, width]`, or `[batch, width]` where texts as a whole are told apart.
    pub script: ScriptConfig,
    /// Entries of the vocabulary.
    pub vocab_size: i64,
    /// Width of the output.
    pub hidden_size: i64,
    /// Tokens that a text has at most.
    pub max_position_embeddings: i64,
    /// The padding token.
    pub pad_token_id: i64,
    /// Dropout before the head.
    pub hidden_dropout_prob: f64,
}

/// Keys of BERT, RoBERTa and ELECTRA. The defaults are BERT's (bert-base-uncased).
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct BertConfig {
    /// Rows of the word table.
    pub vocab_size: i64,
    /// Width of the word table where it is not the encoder's (ELECTRA).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embedding_size: Option<i64>,
    /// Width of the encoder.
    pub hidden_size: i64,
    /// Layers.
    pub num_hidden_layers: i64,
    /// Heads of each attention.
    pub num_attention_heads: i64,
    /// Width inside of each feed-forward network.
    pub intermediate_size: i64,
    /// Activation inside of it.
    pub hidden_act: Activation,
    /// Dropout after embeddings, attention and feed-forward networks.
    pub hidden_dropout_prob: f64,
    /// Dropout of attention's weights.
    pub attention_probs_dropout_prob: f64,
    /// Rows of the position table.
    pub max_position_embeddings: i64,
    /// Rows of the segment table.
    pub type_vocab_size: i64,
    /// Standard deviation of initial weights.
    pub initializer_range: f64,
    /// Added to the variance in norms.
    pub layer_norm_eps: f64,
    /// The padding token; 0, in RoBERTa 1, if left out.
    pub pad_token_id: Option<i64>,
    /// Dropout before a classifier; `hidden_dropout_prob` if left out.
    pub classifier_dropout: Option<f64>,
}

impl Default for BertConfig {
    fn default() -> Self {
        Self {
            vocab_size: 30522,
            embedding_size: None,
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            hidden_act: Activation::Gelu,
            hidden_dropout_prob: 0.1,
            attention_probs_dropout_prob: 0.1,
            max_position_embeddings: 512,
            type_vocab_size: 2,
            initializer_range: 0.02,
            layer_norm_eps: 1e-12,
            pad_token_id: None,
            classifier_dropout: None,
        }
    }
}

/// Keys of DistilBERT; the defaults are distilbert-base-uncased's.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct DistilBertConfig {
    /// Rows of the word table.
    pub vocab_size: i64,
    /// Rows of the position table.
    pub max_position_embeddings: i64,
    /// Whether the position table begins as sines and cosines.
    pub sinusoidal_pos_embds: bool,
    /// Layers.
    pub n_layers: i64,
    /// Heads of each attention.
    pub n_heads: i64,
    /// Width of the encoder.
    pub dim: i64,
    /// Width inside of each feed-forward network.
    pub hidden_dim: i64,
    /// Dropout after embeddings and feed-forward networks.
    pub dropout: f64,
    /// Dropout of attention's weights.
    pub attention_dropout: f64,
    /// Activation inside of the feed-forward networks.
    pub activation: Activation,
    /// Standard deviation of initial weights.
    pub initializer_range: f64,
    /// Dropout before the scores of question answering.
    pub qa_dropout: f64,
    /// Dropout before a classifier of texts.
    pub seq_classif_dropout: f64,
    /// The padding token.
    pub pad_token_id: i64,
}

impl Default for DistilBertConfig {
    fn default() -> Self {
        Self {
            vocab_size: 30522,
            max_position_embeddings: 512,
            sinusoidal_pos_embds: false,
            n_layers: 6,
            n_heads: 12,
            dim: 768,
            hidden_dim: 3072,
            dropout: 0.1,
            attention_dropout: 0.1,
            activation: Activation::Gelu,
            initializer_range: 0.02,
            qa_dropout: 0.1,
            seq_classif_dropout: 0.2,
            pad_token_id: 0,
        }
    }
}

/// The kinds of encoders by the value of `model_type`.
pub const MODEL_TYPES: [&str; 4] = ["bert", "roberta", "electra", "distilbert"];

/// Which of the architectures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EncoderKind {
    /// BERT.
    Bert,
    /// RoBERTa.
    Roberta,
    /// ELECTRA.
    Electra,
    /// DistilBERT.
    DistilBert,
    /// Somebody else's.
    Module,
}

impl EncoderKind {
    /// `model_type`, which is also what the names of the encoder's tensors begin with where there is a head.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bert => "bert",
            Self::Roberta => "roberta",
            Self::Electra => "electra",
            Self::DistilBert => "distilbert",
            Self::Module => scripted::NAME,
        }
    }

    /// What transformers' class names begin with.
    pub fn class(self) -> &'static str {
        match self {
            Self::Bert => "Bert",
            Self::Roberta => "Roberta",
            Self::Electra => "Electra",
            Self::DistilBert => "DistilBert",
            Self::Module => "TorchScript",
        }
    }
}

/// The numbers of an encoder in one form for all kinds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dimensions {
    /// Rows of the word table.
    pub vocabulary: i64,
    /// Width of the word table.
    pub embedding_width: i64,
    /// Width of the encoder.
    pub width: i64,
    /// Layers.
    pub layers: i64,
    /// Heads of each attention.
    pub heads: i64,
    /// Width inside of each feed-forward network.
    pub inner_width: i64,
    /// Activation inside of it.
    pub activation: Activation,
    /// Dropout after embeddings, attention and feed-forward networks.
    pub dropout: f64,
    /// Dropout of attention's weights.
    pub attention_dropout: f64,
    /// Rows of the position table.
    pub positions: i64,
    /// Rows of the segment table; 0 where there is none.
    pub segments: i64,
    /// Added to the variance in norms.
    pub eps: f64,
    /// The padding token.
    pub padding: i64,
    /// Standard deviation of initial weights.
    pub deviation: f64,
}

impl EncoderConfig {
    /// Reads the text of a `config.json`; keys that say nothing of the architecture are left aside.
    ///
    /// # Errors
    /// It is no configuration, or of an architecture that is not here, which is named.
    pub fn from_json(config: &Value, origin: &str) -> Result<Self> {
        let Some(object) = config.as_object() else { bail_input!("{origin} is no model configuration") };
        let Some(kind) = object.get("model_type").and_then(Value::as_str) else {
            bail_input!("{origin} has no `model_type`, so the architecture is not known");
        };
        let Some(usual) = Self::usual(kind) else {
            bail_input!(
                "{origin} is of the architecture `{kind}`, which is not among those here: {}",
                MODEL_TYPES.join(", ")
            );
        };
        if let Some(key) =
            ["is_decoder", "add_cross_attention"].iter().find(|key| object.get(**key) == Some(&true.into()))
        {
            bail_input!("{origin} sets `{key}`: a decoder of this architecture is not here");
        }
        if let Some(kind) = object.get("position_embedding_type").and_then(Value::as_str)
            && kind != "absolute"
        {
            bail_input!("{origin} has positions of the type `{kind}`; only `absolute` ones are here");
        }
        let mut known = serde_json::to_value(&usual)?;
        if let Some(known) = known.as_object_mut() {
            known.insert("embedding_size".to_owned(), Value::Null);
            known.retain(|key, _| object.contains_key(key));
            for (key, value) in known {
                *value = object[key].clone();
            }
        }
        let config: Self = recipe::typed(known, origin)?;
        config.validate(origin)?;
        Ok(config)
    }

    /// The configuration with transformers' defaults.
    pub fn usual(model_type: &str) -> Option<Self> {
        match model_type {
            "bert" => Some(Self::Bert(BertConfig::default())),
            "roberta" => Some(Self::Roberta(BertConfig {
                vocab_size: 50265,
                max_position_embeddings: 514,
                type_vocab_size: 1,
                layer_norm_eps: 1e-5,
                ..BertConfig::default()
            })),
            "electra" => Some(Self::Electra(BertConfig {
                embedding_size: Some(128),
                hidden_size: 256,
                num_attention_heads: 4,
                intermediate_size: 1024,
                ..BertConfig::default()
            })),
            "distilbert" => Some(Self::DistilBert(DistilBertConfig::default())),
            _ => None,
        }
    }

    /// Which architecture it is of.
    pub fn kind(&self) -> EncoderKind {
        match self {
            Self::Bert(_) => EncoderKind::Bert,
            Self::Roberta(_) => EncoderKind::Roberta,
            Self::Electra(_) => EncoderKind::Electra,
            Self::DistilBert(_) => EncoderKind::DistilBert,
            Self::TorchScript(_) => EncoderKind::Module,
        }
    }

    /// The numbers in one form.
    pub fn dimensions(&self) -> Dimensions {
        match self {
            Self::Bert(config) | Self::Roberta(config) | Self::Electra(config) => Dimensions {
                vocabulary: config.vocab_size,
                embedding_width: match self {
                    Self::Electra(_) => config.embedding_size.unwrap_or(128),
                    _ => config.hidden_size,
                },
                width: config.hidden_size,
                layers: config.num_hidden_layers,
                heads: config.num_attention_heads,
                inner_width: config.intermediate_size,
                activation: config.hidden_act,
                dropout: config.hidden_dropout_prob,
                attention_dropout: config.attention_probs_dropout_prob,
                positions: config.max_position_embeddings,
                segments: config.type_vocab_size,
                eps: config.layer_norm_eps,
                padding: config.pad_token_id.unwrap_or(i64::from(matches!(self, Self::Roberta(_)))),
                deviation: config.initializer_range,
            },
            Self::DistilBert(config) => Dimensions {
                vocabulary: config.vocab_size,
                embedding_width: config.dim,
                width: config.dim,
                layers: config.n_layers,
                heads: config.n_heads,
                inner_width: config.hidden_dim,
                activation: config.activation,
                dropout: config.dropout,
                attention_dropout: config.attention_dropout,
                positions: config.max_position_embeddings,
                segments: 0,
                eps: 1e-12,
                padding: config.pad_token_id,
                deviation: config.initializer_range,
            },
            // Of its inside nothing is known.
            Self::TorchScript(config) => Dimensions {
                vocabulary: config.vocab_size,
                embedding_width: config.hidden_size,
                width: config.hidden_size,
                layers: 1,
                heads: 1,
                inner_width: config.hidden_size,
                activation: Activation::Gelu,
                dropout: config.hidden_dropout_prob,
                attention_dropout: 0.0,
                positions: config.max_position_embeddings,
                segments: 0,
                eps: 1e-12,
                padding: config.pad_token_id,
                deviation: 0.02,
            },
        }
    }

    /// Sets the number of entries of the word table.
    pub fn set_vocabulary(&mut self, size: i64) {
        match self {
            Self::Bert(config) | Self::Roberta(config) | Self::Electra(config) => config.vocab_size = size,
            Self::DistilBert(config) => config.vocab_size = size,
            Self::TorchScript(config) => config.vocab_size = size,
        }
    }

    /// Sets the padding token.
    pub fn set_padding(&mut self, token: i64) {
        match self {
            Self::Bert(config) | Self::Roberta(config) | Self::Electra(config) => {
                config.pad_token_id = Some(token)
            }
            Self::DistilBert(config) => config.pad_token_id = token,
            Self::TorchScript(config) => config.pad_token_id = token,
        }
    }

    /// Sets every dropout to one probability.
    pub fn set_dropout(&mut self, probability: f64) {
        match self {
            Self::Bert(config) | Self::Roberta(config) | Self::Electra(config) => {
                config.hidden_dropout_prob = probability;
                config.attention_probs_dropout_prob = probability;
                config.classifier_dropout = None;
            }
            Self::DistilBert(config) => {
                config.dropout = probability;
                config.attention_dropout = probability;
                config.qa_dropout = probability;
                config.seq_classif_dropout = probability;
            }
            Self::TorchScript(config) => config.hidden_dropout_prob = probability,
        }
    }

    /// The largest number of tokens of a text: RoBERTa counts positions from behind the padding token.
    pub fn longest_text(&self) -> i64 {
        let Dimensions { positions, padding, .. } = self.dimensions();
        match self {
            Self::Roberta(_) => positions - padding - 1,
            _ => positions,
        }
    }

    /// Checks the numbers; `origin` is for messages.
    pub fn validate(&self, origin: &str) -> Result<()> {
        let numbers = self.dimensions();
        let positive = [
            ("vocabulary", numbers.vocabulary),
            ("embedding width", numbers.embedding_width),
            ("width", numbers.width),
            ("number of layers", numbers.layers),
            ("number of heads", numbers.heads),
            ("inner width", numbers.inner_width),
            ("number of positions", self.longest_text()),
        ];
        if let Some((what, value)) = positive.iter().find(|(_, value)| *value < 1) {
            bail_input!("{origin}: the {what} is {value}, but must be at least 1");
        }
        if numbers.width % numbers.heads != 0 {
            bail_input!(
                "{origin}: the width {} cannot be shared among {} heads",
                numbers.width,
                numbers.heads
            );
        }
        if !(0..numbers.vocabulary).contains(&numbers.padding) {
            bail_input!(
                "{origin}: pad_token_id is {}, but the vocabulary has {} entries",
                numbers.padding,
                numbers.vocabulary
            );
        }
        let dropouts = [numbers.dropout, numbers.attention_dropout];
        if let Some(dropout) = dropouts.iter().find(|dropout| !(0.0..1.0).contains(*dropout)) {
            bail_input!("{origin}: a dropout of {dropout} is not at least 0 and below 1");
        }
        Ok(())
    }
}
