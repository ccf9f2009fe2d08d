//! Several processes: the same steps as one, however they are started; what they do when one of them fails.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Result;
use tch::{Kind, Tensor};
use tch_suite::native::TensorList;
use tch_suite::native::distributed::{GradientReducer, Group, ReducerConfig, Store, Transport, be_quiet};

use crate::support::process::{
    Finished, assert_refused, cnn, done, finish, rnn, run, signal, start, wait_until,
};
use crate::support::runs::{
    assert_same_files, checkpoints, metrics, read_json, results, series, tensors, train_arguments,
};
use crate::support::{Scratch, numbers, skipped, small_data};

/// In double precision, so that what is left of differences are mistakes, and without what draws random numbers of its own in each process.
const EXACT: [&str; 4] =
    ["training.precision=fp64", "model.dropout=0", "training.log_every=1", "data.val_fraction=0.2"];

/// `cnn train` on several processes.
fn on(
    processes: usize,
    batch: usize,
    model: &str,
    data: &Path,
    out: &Path,
    settings: &[&str],
) -> Vec<String> {
    let batch = format!("training.batch_size={}", batch / processes);
    let settings = [settings, &[batch.as_str()]].concat();
    let mut arguments = train_arguments(model, data, out, &settings);
    if processes > 1 {
        arguments.extend(["--processes", &processes.to_string(), "--timeout", "60"].map(str::to_owned));
    }
    arguments
}

/// The largest difference of a run's weights from another's, relative to the largest of each tensor.
fn difference(run: &Path, other: &Path) -> f64 {
    let [run, other] = [run, other].map(|run| tensors(run, "last", "model"));
    assert_eq!(run.keys().collect::<Vec<_>>(), other.keys().collect::<Vec<_>>());
    let of_tensor = |(name, tensor): (&String, &Tensor)| {
        let [found, expected] = [tensor, &other[name]].map(numbers);
        let largest = expected.iter().fold(1e-30f64, |largest, value| largest.max(value.abs()));
        found.iter().zip(&expected).fold(0f64, |most, (a, b)| most.max((a - b).abs())) / largest
    };
    run.iter().map(of_tensor).fold(0.0, f64::max)
}

fn assert_close_series(run: &Path, other: &Path, tolerance: f64) {
    for (split, metric) in [
        ("train", "loss"),
        ("train", "accuracy"),
        ("train", "grad_norm"),
        ("validation", "loss"),
        ("test", "loss"),
    ] {
        let [found, expected] = [run, other].map(|run| series(run, split, metric));
        assert!(!expected.is_empty() && found.len() == expected.len(), "{split} {metric}");
        for (found, expected) in found.iter().zip(&expected) {
            assert!(
                (found - expected).abs() <= tolerance * expected.abs(),
                "{split} {metric}: {found} {expected}"
            );
        }
    }
}

#[test]
fn one_two_and_four_processes_make_the_same_steps() {
    let folder = Scratch::new();
    let data = folder.join("data");
    // 78 training samples: the last batch of an epoch has 6, so that of four processes some have one sample and some two.
    small_data::write(&data, 98, 21);
    for accumulate in [1, 2] {
        let accumulate = format!("training.accumulate={accumulate}");
        let settings = [&EXACT[..], &["training.epochs=2", "training.clip_norm=0.5", &accumulate]].concat();
        let one = folder.join(format!("one {accumulate}"));
        done(on(1, 24, "lenet5", &data, &one, &settings));
        for processes in [2, 4] {
            let several = folder.join(format!("{processes} {accumulate}"));
            done(on(processes, 24, "lenet5", &data, &several, &settings));
            assert!(
                difference(&several, &one) < 1e-11,
                "{processes} processes: {}",
                difference(&several, &one)
            );
            assert_close_series(&several, &one, 1e-11);
        }
    }
}

#[test]
fn a_process_without_a_sample_takes_part() {
    let folder = Scratch::new();
    let data = folder.join("data");
    // 17 samples: the last batch has one.
    small_data::write(&data, 21, 5);
    for (model, more) in [("lenet5", ""), ("resnet20", "training.distributed.sync_batch_norm=true")] {
        let settings = [
            "training.steps=4",
            "training.optimizer.lr=0.01",
            if more.is_empty() { "training.keep=0" } else { more },
        ];
        let settings = [&EXACT[..], &settings].concat();
        let (one, four) = (folder.join(format!("{model} 1")), folder.join(format!("{model} 4")));
        done(on(1, 16, model, &data, &one, &settings));
        done(on(4, 16, model, &data, &four, &settings));
        assert!(difference(&four, &one) < 1e-9, "{model}: {}", difference(&four, &one));
        assert_close_series(&four, &one, 1e-9);
    }
}

#[test]
fn batch_normalisation_over_all_processes_equals_that_of_one() {
    let folder = Scratch::new();
    let data = folder.join("data");
    small_data::write(&data, 98, 21);
    let settings = [
        &EXACT[..],
        &["training.steps=5", "training.optimizer.lr=0.01", "training.distributed.sync_batch_norm=true"],
    ]
    .concat();
    let one = folder.join("one");
    done(on(1, 24, "resnet20", &data, &one, &settings));
    for processes in [2, 3] {
        let several = folder.join(processes.to_string());
        done(on(processes, 24, "resnet20", &data, &several, &settings));
        assert!(difference(&several, &one) < 1e-9, "{processes}: {}", difference(&several, &one));
        assert_close_series(&several, &one, 1e-9);
    }
    // Without it, two processes have statistics of their own.
    let own = folder.join("own");
    let settings: Vec<&str> = settings.iter().copied().filter(|setting| !setting.contains("sync")).collect();
    done(on(2, 24, "resnet20", &data, &own, &settings));
    assert!(difference(&own, &one) > 1e-3);
}

#[test]
fn a_checkpoint_of_some_processes_goes_on_with_others() {
    let folder = Scratch::new();
    let data = folder.join("data");
    small_data::write(&data, 98, 21);
    let settings = [&EXACT[..], &["training.epochs=3"]].concat();
    let undisturbed = folder.join("undisturbed");
    done(on(2, 24, "lenet5", &data, &undisturbed, &settings));
    for (first, then) in [(2, 1), (1, 2), (2, 3)] {
        let run = folder.join(format!("{first} then {then}"));
        let path = run.display().to_string();
        let steps = [&settings[..], &["training.steps=5"]].concat();
        done(on(first, 24, "lenet5", &data, &run, &steps));
        let mut arguments = ["train", "--quiet", "--resume", &path, "--set", "training.steps=null"]
            .map(str::to_owned)
            .to_vec();
        if then > 1 {
            arguments.extend(["--processes".to_owned(), then.to_string()]);
        }
        done(arguments);
        let [found, expected] = [&run, &undisturbed].map(|run| series(run, "train", "loss"));
        assert_eq!(found.len(), expected.len());
        assert!(difference(&run, &undisturbed) < 1e-11, "{first} then {then}");
        // The batch of a run stays what it was.
        assert_eq!(read_json(&run.join("recipe.json"))["training"]["distributed"]["processes"], first);
    }
}

/// What a run of several processes leaves but for what tells how many there were on which machine.
const DRAWN: [&str; 5] = [
    "training.epochs=3",
    "training.save_every=3",
    "model.dropout=0.3",
    "training.ema=0.9",
    "training.keep=3",
];

#[test]
fn an_interrupted_group_goes_on_to_the_same_bytes() {
    let folder = Scratch::new();
    let data = folder.join("data");
    small_data::write(&data, 200, 20);
    let undisturbed = folder.join("undisturbed");
    // Three: the order in which they add is that of the buckets.
    done(on(3, 24, "lenet5", &data, &undisturbed, &DRAWN));
    let run = folder.join("run");
    let mut child = start(&mut cnn(on(3, 24, "lenet5", &data, &run, &DRAWN)));
    assert!(wait_until(&mut child, || metrics(&run).len() >= 4));
    signal(&child, "TERM");
    let finished = finish(child);
    if finished.code != Some(0) {
        assert_refused(&finished, 130, &["--resume", &run.display().to_string()]);
        done(["train", "--quiet", "--processes", "3", "--resume", &run.display().to_string()]);
    }
    assert_same_files(&checkpoints(&run), &checkpoints(&undisturbed), "interrupted");
    assert_eq!(results(&run), results(&undisturbed));
}

#[test]
fn a_killed_process_ends_all_and_a_restart_goes_on_to_the_same_bytes() {
    let folder = Scratch::new();
    let data = folder.join("data");
    small_data::write(&data, 200, 20);
    let undisturbed = folder.join("undisturbed");
    done(on(2, 24, "lenet5", &data, &undisturbed, &DRAWN));
    for rank in [0, 1] {
        for restarts in [None, Some("2")] {
            let run = folder.join(format!("{rank} {restarts:?}"));
            let mut arguments = on(2, 24, "lenet5", &data, &run, &DRAWN);
            arguments.extend(restarts.iter().flat_map(|times| ["--restarts", times]).map(str::to_owned));
            let mut child = start(&mut cnn(arguments));
            assert!(wait_until(&mut child, || metrics(&run).len() >= 5));
            kill_rank(&child, rank);
            let finished = finish(child);
            match restarts {
                None => {
                    assert_refused(&finished, 1, &[&format!("rank {rank} was ended by signal 9 (SIGKILL)")])
                }
                Some(_) => {
                    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
                    assert!(finished.stderr.contains("starting again (1 of 2)"), "{}", finished.stderr);
                    assert_same_files(&checkpoints(&run), &checkpoints(&undisturbed), "killed");
                    assert_eq!(results(&run), results(&undisturbed));
                }
            }
        }
    }
}

/// The process number of a rank that a launcher has started.
fn process_of(launcher: &Child, rank: usize) -> Option<u32> {
    let children = format!("/proc/{0}/task/{0}/children", launcher.id());
    let children = std::fs::read_to_string(children).unwrap();
    children.split_whitespace().map(|number| number.parse::<u32>().unwrap()).find(|number| {
        let variables = std::fs::read(format!("/proc/{number}/environ")).unwrap_or_default();
        variables.split(|byte| *byte == 0).any(|variable| variable == format!("RANK={rank}").as_bytes())
    })
}

fn send(process: u32, name: &str) {
    let status = Command::new("sh").args(["-c", &format!("kill -{name} {process}")]).status().unwrap();
    assert!(status.success());
}

fn kill_rank(launcher: &Child, rank: usize) {
    send(process_of(launcher, rank).unwrap(), "KILL");
}

#[test]
fn a_process_that_stops_is_named_within_the_timeout() {
    let folder = Scratch::new();
    let (data, out) = (folder.join("data"), folder.join("run"));
    small_data::write(&data, 200, 20);
    let mut arguments = on(2, 24, "lenet5", &data, &out, &["training.epochs=100000"]);
    let place = arguments.iter().position(|argument| argument == "--timeout").unwrap();
    arguments[place + 1] = "8".to_owned();
    let mut child = start(&mut cnn(arguments));
    assert!(wait_until(&mut child, || metrics(&out).len() >= 5));
    let stopped = process_of(&child, 1).unwrap();
    let began = Instant::now();
    send(stopped, "STOP");
    let finished = finish(child);
    assert!(began.elapsed() < Duration::from_secs(40), "{:?}", began.elapsed());
    assert_refused(&finished, 1, &["rank 1 (process ", "died or cannot be reached any more"]);
}

/// A port that nobody listens at.
fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

/// Runs the same command as several processes, each with variables and further arguments of its own, and returns what they did.
fn by_hand(
    arguments: &[String],
    size: usize,
    own: impl Fn(usize) -> (Vec<(String, String)>, Vec<String>),
) -> Vec<Finished> {
    let begin = |rank: usize| {
        let (variables, more) = own(rank);
        let mut command = cnn(arguments.iter().chain(&more));
        start(command.envs(variables))
    };
    let children: Vec<Child> = (0..size).map(begin).collect();
    children.into_iter().map(finish).collect()
}

fn named(variables: &[(&str, String)]) -> Vec<(String, String)> {
    variables.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
}

#[test]
fn however_they_are_started_they_leave_the_same_bytes() {
    let folder = Scratch::new();
    let data = folder.join("data");
    small_data::write(&data, 98, 21);
    let settings = ["training.epochs=2", "model.dropout=0.3", "training.batch_size=12"];
    let launched = folder.join("launched");
    let mut arguments = train_arguments("lenet5", &data, &launched, &settings);
    arguments.extend(["--processes", "2"].map(str::to_owned));
    done(&arguments);
    type Own = Box<dyn Fn(usize) -> (Vec<(String, String)>, Vec<String>)>;
    let ports = [free_port(), free_port(), free_port()];
    let ways: [(&str, Own); 3] = [
        (
            "flags",
            Box::new(move |rank| {
                let init = format!("tcp://127.0.0.1:{}", ports[0]);
                let flags = ["--init", &init, "--rank", &rank.to_string(), "--world-size", "2"];
                (Vec::new(), flags.map(str::to_owned).to_vec())
            }),
        ),
        (
            "torchrun",
            Box::new(move |rank| {
                let variables = [
                    ("RANK", rank.to_string()),
                    ("LOCAL_RANK", rank.to_string()),
                    ("WORLD_SIZE", "2".to_owned()),
                    ("MASTER_ADDR", "127.0.0.1".to_owned()),
                    ("MASTER_PORT", ports[1].to_string()),
                ];
                (named(&variables), Vec::new())
            }),
        ),
        (
            "slurm",
            Box::new(move |rank| {
                let variables = [
                    ("SLURM_PROCID", rank.to_string()),
                    ("SLURM_LOCALID", rank.to_string()),
                    ("SLURM_STEP_NUM_TASKS", "2".to_owned()),
                    ("SLURM_STEP_NODELIST", "localhost".to_owned()),
                    ("MASTER_PORT", ports[2].to_string()),
                ];
                (named(&variables), Vec::new())
            }),
        ),
    ];
    for (name, own) in ways {
        let out = folder.join(name);
        let arguments = train_arguments("lenet5", &data, &out, &settings);
        for finished in by_hand(&arguments, 2, own) {
            assert_eq!(finished.code, Some(0), "{name}: {}", finished.stderr);
        }
        assert_same_files(&checkpoints(&out), &checkpoints(&launched), name);
        assert_eq!(results(&out), results(&launched), "{name}");
    }
}

#[test]
fn processes_that_do_not_agree_say_in_what() {
    let folder = Scratch::new();
    let (data, other_data) = (folder.join("data"), folder.join("other data"));
    small_data::write(&data, 98, 21);
    small_data::write(&other_data, 90, 21);
    let cases: [(&str, Vec<String>, &str); 2] = [
        (
            "recipe",
            ["--seed", "4"].map(str::to_owned).to_vec(),
            "the recipe has training.seed 0 in rank 0 and 4 in rank 1",
        ),
        (
            "samples",
            vec!["--data".to_owned(), other_data.display().to_string()],
            "rank 1 is about to do something else than rank 0",
        ),
    ];
    for (name, difference, words) in cases {
        let out = folder.join(name);
        let port = free_port();
        let finished = by_hand(&train_arguments("lenet5", &data, &out, &[]), 2, |rank| {
            let init = format!("tcp://127.0.0.1:{port}");
            let mut flags = ["--init", &init, "--rank", &rank.to_string(), "--world-size", "2"]
                .map(str::to_owned)
                .to_vec();
            if rank == 1 {
                flags.extend(difference.clone());
            }
            (Vec::new(), flags)
        });
        for finished in finished {
            assert_refused(&finished, 2, &[words]);
        }
        assert!(!out.exists());
    }
}

#[test]
fn who_does_not_come_is_named() {
    let folder = Scratch::new();
    let (data, out) = (folder.join("data"), folder.join("run"));
    small_data::write(&data, 98, 21);
    let init = format!("tcp://127.0.0.1:{}", free_port());
    for (rank, words) in
        [("1", "rank 1 cannot reach rank 0 at 127.0.0.1:"), ("0", "rank 1, 2 did not come within 2 s")]
    {
        let began = Instant::now();
        let flags = ["--init", &init, "--rank", rank, "--world-size", "3", "--timeout", "2"];
        let finished = run(&mut cnn(train_arguments("lenet5", &data, &out, &[])
            .iter()
            .map(String::as_str)
            .chain(flags)));
        assert_refused(&finished, 1, &[words]);
        assert!(began.elapsed() < Duration::from_secs(30));
    }
}

#[test]
fn a_fault_of_one_process_is_told_once() {
    let folder = Scratch::new();
    let (data, out) = (folder.join("data"), folder.join("run"));
    small_data::write(&data, 98, 21);
    std::fs::create_dir(&out).unwrap();
    std::fs::write(out.join("something"), "").unwrap();
    let finished = run(&mut cnn(on(2, 24, "lenet5", &data, &out, &[])));
    assert_refused(&finished, 2, &["exists already"]);
    let finished = run(&mut cnn(on(2, 24, "no such model", &data, &folder.join("other"), &[])));
    assert_refused(&finished, 2, &["no such model"]);
}

#[test]
fn an_evaluation_is_shared_and_exact() {
    let folder = Scratch::new();
    let (data, out) = (folder.join("data"), folder.join("run"));
    small_data::write(&data, 98, 45);
    done(train_arguments("lenet5", &data, &out, &["training.epochs=2", "training.eval_batch_size=7"]));
    let path = out.display().to_string();
    let metrics_of = |more: &[&str]| -> BTreeMap<String, f64> {
        let finished = done(["eval", &path, "--format", "json", "--threads", "1"].iter().chain(more));
        let found: serde_json::Value = serde_json::from_str(&finished.stdout).unwrap();
        serde_json::from_value(found["metrics"].clone()).unwrap()
    };
    let alone = metrics_of(&[]);
    // 45 samples in batches of 7: some processes have more batches than others, one has none.
    for processes in ["2", "4", "8"] {
        let shared = metrics_of(&["--processes", processes]);
        assert_eq!(shared.keys().collect::<Vec<_>>(), alone.keys().collect::<Vec<_>>());
        for (name, value) in &alone {
            assert!((shared[name] - value).abs() < 1e-12, "{name}: {} {value}", shared[name]);
        }
    }
}

#[test]
fn a_carried_state_is_shared_out_and_saved_whole() {
    let folder = Scratch::new();
    let common = |out: &Path, streams: usize| {
        let batch = format!("{streams}");
        let arguments = [
            "train",
            "--quiet",
            "--task",
            "lm",
            "--threads",
            "1",
            "--batch-size",
            &batch,
            "--set",
            "model.dropout=0",
            "--set",
            "model.output_dropout=0",
            "--schedule",
            "constant",
            "--set",
            "training.log_every=1",
            "--set",
            "training.eval_batch_size=6",
            "--out",
            &out.display().to_string(),
        ];
        arguments.map(str::to_owned).to_vec()
    };
    let finished = |arguments: Vec<String>| {
        let finished = run(&mut rnn(arguments));
        assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    };
    let more = |mut arguments: Vec<String>, more: &[&str]| {
        arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
        arguments
    };
    let (one, two, mixed) = (folder.join("one"), folder.join("two"), folder.join("mixed"));
    finished(more(common(&one, 6), &["--steps", "8"]));
    finished(more(common(&two, 3), &["--steps", "8", "--processes", "2"]));
    finished(more(common(&mixed, 2), &["--steps", "4", "--processes", "3"]));
    let path = mixed.display().to_string();
    finished(["train", "--quiet", "--resume", &path, "--steps", "8"].map(str::to_owned).to_vec());
    for run in [&two, &mixed] {
        let [found, expected] = [run, &one].map(|run| series(run, "train", "loss"));
        assert_eq!(found.len(), 8);
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - expected).abs() < 1e-5 * expected, "{found} {expected}");
        }
        let [found, expected] = [run, &one].map(|run| series(run, "validation", "bits_per_character"));
        // The run that was resumed has been looked at once more, where it ended first.
        let (found, expected) = (found.last().unwrap(), expected.last().unwrap());
        assert!((found - expected).abs() < 1e-4 * expected, "{found} {expected}");
    }
}

/// A number from the environment, by which scripts/prove_distributed.sh makes proofs longer or shorter.
fn setting(name: &str, usual: u64) -> u64 {
    std::env::var(name).ok().map_or(usual, |text| text.parse().unwrap())
}

/// The distance between the weights of two runs, relative to their length.
fn distance(run: &Path, other: &Path) -> f64 {
    let [run, other] = [run, other].map(|run| tensors(run, "last", "model"));
    let (mut apart, mut length) = (0.0, 0.0);
    for (name, tensor) in run.iter().filter(|(_, tensor)| tensor.is_floating_point()) {
        for (found, expected) in numbers(tensor).into_iter().zip(numbers(&other[name])) {
            apart += (found - expected).powi(2);
            length += expected.powi(2);
        }
    }
    (apart / length).sqrt()
}

/// The largest relative difference of logged losses over some steps.
fn losses_apart(run: &Path, other: &Path, steps: usize) -> f64 {
    let [found, expected] = [run, other].map(|run| series(run, "train", "loss"));
    assert_eq!(found.len(), expected.len());
    let apart = found.iter().zip(&expected).take(steps).map(|(a, b)| (a - b).abs() / b.abs());
    apart.fold(0.0, f64::max)
}

/// One process with the whole batch against two and four, with and without accumulation, in double and in single precision.
fn prove_equality(name: &str, batch: usize, train: impl Fn(&Path, &[String]) -> Finished, sync: bool) {
    let folder = Scratch::new();
    let steps = setting("TCH_SUITE_STEPS", 50);
    for precision in ["fp64", "fp32"] {
        let run = |label: &str, processes: usize, accumulate: usize| {
            let out = folder.join(format!("{precision} {label}"));
            let mut arguments =
                vec!["--steps".to_owned(), steps.to_string(), "--precision".to_owned(), precision.to_owned()];
            arguments.extend(["--batch-size".to_owned(), (batch / processes / accumulate).to_string()]);
            arguments.extend(["--accumulate".to_owned(), accumulate.to_string()]);
            if processes > 1 {
                arguments.extend(["--processes".to_owned(), processes.to_string()]);
            }
            if sync {
                arguments.push("--sync-batch-norm".to_owned());
            }
            let finished = train(&out, &arguments);
            assert_eq!(finished.code, Some(0), "{}", finished.stderr);
            out
        };
        let whole = run("1 x 1", 1, 1);
        let halves = run("1 x 2", 1, 2);
        for (accumulate, one) in [(1, &whole), (2, &halves)] {
            for processes in [2, 4] {
                let several = run(&format!("{processes} x {accumulate}"), processes, accumulate);
                let (apart, first, all) = (
                    distance(&several, one),
                    losses_apart(&several, one, 5),
                    losses_apart(&several, one, usize::MAX),
                );
                eprintln!(
                    "{name}, {precision}, {processes} processes, accumulating {accumulate}: weights {apart:.1e} apart after {steps} steps, losses {first:.1e} in the first 5 steps, {all:.1e} in all"
                );
                match precision {
                    "fp64" => assert!(apart < 1e-9 && all < 1e-9),
                    _ => {
                        assert!(first < 1e-5);
                        // What single precision makes of another order of sums, where nothing is distributed.
                        let usual = distance(&halves, &whole);
                        let losses = losses_apart(&halves, &whole, 5);
                        eprintln!(
                            "    one process accumulating 1 and 2: {usual:.1e} apart, losses {losses:.1e} in the first 5 steps"
                        );
                        assert!(apart <= 3.0 * usual.max(1e-7));
                    }
                }
            }
        }
    }
}

#[test]
#[ignore = "minutes: scripts/prove_distributed.sh"]
fn proof_equality_of_resnet() {
    let folder = Scratch::new();
    let data = folder.join("data");
    small_data::write(&data, 1000, 0);
    let settings = [
        "training.log_every=1",
        "training.eval_every=1000000",
        "data.val_fraction=0.02",
        // At 0.01 five steps of single precision make 1.4e-5 of another order of sums.
        "training.optimizer.lr=0.003",
    ];
    let train = |out: &Path, more: &[String]| {
        let arguments = train_arguments("resnet20", &data, out, &settings);
        run(&mut cnn(arguments.iter().chain(more)))
    };
    prove_equality("ResNet-20", setting("TCH_SUITE_BATCH", 128) as usize, train, true);
}

#[test]
#[ignore = "minutes: scripts/prove_distributed.sh"]
fn proof_equality_of_minilm() {
    let (Some(model), Some(data)) =
        (crate::support::data("pretrained/minilm-l6-h384"), crate::support::data("sst2/dev.tsv"))
    else {
        return;
    };
    let train = |out: &Path, more: &[String]| {
        let [model, data, out] = [&model, &data, &out.to_owned()].map(|path| path.display().to_string());
        let arguments = [
            "train",
            "--quiet",
            "--recipe",
            "glue-finetune",
            "--init-from",
            &model,
            "--data",
            &data,
            "--out",
            &out,
            "--threads",
            "1",
            "--set",
            "training.log_every=1",
            "--set",
            "training.eval_every=1000000",
            "--set",
            "model.dropout=0",
            "--set",
            "data.max_length=32",
        ];
        run(&mut crate::support::process::transformer(
            arguments.iter().map(|argument| (*argument).to_owned()).chain(more.iter().cloned()),
        ))
    };
    prove_equality("MiniLM", setting("TCH_SUITE_BATCH", 32) as usize, train, false);
}

#[test]
#[ignore = "minutes: scripts/prove_distributed.sh"]
fn proof_of_many_kills() {
    let folder = Scratch::new();
    let data = folder.join("data");
    small_data::write(&data, 400, 40);
    let mut noise = small_data::Noise::new(setting("TCH_SUITE_SEED", 0));
    for processes in [2usize, 3] {
        let settings = [&DRAWN[..], &["training.epochs=6"]].concat();
        let undisturbed = folder.join(format!("undisturbed {processes}"));
        done(on(processes, 24, "lenet5", &data, &undisturbed, &settings));
        let steps = metrics(&undisturbed).iter().filter(|line| line["split"] == "train").count() as u64;
        for number in 0..setting("TCH_SUITE_KILLS", 4) {
            for rank in 0..processes {
                let run = folder.join(format!("{processes} {number} {rank}"));
                let mut arguments = on(processes, 24, "lenet5", &data, &run, &settings);
                arguments.extend(["--restarts", "1"].map(str::to_owned));
                let mut child = start(&mut cnn(arguments));
                let moment = noise.below(steps) as usize;
                let there = wait_until(&mut child, || metrics(&run).len() > moment);
                std::thread::sleep(Duration::from_micros(noise.below(20_000)));
                let killed = there
                    && process_of(&child, rank).is_some_and(|process| {
                        send(process, "KILL");
                        true
                    });
                let finished = finish(child);
                assert_eq!(finished.code, Some(0), "{}", finished.stderr);
                eprintln!("{processes} processes, rank {rank} killed after line {moment}: {killed}");
                assert_same_files(&checkpoints(&run), &checkpoints(&undisturbed), "killed");
                assert_eq!(results(&run), results(&undisturbed));
            }
        }
    }
}

#[test]
#[ignore = "needs Python: scripts/prove_distributed.sh"]
fn proof_of_torchrun() {
    let Some(python) = python_with_torch() else { return };
    let folder = Scratch::new();
    let data = folder.join("data");
    small_data::write(&data, 200, 20);
    let launched = folder.join("launched");
    done(on(2, 24, "lenet5", &data, &launched, &DRAWN));
    let torchrun = |out: &Path, more: &[&str]| {
        let settings = [&DRAWN[..], &["training.batch_size=12"]].concat();
        let mut command = Command::new(&python);
        command.args(["-m", "torch.distributed.run", "--no-python", "--nproc-per-node", "2"]).args(more);
        command.args(["--master-port", &free_port().to_string(), env!("CARGO_BIN_EXE_cnn")]);
        command.args(train_arguments("lenet5", &data, out, &settings)).env("OMP_WAIT_POLICY", "passive");
        command
    };
    let out = folder.join("torchrun");
    let finished = run(&mut torchrun(&out, &[]));
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    assert_same_files(&checkpoints(&out), &checkpoints(&launched), "torchrun");
    let out = folder.join("restarted");
    let mut child = start(&mut torchrun(&out, &["--max-restarts", "2"]));
    assert!(wait_until(&mut child, || metrics(&out).len() >= 5));
    kill_rank(&child, 1);
    let finished = finish(child);
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    assert_same_files(&checkpoints(&out), &checkpoints(&launched), "restarted by torchrun");
}

/// Two network namespaces joined by a pair of virtual devices, as two hosts with a cable between them.
struct Hosts;

impl Hosts {
    const NAMES: [&str; 2] = ["tch-suite-a", "tch-suite-b"];

    fn new() -> Option<Hosts> {
        let hosts = Hosts;
        let done = |arguments: &str| {
            let status = Command::new("ip").args(arguments.split(' ')).stderr(Stdio::null()).status();
            status.is_ok_and(|status| status.success())
        };
        let [a, b] = Self::NAMES;
        let commands = [
            format!("netns add {a}"),
            format!("netns add {b}"),
            format!("link add tch-a netns {a} type veth peer name tch-b netns {b}"),
            format!("-n {a} addr add 10.99.0.1/24 dev tch-a"),
            format!("-n {b} addr add 10.99.0.2/24 dev tch-b"),
            format!("-n {a} link set lo up"),
            format!("-n {b} link set lo up"),
            format!("-n {a} link set tch-a up"),
            format!("-n {b} link set tch-b up"),
        ];
        if commands.iter().all(|command| done(command)) {
            return Some(hosts);
        }
        skipped("network namespaces cannot be made here (root and iproute2 are needed)");
        None
    }

    fn cable(&self, state: &str) {
        let arguments = ["-n", Self::NAMES[0], "link", "set", "tch-a", state];
        assert!(Command::new("ip").args(arguments).status().unwrap().success());
    }

    /// Starts the same command on both.
    fn start(&self, arguments: &[String]) -> Vec<Child> {
        let begin = |(rank, host): (usize, &&str)| {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", host, env!("CARGO_BIN_EXE_cnn")]).args(arguments);
            command.args([
                "--init",
                "tcp://10.99.0.1:29555",
                "--world-size",
                "2",
                "--rank",
                &rank.to_string(),
            ]);
            start(command.env("OMP_WAIT_POLICY", "passive"))
        };
        Self::NAMES.iter().enumerate().map(begin).collect()
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for host in Self::NAMES {
            let _ = Command::new("ip").args(["netns", "del", host]).stderr(Stdio::null()).status();
        }
    }
}

#[test]
#[ignore = "needs root: scripts/prove_distributed.sh"]
fn proof_of_two_hosts() {
    let Some(hosts) = Hosts::new() else { return };
    let folder = Scratch::new();
    let data = folder.join("data");
    small_data::write(&data, 2000, 20);
    let settings = [&DRAWN[..], &["training.batch_size=12", "training.optimizer.lr=0.005"]].concat();
    let (undisturbed, out) = (folder.join("undisturbed"), folder.join("run"));
    let whole = hosts.start(&train_arguments("lenet5", &data, &undisturbed, &settings));
    for finished in whole.into_iter().map(finish) {
        assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    }
    let mut arguments = train_arguments("lenet5", &data, &out, &settings);
    arguments.extend(["--auto-resume", "--timeout", "5"].map(str::to_owned));
    let mut children = hosts.start(&arguments);
    assert!(wait_until(&mut children[0], || metrics(&out).len() >= 30));
    let cut = Instant::now();
    hosts.cable("down");
    let ended: Vec<Finished> = children.into_iter().map(finish).collect();
    eprintln!("the cable was cut: both ended after {:.1} s", cut.elapsed().as_secs_f64());
    assert!(cut.elapsed() < Duration::from_secs(30));
    for (finished, words) in ended.iter().zip(["rank 1 (process ", "rank 0 "]) {
        eprintln!("    {}", finished.stderr.trim_end());
        assert_refused(finished, 1, &[words]);
    }
    hosts.cable("up");
    for finished in hosts.start(&arguments).into_iter().map(finish) {
        assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    }
    assert_same_files(&checkpoints(&out), &checkpoints(&undisturbed), "after the cable was cut");
}

/// Numbers that do not repeat, as tests/fixtures/distributed_rank.py makes them.
fn waves(shape: &[i64], frequency: f64) -> Tensor {
    let count = shape.iter().product::<i64>();
    (Tensor::arange(count, (Kind::Double, tch::Device::Cpu)) * frequency)
        .sin()
        .reshape(shape)
        .to_kind(Kind::Float)
}

/// A Python that has torch: the one that `TCH_SUITE_PYTHON` names, else `python3`.
fn python_with_torch() -> Option<String> {
    let python = std::env::var("TCH_SUITE_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let check = "import torch; assert torch.__version__.startswith('2.13')";
    let there = Command::new(&python).args(["-c", check]).stderr(Stdio::null()).status();
    if there.is_ok_and(|status| status.success()) {
        return Some(python);
    }
    skipped("there is no Python with torch 2.13 (TCH_SUITE_PYTHON names one)");
    None
}

/// Rank 1 of tests/fixtures/distributed_rank.py: the weights that it ends with.
fn train_beside_python(port: u16) -> Result<Vec<Vec<f64>>> {
    be_quiet();
    let timeout = Duration::from_secs(100);
    let store = Store::new("127.0.0.1", port, false, 2, timeout, "")?;
    let transport = Transport { interfaces: vec!["lo".to_owned()], ..Transport::default() };
    let group = Group::new(&store, 1, 2, timeout, &transport)?;
    let shapes: [&[i64]; 4] = [&[11, 7], &[11], &[3, 11], &[3]];
    let parameters: Vec<Tensor> = shapes
        .iter()
        .enumerate()
        .map(|(number, shape)| (waves(shape, 1.3 + number as f64) * 0.5).set_requires_grad(true))
        .collect();
    let list = TensorList::new(&parameters)?;
    let config =
        ReducerConfig { first_bucket: 1 << 20, bucket: 25 << 20, find_unused: false, compress: false };
    let reducer = GradientReducer::new(&group, &list, &vec![vec![0, 1, 2, 3]], config)?;
    let (inputs, targets) = (waves(&[8, 7], 0.37), waves(&[8, 3], 0.91));
    let own = |rows: &Tensor| rows.slice(0, 1, None, 2);
    for step in 0..5 {
        if step == 1 {
            reducer.rebuild()?;
        }
        let [first, first_bias, second, second_bias] = &parameters[..] else { unreachable!() };
        let hidden = own(&inputs).linear(first, Some(first_bias)).tanh();
        let error = hidden.linear(second, Some(second_bias)) - own(&targets);
        // DistributedDataParallel takes the mean over processes where this Reducer takes the sum.
        let loss = error.square().mean(Kind::Float) * 0.5;
        reducer.prepare(&loss)?;
        loss.f_backward()?;
        let _guard = tch::no_grad_guard();
        for parameter in &parameters {
            let _ = parameter.shallow_clone().f_sub_(&(parameter.grad() * 0.1))?;
        }
        tch_suite::native::gradients::clear(&list)?;
    }
    group.barrier()?;
    Ok(parameters.iter().map(numbers).collect())
}

#[test]
fn python_and_rust_train_in_one_group() -> Result<()> {
    let Some(python) = python_with_torch() else { return Ok(()) };
    let port = free_port();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/distributed_rank.py");
    let mut command = Command::new(python);
    command.arg(script).env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
    let child = start(command.env("GLOO_SOCKET_IFNAME", "lo"));
    let trained = train_beside_python(port);
    let finished = finish(child);
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    let of_python: Vec<Vec<f64>> = serde_json::from_str(&finished.stdout)?;
    assert_eq!(trained?, of_python);
    Ok(())
}
