//! Who takes part, and where they meet: from flags, from torchrun's environment (which Kubernetes' PyTorchJob and many others set too), or from SLURM's.

use std::net::{IpAddr, ToSocketAddrs, UdpSocket};
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use crate::{bad_input, bail_input};

/// Several processes.
#[derive(Clone, Debug, Default, Args)]
pub struct GroupArgs {
    /// Start so many processes on this machine; --batch-size and --threads are those of each
    #[arg(long, value_name = "N", conflicts_with_all = ["init", "rank", "world_size"])]
    pub processes: Option<usize>,
    /// Begin again from the last checkpoint, up to so many times, when a process of --processes fails
    #[arg(long, value_name = "N", requires = "processes")]
    pub restarts: Option<usize>,
    /// Where several processes meet that were started by hand: at the first of them
    #[arg(long, value_name = "tcp://HOST:PORT", requires = "rank", requires = "world_size")]
    pub init: Option<String>,
    /// The number of this process, from 0
    #[arg(long, value_name = "R", requires = "init")]
    pub rank: Option<usize>,
    /// How many processes there are
    #[arg(long, value_name = "N", requires = "init")]
    pub world_size: Option<usize>,
    /// Give up when another process has not answered for so long [default: 600]
    #[arg(long, value_name = "SECONDS")]
    pub timeout: Option<f64>,
}

impl GroupArgs {
    /// How long a process may be waited for.
    ///
    /// # Errors
    /// It is no time.
    pub fn timeout(&self) -> Result<Duration> {
        let seconds = self.timeout.unwrap_or(600.0);
        if !(1.0..=1e6).contains(&seconds) {
            bail_input!("--timeout {seconds}: give seconds, at least 1");
        }
        Ok(Duration::from_secs_f64(seconds))
    }
}

/// The environment variable by which the launcher tells a process that it was started by it: the launcher's process number.
pub const LAUNCHER: &str = "TCH_SUITE_LAUNCHER";
/// Where a process leaves for the launcher what it has to say: its failure, the run folder.
pub const NOTES: &str = "TCH_SUITE_NOTES";
/// How often the launcher has begun again.
pub const RESTART: &str = "TCH_SUITE_RESTART";

/// A place among several processes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendezvous {
    /// The number of this process.
    pub rank: usize,
    /// How many there are.
    pub size: usize,
    /// The number of this process among those of its machine.
    pub local_rank: usize,
    /// How many there are on this machine.
    pub local_size: usize,
    /// Where the store is kept.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Whether this process keeps it.
    pub server: bool,
    /// What goes before every key of a store that others use too.
    pub prefix: String,
}

impl Rendezvous {
    /// From the flags, else from the environment; `None` for a process on its own.
    ///
    /// # Errors
    /// What is given is not enough, or contradicts itself.
    pub fn find(arguments: &GroupArgs, variable: impl Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let found = match &arguments.init {
            Some(init) => Some(Self::of_flags(init, arguments.rank, arguments.world_size)?),
            None if variable("RANK").is_some() || variable("WORLD_SIZE").is_some() => {
                Some(Self::of_torchrun(&variable)?)
            }
            None => Self::of_slurm(&variable)?,
        };
        let Some(found) = found else { return Ok(None) };
        if found.rank >= found.size {
            bail_input!(
                "there are {} processes, numbered from 0: none has the rank {}",
                found.size,
                found.rank
            );
        }
        Ok((found.size > 1).then_some(found))
    }

    fn of_flags(init: &str, rank: Option<usize>, size: Option<usize>) -> Result<Self> {
        let (Some(rank), Some(size)) = (rank, size) else {
            bail_input!("--init {init}: give --rank and --world-size too");
        };
        let place =
            init.strip_prefix("tcp://").and_then(|place| place.trim_end_matches('/').rsplit_once(':'));
        let Some((host, Ok(port))) = place.map(|(host, port)| (host, port.parse())) else {
            bail_input!("--init {init}: give tcp://HOST:PORT, a port of the machine of rank 0");
        };
        let host = host.trim_matches(['[', ']']).to_owned();
        // Nothing tells how many share a machine: each is taken to have one of its own.
        Ok(Self {
            rank,
            size,
            local_rank: 0,
            local_size: 1,
            host,
            port,
            server: rank == 0,
            prefix: String::new(),
        })
    }

    fn of_torchrun(variable: &impl Fn(&str) -> Option<String>) -> Result<Self> {
        let number = |name: &str| -> Result<Option<usize>> {
            let parse = |text: String| {
                text.trim()
                    .parse()
                    .map_err(|_| bad_input!("the environment variable {name} is `{text}`: no number"))
            };
            variable(name).map(parse).transpose()
        };
        let needed = |name: &str| {
            bad_input!(
                "the environment has only a part of what several processes need: {name} is not set; unset RANK and WORLD_SIZE to run one process"
            )
        };
        let host = variable("MASTER_ADDR").ok_or_else(|| needed("MASTER_ADDR"))?;
        let port = number("MASTER_PORT")?.ok_or_else(|| needed("MASTER_PORT"))?;
        let rank = number("RANK")?.ok_or_else(|| needed("RANK"))?;
        let agent = variable("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|value| value == "True");
        let attempt = variable("TORCHELASTIC_RESTART_COUNT").unwrap_or_else(|| "0".to_owned());
        Ok(Self {
            rank,
            size: number("WORLD_SIZE")?.ok_or_else(|| needed("WORLD_SIZE"))?,
            local_rank: number("LOCAL_RANK")?.unwrap_or(0),
            local_size: number("LOCAL_WORLD_SIZE")?.unwrap_or(1),
            host,
            port: u16::try_from(port).map_err(|_| bad_input!("MASTER_PORT is {port}: no port"))?,
            server: rank == 0 && !agent,
            // torchrun's agent keeps one store for all attempts (torch.distributed.rendezvous).
            prefix: if agent { format!("/worker/attempt_{attempt}") } else { String::new() },
        })
    }

    /// Of a step that srun started; a batch script by itself is one process.
    fn of_slurm(variable: &impl Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let number = |name: &str| variable(name).and_then(|text| text.parse::<usize>().ok());
        let (Some(rank), Some(size)) = (number("SLURM_PROCID"), number("SLURM_STEP_NUM_TASKS")) else {
            return Ok(None);
        };
        if size < 2 {
            return Ok(None);
        }
        let nodes = variable("SLURM_STEP_NODELIST").or_else(|| variable("SLURM_JOB_NODELIST"));
        let host = variable("MASTER_ADDR").or_else(|| nodes.as_deref().and_then(first_host));
        let Some(host) = host else {
            bail_input!(
                "SLURM started {size} processes but says no machine (SLURM_STEP_NODELIST): set MASTER_ADDR to that of the first"
            );
        };
        // One for each job and step, so that jobs that share a machine do not meet.
        let job = number("SLURM_JOB_ID").unwrap_or(0) + 37 * number("SLURM_STEP_ID").unwrap_or(0);
        let port = match number("MASTER_PORT") {
            Some(port) => u16::try_from(port).map_err(|_| bad_input!("MASTER_PORT is {port}: no port"))?,
            None => 20_000 + (job % 20_000) as u16,
        };
        let node = number("SLURM_NODEID").unwrap_or(0);
        let tasks = variable("SLURM_STEP_TASKS_PER_NODE").and_then(|text| tasks_of_node(&text, node));
        Ok(Some(Self {
            rank,
            size,
            local_rank: number("SLURM_LOCALID").unwrap_or(0),
            local_size: tasks.unwrap_or(1),
            host,
            port,
            server: rank == 0,
            prefix: String::new(),
        }))
    }

    /// The address of this machine from which the store's machine is reached, which is how the others reach this one; `None` where that cannot be told.
    pub fn own_address(&self) -> Option<IpAddr> {
        let target = (self.host.as_str(), self.port).to_socket_addrs().ok()?.next()?;
        let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        // Connecting a socket of datagrams sends nothing: it only looks for the way.
        let socket = UdpSocket::bind(any).ok()?;
        socket.connect(target).ok()?;
        Some(socket.local_addr().ok()?.ip())
    }

    /// The network interfaces that the user wants gradients to take.
    pub fn interfaces() -> Vec<String> {
        let given = std::env::var("GLOO_SOCKET_IFNAME").unwrap_or_default();
        given.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
    }
}

/// Whether this process is the one that writes, by flags and environment.
pub fn is_first(arguments: &GroupArgs) -> Result<bool> {
    let place = Rendezvous::find(arguments, |name| std::env::var(name).ok())?;
    Ok(place.is_none_or(|place| place.rank == 0))
}

/// The first machine of SLURM's list, as in `node[03-07,9],gpu1`.
fn first_host(list: &str) -> Option<String> {
    let (mut host, mut rest) = (String::new(), list.trim());
    while let Some(character) = rest.chars().next() {
        match character {
            ',' => break,
            '[' => {
                let inside = &rest[1..rest.find(']')?];
                host.push_str(inside.split(['-', ',']).next()?);
                rest = &rest[inside.len() + 2..];
            }
            _ => {
                host.push(character);
                rest = &rest[character.len_utf8()..];
            }
        }
    }
    (!host.is_empty()).then_some(host)
}

/// The number of processes on a machine of SLURM's list, as in `4(x2),3`.
fn tasks_of_node(list: &str, node: usize) -> Option<usize> {
    let mut before = 0;
    for part in list.split(',') {
        let (tasks, nodes) = match part.split_once("(x") {
            Some((tasks, times)) => (tasks, times.trim_end_matches(')').parse().ok()?),
            None => (part, 1),
        };
        before += nodes;
        if node < before {
            return tasks.trim().parse().ok();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(arguments: &GroupArgs, variables: &[(&str, &str)]) -> Result<Option<Rendezvous>> {
        Rendezvous::find(arguments, |name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn flags_win_over_torchrun_and_that_over_slurm() -> Result<()> {
        let slurm = [
            ("SLURM_PROCID", "5"),
            ("SLURM_STEP_NUM_TASKS", "6"),
            ("SLURM_LOCALID", "1"),
            ("SLURM_NODEID", "2"),
            ("SLURM_STEP_TASKS_PER_NODE", "2(x3)"),
            ("SLURM_STEP_NODELIST", "gpu[07-09]"),
            ("SLURM_JOB_ID", "123456"),
        ];
        let found = find(&GroupArgs::default(), &slurm)?.unwrap();
        assert_eq!((found.rank, found.size, found.local_rank, found.local_size), (5, 6, 1, 2));
        assert_eq!((found.host.as_str(), found.port, found.server), ("gpu07", 20_000 + 3456, false));

        let torchrun = [
            ("RANK", "0"),
            ("WORLD_SIZE", "2"),
            ("LOCAL_RANK", "0"),
            ("LOCAL_WORLD_SIZE", "2"),
            ("MASTER_ADDR", "127.0.0.1"),
            ("MASTER_PORT", "29500"),
            ("TORCHELASTIC_USE_AGENT_STORE", "True"),
            ("TORCHELASTIC_RESTART_COUNT", "3"),
        ];
        let both = [&torchrun[..], &slurm[..]].concat();
        let found = find(&GroupArgs::default(), &both)?.unwrap();
        assert_eq!((found.size, found.server, found.prefix.as_str()), (2, false, "/worker/attempt_3"));

        let arguments = GroupArgs {
            init: Some("tcp://[fe80::1]:4000".to_owned()),
            rank: Some(0),
            world_size: Some(3),
            ..GroupArgs::default()
        };
        let found = find(&arguments, &both)?.unwrap();
        assert_eq!((found.host.as_str(), found.port, found.size, found.server), ("fe80::1", 4000, 3, true));
        Ok(())
    }

    #[test]
    fn one_process_meets_nobody_and_half_an_environment_is_refused() -> Result<()> {
        assert_eq!(find(&GroupArgs::default(), &[])?, None);
        // A batch script: SLURM says who it is but has started no step.
        assert_eq!(find(&GroupArgs::default(), &[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "8")])?, None);
        let alone = [("RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "h"), ("MASTER_PORT", "1")];
        assert_eq!(find(&GroupArgs::default(), &alone)?, None);
        let message = find(&GroupArgs::default(), &alone[..3]).unwrap_err().to_string();
        assert!(message.contains("MASTER_PORT"), "{message}");
        let beyond = [("RANK", "2"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "h"), ("MASTER_PORT", "1")];
        assert!(find(&GroupArgs::default(), &beyond).is_err());
        Ok(())
    }

    #[test]
    fn slurms_lists_are_read() {
        let hosts = [
            ("node1", "node1"),
            ("a,b", "a"),
            ("node[003-010,12],x", "node003"),
            ("r[1-2]n[3,4]-ib", "r1n3-ib"),
        ];
        for (list, first) in hosts {
            assert_eq!(first_host(list).as_deref(), Some(first), "{list}");
        }
        assert_eq!(first_host("node[1"), None);
        assert_eq!((tasks_of_node("4(x2),3", 1), tasks_of_node("4(x2),3", 2)), (Some(4), Some(3)));
        assert_eq!(tasks_of_node("4", 1), None);
    }
}
