//! Checkpoints: all that a run needs to go on as if it had never stopped.
//!
//! | file | content |
//! | --- | --- |
//! | `model.safetensors` | parameters and buffers under PyTorch's names |
//! | `ema.safetensors` | their moving average, where the recipe has one |
//! | `optimizer.safetensors` | optimizer state, generators' states (`rng.*`, with further processes' behind a number), loss scale (`scaler.*`), the task's state (`task.*`) |
//! | `state.json` | step, epoch, position, best so far, running sums, what machine it was, and a fingerprint of the data |
//!
//! Equal states are equal files: names are sorted, and there is no clock in them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::metrics::SavedSum;
use super::schedule::PlateauState;
use crate::data::fingerprint::DataFingerprint;
use crate::distributed::Layout;
use crate::weights::{self, NamedTensors, read_safetensors, write_safetensors};
use crate::{bad_input, bail_input, files, recipe};

/// Raised when a change makes older checkpoints unreadable.
const FORMAT: u32 = 1;

const MODEL: &str = "model.safetensors";
const AVERAGE: &str = "ema.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";

/// How far a run has come.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// Optimizer steps done.
    pub step: u64,
    /// Passes over the data completed.
    pub epoch: u64,
    /// Micro-batches of the present pass already used.
    pub batch: usize,
    /// The step whose evaluation has been done, so that an interrupted one is made up for.
    pub evaluated_at: Option<u64>,
    /// The best evaluation so far.
    pub best: Option<Scores>,
    /// The latest evaluation.
    pub latest: Option<Scores>,
    /// The metric that an evaluation must improve on to reset the patience of early stopping.
    pub patience_from: Option<f64>,
    /// Evaluations since it was last reset.
    pub without_improvement: u64,
    /// What a plateau schedule remembers.
    pub plateau: PlateauState,
    /// Lines of `metrics.jsonl` that belong to this state.
    pub metrics_lines: u64,
    /// Sums since the last logged line.
    pub window: BTreeMap<String, SavedSum>,
    /// Samples since the last logged line.
    pub window_samples: u64,
}

/// The metrics of an evaluation.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Scores {
    /// After how many steps.
    pub step: u64,
    /// After how many passes over the data.
    pub epoch: f64,
    /// By name. A value that is not finite is NaN when it is read back.
    #[serde(with = "crate::reporting::nullable_values")]
    pub metrics: BTreeMap<String, f64>,
}

/// What the promise of equal results rests on; a difference warns.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Environment {
    /// Version of this program.
    pub suite: String,
    /// Version of libtorch.
    pub libtorch: String,
    /// The vector instructions that libtorch uses here.
    pub processor: String,
    /// `Cpu`, `Cuda(0)`, …
    pub device: String,
    /// Threads of libtorch's kernels.
    pub threads: usize,
    /// Processes that trained together.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub processes: usize,
}

fn one() -> usize {
    1
}

fn is_one(number: &usize) -> bool {
    *number == 1
}

impl Environment {
    /// The fields in which two environments differ, as `threads 2 → 4`.
    pub fn differences(&self, now: &Self) -> Vec<String> {
        let value = |environment: &Self| serde_json::to_value(environment).unwrap_or_default();
        recipe::differences(&value(self), &value(now))
            .into_iter()
            .map(|(key, before, now)| format!("{key} {before} → {now}").replace('"', ""))
            .collect()
    }
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct State {
    format: u32,
    progress: Progress,
    environment: Environment,
    #[serde(default)]
    data: Option<DataFingerprint>,
    /// Absent where one process trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gradients: Option<Layout>,
}

/// A checkpoint in memory, about to be written or just read.
pub struct Checkpoint {
    /// How far the run has come.
    pub progress: Progress,
    /// Where it ran.
    pub environment: Environment,
    /// What it was trained on, where the program that wrote it said so.
    pub data: Option<DataFingerprint>,
    /// The model's tensors.
    pub model: NamedTensors,
    /// Their moving average.
    pub average: Option<NamedTensors>,
    /// Everything of `optimizer.safetensors`.
    pub optimizer: NamedTensors,
    /// How several processes cut gradients into buckets, where several trained.
    pub gradients: Option<Layout>,
}

impl Checkpoint {
    /// Writes the files into an empty folder.
    pub fn write(&self, folder: &Path) -> Result<()> {
        write_safetensors(&folder.join(MODEL), &self.model)?;
        if let Some(average) = &self.average {
            write_safetensors(&folder.join(AVERAGE), average)?;
        }
        write_safetensors(&folder.join(OPTIMIZER), &self.optimizer)?;
        let state = State {
            format: FORMAT,
            progress: self.progress.clone(),
            environment: self.environment.clone(),
            data: self.data.clone(),
            gradients: self.gradients.clone(),
        };
        // Through a `Value`, whose keys are sorted.
        let text = serde_json::to_string_pretty(&serde_json::to_value(&state)?)? + "\n";
        let path = folder.join(STATE);
        files::write_synced(&path, text.as_bytes()).map_err(|error| files::cannot_write(&path, &error))
    }

    /// Reads all of a checkpoint folder.
    ///
    /// # Errors
    /// A file is missing or damaged, or of another format.
    pub fn read(folder: &Path) -> Result<Self> {
        let state = read_state(folder)?;
        let average = folder.join(AVERAGE);
        Ok(Self {
            progress: state.progress,
            environment: state.environment,
            data: state.data,
            gradients: state.gradients,
            model: read_safetensors(&folder.join(MODEL))?,
            average: average.is_file().then(|| read_safetensors(&average)).transpose()?,
            optimizer: read_safetensors(&folder.join(OPTIMIZER))?,
        })
    }
}

/// How far the run of a checkpoint folder has come.
pub fn read_progress(folder: &Path) -> Result<Progress> {
    Ok(read_state(folder)?.progress)
}

/// What the run of a checkpoint folder was trained on.
pub fn read_data_fingerprint(folder: &Path) -> Result<Option<DataFingerprint>> {
    Ok(read_state(folder)?.data)
}

/// The weights of a checkpoint folder that predictions are made with: the moving average where there is one.
pub fn weights_file(folder: &Path) -> PathBuf {
    let average = folder.join(AVERAGE);
    if average.is_file() { average } else { folder.join(MODEL) }
}

/// Loads the weights of a checkpoint folder into a model, which must be the one that was trained.
pub fn load_weights(folder: &Path, parameters: &crate::models::Parameters) -> Result<()> {
    let path = weights_file(folder);
    weights::load_into(parameters, &read_safetensors(&path)?)?.require_complete(&path.display().to_string())
}

/// Loads the mean of the weights of several checkpoint folders of one run, each as [`load_weights`] would load it. Means are computed in float64; whole
/// numbers, such as counters of batches, are those of the last folder.
pub fn load_mean_weights(folders: &[PathBuf], parameters: &crate::models::Parameters) -> Result<()> {
    let Some((last, others)) = folders.split_last() else { bail!("no checkpoint to load is named") };
    let mut mean = read_safetensors(&weights_file(last))?;
    let kinds: Vec<Kind> = mean.values().map(Tensor::kind).collect();
    for tensor in mean.values_mut().filter(|tensor| tensor.is_floating_point()) {
        *tensor = tensor.f_to_kind(Kind::Double)?;
    }
    for folder in others {
        let path = weights_file(folder);
        let tensors = read_safetensors(&path)?;
        for (name, sum) in mean.iter_mut().filter(|(_, sum)| sum.is_floating_point()) {
            match tensors.get(name).filter(|tensor| tensor.size() == sum.size()) {
                Some(tensor) => *sum = sum.f_add(&tensor.f_to_kind(Kind::Double)?)?,
                None => bail_input!(
                    "{} has no tensor `{name}` of the same shape as {}",
                    path.display(),
                    last.display()
                ),
            }
        }
    }
    for (tensor, kind) in mean.values_mut().zip(kinds) {
        if tensor.is_floating_point() {
            *tensor = tensor.f_div_scalar(folders.len() as f64)?.f_to_kind(kind)?;
        }
    }
    weights::load_into(parameters, &mean)?.require_complete(&last.display().to_string())
}

fn read_state(folder: &Path) -> Result<State> {
    let path = folder.join(STATE);
    let name = path.display().to_string();
    let value = recipe::parse(&files::read_text(&path)?, &name)?;
    let format = value.get("format").and_then(serde_json::Value::as_u64);
    let format = format.ok_or_else(|| bad_input!("{name} is no checkpoint state: it has no `format`"))?;
    if format != u64::from(FORMAT) {
        bail_input!("{name} has checkpoint format {format}: this program reads format {FORMAT}");
    }
    recipe::typed(value, &name)
}
