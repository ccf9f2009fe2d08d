//! The family `regression`: linear models and small networks on tables.
//!
//! A fit by a solver is no training in epochs, so `train` parts ways once the recipe is resolved: solvers run in `train.rs` and leave
//! `model.json`, and what the trainer fits goes through the suite's own `train` and leaves checkpoints. The other verbs take either.

mod args;
mod describe;
mod eval;
mod export;
mod family;
mod info;
mod path;
mod predict;
mod report;
mod search;
mod summary;
mod train;
mod trained;

pub use family::Regression;

use anyhow::Result;
use clap::Subcommand;

use super::args::{CompareArgs, DoctorArgs, RecipesArgs};

/// The verbs of `regression`.
#[derive(Debug, Subcommand)]
pub enum RegressionVerb {
    /// Fit a model to a table by a solver, or train it by gradient descent
    Train(Box<args::RegressionTrainArgs>),
    /// Metrics of a run on held-out rows or on another table
    Eval(eval::TableEvalArgs),
    /// Predictions for the rows of a table or of stdin
    Predict(predict::TablePredictArgs),
    /// Write files that Python loads
    Export(export::TableExportArgs),
    /// What is in a run, a weights file or an architecture
    Info(super::args::InfoArgs),
    /// Runs side by side: what differs in their recipes, their metrics
    Compare(CompareArgs),
    /// Columns of a table: types, ranges, missing values, categories, relation to the target
    Describe(describe::DescribeArgs),
    /// Coefficients with standard errors, tests, intervals and the figures of the fit
    Summary(summary::SummaryArgs),
    /// Fits over a range of penalties, with cross-validation
    Path(Box<path::PathArgs>),
    /// Cross-validated search over any keys of a recipe
    Search(Box<search::SearchArgs>),
    /// List the recipes, or print one
    Recipes(RecipesArgs),
    /// Check libtorch, devices, threads and memory settings
    Doctor(DoctorArgs),
}

/// Runs a verb.
pub fn run(verb: RegressionVerb) -> Result<()> {
    match verb {
        RegressionVerb::Train(arguments) => train::run(*arguments),
        RegressionVerb::Eval(arguments) => eval::run(&arguments),
        RegressionVerb::Predict(arguments) => predict::run(&arguments),
        RegressionVerb::Export(arguments) => export::run(&arguments),
        RegressionVerb::Info(arguments) => info::run(&arguments),
        RegressionVerb::Compare(arguments) => super::compare::run(&arguments),
        RegressionVerb::Describe(arguments) => describe::run(&arguments),
        RegressionVerb::Summary(arguments) => summary::run(&arguments),
        RegressionVerb::Path(arguments) => path::run(*arguments),
        RegressionVerb::Search(arguments) => search::run(*arguments),
        RegressionVerb::Recipes(arguments) => super::recipes::run::<Regression>(&arguments),
        RegressionVerb::Doctor(arguments) => super::doctor::run(&arguments),
    }
}
