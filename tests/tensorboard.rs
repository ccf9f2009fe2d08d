//! What trainings write for TensorBoard. Its own reader is asked by `scripts/references/check_tensorboard.py`.

use std::path::Path;

use crate::support::process::assert_refused;
use crate::support::runs::{assert_same_files, checkpoints, results, resume, train, try_train};
use crate::support::{Scratch, small_data};

/// The content of all event files of a run, which has every tag as text.
fn events(run: &Path) -> String {
    let mut content = Vec::new();
    for entry in std::fs::read_dir(run).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_string_lossy().starts_with("events.out.tfevents.") {
            content.extend(std::fs::read(path).unwrap());
        }
    }
    String::from_utf8_lossy(&content).into_owned()
}

fn count(run: &Path, tag: &str) -> usize {
    events(run).matches(tag).count()
}

#[test]
fn histograms_come_when_asked_for_and_change_nothing_else() {
    let folder = Scratch::new();
    let (data, plain, shown) = (folder.join("data"), folder.join("plain"), folder.join("shown"));
    small_data::write(&data, 120, 40);
    // Five steps an epoch; frozen parameters are not shown.
    let settings = ["training.epochs=2", "data.val_fraction=0.4", r#"training.freeze=["conv1"]"#];
    train("lenet5", &data, &plain, &settings);
    let asked = "training.histograms_every=3";
    train("lenet5", &data, &shown, &[&settings[..], &[asked]].concat());
    assert_same_files(&checkpoints(&shown), &checkpoints(&plain), "with histograms");
    assert_eq!(results(&shown), results(&plain));
    // After steps 3, 6 and 9.
    for tag in ["weights/conv2.weight", "gradients/conv2.weight", "weights/fc3.bias", "gradients/fc3.bias"] {
        assert_eq!((count(&plain, tag), count(&shown, tag)), (0, 3), "{tag}");
    }
    assert_eq!(count(&shown, "weights/conv1"), 0);
    // They may be asked for later.
    resume(&plain, &["--epochs", "3", "--histograms-every", "5"]);
    assert_eq!(count(&plain, "gradients/conv2.weight"), 1);
    let refused = try_train("lenet5", &data, &folder.join("none"), &["training.histograms_every=0"]);
    assert_refused(&refused, 2, &["training.histograms_every", "at least 1"]);
}

#[test]
fn examples_are_shown_with_their_predictions() {
    let folder = Scratch::new();
    let (data, run, none) = (folder.join("data"), folder.join("run"), folder.join("none"));
    small_data::write(&data, 120, 40);
    train("lenet5", &data, &run, &["training.epochs=2"]);
    let found =
        ["examples/validation", "predictions/validation", "examples/test", "predictions/test", "loss/test"];
    assert_eq!(found.map(|tag| count(&run, tag)), [2, 2, 1, 1, 1]);
    // 14 pixels and a frame of one on each side, eight of them at each of three evaluations.
    assert_eq!(count(&run, "IHDR\0\0\0\u{10}\0\0\0\u{10}"), 24);
    // Another end takes the place of the first.
    resume(&run, &["--epochs", "3"]);
    assert_eq!(found.map(|tag| count(&run, tag)), [3, 3, 1, 1, 1]);
    resume(&run, &[]);
    assert_eq!(found.map(|tag| count(&run, tag)), [3, 3, 1, 1, 1]);
    train("lenet5", &data, &none, &["training.epochs=1", "training.examples=0"]);
    assert_eq!(found.map(|tag| count(&none, tag)), [0, 0, 0, 0, 1]);
    assert_eq!(count(&none, "IHDR"), 0);
}
