//! Seconds from process start to the first training step done, for the small network of `mlp_small`: `benches/pytorch/startup.py`.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::json;
use tch_suite::native::random;

use super::harness::{Batches, Net, Options, Training, Work, emit, peak_megabytes, percentile, significant};
use super::mlp_small::{Rows, network, rows, training};

/// What a child says once its libraries are loaded.
const LOADED: &str = "loaded";
/// What it says once the step is done.
const STEPPED: &str = "stepped";

/// The process that is timed: says where it is on stdout, a line at a time.
pub fn child(options: &Options) -> Result<()> {
    say(LOADED)?;
    tch::set_num_threads(i32::try_from(options.threads).context("--threads")?);
    random::manual_seed(options.seed)?;
    let (task, inputs) = network(Net::Keras, options.width, options.loss)?;
    let mut batch = Some(rows(Net::Keras, 10, inputs)?);
    let batches: Batches<Rows> = Box::new(move |_| batch.take().context("there is one batch"));
    Training::new(&training(options)?, task, batches)?.step(0)?;
    say(STEPPED)?;
    say(&peak_megabytes()?.to_string())
}

fn say(line: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).context("writing to stdout")
}

/// Starts children one after the other. The clock is this process's: from before the start to the arrival of a line.
pub fn run(options: &Options) -> Result<()> {
    let (steps, warmup) = (options.steps.unwrap_or(10), options.warmup.unwrap_or(2));
    if steps == 0 {
        bail!("--steps is 0: there is nothing to time");
    }
    let program = std::env::current_exe().context("finding this program")?;
    let (mut stepped, mut loaded, mut ended, mut peaks) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for run in 0..warmup + steps {
        let began = Instant::now();
        let mut child = Command::new(&program)
            .arg("--startup-child")
            .args(std::env::args_os().skip(1))
            .stdout(Stdio::piped())
            .spawn()
            .context("starting a child")?;
        let mut lines = BufReader::new(child.stdout.take().context("the child has no stdout")?).lines();
        let mut next = || lines.next().context("the child ended early")?.context("reading from the child");
        let mut arrived = |expected: &str| -> Result<f64> {
            let line = next()?;
            let seconds = began.elapsed().as_secs_f64();
            if line != expected {
                bail!("the child said `{line}`, not `{expected}`");
            }
            Ok(seconds)
        };
        let (at_loaded, at_stepped) = (arrived(LOADED)?, arrived(STEPPED)?);
        let peak: f64 = next()?.parse().context("the child's peak memory")?;
        let status = child.wait().context("waiting for the child")?;
        let at_end = began.elapsed().as_secs_f64();
        if !status.success() {
            bail!("the child failed");
        }
        if run >= warmup {
            loaded.push(at_loaded);
            stepped.push(at_stepped);
            ended.push(at_end);
            peaks.push(peak);
        }
    }
    let median = |values: &[f64]| json!(significant(percentile(values, 50.0)));
    emit(
        "startup",
        &options.variant(&["mlp_small"]),
        "s",
        &stepped,
        &[
            ("startup_s", median(&stepped)),
            ("import_s", median(&loaded)),
            ("exit_s", median(&ended)),
            ("rss_mb", median(&peaks)),
        ],
    )
}
