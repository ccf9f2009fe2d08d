//! One vector for each text, learned from pairs: Reimers, Gurevych, "Sentence-BERT", 2019.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tch::{Kind, Reduction, Tensor};

use super::classification::rows_by_sample;
use super::correlation::{pearson, spearman};
use super::{Evaluation, Evaluator, Mode, Outcome, StepOutput, Sum, Task};
use crate::data::encoder_texts::{PairBatch, TokenBatch};
use crate::distributed::Reducer;
use crate::models::Parameters;
use crate::models::encoders::EncoderModel;

/// What an evaluation yields: how cosines go with given scores, and how often a text's own partner is the likest of its batch.
pub const METRICS: &[&str] = &["loss", "spearman", "pearson", "accuracy"];

/// How the vectors of tokens become one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Pooling {
    /// Their mean over all tokens that are no padding.
    #[default]
    Mean,
    /// The first token's.
    Cls,
    /// The largest value of each column.
    Max,
}

/// What vectors of pairs learn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PairLoss {
    /// To tell a text's partner from the partners of the other texts of the batch: cross-entropy of 20 · cosine (sentence-transformers'
    /// `MultipleNegativesRankingLoss`).
    #[default]
    Contrastive,
    /// A cosine equal to the given score: squared error (`CosineSimilarityLoss`).
    Cosine,
}

/// Factor on cosines before they compete.
const SHARPNESS: f64 = 20.0;

/// An encoder with its pooling.
pub struct SentenceEmbedding {
    parameters: Parameters,
    model: EncoderModel,
    pooling: Pooling,
    normalise: bool,
    loss: PairLoss,
}

impl SentenceEmbedding {
    /// Puts the parts together.
    pub fn new(
        parameters: Parameters,
        model: EncoderModel,
        pooling: Pooling,
        normalise: bool,
        loss: PairLoss,
    ) -> Self {
        Self { parameters, model, pooling, normalise, loss }
    }

    /// The network.
    pub fn model(&self) -> &EncoderModel {
        &self.model
    }

    /// Pooling and normalisation in place of the recipe's.
    pub fn set_pooling(&mut self, pooling: Pooling, normalise: bool) {
        (self.pooling, self.normalise) = (pooling, normalise);
    }

    /// One vector for each text, `[batch, width]` float32.
    pub fn embed(&self, tokens: &TokenBatch, mode: Mode) -> Result<Tensor> {
        let hidden = self.model.hidden(&tokens.inputs(), mode == Mode::Train);
        let vectors = pool(&hidden.f_to_kind(Kind::Float)?, tokens.mask.as_ref(), self.pooling)?;
        match self.normalise {
            true => normalised(&vectors),
            false => Ok(vectors),
        }
    }
}

/// `[batch, length, width]` to `[batch, width]`.
pub fn pool(hidden: &Tensor, mask: Option<&Tensor>, pooling: Pooling) -> Result<Tensor> {
    Ok(match (pooling, mask) {
        (Pooling::Cls, _) => hidden.f_select(1, 0)?,
        (Pooling::Mean, None) => hidden.f_mean_dim(1i64, false, Kind::Float)?,
        (Pooling::Mean, Some(mask)) => {
            let there = mask.f_to_kind(hidden.kind())?.f_unsqueeze(-1)?; // [batch, length, 1]
            let sums = hidden.f_mul(&there)?.f_sum_dim_intlist(1i64, false, Kind::Float)?;
            sums.f_div(&there.f_sum_dim_intlist(1i64, false, Kind::Float)?.f_clamp_min(1e-9)?)?
        }
        (Pooling::Max, None) => hidden.f_amax(1i64, false)?,
        (Pooling::Max, Some(mask)) => {
            let absent = mask.f_logical_not()?.f_unsqueeze(-1)?;
            hidden.f_masked_fill(&absent, f64::NEG_INFINITY)?.f_amax(1i64, false)?
        }
    })
}

/// Vectors of length 1; a zero vector stays one.
pub fn normalised(vectors: &Tensor) -> Result<Tensor> {
    let length = vectors.f_norm_scalaropt_dim(2.0, -1i64, true)?.f_clamp_min(1e-12)?;
    Ok(vectors.f_div(&length)?)
}

impl Task for SentenceEmbedding {
    type Batch = PairBatch;

    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn metrics(&self) -> &'static [&'static str] {
        METRICS
    }

    fn weight(&self, batch: &PairBatch, _mode: Mode) -> Result<f64> {
        Ok(batch.first.len() as f64)
    }

    fn step(&mut self, batch: &PairBatch, mode: Mode) -> Result<StepOutput> {
        let first = normalised(&self.embed(&batch.first, mode)?)?;
        let second = normalised(&self.embed(&batch.second, mode)?)?; // [batch, width]
        let count = batch.first.len();
        let likeness = first.f_matmul(&second.f_transpose(0, 1)?)?; // [batch, batch]
        let own = Tensor::f_arange(count, (Kind::Int64, first.device()))?;
        let cosines = first.f_mul(&second)?.f_sum_dim_intlist(-1i64, false, Kind::Float)?; // [batch]
        let loss_sum = match (self.loss, &batch.scores) {
            (PairLoss::Cosine, Some(scores)) => cosines.f_mse_loss(scores, Reduction::Sum)?,
            _ => likeness.f_mul_scalar(SHARPNESS)?.f_cross_entropy_loss(
                &own,
                None::<&Tensor>,
                Reduction::Sum,
                -100,
                0.0,
            )?,
        };
        let right = likeness.detach().f_argmax(-1, false)?.f_eq_tensor(&own)?.f_sum(Kind::Float)?;
        let outcome = match (mode, &batch.scores) {
            (Mode::Evaluate, Some(scores)) => {
                Some(Outcome { prediction: cosines.detach(), target: scores.shallow_clone() })
            }
            _ => None,
        };
        let sums = vec![Sum { name: "accuracy", total: right, weight: count as f64 }];
        Ok(StepOutput { loss_sum, sums, outcome })
    }

    fn evaluator(&self) -> Option<Box<dyn Evaluator>> {
        Some(Box::<LikenessEvaluator>::default())
    }
}

/// Collects cosines and scores, where there are scores.
#[derive(Default)]
struct LikenessEvaluator {
    samples: Vec<usize>,
    cosines: Vec<f64>,
    scores: Vec<f64>,
}

impl Evaluator for LikenessEvaluator {
    fn add(&mut self, samples: &[usize], outcome: &Outcome) -> Result<()> {
        self.cosines.extend(Vec::<f64>::try_from(outcome.prediction.f_to_kind(Kind::Double)?)?);
        self.scores.extend(Vec::<f64>::try_from(outcome.target.f_to_kind(Kind::Double)?)?);
        self.samples.extend_from_slice(samples);
        Ok(())
    }

    fn gather(&mut self, reducer: &mut dyn Reducer) -> Result<()> {
        if reducer.world_size() == 1 {
            return Ok(());
        }
        let values = self.samples.iter().zip(self.cosines.iter().zip(&self.scores));
        let rows = values.flat_map(|(&sample, (&cosine, &score))| [sample as f64, cosine, score]).collect();
        let gathered = reducer.gather(rows)?;
        let rows = rows_by_sample(&gathered, 3);
        self.samples = rows.iter().map(|row| row[0] as usize).collect();
        self.cosines = rows.iter().map(|row| row[1]).collect();
        self.scores = rows.iter().map(|row| row[2]).collect();
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Evaluation> {
        let mut metrics = BTreeMap::new();
        if !self.scores.is_empty() {
            metrics.insert("spearman".to_owned(), spearman(&self.cosines, &self.scores));
            metrics.insert("pearson".to_owned(), pearson(&self.cosines, &self.scores));
        }
        Ok(Evaluation { metrics, details: json!({}) })
    }
}
