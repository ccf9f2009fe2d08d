//! One label for each image: cross-entropy, accuracy, and per-class scores.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;
use tch::{Kind, Reduction, Tensor};

use super::classification::{ClassificationEvaluator, Judged, METRICS};
use super::multi_label::{self, MultiLabelEvaluator};
use super::{Evaluation, Evaluator, Mode, Outcome, PredictedSample, StepOutput, Sum, Task};
use crate::bail_input;
use crate::data::augment::mixing::Mix;
use crate::data::image_dataset::ImageBatch;
use crate::data::images::Normalisation;
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
    /// Exponent of the focal loss's factor (1 − p)^γ on what is already right with probability p: Lin et al., "Focal loss for dense object
    /// detection", 2017. 0 for the plain loss.
    pub focal_gamma: f64,
    /// Whether an image may have several labels: one binary cross-entropy for each, and their mean.
    pub multi_label: bool,
}

/// Losses times (1 − p)^γ, where p = exp(−plain loss) is the probability of what is right.
fn focal(losses: &Tensor, plain: &Tensor, gamma: f64) -> Result<Tensor> {
    let wrong = plain.f_neg()?.f_exp()?.f_neg()?.f_add_scalar(1.0)?;
    // Rounding must not make the base of a power negative.
    Ok(wrong.f_clamp_min(0.0)?.f_pow_tensor_scalar(gamma)?.f_mul(losses)?)
}

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
    label_smoothing: f64,
    focal_gamma: f64,
    multi_label: bool,
    /// What logits are divided by in evaluation.
    temperature: f64,
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
            focal_gamma: loss.focal_gamma,
            multi_label: loss.multi_label,
            temperature: 1.0,
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

    /// The network.
    pub fn model(&self) -> &dyn ImageModel {
        self.model.as_ref()
    }

    /// Whether an image may have several labels.
    pub fn is_multi_label(&self) -> bool {
        self.multi_label
    }

    /// Divides logits by this from now on, in evaluation only: what [`super::calibration::fit_temperature`] found.
    pub fn set_temperature(&mut self, temperature: f64) {
        self.temperature = temperature;
    }

    /// The probabilities that logits stand for, float32: of one class out of all, or of each label on its own.
    pub fn probabilities(&self, logits: &Tensor) -> Result<Tensor> {
        let logits = logits.f_to_kind(Kind::Float)?.f_div_scalar(self.temperature)?;
        Ok(if self.multi_label { logits.f_sigmoid()? } else { logits.f_softmax(-1, Kind::Float)? })
    }

    /// The summed loss of a batch of classes, or of targets that give each class a probability. Computed in float32 under autocast too, as in PyTorch.
    fn loss_sum(&self, logits: &Tensor, labels: &Tensor, mode: Mode) -> Result<Tensor> {
        let logits = logits.f_to_kind(Kind::Float)?;
        let (weights, smoothing, gamma) = match mode {
            Mode::Train => {
                let weights = self.class_weights.as_ref().map(|(_, weights)| weights);
                (weights, self.label_smoothing, self.focal_gamma)
            }
            Mode::Evaluate => (None, 0.0, 0.0),
        };
        if self.multi_label {
            let none = None::<&Tensor>;
            let losses = logits.f_binary_cross_entropy_with_logits(labels, none, none, Reduction::None)?;
            let losses = if gamma > 0.0 { focal(&losses, &losses, gamma)? } else { losses };
            // [batch, labels] to the sum over the batch of the mean over labels
            return Ok(losses.f_mean_dim(-1i64, false, Kind::Float)?.f_sum(Kind::Float)?);
        }
        if gamma > 0.0 {
            let plain = logits.f_cross_entropy_loss(labels, None::<&Tensor>, Reduction::None, -100, 0.0)?;
            let weighted = match weights {
                Some(weights) => plain.f_mul(&weights.f_index_select(0, labels)?)?,
                None => plain.shallow_clone(),
            };
            return Ok(focal(&weighted, &plain, gamma)?.f_sum(Kind::Float)?);
        }
        logits
            .f_cross_entropy_loss(labels, weights, Reduction::Sum, -100, smoothing)
            .context("computing the cross-entropy")
    }

    /// The logits of what several views of each sample are on average taken for: probabilities are averaged.
    fn averaged(&self, logits: &Tensor, views: i64) -> Result<Tensor> {
        if views == 1 {
            return Ok(logits.shallow_clone());
        }
        let logits = logits.f_to_kind(Kind::Float)?;
        // [batch · views, classes] to [batch, views, classes]
        let of_views = |values: Tensor| values.f_unflatten(0, [-1, views]);
        Ok(match self.multi_label {
            true => of_views(logits.f_sigmoid()?)?.f_mean_dim(1i64, false, Kind::Float)?.f_logit(1e-7)?,
            false => {
                let logs = of_views(logits.f_log_softmax(-1, Kind::Float)?)?;
                logs.f_logsumexp(1i64, false)?.f_sub_scalar((views as f64).ln())?
            }
        })
    }

    /// How many samples are wholly right: a scalar on the device.
    fn right(&self, logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
        let right = match self.multi_label {
            true => logits.f_ge(0.0)?.f_eq_tensor(&labels.f_gt(0.5)?)?.f_all_dim(-1, false)?,
            // Of mixed targets, the share that the class has.
            false if labels.dim() == 2 => labels.f_gather(1, &logits.f_argmax(-1, true)?, false)?,
            false => logits.f_argmax(-1, false)?.f_eq_tensor(labels)?,
        };
        Ok(right.f_sum(Kind::Float)?)
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
        if self.multi_label { multi_label::METRICS } else { METRICS }
    }

    fn weight(&self, batch: &ImageBatch, mode: Mode) -> Result<f64> {
        match &self.class_weights {
            // Of targets that are probabilities, PyTorch divides by the samples even with class weights.
            Some((weights, _)) if mode == Mode::Train && batch.mix.is_none() => {
                Ok(weights.f_index_select(0, &batch.labels)?.f_sum(Kind::Double)?.f_double_value(&[])?)
            }
            _ => Ok(batch.labels.size()[0] as f64),
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
        let mut loss_sum = self.loss_sum(&logits, &labels, mode)?;
        for WeightedScores { scores, weight } in &auxiliary {
            let auxiliary = self.loss_sum(scores, &labels, mode)?.f_mul_scalar(*weight)?;
            loss_sum = loss_sum.f_add(&auxiliary)?;
        }
        let right = self.right(&logits.detach(), &labels)?;
        let outcome = (mode == Mode::Evaluate)
            .then(|| Outcome { prediction: logits.detach(), target: batch.labels.shallow_clone() });
        let sums = vec![Sum { name: "accuracy", total: right, weight: batch.labels.size()[0] as f64 }];
        Ok(StepOutput { loss_sum, sums, outcome })
    }

    fn evaluator(&self) -> Option<Box<dyn Evaluator>> {
        let classes = self.classes.clone();
        Some(match self.multi_label {
            true => Box::new(MultiLabelEvaluator::new(classes)),
            false => Box::new(ClassificationEvaluator::new(classes)),
        })
    }

    fn examples(&self, evaluation: &Evaluation) -> Result<Vec<PredictedSample>> {
        listed(&evaluation.details["examples"], &self.classes, self.multi_label)
    }
}
