//! What a fit says about the population: standard errors, tests, intervals, information criteria, and diagnostics of residuals.
//!
//! Definitions and names are those of statsmodels 0.15 (`OLS`, `WLS`, `Logit`, `MNLogit`, `GLM(Poisson)`, `RLM`, `QuantReg`), where it has the
//! model.

use anyhow::{Result, anyhow};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::algebra::{condition, eigen, inverse_positive, numbers, scalar};
use super::config::{ModelName, RegressionModelConfig};
use super::design::{Block, Design};
use super::direct::Normal;
use super::distributions::{
    chi_squared_tail, f_tail, normal_quantile, normal_two_sided, t_quantile, t_two_sided,
};
use super::fit::Fit;
use super::objective::{Glm, Loss, Objective};
use crate::bail_input;

/// Rows whose residuals are kept for drawing.
const DRAWN_ROWS: usize = 4000;
/// Half of what lies outside a 95 % interval.
const TAIL: f64 = 0.025;

/// One coefficient.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Coefficient {
    /// The column; `const` for the intercept.
    pub name: String,
    /// The class it belongs to, where there are several.
    pub class: Option<String>,
    /// Its value in the units of the table.
    pub value: f64,
    /// Its standard error; none where the fit has no such thing.
    pub standard_error: Option<f64>,
    /// Value / standard error.
    pub statistic: Option<f64>,
    /// Probability of a statistic at least as large if the coefficient were zero.
    pub p: Option<f64>,
    /// Lower end of the 95 % interval.
    pub low: Option<f64>,
    /// Upper end of the 95 % interval.
    pub high: Option<f64>,
    /// exp(value), for logistic models and counts.
    pub odds_ratio: Option<f64>,
    /// Variance inflation factor.
    pub vif: Option<f64>,
    /// Standard errors that allow for unequal variances: HC0, HC1, HC2, HC3.
    pub robust: Option<[f64; 4]>,
}

/// A named figure of a fit.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Figure {
    /// As in the JSON of other programs: `r2_adjusted`.
    pub key: String,
    /// As people read it: `Adj. R-squared`.
    pub label: String,
    /// Its value.
    #[serde(deserialize_with = "number_or_nan")]
    pub value: f64,
}

fn number_or_nan<'de, D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// What is known of a fit.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Inference {
    /// The model.
    pub model: ModelName,
    /// The solver.
    pub solver: String,
    /// The target.
    pub target: String,
    /// Training rows.
    pub rows: usize,
    /// Linearly independent columns without the intercept.
    pub df_model: f64,
    /// Rows less coefficients.
    pub df_residuals: f64,
    /// `t` or `z`.
    pub statistic: String,
    /// Every coefficient, intercept first.
    pub coefficients: Vec<Coefficient>,
    /// Figures of the whole fit.
    pub figures: Vec<Figure>,
    /// What the reader should know.
    pub notes: Vec<String>,
}

/// Residuals for drawing, of every so many training rows.
#[derive(Clone, Debug, Default)]
pub struct Residuals {
    /// Predictions.
    pub fitted: Vec<f64>,
    /// Target less prediction.
    pub residual: Vec<f64>,
    /// Diagonal of the hat matrix.
    pub leverage: Vec<f64>,
    /// Residuals divided by their standard deviation (internally studentised).
    pub standardised: Vec<f64>,
}

impl Inference {
    /// The value of a figure.
    pub fn figure(&self, key: &str) -> Option<f64> {
        self.figures.iter().find(|figure| figure.key == key).map(|figure| figure.value)
    }
}

impl Inference {
    /// Puts errors that allow for unequal variances in place of the plain ones, with a normal distribution as statsmodels does.
    ///
    /// # Errors
    /// There is no such kind, or the fit has none.
    pub fn use_robust(&mut self, kind: &str) -> Result<()> {
        const KINDS: [&str; 4] = ["HC0", "HC1", "HC2", "HC3"];
        let Some(place) = KINDS.iter().position(|known| known.eq_ignore_ascii_case(kind)) else {
            bail_input!("--robust {kind}: choose {}", KINDS.join(", "));
        };
        if self.coefficients.iter().any(|coefficient| coefficient.robust.is_none()) {
            bail_input!(
                "--robust {kind}: this fit has no such standard errors (they are for unpenalised linear models)"
            );
        }
        let reach = normal_quantile(TAIL);
        for coefficient in &mut self.coefficients {
            if let Some(errors) = coefficient.robust {
                complete(coefficient, errors[place], reach, normal_two_sided);
            }
        }
        self.statistic = "z".to_owned();
        self.notes.push(format!("Standard errors are {}.", KINDS[place]));
        Ok(())
    }
}

struct Figures(Vec<Figure>);

impl Figures {
    fn put(&mut self, key: &str, label: &str, value: f64) {
        self.0.push(Figure { key: key.to_owned(), label: label.to_owned(), value });
    }
}

/// All that can be said of a fit on its training rows.
pub fn infer(
    config: &RegressionModelConfig,
    design: &Design,
    fit: &Fit,
) -> Result<(Inference, Option<Residuals>)> {
    let _guard = tch::no_grad_guard();
    let penalised = config.is_penalised();
    match fit.model.loss() {
        Some(Loss::Squared) => {
            least_squares(config, design, fit, penalised).map(|(inference, rows)| (inference, Some(rows)))
        }
        Some(loss) => Ok((generalised(config, design, fit, loss, penalised)?, None)),
        None => robust_fits(config, design, fit).map(|(inference, rows)| (inference, Some(rows))),
    }
}

fn blank(config: &RegressionModelConfig, design: &Design, fit: &Fit, statistic: &str) -> Inference {
    let classes = fit.model.encoding.classes.as_deref().unwrap_or_default();
    let several = fit.model.intercept.len() > 1;
    let mut coefficients = Vec::new();
    for (output, (intercept, weights)) in fit.model.intercept.iter().zip(&fit.model.coefficients).enumerate()
    {
        let all = config.intercept.then_some(intercept).into_iter().chain(weights);
        for (name, &value) in design.names().iter().zip(all) {
            coefficients.push(Coefficient {
                name: name.clone(),
                class: several.then(|| classes.get(output).cloned().unwrap_or_else(|| output.to_string())),
                value,
                standard_error: None,
                statistic: None,
                p: None,
                low: None,
                high: None,
                odds_ratio: None,
                vif: None,
                robust: None,
            });
        }
    }
    Inference {
        model: config.name,
        solver: fit.model.solver.name.name().to_owned(),
        target: fit.model.encoding.target.clone(),
        rows: design.source().rows(),
        df_model: fit.model.columns.len() as f64,
        df_residuals: design.source().rows() as f64 - design.columns() as f64,
        statistic: statistic.to_owned(),
        coefficients,
        figures: Vec::new(),
        notes: Vec::new(),
    }
}

/// The inverse of a symmetric matrix, or its pseudo-inverse where it has none.
fn inverse(matrix: &Tensor) -> Result<Tensor> {
    if let Some(inverse) = inverse_positive(matrix)? {
        return Ok(inverse);
    }
    pseudo_inverse(matrix)
}

fn pseudo_inverse(matrix: &Tensor) -> Result<Tensor> {
    let (values, vectors) = eigen(matrix)?;
    let largest = values.iter().fold(0.0, |largest: f64, value| largest.max(value.abs()));
    let inverted: Vec<f64> =
        values.iter().map(|&value| if value > largest * 1e-12 { 1.0 / value } else { 0.0 }).collect();
    let inverted = super::algebra::vector(&inverted)?.f_to_device(matrix.device())?;
    Ok((&vectors * inverted.f_unsqueeze(0)?).f_matmul(&vectors.f_tr()?)?)
}

/// Standard errors in the units of the table from the covariance of the design's coefficients.
fn errors_in_units(design: &Design, covariance: &Tensor) -> Result<Vec<f64>> {
    let to_units = design.to_units()?;
    let covariance = to_units.f_matmul(covariance)?.f_matmul(&to_units.f_tr()?)?;
    Ok(numbers(&covariance.f_diagonal(0, 0, 1)?)?
        .into_iter()
        .map(|variance| variance.max(0.0).sqrt())
        .collect())
}

fn least_squares(
    config: &RegressionModelConfig,
    design: &Design,
    fit: &Fit,
    penalised: bool,
) -> Result<(Inference, Residuals)> {
    let own;
    let normal = match &fit.normal {
        Some(normal) => normal,
        None => {
            own = Normal::of(design)?;
            &own
        }
    };
    let mut inverse = inverse(&normal.gram)?;
    let rank = fit.model.solver.rank.unwrap_or(design.columns());
    if rank < design.columns() {
        inverse = pseudo_inverse(&normal.gram)?;
    }
    let mut inference = blank(config, design, fit, "t");
    let rows = inference.rows as f64;
    let ones = f64::from(u8::from(config.intercept));
    (inference.df_model, inference.df_residuals) = (rank as f64 - ones, rows - rank as f64);

    let beta = fit.internal.f_select(0, 0)?;
    let columns = design.columns() as i64;
    let options = (Kind::Double, design.device());
    let meats: Vec<Tensor> = (0..3)
        .map(|_| Tensor::f_zeros([columns, columns], options))
        .collect::<std::result::Result<_, _>>()?;
    let mut passes = ResidualSums::default();
    let mut drawn = Residuals::default();
    let stride = design.source().rows().div_ceil(DRAWN_ROWS).max(1) as i64;
    let (mut seen, mut leverages) = (0i64, Vec::new());
    design.visit(&mut |block: &Block| {
        let fitted = block.x.f_mv(&beta)?;
        let residual = &block.y - &fitted;
        let (x, whitened) = match &block.weight {
            Some(weight) => {
                let root = weight.f_sqrt()?;
                (&block.x * root.f_unsqueeze(1)?, &residual * root)
            }
            None => (block.x.shallow_clone(), residual.shallow_clone()),
        };
        let leverage =
            (x.f_matmul(&inverse)? * &x).f_sum_dim_intlist([1i64].as_slice(), false, Kind::Double)?;
        let kept = (1f64 - &leverage).f_clamp_min(f64::EPSILON)?;
        let square = whitened.f_square()?;
        for (meat, share) in
            meats.iter().zip([square.shallow_clone(), &square / &kept, &square / kept.f_square()?])
        {
            let _ = meat.shallow_clone().f_addmm_(&(&x * share.f_unsqueeze(1)?).f_tr()?, &x)?;
        }
        passes.add(&whitened, block)?;
        let first = (stride - seen % stride) % stride;
        if first < block.y.size()[0] {
            let pick = |tensor: &Tensor| numbers(&tensor.f_slice(0, first, None, stride)?);
            drawn.fitted.extend(pick(&fitted)?);
            drawn.residual.extend(pick(&residual)?);
            leverages.extend(pick(&leverage)?);
            drawn.standardised.extend(pick(&(whitened / kept.f_sqrt()?))?);
        }
        seen += block.y.size()[0];
        Ok(())
    })?;
    let sums = passes.close()?;
    let variance = sums.squares / inference.df_residuals;
    drawn.leverage = leverages;
    for value in &mut drawn.standardised {
        *value /= variance.sqrt();
    }

    let total = match config.intercept {
        true => normal.squares - normal.sum * normal.sum / normal.weight,
        false => normal.squares,
    };
    let r2 = 1.0 - sums.squares / total;
    let log_likelihood =
        -0.5 * rows * ((std::f64::consts::TAU * sums.squares / rows).ln() + 1.0) + 0.5 * sums.log_weights;
    let mut figures = Figures(Vec::new());
    figures.put("r2", "R-squared", r2);
    if !penalised {
        let f = (total - sums.squares) / inference.df_model / variance;
        figures.put(
            "r2_adjusted",
            "Adj. R-squared",
            1.0 - (rows - ones) / inference.df_residuals * (1.0 - r2),
        );
        figures.put("f", "F-statistic", f);
        figures.put("f_p", "Prob (F-statistic)", f_tail(f, inference.df_model, inference.df_residuals));
        figures.put("log_likelihood", "Log-Likelihood", log_likelihood);
        figures.put("aic", "AIC", 2.0 * rank as f64 - 2.0 * log_likelihood);
        figures.put("bic", "BIC", rank as f64 * rows.ln() - 2.0 * log_likelihood);
        figures.put("residual_variance", "Residual variance", variance);
    } else {
        figures.put("residual_sum_of_squares", "Residual SS", sums.squares);
    }
    figures.put("durbin_watson", "Durbin-Watson", sums.differences / sums.squares);
    let mean = sums.first / rows;
    let second = sums.squares / rows - mean * mean;
    let third = sums.cubes / rows - 3.0 * mean * sums.squares / rows + 2.0 * mean.powi(3);
    let fourth = sums.fourths / rows - 4.0 * mean * sums.cubes / rows
        + 6.0 * mean * mean * sums.squares / rows
        - 3.0 * mean.powi(4);
    let (skew, kurtosis) = (third / second.powf(1.5), fourth / second.powi(2));
    let jarque_bera = rows / 6.0 * (skew * skew + (kurtosis - 3.0).powi(2) / 4.0);
    figures.put("jarque_bera", "Jarque-Bera (JB)", jarque_bera);
    figures.put("jarque_bera_p", "Prob(JB)", chi_squared_tail(jarque_bera, 2.0));
    figures.put("skew", "Skew", skew);
    figures.put("kurtosis", "Kurtosis", kurtosis);
    figures.put("condition_number", "Cond. No.", condition_in_units(design, &normal.gram)?);
    inference.figures = figures.0;

    if penalised {
        inference
            .notes
            .push("The coefficients are shrunk by a penalty: they have no standard errors.".to_owned());
        return Ok((inference, drawn));
    }
    if inference.df_residuals <= 0.0 {
        inference.notes.push(
            "There are as many coefficients as rows: the fit has no residuals to judge it by.".to_owned(),
        );
        return Ok((inference, drawn));
    }
    let errors = errors_in_units(design, &(&inverse * variance))?;
    let corrections = [1.0, rows / inference.df_residuals, 1.0, 1.0];
    let robust = [0, 0, 1, 2]
        .iter()
        .zip(corrections)
        .map(|(&meat, correction)| {
            let covariance = inverse.f_matmul(&meats[meat])?.f_matmul(&inverse)? * correction;
            errors_in_units(design, &covariance)
        })
        .collect::<Result<Vec<_>>>()?;
    let inflation = numbers(&(inverse.f_diagonal(0, 0, 1)? * normal.gram.f_diagonal(0, 0, 1)?))?;
    let reach = t_quantile(TAIL, inference.df_residuals);
    let degrees = inference.df_residuals;
    for (place, coefficient) in inference.coefficients.iter_mut().enumerate() {
        complete(coefficient, errors[place], reach, |t| t_two_sided(t, degrees));
        coefficient.vif = (!config.intercept || place > 0).then(|| inflation[place]);
        coefficient.robust = Some([robust[0][place], robust[1][place], robust[2][place], robust[3][place]]);
    }
    let condition = inference.figure("condition_number").unwrap_or(0.0);
    if condition > 1000.0 {
        inference.notes.push(format!(
            "The condition number is large, {condition:.3e}: columns may depend on each other nearly, or have very different sizes."
        ));
    }
    if rank < design.columns() {
        inference.notes.push(format!(
            "The design has rank {rank} of {}: single coefficients of the dependent columns mean nothing.",
            design.columns()
        ));
    }
    Ok((inference, drawn))
}

fn complete(coefficient: &mut Coefficient, error: f64, reach: f64, two_sided: impl Fn(f64) -> f64) {
    let statistic = coefficient.value / error;
    coefficient.standard_error = Some(error);
    coefficient.statistic = Some(statistic);
    coefficient.p = Some(two_sided(statistic));
    coefficient.low = Some(coefficient.value - reach * error);
    coefficient.high = Some(coefficient.value + reach * error);
}

/// The condition number of the design in the units of the table, intercept included, as statsmodels gives it.
fn condition_in_units(design: &Design, gram: &Tensor) -> Result<f64> {
    let columns = design.columns() as i64;
    let identity = Tensor::f_eye(columns, (Kind::Double, design.device()))?;
    let (back, info) = Tensor::f_linalg_solve_ex(&design.to_units()?, &identity, true, false)?;
    if info.f_int64_value(&[])? != 0 {
        return Ok(f64::INFINITY);
    }
    let in_units = back.f_tr()?.f_matmul(gram)?.f_matmul(&back)?;
    Ok(condition(&eigen(&in_units)?.0))
}

/// Sums over residuals in the order of the rows.
#[derive(Default)]
struct ResidualSums {
    sums: Option<Tensor>,
    log_weights: f64,
    last: Option<Tensor>,
}

struct ClosedSums {
    first: f64,
    squares: f64,
    cubes: f64,
    fourths: f64,
    differences: f64,
    log_weights: f64,
}

impl ResidualSums {
    fn add(&mut self, residual: &Tensor, block: &Block) -> Result<()> {
        let square = residual.f_square()?;
        let ordered = match &self.last {
            Some(last) => Tensor::f_cat(&[last, residual], 0)?,
            None => residual.shallow_clone(),
        };
        let count = ordered.size()[0];
        let steps = ordered.f_narrow(0, 1, count - 1)? - ordered.f_narrow(0, 0, count - 1)?;
        let of_block = Tensor::f_stack(
            &[
                residual.f_sum(Kind::Double)?,
                square.f_sum(Kind::Double)?,
                (&square * residual).f_sum(Kind::Double)?,
                square.f_square()?.f_sum(Kind::Double)?,
                steps.f_square()?.f_sum(Kind::Double)?,
            ],
            0,
        )?;
        self.sums = Some(match self.sums.take() {
            Some(sums) => sums + of_block,
            None => of_block,
        });
        if let Some(weight) = &block.weight {
            self.log_weights += scalar(&weight.f_log()?.f_sum(Kind::Double)?)?;
        }
        self.last = Some(residual.f_narrow(0, residual.size()[0] - 1, 1)?.f_contiguous()?);
        Ok(())
    }

    fn close(self) -> Result<ClosedSums> {
        let sums = numbers(&self.sums.ok_or_else(|| anyhow!("no row was seen"))?)?;
        Ok(ClosedSums {
            first: sums[0],
            squares: sums[1],
            cubes: sums[2],
            fourths: sums[3],
            differences: sums[4],
            log_weights: self.log_weights,
        })
    }
}

fn generalised(
    config: &RegressionModelConfig,
    design: &Design,
    fit: &Fit,
    loss: Loss,
    penalised: bool,
) -> Result<Inference> {
    let mut inference = blank(config, design, fit, "z");
    let model = Glm { design, loss, l2: 0.0 };
    let point = model.evaluate(&fit.internal.f_reshape([-1])?, !penalised)?;
    let (counts, factorials) = target_sums(design, loss)?;
    let weight: f64 = match loss {
        Loss::Poisson => counts[0],
        _ => counts.iter().sum(),
    };
    let log_likelihood = -point.value - factorials;
    // The best that an intercept alone does.
    let null = match loss {
        Loss::Poisson => {
            let (weight, sum) = (counts[0], counts[1]);
            sum * (sum / weight).ln() - sum - factorials
        }
        _ => counts
            .iter()
            .filter(|count| **count > 0.0)
            .map(|count| count * (count / weight).ln())
            .sum::<f64>(),
    };
    // Classes are compared with one of them.
    let outputs = match loss {
        Loss::Multinomial(classes) => (classes - 1) as f64,
        _ => 1.0,
    };
    let ones = f64::from(u8::from(config.intercept));
    let parameters = outputs * design.columns() as f64;
    inference.df_model = parameters - outputs * ones;
    inference.df_residuals = inference.rows as f64 - parameters;
    let mut figures = Figures(Vec::new());
    figures.put("log_likelihood", "Log-Likelihood", log_likelihood);
    figures.put("log_likelihood_null", "LL-Null", null);
    figures.put("pseudo_r2", "Pseudo R-squ.", 1.0 - log_likelihood / null);
    if !penalised {
        let ratio = 2.0 * (log_likelihood - null);
        figures.put("llr", "LL ratio", ratio);
        figures.put("llr_p", "LLR p-value", chi_squared_tail(ratio, inference.df_model));
        figures.put("aic", "AIC", 2.0 * parameters - 2.0 * log_likelihood);
        figures.put("bic", "BIC", parameters * (inference.rows as f64).ln() - 2.0 * log_likelihood);
    }
    let columns = design.columns() as i64;
    if loss == Loss::Poisson {
        let (deviance, pearson) = poisson_misfit(design, fit)?;
        figures.put("deviance", "Deviance", deviance);
        figures.put("pearson_chi2", "Pearson chi2", pearson);
    }
    inference.figures = figures.0;
    for coefficient in &mut inference.coefficients {
        coefficient.odds_ratio = Some(coefficient.value.exp());
    }
    if penalised {
        inference.notes.push(
            "The coefficients are shrunk by a penalty: they have no standard errors (use --penalty none)."
                .to_owned(),
        );
        return Ok(inference);
    }
    let hessian = point.hessian.ok_or_else(|| anyhow!("no Hessian"))?;
    let covariance = match loss {
        Loss::Multinomial(_) => pseudo_inverse(&hessian)?,
        _ => inverse(&hessian)?,
    };
    let reach = normal_quantile(TAIL);
    for (output, chunk) in inference.coefficients.chunks_mut(columns as usize).enumerate() {
        let start = output as i64 * columns;
        let own = covariance.f_narrow(0, start, columns)?.f_narrow(1, start, columns)?;
        for (coefficient, error) in chunk.iter_mut().zip(errors_in_units(design, &own)?) {
            complete(coefficient, error, reach, normal_two_sided);
        }
    }
    if let Loss::Multinomial(_) = loss {
        inference.notes.push(
            "Coefficients of a column sum to zero over the classes; each is against the mean of all classes."
                .to_owned(),
        );
    }
    Ok(inference)
}

/// For classes the weight of each; for counts the weight of all rows, the weighted sum of the target. And Σ log y! for counts.
fn target_sums(design: &Design, loss: Loss) -> Result<(Vec<f64>, f64)> {
    let classes = match loss {
        Loss::Multinomial(classes) => classes,
        Loss::Logistic => 2,
        _ => 0,
    } as i64;
    let mut counts = vec![0.0; classes.max(2) as usize];
    let mut factorials = 0.0;
    design.visit(&mut |block: &Block| {
        let of_block = match classes {
            0 => {
                factorials += scalar(&block.sum(&(&block.y + 1.0).f_lgamma()?)?)?;
                vec![scalar(&block.weights()?.f_sum(Kind::Double)?)?, scalar(&block.sum(&block.y)?)?]
            }
            _ => numbers(&block.y.f_to_kind(Kind::Int64)?.f_bincount(block.weight.as_ref(), classes)?)?,
        };
        for (total, count) in counts.iter_mut().zip(of_block) {
            *total += count;
        }
        Ok(())
    })?;
    Ok((counts, factorials))
}

fn poisson_misfit(design: &Design, fit: &Fit) -> Result<(f64, f64)> {
    let beta = fit.internal.f_select(0, 0)?;
    let (mut deviance, mut pearson) = (0.0, 0.0);
    design.visit(&mut |block: &Block| {
        let mean = block.x.f_mv(&beta)?.f_exp()?;
        let terms = (block.y.f_xlogy(&(&block.y / &mean))? - (&block.y - &mean)) * 2.0;
        deviance += scalar(&block.sum(&terms)?)?;
        pearson += scalar(&block.sum(&((&block.y - &mean).f_square()? / &mean))?)?;
        Ok(())
    })?;
    Ok((deviance, pearson))
}

/// Huber and quantile regression: residuals, and standard errors where there are neither weights nor a penalty.
fn robust_fits(config: &RegressionModelConfig, design: &Design, fit: &Fit) -> Result<(Inference, Residuals)> {
    let is_quantile = config.name == ModelName::Quantile;
    let mut inference = blank(config, design, fit, if is_quantile { "t" } else { "z" });
    let beta = fit.internal.f_select(0, 0)?;
    let scale = fit.model.scale.unwrap_or(f64::NAN);
    let epsilon = config.epsilon.unwrap_or(1.35);
    let mut drawn = Residuals::default();
    let stride = design.source().rows().div_ceil(DRAWN_ROWS).max(1) as i64;
    let (mut seen, mut absolute, mut pull, mut inliers) = (0i64, 0.0, 0.0, 0.0);
    // Quantile regression has all rows in memory anyway.
    let (mut targets, mut residuals, mut weights) = (Vec::new(), Vec::new(), Vec::new());
    design.visit(&mut |block: &Block| {
        let fitted = block.x.f_mv(&beta)?;
        let residual = &block.y - &fitted;
        absolute += scalar(&block.sum(&residual.f_abs()?)?)?;
        match is_quantile {
            true => {
                targets.extend(numbers(&block.y)?);
                residuals.extend(numbers(&residual)?);
                weights.extend(numbers(&block.weights()?)?);
            }
            false => {
                let z = &residual / scale;
                pull += scalar(&z.f_clamp(-epsilon, epsilon)?.f_square()?.f_sum(Kind::Double)?)?;
                inliers += scalar(&z.f_abs()?.f_le(epsilon)?.f_sum(Kind::Double)?)?;
            }
        }
        let first = (stride - seen % stride) % stride;
        if first < block.y.size()[0] {
            let pick = |tensor: &Tensor| numbers(&tensor.f_slice(0, first, None, stride)?);
            drawn.fitted.extend(pick(&fitted)?);
            drawn.residual.extend(pick(&residual)?);
        }
        seen += block.y.size()[0];
        Ok(())
    })?;
    let rows = inference.rows as f64;
    let mut figures = Figures(Vec::new());
    if is_quantile {
        let quantile = config.quantile.unwrap_or(0.5);
        // The sample quantile is what is predicted without features.
        let mut sorted = targets.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let middle = ((sorted.len() as f64 * quantile).ceil() as usize).clamp(1, sorted.len().max(1)) - 1;
        let constant = sorted.get(middle).copied().unwrap_or_default();
        let lost = |residual: f64| (residual * quantile).max(residual * (quantile - 1.0));
        let pinball: f64 =
            residuals.iter().zip(&weights).map(|(residual, weight)| weight * lost(*residual)).sum();
        let null: f64 = targets.iter().zip(&weights).map(|(y, weight)| weight * lost(y - constant)).sum();
        figures.put("quantile", "Quantile", quantile);
        figures.put("pinball_loss", "Pinball loss", pinball / rows);
        figures.put("pseudo_r2", "Pseudo R-squ.", 1.0 - pinball / null);
    } else {
        figures.put("mean_absolute_error", "Mean abs. error", absolute / rows);
        figures.put("scale", "Scale", scale);
    }
    let why_not = if config.is_penalised() {
        Some("The coefficients are shrunk by a penalty: they have no standard errors (use --alpha 0).")
    } else if fit.model.encoding.columns().is_empty() || inference.df_residuals <= 0.0 {
        Some("There are as many coefficients as rows: the fit has no residuals to judge it by.")
    } else if has_weights(design)? {
        Some("With weights of rows there are no standard errors.")
    } else {
        None
    };
    if let Some(why_not) = why_not {
        inference.notes.push(why_not.to_owned());
    } else if is_quantile {
        let sparsity = Sparsity::of(&targets, &mut residuals.clone(), config.quantile.unwrap_or(0.5));
        let covariance = quantile_covariance(design, &beta, &sparsity)?;
        let (errors, degrees) = (errors_in_units(design, &covariance)?, inference.df_residuals);
        let reach = t_quantile(TAIL, degrees);
        for (coefficient, error) in inference.coefficients.iter_mut().zip(errors) {
            complete(coefficient, error, reach, |t| t_two_sided(t, degrees));
        }
        figures.put("sparsity", "Sparsity", 1.0 / sparsity.density);
        figures.put("bandwidth", "Bandwidth", sparsity.bandwidth);
        inference.notes.push(
            "Standard errors allow for unequal variances (Epanechnikov kernel, Hall and Sheather's bandwidth)."
                .to_owned(),
        );
    } else {
        // Huber 1973: the covariance that statsmodels calls H1, at the scale that was fitted along.
        let inside = inliers / rows;
        let correction = 1.0 + design.columns() as f64 / rows * (inside * (1.0 - inside)) / inside.powi(2);
        let variance = correction.powi(2) * pull * scale.powi(2) / inference.df_residuals / inside.powi(2);
        let covariance = inverse(&Normal::of(design)?.gram)? * variance;
        let (errors, reach) = (errors_in_units(design, &covariance)?, normal_quantile(TAIL));
        for (coefficient, error) in inference.coefficients.iter_mut().zip(errors) {
            complete(coefficient, error, reach, normal_two_sided);
        }
        inference
            .notes
            .push("Standard errors are Huber's (H1), at the scale that was fitted along.".to_owned());
    }
    inference.figures = figures.0;
    Ok((inference, drawn))
}

fn has_weights(design: &Design) -> Result<bool> {
    let mut found = false;
    design.source().visit(&mut |block| {
        found |= block.weight.is_some();
        Ok(())
    })?;
    Ok(found)
}

/// How dense the residuals lie at zero, as statsmodels' `QuantReg` estimates it.
struct Sparsity {
    quantile: f64,
    bandwidth: f64,
    density: f64,
    /// What counts as zero: rows through which the fit goes.
    zero: f64,
}

impl Sparsity {
    fn of(targets: &[f64], residuals: &mut [f64], quantile: f64) -> Self {
        let count = residuals.len() as f64;
        let mean = targets.iter().sum::<f64>() / count;
        let deviation = (targets.iter().map(|y| (y - mean).powi(2)).sum::<f64>() / count).sqrt();
        residuals.sort_unstable_by(f64::total_cmp);
        let percentile = |share: f64| {
            let place = share * (count - 1.0);
            let (below, above) = (place.floor() as usize, place.ceil() as usize);
            residuals[below] + (residuals[above] - residuals[below]) * place.fract()
        };
        let spread = (percentile(0.75) - percentile(0.25)) / 1.34;
        // Hall and Sheather 1988.
        let z = -normal_quantile(quantile);
        let peak = 1.5 * ((-0.5 * z * z).exp() / std::f64::consts::TAU.sqrt()).powi(2);
        let width = count.powf(-1.0 / 3.0)
            * normal_quantile(TAIL).powf(2.0 / 3.0)
            * (peak / (2.0 * z * z + 1.0)).powf(1.0 / 3.0);
        let bandwidth = deviation.min(spread)
            * (normal_quantile(1.0 - quantile - width) - normal_quantile(1.0 - quantile + width));
        let kernel = |u: f64| if u.abs() <= 1.0 { 0.75 * (1.0 - u * u) } else { 0.0 };
        let density =
            residuals.iter().map(|residual| kernel(residual / bandwidth)).sum::<f64>() / (count * bandwidth);
        let zero = 1e-9 * residuals.iter().fold(0.0, |largest: f64, residual| largest.max(residual.abs()));
        Self { quantile, bandwidth, density, zero }
    }
}

fn quantile_covariance(design: &Design, beta: &Tensor, sparsity: &Sparsity) -> Result<Tensor> {
    let columns = design.columns() as i64;
    let Sparsity { quantile, density, zero, .. } = *sparsity;
    let (above, below) = ((quantile / density).powi(2), ((1.0 - quantile) / density).powi(2));
    let shape: [&[i64]; 2] = [&[columns, columns], &[columns, columns]];
    let sums = design.sum(&[beta], &shape, &|given, sums, block| {
        let residual = &block.y - block.x.f_mv(&given[0])?;
        let share = residual.f_gt(zero)?.f_to_kind(Kind::Double)? * (above - below) + below;
        let transposed = block.x.f_tr()?;
        let _ = sums[0].shallow_clone().f_addmm_(&transposed, &block.x)?;
        let _ = sums[1].shallow_clone().f_addmm_(&transposed, &(&block.x * share.f_unsqueeze(1)?))?;
        Ok(())
    })?;
    let inverse = inverse(&sums[0])?;
    Ok(inverse.f_matmul(&sums[1])?.f_matmul(&inverse)?)
}

/// The summary as text, laid out as statsmodels does.
pub fn text(inference: &Inference) -> String {
    const WIDTH: usize = 78;
    let title = match inference.model {
        ModelName::Linear => "OLS Regression Results".to_owned(),
        other => format!("{} Regression Results", capitalised(other.name())),
    };
    let line = |mark: char| mark.to_string().repeat(WIDTH);
    let mut head: Vec<(String, String)> = vec![
        ("Dep. Variable".to_owned(), inference.target.clone()),
        ("Model".to_owned(), inference.model.name().to_owned()),
        ("Method".to_owned(), inference.solver.clone()),
        ("No. Observations".to_owned(), inference.rows.to_string()),
        ("Df Residuals".to_owned(), format!("{}", inference.df_residuals)),
        ("Df Model".to_owned(), format!("{}", inference.df_model)),
    ];
    const BELOW: [&str; 6] =
        ["durbin_watson", "jarque_bera", "jarque_bera_p", "skew", "kurtosis", "condition_number"];
    let told = |figure: &Figure| (figure.label.clone(), short(figure.value, figure.key.ends_with("_p")));
    head.extend(inference.figures.iter().filter(|figure| !BELOW.contains(&figure.key.as_str())).map(told));
    let below: Vec<_> =
        inference.figures.iter().filter(|figure| BELOW.contains(&figure.key.as_str())).map(told).collect();
    let mut lines = vec![format!("{title:^WIDTH$}").trim_end().to_owned(), line('=')];
    lines.extend(two_columns(&head, WIDTH));
    lines.push(line('='));
    let width = inference
        .coefficients
        .iter()
        .map(|coefficient| coefficient.name.chars().count())
        .max()
        .unwrap_or(0)
        .max(12);
    let statistic = &inference.statistic;
    let has_errors = inference.coefficients.iter().any(|coefficient| coefficient.standard_error.is_some());
    let header = match has_errors {
        true => format!(
            "{:width$} {:>11} {:>10} {:>9} {:>10} {:>11} {:>11}",
            "",
            "coef",
            "std err",
            statistic,
            format!("P>|{statistic}|"),
            "[0.025",
            "0.975]"
        ),
        false => format!("{:width$} {:>11}", "", "coef"),
    };
    let mut class = None;
    for coefficient in &inference.coefficients {
        if class.as_ref() != Some(&coefficient.class) {
            class = Some(coefficient.class.clone());
            if let Some(name) = &coefficient.class {
                lines.push(format!("{}={name}", inference.target));
            }
            lines.push(header.clone());
            lines.push(line('-'));
        }
        let number = |value: Option<f64>| value.map_or_else(String::new, |value| short(value, false));
        lines.push(match has_errors {
            true => format!(
                "{:width$} {:>11} {:>10} {:>9} {:>10} {:>11} {:>11}",
                coefficient.name,
                number(Some(coefficient.value)),
                number(coefficient.standard_error),
                coefficient.statistic.map_or_else(String::new, |value| format!("{value:.3}")),
                coefficient.p.map_or_else(String::new, |value| short(value, true)),
                number(coefficient.low),
                number(coefficient.high)
            ),
            false => format!("{:width$} {:>11}", coefficient.name, number(Some(coefficient.value))),
        });
    }
    lines.push(line('='));
    if !below.is_empty() {
        lines.extend(two_columns(&below, WIDTH));
        lines.push(line('='));
    }
    for (number, note) in inference.notes.iter().enumerate() {
        lines.push(format!("[{}] {note}", number + 1));
    }
    lines.join("\n")
}

fn capitalised(name: &str) -> String {
    let mut letters = name.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

fn two_columns(pairs: &[(String, String)], width: usize) -> Vec<String> {
    let half = pairs.len().div_ceil(2);
    let side = (width - 2) / 2;
    let cell = |(name, value): &(String, String)| {
        let gap = side.saturating_sub(name.chars().count() + 1 + value.chars().count()).max(1);
        format!("{name}:{}{value}", " ".repeat(gap))
    };
    (0..half)
        .map(|row| match pairs.get(row + half) {
            Some(second) => format!("{}  {}", cell(&pairs[row]), cell(second)),
            None => cell(&pairs[row]),
        })
        .collect()
}

/// A number with four to five digits; small probabilities keep theirs.
fn short(value: f64, probability: bool) -> String {
    let size = value.abs();
    if value.is_nan() {
        return "nan".to_owned();
    }
    if value == 0.0 || (probability && (1e-3..=1.0).contains(&size)) {
        return format!("{value:.3}");
    }
    match size {
        1e6.. => format!("{value:.3e}"),
        1e3.. => format!("{value:.1}"),
        1e-3.. => format!("{value:.4}"),
        _ => format!("{value:.2e}"),
    }
}
