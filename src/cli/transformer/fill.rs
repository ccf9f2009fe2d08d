//! `fill`: words for the mask.

use anyhow::Result;
use clap::Args;
use serde_json::json;
use tch::Kind;

use super::family::{Encoders, longest, open_tokenizer};
use super::predict::{TEXTS, TextSource};
use super::{Mlm, TaskName, task_of};
use crate::bail_input;
use crate::cli::args::{EvalFormat, RunArgs};
use crate::cli::print;
use crate::cli::session::Session;
use crate::data::encoder_texts::{TokenBatch, encode};
use crate::data::text::TextInput;
use crate::native::modes::InferenceMode;
use crate::tasks::Task;

/// Arguments of `fill`.
#[derive(Debug, Args)]
pub struct FillArgs {
    #[command(flatten)]
    pub run: RunArgs,
    #[command(flatten)]
    pub texts: TextSource,
    /// Best words for each mask
    #[arg(long, value_name = "K", default_value_t = 5)]
    pub top_k: usize,
    /// How to print
    #[arg(long, value_enum, default_value_t = EvalFormat::Table)]
    pub format: EvalFormat,
}

/// Runs the verb.
pub fn run(arguments: &FillArgs) -> Result<()> {
    let task = task_of(Some(&arguments.run.run))?;
    if task != TaskName::Mlm {
        bail_input!(
            "{} is for `{}`: only a model trained with --task mlm guesses hidden words",
            arguments.run.run.display(),
            task.name()
        );
    }
    let session = Session::<Encoders<Mlm>>::open(&arguments.run.as_model())?;
    let (recipe, task) = (&session.recipe, &session.task);
    let tokenizer = open_tokenizer(recipe)?;
    let mask = tokenizer.special().mask;
    let Some((mask, name)) = mask.and_then(|mask| Some((mask, tokenizer.token(mask)?))) else {
        bail_input!("the tokenizer has no mask token");
    };
    let table = arguments.texts.read(&TEXTS, &[])?;
    // One way to write the mask for all models.
    let texts: Vec<String> = table.rows.iter().map(|row| row.text(0).replace("[MASK]", &name)).collect();
    let inputs: Vec<TextInput<'_>> = texts.iter().map(|text| TextInput::single(text)).collect();
    let (encoded, _) = encode(&tokenizer, &inputs, longest(recipe), true, |row| table.place(row))
        .map_err(|error| table.blame(error))?;
    let (padding, device) = (recipe.model.config()?.dimensions().padding, task.parameters().device());
    let _inference = InferenceMode::enter()?;
    let _autocast = recipe.training.precision.autocast(device)?;
    let mut lines = Vec::new();
    for (number, text) in texts.iter().enumerate() {
        let ids = encoded.ids(number);
        let places: Vec<usize> = (0..ids.len()).filter(|&place| ids[place] == mask).collect();
        if places.is_empty() {
            bail_input!("{}: there is no {name} in `{text}`", table.place(number));
        }
        let tokens = TokenBatch::of(&[(ids, encoded.second_from(number))], padding)?.to_device(device)?;
        let hidden = task.model().hidden(&tokens.inputs(), false); // [1, length, width]
        let mut masks = Vec::new();
        for &place in &places {
            let scores = task.model().scores(&hidden.f_select(1, place as i64)?, false); // [1, vocabulary]
            let probabilities =
                scores.f_to_kind(Kind::Float)?.f_softmax(-1, Kind::Float)?.f_squeeze_dim(0)?;
            let count = (arguments.top_k.max(1) as i64).min(probabilities.size1()?);
            let (best, ids) = probabilities.f_topk(count, -1, true, true)?;
            let best = Vec::<f64>::try_from(best.f_to_kind(Kind::Double)?)?;
            let words = Vec::<i64>::try_from(ids)?.into_iter().map(|id| -> Result<(String, i64)> {
                Ok((tokenizer.decode(&[id], false)?.trim().to_owned(), id))
            });
            masks.push(words.zip(best).map(|(word, p)| Ok((word?, p))).collect::<Result<Vec<_>>>()?);
        }
        lines.push(match arguments.format {
            EvalFormat::Json => {
                let list = |words: &Vec<((String, i64), f64)>| -> Vec<_> {
                    words
                        .iter()
                        .map(|((word, id), p)| json!({"word": word, "token": id, "probability": p}))
                        .collect()
                };
                json!({ "text": text, "masks": masks.iter().map(list).collect::<Vec<_>>() }).to_string()
            }
            EvalFormat::Table => {
                let listed = masks.iter().map(|words| {
                    let words = words.iter().map(|((word, _), p)| format!("{word} {:.2} %", 100.0 * p));
                    format!("  {}", words.collect::<Vec<_>>().join(", "))
                });
                std::iter::once(text.clone()).chain(listed).collect::<Vec<_>>().join("\n")
            }
        });
    }
    print(&lines.join("\n"))
}
