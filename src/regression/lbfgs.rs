//! Limited-memory BFGS (Liu and Nocedal 1989) with a backtracking line search.

use std::collections::VecDeque;

use anyhow::Result;
use tch::Tensor;

use super::algebra::scalar;
use super::objective::{Objective, Outcome, largest};

/// Steps that are remembered.
const MEMORY: usize = 20;
/// How often a step is shortened before the search gives up.
const HALVINGS: u32 = 40;

/// A gradient per row that rounding alone can leave.
const ROUNDING: f64 = 1e-8;

/// Minimises a smooth convex objective from `start`. Stops when no component of the gradient is larger than `tolerance` times
/// `weight`, the summed weight of the rows.
pub fn minimise(
    objective: &dyn Objective,
    start: Tensor,
    weight: f64,
    tolerance: f64,
    max_iterations: u64,
    stop_when_separated: bool,
) -> Result<Outcome> {
    let mut at = start;
    let mut point = objective.evaluate(&at, false)?;
    let mut memory: VecDeque<(Tensor, Tensor, f64)> = VecDeque::new();
    let mut iterations = 1;
    loop {
        let gap = largest(&point.gradient)? / weight;
        let converged = gap <= tolerance;
        if converged || iterations >= max_iterations || (stop_when_separated && point.separated) {
            return Ok(outcome(at, point.value, iterations, gap, converged, point.separated));
        }
        let mut direction = two_loops(&point.gradient, &memory)?.f_neg()?;
        let mut decrease = scalar(&direction.f_dot(&point.gradient)?)?;
        if decrease >= 0.0 {
            memory.clear();
            direction = point.gradient.f_neg()?;
            decrease = -scalar(&point.gradient.f_square()?.f_sum(tch::Kind::Double)?)?;
        }
        // The first step has no curvature to go by: as long as the gradient per row.
        let mut length = if memory.is_empty() { 1.0 / largest(&point.gradient)?.max(weight) } else { 1.0 };
        let mut next = None;
        for _ in 0..HALVINGS {
            let there = &at + &direction * length;
            let candidate = objective.evaluate(&there, false)?;
            iterations += 1;
            if candidate.value <= point.value + 1e-4 * length * decrease + 1e-14 * point.value.abs() {
                next = Some((there, candidate));
                break;
            }
            // The minimum of the parabola through both values, kept within bounds.
            let excess = candidate.value - point.value - length * decrease;
            let best = if excess.is_finite() && excess > 0.0 {
                -decrease * length * length / (2.0 * excess)
            } else {
                0.0
            };
            length = best.clamp(0.1 * length, 0.5 * length);
        }
        let Some((there, candidate)) = next else {
            // No step is better: with a gradient like this, for want of digits.
            let converged = gap <= tolerance.max(ROUNDING);
            return Ok(outcome(at, point.value, iterations, gap, converged, point.separated));
        };
        let (moved, turned) = (&there - &at, &candidate.gradient - &point.gradient);
        let curvature = scalar(&moved.f_dot(&turned)?)?;
        if curvature > 0.0 {
            memory.push_back((moved, turned, curvature));
            if memory.len() > MEMORY {
                memory.pop_front();
            }
        }
        (at, point) = (there, candidate);
    }
}

fn outcome(at: Tensor, value: f64, iterations: u64, gap: f64, converged: bool, separated: bool) -> Outcome {
    Outcome {
        coefficients: at,
        value,
        iterations,
        gap,
        measure: "largest component of the gradient per row",
        converged,
        separated,
    }
}

/// The inverse Hessian's estimate times the gradient.
fn two_loops(gradient: &Tensor, memory: &VecDeque<(Tensor, Tensor, f64)>) -> Result<Tensor> {
    let mut direction = gradient.shallow_clone();
    let mut factors = Vec::with_capacity(memory.len());
    for (moved, turned, curvature) in memory.iter().rev() {
        let factor = scalar(&moved.f_dot(&direction)?)? / curvature;
        direction = direction.f_sub(&(turned * factor))?;
        factors.push(factor);
    }
    if let Some((_, turned, curvature)) = memory.back() {
        direction = direction.f_mul_scalar(curvature / scalar(&turned.f_dot(turned)?)?)?;
    }
    for ((moved, turned, curvature), factor) in memory.iter().zip(factors.into_iter().rev()) {
        let correction = factor - scalar(&turned.f_dot(&direction)?)? / curvature;
        direction = direction.f_add(&(moved * correction))?;
    }
    Ok(direction)
}
