//! One label for each image: cross-entropy, accuracy, and per-class scores.

use anyhow::{Context, Result};
use tch::{Kind, Reduction, Tensor};

use super::classification::{ClassificationEvaluator, Judged, METRICS};
use super::{Evaluation, Evaluator, Mode, Outcome, PredictedSample, StepOutput, Sum, Task};
use crate::bail_input;
use crate::data::images::{ImageBatch, Normalisation};
use crate::models::image::{ImageModel, WeightedScores};
use crate::models::{Parameters, Role};
use crate::training::fine_tuning::is_of;

/// How the loss differs from plain cross-entropy in training.
#[derive(Clone, Debug, Default)]
pub struct ClassificationLoss {
    /// `CrossEntropyLoss(label_smoothing=…)`.
    pub label_smoothing: f64,
    /// `CrossEntropyLoss(weight=…)`: one factor for each class.
    pub class_weights: Option<Vec<f64>>,
}

/// A network with its input normalisation and its loss.
pub struct ImageClassification {
    parameters: Parameters,
    /// The parameters below the head.
    backbone: Vec<Tensor>,
    model: Box<dyn ImageModel>,
    normalisation: Normalisation,
    classes: Vec<String>,
    label_smoothing: f64,
    /// The class weights where the labels are weighed (CPU) and where the loss is computed.
    class_weights: Option<(Tensor, Tensor)>,
    channels_last: bool,
}

impl ImageClassification {
    /// Puts the parts together.
    ///
    /// # Errors
    /// The number of class weights is not the number of classes.
    pub fn new(
        parameters: Parameters,
        model: Box<dyn ImageModel>,
        normalisation: &Normalisation,
        classes: Vec<String>,
        loss: &ClassificationLoss,
        channels_last: bool,
    ) -> Result<Self> {
        let device = parameters.device();
        let class_weights = match &loss.class_weights {
            Some(weights) if weights.len() != classes.len() => {
                bail_input!(
                    "training.class_weights has {} values for {} classes",
                    weights.len(),
                    classes.len()
                )
            }
            Some(weights) => {
                let weights = Tensor::f_from_slice(weights)?.f_to_kind(Kind::Float)?;
                Some((weights.shallow_clone(), weights.f_to_device(device)?))
            }
            None => None,
        };
        if channels_last {
            parameters.to_channels_last()?;
        }
        let head = model.head_name();
        let below = parameters
            .entries()
            .into_iter()
            .filter(|entry| entry.role == Role::Parameter && !is_of(&entry.name, head));
        let backbone = below.map(|entry| entry.tensor).collect();
        Ok(Self {
            backbone,
            normalisation: normalisation.to_device(device)?,
            label_smoothing: loss.label_smoothing,
            parameters,
            model,
            classes,
            class_weights,
            channels_last,
        })
    }

    /// Names of the classes in the order of the outputs.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Normalised images, `[batch, channels, height, width]` floats, to logits `[batch, classes]`.
    pub fn forward(&self, images: &Tensor, mode: Mode) -> Tensor {
        self.model.forward(images, mode == Mode::Train)
    }

    /// What the backbone makes of a batch of pixels: the input of the head, on the model's device.
    pub fn features(&self, pixels: &Tensor) -> Result<Tensor> {
        Ok(self.model.features(&self.normalise(pixels)?, false))
    }

    /// Whether nothing below the head learns, so that its features of an image are always the same.
    pub fn backbone_is_frozen(&self) -> bool {
        !self.backbone.iter().any(Tensor::requires_grad)
    }

    /// The logits of a batch, and those of auxiliary classifiers.
    fn scores(&self, images: &Tensor, mode: Mode) -> Result<(Tensor, Vec<WeightedScores>)> {
        let train = mode == Mode::Train;
        if images.kind() != Kind::Uint8 {
            return Ok((self.model.head(images, train), Vec::new()));
        }
        let images = self.normalise(images)?;
        Ok(match mode {
            // Dropout belongs to what learns.
            Mode::Train if self.backbone_is_frozen() => {
                (self.model.head(&self.model.features(&images, false), true), Vec::new())
            }
            Mode::Train => self.model.learn(&images),
            Mode::Evaluate => (self.model.forward(&images, false), Vec::new()),
        })
    }

    /// Bytes to what the network takes.
    pub fn normalise(&self, pixels: &Tensor) -> Result<Tensor> {
        let images = self.normalisation.apply(pixels)?;
        match self.channels_last {
            true => crate::native::layout::channels_last(&images),
            false => Ok(images),
        }
    }
}

impl Task for ImageClassification {
    type Batch = ImageBatch;

    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn head_name(&self) -> Option<&str> {
        Some(self.model.head_name())
    }

    fn metrics(&self) -> &'static [&'static str] {
        METRICS
    }

    fn weight(&self, batch: &ImageBatch, mode: Mode) -> Result<f64> {
        match &self.class_weights {
            Some((weights, _)) if mode == Mode::Train => {
                Ok(weights.f_index_select(0, &batch.labels)?.f_sum(Kind::Double)?.f_double_value(&[])?)
            }
            _ => Ok(batch.labels.numel() as f64),
        }
    }

    fn step(&mut self, batch: &ImageBatch, mode: Mode) -> Result<StepOutput> {
        let (logits, auxiliary) = self.scores(&batch.images, mode)?;
        let (weights, smoothing) = match mode {
            Mode::Train => (self.class_weights.as_ref().map(|(_, weights)| weights), self.label_smoothing),
            Mode::Evaluate => (None, 0.0),
        };
        // Cross-entropy under autocast is computed in float32, as in PyTorch.
        let loss_of = |logits: &Tensor| {
            logits
                .f_to_kind(Kind::Float)?
                .f_cross_entropy_loss(&batch.labels, weights, Reduction::Sum, -100, smoothing)
                .context("computing the cross-entropy")
        };
        let mut loss_sum = loss_of(&logits)?;
        for WeightedScores { scores, weight } in &auxiliary {
            loss_sum = loss_sum + loss_of(scores)? * *weight;
        }
        let right = logits.detach().f_argmax(-1, false)?.f_eq_tensor(&batch.labels)?.f_sum(Kind::Float)?;
        let outcome = (mode == Mode::Evaluate)
            .then(|| Outcome { prediction: logits.detach(), target: batch.labels.shallow_clone() });
        let sums = vec![Sum { name: "accuracy", total: right, weight: batch.labels.numel() as f64 }];
        Ok(StepOutput { loss_sum, sums, outcome })
    }

    fn evaluator(&self) -> Option<Box<dyn Evaluator>> {
        Some(Box::new(ClassificationEvaluator::new(self.classes.clone())))
    }

    fn examples(&self, evaluation: &Evaluation) -> Result<Vec<PredictedSample>> {
        let listed: Vec<Judged> = serde_json::from_value(evaluation.details["examples"].clone())?;
        Ok(listed.iter().map(|one| one.named(&self.classes)).collect())
    }
}
