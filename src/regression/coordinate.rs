//! Coordinate descent for L1 penalties, and Newton's method around it where the loss is not quadratic.

use anyhow::{Result, anyhow};
use tch::{Kind, Tensor};

use super::algebra::{numbers, scalar, solve_positive, vector};
use super::design::{Block, Design};
use super::direct::Normal;
use super::objective::{Glm, Loss, Objective, Outcome, largest};

/// Sweeps between two attempts to solve exactly on the coefficients that are not zero.
const SWEEPS: usize = 50;
/// How often a step is halved before the search gives up.
const HALVINGS: u32 = 40;

/// ½ βᵀAβ − cᵀβ + Σ l1 |β|
struct Quadratic {
    size: usize,
    a: Vec<f64>,
    c: Vec<f64>,
    l1: Vec<f64>,
}

impl Quadratic {
    fn row(&self, row: usize) -> &[f64] {
        &self.a[row * self.size..(row + 1) * self.size]
    }

    /// c − Aβ
    fn pull(&self, beta: &[f64]) -> Vec<f64> {
        (0..self.size).map(|row| self.c[row] - dot(self.row(row), beta)).collect()
    }

    /// Minimises from `beta`: sweeps over the coordinates until the largest change is below `tolerance` times the largest coefficient, with an
    /// exact solution for the present signs tried in between. Returns the number of sweeps.
    fn descend(&self, beta: &mut [f64], tolerance: f64, most_sweeps: usize) -> Result<usize> {
        let mut pull = self.pull(beta);
        let mut sweeps = 0;
        while sweeps < most_sweeps {
            let mut largest_change = f64::INFINITY;
            for _ in 0..SWEEPS {
                largest_change = 0.0;
                for place in 0..self.size {
                    let curvature = self.a[place * self.size + place];
                    if curvature <= 0.0 {
                        continue;
                    }
                    let old = beta[place];
                    let wanted = pull[place] + curvature * old;
                    let new = wanted.signum() * (wanted.abs() - self.l1[place]).max(0.0) / curvature;
                    if new != old {
                        let change = new - old;
                        for (pull, entry) in pull.iter_mut().zip(self.row(place)) {
                            *pull -= change * entry;
                        }
                        beta[place] = new;
                        largest_change = f64::max(largest_change, change.abs());
                    }
                }
                sweeps += 1;
                let size = beta.iter().fold(0.0, |largest: f64, value| largest.max(value.abs()));
                if largest_change <= tolerance * size || sweeps >= most_sweeps {
                    break;
                }
            }
            if self.solve_for_signs(beta)? {
                return Ok(sweeps);
            }
            let size = beta.iter().fold(0.0, |largest: f64, value| largest.max(value.abs()));
            if largest_change <= tolerance * size {
                return Ok(sweeps);
            }
            // Rounding of many small changes does not pile up.
            pull = self.pull(beta);
        }
        Ok(sweeps)
    }

    /// Solves the linear equations that hold if the coefficients keep their signs. Takes the solution over if it keeps them and no zero
    /// coefficient is pulled away: then it is the minimum to working precision.
    fn solve_for_signs(&self, beta: &mut [f64]) -> Result<bool> {
        let active: Vec<usize> =
            (0..self.size).filter(|&place| beta[place] != 0.0 || self.l1[place] == 0.0).collect();
        let mut exact = vec![0.0; self.size];
        if !active.is_empty() {
            let count = active.len() as i64;
            let matrix: Vec<f64> = active
                .iter()
                .flat_map(|&row| active.iter().map(move |&column| self.a[row * self.size + column]))
                .collect();
            let right: Vec<f64> = active
                .iter()
                .map(|&place| {
                    self.c[place]
                        - self.l1[place] * if self.l1[place] == 0.0 { 0.0 } else { beta[place].signum() }
                })
                .collect();
            let Some(solution) = solve_positive(&vector(&matrix)?.f_view([count, count])?, &vector(&right)?)?
            else {
                return Ok(false);
            };
            for (&place, value) in active.iter().zip(numbers(&solution)?) {
                exact[place] = value;
            }
        }
        let keeps = |&place: &usize| self.l1[place] == 0.0 || exact[place].signum() == beta[place].signum();
        if !exact.iter().all(|value| value.is_finite()) || !active.iter().all(keeps) {
            return Ok(false);
        }
        let pull = self.pull(&exact);
        let stays = |place: usize| {
            self.l1[place] == 0.0 || exact[place] != 0.0 || pull[place].abs() <= self.l1[place] * (1.0 + 1e-9)
        };
        if (0..self.size).all(stays) {
            beta.copy_from_slice(&exact);
            return Ok(true);
        }
        Ok(false)
    }
}

fn dot(left: &[f64], right: &[f64]) -> f64 {
    left.iter().zip(right).map(|(left, right)| left * right).sum()
}

/// Minimises ½ Σ weight (y − Xβ)² + l1 ‖w‖₁ + l2/2 ‖w‖² from the normal equations, until the duality gap is below `tolerance` times the loss
/// without features.
pub fn least_squares(
    design: &Design,
    normal: &Normal,
    l1: f64,
    l2: f64,
    start: Option<&[f64]>,
    tolerance: f64,
    max_iterations: u64,
) -> Result<Outcome> {
    let columns = design.columns();
    let (gram, right) = (numbers(&normal.gram)?, numbers(&normal.right)?);
    // The intercept is solved for: what is left is a problem in the other coefficients alone.
    let ones = usize::from(design.intercept);
    let size = columns - ones;
    let at = |row: usize, column: usize| gram[row * columns + column];
    let mut problem = Quadratic { size, a: vec![0.0; size * size], c: vec![0.0; size], l1: vec![l1; size] };
    let mut squares = normal.squares;
    for row in 0..size {
        problem.c[row] = right[row + ones];
        if ones == 1 {
            problem.c[row] -= at(row + 1, 0) * right[0] / at(0, 0);
        }
        for column in 0..size {
            let mut value = at(row + ones, column + ones);
            if ones == 1 {
                value -= at(row + 1, 0) * at(0, column + 1) / at(0, 0);
            }
            problem.a[row * size + column] = value + if row == column { l2 } else { 0.0 };
        }
    }
    if ones == 1 {
        squares -= right[0] * right[0] / at(0, 0);
    }
    let mut beta = start.map_or_else(|| vec![0.0; size], <[f64]>::to_vec);
    let (mut sweeps, mut gap) = (0, f64::INFINITY);
    let mut precision: f64 = 1e-6;
    while (sweeps as u64) < max_iterations && precision > 1e-18 {
        sweeps +=
            problem.descend(&mut beta, precision, (max_iterations as usize).saturating_sub(sweeps).max(1))?;
        gap = duality_gap(&problem, &beta, squares, l1, l2) / squares.max(f64::MIN_POSITIVE);
        if gap <= tolerance {
            break;
        }
        precision *= 1e-3;
    }
    let value = 0.5 * squares - dot(&problem.c, &beta)
        + 0.5 * (0..size).map(|row| beta[row] * dot(problem.row(row), &beta)).sum::<f64>()
        + l1 * beta.iter().map(|value| value.abs()).sum::<f64>();
    let mut coefficients = Vec::with_capacity(columns);
    if ones == 1 {
        let shift: f64 = (0..size).map(|column| at(0, column + 1) * beta[column]).sum();
        coefficients.push((right[0] - shift) / at(0, 0));
    }
    coefficients.extend(&beta);
    Ok(Outcome {
        coefficients: vector(&coefficients)?.f_to_device(design.device())?,
        value,
        iterations: sweeps as u64,
        gap,
        measure: "duality gap relative to the loss without features",
        converged: gap <= tolerance,
        separated: false,
    })
}

/// The gap of an elastic net: primal minus the dual value of the scaled residual (as in scikit-learn's `enet_coordinate_descent`).
fn duality_gap(problem: &Quadratic, beta: &[f64], squares: f64, l1: f64, l2: f64) -> f64 {
    let pull = problem.pull(beta); // Xᵀr − l2 β
    let with_target = dot(&problem.c, beta);
    let norm = dot(beta, beta);
    let fitted: f64 =
        (0..problem.size).map(|row| beta[row] * (problem.c[row] - pull[row])).sum::<f64>() - l2 * norm;
    let residual = (squares - 2.0 * with_target + fitted).max(0.0);
    let residual_target = squares - with_target;
    let largest = pull.iter().fold(0.0, |largest: f64, value| largest.max(value.abs()));
    let factor = if largest > l1 { l1 / largest } else { 1.0 };
    let gap = 0.5 * residual * (1.0 + factor * factor)
        + l1 * beta.iter().map(|value| value.abs()).sum::<f64>()
        - factor * residual_target
        + 0.5 * l2 * (1.0 + factor * factor) * norm;
    gap.max(0.0)
}

/// Minimises a generalised linear model with an L1 penalty: a quadratic around the present point, minimised by coordinate descent, gives
/// the next direction (Friedman, Hastie and Tibshirani 2010; Lee, Sun and Saunders 2014). Stops when a full step changes no
/// coefficient by more than 1e-9 of the largest, or, for two classes, when the duality gap is below `tolerance`.
pub fn generalised(
    model: &Glm,
    l1: f64,
    start: Tensor,
    free: Option<&Tensor>,
    tolerance: f64,
    max_iterations: u64,
) -> Result<Outcome> {
    let mask = numbers(&model.penalised()?)?;
    let strengths: Vec<f64> = mask.iter().map(|mask| mask * l1).collect();
    let norm =
        |at: &[f64]| at.iter().zip(&strengths).map(|(value, strength)| value.abs() * strength).sum::<f64>();
    let device = model.design.device();
    let mut at = numbers(&start)?;
    let mut point = model.evaluate(&start, true)?;
    let without = point.value.max(f64::MIN_POSITIVE);
    let (mut iterations, mut change, mut converged) = (1, f64::INFINITY, false);
    while iterations < max_iterations {
        let hessian = point.hessian.as_ref().ok_or_else(|| anyhow!("no Hessian"))?;
        let hessian = match free {
            Some(free) => hessian + free,
            None => hessian.shallow_clone(),
        };
        let here = vector(&at)?.f_to_device(device)?;
        let problem = Quadratic {
            size: at.len(),
            a: numbers(&hessian)?,
            c: numbers(&(hessian.f_mv(&here)? - &point.gradient))?,
            l1: strengths.clone(),
        };
        let mut target = at.clone();
        problem.descend(&mut target, 1e-13, 5000)?;
        let gradient = numbers(&point.gradient)?;
        let step: Vec<f64> = target.iter().zip(&at).map(|(target, at)| target - at).collect();
        let size = target.iter().fold(f64::MIN_POSITIVE, |largest, value| largest.max(value.abs()));
        change = step.iter().fold(0.0, |largest: f64, value| largest.max(value.abs())) / size;
        let decrease = dot(&gradient, &step) + norm(&target) - norm(&at);
        let (mut length, mut next) = (1.0, None);
        let value = point.value + norm(&at);
        for _ in 0..HALVINGS {
            let there: Vec<f64> = match length {
                1.0 => target.clone(),
                _ => at.iter().zip(&step).map(|(at, step)| at + length * step).collect(),
            };
            let candidate = model.evaluate(&vector(&there)?.f_to_device(device)?, true)?;
            iterations += 1;
            if candidate.value + norm(&there) <= value + 1e-4 * length * decrease + 1e-12 * value.abs() {
                next = Some((there, candidate));
                break;
            }
            length *= 0.5;
        }
        let Some((there, candidate)) = next else { break };
        (at, point) = (there, candidate);
        if length == 1.0 && change <= 1e-9 {
            converged = true;
            break;
        }
    }
    let coefficients = vector(&at)?.f_to_device(device)?;
    let value = point.value + norm(&at);
    let (gap, measure) = match model.loss {
        Loss::Logistic if model.l2 == 0.0 => {
            let gap = logistic_gap(model, &coefficients, &point.gradient, l1, value)? / without;
            (gap, "duality gap relative to the loss without features")
        }
        _ => (change, "relative change of a coefficient"),
    };
    converged |= gap <= tolerance;
    Ok(Outcome { coefficients, value, iterations, gap, measure, converged, separated: point.separated })
}

/// The duality gap of L1-penalised logistic regression: the residual y − p, scaled until no feature pulls more than the penalty holds, is a
/// point of the dual problem (Koh, Kim and Boyd 2007).
fn logistic_gap(model: &Glm, at: &Tensor, gradient: &Tensor, l1: f64, value: f64) -> Result<f64> {
    let pull = largest(&(gradient * model.penalised()?))?;
    let factor = if pull > l1 { l1 / pull } else { 1.0 };
    let mut dual = Tensor::f_zeros([0i64; 0], (Kind::Double, model.design.device()))?;
    model.design.visit(&mut |block: &Block| {
        let p = model.loss.mean(&block.x.f_mv(at)?)?;
        let share = &block.y - (&block.y - &p) * factor;
        let entropy = share.f_xlogy(&share)? + (1f64 - &share).f_xlogy(&(1f64 - &share))?;
        dual -= block.sum(&entropy)?;
        Ok(())
    })?;
    Ok((value - scalar(&dual)?).max(0.0))
}

/// The smallest L1 strength under which all penalised coefficients are zero: the largest pull at the fit of the intercept alone.
pub fn largest_strength(gradient: &Tensor, penalised: &Tensor) -> Result<f64> {
    largest(&(gradient * penalised))
}
