//! `train` and `eval`: a module in place of a family's network, by the family's data, tasks and trainer. For images the family is this one, which is
//! `cnn` with recipes of its own.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use tch::{Device, Tensor};

use super::PreprocessArgs;
use crate::cli::args::{DeviceArgs, EvalArgs, EvalFormat, ModelArgs, Part, TrainArgs, WeightsArgs};
use crate::cli::cnn::Cnn;
use crate::cli::eval::{Evaluated, report};
use crate::cli::family::{Family, FamilyRecipe, Network, Prediction};
use crate::cli::regression::Regression;
use crate::cli::rnn::Rnn;
use crate::cli::{CommonVerb, run_common, session};
use crate::data::Splits;
use crate::data::image_dataset::{ImageDataset, Views};
use crate::data::images::ImageDataConfig;
use crate::distributed::SingleProcess;
use crate::distributed::rendezvous::GroupArgs;
use crate::models::Parameters;
use crate::models::image::ImageModelConfig;
use crate::models::scripted::NAME;
use crate::recipe::{self, Preset};
use crate::reporting::{Log, Report, Verbosity};
use crate::script::{Artifact, inspect, kind_of};
use crate::tasks::Evaluation;
use crate::tasks::image_classification::ImageClassification;
use crate::training::signals::Interrupt;
use crate::weights::Weights;
use crate::{bail_input, files};

/// Modules as image classifiers: `cnn` with recipes of its own.
pub struct Scripted;

impl Family for Scripted {
    const NAME: &'static str = "torchscript";
    const ABOUT: &'static str =
        "Inspect, run, evaluate, fine-tune and convert TorchScript modules and compiled packages";
    const DEFAULT_RECIPE: &'static str = "fine-tune";
    type Model = ImageModelConfig;
    type Data = ImageDataConfig;
    type Dataset = ImageDataset;
    type Task = ImageClassification;

    fn presets() -> &'static [Preset] {
        &[Preset { name: "fine-tune", json: include_str!("../../../models/torchscript/fine-tune.json") }]
    }

    fn models() -> Vec<&'static str> {
        vec![NAME]
    }

    fn data_settings(argument: &str) -> Vec<(&'static str, Value)> {
        Cnn::data_settings(argument)
    }

    fn script_settings() -> Result<Vec<(&'static str, Value)>> {
        Cnn::script_settings()
    }

    fn validate(recipe: &FamilyRecipe<Self>) -> Result<()> {
        Cnn::validate(recipe)
    }

    fn open(recipe: &mut FamilyRecipe<Self>, log: &Log) -> Result<Splits<Arc<ImageDataset>>> {
        Cnn::open(recipe, log)
    }

    fn model_of(recipe: &FamilyRecipe<Self>) -> ImageModelConfig {
        Cnn::model_of(recipe)
    }

    fn build(recipe: &FamilyRecipe<Self>, parameters: Parameters) -> Result<ImageClassification> {
        Cnn::build(recipe, parameters)
    }

    fn set_temperature(task: &mut ImageClassification, temperature: f64) {
        Cnn::set_temperature(task, temperature);
    }

    fn prepare_data(
        recipe: &FamilyRecipe<Self>,
        task: &mut ImageClassification,
        data: Splits<Arc<ImageDataset>>,
        log: &Log,
        interrupt: &Interrupt,
    ) -> Result<Option<Splits<Arc<ImageDataset>>>> {
        Cnn::prepare_data(recipe, task, data, log, interrupt)
    }

    fn usual_model(name: &str) -> Result<ImageModelConfig> {
        Cnn::usual_model(name)
    }

    fn recipe_of_weights(
        name: &str,
        weights: &Weights,
        classes: Option<Vec<String>>,
        settings: &[String],
    ) -> Result<FamilyRecipe<Self>> {
        Cnn::recipe_of_weights(name, weights, classes, settings)
    }

    fn example_inputs(model: &ImageModelConfig, batch: i64) -> Result<Vec<(&'static str, Tensor)>> {
        Cnn::example_inputs(model, batch)
    }

    fn network(model: &ImageModelConfig, device: Device) -> Result<Network> {
        Cnn::network(model, device)
    }

    fn forward(task: &ImageClassification, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        Cnn::forward(task, inputs)
    }

    fn save_script(task: &ImageClassification, path: &Path) -> Option<Result<()>> {
        Cnn::save_script(task, path)
    }

    fn predict(
        task: &mut ImageClassification,
        recipe: &FamilyRecipe<Self>,
        inputs: &[PathBuf],
        top_k: usize,
    ) -> Result<Vec<Prediction>> {
        Cnn::predict(task, recipe, inputs, top_k)
    }

    fn with_views(data: &ImageDataset, views: Views) -> Result<ImageDataset> {
        Cnn::with_views(data, views)
    }

    fn illustrate(
        report: &mut Report,
        recipe: &FamilyRecipe<Self>,
        task: &ImageClassification,
        data: &ImageDataset,
        evaluation: &Evaluation,
    ) -> Result<()> {
        Cnn::illustrate(report, recipe, task, data, evaluation)
    }
}

/// Whose data, tasks and metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Images and their classes
    #[default]
    Cnn,
    /// Texts or sequences of numbers and their classes
    Rnn,
    /// Rows of a table with a number or a class
    Regression,
}

/// Which of a module's methods and outputs make the scores.
#[derive(Clone, Debug, Default, Args)]
struct EntryArgs {
    /// The method to call
    #[arg(long, value_name = "NAME")]
    method: Option<String>,
    /// Which of several outputs: a position from 0, or a key
    #[arg(long, value_name = "OUTPUT")]
    output: Option<String>,
}

impl EntryArgs {
    fn settings(&self) -> Vec<(&'static str, Value)> {
        let method = self.method.iter().map(|method| ("model.script.method", json!(method)));
        method.chain(self.output.iter().map(|output| ("model.script.output", json!(output)))).collect()
    }
}

/// Arguments of `train`.
#[derive(Debug, Args)]
pub struct ScriptTrainArgs {
    /// The module to fine-tune
    #[arg(value_name = "FILE", required_unless_present = "resume", conflicts_with = "resume")]
    file: Option<PathBuf>,
    /// The family whose data, task and metrics are taken; its own `train --help` tells more
    #[arg(long, value_enum, default_value_t)]
    family: Kind,
    #[command(flatten)]
    entry: EntryArgs,
    /// Scale and normalise images as published weights of this architecture expect
    #[arg(long, value_name = "NAME")]
    preprocess: Option<String>,
    #[command(flatten)]
    train: TrainArgs,
}

/// Trains.
pub fn train(arguments: ScriptTrainArgs) -> Result<()> {
    let ScriptTrainArgs { file, family, entry, preprocess, mut train } = arguments;
    if train.init_from.is_some() {
        bail_input!("--init-from: give the module as FILE");
    }
    if let Some(file) = file {
        let head = train.head.get_or_insert_with(|| "none".to_owned()).clone();
        refuse_untrainable(&file, &head, train.quiet)?;
        train.init_from = Some(file);
    }
    let preprocess = PreprocessArgs { preprocess, ..Default::default() }.settings()?;
    let entry = entry.settings().into_iter().map(|(key, value)| (key.to_owned(), value));
    let settings = entry.chain(preprocess).map(|(key, value)| format!("{key}={value}"));
    // Before the user's own, which win.
    train.set.splice(0..0, settings.collect::<Vec<_>>());
    match family {
        Kind::Cnn => run_common::<Scripted>(CommonVerb::Train(Box::new(train))),
        Kind::Rnn => {
            if train.resume.is_none() {
                train.task.get_or_insert_with(|| "classify".to_owned());
            }
            run_common::<Rnn>(CommonVerb::Train(Box::new(train)))
        }
        Kind::Regression => {
            if train.resume.is_none() {
                // The default recipe is a solver's.
                train.recipe.get_or_insert_with(|| "mlp".to_owned());
            }
            run_common::<Regression>(CommonVerb::Train(Box::new(train)))
        }
    }
}

/// Says before anything starts that a module has nothing to train, and warns of one that learns in part only.
fn refuse_untrainable(file: &Path, head: &str, quiet: bool) -> Result<()> {
    let name = file.display();
    match kind_of(file)? {
        Artifact::Module => {}
        other => bail_input!("{name} is {}: only TorchScript modules can be trained", other.describe()),
    }
    let found = inspect(file)?;
    let reason = found.training.split_once(' ').map_or(found.training.as_str(), |(_, reason)| reason);
    match (found.trainable, head) {
        (false, "none") => bail_input!(
            "{name} cannot be trained: {reason}; train a new head on its output with --head linear, or save it unfrozen with torch.jit.script"
        ),
        (true, _) if found.training != "yes" => {
            Log::new(Verbosity::from_flags(quiet, true)).warning(format!("{name}: {reason}"));
        }
        _ => {}
    }
    Ok(())
}

/// Arguments of `eval`.
#[derive(Debug, Args)]
pub struct ScriptEvalArgs {
    /// A module, a compiled package, or a run folder
    #[arg(value_name = "FILE|RUN")]
    path: PathBuf,
    /// The family whose data, task and metrics are taken
    #[arg(long, value_enum, default_value_t)]
    family: Kind,
    #[command(flatten)]
    entry: EntryArgs,
    /// The data; of a run by default its own
    #[arg(long, value_name = "DIR|NAME")]
    data: Option<String>,
    /// Which part [default: test, else validation, else all]
    #[arg(long, value_enum)]
    split: Option<Part>,
    /// Names of the module's classes, one a line [default: those of the data]
    #[arg(long, value_name = "FILE")]
    classes: Option<PathBuf>,
    /// Samples computed at a time
    #[arg(long, value_name = "N")]
    batch_size: Option<usize>,
    /// How to print
    #[arg(long, value_enum, default_value_t = EvalFormat::Table)]
    format: EvalFormat,
    #[command(flatten)]
    preprocess: PreprocessArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Evaluates.
pub fn eval(arguments: ScriptEvalArgs) -> Result<()> {
    match arguments.family {
        Kind::Cnn => eval_as::<Scripted>(arguments, &[]),
        Kind::Rnn => eval_as::<Rnn>(arguments, &[("model.task", json!("classify"))]),
        Kind::Regression => eval_as::<Regression>(arguments, &[]),
    }
}

fn eval_as<F: Family>(arguments: ScriptEvalArgs, of_family: &[(&str, Value)]) -> Result<()> {
    let ScriptEvalArgs {
        path,
        family: _,
        entry,
        data,
        split,
        classes,
        batch_size,
        format,
        preprocess,
        device,
    } = arguments;
    if path.is_dir() {
        let weights = WeightsArgs::default();
        let run = ModelArgs { run: Some(path), checkpoint: None, weights, device, batch_size };
        let tta = Views::default();
        return run_common::<F>(CommonVerb::Eval(Box::new(EvalArgs {
            run,
            data,
            split,
            tta,
            format,
            group: GroupArgs::default(),
        })));
    }
    let Some(data) = data else { bail_input!("a module comes without data: give --data") };
    if let other @ Artifact::Weights(_) = kind_of(&path)? {
        bail_input!(
            "{} is {}, which has no code: `cnn eval --model NAME --init-from` takes weights",
            path.display(),
            other.describe()
        );
    }
    let mut value = json!({
        "name": path.file_stem().map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
        "model": { "script": { "file": path } },
        // Nothing is trained on the rest.
        "data": { "val_fraction": 0.0 },
        "training": {},
    });
    let common = F::script_settings()?.into_iter().chain(of_family.iter().cloned());
    for (key, setting) in common.chain(entry.settings()).chain(F::data_settings(&data)) {
        recipe::set(&mut value, key, setting)?;
    }
    if let Some(tokenizer) = &preprocess.tokenizer {
        recipe::set(&mut value, "data.tokenizer", json!({ "kind": "file", "path": tokenizer }))?;
    }
    for (key, setting) in preprocess.settings()? {
        recipe::set(&mut value, &key, setting)?;
    }
    if let Some(classes) = classes {
        let names: Vec<String> =
            files::read_text(&classes)?.lines().map(|line| line.trim().to_owned()).collect();
        recipe::set(&mut value, "data.classes", json!(names))?;
    }
    let mut settings = Vec::new();
    device.settings(&mut settings);
    for (key, setting) in settings {
        recipe::set(&mut value, key, setting)?;
    }
    let mut recipe: FamilyRecipe<F> = recipe::typed(value, "the flags")?;
    recipe.training.eval_batch_size = batch_size;
    F::validate(&recipe)?;
    let device = session::prepare(&mut recipe.training)?;
    let log = Log::new(Verbosity::from_flags(false, format == EvalFormat::Json));
    let splits = F::open(&mut recipe, &log)?;
    let all = splits.test.is_none() && splits.validation.is_none();
    let task = F::build(&recipe, Parameters::undrawn(device))?;
    let origin = path.display().to_string();
    report::<F>(
        Evaluated { recipe: &recipe, splits, task, origin: &origin, step: None },
        split.or(all.then_some(Part::Train)),
        Views::default(),
        format,
        &log,
        &mut SingleProcess,
    )
}
