//! The sentences of SST-2 into tokens: `benches/pytorch/tokenising.py`.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tch_suite::data::text::{EncodeOptions, TextInput, TextTokenizer};
use tch_suite::files;

use super::harness::{Options, Usual, Work, time};

const USUAL: Usual = Usual { steps: 8, warmup: 1, inner: 1 };

struct Tokenising {
    texts: Vec<String>,
    tokenizer: TextTokenizer,
    tokens: usize,
}

impl Work for Tokenising {
    fn step(&mut self, _number: usize) -> Result<()> {
        let inputs: Vec<TextInput> = self.texts.iter().map(|text| TextInput::single(text)).collect();
        let options = EncodeOptions { special_tokens: true, max_length: Some(128) };
        let encoded = self.tokenizer.encode_all(&inputs, options)?;
        self.tokens = (0..encoded.len()).map(|text| encoded.length(text)).sum();
        Ok(())
    }

    fn value(&mut self) -> Result<f64> {
        Ok(self.tokens as f64)
    }
}

/// Runs it.
pub fn run(options: &Options) -> Result<()> {
    let folder = options.folder.as_ref().context("tokenising needs --folder")?;
    let table = files::read_text(&folder.join("sst2").join("train.tsv"))?;
    let texts: Vec<String> = table
        .lines()
        .skip(1)
        .map(|line| line.split_once('\t').map_or(line, |(text, _)| text).to_owned())
        .collect();
    ensure!(!texts.is_empty(), "train.tsv holds no text");
    let tokenizer = TextTokenizer::open(&folder.join("pretrained").join("minilm-l6-h384"))?;
    let count = texts.len();
    let mut work = Tokenising { texts, tokenizer, tokens: 0 };
    let timed = time(options, &USUAL, count, &mut work)?;
    let value = ("loss_first", json!(timed.first));
    timed.emit("tokenising", &options.variant(&["sst2"]), "texts/s", &[value])
}
