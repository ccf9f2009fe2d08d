//! `export`.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tch::{CModule, Device, Kind, Tensor};

use crate::support::process::done;
use crate::support::runs::{tensors, train};
use crate::support::small_data::{self, CLASSES, Noise, SIDE};
use crate::support::{Scratch, assert_close, numbers};

fn exported(run: &Path, format: &str, out: &Path) -> PathBuf {
    done(["export", &run.display().to_string(), "--format", format, "--out", &out.display().to_string()]);
    out.to_owned()
}

#[test]
fn a_traced_module_computes_what_predict_says_at_another_batch_size() {
    let folder = Scratch::new();
    let data = folder.join("data");
    small_data::write(&data, 200, 0);
    for (model, settings) in [("lenet5", &["model.dropout=0.3"][..]), ("mlp", &["training.ema=0.9"])] {
        let run = folder.join(model);
        train(model, &data, &run, &[&["training.epochs=2"], settings].concat());
        let path = exported(&run, "torchscript", &folder.join(format!("{model}.pt")));

        const COUNT: usize = 5;
        let mut noise = Noise::new(4);
        let mut pixels = Vec::new();
        let mut inputs = Vec::new();
        for number in 0..COUNT {
            let image = small_data::image(number % CLASSES, SIDE, &mut noise);
            let path = folder.join(format!("{model}-{number}.png"));
            image::GrayImage::from_raw(SIDE as u32, SIDE as u32, image.clone()).unwrap().save(&path).unwrap();
            pixels.extend(image);
            inputs.push(path.display().to_string());
        }
        let arguments = ["predict", &run.display().to_string(), "--format", "jsonl", "--top-k", "4"];
        let predicted = done(arguments.into_iter().chain(inputs.iter().map(String::as_str))).stdout;

        let module = CModule::load_on_device(&path, Device::Cpu).unwrap();
        let images = Tensor::from_slice(&pixels).reshape([COUNT as i64, 1, SIDE as i64, SIDE as i64]);
        // The recipe's normalisation.
        let normalised = (images.to_kind(Kind::Float) / 255.0 - 0.3) / 0.25;
        let probabilities = module.forward_ts(&[normalised]).unwrap().softmax(-1, Kind::Float);
        assert_eq!(probabilities.size(), [COUNT as i64, CLASSES as i64]);
        for (row, line) in predicted.lines().enumerate() {
            let object: Value = serde_json::from_str(line).unwrap();
            for entry in object["top"].as_array().unwrap() {
                let class: i64 = entry["label"].as_str().unwrap().parse().unwrap();
                let expected = entry["probability"].as_f64().unwrap();
                let found = probabilities.double_value(&[row as i64, class]);
                assert!(
                    (found - expected).abs() < 1e-5,
                    "{model}, row {row}, class {class}: {found}, {expected}"
                );
            }
        }

        let mut named: Vec<String> =
            module.named_parameters().unwrap().into_iter().map(|(name, _)| name).collect();
        named.sort();
        let expected: Vec<String> = tensors(&run, "best", "model").into_keys().collect();
        assert_eq!(named, expected, "parameters keep their names");
    }
}

#[test]
fn exported_weights_are_those_that_predictions_are_made_with() {
    let folder = Scratch::new();
    let (data, run) = (folder.join("data"), folder.join("run"));
    small_data::write(&data, 80, 0);
    train("lenet5", &data, &run, &["training.epochs=1", "training.ema=0.9"]);
    let path = exported(&run, "safetensors", &folder.join("model.safetensors"));
    let exported = tch_suite::weights::read_safetensors(&path).unwrap();
    let averaged = tensors(&run, "best", "ema");
    assert_eq!(exported.len(), averaged.len());
    for (name, tensor) in exported {
        assert_close(&numbers(&tensor), &numbers(&averaged[&name]), 0.0, &name);
    }
    // Another run may start from the file.
    let init = format!("training.init_from={}", path.display());
    train("lenet5", &data, &folder.join("next"), &[&init, "training.steps=1"]);
}

#[test]
fn nothing_half_written_stays() {
    let folder = Scratch::new();
    let (data, run) = (folder.join("data"), folder.join("run"));
    small_data::write(&data, 40, 0);
    train("mlp", &data, &run, &["training.steps=1"]);
    let out = folder.join("out");
    std::fs::create_dir(&out).unwrap();
    exported(&run, "torchscript", &out.join("model.pt"));
    let names: Vec<_> = std::fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["model.pt"]);
}
