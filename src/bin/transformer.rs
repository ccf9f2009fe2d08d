//! Text encoders from the command line.

use std::process::ExitCode;

use clap::Parser;
use tch_suite::cli;
use tch_suite::cli::transformer::{Anyone, TransformerVerb, run};

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    verb: TransformerVerb,
}

fn main() -> ExitCode {
    cli::main::<Arguments, Anyone>(|arguments| run(arguments.verb))
}
