//! Guessing hidden words.

use anyhow::Result;
use tch::{Kind, Reduction, Tensor};

use super::{Mode, StepOutput, Sum, Task, wide};
use crate::data::encoder_texts::MaskedBatch;
use crate::models::Parameters;
use crate::models::encoders::EncoderModel;

/// The metrics of a masked language model: the loss is the mean over hidden tokens, in nats.
pub const METRICS: &[&str] = &["loss", "accuracy"];

/// An encoder with a head that scores all words.
pub struct MaskedLm {
    parameters: Parameters,
    model: EncoderModel,
}

impl MaskedLm {
    /// Puts the parts together.
    pub fn new(parameters: Parameters, model: EncoderModel) -> Self {
        Self { parameters, model }
    }

    /// The network.
    pub fn model(&self) -> &EncoderModel {
        &self.model
    }
}

impl Task for MaskedLm {
    type Batch = MaskedBatch;

    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn head_name(&self) -> Option<&str> {
        self.model.head_name()
    }

    fn metrics(&self) -> &'static [&'static str] {
        METRICS
    }

    fn weight(&self, batch: &MaskedBatch, _mode: Mode) -> Result<f64> {
        Ok(batch.targets.size()[0] as f64)
    }

    fn step(&mut self, batch: &MaskedBatch, mode: Mode) -> Result<StepOutput> {
        let train = mode == Mode::Train;
        let hidden = self.model.hidden(&batch.tokens.inputs(), train); // [batch, longest, width]
        // Words are scored where they are hidden, and nowhere else.
        let hidden = hidden.f_flatten(0, 1)?.f_index_select(0, &batch.places)?; // [hidden, width]
        let scores = wide(&self.model.scores(&hidden, train))?; // [hidden, vocabulary]
        let loss_sum =
            scores.f_cross_entropy_loss(&batch.targets, None::<&Tensor>, Reduction::Sum, -100, 0.0)?;
        let sums = match mode {
            // A large vocabulary is not searched in every step.
            Mode::Train => Vec::new(),
            Mode::Evaluate => {
                let right = scores.f_argmax(-1, false)?.f_eq_tensor(&batch.targets)?.f_sum(Kind::Float)?;
                vec![Sum { name: "accuracy", total: right, weight: batch.targets.size()[0] as f64 }]
            }
        };
        Ok(StepOutput { loss_sum, sums, outcome: None })
    }
}
