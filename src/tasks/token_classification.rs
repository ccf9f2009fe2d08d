//! A tag for each word: named entities, parts of speech.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::json;
use tch::{Kind, Reduction, Tensor};

use super::classification::ClassScores;
use super::entities::{count_entities, total};
use super::{Evaluation, Evaluator, Mode, Outcome, StepOutput, Sum, Task, wide};
use crate::data::encoder_texts::TaggedBatch;
use crate::distributed::Reducer;
use crate::models::Parameters;
use crate::models::encoders::EncoderModel;

/// What an evaluation yields: scores of entities as seqeval's, and the share of words with the right tag.
pub const METRICS: &[&str] = &["loss", "f1", "precision", "recall", "accuracy"];

const NO_TAG: i64 = crate::data::encoder_texts::NO_TAG;

/// An encoder with a classifier of tokens.
pub struct TokenClassification {
    parameters: Parameters,
    model: EncoderModel,
    tags: Vec<String>,
    label_smoothing: f64,
}

impl TokenClassification {
    /// Puts the parts together.
    pub fn new(parameters: Parameters, model: EncoderModel, tags: Vec<String>, label_smoothing: f64) -> Self {
        Self { parameters, model, tags, label_smoothing }
    }

    /// The network.
    pub fn model(&self) -> &EncoderModel {
        &self.model
    }

    /// The tags in the order of the outputs.
    pub fn tags(&self) -> &[String] {
        &self.tags
    }
}

impl Task for TokenClassification {
    type Batch = TaggedBatch;

    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn head_name(&self) -> Option<&str> {
        self.model.head_name()
    }

    fn metrics(&self) -> &'static [&'static str] {
        METRICS
    }

    fn weight(&self, batch: &TaggedBatch, _mode: Mode) -> Result<f64> {
        Ok(batch.counted as f64)
    }

    fn step(&mut self, batch: &TaggedBatch, mode: Mode) -> Result<StepOutput> {
        let train = mode == Mode::Train;
        let scores = wide(&self.model.forward(&batch.tokens.inputs(), train))?; // [batch, longest, tags]
        let smoothing = if train { self.label_smoothing } else { 0.0 };
        let flat = scores.f_flatten(0, 1)?;
        let targets = batch.tags.f_flatten(0, -1)?;
        let loss_sum =
            flat.f_cross_entropy_loss(&targets, None::<&Tensor>, Reduction::Sum, NO_TAG, smoothing)?;
        let best = scores.detach().f_argmax(-1, false)?; // [batch, longest]
        let right = best.f_eq_tensor(&batch.tags)?.f_sum(Kind::Float)?;
        let outcome = (mode == Mode::Evaluate)
            .then(|| Outcome { prediction: best, target: batch.tags.shallow_clone() });
        let sums = vec![Sum { name: "accuracy", total: right, weight: batch.counted as f64 }];
        Ok(StepOutput { loss_sum, sums, outcome })
    }

    fn evaluator(&self) -> Option<Box<dyn Evaluator>> {
        Some(Box::new(TagEvaluator { tags: self.tags.clone(), sentences: BTreeMap::new() }))
    }
}

/// Collects given and predicted tags by sentence.
struct TagEvaluator {
    tags: Vec<String>,
    sentences: BTreeMap<usize, Vec<(i64, i64)>>,
}

impl Evaluator for TagEvaluator {
    fn add(&mut self, samples: &[usize], outcome: &Outcome) -> Result<()> {
        let predicted = Vec::<Vec<i64>>::try_from(outcome.prediction.f_to_kind(Kind::Int64)?)?;
        let given = Vec::<Vec<i64>>::try_from(&outcome.target)?;
        for ((&sample, predicted), given) in samples.iter().zip(predicted).zip(given) {
            let counted = given.into_iter().zip(predicted).filter(|(given, _)| *given != NO_TAG).collect();
            self.sentences.insert(sample, counted);
        }
        Ok(())
    }

    fn gather(&mut self, reducer: &mut dyn Reducer) -> Result<()> {
        if reducer.world_size() == 1 {
            return Ok(());
        }
        let own = std::mem::take(&mut self.sentences);
        let rows = own.iter().flat_map(|(&sample, tags)| {
            tags.iter().enumerate().flat_map(move |(word, &(given, predicted))| {
                [sample as f64, word as f64, given as f64, predicted as f64]
            })
        });
        let gathered = reducer.gather(rows.collect())?;
        let mut words: BTreeMap<(usize, usize), (i64, i64)> = BTreeMap::new();
        for row in gathered.chunks_exact(4) {
            words.insert((row[0] as usize, row[1] as usize), (row[2] as i64, row[3] as i64));
        }
        for ((sample, _), tags) in words {
            self.sentences.entry(sample).or_default().push(tags);
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Evaluation> {
        let name = |tag: i64| self.tags[tag as usize].as_str();
        let sentences: Vec<(Vec<&str>, Vec<&str>)> = self
            .sentences
            .values()
            .map(|words| words.iter().map(|&(given, predicted)| (name(given), name(predicted))).unzip())
            .collect();
        let counts = count_entities(&sentences);
        let all = total(&counts);
        let metrics = BTreeMap::from([
            ("precision".to_owned(), all.precision()),
            ("recall".to_owned(), all.recall()),
            ("f1".to_owned(), all.f1()),
        ]);
        let classes: Vec<ClassScores> = counts
            .iter()
            .map(|(kind, counts)| ClassScores {
                class: kind.clone(),
                precision: counts.precision(),
                recall: counts.recall(),
                f1: counts.f1(),
                support: counts.support,
                auroc: None,
                average_precision: None,
            })
            .collect();
        Ok(Evaluation { metrics, details: json!({ "classes": classes }) })
    }
}
