//! The numbers of a run as files: `metrics.jsonl` (one JSON object per line, written while training) and `summary.json`.
//!
//! JSON has no NaN and no infinity: a number that is not finite is written as `null` and read back as NaN.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::bail_input;

/// Metrics by name. Rates and accuracies are fractions.
pub type Values = BTreeMap<String, f64>;

/// The part of the data that a record speaks of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// What the model is trained on.
    Train,
    /// What models are selected with.
    Validation,
    /// What the selected model is judged on, once.
    Test,
}

impl Split {
    /// The name as files carry it.
    pub fn name(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::Validation => "validation",
            Split::Test => "test",
        }
    }
}

impl fmt::Display for Split {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// One line of `metrics.jsonl`: `{"split", "step", "epoch", <metric>…}`, the metrics sorted by name.
///
/// Training records carry beside `loss` what is known of: `lr` (or `lr.<group>`), `grad_norm`, `samples_per_second`,
/// `tokens_per_second`, and `data_wait`, the share of the time that was spent waiting for data.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Record {
    /// The part of the data.
    pub split: Split,
    /// Optimizer steps done.
    pub step: u64,
    /// Epochs done, with the fraction of the one under way.
    #[serde(with = "nullable")]
    pub epoch: f64,
    /// The metrics.
    #[serde(flatten, with = "nullable_values")]
    pub values: Values,
}

/// The numbers of a run in short: `summary.json`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Summary {
    /// Name of the recipe.
    pub recipe: String,
    /// The evaluation that the best checkpoint was chosen by.
    #[serde(default)]
    pub best: Option<Scores>,
    /// The last evaluation on validation data.
    #[serde(default)]
    pub last: Option<Scores>,
    /// The best checkpoint on the test split.
    #[serde(default)]
    pub test: Option<Scores>,
    /// How fast training went.
    #[serde(default)]
    pub throughput: Throughput,
    /// Time since the start of the run, in seconds.
    #[serde(with = "nullable")]
    pub wall_seconds: f64,
    /// The most memory that the process held, in MB (10^6 bytes).
    #[serde(default)]
    pub peak_memory_mb: Option<f64>,
}

/// One evaluation: `{"step", "epoch", <metric>…}`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Scores {
    /// Optimizer steps done.
    pub step: u64,
    /// Epochs done.
    #[serde(with = "nullable")]
    pub epoch: f64,
    /// The metrics.
    #[serde(flatten, with = "nullable_values")]
    pub values: Values,
}

/// How fast training went, evaluations and saves aside.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Throughput {
    /// Samples per second.
    #[serde(default)]
    pub samples_per_second: Option<f64>,
    /// Tokens per second, where samples are made of tokens.
    #[serde(default)]
    pub tokens_per_second: Option<f64>,
}

/// A number that is `null` where it is not finite.
mod nullable {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        value.is_finite().then_some(*value).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
    }
}

/// A map of numbers that are `null` where they are not finite.
pub(crate) mod nullable_values {
    use super::Values;
    use serde::{Deserialize, Deserializer, Serializer};
    use std::collections::BTreeMap;

    pub fn serialize<S: Serializer>(values: &Values, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(values.iter().map(|(name, value)| (name, value.is_finite().then_some(*value))))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Values, D::Error> {
        let values = BTreeMap::<String, Option<f64>>::deserialize(deserializer)?;
        Ok(values.into_iter().map(|(name, value)| (name, value.unwrap_or(f64::NAN))).collect())
    }
}

/// A `metrics.jsonl` that is being written. Every record is one line and one write.
#[derive(Debug)]
pub struct MetricsLog {
    file: File,
    path: PathBuf,
    lines: u64,
    bytes: u64,
}

impl MetricsLog {
    /// Opens the file for appending and makes it where it is missing. A torn last line, which a killed process leaves, is cut off.
    pub fn open(path: &Path) -> Result<MetricsLog> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        let mut log = MetricsLog { file, path: path.to_path_buf(), lines: 0, bytes: 0 };
        log.cut(u64::MAX)?;
        Ok(log)
    }

    /// Appends a record.
    pub fn append(&mut self, record: &Record) -> Result<()> {
        if let Some(name) =
            ["split", "step", "epoch"].into_iter().find(|name| record.values.contains_key(*name))
        {
            bail!("a metric cannot be named `{name}`: every record has that key already");
        }
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        if let Err(error) = self.file.write_all(&line) {
            // What was written of the line goes, or the next one would be glued to it.
            let _ = self.file.set_len(self.bytes).and_then(|()| self.file.seek(SeekFrom::Start(self.bytes)));
            return Err(error).with_context(|| format!("cannot write {}", self.path.display()));
        }
        self.bytes += line.len() as u64;
        self.lines += 1;
        Ok(())
    }

    /// How many whole lines the file has.
    pub fn lines(&self) -> u64 {
        self.lines
    }

    /// Keeps the first `lines` lines and drops everything behind them, as resuming from a checkpoint asks for.
    ///
    /// Fails, and changes nothing, where the file has fewer lines than that.
    pub fn truncate_to(&mut self, lines: u64) -> Result<()> {
        if lines > self.lines {
            bail_input!(
                "{} has {} whole lines where the checkpoint counts {lines}: it was changed after the checkpoint was saved",
                self.path.display(),
                self.lines
            );
        }
        self.cut(lines)
    }

    /// Waits until the file's content is on the disk.
    pub fn sync(&mut self) -> Result<()> {
        self.file.sync_data().with_context(|| format!("cannot write {} to the disk", self.path.display()))
    }

    /// Cuts the file behind `lines` lines, or behind the last whole one.
    fn cut(&mut self, lines: u64) -> Result<()> {
        let context = || format!("cannot shorten {}", self.path.display());
        self.file.seek(SeekFrom::Start(0)).with_context(context)?;
        let mut reader = BufReader::new(&self.file);
        let (mut kept, mut bytes, mut line) = (0, 0, Vec::new());
        while kept < lines {
            line.clear();
            let length = reader.read_until(b'\n', &mut line).with_context(context)?;
            if line.last() != Some(&b'\n') {
                break;
            }
            kept += 1;
            bytes += length as u64;
        }
        self.file.set_len(bytes).with_context(context)?;
        self.file.seek(SeekFrom::Start(bytes)).with_context(context)?;
        (self.lines, self.bytes) = (kept, bytes);
        Ok(())
    }
}

/// Reads a `metrics.jsonl`, also while a run is writing it: a torn last line is left out.
///
/// A whole line that is no record is an error that names file and line.
pub fn read_metrics(path: &Path) -> Result<Vec<Record>> {
    let context = || format!("cannot read {}", path.display());
    let mut reader = BufReader::new(File::open(path).with_context(context)?);
    let (mut records, mut line, mut number) = (Vec::new(), Vec::new(), 0);
    loop {
        line.clear();
        reader.read_until(b'\n', &mut line).with_context(context)?;
        if line.pop() != Some(b'\n') {
            return Ok(records);
        }
        number += 1;
        match serde_json::from_slice(&line) {
            Ok(record) => records.push(record),
            Err(error) => bail_input!("{}, line {number}: not a metrics record: {error}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Scratch;
    use super::*;
    use crate::error::{BadInput, one_sentence};

    fn record(split: Split, step: u64, values: &[(&str, f64)]) -> Record {
        let values = values.iter().map(|(name, value)| (name.to_string(), *value)).collect();
        Record { split, step, epoch: step as f64 / 100.0, values }
    }

    #[test]
    fn a_line_has_its_keys_in_order_and_null_for_what_is_not_finite() -> Result<()> {
        let record = record(
            Split::Train,
            50,
            &[("lr", 1e-3), ("loss", f64::NAN), ("grad_norm", f64::INFINITY), ("count", 3.0)],
        );
        let line = serde_json::to_string(&record)?;
        assert_eq!(
            line,
            r#"{"split":"train","step":50,"epoch":0.5,"count":3.0,"grad_norm":null,"loss":null,"lr":0.001}"#
        );
        let back: Record = serde_json::from_str(&line)?;
        assert_eq!((back.split, back.step, back.epoch), (Split::Train, 50, 0.5));
        assert!(back.values["loss"].is_nan() && back.values["grad_norm"].is_nan());
        assert_eq!((back.values["lr"], back.values["count"]), (1e-3, 3.0));
        // Whole numbers may come without a point, as other writers leave them.
        let other: Record = serde_json::from_str(r#"{"split":"test","step":1,"epoch":2,"accuracy":1}"#)?;
        assert_eq!((other.epoch, other.values["accuracy"]), (2.0, 1.0));
        Ok(())
    }

    #[test]
    fn numbers_survive_the_file_to_the_bit() -> Result<()> {
        let scratch = Scratch::new("metrics-bits")?;
        let path = scratch.path("metrics.jsonl");
        let written: Vec<Record> = (0..200)
            .map(|step| {
                record(
                    Split::Validation,
                    step,
                    &[("loss", (step as f64 + 0.1).exp2().recip()), ("x", 0.1 + step as f64)],
                )
            })
            .collect();
        let mut log = MetricsLog::open(&path)?;
        for record in &written {
            log.append(record)?;
        }
        log.sync()?;
        assert_eq!(log.lines(), 200);
        assert_eq!(read_metrics(&path)?, written);
        Ok(())
    }

    #[test]
    fn resuming_drops_what_came_after_the_checkpoint() -> Result<()> {
        let scratch = Scratch::new("metrics-resume")?;
        let path = scratch.path("metrics.jsonl");
        let mut log = MetricsLog::open(&path)?;
        for step in 0..5 {
            log.append(&record(Split::Train, step, &[("loss", 1.0)]))?;
        }
        drop(log);
        let whole = std::fs::read(&path)?;
        std::fs::write(&path, [&whole[..], br#"{"split":"train","st"#].concat())?;
        assert_eq!(read_metrics(&path)?.len(), 5, "the reader leaves a torn line out");

        let mut log = MetricsLog::open(&path)?;
        assert_eq!(log.lines(), 5);
        assert_eq!(std::fs::read(&path)?, whole, "opening cuts a torn line off");
        let error = log.truncate_to(6).unwrap_err();
        assert!(
            error.is::<BadInput>()
                && one_sentence(&error).contains("has 5 whole lines where the checkpoint counts 6")
        );
        assert_eq!(log.lines(), 5);
        log.truncate_to(3)?;
        log.append(&record(Split::Train, 77, &[]))?;
        assert_eq!(log.lines(), 4);
        let steps: Vec<u64> = read_metrics(&path)?.iter().map(|record| record.step).collect();
        assert_eq!(steps, [0, 1, 2, 77]);
        log.truncate_to(0)?;
        assert_eq!(std::fs::metadata(&path)?.len(), 0);
        Ok(())
    }

    #[test]
    fn bad_lines_and_bad_names_are_refused() -> Result<()> {
        let scratch = Scratch::new("metrics-bad")?;
        let path = scratch.path("metrics.jsonl");
        std::fs::write(
            &path,
            "{\"split\":\"train\",\"step\":1,\"epoch\":0}\n{\"split\":\"dev\",\"step\":1,\"epoch\":0}\n",
        )?;
        let message = one_sentence(&read_metrics(&path).unwrap_err());
        assert!(message.contains("metrics.jsonl, line 2") && message.contains("dev"), "{message}");
        let mut log = MetricsLog::open(&path)?;
        assert!(log.append(&record(Split::Train, 1, &[("step", 1.0)])).is_err());
        assert_eq!(log.lines(), 2);
        Ok(())
    }

    #[test]
    fn a_summary_is_flat_within_each_part() -> Result<()> {
        let scores = Scores { step: 100, epoch: 2.0, values: [("accuracy".to_string(), 0.5)].into() };
        let summary = Summary {
            recipe: "lenet5-mnist".to_string(),
            best: Some(scores.clone()),
            test: Some(Scores { values: [("loss".to_string(), f64::NAN)].into(), ..scores }),
            throughput: Throughput { samples_per_second: Some(10.0), tokens_per_second: None },
            wall_seconds: 1.5,
            ..Summary::default()
        };
        let json = serde_json::to_value(&summary)?;
        assert_eq!(json["best"], serde_json::json!({"step": 100, "epoch": 2.0, "accuracy": 0.5}));
        assert_eq!(json["test"]["loss"], serde_json::Value::Null);
        let back: Summary = serde_json::from_value(json)?;
        assert_eq!((back.best, back.last), (summary.best, None));
        assert!(back.test.is_some_and(|test| test.values["loss"].is_nan()));
        Ok(())
    }
}
