//! The next values of series, with baselines beside the network.

use anyhow::Result;
use serde_json::json;
use tch::{Kind, Tensor};

use super::{Evaluation, Evaluator, Mode, Outcome, StepOutput, Sum};
use crate::data::sequences::{BASELINES, SeriesBatch};
use crate::distributed::Reducer;
use crate::models::Parameters;
use crate::models::recurrent::{ForecastForm, Forecaster, RnnConfig};

/// The metrics of forecasts, on the standardised scale: of the network, then of the baselines.
pub const METRICS: &[&str] = &[
    "mse",
    "mae",
    "loss",
    "coverage",
    "naive_mse",
    "naive_mae",
    "seasonal_naive_mse",
    "seasonal_naive_mae",
    "linear_mse",
    "linear_mae",
];

const BASELINE_METRICS: [[&str; 2]; 3] =
    [["naive_mse", "naive_mae"], ["seasonal_naive_mse", "seasonal_naive_mae"], ["linear_mse", "linear_mae"]];

/// Standard deviations around the mean within which a normal value falls nine times in ten.
const NINE_IN_TEN: f64 = 1.644_853_626_951_472_2;

/// A network with its loss.
pub struct Forecasting {
    /// Its tensors.
    pub parameters: Parameters,
    network: Forecaster,
    form: ForecastForm,
    quantiles: Vec<f64>,
    /// The quantiles where the loss is computed, `[quantiles]`.
    levels: Tensor,
    horizon: usize,
}

/// Forecasts in words that all forms share.
#[derive(Debug)]
pub struct Forecast {
    /// The number, the mean or the middle quantile, `[batch, horizon, targets]`.
    pub value: Tensor,
    /// The ends of the interval: the outer quantiles, or where nine values in ten of the normal distribution fall.
    pub interval: Option<(Tensor, Tensor)>,
}

impl Forecasting {
    /// Puts the parts together.
    pub fn new(parameters: Parameters, network: Forecaster, config: &RnnConfig) -> Result<Self> {
        let levels = Tensor::f_from_slice(&config.quantiles)?
            .f_to_kind(Kind::Float)?
            .f_to_device(parameters.device())?;
        let horizon = config.horizon.unwrap_or(1) as usize;
        Ok(Self {
            parameters,
            network,
            form: config.form,
            quantiles: config.quantiles.clone(),
            levels,
            horizon,
        })
    }

    /// The network.
    pub fn network(&self) -> &Forecaster {
        &self.network
    }

    /// What is asked of the interval: the share of values that should fall into it.
    pub fn nominal_coverage(&self) -> Option<f64> {
        match self.form {
            ForecastForm::Point => None,
            ForecastForm::Gaussian => Some(0.9),
            ForecastForm::Quantiles => Some(self.quantiles[self.quantiles.len() - 1] - self.quantiles[0])
                .filter(|share| *share > 0.0),
        }
    }

    /// Windows `[batch, input, columns]` with the known future `[batch, horizon, known]` to forecasts on the standardised scale.
    pub fn forecast(&self, window: &Tensor, future: &Tensor) -> Result<Forecast> {
        self.in_words(&self.network.forward(window, future, false).values)
    }

    fn in_words(&self, values: &Tensor) -> Result<Forecast> {
        let values = values.f_to_kind(Kind::Float)?;
        let number = |place: i64| values.f_select(3, place);
        Ok(match self.form {
            ForecastForm::Point => Forecast { value: number(0)?, interval: None },
            ForecastForm::Gaussian => {
                let (mean, reach) = (number(0)?, number(1)? * NINE_IN_TEN);
                Forecast { interval: Some((&mean - &reach, &mean + &reach)), value: mean }
            }
            ForecastForm::Quantiles => {
                let count = self.quantiles.len() as i64;
                let interval = (count > 1)
                    .then(|| Ok::<_, tch::TchError>((number(0)?, number(count - 1)?)))
                    .transpose()?;
                Forecast { value: number(count / 2)?, interval }
            }
        })
    }

    /// What the loss of a batch is divided by: values that are forecast.
    pub fn weight(&self, batch: &SeriesBatch) -> f64 {
        batch.targets.numel() as f64
    }

    /// Loss and metrics of a batch.
    pub fn step(&self, batch: &SeriesBatch, mode: Mode) -> Result<StepOutput> {
        let values = self.network.forward(&batch.window, &batch.future, mode == Mode::Train).values;
        let values = values.f_to_kind(Kind::Float)?; // [batch, horizon, targets, numbers]
        let error = values.f_select(3, 0)? - &batch.targets;
        let loss_sum = match self.form {
            ForecastForm::Point => error.f_square()?,
            // Minus the logarithm of the normal density.
            ForecastForm::Gaussian => {
                let deviation = values.f_select(3, 1)?;
                (&error / &deviation).f_square()? * 0.5
                    + deviation.f_log()?
                    + 0.5 * std::f64::consts::TAU.ln()
            }
            // The pinball loss of each quantile: Koenker and Bassett 1978.
            ForecastForm::Quantiles => {
                let below = batch.targets.f_unsqueeze(3)? - &values;
                below.f_mul(&self.levels)?.f_maximum(&below.f_mul(&(&self.levels - 1.0))?)?.f_mean_dim(
                    -1i64,
                    false,
                    Kind::Float,
                )?
            }
        }
        .f_sum(Kind::Float)?;
        if mode == Mode::Train {
            return Ok(StepOutput { loss_sum, sums: Vec::new(), outcome: None });
        }
        let weight = self.weight(batch);
        let Forecast { value, interval } = self.in_words(&values)?;
        let mut sums = Vec::new();
        let mut add = |name: &'static str, total: Tensor| sums.push(Sum { name, total, weight });
        let error = &value - &batch.targets;
        add("mse", error.f_square()?.f_sum(Kind::Double)?);
        add("mae", error.f_abs()?.f_sum(Kind::Double)?);
        if let Some((low, high)) = interval {
            let inside =
                batch.targets.f_ge_tensor(&low)?.f_logical_and(&batch.targets.f_le_tensor(&high)?)?;
            add("coverage", inside.f_sum(Kind::Double)?);
        }
        let mut by_step = vec![error.f_square()?.f_mean_dim(2i64, false, Kind::Float)?]; // [batch, horizon]
        if let Some(baselines) = &batch.baselines {
            for (number, [mse, mae]) in BASELINE_METRICS.into_iter().enumerate() {
                let error = baselines.f_select(0, number as i64)? - &batch.targets;
                add(mse, error.f_square()?.f_sum(Kind::Double)?);
                add(mae, error.f_abs()?.f_sum(Kind::Double)?);
                by_step.push(error.f_square()?.f_mean_dim(2i64, false, Kind::Float)?);
            }
        }
        let outcome =
            Outcome { prediction: Tensor::f_stack(&by_step, 1)?, target: batch.targets.shallow_clone() };
        Ok(StepOutput { loss_sum, sums, outcome: Some(outcome) })
    }

    /// The collector of errors by step.
    pub fn evaluator(&self) -> Box<dyn Evaluator> {
        Box::new(StepErrors { sums: vec![vec![0.0; self.horizon]; BASELINES.len() + 1], windows: 0.0 })
    }
}

/// Sums squared errors of each step of the horizon.
struct StepErrors {
    /// `[network and baselines, step]`
    sums: Vec<Vec<f64>>,
    windows: f64,
}

impl Evaluator for StepErrors {
    /// `prediction` is `[batch, network and baselines, horizon]`: squared errors.
    fn add(&mut self, samples: &[usize], outcome: &Outcome) -> Result<()> {
        // One read for each batch that is looked at, of a few numbers.
        let sums = outcome.prediction.f_sum_dim_intlist(0i64, false, Kind::Double)?;
        for (all, new) in self.sums.iter_mut().zip(Vec::<Vec<f64>>::try_from(sums)?) {
            all.iter_mut().zip(new).for_each(|(sum, new)| *sum += new);
        }
        self.windows += samples.len() as f64;
        Ok(())
    }

    fn gather(&mut self, reducer: &mut dyn Reducer) -> Result<()> {
        if reducer.world_size() > 1 {
            for sum in self.sums.iter_mut().flatten() {
                *sum = reducer.sum(*sum)?;
            }
            self.windows = reducer.sum(self.windows)?;
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Evaluation> {
        let mean = |sums: &Vec<f64>| sums.iter().map(|sum| sum / self.windows).collect::<Vec<f64>>();
        let names = std::iter::once("network").chain(BASELINES);
        let by_step: serde_json::Map<String, serde_json::Value> =
            names.zip(&self.sums).map(|(name, sums)| (name.to_owned(), json!(mean(sums)))).collect();
        Ok(Evaluation { metrics: Default::default(), details: json!({ "mse_by_step": by_step }) })
    }
}
