//! One label for each image: cross-entropy, accuracy, and per-class scores.

use std::path::Path;

use anyhow::Result;
use serde_json::Value;
use tch::{Kind, Tensor};

use super::classification::{ClassificationEvaluator, Judged, METRICS};
use super::criterion::{ClassificationCriterion, ClassificationLoss};
use super::multi_label::{self, MultiLabelEvaluator};
use super::{Evaluation, Evaluator, Mode, Outcome, PredictedSample, StepOutput, Sum, Task, wide};
use crate::data::augment::mixing::Mix;
use crate::data::image_dataset::ImageBatch;
use crate::data::images::Normalisation;
use crate::models::image::{ImageModel, WeightedScores};
use crate::models::{Parameters, Role};
use crate::training::fine_tuning::is_of;

/// The samples that an evaluation lists, in words.
pub fn listed(details: &Value, classes: &[String], multi_label: bool) -> Result<Vec<PredictedSample>> {
    if multi_label {
        return Ok(serde_json::from_value(details.clone())?);
    }
    let listed: Vec<Judged> = serde_json::from_value(details.clone())?;
    Ok(listed.iter().map(|one| one.named(classes)).collect())
}

/// A network with its input normalisation and its loss.
pub struct ImageClassification {
    parameters: Parameters,
    /// The parameters below the head.
    backbone: Vec<Tensor>,
    model: Box<dyn ImageModel>,
    normalisation: Normalisation,
    classes: Vec<String>,
    criterion: ClassificationCriterion,
    /// What logits are divided by in evaluation.
    temperature: f64,
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
            normalisation: normalisation.to_device(device, channels_last)?,
            criterion: ClassificationCriterion::new(loss, classes.len(), device)?,
            temperature: 1.0,
            parameters,
            model,
            classes,
        })
    }

    /// Names of the classes in the order of the outputs.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// The network.
    pub fn model(&self) -> &dyn ImageModel {
        self.model.as_ref()
    }

    /// Whether an image may have several labels.
    pub fn is_multi_label(&self) -> bool {
        self.criterion.is_multi_label()
    }

    /// Divides logits by this from now on, in evaluation only: what [`super::calibration::fit_temperature`] found.
    pub fn set_temperature(&mut self, temperature: f64) {
        self.temperature = temperature;
    }

    /// The probabilities that logits stand for, float32: of one class out of all, or of each label on its own.
    pub fn probabilities(&self, logits: &Tensor) -> Result<Tensor> {
        self.criterion.probabilities(&logits.f_to_kind(Kind::Float)?.f_div_scalar(self.temperature)?)
    }

    /// The logits of what several views of each sample are on average taken for: probabilities are averaged.
    fn averaged(&self, logits: &Tensor, views: i64) -> Result<Tensor> {
        if views == 1 {
            return Ok(logits.shallow_clone());
        }
        let logits = wide(logits)?;
        // [batch · views, classes] to [batch, views, classes]
        let of_views = |values: Tensor| values.f_unflatten(0, [-1, views]);
        Ok(match self.is_multi_label() {
            true => of_views(logits.f_sigmoid()?)?.f_mean_dim(1i64, false, Kind::Float)?.f_logit(1e-7)?,
            false => {
                let logs = of_views(logits.f_log_softmax(-1, Kind::Float)?)?;
                logs.f_logsumexp(1i64, false)?.f_sub_scalar((views as f64).ln())?
            }
        })
    }

    /// Normalised images, `[batch, channels, height, width]` floats, to logits `[batch, classes]`.
    pub fn forward(&self, images: &Tensor, mode: Mode) -> Tensor {
        self.model.forward(images, mode == Mode::Train)
    }

    /// Writes the network as the TorchScript module that it is made of, where it is.
    pub fn save_script(&self, path: &Path) -> Option<Result<()>> {
        self.model.save_script(path)
    }

    /// What the backbone makes of a batch of pixels: the input of the head, on the model's device.
    pub fn features(&self, pixels: &Tensor) -> Result<Tensor> {
        Ok(self.model.features(&self.normalise(pixels)?, false))
    }

    /// Whether nothing below the head learns, so that its features of an image are always the same.
    pub fn backbone_is_frozen(&self) -> bool {
        !self.backbone.iter().any(Tensor::requires_grad)
    }

    /// The logits of a batch, mixed if asked to, and those of auxiliary classifiers.
    fn scores(
        &self,
        images: &Tensor,
        mix: Option<&Mix>,
        mode: Mode,
    ) -> Result<(Tensor, Vec<WeightedScores>)> {
        let train = mode == Mode::Train;
        if images.kind() != Kind::Uint8 {
            return Ok((self.model.head(images, train), Vec::new()));
        }
        let images = self.normalise(images)?;
        let images = match mix {
            Some(mix) => mix.images(&images)?,
            None => images,
        };
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
        self.normalisation.apply(pixels)
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
        if self.is_multi_label() { multi_label::METRICS } else { METRICS }
    }

    fn weight(&self, batch: &ImageBatch, mode: Mode) -> Result<f64> {
        match batch.mix {
            // Of targets that are probabilities, PyTorch divides by the samples even with class weights.
            Some(_) => Ok(batch.labels.size()[0] as f64),
            None => self.criterion.weight(&batch.labels, mode),
        }
    }

    fn step(&mut self, batch: &ImageBatch, mode: Mode) -> Result<StepOutput> {
        let (logits, auxiliary) = self.scores(&batch.images, batch.mix.as_ref(), mode)?;
        let labels = match &batch.mix {
            Some(mix) => mix.targets(&batch.labels, self.classes.len() as i64)?,
            None => batch.labels.shallow_clone(),
        };
        let logits = if mode == Mode::Evaluate && self.temperature != 1.0 {
            logits.f_div_scalar(self.temperature)?
        } else {
            logits
        };
        let logits = self.averaged(&logits, batch.views)?;
        let mut loss_sum = self.criterion.loss_sum(&logits, &labels, mode)?;
        for WeightedScores { scores, weight } in &auxiliary {
            let auxiliary = self.criterion.loss_sum(scores, &labels, mode)?.f_mul_scalar(*weight)?;
            loss_sum = loss_sum.f_add(&auxiliary)?;
        }
        let right = self.criterion.right(&logits.detach(), &labels)?;
        let outcome = (mode == Mode::Evaluate)
            .then(|| Outcome { prediction: logits.detach(), target: batch.labels.shallow_clone() });
        let sums = vec![Sum { name: "accuracy", total: right, weight: batch.labels.size()[0] as f64 }];
        Ok(StepOutput { loss_sum, sums, outcome })
    }

    fn evaluator(&self) -> Option<Box<dyn Evaluator>> {
        let classes = self.classes.clone();
        Some(match self.is_multi_label() {
            true => Box::new(MultiLabelEvaluator::new(classes)),
            false => Box::new(ClassificationEvaluator::new(classes)),
        })
    }

    fn examples(&self, evaluation: &Evaluation) -> Result<Vec<PredictedSample>> {
        listed(&evaluation.details["examples"], &self.classes, self.is_multi_label())
    }
}
