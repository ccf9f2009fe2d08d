//! What users get wrong: one sentence that says what and where, exit code 2 (1 where the machine failed), and nothing lost.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::process::{Finished, assert_refused, cnn, finish, run, start, wait_until};
use crate::support::runs::{
    assert_same_files, checkpoints, files, metrics, read_json, resume, train, train_arguments, try_train,
};
use crate::support::small_data::{self, IMAGES, LABELS, idx};
use crate::support::{Scratch, skipped};

/// A folder with a small data set and the paths that tests need.
struct Place {
    folder: Scratch,
    data: PathBuf,
    run: PathBuf,
}

impl Place {
    fn new() -> Place {
        let folder = Scratch::new();
        let (data, run) = (folder.join("data"), folder.join("run"));
        small_data::write(&data, 80, 20);
        Place { folder, data, run }
    }

    /// With a short finished run.
    fn with_run(model: &str) -> Place {
        let place = Place::new();
        train(model, &place.data, &place.run, &["training.epochs=1"]);
        place
    }

    /// Training with these settings must be refused before there is a run folder.
    fn refuses(&self, settings: &[&str], words: &[&str]) {
        let refused = try_train("lenet5", &self.data, &self.run, settings);
        assert_refused(&refused, 2, words);
        assert!(!self.run.exists(), "{settings:?} leaves a run folder");
    }

    /// `cnn train --quiet` with these arguments and `--out`.
    fn train_with(&self, arguments: &[&str]) -> Finished {
        let out = self.run.display().to_string();
        run(&mut cnn(["train", "--quiet", "--out", &out].iter().chain(arguments)))
    }

    fn on_run(&self, verb: &str, more: &[&str]) -> Finished {
        let path = self.run.display().to_string();
        run(&mut cnn([verb, &path].iter().chain(more)))
    }

    fn resumed(&self) -> Finished {
        run(&mut cnn(["train", "--quiet", "--resume", &self.run.display().to_string()]))
    }

    fn checkpoint(&self, file: &str) -> PathBuf {
        self.run.join("checkpoints/last").join(file)
    }
}

#[test]
fn unknown_keys_are_named_with_the_nearest() {
    let place = Place::new();
    let path = place.folder.join("recipe.json");
    for (section, key, words) in [
        ("training", "epoch", ["training.epoch", "did you mean `epochs`?"]),
        ("data", "val_fractoin", ["data.val_fractoin", "did you mean `val_fraction`?"]),
        ("model", "droput", ["model.droput", "did you mean `dropout`?"]),
    ] {
        let mut recipe =
            json!({"name": "r", "model": {"name": "mlp"}, "data": {"format": "mnist-mini"}, "training": {}});
        recipe[section][key] = json!(1);
        std::fs::write(&path, recipe.to_string()).unwrap();
        let name = path.display().to_string();
        assert_refused(&place.train_with(&["--recipe", &name]), 2, &[&[name.as_str()][..], &words].concat());
    }
    std::fs::write(&path, "{\"name\": ").unwrap();
    let name = path.display().to_string();
    assert_refused(&place.train_with(&["--recipe", &name]), 2, &[&name, "not valid JSON", "line 1"]);
    place.refuses(&["training.optimizer.momentun=0.9"], &["momentun", "`momentum`"]);
    place.refuses(&["trainign.epochs=1"], &["`trainign`", "`training`"]);
    assert!(!place.run.exists());
}

#[test]
fn impossible_values_are_named() {
    let place = Place::new();
    for (setting, words) in [
        ("training.epochs=0", ["training.epochs", "at least 1"]),
        ("training.batch_size=-3", ["training.batch_size", "-3"]),
        ("training.accumulate=0", ["training.accumulate", "at least 1"]),
        ("training.epochs=many", ["training.epochs", "many"]),
        ("training.optimizer.lr=-0.1", ["training.optimizer.lr", "-0.1"]),
        ("training.optimizer.momentum=-1", ["training.optimizer.momentum", "-1"]),
        (
            "training.optimizer={\"name\": \"adam\", \"betas\": [0.9, 1.0]}",
            ["training.optimizer.betas", "below 1"],
        ),
        ("training.optimizer.nesterov=1", ["training.optimizer", "expected a boolean"]),
        ("training.warmup=2.5", ["training.warmup", "2.5"]),
        ("training.clip_norm=0", ["training.clip_norm", "above 0"]),
        ("training.label_smoothing=1", ["training.label_smoothing", "below 1"]),
        ("training.ema=1.5", ["training.ema", "below 1"]),
        ("training.seed=-1", ["training.seed", "-1"]),
        ("training.class_weights=[1, -1, 1, 1]", ["training.class_weights", "negative"]),
        ("training.class_weights=[1, 2]", ["training.class_weights", "2 values for 4 classes"]),
        ("training.schedule={\"name\": \"step\", \"size\": 0}", ["training.schedule.size", "above 0"]),
        ("training.schedule={\"name\": \"step\"}", ["training.schedule", "`size`"]),
        ("training.freeze=[\"nothing\"]", ["training.freeze", "`nothing`"]),
        ("training.freeze=[\".\"]", ["training.freeze", "no parameter to train"]),
        ("training.groups=[{\"pattern\": \"nothing\"}]", ["training.groups", "`nothing`"]),
        ("training.device=tpu", ["--device tpu", "cuda"]),
        ("training.precision=fp8", ["training.precision", "`fp8`"]),
        ("model.dropout=1", ["model.dropout", "below 1"]),
        ("model.num_classes=0", ["model.num_classes", "at least 1"]),
        ("model.in_channels=3", ["model.in_channels", "1 channel"]),
        ("model.image_size=[28, 28]", ["28", "14"]),
        ("data.val_fraction=1", ["data.val_fraction", "below 1"]),
        ("data.std=[0]", ["data.std", "above 0"]),
        ("data.mean=[0.1, 0.2]", ["data.mean", "2 values"]),
    ] {
        place.refuses(&[setting], &words);
    }
}

#[test]
fn unknown_names_are_answered_with_the_nearest() {
    let place = Place::new();
    let recipe = place.train_with(&["--recipe", "lenet5-mnst"]);
    assert_refused(&recipe, 2, &["no recipe `lenet5-mnst`", "did you mean `lenet5-mnist`?"]);
    place.refuses(&["model.name=lenet6"], &["`lenet6`", "did you mean `lenet5`?"]);
    place.refuses(&["training.optimizer.name=sgdd"], &["`sgdd`", "did you mean `sgd`?"]);
    place.refuses(&["training.schedule.name=cosin"], &["`cosin`", "did you mean `cosine`?"]);
    place
        .refuses(&["training.metric=acuracy"], &["training.metric", "`acuracy`", "did you mean `accuracy`?"]);
    place.refuses(&["data.format=idxx"], &["data.format", "`idxx`", "`idx`"]);
    let setting = place.train_with(&["--set", "training.epochs"]);
    assert_refused(&setting, 2, &["--set training.epochs", "key=value"]);
    assert!(!place.run.exists());
}

#[test]
fn damaged_image_files_are_refused() {
    let place = Place::new();
    let images = place.data.join("train-images-idx3-ubyte");
    let labels = place.data.join("train-labels-idx1-ubyte");
    let (whole_images, whole_labels) = (std::fs::read(&images).unwrap(), std::fs::read(&labels).unwrap());
    let name = |path: &Path| path.display().to_string();
    let with = |path: &Path, content: &[u8], words: &[&str]| {
        let before = std::fs::read(path).unwrap();
        std::fs::write(path, content).unwrap();
        place.refuses(&[], &[&[name(path).as_str()][..], words].concat());
        std::fs::write(path, before).unwrap();
    };
    with(&images, &whole_images[..whole_images.len() - 1], &["truncated", "80 × 14 × 14"]);
    with(&images, &whole_images[..10], &["ends in its header"]);
    with(&images, b"", &["too short"]);
    with(&images, &whole_labels, &["begins with 2049, not 2051"]);
    with(&labels, &whole_images, &["begins with 2051, not 2049"]);
    with(&labels, &idx(LABELS, &[79], &[0; 79]), &[&name(&images), "80 images", "79 labels"]);
    with(&images, &idx(IMAGES, &[0, 14, 14], &[]), &["no images"]);
    let zipped = [0x1f, 0x8b, 8, 0, 1, 2, 3];
    with(&images, &zipped, &["damaged gzip"]);

    std::fs::write(&labels, idx(LABELS, &[80], &[[0u8; 79].as_slice(), &[4]].concat())).unwrap();
    place.refuses(&[], &[&name(&labels), "79", "label 4", "0..3"]);

    std::fs::remove_file(&labels).unwrap();
    std::fs::write(place.data.join("t10k-labels-idx1-ubyte"), idx(LABELS, &[1], &[0])).unwrap();
    place.refuses(&[], &[&name(&place.data), "train"]);
}

#[test]
fn images_too_small_for_the_network_are_refused() {
    let place = Place::new();
    small_data::write_part(&place.data, "train", &small_data::even_labels(20), 8, 1);
    std::fs::remove_file(place.data.join("t10k-images-idx3-ubyte")).unwrap();
    std::fs::remove_file(place.data.join("t10k-labels-idx1-ubyte")).unwrap();
    place.refuses(&[], &["8 × 8", "too small for lenet5", "12 × 12"]);
}

#[test]
fn parts_of_different_size_are_refused() {
    let place = Place::new();
    small_data::write_part(&place.data, "t10k", &small_data::even_labels(20), 20, 1);
    place.refuses(&[], &["14", "20"]);
}

#[test]
fn missing_data_are_named() {
    let place = Place::new();
    let missing = place.folder.join("nowhere").display().to_string();
    assert_refused(&place.train_with(&["--data", &missing]), 2, &[&missing, "does not exist"]);
    let empty = place.folder.join("empty");
    std::fs::create_dir(&empty).unwrap();
    let empty = empty.display().to_string();
    assert_refused(&place.train_with(&["--data", &empty]), 2, &[&empty, "no images"]);
    assert_refused(&place.train_with(&["--recipe", "lenet5-mnist"]), 2, &["--data"]);
    assert!(!place.run.exists());
}

#[test]
fn a_run_folder_that_exists_is_left_alone() {
    let place = Place::with_run("lenet5");
    let before = files(&place.run);
    let refused = try_train("lenet5", &place.data, &place.run, &[]);
    assert_refused(&refused, 2, &[&place.run.display().to_string(), "exists already", "--resume"]);
    assert_same_files(&files(&place.run), &before, "refused");
    // Any folder with something in it.
    let other = place.folder.join("other");
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("notes.txt"), "mine").unwrap();
    assert_refused(&try_train("lenet5", &place.data, &other, &[]), 2, &["exists already"]);
    assert_eq!(files(&other).len(), 1);
}

#[test]
fn a_run_folder_in_use_is_refused() {
    let place = Place::new();
    let settings = ["training.epochs=100000", "training.log_every=1"];
    let mut child = start(&mut cnn(train_arguments("lenet5", &place.data, &place.run, &settings)));
    let saved = place.checkpoint("state.json");
    assert!(wait_until(&mut child, || saved.exists()));
    let refused = place.resumed();
    let looked_at = place.on_run("eval", &["--format", "json"]);
    child.kill().unwrap();
    finish(child);
    assert_refused(&refused, 2, &[&place.run.display().to_string(), "in use by another process"]);
    // Reading beside the run that is writing is fine.
    assert_eq!(looked_at.code, Some(0), "{}", looked_at.stderr);
}

#[test]
fn a_checkpoint_of_another_model_is_refused() {
    let place = Place::with_run("lenet5");
    let other = Place::with_run("mlp");
    let copy = |file: &str| std::fs::copy(other.checkpoint(file), place.checkpoint(file)).unwrap();
    // `best` may share the files of `last`, which is replaced here, not written over.
    std::fs::remove_file(place.checkpoint("model.safetensors")).unwrap();
    copy("model.safetensors");
    let words = ["model.safetensors", "does not fit this model", "conv1.weight"];
    assert_refused(&place.on_run("eval", &["--checkpoint", "last", "--format", "json"]), 2, &words);
    assert_refused(&place.resumed(), 2, &words);
    let wider = Place::with_run("mlp");
    let refused = try_train("lenet5", &place.data, &place.folder.join("new"), &[&init_from(&wider.run)]);
    assert_refused(&refused, 2, &["model.safetensors", "does not fit", "conv1.weight"]);
    assert!(!place.folder.join("new").exists());
}

fn init_from(path: &Path) -> String {
    format!("training.init_from={}", path.display())
}

#[test]
fn an_optimizer_state_of_another_run_is_refused() {
    let place = Place::with_run("lenet5");
    let other = Place::new();
    let adam = "training.optimizer={\"name\": \"adam\"}";
    train("lenet5", &other.data, &other.run, &["training.epochs=1", adam]);
    let file = "optimizer.safetensors";
    std::fs::remove_file(place.checkpoint(file)).unwrap();
    std::fs::copy(other.checkpoint(file), place.checkpoint(file)).unwrap();
    assert_refused(&place.resumed(), 2, &["the optimizer's state lacks `momentum_buffer.conv1.bias`"]);
}

#[test]
fn a_checkpoint_of_another_format_is_refused() {
    let place = Place::with_run("lenet5");
    let path = place.checkpoint("state.json");
    let mut state = read_json(&path);
    state["format"] = json!(99);
    replace(&path, state.to_string().as_bytes());
    assert_refused(&place.resumed(), 2, &["state.json", "format 99", "format 1"]);
    state["format"] = Value::Null;
    replace(&path, state.to_string().as_bytes());
    assert_refused(&place.resumed(), 2, &["state.json", "no `format`"]);
    state["format"] = json!(1);
    state["progress"]["stepp"] = json!(4);
    replace(&path, state.to_string().as_bytes());
    assert_refused(&place.resumed(), 2, &["state.json", "`stepp`", "did you mean `step`?"]);
}

/// Writes a file anew, so that another name of it keeps the old content.
fn replace(path: &Path, content: &[u8]) {
    std::fs::remove_file(path).unwrap();
    std::fs::write(path, content).unwrap();
}

#[test]
fn missing_and_truncated_checkpoint_files_are_refused() {
    let place = Place::with_run("lenet5");
    for file in ["model.safetensors", "optimizer.safetensors", "state.json"] {
        let path = place.checkpoint(file);
        let whole = std::fs::read(&path).unwrap();
        replace(&path, &whole[..whole.len() / 2]);
        assert_refused(&place.resumed(), 2, &[&path.display().to_string()]);
        std::fs::remove_file(&path).unwrap();
        assert_refused(&place.resumed(), 2, &[&path.display().to_string(), "does not exist"]);
        std::fs::write(&path, whole).unwrap();
    }
    // Whole again, it goes on.
    resume(&place.run, &["--epochs", "2"]);
}

#[test]
fn what_is_no_run_is_refused() {
    let place = Place::new();
    let none = place.run.display().to_string();
    assert_refused(&place.resumed(), 2, &[&none, "no run folder"]);
    for verb in ["eval", "info"] {
        assert_refused(&place.on_run(verb, &[]), 2, &[&none]);
    }
    let data = place.data.display().to_string();
    assert_refused(&run(&mut cnn(["eval", &data])), 2, &[&data, "no run folder", "recipe.json"]);
    let begun = Place::with_run("lenet5");
    std::fs::remove_dir_all(begun.run.join("checkpoints/best")).unwrap();
    std::fs::remove_dir_all(begun.run.join("checkpoints/last")).unwrap();
    assert_refused(&begun.on_run("eval", &[]), 2, &["no checkpoint yet"]);
    assert_refused(&begun.on_run("eval", &["--checkpoint", "step-7"]), 2, &["no checkpoint `step-7`"]);
}

#[test]
fn a_part_that_the_data_lack_is_refused() {
    let place = Place::new();
    small_data::write(&place.folder.join("no-test"), 40, 0);
    train("mlp", &place.folder.join("no-test"), &place.run, &["training.steps=1", "data.val_fraction=0"]);
    assert_refused(&place.on_run("eval", &["--split", "test"]), 2, &["no test part", "--split"]);
    assert_refused(&place.on_run("eval", &[]), 2, &["no validation part", "--split"]);
}

#[test]
fn cuda_without_a_gpu_is_refused() {
    if tch::Cuda::is_available() {
        skipped("this machine has a GPU");
        return;
    }
    let place = Place::new();
    assert_refused(&place.train_with(&["--device", "cuda"]), 2, &["--device cuda cannot be used"]);
    assert_refused(&place.train_with(&["--device", "cuda:1"]), 2, &["--device cuda:1 cannot be used"]);
    assert_refused(&place.train_with(&["--device", "cuda:x"]), 2, &["--device cuda:x", "cuda:N"]);
    assert!(!place.run.exists());
}

#[test]
fn a_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint_before() {
    let place = Place::new();
    // A rate that grows: some steps are good, and one then overflows.
    let schedule = "training.schedule={\"name\": \"exponential\", \"gamma\": 1e6, \"per\": \"step\"}";
    let settings =
        [schedule, "training.optimizer={\"name\": \"sgd\", \"lr\": 1e-6}", "training.save_every=1"];
    let ended = try_train("lenet5", &place.data, &place.run, &settings);
    let bad_step = metrics(&place.run).len() as u64 + 1;
    let step = format!("in step {bad_step} ");
    assert_refused(&ended, 1, &["infinite or NaN", &step, "image", "--clip-norm"]);
    assert!((2..20).contains(&bad_step), "{bad_step}");
    let saved = read_json(&place.checkpoint("state.json"))["progress"]["step"].as_u64();
    assert_eq!(saved, Some(bad_step - 1));
    let evaluated = place.on_run("eval", &["--checkpoint", "last", "--format", "json"]);
    assert_eq!(evaluated.code, Some(0), "{}", evaluated.stderr);
    // Going on from there meets the same step again, and says the same.
    let again = place.resumed();
    assert_eq!((again.code, &again.stderr), (Some(1), &ended.stderr));
}

#[test]
fn a_loss_that_is_not_finite_is_found_without_a_line_being_logged() {
    let place = Place::new();
    let settings = ["training.optimizer.lr=1e30", "training.log_every=1000", "training.epochs=2"];
    let ended = try_train("lenet5", &place.data, &place.run, &settings);
    assert_refused(&ended, 1, &["in step 2 ", "image"]);
    assert!(checkpoints(&place.run).is_empty(), "nothing that came of it is saved");
}

#[test]
fn an_evaluation_that_is_not_finite_leaves_a_checkpoint_that_can_be_read() {
    let place = Place::new();
    // The first step is good, and its weights are too large for the evaluation after it.
    let settings = ["training.optimizer.lr=1e30", "training.steps=1", "training.metric=loss"];
    train("lenet5", &place.data, &place.run, &settings);
    let evaluated =
        read_json(&place.checkpoint("state.json"))["progress"]["latest"]["metrics"]["loss"].clone();
    assert_eq!(evaluated, Value::Null);
    let before = checkpoints(&place.run);
    resume(&place.run, &[]);
    assert_same_files(&checkpoints(&place.run), &before, "resumed");
    assert_eq!(place.on_run("info", &[]).code, Some(0));
}

#[test]
fn weights_to_start_from_must_exist_and_fit() {
    let place = Place::new();
    let missing = place.folder.join("nothing.safetensors");
    place.refuses(&[&init_from(&missing)], &[&missing.display().to_string(), "does not exist"]);
    let text = place.folder.join("text.safetensors");
    std::fs::write(&text, "no weights").unwrap();
    place.refuses(&[&init_from(&text)], &[&text.display().to_string(), "no weight file"]);
}

#[test]
fn what_cannot_be_predicted_is_named() {
    let place = Place::with_run("lenet5");
    let text = place.folder.join("text.png");
    std::fs::write(&text, "no image").unwrap();
    let text = text.display().to_string();
    assert_refused(&place.on_run("predict", &[&text]), 2, &[&text, "image"]);
    let missing = place.folder.join("missing.png").display().to_string();
    assert_refused(&place.on_run("predict", &[&missing]), 2, &[&missing, "does not exist"]);
    let empty = place.folder.join("empty");
    std::fs::create_dir(&empty).unwrap();
    assert_refused(&place.on_run("predict", &[&empty.display().to_string()]), 2, &["nothing to predict"]);
    assert_refused(&place.on_run("predict", &["--top-k", "0", &text]), 2, &["--top-k"]);
}

#[test]
fn an_export_overwrites_nothing() {
    let place = Place::with_run("lenet5");
    let target = place.folder.join("model.pt");
    std::fs::write(&target, "mine").unwrap();
    let out = target.display().to_string();
    for format in ["torchscript", "safetensors"] {
        let refused = place.on_run("export", &["--format", format, "--out", &out]);
        assert_refused(&refused, 2, &[&out, "exists already"]);
    }
    assert_eq!(std::fs::read(&target).unwrap(), b"mine");
    let nowhere = place.folder.join("nowhere/model.pt").display().to_string();
    let refused = place.on_run("export", &["--format", "torchscript", "--out", &nowhere]);
    assert_refused(&refused, 2, &[&nowhere, "no folder"]);
}

#[test]
fn info_of_what_is_no_weights_file_is_refused() {
    let place = Place::new();
    let text = place.folder.join("text.safetensors");
    std::fs::write(&text, "no weights").unwrap();
    let text = text.display().to_string();
    assert_refused(&run(&mut cnn(["info", &text])), 2, &[&text, "no weight file"]);
    assert_refused(&run(&mut cnn(["info", "--model", "lenet"])), 2, &["`lenet`", "did you mean `lenet5`?"]);
    assert_refused(&run(&mut cnn(["recipes", "nothing-like-it"])), 2, &["no recipe `nothing-like-it`"]);
}
