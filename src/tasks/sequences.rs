//! Any task on sequences, as one type for the family `rnn`.

use anyhow::{Result, bail};
use tch::Tensor;

use super::forecasting::{self, Forecasting};
use super::language_modelling::{self, LanguageModelling};
use super::sequence_classification::SequenceClassification;
use super::{Evaluation, Evaluator, Mode, PredictedSample, StepOutput, Task};
use crate::data::sequences::AnyBatch;
use crate::models::Parameters;

/// What a recurrent network does.
pub enum SequenceTask {
    /// Tells classes apart.
    Classify(SequenceClassification),
    /// Goes on with texts.
    Lm(LanguageModelling),
    /// Goes on with series.
    Forecast(Forecasting),
}

impl Task for SequenceTask {
    type Batch = AnyBatch;

    fn parameters(&self) -> &Parameters {
        match self {
            Self::Classify(task) => &task.parameters,
            Self::Lm(task) => &task.parameters,
            Self::Forecast(task) => &task.parameters,
        }
    }

    fn head_name(&self) -> Option<&str> {
        Some("output")
    }

    fn metrics(&self) -> &'static [&'static str] {
        match self {
            Self::Classify(task) => task.metrics(),
            Self::Lm(_) => language_modelling::METRICS,
            Self::Forecast(_) => forecasting::METRICS,
        }
    }

    fn weight(&self, batch: &AnyBatch, mode: Mode) -> Result<f64> {
        match (self, batch) {
            (Self::Classify(task), AnyBatch::Labelled(batch)) => task.weight(batch, mode),
            (Self::Lm(_), AnyBatch::Text(batch)) => Ok(batch.count),
            (Self::Forecast(task), AnyBatch::Series(batch)) => Ok(task.weight(batch)),
            _ => bail!("a batch of another task"),
        }
    }

    fn step(&mut self, batch: &AnyBatch, mode: Mode) -> Result<StepOutput> {
        match (self, batch) {
            (Self::Classify(task), AnyBatch::Labelled(batch)) => task.step(batch, mode),
            (Self::Lm(task), AnyBatch::Text(batch)) => task.step(batch, mode),
            (Self::Forecast(task), AnyBatch::Series(batch)) => task.step(batch, mode),
            _ => bail!("a batch of another task"),
        }
    }

    fn evaluator(&self) -> Option<Box<dyn Evaluator>> {
        Some(match self {
            Self::Classify(task) => task.evaluator(),
            Self::Lm(task) => task.evaluator(),
            Self::Forecast(task) => task.evaluator(),
        })
    }

    fn examples(&self, evaluation: &Evaluation) -> Result<Vec<PredictedSample>> {
        match self {
            Self::Classify(task) => task.examples(evaluation),
            Self::Lm(_) | Self::Forecast(_) => Ok(Vec::new()),
        }
    }

    fn state(&self) -> Result<Vec<(String, Tensor)>> {
        match self {
            Self::Lm(task) => Ok(task.state()),
            Self::Classify(_) | Self::Forecast(_) => Ok(Vec::new()),
        }
    }

    fn load_state(&mut self, state: Vec<(String, Tensor)>) -> Result<()> {
        match (self, state.first()) {
            (Self::Lm(task), _) => task.load_state(state),
            (_, None) => Ok(()),
            (_, Some((name, _))) => Err(crate::bad_input!(
                "the checkpoint carries the state `{name}`, which this task does not have"
            )),
        }
    }
}
