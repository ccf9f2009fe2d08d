//! `predict`.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::process::{cnn, done, run_with_input};
use crate::support::runs::train;
use crate::support::small_data::{self, CLASSES, Noise, SIDE};
use crate::support::{Scratch, data};

/// A trained run and one picture of each class, in a folder.
fn place() -> (Scratch, PathBuf, Vec<PathBuf>) {
    let folder = Scratch::new();
    let (data, run, pictures) = (folder.join("data"), folder.join("run"), folder.join("pictures"));
    small_data::write(&data, 200, 0);
    let classes = r#"data.classes=["north-west", "north, east", "south-west", "south-east"]"#;
    train("mlp", &data, &run, &["training.epochs=4", classes]);
    std::fs::create_dir(&pictures).unwrap();
    let mut noise = Noise::new(9);
    let paths = (0..CLASSES).map(|class| {
        let path = pictures.join(format!("{class}.png"));
        let pixels = small_data::image(class, SIDE, &mut noise);
        image::GrayImage::from_raw(SIDE as u32, SIDE as u32, pixels).unwrap().save(&path).unwrap();
        path
    });
    let paths = paths.collect();
    (folder, run, paths)
}

fn predicted(run: &Path, format: &str, more: &[&str]) -> String {
    done(["predict", &run.display().to_string(), "--format", format].iter().chain(more)).stdout
}

#[test]
fn predictions_come_as_json_lines_csv_and_a_table() {
    let (_folder, run, paths) = place();
    let inputs: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
    let lines = predicted(&run, "jsonl", &inputs);
    let objects: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let labels = ["north-west", "north, east", "south-west", "south-east"];
    for ((object, input), label) in objects.iter().zip(&inputs).zip(labels) {
        assert_eq!((object["input"].as_str(), object["label"].as_str()), (Some(*input), Some(label)));
        let probability = object["probability"].as_f64().unwrap();
        assert!(probability > 0.25 && probability <= 1.0);
        assert!(object.get("top").is_none());
    }
    assert_eq!(objects.len(), 4);

    let csv = predicted(&run, "csv", &inputs);
    let rows: Vec<&str> = csv.lines().collect();
    assert_eq!(rows[0], "input,rank,label,probability");
    let probability = objects[1]["probability"].to_string();
    assert_eq!(rows[2], format!("{},1,\"north, east\",{probability}", inputs[1]));
    assert_eq!(rows.len(), 5);

    let table = predicted(&run, "table", &inputs);
    assert!(table.lines().nth(3).unwrap().contains("south-east"), "{table}");
}

#[test]
fn the_best_classes_are_ranked_and_add_up_to_one() {
    let (_folder, run, paths) = place();
    let input = paths[2].display().to_string();
    let line = predicted(&run, "jsonl", &["--top-k", "9", &input]);
    let object: Value = serde_json::from_str(&line).unwrap();
    let top = object["top"].as_array().unwrap();
    let probabilities: Vec<f64> = top.iter().map(|entry| entry["probability"].as_f64().unwrap()).collect();
    assert_eq!(probabilities.len(), CLASSES);
    assert!(probabilities.is_sorted_by(|a, b| a >= b), "{probabilities:?}");
    assert!((probabilities.iter().sum::<f64>() - 1.0).abs() < 1e-6);
    assert_eq!((&top[0]["label"], &top[0]["probability"]), (&object["label"], &object["probability"]));
    let csv = predicted(&run, "csv", &["--top-k", "2", &input]);
    let ranks: Vec<&str> = csv.lines().skip(1).map(|row| row.split(',').nth(1).unwrap()).collect();
    assert_eq!(ranks, ["1", "2"]);
}

#[test]
fn folders_and_lists_on_stdin_are_taken() {
    let (_folder, run, paths) = place();
    let folder = paths[0].parent().unwrap().display().to_string();
    let of_folder = predicted(&run, "jsonl", &[&folder]);
    let names: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    let inputs: Vec<&str> = names.iter().map(String::as_str).collect();
    assert_eq!(of_folder, predicted(&run, "jsonl", &inputs));
    let mut command = cnn(["predict", &run.display().to_string(), "--format", "jsonl", "-"]);
    let of_list = run_with_input(&mut command, &(names.join("\n") + "\n"));
    assert_eq!((of_list.code, of_list.stdout), (Some(0), of_folder));
}

#[test]
fn how_many_at_a_time_does_not_matter() {
    let (_folder, run, paths) = place();
    let folder = paths[0].parent().unwrap().display().to_string();
    let probabilities = |batch: &str| -> Vec<f64> {
        let lines = predicted(&run, "jsonl", &["--batch-size", batch, &folder]);
        let value =
            |line: &str| serde_json::from_str::<Value>(line).unwrap()["probability"].as_f64().unwrap();
        lines.lines().map(value).collect()
    };
    crate::support::assert_close(&probabilities("1"), &probabilities("3"), 1e-5, "probabilities");
}

#[test]
fn pictures_of_other_sizes_and_colours_are_fitted() {
    let (folder, run, _) = place();
    let path = folder.join("large.png");
    // The south-east quarter is bright, in colour, three times as large.
    let side = 3 * SIDE as u32;
    let pixel = |x: u32, y: u32| {
        image::Rgb(if x >= side / 2 && y >= side / 2 { [200, 190, 180] } else { [70, 80, 75] })
    };
    image::RgbImage::from_fn(side, side, pixel).save(&path).unwrap();
    let line = predicted(&run, "jsonl", &[&path.display().to_string()]);
    assert!(line.contains("south-east"), "{line}");
}

#[test]
fn published_weights_classify_photographs_as_published() {
    let Some(folder) = data("pretrained/efficientnet_lite0") else { return };
    let path = |name: &str| folder.join(name).display().to_string();
    let expected: Value =
        serde_json::from_str(&std::fs::read_to_string(path("expected_top5.json")).unwrap()).unwrap();
    for (image, ranked) in expected["top5"].as_object().unwrap() {
        let (weights, classes) = (path("efficientnet-lite0-57934424.pth"), path("imagenet_classes.txt"));
        let from = ["--model", "efficientnet-lite0", "--init-from", &weights, "--classes", &classes];
        let input = path(&format!("images/{image}"));
        let form = ["--top-k", "20", "--format", "jsonl"];
        let found = done(["predict", &input].iter().chain(&from).chain(&form)).stdout;
        let found: Value = serde_json::from_str(&found).unwrap();
        let found = found["top"].as_array().unwrap();
        let ranked = ranked.as_array().unwrap();
        assert_eq!(found[0]["label"], ranked[0]["class"], "{image}");
        let place = |class: &Value| found.iter().position(|one| one["label"] == *class).unwrap();
        for (number, one) in ranked.iter().enumerate() {
            let probability = found[place(&one["class"])]["probability"].as_f64().unwrap();
            let difference = (probability - one["probability"].as_f64().unwrap()).abs();
            assert!(difference < 0.02, "{image}, {}: {difference}", one["class"]);
            // The order holds where the logits are apart.
            for later in &ranked[number + 1..] {
                let apart = one["logit"].as_f64().unwrap() - later["logit"].as_f64().unwrap();
                assert!(
                    apart <= 0.1 || place(&one["class"]) < place(&later["class"]),
                    "{image}: {one} and {later}"
                );
            }
        }
    }
}
