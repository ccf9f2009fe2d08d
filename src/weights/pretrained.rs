//! Pretrained transformers: names that models of another time or with another head have for the same tensors.

use std::path::Path;

use anyhow::{Context, Result};
use tch::Tensor;

use super::content::{TensorForm, TensorSource, quoted};
use super::{LoadReport, Loaded, load_into, open};
use crate::bail_input;
use crate::models::Parameters;
use crate::models::lora::is_adapter;

/// What the names of the network below a head begin with in transformers, where there is a head.
const BASES: [&str; 6] = ["bert.", "roberta.", "electra.", "distilbert.", "transformer.", "model."];

/// Endings of tensors that are no weights: numbers of positions and segments, which older files hold.
const COUNTERS: [&str; 4] =
    ["embeddings.position_ids", "embeddings.token_type_ids", ".attn.bias", ".attn.masked_bias"];

/// Last layers that are the word table: the ending of the layer, and that of the table.
const TIED: [(&str, &str); 5] = [
    ("cls.predictions.decoder.weight", "word_embeddings.weight"),
    ("lm_head.decoder.weight", "word_embeddings.weight"),
    ("vocab_projector.weight", "word_embeddings.weight"),
    ("generator_lm_head.weight", "word_embeddings.weight"),
    ("lm_head.weight", "embed_tokens.weight"),
];

/// Biases of those layers that files name twice.
const BIASES: [(&str, &str); 2] =
    [("cls.predictions.decoder.bias", "cls.predictions.bias"), ("lm_head.decoder.bias", "lm_head.bias")];

/// Tensors of a file under the names of a model.
struct Renamed<'a, S> {
    source: &'a S,
    /// The model's name and the file's, sorted.
    names: std::collections::BTreeMap<String, String>,
}

impl<S: TensorSource> TensorSource for Renamed<'_, S> {
    fn names(&self) -> Vec<&str> {
        self.names.keys().map(String::as_str).collect()
    }

    fn form(&self, name: &str) -> Option<TensorForm> {
        self.source.form(self.names.get(name)?)
    }

    fn tensor(&self, name: &str) -> Result<Tensor> {
        self.source.tensor(self.names.get(name).with_context(|| format!("there is no tensor `{name}`"))?)
    }
}

/// Copies a pretrained transformer into a model: names with `gamma` and `beta`, with or without the name of the network below the head, and last
/// layers that are the word table all find their place.
///
/// # Errors
/// The weights do not fit. Not `strict`, tensors of which `may_be_new` says so keep their initial values if the file lacks them, and so does a
/// head of another size.
pub fn load_pretrained(
    parameters: &Parameters,
    path: &Path,
    strict: bool,
    may_be_new: impl Fn(&str) -> bool,
) -> Result<Loaded> {
    let weights = open(path)?;
    let mut loaded = fit(parameters, &weights, &weights.origin, strict, may_be_new)?;
    loaded.notes.splice(0..0, weights.notes());
    Ok(loaded)
}

/// [`load_pretrained`] from tensors at hand; `origin` is for messages.
fn fit(
    parameters: &Parameters,
    source: &impl TensorSource,
    origin: &str,
    strict: bool,
    may_be_new: impl Fn(&str) -> bool,
) -> Result<Loaded> {
    let mut names = std::collections::BTreeMap::new();
    let mut elsewhere = Vec::new();
    for name in source.names() {
        match candidates(name).into_iter().find(|candidate| parameters.get(candidate).is_some()) {
            // The name itself wins over another that comes to it.
            Some(found) if found == *name || !names.contains_key(&found) => {
                if let Some(other) = names.insert(found, name.to_owned()) {
                    elsewhere.push(other);
                }
            }
            _ => elsewhere.push(name.to_owned()),
        }
    }
    let mut leftover = Vec::new();
    for name in elsewhere {
        let is_duplicate = BIASES.iter().any(|(ending, _)| name.ends_with(ending));
        if COUNTERS.iter().any(|ending| name.ends_with(ending)) || is_duplicate {
            continue;
        }
        let tied = TIED.iter().find(|(ending, _)| name.ends_with(ending));
        let table = tied.and_then(|(_, table)| names.iter().find(|(known, _)| known.ends_with(table)));
        match table {
            Some((_, table)) => require_tied(source, origin, &name, table)?,
            None => leftover.push(name),
        }
    }
    names.extend(leftover.into_iter().map(|name| (name.clone(), name)));
    let mut report = load_into(parameters, &Renamed { source, names })?;
    if strict {
        if !report.is_complete() {
            bail_input!("{origin} does not fit this model: {} (--strict)", report.describe());
        }
        return Ok(Loaded { report, notes: Vec::new() });
    }
    let (new, missing): (Vec<String>, Vec<String>) =
        std::mem::take(&mut report.missing).into_iter().partition(|name| may_be_new(name));
    report.missing = missing;
    let mut notes = report.require_usable(origin, parameters)?;
    // That no file of a model has adapters needs no telling.
    let told: Vec<&String> = new.iter().filter(|name| !is_adapter(name)).collect();
    if !told.is_empty() {
        notes.push(format!(
            "{origin} has no {}: {} begin with initial values and have to be trained",
            quoted(&told),
            told.len()
        ));
    }
    let report = LoadReport { missing: [report.missing, new].concat(), ..report };
    Ok(Loaded { report, notes })
}

/// What a tensor of that name may be called in a model, likeliest first.
fn candidates(name: &str) -> Vec<String> {
    let plain = match name.rsplit_once('.') {
        // TensorFlow's names of a norm's weight and bias.
        Some((layer, "gamma")) => format!("{layer}.weight"),
        Some((layer, "beta")) => format!("{layer}.bias"),
        _ => name.to_owned(),
    };
    let bias = BIASES.iter().find(|(ending, _)| plain == *ending).map(|(_, name)| (*name).to_owned());
    let without = BASES.iter().find_map(|base| plain.strip_prefix(base)).map(str::to_owned);
    let with = BASES.iter().map(|base| format!("{base}{plain}"));
    let mut all = vec![name.to_owned(), plain.clone()];
    all.extend(bias.into_iter().chain(without).chain(with));
    all
}

/// A last layer that is stored besides the word table must be the same numbers.
fn require_tied(source: &impl TensorSource, origin: &str, name: &str, table: &str) -> Result<()> {
    let same = source.form(name) == source.form(table) && source.tensor(name)? == source.tensor(table)?;
    if !same {
        bail_input!(
            "{origin}: `{name}` differs from `{table}`, but here the last layer is the word table; such a model cannot be loaded"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::init::Init;
    use crate::weights::NamedTensors;
    use tch::{Device, Kind};

    fn model() -> Result<Parameters> {
        let parameters = Parameters::undrawn(Device::Cpu);
        let root = parameters.root();
        let norm = root.child("bert.embeddings.LayerNorm");
        let _ = root.parameter("bert.embeddings.word_embeddings.weight", &[4, 2], Init::ONES)?;
        let _ = norm.parameter("weight", &[2], Init::ONES)?;
        let _ = norm.parameter("bias", &[2], Init::ONES)?;
        let _ = root.parameter("bert.pooler.dense.weight", &[2, 2], Init::ONES)?;
        let _ = root.parameter("classifier.weight", &[3, 2], Init::ONES)?;
        Ok(parameters)
    }

    fn tensors(names: &[(&str, &[i64])]) -> NamedTensors {
        let filled =
            |shape: &[i64], value: usize| Tensor::full(shape, value as f64, (Kind::Float, Device::Cpu));
        names
            .iter()
            .enumerate()
            .map(|(number, (name, shape))| ((*name).to_owned(), filled(shape, number + 1)))
            .collect()
    }

    fn new(name: &str) -> bool {
        name.starts_with("classifier.") || name.contains("pooler.")
    }

    #[test]
    fn legacy_names_prefixes_and_counters() -> Result<()> {
        let model = model()?;
        let file = tensors(&[
            ("embeddings.word_embeddings.weight", &[4, 2]),
            ("embeddings.LayerNorm.gamma", &[2]),
            ("embeddings.LayerNorm.beta", &[2]),
            ("embeddings.position_ids", &[1, 8]),
        ]);
        let loaded = fit(&model, &file, "old.bin", false, new)?;
        assert_eq!(loaded.report.loaded.len(), 3);
        assert_eq!(loaded.report.missing.len(), 2);
        assert!(loaded.report.unexpected.is_empty());
        assert!(loaded.notes[0].contains("`bert.pooler.dense.weight`"), "{:?}", loaded.notes);
        assert_eq!(
            f64::try_from(model.get("bert.embeddings.LayerNorm.bias").unwrap().sum(Kind::Float))?,
            6.0
        );
        assert!(fit(&model, &file, "old.bin", true, new).is_err());
        Ok(())
    }

    #[test]
    fn tied_layers_are_left_aside_only_where_they_are_the_table() -> Result<()> {
        let model = model()?;
        let mut file = tensors(&[
            ("bert.embeddings.word_embeddings.weight", &[4, 2]),
            ("bert.embeddings.LayerNorm.weight", &[2]),
            ("bert.embeddings.LayerNorm.bias", &[2]),
            ("cls.predictions.bias", &[4]),
        ]);
        let table = file["bert.embeddings.word_embeddings.weight"].shallow_clone();
        file.insert("cls.predictions.decoder.weight".to_owned(), table);
        let loaded = fit(&model, &file, "new.bin", false, new)?;
        assert_eq!(loaded.report.unexpected, ["cls.predictions.bias"]);
        file.insert(
            "cls.predictions.decoder.weight".to_owned(),
            Tensor::zeros([4, 2], (Kind::Float, Device::Cpu)),
        );
        let error = fit(&model, &file, "new.bin", false, new).unwrap_err().to_string();
        assert!(error.contains("differs from"), "{error}");
        Ok(())
    }
}
