//! The family `torchscript`: modules that somebody else has written.

mod bench;
mod convert;
mod family;
mod info;
mod run;

pub use bench::BenchArgs;
pub use convert::ConvertArgs;
pub use family::{ScriptEvalArgs, ScriptTrainArgs, Scripted};
pub use info::ScriptInfoArgs;
pub use run::RunModuleArgs;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use clap::{Args, Subcommand};

use super::args::{CompareArgs, DoctorArgs, ExportArgs, PredictArgs, RecipesArgs};
use super::{CommonVerb, run_common};
use crate::data::images::ImageDataConfig;
use crate::data::text::TextTokenizer;
use crate::models::pretrained::{Preprocessing, preprocessing_of};
use crate::recipe;
use crate::script::values::ValueReader;

/// What the binary does.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// What is in a file: methods, parameters, operators, whether it can be trained; nothing of it is run
    Info(ScriptInfoArgs),
    /// Call a method with inputs from files
    Run(Box<RunModuleArgs>),
    /// Metrics of a module, package or run on images, texts, sequences or tables
    Eval(Box<ScriptEvalArgs>),
    /// Latency and throughput over batch sizes and threads
    Bench(Box<BenchArgs>),
    /// Fine-tune a module on images, texts, sequences or tables, or continue a run exactly
    Train(Box<ScriptTrainArgs>),
    /// Weights and modules from one form into another
    Convert(ConvertArgs),
    /// Classes of images by a run
    Predict(Box<PredictArgs>),
    /// Write a run's module, trained, as TorchScript, or its weights
    Export(Box<ExportArgs>),
    /// Runs side by side: what differs in their recipes, their metrics, their curves
    Compare(CompareArgs),
    /// List the recipes, or print one
    Recipes(RecipesArgs),
    /// Check libtorch, devices, threads and memory settings
    Doctor(DoctorArgs),
}

/// Runs a verb.
pub fn run_verb(verb: Verb) -> Result<()> {
    match verb {
        Verb::Info(arguments) => info::run(&arguments),
        Verb::Run(arguments) => run::run(&arguments),
        Verb::Eval(arguments) => family::eval(*arguments),
        Verb::Bench(arguments) => bench::run(&arguments),
        Verb::Train(arguments) => family::train(*arguments),
        Verb::Convert(arguments) => convert::run(&arguments),
        Verb::Predict(arguments) => run_common::<Scripted>(CommonVerb::Predict(arguments)),
        Verb::Export(arguments) => run_common::<Scripted>(CommonVerb::Export(arguments)),
        Verb::Compare(arguments) => run_common::<Scripted>(CommonVerb::Compare(arguments)),
        Verb::Recipes(arguments) => run_common::<Scripted>(CommonVerb::Recipes(arguments)),
        Verb::Doctor(arguments) => run_common::<Scripted>(CommonVerb::Doctor(arguments)),
    }
}

/// How images become the input of a module.
#[derive(Clone, Debug, Default, Args)]
pub struct PreprocessArgs {
    /// Scale and normalise images as published weights of this architecture expect, as in efficientnet-lite0
    #[arg(long, value_name = "NAME")]
    pub preprocess: Option<String>,
    /// Set a key of the images' form, as in data.resize=256; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Make tokens of texts: a tokenizer.json, a vocab.txt, or a Hugging Face folder; text:…, or a .txt file of one text a line, then is
    /// [texts, tokens], and lengths:FILE.txt and mask:FILE.txt tell how many of these are no padding
    #[arg(long, value_name = "FILE|DIR")]
    pub tokenizer: Option<PathBuf>,
}

impl PreprocessArgs {
    /// The keys that they set in a recipe.
    fn settings(&self) -> Result<Vec<(String, serde_json::Value)>> {
        let mut settings = Vec::new();
        if let Some(name) = &self.preprocess {
            let (channels, size) = crate::models::image::find(name)?.usual_input;
            let Preprocessing { resize, mean, std } = preprocessing_of(name, channels, size[0].min(size[1]));
            for (key, value) in [
                ("data.image_size", serde_json::json!(size)),
                ("data.channels", serde_json::json!(channels)),
                ("data.resize", serde_json::json!(resize)),
                ("data.mean", serde_json::json!(mean)),
                ("data.std", serde_json::json!(std)),
            ] {
                settings.push((key.to_owned(), value));
            }
        }
        for setting in &self.set {
            settings.push(recipe::parse_setting(setting)?);
        }
        Ok(settings)
    }

    /// What reads the inputs of a method.
    fn reader(&self) -> Result<ValueReader> {
        let tokenizer = self.tokenizer.as_deref().map(TextTokenizer::open).transpose()?;
        Ok(ValueReader { images: Some(self.images()?), tokenizer: tokenizer.map(Arc::new) })
    }

    /// The `data` section of images that they describe.
    fn images(&self) -> Result<ImageDataConfig> {
        let mut value = serde_json::json!({ "data": {} });
        for (key, setting) in self.settings()? {
            recipe::set(&mut value, &key, setting)?;
        }
        recipe::typed(value["data"].take(), "--set")
    }
}
