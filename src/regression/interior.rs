//! Quantile regression as a linear programme, by the Frisch-Newton interior point method of Portnoy and Koenker (1997).

use anyhow::Result;
use tch::{Kind, Tensor};

use super::algebra::{scalar, solve_positive};
use super::design::{Block, Design};
use super::objective::Outcome;

/// Share of the way to the boundary that a step goes.
const STEP: f64 = 0.99995;

/// Rows `[rows, columns]` and targets `[rows]` with the quantile of each row, all in memory.
struct Programme {
    x: Tensor,
    y: Tensor,
    quantile: Tensor,
}

impl Programme {
    /// The rows of a design, scaled by their weights; the penalty l1 |w| comes as two rows' worth of loss at the median, 2 l1 |w| / 2.
    fn new(design: &Design, quantile: f64, l1: f64) -> Result<Self> {
        let (mut xs, mut ys) = (Vec::new(), Vec::new());
        design.visit(&mut |block: &Block| {
            match &block.weight {
                Some(weight) => {
                    xs.push(&block.x * weight.f_unsqueeze(1)?);
                    ys.push(&block.y * weight);
                }
                None => {
                    xs.push(block.x.shallow_clone());
                    ys.push(block.y.shallow_clone());
                }
            }
            Ok(())
        })?;
        let options = (Kind::Double, design.device());
        let rows: i64 = ys.iter().map(|y| y.size()[0]).sum();
        let mut quantiles = vec![Tensor::f_full([rows], quantile, options)?];
        if l1 > 0.0 {
            let (columns, ones) = (design.columns() as i64, i64::from(design.intercept));
            xs.push(Tensor::f_eye(columns, options)?.f_narrow(0, ones, columns - ones)? * (2.0 * l1));
            ys.push(Tensor::f_zeros([columns - ones], options)?);
            quantiles.push(Tensor::f_full([columns - ones], 0.5, options)?);
        }
        Ok(Self {
            x: Tensor::f_cat(&xs, 0)?,
            y: Tensor::f_cat(&ys, 0)?,
            quantile: Tensor::f_cat(&quantiles, 0)?,
        })
    }

    /// Σ ρ(y − xβ)
    fn loss(&self, beta: &Tensor) -> Result<f64> {
        let residual = &self.y - self.x.f_mv(beta)?;
        scalar(
            &(&residual * &self.quantile)
                .f_maximum(&(&residual * (&self.quantile - 1.0)))?
                .f_sum(Kind::Double)?,
        )
    }

    /// (Xᵀ q X)⁻¹ Xᵀ (q r)
    fn weighted(&self, q: &Tensor, r: &Tensor) -> Result<Option<Tensor>> {
        let scaled = &self.x * q.f_unsqueeze(1)?;
        solve_positive(&scaled.f_tr()?.f_matmul(&self.x)?, &scaled.f_tr()?.f_mv(r)?)
    }

    /// The basic solution near `beta`: through as many rows as there are coefficients, those that it fits best.
    fn vertex(&self, beta: &Tensor) -> Result<Option<Tensor>> {
        let columns = self.x.size()[1];
        let distance = (&self.y - self.x.f_mv(beta)?).f_abs()?;
        let nearest = distance.f_topk(columns, 0, false, true)?.1;
        let (x, y) = (self.x.f_index_select(0, &nearest)?, self.y.f_index_select(0, &nearest)?);
        let (solution, info) = Tensor::f_linalg_solve_ex(&x, &y, true, false)?;
        Ok((info.f_int64_value(&[])? == 0).then_some(solution))
    }
}

/// The longest step along `step` that keeps `at` positive.
fn bound(at: &Tensor, step: &Tensor) -> Result<f64> {
    let ratio = (at / step.f_neg()?).f_masked_fill(&step.f_ge(0.0)?, f64::INFINITY)?;
    scalar(&ratio.f_min()?)
}

/// Minimises Σ weight · ρ(y − Xβ) + l1 ‖w‖₁ for one quantile, until the duality gap is below `tolerance` times the loss.
pub fn minimise(
    design: &Design,
    quantile: f64,
    l1: f64,
    tolerance: f64,
    max_iterations: u64,
) -> Result<Outcome> {
    let _guard = tch::no_grad_guard();
    let programme = Programme::new(design, quantile, l1)?;
    let cost = programme.y.f_neg()?;
    let mut x = 1.0 - &programme.quantile;
    let right = programme.x.f_tr()?.f_mv(&x)?;
    let mut slack = programme.quantile.shallow_clone();
    let ones = slack.f_ones_like()?;
    // Negative coefficients, from least squares.
    let start = programme.weighted(&ones, &cost)?;
    let mut beta = match start {
        Some(start) => start,
        None => return unfinished(design, 0, f64::INFINITY),
    };
    let residual = &cost - programme.x.f_mv(&beta)?;
    let nudge = residual.f_eq(0.0)?.f_to_kind(Kind::Double)? * 0.001;
    let residual = residual + nudge;
    let mut z = residual.f_clamp_min(0.0)?;
    let mut w = &z - &residual;
    // Both stay positive.
    z = z.f_add_scalar(1e-10)?;
    w = w.f_add_scalar(1e-10)?;
    let (mut gap, mut iterations) = (f64::INFINITY, 0);
    while iterations < max_iterations {
        let value = programme.loss(&beta.f_neg()?)?;
        let total =
            scalar(&cost.f_dot(&x)?)? - scalar(&beta.f_dot(&right)?)? + scalar(&w.f_sum(Kind::Double)?)?;
        gap = total.abs() / value.max(f64::MIN_POSITIVE);
        if gap <= tolerance {
            break;
        }
        iterations += 1;
        let q = (&z / &x + &w / &slack).f_reciprocal()?;
        let r = &z - &w;
        let Some(mut d_beta) = programme.weighted(&q, &r)? else { break };
        let mut dx = &q * (programme.x.f_mv(&d_beta)? - &r);
        let mut ds = dx.f_neg()?;
        let mut dz = (&z * (&dx / &x + 1.0)).f_neg()?;
        let mut dw = (&w * (&ds / &slack + 1.0)).f_neg()?;
        let lengths = |dx: &Tensor,
                       ds: &Tensor,
                       dz: &Tensor,
                       dw: &Tensor,
                       x: &Tensor,
                       slack: &Tensor,
                       z: &Tensor,
                       w: &Tensor|
         -> Result<(f64, f64)> {
            let primal = (STEP * bound(x, dx)?.min(bound(slack, ds)?)).min(1.0);
            let dual = (STEP * bound(z, dz)?.min(bound(w, dw)?)).min(1.0);
            Ok((primal, dual))
        };
        let (mut primal, mut dual) = lengths(&dx, &ds, &dz, &dw, &x, &slack, &z, &w)?;
        if primal.min(dual) < 1.0 {
            // Mehrotra's corrector.
            let mu = scalar(&(z.f_dot(&x)? + w.f_dot(&slack)?))?;
            let ahead = scalar(
                &((&z + &dz * dual).f_dot(&(&x + &dx * primal))?
                    + (&w + &dw * dual).f_dot(&(&slack + &ds * primal))?),
            )?;
            let mu = mu * (ahead / mu).powi(3) / (2.0 * x.size()[0] as f64);
            let (dxdz, dsdw) = (&dx * &dz, &ds * &dw);
            let (x_inverse, slack_inverse) = (x.f_reciprocal()?, slack.f_reciprocal()?);
            let xi = (&x_inverse - &slack_inverse) * mu;
            let corrected = &r + &dxdz - &dsdw - &xi;
            let Some(better) = programme.weighted(&q, &corrected)? else { break };
            d_beta = better;
            dx = &q * (programme.x.f_mv(&d_beta)? - &corrected);
            ds = dx.f_neg()?;
            dz = &x_inverse * mu - &z - &x_inverse * &z * &dx - &dxdz;
            dw = &slack_inverse * mu - &w - &slack_inverse * &w * &ds - &dsdw;
            (primal, dual) = lengths(&dx, &ds, &dz, &dw, &x, &slack, &z, &w)?;
        }
        x = x.f_add(&(dx * primal))?;
        slack = slack.f_add(&(ds * primal))?;
        beta = beta.f_add(&(d_beta * dual))?;
        z = z.f_add(&(dz * dual))?;
        w = w.f_add(&(dw * dual))?;
    }
    let mut coefficients = beta.f_neg()?;
    let mut value = programme.loss(&coefficients)?;
    if let Some(vertex) = programme.vertex(&coefficients)? {
        let there = programme.loss(&vertex)?;
        if there <= value * (1.0 + 1e-12) {
            (coefficients, value) = (vertex, there);
        }
    }
    Ok(Outcome {
        coefficients,
        value,
        iterations,
        gap,
        measure: "duality gap relative to the loss",
        converged: gap <= tolerance,
        separated: false,
    })
}

fn unfinished(design: &Design, iterations: u64, gap: f64) -> Result<Outcome> {
    Ok(Outcome {
        coefficients: Tensor::f_zeros([design.columns() as i64], (Kind::Double, design.device()))?,
        value: f64::NAN,
        iterations,
        gap,
        measure: "duality gap relative to the loss",
        converged: false,
        separated: false,
    })
}
