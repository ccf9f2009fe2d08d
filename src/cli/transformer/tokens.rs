//! `tokens`: a tag for each word.

use std::path::Path;

use anyhow::Result;

use super::TaskName;
use super::family::{EncoderRecipe, EncoderSection, EncoderTask, longest};
use crate::data::Splits;
use crate::data::encoder_texts::{TaggedSentence, TaggedWords, TextFiles, read_tagged};
use crate::data::order::hold_out;
use crate::data::text::{LabelSet, TextTokenizer};
use crate::models::Parameters;
use crate::models::encoders::{EncoderModel, HeadKind};
use crate::recipe::nearest_hint;
use crate::reporting::{Log, Report};
use crate::tasks::Evaluation;
use crate::tasks::classification::ClassScores;
use crate::tasks::token_classification::TokenClassification;
use crate::{bad_input, bail_input};

/// Tags of words.
pub struct Tokens;

/// Sentences of a part, with the file's name.
struct Part {
    name: String,
    sentences: Vec<TaggedSentence>,
}

fn read(path: &Path) -> Result<Part> {
    Ok(Part { name: path.display().to_string(), sentences: read_tagged(path)? })
}

fn read_all(recipe: &EncoderRecipe) -> Result<(Part, Option<Part>, Option<Part>)> {
    if recipe.data.builtin.is_some() {
        bail_input!("the compiled-in texts have no tags: give --data");
    }
    let files = TextFiles::find(&recipe.data, &["conll", "txt", "tsv", "jsonl", "iob", "iob2", "bio"])?;
    let mut train = read(&files.train)?;
    let test = files.test.as_deref().map(read).transpose()?;
    let validation = match &files.validation {
        Some(path) => Some(read(path)?),
        None if recipe.data.val_fraction == 0.0 => None,
        None => {
            let (learned, held_out) =
                hold_out(train.sentences.len(), recipe.data.val_fraction, recipe.training.seed)?;
            let part = |numbers: &[usize]| Part {
                name: train.name.clone(),
                sentences: numbers.iter().map(|&number| train.sentences[number].clone()).collect(),
            };
            let validation = (!held_out.is_empty()).then(|| part(&held_out));
            train = part(&learned);
            validation
        }
    };
    Ok((train, validation, test))
}

impl EncoderTask for Tokens {
    const TASK: TaskName = TaskName::Tokens;
    const RECIPE: &'static str = "ner-finetune";
    type Dataset = TaggedWords;
    type Task = TokenClassification;

    fn texts(recipe: &EncoderRecipe) -> Result<Vec<String>> {
        let (train, ..) = read_all(recipe)?;
        Ok(train.sentences.into_iter().map(|sentence| sentence.words.join(" ")).collect())
    }

    fn open(recipe: &mut EncoderRecipe, tokenizer: &TextTokenizer, log: &Log) -> Result<Splits<TaggedWords>> {
        let (train, validation, test) = read_all(recipe)?;
        let found = || train.sentences.iter().flat_map(|sentence| sentence.tags.iter().map(String::as_str));
        let known = recipe.data.classes.take().map(LabelSet::new).transpose()?;
        let is_given = recipe.training.init_from.is_none() || recipe.model.num_labels.is_some();
        let tags = match known {
            Some(known) if is_given || found().all(|tag| known.number(tag).is_some()) => known,
            _ => LabelSet::collect(found())?,
        };
        recipe.data.classes = Some(tags.names().to_vec());
        recipe.model.num_labels = Some(tags.names().len() as i64);
        let padding = recipe.model.config()?.dimensions().padding;
        let length = longest(recipe);
        let number = |tag: &str| {
            tags.number(tag).map(|number| number as i64).ok_or_else(|| {
                bad_input!(
                    "the tag `{tag}` is none of the {} known{}",
                    tags.names().len(),
                    nearest_hint(tag, tags.names().iter().map(String::as_str))
                )
            })
        };
        let part = |part: &Part, name: &str| -> Result<TaggedWords> {
            let words = TaggedWords::new(
                tokenizer,
                &part.sentences,
                &part.name,
                length,
                padding,
                recipe.data.buckets,
                number,
            )?;
            if words.cut_words > 0 {
                if recipe.data.strict {
                    bail_input!(
                        "{}: {} words are beyond {length} tokens (--strict): raise data.max_length or part the sentences",
                        part.name,
                        words.cut_words
                    );
                }
                log.warning(format!(
                    "{} words of {name} are beyond {length} tokens of their sentence and are not seen (data.max_length)",
                    words.cut_words
                ));
            }
            Ok(words)
        };
        Ok(Splits {
            train: part(&train, "the training part")?,
            validation: validation.as_ref().map(|one| part(one, "the validation part")).transpose()?,
            test: test.as_ref().map(|one| part(one, "the test part")).transpose()?,
        })
    }

    fn head(model: &EncoderSection) -> Result<HeadKind> {
        Ok(HeadKind::Tokens(model.labels()?))
    }

    fn task(
        recipe: &EncoderRecipe,
        parameters: Parameters,
        model: EncoderModel,
    ) -> Result<TokenClassification> {
        let tags = recipe.data.classes.clone().unwrap_or_default();
        Ok(TokenClassification::new(parameters, model, tags, recipe.training.label_smoothing))
    }

    fn model(task: &TokenClassification) -> &EncoderModel {
        task.model()
    }

    fn illustrate(report: &mut Report, _recipe: &EncoderRecipe, evaluation: &Evaluation) -> Result<()> {
        let scores: Vec<ClassScores> = serde_json::from_value(evaluation.details["classes"].clone())?;
        report.classes = scores.into_iter().map(Into::into).collect();
        Ok(())
    }
}
