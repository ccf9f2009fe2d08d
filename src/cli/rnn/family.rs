//! What `rnn` tells the shared verbs.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::cli::family::{Family, FamilyRecipe, Network};
use crate::data::Splits;
use crate::data::sequences::{
    BASELINES, OpenedSequences, SHAKESPEARE_MINI, SYNTHETIC, SequenceDataConfig, Sequences, open_labelled,
    open_series, open_text,
};
use crate::data::text::{TOKENIZER_FILE, TextTokenizer, WordVectors};
use crate::models::Parameters;
use crate::models::recurrent::{
    Cell, Forecaster, LanguageModel, Recurrent, RnnConfig, RnnGoal, SequenceClassifier,
};
use crate::models::scripted::ATTACHMENT;
use crate::recipe::Preset;
use crate::reporting::{Chart, ConfusionMatrix, Example, Log, Mark, Report, Sample, Series, format};
use crate::tasks::criterion::ClassificationLoss;
use crate::tasks::forecasting::Forecasting;
use crate::tasks::image_classification::listed;
use crate::tasks::language_modelling::{LanguageModelling, characters_of_tokens};
use crate::tasks::sequence_classification::SequenceClassification;
use crate::tasks::sequences::SequenceTask;
use crate::tasks::{Evaluation, Mode, classification};
use crate::training::config::{BalancedRule, ClassWeights, Sampling};
use crate::{bad_input, bail_input};

/// Recurrent networks.
pub struct Rnn;

/// The tokenizer of a recipe on texts: the one that they were read with, or that their run has kept.
///
/// # Errors
/// There is none.
pub fn known_tokenizer(recipe: &FamilyRecipe<Rnn>) -> Result<TextTokenizer> {
    match kept_tokenizer(recipe)? {
        Some(tokenizer) => Ok(tokenizer),
        None => bail_input!("the run has no {TOKENIZER_FILE}: texts cannot be read without it"),
    }
}

fn kept_tokenizer(recipe: &FamilyRecipe<Rnn>) -> Result<Option<TextTokenizer>> {
    TextTokenizer::attached(&recipe.attachments, TOKENIZER_FILE)
}

macro_rules! presets {
    ($($name:literal),* $(,)?) => {
        &[$(Preset { name: $name, json: include_str!(concat!("../../../models/rnn/", $name, ".json")) }),*]
    };
}

impl Family for Rnn {
    const NAME: &'static str = "rnn";
    const ABOUT: &'static str =
        "Train, evaluate, run and export recurrent networks: classes of sequences, texts, forecasts";
    const DEFAULT_RECIPE: &'static str = "lstm-shakespeare-mini";
    type Model = RnnConfig;
    type Data = SequenceDataConfig;
    type Dataset = Sequences;
    type Task = SequenceTask;

    fn recipe_of_task(task: &str) -> &'static str {
        match task {
            "classify" => "keras-lstm",
            "forecast" => "lstm-forecast",
            _ => Self::DEFAULT_RECIPE,
        }
    }

    fn presets() -> &'static [Preset] {
        presets![
            "lstm-shakespeare-mini",
            "lstm-tinyshakespeare",
            "gru-tinyshakespeare",
            "lstm-words",
            "keras-lstm",
            "lstm-text",
            "lstm-sst2",
            "lstm-forecast",
            "lstm-etth1",
            "lstm-etth1-highway",
            "gru-etth1",
            "lstm-etth1-quantiles",
        ]
    }

    fn models() -> Vec<&'static str> {
        Cell::ALL.iter().map(|cell| cell.name()).collect()
    }

    fn data_settings(argument: &str) -> Vec<(&'static str, Value)> {
        match argument {
            SHAKESPEARE_MINI | SYNTHETIC => {
                vec![("data.format", json!(argument)), ("data.path", Value::Null)]
            }
            path => vec![("data.format", json!("auto")), ("data.path", json!(path))],
        }
    }

    fn script_settings() -> Result<Vec<(&'static str, Value)>> {
        Ok(Vec::new())
    }

    fn validate(recipe: &FamilyRecipe<Self>) -> Result<()> {
        recipe.model.validate()?;
        recipe.data.validate()?;
        let (goal, training) = (recipe.model.task, &recipe.training);
        let for_classes = [
            ("class_weights", training.class_weights.is_some()),
            ("label_smoothing", training.label_smoothing > 0.0 && goal == RnnGoal::Forecast),
            ("focal_gamma", training.focal_gamma > 0.0),
            ("sampling", training.sampling != Sampling::Shuffled),
        ];
        if let Some((key, _)) = for_classes.iter().find(|(_, given)| *given && goal != RnnGoal::Classify) {
            bail_input!("training.{key} is for classes, which model.task does not tell apart");
        }
        if recipe.data.multi_label
            && (training.class_weights.is_some() || training.sampling != Sampling::Shuffled)
        {
            bail_input!("training.class_weights and training.sampling are for sequences with one label each");
        }
        if recipe.data.format == SYNTHETIC && goal != RnnGoal::Classify {
            bail_input!("data.format {SYNTHETIC} is a set of sequences with classes: take --task classify");
        }
        Ok(())
    }

    fn open(recipe: &mut FamilyRecipe<Self>, log: &Log) -> Result<Splits<Arc<Sequences>>> {
        if let Some(script) = &recipe.model.script {
            recipe.attachments.add_file(ATTACHMENT, &script.file);
        }
        let kept = kept_tokenizer(recipe)?;
        let is_new = kept.is_none();
        let attachments = &mut recipe.attachments;
        let (training, model, data) = (&mut recipe.training, &mut recipe.model, &mut recipe.data);
        match model.task {
            RnnGoal::Classify => {
                let OpenedSequences { splits, classes, tokenizer, standards } =
                    open_labelled(data, training.seed, kept)?;
                settle("classes", &mut model.classes, classes.len() as i64)?;
                data.classes = Some(classes);
                if let Some(tokenizer) = tokenizer {
                    settle("vocabulary", &mut model.vocabulary, tokenizer.vocabulary_size() as i64)?;
                    if is_new {
                        tokenizer.attach(attachments, TOKENIZER_FILE)?;
                    }
                }
                if let Some((features, mean, std)) = standards {
                    settle("features", &mut model.features, features as i64)?;
                    (data.mean, data.std) = (Some(mean), Some(std));
                }
                if training.class_weights == Some(ClassWeights::Rule(BalancedRule::Balanced)) {
                    let labels = splits.train.classes().unwrap_or_default();
                    training.class_weights =
                        Some(ClassWeights::Given(balanced(&labels, model.classes.unwrap_or(1) as usize)));
                }
                Ok(shared(splits, Sequences::Labelled))
            }
            RnnGoal::Lm => {
                let streams = training.global_batch_size();
                let opened = open_text(data, streams, training.eval_batch_size.unwrap_or(streams), kept)?;
                settle("vocabulary", &mut model.vocabulary, opened.tokenizer.vocabulary_size() as i64)?;
                log.info(format!(
                    "{} of {} tokens; {} tokens to learn from",
                    opened.tokenizer.kind(),
                    format::count(opened.tokenizer.vocabulary_size() as u64),
                    format::count(opened.splits.train.tokens().len() as u64)
                ));
                if is_new {
                    opened.tokenizer.attach(attachments, TOKENIZER_FILE)?;
                }
                Ok(shared(opened.splits, Sequences::Text))
            }
            RnnGoal::Forecast => {
                let opened = open_series(data)?;
                let fields = &opened.fields;
                settle("features", &mut model.features, fields.count() as i64)?;
                settle("targets", &mut model.targets, fields.targets.len() as i64)?;
                settle("known", &mut model.known, fields.known.len() as i64)?;
                settle("horizon", &mut model.horizon, data.horizon as i64)?;
                settle("input", &mut model.input, data.input as i64)?;
                data.targets = Some(fields.targets.clone());
                let (mean, std) = opened.standards;
                (data.mean, data.std) = (Some(mean), Some(std));
                Ok(shared(opened.splits, Sequences::Series))
            }
        }
    }

    fn model_of(recipe: &FamilyRecipe<Self>) -> RnnConfig {
        let script = recipe.model.script.clone().map(|script| script.kept(&recipe.attachments));
        RnnConfig { script, ..recipe.model.clone() }
    }

    fn build(recipe: &FamilyRecipe<Self>, parameters: Parameters) -> Result<SequenceTask> {
        let (model, data, training) = (&recipe.model, &recipe.data, &recipe.training);
        Ok(match model.task {
            RnnGoal::Classify => {
                let network = SequenceClassifier::new(&parameters.root(), &Self::model_of(recipe))?;
                // A trained table is in its checkpoint.
                let vectors = data.vectors.as_ref().filter(|_| parameters.draws());
                if let (Some(path), Some(embedding)) = (vectors, network.embedding()) {
                    WordVectors::read(path, &known_tokenizer(recipe)?)?.write_into(embedding.weight())?;
                }
                let classes = data.classes.clone().unwrap_or_default();
                let loss = ClassificationLoss {
                    label_smoothing: training.label_smoothing,
                    class_weights: match &training.class_weights {
                        Some(ClassWeights::Given(weights)) => Some(weights.clone()),
                        Some(ClassWeights::Rule(_)) | None => None,
                    },
                    focal_gamma: training.focal_gamma,
                    multi_label: data.multi_label,
                };
                SequenceTask::Classify(SequenceClassification::new(parameters, network, classes, &loss)?)
            }
            RnnGoal::Lm => {
                let tokenizer = known_tokenizer(recipe)?;
                if model.vocabulary != Some(tokenizer.vocabulary_size() as i64) {
                    bail_input!(
                        "the tokenizer has {} tokens, but model.vocabulary is {:?}: they are not of one run",
                        tokenizer.vocabulary_size(),
                        model.vocabulary.unwrap_or(0)
                    );
                }
                let network = LanguageModel::new(&parameters.root(), model)?;
                let characters = characters_of_tokens(&tokenizer)?;
                SequenceTask::Lm(LanguageModelling::new(
                    parameters,
                    network,
                    training.label_smoothing,
                    characters,
                )?)
            }
            RnnGoal::Forecast => {
                let network = Forecaster::new(&parameters.root(), model)?;
                SequenceTask::Forecast(Forecasting::new(parameters, network, model)?)
            }
        })
    }

    fn usual_model(name: &str) -> Result<RnnConfig> {
        let cell = Cell::ALL.into_iter().find(|cell| cell.name() == name).ok_or_else(|| {
            bad_input!(
                "there is no model `{name}`{}",
                crate::recipe::nearest_hint(name, Cell::ALL.map(Cell::name))
            )
        })?;
        Ok(RnnConfig {
            name: cell,
            embedding: 256,
            hidden: 256,
            layers: 2,
            vocabulary: Some(65),
            ..RnnConfig::default()
        })
    }

    fn example_inputs(model: &RnnConfig, batch: i64) -> Result<Vec<(&'static str, Tensor)>> {
        // Examples are moved to the device by whoever uses them.
        let (whole, float) = ((Kind::Int64, Device::Cpu), (Kind::Float, Device::Cpu));
        let needed = |value: Option<i64>, key: &str| {
            value.ok_or_else(|| {
                bad_input!("model.{key} is not set: the data decide it; set it with --set model.{key}=N")
            })
        };
        const STEPS: i64 = 7;
        Ok(match model.task {
            RnnGoal::Classify => {
                let inputs = match model.vocabulary {
                    Some(_) => ("tokens", Tensor::f_zeros([batch, STEPS], whole)?),
                    None => (
                        "sequences",
                        Tensor::f_zeros([batch, STEPS, needed(model.features, "features")?], float)?,
                    ),
                };
                // Of different lengths, so that the trace does not take them for one.
                let lengths: Vec<i64> = (0..batch).map(|row| STEPS - row % 3).collect();
                vec![inputs, ("lengths", Tensor::f_from_slice(&lengths)?)]
            }
            RnnGoal::Lm => {
                let size = [model.layers, batch, model.projection.unwrap_or(model.hidden)];
                let mut inputs = vec![
                    ("tokens", Tensor::f_zeros([batch, STEPS], whole)?),
                    ("hidden", Tensor::f_zeros(size, float)?),
                ];
                if model.name == Cell::Lstm {
                    inputs.push(("cell", Tensor::f_zeros([model.layers, batch, model.hidden], float)?));
                }
                inputs
            }
            RnnGoal::Forecast => {
                let (features, horizon) =
                    (needed(model.features, "features")?, needed(model.horizon, "horizon")?);
                let mut inputs = vec![(
                    "window",
                    Tensor::f_zeros([batch, model.input.unwrap_or(STEPS), features], float)?,
                )];
                if let Some(known) = model.known.filter(|known| *known > 0) {
                    inputs.push(("future", Tensor::f_zeros([batch, horizon, known], float)?));
                }
                inputs
            }
        })
    }

    fn network(model: &RnnConfig, device: Device) -> Result<Network> {
        let parameters = Parameters::undrawn(device);
        let scope = parameters.root();
        type Forward = Box<dyn Fn(&[Tensor]) -> Vec<Tensor>>;
        let forward: Forward = match model.task {
            RnnGoal::Classify => {
                let network = SequenceClassifier::new(&scope, model)?;
                Box::new(move |inputs| vec![network.forward(&inputs[0], &inputs[1], false)])
            }
            RnnGoal::Lm => {
                let network = LanguageModel::new(&scope, model)?;
                Box::new(move |inputs| with_state(&network, inputs))
            }
            RnnGoal::Forecast => {
                let network = Forecaster::new(&scope, model)?;
                Box::new(move |inputs| vec![network.forward(&inputs[0], future(inputs), false).values])
            }
        };
        Ok(Network { parameters, forward })
    }

    fn forward(task: &SequenceTask, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        Ok(match task {
            SequenceTask::Classify(task) => vec![task.forward(&inputs[0], &inputs[1], Mode::Evaluate)],
            SequenceTask::Lm(task) => with_state(task.network(), inputs),
            SequenceTask::Forecast(task) => {
                vec![task.network().forward(&inputs[0], future(inputs), false).values]
            }
        })
    }

    fn save_script(task: &SequenceTask, path: &Path) -> Option<Result<()>> {
        match task {
            SequenceTask::Classify(task) => task.network().save_script(path),
            SequenceTask::Lm(_) | SequenceTask::Forecast(_) => None,
        }
    }

    fn illustrate(
        report: &mut Report,
        recipe: &FamilyRecipe<Self>,
        _task: &SequenceTask,
        data: &Sequences,
        evaluation: &Evaluation,
    ) -> Result<()> {
        let details = &evaluation.details;
        match recipe.model.task {
            RnnGoal::Classify => {
                let names = recipe.data.classes.clone().unwrap_or_default();
                let scores: Vec<classification::ClassScores> =
                    serde_json::from_value(details["classes"].clone())?;
                report.classes = scores.into_iter().map(Into::into).collect();
                if !recipe.data.multi_label {
                    let counts: Vec<u64> = serde_json::from_value(details["confusion"].clone())?;
                    report.confusion = Some(ConfusionMatrix { classes: names.clone(), counts });
                }
                for (key, list) in [("examples", &mut report.examples), ("mistakes", &mut report.mistakes)] {
                    for one in listed(&details[key], &names, recipe.data.multi_label)? {
                        list.push(Example {
                            input: Sample::Text(crate::data::Dataset::describe(data, one.sample)),
                            name: format!("sample {}", one.sample),
                            label: Some(one.label),
                            prediction: one.prediction,
                            probability: one.probability,
                        });
                    }
                }
            }
            RnnGoal::Lm => {}
            RnnGoal::Forecast => report.charts.push(errors_by_step(details)?),
        }
        Ok(())
    }
}

/// The tokens and the state in the inputs of a language model to logits and the state after them.
fn with_state(network: &LanguageModel, inputs: &[Tensor]) -> Vec<Tensor> {
    let (logits, state) = network.forward(&inputs[0], &inputs[1..], false);
    std::iter::once(logits).chain(state).collect()
}

/// What is known of the future, or anything where nothing is.
fn future(inputs: &[Tensor]) -> &Tensor {
    inputs.get(1).unwrap_or(&inputs[0])
}

/// Writes a size that the data decide into the model, or checks that it is the one that the recipe has.
fn settle(key: &str, place: &mut Option<i64>, found: i64) -> Result<()> {
    let known = *place.get_or_insert(found);
    if known != found {
        bail_input!("model.{key} is {known}, but the data have {found}");
    }
    Ok(())
}

fn shared<T>(splits: Splits<T>, wrap: impl Fn(T) -> Sequences) -> Splits<Arc<Sequences>> {
    let part = |part: T| Arc::new(wrap(part));
    Splits { train: part(splits.train), validation: splits.validation.map(part), test: splits.test.map(part) }
}

/// scikit-learn's `class_weight="balanced"`: samples / (classes · samples of the class); 0 for a class without samples.
fn balanced(labels: &[i64], classes: usize) -> Vec<f64> {
    let mut counts = vec![0u64; classes];
    labels.iter().for_each(|label| counts[*label as usize] += 1);
    let weight =
        |&count: &u64| if count == 0 { 0.0 } else { labels.len() as f64 / (classes as f64 * count as f64) };
    counts.iter().map(weight).collect()
}

/// The mean squared error of each step of the horizon, the network beside the baselines.
fn errors_by_step(details: &Value) -> Result<Chart> {
    let series = std::iter::once("network").chain(BASELINES).map(|name| -> Result<Series> {
        let errors: Vec<f64> = serde_json::from_value(details["mse_by_step"][name].clone())
            .context("an evaluation without errors by step")?;
        Ok(Series {
            name: name.replace('_', " "),
            points: errors.iter().enumerate().map(|(step, error)| (step as f64 + 1.0, *error)).collect(),
            mark: Mark::LineWithDots,
        })
    });
    Ok(Chart {
        title: "Mean squared error by step of the horizon".to_owned(),
        x_label: "step".to_owned(),
        series: series.collect::<Result<_>>()?,
        note: "On the standardised scale; naive repeats the last value, seasonal naive the last season, linear is least squares on the window."
            .to_owned(),
        ..Chart::default()
    })
}

/// The recurrent layers of a task, where it is a language model.
pub(super) fn language_model(task: &SequenceTask) -> Result<(&LanguageModel, &Recurrent)> {
    match task {
        SequenceTask::Lm(task) => Ok((task.network(), task.network().recurrent())),
        _ => bail_input!("the run is no language model: train one with --task lm"),
    }
}
