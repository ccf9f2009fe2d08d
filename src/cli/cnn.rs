//! The family `cnn`: image classification.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use super::args::TrainArgs;
use super::explain::{explain_planes, pair};
use super::family::{Family, FamilyRecipe, Network, Prediction};
use super::session;
use crate::data::decode::ImageForm;
use crate::data::image_dataset::{Features, ImageDataset, Views};
use crate::data::images::{ImageDataConfig, MNIST_MINI, OpenedImages, decode_file};
use crate::data::loader::{Loader, LoaderConfig, Position};
use crate::data::order::{Sampler, Sequential};
use crate::data::{Batch, Dataset, Draw, Splits};
use crate::models::image::{self, ImageModelConfig, ImageShape, REGISTRY};
use crate::models::pretrained::{Preprocessing, preprocessing_of};
use crate::models::scripted::{self, ATTACHMENT};
use crate::models::{Parameters, Role};
use crate::native::modes::InferenceMode;
use crate::recipe::Preset;
use crate::reporting::{
    Chart, ConfusionMatrix, Example, Log, Mark, Progress, Report, Sample, Scale, Series, Verbosity, format,
    png_thumbnail,
};
use crate::tasks::calibration::{Bin, expected_error};
use crate::tasks::criterion::ClassificationLoss;
use crate::tasks::explanation::Method;
use crate::tasks::image_classification::{ImageClassification, listed};
use crate::tasks::{Evaluation, Mode, PredictedSample, Task, classification};
use crate::training::config::{BalancedRule, ClassWeights, Sampling};
use crate::training::evaluate::EvaluationSettings;
use crate::training::signals::Interrupt;
use crate::training::trainer;
use crate::weights::{NamedTensors, TensorSource, Weights, write_safetensors};
use crate::{bail_input, recipe};

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
        presets![
            "lenet5-mnist-mini",
            "lenet5-mnist",
            "mlp-mnist",
            "keras-cnn-cifar10",
            "torch-cnn-cifar10",
            "resnet20-cifar10",
            "resnet32-cifar10",
            "resnet44-cifar10",
            "resnet56-cifar10",
            "resnet18",
            "resnet34",
            "resnet50",
            "efficientnet-lite0-finetune",
        ]
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

    fn script_settings() -> Result<Vec<(&'static str, Value)>> {
        // Dropouts of the recipe are another network's.
        Ok(vec![
            ("model.name", json!(scripted::NAME)),
            ("model.dropout", Value::Null),
            ("model.stochastic_depth", Value::Null),
        ])
    }

    fn validate(recipe: &FamilyRecipe<Self>) -> Result<()> {
        recipe.model.validate()?;
        let training = &recipe.training;
        let unfit = [
            ("class_weights", training.class_weights.is_some()),
            ("label_smoothing", training.label_smoothing > 0.0),
            ("sampling", training.sampling != Sampling::Shuffled),
        ];
        if let Some((key, _)) = unfit.iter().find(|(_, given)| *given && recipe.data.multi_label) {
            bail_input!(
                "training.{key} is for images with one label each, which data.multi_label says they have not"
            );
        }
        for (key, leaps) in
            [("repeats", training.repeats > 1), ("sampling", training.sampling != Sampling::Shuffled)]
        {
            if leaps && recipe.data.shuffle_buffer.is_some() {
                bail_input!(
                    "training.{key} takes images from all over the archives, which data.shuffle_buffer reads in sequence: leave one out"
                );
            }
        }
        if training.focal_gamma > 0.0 && recipe.data.augment.mixes() {
            bail_input!(
                "training.focal_gamma is for images of one class, which data.augment.mixup and cutmix make images of two: leave one out"
            );
        }
        recipe.data.validate()
    }

    fn open(recipe: &mut FamilyRecipe<Self>, log: &Log) -> Result<Splits<Arc<ImageDataset>>> {
        if let Some(script) = &recipe.model.script {
            recipe.attachments.add_file(ATTACHMENT, &script.file);
        }
        recipe.data.resolve()?;
        let OpenedImages { splits, form, classes: names, warnings } =
            recipe.data.open(recipe.training.seed)?;
        for warning in warnings {
            log.warning(warning);
        }
        let (channels, size) = (form.channels as i64, form.size.map(|side| side as i64));
        let model = &mut recipe.model;
        let known = names.as_ref().or(recipe.data.classes.as_ref()).map(|names| names.len() as i64);
        let known = known.or_else(|| splits.train.labels().max().map(|largest| largest + 1));
        let classes = *model.num_classes.get_or_insert(known.unwrap_or(1));
        if *model.in_channels.get_or_insert(channels) != channels {
            bail_input!(
                "model.in_channels is {:?} but the images have {channels} channels",
                model.in_channels
            );
        }
        if *model.image_size.get_or_insert(size) != size {
            let [height, width] = size;
            bail_input!(
                "the model takes {:?} pixels but the images are {height} × {width}",
                model.image_size.unwrap_or(size)
            );
        }
        for part in
            [Some(&splits.train), splits.validation.as_ref(), splits.test.as_ref()].into_iter().flatten()
        {
            part.check_labels(classes)?;
        }
        let numbers = || (0..classes).map(|class| class.to_string()).collect();
        let names = recipe.data.classes.get_or_insert_with(|| names.unwrap_or_else(numbers));
        if names.len() as i64 != classes {
            bail_input!("the data have {} classes but model.num_classes is {classes}", names.len());
        }
        if recipe.training.class_weights == Some(ClassWeights::Rule(BalancedRule::Balanced)) {
            recipe.training.class_weights =
                Some(ClassWeights::Given(balanced(&splits.train, classes as usize)));
        }
        let Splits { train, validation, test } = splits;
        Ok(Splits { train: Arc::new(train), validation: validation.map(Arc::new), test: test.map(Arc::new) })
    }

    fn model_of(recipe: &FamilyRecipe<Self>) -> ImageModelConfig {
        let script = recipe.model.script.clone().map(|script| script.kept(&recipe.attachments));
        ImageModelConfig { script, ..recipe.model.clone() }
    }

    fn build(recipe: &FamilyRecipe<Self>, parameters: Parameters) -> Result<ImageClassification> {
        let shape = recipe.model.shape()?;
        let device = parameters.device();
        let model = image::build(&parameters.root(), &Self::model_of(recipe))?;
        let classes = recipe.data.classes.clone();
        let classes = classes.unwrap_or_else(|| (0..shape.classes).map(|class| class.to_string()).collect());
        let class_weights = match &recipe.training.class_weights {
            Some(ClassWeights::Given(weights)) => Some(weights.clone()),
            Some(ClassWeights::Rule(_)) | None => None,
        };
        let loss = ClassificationLoss {
            label_smoothing: recipe.training.label_smoothing,
            class_weights,
            focal_gamma: recipe.training.focal_gamma,
            multi_label: recipe.data.multi_label,
        };
        let normalisation = recipe.data.normalisation(shape.channels as usize)?;
        // Tensor cores want the channels innermost. libtorch's CPU kernels then need not put them in blocks for each convolution and back, which pays from colour images
        // on: ResNets learn 1.2 times as fast, a small network 1.7 times; LeNet-5 on grey ones loses 7 %.
        let channels_last = recipe
            .training
            .channels_last
            .unwrap_or(device.is_cuda() || device == Device::Cpu && shape.channels > 1);
        ImageClassification::new(parameters, model, &normalisation, classes, &loss, channels_last)
    }

    fn set_temperature(task: &mut ImageClassification, temperature: f64) {
        task.set_temperature(temperature);
    }

    fn prepare_data(
        recipe: &FamilyRecipe<Self>,
        task: &mut ImageClassification,
        data: Splits<Arc<ImageDataset>>,
        log: &Log,
        interrupt: &Interrupt,
    ) -> Result<Option<Splits<Arc<ImageDataset>>>> {
        let wanted = recipe.training.fine_tune.cache_features;
        if !task.backbone_is_frozen() || wanted == Some(false) {
            return Ok(Some(data));
        }
        if data.train.is_varied() {
            match wanted {
                Some(_) => bail_input!(
                    "training.fine_tune.cache_features: data.augment makes new images in every epoch, so their features cannot be kept; leave one \
                     of the two out"
                ),
                None => return Ok(Some(data)),
            }
        }
        let began = Instant::now();
        let one = task
            .features(&data.train.batch(&[0], EVALUATION)?.images.f_to_device(task.parameters().device())?)?;
        let samples = data.train.len() + data.validation.as_ref().map_or(0, |part| part.len());
        let bytes = samples as u64 * one.numel() as u64 * 4;
        if wanted.is_none() && bytes > MOST_FEATURE_BYTES {
            log.info(format!(
                "the backbone is frozen, but its features of all images would take {}: they are computed in every epoch; training.fine_tune.cache_features=true keeps them",
                format::bytes(bytes)
            ));
            return Ok(Some(data));
        }
        let cached = |part: &Arc<ImageDataset>, name: &str| -> Result<Option<Arc<ImageDataset>>> {
            let batches = part.len().div_ceil(recipe.training.eval_batch_size()) as u64;
            let bar = log.progress(&format!("features of the {name} images"), 0, Some(batches));
            let features = features_of(recipe, task, part, interrupt, &bar)?;
            Ok(features.map(|features| Arc::new(part.with_features(features))))
        };
        let Some(train) = cached(&data.train, "training")? else { return Ok(None) };
        let validation = match &data.validation {
            Some(part) => match cached(part, "validation")? {
                Some(part) => Some(part),
                None => return Ok(None),
            },
            None => None,
        };
        log.info(format!(
            "the features of {} images, {}, took {}",
            format::count(samples as u64),
            format::bytes(bytes),
            format::duration(began.elapsed().as_secs_f64())
        ));
        Ok(Some(Splits { train, validation, test: data.test }))
    }

    fn usual_model(name: &str) -> Result<ImageModelConfig> {
        let architecture = image::find(name)?;
        let (channels, size) = architecture.usual_input;
        Ok(ImageModelConfig {
            num_classes: Some(architecture.usual_classes),
            in_channels: Some(channels),
            image_size: Some(size),
            ..ImageModelConfig::named(name)
        })
    }

    fn recipe_of_weights(
        name: &str,
        weights: &Weights,
        classes: Option<Vec<String>>,
        settings: &[String],
    ) -> Result<FamilyRecipe<Self>> {
        let usual = Self::usual_model(name)?;
        let ImageShape { channels, size, classes: usual_classes } = usual.shape()?;
        let in_file = Self::network(&usual, Device::Cpu)?
            .parameters
            .entries()
            .into_iter()
            .rfind(|entry| entry.role == Role::Parameter)
            .and_then(|last| weights.form(&last.name)?.shape.first().copied());
        let count = classes.as_ref().map_or(in_file.unwrap_or(usual_classes), |names| names.len() as i64);
        if let (Some(in_file), Some(_)) = (in_file, &classes)
            && in_file != count
        {
            bail_input!("{} tells {in_file} classes apart, but --classes names {count}", weights.origin);
        }
        let Preprocessing { resize, mean, std } = preprocessing_of(name, channels, size[0].min(size[1]));
        let mut value = json!({
            "name": name,
            "source": weights.origin,
            "model": {"name": name, "num_classes": count},
            "data": {
                "image_size": size, "channels": channels, "resize": resize, "mean": mean, "std": std, "classes": classes,
                // All images are there to be looked at.
                "val_fraction": 0,
            },
        });
        for setting in settings {
            let (key, setting) = recipe::parse_setting(setting)?;
            recipe::set(&mut value, &key, setting)?;
        }
        let mut recipe: FamilyRecipe<Self> = recipe::typed(value, "--set")?;
        let form = (recipe.data.channels, recipe.data.image_size);
        recipe.model.in_channels = recipe.model.in_channels.or(form.0.map(|channels| channels as i64));
        recipe.model.image_size = recipe.model.image_size.or(form.1.map(|size| size.map(|side| side as i64)));
        recipe.model.validate()?;
        Ok(recipe)
    }

    fn example_inputs(model: &ImageModelConfig, batch: i64) -> Result<Vec<(&'static str, Tensor)>> {
        let shape = model.shape()?;
        let size = [batch, shape.channels, shape.size[0], shape.size[1]];
        Ok(vec![("images", Tensor::f_zeros(size, (Kind::Float, Device::Cpu))?)])
    }

    fn network(model: &ImageModelConfig, device: Device) -> Result<Network> {
        let parameters = Parameters::undrawn(device);
        let network = image::build(&parameters.root(), model)?;
        Ok(Network { parameters, forward: Box::new(move |inputs| vec![network.forward(&inputs[0], false)]) })
    }

    fn forward(task: &ImageClassification, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        Ok(vec![task.forward(&inputs[0], Mode::Evaluate)])
    }

    fn save_script(task: &ImageClassification, path: &Path) -> Option<Result<()>> {
        task.save_script(path)
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
        // Around all batches, so that the weights are cast once.
        let _autocast = recipe.training.precision.autocast(device)?;
        let form =
            ImageForm { channels: shape.channels as usize, size: shape.size.map(|side| side as usize) };
        let mut predictions = Vec::with_capacity(inputs.len());
        for paths in inputs.chunks(recipe.training.eval_batch_size()) {
            let mut pixels = Vec::new();
            for path in paths {
                decode_file(path, form, recipe.data.resize, &mut pixels)?;
            }
            let size = [paths.len() as i64, shape.channels, shape.size[0], shape.size[1]];
            let batch = Tensor::f_from_data_size(&pixels, &size, Kind::Uint8)?.f_to_device(device)?;
            let logits = task.forward(&task.normalise(&batch)?, Mode::Evaluate);
            let top_k = (top_k as i64).min(shape.classes);
            let (probabilities, classes) = task.probabilities(&logits)?.f_topk(top_k, -1, true, true)?;
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

    fn with_views(data: &ImageDataset, views: Views) -> Result<ImageDataset> {
        data.with_views(views)
    }

    fn illustrate(
        report: &mut Report,
        recipe: &FamilyRecipe<Self>,
        task: &ImageClassification,
        data: &ImageDataset,
        evaluation: &Evaluation,
    ) -> Result<()> {
        let names = recipe.data.classes.clone().unwrap_or_default();
        let details = &evaluation.details;
        let scores: Vec<classification::ClassScores> = serde_json::from_value(details["classes"].clone())?;
        report.classes = scores.into_iter().map(Into::into).collect();
        if !recipe.data.multi_label {
            let counts: Vec<u64> = serde_json::from_value(details["confusion"].clone())?;
            report.confusion = Some(ConfusionMatrix { classes: names.clone(), counts });
            report
                .charts
                .push(reliability(&serde_json::from_value::<Vec<Bin>>(details["reliability"].clone())?));
        }
        let picked = |key: &str| listed(&details[key], &names, recipe.data.multi_label);
        report.examples = examples(picked("examples")?, data)?;
        report.mistakes = examples(picked("mistakes")?, data)?;
        if let Some(method) = recipe.training.explain {
            let method_name = method.to_possible_value().map(|name| name.get_name().to_owned());
            report.about_pictures = format!(
                "Beside each image: what speaks for the prediction, by {}.",
                method_name.unwrap_or_default()
            );
            report.uncertain = examples(picked("uncertain")?, data)?;
            let explained = |(example, picked): (&mut Example, PredictedSample)| -> Result<()> {
                example.input = Sample::Png(explained(task, data, picked.sample, method)?);
                Ok(())
            };
            report.mistakes.iter_mut().zip(picked("mistakes")?).try_for_each(explained)?;
            report.uncertain.iter_mut().zip(picked("uncertain")?).try_for_each(explained)?;
        }
        Ok(())
    }
}

/// Samples as they are.
const EVALUATION: Draw<'static> = Draw { seed: 0, epoch: 0, train: false, copies: &[] };

/// Features that are kept without being asked to.
const MOST_FEATURE_BYTES: u64 = 2 << 30;

/// What the backbone makes of every sample; `None` if a signal came in between.
fn features_of(
    recipe: &FamilyRecipe<Cnn>,
    task: &ImageClassification,
    data: &Arc<ImageDataset>,
    interrupt: &Interrupt,
    bar: &Progress,
) -> Result<Option<Features>> {
    let (mut shape, mut values) = (Vec::new(), Vec::new());
    let went_through = for_each_batch(recipe, task, data, interrupt, bar, |pixels, _| {
        let features = task.features(pixels)?;
        shape = features.size()[1..].to_vec();
        let features = features.f_to_kind(Kind::Float)?.f_to_device(Device::Cpu)?.f_contiguous()?;
        let start = values.len();
        values.resize(start + features.numel(), 0.0f32);
        Ok(features.f_copy_data(&mut values[start..], features.numel())?)
    })?;
    Ok(went_through.then_some(Features { shape, values }))
}

/// Goes through a data set in its own order, without gradients and in the recipe's arithmetic; pixels and labels come on the model's device. False if a
/// signal came in between.
pub(super) fn for_each_batch(
    recipe: &FamilyRecipe<Cnn>,
    task: &ImageClassification,
    data: &Arc<ImageDataset>,
    interrupt: &Interrupt,
    bar: &Progress,
    mut use_batch: impl FnMut(&Tensor, &Tensor) -> Result<()>,
) -> Result<bool> {
    let device = task.parameters().device();
    let settings = EvaluationSettings::of(&recipe.training);
    let _inference = InferenceMode::enter()?;
    // Around all batches, so that the weights are cast once.
    let _autocast = settings.precision.autocast(device)?;
    let sampler = Sequential { len: data.len(), batch_size: settings.batch_size };
    let batches = sampler.batches_per_epoch();
    let config = LoaderConfig { workers: settings.workers, ahead: 2, seed: 0, train: false };
    let mut loader = Loader::new(data.clone(), Arc::new(sampler), config, Position { epoch: 0, batch: 0 })?;
    for _ in 0..batches {
        if interrupt.asked() {
            return Ok(false);
        }
        let batch = loader.next_batch()?.batch.to_device(device)?;
        use_batch(&batch.images, &batch.labels)?;
        bar.advance(1);
    }
    Ok(true)
}

/// Arguments of `batches`.
#[derive(Debug, Args)]
pub struct BatchesArgs {
    #[command(flatten)]
    train: TrainArgs,
    /// How many batches
    #[arg(long, value_name = "N", default_value_t = 20)]
    count: usize,
    /// The safetensors file to write: images.0, labels.0, …
    #[arg(long, value_name = "FILE")]
    file: PathBuf,
}

/// `batches`: the first training batches of a recipe, augmented and normalised, in a file. `images.N` is `[batch, channels, height, width]`
/// float32, `labels.N` `[batch]` int64, or, where images are mixed, the probabilities `[batch, classes]` float32.
pub fn write_batches(arguments: &BatchesArgs) -> Result<()> {
    let log = Log::new(Verbosity::from_flags(arguments.train.quiet, true));
    let mut recipe = session::new_recipe::<Cnn>(&arguments.train)?;
    session::prepare(&mut recipe.training)?;
    let splits = Cnn::open(&mut recipe, &log)?;
    let normalisation = recipe.data.normalisation(splits.train.form().channels)?;
    let classes = recipe.model.shape()?.classes;
    let config = &recipe.training;
    let sampler = trainer::sampler(config, splits.train.as_ref())?;
    let loading = LoaderConfig { workers: 1, ahead: 2, seed: config.seed, train: true };
    let mut loader = Loader::new(splits.train, sampler, loading, Position { epoch: 0, batch: 0 })?;
    let mut tensors = NamedTensors::new();
    for number in 0..arguments.count {
        let batch = loader.next_batch()?.batch;
        let images = normalisation.apply(&batch.images)?;
        let (images, labels) = match batch.mix {
            Some(mix) => (mix.images(&images)?, mix.targets(&batch.labels, classes)?),
            None => (images, batch.labels),
        };
        tensors.insert(format!("images.{number}"), images);
        tensors.insert(format!("labels.{number}"), labels);
    }
    write_safetensors(&arguments.file, &tensors)?;
    log.result(format!("wrote {} batches to {}", arguments.count, arguments.file.display()));
    Ok(())
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

/// How often predictions of each confidence are right, beside how often they should be.
fn reliability(bins: &[Bin]) -> Chart {
    let filled = bins.iter().filter(|bin| bin.count > 0);
    Chart {
        title: "Reliability".to_owned(),
        x_label: "confidence".to_owned(),
        y_label: "accuracy".to_owned(),
        series: vec![
            Series {
                name: "accuracy of the predictions".to_owned(),
                points: filled.map(|bin| (bin.confidence, bin.accuracy)).collect(),
                mark: Mark::LineWithDots,
            },
            Series {
                name: "as confident as right".to_owned(),
                points: vec![(0.0, 0.0), (1.0, 1.0)],
                mark: Mark::Reference,
            },
        ],
        y_scale: Scale::Linear,
        percent: true,
        x_range: Some((0.0, 1.0)),
        note: format!(
            "Below the dashed line the network is too sure of itself. Expected calibration error: {}.",
            format::percent(expected_error(bins))
        ),
        ..Chart::default()
    }
}

/// A sample beside what speaks for its most probable class, as PNG.
fn explained(
    task: &ImageClassification,
    data: &ImageDataset,
    sample: usize,
    method: Method,
) -> Result<Vec<u8>> {
    const LARGEST_SIDE: u32 = 192;
    let form = data.form();
    let [height, width] = form.size;
    let mut planes = Vec::new();
    data.append_image(sample, &mut planes)?;
    let explanation = explain_planes(task, &planes, form, None, method)?;
    let [picture, explained] = pair(&planes, form, &explanation)?;
    let rows = picture.chunks_exact(3 * width).zip(explained.chunks_exact(3 * width));
    let side_by_side: Vec<u8> = rows.flat_map(|(left, right)| [left, right].concat()).collect();
    png_thumbnail(&side_by_side, height as u32, 2 * width as u32, 3, LARGEST_SIDE)
}

/// Samples that the evaluation picked out, with their pictures.
fn examples(picked: Vec<PredictedSample>, data: &ImageDataset) -> Result<Vec<Example>> {
    let example = |PredictedSample { sample, label, prediction, probability }| {
        Ok(Example {
            input: Sample::Png(data.picture(sample)?.context("an image has no picture")?),
            name: format::short_path(&data.describe(sample)).to_owned(),
            label: Some(label),
            prediction,
            probability,
        })
    };
    picked.into_iter().map(example).collect()
}
