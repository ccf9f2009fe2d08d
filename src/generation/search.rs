//! The most probable texts: greedy decoding and beam search, with the results of transformers' `generate`.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use tch::{IndexOp, Kind, Tensor};

use super::sampling::{SamplingConfig, TokenSampler};
use crate::bail_input;
use crate::models::encoder_decoder::{DecoderState, EncoderDecoder};

/// A model in the middle of writing a batch of texts.
pub trait Writer {
    /// Takes the newest token of each row, `[rows]` (int64), and returns the scores of the next, `[rows, vocabulary]`.
    fn step(&mut self, tokens: &Tensor) -> Tensor;

    /// Keeps the rows that are numbered, in that order; a row may be kept twice. `same_sources` says that rows change places only among those
    /// of one source.
    fn select(&mut self, rows: &Tensor, same_sources: bool);
}

/// What is searched for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SearchConfig {
    /// Texts that are followed side by side; 1 is greedy decoding.
    pub beam: usize,
    /// Exponent of the length, in tokens, that a log-probability is divided by before texts are compared: above 0 longer ones gain.
    pub length_penalty: f64,
    /// Tokens that a text has at least.
    pub min_length: usize,
    /// Tokens that a text has at most, its end included.
    pub max_length: usize,
    /// No run of so many tokens occurs twice; 0 allows all.
    pub no_repeat_ngram: usize,
    /// How many of the best texts are returned; at most `beam`.
    pub n_best: usize,
}

impl Default for SearchConfig {
    fn default() -> Self {
        Self { beam: 5, length_penalty: 1.0, min_length: 0, max_length: 256, no_repeat_ngram: 0, n_best: 1 }
    }
}

impl SearchConfig {
    /// Checks the numbers.
    ///
    /// # Errors
    /// Names the setting whose value is impossible.
    pub fn validate(&self) -> Result<()> {
        if self.beam == 0 {
            bail_input!("--beam must be at least 1");
        }
        if self.n_best == 0 || self.n_best > self.beam {
            bail_input!("--n-best must be from 1 to --beam, {}, not {}", self.beam, self.n_best);
        }
        if self.max_length == 0 || self.min_length >= self.max_length {
            bail_input!("--max-length, {}, must be above --min-length, {}", self.max_length, self.min_length);
        }
        if !self.length_penalty.is_finite() {
            bail_input!("--length-penalty must be a number");
        }
        Ok(())
    }
}

/// Tokens that mean something to the search.
#[derive(Clone, Debug, Default)]
pub struct Marks {
    /// What every text begins with, not part of the result.
    pub begin: i64,
    /// What ends a text.
    pub end: i64,
    /// What is never written.
    pub never: Vec<i64>,
    /// Whether a text that reaches its longest is ended by force, as Marian's models ask.
    pub force_end: bool,
}

/// One text that was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Hypothesis {
    /// Its tokens, without the end.
    pub tokens: Vec<i64>,
    /// Whether it came to its end by itself.
    pub ended: bool,
    /// The logarithm of its probability, the end included.
    pub log_probability: f64,
    /// That divided by the length to the power of the length penalty: what texts are ranked by.
    pub score: f64,
}

/// What is told of a copy that failed.
const COPYING: &str = "copying scores to the host";
/// Steps between looks at whether greedy decoding is done, each of which waits for the device.
const STEPS_BETWEEN_LOOKS: usize = 8;

/// The best texts for each of `sources` rows, best first.
///
/// # Errors
/// Scores that cannot be copied from the device.
pub fn search(
    writer: &mut dyn Writer,
    sources: usize,
    marks: &Marks,
    config: &SearchConfig,
    device: tch::Device,
) -> Result<Vec<Vec<Hypothesis>>> {
    let _guard = tch::no_grad_guard();
    if config.beam == 1 {
        let texts = greedy(writer, sources, marks, config, device)?;
        return Ok(texts.into_iter().map(|text| vec![text]).collect());
    }
    beam(writer, sources, marks, config, device)
}

/// Draws texts token by token, one for each row of `newest` `[rows]`, the tokens that texts begin with. `before` are all tokens that are there already, for
/// the repetition penalty. Each row has random numbers of its own, so that a text does not depend on what it is
/// batched with.
///
/// # Errors
/// Impossible settings, or scores that cannot be copied from the device.
pub fn sample(
    writer: &mut dyn Writer,
    newest: &Tensor,
    marks: &Marks,
    config: &SearchConfig,
    sampling: &SamplingConfig,
    seeds: &[u64],
    before: &[Vec<i64>],
) -> Result<Vec<Hypothesis>> {
    let _guard = tch::no_grad_guard();
    let device = newest.device();
    let mut samplers =
        seeds.iter().map(|&seed| TokenSampler::new(sampling.clone(), seed)).collect::<Result<Vec<_>>>()?;
    let none = Hypothesis { tokens: Vec::new(), ended: false, log_probability: 0.0, score: 0.0 };
    let mut texts = vec![none; before.len()];
    // The text of each row that is still being written.
    let mut rows: Vec<usize> = (0..before.len()).collect();
    let mut newest = newest.shallow_clone();
    for length in 1..=config.max_length {
        let scores = log_probabilities(writer, &newest);
        let sequences: Vec<&[i64]> = rows.iter().map(|&text| texts[text].tokens.as_slice()).collect();
        let scores = restrict(&scores, &sequences, length, marks, config);
        let scores = Vec::<Vec<f32>>::try_from(&scores)?;
        let mut kept = Vec::new();
        for (row, (&text, scores)) in rows.iter().zip(&scores).enumerate() {
            let hypothesis = &mut texts[text];
            let token = samplers[text].next(scores, &[&before[text], &hypothesis.tokens[..]].concat());
            hypothesis.log_probability += f64::from(scores[token as usize]);
            if token == marks.end {
                hypothesis.ended = true;
            } else {
                hypothesis.tokens.push(token);
                kept.push((row as i64, text));
            }
        }
        if kept.is_empty() {
            break;
        }
        if kept.len() < rows.len() {
            let numbers: Vec<i64> = kept.iter().map(|(row, _)| *row).collect();
            writer.select(&Tensor::from_slice(&numbers).to_device(device), false);
            rows = kept.iter().map(|(_, text)| *text).collect();
        }
        let tokens: Vec<i64> = rows.iter().filter_map(|&text| texts[text].tokens.last().copied()).collect();
        newest = Tensor::from_slice(&tokens).to_device(device);
    }
    for text in &mut texts {
        let length = text.tokens.len() + usize::from(text.ended);
        text.score = text.log_probability / (length as f64).powf(config.length_penalty);
    }
    Ok(texts)
}

/// The likeliest token at each step.
fn greedy(
    writer: &mut dyn Writer,
    sources: usize,
    marks: &Marks,
    config: &SearchConfig,
    device: tch::Device,
) -> Result<Vec<Hypothesis>> {
    let mut done: Vec<Option<Hypothesis>> = vec![None; sources];
    let mut rows: Vec<usize> = (0..sources).collect();
    let mut newest = Tensor::full([sources as i64], marks.begin, (Kind::Int64, device));
    let mut steps: Vec<Tensor> = Vec::new(); // [rows] each, tokens and their log-probabilities alternating
    let mut written: Vec<(Vec<i64>, f64)> = vec![(Vec::new(), 0.0); sources];
    for length in 1..=config.max_length {
        let scores = log_probabilities(writer, &newest);
        // Tokens that repeat are known only on the host; without that rule nothing is copied.
        let look =
            config.no_repeat_ngram > 0 || length % STEPS_BETWEEN_LOOKS == 0 || length == config.max_length;
        let sequences: Vec<&[i64]> = rows.iter().map(|&row| written[row].0.as_slice()).collect();
        let scores = restrict(&scores, &sequences, length, marks, config);
        let (best, tokens) = scores.max_dim(1, false);
        steps.extend([tokens.to_kind(Kind::Double), best.to_kind(Kind::Double)]);
        newest = tokens;
        if !look {
            continue;
        }
        let new: Vec<Vec<f64>> = Vec::try_from(&Tensor::stack(&steps, 0)).context(COPYING)?; // [2 · steps, rows]
        steps.clear();
        let mut kept = Vec::new();
        for (number, &row) in rows.iter().enumerate() {
            let (tokens, sum) = &mut written[row];
            let mut ended = false;
            for step in new.chunks(2) {
                *sum += step[1][number];
                if step[0][number] as i64 == marks.end {
                    ended = true;
                    break;
                }
                tokens.push(step[0][number] as i64);
            }
            if ended || length == config.max_length {
                let generated = tokens.len() + usize::from(ended);
                done[row] = Some(Hypothesis {
                    tokens: std::mem::take(tokens),
                    ended,
                    log_probability: *sum,
                    score: *sum / (generated as f64).powf(config.length_penalty),
                });
            } else {
                kept.push(number as i64);
            }
        }
        if kept.is_empty() {
            break;
        }
        if kept.len() < rows.len() {
            let numbers = Tensor::from_slice(&kept).to_device(device);
            writer.select(&numbers, false);
            newest = newest.index_select(0, &numbers);
            rows = kept.iter().map(|&number| rows[number as usize]).collect();
        }
    }
    Ok(done.into_iter().flatten().collect())
}

/// One text being written in a beam.
#[derive(Clone, Debug)]
struct Running {
    tokens: Vec<i64>,
    log_probability: f32,
}

/// What is known of one source.
struct Beam {
    source: usize,
    running: Vec<Running>,
    /// Best first.
    finished: Vec<Hypothesis>,
}

fn beam(
    writer: &mut dyn Writer,
    sources: usize,
    marks: &Marks,
    config: &SearchConfig,
    device: tch::Device,
) -> Result<Vec<Vec<Hypothesis>>> {
    let width = config.beam;
    let mut results: Vec<Vec<Hypothesis>> = vec![Vec::new(); sources];
    let begin = Running { tokens: Vec::new(), log_probability: 0.0 };
    let mut beams: Vec<Beam> = (0..sources)
        .map(|source| Beam { source, running: vec![begin.clone()], finished: Vec::new() })
        .collect();
    let mut newest = Tensor::full([sources as i64], marks.begin, (Kind::Int64, device));
    for length in 1..=config.max_length {
        let scores = log_probabilities(writer, &newest); // [rows, vocabulary]
        let vocabulary = scores.size()[1];
        let rows: Vec<&Running> = beams.iter().flat_map(|beam| &beam.running).collect();
        let sequences: Vec<&[i64]> = rows.iter().map(|running| running.tokens.as_slice()).collect();
        let scores = restrict(&scores, &sequences, length, marks, config);
        let sums: Vec<f32> = rows.iter().map(|running| running.log_probability).collect();
        let sums = Tensor::from_slice(&sums).to_device(device).unsqueeze(1);
        // Every source has as many rows as the others: one at first, then the beam's width.
        let per_source = (rows.len() / beams.len()) as i64;
        let all = (scores + sums).view([beams.len() as i64, per_source * vocabulary]);
        // Twice the width, so that enough go on even if the best all end.
        let candidates = (2 * width as i64).min(per_source * vocabulary);
        let (values, places) = all.topk(candidates, 1, true, true);
        let values: Vec<Vec<f32>> = Vec::try_from(&values).context(COPYING)?;
        let places: Vec<Vec<i64>> = Vec::try_from(&places).context(COPYING)?;
        let last = length == config.max_length;
        let mut origins = Vec::new();
        let mut next = Vec::new();
        let mut first_row = 0;
        for (mut beam, (values, places)) in beams.into_iter().zip(values.iter().zip(&places)) {
            let mut running = Vec::with_capacity(width);
            let mut parents = Vec::with_capacity(width);
            for (rank, (&log_probability, &place)) in values.iter().zip(places).enumerate() {
                let (parent, token) = ((place / vocabulary) as usize, place % vocabulary);
                if log_probability == f32::NEG_INFINITY {
                    continue;
                }
                let ended = token == marks.end;
                let mut tokens = beam.running[parent].tokens.clone();
                if !ended {
                    tokens.push(token);
                }
                if ended || last {
                    // Of texts that end only those among the best count.
                    if rank < width {
                        let log_probability = f64::from(log_probability);
                        let score = log_probability / (length as f64).powf(config.length_penalty);
                        beam.finished.push(Hypothesis { tokens, ended, log_probability, score });
                    }
                } else if running.len() < width {
                    running.push(Running { tokens, log_probability });
                    parents.push(first_row + parent as i64);
                }
            }
            first_row += per_source;
            beam.finished.sort_by(|one, other| other.score.total_cmp(&one.score));
            beam.finished.truncate(width);
            // transformers' guess: no text gets better than the best running one would be if it ended here.
            let best_running = running.first().map(|best: &Running| {
                f64::from(best.log_probability) / (length as f64).powf(config.length_penalty)
            });
            let worst_finished = beam.finished.get(width - 1).map(|worst| worst.score);
            let goes_on = match (best_running, worst_finished) {
                (Some(running), Some(finished)) => running > finished,
                (running, None) => running.is_some(),
                (None, _) => false,
            };
            if goes_on && !last {
                // A vocabulary too small for the width is filled up with texts that cannot win.
                while running.len() < width {
                    let mut copy = running[0].clone();
                    copy.log_probability = f32::NEG_INFINITY;
                    parents.push(parents[0]);
                    running.push(copy);
                }
                origins.extend(parents);
                beam.running = running;
                next.push(beam);
            } else {
                beam.finished.truncate(config.n_best);
                results[beam.source] = beam.finished;
            }
        }
        beams = next;
        if beams.is_empty() {
            break;
        }
        let unchanged = origins.len() == first_row as usize
            && origins.iter().enumerate().all(|(row, &of)| row as i64 == of);
        if !unchanged {
            let same_sources = origins.len() == first_row as usize;
            writer.select(&Tensor::from_slice(&origins).to_device(device), same_sources);
        }
        let tokens: Vec<i64> = beams
            .iter()
            .flat_map(|beam| &beam.running)
            .filter_map(|running| running.tokens.last().copied())
            .collect();
        newest = Tensor::from_slice(&tokens).to_device(device);
    }
    Ok(results)
}

fn log_probabilities(writer: &mut dyn Writer, newest: &Tensor) -> Tensor {
    writer.step(newest).to_kind(Kind::Float).log_softmax(-1, Kind::Float)
}

/// Makes impossible what the configuration forbids at this length.
fn restrict(
    scores: &Tensor,
    sequences: &[&[i64]],
    length: usize,
    marks: &Marks,
    config: &SearchConfig,
) -> Tensor {
    let mut scores = scores.shallow_clone();
    let forbid = |scores: &Tensor, token: i64| {
        let _ = scores.i((.., token)).fill_(f64::NEG_INFINITY);
    };
    for &token in &marks.never {
        forbid(&scores, token);
    }
    if length <= config.min_length {
        forbid(&scores, marks.end);
    }
    if config.no_repeat_ngram > 0 {
        for (row, tokens) in sequences.iter().enumerate() {
            // transformers counts the token that texts begin with.
            let tokens = [&[marks.begin], *tokens].concat();
            for token in repeating(&tokens, config.no_repeat_ngram) {
                let _ = scores.i((row as i64, token)).fill_(f64::NEG_INFINITY);
            }
        }
    }
    if marks.force_end && length == config.max_length {
        let forced = scores.full_like(f64::NEG_INFINITY);
        let _ = forced.i((.., marks.end)).fill_(0.0);
        scores = forced;
    }
    scores
}

/// The tokens that would complete a run of `order` tokens that is there already.
fn repeating(tokens: &[i64], order: usize) -> Vec<i64> {
    let Some(start) = (tokens.len() + 1).checked_sub(order) else { return Vec::new() };
    let newest = &tokens[start..];
    tokens.windows(order).filter(|run| run[..order - 1] == *newest).map(|run| run[order - 1]).collect()
}

/// The decoder of an encoder-decoder, writing targets for sources that it has read.
pub struct TargetWriter<'a> {
    model: &'a dyn EncoderDecoder,
    state: DecoderState,
}

impl<'a> TargetWriter<'a> {
    /// Reads `source` `[batch, length]` with its `mask`, true where there is a token.
    pub fn new(model: &'a dyn EncoderDecoder, source: &Tensor, mask: &Tensor) -> Self {
        let _guard = tch::no_grad_guard();
        let memory = model.encode(source, mask, false);
        Self { model, state: model.start(&memory, mask) }
    }
}

impl Writer for TargetWriter<'_> {
    fn step(&mut self, tokens: &Tensor) -> Tensor {
        self.model.decode(&tokens.unsqueeze(1), &mut self.state, false).squeeze_dim(1)
    }

    fn select(&mut self, rows: &Tensor, same_sources: bool) {
        self.state.select(rows, same_sources);
    }
}
