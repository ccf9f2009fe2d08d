//! Variations of images are torchvision's: each operation, the policies' tables, crops, mixed batches and their losses.

use std::collections::BTreeMap;

use serde_json::Value;
use tch::{Kind, Tensor};
use tch_suite::data::Draw;
use tch_suite::data::augment::mixing::Mix;
use tch_suite::data::augment::policy::Policy;
use tch_suite::data::augment::{Context, Operation, Rectangle};
use tch_suite::data::decode::{ImageForm, RawImage};
use tch_suite::data::random::Random;
use tch_suite::data::resize::Interpolation;

use crate::support::{assert_close, fixture};

/// The image of `scripts/references/augmentations.py`.
fn picture(form: ImageForm) -> Vec<u8> {
    let [height, width] = form.size;
    let value = |place: usize| {
        let (channel, row, column) = (place / (height * width), place / width % height, place % width);
        let waves = 20 + 14 * row + 9 * column + 31 * channel + (row * column * (channel + 3)) % 23;
        ((waves + (row / 4 + column / 5 + channel) % 3 * 45) % 256) as u8
    };
    (0..form.bytes()).map(value).collect()
}

fn bytes(hex: &Value) -> Vec<u8> {
    let hex = hex.as_str().unwrap();
    (0..hex.len() / 2).map(|byte| u8::from_str_radix(&hex[2 * byte..2 * byte + 2], 16).unwrap()).collect()
}

fn changed(operation: &Operation, form: ImageForm) -> Vec<u8> {
    let mut image = picture(form);
    let context = Context { form, mean: &[0.5; 3], std: &[0.25; 3] };
    let draw = Draw { seed: 0, epoch: 0, train: true, copies: &[] };
    operation.apply(&mut image, &mut Vec::new(), context, &mut Random::of_sample(draw, 0, 0));
    image
}

/// The largest difference, and the share of values that differ.
fn difference(found: &[u8], expected: &[u8]) -> (u8, f64) {
    assert_eq!(found.len(), expected.len());
    let differences: Vec<u8> = found.iter().zip(expected).map(|(a, b)| a.abs_diff(*b)).collect();
    let different = differences.iter().filter(|&&difference| difference > 0).count();
    (differences.iter().copied().max().unwrap_or(0), different as f64 / found.len() as f64)
}

const FORM: ImageForm = ImageForm { channels: 3, size: [13, 16] };

#[test]
fn operations_are_torchvisions() {
    let fixture = fixture("augmentations.json");
    let cases = fixture["operations"].as_array().unwrap();
    assert_eq!(cases.len(), 108);
    let mut inexact = BTreeMap::new();
    for case in cases {
        let operation: Operation = serde_json::from_value(case["operation"].clone()).unwrap();
        let form = ImageForm { channels: case["channels"].as_u64().unwrap() as usize, ..FORM };
        let (largest, share) = difference(&changed(&operation, form), &bytes(&case["pixels"]));
        assert!(largest <= 1, "{operation:?}, {} channels: {largest} levels, {share:.3}", form.channels);
        if largest > 0 {
            inexact.insert(format!("{operation:?}, {} channels", form.channels), share);
        }
    }
    // Blurring sums in another order; all else is exact.
    for (operation, share) in inexact {
        assert!(operation.starts_with("Blur") && share < 0.02, "{operation}: {share:.3}");
    }
}

#[test]
fn policies_have_torchvisions_operations_and_ranges() {
    let fixture = fixture("augmentations.json");
    for case in fixture["policies"].as_array().unwrap() {
        let (name, level) = (case["policy"].as_str().unwrap(), case["level"].as_u64().unwrap() as usize);
        let policy: Policy = serde_json::from_value(serde_json::json!({ "name": name })).unwrap();
        let table = policy.table(level, FORM);
        let expected = case["pixels"].as_object().unwrap();
        assert_eq!(table.len(), expected.len());
        for (kind, operation) in table {
            let found =
                operation.as_ref().map_or_else(|| picture(FORM), |operation| changed(operation, FORM));
            let (largest, _) = difference(&found, &bytes(&expected[&kind]));
            assert_eq!(largest, 0, "{name} {level}: {kind} {operation:?}");
        }
    }
}

#[test]
fn random_parts_are_scaled_as_torchvision_scales_them() {
    let fixture = fixture("augmentations.json");
    let form = ImageForm { channels: 3, size: [31, 40] };
    let planes = picture(form);
    let cases = fixture["crops"].as_array().unwrap();
    assert_eq!(cases.len(), 6);
    for case in cases {
        let part: Rectangle = serde_json::from_value(case["part"].clone()).unwrap();
        let interpolation: Interpolation = serde_json::from_value(case["interpolation"].clone()).unwrap();
        let size: [usize; 2] = serde_json::from_value(case["size"].clone()).unwrap();
        let color = |x: u32, y: u32| {
            image::Rgb([0, 1, 2].map(|channel| planes[(channel * 31 + y as usize) * 40 + x as usize]))
        };
        let decoded = RawImage::Decoded(image::RgbImage::from_fn(40, 31, color).into());
        for image in [RawImage::Planar { form, pixels: &planes }, decoded] {
            let mut pixels = Vec::new();
            let to = ImageForm { channels: 3, size };
            image.append_stretched(part, to, interpolation, &mut Vec::new(), &mut pixels).unwrap();
            assert_eq!(pixels, bytes(&case["pixels"]), "{part:?}");
        }
    }
}

fn floats(value: &Value) -> Vec<f64> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn mixed_batches_and_their_losses_are_torchvisions() {
    let fixture = fixture("augmentations.json");
    let cases = fixture["mixtures"].as_array().unwrap();
    assert_eq!(cases.len(), 4);
    let one = picture(ImageForm { channels: 3, size: [8, 10] });
    let batch: Vec<f64> = (0..4u8)
        .flat_map(|n| one.iter().map(move |&value| f64::from(value.wrapping_add(7 * n)) / 255.0))
        .collect();
    let batch = Tensor::from_slice(&batch).to_kind(Kind::Float).view([4, 3, 8, 10]);
    let labels = Tensor::from_slice(&[2i64, 0, 1, 1]);
    for case in cases {
        let weight = case["weight"].as_f64().unwrap();
        let place = [case["row"].as_i64().unwrap(), case["column"].as_i64().unwrap()];
        let mix = match case["name"].as_str().unwrap() {
            "mixup" => Mix::Mixup { weight },
            _ => Mix::rectangle(weight, place, [8, 10]),
        };
        let values = |tensor: &Tensor| crate::support::numbers(tensor);
        assert_close(&values(&mix.images(&batch).unwrap()), &floats(&case["images"]), 1e-6, "mixed images");
        let targets = mix.targets(&labels, 3).unwrap();
        assert_close(&values(&targets), &floats(&case["targets"]), 1e-6, "mixed targets");
        for expected in case["losses"].as_array().unwrap() {
            let loss = mixed_loss(mix, &labels, &floats(&case["logits"]), expected);
            assert_close(&[loss], &[expected["loss"].as_f64().unwrap()], 1e-5, "loss of mixed targets");
        }
    }
}

/// What a network whose output is `logits` would be trained with: the task's summed loss over its weight.
fn mixed_loss(mix: Mix, labels: &Tensor, logits: &[f64], settings: &Value) -> f64 {
    use tch_suite::data::image_dataset::ImageBatch;
    use tch_suite::data::images::ImageDataConfig;
    use tch_suite::models::Parameters;
    use tch_suite::models::image::{ImageModelConfig, build};
    use tch_suite::tasks::criterion::ClassificationLoss;
    use tch_suite::tasks::image_classification::ImageClassification;
    use tch_suite::tasks::{Mode, Task};

    // A network without weights, whose last bias is the logits of one sample after the other.
    let config = ImageModelConfig {
        num_classes: Some(3),
        in_channels: Some(1),
        image_size: Some([14, 14]),
        ..ImageModelConfig::named("mlp")
    };
    let data: ImageDataConfig = serde_json::from_value(serde_json::json!({"path": "none"})).unwrap();
    let class_weights: Option<Vec<f64>> = serde_json::from_value(settings["class_weights"].clone()).unwrap();
    let loss = ClassificationLoss {
        label_smoothing: settings["label_smoothing"].as_f64().unwrap(),
        class_weights,
        ..Default::default()
    };
    let parameters = Parameters::undrawn(tch::Device::Cpu);
    let model = build(&parameters.root(), &config).unwrap();
    let names = ["a", "b", "c"].map(str::to_owned).to_vec();
    let normalisation = data.normalisation(1).unwrap();
    let entries = parameters.entries();
    let mut task = ImageClassification::new(parameters, model, &normalisation, names, &loss, false).unwrap();
    let _guard = tch::no_grad_guard();
    let bias = entries.iter().rfind(|entry| entry.name.ends_with("bias")).unwrap().tensor.shallow_clone();
    for entry in &entries {
        let _ = entry.tensor.shallow_clone().zero_();
    }
    let targets = mix.targets(labels, 3).unwrap();
    let mut sum = 0.0;
    for (sample, row) in logits.chunks_exact(3).enumerate() {
        bias.shallow_clone().copy_(&Tensor::from_slice(row).to_kind(Kind::Float));
        // The targets are mixed already: a weight of 1 leaves them as they are.
        let images = Tensor::zeros([1, 1, 14, 14], (Kind::Uint8, tch::Device::Cpu));
        let labels = targets.narrow(0, sample as i64, 1);
        let batch = ImageBatch { images, labels, mix: Some(Mix::Mixup { weight: 1.0 }), views: 1 };
        let output = task.step(&batch, Mode::Train).unwrap();
        let weight = task.weight(&batch, Mode::Train).unwrap();
        assert_eq!(weight, 1.0);
        sum += output.loss_sum.double_value(&[]);
    }
    sum / (logits.len() / 3) as f64
}
