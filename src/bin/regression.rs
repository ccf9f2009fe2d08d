//! Linear models and small networks on tables, from the command line.

use std::process::ExitCode;

use clap::Parser;
use tch_suite::cli;
use tch_suite::cli::regression::{Regression, RegressionVerb};

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    verb: RegressionVerb,
}

fn main() -> ExitCode {
    cli::main::<Arguments, Regression>(|arguments| cli::regression::run(arguments.verb))
}
