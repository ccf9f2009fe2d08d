//! `tokenizer`: make a tokenizer from texts, or show what one does.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use serde_json::json;

use super::args::EvalFormat;
use super::export::refuse_existing;
use super::print;
use crate::data::text::{
    TextForm, TextFormat, TextTokenizer, TokenizerConfig, TokenizerKind, WordSplit, read_rows,
};
use crate::reporting::{Log, Verbosity, format};
use crate::{bail_input, files};

/// The verbs of `tokenizer`.
#[derive(Debug, Subcommand)]
pub enum TokenizerVerb {
    /// Make a tokenizer.json from texts
    Train(TokenizerTrainArgs),
    /// What is in a tokenizer, and what it makes of a text
    Show(TokenizerShowArgs),
}

/// Arguments of `tokenizer train`.
#[derive(Debug, Args)]
pub struct TokenizerTrainArgs {
    /// Texts: plain files, or TSV, CSV and JSON lines with --column; - for stdin
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// What a token is
    #[arg(long, value_enum, default_value_t = TokenizerKind::Bpe)]
    pub kind: TokenizerKind,
    /// Tokens at most, special ones counted
    #[arg(long, value_name = "N", default_value_t = TokenizerConfig::default().vocab_size)]
    pub vocab_size: usize,
    /// How often a token must occur
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub min_frequency: u64,
    /// Take upper case as lower case
    #[arg(long)]
    pub lowercase: bool,
    /// What parts words, for --kind words
    #[arg(long, value_enum, default_value_t = WordSplit::Punctuation)]
    pub split: WordSplit,
    /// Special tokens in place of the kind's own, with commas between them
    #[arg(long, value_name = "TOKEN,…", value_delimiter = ',')]
    pub special_tokens: Option<Vec<String>>,
    /// The column of TSV, CSV and JSON lines that holds the text
    #[arg(long, value_name = "NAME", default_value = "text")]
    pub column: String,
    /// The file to write
    #[arg(long, value_name = "FILE.json")]
    pub out: PathBuf,
}

/// Arguments of `tokenizer show`.
#[derive(Debug, Args)]
pub struct TokenizerShowArgs {
    /// A tokenizer.json, a vocab.txt, a run, or the folder of a Hugging Face model
    #[arg(value_name = "TOKENIZER")]
    pub tokenizer: PathBuf,
    /// A text to encode; - for stdin
    #[arg(value_name = "TEXT")]
    pub text: Option<String>,
    /// Add the tokenizer's special tokens to the text
    #[arg(long)]
    pub special: bool,
    /// How to print
    #[arg(long, value_enum, default_value_t = EvalFormat::Table)]
    pub format: EvalFormat,
}

/// Runs the verb.
pub fn run(verb: &TokenizerVerb) -> Result<()> {
    match verb {
        TokenizerVerb::Train(arguments) => train(arguments),
        TokenizerVerb::Show(arguments) => show(arguments),
    }
}

fn train(arguments: &TokenizerTrainArgs) -> Result<()> {
    refuse_existing(&arguments.out)?;
    if arguments.kind == TokenizerKind::File {
        bail_input!("--kind file: a tokenizer that is there already needs no training");
    }
    let config = TokenizerConfig {
        kind: arguments.kind,
        path: None,
        vocab_size: arguments.vocab_size,
        min_frequency: arguments.min_frequency,
        lowercase: arguments.lowercase,
        split: arguments.split,
        special_tokens: arguments.special_tokens.clone(),
    };
    let mut texts = Vec::new();
    for path in &arguments.files {
        texts.extend(texts_of(path, &arguments.column)?);
    }
    let tokenizer = TextTokenizer::train(&config, texts.iter())?;
    tokenizer.save(&arguments.out)?;
    Log::new(Verbosity::from_flags(false, true)).result(format!(
        "wrote {}: {}, {} tokens",
        arguments.out.display(),
        tokenizer.kind(),
        format::count(tokenizer.vocabulary_size() as u64)
    ));
    Ok(())
}

/// The texts of a file. The lines of a plain one keep their ends, which are characters too.
fn texts_of(path: &Path, column: &str) -> Result<Vec<String>> {
    let form = TextForm::default();
    if form.of(path) == TextFormat::Plain && path.as_os_str() != "-" {
        let text = files::read_text(path)?;
        return Ok(text.split_inclusive('\n').map(str::to_owned).collect());
    }
    let table = read_rows(path, &form, &[column])?;
    Ok(table.rows.iter().map(|row| row.text(0).to_owned()).collect())
}

fn show(arguments: &TokenizerShowArgs) -> Result<()> {
    let tokenizer = TextTokenizer::open(&arguments.tokenizer)?;
    let text = match arguments.text.as_deref() {
        Some("-") => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("reading the text on stdin")?;
            Some(text)
        }
        text => text.map(str::to_owned),
    };
    let special = tokenizer.special();
    let named: BTreeMap<&str, i64> = [
        ("pad", special.pad),
        ("unknown", special.unknown),
        ("class", special.class),
        ("separator", special.separator),
        ("mask", special.mask),
        ("begin", special.begin),
        ("end", special.end),
    ]
    .into_iter()
    .filter_map(|(name, id)| Some((name, id?)))
    .collect();
    let positions = text.as_ref().map(|text| tokenizer.positions(text, arguments.special)).transpose()?;
    match arguments.format {
        EvalFormat::Json => {
            let listed = positions.iter().flatten().map(
                |token| json!({"id": token.id, "token": token.token, "bytes": [token.bytes.start, token.bytes.end]}),
            );
            print(&serde_json::to_string_pretty(&json!({
                "kind": tokenizer.kind(),
                "vocabulary": tokenizer.vocabulary_size(),
                "special": named,
                "tokens": text.is_some().then(|| listed.collect::<Vec<_>>()),
            }))?)
        }
        EvalFormat::Table => {
            let mut lines = vec![
                format!("kind        {}", tokenizer.kind()),
                format!("vocabulary  {} tokens", format::count(tokenizer.vocabulary_size() as u64)),
            ];
            for (name, id) in named {
                lines.push(format!("{name:10}  {} ({id})", tokenizer.token(id).unwrap_or_default()));
            }
            if let Some(positions) = positions {
                lines.push(String::new());
                let width = positions.iter().map(|token| token.token.chars().count()).max().unwrap_or(0);
                let row = |token: &crate::data::text::TextPosition| {
                    format!("{:>8}  {:width$}", token.id, shown(&token.token))
                };
                lines.extend(positions.iter().map(row));
                lines.push(format!("{} tokens", positions.len()));
            }
            print(&lines.join("\n"))
        }
    }
}

/// A token with what a terminal would not show written out.
fn shown(token: &str) -> String {
    token
        .chars()
        .flat_map(|character| match character.is_control() {
            true => character.escape_default().collect::<Vec<_>>(),
            false => vec![character],
        })
        .collect()
}
