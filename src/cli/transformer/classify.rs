//! `classify`: a label, several labels or a value for one or two texts.

use anyhow::Result;

use super::TaskName;
use super::family::{EncoderRecipe, EncoderSection, EncoderTask, longest, tell_cut};
use crate::data::Splits;
use crate::data::encoder_texts::{
    ClassifiedTexts, Goal, RawSplits, Targets, encode, split_labels, values_of,
};
use crate::data::text::{LabelSet, TextInput, TextTable, TextTokenizer};
use crate::models::Parameters;
use crate::models::encoders::{EncoderModel, HeadKind};
use crate::reporting::{ConfusionMatrix, Log, Report};
use crate::tasks::Evaluation;
use crate::tasks::classification::ClassScores;
use crate::tasks::criterion::ClassificationLoss;
use crate::tasks::text_classification::TextClassification;
use crate::training::config::{BalancedRule, ClassWeights};
use crate::{bail_input, data};

/// Classification of texts.
pub struct Classify;

impl EncoderTask for Classify {
    const TASK: TaskName = TaskName::Classify;
    const RECIPE: &'static str = "bert-tiny-plays";
    type Dataset = ClassifiedTexts;
    type Task = TextClassification;

    fn validate(recipe: &EncoderRecipe) -> Result<()> {
        let training = &recipe.training;
        if recipe.data.goal != Goal::Class
            && (training.class_weights.is_some() || training.label_smoothing > 0.0)
        {
            bail_input!(
                "training.class_weights and training.label_smoothing are for texts of one class each, which data.goal says they are not"
            );
        }
        Ok(())
    }

    fn texts(recipe: &EncoderRecipe) -> Result<Vec<String>> {
        let splits = RawSplits::read(&recipe.data, recipe.training.seed, true, false)?;
        let columns = 1 + usize::from(splits.has_pair);
        let rows = splits.train.rows.iter();
        Ok(rows.flat_map(|row| (0..columns).map(|column| row.text(column).to_owned())).collect())
    }

    fn open(
        recipe: &mut EncoderRecipe,
        tokenizer: &TextTokenizer,
        log: &Log,
    ) -> Result<Splits<ClassifiedTexts>> {
        let splits = RawSplits::read(&recipe.data, recipe.training.seed, true, false)?;
        let column = splits.label_column();
        for table in splits.parts() {
            table.require_text(0)?;
        }
        let labels = match recipe.data.goal {
            Goal::Value => None,
            goal => Some(labels_of(recipe, &splits.train, column, goal)?),
        };
        recipe.model.num_labels = Some(labels.as_ref().map_or(1, |labels| labels.names().len() as i64));
        let padding = recipe.model.config()?.dimensions().padding;
        let (length, strict, buckets) = (longest(recipe), recipe.data.strict, recipe.data.buckets);
        let part = |table: &TextTable, name: &str| -> Result<ClassifiedTexts> {
            let inputs: Vec<TextInput<'_>> = table
                .rows
                .iter()
                .map(|row| match splits.has_pair {
                    true => TextInput::pair(row.text(0), row.text(1)),
                    false => TextInput::single(row.text(0)),
                })
                .collect();
            let (encoded, cut) = encode(tokenizer, &inputs, length, strict, |row| table.place(row))
                .map_err(|error| table.blame(error))?;
            tell_cut(log, name, cut, inputs.len(), length);
            let targets = match (&labels, recipe.data.goal) {
                (Some(labels), Goal::Class) => Targets::Classes(labels.numbers_of(table, column)?),
                (Some(labels), _) => {
                    Targets::Sets { labels: labels.names().len(), sets: labels.sets_of(table, column)? }
                }
                (None, _) => Targets::Values(values_of(table, column)?),
            };
            let places = (0..table.rows.len()).map(|row| table.place(row)).collect();
            Ok(ClassifiedTexts::new(encoded, targets, padding, buckets, places))
        };
        let train = part(&splits.train, "the training part")?;
        let validation =
            splits.validation.as_ref().map(|table| part(table, "the validation part")).transpose()?;
        let test = splits.test.as_ref().map(|table| part(table, "the test part")).transpose()?;
        if recipe.training.class_weights == Some(ClassWeights::Rule(BalancedRule::Balanced)) {
            let classes = recipe.model.labels()? as usize;
            recipe.training.class_weights = Some(ClassWeights::Given(balanced(&train, classes)));
        }
        Ok(Splits { train, validation, test })
    }

    fn head(model: &EncoderSection) -> Result<HeadKind> {
        Ok(HeadKind::Sequence(model.labels()?))
    }

    fn task(
        recipe: &EncoderRecipe,
        parameters: Parameters,
        model: EncoderModel,
    ) -> Result<TextClassification> {
        let class_weights = match &recipe.training.class_weights {
            Some(ClassWeights::Given(weights)) => Some(weights.clone()),
            Some(ClassWeights::Rule(_)) | None => None,
        };
        let loss = ClassificationLoss {
            label_smoothing: recipe.training.label_smoothing,
            class_weights,
            ..ClassificationLoss::default()
        };
        let classes = recipe.data.classes.clone().unwrap_or_default();
        TextClassification::new(parameters, model, recipe.data.goal, classes, loss)
    }

    fn model(task: &TextClassification) -> &EncoderModel {
        task.model()
    }

    fn illustrate(report: &mut Report, recipe: &EncoderRecipe, evaluation: &Evaluation) -> Result<()> {
        if recipe.data.goal == Goal::Value {
            return Ok(());
        }
        let details = &evaluation.details;
        let scores: Vec<ClassScores> = serde_json::from_value(details["classes"].clone())?;
        report.classes = scores.into_iter().map(Into::into).collect();
        if recipe.data.goal == Goal::Class {
            report.confusion = Some(ConfusionMatrix {
                classes: recipe.data.classes.clone().unwrap_or_default(),
                counts: serde_json::from_value(details["confusion"].clone())?,
            });
        }
        Ok(())
    }
}

/// The labels: those of the recipe, else those that occur in the training part.
fn labels_of(recipe: &mut EncoderRecipe, train: &TextTable, column: usize, goal: Goal) -> Result<LabelSet> {
    let found: Vec<&str> = train
        .rows
        .iter()
        .flat_map(|row| match goal {
            Goal::Labels => split_labels(&row.fields[column]).collect::<Vec<_>>(),
            _ => vec![row.text(column)],
        })
        .collect();
    // A model that was made for the same labels keeps their order; one that was made for others gets a new head.
    let known = recipe.data.classes.take().map(LabelSet::new).transpose()?;
    let fits = |known: &LabelSet| found.iter().all(|label| known.number(label).is_some());
    let is_given = recipe.training.init_from.is_none() || recipe.model.num_labels.is_some();
    let labels = match known {
        Some(known) if is_given || fits(&known) => known,
        _ => LabelSet::collect(found)?,
    };
    if labels.names().len() < 2 && goal == Goal::Class {
        bail_input!(
            "{} has the one label `{}`: there is nothing to tell apart",
            train.name,
            labels.names().join("")
        );
    }
    recipe.data.classes = Some(labels.names().to_vec());
    Ok(labels)
}

/// scikit-learn's `class_weight="balanced"`: samples / (classes · samples of the class); 0 for a class without samples.
fn balanced(texts: &ClassifiedTexts, classes: usize) -> Vec<f64> {
    let mut counts = vec![0u64; classes];
    for class in data::Dataset::classes(texts).unwrap_or_default() {
        counts[class as usize] += 1;
    }
    let all: u64 = counts.iter().sum();
    let weight = |&count: &u64| if count == 0 { 0.0 } else { all as f64 / (classes as f64 * count as f64) };
    counts.iter().map(weight).collect()
}
