//! Local processes of the same command, without any other program: they get torchrun's environment, signals reach all of them once, and they end as one.
//!
//! The first process speaks on the launcher's stdout and stderr; what the others say goes into files of their own, of which the launcher tells the end where
//! one of them dies without a word. Each leaves its failure as a note, so that one sentence reaches the user.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use signal_hook::consts::{SIGINT, SIGTERM};

use super::rendezvous::{GroupArgs, LAUNCHER, NOTES, RESTART};
use crate::error::{
    BadInput, EXIT_BAD_INPUT, EXIT_INTERRUPTED, Interrupted, PeerFailed, exit_status, one_sentence,
};
use crate::{bail_input, files};

/// How long the others may take to end once one has failed.
const GRACE: Duration = Duration::from_secs(8);
const POLL: Duration = Duration::from_millis(20);
const RUN_NOTE: &str = "run";

/// What a process that failed leaves for the launcher.
#[derive(Debug, Deserialize, Serialize)]
struct FailureNote {
    sentence: String,
    code: u8,
    /// Whether another process is what failed.
    about_another: bool,
}

/// Leaves the failure of this process to the launcher; whether there is one. The launcher then says it.
pub fn note_failure(error: &anyhow::Error) -> bool {
    let (Some(notes), Ok(rank)) = (std::env::var_os(NOTES), std::env::var("RANK")) else { return false };
    let note = FailureNote {
        sentence: one_sentence(error),
        code: exit_status(error),
        about_another: error.chain().any(|cause| cause.is::<PeerFailed>()),
    };
    let path = Path::new(&notes).join(failure_of(&rank));
    serde_json::to_string(&note).is_ok_and(|text| fs::write(path, text).is_ok())
}

fn failure_of(rank: impl std::fmt::Display) -> String {
    format!("failure-{rank}.json")
}

/// Tells the launcher, if there is one, where the run is.
pub fn note_run(run: &Path) -> Result<()> {
    match std::env::var_os(NOTES) {
        Some(notes) => {
            files::write_atomic(&Path::new(&notes).join(RUN_NOTE), run.as_os_str().as_encoded_bytes())
        }
        None => Ok(()),
    }
}

/// The run that this process is to go on with because an earlier attempt failed: under the launcher the one that it knows of, under torchrun `out`.
///
/// # Errors
/// It was started again and nothing says where the run is.
pub fn run_to_continue(out: Option<&Path>) -> Result<Option<PathBuf>> {
    let times = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    if times(RESTART) > 0
        && let Some(notes) = std::env::var_os(NOTES)
    {
        let note = Path::new(&notes).join(RUN_NOTE);
        return match note.is_file() {
            true => Ok(Some(PathBuf::from(files::read_text(&note)?))),
            false => Ok(None),
        };
    }
    if times("TORCHELASTIC_RESTART_COUNT") > 0 {
        return match out {
            Some(out) => Ok(Some(out.to_owned())),
            None => {
                bail_input!("started again by torchrun without --out: nothing says which run to go on with")
            }
        };
    }
    Ok(None)
}

/// Ends this process when the launcher is gone, however that ended.
pub fn end_with_launcher() -> Result<()> {
    let Some(launcher) = std::env::var(LAUNCHER).ok().and_then(|text| text.parse::<i32>().ok()) else {
        return Ok(());
    };
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .context("asking to end with the launcher")?;
    // It may have gone before that was asked.
    match rustix::process::getppid().map(Pid::as_raw_nonzero).map(i32::from) {
        Some(parent) if parent == launcher => Ok(()),
        _ => Err(anyhow!("the program that started this process is gone")),
    }
}

/// Processes to start.
pub struct Launch {
    processes: usize,
    restarts: usize,
}

impl Launch {
    /// What the flags ask for; `None` in a process that was started so, and where they ask for nothing.
    pub fn asked(arguments: &GroupArgs) -> Result<Option<Self>> {
        let Some(processes) = arguments.processes else { return Ok(None) };
        arguments.timeout()?;
        if processes == 0 {
            bail_input!("--processes 0: there must be at least 1");
        }
        if std::env::var_os(LAUNCHER).is_some() {
            return Ok(None);
        }
        if let Some(other) = ["RANK", "WORLD_SIZE"].into_iter().find(|name| std::env::var_os(name).is_some())
        {
            bail_input!(
                "--processes starts processes by itself, but {other} is set: another launcher has started this one; leave out one of the two"
            );
        }
        Ok(Some(Self { processes, restarts: arguments.restarts.unwrap_or(0) }))
    }

    /// Starts the processes, again where they fail, and waits for their end.
    ///
    /// # Errors
    /// The failure of the last attempt: one sentence that names the process.
    pub fn run(&self) -> Result<()> {
        let signals = Signals::listen()?;
        let notes = Notes::new()?;
        let mut attempt = 0;
        loop {
            let failure = match self.attempt(attempt, &notes, &signals) {
                Ok(()) => return Ok(()),
                Err(failure) => failure,
            };
            let ends = failure.chain().any(|cause| cause.is::<BadInput>() || cause.is::<Interrupted>());
            if ends || signals.count() > 0 || attempt >= self.restarts {
                return Err(failure);
            }
            attempt += 1;
            eprintln!("{}; starting again ({attempt} of {})", one_sentence(&failure), self.restarts);
        }
    }

    fn attempt(&self, number: usize, notes: &Notes, signals: &Signals) -> Result<()> {
        notes.forget_failures()?;
        let program = std::env::current_exe().context("finding this program")?;
        let port = free_port()?;
        let mut group = Children::default();
        for rank in 0..self.processes {
            let mut command = Command::new(&program);
            command
                .args(std::env::args_os().skip(1))
                .env("RANK", rank.to_string())
                .env("LOCAL_RANK", rank.to_string())
                .env("WORLD_SIZE", self.processes.to_string())
                .env("LOCAL_WORLD_SIZE", self.processes.to_string())
                .env("MASTER_ADDR", "127.0.0.1")
                .env("MASTER_PORT", port.to_string())
                .env(LAUNCHER, std::process::id().to_string())
                .env(NOTES, &notes.folder)
                .env(RESTART, number.to_string())
                .stdin(Stdio::null())
                // A terminal's Ctrl-C reaches the launcher alone, which passes it on once.
                .process_group(0);
            if rank > 0 {
                let words = notes.words(rank);
                let file = File::create(&words).map_err(|error| files::cannot_write(&words, &error))?;
                command.stdout(file.try_clone().context("opening a log twice")?).stderr(file);
            }
            let child = command.spawn().with_context(|| format!("starting process {rank}"))?;
            group.children.push((child, None));
        }
        group.wait(signals)?;
        match group.failure(notes) {
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    }
}

/// The processes of one attempt with how they ended; those that have not are killed with the value.
#[derive(Default)]
struct Children {
    children: Vec<(Child, Option<Ended>)>,
}

#[derive(Clone, Copy)]
struct Ended {
    status: ExitStatus,
    /// Whether the launcher ended it.
    killed: bool,
}

impl Children {
    /// Waits for all; once one has failed, for the others no longer than [`GRACE`].
    fn wait(&mut self, signals: &Signals) -> Result<()> {
        let mut failed: Option<Instant> = None;
        let mut sent = 0;
        loop {
            // Signals are passed on as often as they come.
            while sent < signals.count() {
                sent += 1;
                self.send(signals.latest());
            }
            for (child, ended) in &mut self.children {
                if ended.is_none()
                    && let Some(status) = child.try_wait().context("waiting for a process")?
                {
                    *ended = Some(Ended { status, killed: false });
                    if !status.success() {
                        failed.get_or_insert_with(Instant::now);
                    }
                }
            }
            if self.children.iter().all(|(_, ended)| ended.is_some()) {
                return Ok(());
            }
            if failed.is_some_and(|since| since.elapsed() > GRACE) {
                for (child, ended) in &mut self.children {
                    if ended.is_none() {
                        let _ = child.kill();
                        let status = child.wait().context("waiting for a process")?;
                        *ended = Some(Ended { status, killed: true });
                    }
                }
                return Ok(());
            }
            sleep(POLL);
        }
    }

    fn send(&self, signal: Signal) {
        for (child, ended) in &self.children {
            if ended.is_none() {
                let _ = kill_process(Pid::from_child(child), signal);
            }
        }
    }

    /// What went wrong: first a process that died without a word, then one that says so of itself, then what the others make of it.
    fn failure(&self, notes: &Notes) -> Option<anyhow::Error> {
        let ended =
            || self.children.iter().enumerate().filter_map(|(rank, (_, ended))| Some((rank, (*ended)?)));
        let failed = || ended().filter(|(_, ended)| !ended.status.success() && !ended.killed);
        for (rank, ended) in failed() {
            if notes.failure(rank).is_none() {
                return Some(anyhow!("rank {rank} {}{}", describe(ended.status), notes.last_words(rank)));
            }
        }
        let told: Vec<(usize, FailureNote)> =
            failed().filter_map(|(rank, _)| Some((rank, notes.failure(rank)?))).collect();
        let own = told.iter().find(|(_, note)| !note.about_another);
        let (rank, note) = own.or_else(|| told.first())?;
        let sentence = match note.code {
            // Every process finds the same fault in what it was given.
            EXIT_BAD_INPUT | EXIT_INTERRUPTED => note.sentence.clone(),
            _ if note.about_another => note.sentence.clone(),
            _ => format!("rank {rank} failed: {}", note.sentence),
        };
        Some(match note.code {
            EXIT_BAD_INPUT => anyhow!(BadInput(sentence)),
            EXIT_INTERRUPTED => anyhow!(Interrupted(sentence)),
            _ => anyhow!(sentence),
        })
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        for (child, ended) in &mut self.children {
            if ended.is_none() {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => {
            let name = signal_hook::low_level::signal_name(signal).unwrap_or("a signal");
            format!("was ended by signal {signal} ({name})")
        }
        (None, Some(code)) => format!("ended with exit code {code}"),
        (None, None) => "ended".to_owned(),
    }
}

/// A port that nobody listens at.
fn free_port() -> Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("looking for a free port")?;
    Ok(listener.local_addr().context("looking for a free port")?.port())
}

/// A folder for what processes leave to the launcher, removed at its end.
struct Notes {
    folder: PathBuf,
}

impl Notes {
    fn new() -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("tch-suite-launch-{}", std::process::id()));
        fs::create_dir_all(&folder).map_err(|error| files::cannot_write(&folder, &error))?;
        Ok(Self { folder })
    }

    fn words(&self, rank: usize) -> PathBuf {
        self.folder.join(format!("rank-{rank}.txt"))
    }

    fn failure(&self, rank: usize) -> Option<FailureNote> {
        let text = fs::read_to_string(self.folder.join(failure_of(rank))).ok()?;
        serde_json::from_str(&text).ok()
    }

    fn forget_failures(&self) -> Result<()> {
        for entry in fs::read_dir(&self.folder).map_err(|error| files::cannot_read(&self.folder, &error))? {
            let path = entry.map_err(|error| files::cannot_read(&self.folder, &error))?.path();
            if path.file_name().is_some_and(|name| name != RUN_NOTE) {
                fs::remove_file(&path).map_err(|error| files::cannot_write(&path, &error))?;
            }
        }
        Ok(())
    }

    /// The last line that a process wrote.
    fn last_words(&self, rank: usize) -> String {
        let text = fs::read(self.words(rank)).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        match text.lines().rev().map(str::trim).find(|line| !line.is_empty()) {
            Some(line) => format!("; its last words: {line}"),
            None => String::new(),
        }
    }
}

impl Drop for Notes {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// SIGINT and SIGTERM that have come.
struct Signals {
    counts: [(Signal, Arc<AtomicUsize>); 2],
}

impl Signals {
    fn listen() -> Result<Self> {
        let count = |number: i32, signal: Signal| -> Result<(Signal, Arc<AtomicUsize>)> {
            let count = Arc::new(AtomicUsize::new(0));
            let handle = count.clone();
            let mut listener =
                signal_hook::iterator::Signals::new([number]).context("listening to signals")?;
            std::thread::Builder::new()
                .name("signals".to_owned())
                .spawn(move || {
                    for _ in listener.forever() {
                        handle.fetch_add(1, Ordering::Relaxed);
                    }
                })
                .context("starting a thread")?;
            Ok((signal, count))
        };
        Ok(Self { counts: [count(SIGINT, Signal::INT)?, count(SIGTERM, Signal::TERM)?] })
    }

    fn count(&self) -> usize {
        self.counts.iter().map(|(_, count)| count.load(Ordering::Relaxed)).sum()
    }

    /// The kind that comes next to be passed on: both ask for the same.
    fn latest(&self) -> Signal {
        match self.counts[1].1.load(Ordering::Relaxed) > 0 {
            true => Signal::TERM,
            false => Signal::INT,
        }
    }
}
