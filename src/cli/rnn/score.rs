//! `score`: how likely a language model finds a text.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Args;
use serde_json::json;

use super::family::{Rnn, known_tokenizer, language_model};
use crate::bail_input;
use crate::cli::args::{EvalFormat, RunArgs};
use crate::cli::print;
use crate::cli::session::Session;
use crate::data::sequences::{Sequences, TextWindows};
use crate::data::table::open_bytes;
use crate::distributed::SingleProcess;
use crate::reporting::{Log, Verbosity, format};
use crate::training::evaluate::{EvaluationSettings, evaluate};
use crate::training::signals::Interrupt;

/// Arguments of `score`.
#[derive(Debug, Args)]
pub struct ScoreArgs {
    #[command(flatten)]
    run: RunArgs,
    /// Texts; - for stdin
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// How to print
    #[arg(long, value_enum, default_value_t = EvalFormat::Table)]
    format: EvalFormat,
}

/// Runs the verb.
pub fn run(arguments: &ScoreArgs) -> Result<()> {
    let mut session = Session::<Rnn>::open(&arguments.run.as_model())?;
    language_model(&session.task)?;
    let tokenizer = known_tokenizer(&session.recipe)?;
    let interrupt = Interrupt::listen()?;
    let log = Log::new(Verbosity::from_flags(true, true));
    let mut lines = Vec::new();
    for path in &arguments.files {
        let name = if path.as_os_str() == "-" { "stdin".to_owned() } else { path.display().to_string() };
        let tokens = match path.as_os_str() == "-" {
            true => tokenizer.encode_stream(open_bytes(path)?, &name)?,
            false => tokenizer.encode_file(path)?,
        };
        if tokens.len() < 2 {
            bail_input!(
                "{name} has {} tokens: the first is given, so there is nothing to score",
                tokens.len()
            );
        }
        // One stream: every token is scored after all that stands before it.
        let windows = TextWindows::new(tokens, 1, session.recipe.data.window.max(LEAST_WINDOW), &name)?;
        let data = Arc::new(Sequences::Text(windows));
        let bar = log.progress(&name, 0, None);
        let settings =
            EvaluationSettings { batch_size: 1, ..EvaluationSettings::of(&session.recipe.training) };
        let evaluation = evaluate(&mut session.task, &data, settings, &mut SingleProcess, &interrupt, &bar)?
            .context("interrupted")?;
        let metric = |name: &str| evaluation.metrics.get(name).copied().unwrap_or(f64::NAN);
        let count = |name: &str| evaluation.details[name].as_f64().unwrap_or(0.0) as u64;
        lines.push(match arguments.format {
            EvalFormat::Json => json!({
                "input": name,
                "tokens": count("tokens"),
                "characters": count("characters"),
                "loss": metric("loss"),
                "perplexity": metric("perplexity"),
                "bits_per_character": metric("bits_per_character"),
            })
            .to_string(),
            EvalFormat::Table => format!(
                "{name}: {} tokens, {} nats per token, perplexity {}, {} bits per character",
                format::count(count("tokens")),
                format::number(metric("loss")),
                format::number(metric("perplexity")),
                format::number(metric("bits_per_character"))
            ),
        });
    }
    print(&lines.join("\n"))
}

/// Scores do not depend on the window, which nothing is learned over here; a longer one is faster.
const LEAST_WINDOW: usize = 1024;
