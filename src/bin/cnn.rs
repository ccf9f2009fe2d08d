//! Image classification from the command line.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tch_suite::cli::augment::{AugmentArgs, augment};
use tch_suite::cli::bench_distributed::{self, BenchDistributedArgs};
use tch_suite::cli::calibrate::{CalibrateArgs, calibrate};
use tch_suite::cli::cnn::{BatchesArgs, Cnn, write_batches};
use tch_suite::cli::explain::{self, ExplainArgs};
use tch_suite::cli::shards::{self, ShardsArgs};
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
    /// A picture of training images with their variations
    Augment(Box<AugmentArgs>),
    /// A picture of which pixels an answer comes from
    Explain(Box<ExplainArgs>),
    /// Write a data set as tar archives that training reads in sequence
    Shards(Box<ShardsArgs>),
    /// What training on several processes costs: the all-reduce by size, a step alone and together
    BenchDistributed(Box<BenchDistributedArgs>),
}

fn main() -> ExitCode {
    cli::main::<Arguments, Cnn>(|arguments| match arguments.verb {
        Verb::Common(verb) => cli::run_common::<Cnn>(verb),
        Verb::Batches(arguments) => write_batches(&arguments),
        Verb::Calibrate(arguments) => calibrate(&arguments),
        Verb::Augment(arguments) => augment(&arguments),
        Verb::Explain(arguments) => explain::run(&arguments),
        Verb::Shards(arguments) => shards::run(&arguments),
        Verb::BenchDistributed(arguments) => bench_distributed::run::<Cnn>(&arguments),
    })
}
