//! Linear models of tables: from a table to coefficients with their statistics.
//!
//! | module | what is in it |
//! | --- | --- |
//! | [`config`] | the `model` and `data` sections of a recipe |
//! | [`encoding`] | features as the columns of a design: one-hot categories, filled gaps, centre and scale |
//! | [`prepare`] | a table parted into training and test rows, with its encoding |
//! | [`design`] | passes over the rows of a design, in memory or from a file |
//! | [`parallel`] | the same on several threads |
//! | [`objective`] | what is minimised: loss, gradient and Hessian of generalised linear models |
//! | [`direct`], [`newton`], [`lbfgs`], [`coordinate`], [`interior`] | how it is minimised |
//! | [`fit`] | which solver, and the fitted model in the units of the table |
//! | [`inference`] | standard errors, tests, information criteria, diagnostics |
//! | [`scores`] | metrics of predictions |
//! | [`resampling`] | cross-validation, regularisation paths, searches |
//!
//! Everything is float64 on libtorch's linear algebra. A fit sees its rows block by block and never the whole design, so that what is in
//! memory and what streams from a file take the same way.

pub mod algebra;
pub mod config;
pub mod coordinate;
pub mod design;
pub mod direct;
pub mod distributions;
pub mod encoding;
pub mod fit;
pub mod inference;
pub mod interior;
pub mod lbfgs;
pub mod newton;
pub mod objective;
pub mod parallel;
pub mod prepare;
pub mod resampling;
pub mod scores;
