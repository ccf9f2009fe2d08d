//! `qa`: answers as spans of a context.

use std::path::Path;

use anyhow::Result;

use super::TaskName;
use super::family::{EncoderRecipe, EncoderSection, EncoderTask, longest};
use crate::bail_input;
use crate::data::Splits;
use crate::data::encoder_texts::{Question, Questions, TextFiles, passages, read_squad};
use crate::data::order::hold_out;
use crate::data::text::TextTokenizer;
use crate::models::Parameters;
use crate::models::encoders::{EncoderModel, HeadKind};
use crate::reporting::Log;
use crate::tasks::question_answering::{QuestionAnswering, SpanRule};

/// Answers in contexts.
pub struct Qa;

fn files(recipe: &EncoderRecipe) -> Result<TextFiles> {
    if recipe.data.builtin.is_some() {
        bail_input!("the compiled-in texts have no questions: give --data");
    }
    TextFiles::find(&recipe.data, &["json"])
}

impl EncoderTask for Qa {
    const TASK: TaskName = TaskName::Qa;
    const RECIPE: &'static str = "squad-finetune";
    type Dataset = Questions;
    type Task = QuestionAnswering;

    fn texts(recipe: &EncoderRecipe) -> Result<Vec<String>> {
        let questions = read_squad(&files(recipe)?.train)?;
        Ok(questions.into_iter().flat_map(|one| [one.question, one.context.to_string()]).collect())
    }

    fn open(recipe: &mut EncoderRecipe, tokenizer: &TextTokenizer, log: &Log) -> Result<Splits<Questions>> {
        let files = files(recipe)?;
        let read = |path: &Path| read_squad(path);
        let mut train = read(&files.train)?;
        let test = files.test.as_deref().map(read).transpose()?;
        let validation = match &files.validation {
            Some(path) => Some(read(path)?),
            None if recipe.data.val_fraction == 0.0 => None,
            None => {
                let (learned, held_out) =
                    hold_out(train.len(), recipe.data.val_fraction, recipe.training.seed)?;
                let pick = |numbers: &[usize]| {
                    numbers.iter().map(|&number| train[number].clone()).collect::<Vec<_>>()
                };
                let validation = (!held_out.is_empty()).then(|| pick(&held_out));
                train = pick(&learned);
                validation
            }
        };
        let padding = recipe.model.config()?.dimensions().padding;
        let (length, stride, buckets) = (longest(recipe), recipe.data.stride, recipe.data.buckets);
        let part = |questions: Vec<Question>, name: &str| -> Result<Questions> {
            let windows = passages(tokenizer, &questions, length, stride)?;
            log.info(format!("{name}: {} questions in {} windows", questions.len(), windows.len()));
            Ok(Questions::new(questions, windows, padding, buckets))
        };
        recipe.model.num_labels = Some(2);
        Ok(Splits {
            train: part(train, "training")?,
            validation: validation.map(|questions| part(questions, "validation")).transpose()?,
            test: test.map(|questions| part(questions, "test")).transpose()?,
        })
    }

    fn head(_model: &EncoderSection) -> Result<HeadKind> {
        Ok(HeadKind::Answers)
    }

    fn task(
        recipe: &EncoderRecipe,
        parameters: Parameters,
        model: EncoderModel,
    ) -> Result<QuestionAnswering> {
        let rule = SpanRule {
            max_answer_length: recipe.data.max_answer_length,
            may_be_unanswerable: recipe.data.unanswerable,
            null_threshold: recipe.data.null_threshold,
        };
        Ok(QuestionAnswering::new(parameters, model, rule))
    }

    fn model(task: &QuestionAnswering) -> &EncoderModel {
        task.model()
    }
}
