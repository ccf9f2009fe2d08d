//! The family `transformer`: encoders of the BERT kind, translation, decoder language models.
//!
//! Each task (`--task`) is a [`Family`](super::Family) of its own with its own file; `model.task` of a recipe says which. A verb first finds the task, then runs
//! the shared verb, or the task's own, with that family. A further task is a file with its family, a variant of [`TaskName`] and a line in
//! `with_family!`.

mod args;
mod classify;
mod embed;
mod explain;
mod export;
mod family;
mod fill;
mod generate;
mod language;
mod mlm;
mod predict;
mod pretrained;
mod qa;
mod tokens;
mod train;
mod translate;
mod translation;
mod vectors;

pub use classify::Classify;
pub use embed::Embed;
pub use family::{EncoderRecipe, EncoderSection, EncoderTask, Encoders};
pub use language::LanguageModelling;
pub use mlm::Mlm;
pub use qa::Qa;
pub use tokens::Tokens;
pub use translation::Translating;

use std::path::Path;

use anyhow::Result;
use clap::{Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::args::{CompareArgs, DoctorArgs, EvalArgs, ExportArgs, InfoArgs, RecipesArgs};
use super::tokenizer::TokenizerVerb;
use crate::bail_input;
use crate::recipe::{self, Preset};
use crate::training::run::read_recipe;
use pretrained::Pretrained;

/// The binary's name.
pub const NAME: &str = "transformer";
/// One line for `--help`.
pub const ABOUT: &str =
    "Train, fine-tune, run, explain and export transformers: text encoders, translation, language models";

macro_rules! presets {
    ($($name:literal),* $(,)?) => {
        &[$(Preset { name: $name, json: include_str!(concat!("../../../models/transformer/", $name, ".json")) }),*]
    };
}

/// The recipes of all tasks.
pub const PRESETS: &[Preset] = presets![
    "bert-tiny-plays",
    "bert-mini-mlm",
    "glue-finetune",
    "sst2-quick",
    "sst2-full",
    "ner-finetune",
    "squad-finetune",
    "embed-pairs",
    "multi30k-en-de",
    "multi30k-en-de-tiny",
    "seq2seq-finetune",
    "gpt-shakespeare-mini",
    "gpt-tinyshakespeare",
    "llama-tinyshakespeare",
    "lm-finetune",
];

/// What a transformer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum TaskName {
    /// A label, several labels or a value for one or two texts.
    Classify,
    /// A tag for each word.
    Tokens,
    /// Answers as spans of a context.
    Qa,
    /// Hidden words: pretraining.
    Mlm,
    /// One vector for each text.
    Embed,
    /// A text in another language.
    Translate,
    /// A text made of a text: a summary, an answer.
    Seq2seq,
    /// A text that goes on: decoder language models.
    Lm,
}

impl TaskName {
    /// By its name.
    ///
    /// # Errors
    /// There is no such task; the nearest is offered.
    pub fn parse(name: &str) -> Result<Self> {
        let all = Self::value_variants();
        match all.iter().find(|task| task.name() == name) {
            Some(task) => Ok(*task),
            None => bail_input!(
                "--task: there is no task `{name}`{}",
                recipe::nearest_hint(name, all.iter().map(|task| task.name()))
            ),
        }
    }

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Classify => "classify",
            Self::Tokens => "tokens",
            Self::Qa => "qa",
            Self::Mlm => "mlm",
            Self::Embed => "embed",
            Self::Translate => "translate",
            Self::Seq2seq => "seq2seq",
            Self::Lm => "lm",
        }
    }
}

/// Calls a function that is generic over the family with that of a task.
macro_rules! with_family {
    ($task:expr, $module:ident :: $function:ident ($($argument:expr),*)) => {
        match $task {
            TaskName::Classify => $module::$function::<Encoders<Classify>>($($argument),*),
            TaskName::Tokens => $module::$function::<Encoders<Tokens>>($($argument),*),
            TaskName::Qa => $module::$function::<Encoders<Qa>>($($argument),*),
            TaskName::Mlm => $module::$function::<Encoders<Mlm>>($($argument),*),
            TaskName::Embed => $module::$function::<Encoders<Embed>>($($argument),*),
            TaskName::Translate | TaskName::Seq2seq => $module::$function::<Translating>($($argument),*),
            TaskName::Lm => $module::$function::<LanguageModelling>($($argument),*),
        }
    };
}
use with_family;

/// The family that what is common to all tasks is asked of: recipes, names of architectures.
pub type Anyone = Encoders<Classify>;

/// The verbs of `transformer`.
#[derive(Debug, Subcommand)]
pub enum TransformerVerb {
    /// Pretrain or fine-tune an encoder, or continue a run exactly
    Train(Box<args::TransformerTrainArgs>),
    /// Metrics of a run or of a Hugging Face folder on one part of the data
    Eval(Box<EvalArgs>),
    /// Labels, tags, answers or values for texts
    Predict(Box<predict::TextPredictArgs>),
    /// One vector for each text
    Embed(Box<vectors::EmbedArgs>),
    /// Texts by likeness to others
    Similar(Box<vectors::SimilarArgs>),
    /// Words for hidden places of a text
    Fill(Box<fill::FillArgs>),
    /// Texts in another language, line for line
    Translate(Box<translate::TranslateArgs>),
    /// A language model goes on with a text
    Generate(Box<generate::GenerateArgs>),
    /// How likely a language model finds a text
    Score(Box<generate::ScoreArgs>),
    /// Which tokens a prediction rests on: integrated gradients and attention
    Explain(Box<explain::ExplainArgs>),
    /// Write files that Python loads
    Export(Box<ExportArgs>),
    /// What is in a run, a weights file or an architecture
    Info(InfoArgs),
    /// Runs side by side: what differs in their recipes, their metrics, their curves
    Compare(CompareArgs),
    /// List the recipes, or print one
    Recipes(RecipesArgs),
    /// Check libtorch, devices, threads and memory settings
    Doctor(DoctorArgs),
    /// Make a tokenizer from texts, or show what one does
    #[command(subcommand)]
    Tokenizer(TokenizerVerb),
}

/// Runs a verb.
pub fn run(verb: TransformerVerb) -> Result<()> {
    match verb {
        TransformerVerb::Train(arguments) => train::run(*arguments),
        TransformerVerb::Eval(arguments) => {
            let task = task_of(arguments.run.run.as_deref())?;
            use super::eval;
            with_family!(task, eval::run(&arguments))
        }
        TransformerVerb::Predict(arguments) => predict::run(&arguments),
        TransformerVerb::Embed(arguments) => vectors::embed(&arguments),
        TransformerVerb::Similar(arguments) => vectors::similar(&arguments),
        TransformerVerb::Fill(arguments) => fill::run(&arguments),
        TransformerVerb::Translate(arguments) => translate::run(&arguments),
        TransformerVerb::Generate(arguments) => generate::generate(&arguments),
        TransformerVerb::Score(arguments) => generate::score(&arguments),
        TransformerVerb::Explain(arguments) => explain::run(&arguments),
        TransformerVerb::Export(arguments) => {
            let task = task_of(arguments.run.run.as_deref())?;
            use super::export;
            with_family!(task, export::run(&arguments))
        }
        TransformerVerb::Info(arguments) => {
            use super::info;
            match arguments.path.as_deref().filter(|path| path.join("recipe.json").is_file()) {
                Some(run) => {
                    let task = task_of(Some(run))?;
                    with_family!(task, info::run(&arguments))
                }
                None => info::run::<Anyone>(&arguments),
            }
        }
        TransformerVerb::Compare(arguments) => super::compare::run(&arguments),
        TransformerVerb::Recipes(arguments) => super::recipes::run::<Anyone>(&arguments),
        TransformerVerb::Doctor(arguments) => super::doctor::run(&arguments),
        TransformerVerb::Tokenizer(verb) => super::tokenizer::run(&verb),
    }
}

/// What `--data` sets in a recipe: a path, or the name of the compiled-in text.
fn text_settings(argument: &str, builtin: &str) -> Vec<(&'static str, Value)> {
    match argument == builtin {
        true => vec![("data.builtin", json!(builtin)), ("data.path", Value::Null)],
        false => vec![("data.builtin", Value::Null), ("data.path", json!(argument))],
    }
}

/// The task of a run, of a Hugging Face folder or of `hf:ORG/NAME`.
fn task_of(run: Option<&Path>) -> Result<TaskName> {
    match run {
        Some(run) if super::session::is_elsewhere(run) && !run.join("recipe.json").is_file() => {
            Pretrained::find(run)?.task()
        }
        Some(run) => {
            let value = read_recipe(run)?;
            recipe::typed(value["model"]["task"].clone(), &format!("model.task of {}", run.display()))
        }
        // What is wrong with the arguments is told by the verb.
        None => Ok(TaskName::Classify),
    }
}
