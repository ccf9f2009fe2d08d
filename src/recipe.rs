//! Recipes: a JSON preset, overridden by flags and `--set`, checked whole, written into the run.
//!
//! A recipe has a head (name, description, source) and three sections: `model` and `data`, whose form the family decides, and
//! `training`, the same for all ([`TrainingConfig`]). An unknown key is an error that offers the nearest known one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::training::config::TrainingConfig;
use crate::{bad_input, bail_input, files};

/// A resolved recipe: all that decides a run.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe<M, D> {
    /// Its name, which is also the default name of the run.
    pub name: String,
    /// What it does, in a sentence.
    #[serde(default)]
    pub description: String,
    /// Where the settings come from.
    #[serde(default)]
    pub source: String,
    /// The result it reaches, and where that was measured.
    #[serde(default)]
    pub reaches: String,
    /// Architecture.
    pub model: M,
    /// Data set and preprocessing.
    pub data: D,
    /// Optimisation.
    #[serde(default)]
    pub training: TrainingConfig,
    /// Files that it goes with.
    #[serde(skip)]
    pub attachments: Attachments,
}

/// Texts that belong to a recipe and lie beside it in a run's folder, as a tokenizer does that was made from the training part: in memory until the
/// run has its folder, read from there afterwards.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Attachments {
    folder: Option<PathBuf>,
    added: BTreeMap<String, Arc<str>>,
    copied: BTreeMap<String, PathBuf>,
}

impl Attachments {
    /// What lies in the folder of a run.
    pub fn of(run: &Path) -> Self {
        Self { folder: Some(run.to_owned()), ..Self::default() }
    }

    /// Adds a file.
    pub fn add(&mut self, name: &str, text: impl Into<Arc<str>>) {
        self.added.insert(name.to_owned(), text.into());
    }

    /// The text of a file, if there is one of that name.
    ///
    /// # Errors
    /// It is there and cannot be read.
    pub fn text(&self, name: &str) -> Result<Option<Arc<str>>> {
        if let Some(text) = self.added.get(name) {
            return Ok(Some(text.clone()));
        }
        match self.folder.as_ref().map(|folder| folder.join(name)).filter(|path| path.exists()) {
            Some(path) => Ok(Some(files::read_text(&path)?.into())),
            None => Ok(None),
        }
    }

    /// Adds a copy of a file, unless the run has one of that name already.
    pub fn add_file(&mut self, name: &str, source: &Path) {
        if self.folder.as_ref().is_none_or(|folder| !folder.join(name).exists()) {
            self.copied.insert(name.to_owned(), source.to_owned());
        }
    }

    /// The file of that name in the run's folder, if it is there.
    pub fn file(&self, name: &str) -> Option<PathBuf> {
        self.folder.as_ref().map(|folder| folder.join(name)).filter(|path| path.is_file())
    }

    /// Where a file is, for messages.
    pub fn place(&self, name: &str) -> String {
        match &self.folder {
            Some(folder) if !self.added.contains_key(name) => folder.join(name).display().to_string(),
            _ => name.to_owned(),
        }
    }

    /// Writes what was added into the folder of a run.
    pub fn write(&self, run: &Path) -> Result<()> {
        for (name, source) in &self.copied {
            files::write_atomic(&run.join(name), &files::read(source)?)?;
        }
        for (name, text) in &self.added {
            files::write_atomic(&run.join(name), text.as_bytes())?;
        }
        Ok(())
    }
}

/// A preset compiled into the binary.
#[derive(Clone, Copy, Debug)]
pub struct Preset {
    /// Name without `.json`.
    pub name: &'static str,
    /// Its text.
    pub json: &'static str,
}

/// Finds a recipe by the name of a preset or by a path, as JSON.
pub fn find(name_or_path: &str, presets: &[Preset]) -> Result<Value> {
    if let Some(preset) = presets.iter().find(|preset| preset.name == name_or_path) {
        return parse(preset.json, &format!("recipe {name_or_path}"));
    }
    let path = Path::new(name_or_path);
    if path.is_file() {
        return parse(&files::read_text(path)?, name_or_path);
    }
    let names = presets.iter().map(|preset| preset.name);
    bail_input!(
        "there is no recipe `{name_or_path}`{} and no such file; `recipes` lists them",
        nearest_hint(name_or_path, names)
    )
}

/// Parses JSON; the origin is for messages.
pub fn parse(text: &str, origin: &str) -> Result<Value> {
    serde_json::from_str(text).map_err(|error| bad_input!("{origin} is not valid JSON: {error}"))
}

/// Turns JSON into a typed value; unknown keys and impossible values are named with their path.
pub fn typed<T: DeserializeOwned>(value: Value, origin: &str) -> Result<T> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let place = if path == "." { String::new() } else { format!("{path}: ") };
        let message = error.inner().to_string();
        match unknown_name(&message) {
            Some((kind, name, known)) => {
                bad_input!(
                    "{origin}: {place}unknown {kind} `{name}`{}",
                    nearest_hint(&name, known.iter().map(String::as_str))
                )
            }
            None => bad_input!("{origin}: {place}{message}"),
        }
    })
}

/// Takes serde's "unknown field `x`, expected one of `a`, `b`" apart: what is unknown, its name, the known names.
fn unknown_name(message: &str) -> Option<(&'static str, String, Vec<String>)> {
    let (kind, rest) = match message.strip_prefix("unknown field ") {
        Some(rest) => ("key", rest),
        None => ("name", message.strip_prefix("unknown variant ")?),
    };
    let mut quoted = rest.split('`').skip(1).step_by(2).map(str::to_owned);
    let name = quoted.next()?;
    Some((kind, name, quoted.collect()))
}

/// The configuration of a model of transformers, read from its `config.json`: keys that say nothing of the architecture are left aside. `usual` gives an
/// architecture's configuration by its `model_type`, which is a key of the configuration's own.
///
/// # Errors
/// It is no configuration, or of an architecture that is not among `known`.
pub fn known_config<T: Serialize + DeserializeOwned>(
    config: &Value,
    origin: &str,
    known: &[&str],
    usual: impl Fn(&str) -> Option<T>,
) -> Result<T> {
    let Some(object) = config.as_object() else { bail_input!("{origin} is no model configuration") };
    let Some(kind) = object.get("model_type").and_then(Value::as_str) else {
        bail_input!("{origin} has no `model_type`, so the architecture is not known");
    };
    let Some(usual) = usual(kind) else {
        bail_input!(
            "{origin} is of the architecture `{kind}`, which is not among those here: {}",
            known.join(", ")
        );
    };
    let mut kept = serde_json::to_value(&usual)?;
    if let Some(kept) = kept.as_object_mut() {
        kept.retain(|key, _| object.get(key).is_some_and(|value| !value.is_null()));
        for (key, value) in kept {
            *value = object[key].clone();
        }
    }
    typed(kept, origin)
}

/// `: did you mean …?`, or the known names where none is near and they are few.
pub fn nearest_hint<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.into_iter().collect();
    let nearest = known
        .iter()
        .map(|candidate| (strsim::normalized_damerau_levenshtein(name, candidate), candidate))
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match nearest {
        Some((likeness, candidate)) if likeness >= 0.5 => format!(": did you mean `{candidate}`?"),
        Some(_) if known.len() <= 24 => format!(" (known: {})", known.join(", ")),
        _ => String::new(),
    }
}

/// Puts `value` at a path of keys, making the objects on the way.
pub fn set(recipe: &mut Value, path: &str, value: Value) -> Result<()> {
    let keys: Vec<&str> = path.split('.').collect();
    if keys.iter().any(|key| key.is_empty()) {
        bail_input!("`{path}` is no key: write keys joined by single dots, as in training.optimizer.lr");
    }
    let mut place = recipe;
    for key in &keys[..keys.len() - 1] {
        place = object(place, path)?.entry(*key).or_insert_with(|| Value::Object(Map::new()));
    }
    object(place, path)?.insert(keys[keys.len() - 1].to_owned(), value);
    Ok(())
}

fn object<'a>(value: &'a mut Value, path: &str) -> Result<&'a mut Map<String, Value>> {
    value
        .as_object_mut()
        .ok_or_else(|| bad_input!("`{path}` cannot be set: a key on its way is not an object"))
}

/// Parses the argument of `--set key=value`: the value is JSON, or a string where it is not.
pub fn parse_setting(argument: &str) -> Result<(String, Value)> {
    let Some((key, value)) = argument.split_once('=') else {
        bail_input!("--set {argument}: write key=value, as in training.optimizer.lr=0.01");
    };
    Ok((
        key.trim().to_owned(),
        serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned())),
    ))
}

/// A recipe as a flat list of key paths and values, for comparing and for telling what changed.
pub fn flatten(recipe: &Value) -> BTreeMap<String, Value> {
    fn visit(value: &Value, path: String, flat: &mut BTreeMap<String, Value>) {
        match value {
            Value::Object(map) => {
                for (key, value) in map {
                    let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                    visit(value, path, flat);
                }
            }
            value => {
                flat.insert(path, value.clone());
            }
        }
    }
    let mut flat = BTreeMap::new();
    visit(recipe, String::new(), &mut flat);
    flat
}

/// The keys in which two recipes differ, with both values (`null` where one has no such key).
pub fn differences(before: &Value, after: &Value) -> Vec<(String, Value, Value)> {
    let (before, after) = (flatten(before), flatten(after));
    let keys: std::collections::BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let value = |map: &BTreeMap<String, Value>, key: &String| map.get(key).cloned().unwrap_or(Value::Null);
    keys.into_iter()
        .map(|key| (key.clone(), value(&before, key), value(&after, key)))
        .filter(|(_, before, after)| before != after)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[derive(Debug, Deserialize, Serialize)]
    #[serde(deny_unknown_fields)]
    struct Section {
        width: u32,
    }

    fn refusal(recipe: Value) -> String {
        typed::<Recipe<Section, Section>>(recipe, "r.json").unwrap_err().to_string()
    }

    #[test]
    fn a_wrong_key_is_named_with_its_path_and_its_nearest_neighbour() {
        let recipe = |training: Value| json!({"name": "n", "model": {"width": 1}, "data": {"width": 1}, "training": training});
        assert_eq!(
            refusal(recipe(json!({"epoch": 3}))),
            "r.json: training.epoch: unknown key `epoch`: did you mean `epochs`?"
        );
        let optimizer = refusal(recipe(json!({"optimizer": {"name": "sgd", "momentun": 0.9}})));
        assert!(optimizer.contains("training.optimizer") && optimizer.contains("`momentum`"), "{optimizer}");
        assert!(refusal(recipe(json!({"optimizer": {"name": "sgdd"}}))).contains("`sgd`"));
        assert!(refusal(recipe(json!({"epochs": "many"}))).contains("training.epochs: invalid type"));
        assert!(refusal(json!({"name": "n", "model": {"width": -1}})).contains("model.width"));
        assert!(refusal(json!({"name": "n", "model": {"width": 1}})).contains("missing field `data`"));
    }

    #[test]
    fn settings_reach_nested_keys() -> Result<()> {
        let mut recipe = json!({"training": {"optimizer": {"name": "sgd", "lr": 0.1}}});
        for setting in ["training.optimizer.lr=0.5", "model.name=lenet5", "data.mean=[0.5]"] {
            let (key, value) = parse_setting(setting)?;
            set(&mut recipe, &key, value)?;
        }
        assert_eq!(recipe["training"]["optimizer"], json!({"name": "sgd", "lr": 0.5}));
        assert_eq!(recipe["model"]["name"], json!("lenet5"));
        assert_eq!(recipe["data"]["mean"], json!([0.5]));
        assert!(set(&mut recipe, "model.name.x", json!(1)).is_err());
        assert!(set(&mut recipe, "model..x", json!(1)).is_err());
        assert!(parse_setting("training.epochs").is_err());
        Ok(())
    }

    #[test]
    fn differences_name_both_values() {
        let found = differences(&json!({"a": {"b": 1}, "c": 2}), &json!({"a": {"b": 3}, "c": 2, "d": 4}));
        assert_eq!(found, [("a.b".to_owned(), json!(1), json!(3)), ("d".to_owned(), Value::Null, json!(4))]);
    }
}
