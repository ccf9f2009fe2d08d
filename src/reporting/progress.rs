//! What a program says on stderr, and the run's `log.txt`.
//!
//! One [`Log`] per program speaks for everyone. Bars are drawn where stderr is a terminal; otherwise, and with
//! `--no-progress`, progress is plain lines; with `--quiet` only warnings and the final result are shown. The file gets every line.

use std::fs::{File, OpenOptions};
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use super::format::{clock, count, number};

/// How much is shown on stderr, and how.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verbosity {
    /// Bars that move, and lines.
    Bars,
    /// Lines only.
    Lines,
    /// Warnings and the final result only.
    Quiet,
    /// Nothing: another process speaks.
    Silent,
}

impl Verbosity {
    /// From `--quiet` and `--no-progress`: bars only where stderr is a terminal.
    pub fn from_flags(quiet: bool, no_progress: bool) -> Verbosity {
        if quiet {
            Verbosity::Quiet
        } else if no_progress || !std::io::stderr().is_terminal() {
            Verbosity::Lines
        } else {
            Verbosity::Bars
        }
    }
}

/// The program's voice: stderr, and `log.txt` once there is a run folder. Clones speak through the same one.
///
/// Saying something never fails: a log file that can no longer be written is reported once on stderr and then left alone, and a
/// closed stderr is ignored.
#[derive(Clone)]
pub struct Log {
    shared: Arc<Shared>,
}

struct Shared {
    verbosity: Verbosity,
    /// Draws the bars; lines are printed while it holds still.
    bars: Option<MultiProgress>,
    state: Mutex<State>,
}

struct State {
    terminal: Box<dyn Write + Send>,
    file: LogFile,
    warnings: Vec<String>,
}

enum LogFile {
    /// No run folder yet: what it will be given.
    Kept(String),
    Open(File),
    /// Writing failed.
    Broken,
}

#[derive(Clone, Copy)]
enum Kind {
    Info,
    Warning,
    Result,
}

impl Log {
    /// A log without a file. What is said before [`Log::attach`] is kept for the file.
    pub fn new(verbosity: Verbosity) -> Log {
        Log::with_terminal(verbosity, Box::new(std::io::stderr()))
    }

    fn with_terminal(verbosity: Verbosity, terminal: Box<dyn Write + Send>) -> Log {
        let bars = (verbosity == Verbosity::Bars)
            .then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr()));
        let state = State { terminal, file: LogFile::Kept(String::new()), warnings: Vec::new() };
        Log { shared: Arc::new(Shared { verbosity, bars, state: Mutex::new(state) }) }
    }

    /// Goes on in this file too, behind what it holds; what was said so far is written into it first.
    pub fn attach(&self, path: &Path) -> Result<()> {
        let context = || format!("cannot write {}", path.display());
        let mut file = OpenOptions::new().create(true).append(true).open(path).with_context(context)?;
        let mut state = self.state();
        if let LogFile::Kept(text) = &state.file {
            file.write_all(text.as_bytes()).with_context(context)?;
        }
        state.file = LogFile::Open(file);
        Ok(())
    }

    /// How much is shown.
    pub fn verbosity(&self) -> Verbosity {
        self.shared.verbosity
    }

    /// Says what is going on; not shown when quiet.
    pub fn info(&self, text: impl AsRef<str>) {
        let shown = !matches!(self.shared.verbosity, Verbosity::Quiet | Verbosity::Silent);
        self.say(Kind::Info, text.as_ref(), shown);
    }

    /// Says that something may not be as the user thinks. Always shown, with `warning:` before it.
    pub fn warning(&self, text: impl AsRef<str>) {
        self.say(Kind::Warning, text.as_ref(), self.shared.verbosity != Verbosity::Silent);
    }

    /// Says what came out of it all. Always shown; may be several lines.
    pub fn result(&self, text: impl AsRef<str>) {
        self.say(Kind::Result, text.as_ref(), self.shared.verbosity != Verbosity::Silent);
    }

    /// All warnings so far, each as it was given.
    pub fn warnings(&self) -> Vec<String> {
        self.state().warnings.clone()
    }

    /// Starts to show the progress of an epoch, a whole run or an evaluation, in steps (batches). It ends when it is dropped.
    /// One may run within another.
    ///
    /// `position` is where it starts: more than 0 when a run goes on. Without a `length` there is no estimate of the time left.
    pub fn progress(&self, title: &str, position: u64, length: Option<u64>) -> Progress {
        let span = Arc::new(Span {
            start: position,
            position: AtomicU64::new(position),
            length,
            started: Instant::now(),
        });
        let bar = self.shared.bars.as_ref().map(|bars| {
            // Dressed before it is shown.
            let bar = ProgressBar::with_draw_target(length, ProgressDrawTarget::hidden())
                .with_style(bar_style(&span));
            bars.add(bar.with_prefix(title.to_string()).with_position(position))
        });
        Progress { log: self.clone(), title: title.to_string(), span, bar }
    }

    fn say(&self, kind: Kind, text: &str, shown: bool) {
        let mut state = self.state();
        if let Kind::Warning = kind {
            state.warnings.push(text.to_string());
        }
        let file_line = file_line(kind, text);
        let failure = match &mut state.file {
            LogFile::Kept(kept) => {
                kept.push_str(&file_line);
                None
            }
            LogFile::Open(file) => file.write_all(file_line.as_bytes()).err(),
            LogFile::Broken => None,
        };
        let mut lines = String::new();
        if shown {
            lines = match kind {
                Kind::Warning => format!("warning: {text}\n"),
                Kind::Info | Kind::Result => format!("{text}\n"),
            };
        }
        if let Some(error) = failure {
            state.file = LogFile::Broken;
            let warning = format!("log.txt can no longer be written: {error}");
            lines.push_str(&format!("warning: {warning}\n"));
            state.warnings.push(warning);
        }
        if lines.is_empty() {
            return;
        }
        let mut print = || {
            // With a closed stderr nobody is left to tell.
            let _ = state.terminal.write_all(lines.as_bytes()).and_then(|()| state.terminal.flush());
        };
        match &self.shared.bars {
            Some(bars) => bars.suspend(print),
            None => print(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A thread that panicked while it spoke leaves nothing half-done that matters here.
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How far something has come. Dropping it takes its bar away.
pub struct Progress {
    log: Log,
    title: String,
    span: Arc<Span>,
    bar: Option<ProgressBar>,
}

struct Span {
    start: u64,
    position: AtomicU64,
    length: Option<u64>,
    started: Instant,
}

impl Span {
    /// Seconds left at the mean speed so far.
    fn seconds_left(&self) -> Option<f64> {
        let position = self.position.load(Ordering::Relaxed);
        let done = position.saturating_sub(self.start);
        let left = self.length?.saturating_sub(position);
        (done > 0).then(|| self.started.elapsed().as_secs_f64() / done as f64 * left as f64)
    }
}

/// What training looks like at a logged step.
#[derive(Clone, Debug)]
pub struct Status {
    /// Optimizer steps done since the run began.
    pub step: u64,
    /// Mean loss since the last logged step.
    pub loss: f64,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// Samples per second since the last logged step.
    pub samples_per_second: f64,
    /// Tokens per second, shown instead where samples are made of tokens.
    pub tokens_per_second: Option<f64>,
}

impl Progress {
    /// Moves on by so many steps. Cheap: to be called at every step.
    pub fn advance(&self, steps: u64) {
        self.span.position.fetch_add(steps, Ordering::Relaxed);
        if let Some(bar) = &self.bar {
            bar.inc(steps);
        }
    }

    /// Shows the numbers of a logged step: beside the bar, or as a line; in the file in either case.
    pub fn report(&self, status: &Status) {
        let numbers = status_text(status);
        if let Some(bar) = &self.bar {
            bar.set_message(numbers.clone());
        }
        let mut line = format!("{}, step {}: {numbers}", self.title, count(status.step));
        if let Some(seconds) = self.span.seconds_left() {
            line.push_str(&format!(", {} left", clock(seconds)));
        }
        self.log.say(Kind::Info, &line, self.log.shared.verbosity == Verbosity::Lines);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let (Some(bar), Some(bars)) = (&self.bar, &self.log.shared.bars) {
            bar.finish_and_clear();
            bars.remove(bar);
        }
    }
}

fn status_text(status: &Status) -> String {
    let (rate, unit) = match status.tokens_per_second {
        Some(tokens) => (tokens, "tokens/s"),
        None => (status.samples_per_second, "samples/s"),
    };
    // Rates are whole where they are large: the digits behind the point are noise.
    let rate = if rate >= 100.0 { rate.round() } else { rate };
    format!("loss {}, {} {unit}, lr {}", number(status.loss), number(rate), number(status.learning_rate))
}

fn bar_style(span: &Arc<Span>) -> ProgressStyle {
    let template = match span.length {
        Some(_) => "{prefix} [{bar:12}] {pos}/{len} {left}  {wide_msg}",
        None => "{prefix} {spinner} {pos} {elapsed}  {wide_msg}",
    };
    let span = span.clone();
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .with_key("left", move |_: &ProgressState, text: &mut dyn std::fmt::Write| {
            if let Some(seconds) = span.seconds_left() {
                let _ = write!(text, "{} left", clock(seconds));
            }
        })
        .progress_chars("=> ")
}

/// A line of `log.txt`: the time (UTC), the kind, the text; further lines of the text are indented.
fn file_line(kind: Kind, text: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let kind = match kind {
        Kind::Info => "",
        Kind::Warning => "warning: ",
        Kind::Result => "result: ",
    };
    format!("{} {kind}{}\n", utc(now), text.trim_end().replace('\n', "\n    "))
}

/// Seconds since 1970 as `2026-01-31T23:59:59Z`.
fn utc(seconds: u64) -> String {
    let (days, time) = (seconds / 86_400, seconds % 86_400);
    // Years are counted from March, so that the leap day is a year's last day, and in eras of 400 years, which are all alike
    // (146,097 days). 1970-01-01 is day 719,468 of that count.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", time / 3600, time % 3600 / 60, time % 60)
}

#[cfg(test)]
mod tests {
    use super::super::testing::Scratch;
    use super::*;

    /// A terminal that can be read.
    #[derive(Clone, Default)]
    struct Screen(Arc<Mutex<Vec<u8>>>);

    impl Write for Screen {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Screen {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    fn log(verbosity: Verbosity) -> (Log, Screen) {
        let screen = Screen::default();
        (Log::with_terminal(verbosity, Box::new(screen.clone())), screen)
    }

    fn status(step: u64) -> Status {
        Status {
            step,
            loss: 0.123_456,
            learning_rate: 1e-3,
            samples_per_second: 4123.7,
            tokens_per_second: None,
        }
    }

    /// The texts of a log file without their times.
    fn texts(path: &Path) -> Vec<String> {
        let content = std::fs::read_to_string(path).unwrap();
        content.lines().map(|line| line.split_once("Z ").map_or(line, |(_, text)| text).to_string()).collect()
    }

    #[test]
    fn lines_go_to_both_and_those_said_early_are_kept_for_the_file() -> Result<()> {
        let scratch = Scratch::new("log")?;
        let path = scratch.path("log.txt");
        std::fs::write(&path, "2026-01-01T00:00:00Z before\n")?;
        let (log, screen) = log(Verbosity::Lines);
        log.info("early");
        log.warning("careful");
        log.attach(&path)?;
        log.clone().result("first\nsecond");
        assert_eq!(screen.text(), "early\nwarning: careful\nfirst\nsecond\n");
        assert_eq!(texts(&path), ["before", "early", "warning: careful", "result: first", "    second"]);
        assert_eq!(log.warnings(), ["careful"]);
        Ok(())
    }

    #[test]
    fn quiet_shows_warnings_and_the_result_only() -> Result<()> {
        let scratch = Scratch::new("log-quiet")?;
        let path = scratch.path("log.txt");
        let (log, screen) = log(Verbosity::Quiet);
        log.attach(&path)?;
        log.info("starting");
        let progress = log.progress("epoch 1/2", 0, Some(10));
        progress.advance(1);
        progress.report(&status(1));
        drop(progress);
        log.warning("odd");
        log.result("done");
        assert_eq!(screen.text(), "warning: odd\ndone\n");
        assert_eq!(texts(&path).len(), 4);
        Ok(())
    }

    #[test]
    fn without_bars_a_reported_step_is_a_line() {
        let (log, screen) = log(Verbosity::Lines);
        let progress = log.progress("epoch 2/3", 5, Some(5));
        progress.report(&status(1005));
        assert_eq!(screen.text(), "epoch 2/3, step 1,005: loss 0.1235, 4,124 samples/s, lr 0.001\n");
        progress.advance(1);
        progress.report(&Status { tokens_per_second: Some(12.34), loss: f64::NAN, ..status(1006) });
        let second = screen.text().lines().nth(1).unwrap().to_string();
        assert_eq!(second, "epoch 2/3, step 1,006: loss NaN, 12.34 tokens/s, lr 0.001, 0:00 left");
    }

    #[test]
    fn the_time_left_counts_from_where_it_started() {
        let started = Instant::now() - std::time::Duration::from_secs(10);
        let span = Span { start: 100, position: AtomicU64::new(120), length: Some(200), started };
        assert!((span.seconds_left().unwrap() - 40.0).abs() < 0.5);
        let nothing_done = Span { start: 100, position: AtomicU64::new(100), length: Some(200), started };
        assert_eq!(nothing_done.seconds_left(), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_said_once() -> Result<()> {
        let (log, screen) = log(Verbosity::Lines);
        log.attach(Path::new("/dev/full"))?;
        log.info("one");
        log.info("two");
        let text = screen.text();
        assert_eq!(text.matches("log.txt can no longer be written").count(), 1, "{text}");
        assert!(text.starts_with("one\n") && text.ends_with("two\n"));
        assert_eq!(log.warnings().len(), 1);
        Ok(())
    }

    #[test]
    fn dates_are_right_around_leap_days() {
        let cases = [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_767_225_600, "2026-01-01T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ];
        for (seconds, text) in cases {
            assert_eq!(utc(seconds), text);
        }
    }

    #[test]
    fn flags_choose_the_verbosity() {
        assert_eq!(Verbosity::from_flags(true, false), Verbosity::Quiet);
        assert_eq!(Verbosity::from_flags(true, true), Verbosity::Quiet);
        assert_eq!(Verbosity::from_flags(false, true), Verbosity::Lines);
    }
}
