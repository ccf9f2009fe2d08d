//! TorchScript modules and compiled packages from the command line.

use std::process::ExitCode;

use clap::Parser;
use tch_suite::cli;
use tch_suite::cli::torchscript::{Scripted, Verb, run_verb};

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

fn main() -> ExitCode {
    cli::main::<Arguments, Scripted>(|arguments| run_verb(arguments.verb))
}
