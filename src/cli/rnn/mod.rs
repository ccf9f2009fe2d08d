//! The family `rnn`: recurrent networks that classify sequences, write texts and forecast series.

mod family;
mod generate;
mod predict;
mod score;

pub use family::Rnn;

use anyhow::Result;
use clap::Subcommand;

use super::args::{CompareArgs, DoctorArgs, EvalArgs, ExportArgs, InfoArgs, RecipesArgs, TrainArgs};
use super::tokenizer::TokenizerVerb;
use super::{CommonVerb, run_common};

/// The verbs of `rnn`.
#[derive(Debug, Subcommand)]
pub enum RnnVerb {
    /// Train from a recipe, from given weights, or continue a run exactly
    Train(Box<TrainArgs>),
    /// Metrics of a run on one part of its data
    Eval(Box<EvalArgs>),
    /// Classes of texts or sequences, or what comes next in a series
    Predict(Box<predict::RnnPredictArgs>),
    /// Let a language model go on with a text
    Generate(Box<generate::GenerateArgs>),
    /// How likely a language model finds a text: nats per token, perplexity, bits per character
    Score(Box<score::ScoreArgs>),
    /// Write files that Python loads
    Export(Box<ExportArgs>),
    /// What is in a run, a weights file or an architecture
    Info(InfoArgs),
    /// Runs side by side: what differs in their recipes, their metrics, their curves
    Compare(CompareArgs),
    /// Make a tokenizer from texts, or show what one does
    #[command(subcommand)]
    Tokenizer(TokenizerVerb),
    /// List the recipes, or print one
    Recipes(RecipesArgs),
    /// Check libtorch, devices, threads and memory settings
    Doctor(DoctorArgs),
}

/// Runs a verb.
pub fn run(verb: RnnVerb) -> Result<()> {
    match verb {
        RnnVerb::Train(arguments) => run_common::<Rnn>(CommonVerb::Train(arguments)),
        RnnVerb::Eval(arguments) => run_common::<Rnn>(CommonVerb::Eval(arguments)),
        RnnVerb::Predict(arguments) => predict::run(&arguments),
        RnnVerb::Generate(arguments) => generate::run(&arguments),
        RnnVerb::Score(arguments) => score::run(&arguments),
        RnnVerb::Export(arguments) => run_common::<Rnn>(CommonVerb::Export(arguments)),
        RnnVerb::Info(arguments) => run_common::<Rnn>(CommonVerb::Info(arguments)),
        RnnVerb::Compare(arguments) => run_common::<Rnn>(CommonVerb::Compare(arguments)),
        RnnVerb::Tokenizer(verb) => super::tokenizer::run(&verb),
        RnnVerb::Recipes(arguments) => run_common::<Rnn>(CommonVerb::Recipes(arguments)),
        RnnVerb::Doctor(arguments) => run_common::<Rnn>(CommonVerb::Doctor(arguments)),
    }
}
