//! Where processes meet, and which of them failed: the others see no more than that a connection ended or that time ran out.
//!
//! Each process says through the store, every second, that it lives and how many collectives it has begun. One that fails leaves its sentence there.

use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, OnceLock};
use std::thread::{Thread, park_timeout, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use tch::Device;

use super::rendezvous::{GroupArgs, Rendezvous};
use super::{DistributedConfig, ProcessGroup, launcher};
use crate::bail_input;
use crate::error::{BadInput, Interrupted, PeerFailed, one_sentence};
use crate::native::distributed::{self, Group, Store, Transport};

/// Time between two signs of life.
const BEAT: Duration = Duration::from_secs(1);
/// How long a sentence of a process that has just failed may take to arrive.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long it may take to find out who failed.
const DIAGNOSIS: Duration = Duration::from_secs(6);

/// The processes that train together, before and beside what they compute.
pub struct Meeting {
    rendezvous: Rendezvous,
    store: Store,
    timeout: Duration,
    /// Collectives begun.
    begun: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
    /// The sentence of a process that failed, as soon as it is heard: the store may be gone when it is needed.
    heard: Arc<OnceLock<String>>,
    beating: Option<Heart>,
}

/// The thread that gives signs of life.
struct Heart {
    thread: Thread,
    ended: Receiver<()>,
}

impl Meeting {
    /// Meets the other processes, where the flags or the environment name any.
    ///
    /// # Errors
    /// The first process cannot be reached, or some do not come within the timeout: these are named.
    pub fn join(arguments: &GroupArgs) -> Result<Option<Rc<Self>>> {
        let Some(rendezvous) = Rendezvous::find(arguments, |name| std::env::var(name).ok())? else {
            return Ok(None);
        };
        distributed::be_quiet();
        launcher::end_with_launcher()?;
        let timeout = arguments.timeout()?;
        let Rendezvous { rank, size, ref host, port, server, ref prefix, .. } = rendezvous;
        let store = Store::new(host, port, server, size, timeout, prefix).map_err(|error| match server {
            true => anyhow!("rank 0 cannot keep the processes' store at port {port}: {error}"),
            false => anyhow!(PeerFailed(format!(
                "rank {rank} cannot reach rank 0 at {host}:{port} within {} s: {error}",
                timeout.as_secs_f64()
            ))),
        })?;
        let mut meeting = Self {
            rendezvous,
            store,
            timeout,
            begun: Arc::default(),
            over: Arc::default(),
            heard: Arc::default(),
            beating: None,
        };
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        meeting.exchange("joined", &format!("process {} on {host}", std::process::id()))?;
        meeting.beating = Some(meeting.beat()?);
        Ok(Some(Rc::new(meeting)))
    }

    /// The place of this process.
    pub fn rendezvous(&self) -> &Rendezvous {
        &self.rendezvous
    }

    /// Whether this process writes for all.
    pub fn is_first(&self) -> bool {
        self.rendezvous.rank == 0
    }

    /// Connects the processes for collectives. On a GPU gradients go through NCCL.
    ///
    /// # Errors
    /// A process does not answer, or this program was built without NCCL.
    pub fn connect(self: &Rc<Self>, device: Device, config: &DistributedConfig) -> Result<ProcessGroup> {
        let cuda = match device {
            Device::Cuda(_) if !Group::has_nccl() => bail_input!(
                "this program cannot train on several GPUs: build it with `cargo build --release --features nccl`, or train with --device cpu"
            ),
            Device::Cuda(number) => Some(number),
            Device::Cpu => None,
            other => bail_input!("several processes train on CPUs or CUDA devices, not on {other:?}"),
        };
        let interfaces = Rendezvous::interfaces();
        let address = self.rendezvous.own_address().map(|address| address.to_string());
        let transport = Transport { interfaces, address, cuda, control: true };
        let Rendezvous { rank, size, .. } = self.rendezvous;
        // So that all have ended, with a name, when the time is over.
        let limit = self.timeout.saturating_sub(DIAGNOSIS).max(self.timeout / 2);
        let group = Group::new(&self.store, rank, size, limit, &transport)
            .with_context(|| format!("rank {rank} cannot connect to the other processes"))?;
        ProcessGroup::new(self.clone(), group, config)
    }

    /// Gives a text to all and takes theirs, in the order of the ranks, through the store.
    ///
    /// # Errors
    /// A process does not come within the timeout, or has failed: it is named.
    pub fn exchange(&self, subject: &str, text: &str) -> Result<Vec<String>> {
        let key = |rank: usize| format!("tch_suite/{subject}/{rank}");
        self.store.set(&key(self.rendezvous.rank), text)?;
        let end = Instant::now() + self.timeout;
        let missing = |texts: &[Option<String>]| -> Vec<String> {
            let ranks = texts.iter().enumerate().filter(|(_, text)| text.is_none());
            ranks.map(|(rank, _)| rank.to_string()).collect()
        };
        let mut texts: Vec<Option<String>> = vec![None; self.rendezvous.size];
        loop {
            for (rank, text) in texts.iter_mut().enumerate() {
                if text.is_none() && self.store.has(&key(rank))? {
                    *text = Some(self.store.wait(&key(rank), self.timeout)?);
                }
            }
            if texts.iter().all(Option::is_some) {
                self.let_others_read(subject)?;
                return Ok(texts.into_iter().flatten().collect());
            }
            if let Some(failure) = self.noted_failure(&self.store)? {
                return Err(anyhow!(PeerFailed(failure)));
            }
            if Instant::now() > end {
                return Err(anyhow!(PeerFailed(format!(
                    "rank {} did not come within {} s; --timeout allows more",
                    missing(&texts).join(", "),
                    self.timeout.as_secs_f64()
                ))));
            }
            sleep(Duration::from_millis(20));
        }
    }

    /// Keeps the store for a while if this process has it: what the others were told may make it end at once.
    fn let_others_read(&self, subject: &str) -> Result<()> {
        let key = |rank: usize| format!("tch_suite/{subject}/read/{rank}");
        self.store.set(&key(self.rendezvous.rank), "read")?;
        if self.rendezvous.server {
            let end = Instant::now() + PATIENCE;
            for rank in 0..self.rendezvous.size {
                while Instant::now() < end && !self.store.has(&key(rank))? {
                    sleep(Duration::from_millis(5));
                }
            }
        }
        Ok(())
    }

    /// Counts a collective.
    pub(super) fn begin_collective(&self) {
        self.begun.fetch_add(1, Ordering::Relaxed);
    }

    /// Says that this process lives, until the meeting is over.
    fn beat(&self) -> Result<Heart> {
        let store = self.store.connect_again()?;
        let (begun, over, rank) = (self.begun.clone(), self.over.clone(), self.rendezvous.rank);
        let heard = self.heard.clone();
        let (ending, ended) = channel();
        let beat = move || {
            for number in 0u64.. {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                let text = format!("{number} {}", begun.load(Ordering::Relaxed));
                // A store that is gone is told by what the trainer does next.
                let _ = store.set(&format!("tch_suite/alive/{rank}"), &text);
                if heard.get().is_none()
                    && let Ok(true) = store.has(FAILED)
                    && let Ok(failure) = store.wait(FAILED, PATIENCE)
                {
                    let _ = heard.set(failure);
                }
                park_timeout(BEAT);
            }
            drop(store);
            let _ = ending.send(());
        };
        let thread = std::thread::Builder::new().name("heartbeat".to_owned()).spawn(beat);
        Ok(Heart { thread: thread.context("starting a thread")?.thread().clone(), ended })
    }

    fn noted_failure(&self, store: &Store) -> Result<Option<String>> {
        match store.has(FAILED)? {
            true => Ok(Some(store.wait(FAILED, PATIENCE)?)),
            false => Ok(None),
        }
    }

    /// What an error means: a fault of this process is told to the others; one of another is traced to it.
    pub(super) fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        if error.chain().any(|cause| cause.is::<Interrupted>() || cause.is::<PeerFailed>()) {
            return error;
        }
        let sentence = one_sentence(&error);
        if error.chain().any(|cause| cause.is::<BadInput>()) || !is_about_others(&sentence) {
            if !self.store.has(FAILED).unwrap_or(true) {
                let rank = self.rendezvous.rank;
                let _ = self.store.set(FAILED, &format!("rank {rank} failed: {sentence}"));
                // With this process goes the store: every heart beats once more before that.
                if self.rendezvous.server {
                    sleep(2 * BEAT);
                }
            }
            return error;
        }
        let told = self.heard.get().cloned().or_else(|| self.diagnosed()).unwrap_or_else(|| {
            format!(
                "rank 0 at {}:{} cannot be reached any more ({sentence})",
                self.rendezvous.host, self.rendezvous.port
            )
        });
        anyhow!(PeerFailed(told))
    }

    /// Who failed, as far as the store tells; `None` where the store itself is gone.
    fn diagnosed(&self) -> Option<String> {
        // The store may hang with the machine that keeps it, so it is asked in a thread that is not waited for.
        let store = self.store.connect_again().ok()?;
        let (sender, receiver) = channel();
        let (rank, size, begun) =
            (self.rendezvous.rank, self.rendezvous.size, self.begun.load(Ordering::Relaxed));
        std::thread::spawn(move || {
            let _ = sender.send(diagnose(&store, rank, size, begun));
        });
        receiver.recv_timeout(DIAGNOSIS).ok()?.ok()
    }
}

impl Drop for Meeting {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(heart) = self.beating.take() {
            heart.thread.unpark();
            // Its connection is best gone before the process ends; one that hangs is not waited for.
            let _ = heart.ended.recv_timeout(BEAT / 2);
        }
    }
}

/// The key of the first failure.
const FAILED: &str = "tch_suite/failed";

/// Asks the store for the sentence of a process that failed, then for signs of life, then for who is behind.
fn diagnose(store: &Store, rank: usize, size: usize, begun: u64) -> Result<String> {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        if store.has(FAILED)? {
            return store.wait(FAILED, PATIENCE);
        }
        sleep(Duration::from_millis(50));
    }
    let signs = || -> Result<Vec<String>> {
        (0..size).map(|rank| store.wait(&format!("tch_suite/alive/{rank}"), PATIENCE)).collect()
    };
    let before = signs()?;
    sleep(2 * BEAT + BEAT / 2);
    let now = signs()?;
    let others = || (0..size).filter(|&other| other != rank);
    let who = |rank: usize| -> String {
        let place = store.wait(&format!("tch_suite/joined/{rank}"), PATIENCE).unwrap_or_default();
        format!("rank {rank} ({place})")
    };
    let silent: Vec<String> = others().filter(|&other| before[other] == now[other]).map(who).collect();
    if !silent.is_empty() {
        return Ok(format!("{} died or cannot be reached any more", silent.join(" and ")));
    }
    let count = |sign: &str| sign.split(' ').nth(1).and_then(|count| count.parse::<u64>().ok()).unwrap_or(0);
    let behind: Vec<String> = others().filter(|&other| count(&now[other]) < begun).map(who).collect();
    match behind.is_empty() {
        false => {
            Ok(format!("{} lives but did not come to where the others wait for it", behind.join(" and ")))
        }
        true => Ok(
            "the processes live but do not reach each other: look at the network, or at GLOO_SOCKET_IFNAME"
                .to_owned(),
        ),
    }
}

/// Whether an error says that another process is gone, and not that something is wrong with this one.
fn is_about_others(sentence: &str) -> bool {
    const MARKS: [&str; 15] = [
        "gloo",
        "Gloo",
        "NCCL",
        "TCPStore",
        "Connection closed",
        "Connection reset",
        "Connection was likely closed",
        "recvBytes",
        "sendBytes",
        "Broken pipe",
        "Timed out",
        "timed out",
        "wait timeout",
        "socket",
        "DistNetworkError",
    ];
    MARKS.iter().any(|mark| sentence.contains(mark))
}

/// Runs a verb that several processes may take part in: starts them where `--processes` asks for it, else meets those that were started, and makes of a
/// failure of any the sentence that names it.
pub fn with_processes(
    arguments: &GroupArgs,
    run: impl FnOnce(Option<&Rc<Meeting>>) -> Result<()>,
) -> Result<()> {
    if let Some(launch) = launcher::Launch::asked(arguments)? {
        return launch.run();
    }
    let Some(meeting) = Meeting::join(arguments)? else { return run(None) };
    run(Some(&meeting)).map_err(|error| meeting.explain(error))
}
