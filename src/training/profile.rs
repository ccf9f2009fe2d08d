//! Where the time of a step goes: sums by phase, and a trace that Chrome's `chrome://tracing` and Perfetto read.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Value, json};
use tch::{Cuda, Device};

use crate::files;

/// What a training loop spends its time on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Waiting for the next batch.
    Data,
    /// Moving a batch to the device, loss and metrics.
    Forward,
    /// Gradients.
    Backward,
    /// Reducing, clipping, updating.
    Optimizer,
    /// Reading sums back and writing lines.
    Logging,
    /// Going through the validation data.
    Evaluation,
    /// Writing checkpoints.
    Saving,
}

const PHASES: [(Phase, &str); 7] = [
    (Phase::Data, "data wait"),
    (Phase::Forward, "forward"),
    (Phase::Backward, "backward"),
    (Phase::Optimizer, "optimizer"),
    (Phase::Logging, "logging"),
    (Phase::Evaluation, "evaluation"),
    (Phase::Saving, "saving"),
];

/// The trace holds this many spans; the sums hold all.
const MOST_SPANS: usize = 50_000;

/// Collects spans when asked to, else costs a comparison.
#[derive(Debug)]
pub struct Profiler {
    recording: Option<Recording>,
}

#[derive(Debug)]
struct Recording {
    device: Device,
    began: Instant,
    totals: [Duration; PHASES.len()],
    /// Phase, begin and length.
    spans: Vec<(Phase, Duration, Duration)>,
}

impl Profiler {
    /// A profiler that records or does nothing.
    pub fn new(enabled: bool, device: Device) -> Self {
        let recording =
            || Recording { device, began: Instant::now(), totals: Default::default(), spans: Vec::new() };
        Self { recording: enabled.then(recording) }
    }

    /// Ends a phase that began at `began`. While recording, waits for the device, so that the time is the phase's own.
    pub fn end(&mut self, phase: Phase, began: Instant) {
        let Some(recording) = &mut self.recording else { return };
        if let Device::Cuda(number) = recording.device {
            Cuda::synchronize(number as i64);
        }
        let length = began.elapsed();
        recording.totals[phase as usize] += length;
        if recording.spans.len() < MOST_SPANS {
            recording.spans.push((phase, began.duration_since(recording.began), length));
        }
    }

    /// A line for each phase that took time, with seconds and share; none without recording.
    pub fn table(&self) -> Option<String> {
        let recording = self.recording.as_ref()?;
        let all = recording.totals.iter().sum::<Duration>().as_secs_f64().max(1e-9);
        let lines: Vec<String> = PHASES
            .iter()
            .map(|&(phase, name)| (name, recording.totals[phase as usize].as_secs_f64()))
            .filter(|(_, seconds)| *seconds > 0.0)
            .map(|(name, seconds)| format!("{name:10}  {seconds:9.3} s  {:5.1} %", 100.0 * seconds / all))
            .collect();
        Some(lines.join("\n"))
    }

    /// Writes the trace in Chrome's trace event format.
    pub fn write_trace(&self, path: &Path) -> Result<()> {
        let Some(recording) = &self.recording else { return Ok(()) };
        let micros = |duration: Duration| duration.as_nanos() as f64 / 1e3;
        let name = |phase: Phase| PHASES[phase as usize].1;
        let events: Vec<Value> = recording
            .spans
            .iter()
            .map(|&(phase, begin, length)| {
                json!({"name": name(phase), "ph": "X", "ts": micros(begin), "dur": micros(length), "pid": 1, "tid": 1})
            })
            .collect();
        let trace = json!({"traceEvents": events, "displayTimeUnit": "ms"});
        files::write_atomic(path, serde_json::to_string(&trace)?.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_summed_and_traced() -> Result<()> {
        let mut silent = Profiler::new(false, Device::Cpu);
        silent.end(Phase::Forward, Instant::now());
        assert_eq!(silent.table(), None);

        let mut profiler = Profiler::new(true, Device::Cpu);
        for (phase, milliseconds) in [(Phase::Forward, 2), (Phase::Forward, 2), (Phase::Backward, 1)] {
            let began = Instant::now();
            std::thread::sleep(Duration::from_millis(milliseconds));
            profiler.end(phase, began);
        }
        let table = profiler.table().unwrap_or_default();
        assert!(table.lines().count() == 2 && table.starts_with("forward"), "{table}");
        let path = std::env::temp_dir().join(format!("tch-suite-trace-{}.json", std::process::id()));
        profiler.write_trace(&path)?;
        let trace: Value = serde_json::from_str(&files::read_text(&path)?)?;
        assert_eq!(trace["traceEvents"].as_array().map(Vec::len), Some(3));
        assert!(trace["traceEvents"][0]["dur"].as_f64().is_some_and(|length| length >= 2000.0));
        Ok(std::fs::remove_file(&path)?)
    }
}
