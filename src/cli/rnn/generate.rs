//! `generate`: a language model goes on with a text.

use std::io::Write;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;
use tch::{Device, Kind, Tensor};

use super::family::{Rnn, known_tokenizer, language_model};
use crate::bail_input;
use crate::cli::args::RunArgs;
use crate::cli::session::Session;
use crate::cli::writing::{WritingArgs, prompt_of};
use crate::generation::{TextStream, TokenSampler};
use crate::native::modes::InferenceMode;
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
    /// Texts to write, each with its own seed
    #[arg(long, value_name = "N", default_value_t = 1)]
    samples: u64,
    #[command(flatten)]
    writing: WritingArgs,
}

/// Runs the verb.
pub fn run(arguments: &GenerateArgs) -> Result<()> {
    let writing = &arguments.writing;
    let sampling = writing.sampling()?;
    let mut model = arguments.run.as_model();
    // A single token at a time has too little in it for two threads: handing it over costs more than computing it.
    model.device.threads.get_or_insert(1);
    let session = Session::<Rnn>::open(&model)?;
    let tokenizer = known_tokenizer(&session.recipe)?;
    let (network, recurrent) = language_model(&session.task)?;
    let prompt = match arguments.prompt.as_deref() {
        Some(given) => prompt_of(Some(given))?,
        None => Some(prompt_of(None)?).filter(|text| !text.is_empty()).unwrap_or("\n".to_owned()),
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
        let mut sampler = TokenSampler::new(sampling.clone(), writing.seed.wrapping_add(sample))?;
        let mut stream = TextStream::after(&tokenizer, &prompt_tokens, writing.stop.clone());
        if !writing.no_echo && prompt != "\n" {
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
        writing.tell_speed(written, began);
    }
    Ok(())
}
