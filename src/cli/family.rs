//! What a model family tells the shared verbs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tch::{Device, Tensor};

use crate::bail_input;
use crate::data::image_dataset::Views;
use crate::data::{Dataset, Splits};
use crate::models::Parameters;
use crate::recipe::{Preset, Recipe};
use crate::reporting::{Log, Report};
use crate::tasks::{Evaluation, Task};
use crate::training::signals::Interrupt;
use crate::weights::{self, Loaded, Weights};

/// A family's recipe.
pub type FamilyRecipe<F> = Recipe<<F as Family>::Model, <F as Family>::Data>;

/// One prediction: a row for each of the best classes, best first.
#[derive(Clone, Debug, Serialize)]
pub struct Prediction {
    /// The file, or the text.
    pub input: String,
    /// Classes with their probabilities, best first.
    pub ranked: Vec<(String, f64)>,
}

/// Forms of export that are folders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FolderFormat {
    /// A Hugging Face folder: configuration, weights, tokenizer.
    HuggingFace,
    /// Adapters in the form of PEFT.
    Peft,
}

impl FolderFormat {
    /// The value of `--format`.
    pub fn name(self) -> &'static str {
        match self {
            Self::HuggingFace => "hf",
            Self::Peft => "peft",
        }
    }
}

/// A model family: which data, which models, which task.
pub trait Family: Sized {
    /// The binary's name.
    const NAME: &'static str;
    /// One line for `--help`.
    const ABOUT: &'static str;
    /// What `train` runs with no arguments.
    const DEFAULT_RECIPE: &'static str;
    /// The `model` section of its recipes.
    type Model: Clone + Serialize + DeserializeOwned;
    /// The `data` section.
    type Data: Clone + Serialize + DeserializeOwned;
    /// Its samples.
    type Dataset: Dataset;
    /// Its loss and metrics.
    type Task: Task<Batch = <Self::Dataset as Dataset>::Batch>;

    /// What `train` runs where only the kind of task is said (`--task`).
    fn recipe_of_task(_task: &str) -> &'static str {
        Self::DEFAULT_RECIPE
    }

    /// The recipes compiled in.
    fn presets() -> &'static [Preset];

    /// The names of the architectures.
    fn models() -> Vec<&'static str>;

    /// What `--data ARGUMENT` sets in a recipe.
    fn data_settings(argument: &str) -> Vec<(&'static str, Value)>;

    /// What makes a recipe one of a TorchScript module (`--init-from FILE --head …`), besides `model.script`.
    ///
    /// # Errors
    /// The family takes none.
    fn script_settings() -> Result<Vec<(&'static str, Value)>> {
        bail_input!("--head: {} takes no TorchScript modules", Self::NAME)
    }

    /// Checks the family's sections before anything is opened.
    fn validate(recipe: &FamilyRecipe<Self>) -> Result<()>;

    /// Opens the data and writes into the recipe what they decide: number of classes, image size, class weights.
    fn open(recipe: &mut FamilyRecipe<Self>, log: &Log) -> Result<Splits<Arc<Self::Dataset>>>;

    /// The model of a run's recipe with the files that lie in the run.
    fn model_of(recipe: &FamilyRecipe<Self>) -> Self::Model {
        recipe.model.clone()
    }

    /// Makes the model of a complete recipe in `parameters`, which are empty and say whether initial weights are drawn (from libtorch's default
    /// generator) and on which device.
    fn build(recipe: &FamilyRecipe<Self>, parameters: Parameters) -> Result<Self::Task>;

    /// Copies weights from elsewhere into the model that a training starts with.
    fn load(task: &Self::Task, source: &Path, strict: bool) -> Result<Loaded> {
        weights::load(task.parameters(), source, strict)
    }

    /// The recipe of a folder with weights and a configuration, or of `hf:ORG/NAME`, in place of a run.
    fn recipe_of_folder(folder: &Path) -> Result<FamilyRecipe<Self>> {
        bail_input!("{} is no run folder: it has no recipe.json", folder.display())
    }

    /// What `eval --data ARGUMENT` sets in a recipe.
    fn evaluation_settings(argument: &str) -> Vec<(&'static str, Value)> {
        Self::data_settings(argument)
    }

    /// Writes a folder of a form of its own for `export`.
    fn export_folder(
        _recipe: &FamilyRecipe<Self>,
        _task: &Self::Task,
        format: FolderFormat,
        _folder: &Path,
    ) -> Result<()> {
        bail_input!("{} has no export --format {}", Self::NAME, format.name())
    }

    /// Divides the logits of a trained classifier by what `calibrate` found best.
    fn set_temperature(_task: &mut Self::Task, _temperature: f64) {}

    /// Does once what training would do in every epoch, where the recipe allows it: a last chance to change the data before the first step. Told in the
    /// log. `None` if a signal came in between.
    fn prepare_data(
        _recipe: &FamilyRecipe<Self>,
        _task: &mut Self::Task,
        data: Splits<Arc<Self::Dataset>>,
        _log: &Log,
        _interrupt: &Interrupt,
    ) -> Result<Option<Splits<Arc<Self::Dataset>>>> {
        Ok(Some(data))
    }

    /// The recipe section of an architecture by name with its usual input, for `info --model`.
    fn usual_model(name: &str) -> Result<Self::Model>;

    /// The recipe of an architecture with weights from elsewhere: with the preprocessing that they expect, then the settings `KEY=VALUE` of the
    /// command line. The number of classes is that of the names, else of the weights.
    fn recipe_of_weights(
        name: &str,
        weights: &Weights,
        classes: Option<Vec<String>>,
        settings: &[String],
    ) -> Result<FamilyRecipe<Self>> {
        let _ = (weights, classes, settings);
        bail_input!("{} takes run folders only: `{name}` needs more than weights", Self::NAME)
    }

    /// An input of the network itself, batch first, to trace it with or to look at its layers.
    fn example_inputs(model: &Self::Model, batch: i64) -> Result<Vec<(&'static str, Tensor)>>;

    /// A network without its task, from the inputs of [`Family::example_inputs`] to its outputs.
    fn network(model: &Self::Model, device: Device) -> Result<Network>;

    /// The outputs of a trained task's network.
    fn forward(task: &Self::Task, inputs: &[Tensor]) -> Result<Vec<Tensor>>;

    /// Writes a trained task's network as a TorchScript module where it is made of one; else it is traced.
    fn save_script(_task: &Self::Task, _path: &Path) -> Option<Result<()>> {
        None
    }

    /// The parts of a trained task's network that are traced each by itself, where it is not used as a whole: one, which becomes a file, or several, which
    /// become a folder of files.
    fn script_parts(_task: &Self::Task) -> Result<Option<Vec<ScriptPart<'_>>>> {
        Ok(None)
    }

    /// Predictions for inputs of the command line. A family whose predictions are no ranked classes has a verb of its own.
    fn predict(
        _task: &mut Self::Task,
        _recipe: &FamilyRecipe<Self>,
        _inputs: &[PathBuf],
        _top_k: usize,
    ) -> Result<Vec<Prediction>> {
        bail_input!("{} does not rank classes of files", Self::NAME)
    }

    /// The same data with several looks at each sample in an evaluation.
    fn with_views(_data: &Self::Dataset, _views: Views) -> Result<Self::Dataset> {
        bail_input!("--tta is for images, which {} has none of", Self::NAME)
    }

    /// Adds what the family shows of an evaluation to a report.
    fn illustrate(
        report: &mut Report,
        recipe: &FamilyRecipe<Self>,
        task: &Self::Task,
        data: &Self::Dataset,
        evaluation: &Evaluation,
    ) -> Result<()>;
}

/// A part of a network that a TorchScript file is made of.
pub struct ScriptPart<'a> {
    /// The file's name without its ending, where there are several.
    pub name: &'static str,
    /// Inputs to trace it with.
    pub inputs: Vec<(&'static str, Tensor)>,
    /// From inputs to outputs.
    #[allow(clippy::type_complexity)]
    pub forward: Box<dyn Fn(&[Tensor]) -> Result<Vec<Tensor>> + 'a>,
}

/// A model on its own: its tensors and what it computes.
pub struct Network {
    /// Its tensors.
    pub parameters: Parameters,
    /// Its forward pass in evaluation mode.
    #[allow(clippy::type_complexity)]
    pub forward: Box<dyn Fn(&[Tensor]) -> Vec<Tensor>>,
}
