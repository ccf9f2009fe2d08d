//! SIGINT and SIGTERM: the first lets the step end and saves, the second ends the program.

use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use crate::support::Scratch;
use crate::support::process::{assert_refused, cnn, done, finish, signal, start, wait_until};
use crate::support::runs::{
    assert_same_files, checkpoints, metrics, read_json, results, resume, series, train, train_arguments,
};
use crate::support::small_data;

/// Lines that are further apart than steps, so that a save comes in between, with sums that a line is still to be made of.
const LOG_EVERY: u64 = 4;

const SETTINGS: [&str; 6] = [
    "training.epochs=6",
    "training.save_every=7",
    "training.keep=2",
    "training.log_every=4",
    "model.dropout=0.2",
    "training.ema=0.9",
];

fn steps(run: &Path) -> usize {
    metrics(run).len()
}

fn interrupt_and_resume(name: &str) {
    let folder = Scratch::new();
    let data = folder.join("data");
    small_data::write(&data, 400, 40);
    let (undisturbed, run) = (folder.join("undisturbed"), folder.join("run"));
    train("lenet5", &data, &undisturbed, &SETTINGS);

    let mut interruptions = 0;
    let mut arguments = train_arguments("lenet5", &data, &run, &SETTINGS);
    for wanted in [1, 8, 20] {
        let mut child = start(&mut cnn(&arguments));
        if !wait_until(&mut child, || steps(&run) >= wanted) {
            break;
        }
        signal(&child, name);
        let finished = finish(child);
        if finished.code == Some(0) {
            break;
        }
        assert_refused(&finished, 130, &["--resume", &run.display().to_string()]);
        // Everything up to the latest step is saved.
        let saved = read_json(&run.join("checkpoints/last/state.json"))["progress"]["step"].as_u64().unwrap();
        let logged = series(&run, "train", "step").last().map_or(0, |&step| step as u64);
        assert!((logged..logged + LOG_EVERY).contains(&saved), "step {saved} saved, step {logged} logged");
        interruptions += 1;
        arguments = ["train", "--quiet", "--resume", &run.display().to_string()].map(str::to_owned).to_vec();
    }
    assert!(interruptions > 0, "it was never interrupted");
    done(&arguments);
    assert_same_files(&checkpoints(&run), &checkpoints(&undisturbed), name);
    assert_eq!(results(&run), results(&undisturbed));
}

#[test]
fn sigint_saves_and_the_run_goes_on_to_the_same_end() {
    interrupt_and_resume("INT");
}

#[test]
fn sigterm_saves_and_the_run_goes_on_to_the_same_end() {
    interrupt_and_resume("TERM");
}

/// A run whose first step takes seconds: it accumulates a whole epoch of the compiled-in set.
fn start_long_step(run: &Path) -> Child {
    let path = run.display().to_string();
    let accumulate = ["--accumulate", "100000", "--epochs", "1", "--threads", "1", "--no-progress"];
    let mut child = start(&mut cnn(["train", "--out", &path].iter().chain(&accumulate)));
    let began = || std::fs::read_to_string(run.join("log.txt")).is_ok_and(|log| log.contains("parameters"));
    assert!(wait_until(&mut child, began));
    child
}

#[test]
fn a_second_signal_ends_the_program_at_once() {
    let folder = Scratch::new();
    for (first, second) in [("INT", "INT"), ("TERM", "INT")] {
        let run = folder.join(first);
        let child = start_long_step(&run);
        signal(&child, first);
        std::thread::sleep(Duration::from_millis(50));
        let sent = Instant::now();
        signal(&child, second);
        let finished = finish(child);
        assert_eq!(finished.code, Some(130), "{}", finished.stderr);
        // The step was not waited for: nothing of it is on disk.
        assert_eq!(steps(&run), 0, "after {:?}", sent.elapsed());
        assert!(checkpoints(&run).is_empty());
    }
}

#[test]
fn an_interrupted_last_evaluation_is_made_up_for() {
    let folder = Scratch::new();
    let (data, run) = (folder.join("data"), folder.join("run"));
    // No test part: the validation part is looked at once more in the end.
    small_data::write(&data, 1600, 0);
    let settings = ["training.steps=2", "training.eval_batch_size=1", "data.val_fraction=0.9"];
    let mut child = start(&mut cnn(train_arguments("lenet5", &data, &run, &settings)));
    assert!(wait_until(&mut child, || steps(&run) == 2));
    signal(&child, "INT");
    let finished = finish(child);
    assert_refused(&finished, 130, &["--resume"]);
    assert!(!run.join("summary.json").exists());
    resume(&run, &[]);
    let undisturbed = folder.join("undisturbed");
    train("lenet5", &data, &undisturbed, &settings);
    assert_eq!(results(&run), results(&undisturbed));
    assert_same_files(&checkpoints(&run), &checkpoints(&undisturbed), "interrupted while evaluating");
}
