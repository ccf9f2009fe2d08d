//! Values for the methods of a module, from files and from the command line, and back into files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use serde_json::{Value as Json, json};
use tch::{Device, Kind, Tensor};

use super::{npy, wav};
use crate::data::decode::ImageForm;
use crate::data::images::{ImageDataConfig, decode_file};
use crate::data::text::TextTokenizer;
use crate::native::script::Value;
use crate::weights::{self, NamedTensors, read_safetensors, write_safetensors};
use crate::{bad_input, bail_input, files};

/// Deeper than this no value is nested.
const DEEPEST: usize = 64;
/// Files that are taken for images.
const IMAGES: [&str; 6] = ["png", "jpg", "jpeg", "bmp", "webp", "gif"];

/// How files become values.
#[derive(Clone, Debug, Default)]
pub struct ValueReader {
    /// How images become tensors: their size, scaling, mean and deviation.
    pub images: Option<ImageDataConfig>,
    /// What makes tokens of texts; without it, a text is a string.
    pub tokenizer: Option<Arc<TextTokenizer>>,
}

impl ValueReader {
    /// Reads what `NAME=SPECIFICATION` says: `json:…`, `text:…`, `lengths:` and `mask:` of the lines of a text file, `zeros:`, `ones:`, `random:` with a type and sizes (`random:4x3x64x64`,
    /// `zeros:int64:4x12`), or a file by its ending, of several tensors one by `#NAME`. Several images are given with commas between them.
    ///
    /// # Errors
    /// There is no such file, or it cannot be read.
    pub fn read(&self, specification: &str, argument: &str) -> Result<Value> {
        if let Some(text) = specification.strip_prefix("json:") {
            let value = serde_json::from_str(text)
                .map_err(|error| bad_input!("--input {argument}: no JSON: {error}"))?;
            return self.of_json(&value, Path::new(""), 0);
        }
        if let Some(text) = specification.strip_prefix("text:") {
            return self.of_texts(&[text]);
        }
        for (word, tell) in [("lengths:", false), ("mask:", true)] {
            if let Some(file) = specification.strip_prefix(word) {
                let text = files::read_text(Path::new(file))?;
                return self.about_texts(&text.lines().collect::<Vec<_>>(), tell);
            }
        }
        for (word, fill) in [("zeros:", Fill::Zeros), ("ones:", Fill::Ones), ("random:", Fill::Random)] {
            if let Some(form) = specification.strip_prefix(word) {
                return made(form, fill).map(Value::Tensor);
            }
        }
        let (path, key) = match specification.rsplit_once('#') {
            Some((path, key)) if !Path::new(specification).exists() => (path, Some(key)),
            _ => (specification, None),
        };
        let first = path.split(',').next().unwrap_or(path);
        if is_image(Path::new(first)) && !Path::new(path).exists() || is_image(Path::new(path)) {
            let paths: Vec<PathBuf> = match Path::new(path).exists() {
                true => vec![path.into()],
                false => path.split(',').map(PathBuf::from).collect(),
            };
            return self.read_images(&paths).map(Value::Tensor);
        }
        self.read_file(Path::new(path), key, argument, 0)
    }

    fn read_file(&self, path: &Path, key: Option<&str>, argument: &str, depth: usize) -> Result<Value> {
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_lowercase();
        let name = path.display().to_string();
        match ending.as_str() {
            "npy" => npy::read_npy(path).map(Value::Tensor),
            "npz" => chosen(npy::read_npz(path)?, &name, key, argument),
            "safetensors" => chosen(read_safetensors(path)?, &name, key, argument),
            "pt" | "pth" | "bin" => chosen(weights::open(path)?.tensors()?, &name, key, argument),
            "wav" => Ok(Value::Tensor(wav::parse(&name, &files::read(path)?)?.0)),
            "json" => {
                let value: Json = serde_json::from_str(&files::read_text(path)?)
                    .map_err(|error| bad_input!("{name} is no JSON: {error}"))?;
                let value = match key {
                    Some(key) => value.get(key).ok_or_else(|| bad_input!("{name} has no key `{key}`"))?,
                    None => &value,
                };
                self.of_json(value, path.parent().unwrap_or(Path::new("")), depth + 1)
            }
            "txt" => {
                let text = files::read_text(path)?;
                match self.tokenizer {
                    Some(_) => self.of_texts(&text.lines().collect::<Vec<_>>()),
                    None => Ok(Value::Text(text.trim_end_matches(['\n', '\r']).to_owned())),
                }
            }
            ending if IMAGES.contains(&ending) => self.read_images(&[path.to_owned()]).map(Value::Tensor),
            _ if !path.exists() => bail_input!("--input {argument}: {name} does not exist"),
            _ => bail_input!(
                "--input {argument}: {name} is of an unknown kind: give .npy, .npz, .safetensors, .json, .txt, .wav or an image"
            ),
        }
    }

    /// Tokens of each text, with the tokenizer's own special ones.
    fn tokens(&self, texts: &[&str]) -> Result<Vec<Vec<i64>>> {
        let Some(tokenizer) = &self.tokenizer else { bail_input!("texts become tokens by --tokenizer FILE") };
        texts
            .iter()
            .map(|text| {
                let encoding = tokenizer
                    .inner()
                    .encode(*text, true)
                    .map_err(|error| bad_input!("`{text}` cannot be encoded: {error}"))?;
                Ok(encoding.get_ids().iter().map(|&id| i64::from(id)).collect())
            })
            .collect()
    }

    /// Texts as tokens `[texts, longest]` int64, padded with 0; without a tokenizer one text as a string.
    fn of_texts(&self, texts: &[&str]) -> Result<Value> {
        if let (None, [text]) = (&self.tokenizer, texts) {
            return Ok(Value::Text((*text).to_owned()));
        }
        let rows = self.tokens(texts)?;
        let longest = rows.iter().map(Vec::len).max().unwrap_or(0);
        let padded: Vec<i64> = rows
            .iter()
            .flat_map(|row| row.iter().copied().chain(std::iter::repeat(0)).take(longest))
            .collect();
        Ok(Value::Tensor(Tensor::f_from_slice(&padded)?.f_view([rows.len() as i64, longest as i64])?))
    }

    /// How many tokens each text has, `[texts]` int64, or where they are, `[texts, longest]` int64 of ones and zeros.
    fn about_texts(&self, texts: &[&str], mask: bool) -> Result<Value> {
        let lengths: Vec<i64> = self.tokens(texts)?.iter().map(|row| row.len() as i64).collect();
        let lengths = Tensor::f_from_slice(&lengths)?;
        if !mask {
            return Ok(Value::Tensor(lengths));
        }
        let longest = if texts.is_empty() { 0 } else { lengths.f_max()?.f_int64_value(&[])? };
        // Masks are made on the host, as their tokens are.
        let places = Tensor::f_arange(longest, (Kind::Int64, Device::Cpu))?.f_unsqueeze(0)?;
        Ok(Value::Tensor(places.f_lt_tensor(&lengths.f_unsqueeze(1)?)?.f_to_kind(Kind::Int64)?))
    }

    /// A value of JSON. An object with the one key `@` stands for the file that it names, beside `folder`.
    fn of_json(&self, value: &Json, folder: &Path, depth: usize) -> Result<Value> {
        if depth > DEEPEST {
            bail_input!("the JSON is nested more than {DEEPEST} deep");
        }
        Ok(match value {
            Json::Null => Value::None,
            Json::Bool(value) => Value::Bool(*value),
            Json::Number(number) => match number.as_i64() {
                Some(whole) => Value::Int(whole),
                None => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
            },
            Json::String(text) => Value::Text(text.clone()),
            Json::Array(values) => Value::List(
                values.iter().map(|value| self.of_json(value, folder, depth + 1)).collect::<Result<_>>()?,
            ),
            Json::Object(entries) => match entries.get("@") {
                Some(Json::String(file)) if entries.len() == 1 => {
                    let (file, key) = match file.rsplit_once('#') {
                        Some((file, key)) => (file, Some(key)),
                        None => (file.as_str(), None),
                    };
                    self.read_file(&folder.join(file), key, file, depth + 1)?
                }
                _ => Value::Dict(
                    entries
                        .iter()
                        .map(|(key, value)| {
                            Ok((Value::Text(key.clone()), self.of_json(value, folder, depth + 1)?))
                        })
                        .collect::<Result<_>>()?,
                ),
            },
        })
    }

    /// Images as a normalised batch `[images, channels, height, width]`.
    fn read_images(&self, paths: &[PathBuf]) -> Result<Tensor> {
        let config = match &self.images {
            Some(config) => config.clone(),
            // As they are, their values in 0..1.
            None => crate::recipe::typed(json!({}), "data")?,
        };
        let channels = config.channels.unwrap_or(3);
        let size = match config.image_size {
            Some(size) => size,
            None => {
                let first =
                    crate::data::decode::decode(&paths[0].display().to_string(), &files::read(&paths[0])?)?;
                [first.height() as usize, first.width() as usize]
            }
        };
        let form = ImageForm { channels, size };
        let mut pixels = Vec::new();
        for path in paths {
            decode_file(path, form, config.resize, &mut pixels)?;
        }
        let shape = [paths.len() as i64, channels as i64, size[0] as i64, size[1] as i64];
        config.normalisation(channels)?.apply(&Tensor::f_from_data_size(&pixels, &shape, Kind::Uint8)?)
    }
}

fn is_image(path: &Path) -> bool {
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_lowercase();
    IMAGES.contains(&ending.as_str())
}

/// What a made-up tensor holds.
#[derive(Clone, Copy)]
enum Fill {
    Zeros,
    Ones,
    Random,
}

/// `float32:4x3x64x64`, the type being optional.
fn made(form: &str, fill: Fill) -> Result<Tensor> {
    let (kind, sizes) = match form.split_once(':') {
        Some((name, sizes)) => {
            let dtype = weights::Dtype::by_name(name)
                .ok_or_else(|| bad_input!("`{name}` is no type: write float32, int64, bool, …"))?;
            (dtype.kind(), sizes)
        }
        None => (Kind::Float, form),
    };
    let shape = sizes
        .split('x')
        .filter(|size| !size.is_empty())
        .map(|size| size.parse::<i64>().ok().filter(|size| *size >= 0))
        .collect::<Option<Vec<i64>>>()
        .ok_or_else(|| bad_input!("`{sizes}` are no sizes: write 4x3x64x64"))?;
    // Inputs are made on the host and moved with the others.
    let options = (kind, Device::Cpu);
    Ok(match fill {
        Fill::Zeros => Tensor::f_zeros(shape.as_slice(), options)?,
        Fill::Ones => Tensor::f_ones(shape.as_slice(), options)?,
        Fill::Random if kind == Kind::Float || kind == Kind::Double => {
            Tensor::f_randn(shape.as_slice(), options)?
        }
        Fill::Random => bail_input!("random inputs are of type float32 or float64"),
    })
}

/// One tensor of several by name; all of them as a dictionary where none is asked for.
fn chosen(mut tensors: NamedTensors, name: &str, key: Option<&str>, argument: &str) -> Result<Value> {
    let wanted = match key {
        Some(key) => key,
        None if tensors.contains_key(argument) => argument,
        None if tensors.len() == 1 => {
            return Ok(tensors.pop_first().map_or(Value::None, |(_, tensor)| Value::Tensor(tensor)));
        }
        None => {
            let entries =
                tensors.into_iter().map(|(name, tensor)| (Value::Text(name), Value::Tensor(tensor)));
            return Ok(Value::Dict(entries.collect()));
        }
    };
    match tensors.remove(wanted) {
        Some(tensor) => Ok(Value::Tensor(tensor)),
        None => {
            let known: Vec<&str> = tensors.keys().take(12).map(String::as_str).collect();
            bail_input!("{name} has no tensor `{wanted}`; it has {}", known.join(", "))
        }
    }
}

/// The leaves of a value with the paths that lead to them: `output`, `output.0`, `output.scores.1`.
pub fn leaves<'a>(value: &'a Value, path: &str) -> Vec<(String, &'a Value)> {
    match value {
        Value::List(values) | Value::Tuple(values) => values
            .iter()
            .enumerate()
            .flat_map(|(place, value)| leaves(value, &format!("{path}.{place}")))
            .collect(),
        Value::Dict(entries) => entries
            .iter()
            .flat_map(|(key, value)| {
                let key = match key {
                    Value::Text(text) => text.clone(),
                    Value::Int(number) => number.to_string(),
                    other => format!("{other:?}"),
                };
                leaves(value, &format!("{path}.{key}"))
            })
            .collect(),
        leaf => vec![(path.to_owned(), leaf)],
    }
}

/// The tensors of a value by path; numbers and truth values are tensors without dimensions.
pub fn tensors_of(value: &Value) -> Result<NamedTensors> {
    let mut tensors = NamedTensors::new();
    for (path, leaf) in leaves(value, "output") {
        let tensor = match leaf {
            // Files are written from the host.
            Value::Tensor(tensor) => tensor.detach().f_to_device(Device::Cpu)?.f_contiguous()?,
            Value::Int(number) => Tensor::from(*number),
            Value::Float(number) => Tensor::from(*number),
            Value::Bool(truth) => Tensor::from(*truth),
            _ => continue,
        };
        tensors.insert(path, tensor);
    }
    Ok(tensors)
}

/// A value as JSON, tensors as nested lists.
pub fn to_json(value: &Value) -> Result<Json> {
    Ok(match value {
        Value::None => Json::Null,
        Value::Bool(value) => json!(value),
        Value::Int(value) => json!(value),
        Value::Float(value) => json!(value),
        Value::Text(value) => json!(value),
        Value::List(values) | Value::Tuple(values) => {
            Json::Array(values.iter().map(to_json).collect::<Result<_>>()?)
        }
        Value::Dict(entries) => {
            let mut object = serde_json::Map::new();
            for (key, value) in entries {
                let key = match key {
                    Value::Text(text) => text.clone(),
                    other => to_json(other)?.to_string(),
                };
                object.insert(key, to_json(value)?);
            }
            Json::Object(object)
        }
        Value::Tensor(tensor) => {
            let tensor = tensor.detach().f_to_device(Device::Cpu)?; // lists are made on the host
            let flat: Vec<Json> = match tensor.kind() {
                Kind::Bool => {
                    let truths = Vec::<i64>::try_from(tensor.f_to_kind(Kind::Int64)?.f_reshape([-1])?)?;
                    truths.into_iter().map(|truth| json!(truth != 0)).collect()
                }
                kind if tensor.is_floating_point() => {
                    let numbers = Vec::<f64>::try_from(tensor.f_to_kind(Kind::Double)?.f_reshape([-1])?)?;
                    // A float32 is told with its own digits.
                    let short = |number: f64| match kind {
                        Kind::Double => json!(number),
                        _ => json!(number as f32),
                    };
                    numbers.into_iter().map(short).collect()
                }
                _ => Vec::<i64>::try_from(tensor.f_to_kind(Kind::Int64)?.f_reshape([-1])?)?
                    .into_iter()
                    .map(Json::from)
                    .collect(),
            };
            nested(&mut flat.into_iter(), &tensor.size())
        }
    })
}

fn nested(values: &mut impl Iterator<Item = Json>, shape: &[i64]) -> Json {
    match shape.split_first() {
        None => values.next().unwrap_or(Json::Null),
        Some((&size, inner)) => Json::Array((0..size).map(|_| nested(values, inner)).collect()),
    }
}

/// Writes a value: `.safetensors`, `.npy` (one tensor) or `.json`, by the ending.
///
/// # Errors
/// The ending is another one, or the value does not fit into such a file.
pub fn write(value: &Value, path: &Path) -> Result<()> {
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    match ending {
        "safetensors" => {
            let tensors = tensors_of(value)?;
            if tensors.is_empty() {
                bail_input!("--out {}: the result has no tensor: write .json", path.display());
            }
            write_safetensors(path, &tensors)
        }
        "npy" => {
            let tensors = tensors_of(value)?;
            match tensors.values().collect::<Vec<_>>().as_slice() {
                [tensor] => files::write_atomic(path, &npy::to_npy(tensor)?),
                several => bail_input!(
                    "--out {}: the result has {} tensors, and an NPY file holds one: write .safetensors",
                    path.display(),
                    several.len()
                ),
            }
        }
        "json" => {
            let text = serde_json::to_string(&to_json(value)?).context("writing JSON")? + "\n";
            files::write_atomic(path, text.as_bytes())
        }
        _ => bail_input!("--out {}: write .safetensors, .npy or .json", path.display()),
    }
}
