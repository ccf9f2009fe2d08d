//! What is minimised: a sum of losses over rows and a quadratic penalty, with gradient and Hessian.

use anyhow::Result;
use tch::{Kind, Tensor};

use super::algebra::{numbers, scalar};
use super::design::{Block, Design};

/// The value of an objective at a point with its derivatives.
pub struct Point {
    /// The value; infinite where the objective is not defined.
    pub value: f64,
    /// First derivatives `[size]`.
    pub gradient: Tensor,
    /// Second derivatives `[size, size]`, where asked for.
    pub hessian: Option<Tensor>,
    /// Whether every row's class gets the largest score: then an unpenalised classifier has no finite optimum.
    pub separated: bool,
}

/// A smooth function of a vector.
pub trait Objective {
    /// How long the vector is.
    fn size(&self) -> usize;

    /// Value and derivatives at a point.
    fn evaluate(&self, at: &Tensor, hessian: bool) -> Result<Point>;
}

/// The loss of a generalised linear model, as a function of its linear predictor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// (y − η)² / 2
    Squared,
    /// log(1 + exp η) − y η, y being 0 or 1
    Logistic,
    /// log Σ exp η − η of the class, with this many outputs
    Multinomial(usize),
    /// exp η − y η
    Poisson,
}

impl Loss {
    /// How many linear predictors there are.
    pub fn outputs(self) -> usize {
        match self {
            Loss::Multinomial(classes) => classes,
            _ => 1,
        }
    }

    /// Expected values from linear predictors `[rows, outputs]`, of the same shape.
    pub fn mean(self, predictor: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Loss::Squared => predictor.shallow_clone(),
            Loss::Logistic => predictor.f_sigmoid()?,
            Loss::Multinomial(_) => predictor.f_softmax(-1, Kind::Double)?,
            Loss::Poisson => predictor.f_exp()?,
        })
    }

    /// The loss of each row `[rows]`.
    pub fn of_rows(self, predictor: &Tensor, y: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Loss::Squared => (y - predictor.f_squeeze_dim(1)?).f_square()? * 0.5,
            Loss::Logistic => {
                let eta = predictor.f_squeeze_dim(1)?;
                // log(1 + e^η) without overflow.
                eta.f_clamp_min(0.0)? + eta.f_abs()?.f_neg()?.f_exp()?.f_log1p()? - y * &eta
            }
            Loss::Multinomial(_) => {
                let class = y.f_to_kind(Kind::Int64)?.f_unsqueeze(1)?;
                predictor.f_logsumexp([1i64].as_slice(), false)?
                    - predictor.f_gather(1, &class, false)?.f_squeeze_dim(1)?
            }
            Loss::Poisson => {
                let eta = predictor.f_squeeze_dim(1)?;
                eta.f_exp()? - y * &eta
            }
        })
    }

    /// In how many rows the class does not have the largest score, as a tensor; one for a loss without classes.
    fn count_mistakes(self, predictor: &Tensor, y: &Tensor) -> Result<Tensor> {
        let margin = match self {
            Loss::Logistic => predictor.f_squeeze_dim(1)? * (y * 2.0 - 1.0),
            Loss::Multinomial(_) => {
                let class = y.f_to_kind(Kind::Int64)?.f_unsqueeze(1)?;
                let own = predictor.f_gather(1, &class, false)?.f_squeeze_dim(1)?;
                let others = predictor.f_scatter_value(1, &class, f64::NEG_INFINITY)?;
                own - others.f_amax([1i64].as_slice(), false)?
            }
            _ => return Ok(Tensor::f_ones([0i64; 0], (Kind::Double, y.device()))?),
        };
        Ok(margin.f_gt(0.0)?.f_logical_not()?.f_sum(Kind::Double)?)
    }

    /// What the linear predictors of a row are pulled by: the loss's derivative, `[rows, outputs]`.
    fn slope(self, mean: &Tensor, y: &Tensor) -> Result<Tensor> {
        match self {
            Loss::Multinomial(classes) => {
                Ok(mean - y.f_to_kind(Kind::Int64)?.f_one_hot(classes as i64)?.f_to_kind(Kind::Double)?)
            }
            _ => Ok(mean - y.f_unsqueeze(1)?),
        }
    }
}

/// Σ weight · loss + l2/2 ‖w‖² of a generalised linear model. The vector is `[outputs, columns]`, row by row.
pub struct Glm<'a> {
    /// The rows.
    pub design: &'a Design<'a>,
    /// The loss.
    pub loss: Loss,
    /// Strength of the penalty, which leaves out the intercept.
    pub l2: f64,
}

impl Glm<'_> {
    fn outputs(&self) -> i64 {
        self.loss.outputs() as i64
    }

    /// Ones where a coefficient is penalised, `[outputs · columns]`.
    pub fn penalised(&self) -> Result<Tensor> {
        let columns = self.design.columns() as i64;
        let mask = Tensor::f_ones([self.outputs(), columns], (Kind::Double, self.design.device()))?;
        if self.design.intercept {
            let _ = mask.f_narrow(1, 0, 1)?.f_zero_()?;
        }
        Ok(mask.f_view([-1])?)
    }
}

impl Objective for Glm<'_> {
    fn size(&self) -> usize {
        self.design.columns() * self.loss.outputs()
    }

    fn evaluate(&self, at: &Tensor, hessian: bool) -> Result<Point> {
        let (outputs, columns) = (self.outputs(), self.design.columns() as i64);
        let weights = at.f_view([outputs, columns])?;
        let curvature = if hessian { [outputs, outputs, columns, columns] } else { [0; 4] };
        let shapes: [&[i64]; 4] = [&[], &[outputs, columns], &[], &curvature];
        let loss = self.loss;
        let sums = self.design.sum(&[&weights], &shapes, &|given, sums, block: &Block| {
            let [value, gradient, mixed, curvature] = sums else { return Ok(()) };
            let predictor = block.x.f_matmul(&given[0].f_tr()?)?; // [rows, outputs]
            let _ = value.shallow_clone().f_add_(&block.sum(&loss.of_rows(&predictor, &block.y)?)?)?;
            let mean = loss.mean(&predictor)?;
            let mut slope = loss.slope(&mean, &block.y)?;
            if let Some(weight) = &block.weight {
                slope = slope.f_mul(&weight.f_unsqueeze(1)?)?;
            }
            let _ = gradient.shallow_clone().f_addmm_(&slope.f_tr()?, &block.x)?;
            let _ = mixed.shallow_clone().f_add_(&loss.count_mistakes(&predictor, &block.y)?)?;
            if !hessian {
                return Ok(());
            }
            for first in 0..outputs {
                for second in first..outputs {
                    let p = mean.f_select(1, first)?;
                    let of_row = match loss {
                        Loss::Squared => p.f_ones_like()?,
                        Loss::Logistic => &p * (1.0 - &p),
                        Loss::Poisson => p,
                        Loss::Multinomial(_) if first == second => &p * (1.0 - &p),
                        Loss::Multinomial(_) => (&p * mean.f_select(1, second)?).f_neg()?,
                    };
                    let of_row = match &block.weight {
                        Some(weight) => of_row * weight,
                        None => of_row,
                    };
                    let scaled = &block.x * of_row.f_unsqueeze(1)?;
                    let mut part = curvature.f_select(0, first)?.f_select(0, second)?;
                    let _ = part.f_addmm_(&block.x.f_tr()?, &scaled)?;
                }
            }
            Ok(())
        })?;
        let (gradient, separated) = (&sums[1], scalar(&sums[2])? == 0.0);
        let curvature = hessian.then(|| sums[3].shallow_clone());
        let penalised = self.penalised()?;
        let hessian = match curvature {
            None => None,
            Some(curvature) => {
                for first in 0..outputs {
                    for second in 0..first {
                        let upper = curvature.f_select(0, second)?.f_select(0, first)?;
                        curvature.f_select(0, first)?.f_select(0, second)?.f_copy_(&upper)?;
                    }
                }
                // [output, output, column, column] → [output · column, output · column]
                let size = outputs * columns;
                let hessian = curvature.f_permute([0i64, 2, 1, 3])?.f_reshape([size, size])?;
                Some(hessian + Tensor::f_diag(&(&penalised * self.l2), 0)?)
            }
        };
        let penalty = 0.5 * self.l2 * scalar(&(at.f_square()? * &penalised).f_sum(Kind::Double)?)?;
        let value = scalar(&sums[0])? + penalty;
        Ok(Point {
            value: if value.is_nan() { f64::INFINITY } else { value },
            gradient: gradient.f_view([-1])? + at * &penalised * self.l2,
            hessian,
            separated,
        })
    }
}

/// Σ (σ + H((y − Xw)/σ) σ) + l2/2 ‖w‖², H(z) being z² up to `epsilon` and 2 epsilon |z| − epsilon² above (Owen 2007, scikit-learn's
/// `HuberRegressor`). The vector is the coefficients and σ.
pub struct Huber<'a> {
    /// The rows.
    pub design: &'a Design<'a>,
    /// Where the loss turns linear, in units of σ.
    pub epsilon: f64,
    /// Strength of the penalty, which leaves out intercept and σ.
    pub l2: f64,
}

impl Objective for Huber<'_> {
    fn size(&self) -> usize {
        self.design.columns() + 1
    }

    fn evaluate(&self, at: &Tensor, hessian: bool) -> Result<Point> {
        let columns = self.design.columns() as i64;
        let options = (Kind::Double, self.design.device());
        let (weights, sigma) = (at.f_narrow(0, 0, columns)?, scalar(&at.f_select(0, columns)?)?);
        let gradient = Tensor::f_zeros([columns + 1], options)?;
        if sigma <= 0.0 {
            return Ok(Point { value: f64::INFINITY, gradient, hessian: None, separated: false });
        }
        let curvature = Tensor::f_zeros([columns + 1, columns + 1], options)?;
        let mut value = Tensor::f_zeros([0i64; 0], options)?;
        self.design.visit(&mut |block: &Block| {
            let z = (&block.y - block.x.f_mv(&weights)?) / sigma;
            let size = z.f_abs()?;
            let inlier = size.f_le(self.epsilon)?.f_to_kind(Kind::Double)?;
            let outlier = 1.0 - &inlier;
            let linear = &size * (2.0 * self.epsilon) - self.epsilon * self.epsilon;
            let bent = &inlier * z.f_square()? + &outlier * linear;
            value += block.sum(&((bent + 1.0) * sigma))?;
            let slope = &inlier * &z * 2.0 + &outlier * z.f_sign()? * (2.0 * self.epsilon);
            let weight = block.weights()?;
            let of_weights = block.x.f_tr()?.f_mv(&(slope * &weight))?;
            let _ = gradient.f_narrow(0, 0, columns)?.f_sub_(&of_weights)?;
            let of_sigma = block
                .sum(&(&inlier * (1.0 - z.f_square()?) + &outlier * (1.0 - self.epsilon * self.epsilon)))?;
            let _ = gradient.f_select(0, columns)?.f_add_(&of_sigma)?;
            if hessian {
                let wide = Tensor::f_cat(&[&block.x, &z.f_unsqueeze(1)?], 1)?; // [rows, columns + 1]
                let scaled = &wide * (inlier * weight * (2.0 / sigma)).f_unsqueeze(1)?;
                let _ = curvature.shallow_clone().f_add_(&wide.f_tr()?.f_matmul(&scaled)?)?;
            }
            Ok(())
        })?;
        let penalised = Tensor::f_ones([columns + 1], options)?;
        let _ = penalised.f_select(0, columns)?.f_zero_()?;
        if self.design.intercept {
            let _ = penalised.f_select(0, 0)?.f_zero_()?;
        }
        let value =
            scalar(&value)? + 0.5 * self.l2 * scalar(&(at.f_square()? * &penalised).f_sum(Kind::Double)?)?;
        Ok(Point {
            value: if value.is_nan() { f64::INFINITY } else { value },
            gradient: gradient + at * &penalised * self.l2,
            hessian: if hessian {
                Some(curvature + Tensor::f_diag(&(penalised * self.l2), 0)?)
            } else {
                None
            },
            separated: false,
        })
    }
}

/// How an iterative solver ended.
pub struct Outcome {
    /// Where.
    pub coefficients: Tensor,
    /// The objective there.
    pub value: f64,
    /// Passes over the rows.
    pub iterations: u64,
    /// What is left to gain, in the solver's own measure.
    pub gap: f64,
    /// What that measure is.
    pub measure: &'static str,
    /// Whether the gap is below the tolerance.
    pub converged: bool,
    /// Whether the classes are parted without a mistake.
    pub separated: bool,
}

/// The largest absolute value.
pub fn largest(tensor: &Tensor) -> Result<f64> {
    Ok(numbers(tensor)?.into_iter().fold(0.0, |largest, value| value.abs().max(largest)))
}
