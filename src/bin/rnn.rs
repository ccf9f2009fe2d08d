//! Recurrent networks from the command line: classes of sequences, texts, forecasts.

use std::process::ExitCode;

use clap::Parser;
use tch_suite::cli;
use tch_suite::cli::rnn::{Rnn, RnnVerb};

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    verb: RnnVerb,
}

fn main() -> ExitCode {
    cli::main::<Arguments, Rnn>(|arguments| cli::rnn::run(arguments.verb))
}
