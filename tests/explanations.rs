//! Explanations are captum's, integrated gradients add up, and the verb draws them.

use std::path::Path;

use serde_json::Value;
use tch::{Device, Kind, Tensor};
use tch_suite::data::images::ImageDataConfig;
use tch_suite::models::Parameters;
use tch_suite::models::image::{self, ImageModelConfig};
use tch_suite::tasks::criterion::ClassificationLoss;
use tch_suite::tasks::explanation::{Method, explain, grad_cam, integrated_gradients_at, occlusion};
use tch_suite::tasks::image_classification::ImageClassification;

use crate::support::process::{assert_refused, cnn, done, run};
use crate::support::runs::{resume, train};
use crate::support::small_data::{self, Noise, SIDE};
use crate::support::{Scratch, assert_close, fixture, formula, numbers};

/// A classifier with the formula's weights.
fn classifier(name: &str, channels: i64, side: i64) -> ImageClassification {
    let config = ImageModelConfig {
        num_classes: Some(10),
        in_channels: Some(channels),
        image_size: Some([side, side]),
        ..ImageModelConfig::named(name)
    };
    let data: ImageDataConfig =
        serde_json::from_value(serde_json::json!({"path": "none", "mean": [0.5], "std": [0.25]})).unwrap();
    let parameters = Parameters::undrawn(Device::Cpu);
    let model = image::build(&parameters.root(), &config).unwrap();
    formula::fill(&parameters).unwrap();
    let names = (0..10).map(|class| class.to_string()).collect();
    let normalisation = data.normalisation(channels as usize).unwrap();
    let loss = ClassificationLoss::default();
    ImageClassification::new(parameters, model, &normalisation, names, &loss, false).unwrap()
}

#[test]
fn explanations_are_captums() {
    let fixture = fixture("explanations.json");
    let number = |key: &str| fixture[key].as_i64().unwrap();
    let (side, class) = (number("side"), number("class"));
    let images = formula::images(1, 3, [side, side]);
    let kept = |map: &Tensor| numbers(&map.slice(0, None, None, 5).slice(1, None, None, 5));
    for (name, expected) in fixture["models"].as_object().unwrap() {
        let task = classifier(name, 3, side);
        let known = |method: &str| -> Vec<f64> { serde_json::from_value(expected[method].clone()).unwrap() };
        let cam = grad_cam(&task, &images, class).unwrap();
        assert_close(&kept(&cam), &known("grad-cam"), 1e-4, &format!("{name}: grad-cam"));
        let points = number("points") as usize;
        let parts = integrated_gradients_at(&task, &images, &images.zeros_like(), class, points).unwrap();
        let summed = parts.squeeze_dim(0).sum_dim_intlist(0i64, false, Kind::Float);
        let what = format!("{name}: integrated gradients");
        assert_close(&kept(&summed), &known("integrated-gradients"), 1e-3, &what);
        let covered = occlusion(&task, &images, class, number("window"), number("stride")).unwrap();
        assert_close(&kept(&covered), &known("occlusion"), 1e-3, &format!("{name}: occlusion"));
    }
}

#[test]
fn integrated_gradients_add_up_to_the_score() {
    for (name, side) in [("mobilenet_v3_small", 64), ("resnet20", 32), ("lenet5", 28), ("mlp", 28)] {
        let channels = image::find(name).unwrap().usual_input.0;
        let task = classifier(name, channels, side);
        let pixels = (formula::images(1, channels, [side, side]) * 127.0 + 128.0).to_kind(Kind::Uint8);
        let found = explain(&task, &pixels, None, Method::IntegratedGradients).unwrap();
        let _guard = tch::no_grad_guard();
        let score = |pixels: &Tensor| {
            task.model().forward(&task.normalise(pixels).unwrap(), false).double_value(&[0, found.class])
        };
        let whole = score(&pixels) - score(&pixels.zeros_like());
        let sum = found.map.sum(Kind::Double).double_value(&[]);
        assert!((sum - whole).abs() <= 0.0101 * whole.abs(), "{name}: {sum}, not {whole}");
        assert!(found.gap.is_some_and(|gap| gap <= 0.01), "{name}: {:?}", found.gap);
        assert_eq!(found.map.size(), [side, side]);
    }
}

fn path(path: &Path) -> String {
    path.display().to_string()
}

#[test]
fn the_verb_draws_every_image_with_its_explanation() {
    let folder = Scratch::new();
    let (data, trained) = (folder.join("data"), folder.join("run"));
    small_data::write(&data, 200, 40);
    train("lenet5", &data, &trained, &["training.epochs=2", r#"data.classes=["a", "b", "c", "d"]"#]);
    let mut noise = Noise::new(4);
    let pictures: Vec<String> = (0..3)
        .map(|class| {
            let file = folder.join(format!("{class}.png"));
            let pixels = small_data::image(class, SIDE, &mut noise);
            ::image::GrayImage::from_raw(SIDE as u32, SIDE as u32, pixels).unwrap().save(&file).unwrap();
            path(&file)
        })
        .collect();
    let out = path(&folder.join("out.png"));
    for method in ["grad-cam", "integrated-gradients", "occlusion"] {
        let mut arguments = vec!["explain".to_owned(), path(&trained)];
        arguments.extend(pictures.iter().cloned());
        arguments.extend(
            ["--method", method, "--class", "b", "--format", "json", "--out", &out].map(str::to_owned),
        );
        let lines = done(&arguments).stdout;
        let found: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(found.len(), 3);
        assert!(found.iter().all(|line| line["label"] == "b" && line["method"] == method), "{lines}");
        assert_eq!(found[0]["gap"].is_number(), method == "integrated-gradients");
        // 14 pixels enlarged 7 times, with gaps of 4; three rows of two.
        assert_eq!(::image::open(&out).unwrap().to_rgb8().dimensions(), (2 * 102 + 4, 3 * 102 + 4));
    }
    let refused =
        run(&mut cnn(["explain", &path(&trained), &pictures[0], "--class", "zebra", "--out", &out]));
    assert_refused(&refused, 2, &["--class zebra", "(known: a, b, c, d)"]);
    let dense = folder.join("dense");
    train("mlp", &data, &dense, &["training.steps=2"]);
    let refused = run(&mut cnn(["explain", &path(&dense), &pictures[0], "--out", &out]));
    assert_refused(&refused, 2, &["grad-cam needs a network with convolutions", "occlusion"]);

    // A finished run makes its report anew, with maps.
    let report = || std::fs::read_to_string(trained.join("report.html")).unwrap();
    assert!(!report().contains("Least certain"));
    resume(&trained, &["--explain", "grad-cam"]);
    assert!(report().contains("Least certain") && report().contains("by grad-cam"));
}
