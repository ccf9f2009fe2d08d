//! Least squares by decomposition: one pass over the rows makes a small triangle or the normal equations, which are then solved.

use anyhow::{Context, Result};
use tch::{Kind, Tensor};

use super::algebra::{cholesky, condition, eigen, numbers, scalar, singular, upper_triangle, vector};
use super::design::{Block, Design};
use crate::bail_input;

/// A singular value below this share of the largest one, times the number of columns, counts as zero.
const RANK_TOLERANCE: f64 = f64::EPSILON * 16.0;

/// XᵀWX, XᵀWy and what else one pass over the rows can sum.
pub struct Normal {
    /// `[columns, columns]`
    pub gram: Tensor,
    /// `[columns]`
    pub right: Tensor,
    /// Σ weight · y²
    pub squares: f64,
    /// Σ weight · y
    pub sum: f64,
    /// Σ weight
    pub weight: f64,
}

impl Normal {
    /// Sums over all rows.
    pub fn of(design: &Design) -> Result<Self> {
        let columns = design.columns() as i64;
        let shapes: [&[i64]; 3] = [&[columns, columns], &[columns], &[3]];
        let sums = design.sum(&[], &shapes, &|_, sums, block: &Block| {
            let (x, y) = match &block.weight {
                Some(weight) => (&block.x * weight.f_unsqueeze(1)?, &block.y * weight),
                None => (block.x.shallow_clone(), block.y.shallow_clone()),
            };
            let _ = sums[0].shallow_clone().f_addmm_(&x.f_tr()?, &block.x)?;
            let _ = sums[1].shallow_clone().f_addmv_(&block.x.f_tr()?, &y)?;
            let of_rows = [y.f_dot(&block.y)?, y.f_sum(Kind::Double)?, block.weights()?.f_sum(Kind::Double)?];
            let _ = sums[2].shallow_clone().f_add_(&Tensor::f_stack(&of_rows, 0)?)?;
            Ok(())
        })?;
        let totals = numbers(&sums[2])?;
        let (gram, right) = (sums[0].shallow_clone(), sums[1].shallow_clone());
        Ok(Self { gram, right, squares: totals[0], sum: totals[1], weight: totals[2] })
    }
}

/// A solution of least squares.
pub struct Solution {
    /// `[columns]`
    pub coefficients: Tensor,
    /// How many columns are linearly independent.
    pub rank: usize,
    /// Condition number of the design as it is fitted (centred and scaled).
    pub condition: f64,
}

/// The R of a QR decomposition of (√weight · X, √weight · y), `[columns + 1, columns + 1]`: R of the rows so far is stacked on the next ones and
/// decomposed again, so that memory does not grow with the rows. The penalty comes as further rows √l2 · I.
fn triangle(design: &Design, l2: f64) -> Result<Tensor> {
    let columns = design.columns() as i64;
    let options = (Kind::Double, design.device());
    let penalty = Tensor::f_eye(columns, options)? * l2.sqrt();
    if design.intercept {
        let _ = penalty.f_select(0, 0)?.f_zero_()?;
    }
    let mut triangle = Tensor::f_cat(&[penalty, Tensor::f_zeros([columns, 1], options)?], 1)?;
    design.visit(&mut |block: &Block| {
        let mut rows = Tensor::f_cat(&[&block.x, &block.y.f_unsqueeze(1)?], 1)?;
        if let Some(weight) = &block.weight {
            rows = rows.f_mul(&weight.f_sqrt()?.f_unsqueeze(1)?)?;
        }
        triangle = upper_triangle(&Tensor::f_cat(&[&triangle, &rows], 0)?)?;
        Ok(())
    })?;
    let missing = columns + 1 - triangle.size()[0];
    if missing > 0 {
        triangle = Tensor::f_cat(&[triangle, Tensor::f_zeros([missing, columns + 1], options)?], 0)?;
    }
    Ok(triangle)
}

/// Solves by QR.
///
/// # Errors
/// There are fewer rows than columns, or columns depend on each other.
pub fn qr(design: &Design, l2: f64) -> Result<Solution> {
    refuse_few_rows(design, l2, "qr")?;
    let columns = design.columns() as i64;
    let triangle = triangle(design, l2)?;
    let r = triangle.f_narrow(0, 0, columns)?.f_narrow(1, 0, columns)?;
    let right = triangle.f_narrow(0, 0, columns)?.f_narrow(1, columns, 1)?;
    let (rank, condition) = rank_of(&singular(&r)?.1);
    if rank < columns as usize {
        return refuse_dependent(design, &r, rank, "qr");
    }
    let coefficients =
        r.f_linalg_solve_triangular(&right, true, true, false).context("solving by QR")?.f_squeeze_dim(1)?;
    Ok(Solution { coefficients, rank, condition })
}

/// Solves by a singular value decomposition of that R: where columns depend on each other, the solution of least norm.
pub fn svd(design: &Design, l2: f64) -> Result<Solution> {
    let columns = design.columns() as i64;
    let triangle = triangle(design, l2)?;
    let r = triangle.f_narrow(0, 0, columns)?.f_narrow(1, 0, columns)?;
    let right = triangle.f_narrow(0, 0, columns)?.f_select(1, columns)?;
    let (u, values, v) = singular(&r)?;
    let (rank, condition) = rank_of(&values);
    let inverse: Vec<f64> = values
        .iter()
        .enumerate()
        .map(|(place, value)| if place < rank { 1.0 / value } else { 0.0 })
        .collect();
    let projected = u.f_tr()?.f_mv(&right)? * vector(&inverse)?.f_to_device(design.device())?;
    Ok(Solution { coefficients: v.f_mv(&projected)?, rank, condition })
}

/// Solves the normal equations by Cholesky.
///
/// # Errors
/// There are fewer rows than columns, or columns depend on each other to working precision.
pub fn from_normal(design: &Design, normal: &Normal, l2: f64) -> Result<Solution> {
    refuse_few_rows(design, l2, "cholesky")?;
    let columns = design.columns();
    let mut penalty = vec![l2; columns];
    if design.intercept {
        penalty[0] = 0.0;
    }
    let gram = &normal.gram + Tensor::f_diag(&vector(&penalty)?.f_to_device(design.device())?, 0)?;
    let (eigenvalues, _) = eigen(&gram)?;
    // The condition of XᵀX is the square of that of X: half of the digits are gone at 1e8.
    let condition = condition(&eigenvalues);
    match cholesky(&gram)? {
        Some(factor) if condition < 1e7 => {
            let right = normal.right.f_unsqueeze(1)?;
            let mut solution = right.f_cholesky_solve(&factor, false)?;
            // One step of refinement takes away the rounding of the decomposition.
            solution = &solution + (&right - gram.f_matmul(&solution)?).f_cholesky_solve(&factor, false)?;
            Ok(Solution { coefficients: solution.f_squeeze_dim(1)?, rank: columns, condition })
        }
        _ => {
            let r = triangle(design, l2)?.f_narrow(0, 0, columns as i64)?.f_narrow(1, 0, columns as i64)?;
            let (rank, condition) = rank_of(&singular(&r)?.1);
            if rank < columns {
                return refuse_dependent(design, &r, rank, "cholesky");
            }
            bail_input!(
                "the design is too badly conditioned for cholesky (condition number {condition:.2e} of the centred, scaled columns): use --solver qr"
            )
        }
    }
}

/// How many singular values, in descending order, are not zero, and their ratio.
fn rank_of(values: &[f64]) -> (usize, f64) {
    let largest = values.first().copied().unwrap_or(0.0);
    let threshold = largest * RANK_TOLERANCE * values.len() as f64;
    let rank = values.iter().filter(|value| **value > threshold).count();
    let smallest = values.last().copied().unwrap_or(0.0);
    (rank, if smallest > 0.0 { largest / smallest } else { f64::INFINITY })
}

fn refuse_few_rows(design: &Design, l2: f64, solver: &str) -> Result<()> {
    let (rows, columns) = (design.source().rows(), design.columns());
    if l2 == 0.0 && rows < columns {
        bail_input!(
            "there are {rows} training rows for {columns} coefficients, too few for {solver}: use --solver svd (the shortest solution), --model ridge, or fewer features"
        );
    }
    Ok(())
}

fn refuse_dependent(design: &Design, r: &Tensor, rank: usize, solver: &str) -> Result<Solution> {
    bail_input!(
        "the design has rank {rank} of {}: {}; leave a column out with --drop, or use --solver svd or --model ridge (solver {solver})",
        design.columns(),
        dependence(design, r)?
    )
}

/// Says in words which columns depend on each other: those with a share in the direction that the design does not see.
pub fn dependence(design: &Design, r: &Tensor) -> Result<String> {
    let (_, _, v) = singular(r)?;
    let direction = numbers(&v.f_select(1, r.size()[1] - 1)?)?;
    let largest = direction.iter().fold(0.0, |largest: f64, share| largest.max(share.abs()));
    let names = design.names();
    let involved: Vec<String> = direction
        .iter()
        .zip(&names)
        .filter(|(share, _)| share.abs() > largest * 1e-6)
        .map(|(_, name)| format!("`{name}`"))
        .take(8)
        .collect();
    Ok(format!("{} depend on each other linearly", involved.join(", ")))
}

/// The same of a design whose solution was found in spite of it.
pub fn dependence_of(design: &Design) -> Result<String> {
    let columns = design.columns() as i64;
    let r = triangle(design, 0.0)?.f_narrow(0, 0, columns)?.f_narrow(1, 0, columns)?;
    dependence(design, &r)
}

/// A value of a fit that no data can give.
pub fn finite(value: &Tensor) -> Result<bool> {
    Ok(scalar(&value.f_isfinite()?.f_all()?.f_to_kind(Kind::Double)?)? != 0.0)
}
