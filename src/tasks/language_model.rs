//! Decoder language models: cross-entropy of the next token.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use tch::{Kind, Reduction, Tensor};

use super::{Mode, StepOutput, Sum, Task, wide};
use crate::bail_input;
use crate::data::language::{LanguageBatch, Packed};
use crate::data::translation::IGNORED;
use crate::generation::search::Writer;
use crate::models::Parameters;
use crate::models::decoders::{Decoder, DecoderCache, Layout};

/// What an evaluation yields, most telling first.
pub const METRICS: &[&str] = &["loss", "perplexity", "accuracy"];

/// A decoder with its loss.
pub struct LanguageModel {
    parameters: Parameters,
    model: Box<dyn Decoder>,
}

impl LanguageModel {
    /// Puts the parts together.
    pub fn new(parameters: Parameters, model: Box<dyn Decoder>) -> Self {
        Self { parameters, model }
    }

    /// The network.
    pub fn model(&self) -> &dyn Decoder {
        self.model.as_ref()
    }

    /// Scores of the token after each, `[batch, length, vocabulary]`.
    pub fn logits(&self, tokens: &Tensor, packed: Option<&Packed>, train: bool) -> Tensor {
        let Some(Packed { texts, positions }) = packed else {
            return self.model.forward(tokens, Layout::default(), train);
        };
        // A token sees its own text; beyond the last text padding sees padding, so that no row of scores is empty.
        let mask = texts.unsqueeze(2).eq_tensor(&texts.unsqueeze(1)).unsqueeze(1); // [batch, 1, length, length]
        self.model.forward(tokens, Layout { positions: Some(positions), mask: Some(&mask) }, train)
    }
}

impl Task for LanguageModel {
    type Batch = LanguageBatch;

    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn metrics(&self) -> &'static [&'static str] {
        METRICS
    }

    fn weight(&self, batch: &LanguageBatch, _mode: Mode) -> Result<f64> {
        Ok(batch.learned as f64)
    }

    fn step(&mut self, batch: &LanguageBatch, mode: Mode) -> Result<StepOutput> {
        let logits = self.logits(&batch.tokens, batch.packed.as_ref(), mode == Mode::Train);
        let logits = wide(&logits.flatten(0, 1))?; // [batch · length, vocabulary]
        let labels = batch.labels.f_flatten(0, -1)?;
        let loss_sum = logits
            .f_cross_entropy_loss(&labels, None::<&Tensor>, Reduction::Sum, IGNORED, 0.0)
            .context("computing the loss")?;
        let sums = match mode {
            // A large vocabulary is not searched in every step.
            Mode::Train => Vec::new(),
            Mode::Evaluate => {
                let correct = logits.f_argmax(-1, false)?.f_eq_tensor(&labels)?.f_sum(Kind::Int64)?;
                vec![Sum { name: "accuracy", total: correct, weight: batch.learned as f64 }]
            }
        };
        Ok(StepOutput { loss_sum, sums, outcome: None })
    }

    fn derive(&self, metrics: &mut BTreeMap<String, f64>) {
        super::derive_perplexity(metrics);
    }
}

/// A decoder writing on, after prompts that it has read.
pub struct TextWriter<'a> {
    model: &'a dyn Decoder,
    cache: DecoderCache,
    /// `[rows, seen]`, true where there is a token; none where all prompts are equally long.
    seen: Option<Tensor>,
    /// `[rows, 1]`: the place of the next token in its text.
    position: Tensor,
}

impl<'a> TextWriter<'a> {
    /// Reads all but the last token of each of `prompts`, which are filled up on the left, and returns the writer with the last tokens `[rows]`, from
    /// which writing begins.
    ///
    /// # Errors
    /// A prompt without a token, or tensors that cannot be made.
    pub fn new(model: &'a dyn Decoder, prompts: &[Vec<i64>], device: tch::Device) -> Result<(Self, Tensor)> {
        let _guard = tch::no_grad_guard();
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        if prompts.iter().any(Vec::is_empty) {
            bail_input!("a prompt is empty: a text needs a token to begin with");
        }
        let is_even = prompts.iter().all(|prompt| prompt.len() == longest);
        let mut tokens = Vec::with_capacity(prompts.len() * longest);
        for prompt in prompts {
            tokens.resize(tokens.len() + longest - prompt.len(), 0);
            tokens.extend_from_slice(prompt);
        }
        let tokens = Tensor::f_from_slice(&tokens)?.f_view([prompts.len() as i64, longest as i64])?;
        let tokens = tokens.f_to_device(device)?; // [rows, longest]
        let lengths: Vec<i64> = prompts.iter().map(|prompt| prompt.len() as i64).collect();
        let lengths = Tensor::f_from_slice(&lengths)?.f_to_device(device)?.f_unsqueeze(1)?;
        let mut writer =
            Self { model, cache: DecoderCache::new(model.layers()), seen: None, position: lengths - 1 };
        let before = longest as i64 - 1;
        if before > 0 {
            let places = Tensor::f_arange(before, (Kind::Int64, device))?.f_unsqueeze(0)?;
            let positions = places - before + &writer.position; // [rows, before], below 0 where nothing is
            let there = positions.f_ge(0)?;
            let read = tokens.f_narrow(1, 0, before)?;
            if is_even {
                let _ = model.read(&read, Layout::default(), &mut writer.cache, false);
            } else {
                let positions = positions.f_clamp_min(0)?;
                let mask = there.f_unsqueeze(1)?.f_unsqueeze(1)?; // [rows, 1, 1, before]
                let layout = Layout { positions: Some(&positions), mask: Some(&mask) };
                let _ = model.read(&read, layout, &mut writer.cache, false);
                writer.seen = Some(there);
            }
        }
        Ok((writer, tokens.f_select(1, before)?))
    }

    /// How many tokens the longest row has.
    pub fn len(&self) -> i64 {
        self.cache.len()
    }

    /// Whether nothing has been read.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Writer for TextWriter<'_> {
    fn step(&mut self, tokens: &Tensor) -> Tensor {
        let tokens = tokens.unsqueeze(1); // [rows, 1]
        self.seen = self.seen.take().map(|seen| Tensor::cat(&[&seen, &seen.narrow(1, 0, 1).ones_like()], 1));
        let mask = self.seen.as_ref().map(|seen| seen.unsqueeze(1).unsqueeze(1));
        let layout = Layout { positions: Some(&self.position), mask: mask.as_ref() };
        let logits = self.model.decode(&tokens, layout, &mut self.cache, false);
        self.position = &self.position + 1;
        logits.squeeze_dim(1) // [rows, vocabulary]
    }

    fn select(&mut self, rows: &Tensor, _sources: Option<&Tensor>) {
        self.cache.select(rows);
        self.position = self.position.index_select(0, rows);
        self.seen = self.seen.take().map(|seen| seen.index_select(0, rows));
    }
}
