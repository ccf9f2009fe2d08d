//! A class, or several, for each sequence.

use anyhow::Result;
use tch::Tensor;

use super::classification::{ClassificationEvaluator, METRICS};
use super::criterion::{ClassificationCriterion, ClassificationLoss};
use super::image_classification::listed;
use super::multi_label::{self, MultiLabelEvaluator};
use super::{Evaluation, Evaluator, Mode, Outcome, PredictedSample, StepOutput, Sum};
use crate::data::sequences::SequenceBatch;
use crate::models::Parameters;
use crate::models::recurrent::SequenceClassifier;

/// A network with its loss.
pub struct SequenceClassification {
    /// Its tensors.
    pub parameters: Parameters,
    network: SequenceClassifier,
    classes: Vec<String>,
    criterion: ClassificationCriterion,
}

impl SequenceClassification {
    /// Puts the parts together.
    ///
    /// # Errors
    /// The number of class weights is not the number of classes.
    pub fn new(
        parameters: Parameters,
        network: SequenceClassifier,
        classes: Vec<String>,
        loss: &ClassificationLoss,
    ) -> Result<Self> {
        let criterion = ClassificationCriterion::new(loss, classes.len(), parameters.device())?;
        Ok(Self { parameters, network, classes, criterion })
    }

    /// Names of the classes in the order of the outputs.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// The network.
    pub fn network(&self) -> &SequenceClassifier {
        &self.network
    }

    /// The loss, which also knows what probabilities are.
    pub fn criterion(&self) -> &ClassificationCriterion {
        &self.criterion
    }

    /// The metrics of an evaluation.
    pub fn metrics(&self) -> &'static [&'static str] {
        if self.criterion.is_multi_label() { multi_label::METRICS } else { METRICS }
    }

    /// What the loss of a batch is divided by.
    pub fn weight(&self, batch: &SequenceBatch, mode: Mode) -> Result<f64> {
        self.criterion.weight(&batch.targets, mode)
    }

    /// Inputs with their lengths to logits `[batch, classes]`.
    pub fn forward(&self, inputs: &Tensor, lengths: &Tensor, mode: Mode) -> Tensor {
        self.network.forward(inputs, lengths, mode == Mode::Train)
    }

    /// Loss and metrics of a batch.
    pub fn step(&self, batch: &SequenceBatch, mode: Mode) -> Result<StepOutput> {
        let logits = self.forward(&batch.inputs, &batch.lengths, mode);
        let loss_sum = self.criterion.loss_sum(&logits, &batch.targets, mode)?;
        let right = self.criterion.right(&logits.detach(), &batch.targets)?;
        let outcome = (mode == Mode::Evaluate)
            .then(|| Outcome { prediction: logits.detach(), target: batch.targets.shallow_clone() });
        let sums = vec![Sum { name: "accuracy", total: right, weight: batch.targets.size()[0] as f64 }];
        Ok(StepOutput { loss_sum, sums, outcome })
    }

    /// The collector of the other metrics.
    pub fn evaluator(&self) -> Box<dyn Evaluator> {
        let classes = self.classes.clone();
        match self.criterion.is_multi_label() {
            true => Box::new(MultiLabelEvaluator::new(classes)),
            false => Box::new(ClassificationEvaluator::new(classes)),
        }
    }

    /// Samples with what they were taken for.
    pub fn examples(&self, evaluation: &Evaluation) -> Result<Vec<PredictedSample>> {
        listed(&evaluation.details["examples"], &self.classes, self.criterion.is_multi_label())
    }
}
