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

    /// Keeps the rows that are numbered, in that order; a row may be kept twice. `sources` numbers the sources that are kept, all if left out. The rows of
    /// a source stand side by side, and each source has as many as the others.
    fn select(&mut self, rows: &Tensor, sources: Option<&Tensor>);
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
    /// What ends a text; negative where nothing does before its longest.
    pub end: i64,
    /// What is never written.
    pub never: Vec<i64>,
    /// Whether a text that reaches its longest is ended by force, as Marian's models ask.
    pub force_end: bool,
}

impl Marks {
    /// Whether the token that makes a text `length` long is the end, whatever the model says: it costs nothing.
    fn forced(&self, length: usize, config: &SearchConfig) -> bool {
        self.force_end && length == config.max_length
    }
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

/// Steps between looks at whether texts are done. A look waits for the device; on the CPU there is nothing to wait for, and a row that is done is not
/// computed any further.
fn steps_between_looks(device: tch::Device) -> usize {
    if device == tch::Device::Cpu { 1 } else { 8 }
}

/// Whether so many are done that the rest should go on without them: what is kept of the rest must be copied for that.
fn is_worth_dropping(left: usize, all: usize) -> bool {
    8 * left <= 7 * all
}

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
    // With what came before them.
    let mut whole = before.to_vec();
    // The text of each row that is still being written.
    let mut rows: Vec<usize> = (0..before.len()).collect();
    let mut newest = newest.shallow_clone();
    let mut written = Written::new(&newest, marks, config);
    let mut scores = Vec::new();
    for length in 1..=config.max_length {
        let logits = writer.step(&newest).f_to_kind(Kind::Float)?; // [rows, vocabulary]
        // What makes log-probabilities of them, of all tokens whether they may be drawn or not, comes along: one copy for both.
        let sums = logits.f_logsumexp(1, true)?;
        let logits = restrict(&logits, written.as_ref(), length, marks, config);
        let vocabulary = logits.size()[1] as usize;
        let with_sums = Tensor::f_cat(&[&logits, &sums], 1)?;
        scores.resize(with_sums.numel(), 0f32);
        with_sums
            .f_to_device(tch::Device::Cpu)?
            .f_copy_data(&mut scores, with_sums.numel())
            .context(COPYING)?;
        let mut kept = Vec::with_capacity(rows.len());
        for (row, (&text, scores)) in rows.iter().zip(scores.chunks(vocabulary + 1)).enumerate() {
            let hypothesis = &mut texts[text];
            let token = samplers[text].next(&scores[..vocabulary], &whole[text]);
            if !marks.forced(length, config) {
                let logit = f64::from(scores[token as usize]);
                hypothesis.log_probability += logit - f64::from(scores[vocabulary]);
            }
            if token == marks.end {
                hypothesis.ended = true;
            } else {
                hypothesis.tokens.push(token);
                whole[text].push(token);
                kept.push((row as i64, text));
            }
        }
        if kept.is_empty() {
            break;
        }
        if kept.len() < rows.len() {
            let numbers: Vec<i64> = kept.iter().map(|(row, _)| *row).collect();
            let numbers = Tensor::from_slice(&numbers).to_device(device);
            writer.select(&numbers, Some(&numbers));
            written = written.map(|written| written.select(&numbers));
            rows = kept.iter().map(|(_, text)| *text).collect();
        }
        let tokens: Vec<i64> = rows.iter().filter_map(|&text| texts[text].tokens.last().copied()).collect();
        newest = Tensor::from_slice(&tokens).to_device(device);
        written = written.map(|written| written.and(&newest));
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
    let between_looks = steps_between_looks(device);
    let mut done: Vec<Option<Hypothesis>> = vec![None; sources];
    let mut rows: Vec<usize> = (0..sources).collect();
    let mut newest = Tensor::full([sources as i64], marks.begin, (Kind::Int64, device));
    let mut written = Written::new(&newest, marks, config);
    // Since the last look: tokens and their log-probabilities alternating, [rows] each.
    let mut steps: Vec<Tensor> = Vec::new();
    let mut texts: Vec<(Vec<i64>, f64)> = vec![(Vec::new(), 0.0); sources];
    for length in 1..=config.max_length {
        let scores = log_probabilities(writer, &newest);
        let scores = restrict(&scores, written.as_ref(), length, marks, config);
        let (best, tokens) = scores.max_dim(1, false);
        steps.extend([tokens.to_kind(Kind::Double), best.to_kind(Kind::Double)]);
        newest = tokens;
        written = written.map(|written| written.and(&newest));
        if length % between_looks != 0 && length != config.max_length {
            continue;
        }
        let new: Vec<Vec<f64>> = Vec::try_from(&Tensor::stack(&steps, 0)).context(COPYING)?; // [2 · steps, rows]
        steps.clear();
        let mut kept = Vec::new();
        for (number, &row) in rows.iter().enumerate() {
            if done[row].is_some() {
                continue;
            }
            let (tokens, sum) = &mut texts[row];
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
        if is_worth_dropping(kept.len(), rows.len()) {
            let numbers = Tensor::from_slice(&kept).to_device(device);
            writer.select(&numbers, Some(&numbers));
            newest = newest.index_select(0, &numbers);
            written = written.map(|written| written.select(&numbers));
            rows = kept.iter().map(|&number| rows[number as usize]).collect();
        }
    }
    Ok(done.into_iter().flatten().collect())
}

/// Texts of several sources, each with as many as the beam is wide. All of it is on the device; the host is told now and then which sources are done.
struct Beams {
    width: i64,
    length_penalty: f64,
    end: i64,
    /// Log-probabilities of the texts that are being written, best first: `[sources, width]`, at first `[sources, 1]`.
    sums: Tensor,
    /// The best texts that are done, best first, each as [`RECORD`] numbers: `[sources, width, RECORD]` (float64).
    finished: Tensor,
    /// Whether a text that is being written may still become one of the best: `[sources]`. What is done is not changed any more.
    live: Tensor,
    /// For each step the tokens `[rows]` and the rows of the step before that they follow `[rows]`.
    steps: Vec<[Tensor; 2]>,
}

/// What is known of a text that is done: its score, its log-probability, the step of its last token (from 0), the row of the step before that this follows, and that
/// token.
const RECORD: i64 = 5;

impl Beams {
    fn new(sources: usize, marks: &Marks, config: &SearchConfig, device: tch::Device) -> Self {
        let (sources, width) = (sources as i64, config.beam as i64);
        Self {
            width,
            length_penalty: config.length_penalty,
            end: marks.end,
            sums: Tensor::zeros([sources, 1], (Kind::Float, device)),
            finished: Tensor::full([sources, width, RECORD], f64::NEG_INFINITY, (Kind::Double, device)),
            live: Tensor::ones([sources], (Kind::Bool, device)),
            steps: Vec::new(),
        }
    }

    /// Takes the log-probabilities of the next tokens, `[rows, vocabulary]`, and keeps what is best; `last` ends all texts. Returns the tokens and the rows that they
    /// follow, `[sources, width]` each.
    fn step(&mut self, scores: &Tensor, last: bool) -> [Tensor; 2] {
        let (sources, per_source) = (self.sums.size()[0], self.sums.size()[1]);
        let (vocabulary, device) = (scores.size()[1], scores.device());
        let length = (self.steps.len() + 1) as f64;
        let all = (scores + self.sums.view([-1, 1])).view([sources, per_source * vocabulary]);
        // Twice the width, so that enough go on even if the best all end. A vocabulary too small for that is filled up with texts that cannot win.
        let wanted = 2 * self.width;
        let there = wanted.min(per_source * vocabulary);
        let (mut values, mut places) = all.topk(there, 1, true, true);
        if there < wanted {
            values = values.pad([0, wanted - there], "constant", f64::NEG_INFINITY);
            places = places.constant_pad_nd([0, wanted - there]);
        }
        let first_rows = Tensor::arange(sources, (Kind::Int64, device)).unsqueeze(1) * per_source;
        let rows = places.divide_scalar_mode(vocabulary, "floor") + first_rows; // [sources, 2 · width]
        let tokens = places.remainder(vocabulary);
        let ends = tokens.eq(self.end);

        // Of texts that end only those among the best count.
        let best = |tensor: &Tensor| tensor.narrow(1, 0, self.width);
        let mut counts = best(&values).isfinite().logical_and(&self.live.unsqueeze(1));
        if !last {
            counts = counts.logical_and(&best(&ends));
        }
        let sums = best(&values).to_kind(Kind::Double);
        let scores = &sums / length.powf(self.length_penalty);
        let scores = scores.where_scalarother(&counts, f64::NEG_INFINITY);
        let step = sums.full_like(self.steps.len() as f64);
        let new = Tensor::stack(
            &[scores, sums, step, best(&rows).to_kind(Kind::Double), best(&tokens).to_kind(Kind::Double)],
            2,
        );
        let finished = Tensor::cat(&[&self.finished, &new], 1);
        // Of equal ones the earlier comes first.
        let (_, order) = finished.select(2, 0).sort_stable(true, 1, true);
        let order = best(&order).unsqueeze(2).expand([-1, -1, RECORD], false);
        self.finished = finished.gather(1, &order, false);

        // Those that go on, in their order.
        let ranks = Tensor::arange(wanted, (Kind::Int64, device));
        let going_on = best(&(&ends * wanted + ranks).argsort(1, false));
        self.sums = values.masked_fill(&ends, f64::NEG_INFINITY).gather(1, &going_on, false);
        // transformers' guess: no text gets better than the best running one would be if it ended here.
        let most = self.sums.select(1, 0).to_kind(Kind::Double) / length.powf(self.length_penalty);
        let least = self.finished.select(2, 0).select(1, self.width - 1);
        self.live = self.live.logical_and(&most.gt_tensor(&least));
        [tokens.gather(1, &going_on, false), rows.gather(1, &going_on, false)]
    }

    /// Whether each source is live, and its best texts.
    fn look(&self) -> Result<Vec<(bool, Vec<f64>)>> {
        let live = self.live.f_to_kind(Kind::Double)?.f_unsqueeze(1)?;
        let all = Tensor::f_cat(&[&live, &self.finished.f_flatten(1, 2)?], 1)?; // [sources, 1 + width · RECORD]
        let all = Vec::<Vec<f64>>::try_from(&all).context(COPYING)?;
        Ok(all.into_iter().map(|row| (row[0] != 0.0, row[1..].to_vec())).collect())
    }

    fn select(&mut self, sources: &Tensor) {
        for tensor in [&mut self.sums, &mut self.finished, &mut self.live] {
            *tensor = tensor.index_select(0, sources);
        }
    }

    /// The texts of records, with all their tokens.
    fn texts(&self, records: Vec<Vec<f64>>, n_best: usize) -> Result<Vec<Vec<Hypothesis>>> {
        let flat: Vec<&Tensor> = self.steps.iter().flatten().collect();
        let steps = match flat.is_empty() {
            true => Vec::new(),
            false => Vec::<i64>::try_from(&Tensor::f_cat(&flat, 0)?).context(COPYING)?,
        };
        // Where the tokens of each step begin, and how many there are; as many rows follow them.
        let mut places = Vec::with_capacity(self.steps.len());
        let mut from = 0;
        for [tokens, _] in &self.steps {
            let count = tokens.size()[0] as usize;
            places.push((from, count));
            from += 2 * count;
        }
        let text = |record: &[f64]| {
            let &[score, log_probability, step, row, last] = record else { return None };
            if score == f64::NEG_INFINITY {
                return None;
            }
            let ended = last as i64 == self.end;
            let mut tokens: Vec<i64> = if ended { Vec::new() } else { vec![last as i64] };
            let mut row = row as usize;
            for &(from, count) in places[..step as usize].iter().rev() {
                tokens.push(steps[from + row]);
                row = steps[from + count + row] as usize;
            }
            tokens.reverse();
            Some(Hypothesis { tokens, ended, log_probability, score })
        };
        Ok(records
            .into_iter()
            .map(|records| records.chunks(RECORD as usize).filter_map(text).take(n_best).collect())
            .collect())
    }
}

fn beam(
    writer: &mut dyn Writer,
    sources: usize,
    marks: &Marks,
    config: &SearchConfig,
    device: tch::Device,
) -> Result<Vec<Vec<Hypothesis>>> {
    let between_looks = steps_between_looks(device);
    let mut beams = Beams::new(sources, marks, config, device);
    // The sources that are not done, and the records of all.
    let mut open: Vec<usize> = (0..sources).collect();
    let mut records: Vec<Vec<f64>> = vec![Vec::new(); sources];
    let mut newest = Tensor::full([sources as i64], marks.begin, (Kind::Int64, device));
    let mut written = Written::new(&newest, marks, config);
    for length in 1..=config.max_length {
        let last = length == config.max_length;
        let scores = log_probabilities(writer, &newest);
        let scores = restrict(&scores, written.as_ref(), length, marks, config);
        let [mut tokens, mut rows] = beams.step(&scores, last);
        let mut left = None;
        if last || length % between_looks == 0 {
            let mut kept = Vec::with_capacity(open.len());
            for (number, ((live, found), &source)) in beams.look()?.into_iter().zip(&open).enumerate() {
                records[source] = found;
                if live && !last {
                    kept.push(number as i64);
                }
            }
            if kept.is_empty() {
                break;
            }
            if is_worth_dropping(kept.len(), open.len()) {
                let numbers = Tensor::from_slice(&kept).to_device(device);
                beams.select(&numbers);
                tokens = tokens.index_select(0, &numbers);
                rows = rows.index_select(0, &numbers);
                open = kept.iter().map(|&number| open[number as usize]).collect();
                left = Some(numbers);
            }
        }
        let rows = rows.flatten(0, 1);
        newest = tokens.flatten(0, 1);
        writer.select(&rows, left.as_ref());
        written = written.map(|written| written.select(&rows).and(&newest));
        beams.steps.push([newest.shallow_clone(), rows]);
    }
    beams.texts(records, config.n_best)
}

fn log_probabilities(writer: &mut dyn Writer, newest: &Tensor) -> Tensor {
    writer.step(newest).to_kind(Kind::Float).log_softmax(-1, Kind::Float)
}

/// What has been written, `[rows, length]` with the token that texts begin with: kept where no run of tokens may occur twice.
struct Written(Tensor);

impl Written {
    fn new(newest: &Tensor, marks: &Marks, config: &SearchConfig) -> Option<Self> {
        (config.no_repeat_ngram > 0).then(|| Self(newest.full_like(marks.begin).unsqueeze(1)))
    }

    fn select(self, rows: &Tensor) -> Self {
        Self(self.0.index_select(0, rows))
    }

    fn and(self, newest: &Tensor) -> Self {
        Self(Tensor::cat(&[&self.0, &newest.unsqueeze(1)], 1))
    }

    /// Makes the tokens impossible that would complete a run of `order` tokens that is there already, the first token counted as transformers does.
    fn forbid_repeating(&self, scores: &Tensor, order: i64) -> Tensor {
        let runs = self.0.size()[1] - order + 1;
        if runs < 1 {
            return scores.shallow_clone();
        }
        // Runs whose beginnings are what has been written last.
        let beginnings = self.0.unfold(1, order, 1).narrow(2, 0, order - 1); // [rows, runs, order − 1]
        let newest = self.0.narrow(1, runs, order - 1).unsqueeze(1);
        let same = beginnings.eq_tensor(&newest).all_dim(2, false); // [rows, runs]
        let completions = self.0.narrow(1, order - 1, runs);
        let met = scores.zeros_like().scatter_add(1, &completions, &same.to_kind(scores.kind()));
        scores.masked_fill(&met.gt(0), f64::NEG_INFINITY)
    }
}

/// Makes impossible what the configuration forbids at this length.
fn restrict(
    scores: &Tensor,
    written: Option<&Written>,
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
    if length <= config.min_length && marks.end >= 0 {
        forbid(&scores, marks.end);
    }
    if let Some(written) = written {
        scores = written.forbid_repeating(&scores, config.no_repeat_ngram as i64);
    }
    if marks.forced(length, config) {
        let forced = scores.full_like(f64::NEG_INFINITY);
        let _ = forced.i((.., marks.end)).fill_(0.0);
        scores = forced;
    }
    scores
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

    fn select(&mut self, rows: &Tensor, sources: Option<&Tensor>) {
        self.state.select(rows, sources);
    }
}
