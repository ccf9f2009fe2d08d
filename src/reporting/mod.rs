//! What a run tells people: progress on stderr and `log.txt`, `metrics.jsonl` and `summary.json`, TensorBoard event files, and one
//! self-contained `report.html` with its plots.
//!
//! Plain numbers and bytes only: nothing here knows of tensors, models or recipes, and nothing writes to stdout. The files of a
//! run are made like this:
//!
//! ```no_run
//! use tch_suite::reporting::{EventWriter, Log, MetricsLog, Record, Report, RunData, Split, Verbosity, render};
//! # fn main() -> anyhow::Result<()> {
//! let run = std::path::Path::new("runs/lenet5");
//! let log = Log::new(Verbosity::from_flags(false, false));
//! log.attach(&run.join("log.txt"))?;
//! let mut metrics = MetricsLog::open(&run.join("metrics.jsonl"))?;
//! let mut events = EventWriter::create(run)?;
//!
//! let record = Record { split: Split::Train, step: 50, epoch: 0.5, values: [("loss".to_string(), 0.7)].into() };
//! metrics.append(&record)?;
//! events.record(&record)?;
//!
//! let runs = vec![RunData { name: "lenet5".to_string(), records: vec![record], ..RunData::default() }];
//! let page = render(&Report { title: "lenet5".to_string(), runs, ..Report::default() })?;
//! # let _ = page; Ok(())
//! # }
//! ```

mod curves;
pub mod format;
mod html;
mod images;
mod intervals;
mod metrics;
mod plots;
mod progress;
mod tensorboard;

pub use html::{Cell, ClassScores, ConfusionMatrix, Example, Figure, Report, RunData, Sample, Table, render};
pub use images::{framed, overlaid, png, png_thumbnail, sheet};
pub use intervals::{Interval, interval_figure};
pub(crate) use metrics::nullable_values;
pub use metrics::{MetricsLog, Record, Scores, Split, Summary, Throughput, Values, read_metrics};
pub use plots::{Chart, Mark, Scale, Series, TicksAbove, figure, svg_document};
pub use progress::{Log, Progress, Status, Verbosity};
pub use tensorboard::{EventWriter, Histogram};

#[cfg(test)]
mod testing {
    use std::path::{Path, PathBuf};

    /// A folder of its own for a test, removed at the end.
    pub struct Scratch(PathBuf);

    impl Scratch {
        pub fn new(name: &str) -> std::io::Result<Scratch> {
            let folder = std::env::temp_dir().join(format!("tch-suite-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&folder)?;
            Ok(Scratch(folder))
        }
        pub fn folder(&self) -> &Path {
            &self.0
        }
        pub fn path(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}
