//! Models from elsewhere: Hugging Face folders and repositories, and this program's own runs.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::{Value, json};

use super::TaskName;
use crate::models::encoders::EncoderConfig;
use crate::tasks::sentence_embedding::Pooling;
use crate::training::run::read_recipe;
use crate::weights::hub::{self, Repository};
use crate::{bail_input, files, recipe};

/// Files of tokenizers besides `tokenizer.json`, and of sentence-transformers.
const COMPANIONS: [&str; 6] = [
    "tokenizer_config.json",
    "special_tokens_map.json",
    "merges.txt",
    "modules.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
];

/// A configuration with what lies beside it.
#[derive(Debug)]
pub struct Pretrained {
    /// `config.json`; of a run what would be in it.
    pub config: Value,
    /// Where it is, for messages.
    pub origin: String,
    /// The folder with tokenizer and weights.
    pub folder: PathBuf,
}

impl Pretrained {
    /// Finds the configuration of a folder, of a file's folder, of a run, or of `hf:ORG/NAME`.
    ///
    /// # Errors
    /// There is none.
    pub fn find(source: &Path) -> Result<Self> {
        let text = source.to_string_lossy();
        if !source.exists()
            && let Some(repository) = text.strip_prefix("hf:")
        {
            let mut repository = Repository::parse(repository)?;
            repository.file = None;
            let tokenizer: &[&str] = &["tokenizer.json", "vocab.txt", "vocab.json"];
            let folder = hub::folder_of(&repository, "config.json", &[tokenizer], &COMPANIONS)?;
            return Self::of_folder(&folder, text.into_owned());
        }
        if source.join("recipe.json").is_file() {
            return Self::of_run(source);
        }
        let folder = if source.is_file() { source.parent().unwrap_or(Path::new(".")) } else { source };
        Self::of_folder(folder, source.display().to_string())
    }

    fn of_folder(folder: &Path, origin: String) -> Result<Self> {
        let path = folder.join("config.json");
        if !path.is_file() {
            bail_input!(
                "{origin} has no config.json, which says what architecture its weights are of: give the folder of a model"
            );
        }
        let name = path.display().to_string();
        let config = recipe::parse(&files::read_text(&path)?, &name)?;
        Ok(Self { config, origin, folder: folder.to_owned() })
    }

    fn of_run(run: &Path) -> Result<Self> {
        let recipe = read_recipe(run)?;
        let origin = run.display().to_string();
        let Some(mut config) = recipe.pointer("/model/config").filter(|config| config.is_object()).cloned()
        else {
            bail_input!("{origin} is no run of an encoder: its recipe has no model.config");
        };
        if let Some(names) = recipe.pointer("/data/classes").and_then(Value::as_array) {
            config["id2label"] = Value::Object(
                names.iter().enumerate().map(|(number, name)| (number.to_string(), name.clone())).collect(),
            );
        }
        if let Some(kind) = recipe.pointer("/model/task").cloned() {
            config["task"] = kind;
        }
        Ok(Self { config, origin, folder: run.to_owned() })
    }

    /// The architecture.
    pub fn encoder(&self) -> Result<EncoderConfig> {
        EncoderConfig::from_json(&self.config, &format!("the configuration of {}", self.origin))
    }

    /// Names of the labels, where the model has a head for some that are named. `LABEL_0` names nothing.
    pub fn labels(&self) -> Option<Vec<String>> {
        let names = self.config.get("id2label")?.as_object()?;
        let mut numbered: Vec<(usize, String)> = names
            .iter()
            .map(|(number, name)| Some((number.parse().ok()?, name.as_str()?.to_owned())))
            .collect::<Option<_>>()?;
        numbered.sort_unstable();
        let dense = numbered.iter().enumerate().all(|(place, (number, _))| place == *number);
        let named = numbered.iter().any(|(number, name)| *name != format!("LABEL_{number}"));
        (dense && named).then(|| numbered.into_iter().map(|(_, name)| name).collect())
    }

    /// How many labels the head has.
    pub fn label_count(&self) -> usize {
        let listed = self.config.get("id2label").and_then(Value::as_object).map(serde_json::Map::len);
        let given = self.config.get("num_labels").and_then(Value::as_u64).map(|count| count as usize);
        listed.or(given).unwrap_or(2)
    }

    /// `problem_type`: what the labels are.
    pub fn problem(&self) -> Option<&str> {
        self.config.get("problem_type").and_then(Value::as_str)
    }

    /// What the model was made for, by the ending of its class.
    ///
    /// # Errors
    /// `architectures` names a head that is not here.
    pub fn task(&self) -> Result<TaskName> {
        if let Some(task) = self.config.get("task") {
            return recipe::typed(task.clone(), &self.origin);
        }
        let class = self.config.pointer("/architectures/0").and_then(Value::as_str).unwrap_or("Model");
        let endings = [
            ("ForSequenceClassification", TaskName::Classify),
            ("ForTokenClassification", TaskName::Tokens),
            ("ForQuestionAnswering", TaskName::Qa),
            ("ForMaskedLM", TaskName::Mlm),
            ("ForPreTraining", TaskName::Mlm),
            ("ForConditionalGeneration", TaskName::Translate),
            ("MTModel", TaskName::Translate),
            ("ForCausalLM", TaskName::Lm),
            ("LMHeadModel", TaskName::Lm),
            ("Model", TaskName::Embed),
        ];
        match endings.iter().find(|(ending, _)| class.ends_with(ending)) {
            Some((_, task)) => Ok(*task),
            None => bail_input!("{} is a {class}, for which there is no task here", self.origin),
        }
    }

    /// Pooling, normalisation and longest text by the files of sentence-transformers, where there are any.
    pub fn pooling(&self) -> Result<(Option<Pooling>, Option<bool>, Option<i64>)> {
        let read = |name: &str| -> Result<Option<Value>> {
            let path = self.folder.join(name);
            match path.is_file() {
                true => Ok(Some(recipe::parse(&files::read_text(&path)?, &path.display().to_string())?)),
                false => Ok(None),
            }
        };
        if let Some(kept) = read("recipe.json")? {
            let model = &kept["model"];
            let pooling = serde_json::from_value(model["pooling"].clone()).ok();
            return Ok((pooling, model["normalise"].as_bool(), kept["data"]["max_length"].as_i64()));
        }
        let pooling = read("1_Pooling/config.json")?.map(|config| {
            let on = |key: &str| config.get(key) == Some(&json!(true));
            if on("pooling_mode_cls_token") {
                Pooling::Cls
            } else if on("pooling_mode_max_tokens") {
                Pooling::Max
            } else {
                Pooling::Mean
            }
        });
        let normalise = read("modules.json")?.map(|modules| {
            let kinds = modules.as_array().cloned().unwrap_or_default();
            kinds.iter().any(|module| module["type"].as_str().is_some_and(|kind| kind.ends_with("Normalize")))
        });
        let length = read("sentence_bert_config.json")?.and_then(|config| config["max_seq_length"].as_i64());
        Ok((pooling, normalise, length))
    }
}
