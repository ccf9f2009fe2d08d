//! That the keys of a recipe do what they say, seen from outside in short trainings.

use std::path::{Path, PathBuf};

use tch::Tensor;

use crate::support::process::done;
use crate::support::runs::{assert_same_files, checkpoints, metrics, read_json, series, tensors, train};
use crate::support::{Scratch, assert_close, numbers, small_data};

/// A data set, and short trainings on it.
struct Bench {
    folder: Scratch,
}

impl Bench {
    fn new() -> Bench {
        let folder = Scratch::new();
        small_data::write(&folder.join("data"), 200, 80);
        Bench { folder }
    }

    fn train(&self, model: &str, name: &str, settings: &[&str]) -> PathBuf {
        let run = self.folder.join(name);
        train(model, &self.folder.join("data"), &run, settings);
        run
    }

    /// The weights as they are drawn: of a run that learns nothing.
    fn initial(&self, model: &str) -> PathBuf {
        self.train(model, "initial", &["training.optimizer.lr=0", "training.steps=1"])
    }
}

/// Recall of each class on the test part.
fn recalls(run: &Path) -> Vec<f64> {
    let found = done(["eval", &run.display().to_string(), "--format", "json"]).stdout;
    let found: serde_json::Value = serde_json::from_str(&found).unwrap();
    let classes = found["details"]["classes"].as_array().unwrap();
    classes.iter().map(|class| class["recall"].as_f64().unwrap()).collect()
}

#[test]
fn a_small_network_learns() {
    let bench = Bench::new();
    let run = bench.train("lenet5", "run", &["training.epochs=8"]);
    let accuracy = read_json(&run.join("summary.json"))["test"]["accuracy"].as_f64().unwrap();
    assert!(accuracy > 0.9, "{accuracy}");
    // The best checkpoint is the one with the best validation accuracy, the earliest of equals.
    let (steps, scores) = (series(&run, "validation", "step"), series(&run, "validation", "accuracy"));
    let best = scores.iter().copied().fold(0.0, f64::max);
    let first = scores.iter().position(|&score| score == best).unwrap();
    let saved = read_json(&run.join("checkpoints/best/state.json"));
    assert_eq!(saved["progress"]["step"].as_f64(), Some(steps[first]));
    assert_eq!(read_json(&run.join("summary.json"))["best"]["accuracy"].as_f64(), Some(best));
}

#[test]
fn a_class_without_weight_is_not_learned() {
    let bench = Bench::new();
    let even = bench.train("mlp", "even", &["training.epochs=4"]);
    let without =
        bench.train("mlp", "without", &["training.epochs=4", "training.class_weights=[1, 1, 0, 1]"]);
    assert!(recalls(&even)[2] > 0.5, "{:?}", recalls(&even));
    assert!(recalls(&without)[2] < 0.1, "{:?}", recalls(&without));
}

#[test]
fn balanced_weights_are_scikit_learns() {
    let bench = Bench::new();
    // 100 of class 0, 60 of class 1, 40 of class 2, none of class 3.
    let labels: Vec<u8> =
        [(0, 100), (1, 60), (2, 40)].into_iter().flat_map(|(label, count)| vec![label; count]).collect();
    small_data::write_part(&bench.folder.join("data"), "train", &labels, small_data::SIDE, 1);
    let settings = ["training.steps=1", "training.class_weights=balanced", "data.val_fraction=0"];
    let run = bench.train("mlp", "run", &settings);
    let weights = read_json(&run.join("recipe.json"))["training"]["class_weights"].clone();
    let weights: Vec<f64> = serde_json::from_value(weights).unwrap();
    assert_close(&weights, &[200.0 / 400.0, 200.0 / 240.0, 200.0 / 160.0, 0.0], 1e-12, "balanced weights");
}

#[test]
fn label_smoothing_bounds_the_training_loss_and_leaves_evaluation_alone() {
    let bench = Bench::new();
    let long = ["training.epochs=10", "training.optimizer.lr=0.02"];
    let smooth = bench.train("mlp", "smooth", &[&long[..], &["training.label_smoothing=0.2"]].concat());
    let plain = bench.train("mlp", "plain", &long);
    // The least loss there is: the entropy of the smoothed target.
    let (right, wrong) = (0.8f64 + 0.2 / 4.0, 0.2f64 / 4.0);
    let least = -(right * right.ln() + 3.0 * wrong * wrong.ln());
    let lowest = |run: &Path, split| series(run, split, "loss").into_iter().fold(f64::INFINITY, f64::min);
    assert!(lowest(&smooth, "train") >= least - 1e-6);
    assert!(lowest(&plain, "train") < least && lowest(&smooth, "validation") < least);
}

#[test]
fn penalties_shrink_weights() {
    let bench = Bench::new();
    let size = |name: &str, settings: &[&str], norm: fn(&Tensor) -> Tensor| -> f64 {
        let run = bench.train("mlp", name, &[&["training.epochs=4"], settings].concat());
        let all = tensors(&run, "last", "model");
        all.values().map(|tensor| norm(tensor).double_value(&[])).sum()
    };
    let absolute = |tensor: &Tensor| tensor.abs().sum(tch::Kind::Double);
    let squares = |tensor: &Tensor| tensor.square().sum(tch::Kind::Double);
    assert!(size("l1", &["training.l1=0.003"], absolute) < 0.8 * size("plain", &[], absolute));
    assert!(size("l2", &["training.l2=0.05"], squares) < 0.8 * size("plain2", &[], squares));
}

#[test]
fn weight_decay_alone_shrinks_by_its_share_and_spares_biases() {
    let bench = Bench::new();
    let before = tensors(&bench.initial("mlp"), "last", "model");
    // Decoupled decay by 10 % in one step; the gradient's part is at most the rate for each number.
    let adamw = r#"training.optimizer={"name": "adamw", "lr": 0.0001, "weight_decay": 1000}"#;
    let settings = [adamw, "training.decay_bias_and_norm=false", "training.steps=1"];
    let after = tensors(&bench.train("mlp", "decayed", &settings), "last", "model");
    for (name, before) in before {
        let kept = if name.ends_with("bias") { 1.0 } else { 0.9 };
        let furthest = (&after[&name] - before * kept).abs().max().double_value(&[]);
        assert!(furthest <= 0.000_101, "{name}: {furthest}");
    }
}

#[test]
fn frozen_parameters_stay_as_they_were_drawn() {
    let bench = Bench::new();
    let before = tensors(&bench.initial("lenet5"), "last", "model");
    let settings = [r#"training.freeze=["^conv", "fc1"]"#, "training.epochs=1"];
    let run = bench.train("lenet5", "frozen", &settings);
    for (name, after) in tensors(&run, "last", "model") {
        let frozen = name.starts_with("conv") || name.starts_with("fc1");
        assert_eq!(after.equal(&before[&name]), frozen, "{name}");
    }
    let state = tensors(&run, "last", "optimizer");
    assert!(state.contains_key("momentum_buffer.fc2.weight"));
    assert!(!state.keys().any(|name| name.contains("conv")), "frozen parameters have no state");
}

#[test]
fn groups_have_rates_of_their_own() {
    let bench = Bench::new();
    let before = tensors(&bench.initial("lenet5"), "last", "model");
    let plain = [r#"training.optimizer={"name": "sgd", "lr": 0.1}"#, "training.steps=1"];
    let groups =
        r#"training.groups=[{"pattern": "^conv", "lr_scale": 0.5}, {"pattern": "fc3", "lr_scale": 0}]"#;
    let moved = |run: &Path| -> Vec<(String, Tensor)> {
        let after = tensors(run, "last", "model");
        after.into_iter().map(|(name, after)| (name.clone(), after - &before[&name])).collect()
    };
    let whole = moved(&bench.train("lenet5", "plain", &plain));
    let grouped = moved(&bench.train("lenet5", "grouped", &[&plain[..], &[groups]].concat()));
    for ((name, whole), (_, grouped)) in whole.into_iter().zip(grouped) {
        let scale = if name.starts_with("conv") {
            0.5
        } else if name.starts_with("fc3") {
            0.0
        } else {
            1.0
        };
        // Differences of weights keep fewer digits than the weights.
        assert_close(&numbers(&grouped), &numbers(&(whole * scale)), 1e-4, &name);
    }
}

#[test]
fn clipping_bounds_a_step() {
    let bench = Bench::new();
    let before = tensors(&bench.initial("lenet5"), "last", "model");
    let plain = [r#"training.optimizer={"name": "sgd", "lr": 1}"#, "training.steps=1"];
    let run = bench.train("lenet5", "norm", &[&plain[..], &["training.clip_norm=0.01"]].concat());
    let moved: f64 = tensors(&run, "last", "model")
        .iter()
        .map(|(name, after)| (after - &before[name]).square().sum(tch::Kind::Double).double_value(&[]))
        .sum();
    assert!((moved.sqrt() - 0.01).abs() < 1e-5, "{}", moved.sqrt());
    // What is told is the norm before clipping.
    assert!(series(&run, "train", "grad_norm")[0] > 0.05);
    let run = bench.train("lenet5", "value", &[&plain[..], &["training.clip_value=0.001"]].concat());
    for (name, after) in tensors(&run, "last", "model") {
        let furthest = (after - &before[&name]).abs().max().double_value(&[]);
        assert!(furthest <= 0.001 + 1e-6, "{name}: {furthest}");
    }
}

#[test]
fn the_average_follows_the_weights_and_is_what_is_evaluated() {
    let bench = Bench::new();
    let settings = ["training.ema=0.8", "training.steps=5", "training.save_every=1", "training.keep=5"];
    let run = bench.train("lenet5", "averaged", &settings);
    let mut average = tensors(&bench.initial("lenet5"), "last", "model");
    for step in 1..=5 {
        let checkpoint = format!("step-{step}");
        let saved = tensors(&run, &checkpoint, "ema");
        for (name, weights) in tensors(&run, &checkpoint, "model") {
            let next = &average[&name] * 0.8 + weights * 0.2;
            assert_close(
                &numbers(&saved[&name]),
                &numbers(&next),
                1e-6,
                &format!("{name} after step {step}"),
            );
            average.insert(name, next);
        }
    }
    // A run from the averaged weights starts where the evaluation was.
    let init = format!("training.init_from={}", run.display());
    let next = bench.train("lenet5", "next", &[&init, "training.optimizer.lr=0", "training.steps=1"]);
    let evaluated = |run: &Path| series(run, "test", "loss")[0];
    assert_eq!(evaluated(&next), evaluated(&run));
}

#[test]
fn training_stops_early_where_nothing_improves() {
    let bench = Bench::new();
    let settings = ["training.optimizer.lr=0", "training.early_stop=2", "training.epochs=50"];
    let run = bench.train("mlp", "run", &settings);
    // The first evaluation is the best, the next two are no better.
    assert_eq!(series(&run, "validation", "step").len(), 3);
    assert!(std::fs::read_to_string(run.join("log.txt")).unwrap().contains("stopped early"));
    assert_eq!(read_json(&run.join("checkpoints/best/state.json"))["progress"]["epoch"], 1);
    assert_eq!(read_json(&run.join("checkpoints/last/state.json"))["progress"]["epoch"], 3);
}

#[test]
fn so_many_numbered_checkpoints_are_kept() {
    let bench = Bench::new();
    let settings =
        ["training.steps=12", "training.save_every=5", "training.eval_every=100", "training.keep=2"];
    let run = bench.train("mlp", "run", &settings);
    let mut names: Vec<String> = std::fs::read_dir(run.join("checkpoints"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    assert_eq!(names, ["best", "last", "step-10", "step-12"]);
    let name = run.display().to_string();
    let of_step =
        |checkpoint: &str| done(["eval", &name, "--checkpoint", checkpoint, "--format", "json"]).stdout;
    assert!(of_step("step-10").contains("\"step\": 10"));
}

#[test]
fn a_plateau_cuts_the_rate() {
    let bench = Bench::new();
    // A threshold that no improvement passes: every evaluation after the first is a bad one.
    let schedule = r#"training.schedule={"name": "plateau", "factor": 0.5, "patience": 1, "threshold": 0.9}"#;
    let settings = [schedule, "training.metric=loss", "training.epochs=6", "training.optimizer.lr=0.001"];
    let run = bench.train("mlp", "run", &settings);
    let epoch = |record: &serde_json::Value| (record["epoch"].as_f64().unwrap() - 1e-9) as usize;
    let mut rates = vec![0.0; 6];
    for record in metrics(&run).iter().filter(|record| record["split"] == "train") {
        rates[epoch(record)] = record["lr"].as_f64().unwrap();
    }
    // Bad after epochs 2 and 3: cut; after 4 and 5: cut again.
    assert_close(&rates, &[1e-3, 1e-3, 1e-3, 5e-4, 5e-4, 2.5e-4], 1e-12, "rates by epoch");
}

#[test]
fn steps_win_over_epochs_and_warm_up_counts_them() {
    let bench = Bench::new();
    let settings =
        ["training.epochs=1", "training.steps=20", "training.warmup=0.25", "training.optimizer.lr=0.1"];
    let run = bench.train("mlp", "run", &settings);
    let rates = series(&run, "train", "lr");
    assert_eq!(rates.len(), 20);
    assert_close(&rates[..7], &[0.0, 0.02, 0.04, 0.06, 0.08, 0.1, 0.1], 1e-12, "rates");
}

#[test]
fn bfloat16_is_close_to_float32_and_not_the_same() {
    let bench = Bench::new();
    let losses = |precision: &str| {
        let setting = format!("training.precision={precision}");
        let run = bench.train("lenet5", precision, &["training.steps=10", &setting]);
        for tensor in tensors(&run, "last", "model").values() {
            assert_eq!(tensor.kind(), tch::Kind::Float, "weights stay in float32");
        }
        series(&run, "train", "loss")
    };
    let (full, half) = (losses("fp32"), losses("bf16"));
    assert_close(&half, &full, 0.02, "losses in bfloat16");
    assert_ne!(half, full);
}

#[test]
fn the_layout_of_images_changes_rounding_only() {
    let bench = Bench::new();
    let losses = |last: bool| {
        let setting = format!("training.channels_last={last}");
        let run = bench.train(
            "resnet20",
            &format!("last-{last}"),
            &["training.steps=6", "training.optimizer.lr=0.005", &setting],
        );
        let scores = read_json(&run.join("summary.json"))["test"]["loss"].as_f64().unwrap();
        [series(&run, "train", "loss"), vec![scores]].concat()
    };
    let (first, last) = (losses(false), losses(true));
    assert_eq!(first.len(), 7);
    assert_close(&last[..2], &first[..2], 1e-5, "the first losses with the channels innermost");
    // What rounding differs grows from step to step.
    assert_close(&last, &first, 1e-3, "losses with the channels innermost");
    assert!(first != last, "the layout is the same");
}

#[test]
fn auto_precision_is_decided_once_and_its_trial_leaves_no_trace() {
    let bench = Bench::new();
    // What a trial could change: the random numbers behind dropout, running statistics.
    for (model, settings) in [
        ("lenet5", ["training.steps=6", "model.dropout=0.3"]),
        ("resnet20", ["training.steps=3", "training.seed=1"]),
    ] {
        let tried = bench.train(
            model,
            &format!("{model}-auto"),
            &[&settings[..], &["training.precision=auto"]].concat(),
        );
        let chosen =
            read_json(&tried.join("recipe.json"))["training"]["precision"].as_str().unwrap().to_owned();
        assert!(["fp32", "bf16"].contains(&chosen.as_str()), "{chosen}");
        let precision = format!("training.precision={chosen}");
        let told =
            bench.train(model, &format!("{model}-told"), &[&settings[..], &[precision.as_str()]].concat());
        assert_same_files(&checkpoints(&tried), &checkpoints(&told), model);
    }
}

#[test]
fn the_number_of_loader_threads_changes_nothing() {
    let bench = Bench::new();
    let weights = |workers: &str| {
        let setting = format!("training.workers={workers}");
        let run = bench.train("lenet5", workers, &["training.epochs=1", "model.dropout=0.2", &setting]);
        std::fs::read(run.join("checkpoints/last/model.safetensors")).unwrap()
    };
    let alone = weights("1");
    assert!(weights("0") == alone && weights("3") == alone);
}

#[test]
fn a_seed_decides_everything() {
    let bench = Bench::new();
    let weights = |name: &str, seed: &str| {
        let run = bench.train("lenet5", name, &["training.epochs=1", "model.dropout=0.2", seed]);
        std::fs::read(run.join("checkpoints/last/model.safetensors")).unwrap()
    };
    let first = weights("first", "training.seed=1");
    assert!(weights("again", "training.seed=1") == first);
    assert!(weights("other", "training.seed=2") != first);
}
