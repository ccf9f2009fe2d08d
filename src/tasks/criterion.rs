//! The loss of classification: cross-entropy with smoothed labels, class weights or the focal factor, or a binary one for each label.

use anyhow::{Context, Result};
use tch::{Device, Kind, Reduction, Tensor};

use super::{Mode, wide};
use crate::bail_input;

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
    /// Whether a sample may have several labels: one binary cross-entropy for each, and their mean.
    pub multi_label: bool,
}

/// Losses times (1 − p)^γ, where p = exp(−plain loss) is the probability of what is right.
fn focal(losses: &Tensor, plain: &Tensor, gamma: f64) -> Result<Tensor> {
    let wrong = plain.f_neg()?.f_exp()?.f_neg()?.f_add_scalar(1.0)?;
    // Rounding must not make the base of a power negative.
    Ok(wrong.f_clamp_min(0.0)?.f_pow_tensor_scalar(gamma)?.f_mul(losses)?)
}

/// A [`ClassificationLoss`] on its device.
#[derive(Debug)]
pub struct ClassificationCriterion {
    label_smoothing: f64,
    focal_gamma: f64,
    multi_label: bool,
    /// The class weights where the labels are weighed (CPU) and where the loss is computed.
    class_weights: Option<(Tensor, Tensor)>,
}

impl ClassificationCriterion {
    /// Moves the class weights to `device`.
    ///
    /// # Errors
    /// The number of class weights is not the number of classes.
    pub fn new(loss: &ClassificationLoss, classes: usize, device: Device) -> Result<Self> {
        let class_weights = match &loss.class_weights {
            Some(weights) if weights.len() != classes => {
                bail_input!("training.class_weights has {} values for {classes} classes", weights.len())
            }
            Some(weights) => {
                let weights = Tensor::f_from_slice(weights)?.f_to_kind(Kind::Float)?;
                Some((weights.shallow_clone(), weights.f_to_device(device)?))
            }
            None => None,
        };
        Ok(Self {
            label_smoothing: loss.label_smoothing,
            focal_gamma: loss.focal_gamma,
            multi_label: loss.multi_label,
            class_weights,
        })
    }

    /// Whether a sample may have several labels.
    pub fn is_multi_label(&self) -> bool {
        self.multi_label
    }

    /// What the summed loss of labels `[batch]`, on the CPU, or `[batch, labels]` is divided by.
    pub fn weight(&self, labels: &Tensor, mode: Mode) -> Result<f64> {
        match &self.class_weights {
            Some((weights, _)) if mode == Mode::Train => {
                Ok(weights.f_index_select(0, labels)?.f_sum(Kind::Double)?.f_double_value(&[])?)
            }
            _ => Ok(labels.size()[0] as f64),
        }
    }

    /// The summed loss of a batch of classes, or of targets that give each class a probability. Computed in float32 under autocast too, as in PyTorch.
    pub fn loss_sum(&self, logits: &Tensor, labels: &Tensor, mode: Mode) -> Result<Tensor> {
        let logits = wide(logits)?;
        let kind = logits.kind();
        let (weights, smoothing, gamma) = match mode {
            Mode::Train => {
                let weights = self.class_weights.as_ref().map(|(_, weights)| weights.f_to_kind(kind));
                (weights.transpose()?, self.label_smoothing, self.focal_gamma)
            }
            Mode::Evaluate => (None, 0.0, 0.0),
        };
        let labels = &match labels.is_floating_point() {
            true => labels.f_to_kind(kind)?,
            false => labels.shallow_clone(),
        };
        if self.multi_label {
            let none = None::<&Tensor>;
            let losses = logits.f_binary_cross_entropy_with_logits(labels, none, none, Reduction::None)?;
            let losses = if gamma > 0.0 { focal(&losses, &losses, gamma)? } else { losses };
            // [batch, labels] to the sum over the batch of the mean over labels
            return Ok(losses.f_mean_dim(-1i64, false, kind)?.f_sum(kind)?);
        }
        if gamma > 0.0 {
            let plain = logits.f_cross_entropy_loss(labels, None::<&Tensor>, Reduction::None, -100, 0.0)?;
            let weighted = match weights {
                Some(weights) => plain.f_mul(&weights.f_index_select(0, labels)?)?,
                None => plain.shallow_clone(),
            };
            return Ok(focal(&weighted, &plain, gamma)?.f_sum(kind)?);
        }
        logits
            .f_cross_entropy_loss(labels, weights, Reduction::Sum, -100, smoothing)
            .context("computing the cross-entropy")
    }

    /// How many samples are wholly right: a scalar on the device.
    pub fn right(&self, logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
        let right = match self.multi_label {
            true => logits.f_ge(0.0)?.f_eq_tensor(&labels.f_gt(0.5)?)?.f_all_dim(-1, false)?,
            // Of mixed targets, the share that the class has.
            false if labels.dim() == 2 => labels.f_gather(1, &logits.f_argmax(-1, true)?, false)?,
            false => logits.f_argmax(-1, false)?.f_eq_tensor(labels)?,
        };
        Ok(right.f_sum(Kind::Float)?)
    }

    /// The probabilities that logits stand for, float32: of one class out of all, or of each label on its own.
    pub fn probabilities(&self, logits: &Tensor) -> Result<Tensor> {
        let logits = logits.f_to_kind(Kind::Float)?;
        Ok(if self.multi_label { logits.f_sigmoid()? } else { logits.f_softmax(-1, Kind::Float)? })
    }
}
