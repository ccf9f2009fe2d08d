//! Image classification from the command line.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tch_suite::cli::calibrate::{CalibrateArgs, calibrate};
use tch_suite::cli::cnn::{BatchesArgs, Cnn, write_batches};
use tch_suite::cli::{self, CommonVerb};

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    #[command(flatten)]
    Common(CommonVerb),
    /// Write the first training batches as the network sees them, to compare with another framework's
    Batches(Box<BatchesArgs>),
    /// Make a run's probabilities true: fit one temperature on its validation part
    Calibrate(Box<CalibrateArgs>),
}

fn main() -> ExitCode {
    cli::main::<Arguments, Cnn>(|arguments| match arguments.verb {
        Verb::Common(verb) => cli::run_common::<Cnn>(verb),
        Verb::Batches(arguments) => write_batches(&arguments),
        Verb::Calibrate(arguments) => calibrate(&arguments),
    })
}
