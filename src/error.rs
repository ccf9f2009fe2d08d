//! Errors as users see them: one sentence that says what, where and what to do, and an exit code that says whose fault it was.
//!
//! Everything travels as [`anyhow::Error`]. An error that the user can mend (a flag, a recipe, a file) is a [`BadInput`] and ends
//! the program with code 2; everything else ends it with code 1. [`bad_input!`](crate::bad_input) and
//! [`bail_input!`](crate::bail_input) make them.

use std::fmt;
use std::process::ExitCode;

/// Exit code of a run that did what it was asked to do.
pub const EXIT_DONE: u8 = 0;
/// Exit code of a run that the machine or the suite itself failed.
pub const EXIT_FAILED: u8 = 1;
/// Exit code of bad usage or bad input.
pub const EXIT_BAD_INPUT: u8 = 2;
/// Exit code of a run that was interrupted and saved first.
pub const EXIT_INTERRUPTED: u8 = 130;

/// An error in what the user gave: a flag, a recipe, a data file, a checkpoint.
#[derive(Debug)]
pub struct BadInput(pub String);

impl fmt::Display for BadInput {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for BadInput {}

/// The run was asked to stop by SIGINT or SIGTERM, and its state is on disk.
#[derive(Debug)]
pub struct Interrupted(pub String);

impl fmt::Display for Interrupted {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Interrupted {}

/// Another process of a training failed, is gone, or does not answer: nothing is wrong with this one.
#[derive(Debug)]
pub struct PeerFailed(pub String);

impl fmt::Display for PeerFailed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for PeerFailed {}

/// Makes an [`anyhow::Error`] that blames the input.
#[macro_export]
macro_rules! bad_input {
    ($($argument:tt)*) => {
        ::anyhow::Error::new($crate::error::BadInput(format!($($argument)*)))
    };
}

/// Returns early with an error that blames the input.
#[macro_export]
macro_rules! bail_input {
    ($($argument:tt)*) => {
        return Err($crate::bad_input!($($argument)*))
    };
}

/// The exit code an error stands for.
pub fn exit_code(error: &anyhow::Error) -> ExitCode {
    ExitCode::from(exit_status(error))
}

/// The same as a number.
pub fn exit_status(error: &anyhow::Error) -> u8 {
    if error.chain().any(|cause| cause.is::<Interrupted>()) {
        EXIT_INTERRUPTED
    } else if error.chain().any(|cause| cause.is::<BadInput>()) {
        EXIT_BAD_INPUT
    } else {
        EXIT_FAILED
    }
}

/// The whole chain of an error as one line: contexts first, causes behind colons, C++ backtraces cut off.
pub fn one_sentence(error: &anyhow::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    for cause in error.chain() {
        let text = without_backtrace(&cause.to_string());
        // libtorch's messages repeat what a context has already said.
        if !text.is_empty() && !parts.iter().any(|part| part.contains(&text)) {
            parts.push(text);
        }
    }
    parts.join(": ")
}

/// A message of libtorch without its C++ backtrace and on one line.
///
/// libtorch appends `Exception raised from FILE:LINE (most recent call first):` and the frames to every message.
pub fn without_backtrace(message: &str) -> String {
    let end = ["\nException raised from", "Exception raised from", "\nC++ CapturedTraceback"]
        .iter()
        .filter_map(|mark| message.find(mark))
        .min()
        .unwrap_or(message.len());
    message[..end].split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn a_bad_input_keeps_its_kind_under_contexts() {
        let error: anyhow::Error = Err::<(), _>(bad_input!("`x` is not a number"))
            .context("reading a recipe")
            .context("training")
            .unwrap_err();
        assert_eq!(exit_code(&error), ExitCode::from(EXIT_BAD_INPUT));
        assert_eq!(one_sentence(&error), "training: reading a recipe: `x` is not a number");
        assert_eq!(exit_code(&anyhow::anyhow!("disk")), ExitCode::from(EXIT_FAILED));
    }

    #[test]
    fn a_backtrace_is_cut_off() {
        let message = "shape '[2]' is invalid\nfor input\nException raised from view at x.cpp:1 (most recent call first):\nframe #0";
        assert_eq!(without_backtrace(message), "shape '[2]' is invalid for input");
    }
}
