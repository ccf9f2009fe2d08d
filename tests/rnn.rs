//! The program `rnn`: runs, predictions, texts, forecasts, exports, bad input.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tch::{CModule, Device, IValue, Kind, Tensor};
use tch_suite::data::text::TextTokenizer;

use crate::support::process::{Finished, assert_refused, rnn, run, run_with_input, wait_until};
use crate::support::runs::{assert_same_files, checkpoints, files, metrics, read_json, results, series};
use crate::support::{Scratch, assert_close, fixture};

fn done(arguments: &[&str]) -> Finished {
    let finished = run(&mut rnn(arguments));
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    finished
}

fn text_of(path: &Path) -> String {
    path.display().to_string()
}

/// Writes a recipe beside a run and returns the arguments of `train` for it.
fn train_arguments(
    folder: &Path,
    name: &str,
    model: Value,
    data: Value,
    training: Value,
) -> (PathBuf, Vec<String>) {
    let mut usual = json!({
        "batch_size": 8, "log_every": 1, "threads": 1, "optimizer": {"name": "adam", "lr": 0.01},
    });
    usual.as_object_mut().unwrap().extend(training.as_object().unwrap().clone());
    let recipe = folder.join(format!("{name}.recipe.json"));
    let content = json!({"name": "small", "model": model, "data": data, "training": usual});
    std::fs::write(&recipe, content.to_string()).unwrap();
    let out = folder.join(name);
    let arguments =
        ["train", "--quiet", "--recipe", &text_of(&recipe), "--out", &text_of(&out)].map(str::to_owned);
    (out, arguments.to_vec())
}

fn trained(folder: &Path, name: &str, model: Value, data: Value, training: Value) -> PathBuf {
    let (out, arguments) = train_arguments(folder, name, model, data, training);
    done(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    out
}

/// Sentences whose label is told by one word.
fn write_sentences(path: &Path, count: usize, first: usize) {
    let mut text = "sentence\tlabel\n".to_owned();
    for number in first..first + count {
        let word = ["bad", "good"][number % 2];
        let before = ["a", "the very", "this most unusually and needlessly long"][number % 3];
        writeln!(text, "{before} {word} \"film {}\t{}", number % 5, ["no", "yes"][number % 2]).unwrap();
    }
    std::fs::write(path, text).unwrap();
}

fn sentences(folder: &Path) -> PathBuf {
    let data = folder.join("texts");
    std::fs::create_dir_all(&data).unwrap();
    write_sentences(&data.join("train.tsv"), 120, 0);
    write_sentences(&data.join("dev.tsv"), 31, 7);
    data
}

fn classifier() -> Value {
    json!({"name": "gru", "task": "classify", "embedding": 12, "hidden": 12, "bidirectional": true, "pooling": "max"})
}

fn words(path: &Path) -> Value {
    json!({"path": path, "tokenizer": {"kind": "words", "lowercase": true}})
}

#[test]
fn texts_are_classified_from_files_and_stdin() {
    let folder = Scratch::new();
    let data = sentences(&folder);
    let training = json!({"epochs": 4, "metric": "accuracy"});
    let run_folder = trained(&folder, "texts-run", classifier(), words(&data), training);
    let name = text_of(&run_folder);
    let evaluation: Value =
        serde_json::from_str(&done(&["eval", &name, "--split", "validation", "--format", "json"]).stdout)
            .unwrap();
    assert_eq!(evaluation["metrics"]["accuracy"], 1.0, "one word tells the class");
    assert_eq!(evaluation["samples"], 31);
    // A run can be moved: its tokenizer is in it.
    let moved = folder.join("moved");
    std::fs::rename(&run_folder, &moved).unwrap();
    std::fs::rename(&data, folder.join("gone")).unwrap();
    let name = text_of(&moved);
    let input = "A GOOD thing\na bad thing\nan altogether unheard thing that is good\n";
    let answered = run_with_input(&mut rnn(["predict", &name, "-", "--format", "jsonl"]), input);
    assert_eq!(answered.code, Some(0), "{}", answered.stderr);
    let lines: Vec<Value> = answered.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let labels: Vec<&str> = lines.iter().map(|line| line["label"].as_str().unwrap()).collect();
    assert_eq!(labels, ["yes", "no", "yes"]);
    assert_eq!(lines[0]["input"], "A GOOD thing");
    let file = text_of(&folder.join("gone/dev.tsv"));
    assert_eq!(done(&["predict", &name, &file, "--format", "csv"]).stdout.lines().count(), 32);
    assert!(
        done(&["info", &name]).stdout.contains("attention") || done(&["info", &name]).stdout.contains("GRU")
    );
    let shown = done(&["tokenizer", "show", &name, "a good film", "--format", "json"]).stdout;
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["tokens"].as_array().map(Vec::len), Some(3));
}

#[test]
fn an_exported_classifier_serves_every_batch_and_length() {
    let folder = Scratch::new();
    let data = sentences(&folder);
    for (name, pooling, bidirectional) in
        [("last", "last", false), ("packed", "last", true), ("attention", "attention", true)]
    {
        let mut model = classifier();
        model["pooling"] = json!(pooling);
        model["bidirectional"] = json!(bidirectional);
        let run_folder =
            trained(&folder, name, model, words(&data), json!({"epochs": 1, "metric": "accuracy"}));
        let out = folder.join(format!("{name}.pt"));
        done(&["export", &text_of(&run_folder), "--format", "torchscript", "--out", &text_of(&out)]);
        let module = CModule::load_on_device(&out, Device::Cpu).unwrap();
        let tokenizer = TextTokenizer::open(&run_folder).unwrap();
        for text in ["good", "this most unusually and needlessly long bad film and yet another word"] {
            let ids = tokenizer.encode(text).unwrap();
            let tokens = Tensor::from_slice(&ids).view([1, -1]);
            // The same text five times, filled up.
            let filled = Tensor::cat(
                &[tokens.expand([5, -1], false), Tensor::ones([5, 3], (Kind::Int64, Device::Cpu))],
                1,
            );
            let lengths = Tensor::from_slice(&[ids.len() as i64; 5]);
            let logits = module.forward_ts(&[filled, lengths]).unwrap();
            let probability = logits.softmax(-1, Kind::Float).double_value(&[4, 1]);
            let said = done(&[
                "predict",
                &text_of(&run_folder),
                "--text",
                text,
                "--format",
                "jsonl",
                "--top-k",
                "2",
            ])
            .stdout;
            let said: Value = serde_json::from_str(said.trim()).unwrap();
            let yes = said["top"].as_array().unwrap().iter().find(|one| one["label"] == "yes").unwrap();
            let expected = yes["probability"].as_f64().unwrap();
            assert!((probability - expected).abs() < 1e-5, "{name}: {probability}, {expected}");
        }
    }
}

fn language_model() -> Value {
    json!({"name": "lstm", "task": "lm", "embedding": 16, "hidden": 16, "layers": 2, "dropout": 0.2})
}

fn write_text(path: &Path, lines: usize) {
    let mut text = String::new();
    for line in 0..lines {
        writeln!(text, "the {} cat sat on mat {}, é", ["red", "old", "thin"][line % 3], line % 7).unwrap();
    }
    std::fs::write(path, text).unwrap();
}

#[test]
fn a_language_model_writes_scores_and_is_exported_with_its_state() {
    let folder = Scratch::new();
    let text = folder.join("t.txt");
    write_text(&text, 150);
    let data = json!({"path": text, "window": 16, "val_fraction": 0.1});
    let run_folder =
        trained(&folder, "lm", language_model(), data, json!({"epochs": 6, "eval_batch_size": 2}));
    let name = text_of(&run_folder);
    let summary = read_json(&run_folder.join("summary.json"));
    let (loss, perplexity) =
        (summary["best"]["loss"].as_f64().unwrap(), summary["best"]["perplexity"].as_f64().unwrap());
    assert!((loss.exp() - perplexity).abs() < 1e-6 * perplexity);
    assert!(loss < 2.0, "{loss}: it has learned something");
    assert!((summary["best"]["bits_per_character"].as_f64().unwrap() - loss / 2f64.ln()).abs() < 1e-9);

    let generate = |more: &[&str]| {
        done(&[&["generate", &name, "--prompt", "the ", "--length", "60"], more].concat()).stdout
    };
    assert_eq!(generate(&["--seed", "3"]), generate(&["--seed", "3"]));
    assert_ne!(generate(&["--seed", "3"]), generate(&["--seed", "4"]));
    let greedy = generate(&["--temperature", "0"]);
    assert!(greedy.starts_with("the ") && greedy.contains("cat"), "{greedy}");
    let stopped = generate(&["--temperature", "0", "--stop", "cat"]);
    assert_eq!(stopped, format!("{}\n", &greedy[..greedy.find("cat").unwrap()]));
    let piped = run_with_input(
        &mut rnn(["generate", &name, "--length", "5", "--temperature", "0", "--no-echo"]),
        "the ",
    );
    assert_eq!(piped.stdout, format!("{}\n", &greedy[4..9]));

    let part = folder.join("part.txt");
    std::fs::write(&part, "the old cat sat on mat 3, é\nthe thin cat").unwrap();
    let scored = done(&["score", &name, &text_of(&part), "--format", "json"]).stdout;
    let scored: Value = serde_json::from_str(scored.trim()).unwrap();
    let out = folder.join("lm.pt");
    done(&["export", &name, "--format", "torchscript", "--out", &text_of(&out)]);
    let module = CModule::load_on_device(&out, Device::Cpu).unwrap();
    let tokenizer = TextTokenizer::open(&run_folder).unwrap();
    let ids = tokenizer.encode(&std::fs::read_to_string(&part).unwrap()).unwrap();
    // In two parts of other lengths than the traced one, the state carried by hand.
    let zero = || Tensor::zeros([2, 1, 16], (Kind::Float, Device::Cpu));
    let (mut hidden, mut cell, mut nats) = (zero(), zero(), 0.0);
    for range in [0..5, 5..ids.len() - 1] {
        let tokens = Tensor::from_slice(&ids[range.clone()]).view([1, -1]);
        let targets = Tensor::from_slice(&ids[range.start + 1..range.end + 1]);
        let inputs = [tokens, hidden, cell].map(IValue::Tensor);
        let IValue::Tuple(outputs) = module.forward_is(&inputs).unwrap() else { panic!("no tuple") };
        let [IValue::Tensor(logits), IValue::Tensor(h), IValue::Tensor(c)] = &outputs[..] else {
            panic!("not three")
        };
        nats += logits
            .flatten(0, 1)
            .cross_entropy_loss::<Tensor>(&targets, None, tch::Reduction::Sum, -100, 0.0)
            .double_value(&[]);
        (hidden, cell) = (h.shallow_clone(), c.shallow_clone());
    }
    let expected = scored["loss"].as_f64().unwrap();
    assert!((nats / (ids.len() - 1) as f64 - expected).abs() < 1e-5);
    assert_eq!(scored["tokens"], ids.len() - 1);

    // What does not fit is said in one sentence.
    let unseen = folder.join("unseen.txt");
    std::fs::write(&unseen, "the cat\nthe Zat\n").unwrap();
    let refused = run(&mut rnn(["score", &name, &text_of(&unseen)]));
    assert_refused(&refused, 2, &["unseen.txt, line 2", "`Z` is not in the vocabulary"]);
    assert_refused(&run(&mut rnn(["predict", &name, "-"])), 2, &["generate", "score"]);
    let other = folder.join("other.json");
    std::fs::write(folder.join("ab.txt"), "ab").unwrap();
    done(&[
        "tokenizer",
        "train",
        &text_of(&folder.join("ab.txt")),
        "--kind",
        "characters",
        "--out",
        &text_of(&other),
    ]);
    std::fs::rename(&other, run_folder.join("tokenizer.json")).unwrap();
    assert_refused(
        &run(&mut rnn(["generate", &name])),
        2,
        &["the tokenizer has 2 tokens", "model.vocabulary"],
    );
}

#[test]
fn a_language_model_killed_in_the_middle_of_an_epoch_ends_as_if_nothing_had_happened() {
    let folder = Scratch::new();
    let text = folder.join("t.txt");
    write_text(&text, 400);
    let data = json!({"path": text, "window": 8});
    // Saved within the epoch, and carrying states: 8 streams.
    let training = json!({"epochs": 2, "save_every": 7, "eval_every": 50, "accumulate": 1});
    let whole = trained(&folder, "whole", language_model(), data.clone(), training.clone());
    let (killed, mut arguments) = train_arguments(&folder, "killed", language_model(), data, training);
    for kill_after in [20, 75] {
        let mut child = rnn(&arguments)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let reached = wait_until(&mut child, || metrics(&killed).len() >= kill_after);
        assert!(reached, "the run ended before it was killed");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(killed.join("checkpoints/last").exists());
        arguments = ["train", "--quiet", "--resume", &text_of(&killed)].map(str::to_owned).to_vec();
    }
    done(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(results(&killed) == results(&whole), "metrics or summary differ");
    assert_same_files(
        &files(&killed.join("checkpoints/last")),
        &files(&whole.join("checkpoints/last")),
        "the last checkpoint",
    );
}

fn write_series(path: &Path, rows: i64, skip: Option<i64>) {
    let mut text = "date,a,b\n".to_owned();
    for row in (0..rows).filter(|row| Some(*row) != skip) {
        let (day, hour) = (1 + row / 24, row % 24);
        let wave = (row as f64 * std::f64::consts::TAU / 24.0).sin();
        writeln!(text, "2021-01-{day:02} {hour:02}:00:00,{:.4},{:.4}", 10.0 + wave, 5.0 - 2.0 * wave)
            .unwrap();
    }
    std::fs::write(path, text).unwrap();
}

#[test]
fn series_are_forecast_beside_their_baselines() {
    let folder = Scratch::new();
    let series = folder.join("s.csv");
    write_series(&series, 500, None);
    for (name, mode, form) in [
        ("point", "direct", "point"),
        ("gauss", "autoregressive", "gaussian"),
        ("quantile", "direct", "quantiles"),
    ] {
        let model = json!({"name": "gru", "task": "forecast", "hidden": 16, "mode": mode, "form": form, "last_value": true});
        let data = json!({"path": series, "input": 24, "horizon": 6, "season": 24, "calendar": ["hour"]});
        let run_folder =
            trained(&folder, name, model, data, json!({"epochs": 3, "metric": "mse", "batch_size": 32}));
        let summary = read_json(&run_folder.join("summary.json"));
        let metric = |name: &str| summary["test"][name].as_f64().unwrap();
        assert!(metric("seasonal_naive_mse") < 1e-6, "the series repeats each day");
        assert!(metric("linear_mse") < metric("naive_mse") && metric("mse") < metric("naive_mse"), "{name}");
        let plot = folder.join(format!("{name}.svg"));
        let said =
            done(&["predict", &text_of(&run_folder), "--format", "jsonl", "--plot", &text_of(&plot)]).stdout;
        let lines: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 12, "six steps of two series");
        assert_eq!(
            (lines[0]["time"].as_str(), lines[0]["column"].as_str()),
            (Some("2021-01-21 20:00:00"), Some("a"))
        );
        let value = lines[0]["value"].as_f64().unwrap();
        assert!((value - 10.0).abs() < 2.0, "in the units of the series: {value}");
        assert!(std::fs::read_to_string(&plot).unwrap().contains("<svg"));
        if name != "point" {
            assert!((0.0..=1.0).contains(&metric("coverage")));
            let (low, high) = (lines[0]["low"].as_f64().unwrap(), lines[0]["high"].as_f64().unwrap());
            assert!(low < high);
        }
        let out = folder.join(format!("{name}.pt"));
        done(&["export", &text_of(&run_folder), "--format", "torchscript", "--out", &text_of(&out)]);
        let module = CModule::load_on_device(&out, Device::Cpu).unwrap();
        let window = Tensor::rand([5, 24, 3], (Kind::Float, Device::Cpu));
        let future = Tensor::rand([5, 6, 1], (Kind::Float, Device::Cpu));
        assert_eq!(module.forward_ts(&[window, future]).unwrap().size()[..3], [5, 6, 2]);
    }
}

#[test]
fn numbers_are_classified_from_tables_arrays_and_files() {
    let folder = Scratch::new();
    // Rising or falling; as a long table, as NumPy's arrays, as a file for each.
    let (mut long, mut values, mut labels) = ("id,label,x,y\n".to_owned(), Vec::new(), Vec::new());
    for number in 0..60i64 {
        let sign = if number % 2 == 0 { 1.0 } else { -1.0 };
        let class = folder.join(format!("classes/{}", ["rises", "falls"][number as usize % 2]));
        std::fs::create_dir_all(&class).unwrap();
        let mut file = "x,y\n".to_owned();
        for step in 0..6 {
            let (x, y) = (sign * f64::from(step), (number % 5) as f64);
            writeln!(long, "s{number},{},{x},{y}", ["rises", "falls"][number as usize % 2]).unwrap();
            writeln!(file, "{x},{y}").unwrap();
            values.extend([x as f32, y as f32]);
        }
        labels.push(number % 2);
        std::fs::write(class.join(format!("{number}.csv")), file).unwrap();
    }
    std::fs::write(folder.join("long.csv"), long).unwrap();
    let arrays = folder.join("arrays");
    std::fs::create_dir(&arrays).unwrap();
    Tensor::from_slice(&values).view([60, 6, 2]).write_npy(arrays.join("x_train.npy")).unwrap();
    Tensor::from_slice(&labels).write_npy(arrays.join("y_train.npy")).unwrap();
    let model = json!({"name": "rnn-tanh", "task": "classify", "hidden": 8});
    for (name, data) in [
        ("long", json!({"path": folder.join("long.csv"), "id": "id"})),
        ("npy", json!({"path": arrays})),
        ("folders", json!({"path": folder.join("classes")})),
    ] {
        let run_folder = trained(
            &folder,
            &format!("{name}-run"),
            model.clone(),
            data,
            json!({"epochs": 8, "metric": "accuracy"}),
        );
        let best = &read_json(&run_folder.join("summary.json"))["best"];
        assert_eq!(best["accuracy"], 1.0, "{name}");
        if name == "folders" {
            let files = [folder.join("classes/rises/0.csv"), folder.join("classes/falls/1.csv")];
            let files: Vec<String> = files.iter().map(|file| text_of(file)).collect();
            let said =
                done(&["predict", &text_of(&run_folder), &files[0], &files[1], "--format", "csv"]).stdout;
            let labels: Vec<&str> =
                said.lines().skip(1).map(|line| line.split(',').nth(2).unwrap()).collect();
            assert_eq!(labels, ["rises", "falls"]);
        }
    }
}

#[test]
fn bad_input_is_told_in_one_sentence_with_file_and_line() {
    let folder = Scratch::new();
    let data = sentences(&folder);
    let refused = |name: &str, model: Value, data: Value, words: &[&str]| {
        let (_, arguments) = train_arguments(&folder, name, model, data, json!({"epochs": 1}));
        assert_refused(&run(&mut rnn(&arguments)), 2, words);
    };
    let file = |name: &str, content: &[u8]| {
        let path = folder.join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let dev = data.join("dev.tsv");
    let good = std::fs::read_to_string(&dev).unwrap();
    std::fs::write(&dev, good.replacen("\tyes", "\tmaybe", 1)).unwrap();
    refused("label", classifier(), words(&data), &["dev.tsv, line ", "`maybe` is none of the 2 classes"]);
    let empty = file("empty.tsv", b"sentence\tlabel\na\tyes\n \tno\n");
    refused("empty", classifier(), words(&empty), &["empty.tsv, line 3", "the text is empty"]);
    let latin = file("latin.tsv", b"sentence\tlabel\na\tyes\n\xfcber\tno\n");
    refused("latin", classifier(), words(&latin), &["latin.tsv, line 3", "0xfc is not UTF-8"]);
    let nothing = file("nothing.txt", b"");
    refused("nothing", language_model(), json!({"path": nothing}), &["nothing.txt", "no text"]);
    let short = file("short.txt", b"abcdefgh");
    refused("short", language_model(), json!({"path": short}), &["too few for 8 streams"]);
    let broken = file("broken.txt", b"abc\nab\xff\n");
    refused("broken", language_model(), json!({"path": broken}), &["broken.txt, line 2", "not UTF-8"]);
    let forecast = json!({"name": "lstm", "task": "forecast", "hidden": 4});
    let series = folder.join("gap.csv");
    write_series(&series, 100, Some(30));
    refused(
        "gap",
        forecast.clone(),
        json!({"path": series, "input": 24}),
        &["gap.csv, line 32", "fill the gap"],
    );
    write_series(&series, 100, None);
    refused("window", forecast.clone(), json!({"path": series}), &["has 70 rows, but a window has 120"]);
    let text = std::fs::read_to_string(&series).unwrap();
    let nan = file("nan.csv", text.replacen("10.5000", "NaN", 1).as_bytes());
    refused("nan", forecast, json!({"path": nan, "input": 24}), &["nan.csv, line ", "column a", "missing"]);
    refused(
        "both",
        json!({"name": "lstm", "task": "lm", "bidirectional": true}),
        json!({"format": "shakespeare-mini"}),
        &["model.bidirectional"],
    );
    assert_refused(&run(&mut rnn(["train", "--task", "classfy"])), 2, &["model.task", "`classify`"]);
}

#[test]
fn every_recipe_says_what_it_is_and_can_be_resolved() {
    let listed = done(&["recipes"]).stdout;
    for name in
        ["lstm-shakespeare-mini (default)", "lstm-tinyshakespeare", "keras-lstm", "lstm-sst2", "lstm-etth1"]
    {
        assert!(listed.contains(name), "{listed}");
    }
    let resolved: Value = serde_json::from_str(&done(&["train", "--dry-run"]).stdout).unwrap();
    assert_eq!(resolved["model"]["vocabulary"], 62);
    let resolved: Value =
        serde_json::from_str(&done(&["train", "--task", "classify", "--dry-run"]).stdout).unwrap();
    assert_eq!(
        (resolved["name"].as_str(), resolved["model"]["classes"].as_i64()),
        (Some("keras-lstm"), Some(10))
    );
    let table = done(&["info", "--model", "lstm"]).stdout;
    assert!(table.contains("LSTM") && table.contains("1,086,017"), "{table}");
}

#[test]
fn texts_may_have_several_labels_and_vectors_from_elsewhere() {
    let folder = Scratch::new();
    let mut lines = String::new();
    for number in 0..90 {
        let (salt, sweet) = (number % 2 == 0, number % 3 == 0);
        let words = [if salt { "salty" } else { "plain" }, if sweet { "sugared" } else { "bitter" }, "food"];
        let labels: Vec<&str> =
            [salt.then_some("salt"), sweet.then_some("sweet")].into_iter().flatten().collect();
        writeln!(lines, "{}", json!({"text": words.join(" "), "label": labels})).unwrap();
    }
    let path = folder.join("tastes.jsonl");
    std::fs::write(&path, lines).unwrap();
    let vectors = folder.join("vectors.txt");
    std::fs::write(&vectors, "salty 1 0 0 2\nsugared 0 1 0 2\nunknown 1 1 1 1\n").unwrap();
    let data = json!({"path": path, "text": "text", "multi_label": true, "vectors": vectors, "tokenizer": {"kind": "words"}});
    let model = json!({"name": "lstm", "task": "classify", "embedding": 4, "hidden": 12, "pooling": "mean"});
    let run_folder =
        trained(&folder, "tastes", model.clone(), data.clone(), json!({"epochs": 12, "metric": "micro_f1"}));
    let best = &read_json(&run_folder.join("summary.json"))["best"];
    assert!(best["micro_f1"].as_f64().unwrap() > 0.95, "{best}");
    let said =
        done(&["predict", &text_of(&run_folder), "--text", "salty sugared food", "--format", "jsonl"]).stdout;
    let said: Value = serde_json::from_str(said.trim()).unwrap();
    assert_eq!(said["top"].as_array().map(Vec::len), Some(2), "{said}");
    let mut wide = model;
    wide["embedding"] = json!(5);
    let (_, arguments) = train_arguments(&folder, "wide", wide, data, json!({"epochs": 1}));
    assert_refused(&run(&mut rnn(&arguments)), 2, &["4 numbers each", "model.embedding is 5"]);
}

#[test]
fn losses_are_pytorchs_with_dropout_and_carried_state() {
    let folder = Scratch::new();
    let model = json!({
        "name": "lstm", "task": "lm", "embedding": 24, "hidden": 24, "layers": 2,
        "dropout": 0.3, "embedding_dropout": 0.1, "output_dropout": 0.3,
    });
    let data = json!({"format": "shakespeare-mini", "window": 16});
    // scripts/references/char_lstm.py --fixture: the same initial weights, windows, masks, steps.
    let training = json!({"steps": 30, "optimizer": {"name": "adam", "lr": 0.003}, "clip_norm": 5.0, "eval_batch_size": 64});
    let (run_folder, arguments) = train_arguments(&folder, "curve", model, data, training);
    let finished = run(rnn(arguments).env("TCH_SUITE_DROPOUT", "pytorch"));
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    let found = series(&run_folder, "train", "loss");
    let expected: Vec<f64> = serde_json::from_value(fixture("char_lstm.json")["losses"].clone()).unwrap();
    assert_eq!(expected.len(), 30);
    assert_close(&found, &expected, 1e-5, "the losses of the first steps");
}

#[test]
fn a_trial_of_the_arithmetic_leaves_the_carried_state_alone() {
    let folder = Scratch::new();
    let model = json!({"name": "lstm", "task": "lm", "embedding": 16, "hidden": 16, "layers": 1, "output_dropout": 0.2});
    let data = json!({"format": "shakespeare-mini", "window": 16});
    let in_precision = |name: &str, precision: &str| {
        trained(&folder, name, model.clone(), data.clone(), json!({"steps": 4, "precision": precision}))
    };
    let tried = in_precision("tried", "auto");
    let chosen = read_json(&tried.join("recipe.json"))["training"]["precision"].as_str().unwrap().to_owned();
    assert_same_files(&checkpoints(&tried), &checkpoints(&in_precision("told", &chosen)), "a language model");
}
