//! Text: files of texts with labels, tokens, vocabularies, padding, batches of like lengths.
//!
//! | what | where |
//! | --- | --- |
//! | rows of TSV, CSV, JSON lines and plain files, with the line of each for messages | [`read_rows`], [`TextForm`] |
//! | tokenizers of Hugging Face's forms, or trained here | [`TextTokenizer`], [`TokenizerConfig`] |
//! | names of classes | [`LabelSet`] |
//! | encoded texts, in memory or mapped from a file | [`EncodedTexts`], [`Tokens`] |
//! | padding | [`pad`] |
//! | batches of texts of like lengths | [`LengthBuckets`], [`TokenBudget`] |
//! | word vectors of GloVe and word2vec | [`WordVectors`] |
//!
//! From a file to a padded batch:
//!
//! ```no_run
//! # use std::path::Path;
//! # use tch_suite::data::text::*;
//! # fn main() -> anyhow::Result<()> {
//! // Columns by name; an error names file and line.
//! let table = read_rows(Path::new("train.tsv"), &TextForm::default(), &["sentence", "label"])?;
//! // tokenizer.json, vocab.txt, or the folder of a model.
//! let tokenizer = TextTokenizer::open(Path::new("bert-base-uncased"))?;
//! // All texts at once, on all cores, with [CLS] and [SEP], cut to 128 tokens; kept in memory, 2 or 4 bytes a token.
//! let inputs: Vec<TextInput> = table.rows.iter().map(|row| TextInput::single(row.text(0))).collect();
//! let options = EncodeOptions { special_tokens: true, max_length: Some(128) };
//! let encoded = tokenizer.encode_all(&inputs, options).map_err(|error| table.blame(error))?;
//! // A batch: ids [batch, longest], lengths [batch]; the mask is made on the device.
//! let batch: Vec<Vec<i64>> = [0, 1, 2].iter().map(|&text| encoded.ids(text)).collect();
//! let padded = pad(&batch, tokenizer.special().pad.unwrap_or(0))?;
//! let mask = padded.mask()?; // [batch, longest], true where there is a token
//! # Ok(())
//! # }
//! ```
//!
//! A [`Dataset`](super::Dataset) of texts returns a [`LengthBuckets`] (or a [`TokenBudget`]) from
//! [`Dataset::sampler`](super::Dataset::sampler): the trainer and the evaluation then batch by length.
//!
//! A long text for language models becomes one sequence of tokens: [`TextTokenizer::encode_stream`]. Texts beyond [`IN_MEMORY`] bytes
//! are kept in a file of the cache folder and mapped, so that they cost no memory and are encoded once for all runs.

mod buckets;
mod cache;
mod encoded;
mod labels;
mod padding;
mod reader;
mod sentencepiece;
mod tokenizer;
mod training;
mod vectors;

pub use buckets::{LengthBuckets, TokenBudget, padding_share};
pub use cache::cache_folder;
pub use encoded::{EncodedTexts, IN_MEMORY, TokenBuffer, TokenFileWriter, Tokens};
pub use labels::{LabelSet, split_labels};
pub use padding::{Padded, pad};
pub use reader::{Field, TextForm, TextFormat, TextRow, TextTable, for_each_line, read_rows, rows_of};
pub use sentencepiece::marian_tokenizers;
pub use tokenizer::{
    EncodeOptions, SpecialTokens, TOKENIZER_FILE, TextInput, TextPosition, TextTokenizer, UnknownText,
};
pub use training::{TokenizerConfig, TokenizerKind, WordSplit};
pub use vectors::WordVectors;
