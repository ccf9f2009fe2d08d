//! Newton's method with step halving; for generalised linear models this is iteratively reweighted least squares.

use anyhow::Result;
use tch::Tensor;

use super::algebra::{scalar, solve_positive};
use super::objective::{Objective, Outcome, Point, largest};

/// How often a step is halved before the search gives up.
const HALVINGS: u32 = 40;

/// Minimises a convex objective from `start`. Stops when a full step changes no coefficient by more than `tolerance` times the largest one,
/// and takes that step: the error left is the square of it.
///
/// `free` are directions along which the objective is known not to change (the common shift of all intercepts of a softmax), as a
/// matrix that is added to the Hessian.
///
/// `stop_when_separated` ends the search as soon as a point parts the classes without a mistake.
pub fn minimise(
    objective: &dyn Objective,
    start: Tensor,
    free: Option<&Tensor>,
    tolerance: f64,
    max_iterations: u64,
    stop_when_separated: bool,
) -> Result<Outcome> {
    let mut at = start;
    let mut point = objective.evaluate(&at, true)?;
    let (mut gap, mut iterations) = (f64::INFINITY, 1);
    let mut converged = false;
    let mut damping = 0.0;
    while iterations < max_iterations && !(stop_when_separated && point.separated) {
        let Some(step) = step_of(&point, free, &mut damping)? else { break };
        gap = largest(&step)? / largest(&at)?.max(largest(&step)?).max(f64::MIN_POSITIVE);
        let decrease = scalar(&step.f_dot(&point.gradient)?)?;
        let mut length = 1.0;
        let mut next = None;
        for _ in 0..HALVINGS {
            let there = &at + &step * length;
            // The last step needs no derivatives of second order.
            let candidate = objective.evaluate(&there, length < 1.0 || gap > tolerance)?;
            iterations += 1;
            // Near the optimum the value no longer has the digits to decrease.
            let noise = 1e-12 * point.value.abs().max(1e-300);
            if candidate.value <= point.value + 1e-4 * length * decrease + noise {
                next = Some((there, candidate));
                break;
            }
            length *= 0.5;
        }
        let Some((there, candidate)) = next else { break };
        at = there;
        point = candidate;
        if length == 1.0 && gap <= tolerance {
            converged = true;
            break;
        }
    }
    Ok(Outcome {
        coefficients: at,
        value: point.value,
        iterations,
        gap,
        measure: "relative change of a coefficient",
        converged,
        separated: point.separated,
    })
}

/// Newton's step; with a growing multiple of the identity added where the Hessian is not positive definite.
fn step_of(point: &Point, free: Option<&Tensor>, damping: &mut f64) -> Result<Option<Tensor>> {
    let Some(hessian) = &point.hessian else { return Ok(None) };
    let mut hessian = hessian.shallow_clone();
    if let Some(free) = free {
        hessian = hessian.f_add(free)?;
    }
    let scale = largest(&hessian.f_diagonal(0, 0, 1)?)?.max(f64::MIN_POSITIVE);
    if !scale.is_finite() {
        return Ok(None);
    }
    let identity = Tensor::f_eye(hessian.size()[0], (hessian.kind(), hessian.device()))?;
    for _ in 0..40 {
        let damped = &hessian + &identity * (*damping * scale);
        if let Some(step) = solve_positive(&damped, &point.gradient.f_neg()?)?
            && largest(&step)?.is_finite()
        {
            *damping = if *damping < 1e-14 { 0.0 } else { *damping * 0.01 };
            return Ok(Some(step));
        }
        *damping = (*damping * 10.0).max(1e-15);
    }
    Ok(None)
}
