//! Every registered model, as it is.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use serde::Deserialize;
use tch::{Device, Kind, Tensor};
use tch_suite::models::image::{self, ImageModel, ImageModelConfig, REGISTRY};
use tch_suite::models::{Parameters, Role};
use tch_suite::native::random::manual_seed;
use tch_suite::weights::{load, load_into, read_safetensors, tensors_of, write_safetensors};

use crate::support::process::done;
use crate::support::{Scratch, assert_close, data, exclusive_generator, fixture, formula, numbers};

/// Names every model of the registry must have a reference under, `scripts/references/image_models.py`.
const WITHOUT_TORCHVISION: [&str; 9] = [
    "lenet5",
    "mlp",
    "keras-cnn",
    "torch-cnn",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "efficientnet-lite0",
];

/// What torchvision made of a network.
#[derive(Deserialize)]
struct Reference {
    evaluation: Vec<EvaluationReference>,
    learning: Option<LearningReference>,
    beginning: Option<Vec<u32>>,
}

#[derive(Deserialize)]
struct EvaluationReference {
    side: i64,
    layout: u32,
    parameters: usize,
    scores: Vec<f64>,
}

#[derive(Deserialize)]
struct LearningReference {
    side: i64,
    loss: f64,
    gradient_norms: Vec<f64>,
}

fn references() -> Result<BTreeMap<String, Reference>> {
    Ok(serde_json::from_value(fixture("image_models.json")["models"].clone())?)
}

/// A model with the formula's weights.
fn filled(config: &ImageModelConfig) -> Result<(Parameters, Box<dyn ImageModel>)> {
    let parameters = Parameters::undrawn(Device::Cpu);
    let model = image::build(&parameters.root(), config)?;
    formula::fill(&parameters)?;
    Ok((parameters, model))
}

/// Ten classes on square images, without chance in training.
fn config(name: &str, side: i64) -> ImageModelConfig {
    ImageModelConfig {
        num_classes: Some(10),
        in_channels: Some(image::find(name).unwrap().usual_input.0),
        image_size: Some([side, side]),
        dropout: Some(0.0),
        stochastic_depth: Some(0.0),
        ..ImageModelConfig::named(name)
    }
}

/// A side that every architecture allows and that costs little.
fn small_side(name: &str, references: &BTreeMap<String, Reference>) -> i64 {
    match references.get(name) {
        Some(reference) => reference.evaluation[0].side,
        None => image::find(name).unwrap().usual_input.1[0].min(64),
    }
}

/// Names and shapes of all tensors, as one number.
fn layout(parameters: &Parameters) -> u32 {
    let mut entries = parameters.entries();
    entries.sort_by(|one, other| one.name.cmp(&other.name));
    let mut checksum = flate2::Crc::new();
    for entry in entries {
        checksum.update(format!("{} {:?}\n", entry.name, entry.tensor.size()).as_bytes());
    }
    checksum.sum()
}

fn is_finite(tensor: &Tensor) -> bool {
    tensor.isfinite().all().int64_value(&[]) == 1
}

/// Walks through the models, and says of which one an error speaks. On one thread, since other tests run beside.
fn for_each_model(check: impl Fn(&str) -> Result<()>) -> Result<()> {
    let _lock = exclusive_generator();
    tch::set_num_threads(1);
    for entry in REGISTRY {
        check(entry.name).with_context(|| format!("the model `{}`", entry.name))?;
    }
    Ok(())
}

#[test]
fn names_are_unique_found_and_have_a_reference() -> Result<()> {
    let names: BTreeSet<&str> = REGISTRY.iter().map(|entry| entry.name).collect();
    assert_eq!(names.len(), REGISTRY.len(), "a model is registered twice");
    let references = references()?;
    for name in &names {
        assert_eq!(image::find(name)?.name, *name);
        assert!(
            references.contains_key(*name) || WITHOUT_TORCHVISION.contains(name),
            "`{name}` has no reference values: add it to scripts/references/image_models.py"
        );
    }
    for name in references.keys() {
        assert!(names.contains(name.as_str()), "the reference of `{name}` is of no registered model");
    }
    Ok(())
}

#[test]
fn outputs_and_sizes_are_torchvisions() -> Result<()> {
    let references = references()?;
    for_each_model(|name| {
        let Some(reference) = references.get(name) else { return Ok(()) };
        let _guard = tch::no_grad_guard();
        let mut built: Option<(Parameters, Box<dyn ImageModel>)> = None;
        for expected in &reference.evaluation {
            let side = expected.side;
            // Only a vision transformer's parameters depend on the size of the image.
            if built.is_none() || name.starts_with("vit") {
                built = Some(filled(&config(name, side))?);
            }
            let (parameters, model) = built.as_ref().context("no model")?;
            let found = parameters.count();
            assert_eq!(found, expected.parameters, "{name}: parameters");
            assert_eq!(layout(parameters), expected.layout, "{name}: names or shapes of its tensors differ");
            let scores = model.forward(&formula::images(2, 3, [side, side]), false);
            assert_close(&numbers(&scores), &expected.scores, 1e-4, &format!("{name} at {side}"));
        }
        Ok(())
    })
}

#[test]
fn published_weights_give_their_published_logits() -> Result<()> {
    let Some(folder) = data("pretrained/efficientnet_lite0") else { return Ok(()) };
    let _lock = exclusive_generator();
    let _guard = tch::no_grad_guard();
    let config = ImageModelConfig { num_classes: Some(1000), ..config("efficientnet-lite0", 224) };
    let parameters = Parameters::undrawn(Device::Cpu);
    let model = image::build(&parameters.root(), &config)?;
    let loaded = load(&parameters, &folder.join("efficientnet-lite0-57934424.pth"), true)?;
    assert!(loaded.report.is_complete(), "{}", loaded.report.describe());
    let expected = read_safetensors(&folder.join("expected.safetensors"))?;
    let logits = model.forward(&expected["input"], false);
    let difference = (logits - &expected["logits"]).abs().max().double_value(&[]);
    assert!(difference < 1e-3, "logits are {difference} apart");
    Ok(())
}

#[test]
fn a_training_step_is_torchvisions() -> Result<()> {
    let references = references()?;
    for_each_model(|name| {
        let Some(expected) = references.get(name).and_then(|reference| reference.learning.as_ref()) else {
            return Ok(());
        };
        let (parameters, model) = filled(&config(name, expected.side))?;
        let loss = loss(model.as_ref(), &formula::images(4, 3, [expected.side; 2]), &[0, 3, 6, 9]);
        loss.backward();
        assert_close(&[loss.double_value(&[])], &[expected.loss], 1e-4, &format!("{name}: loss"));
        let mut learned = parameters.trainable();
        learned.sort_by(|(one, _), (other, _)| one.cmp(other));
        assert_eq!(learned.len(), expected.gradient_norms.len(), "{name}");
        // Batch normalisation over few values magnifies the last digits: PyTorch's own gradients of Inception differ by 0.6 % between one thread and two.
        let share = 2e-2;
        let largest = expected.gradient_norms.iter().fold(0f64, |largest, &norm| largest.max(norm));
        for ((parameter, tensor), &expected) in learned.iter().zip(&expected.gradient_norms) {
            let norm = tensor.grad().to_kind(Kind::Double).norm().double_value(&[]);
            // A bias before a batch normalisation has no effect: its gradient is rounding.
            let tolerance = share * expected + 1e-5 * largest;
            assert!(
                (norm - expected).abs() <= tolerance,
                "{name}: the gradient of {parameter} has norm {norm}, expected {expected}"
            );
        }
        Ok(())
    })
}

/// Cross-entropy of the scores and, weighted, of those of auxiliary classifiers.
fn loss(model: &dyn ImageModel, images: &Tensor, labels: &[i64]) -> Tensor {
    let labels = Tensor::from_slice(labels);
    let (scores, auxiliary) = model.learn(images);
    auxiliary.iter().fold(scores.cross_entropy_for_logits(&labels), |loss, auxiliary| {
        loss + auxiliary.weight * auxiliary.scores.cross_entropy_for_logits(&labels)
    })
}

#[test]
fn initial_weights_are_torchvisions_under_a_seed() -> Result<()> {
    let references = references()?;
    for_each_model(|name| {
        let Some(expected) = references.get(name).and_then(|reference| reference.beginning.as_ref()) else {
            return Ok(());
        };
        manual_seed(3)?;
        let parameters = Parameters::new(Device::Cpu);
        let drawn = ImageModelConfig {
            dropout: None,
            stochastic_depth: None,
            ..config(name, small_side(name, &references))
        };
        image::build(&parameters.root(), &drawn)?;
        let mut learned = parameters.trainable();
        learned.sort_by(|(one, _), (other, _)| one.cmp(other));
        for ((parameter, tensor), &expected) in learned.iter().zip(expected) {
            let values = Vec::<f32>::try_from(tensor.detach().flatten(0, -1))?;
            let mut checksum = flate2::Crc::new();
            values.iter().for_each(|value| checksum.update(&value.to_le_bytes()));
            assert_eq!(checksum.sum(), expected, "{name}: {parameter} begins otherwise");
        }
        Ok(())
    })
}

#[test]
fn every_model_computes_learns_and_is_copied_whole() -> Result<()> {
    let references = references()?;
    for_each_model(|name| {
        let config = config(name, small_side(name, &references));
        let shape = config.shape()?;
        let (parameters, model) = filled(&config)?;
        let entries = parameters.entries();
        for entry in &entries {
            // A variable store that met a name twice would append `__` and a number.
            let entry = &entry.name;
            assert!(!entry.contains("__") && !entry.starts_with('.') && !entry.ends_with('.'), "{entry}");
        }
        let images = formula::images(2, shape.channels, shape.size);

        // Evaluation is not random, changes nothing, and a sample does not depend on its batch.
        let before: Vec<Tensor> = entries
            .iter()
            .filter(|entry| entry.role == Role::Buffer)
            .map(|entry| entry.tensor.copy())
            .collect();
        let first = tch::no_grad(|| model.forward(&images, false));
        assert!(is_finite(&first), "{name}: scores that are not finite");
        assert!(first.equal(&tch::no_grad(|| model.forward(&images, false))), "{name}: evaluation is random");
        let buffers = entries.iter().filter(|entry| entry.role == Role::Buffer);
        for (entry, before) in buffers.zip(before) {
            assert!(entry.tensor.equal(&before), "{name}: evaluation changes {}", entry.name);
        }
        let single = tch::no_grad(|| model.forward(&images.narrow(0, 0, 1), false));
        let difference = (single - first.narrow(0, 0, 1)).abs().max().double_value(&[]);
        let scale = first.abs().max().double_value(&[]);
        assert!(difference <= 1e-4 * scale, "{name}: a sample depends on its batch");

        // The head's name is that of the last parameters, and features with the head make the scores.
        let head = model.head_name();
        let (last, _) = parameters.trainable().pop().context("no parameters")?;
        assert!(last.starts_with(&format!("{head}.")), "{name}: the last parameter {last} is not of {head}");
        let apart = tch::no_grad(|| model.head(&model.features(&images, false), false));
        assert!(apart.equal(&first), "{name}: features and head make other scores");

        // A gradient reaches every parameter that training uses.
        let scores = model.learn(&images).0;
        assert_eq!(scores.size(), [2, shape.classes], "{name}");
        loss(model.as_ref(), &images, &[1, 3]).backward();
        for entry in entries.iter().filter(|entry| entry.role == Role::Parameter) {
            // Inception's auxiliary classifier takes part on larger images: it has a training step of its own above.
            if entry.name.starts_with("AuxLogits.") {
                continue;
            }
            let gradient = entry.tensor.grad();
            assert!(gradient.defined(), "{name}: no gradient for {}", entry.name);
            assert!(is_finite(&gradient), "{name}: the gradient of {} is not finite", entry.name);
        }
        drop(entries);

        // A copy by name computes the same.
        let copied = Parameters::undrawn(Device::Cpu);
        let copy = image::build(&copied.root(), &config)?;
        let report = load_into(&copied, &tensors_of(&parameters))?;
        assert!(report.is_complete(), "{name}: {}", report.describe());
        let [original, copy] = [model, copy].map(|model| tch::no_grad(|| model.forward(&images, false)));
        assert!(original.equal(&copy), "{name}: a copy computes otherwise");
        Ok(())
    })
}

#[test]
fn weights_survive_a_file() -> Result<()> {
    let folder = Scratch::new();
    let references = references()?;
    for_each_model(|name| {
        let config = config(name, small_side(name, &references));
        let (saved, _) = filled(&config)?;
        if saved.count() > 30_000_000 {
            return Ok(());
        }
        let path = folder.join(name).with_extension("safetensors");
        write_safetensors(&path, &tensors_of(&saved))?;
        let read = read_safetensors(&path)?;
        for entry in saved.entries() {
            let found =
                read.get(&entry.name).with_context(|| format!("{} is not in the file", entry.name))?;
            assert!(found.equal(&entry.tensor), "{}", entry.name);
        }
        assert_eq!(read.len(), saved.entries().len());
        Ok(std::fs::remove_file(path)?)
    })
}

#[test]
fn info_counts_what_the_model_has() -> Result<()> {
    let number = |text: &str| text.replace(',', "").parse::<usize>();
    let references = references()?;
    for_each_model(|name| {
        let side = small_side(name, &references);
        let config = config(name, side);
        let parameters = Parameters::undrawn(Device::Cpu);
        image::build(&parameters.root(), &config)?;
        let size = format!("model.image_size=[{side},{side}]");
        let table = done(["info", "--model", name, "--set", &size, "--set", "model.num_classes=10"]).stdout;
        let rows: Vec<&str> = table.lines().skip(1).collect();
        let (total, layers) = rows.split_last().context("info prints nothing")?;
        // The last two columns are parameters and multiply-adds.
        let columns = |row: &str| -> Result<[usize; 2]> {
            let mut words = row.split_whitespace().rev();
            let multiply_adds = number(words.next().context("no multiply-adds")?)?;
            Ok([number(words.next().context("no parameters")?)?, multiply_adds])
        };
        let mut sums = [0, 0];
        for row in layers {
            let row = columns(row).with_context(|| format!("in the row {row}"))?;
            sums = [sums[0] + row[0], sums[1] + row[1]];
        }
        assert_eq!(columns(total)?, sums, "{name}: the table does not add up");
        assert_eq!(sums[0], parameters.count(), "{name}: info forgets parameters");
        assert!(sums[1] > 0);
        Ok(())
    })
}

#[test]
fn models_take_other_numbers_of_classes_and_channels() -> Result<()> {
    let references = references()?;
    for_each_model(|name| {
        let _guard = tch::no_grad_guard();
        let side = small_side(name, &references);
        let config = ImageModelConfig { num_classes: Some(7), in_channels: Some(4), ..config(name, side) };
        let parameters = Parameters::undrawn(Device::Cpu);
        let model = image::build(&parameters.root(), &config)?;
        let scores = model.forward(&formula::images(1, 4, [side, side]), false);
        assert_eq!(scores.size(), [1, 7], "{name}");
        Ok(())
    })
}
