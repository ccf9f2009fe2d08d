//! Texts: one label, several labels, or a value for each.

use anyhow::{Context, Result};
use tch::{Kind, Reduction, Tensor};

use super::classification::{self, ClassificationEvaluator};
use super::correlation::CorrelationEvaluator;
use super::criterion::ClassificationLoss;
use super::image_classification::listed;
use super::multi_label::{self, MultiLabelEvaluator};
use super::{Evaluation, Evaluator, Mode, Outcome, PredictedSample, StepOutput, Sum, Task, wide};
use crate::bail_input;
use crate::data::encoder_texts::{Goal, LabelledBatch, TokenBatch};
use crate::models::Parameters;
use crate::models::encoders::EncoderModel;

/// An encoder with a classifier and its loss.
pub struct TextClassification {
    parameters: Parameters,
    model: EncoderModel,
    goal: Goal,
    classes: Vec<String>,
    loss: ClassificationLoss,
    /// The class weights where the labels are weighed (CPU) and where the loss is computed.
    class_weights: Option<(Tensor, Tensor)>,
}

impl TextClassification {
    /// Puts the parts together. With the goal [`Goal::Value`] there are no classes.
    ///
    /// # Errors
    /// The number of class weights is not the number of classes.
    pub fn new(
        parameters: Parameters,
        model: EncoderModel,
        goal: Goal,
        classes: Vec<String>,
        loss: ClassificationLoss,
    ) -> Result<Self> {
        let class_weights = match &loss.class_weights {
            Some(weights) if weights.len() != classes.len() => bail_input!(
                "training.class_weights has {} values for {} classes",
                weights.len(),
                classes.len()
            ),
            Some(weights) => {
                let weights = Tensor::f_from_slice(weights)?.f_to_kind(Kind::Float)?;
                let moved = weights.f_to_device(parameters.device())?;
                Some((weights, moved))
            }
            None => None,
        };
        Ok(Self { parameters, model, goal, classes, loss, class_weights })
    }

    /// The network.
    pub fn model(&self) -> &EncoderModel {
        &self.model
    }

    /// What a label is.
    pub fn goal(&self) -> Goal {
        self.goal
    }

    /// Names of the labels in the order of the outputs.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Scores of a batch, `[batch, labels]` float32, or float64 where the model is.
    pub fn scores(&self, tokens: &TokenBatch, mode: Mode) -> Result<Tensor> {
        wide(&self.model.forward(&tokens.inputs(), mode == Mode::Train))
    }

    /// What scores stand for: probabilities of classes or of each label, or values.
    pub fn probabilities(&self, scores: &Tensor) -> Result<Tensor> {
        Ok(match self.goal {
            Goal::Class => scores.f_softmax(-1, Kind::Float)?,
            Goal::Labels => scores.f_sigmoid()?,
            Goal::Value => scores.shallow_clone(),
        })
    }

    /// The summed loss. Computed in float32 under autocast too, as in PyTorch.
    fn loss_sum(&self, scores: &Tensor, targets: &Tensor, mode: Mode) -> Result<Tensor> {
        let kind = scores.kind();
        let targets = &match targets.is_floating_point() {
            true => targets.f_to_kind(kind)?,
            false => targets.shallow_clone(),
        };
        match self.goal {
            Goal::Class => {
                let (weights, smoothing) = match mode {
                    Mode::Train => {
                        let weights = self.class_weights.as_ref().map(|(_, weights)| weights.f_to_kind(kind));
                        (weights.transpose()?, self.loss.label_smoothing)
                    }
                    Mode::Evaluate => (None, 0.0),
                };
                scores
                    .f_cross_entropy_loss(targets, weights, Reduction::Sum, -100, smoothing)
                    .context("computing the cross-entropy")
            }
            Goal::Labels => {
                let none = None::<&Tensor>;
                let losses =
                    scores.f_binary_cross_entropy_with_logits(targets, none, none, Reduction::None)?;
                // [batch, labels] to the sum over the batch of the mean over labels
                Ok(losses.f_mean_dim(-1i64, false, kind)?.f_sum(kind)?)
            }
            Goal::Value => Ok(scores.f_squeeze_dim(-1)?.f_mse_loss(targets, Reduction::Sum)?),
        }
    }

    fn accuracy(&self, scores: &Tensor, targets: &Tensor) -> Result<Option<Tensor>> {
        let right = match self.goal {
            Goal::Class => scores.f_argmax(-1, false)?.f_eq_tensor(targets)?,
            Goal::Labels => scores.f_ge(0.0)?.f_eq_tensor(&targets.f_gt(0.5)?)?.f_all_dim(-1, false)?,
            Goal::Value => return Ok(None),
        };
        Ok(Some(right.f_sum(Kind::Float)?))
    }
}

impl Task for TextClassification {
    type Batch = LabelledBatch;

    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn head_name(&self) -> Option<&str> {
        self.model.head_name()
    }

    fn metrics(&self) -> &'static [&'static str] {
        match self.goal {
            Goal::Class => classification::METRICS,
            Goal::Labels => multi_label::METRICS,
            Goal::Value => super::correlation::METRICS,
        }
    }

    fn weight(&self, batch: &LabelledBatch, mode: Mode) -> Result<f64> {
        match &self.class_weights {
            Some((weights, _)) if mode == Mode::Train && self.goal == Goal::Class => {
                Ok(weights.f_index_select(0, &batch.targets)?.f_sum(Kind::Double)?.f_double_value(&[])?)
            }
            _ => Ok(batch.targets.size()[0] as f64),
        }
    }

    fn step(&mut self, batch: &LabelledBatch, mode: Mode) -> Result<StepOutput> {
        let scores = self.scores(&batch.tokens, mode)?;
        let loss_sum = self.loss_sum(&scores, &batch.targets, mode)?;
        let scores = scores.detach();
        let weight = batch.targets.size()[0] as f64;
        let right = self.accuracy(&scores, &batch.targets)?;
        let sums = right.into_iter().map(|total| Sum { name: "accuracy", total, weight }).collect();
        let outcome = (mode == Mode::Evaluate)
            .then(|| Outcome { prediction: scores, target: batch.targets.shallow_clone() });
        Ok(StepOutput { loss_sum, sums, outcome })
    }

    fn evaluator(&self) -> Option<Box<dyn Evaluator>> {
        let classes = self.classes.clone();
        Some(match self.goal {
            Goal::Class => Box::new(ClassificationEvaluator::new(classes)),
            Goal::Labels => Box::new(MultiLabelEvaluator::new(classes)),
            Goal::Value => Box::<CorrelationEvaluator>::default(),
        })
    }

    fn examples(&self, evaluation: &Evaluation) -> Result<Vec<PredictedSample>> {
        match self.goal {
            Goal::Value => Ok(Vec::new()),
            goal => listed(&evaluation.details["examples"], &self.classes, goal == Goal::Labels),
        }
    }
}
