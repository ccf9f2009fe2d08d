//! `mlm`: pretraining by hidden words.

use std::sync::Arc;

use anyhow::Result;

use super::TaskName;
use super::family::{EncoderRecipe, EncoderSection, EncoderTask, longest, tell_cut};
use crate::bail_input;
use crate::data::Splits;
use crate::data::encoder_texts::{MaskedTexts, RawSplits, WordStarts, encode};
use crate::data::text::{EncodeOptions, EncodedTexts, TextInput, TextTable, TextTokenizer};
use crate::models::Parameters;
use crate::models::encoders::{EncoderModel, HeadKind};
use crate::reporting::Log;
use crate::tasks::masked_lm::MaskedLm;

/// Guessing hidden words.
pub struct Mlm;

impl EncoderTask for Mlm {
    const TASK: TaskName = TaskName::Mlm;
    const RECIPE: &'static str = "bert-mini-mlm";
    type Dataset = MaskedTexts;
    type Task = MaskedLm;

    fn texts(recipe: &EncoderRecipe) -> Result<Vec<String>> {
        let splits = RawSplits::read(&recipe.data, recipe.training.seed, false, false)?;
        Ok(splits.train.rows.iter().map(|row| row.text(0).to_owned()).collect())
    }

    fn open(recipe: &mut EncoderRecipe, tokenizer: &TextTokenizer, log: &Log) -> Result<Splits<MaskedTexts>> {
        let splits = RawSplits::read(&recipe.data, recipe.training.seed, false, false)?;
        let words = Arc::new(WordStarts::of(tokenizer)?);
        let padding = recipe.model.config()?.dimensions().padding;
        let length = longest(recipe);
        let part = |table: &TextTable, name: &str| -> Result<MaskedTexts> {
            let lines: Vec<TextInput<'_>> = table
                .rows
                .iter()
                .filter(|row| !row.text(0).trim().is_empty())
                .map(|row| TextInput::single(row.text(0)))
                .collect();
            let encoded = match recipe.data.masking.line_by_line {
                true => {
                    let place = |row: usize| table.place(row);
                    let (encoded, cut) = encode(tokenizer, &lines, length, recipe.data.strict, place)
                        .map_err(|error| table.blame(error))?;
                    tell_cut(log, name, cut, lines.len(), length);
                    encoded
                }
                false => packed(tokenizer, &lines, length).map_err(|error| table.blame(error))?,
            };
            MaskedTexts::new(
                encoded,
                words.clone(),
                recipe.data.masking.clone(),
                padding,
                recipe.data.buckets && recipe.data.masking.line_by_line,
            )
        };
        Ok(Splits {
            train: part(&splits.train, "the training part")?,
            validation: splits
                .validation
                .as_ref()
                .map(|table| part(table, "the validation part"))
                .transpose()?,
            test: splits.test.as_ref().map(|table| part(table, "the test part")).transpose()?,
        })
    }

    fn head(_model: &EncoderSection) -> Result<HeadKind> {
        Ok(HeadKind::MaskedLm)
    }

    fn task(_recipe: &EncoderRecipe, parameters: Parameters, model: EncoderModel) -> Result<MaskedLm> {
        Ok(MaskedLm::new(parameters, model))
    }

    fn model(task: &MaskedLm) -> &EncoderModel {
        task.model()
    }
}

/// Texts one behind the other, cut into sequences of equal length, each between the tokenizer's special tokens.
fn packed(tokenizer: &TextTokenizer, lines: &[TextInput<'_>], length: i64) -> Result<EncodedTexts> {
    let special = tokenizer.special();
    let (Some(first), Some(last)) = (special.class.or(special.begin), special.separator.or(special.end))
    else {
        bail_input!("the tokenizer has no tokens that begin and end a sequence ([CLS], [SEP])");
    };
    let encoded = tokenizer.encode_all(lines, EncodeOptions::default())?;
    let room = usize::try_from(length - 2).unwrap_or(1).max(1);
    let mut sequences = EncodedTexts::new(tokenizer.vocabulary_size());
    let mut waiting: Vec<u32> = Vec::new();
    let mut close = |tokens: &[u32]| {
        let whole: Vec<u32> = [&[first as u32], tokens, &[last as u32]].concat();
        sequences.push(&whole, whole.len());
    };
    for text in 0..encoded.len() {
        waiting.extend(encoded.ids(text).into_iter().map(|id| id as u32));
        let whole = waiting.len() / room * room;
        waiting.drain(..whole).as_slice().chunks(room).for_each(&mut close);
    }
    if !waiting.is_empty() {
        close(&waiting);
    }
    Ok(sequences)
}
