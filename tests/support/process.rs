//! Running the programs.

use std::ffi::OsStr;
use std::io::Write;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// What a program did.
#[derive(Debug)]
pub struct Finished {
    /// Its exit code; `None` where a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Finished {
    fn from(output: Output) -> Finished {
        Finished {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// `cnn` with these arguments. Backtraces are asked for, since none may appear anyway; threads that wait sleep, since many programs run at
/// a time here.
pub fn cnn<I: IntoIterator<Item: AsRef<OsStr>>>(arguments: I) -> Command {
    program(env!("CARGO_BIN_EXE_cnn"), arguments)
}

/// `regression` likewise.
pub fn regression<I: IntoIterator<Item: AsRef<OsStr>>>(arguments: I) -> Command {
    program(env!("CARGO_BIN_EXE_regression"), arguments)
}

/// `transformer` likewise.
pub fn transformer<I: IntoIterator<Item: AsRef<OsStr>>>(arguments: I) -> Command {
    program(env!("CARGO_BIN_EXE_transformer"), arguments)
}

/// `rnn` likewise.
pub fn rnn<I: IntoIterator<Item: AsRef<OsStr>>>(arguments: I) -> Command {
    program(env!("CARGO_BIN_EXE_rnn"), arguments)
}

/// `torchscript` likewise.
pub fn torchscript<I: IntoIterator<Item: AsRef<OsStr>>>(arguments: I) -> Command {
    program(env!("CARGO_BIN_EXE_torchscript"), arguments)
}

fn program<I: IntoIterator<Item: AsRef<OsStr>>>(path: &str, arguments: I) -> Command {
    let mut command = Command::new(path);
    command.args(arguments).env("RUST_BACKTRACE", "1").env("OMP_WAIT_POLICY", "passive").stdin(Stdio::null());
    command
}

/// Runs a command to its end.
pub fn run(command: &mut Command) -> Finished {
    command.output().unwrap().into()
}

/// Runs a command to its end with something on its standard input.
pub fn run_with_input(command: &mut Command, input: &str) -> Finished {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap().into()
}

/// Runs `cnn` with these arguments, which must succeed, and returns what it did.
pub fn done<I: IntoIterator<Item: AsRef<OsStr>>>(arguments: I) -> Finished {
    let finished = run(&mut cnn(arguments));
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    finished
}

/// Asserts that a program failed with `code` and one sentence on stderr that holds each of `words`, without a trace of panics and backtraces.
pub fn assert_refused(finished: &Finished, code: i32, words: &[&str]) {
    let Finished { stderr, stdout, .. } = finished;
    assert_eq!(finished.code, Some(code), "{stderr}");
    assert_eq!(stdout, "");
    let sentence = stderr.strip_suffix('\n').unwrap_or(stderr);
    let named = ["cnn: ", "regression: ", "rnn: ", "transformer: ", "torchscript: "]
        .iter()
        .any(|name| sentence.starts_with(name));
    assert!(named && !sentence.contains('\n'), "not one sentence: {stderr}");
    for noise in ["panicked", "backtrace", "frame #", "Exception raised", "RUST_", "Torch(", "Err(", "Os {"] {
        assert!(!stderr.contains(noise), "`{noise}` in: {stderr}");
    }
    for word in words {
        assert!(stderr.contains(word), "no `{word}` in: {stderr}");
    }
}

/// A program in the background with its output kept for later.
pub fn start(command: &mut Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// What a program in the background did, once it has ended.
pub fn finish(child: Child) -> Finished {
    child.wait_with_output().unwrap().into()
}

/// Sends a signal by its name, `INT` or `TERM`.
pub fn signal(child: &Child, name: &str) {
    let status = Command::new("sh").args(["-c", &format!("kill -{name} {}", child.id())]).status().unwrap();
    assert!(status.success(), "no signal could be sent");
}

/// Looks every 100 µs until the condition holds; returns whether it did before the program ended.
pub fn wait_until(child: &mut Child, mut condition: impl FnMut() -> bool) -> bool {
    const LONGEST: Duration = Duration::from_secs(120);
    let start = Instant::now();
    loop {
        if condition() {
            return true;
        }
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        if start.elapsed() > LONGEST {
            let _ = child.kill();
            panic!("nothing happened for {LONGEST:?}");
        }
        std::thread::sleep(Duration::from_micros(100));
    }
}
