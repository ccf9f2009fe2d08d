//! `translate`: target texts for source texts, line for line.

use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use serde_json::json;
use tch::{Kind, Tensor};

use super::translation::Translating;
use crate::bail_input;
use crate::cli::args::ModelArgs;
use crate::cli::session::Session;
use crate::data::table::open_bytes;
use crate::data::text::{for_each_line, pad};
use crate::generation::SamplingConfig;
use crate::generation::search::{Hypothesis, SearchConfig, TargetWriter, sample, search};
use crate::models::attention::weights_of;
use crate::native::modes::InferenceMode;
use crate::reporting::{Log, Verbosity};
use crate::tasks::Task;
use crate::tasks::translation::Translation;
use crate::training::precision::Precision;

/// Arguments of `translate`.
#[derive(Debug, Args)]
pub struct TranslateArgs {
    #[command(flatten)]
    pub run: ModelArgs,
    /// Files with a text on each line [default: stdin]
    #[arg(value_name = "FILE")]
    pub inputs: Vec<PathBuf>,
    #[command(flatten)]
    pub search: SearchArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// How to print: the texts alone, or a JSON object for each line of input
    #[arg(long, value_enum, default_value_t = TranslateFormat::Text)]
    pub format: TranslateFormat,
    /// Also tell for each target token which source token it looks at, as pairs of their places
    #[arg(long)]
    pub align: bool,
}

/// How translations are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TranslateFormat {
    /// A line for each line of input; with several, the score, a tab and the text on a line each.
    Text,
    /// An object for each line of input.
    Jsonl,
}

/// How the best texts are searched for.
#[derive(Clone, Debug, Default, Args)]
pub struct SearchArgs {
    /// Texts that are followed side by side; 1 is greedy decoding [default: the recipe's, 5 for a folder]
    #[arg(long, value_name = "N")]
    pub beam: Option<usize>,
    /// Exponent of the length that scores are divided by: above 0 longer texts gain
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub length_penalty: Option<f64>,
    /// Tokens that a text has at least
    #[arg(long, value_name = "N")]
    pub min_length: Option<usize>,
    /// Tokens that a text has at most
    #[arg(long, value_name = "N")]
    pub max_length: Option<usize>,
    /// No run of so many tokens occurs twice
    #[arg(long, value_name = "N")]
    pub no_repeat_ngram: Option<usize>,
    /// How many of the best texts to print
    #[arg(long, value_name = "N")]
    pub n_best: Option<usize>,
}

impl SearchArgs {
    /// The recipe's search with what the flags change.
    ///
    /// # Errors
    /// A value that is impossible.
    pub fn over(&self, recipe: &SearchConfig) -> Result<SearchConfig> {
        let n_best = self.n_best.unwrap_or(recipe.n_best);
        let config = SearchConfig {
            beam: self.beam.unwrap_or(recipe.beam.max(n_best)),
            length_penalty: self.length_penalty.unwrap_or(recipe.length_penalty),
            min_length: self.min_length.unwrap_or(recipe.min_length),
            max_length: self.max_length.unwrap_or(recipe.max_length),
            no_repeat_ngram: self.no_repeat_ngram.unwrap_or(recipe.no_repeat_ngram),
            n_best,
        };
        config.validate()?;
        Ok(config)
    }
}

/// How texts are drawn instead.
#[derive(Clone, Debug, Args)]
pub struct SamplingArgs {
    /// Draw texts at random instead of searching the most probable
    #[arg(long)]
    pub sample: bool,
    /// Divides the scores: below 1 likely tokens become likelier
    #[arg(long, value_name = "X", default_value_t = 1.0, requires = "sample")]
    pub temperature: f64,
    /// Draw among so many of the likeliest tokens
    #[arg(long, value_name = "N", requires = "sample")]
    pub top_k: Option<usize>,
    /// Draw among the likeliest tokens that together have this probability
    #[arg(long, value_name = "P", default_value_t = 1.0, requires = "sample")]
    pub top_p: f64,
    /// Random numbers to draw by
    #[arg(long, value_name = "N", default_value_t = 0, requires = "sample")]
    pub seed: u64,
}

/// Texts that are read before any is translated, so that batches are of like lengths.
const LINES_AT_A_TIME: usize = 1024;
/// Texts in a batch if nobody says so.
const BATCH: usize = 32;

struct Translator {
    session: Session<Translating>,
    search: SearchConfig,
    sampling: Option<(SamplingConfig, u64)>,
    batch_size: usize,
    max_length: usize,
    format: TranslateFormat,
    align: bool,
    /// Lines read so far.
    lines: u64,
    cut: usize,
}

/// Runs the verb.
pub fn run(arguments: &TranslateArgs) -> Result<()> {
    let mut run = arguments.run.clone();
    let mut inputs = arguments.inputs.clone();
    if run.weights.model.is_some() {
        // Without a run, the first path is an input too.
        inputs.splice(0..0, run.run.take());
    }
    let session = Session::<Translating>::open(&run)?;
    let search = arguments.search.over(&session.recipe.model.search)?;
    let sampling = arguments.sampling.sample.then(|| {
        let SamplingArgs { temperature, top_k, top_p, seed, .. } = arguments.sampling;
        (SamplingConfig { temperature, top_k, top_p, ..SamplingConfig::default() }, seed)
    });
    if let Some((config, _)) = &sampling {
        config.validate()?;
        if search.n_best > 1 {
            bail_input!("--n-best goes with a search, not with --sample: repeat the line with other seeds");
        }
    }
    let longest = session.recipe.model.config()?.longest().map(|longest| longest as usize);
    let mut translator = Translator {
        search: SearchConfig {
            max_length: longest.map_or(search.max_length, |longest| search.max_length.min(longest)),
            ..search
        },
        sampling,
        batch_size: arguments.run.batch_size.unwrap_or(BATCH),
        max_length: longest.unwrap_or(512),
        format: arguments.format,
        align: arguments.align,
        lines: 0,
        cut: 0,
        session,
    };
    let device = translator.session.task.parameters().device();
    let precision: Precision = translator.session.recipe.training.precision;
    let _inference = InferenceMode::enter()?;
    let _autocast = precision.autocast(device)?;
    if inputs.is_empty() && std::io::stdin().is_terminal() {
        translator.converse()?;
    } else {
        if inputs.is_empty() {
            inputs.push(PathBuf::from("-"));
        }
        for input in &inputs {
            let name =
                if input.as_os_str() == "-" { "stdin".to_owned() } else { input.display().to_string() };
            let mut waiting = Vec::new();
            for_each_line(open_bytes(input)?, &name, |_, line| {
                waiting.push(line.trim().to_owned());
                if waiting.len() == LINES_AT_A_TIME {
                    translator.translate(&std::mem::take(&mut waiting))?;
                }
                Ok(())
            })?;
            translator.translate(&waiting)?;
        }
    }
    if translator.cut > 0 {
        Log::new(Verbosity::from_flags(false, true)).warning(format!(
            "{} texts were cut to the {} tokens that the model reads",
            translator.cut, translator.max_length
        ));
    }
    Ok(())
}

impl Translator {
    /// A text at a time, until the input ends.
    fn converse(&mut self) -> Result<()> {
        let stdin = std::io::stdin();
        loop {
            let mut prompt = std::io::stderr().lock();
            prompt.write_all(b"> ").and_then(|()| prompt.flush()).context("writing the prompt")?;
            let mut line = String::new();
            if stdin.lock().read_line(&mut line).context("reading stdin")? == 0 {
                return Ok(());
            }
            self.translate(&[line.trim().to_owned()])?;
        }
    }

    /// Prints what lines become, in their order.
    fn translate(&mut self, lines: &[String]) -> Result<()> {
        let task = &self.session.task;
        let tokenizers = task.tokenizers();
        let texts: Vec<&str> = lines.iter().map(String::as_str).collect();
        let (sources, cut) =
            tokenizers.encode_sources(&texts, &self.session.recipe.data.prefix, self.max_length)?;
        self.cut += cut;
        // An empty line stays one.
        let mut order: Vec<usize> = (0..lines.len()).filter(|&line| !lines[line].is_empty()).collect();
        order.sort_by_key(|&line| std::cmp::Reverse(sources[line].len()));
        let mut found: Vec<Vec<Hypothesis>> = vec![Vec::new(); lines.len()];
        let mut alignments: Vec<Vec<(usize, usize)>> = vec![Vec::new(); lines.len()];
        for batch in order.chunks(self.batch_size.max(1)) {
            let rows: Vec<Vec<i64>> = batch.iter().map(|&line| sources[line].clone()).collect();
            let device = task.parameters().device();
            let padded = pad(&rows, tokenizers.pad)?;
            let (source, mask) = (padded.ids.to_device(device), padded.mask()?.to_device(device));
            let mut writer = TargetWriter::new(task.model(), &source, &mask);
            let texts = match &self.sampling {
                None => search(&mut writer, rows.len(), task.marks(), &self.search, device)?,
                Some((config, seed)) => {
                    let seeds: Vec<u64> =
                        batch.iter().map(|&line| seed.wrapping_add(self.lines + line as u64)).collect();
                    let begin = vec![task.marks().begin; rows.len()];
                    let newest = Tensor::from_slice(&begin).to_device(device);
                    let before = vec![Vec::new(); rows.len()];
                    let texts =
                        sample(&mut writer, &newest, task.marks(), &self.search, config, &seeds, &before)?;
                    texts.into_iter().map(|text| vec![text]).collect()
                }
            };
            if self.align {
                for ((&line, texts), pairs) in
                    batch.iter().zip(&texts).zip(align(task, &source, &mask, &rows, &texts)?)
                {
                    if !texts.is_empty() {
                        alignments[line] = pairs;
                    }
                }
            }
            for (&line, texts) in batch.iter().zip(texts) {
                found[line] = texts;
            }
        }
        self.lines += lines.len() as u64;
        let mut out = std::io::stdout().lock();
        for ((line, texts), pairs) in lines.iter().zip(&found).zip(&alignments) {
            let text = self.written(line, texts, pairs)?;
            out.write_all(text.as_bytes()).context("writing to stdout")?;
        }
        out.flush().context("writing to stdout")
    }

    fn written(&self, line: &str, texts: &[Hypothesis], pairs: &[(usize, usize)]) -> Result<String> {
        let tokenizers = self.session.task.tokenizers();
        let decoded: Vec<String> =
            texts.iter().map(|text| tokenizers.decode(&text.tokens)).collect::<Result<_>>()?;
        let alignment =
            pairs.iter().map(|(source, target)| format!("{source}-{target}")).collect::<Vec<_>>().join(" ");
        if self.format == TranslateFormat::Jsonl {
            let candidates: Vec<_> = decoded
                .iter()
                .zip(texts)
                .map(|(text, found)| json!({ "text": text, "score": found.score, "log_probability": found.log_probability, "ended": found.ended }))
                .collect();
            let mut object = json!({ "input": line, "text": decoded.first().map_or("", String::as_str) });
            object["score"] = json!(texts.first().map(|text| text.score));
            if self.search.n_best > 1 {
                object["candidates"] = json!(candidates);
            }
            if self.align {
                object["alignment"] = json!(pairs);
            }
            return Ok(format!("{object}\n"));
        }
        if self.search.n_best > 1 {
            let rows = decoded.iter().zip(texts).map(|(text, found)| format!("{:.4}\t{text}\n", found.score));
            return Ok(rows.collect());
        }
        let text = decoded.first().map_or("", String::as_str);
        // A translation is one line, whatever tokens say.
        let text = text.replace(['\n', '\r'], " ");
        Ok(if self.align { format!("{text}\t{alignment}\n") } else { format!("{text}\n") })
    }
}

/// For the best text of each source the pairs (source token, target token) where a target token looks at a source token more than at others: the last
/// layer's weights of attention to the source, averaged over the heads.
fn align(
    task: &Translation,
    source: &Tensor,
    mask: &Tensor,
    rows: &[Vec<i64>],
    texts: &[Vec<Hypothesis>],
) -> Result<Vec<Vec<(usize, usize)>>> {
    let begin = task.marks().begin;
    let targets: Vec<Vec<i64>> = texts
        .iter()
        .map(|found| [&[begin][..], found.first().map_or(&[][..], |text| &text.tokens[..])].concat())
        .collect();
    let padded = pad(&targets, task.tokenizers().pad)?;
    let target = padded.ids.to_device(source.device());
    let memory = task.model().encode(source, mask, false);
    let mut state = task.model().start(&memory, mask);
    let (_, weights) = weights_of(|| task.model().decode(&target, &mut state, false));
    // Each layer looks at itself, then at the source.
    let Some(last) = weights.last() else { return Ok(vec![Vec::new(); rows.len()]) };
    let looked_at = last.mean_dim([1i64].as_slice(), false, None::<Kind>).argmax(-1, false); // [batch, target]
    let looked_at = Vec::<Vec<i64>>::try_from(&looked_at).context("copying the alignment")?;
    Ok(looked_at
        .iter()
        .zip(&targets)
        .zip(rows)
        .map(|((places, target), source)| {
            let words = places[..target.len() - 1].iter().enumerate();
            // What looks at the end of the source is aligned to nothing.
            words
                .map(|(target, &place)| (place as usize, target))
                .filter(|(place, _)| place + 1 < source.len())
                .collect()
        })
        .collect())
}
