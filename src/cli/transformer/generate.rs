//! `generate` and `score`: what a decoder language model writes, and how likely it finds a text.

use std::io::Write;
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
use crate::cli::writing::{WritingArgs, prompt_of};
use crate::data::language::{ChatTemplate, LanguageData, Message, TextBlocks};
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
    #[command(flatten)]
    writing: WritingArgs,
}

/// Prompts that are gone on from at a time if nobody says so.
const BATCH: usize = 16;

/// Runs `generate`.
pub fn generate(arguments: &GenerateArgs) -> Result<()> {
    let sampling = arguments.writing.sampling()?;
    let session = Session::<LanguageModelling>::open(&arguments.run)?;
    let tokenizer = open_tokenizer(&session.recipe)?;
    let template = arguments.chat.then(|| open_template(&session.recipe, &tokenizer)).transpose()?;
    let writing = Writing { tokenizer, template, session, arguments, sampling };
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
    /// How a prompt becomes what a user says, for `--chat`.
    template: Option<ChatTemplate>,
    arguments: &'a GenerateArgs,
    sampling: SamplingConfig,
}

impl Writing<'_> {
    /// The tokens of a prompt; without text the mark that begins one.
    fn tokens(&self, prompt: &str) -> Result<Vec<i64>> {
        let text = match &self.template {
            Some(template) => {
                let said = Message { role: "user".to_owned(), content: prompt.to_owned() };
                template.text(&[said], true)?
            }
            None => prompt.to_owned(),
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
        let prompt = prompt_of(arguments.prompt.as_deref())?;
        let mut tokens = self.tokens(&prompt)?;
        let end = self.tokenizer.special().end;
        let mut sampler = TokenSampler::new(self.sampling.clone(), arguments.writing.seed)?;
        let mut stream = TextStream::after(&self.tokenizer, &tokens, arguments.writing.stop.clone());
        let mut out = std::io::stdout().lock();
        let mut write = |text: &str| -> Result<()> {
            out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("writing to stdout")
        };
        if !arguments.writing.no_echo && !arguments.chat {
            write(&prompt)?;
        }
        let began = Instant::now();
        let (mut writer, mut newest) = TextWriter::new(self.session.task.model(), &[tokens.clone()], device)?;
        let mut logits = vec![0f32; self.session.recipe.model.config()?.vocabulary() as usize];
        let (length, mut written) = (self.length(tokens.len())?, 0);
        while written < length && !stream.stopped() {
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
        arguments.writing.tell_speed(written, began);
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
        let batch_size = arguments.run.batch_size.unwrap_or(BATCH);
        for (number, batch) in prompts.chunks(batch_size).enumerate() {
            let tokens = batch.iter().map(|prompt| self.tokens(prompt)).collect::<Result<Vec<_>>>()?;
            let longest = tokens.iter().map(Vec::len).max().unwrap_or(0);
            let config = SearchConfig { max_length: self.length(longest)?.max(1), ..SearchConfig::default() };
            let (mut writer, newest) = TextWriter::new(self.session.task.model(), &tokens, device)?;
            let first = (number * batch_size) as u64;
            let seeds: Vec<u64> =
                (0..batch.len() as u64).map(|row| arguments.writing.seed.wrapping_add(first + row)).collect();
            let texts = sample(&mut writer, &newest, &marks, &config, &self.sampling, &seeds, &tokens)?;
            for ((prompt, before), text) in batch.iter().zip(&tokens).zip(texts) {
                written += text.tokens.len();
                let mut stream = TextStream::after(&self.tokenizer, before, arguments.writing.stop.clone());
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
        arguments.writing.tell_speed(written, began);
        Ok(())
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
