//! Texts made of texts: cross-entropy of the next token of the target, and BLEU of what is decoded.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result};
use serde_json::json;
use tch::{Kind, Reduction, Tensor};

use super::{Evaluation, Evaluator, Mode, Outcome, PredictedSample, StepOutput, Sum, Task, wide};
use crate::data::translation::{IGNORED, PairTokenizers, TranslationBatch};
use crate::distributed::Reducer;
use crate::generation::search::{Hypothesis, Marks, SearchConfig, TargetWriter, search};
use crate::models::Parameters;
use crate::models::encoder_decoder::EncoderDecoder;
use crate::scoring::TranslationScores;

/// What an evaluation yields, most telling first.
pub const METRICS: &[&str] = &["bleu", "chrf", "ter", "loss", "perplexity", "accuracy"];
/// The same where nothing is decoded.
const METRICS_OF_LOSS: &[&str] = &["loss", "perplexity", "accuracy"];
/// Translations that an evaluation lists.
const LISTED: usize = 10;

/// An encoder-decoder with its tokenizers and its loss.
pub struct Translation {
    parameters: Parameters,
    model: Box<dyn EncoderDecoder>,
    tokenizers: Arc<PairTokenizers>,
    marks: Marks,
    label_smoothing: f64,
    /// How targets are decoded in evaluation; not at all if none.
    search: Option<SearchConfig>,
}

impl Translation {
    /// Puts the parts together. In evaluation the targets are decoded as `search` says; without it there is no BLEU.
    pub fn new(
        parameters: Parameters,
        model: Box<dyn EncoderDecoder>,
        tokenizers: Arc<PairTokenizers>,
        marks: Marks,
        label_smoothing: f64,
        search: Option<SearchConfig>,
    ) -> Self {
        Self { parameters, model, tokenizers, marks, label_smoothing, search }
    }

    /// The network.
    pub fn model(&self) -> &dyn EncoderDecoder {
        self.model.as_ref()
    }

    /// The tokenizers.
    pub fn tokenizers(&self) -> &Arc<PairTokenizers> {
        &self.tokenizers
    }

    /// What texts begin and end with.
    pub fn marks(&self) -> &Marks {
        &self.marks
    }

    /// Decodes another way in evaluations from now on.
    pub fn set_search(&mut self, search: Option<SearchConfig>) {
        self.search = search;
    }

    /// The best target texts of sources, `[batch, length]` with their `mask`.
    ///
    /// # Errors
    /// Scores that cannot be copied from the device.
    pub fn write(
        &self,
        source: &Tensor,
        mask: &Tensor,
        config: &SearchConfig,
    ) -> Result<Vec<Vec<Hypothesis>>> {
        let mut writer = TargetWriter::new(self.model.as_ref(), source, mask);
        search(&mut writer, source.size()[0] as usize, &self.marks, config, source.device())
    }
}

impl Task for Translation {
    type Batch = TranslationBatch;

    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn metrics(&self) -> &'static [&'static str] {
        if self.search.is_some() { METRICS } else { METRICS_OF_LOSS }
    }

    fn weight(&self, batch: &TranslationBatch, _mode: Mode) -> Result<f64> {
        Ok(batch.tokens as f64)
    }

    fn step(&mut self, batch: &TranslationBatch, mode: Mode) -> Result<StepOutput> {
        let train = mode == Mode::Train;
        let logits = self.model.forward(&batch.source, &batch.mask, &batch.target, train);
        let logits = wide(&logits.flatten(0, 1))?; // [batch · target, vocabulary]
        let labels = batch.labels.f_flatten(0, -1)?;
        let smoothing = if train { self.label_smoothing } else { 0.0 };
        let loss_sum = logits
            .f_cross_entropy_loss(&labels, None::<&Tensor>, Reduction::Sum, IGNORED, smoothing)
            .context("computing the loss")?;
        let sums = match mode {
            // A large vocabulary is not searched in every step.
            Mode::Train => Vec::new(),
            Mode::Evaluate => {
                let correct = logits.f_argmax(-1, false)?.f_eq_tensor(&labels)?.f_sum(Kind::Int64)?;
                vec![Sum { name: "accuracy", total: correct, weight: batch.tokens as f64 }]
            }
        };
        let outcome = match (&self.search, train) {
            (Some(config), false) => {
                let texts = self.write(&batch.source, &batch.mask, config)?;
                Some(Outcome {
                    prediction: written(&texts, self.marks.end)?,
                    target: batch.references.shallow_clone(),
                })
            }
            _ => None,
        };
        Ok(StepOutput { loss_sum, sums, outcome })
    }

    fn derive(&self, metrics: &mut BTreeMap<String, f64>) {
        super::derive_perplexity(metrics);
    }

    fn evaluator(&self) -> Option<Box<dyn Evaluator>> {
        self.search.as_ref()?;
        Some(Box::new(TextEvaluator {
            tokenizers: self.tokenizers.clone(),
            end: self.marks.end,
            scores: TranslationScores::default(),
            listed: Vec::new(),
        }))
    }

    fn examples(&self, evaluation: &Evaluation) -> Result<Vec<PredictedSample>> {
        Ok(serde_json::from_value(evaluation.details["translations"].clone()).unwrap_or_default())
    }
}

/// The best text of each source as rows of tokens, filled up with the end, on the CPU.
fn written(texts: &[Vec<Hypothesis>], end: i64) -> Result<Tensor> {
    let best: Vec<&[i64]> =
        texts.iter().map(|found| found.first().map_or(&[][..], |text| text.tokens.as_slice())).collect();
    let longest = best.iter().map(|tokens| tokens.len()).max().unwrap_or(0);
    let mut rows = Vec::with_capacity(best.len() * longest);
    for tokens in &best {
        rows.extend_from_slice(tokens);
        rows.resize(rows.len() + longest - tokens.len(), end);
    }
    Ok(Tensor::f_from_slice(&rows)?.f_view([best.len() as i64, longest as i64])?)
}

/// Collects decoded targets beside what was written in the data.
struct TextEvaluator {
    tokenizers: Arc<PairTokenizers>,
    end: i64,
    scores: TranslationScores,
    listed: Vec<PredictedSample>,
}

impl Evaluator for TextEvaluator {
    fn add(&mut self, samples: &[usize], outcome: &Outcome) -> Result<()> {
        let rows = Vec::<Vec<i64>>::try_from(&outcome.prediction).context("copying decoded tokens")?;
        let references = Vec::<Vec<u8>>::try_from(&outcome.target).context("copying references")?;
        for ((&sample, row), reference) in samples.iter().zip(rows).zip(references) {
            let length = row.iter().position(|&token| token == self.end).unwrap_or(row.len());
            let hypothesis = self.tokenizers.decode(&row[..length])?;
            let length = reference.iter().position(|&byte| byte == 0).unwrap_or(reference.len());
            let reference = String::from_utf8_lossy(&reference[..length]);
            self.scores.add(&hypothesis, &[&reference]);
            // The first ones of the data set, whatever the order of the batches.
            if sample < LISTED {
                let label = reference.into_owned();
                self.listed.push(PredictedSample {
                    sample,
                    label,
                    prediction: hypothesis,
                    probability: None,
                });
            }
        }
        Ok(())
    }

    fn gather(&mut self, reducer: &mut dyn Reducer) -> Result<()> {
        let counts = self.scores.counts();
        let sums = counts.into_iter().map(|count| reducer.sum(count)).collect::<Result<Vec<_>>>()?;
        self.scores.set_counts(&sums);
        if reducer.world_size() == 1 {
            return Ok(());
        }
        let listed = reducer.gather_texts(serde_json::to_string(&self.listed)?)?;
        self.listed.clear();
        for part in listed {
            self.listed.extend(serde_json::from_str::<Vec<PredictedSample>>(&part)?);
        }
        self.listed.sort_by_key(|listed| listed.sample);
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<Evaluation> {
        self.listed.sort_by_key(|one| one.sample);
        let mut details = self.scores.details();
        details["translations"] = json!(self.listed);
        Ok(Evaluation { metrics: self.scores.metrics().into_iter().collect(), details })
    }
}
