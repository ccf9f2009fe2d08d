//! Encoders of the BERT kind with the heads that transformers gives them, under transformers' names.
//!
//! BERT, RoBERTa, ELECTRA and DistilBERT compute the same layers; they differ in names, in how they number positions, and in their heads.
//! MiniLM is a BERT. Adding an architecture means a variant of [`EncoderConfig`], its names in `encoder.rs` and its heads in `heads.rs`.

mod config;
mod encoder;
mod heads;

pub use config::{
    BertConfig, Dimensions, DistilBertConfig, EncoderConfig, EncoderKind, MODEL_TYPES, ModuleConfig,
};
pub use encoder::{Encoder, EncoderInputs};
pub use heads::{EncoderModel, HeadKind};
