//! Which solver fits a model, and the fitted model in the units of the table.

use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::algebra::vector;
use super::config::{ModelName, RegressionModelConfig, Solver};
use super::coordinate;
use super::design::{Block, Design, RowSource};
use super::direct::{self, Normal};
use super::encoding::Encoding;
use super::objective::{Glm, Huber, Loss, Outcome};
use super::scores::RowPredictor;
use super::{interior, lbfgs, newton};
use crate::weights::{NamedTensors, read_safetensors, write_safetensors};
use crate::{bail_input, files, recipe};

/// A fitted linear model.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct LinearModel {
    /// What it is.
    pub model: ModelName,
    /// How table rows become the columns that the coefficients belong to.
    pub encoding: Encoding,
    /// Names of those columns.
    pub columns: Vec<String>,
    /// An intercept for each output, 0 where the model has none.
    pub intercept: Vec<f64>,
    /// For each output the coefficients of the columns, in the units of the table.
    pub coefficients: Vec<Vec<f64>>,
    /// The estimated scale of the residuals (`huber`).
    pub scale: Option<f64>,
    /// Which quantile is predicted (`quantile`).
    pub quantile: Option<f64>,
    /// How it was found.
    pub solver: SolverReport,
}

/// How a fit went.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SolverReport {
    /// Its name.
    pub name: Solver,
    /// Why it was chosen.
    pub reason: String,
    /// Passes over the rows, or sweeps over the coordinates.
    pub iterations: u64,
    /// What was left to gain, in the words of `measure`; none for a direct solution.
    pub gap: Option<f64>,
    /// What the gap is.
    pub measure: String,
    /// Whether the gap is as small as was asked for.
    pub converged: bool,
    /// The value of the objective.
    pub objective: Option<f64>,
    /// Linearly independent columns, where the solver finds out.
    pub rank: Option<usize>,
    /// Condition number of the design as it was fitted.
    pub condition: Option<f64>,
}

/// A fit with what inference needs of it.
pub struct Fit {
    /// The model.
    pub model: LinearModel,
    /// Coefficients of the design, `[outputs, columns]`.
    pub internal: Tensor,
    /// The normal equations of the design, where the fit made them.
    pub normal: Option<Normal>,
    /// What the user should know.
    pub warnings: Vec<String>,
}

impl LinearModel {
    /// The loss that it minimises, as a function of its linear predictor; none for `huber`, `quantile`.
    pub fn loss(&self) -> Option<Loss> {
        loss_of(self.model, self.encoding.classes.as_ref().map_or(0, Vec::len))
    }

    /// Rows of the table `[rows, features]` to linear predictors `[rows, outputs]`.
    pub fn predictor(&self, rows: &Tensor) -> Result<Tensor> {
        let design = self.encoding.encode(rows)?;
        let (weight, bias) = self.tensors()?;
        let (weight, bias) = (weight.f_to_device(rows.device())?, bias.f_to_device(rows.device())?);
        Ok(design.f_matmul(&weight.f_tr()?)? + bias)
    }

    /// Rows of the table to expected values: a number `[rows, 1]`, the probability of the second class `[rows, 1]`, or the probabilities of all
    /// classes `[rows, classes]`.
    pub fn predict(&self, rows: &Tensor) -> Result<Tensor> {
        let predictor = self.predictor(rows)?;
        self.loss().unwrap_or(Loss::Squared).mean(&predictor)
    }

    /// What each row loses, given its linear predictors, in the measure of the model; none for squared errors.
    fn losses(&self, predictor: &Tensor, mean: &Tensor, y: &Tensor) -> Result<Option<Tensor>> {
        Ok(match self.model {
            ModelName::Quantile => {
                let quantile = self.quantile.unwrap_or(0.5);
                let residual = y - predictor.f_squeeze_dim(1)?;
                Some((&residual * quantile).f_maximum(&(&residual * (quantile - 1.0)))?)
            }
            ModelName::Poisson => {
                let mean = mean.f_squeeze_dim(1)?;
                Some((y.f_xlogy(&(y / &mean))? - (y - &mean)) * 2.0)
            }
            ModelName::Logistic | ModelName::Multinomial => {
                self.loss().map(|loss| loss.of_rows(predictor, y)).transpose()?
            }
            _ => None,
        })
    }

    /// `weight` `[outputs, columns]` and `bias` `[outputs]`, float64.
    pub fn tensors(&self) -> Result<(Tensor, Tensor)> {
        let flat: Vec<f64> = self.coefficients.concat();
        let weight = vector(&flat)?.f_view([self.intercept.len() as i64, self.columns.len() as i64])?;
        Ok((weight, vector(&self.intercept)?))
    }

    /// Writes `model.json` and `model.safetensors` into a folder.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        files::write_atomic(&folder.join(MODEL_JSON), text.as_bytes())?;
        let (weight, bias) = self.tensors()?;
        let tensors = NamedTensors::from([("weight".to_owned(), weight), ("bias".to_owned(), bias)]);
        write_safetensors(&folder.join(MODEL_TENSORS), &tensors)
    }

    /// Reads a run's model: its description from `model.json`, its numbers from `model.safetensors`.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(MODEL_JSON);
        let name = path.display().to_string();
        let mut model: LinearModel = recipe::typed(recipe::parse(&files::read_text(&path)?, &name)?, &name)?;
        let path = folder.join(MODEL_TENSORS);
        let tensors = read_safetensors(&path)?;
        let (Some(weight), Some(bias)) = (tensors.get("weight"), tensors.get("bias")) else {
            bail_input!("{} has no `weight` and `bias`", path.display());
        };
        if weight.size() != [model.intercept.len() as i64, model.columns.len() as i64]
            || bias.size() != [model.intercept.len() as i64]
        {
            bail_input!("{} does not have the shapes that {name} tells", path.display());
        }
        model.coefficients =
            Vec::<Vec<f64>>::try_from(weight.f_to_kind(Kind::Double)?).context("reading a model")?;
        model.intercept = Vec::<f64>::try_from(bias.f_to_kind(Kind::Double)?).context("reading a model")?;
        Ok(model)
    }

    /// Whether a folder has such a model.
    pub fn is_in(folder: &Path) -> bool {
        folder.join(MODEL_JSON).is_file()
    }
}

impl RowPredictor for LinearModel {
    fn encoding(&self) -> &Encoding {
        &self.encoding
    }

    fn predict(&self, rows: &Tensor) -> Result<Tensor> {
        LinearModel::predict(self, rows)
    }

    fn predict_with_losses(&self, rows: &Tensor, y: &Tensor) -> Result<(Tensor, Option<Tensor>)> {
        let predictor = self.predictor(rows)?;
        let mean = self.loss().unwrap_or(Loss::Squared).mean(&predictor)?;
        let losses = self.losses(&predictor, &mean, y)?;
        Ok((mean, losses))
    }
}

/// The readable form of a model in its run.
pub const MODEL_JSON: &str = "model.json";
/// Its numbers.
pub const MODEL_TENSORS: &str = "model.safetensors";

/// The loss of a model with so many classes.
pub fn loss_of(model: ModelName, classes: usize) -> Option<Loss> {
    match model {
        ModelName::Linear | ModelName::Ridge | ModelName::Lasso | ModelName::ElasticNet => {
            Some(Loss::Squared)
        }
        ModelName::Logistic => Some(Loss::Logistic),
        ModelName::Multinomial => Some(Loss::Multinomial(classes)),
        ModelName::Poisson => Some(Loss::Poisson),
        ModelName::Huber | ModelName::Quantile | ModelName::Mlp => None,
    }
}

/// The solver for a model of this size, with the reason.
pub fn choose(config: &RegressionModelConfig, rows: usize, columns: usize) -> (Solver, String) {
    if config.solver != Solver::Auto {
        return (config.solver, "it was asked for".to_owned());
    }
    let (l1, _) = config.strengths(1.0);
    let work = rows as f64 * (columns as f64).powi(2);
    match config.name {
        ModelName::Linear if rows < columns => {
            (Solver::Svd, format!("{rows} rows do not determine {columns} coefficients"))
        }
        ModelName::Linear | ModelName::Ridge => match work {
            // A QR decomposition of this size takes a fraction of a second.
            ..=5e8 => (Solver::Qr, "the design is small, and QR is the most accurate".to_owned()),
            _ => (Solver::Cholesky, format!("{rows} rows are many: one pass makes the normal equations")),
        },
        ModelName::Lasso | ModelName::ElasticNet => {
            (Solver::Coordinate, "the penalty has corners".to_owned())
        }
        ModelName::Logistic | ModelName::Multinomial if l1 > 0.0 => {
            (Solver::Coordinate, "the penalty has corners".to_owned())
        }
        ModelName::Logistic | ModelName::Multinomial | ModelName::Poisson | ModelName::Huber => match columns
        {
            ..=1000 => (Solver::Newton, "few coefficients: Newton's method needs few passes".to_owned()),
            _ => (Solver::Lbfgs, format!("{columns} coefficients are many for a Hessian")),
        },
        ModelName::Quantile => (Solver::Interior, "quantile regression is a linear programme".to_owned()),
        ModelName::Mlp => (Solver::Gradient, "networks are trained by gradient descent".to_owned()),
    }
}

/// Whether features are divided by their deviation before a fit.
///
/// Without a penalty the result does not depend on it, and it is numerically better.
pub fn is_scaled(config: &RegressionModelConfig, standardize: Option<bool>) -> bool {
    !config.is_penalised() || standardize.unwrap_or(true)
}

/// Fits a linear model to the rows of a source.
///
/// # Errors
/// What the solver refuses; classes that an unpenalised model parts without a mistake.
pub fn fit(
    config: &RegressionModelConfig,
    encoding: &Encoding,
    rows: &dyn RowSource,
    standardize: Option<bool>,
    device: Device,
) -> Result<Fit> {
    let scaled = is_scaled(config, standardize);
    let design = Design::new(rows, encoding, config.intercept, scaled, device);
    fit_design(config, &design, Given::default())
}

/// What is known before a fit, to spare work.
#[derive(Clone, Copy, Default)]
pub struct Given<'a> {
    /// Coefficients of the design that are near, `[outputs, columns]`.
    pub start: Option<&'a Tensor>,
    /// The normal equations of the design.
    pub normal: Option<&'a Normal>,
}

/// Fits a design.
///
/// # Errors
/// As [`fit`].
pub fn fit_design(config: &RegressionModelConfig, design: &Design, given: Given) -> Result<Fit> {
    let _guard = tch::no_grad_guard();
    let encoding = design.encoding();
    if config.name == ModelName::Poisson {
        refuse_negative_counts(design)?;
    }
    let classes = encoding.classes.as_ref().map_or(0, Vec::len);
    let outputs = loss_of(config.name, classes).map_or(1, Loss::outputs);
    let (mut solver, mut reason) = choose(config, design.source().rows(), design.columns() * outputs);
    if given.normal.is_some() && solver == Solver::Qr && config.solver == Solver::Auto {
        (solver, reason) = (Solver::Cholesky, "the normal equations are known".to_owned());
    }
    let mut warnings = Vec::new();
    let mut report = SolverReport {
        name: solver,
        reason,
        iterations: 1,
        gap: None,
        measure: String::new(),
        converged: true,
        objective: None,
        rank: None,
        condition: None,
    };
    let mut scale = None;
    let mut made = None;
    let internal = match solver {
        Solver::Qr | Solver::Cholesky | Solver::Svd => {
            let l2 = config.strengths(1.0).1;
            let solution = match solver {
                Solver::Qr => direct::qr(design, l2)?,
                Solver::Svd => direct::svd(design, l2)?,
                _ => {
                    let normal = match given.normal {
                        Some(normal) => normal,
                        None => made.insert(Normal::of(design)?),
                    };
                    match direct::from_normal(design, normal, l2) {
                        // Whoever left the choice to the program gets the slower way where the fast one is not accurate enough.
                        Err(_) if config.solver == Solver::Auto => {
                            report.name = Solver::Qr;
                            report.reason =
                                "the normal equations are too badly conditioned for cholesky".to_owned();
                            direct::qr(design, l2)?
                        }
                        other => other?,
                    }
                }
            };
            if solution.rank < design.columns() {
                warnings.push(format!(
                    "the design has rank {} of {}: {}; of all solutions this is the one with the smallest coefficients (centred and scaled)",
                    solution.rank,
                    design.columns(),
                    direct::dependence_of(design)?
                ));
            }
            (report.rank, report.condition) = (Some(solution.rank), Some(solution.condition));
            solution.coefficients.f_unsqueeze(0)?
        }
        _ => {
            let outcome = iterate(config, design, solver, given)?;
            if outcome.separated && config.strengths(1.0) == (0.0, 0.0) && config.name != ModelName::Mlp {
                bail_input!(
                    "the features part the classes of `{}` perfectly, so the unpenalised coefficients grow without bound: use --penalty l2",
                    encoding.target
                );
            }
            report.iterations = outcome.iterations;
            report.gap = Some(outcome.gap);
            report.measure = outcome.measure.to_owned();
            report.converged = outcome.converged;
            report.objective = Some(outcome.value);
            let columns = design.columns() as i64;
            match config.name {
                ModelName::Huber => {
                    scale = Some(outcome.coefficients.f_double_value(&[columns])?);
                    outcome.coefficients.f_narrow(0, 0, columns)?.f_unsqueeze(0)?
                }
                _ => outcome.coefficients.f_view([-1, columns])?,
            }
        }
    };
    if !direct::finite(&internal)? {
        bail_input!(
            "the fit has no finite solution: look for columns of very different sizes with `regression describe`"
        );
    }
    if !report.converged {
        warnings.push(format!(
            "{} did not converge in {} iterations: {} is {:.3e}; raise model.max_iterations, or look for columns that depend on each other",
            report.name.name(),
            report.iterations,
            report.measure,
            report.gap.unwrap_or(f64::NAN)
        ));
    }
    let (intercept, coefficients) = design.in_units(&internal)?;
    let model = LinearModel {
        model: config.name,
        encoding: encoding.clone(),
        columns: encoding.columns(),
        intercept,
        coefficients,
        scale,
        quantile: (config.name == ModelName::Quantile).then(|| config.quantile.unwrap_or(0.5)),
        solver: report,
    };
    Ok(Fit { model, internal, normal: made, warnings })
}

fn refuse_negative_counts(design: &Design) -> Result<()> {
    design.visit(&mut |block: &Block| match block.y.f_min()?.f_double_value(&[])? {
        ..0.0 => bail_input!(
            "the target `{}` has negative values: poisson is for counts",
            design.encoding().target
        ),
        _ => Ok(()),
    })
}

/// From this many rows on, Newton's method begins with a part of them.
const MANY_ROWS: usize = 100_000;
/// Which part: one block in so many.
const THINNING: usize = 16;

/// The directions in which a softmax does not change, for the coefficients without a penalty: the same number added to all classes. As a
/// matrix to add to the Hessian, `[classes · columns, classes · columns]`.
fn free_directions(
    config: &RegressionModelConfig,
    design: &Design,
    classes: usize,
    weight: f64,
) -> Result<Tensor> {
    let columns = design.columns();
    let (l1, l2) = config.strengths(1.0);
    let size = classes * columns;
    let mut matrix = vec![0.0; size * size];
    for column in 0..columns {
        let penalised = (l2 > 0.0 || l1 > 0.0) && !(design.intercept && column == 0);
        if !penalised {
            for first in 0..classes {
                for second in 0..classes {
                    matrix[(first * columns + column) * size + second * columns + column] =
                        weight / (classes * classes) as f64;
                }
            }
        }
    }
    Ok(vector(&matrix)?.f_view([size as i64, size as i64])?.f_to_device(design.device())?)
}

fn iterate(config: &RegressionModelConfig, design: &Design, solver: Solver, given: Given) -> Result<Outcome> {
    let options = (Kind::Double, design.device());
    let columns = design.columns() as i64;
    let (weight, sum) = design.totals()?;
    let (l1, l2) = config.strengths(weight);
    let most = |usual: u64| config.max_iterations.unwrap_or(usual);
    let tolerance = |usual: f64| config.tolerance.unwrap_or(usual);
    let encoding = design.encoding();
    let classes = encoding.classes.as_ref().map_or(0, Vec::len);
    match config.name {
        ModelName::Quantile => {
            return interior::minimise(
                design,
                config.quantile.unwrap_or(0.5),
                l1,
                tolerance(1e-9),
                most(200),
            );
        }
        ModelName::Huber => {
            let objective = Huber { design, epsilon: config.epsilon.unwrap_or(1.35), l2 };
            let start = Tensor::f_zeros([columns + 1], options)?;
            if design.intercept {
                let _ = start.f_select(0, 0)?.f_fill_(sum / weight)?;
            }
            let _ = start.f_select(0, columns)?.f_fill_(encoding.target_scale)?;
            return match solver {
                Solver::Lbfgs => {
                    lbfgs::minimise(&objective, start, weight, tolerance(1e-11), most(5000), false)
                }
                _ => newton::minimise(&objective, start, None, tolerance(1e-6), most(200), false),
            };
        }
        ModelName::Lasso | ModelName::ElasticNet => {
            let own;
            let normal = match given.normal {
                Some(normal) => normal,
                None => {
                    own = Normal::of(design)?;
                    &own
                }
            };
            let ones = usize::from(design.intercept);
            let start = given.start.map(super::algebra::numbers).transpose()?;
            let start = start.as_ref().map(|start| &start[ones..]);
            return coordinate::least_squares(design, normal, l1, l2, start, tolerance(1e-12), most(100_000));
        }
        _ => {}
    }
    let loss = loss_of(config.name, classes).unwrap_or(Loss::Squared);
    let model = Glm { design, loss, l2 };
    let begin = match given.start {
        Some(start) => start.f_reshape([-1])?,
        None => {
            let begin = Tensor::f_zeros([loss.outputs() as i64, columns], options)?;
            if design.intercept && loss == Loss::Poisson && sum > 0.0 {
                let _ = begin.f_select(1, 0)?.f_fill_((sum / weight).ln())?;
            }
            begin.f_view([-1])?
        }
    };
    let unpenalised = l1 == 0.0 && l2 == 0.0;
    let free = match loss {
        Loss::Multinomial(classes) => Some(free_directions(config, design, classes, weight)?),
        _ => None,
    };
    let outcome = match solver {
        Solver::Lbfgs => lbfgs::minimise(&model, begin, weight, tolerance(1e-11), most(5000), unpenalised)?,
        Solver::Coordinate => {
            coordinate::generalised(&model, l1, begin, free.as_ref(), tolerance(1e-12), most(500))?
        }
        _ if given.start.is_none()
            && design.source().blocks().is_some()
            && design.source().rows() > MANY_ROWS =>
        {
            // A part of the rows comes near at a part of the cost; what is left takes few passes over all of them.
            let part = design.thinned(THINNING);
            let share = part.totals()?.0 / weight;
            let near = Glm { design: &part, loss, l2: l2 * share };
            let begin_again = begin.shallow_clone();
            let near = newton::minimise(&near, begin, free.as_ref(), 1e-3, 20, true)?;
            let begin = if near.converged { near.coefficients } else { begin_again };
            newton::minimise(&model, begin, free.as_ref(), tolerance(1e-6), most(100), unpenalised)?
        }
        _ => newton::minimise(&model, begin, free.as_ref(), tolerance(1e-6), most(100), unpenalised)?,
    };
    let is_classifier = matches!(loss, Loss::Logistic | Loss::Multinomial(_));
    if is_classifier && unpenalised && !outcome.converged && !outcome.separated {
        // Some rows on the boundary, all others on their side: coefficients still grow without bound.
        let largest = super::objective::largest(&outcome.coefficients)?;
        if largest > 15.0 {
            bail_input!(
                "the features part the classes of `{}` almost perfectly (all but rows on the boundary), so the unpenalised coefficients grow without bound: use --penalty l2",
                encoding.target
            );
        }
    }
    Ok(outcome)
}

/// Fits the same rows under several penalties, each from the one before.
///
/// # Errors
/// As [`fit`].
pub fn fit_path(configs: &[RegressionModelConfig], design: &Design) -> Result<Vec<Fit>> {
    let least_squares = configs.first().is_some_and(|config| config.name.is_least_squares());
    let normal = if least_squares { Some(Normal::of(design)?) } else { None };
    let mut fits: Vec<Fit> = Vec::with_capacity(configs.len());
    for config in configs {
        let start = fits.last().map(|fit| fit.internal.shallow_clone());
        fits.push(fit_design(config, design, Given { start: start.as_ref(), normal: normal.as_ref() })?);
    }
    Ok(fits)
}

/// The penalty from which on every coefficient is zero, as `alpha` or as 1 / `c`, of a model with an L1 part; for one without, a thousand times the
/// penalty that halves the coefficients of uncorrelated columns.
pub fn largest_penalty(config: &RegressionModelConfig, design: &Design) -> Result<f64> {
    let (weight, sum) = design.totals()?;
    let unit = RegressionModelConfig {
        alpha: config.alpha.map(|_| 1.0),
        c: config.c.map(|_| 1.0),
        ..config.clone()
    };
    let (l1, l2) = unit.strengths(weight);
    if l1 == 0.0 {
        // Columns of deviation 1 have a sum of squares of `weight`.
        let curvature = if config.name.is_least_squares() { weight } else { weight / 4.0 };
        return Ok(1000.0 * curvature / l2.max(f64::MIN_POSITIVE));
    }
    let columns = design.columns() as i64;
    let classes = design.encoding().classes.as_ref().map_or(0, Vec::len);
    let loss = loss_of(config.name, classes).unwrap_or(Loss::Squared);
    let model = Glm { design, loss, l2: 0.0 };
    let begin = Tensor::f_zeros([loss.outputs() as i64, columns], (Kind::Double, design.device()))?;
    if design.intercept {
        let start = match loss {
            Loss::Squared => vec![sum / weight],
            Loss::Logistic => vec![(sum / (weight - sum)).ln()],
            Loss::Poisson => vec![(sum / weight).ln()],
            Loss::Multinomial(classes) => {
                let mut counts = vec![0.0; classes];
                design.visit(&mut |block: &Block| {
                    let bins =
                        block.y.f_to_kind(Kind::Int64)?.f_bincount(block.weight.as_ref(), classes as i64)?;
                    for (total, count) in counts.iter_mut().zip(super::algebra::numbers(&bins)?) {
                        *total += count;
                    }
                    Ok(())
                })?;
                counts.iter().map(|count: &f64| (count / weight).ln()).collect()
            }
        };
        begin.f_select(1, 0)?.f_copy_(&vector(&start)?)?;
    }
    let point = super::objective::Objective::evaluate(&model, &begin.f_view([-1])?, false)?;
    // A little more, so that rounding leaves none.
    Ok(coordinate::largest_strength(&point.gradient, &model.penalised()?)? / l1 * (1.0 + 1e-9))
}
