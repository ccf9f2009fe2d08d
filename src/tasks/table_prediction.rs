//! A number or a class for each row of a table, by a network trained on standardised columns.

use anyhow::{Context, Result};
use tch::{Kind, Reduction, Tensor};

use super::classification::{ClassificationEvaluator, METRICS as CLASS_METRICS};
use super::{Evaluator, Mode, Outcome, StepOutput, Sum, Task};
use crate::data::table::TableBatch;
use crate::models::Parameters;
use crate::models::table_network::TableModel;
use crate::regression::config::Goal;
use crate::regression::encoding::Encoding;
use crate::regression::scores::{NUMBER_METRICS, NumberEvaluator, RowPredictor};

/// A network with the meaning of its outputs.
pub struct TablePrediction {
    parameters: Parameters,
    network: TableModel,
    encoding: Encoding,
    goal: Goal,
    /// Whether the network predicts the standardised target.
    scaled_target: bool,
    /// Mean and deviation of the columns, where it takes standardised ones. Made once: a trace keeps only tensors that were there before.
    standards: Option<(Tensor, Tensor)>,
    label_smoothing: f64,
}

impl TablePrediction {
    /// Puts the parts together.
    pub fn new(
        parameters: Parameters,
        network: TableModel,
        encoding: Encoding,
        goal: Goal,
        scaled_target: bool,
        standardized: bool,
        label_smoothing: f64,
    ) -> Result<Self> {
        let standards = match standardized {
            true => Some(encoding.standards(parameters.device())?),
            false => None,
        };
        Ok(Self { parameters, network, encoding, goal, scaled_target, standards, label_smoothing })
    }

    /// How table rows become what the network takes.
    pub fn encoding(&self) -> &Encoding {
        &self.encoding
    }

    /// What is predicted.
    pub fn goal(&self) -> Goal {
        self.goal
    }

    /// Centre and scale that the network's outputs are turned into numbers of the target with.
    pub fn target_units(&self) -> (f64, f64) {
        match self.scaled_target {
            true => (self.encoding.target_mean, self.encoding.target_scale),
            false => (0.0, 1.0),
        }
    }

    /// Whether the network takes standardised columns.
    pub fn standardized(&self) -> bool {
        self.standards.is_some()
    }

    /// Columns of the design `[batch, columns]`, standardised, to outputs `[batch, outputs]`.
    pub fn forward(&self, rows: &Tensor, mode: Mode) -> Tensor {
        self.network.forward(rows, mode == Mode::Train)
    }

    /// Rows of the table `[rows, features]` (float64; codes for categories, NaN for missing values) to numbers `[rows, 1]` in the units of
    /// the target, the probability of the second class `[rows, 1]`, or of all classes `[rows, classes]`; float64.
    pub fn predict(&self, rows: &Tensor) -> Result<Tensor> {
        let design = self.encoding.encode(&rows.f_to_device(self.parameters.device())?)?;
        let columns = match &self.standards {
            Some((mean, scale)) => (design - mean) / scale,
            None => design,
        };
        let outputs =
            self.forward(&columns.f_to_kind(Kind::Float)?, Mode::Evaluate).f_to_kind(Kind::Double)?;
        let predicted = match self.goal {
            Goal::Number => {
                let (mean, scale) = self.target_units();
                outputs * scale + mean
            }
            Goal::TwoClasses => outputs.f_sigmoid()?,
            Goal::Classes => outputs.f_softmax(-1, Kind::Double)?,
        };
        Ok(predicted.f_to_device(rows.device())?)
    }
}

impl RowPredictor for TablePrediction {
    fn encoding(&self) -> &Encoding {
        &self.encoding
    }

    fn predict(&self, rows: &Tensor) -> Result<Tensor> {
        TablePrediction::predict(self, rows)
    }

    fn predict_with_losses(&self, rows: &Tensor, y: &Tensor) -> Result<(Tensor, Option<Tensor>)> {
        let mean = TablePrediction::predict(self, rows)?;
        let right = match self.goal {
            Goal::Number => return Ok((mean, None)),
            Goal::TwoClasses => {
                let p = mean.f_squeeze_dim(1)?;
                y * &p + (1f64 - y) * (1f64 - &p)
            }
            Goal::Classes => {
                mean.f_gather(1, &y.f_to_kind(Kind::Int64)?.f_unsqueeze(1)?, false)?.f_squeeze_dim(1)?
            }
        };
        Ok((mean, Some(right.f_log()?.f_neg()?)))
    }
}

impl Task for TablePrediction {
    type Batch = TableBatch;

    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn head_name(&self) -> Option<&str> {
        self.network.head_name()
    }

    fn metrics(&self) -> &'static [&'static str] {
        match self.goal {
            Goal::Number => NUMBER_METRICS,
            Goal::TwoClasses | Goal::Classes => CLASS_METRICS,
        }
    }

    fn weight(&self, batch: &TableBatch, _mode: Mode) -> Result<f64> {
        Ok(batch.total_weight)
    }

    fn step(&mut self, batch: &TableBatch, mode: Mode) -> Result<StepOutput> {
        // Losses under autocast are computed in float32, as in PyTorch.
        let outputs = self.forward(&batch.x, mode).f_to_kind(Kind::Float)?;
        let smoothing = if mode == Mode::Train { self.label_smoothing } else { 0.0 };
        let weighted = |losses: Tensor| -> Result<Tensor> {
            Ok(match &batch.weight {
                Some(weight) => (losses * weight).f_sum(Kind::Float)?,
                None => losses.f_sum(Kind::Float)?,
            })
        };
        let first = || outputs.f_select(1, 0);
        let loss_sum = match self.goal {
            Goal::Number => weighted(first()?.f_mse_loss(&batch.y, Reduction::None)?)?,
            Goal::TwoClasses => weighted(first()?.f_binary_cross_entropy_with_logits::<Tensor>(
                &batch.y,
                None,
                None,
                Reduction::None,
            )?)?,
            Goal::Classes => {
                let classes = batch.y.f_to_kind(Kind::Int64)?;
                weighted(
                    outputs
                        .f_cross_entropy_loss::<Tensor>(&classes, None, Reduction::None, -100, smoothing)
                        .context("computing the cross-entropy")?,
                )?
            }
        };
        let mut sums = Vec::new();
        let mut outcome = None;
        match self.goal {
            Goal::Number if mode == Mode::Evaluate => {
                let (mean, scale) = self.target_units();
                let in_units = |values: &Tensor| -> Result<Tensor> {
                    Ok(values.detach().f_to_kind(Kind::Double)? * scale + mean)
                };
                let mut target = in_units(&batch.y)?;
                if let Some(weight) = &batch.weight {
                    target = Tensor::f_stack(&[target, weight.f_to_kind(Kind::Double)?], 1)?;
                }
                outcome = Some(Outcome { prediction: in_units(&first()?)?, target });
            }
            Goal::Number => {}
            Goal::TwoClasses | Goal::Classes => {
                let logits = match self.goal {
                    Goal::TwoClasses => Tensor::f_cat(&[&outputs.f_zeros_like()?, &outputs], 1)?,
                    _ => outputs.shallow_clone(),
                };
                let hits =
                    logits.detach().f_argmax(-1, false)?.f_eq_tensor(&batch.y.f_to_kind(Kind::Int64)?)?;
                sums.push(Sum {
                    name: "accuracy",
                    total: weighted(hits.f_to_kind(Kind::Float)?)?,
                    weight: batch.total_weight,
                });
                outcome = (mode == Mode::Evaluate)
                    .then(|| Outcome { prediction: logits.detach(), target: batch.y.shallow_clone() });
            }
        }
        Ok(StepOutput { loss_sum, sums, outcome })
    }

    fn evaluator(&self) -> Option<Box<dyn Evaluator>> {
        Some(match self.goal {
            Goal::Number => Box::new(NumberEvaluator::default()),
            Goal::TwoClasses | Goal::Classes => {
                let classes = self.encoding.classes.clone().unwrap_or_default();
                Box::new(ClassificationEvaluator::new(classes))
            }
        })
    }
}
