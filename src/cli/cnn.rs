//! The family `cnn`: image classification.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use super::family::{Family, FamilyRecipe, Network, Prediction};
use crate::bail_input;
use crate::data::images::{ImageDataConfig, ImageDataset, MNIST_MINI, decode_file};
use crate::data::{Dataset, Splits};
use crate::models::Parameters;
use crate::models::image::{self, ImageModelConfig, REGISTRY};
use crate::native::modes::InferenceMode;
use crate::recipe::Preset;
use crate::reporting::{ClassScores, ConfusionMatrix, Example, Report, Sample, png_thumbnail};
use crate::tasks::image_classification::{ClassificationLoss, ImageClassification};
use crate::tasks::{Evaluation, Mode, Task, classification};
use crate::training::config::{BalancedRule, ClassWeights};

/// Image classification.
pub struct Cnn;

macro_rules! presets {
    ($($name:literal),* $(,)?) => {
        &[$(Preset { name: $name, json: include_str!(concat!("../../models/cnn/", $name, ".json")) }),*]
    };
}

impl Family for Cnn {
    const NAME: &'static str = "cnn";
    const ABOUT: &'static str = "Train, evaluate, run and export image classifiers";
    const DEFAULT_RECIPE: &'static str = "lenet5-mnist-mini";
    type Model = ImageModelConfig;
    type Data = ImageDataConfig;
    type Dataset = ImageDataset;
    type Task = ImageClassification;

    fn presets() -> &'static [Preset] {
        presets!["lenet5-mnist-mini", "lenet5-mnist", "mlp-mnist"]
    }

    fn models() -> Vec<&'static str> {
        REGISTRY.iter().map(|entry| entry.name).collect()
    }

    fn data_settings(argument: &str) -> Vec<(&'static str, Value)> {
        match argument == MNIST_MINI {
            true => vec![("data.format", json!(MNIST_MINI)), ("data.path", Value::Null)],
            false => vec![("data.format", json!("auto")), ("data.path", json!(argument))],
        }
    }

    fn validate(recipe: &FamilyRecipe<Self>) -> Result<()> {
        recipe.model.validate()?;
        recipe.data.validate()
    }

    fn open(recipe: &mut FamilyRecipe<Self>) -> Result<Splits<Arc<ImageDataset>>> {
        recipe.data.resolve()?;
        let splits = recipe.data.open(recipe.training.seed)?;
        let [channels, height, width] = splits.train.shape().map(|size| size as i64);
        let model = &mut recipe.model;
        let largest_label = splits.train.labels().max().unwrap_or(0);
        let classes = *model.num_classes.get_or_insert(largest_label + 1);
        if *model.in_channels.get_or_insert(channels) != channels {
            bail_input!(
                "model.in_channels is {:?} but the images have {channels} channels",
                model.in_channels
            );
        }
        if *model.image_size.get_or_insert([height, width]) != [height, width] {
            bail_input!("model.image_size is {:?} but the images are {height} × {width}", model.image_size);
        }
        let parts = [
            ("training", Some(&splits.train)),
            ("validation", splits.validation.as_ref()),
            ("test", splits.test.as_ref()),
        ];
        for (name, part) in parts {
            part.map_or(Ok(()), |part| part.check_labels(name, classes))?;
        }
        let names =
            recipe.data.classes.get_or_insert_with(|| (0..classes).map(|class| class.to_string()).collect());
        if names.len() as i64 != classes {
            bail_input!("data.classes names {} classes but model.num_classes is {classes}", names.len());
        }
        if recipe.training.class_weights == Some(ClassWeights::Rule(BalancedRule::Balanced)) {
            recipe.training.class_weights =
                Some(ClassWeights::Given(balanced(&splits.train, classes as usize)));
        }
        let Splits { train, validation, test } = splits;
        Ok(Splits { train: Arc::new(train), validation: validation.map(Arc::new), test: test.map(Arc::new) })
    }

    fn build(recipe: &FamilyRecipe<Self>, device: Device) -> Result<ImageClassification> {
        let shape = recipe.model.shape()?;
        let parameters = Parameters::new(device);
        let model = image::build(&parameters.root(), &recipe.model)?;
        let classes = recipe.data.classes.clone();
        let classes = classes.unwrap_or_else(|| (0..shape.classes).map(|class| class.to_string()).collect());
        let class_weights = match &recipe.training.class_weights {
            Some(ClassWeights::Given(weights)) => Some(weights.clone()),
            Some(ClassWeights::Rule(_)) | None => None,
        };
        let loss = ClassificationLoss { label_smoothing: recipe.training.label_smoothing, class_weights };
        let normalisation = recipe.data.normalisation(shape.channels as usize)?;
        // Tensor cores want the channels innermost; libtorch's CPU kernels block the channels themselves.
        let channels_last = recipe.training.channels_last.unwrap_or(device.is_cuda());
        ImageClassification::new(parameters, model, &normalisation, classes, &loss, channels_last)
    }

    fn usual_model(name: &str) -> Result<ImageModelConfig> {
        let (channels, size) = image::find(name)?.usual_input;
        Ok(ImageModelConfig {
            name: name.to_owned(),
            num_classes: Some(10),
            in_channels: Some(channels),
            image_size: Some(size),
            dropout: 0.0,
        })
    }

    fn example_inputs(model: &ImageModelConfig, batch: i64) -> Result<Vec<(&'static str, Tensor)>> {
        let shape = model.shape()?;
        let size = [batch, shape.channels, shape.size[0], shape.size[1]];
        Ok(vec![("images", Tensor::f_zeros(size, (Kind::Float, Device::Cpu))?)])
    }

    fn network(model: &ImageModelConfig, device: Device) -> Result<Network> {
        let parameters = Parameters::new(device);
        let network = image::build(&parameters.root(), model)?;
        Ok(Network { parameters, forward: Box::new(move |inputs| vec![network.forward(&inputs[0], false)]) })
    }

    fn forward(task: &ImageClassification, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        Ok(vec![task.forward(&inputs[0], Mode::Evaluate)])
    }

    fn predict(
        task: &mut ImageClassification,
        recipe: &FamilyRecipe<Self>,
        inputs: &[PathBuf],
        top_k: usize,
    ) -> Result<Vec<Prediction>> {
        let shape = recipe.model.shape()?;
        let device = task.parameters().device();
        let _inference = InferenceMode::enter()?;
        let mut predictions = Vec::with_capacity(inputs.len());
        for paths in inputs.chunks(recipe.training.eval_batch_size()) {
            let mut pixels = Vec::new();
            for path in paths {
                pixels.extend(decode_file(path, shape.channels, shape.size)?);
            }
            let size = [paths.len() as i64, shape.channels, shape.size[0], shape.size[1]];
            let batch = Tensor::f_from_data_size(&pixels, &size, Kind::Uint8)?.f_to_device(device)?;
            let logits = {
                let _autocast = recipe.training.precision.autocast(device)?;
                task.forward(&task.normalise(&batch)?, Mode::Evaluate)
            };
            let top_k = (top_k as i64).min(shape.classes);
            let (probabilities, classes) =
                logits.f_softmax(-1, Kind::Float)?.f_topk(top_k, -1, true, true)?;
            let probabilities = Vec::<Vec<f64>>::try_from(probabilities.f_to_kind(Kind::Double)?)?;
            let classes = Vec::<Vec<i64>>::try_from(classes)?;
            for ((path, probabilities), classes) in paths.iter().zip(probabilities).zip(classes) {
                let ranked =
                    classes.iter().map(|&class| task.classes()[class as usize].clone()).zip(probabilities);
                predictions.push(Prediction { input: path.display().to_string(), ranked: ranked.collect() });
            }
        }
        Ok(predictions)
    }

    fn illustrate(
        report: &mut Report,
        recipe: &FamilyRecipe<Self>,
        data: &ImageDataset,
        evaluation: &Evaluation,
    ) -> Result<()> {
        let names = recipe.data.classes.clone().unwrap_or_default();
        let details = &evaluation.details;
        let counts: Vec<u64> = serde_json::from_value(details["confusion"].clone())?;
        let scores: Vec<classification::ClassScores> = serde_json::from_value(details["classes"].clone())?;
        report.classes = scores
            .into_iter()
            .map(|scores| ClassScores {
                name: scores.class,
                precision: scores.precision,
                recall: scores.recall,
                f1: scores.f1,
                support: scores.support,
            })
            .collect();
        report.confusion = Some(ConfusionMatrix { classes: names.clone(), counts });
        report.examples = examples(&details["examples"], data, &names)?;
        report.mistakes = examples(&details["mistakes"], data, &names)?;
        Ok(())
    }
}

/// scikit-learn's `class_weight="balanced"`: samples / (classes · samples of the class); 0 for a class without samples.
fn balanced(data: &ImageDataset, classes: usize) -> Vec<f64> {
    let mut counts = vec![0u64; classes];
    for label in data.labels() {
        counts[label as usize] += 1;
    }
    let weight =
        |&count: &u64| if count == 0 { 0.0 } else { data.len() as f64 / (classes as f64 * count as f64) };
    counts.iter().map(weight).collect()
}

/// Samples that the evaluation picked out, with their pictures.
fn examples(picked: &Value, data: &ImageDataset, names: &[String]) -> Result<Vec<Example>> {
    const LARGEST_SIDE: u32 = 96;
    let [channels, height, width] = data.shape();
    let mut list = Vec::new();
    for one in picked.as_array().into_iter().flatten() {
        let number = |key: &str| one[key].as_u64().unwrap_or_default() as usize;
        let name = |class: usize| names.get(class).cloned().unwrap_or_else(|| class.to_string());
        let sample = number("sample");
        let planes = data.image(sample);
        // [channel, pixel] to [pixel, channel]
        let interleaved: Vec<u8> = (0..height * width)
            .flat_map(|pixel| (0..channels).map(move |channel| planes[channel * height * width + pixel]))
            .collect();
        list.push(Example {
            input: Sample::Png(png_thumbnail(
                &interleaved,
                height as u32,
                width as u32,
                channels as u8,
                LARGEST_SIDE,
            )?),
            name: data.describe(sample),
            label: Some(name(number("label"))),
            prediction: name(number("predicted")),
            probability: one["probability"].as_f64(),
        });
    }
    Ok(list)
}
