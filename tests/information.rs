//! `info`, `recipes`, `doctor`, `--dry-run`, `--help`, `--version`: what the program tells of itself.

use serde_json::Value;

use crate::support::process::{cnn, done, run};
use crate::support::runs::{files, train, train_arguments};
use crate::support::{Scratch, small_data};

#[test]
fn recipes_are_listed_and_printed_whole() {
    let listed = done(["recipes"]).stdout;
    let names: Vec<&str> = listed
        .lines()
        .filter(|line| !line.starts_with(' '))
        .filter_map(|line| line.split(' ').next())
        .collect();
    assert!(names.contains(&"lenet5-mnist-mini") && listed.contains("(default)"), "{listed}");
    for name in names {
        let printed = done(["recipes", name]).stdout;
        let recipe: Value = serde_json::from_str(&printed).unwrap();
        assert_eq!(recipe["name"], name);
        // With every key, so that it shows what there is to set.
        assert!(recipe["training"].get("clip_norm").is_some());
    }
}

#[test]
fn doctor_says_what_there_is() {
    let table = done(["doctor"]).stdout;
    for row in ["libtorch", "processor", "threads", "heap", "CUDA"] {
        assert!(table.lines().any(|line| line.starts_with(row)), "no {row} in {table}");
    }
    let facts: Value = serde_json::from_str(&done(["doctor", "--format", "json"]).stdout).unwrap();
    assert_eq!(facts["suite_version"], env!("CARGO_PKG_VERSION"));
    assert!(facts["cores"].as_u64().is_some_and(|cores| cores > 0));
    assert!(facts["cuda"]["linked"].is_boolean());
}

#[test]
fn info_speaks_of_runs_files_and_models() {
    let folder = Scratch::new();
    let (data, path) = (folder.join("data"), folder.join("run"));
    small_data::write(&data, 60, 0);
    train("lenet5", &data, &path, &["training.epochs=1"]);
    let of_run = done(["info", &path.display().to_string()]).stdout;
    assert!(
        of_run.contains("recipe      small") && of_run.contains("(step 4)") && of_run.contains("conv2"),
        "{of_run}"
    );
    let weights = path.join("checkpoints/best/model.safetensors").display().to_string();
    let of_file = done(["info", &weights]).stdout;
    assert!(of_file.contains("conv1.weight") && of_file.contains("[6, 1, 5, 5]"), "{of_file}");
    let of_model = done(["info", "--model", "lenet5", "--set", "model.num_classes=100"]).stdout;
    assert!(!of_model.contains("61,706") && of_model.contains("69,356"), "{of_model}");
    assert!(done(["info", "--model", "lenet5"]).stdout.contains("61,706"));
}

#[test]
fn a_dry_run_prints_the_resolved_recipe_and_writes_nothing() {
    let folder = Scratch::new();
    small_data::write(&folder.join("data"), 40, 0);
    let out = folder.join("run");
    let mut arguments =
        train_arguments("lenet5", &folder.join("data"), &out, &["training.class_weights=balanced"]);
    arguments.extend(
        ["--dry-run", "--lr", "0.5", "--optimizer", "rmsprop", "--schedule", "cosine"].map(str::to_owned),
    );
    let before = files(&folder);
    let recipe: Value = serde_json::from_str(&done(&arguments).stdout).unwrap();
    assert_eq!(files(&folder).len(), before.len());
    // Flags win over the file, and what data and machine decide is written down.
    let optimizer = &recipe["training"]["optimizer"];
    assert_eq!((&optimizer["name"], &optimizer["lr"]), (&"rmsprop".into(), &0.5.into()));
    assert_eq!(recipe["training"]["schedule"]["name"], "cosine");
    assert_eq!(recipe["model"]["image_size"], serde_json::json!([14, 14]));
    assert_eq!(recipe["training"]["class_weights"].as_array().map(Vec::len), Some(4));
    assert_eq!(recipe["training"]["device"], if tch::Cuda::is_available() { "cuda:0" } else { "cpu" });
    // It is a recipe itself, and resolves to itself.
    let path = folder.join("resolved.json");
    std::fs::write(&path, recipe.to_string()).unwrap();
    let again = done(["train", "--dry-run", "--recipe", &path.display().to_string()]).stdout;
    assert_eq!(serde_json::from_str::<Value>(&again).unwrap(), recipe);
}

#[test]
fn every_flag_has_its_help_and_usage_errors_exit_with_two() {
    let help = done(["train", "--help"]).stdout;
    for flag in ["--recipe", "--resume", "--accumulate", "--early-stop", "--precision", "--set", "--dry-run"]
    {
        assert!(help.contains(flag), "no {flag} in the help");
    }
    assert!(done(["--version"]).stdout.contains(env!("CARGO_PKG_VERSION")));
    for wrong in [&["train", "--epoch", "3"][..], &["trian"], &["eval"], &["train", "--epochs", "x"], &[]] {
        let refused = run(&mut cnn(wrong));
        assert_eq!((refused.code, refused.stdout.as_str()), (Some(2), ""), "{wrong:?}: {}", refused.stderr);
        assert!(!refused.stderr.contains("panicked"));
    }
}

#[test]
fn a_run_tells_its_story_in_files() {
    let folder = Scratch::new();
    let (data, path) = (folder.join("data"), folder.join("run"));
    small_data::write(&data, 60, 20);
    train("lenet5", &data, &path, &["training.epochs=2"]);
    let names: Vec<String> = files(&path).into_keys().map(|path| path.display().to_string()).collect();
    for name in [
        "recipe.json",
        "metrics.jsonl",
        "summary.json",
        "report.html",
        "log.txt",
        "checkpoints/best/state.json",
    ] {
        assert!(names.iter().any(|found| found == name), "no {name} in {names:?}");
    }
    assert!(names.iter().any(|name| name.starts_with("events.out.tfevents.")));
    assert!(!names.iter().any(|name| name.contains("partial")), "{names:?}");
    let report = std::fs::read_to_string(path.join("report.html")).unwrap();
    assert!(report.starts_with("<!DOCTYPE html>") && report.contains("small"));
}
