//! What the `generate` verbs of several families share: flags, prompts, and how fast it went.

use std::io::{IsTerminal, Read};
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;

use crate::bail_input;
use crate::generation::SamplingConfig;
use crate::reporting::{Log, Verbosity, format};

/// How texts are drawn and printed.
#[derive(Debug, Args)]
pub struct WritingArgs {
    /// Below 1 likely tokens become likelier; 0 takes the likeliest always
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    temperature: f64,
    /// Choose among so many of the likeliest tokens
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Choose among the likeliest tokens that together have this probability
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f64,
    /// Choose among tokens at least this many times as likely as the likeliest
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    min_p: f64,
    /// Make tokens less likely that are there already; 1 does not
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    repetition_penalty: f64,
    /// Seed of the choices
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Stop where this text would come; may be repeated
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// Leave the prompt out
    #[arg(long)]
    pub no_echo: bool,
    /// Say on stderr how fast it was
    #[arg(long)]
    timing: bool,
}

impl WritingArgs {
    /// How tokens are chosen.
    ///
    /// # Errors
    /// Names the flag whose value is impossible.
    pub fn sampling(&self) -> Result<SamplingConfig> {
        let &Self { temperature, top_k, top_p, min_p, repetition_penalty, .. } = self;
        let sampling = SamplingConfig { temperature, top_k, top_p, min_p, repetition_penalty };
        sampling.validate()?;
        Ok(sampling)
    }

    /// Tells how long it took to write so many tokens, where that is asked for.
    pub fn tell_speed(&self, written: usize, began: Instant) {
        if self.timing {
            let seconds = began.elapsed().as_secs_f64();
            Log::new(Verbosity::from_flags(false, true)).info(format!(
                "{} tokens in {}: {} per second",
                format::count(written as u64),
                format::duration(seconds),
                format::count((written as f64 / seconds) as u64)
            ));
        }
    }
}

/// The text of `--prompt`: what is given, stdin for `-` or where something is piped in, else nothing.
///
/// # Errors
/// Stdin that is no UTF-8.
pub fn prompt_of(given: Option<&str>) -> Result<String> {
    match given {
        Some("-") => stdin(),
        Some(text) => Ok(text.to_owned()),
        None if !std::io::stdin().is_terminal() => stdin(),
        None => Ok(String::new()),
    }
}

fn stdin() -> Result<String> {
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes).context("reading the prompt on stdin")?;
    match String::from_utf8(bytes) {
        Ok(text) => Ok(text),
        Err(error) => bail_input!(
            "the prompt on stdin is not UTF-8: byte {} is invalid",
            error.utf8_error().valid_up_to()
        ),
    }
}
