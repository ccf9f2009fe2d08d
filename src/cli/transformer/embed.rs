//! `embed`: one vector for each text, learned from pairs.

use anyhow::Result;

use super::TaskName;
use super::family::{EncoderRecipe, EncoderSection, EncoderTask, longest, tell_cut};
use crate::bail_input;
use crate::data::Splits;
use crate::data::encoder_texts::{RawSplits, TextPairs, encode, values_of};
use crate::data::text::{TextInput, TextTable, TextTokenizer};
use crate::models::Parameters;
use crate::models::encoders::{EncoderModel, HeadKind};
use crate::reporting::Log;
use crate::tasks::sentence_embedding::{PairLoss, SentenceEmbedding};

/// Embeddings of texts.
pub struct Embed;

impl EncoderTask for Embed {
    const TASK: TaskName = TaskName::Embed;
    const RECIPE: &'static str = "embed-pairs";
    type Dataset = TextPairs;
    type Task = SentenceEmbedding;

    fn texts(recipe: &EncoderRecipe) -> Result<Vec<String>> {
        let splits = RawSplits::read(&recipe.data, recipe.training.seed, false, true)?;
        let rows = splits.train.rows.iter();
        Ok(rows.flat_map(|row| [row.text(0).to_owned(), row.text(1).to_owned()]).collect())
    }

    fn open(recipe: &mut EncoderRecipe, tokenizer: &TextTokenizer, log: &Log) -> Result<Splits<TextPairs>> {
        if recipe.data.builtin.is_some() {
            bail_input!("the compiled-in texts are no pairs: give --data");
        }
        let splits = RawSplits::read(&recipe.data, recipe.training.seed, false, true)?;
        if recipe.model.pair_loss == PairLoss::Cosine && !splits.has_label {
            bail_input!(
                "model.pair_loss is cosine, but the data have no scores: name their column with --label-column"
            );
        }
        let padding = recipe.model.config()?.dimensions().padding;
        let (length, strict) = (longest(recipe), recipe.data.strict);
        recipe.model.normalise.get_or_insert(true);
        recipe.model.pooling.get_or_insert_default();
        let part = |table: &TextTable, name: &str| -> Result<TextPairs> {
            let side = |column: usize| -> Result<_> {
                table.require_text(column)?;
                let inputs: Vec<TextInput<'_>> =
                    table.rows.iter().map(|row| TextInput::single(row.text(column))).collect();
                let (encoded, cut) = encode(tokenizer, &inputs, length, strict, |row| table.place(row))
                    .map_err(|error| table.blame(error))?;
                tell_cut(log, name, cut, inputs.len(), length);
                Ok(encoded)
            };
            let scores = splits.has_label.then(|| values_of(table, splits.label_column())).transpose()?;
            let places = (0..table.rows.len()).map(|row| table.place(row)).collect();
            Ok(TextPairs::new(side(0)?, side(1)?, scores, padding, recipe.data.buckets, places))
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
        Ok(HeadKind::None)
    }

    fn task(
        recipe: &EncoderRecipe,
        parameters: Parameters,
        model: EncoderModel,
    ) -> Result<SentenceEmbedding> {
        let section = &recipe.model;
        Ok(SentenceEmbedding::new(
            parameters,
            model,
            section.pooling.unwrap_or_default(),
            section.normalise.unwrap_or(true),
            section.pair_loss,
        ))
    }

    fn model(task: &SentenceEmbedding) -> &EncoderModel {
        task.model()
    }
}
