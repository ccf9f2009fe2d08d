//! Runs: what is in them, and what the other verbs make of them.

use std::fmt::Write;

use serde_json::{Value, json};
use tch::{CModule, Kind, Tensor};

use super::{Place, coefficients, number, stdout};
use crate::support::process::{assert_refused, regression, run, run_with_input};
use crate::support::runs::read_json;
use crate::support::small_data::Noise;
use crate::support::{assert_close, data};

/// A table with numbers, categories, gaps and a group column; y depends on all of it, and so does the class.
fn mixed_table(rows: usize) -> String {
    let mut noise = Noise::new(3);
    let mut uniform = || noise.below(1 << 20) as f64 / f64::from(1 << 20);
    let mut text = "id,a,b,colour,group,weight,y,class\n".to_owned();
    for row in 0..rows {
        let (a, b, colour) = (uniform() * 4.0, uniform() - 0.5, (uniform() * 3.0) as usize);
        let y = 1.5 * a - 2.0 * b + [0.0, 3.0, -1.0][colour] + 0.2 * (uniform() - 0.5) + 10.0;
        let class = ["low", "mid", "high"][((y - 8.0 + 3.0 * uniform()) / 4.0).clamp(0.0, 2.0) as usize];
        let b = if row % 17 == 5 { String::new() } else { b.to_string() };
        let colour = ["red", "green", "blue"][colour];
        writeln!(text, "{row},{a},{b},\"{colour}\",{},{},{y},{class}", row / 5, 1 + row % 3).unwrap();
    }
    text
}

const FEATURES: [&str; 2] = ["--features", "a,b,colour"];

#[test]
fn a_run_has_its_files_and_every_verb_takes_it() {
    let place = Place::new();
    let table = place.write("mixed.csv", mixed_table(300));
    let flags = [
        "--data",
        &table,
        "--target",
        "y",
        "--missing",
        "indicator",
        "--cv",
        "4",
        "--reference",
        "colour=green",
    ];
    let run = place.train("run", &[&flags[..], &FEATURES].concat());
    for name in [
        "recipe.json",
        "model.json",
        "model.safetensors",
        "statistics.json",
        "summary.json",
        "report.html",
        "log.txt",
        "metrics.jsonl",
        "cross_validation.json",
    ] {
        assert!(run.join(name).is_file(), "{name} is missing");
    }
    let model = read_json(&run.join("model.json"));
    assert_eq!(model["columns"], json!(["a", "b", "b (missing)", "colour=blue", "colour=red"]));
    let found = coefficients(&run);
    assert!((found[1] - 1.5).abs() < 0.05 && (found[2] + 2.0).abs() < 0.1, "{found:?}");
    assert!((found[4] + 4.0).abs() < 0.1 && (found[5] + 3.0).abs() < 0.1, "{found:?}");
    let summary = read_json(&run.join("summary.json"));
    assert!(number(&summary["test"]["r2"]) > 0.95, "{summary}");
    assert!(number(&summary["best"]["r2"]) > 0.95, "{summary}");

    let run = run.display().to_string();
    let evaluated: Value = serde_json::from_str(&stdout(&["eval", &run, "--format", "json"])).unwrap();
    assert_eq!(evaluated["split"], "test");
    assert_eq!(evaluated["metrics"]["r2"], summary["test"]["r2"]);
    let train: Value =
        serde_json::from_str(&stdout(&["eval", &run, "--split", "train", "--format", "json"])).unwrap();
    assert_eq!(train["samples"], 240);
    let text = stdout(&["summary", &run]);
    assert!(text.contains("OLS Regression Results") && text.contains("colour=blue"), "{text}");
    assert!(stdout(&["summary", &run, "--robust", "HC3"]).contains("Standard errors are HC3"));
    assert!(stdout(&["info", &run]).contains("reference green"));
    let described: Value =
        serde_json::from_str(&stdout(&["describe", &table, "--target", "y", "--format", "json"])).unwrap();
    assert_eq!(described["columns"][2]["missing"], 18);
    assert_eq!(described["columns"][3]["frequent"].as_array().unwrap().len(), 3);

    // Rows of stdin give the same predictions as the file, in any form, and the exported module the same numbers.
    let header_and_two: String = mixed_table(300).lines().take(8).map(|line| format!("{line}\n")).collect();
    let piped = run_with_input(&mut regression(["predict", &run, "--keep", "id,colour"]), &header_and_two);
    let lines: Vec<&str> = piped.stdout.lines().collect();
    assert_eq!(lines[0], "id,colour,prediction", "{}", piped.stderr);
    let all = stdout(&["predict", &run, &table, "--keep", "id,colour"]);
    assert_eq!(lines[1..], all.lines().collect::<Vec<_>>()[1..8]);
    let jsonl = stdout(&["predict", &run, &table, "--format", "jsonl"]);
    let first: Value = serde_json::from_str(jsonl.lines().next().unwrap()).unwrap();
    let predicted: Vec<f64> =
        lines[1..].iter().map(|line| line.rsplit(',').next().unwrap().parse().unwrap()).collect();
    assert_eq!(number(&first["prediction"]), predicted[0]);
    assert_close(&exported(&place, &run, &header_and_two), &predicted, 1e-12, "TorchScript");
    let readable = place.text("m.json");
    stdout(&["export", &run, "--format", "json", "--out", &readable]);
    assert_eq!(read_json(readable.as_ref()), model);
}

/// What the exported TorchScript module says of the rows of a mixed table.
fn exported(place: &Place, run: &str, rows: &str) -> Vec<f64> {
    let path = place.text("module.pt");
    stdout(&["export", run, "--format", "torchscript", "--out", &path]);
    let levels = ["blue", "green", "red"];
    let mut values = Vec::new();
    for line in rows.lines().skip(1) {
        let fields: Vec<&str> = line.split(',').collect();
        let colour = fields[3].trim_matches('"');
        values.extend([
            fields[1].parse().unwrap(),
            fields[2].parse().unwrap_or(f64::NAN),
            levels.iter().position(|level| *level == colour).unwrap() as f64,
        ]);
    }
    let features = Tensor::from_slice(&values).view([-1, 3]);
    let module = CModule::load(&path).unwrap();
    let output = module.forward_ts(&[features]).unwrap().to_kind(Kind::Double);
    Vec::try_from(output.flatten(0, -1)).unwrap()
}

#[test]
fn classes_are_told_with_their_probabilities() {
    let place = Place::new();
    let table = place.write("mixed.csv", mixed_table(400));
    let flags = ["--data", &table, "--recipe", "multinomial", "--target", "class", "--missing", "mean"];
    let run = place.train("run", &[&flags[..], &FEATURES].concat());
    let summary = read_json(&run.join("summary.json"));
    assert!(number(&summary["test"]["accuracy"]) > 0.75, "{summary}");
    let run = run.display().to_string();
    let text = stdout(&["predict", &run, &table, "--probabilities", "--keep", "class"]);
    let mut lines = text.lines();
    assert_eq!(
        lines.next(),
        Some("class,label,probability,probability_high,probability_low,probability_mid")
    );
    let mut right = 0;
    for line in lines {
        let fields: Vec<&str> = line.split(',').collect();
        let shares: Vec<f64> = fields[3..].iter().map(|share| share.parse().unwrap()).collect();
        assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        assert_eq!(fields[2].parse::<f64>().unwrap(), shares.iter().copied().fold(0.0, f64::max));
        right += usize::from(fields[0] == fields[1]);
    }
    assert!(right > 300, "{right}");
    // Penalised fits have no standard errors, and the summary says so.
    assert!(stdout(&["summary", &run]).contains("no standard errors"));
}

#[test]
fn an_unseen_category_is_refused_or_the_reference() {
    let place = Place::new();
    let table = place.write("mixed.csv", mixed_table(200));
    let run = place
        .train("run", &[&["--data", &table, "--target", "y", "--missing", "drop"][..], &FEATURES].concat());
    let run = run.display().to_string();
    let rows = "a,b,colour\n1,0.1,blue\n1,0.1,purple\n";
    let refused = run_with_input(&mut regression(["predict", &run, "--format", "jsonl"]), rows);
    assert_refused(
        &refused,
        2,
        &["stdin, line 3: column `colour` has the category `purple`", "--unseen reference"],
    );
    let taken = run_with_input(&mut regression(["predict", &run, "--unseen", "reference"]), rows);
    let lines: Vec<&str> = taken.stdout.lines().collect();
    // The first level in ascending order is the reference.
    assert_eq!(lines[1], lines[2], "{}", taken.stderr);
    let gap =
        run_with_input(&mut regression(["predict", &run, "--format", "jsonl"]), "a,b,colour\n1,,blue\n");
    assert_refused(&gap, 2, &["column `b` has 1 missing values"]);
}

#[test]
fn a_streamed_fit_is_the_fit_in_memory() {
    let place = Place::new();
    let table = place.write("mixed.csv", mixed_table(3000));
    for (model, target) in
        [("linear", "y"), ("ridge", "y"), ("lasso", "y"), ("poisson", "y"), ("multinomial", "class")]
    {
        let flags = [
            "--data",
            &table,
            "--recipe",
            model,
            "--target",
            target,
            "--missing",
            "mean",
            "--test-fraction",
            "0",
            "--weights",
            "weight",
        ];
        let flags = [&flags[..], &FEATURES].concat();
        let memory = place.train(&format!("{model}-memory"), &flags);
        let streamed = place.train(&format!("{model}-streamed"), &[&flags[..], &["--stream"]].concat());
        assert_close(&coefficients(&streamed), &coefficients(&memory), 1e-9, model);
    }
    // Held-out rows are chosen by their position, so both halves are whole together.
    let run = place.train(
        "split",
        &[&["--data", &table, "--target", "y", "--missing", "mean", "--stream"][..], &FEATURES].concat(),
    );
    let run = run.display().to_string();
    let count = |split: &str| {
        let text = stdout(&["eval", &run, "--split", split, "--format", "json"]);
        number(&serde_json::from_str::<Value>(&text).unwrap()["samples"])
    };
    let (test, train) = (count("test"), count("train"));
    assert!(test > 500.0 && test < 700.0 && test + train == 3000.0, "{test} {train}");
}

#[test]
fn weights_are_repeated_rows() {
    let place = Place::new();
    let table = mixed_table(60);
    let mut repeated = String::new();
    for (number, line) in table.lines().enumerate() {
        let times = if number == 0 { 1 } else { line.split(',').nth(5).unwrap().parse().unwrap() };
        repeated.push_str(&format!("{line}\n").repeat(times));
    }
    let (once, repeated) = (place.write("once.csv", &table), place.write("repeated.csv", repeated));
    for (model, target) in
        [("linear", "y"), ("quantile", "y"), ("huber", "y"), ("multinomial", "class"), ("poisson", "y")]
    {
        let shared = [
            "--recipe",
            model,
            "--target",
            target,
            "--missing",
            "drop",
            "--test-fraction",
            "0",
            "--standardize",
            "false",
        ];
        // The median of an even number of rows need not be unique.
        let quantile = if model == "quantile" { &["--quantile", "0.37"][..] } else { &[] };
        let shared = [&shared[..], &FEATURES, quantile].concat();
        let weighted = place
            .train(&format!("{model}-w"), &[&shared[..], &["--data", &once, "--weights", "weight"]].concat());
        let plain = place.train(&format!("{model}-p"), &[&shared[..], &["--data", &repeated]].concat());
        assert_close(&coefficients(&weighted), &coefficients(&plain), 1e-6, model);
    }
}

#[test]
fn gradient_descent_finds_the_line() {
    let place = Place::new();
    let mut noise = Noise::new(9);
    let mut uniform = || noise.below(1 << 20) as f64 / f64::from(1 << 20);
    let (mut text, mut sum) = ("x,y\n".to_owned(), 0.0);
    for _ in 0..100 {
        let (x, error) = (2.0 * uniform(), uniform());
        sum += error;
        writeln!(text, "{x},{}", 3.0 * x + 2.0 + error).unwrap();
    }
    let table = place.write("line.csv", text);
    let run = place.train("gd", &["--recipe", "gd-line", "--data", &table]);
    let found = coefficients(&run);
    assert!((found[0] - 2.0 - sum / 100.0).abs() < 0.1 && (found[1] - 3.0).abs() < 0.1, "{found:?}");
    let records = crate::support::runs::metrics(&run);
    assert_eq!(records.last().unwrap()["step"], 1000);
    // It goes on as any training does.
    let resumed = crate::support::process::run(&mut regression([
        "train",
        "--quiet",
        "--steps",
        "1010",
        "--resume",
        &run.display().to_string(),
    ]));
    assert_eq!(resumed.code, Some(0), "{}", resumed.stderr);
}

#[test]
fn networks_train_export_and_resume() {
    let place = Place::new();
    let table = place.write("mixed.csv", mixed_table(400));
    let flags = [
        "--data",
        &table,
        "--recipe",
        "mlp",
        "--target",
        "y",
        "--missing",
        "indicator",
        "--epochs",
        "60",
        "--hidden",
        "16,8",
        "--set",
        "model.batch_norm=true",
        "--set",
        "model.dropout=0.05",
    ];
    let flags = [&flags[..], &FEATURES].concat();
    let run = place.train("run", &flags);
    let summary = read_json(&run.join("summary.json"));
    assert!(number(&summary["test"]["r2"]) > 0.8, "{summary}");
    let run = run.display().to_string();
    let evaluated: Value = serde_json::from_str(&stdout(&["eval", &run, "--format", "json"])).unwrap();
    let difference = number(&evaluated["metrics"]["r2"]) - number(&summary["test"]["r2"]);
    assert!(difference.abs() < 1e-5, "{evaluated}");
    let rows: String = mixed_table(400).lines().take(10).map(|line| format!("{line}\n")).collect();
    let predicted: Vec<f64> = run_with_input(&mut regression(["predict", &run]), &rows)
        .stdout
        .lines()
        .skip(1)
        .map(|line| line.parse().unwrap())
        .collect();
    assert_close(&exported(&place, &run, &rows), &predicted, 1e-6, "TorchScript");
    assert!(stdout(&["info", &run]).contains("BatchNorm1d"));
    // A solver's run has nothing to resume.
    let fit =
        place.train("fit", &["--data", &table, "--target", "y", "--features", "a"]).display().to_string();
    let refused = crate::support::process::run(&mut regression(["train", "--quiet", "--resume", &fit]));
    assert_refused(&refused, 2, &["nothing to continue"]);
}

#[test]
fn the_networks_of_the_recipes_learn() {
    let place = Place::new();
    let accuracy = |recipe: &str| {
        let run = place.train(recipe, &["--recipe", recipe]);
        number(&read_json(&run.join("summary.json"))["test"]["accuracy"])
    };
    assert!(accuracy("dense-binary") > 0.65);
    assert!(accuracy("sigmoid-2-3-1") > 0.85);
}

#[test]
fn a_path_has_its_rule_and_a_search_goes_on_where_it_was() {
    let place = Place::new();
    let path = place.text("path");
    stdout(&["path", "--quiet", "--recipe", "lasso", "--points", "12", "--out", &path]);
    let found = read_json(&place.path("path/path.json"));
    let points = found["path"].as_array().unwrap();
    assert_eq!((points.len(), &points[0]["nonzero"]), (12, &json!(0)));
    assert!(number(&found["one_standard_error"]) >= number(&found["best"]), "{found}");
    assert!(place.path("path/model.json").is_file() && place.path("path/report.html").is_file());

    let search = place.text("search");
    let flags = [
        "search",
        "--quiet",
        "--recipe",
        "ridge",
        "--try",
        "model.alpha=0.1,10,1000000",
        "--cv",
        "3",
        "--jobs",
        "2",
    ];
    stdout(&[&flags[..], &["--out", &search]].concat());
    let trials = place.path("search/trials.jsonl");
    let all = std::fs::read_to_string(&trials).unwrap();
    assert_eq!(all.lines().count(), 3);
    let result = read_json(&place.path("search/result.json"));
    assert_ne!(result["best"]["settings"]["model.alpha"], json!(1_000_000), "{result}");
    // One line is lost and one torn: both trials are done again, the other is not.
    let kept = all.lines().next().unwrap();
    std::fs::write(&trials, format!("{kept}\n{}", &all.lines().nth(1).unwrap()[..10])).unwrap();
    stdout(&["search", "--quiet", "--resume", &search]);
    let again = std::fs::read_to_string(&trials).unwrap();
    assert_eq!((again.lines().count(), again.lines().next()), (3, Some(kept)));
    assert_eq!(read_json(&place.path("search/result.json")), result);
    let changed = ["search", "--quiet", "--try", "model.alpha=5", "--cv", "3", "--resume", &search];
    assert_refused(&run(&mut regression(changed)), 2, &["keeps its plan"]);
}

#[test]
fn california_housing_is_scikit_learns_and_the_network_is_better() {
    let Some(table) = data("regression/california_housing.csv") else { return };
    let place = Place::new();
    let table = table.display().to_string();
    let run =
        place.train("linear", &["--data", &table, "--target", "median_house_value", "--missing", "median"]);
    let linear = number(&read_json(&run.join("summary.json"))["test"]["r2"]);
    assert!((0.6..0.7).contains(&linear), "{linear}");
    let run = place.train("mlp", &["--recipe", "mlp-california", "--data", &table, "--epochs", "12"]);
    let network = number(&read_json(&run.join("summary.json"))["test"]["r2"]);
    assert!(network > 0.75, "{network}");
}
