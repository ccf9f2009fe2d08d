//! Small dense linear algebra in float64, on libtorch.

use anyhow::{Context, Result};
use tch::{Kind, Tensor};

/// The lower Cholesky factor, or `None` where the matrix is not positive definite.
pub fn cholesky(matrix: &Tensor) -> Result<Option<Tensor>> {
    let (factor, info) = matrix.f_linalg_cholesky_ex(false, false).context("a Cholesky decomposition")?;
    Ok((info.f_int64_value(&[])? == 0).then_some(factor))
}

/// Solves `matrix` · x = `right` for a symmetric positive definite matrix; `None` where it is not.
pub fn solve_positive(matrix: &Tensor, right: &Tensor) -> Result<Option<Tensor>> {
    let Some(factor) = cholesky(matrix)? else { return Ok(None) };
    Ok(Some(right.f_unsqueeze(1)?.f_cholesky_solve(&factor, false)?.f_squeeze_dim(1)?))
}

/// The inverse of a symmetric positive definite matrix; `None` where it is not.
pub fn inverse_positive(matrix: &Tensor) -> Result<Option<Tensor>> {
    match cholesky(matrix)? {
        Some(factor) => Ok(Some(factor.f_cholesky_inverse(false)?)),
        None => Ok(None),
    }
}

/// Eigenvalues in ascending order and eigenvectors, as columns, of a symmetric matrix.
pub fn eigen(matrix: &Tensor) -> Result<(Vec<f64>, Tensor)> {
    let (values, vectors) = matrix.f_linalg_eigh("L").context("an eigenvalue decomposition")?;
    Ok((numbers(&values)?, vectors))
}

/// Singular value decomposition U · diag(S) · Vᵀ, with the values descending.
pub fn singular(matrix: &Tensor) -> Result<(Tensor, Vec<f64>, Tensor)> {
    let (u, s, v) = matrix.f_svd(true, true).context("a singular value decomposition")?;
    Ok((u, numbers(&s)?, v))
}

/// The R of a QR decomposition, `[min(rows, columns), columns]`.
pub fn upper_triangle(matrix: &Tensor) -> Result<Tensor> {
    Ok(Tensor::f_linalg_qr(matrix, "r").context("a QR decomposition")?.1)
}

/// All numbers of a tensor.
pub fn numbers(tensor: &Tensor) -> Result<Vec<f64>> {
    Ok(Vec::<f64>::try_from(tensor.f_to_kind(Kind::Double)?.f_contiguous()?.f_view([-1])?)?)
}

/// A vector.
pub fn vector(values: &[f64]) -> Result<Tensor> {
    Ok(Tensor::f_from_slice(values)?)
}

/// A scalar on the host.
pub fn scalar(tensor: &Tensor) -> Result<f64> {
    Ok(tensor.f_double_value(&[])?)
}

/// The 2-norm condition number from eigenvalues of XᵀX.
pub fn condition(eigenvalues: &[f64]) -> f64 {
    let largest = eigenvalues.iter().copied().fold(0.0, f64::max);
    let smallest = eigenvalues.iter().copied().fold(f64::INFINITY, f64::min);
    if smallest <= 0.0 { f64::INFINITY } else { (largest / smallest).sqrt() }
}
