//! `train`: finds the task, then trains with its family.

use anyhow::Result;

use super::args::TransformerTrainArgs;
use super::{
    Anyone, Classify, Embed, Encoders, LanguageModelling, Mlm, Qa, TaskName, Tokens, Translating, task_of,
    with_family,
};
use crate::cli::family::Family;
use crate::cli::train as shared;
use crate::{bail_input, recipe};

/// Runs the verb.
pub fn run(arguments: TransformerTrainArgs) -> Result<()> {
    let settings = arguments.settings();
    let TransformerTrainArgs { mut train, .. } = arguments;
    let task = train.task.as_deref().map(TaskName::parse).transpose()?;
    let task = match (&train.resume, &train.recipe, task) {
        (Some(run), ..) => {
            let kept = task_of(Some(run))?;
            if task.is_some_and(|task| task != kept) {
                bail_input!("--resume {}: the run is for `{}` and stays so", run.display(), kept.name());
            }
            kept
        }
        (None, Some(name), None) => {
            let value = recipe::find(name, Anyone::presets())?;
            match value["model"].get("task") {
                Some(task) => recipe::typed(task.clone(), &format!("model.task of recipe {name}"))?,
                None => bail_input!("recipe {name} has no model.task: give --task"),
            }
        }
        (None, _, task) => task.unwrap_or(TaskName::Classify),
    };
    if train.recipe.is_none() && train.resume.is_none() && (train.data.is_some() || train.init_from.is_some())
    {
        // The recipe that runs with no arguments is one for the compiled-in texts.
        train.recipe = Some(usual_recipe(task, train.init_from.is_some()).to_owned());
    }
    // Flags before --set, which has the last word.
    let mut set: Vec<String> = settings.iter().map(|(key, value)| format!("{key}={value}")).collect();
    set.append(&mut train.set);
    train.set = set;
    with_family!(task, shared::run(&train))
}

/// The recipe for data of one's own.
fn usual_recipe(task: TaskName, pretrained: bool) -> &'static str {
    match task {
        TaskName::Classify if pretrained => "glue-finetune",
        TaskName::Classify => "bert-tiny-plays",
        TaskName::Tokens => "ner-finetune",
        TaskName::Qa => "squad-finetune",
        TaskName::Mlm => "bert-mini-mlm",
        TaskName::Embed => "embed-pairs",
        TaskName::Translate if !pretrained => "multi30k-en-de",
        TaskName::Translate | TaskName::Seq2seq => "seq2seq-finetune",
        TaskName::Lm if !pretrained => "gpt-tinyshakespeare",
        TaskName::Lm => "lm-finetune",
    }
}
