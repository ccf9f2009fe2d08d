//! Every registered model, as it is.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use tch::{Device, Kind, Tensor};
use tch_suite::cli::Family;
use tch_suite::cli::cnn::Cnn;
use tch_suite::models::image::{self, ImageModel, ImageModelConfig, REGISTRY};
use tch_suite::models::{Parameters, Role};
use tch_suite::native::random::manual_seed;
use tch_suite::weights::{load_into, read_safetensors, tensors_of, write_safetensors};

use crate::support::process::done;
use crate::support::{Scratch, exclusive_generator};

const BATCH: i64 = 2;

/// A freshly drawn model.
fn build(config: &ImageModelConfig, seed: u64) -> Result<(Parameters, Box<dyn ImageModel>)> {
    manual_seed(seed)?;
    let parameters = Parameters::new(Device::Cpu);
    let model = image::build(&parameters.root(), config)?;
    Ok((parameters, model))
}

/// Images as the normalised input of a model.
fn images(config: &ImageModelConfig) -> Result<Tensor> {
    let shape = config.shape()?;
    Ok(Tensor::randn([BATCH, shape.channels, shape.size[0], shape.size[1]], (Kind::Float, Device::Cpu)))
}

fn is_finite(tensor: &Tensor) -> bool {
    tensor.isfinite().all().int64_value(&[]) == 1
}

/// Walks through the models, and says of which one an error speaks. On one thread, since other tests run beside.
fn for_each_model(check: impl Fn(&ImageModelConfig) -> Result<()>) -> Result<()> {
    let _lock = exclusive_generator();
    tch::set_num_threads(1);
    for entry in REGISTRY {
        let config = Cnn::usual_model(entry.name)?;
        check(&config).with_context(|| format!("the model `{}`", entry.name))?;
    }
    Ok(())
}

#[test]
fn names_are_unique_and_found() -> Result<()> {
    let names: BTreeSet<&str> = REGISTRY.iter().map(|entry| entry.name).collect();
    assert_eq!(names.len(), REGISTRY.len(), "a model is registered twice");
    for name in names {
        assert_eq!(image::find(name)?.name, name);
    }
    Ok(())
}

#[test]
fn parameter_names_are_pytorchs_in_form_and_never_repeat() -> Result<()> {
    for_each_model(|config| {
        let (parameters, _) = build(config, 0)?;
        let entries = parameters.entries();
        let names: BTreeSet<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(names.len(), entries.len());
        for name in names {
            // A variable store that met a name twice would append `__` and a number.
            assert!(!name.contains("__") && !name.starts_with('.') && !name.ends_with('.'), "{name}");
        }
        Ok(())
    })
}

#[test]
fn outputs_have_a_score_for_each_class_and_gradients_reach_every_parameter() -> Result<()> {
    for_each_model(|config| {
        let (parameters, model) = build(config, 0)?;
        let classes = config.shape()?.classes;
        let scores = model.forward(&images(config)?, true);
        assert_eq!(scores.size(), [BATCH, classes], "{}", config.name);
        assert!(is_finite(&scores), "{}: scores that are not finite", config.name);
        scores.cross_entropy_for_logits(&Tensor::from_slice(&[1i64, 3])).backward();
        for entry in parameters.entries().into_iter().filter(|entry| entry.role == Role::Parameter) {
            let gradient = entry.tensor.grad();
            assert!(gradient.defined(), "{}: no gradient for {}", config.name, entry.name);
            assert!(is_finite(&gradient), "{}: the gradient of {} is not finite", config.name, entry.name);
            let largest = gradient.abs().max().double_value(&[]);
            assert!(largest > 0.0, "{}: the gradient of {} is 0", config.name, entry.name);
        }
        Ok(())
    })
}

#[test]
fn weights_survive_a_file() -> Result<()> {
    let folder = Scratch::new();
    for_each_model(|config| {
        let _guard = tch::no_grad_guard();
        let path = folder.join(&config.name).with_extension("safetensors");
        let (saved, first) = build(config, 1)?;
        let input = images(config)?;
        // Statistics of a batch are saved too.
        let _ = first.forward(&input, true);
        write_safetensors(&path, &tensors_of(&saved))?;
        let (loaded, second) = build(config, 2)?;
        let expected = first.forward(&input, false);
        assert!(!second.forward(&input, false).equal(&expected), "{}: a seed changes nothing", config.name);
        let report = load_into(&loaded, &read_safetensors(&path)?)?;
        assert!(report.is_complete(), "{}: {}", config.name, report.describe());
        assert!(second.forward(&input, false).equal(&expected), "{}", config.name);
        // Not all at once: the largest have 100 MB.
        Ok(std::fs::remove_file(path)?)
    })
}

#[test]
fn evaluation_is_not_random_and_changes_nothing() -> Result<()> {
    for_each_model(|config| {
        let _guard = tch::no_grad_guard();
        let config = ImageModelConfig { dropout: 0.5, ..config.clone() };
        let (parameters, model) = build(&config, 3)?;
        let input = images(&config)?;
        let before: Vec<Tensor> = parameters.entries().iter().map(|entry| entry.tensor.copy()).collect();
        let first = model.forward(&input, false);
        assert!(first.equal(&model.forward(&input, false)), "{}: evaluation is random", config.name);
        for (entry, before) in parameters.entries().iter().zip(before) {
            assert!(entry.tensor.equal(&before), "{}: evaluation changes {}", config.name, entry.name);
        }
        // One sample at a time gives the same as all together.
        let single = model.forward(&input.narrow(0, 0, 1), false);
        let difference = (single - first.narrow(0, 0, 1)).abs().max().double_value(&[]);
        let scale = first.abs().max().double_value(&[]);
        assert!(difference <= 1e-4 * scale, "{}: a sample depends on its batch", config.name);
        Ok(())
    })
}

#[test]
fn info_counts_what_the_model_has() -> Result<()> {
    let number = |text: &str| text.replace(',', "").parse::<usize>();
    for_each_model(|config| {
        let (parameters, _) = build(config, 0)?;
        let table = done(["info", "--model", &config.name]).stdout;
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
        assert_eq!(columns(total)?, sums, "{}: the table does not add up", config.name);
        assert_eq!(sums[0], parameters.count(), "{}: info forgets parameters", config.name);
        assert!(sums[1] > 0);
        Ok(())
    })
}

#[test]
fn models_take_other_numbers_of_classes_and_channels() -> Result<()> {
    for_each_model(|config| {
        let _guard = tch::no_grad_guard();
        let config = ImageModelConfig { num_classes: Some(7), in_channels: Some(4), ..config.clone() };
        let (_, model) = build(&config, 0)?;
        let one = images(&config)?.narrow(0, 0, 1);
        assert_eq!(model.forward(&one, false).size(), [1, 7], "{}", config.name);
        Ok(())
    })
}
