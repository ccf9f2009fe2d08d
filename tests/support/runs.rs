//! Training runs and what is in their folders.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::process::{Finished, cnn, done, run};
use super::small_data::CLASSES;

/// The arguments of `cnn train` for a small model, from a recipe file that this writes beside the run folder: few samples at a time, every step
/// logged, one thread.
pub fn train_arguments(model: &str, data: &Path, out: &Path, settings: &[&str]) -> Vec<String> {
    let recipe = out.with_extension("recipe.json");
    let content = json!({
        "name": "small",
        "model": {"name": model, "num_classes": CLASSES},
        "data": {"format": "idx", "path": data, "mean": [0.3], "std": [0.25]},
        "training": {
            "batch_size": 16,
            "eval_batch_size": 64,
            "log_every": 1,
            "threads": 1,
            "metric": "accuracy",
            "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
        },
    });
    std::fs::write(&recipe, content.to_string()).unwrap();
    let mut arguments: Vec<String> = ["train", "--quiet", "--recipe"].map(str::to_owned).to_vec();
    arguments.extend([recipe.display().to_string(), "--out".to_owned(), out.display().to_string()]);
    arguments.extend(settings.iter().flat_map(|setting| ["--set".to_owned(), (*setting).to_owned()]));
    arguments
}

/// Runs `cnn train` as [`train_arguments`] says.
pub fn try_train(model: &str, data: &Path, out: &Path, settings: &[&str]) -> Finished {
    run(&mut cnn(train_arguments(model, data, out, settings)))
}

/// Runs `cnn train`, which must succeed.
pub fn train(model: &str, data: &Path, out: &Path, settings: &[&str]) {
    done(train_arguments(model, data, out, settings));
}

/// Continues a run to its end, which must succeed.
pub fn resume(run: &Path, more: &[&str]) -> Finished {
    let run = run.display().to_string();
    done(["train", "--quiet", "--resume", &run].iter().chain(more))
}

/// A JSON file.
pub fn read_json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap()
}

/// The lines of a run's `metrics.jsonl`; while the run is writing it, the whole ones.
pub fn metrics(run: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// One metric of one split, in the order of the steps.
pub fn series(run: &Path, split: &str, metric: &str) -> Vec<f64> {
    let of_split = |record: &Value| record["split"] == split;
    metrics(run)
        .iter()
        .filter(|record| of_split(record))
        .map(|record| record[metric].as_f64().unwrap())
        .collect()
}

/// The values that are measured by a clock, and so differ from run to run.
const MEASURED: [&str; 3] = ["samples_per_second", "data_wait", "seconds"];

/// What a run computed, without what a clock measured: metrics line by line, and the summary.
pub fn results(run: &Path) -> (Vec<Value>, Value) {
    let mut records = metrics(run);
    for record in &mut records {
        record.as_object_mut().unwrap().retain(|key, _| !MEASURED.contains(&key.as_str()));
    }
    let mut summary = read_json(&run.join("summary.json"));
    summary
        .as_object_mut()
        .unwrap()
        .retain(|key, _| !["throughput", "wall_seconds", "peak_memory_mb"].contains(&key.as_str()));
    (records, summary)
}

/// Every file under a folder by its relative path, with its content.
pub fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(path.strip_prefix(folder).unwrap().to_owned(), std::fs::read(&path).unwrap());
            }
        }
    }
    found
}

/// The files of a run's checkpoints.
pub fn checkpoints(run: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    files(&run.join("checkpoints"))
}

/// Asserts that two sets of files are the same to the byte, and says which file differs.
pub fn assert_same_files(
    found: &BTreeMap<PathBuf, Vec<u8>>,
    expected: &BTreeMap<PathBuf, Vec<u8>>,
    what: &str,
) {
    let names = |files: &BTreeMap<PathBuf, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(found), names(expected), "{what}");
    for (name, content) in expected {
        assert!(found[name] == *content, "{what}: {} differs", name.display());
    }
}

/// Tensors of a safetensors file of a run's checkpoint.
pub fn tensors(run: &Path, checkpoint: &str, file: &str) -> BTreeMap<String, tch::Tensor> {
    let path = run.join("checkpoints").join(checkpoint).join(file).with_extension("safetensors");
    tch_suite::weights::read_safetensors(&path).unwrap()
}
