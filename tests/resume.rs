//! A run that is killed, as often and whenever, ends as if nothing had happened: same files to the byte, every metric once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::Scratch;
use crate::support::process::{assert_refused, cnn, done, run, wait_until};
use crate::support::runs::{
    assert_same_files, checkpoints, files, metrics, read_json, results, resume, series, train,
    train_arguments,
};
use crate::support::small_data::{self, Noise};

const SAVE_EVERY: u64 = 9;
const EVAL_EVERY: u64 = 8;

/// A kind of training whose state has parts of its own.
struct Case {
    name: &'static str,
    model: &'static str,
    settings: &'static [&'static str],
    /// When it is killed in the everyday test.
    moments: &'static [Moment],
}

/// When a run is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Moment {
    /// After some steps, with no checkpoint yet.
    BeforeFirstSave,
    /// While a checkpoint folder is filled or put in place.
    DuringSave,
    /// After the step before an evaluation, before its result is written.
    DuringEvaluation,
    /// Any time after the first step of the process.
    Random,
    /// Soon after the start: the second of two kills running, often before the first step.
    AtOnce,
    /// After the last step but one.
    LastStep,
    /// With all steps done and saved, before the summary.
    AfterLastSave,
}

use Moment::*;

const CASES: [Case; 9] = [
    Case {
        name: "momentum and dropout",
        model: "lenet5",
        settings: &["model.dropout=0.2", "training.threads=2"],
        moments: &[BeforeFirstSave, DuringSave, DuringEvaluation, LastStep],
    },
    Case {
        // A threshold that no evaluation passes, so that the plateau's count moves each time.
        name: "averaged weights, plateau",
        model: "lenet5",
        settings: &[
            "training.ema=0.9",
            "model.dropout=0.1",
            r#"training.schedule={"name": "plateau", "patience": 1, "factor": 0.7, "threshold": 0.5}"#,
        ],
        moments: &[DuringSave, AtOnce, LastStep],
    },
    Case {
        // 14 batches to an epoch: four steps of three and one of two.
        name: "accumulation with a ragged end of the epoch",
        model: "lenet5",
        settings: &[
            "training.accumulate=3",
            "training.epochs=8",
            "model.dropout=0.2",
            r#"data.augment={"crop_padding": 1, "flip": true}"#,
        ],
        moments: &[Random, DuringEvaluation, LastStep],
    },
    Case {
        name: "bfloat16",
        model: "lenet5",
        settings: &["training.precision=bf16", "model.dropout=0.2", "training.threads=2"],
        moments: &[Random, LastStep, AfterLastSave],
    },
    Case {
        name: "float16 with loss scaling",
        model: "lenet5",
        settings: &["training.precision=fp16", "training.class_weights=[1, 2, 0.5, 1]"],
        moments: &[DuringSave, LastStep],
    },
    Case {
        name: "batch normalisation, averaged weights",
        model: "resnet20",
        settings: &["training.ema=0.9", "training.eval_batch_size=10"],
        moments: &[Random, LastStep],
    },
    Case {
        name: "ResNet-20, augmentation, averaged weights",
        model: "resnet20",
        settings: &[
            "training.ema=0.9",
            "training.eval_batch_size=10",
            "training.threads=2",
            "training.histograms_every=5",
            r#"data.augment={"crop_padding": 2, "flip": true}"#,
        ],
        moments: &[DuringSave, Random, LastStep],
    },
    Case {
        name: "every variation, mixing, repeats",
        model: "resnet20",
        settings: &[
            "training.repeats=2",
            "training.workers=2",
            "training.class_weights=[1, 2, 0.5, 1]",
            "training.label_smoothing=0.1",
            r#"data.augment={"resized_crop": {}, "flip": true, "vertical_flip": true, "rotation": 15, "lookup": "bilinear",
                "affine": {"degrees": 5, "translate": [0.1, 0.1], "scale": [0.8, 1.2], "shear": [5, 5]}, "policy": {"name": "rand-augment"},
                "color_jitter": {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.1, "probability": 0.8}, "grayscale": 0.1,
                "blur": {"probability": 0.5}, "erasing": {"fill": "random"}, "mixup": 0.2, "cutmix": 1}"#,
        ],
        moments: &[DuringSave, Random, LastStep],
    },
    Case {
        name: "adam, cosine, warm-up, clipping",
        model: "lenet5",
        settings: &[
            r#"training.optimizer={"name": "adam", "lr": 0.01, "weight_decay": 0.01}"#,
            r#"training.schedule={"name": "cosine"}"#,
            "training.warmup=0.2",
            "training.clip_norm=1.0",
            "training.label_smoothing=0.1",
            "model.dropout=0.2",
        ],
        moments: &[AtOnce, LastStep, AfterLastSave],
    },
];

/// Every moment, in an order in which each can still come.
const ALL_MOMENTS: [Moment; 11] = [
    BeforeFirstSave,
    AtOnce,
    Random,
    DuringSave,
    AtOnce,
    DuringEvaluation,
    DuringSave,
    AtOnce,
    LastStep,
    AfterLastSave,
    AtOnce,
];

/// One kind of training with its data and its undisturbed run.
struct Subject<'a> {
    case: &'a Case,
    folder: Scratch,
    undisturbed: PathBuf,
    total: u64,
}

impl<'a> Subject<'a> {
    fn new(case: &'a Case) -> Subject<'a> {
        let folder = Scratch::new();
        small_data::write(&folder.join("data"), 300, 60);
        let undisturbed = folder.join("undisturbed");
        let mut subject = Subject { case, folder, undisturbed, total: 0 };
        done(subject.arguments(&subject.undisturbed));
        subject.total = series(&subject.undisturbed, "train", "step").len() as u64;
        subject.assert_complete();
        subject
    }

    /// Few, frequent saves, slow evaluations (one sample at a time), and numbered checkpoints, which must be the same in the end as well.
    fn arguments(&self, out: &Path) -> Vec<String> {
        let (save_every, eval_every) =
            (format!("training.save_every={SAVE_EVERY}"), format!("training.eval_every={EVAL_EVERY}"));
        let common = [
            "training.epochs=3",
            "training.eval_batch_size=1",
            "training.keep=2",
            "data.val_fraction=0.3",
            &save_every,
            &eval_every,
        ];
        let settings: Vec<&str> = common.into_iter().chain(self.case.settings.iter().copied()).collect();
        train_arguments(self.case.model, &self.folder.join("data"), out, &settings)
    }

    /// Every step is there once, every evaluation once, and the test at the end.
    fn assert_complete(&self) {
        let steps = |split| {
            let steps = series(&self.undisturbed, split, "step").into_iter();
            steps.map(|step| step as u64).collect::<Vec<_>>()
        };
        assert!(self.total >= 40, "too short a run to kill: {} steps", self.total);
        assert_eq!(steps("train"), (1..=self.total).collect::<Vec<_>>());
        let mut evaluated: Vec<u64> =
            (1..=self.total / EVAL_EVERY).map(|number| number * EVAL_EVERY).collect();
        evaluated.extend((!self.total.is_multiple_of(EVAL_EVERY)).then_some(self.total));
        assert_eq!(steps("validation"), evaluated);
        assert_eq!(steps("test").len(), 1);
        let kept = std::fs::read_dir(self.undisturbed.join("checkpoints")).unwrap().count();
        assert_eq!(kept, 4, "best, last and two numbered ones");
    }

    /// Trains into a new folder, killed at each of the moments, and then to the end; the result must be the undisturbed run's. Counts the
    /// kills, and how many came at their moment.
    fn disturb(&self, moments: &[Moment], noise: &mut Noise, tally: &mut Tally) {
        let run = self.folder.join(format!("disturbed-{}", noise.below(1 << 30)));
        let mut killed = Vec::new();
        for &moment in moments {
            let Some(at_its_moment) = self.kill_at(moment, &run, noise) else {
                // It came to its end first.
                break;
            };
            killed.push(moment);
            tally.count(self.case.name, moment, at_its_moment);
            tally.from_checkpoints += u32::from(saved_step(&run).is_some());
        }
        done(self.command(&run));
        let what = format!("{}, killed {killed:?}", self.case.name);
        assert_same_files(&checkpoints(&run), &checkpoints(&self.undisturbed), &what);
        assert_eq!(results(&run), results(&self.undisturbed), "{what}");
        assert_eq!(read_json(&run.join("recipe.json")), read_json(&self.undisturbed.join("recipe.json")));
        std::fs::remove_dir_all(&run).unwrap();
    }

    /// Begins the run, or continues it.
    fn command(&self, run: &Path) -> Vec<String> {
        match run.join("recipe.json").exists() {
            true => ["train", "--quiet", "--resume"]
                .into_iter()
                .map(str::to_owned)
                .chain([run.display().to_string()])
                .collect(),
            false => self.arguments(run),
        }
    }

    /// Starts or continues the run and kills it. `None` where it ended before, else whether it died at that moment.
    fn kill_at(&self, moment: Moment, run: &Path, noise: &mut Noise) -> Option<bool> {
        let mut command = cnn(self.command(run));
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        // Not always the first save or evaluation; for any time, a step and then some thousandths of a second.
        let from = saved_step(run).unwrap_or(0);
        let left = self.total - from;
        let step = from
            + match moment {
                // In the first half of what is left, so that the later moments still come.
                Random => 1 + noise.below(left / 2 + 1),
                DuringSave | DuringEvaluation => noise.below(left / 2 + 1),
                _ => 0,
            };
        let pause = Duration::from_micros(noise.below(20_000));
        let delay = Duration::from_millis(noise.below(400));
        // What an earlier kill left must go before the moment can come again.
        let mut armed = false;
        let mut child = command.spawn().unwrap();
        let start = Instant::now();
        let reached = wait_until(&mut child, || match moment {
            AtOnce => start.elapsed() >= delay,
            _ => {
                let late_enough = step == 0 || self.latest_step(run).is_some_and(|latest| latest >= step);
                let now = late_enough && self.is_at(moment, run);
                armed |= !now;
                armed && now
            }
        });
        if reached {
            if moment == Random {
                std::thread::sleep(pause);
            }
            child.kill().unwrap();
        }
        let status = child.wait().unwrap();
        match status.code() {
            None => Some(matches!(moment, Random | AtOnce) || self.is_at(moment, run)),
            Some(code) => {
                assert_eq!(code, 0, "{} failed by itself", self.case.name);
                None
            }
        }
    }

    /// The latest step that is logged.
    fn latest_step(&self, run: &Path) -> Option<u64> {
        metrics(run).pop()?["step"].as_u64()
    }

    /// Whether what is on disk is what a moment leaves.
    fn is_at(&self, moment: Moment, run: &Path) -> bool {
        let checkpoints = run.join("checkpoints");
        let staged = || {
            std::fs::read_dir(&checkpoints).is_ok_and(|entries| {
                entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with('.'))
            })
        };
        let latest = || {
            let latest = metrics(run).pop()?;
            (latest["split"] == "train").then_some(latest["step"].as_u64()?)
        };
        match moment {
            BeforeFirstSave => {
                latest().is_some()
                    && std::fs::read_dir(&checkpoints).is_ok_and(|mut all| all.next().is_none())
            }
            DuringSave => staged(),
            DuringEvaluation => {
                latest().is_some_and(|step| step == self.total || step.is_multiple_of(EVAL_EVERY))
            }
            LastStep => latest() == Some(self.total - 1),
            AfterLastSave => {
                saved_step(run) == Some(self.total) && !staged() && !run.join("summary.json").exists()
            }
            Random | AtOnce => true,
        }
    }
}

/// The step of the last checkpoint.
fn saved_step(run: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(run.join("checkpoints/last/state.json")).ok()?;
    serde_json::from_str::<Value>(&text).ok()?["progress"]["step"].as_u64()
}

/// Kills by case and moment: how many, and how many of them came at their moment.
#[derive(Default)]
struct Tally {
    kills: BTreeMap<(&'static str, Moment), (u32, u32)>,
    /// How many left a checkpoint to go on from; after the others the run begins again.
    from_checkpoints: u32,
}

impl Tally {
    fn count(&mut self, case: &'static str, moment: Moment, at_its_moment: bool) {
        let entry = self.kills.entry((case, moment)).or_default();
        entry.0 += 1;
        entry.1 += u32::from(at_its_moment);
    }

    fn count_all(&self) -> u32 {
        self.kills.values().map(|(kills, _)| kills).sum()
    }

    /// Whether every kind of training has been killed at every moment.
    fn is_complete(&self, subjects: &[Subject<'_>]) -> bool {
        let hit =
            |case: &Case, moment| self.kills.get(&(case.name, moment)).is_some_and(|(_, hits)| *hits > 0);
        subjects.iter().all(|subject| ALL_MOMENTS.iter().all(|&moment| hit(subject.case, moment)))
    }
}

/// A few kills of one kind of training.
fn survives_kills(number: usize) {
    let case = &CASES[number];
    let (subject, mut noise, mut tally) = (Subject::new(case), Noise::new(number as u64), Tally::default());
    // A kill may come too late for its moment, and the run may then have ended by itself.
    for _ in 0..5 {
        subject.disturb(case.moments, &mut noise, &mut tally);
        if tally.from_checkpoints > 0 {
            break;
        }
    }
    for ((case, moment), (kills, hits)) in &tally.kills {
        eprintln!("{case}: {kills} kills {moment:?}, {hits} at their moment");
    }
    assert!(tally.from_checkpoints > 0, "it never went on from a checkpoint");
}

#[test]
fn momentum_and_dropout_survive_kills() {
    survives_kills(0);
}

#[test]
fn averaged_weights_and_a_plateau_survive_kills() {
    survives_kills(1);
}

#[test]
fn accumulation_survives_kills() {
    survives_kills(2);
}

#[test]
fn bfloat16_survives_kills() {
    survives_kills(3);
}

#[test]
fn float16_survives_kills() {
    survives_kills(4);
}

#[test]
fn batch_normalisation_survives_kills() {
    survives_kills(5);
}

#[test]
fn resnet20_with_augmentation_and_averaged_weights_survives_kills() {
    survives_kills(6);
}

#[test]
fn adam_with_a_schedule_survives_kills() {
    survives_kills(7);
}

/// `scripts/prove_resume.sh` runs this: every kind of training, or those whose names hold a given text, killed at every moment, until there
/// are enough kills.
#[test]
#[ignore = "takes minutes; scripts/prove_resume.sh runs it"]
fn many_kills() {
    let variable = |name: &str, default| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    let (kills, seed) = (variable("TCH_SUITE_KILLS", 40), variable("TCH_SUITE_SEED", 0));
    let kind = std::env::var("TCH_SUITE_KIND").unwrap_or_default();
    let subjects: Vec<Subject<'_>> =
        CASES.iter().filter(|case| case.name.contains(&kind)).map(Subject::new).collect();
    assert!(!subjects.is_empty(), "no kind of training has `{kind}` in its name");
    let (mut noise, mut tally, mut rounds) = (Noise::new(seed), Tally::default(), 0);
    while u64::from(tally.count_all()) < kills || !tally.is_complete(&subjects) {
        rounds += 1;
        assert!(rounds <= 20 + kills / 20, "some moment never came in {rounds} rounds");
        for subject in &subjects {
            subject.disturb(&ALL_MOMENTS, &mut noise, &mut tally);
        }
    }
    for ((case, moment), (kills, hits)) in &tally.kills {
        println!("{case:45} {:18} killed {kills:3} times, {hits:3} at its moment", format!("{moment:?}"));
    }
    println!("every run ended as the undisturbed one, to the byte");
    println!(
        "{} kills in {rounds} rounds, {} of them with a checkpoint to go on from",
        tally.count_all(),
        tally.from_checkpoints
    );
}

/// A short run to continue.
fn short_run(folder: &Path, settings: &[&str]) -> PathBuf {
    small_data::write(&folder.join("data"), 120, 40);
    let run = folder.join("run");
    train(
        "lenet5",
        &folder.join("data"),
        &run,
        &[&["training.epochs=2", "model.dropout=0.2"], settings].concat(),
    );
    run
}

#[test]
fn resuming_a_finished_run_changes_nothing() {
    let folder = Scratch::new();
    let run = short_run(&folder, &["training.keep=2"]);
    let before = (checkpoints(&run), results(&run));
    resume(&run, &[]);
    assert_same_files(&checkpoints(&run), &before.0, "resumed at its end");
    assert_eq!(results(&run), before.1);
}

#[test]
fn what_a_step_computes_may_not_change() {
    let folder = Scratch::new();
    let run = short_run(&folder, &[]);
    let before = files(&run);
    let path = run.display().to_string();
    for (flag, value, key) in [
        ("--lr", "0.5", "training.optimizer.lr 0.05 → 0.5"),
        ("--batch-size", "8", "training.batch_size"),
        ("--seed", "3", "training.seed"),
        ("--precision", "bf16", "training.precision"),
        ("--set", "model.dropout=0.5", "model.dropout"),
        ("--optimizer", "adamw", "training.optimizer.name"),
    ] {
        let refused = run_quietly(&["--resume", &path, flag, value]);
        assert_refused(&refused, 2, &[key, "--init-from"]);
    }
    let both = run_quietly(&["--resume", &path, "--recipe", "lenet5-mnist"]);
    assert_eq!(both.code, Some(2), "{}", both.stderr);
    assert_same_files(&files(&run), &before, "refused");
}

fn run_quietly(arguments: &[&str]) -> crate::support::process::Finished {
    run(&mut cnn(["train", "--quiet"].iter().chain(arguments)))
}

#[test]
fn a_run_that_is_made_longer_equals_one_that_was_planned_so() {
    let folder = Scratch::new();
    let run = short_run(&folder, &[]);
    let resumed = resume(&run, &["--epochs", "4"]);
    assert!(!resumed.stderr.contains("warning"), "{}", resumed.stderr);
    let planned = folder.join("planned");
    train("lenet5", &folder.join("data"), &planned, &["training.epochs=4", "model.dropout=0.2"]);
    assert_same_files(&checkpoints(&run), &checkpoints(&planned), "made longer");
    assert_eq!(results(&run), results(&planned));
}

#[test]
fn a_schedule_that_follows_the_length_warns_when_it_changes() {
    let folder = Scratch::new();
    let run = short_run(&folder, &[r#"training.schedule={"name": "linear"}"#]);
    let resumed = resume(&run, &["--epochs", "3"]);
    assert!(resumed.stderr.contains("warning: the learning rate follows the length"), "{}", resumed.stderr);
}

#[test]
fn other_threads_warn() {
    let folder = Scratch::new();
    let run = short_run(&folder, &[]);
    let resumed = resume(&run, &["--threads", "2", "--epochs", "3"]);
    assert!(
        resumed.stderr.contains("warning: resuming under other conditions (threads 1 → 2)"),
        "{}",
        resumed.stderr
    );
}

#[test]
fn data_may_move() {
    let folder = Scratch::new();
    let run = short_run(&folder, &[]);
    let moved = folder.join("moved");
    std::fs::rename(folder.join("data"), &moved).unwrap();
    let lost = run_quietly(&["--resume", &run.display().to_string()]);
    assert_refused(&lost, 2, &["data", "does not exist"]);
    resume(&run, &["--data", &moved.display().to_string(), "--epochs", "3"]);
}

#[test]
fn other_data_are_refused() {
    let folder = Scratch::new();
    let run = short_run(&folder, &[]);
    let before = files(&run);
    let images = folder.join("data/train-images-idx3-ubyte");
    let mut content = std::fs::read(&images).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 1;
    std::fs::write(&images, &content).unwrap();
    let arguments = ["--resume", &run.display().to_string(), "--epochs", "3"];
    let words =
        [&run.display().to_string(), "trained on other data", "are not those of before", "--init-from"];
    assert_refused(&run_quietly(&arguments), 2, &words);
    let other = folder.join("other");
    small_data::write(&other, 121, 40);
    let refused = run_quietly(&[&arguments[..], &["--data", &other.display().to_string()]].concat());
    assert_refused(&refused, 2, &["the training part had 108 samples and has 109"]);
    assert_same_files(&files(&run), &before, "refused");
    content[middle] ^= 1;
    std::fs::write(&images, &content).unwrap();
    // The test part is another matter.
    small_data::write_part(&folder.join("data"), "t10k", &small_data::even_labels(30), small_data::SIDE, 9);
    resume(&run, &["--epochs", "3"]);
}

#[test]
fn the_weights_a_run_began_with_may_go() {
    let folder = Scratch::new();
    let first = short_run(&folder, &[]);
    let second = folder.join("second");
    let init = format!("training.init_from={}", first.display());
    train("lenet5", &folder.join("data"), &second, &[&init, "training.epochs=1", "model.dropout=0.2"]);
    std::fs::remove_dir_all(&first).unwrap();
    resume(&second, &["--epochs", "2"]);
}

#[test]
fn a_run_that_died_before_it_began_is_begun_again() {
    let folder = Scratch::new();
    small_data::write(&folder.join("data"), 60, 0);
    let run = folder.join("run");
    std::fs::create_dir_all(run.join("checkpoints")).unwrap();
    std::fs::write(run.join(".lock"), "").unwrap();
    train("mlp", &folder.join("data"), &run, &["training.steps=1"]);
    assert_eq!(saved_step(&run), Some(1));
}
