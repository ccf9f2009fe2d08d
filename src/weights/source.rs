//! From what a user names to opened weights: files, folders, and repositories of the Hugging Face hub.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use anyhow::Result;
use serde::Deserialize;

use super::content::{Weights, quoted};
use super::hub::{self, Repository};
use super::safetensors::open_safetensors;
use super::torch_file::{is_legacy, is_zip, open_legacy, open_zip};
use crate::native::file_map::FileMap;
use crate::training::checkpoint::weights_file;
use crate::training::run::find_checkpoint;
use crate::{bad_input, bail_input, files, recipe};

/// The names under which Hugging Face repositories keep weights, the first that exists counts.
pub(super) const USUAL_NAMES: &[&str] = &[
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
];

/// Indices of shards are lists of names.
const MOST_INDEX_BYTES: usize = 64 << 20;

/// Opens weights: a safetensors file, a file of `torch.save` (old or new) or `torch.jit.save`, an index of shards, a run or a checkpoint folder, a
/// Hugging Face folder, or `hf:ORG/NAME[/FILE]`. What a file is decides its content, not its name. `FILE#KEY.KEY` takes the container of
/// those keys out of a pickle that has several (`model.pth#model_ema`).
///
/// # Errors
/// There is no such thing, it is damaged, or it would need code to be run.
pub fn open(source: &Path) -> Result<Weights> {
    if source.exists() {
        return open_path(source, None);
    }
    let text = source.to_string_lossy();
    let (place, selected) = match text.rsplit_once('#') {
        Some((place, selected)) => (place, Some(selected)),
        None => (&*text, None),
    };
    match place.strip_prefix("hf:") {
        Some(repository) => open_repository(repository, selected),
        None => open_path(Path::new(place), selected),
    }
}

fn open_path(path: &Path, selected: Option<&str>) -> Result<Weights> {
    let path = if path.is_dir() { &in_folder(path)? } else { path };
    let file = FileMap::open(path)?;
    if file.is_empty() {
        bail_input!("{} is an empty file, not weights", path.display());
    }
    let weights = if is_zip(&file) {
        open_zip(file, selected)?
    } else if is_legacy(&file) {
        open_legacy(file, selected)?
    } else if looks_like_safetensors(&file) {
        match selected {
            Some(_) => {
                bail_input!("{} is a safetensors file: it has no containers to choose from", path.display())
            }
            None => open_safetensors(file)?,
        }
    } else if file.starts_with(b"{") {
        let beside = |name: &str| -> Result<PathBuf> { Ok(path.with_file_name(name)) };
        open_index(&file, path, selected, &beside)?
    } else {
        return Err(unknown(path, &file));
    };
    Ok(weights)
}

/// The file of a folder that holds its weights.
fn in_folder(folder: &Path) -> Result<PathBuf> {
    if folder.join("recipe.json").is_file() {
        return Ok(weights_file(&find_checkpoint(folder, None)?));
    }
    if folder.join("state.json").is_file() && folder.join("model.safetensors").is_file() {
        return Ok(weights_file(folder));
    }
    if let Some(found) = USUAL_NAMES.iter().map(|name| folder.join(name)).find(|path| path.is_file()) {
        return Ok(found);
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|error| files::cannot_read(folder, &error))? {
        let path = entry.map_err(|error| files::cannot_read(folder, &error))?.path();
        let weights = |ending: &std::ffi::OsStr| {
            ["safetensors", "pth", "pt", "bin"].iter().any(|known| ending == *known)
        };
        found.extend(path.extension().is_some_and(weights).then_some(path));
    }
    found.sort();
    match &found[..] {
        [one] => Ok(one.clone()),
        [] => bail_input!(
            "{} is neither a run nor a folder with weights: it has no recipe.json and no {}",
            folder.display(),
            USUAL_NAMES[0]
        ),
        several => {
            let names: Vec<String> = several.iter().map(|path| path.display().to_string()).collect();
            bail_input!("{} has several weight files: name one of {}", folder.display(), quoted(&names))
        }
    }
}

/// A header's length that fits into the file, and the beginning of its JSON.
fn looks_like_safetensors(bytes: &[u8]) -> bool {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else { return false };
    let short = u64::from_le_bytes(*length) <= 100 << 20;
    short && rest.first().is_none_or(|&byte| byte == b'{')
}

/// What a file is that holds no weights, as far as its beginning tells.
fn unknown(path: &Path, bytes: &[u8]) -> anyhow::Error {
    let known: [(&[u8], &str); 9] = [
        (b"version https://git-lfs", "a Git LFS pointer in place of a file: fetch it with `git lfs pull`"),
        (b"\x1f\x8b", "compressed with gzip: unpack it first"),
        (b"\x89HDF", "an HDF5 file, as Keras writes them: convert it to safetensors first"),
        (b"<!DOCTYPE", "a web page, so its download has failed"),
        (b"<html", "a web page, so its download has failed"),
        (b"\x80", "a pickle, but not one of torch.save"),
        (b"\x93NUMPY", "an array of NumPy, not weights by name"),
        (b"GGUF", "a GGUF file, which is not read here"),
        (b"PK", "a zip archive without entries"),
    ];
    let name = path.display();
    if let Some((_, what)) = known.iter().find(|(start, _)| bytes.starts_with(start)) {
        return bad_input!("{name} is no weight file: it is {what}");
    }
    if bytes.get(257..262) == Some(b"ustar") {
        return bad_input!(
            "{name} is a tar archive: unpack it, or, if a very old PyTorch wrote it, save it again"
        );
    }
    bad_input!(
        "{name} is no weight file: neither safetensors nor a file of torch.save or torch.jit.save, or it is truncated"
    )
}

/// `model.safetensors.index.json` and `pytorch_model.bin.index.json`.
#[derive(Deserialize)]
struct Index {
    /// The file of each tensor.
    weight_map: BTreeMap<String, String>,
}

/// Opens the shards that an index names; `find` knows where they are.
fn open_index(
    bytes: &[u8],
    path: &Path,
    selected: Option<&str>,
    find: &dyn Fn(&str) -> Result<PathBuf>,
) -> Result<Weights> {
    let name = path.display().to_string();
    if bytes.len() > MOST_INDEX_BYTES || selected.is_some() {
        bail_input!("{name} is no index of weights to choose a container from");
    }
    let text = std::str::from_utf8(bytes).map_err(|_| bad_input!("{name} is not UTF-8 text"))?;
    let value = recipe::parse(text, &name)?;
    let Index { weight_map } = serde_json::from_value(value)
        .map_err(|error| bad_input!("{name} is JSON, but no index of weights (`weight_map`): {error}"))?;
    let mut shards: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (tensor, shard) in &weight_map {
        let mut parts = Path::new(shard).components();
        if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
            bail_input!("{name} is refused: the file `{shard}` of `{tensor}` is not beside it");
        }
        shards.entry(shard).or_default().push(tensor);
    }
    let mut whole: Option<Weights> = None;
    for (shard, tensors) in shards {
        let shard = find(shard)?;
        if !shard.is_file() {
            bail_input!("{name} names {}, which does not exist", shard.display());
        }
        if FileMap::open(&shard)?.starts_with(b"{") {
            bail_input!("{name} names {}, which is an index itself", shard.display());
        }
        let opened = open_path(&shard, None)?;
        whole
            .get_or_insert_with(|| Weights::of_shards(name.clone(), opened.format))
            .append(opened, &tensors)?;
    }
    whole.ok_or_else(|| bad_input!("{name} names no tensor"))
}

/// `ORG/NAME` or `ORG/NAME/FILE` of the hub.
fn open_repository(text: &str, selected: Option<&str>) -> Result<Weights> {
    let repository = Repository::parse(text)?;
    let path = match &repository.file {
        Some(file) => hub::fetch(&repository, file)?,
        None => hub::fetch_first(&repository, USUAL_NAMES)?,
    };
    let mut weights = match path.extension().is_some_and(|ending| ending == "json") {
        false => open_path(&path, selected)?,
        true => {
            let folder =
                repository.file.as_deref().and_then(|file| file.rsplit_once('/')).map(|(folder, _)| folder);
            let find = |name: &str| match folder {
                Some(folder) => hub::fetch(&repository, &format!("{folder}/{name}")),
                None => hub::fetch(&repository, name),
            };
            open_index(&FileMap::open(&path)?, &path, selected, &find)?
        }
    };
    weights.origin = format!("hf:{text}");
    Ok(weights)
}
