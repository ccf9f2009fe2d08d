//! What a batch means: its loss, its metrics, and what a prediction is.

pub mod calibration;
pub mod classification;
pub mod correlation;
pub mod criterion;
pub mod entities;
pub mod explanation;
pub mod forecasting;
pub mod image_classification;
pub mod language_model;
pub mod language_modelling;
pub mod masked_lm;
pub mod multi_label;
pub mod question_answering;
pub mod sentence_embedding;
pub mod sequence_classification;
pub mod sequences;
pub mod table_prediction;
pub mod text_classification;
pub mod token_classification;
pub mod translation;

use std::collections::BTreeMap;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tch::{Kind, Tensor};

use crate::data::Batch;
use crate::distributed::Reducer;
use crate::models::Parameters;
pub use crate::training::metrics::Sum;

/// Whether a step is for learning or for looking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Dropout and batch statistics on; the loss is what is minimised (label smoothing, class weights).
    Train,
    /// Everything fixed; the loss is plain, so that it compares across recipes.
    Evaluate,
}

/// What one batch contributes. Sums, not means, so that accumulation, ragged last batches, padding and several processes agree with one
/// large batch.
#[derive(Debug)]
pub struct StepOutput {
    /// Summed loss: a scalar with its graph when training.
    pub loss_sum: Tensor,
    /// Further metrics.
    pub sums: Vec<Sum>,
    /// What the evaluator collects; made in [`Mode::Evaluate`] only.
    pub outcome: Option<Outcome>,
}

/// Predictions with their targets, for metrics that are no sums.
#[derive(Debug)]
pub struct Outcome {
    /// Scores or values, batch first.
    pub prediction: Tensor,
    /// What was asked for, batch first.
    pub target: Tensor,
}

/// A model with the meaning of its batches. The trainer knows nothing else of either.
pub trait Task {
    /// What the data set makes for it.
    type Batch: Batch;

    /// The model's tensors.
    fn parameters(&self) -> &Parameters;

    /// What the names of the parameters of the model's head begin with, where it has one: the layer that fits the data, not the pretraining.
    fn head_name(&self) -> Option<&str> {
        None
    }

    /// The names of the metrics that an evaluation yields, most telling first, so that a recipe's choice is checked before anything starts.
    fn metrics(&self) -> &'static [&'static str];

    /// What the summed loss of a batch is divided by: samples, valid tokens, or the sum of class weights as PyTorch does. Asked for before
    /// the batch moves to the device, so that it costs no synchronisation.
    fn weight(&self, batch: &Self::Batch, mode: Mode) -> Result<f64>;

    /// Loss and metrics of a batch on the device.
    fn step(&mut self, batch: &Self::Batch, mode: Mode) -> Result<StepOutput>;

    /// The collector of metrics that are no sums, if the task has such.
    fn evaluator(&self) -> Option<Box<dyn Evaluator>> {
        None
    }

    /// Adds metrics that follow from the means of an evaluation, as perplexity does from the loss.
    fn derive(&self, _metrics: &mut BTreeMap<String, f64>) {}

    /// Some samples, from all over the data set, of an evaluation by this task's [`Evaluator`] with what they were taken for.
    fn examples(&self, _evaluation: &Evaluation) -> Result<Vec<PredictedSample>> {
        Ok(Vec::new())
    }

    /// What must survive a resume besides parameters, such as the carried state of a language model: named tensors, with the samples of a batch in their
    /// second dimension.
    fn state(&self) -> Result<Vec<(String, Tensor)>> {
        Ok(Vec::new())
    }

    /// Takes a saved state over.
    fn load_state(&mut self, state: Vec<(String, Tensor)>) -> Result<()> {
        match state.first() {
            Some((name, _)) => Err(crate::bad_input!(
                "the checkpoint carries the state `{name}`, which this task does not have"
            )),
            None => Ok(()),
        }
    }
}

/// Scores as losses are computed of them: in float32 under autocast too, as in PyTorch, in float64 where the model is.
pub fn wide(scores: &Tensor) -> Result<Tensor> {
    let kind = if scores.kind() == Kind::Double { Kind::Double } else { Kind::Float };
    Ok(scores.f_to_kind(kind)?)
}

/// Adds `perplexity`, the exponential of a loss that is a mean over tokens.
pub fn derive_perplexity(metrics: &mut BTreeMap<String, f64>) {
    if let Some(loss) = metrics.get("loss") {
        metrics.insert("perplexity".to_owned(), loss.exp());
    }
}

/// A sample with its prediction, in words.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PredictedSample {
    /// Its number in the data set.
    pub sample: usize,
    /// What it is.
    pub label: String,
    /// What the model takes it for.
    pub prediction: String,
    /// How probable the model finds that, where it can tell.
    pub probability: Option<f64>,
}

/// Collects (sample, outcome) over an evaluation and makes metrics of all of them together.
pub trait Evaluator {
    /// Takes the outcome of a batch with the numbers of its samples.
    fn add(&mut self, samples: &[usize], outcome: &Outcome) -> Result<()>;

    /// Brings the outcomes of all processes together, each sample once.
    fn gather(&mut self, reducer: &mut dyn Reducer) -> Result<()>;

    /// The metrics, and a description for reports and for `eval --format json`.
    fn finish(self: Box<Self>) -> Result<Evaluation>;
}

/// What an evaluator found.
#[derive(Clone, Debug, Default)]
pub struct Evaluation {
    /// Metrics by name.
    pub metrics: BTreeMap<String, f64>,
    /// Tables and counts of the task's own kind (`classes`, `confusion` for classification), as JSON.
    pub details: Value,
}
