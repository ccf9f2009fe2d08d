//! `generate`: a language model goes on with a text.

use std::io::{IsTerminal, Read, Write};
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;
use tch::{Device, Kind, Tensor};

use super::family::{Rnn, language_model};
use crate::bail_input;
use crate::cli::args::RunArgs;
use crate::cli::session::Session;
use crate::generation::{SamplingConfig, TextStream, TokenSampler};
use crate::native::modes::InferenceMode;
use crate::reporting::{Log, Verbosity, format};
use crate::tasks::Task;

/// Arguments of `generate`.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    #[command(flatten)]
    run: RunArgs,
    /// What to go on from; - for stdin [default: stdin where something is piped in, else a new line]
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Tokens to write at most
    #[arg(long, value_name = "N", default_value_t = 500)]
    length: usize,
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
    seed: u64,
    /// Stop where this text would come; may be repeated
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Texts to write, each with its own seed
    #[arg(long, value_name = "N", default_value_t = 1)]
    samples: u64,
    /// Leave the prompt out
    #[arg(long)]
    no_echo: bool,
    /// Say on stderr how fast it was
    #[arg(long)]
    timing: bool,
}

/// Runs the verb.
pub fn run(arguments: &GenerateArgs) -> Result<()> {
    let sampling = SamplingConfig {
        temperature: arguments.temperature,
        top_k: arguments.top_k,
        top_p: arguments.top_p,
        min_p: arguments.min_p,
        repetition_penalty: arguments.repetition_penalty,
    };
    sampling.validate()?;
    let session = Session::<Rnn>::open(&arguments.run.as_model())?;
    let tokenizer = session.recipe.data.known_tokenizer()?;
    let (network, recurrent) = language_model(&session.task)?;
    let prompt = match arguments.prompt.as_deref() {
        Some("-") => stdin()?,
        Some(text) => text.to_owned(),
        None if !std::io::stdin().is_terminal() => {
            Some(stdin()?).filter(|text| !text.is_empty()).unwrap_or("\n".to_owned())
        }
        None => "\n".to_owned(),
    };
    let mut before = tokenizer.encode_stream(prompt.as_bytes(), "the prompt")?;
    if before.is_empty() {
        // A tokenizer that drops line ends has a token for them.
        let Some(begin) = tokenizer.line_end().or(tokenizer.special().begin) else {
            bail_input!("the prompt has no token: give a text with --prompt");
        };
        before = crate::data::text::Tokens::of(&[begin]);
    }
    let mut prompt_tokens = before.ids(0..before.len());
    // A prompt is no whole line: what comes next goes on with it.
    if prompt_tokens.len() > 1
        && !prompt.ends_with('\n')
        && prompt_tokens.last().copied() == tokenizer.line_end()
    {
        prompt_tokens.pop();
    }

    let device = session.task.parameters().device();
    let _inference = InferenceMode::enter()?;
    let _autocast = session.recipe.training.precision.autocast(device)?;
    let mut out = std::io::stdout().lock();
    let write = |out: &mut std::io::StdoutLock<'_>, text: &str| -> Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("writing to stdout")
    };
    for sample in 0..arguments.samples {
        let began = Instant::now();
        let mut sampler = TokenSampler::new(sampling.clone(), arguments.seed.wrapping_add(sample))?;
        let mut stream = TextStream::after(&tokenizer, &prompt_tokens, arguments.stop.clone());
        if !arguments.no_echo && prompt != "\n" {
            write(&mut out, &prompt)?;
        }
        let mut tokens = prompt_tokens.clone();
        let mut input = Tensor::f_from_slice(&tokens)?.f_view([1, -1])?.f_to_device(device)?;
        let mut state = recurrent.zero_state(&input.f_to_kind(Kind::Float)?);
        let (mut logits, mut written) = (vec![0f32; tokenizer.vocabulary_size()], 0);
        while written < arguments.length && !stream.stopped() {
            let (scores, after) = network.forward(&input, &state, false);
            state = after;
            // [vocabulary] of the last place; the choice is made on the CPU, whatever computed the scores.
            let last =
                scores.f_select(1, -1)?.f_flatten(0, -1)?.f_to_kind(Kind::Float)?.f_to_device(Device::Cpu)?;
            last.f_copy_data(&mut logits, last.numel())?;
            let token = sampler.next(&logits, &tokens);
            tokens.push(token);
            written += 1;
            write(&mut out, &stream.push(token)?)?;
            input = Tensor::f_from_slice(&[token])?.f_view([1, 1])?.f_to_device(device)?;
        }
        write(&mut out, &stream.finish()?)?;
        write(&mut out, "\n")?;
        if arguments.timing {
            let seconds = began.elapsed().as_secs_f64();
            Log::new(Verbosity::from_flags(false, true)).info(format!(
                "{} tokens in {}: {} per second",
                format::count(written as u64),
                format::duration(seconds),
                format::count((written as f64 / seconds) as u64)
            ));
        }
    }
    Ok(())
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
