//! `eval`.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::process::done;
use crate::support::runs::{read_json, series, train};
use crate::support::{Scratch, small_data};

fn evaluated(run: &Path, more: &[&str]) -> Value {
    let path = run.display().to_string();
    let printed = done(["eval", &path, "--format", "json"].iter().chain(more)).stdout;
    serde_json::from_str(&printed).unwrap()
}

fn trained(folder: &Path, settings: &[&str]) -> PathBuf {
    let (data, run) = (folder.join("data"), folder.join("run"));
    small_data::write(&data, 200, 60);
    train("lenet5", &data, &run, &[&["training.epochs=3"], settings].concat());
    run
}

#[test]
fn metrics_are_those_of_the_summary() {
    for settings in [&[][..], &["training.ema=0.9"], &["training.precision=bf16"]] {
        let folder = Scratch::new();
        let run = trained(&folder, settings);
        let summary = read_json(&run.join("summary.json"));
        let found = evaluated(&run, &[]);
        assert_eq!((&found["split"], &found["samples"]), (&"test".into(), &60.into()));
        assert_eq!(found["step"], summary["best"]["step"]);
        let metrics = found["metrics"].as_object().unwrap();
        assert!(metrics.contains_key("accuracy") && metrics.contains_key("macro_f1"));
        for (name, value) in metrics {
            assert_eq!(value, &summary["test"][name], "{name} with {settings:?}");
        }
    }
}

#[test]
fn every_part_and_every_checkpoint_can_be_looked_at() {
    let folder = Scratch::new();
    let run = trained(&folder, &["training.keep=1"]);
    let validation = evaluated(&run, &["--split", "validation", "--checkpoint", "last"]);
    assert_eq!(validation["samples"], 20);
    assert_eq!(validation["metrics"]["loss"].as_f64(), series(&run, "validation", "loss").last().copied());
    assert_eq!(evaluated(&run, &["--split", "train"])["samples"], 180);
    let numbered = format!("step-{}", series(&run, "train", "step").len());
    let numbered = evaluated(&run, &["--split", "validation", "--checkpoint", &numbered]);
    assert_eq!(numbered["metrics"], validation["metrics"]);
}

#[test]
fn the_confusion_matrix_is_made_of_the_samples() {
    let folder = Scratch::new();
    let run = trained(&folder, &[]);
    let found = evaluated(&run, &[]);
    let counts: Vec<u64> = serde_json::from_value(found["details"]["confusion"].clone()).unwrap();
    assert_eq!(counts.iter().sum::<u64>(), 60);
    let right: u64 = (0..small_data::CLASSES).map(|class| counts[class * (small_data::CLASSES + 1)]).sum();
    assert_eq!(found["metrics"]["accuracy"].as_f64(), Some(right as f64 / 60.0));
}

#[test]
fn other_data_and_other_batches_may_be_given() {
    let folder = Scratch::new();
    let run = trained(&folder, &[]);
    let other = folder.join("other");
    small_data::write(&other, 40, 24);
    let found = evaluated(&run, &["--data", &other.display().to_string()]);
    assert_eq!(found["samples"], 24);
    let (single, all) = (evaluated(&run, &["--batch-size", "1"]), evaluated(&run, &["--batch-size", "60"]));
    let loss = |found: &Value| found["metrics"]["loss"].as_f64().unwrap();
    assert!((loss(&single) - loss(&all)).abs() < 1e-5);
    assert_eq!(single["metrics"]["accuracy"], all["metrics"]["accuracy"]);
}

#[test]
fn the_table_names_part_and_checkpoint() {
    let folder = Scratch::new();
    let run = trained(&folder, &[]);
    let table = done(["eval", &run.display().to_string()]).stdout;
    let first = table.lines().next().unwrap();
    assert!(
        first.contains("test") && first.contains("60 samples") && first.contains("checkpoint of step"),
        "{first}"
    );
    assert!(table.lines().any(|line| line.starts_with("accuracy")));
}

#[test]
fn a_run_folder_may_be_moved() {
    let folder = Scratch::new();
    let run = trained(&folder, &[]);
    let before = evaluated(&run, &[]);
    let moved = folder.join("elsewhere");
    std::fs::rename(&run, &moved).unwrap();
    assert_eq!(evaluated(&moved, &[]), before);
}
