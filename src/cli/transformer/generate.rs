//! `generate` and `score`: what a decoder language model writes, and how likely it finds a text.

use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;
use serde_json::json;
use tch::{Device, Kind, Tensor};

use super::language::{LanguageModelling, open_template, open_tokenizer};
use crate::bail_input;
use crate::cli::args::{EvalFormat, ModelArgs};
use crate::cli::print;
use crate::cli::session::Session;
use crate::data::language::{LanguageData, Message, TextBlocks};
use crate::data::table::open_bytes;
use crate::data::text::{TextTokenizer, for_each_line};
use crate::distributed::SingleProcess;
use crate::generation::search::{Marks, SearchConfig, Writer, sample};
use crate::generation::{SamplingConfig, TextStream, TokenSampler};
use crate::native::modes::InferenceMode;
use crate::reporting::{Log, Verbosity, format};
use crate::tasks::Task;
use crate::tasks::language_model::TextWriter;
use crate::training::evaluate::{EvaluationSettings, evaluate};
use crate::training::signals::Interrupt;

/// Arguments of `generate`.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    #[command(flatten)]
    run: ModelArgs,
    /// What to go on from; - for stdin [default: stdin where something is piped in]
    #[arg(long, value_name = "TEXT", conflicts_with = "prompts")]
    prompt: Option<String>,
    /// Go on from each line of a file, several at a time, and print a JSON object for each
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Put the prompt into the model's chat template as what a user says
    #[arg(long)]
    chat: bool,
    /// Tokens to write at most
    #[arg(long, value_name = "N", default_value_t = 200)]
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
    /// Leave the prompt out
    #[arg(long)]
    no_echo: bool,
    /// Say on stderr how fast it was
    #[arg(long)]
    timing: bool,
}

/// Prompts that are gone on from at a time if nobody says so.
const BATCH: usize = 16;

/// Runs `generate`.
pub fn generate(arguments: &GenerateArgs) -> Result<()> {
    let sampling = SamplingConfig {
        temperature: arguments.temperature,
        top_k: arguments.top_k,
        top_p: arguments.top_p,
        min_p: arguments.min_p,
        repetition_penalty: arguments.repetition_penalty,
    };
    sampling.validate()?;
    let session = Session::<LanguageModelling>::open(&arguments.run)?;
    let writing = Writing { tokenizer: open_tokenizer(&session.recipe)?, session, arguments, sampling };
    let device = writing.session.task.parameters().device();
    let _inference = InferenceMode::enter()?;
    let _autocast = writing.session.recipe.training.precision.autocast(device)?;
    match &arguments.prompts {
        Some(path) => writing.all(path, device),
        None => writing.one(device),
    }
}

struct Writing<'a> {
    session: Session<LanguageModelling>,
    tokenizer: TextTokenizer,
    arguments: &'a GenerateArgs,
    sampling: SamplingConfig,
}

impl Writing<'_> {
    /// The tokens of a prompt; without text the mark that begins one.
    fn tokens(&self, prompt: &str) -> Result<Vec<i64>> {
        let text = match self.arguments.chat {
            true => {
                let said = Message { role: "user".to_owned(), content: prompt.to_owned() };
                open_template(&self.session.recipe, &self.tokenizer)?.text(&[said], true)?
            }
            false => prompt.to_owned(),
        };
        let tokens = self.tokenizer.encode(&text)?;
        let special = self.tokenizer.special();
        let tokens = match (tokens.is_empty(), special.begin.or(special.end).or(self.tokenizer.line_end())) {
            (false, _) => tokens,
            (true, Some(begin)) => vec![begin],
            (true, None) => bail_input!("the prompt has no token: give a text with --prompt"),
        };
        let context = self.session.recipe.model.config()?.context();
        if tokens.len() as i64 >= context {
            bail_input!(
                "the prompt has {} tokens, but the model reads {context} with what it writes",
                tokens.len()
            );
        }
        Ok(tokens)
    }

    /// As many tokens as asked for, or as the model has places for.
    fn length(&self, prompt: usize) -> Result<usize> {
        Ok(self.arguments.length.min(self.session.recipe.model.config()?.context() as usize - prompt))
    }

    /// One text, printed while it comes.
    fn one(&self, device: Device) -> Result<()> {
        let arguments = self.arguments;
        let prompt = match arguments.prompt.as_deref() {
            Some("-") => stdin()?,
            Some(text) => text.to_owned(),
            None if !std::io::stdin().is_terminal() => stdin()?,
            None => String::new(),
        };
        let mut tokens = self.tokens(&prompt)?;
        let end = self.tokenizer.special().end;
        let mut sampler = TokenSampler::new(self.sampling.clone(), arguments.seed)?;
        let mut stream = TextStream::after(&self.tokenizer, &tokens, arguments.stop.clone());
        let mut out = std::io::stdout().lock();
        let mut write = |text: &str| -> Result<()> {
            out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("writing to stdout")
        };
        if !arguments.no_echo && !arguments.chat {
            write(&prompt)?;
        }
        let began = Instant::now();
        let (mut writer, mut newest) = TextWriter::new(self.session.task.model(), &[tokens.clone()], device)?;
        let mut logits = vec![0f32; self.session.recipe.model.config()?.vocabulary() as usize];
        let mut written = 0;
        while written < self.length(tokens.len() - written)? && !stream.stopped() {
            // [vocabulary]; the choice is made on the CPU, whatever computed the scores.
            let scores =
                writer.step(&newest).f_flatten(0, -1)?.f_to_kind(Kind::Float)?.f_to_device(Device::Cpu)?;
            scores.f_copy_data(&mut logits, scores.numel())?;
            let token = sampler.next(&logits, &tokens);
            if Some(token) == end {
                break;
            }
            tokens.push(token);
            written += 1;
            write(&stream.push(token)?)?;
            newest = Tensor::f_from_slice(&[token])?.f_to_device(device)?;
        }
        write(&stream.finish()?)?;
        write("\n")?;
        self.tell(written, began);
        Ok(())
    }

    /// A text for each line of a file, in batches of prompts of any length.
    fn all(&self, path: &Path, device: Device) -> Result<()> {
        let arguments = self.arguments;
        let mut prompts = Vec::new();
        let name = if path.as_os_str() == "-" { "stdin".to_owned() } else { path.display().to_string() };
        for_each_line(open_bytes(path)?, &name, |_, line| {
            prompts.push(line.to_owned());
            Ok(())
        })?;
        let special = self.tokenizer.special();
        // Without a mark for the end nothing ends before its length.
        let marks = Marks { end: special.end.unwrap_or(-1), ..Marks::default() };
        let (began, mut written) = (Instant::now(), 0);
        for (number, batch) in prompts.chunks(arguments.run.batch_size.unwrap_or(BATCH)).enumerate() {
            let tokens = batch.iter().map(|prompt| self.tokens(prompt)).collect::<Result<Vec<_>>>()?;
            let longest = tokens.iter().map(Vec::len).max().unwrap_or(0);
            let config = SearchConfig { max_length: self.length(longest)?.max(1), ..SearchConfig::default() };
            let (mut writer, newest) = TextWriter::new(self.session.task.model(), &tokens, device)?;
            let first = (number * arguments.run.batch_size.unwrap_or(BATCH)) as u64;
            let seeds: Vec<u64> =
                (0..batch.len() as u64).map(|row| arguments.seed.wrapping_add(first + row)).collect();
            let texts = sample(&mut writer, &newest, &marks, &config, &self.sampling, &seeds, &tokens)?;
            for ((prompt, before), text) in batch.iter().zip(&tokens).zip(texts) {
                written += text.tokens.len();
                let mut stream = TextStream::after(&self.tokenizer, before, arguments.stop.clone());
                let mut shown = String::new();
                for &token in &text.tokens {
                    shown += &stream.push(token)?;
                }
                shown += &stream.finish()?;
                print(
                    &json!({ "input": prompt, "text": shown, "log_probability": text.log_probability })
                        .to_string(),
                )?;
            }
        }
        self.tell(written, began);
        Ok(())
    }

    fn tell(&self, written: usize, began: Instant) {
        if self.arguments.timing {
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

/// Arguments of `score`.
#[derive(Debug, Args)]
pub struct ScoreArgs {
    #[command(flatten)]
    run: ModelArgs,
    /// Texts; - for stdin
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// How to print
    #[arg(long, value_enum, default_value_t = EvalFormat::Table)]
    format: EvalFormat,
}

/// Runs `score`.
pub fn score(arguments: &ScoreArgs) -> Result<()> {
    let mut session = Session::<LanguageModelling>::open(&arguments.run)?;
    let tokenizer = open_tokenizer(&session.recipe)?;
    // Beyond the blocks that it was trained on a model has learned nothing of places.
    let context = session.recipe.model.config()?.context() as usize;
    let block = session.recipe.data.block.unwrap_or(context);
    let log = Log::new(Verbosity::from_flags(true, true));
    let interrupt = Interrupt::listen()?;
    for path in &arguments.files {
        let name = if path.as_os_str() == "-" { "stdin".to_owned() } else { path.display().to_string() };
        let tokens = match path.as_os_str() == "-" {
            true => tokenizer.encode_stream(open_bytes(path)?, &name)?,
            false => tokenizer.encode_file(path)?,
        };
        let count = tokens.len();
        let data = Arc::new(LanguageData::Blocks(TextBlocks::new(tokens, block, false, &name)?));
        let bar = log.progress(&name, 0, None);
        let settings = EvaluationSettings::of(&session.recipe.training);
        let Some(evaluation) =
            evaluate(&mut session.task, &data, settings, &mut SingleProcess, &interrupt, &bar)?
        else {
            bail_input!("interrupted");
        };
        drop(bar);
        let loss = evaluation.metrics["loss"];
        let scored = count - 1;
        match arguments.format {
            EvalFormat::Json => print(
                &json!({
                    "input": name,
                    "tokens": scored,
                    "log_likelihood": -loss * scored as f64,
                    "loss": loss,
                    "perplexity": loss.exp(),
                })
                .to_string(),
            )?,
            EvalFormat::Table => print(&format!(
                "{name}: {} tokens, {loss:.4} nats a token, perplexity {:.4}, log-likelihood {:.2}",
                format::count(scored as u64),
                loss.exp(),
                -loss * scored as f64
            ))?,
        }
    }
    Ok(())
}
