//! The command line that all binaries share: the same verbs, and the same flags meaning the same thing.
//!
//! A binary names its [`Family`]; the verbs are written once against it. Data go to stdout, everything else to stderr.

mod args;
pub mod augment;
pub mod bench_distributed;
pub mod calibrate;
pub mod cnn;
mod compare;
mod doctor;
mod eval;
pub mod explain;
mod export;
mod family;
mod info;
mod predict;
mod recipes;
pub mod regression;
pub mod rnn;
mod session;
pub mod shards;
mod table;
pub mod tokenizer;
pub mod torchscript;
mod train;
pub mod transformer;
mod writing;

pub use args::{
    CommonVerb, CompareArgs, DeviceArgs, DoctorArgs, EvalArgs, ExportArgs, InfoArgs, ModelArgs, RecipesArgs,
    RunArgs, TrainArgs,
};
pub use family::{Family, FamilyRecipe, FolderFormat, Prediction, ScriptPart};

use std::any::Any;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow};
use clap::{Command, FromArgMatches};

use crate::data::loader::panic_message;
use crate::distributed::launcher;
use crate::error::{exit_code, one_sentence};
use crate::native::system;

/// Runs a binary: heap settings, arguments, the verb, and the exit code with its one sentence.
pub fn main<C: clap::CommandFactory + FromArgMatches, F: Family>(
    run: impl FnOnce(C) -> Result<()>,
) -> ExitCode {
    // Before anything allocates, and before there are threads.
    system::tune_heap();
    let command: Command = C::command().name(F::NAME).about(F::ABOUT).version(env!("CARGO_PKG_VERSION"));
    let arguments = C::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit());
    // A panic is told as a sentence below; the hook would print a backtrace as well.
    std::panic::set_hook(Box::new(|_| {}));
    let result =
        catch_unwind(AssertUnwindSafe(|| run(arguments))).unwrap_or_else(|panic| Err(from_panic(&*panic)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        // The launcher of several processes says it for all.
        Err(error) if launcher::note_failure(&error) => exit_code(&error),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{}: {}", F::NAME, one_sentence(&error));
            exit_code(&error)
        }
    }
}

/// Runs a verb that every family has.
pub fn run_common<F: Family>(verb: CommonVerb) -> Result<()> {
    match verb {
        CommonVerb::Train(arguments) => train::run::<F>(&arguments),
        CommonVerb::Eval(arguments) => eval::run::<F>(&arguments),
        CommonVerb::Predict(arguments) => predict::run::<F>(&arguments),
        CommonVerb::Export(arguments) => export::run::<F>(&arguments),
        CommonVerb::Info(arguments) => info::run::<F>(&arguments),
        CommonVerb::Compare(arguments) => compare::run(&arguments),
        CommonVerb::Recipes(arguments) => recipes::run::<F>(&arguments),
        CommonVerb::Doctor(arguments) => doctor::run(&arguments),
    }
}

/// What a panic means: nearly always libtorch refusing an operation inside a model, or memory that ran out.
fn from_panic(panic: &(dyn Any + Send)) -> anyhow::Error {
    let message = panic_message(panic);
    // tch's plain forms panic with the debug form of their error, which wraps the text.
    let message =
        message.rsplit("Torch(\"").next().unwrap_or(&message).trim_end_matches("\")").replace("\\n", " ");
    let message = crate::error::without_backtrace(&message);
    if ["out of memory", "can't allocate memory", "not enough memory"]
        .iter()
        .any(|words| message.contains(words))
    {
        return anyhow!(
            "out of memory: take a smaller --batch-size (with --accumulate for the same steps); a checkpoint already saved is \
             intact ({message})"
        );
    }
    anyhow!("an operation failed: {message}; a checkpoint already saved is intact")
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
    })
}

/// Writes a verb's data to stdout.
fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.write_all(b"\n")).context("writing to stdout")
}
