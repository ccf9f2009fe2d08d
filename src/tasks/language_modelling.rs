//! The next token of a text, with a state that is carried from window to window.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use tch::{Kind, Reduction, Tensor};

use super::{Evaluation, Evaluator, Mode, Outcome, StepOutput, wide};
use crate::bail_input;
use crate::data::sequences::StreamBatch;
use crate::data::text::TextTokenizer;
use crate::distributed::Reducer;
use crate::models::Parameters;
use crate::models::recurrent::LanguageModel;

/// The metrics of a language model: nats per token, its exponential, and bits for each character of the text.
pub const METRICS: &[&str] = &["loss", "perplexity", "bits_per_character"];

/// A recurrent language model with the states of its streams.
pub struct LanguageModelling {
    /// Its tensors.
    pub parameters: Parameters,
    network: LanguageModel,
    label_smoothing: f64,
    /// What the next training window goes on from; none before the first.
    carried: Option<Vec<Tensor>>,
    /// The same in evaluation.
    evaluated: Option<Vec<Tensor>>,
    /// Characters that each token stands for, `[vocabulary]` float32.
    characters: Tensor,
}

impl LanguageModelling {
    /// Puts the parts together.
    pub fn new(
        parameters: Parameters,
        network: LanguageModel,
        label_smoothing: f64,
        characters: Tensor,
    ) -> Result<Self> {
        let characters = characters.f_to_device(parameters.device())?;
        Ok(Self { parameters, network, label_smoothing, carried: None, evaluated: None, characters })
    }

    /// The network.
    pub fn network(&self) -> &LanguageModel {
        &self.network
    }

    /// Loss of a window. Gradients go back to its beginning, no further.
    pub fn step(&mut self, batch: &StreamBatch, mode: Mode) -> Result<StepOutput> {
        let carried = match mode {
            Mode::Train => &mut self.carried,
            Mode::Evaluate => &mut self.evaluated,
        };
        let streams = batch.tokens.size()[0];
        let state = match carried.take().filter(|_| !batch.begins) {
            Some(state) if state[0].size()[1] == streams => state,
            // The beginning of the streams, or of another number of them.
            _ => {
                let kind = self.parameters.entries().first().map_or(Kind::Float, |entry| entry.tensor.kind());
                self.network.recurrent().zero_state(&batch.tokens.f_to_kind(kind)?)
            }
        };
        let (logits, after) = self.network.forward(&batch.tokens, &state, mode == Mode::Train);
        *carried = Some(after.iter().map(|tensor| tensor.detach()).collect());
        let smoothing = if mode == Mode::Train { self.label_smoothing } else { 0.0 };
        // In float32 under autocast too, as in PyTorch.
        let logits = wide(&logits.f_flatten(0, 1)?)?;
        let targets = batch.targets.f_flatten(0, 1)?;
        let loss_sum = logits
            .f_cross_entropy_loss::<Tensor>(
                &targets,
                None,
                Reduction::Sum,
                crate::data::sequences::NO_TARGET,
                smoothing,
            )
            .context("computing the cross-entropy")?;
        let outcome = match mode {
            Mode::Train => None,
            Mode::Evaluate => {
                // Places without a target count no characters.
                let there = targets.f_ge(0)?;
                let characters = self
                    .characters
                    .f_index_select(0, &targets.f_clamp_min(0)?)?
                    .f_mul(&there)?
                    .f_sum(Kind::Double)?;
                let totals = Tensor::f_stack(&[loss_sum.f_to_kind(Kind::Double)?, characters], 0)?;
                Some(Outcome { prediction: totals, target: Tensor::f_from_slice(&[batch.count])? })
            }
        };
        Ok(StepOutput { loss_sum, sums: Vec::new(), outcome })
    }

    /// The collector of perplexity and bits per character.
    pub fn evaluator(&self) -> Box<dyn Evaluator> {
        Box::new(TextEvaluator::default())
    }

    /// What a resumed run goes on from.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let named =
            |(number, tensor): (usize, &Tensor)| (format!("{CARRIED}{number}"), tensor.shallow_clone());
        self.carried.iter().flatten().enumerate().map(named).collect()
    }

    /// Takes a saved state over.
    ///
    /// # Errors
    /// It has another number of tensors than a state of this network.
    pub fn load_state(&mut self, mut state: Vec<(String, Tensor)>) -> Result<()> {
        if state.is_empty() {
            self.carried = None;
            return Ok(());
        }
        state.sort_by(|a, b| a.0.cmp(&b.0));
        if state.len() != self.network.recurrent().state_tensors()
            || !state.iter().all(|(name, _)| name.starts_with(CARRIED))
        {
            bail_input!(
                "the checkpoint carries {} tensors of state, which is not what this network carries",
                state.len()
            );
        }
        let device = self.parameters.device();
        self.carried =
            Some(state.into_iter().map(|(_, tensor)| tensor.f_to_device(device)).collect::<Result<_, _>>()?);
        Ok(())
    }
}

const CARRIED: &str = "carried.";

/// Characters that each token of a vocabulary stands for, float32 on the CPU: what [`METRICS`]' bits are divided by. A word of a tokenizer of
/// words counts the space before it, the end of a line one character.
pub fn characters_of_tokens(tokenizer: &TextTokenizer) -> Result<Tensor> {
    let space = f32::from(u8::from(tokenizer.kind() == "words"));
    let count = |id: i64| -> Result<f32> {
        if Some(id) == tokenizer.line_end() {
            return Ok(1.0);
        }
        Ok(tokenizer.decode(&[id], true)?.chars().count() as f32 + space)
    };
    let counts = (0..tokenizer.vocabulary_size() as i64).map(count).collect::<Result<Vec<f32>>>()?;
    Ok(Tensor::f_from_slice(&counts)?)
}

/// Sums nats, tokens and characters over an evaluation.
#[derive(Default)]
struct TextEvaluator {
    totals: Option<Tensor>,
    tokens: f64,
}

impl Evaluator for TextEvaluator {
    /// `prediction` is `[2]` float64: nats and characters of the batch; `target` `[1]` its tokens, on the CPU.
    fn add(&mut self, _samples: &[usize], outcome: &Outcome) -> Result<()> {
        self.totals = Some(match self.totals.take() {
            Some(totals) => totals.f_add(&outcome.prediction)?,
            None => outcome.prediction.shallow_clone(),
        });
        self.tokens += outcome.target.f_double_value(&[0])?;
        Ok(())
    }

    fn gather(&mut self, reducer: &mut dyn Reducer) -> Result<()> {
        if reducer.world_size() > 1 {
            // Sums are read once, at the end of an evaluation. A process may have had no part of it.
            let sums = self.totals.as_ref().map_or(Ok(vec![0.0; 2]), Vec::<f64>::try_from)?;
            let sums = [reducer.sum(sums[0])?, reducer.sum(sums[1])?];
            self.totals = Some(Tensor::f_from_slice(&sums)?);
            self.tokens = reducer.sum(self.tokens)?;
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Evaluation> {
        let Some(totals) = self.totals else { return Ok(Evaluation::default()) };
        // Sums are read once, at the end of an evaluation.
        let sums = Vec::<f64>::try_from(totals)?;
        let metrics = BTreeMap::from([
            ("perplexity".to_owned(), (sums[0] / self.tokens).exp()),
            ("bits_per_character".to_owned(), sums[0] / std::f64::consts::LN_2 / sums[1]),
        ]);
        let details = serde_json::json!({"tokens": self.tokens, "characters": sums[1]});
        Ok(Evaluation { metrics, details })
    }
}
