//! Training from given weights: what learns, when, and how fast; features that are computed once; several labels to an image; true probabilities.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::process::{assert_refused, cnn, done, run};
use crate::support::runs::{
    assert_same_files, checkpoints, read_json, results, resume, series, tensors, train,
};
use crate::support::{Scratch, assert_close, numbers, small_data};

/// A data set, a network that has learned it, and short trainings from there.
struct Bench {
    folder: Scratch,
    learned: String,
}

impl Bench {
    fn new(model: &str) -> Bench {
        let folder = Scratch::new();
        small_data::write(&folder.join("data"), 120, 60);
        let learned = folder.join("learned");
        train(model, &folder.join("data"), &learned, &["training.epochs=2"]);
        let learned = format!("training.init_from={}", learned.display());
        Bench { folder, learned }
    }

    fn tune(&self, model: &str, name: &str, settings: &[&str]) -> PathBuf {
        let run = self.folder.join(name);
        let all: Vec<&str> = std::iter::once(self.learned.as_str()).chain(settings.iter().copied()).collect();
        train(model, &self.folder.join("data"), &run, &all);
        run
    }

    /// The names of the tensors that a run changed.
    fn changed(&self, run: &Path) -> Vec<String> {
        let before = tensors(&self.folder.join("learned"), "best", "model");
        let after = tensors(run, "last", "model");
        before.into_iter().filter(|(name, tensor)| !after[name].equal(tensor)).map(|(name, _)| name).collect()
    }
}

#[test]
fn a_frozen_backbone_keeps_its_weights_and_its_statistics() {
    let bench = Bench::new("resnet20");
    let freeze = "training.fine_tune.freeze_backbone=true";
    let run = bench.tune("resnet20", "run", &[freeze, "training.epochs=2"]);
    assert_eq!(bench.changed(&run), ["fc.bias", "fc.weight"]);
    // The optimizer has state for nothing else.
    let state = tensors(&run, "last", "optimizer");
    let of_head = |name: &&String| name.ends_with(".fc.bias") || name.ends_with(".fc.weight");
    assert_eq!(state.keys().filter(of_head).count(), 2);
    assert!(
        state.keys().all(|name| of_head(&name) || !name.contains('.') || !name.contains("layer")),
        "{:?}",
        state.keys()
    );
}

#[test]
fn features_that_are_kept_train_the_same_head() {
    let bench = Bench::new("lenet5");
    let freeze = "training.fine_tune.freeze_backbone=true";
    let kept = bench.tune("lenet5", "kept", &[freeze, "training.epochs=3", "training.ema=0.9"]);
    let log = std::fs::read_to_string(kept.join("log.txt")).unwrap();
    assert!(log.contains("the features of 120 images"), "{log}");
    let computed = bench.tune(
        "lenet5",
        "computed",
        &[freeze, "training.epochs=3", "training.ema=0.9", "training.fine_tune.cache_features=false"],
    );
    assert!(!std::fs::read_to_string(computed.join("log.txt")).unwrap().contains("the features of"));
    // Kernels may choose another way for another number of samples.
    assert_close(&series(&kept, "train", "loss"), &series(&computed, "train", "loss"), 1e-5, "losses");
    let [kept, computed] = [kept, computed].map(|run| numbers(&tensors(&run, "last", "model")["fc3.weight"]));
    assert_close(&kept, &computed, 1e-5, "weights of the head");

    // An image that looks different in each epoch has no features to keep.
    let varied = ["data.augment.flip=true", freeze];
    let run = bench.tune("lenet5", "varied", &[&varied[..], &["training.steps=2"]].concat());
    assert!(!std::fs::read_to_string(run.join("log.txt")).unwrap().contains("the features of"));
}

#[test]
fn features_that_cannot_be_kept_are_refused_when_asked_for() {
    let bench = Bench::new("mlp");
    let refused_with = |settings: &[&str]| {
        let run = bench.folder.join("refused");
        let finished = crate::support::runs::try_train("mlp", &bench.folder.join("data"), &run, settings);
        assert_eq!(finished.code, Some(2), "{}", finished.stderr);
        finished.stderr
    };
    let message = refused_with(&["training.fine_tune.cache_features=true"]);
    assert!(message.contains("needs freeze_backbone"), "{message}");
    let message =
        refused_with(&["training.fine_tune.freeze_backbone=true", "training.fine_tune.unfreeze_every=1"]);
    assert!(message.contains("both freeze_backbone and unfreeze_every"), "{message}");
    let message = refused_with(&["training.fine_tune.layer_decay=0"]);
    assert!(message.contains("layer_decay is 0"), "{message}");
}

#[test]
fn stages_learn_one_after_the_other_and_a_resumed_run_is_the_same() {
    let bench = Bench::new("lenet5");
    let settings = ["training.fine_tune.unfreeze_every=1", "training.fine_tune.layer_decay=0.5"];
    let one = bench.tune("lenet5", "one", &[&settings[..], &["training.epochs=1"]].concat());
    assert_eq!(bench.changed(&one), ["fc3.bias", "fc3.weight"]);
    let two = bench.tune("lenet5", "two", &[&settings[..], &["training.epochs=2"]].concat());
    assert_eq!(bench.changed(&two), ["fc2.bias", "fc2.weight", "fc3.bias", "fc3.weight"]);
    // Continued from the first epoch, from the second, and in one go.
    let whole = bench.tune("lenet5", "whole", &[&settings[..], &["training.epochs=6"]].concat());
    assert_eq!(bench.changed(&whole).len(), 10, "everything learns in the end");
    for run in [one, two] {
        resume(&run, &["--epochs", "6"]);
        assert_same_files(
            &checkpoints(&run).into_iter().filter(|(name, _)| name.ends_with("model.safetensors")).collect(),
            &checkpoints(&whole)
                .into_iter()
                .filter(|(name, _)| name.ends_with("model.safetensors"))
                .collect(),
            "a resumed run",
        );
        assert_eq!(results(&run).0, results(&whole).0);
    }
}

#[test]
fn rates_fall_from_the_head_to_the_input() {
    let bench = Bench::new("mlp");
    let plain = ["training.optimizer.momentum=0", "training.steps=1"];
    let even = bench.tune("mlp", "even", &plain);
    let scaled = bench.tune(
        "mlp",
        "scaled",
        &[&plain[..], &["training.fine_tune.layer_decay=0.25", "training.fine_tune.head_lr_scale=3"]]
            .concat(),
    );
    let before = tensors(&bench.folder.join("learned"), "best", "model");
    for (name, factor) in [("0.weight", 0.25), ("2.weight", 3.0)] {
        let step = |run: &Path| numbers(&(&tensors(run, "last", "model")[name] - &before[name]));
        let expected: Vec<f64> = step(&even).iter().map(|change| factor * change).collect();
        assert_close(&step(&scaled), &expected, 1e-3, name);
    }
}

#[test]
fn balanced_sampling_shows_a_rare_class_as_often() {
    let folder = Scratch::new();
    let data = folder.join("data");
    small_data::write(&data, 40, 40);
    // One image in twenty is of class 3.
    let labels: Vec<u8> = (0..200).map(|number| if number % 20 == 0 { 3 } else { 0 }).collect();
    small_data::write_part(&data, "train", &labels, small_data::SIDE, 1);
    let recipe = folder.join("recipe.json");
    let content = json!({
        "name": "sampled",
        "model": {"name": "mlp", "num_classes": 4},
        "data": {"format": "idx", "path": data, "val_fraction": 0},
        "training": {"batch_size": 200, "sampling": "balanced"},
    });
    std::fs::write(&recipe, content.to_string()).unwrap();
    let file = folder.join("batches.safetensors");
    let [recipe, path] = [&recipe, &file].map(|path| path.display().to_string());
    done(["batches", "--recipe", &recipe, "--count", "1", "--file", &path]);
    let batches = tch_suite::weights::read_safetensors(&file).unwrap();
    let rare = numbers(&batches["labels.0"]).into_iter().filter(|&label| label == 3.0).count();
    // 100 are expected, with a standard deviation of 7.
    assert!((70..130).contains(&rare), "{rare} of 200 are of the rare class");
}

#[test]
fn the_focal_loss_looks_at_what_is_hard() {
    let bench = Bench::new("mlp");
    let settings = ["training.steps=1", "training.optimizer.lr=0", "training.batch_size=108"];
    let loss = |name: &str, more: &[&str]| -> f64 {
        series(&bench.tune("mlp", name, &[&settings[..], more].concat()), "train", "loss")[0]
    };
    let plain = loss("plain", &[]);
    let none = loss("none", &["training.focal_gamma=0"]);
    let focal = loss("focal", &["training.focal_gamma=2"]);
    assert_eq!(plain, none);
    assert!(focal > 0.0 && focal < plain, "{focal} of {plain}");
    // With weights, both divide by the weights' sum: equal weights change nothing.
    let weighted = loss("weighted", &["training.focal_gamma=2", "training.class_weights=[2, 2, 2, 2]"]);
    assert!((weighted / focal - 1.0).abs() < 1e-6, "{weighted}, not {focal}");
}

/// Images with a bright left half, a bright upper half, both or neither, and a table of them.
fn several_labels(folder: &Path, file: &str) -> PathBuf {
    let mut noise = small_data::Noise::new(3);
    let mut rows = Vec::new();
    for number in 0..160usize {
        let (left, upper) = (number % 2 == 0, number / 2 % 2 == 0);
        let pixels = image::GrayImage::from_fn(14, 14, |x, y| {
            let light = 60 * (u8::from(left && x < 7) + u8::from(upper && y < 7));
            image::Luma([light + noise.below(60) as u8])
        });
        let name = format!("{number}.png");
        pixels.save(folder.join(&name)).unwrap();
        let labels: Vec<&str> = [("left", left), ("upper", upper)]
            .into_iter()
            .filter(|(_, holds)| *holds)
            .map(|(name, _)| name)
            .collect();
        let split = if number < 120 { "train" } else { "test" };
        rows.push((name, labels, split));
    }
    let table = folder.join(file);
    let text: String = match file.ends_with("jsonl") {
        true => rows
            .iter()
            .map(|(path, label, split)| {
                json!({"path": path, "label": label, "split": split}).to_string() + "\n"
            })
            .collect(),
        false => std::iter::once("path,label,split\n".to_owned())
            .chain(rows.iter().map(|(path, labels, split)| format!("{path},{},{split}\n", labels.join(";"))))
            .collect(),
    };
    std::fs::write(&table, text).unwrap();
    table
}

#[test]
fn an_image_may_have_several_labels() {
    let folder = Scratch::new();
    let trained: Vec<PathBuf> = ["list.csv", "list.jsonl"]
        .into_iter()
        .map(|file| {
            let table = several_labels(&folder, file);
            let run = folder.join(file.replace('.', "-"));
            let recipe = folder.join("recipe.json");
            let content = json!({
                "name": "labels",
                "model": {"name": "lenet5"},
                "data": {"path": table, "multi_label": true, "channels": 1, "mean": [0.3], "std": [0.25]},
                "training": {"epochs": 8, "batch_size": 16, "metric": "micro_f1", "threads": 1,
                             "optimizer": {"name": "adam", "lr": 0.003}},
            });
            std::fs::write(&recipe, content.to_string()).unwrap();
            let [recipe, out] = [&recipe, &run].map(|path| path.display().to_string());
            done(["train", "--quiet", "--recipe", &recipe, "--out", &out]);
            run
        })
        .collect();
    assert_eq!(results(&trained[0]).0, results(&trained[1]).0, "CSV and JSON lines give the same run");
    let test = read_json(&trained[0].join("summary.json"))["test"].clone();
    assert!(test["micro_f1"].as_f64().unwrap() > 0.95, "{test}");
    assert!(test["accuracy"].as_f64().unwrap() > 0.9, "{test}");
    assert!(trained[0].join("report.html").is_file());

    // Each label has a probability of its own.
    let run = trained[0].display().to_string();
    let both = folder.join("0.png").display().to_string();
    let neither = folder.join("3.png").display().to_string();
    let found = done(["predict", &run, &both, &neither, "--top-k", "2", "--format", "jsonl"]).stdout;
    let lines: Vec<Value> = found.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let probabilities = |line: &Value| -> Vec<f64> {
        line["top"].as_array().unwrap().iter().map(|label| label["probability"].as_f64().unwrap()).collect()
    };
    assert!(probabilities(&lines[0]).iter().all(|&p| p > 0.5), "{found}");
    assert!(probabilities(&lines[1]).iter().all(|&p| p < 0.5), "{found}");
}

#[test]
fn several_labels_need_their_setting_and_bear_no_class_weights() {
    let folder = Scratch::new();
    let table = several_labels(&folder, "list.csv").display().to_string();
    let jsonl = several_labels(&folder, "list.jsonl").display().to_string();
    let out = folder.join("run").display().to_string();
    let common = ["train", "--model", "lenet5", "--out", &out];
    let finished = run(&mut cnn(common.iter().chain(&["--data", &jsonl])));
    assert_refused(&finished, 2, &["line 1 has 2 labels", "data.multi_label=true"]);
    let with =
        ["--data", &table, "--set", "data.multi_label=true", "--set", "training.class_weights=balanced"];
    let finished = run(&mut cnn(common.iter().chain(&with)));
    assert_refused(&finished, 2, &["training.class_weights is for images with one label"]);
}

#[test]
fn calibration_makes_probabilities_true() {
    let folder = Scratch::new();
    let data = folder.join("data");
    small_data::write(&data, 200, 80);
    // Some labels are wrong, so that no confidence is wholly justified.
    let mut noise = small_data::Noise::new(9);
    let labels: Vec<u8> = small_data::even_labels(200)
        .into_iter()
        .map(|label| if noise.below(4) == 0 { noise.below(4) as u8 } else { label })
        .collect();
    let wrong = small_data::idx(small_data::LABELS, &[labels.len()], &labels);
    std::fs::write(data.join("train-labels-idx1-ubyte"), wrong).unwrap();
    let run = folder.join("run");
    train("mlp", &data, &run, &["training.epochs=3", "data.val_fraction=0.4"]);
    let name = run.display().to_string();
    let image = folder.join("image.png");
    image::GrayImage::from_fn(14, 14, |x, _| image::Luma([if x < 7 { 90 } else { 40 }]))
        .save(&image)
        .unwrap();
    let image = image.display().to_string();
    let evaluation = |split: &str| -> Value {
        let text = done(["eval", &name, "--split", split, "--format", "json"]).stdout;
        serde_json::from_str::<Value>(&text).unwrap()["metrics"].clone()
    };
    let probability = || -> f64 {
        let text = done(["predict", &name, &image, "--format", "jsonl"]).stdout;
        serde_json::from_str::<Value>(&text).unwrap()["probability"].as_f64().unwrap()
    };
    let (before, first) = (evaluation("validation"), probability());
    done(["calibrate", &name]);
    let calibration = read_json(&run.join("calibration.json"));
    let number = |value: &Value| value.as_f64().unwrap();
    assert!(number(&calibration["loss"][1]) <= number(&calibration["loss"][0]), "{calibration}");
    assert!((number(&calibration["loss"][0]) - number(&before["loss"])).abs() < 1e-5);
    assert!((number(&calibration["ece"][0]) - number(&before["ece"])).abs() < 1e-5);
    let after = evaluation("validation");
    assert!((number(&calibration["loss"][1]) - number(&after["loss"])).abs() < 1e-5);
    assert!((number(&calibration["ece"][1]) - number(&after["ece"])).abs() < 1e-5);
    assert_eq!(before["accuracy"], after["accuracy"], "the order of the classes stays");
    let temperature = number(&calibration["temperature"]);
    let second = probability();
    assert_eq!(temperature > 1.0, second < first, "temperature {temperature}: {first} to {second}");
    // Once more changes nothing: it is fitted on the plain logits.
    done(["calibrate", &name]);
    assert_eq!(read_json(&run.join("calibration.json")), calibration);
}
