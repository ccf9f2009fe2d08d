//! `summary`: the statistics of a fit.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::train::STATISTICS;
use crate::cli::args::EvalFormat;
use crate::cli::print;
use crate::regression::inference::{Inference, text};
use crate::training::run::read_recipe;
use crate::{bail_input, files, recipe};

/// Arguments of `summary`.
#[derive(Debug, Args)]
pub struct SummaryArgs {
    /// Run folder
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// Standard errors that allow for unequal variances: HC0, HC1, HC2 or HC3 (linear)
    #[arg(long, value_name = "NAME")]
    robust: Option<String>,
    /// How to print
    #[arg(long, value_enum, default_value_t = EvalFormat::Table)]
    format: EvalFormat,
}

/// Runs the verb.
pub fn run(arguments: &SummaryArgs) -> Result<()> {
    read_recipe(&arguments.run)?;
    let path = arguments.run.join(STATISTICS);
    let name = path.display().to_string();
    if !path.is_file() {
        bail_input!(
            "{} has no statistics: a summary is of a fit by a solver, without --no-statistics",
            arguments.run.display()
        );
    }
    let mut inference: Inference = recipe::typed(recipe::parse(&files::read_text(&path)?, &name)?, &name)?;
    if let Some(kind) = &arguments.robust {
        inference.use_robust(kind)?;
    }
    match arguments.format {
        EvalFormat::Json => print(&serde_json::to_string_pretty(&inference)?),
        EvalFormat::Table => print(&text(&inference)),
    }
}
