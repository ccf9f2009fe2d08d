//! Newton's method with step halving; for generalised linear models this is iteratively reweighted least squares.

use anyhow::Result;
use tch::Tensor;

use super::algebra::{scalar, solve_positive};
use super::objective::{Objective, Outcome, largest};

/// How often a step is halved before the search gives up.
const HALVINGS: u32 = 40;

/// Below this relative change of a coefficient, the Hessian of the point before serves for one more step: what it is off by is as small.
const NEAR: f64 = 1e-3;

/// Minimises a convex objective from `start`. Stops, with a last full step, when what that step leaves is estimated at no more than the square of
/// `tolerance`, relative to the largest coefficient: the square of the step after a Hessian of its own, the step times its ratio to the one before
/// after an older Hessian.
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
    let mut hessian = point.hessian.take();
    let (mut gap, mut iterations) = (f64::INFINITY, 1);
    let (mut converged, mut is_own) = (false, true);
    let mut damping = 0.0;
    while iterations < max_iterations && !(stop_when_separated && point.separated) {
        let Some(of_point) = &hessian else { break };
        let Some(step) = step_of(of_point, &point.gradient, free, &mut damping)? else { break };
        let before = gap;
        gap = largest(&step)? / largest(&at)?.max(largest(&step)?).max(f64::MIN_POSITIVE);
        let decrease = scalar(&step.f_dot(&point.gradient)?)?;
        let ratio = if is_own { gap } else { (gap / before).min(1.0) };
        if gap * ratio <= tolerance * tolerance {
            // This near, the objective is the parabola that the step was made for.
            at = &at + &step;
            point.value += 0.5 * decrease;
            converged = true;
            break;
        }
        let serves_again = gap <= NEAR && (is_own || gap <= 0.01 * before);
        let mut length = 1.0;
        let mut next = None;
        for _ in 0..HALVINGS {
            let there = &at + &step * length;
            let candidate = objective.evaluate(&there, length < 1.0 || !serves_again)?;
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
        is_own = point.hessian.is_some();
        hessian = point.hessian.take().or(hessian);
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
fn step_of(
    hessian: &Tensor,
    gradient: &Tensor,
    free: Option<&Tensor>,
    damping: &mut f64,
) -> Result<Option<Tensor>> {
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
        if let Some(step) = solve_positive(&damped, &gradient.f_neg()?)?
            && largest(&step)?.is_finite()
        {
            *damping = if *damping < 1e-14 { 0.0 } else { *damping * 0.01 };
            return Ok(Some(step));
        }
        *damping = (*damping * 10.0).max(1e-15);
    }
    Ok(None)
}
