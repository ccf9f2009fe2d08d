//! What is in an archive of code and weights, found out by reading it: nothing is loaded or run.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Cursor, Read};
use std::path::Path;

use anyhow::Result;
use flate2::read::DeflateDecoder;
use serde::Serialize;
use zip::{CompressionMethod, ZipArchive};

use super::signature::{ClassCode, MethodCode, find_class, operators};
use crate::native::file_map::FileMap;
use crate::weights::{self, Format, TensorSource};
use crate::{bad_input, bail_input};

/// Code that an archive may hold, beyond a multiple of its own size.
const MOST_CODE: u64 = 16 << 20;

/// Kinds of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Artifact {
    /// `torch.jit.save`.
    Module,
    /// `torch._inductor.aoti_compile_and_package`.
    Package,
    /// Weights without code.
    Weights(Format),
}

impl Artifact {
    /// For people.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Module => "a TorchScript archive",
            Self::Package => "an AOTInductor package",
            Self::Weights(Format::Safetensors) => "a safetensors file",
            Self::Weights(_) => "a pickled state_dict",
        }
    }
}

/// Tells what a file is by its content.
///
/// # Errors
/// It is missing, truncated, or none of these.
pub fn kind_of(path: &Path) -> Result<Artifact> {
    if path.is_dir() {
        bail_input!("{} is a folder: give the file of a module", path.display());
    }
    let file = FileMap::open(path)?;
    if !file.starts_with(b"PK\x03\x04") {
        let weights = weights::open(path).map_err(|error| {
            bad_input!("{} is neither a TorchScript archive nor weights: {error:#}", path.display())
        })?;
        return Ok(Artifact::Weights(weights.format));
    }
    let members = Members::of(&path.display().to_string(), &file)?;
    let has = |test: &dyn Fn(&str) -> bool| members.list.keys().any(|name| test(name));
    if has(&|name| name == "constants.pkl" || name.starts_with("code/")) {
        return Ok(Artifact::Module);
    }
    if has(&|name| name.starts_with("data/aotinductor/")) || has(&|name| name == "archive_format") {
        return Ok(Artifact::Package);
    }
    match has(&|name| name == "data.pkl") {
        true => Ok(Artifact::Weights(Format::TorchZip)),
        false => bail_input!(
            "{} is a zip archive without code or weights of PyTorch: nothing of torch.save, torch.jit.save or AOTInductor",
            path.display()
        ),
    }
}

/// The entries of an archive by name without its first folder.
struct Members<'a> {
    name: String,
    bytes: &'a [u8],
    list: BTreeMap<String, Member>,
}

struct Member {
    start: u64,
    packed: u64,
    size: u64,
    method: CompressionMethod,
}

impl<'a> Members<'a> {
    fn of(name: &str, bytes: &'a [u8]) -> Result<Self> {
        let damaged = |error: zip::result::ZipError| {
            bad_input!("{name} is no whole zip archive, so it is truncated or damaged: {error}")
        };
        let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(damaged)?;
        let mut list = BTreeMap::new();
        for index in 0..archive.len() {
            let member = archive.by_index_raw(index).map_err(damaged)?;
            let path = member.name().map_err(damaged)?.into_owned();
            if path.starts_with('/') || path.split('/').any(|part| part == "..") || path.contains('\\') {
                bail_input!("{name} is refused: its entry `{path}` leads out of the archive");
            }
            if member.is_dir() {
                continue;
            }
            let inner = path.split_once('/').map_or(path.as_str(), |(_, inner)| inner).to_owned();
            let start = member
                .data_start()
                .ok_or_else(|| bad_input!("{name} is damaged: its entry `{path}` is nowhere"))?;
            let made = Member {
                start,
                packed: member.compressed_size(),
                size: member.size(),
                method: member.compression(),
            };
            list.insert(inner, made);
        }
        Ok(Self { name: name.to_owned(), bytes, list })
    }

    /// An entry's content, unpacked, as far as `left` bytes allow.
    fn read(&self, inner: &str, left: &mut u64) -> Result<Option<Vec<u8>>> {
        let Some(member) = self.list.get(inner) else { return Ok(None) };
        let end = member.start.checked_add(member.packed).filter(|&end| end <= self.bytes.len() as u64);
        let Some(end) = end else {
            bail_input!("{} is damaged: its entry `{inner}` ends behind the file", self.name);
        };
        let packed = &self.bytes[member.start as usize..end as usize];
        let mut content = Vec::new();
        let read = match member.method {
            CompressionMethod::Stored => packed.take(*left + 1).read_to_end(&mut content),
            CompressionMethod::DEFLATE => {
                DeflateDecoder::new(packed).take(*left + 1).read_to_end(&mut content)
            }
            other => bail_input!("{}: its entry `{inner}` is packed by {other:?}", self.name),
        };
        let count = read.map_err(|error| bad_input!("{} is damaged: `{inner}`: {error}", self.name))?;
        if count as u64 > *left {
            bail_input!("{} is refused: its code unpacks to far more than the file", self.name);
        }
        *left -= count as u64;
        Ok(Some(content))
    }

    fn text(&self, inner: &str, left: &mut u64) -> Result<Option<String>> {
        Ok(self.read(inner, left)?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }
}

/// A tensor of a module.
#[derive(Clone, Debug, Serialize)]
pub struct TensorRow {
    /// Dotted name.
    pub name: String,
    /// Type.
    pub dtype: String,
    /// Sizes.
    pub shape: Vec<i64>,
}

/// A method of the module itself.
#[derive(Clone, Debug, Serialize)]
pub struct MethodRow {
    /// Its name.
    pub name: String,
    /// Arguments and result.
    pub signature: String,
}

/// What a file of code and weights holds.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// The file.
    pub file: String,
    /// `torchscript` or `aotinductor`.
    pub kind: &'static str,
    /// Version of the archive's format, as its writer says.
    pub format_version: Option<String>,
    /// What else the archive says of its writer.
    pub producer: BTreeMap<String, String>,
    /// The class of the module.
    pub class: Option<String>,
    /// Submodules by dotted name with their classes.
    pub modules: Vec<(String, String)>,
    /// Methods of the module itself.
    pub methods: Vec<MethodRow>,
    /// What is learned.
    pub parameters: Vec<TensorRow>,
    /// What is carried along.
    pub buffers: Vec<TensorRow>,
    /// Tensors that are part of the code.
    pub constants: Vec<TensorRow>,
    /// Operators with how often the code calls them.
    pub operators: BTreeMap<String, u64>,
    /// Whether it can be trained, and why not or how far.
    pub trainable: bool,
    /// Says so in words.
    pub training: String,
    /// Entries that belong neither to code nor to weights, with their sizes.
    pub extra: Vec<(String, u64)>,
    /// The code of methods by dotted name.
    #[serde(skip)]
    pub code: BTreeMap<String, String>,
}

/// Looks into a module or package.
///
/// # Errors
/// The file is something else, damaged, or refused as hostile.
pub fn inspect(path: &Path) -> Result<Inspection> {
    let kind = kind_of(path)?;
    let name = path.display().to_string();
    let file = FileMap::open(path)?;
    let members = Members::of(&name, &file)?;
    let mut left = MOST_CODE.saturating_add(16 * file.len() as u64);
    let mut found = Inspection {
        file: name.clone(),
        kind: "torchscript",
        format_version: None,
        producer: BTreeMap::new(),
        class: None,
        modules: Vec::new(),
        methods: Vec::new(),
        parameters: Vec::new(),
        buffers: Vec::new(),
        constants: Vec::new(),
        operators: BTreeMap::new(),
        trainable: false,
        training: String::new(),
        extra: Vec::new(),
        code: BTreeMap::new(),
    };
    for known in ["version", ".data/version"] {
        if let Some(text) = members.text(known, &mut left)? {
            found.format_version = Some(text.trim().to_owned());
            break;
        }
    }
    for known in [".data/serialization_id", "byteorder", "archive_format", ".data/producer"] {
        if let Some(text) = members.text(known, &mut left)? {
            let key = known.trim_start_matches(".data/").to_owned();
            found.producer.insert(key, text.trim().chars().take(80).collect());
        }
    }
    match kind {
        Artifact::Module => inspect_module(path, &members, &mut left, &mut found)?,
        Artifact::Package => {
            found.kind = "aotinductor";
            found.training = "no: a compiled package only predicts".to_owned();
            found.extra = members.list.iter().map(|(inner, member)| (inner.clone(), member.size)).collect();
            for (inner, _) in found.extra.clone() {
                if inner.ends_with("_metadata.json")
                    && let Some(text) = members.text(&inner, &mut left)?
                    && let Ok(serde_json::Value::Object(entries)) = serde_json::from_str(&text)
                {
                    let told = |value: serde_json::Value| match value {
                        serde_json::Value::String(text) => text,
                        other => other.to_string(),
                    };
                    found.producer.extend(entries.into_iter().map(|(key, value)| (key, told(value))));
                }
            }
        }
        Artifact::Weights(_) => bail_input!("{name} is {}, which has no code", kind.describe()),
    }
    Ok(found)
}

fn inspect_module(path: &Path, members: &Members<'_>, left: &mut u64, found: &mut Inspection) -> Result<()> {
    let modules = weights::script_modules(path)?;
    let mut files: BTreeMap<String, String> = BTreeMap::new();
    for inner in members.list.keys() {
        if inner.starts_with("code/") && inner.ends_with(".py") {
            let text = members.text(inner, left)?.unwrap_or_default();
            operators(&text, &mut found.operators);
            files.insert(inner.clone(), text);
        }
    }
    let mut classes: BTreeMap<&str, Option<ClassCode>> = BTreeMap::new();
    for (_, class) in &modules {
        if !classes.contains_key(class.as_str()) {
            classes.insert(class, class_code(class, &files));
        }
    }
    let mut learned = BTreeSet::new();
    let dotted = |prefix: &str, name: &str| match prefix {
        "" => name.to_owned(),
        prefix => format!("{prefix}.{name}"),
    };
    for (prefix, class) in &modules {
        let Some(Some(code)) = classes.get(class.as_str()) else { continue };
        learned.extend(code.parameters.iter().map(|name| dotted(prefix, name)));
        // A network of many equal layers has their code once for each.
        if found.code.len() < 10_000 {
            for MethodCode { name, code, .. } in &code.methods {
                found.code.insert(dotted(prefix, name), code.clone());
            }
        }
    }
    if let Some((_, class)) = modules.first() {
        found.class = Some(class.clone());
        let methods = classes.get(class.as_str()).and_then(Option::as_ref);
        found.methods = methods
            .into_iter()
            .flat_map(|code| &code.methods)
            .map(|method| MethodRow { name: method.name.clone(), signature: method.signature.clone() })
            .collect();
    }
    found.modules = modules.iter().skip(1).cloned().collect();
    match weights::open(path) {
        Ok(weights) => {
            for name in weights.names() {
                let Some(form) = weights.form(name) else { continue };
                let row = TensorRow {
                    name: name.to_owned(),
                    dtype: form.dtype.name().to_owned(),
                    shape: form.shape.clone(),
                };
                if name.starts_with("CONSTANTS.") {
                    found.constants.push(row);
                } else if learned.contains(name) {
                    found.parameters.push(row);
                } else {
                    found.buffers.push(row);
                }
            }
        }
        // A module without tensors is none the less a module.
        Err(error) if error.to_string().ends_with("holds no tensor") => {}
        Err(error) => return Err(error),
    }
    (found.trainable, found.training) = trainability(found, &files);
    let known = |inner: &str| {
        ["code/", "data/", "constants/", ".data/"].iter().any(|folder| inner.starts_with(folder))
            || ["data.pkl", "constants.pkl", "version", "byteorder"].contains(&inner)
    };
    found.extra = members
        .list
        .iter()
        .filter(|(inner, _)| !known(inner))
        .map(|(inner, member)| (inner.clone(), member.size))
        .collect();
    Ok(())
}

/// The code of `__torch__.a.b.Net` is that of the class `Net` in `code/__torch__/a/b.py`.
fn class_code(class: &str, files: &BTreeMap<String, String>) -> Option<ClassCode> {
    let (place, name) = class.rsplit_once('.')?;
    find_class(files.get(&format!("code/{}.py", place.replace('.', "/")))?, name)
}

fn trainability(found: &Inspection, files: &BTreeMap<String, String>) -> (bool, String) {
    let numbers = |rows: &[TensorRow]| rows.iter().map(|row| row.shape.iter().product::<i64>()).sum::<i64>();
    if found.parameters.is_empty() {
        let constants = numbers(&found.constants);
        return match constants > 0 {
            true => (false, format!("no: it is frozen, its {constants} numbers are constants of its code")),
            false => (false, "no: it has no parameters".to_owned()),
        };
    }
    // Calls end with their last arguments; those of a trace are written out.
    let calls = |name: &str, argument: &str| {
        files.values().flat_map(|text| text.lines()).any(|line| {
            line.split_once(name)
                .is_some_and(|(_, rest)| rest.contains(argument) && !rest.contains("training"))
        })
    };
    let asks = files.values().any(|text| text.contains(".training"));
    let frozen_norm = calls("torch.batch_norm(", ", False, ");
    let frozen_dropout = calls("torch.dropout(", ", False)");
    match (asks, frozen_norm, frozen_dropout) {
        (false, true, _) => (
            true,
            "yes, but it was traced in evaluation mode: batch normalisation keeps its statistics, and dropout stays off"
                .to_owned(),
        ),
        (false, _, true) => (true, "yes, but it was traced in evaluation mode: dropout stays off".to_owned()),
        _ => (true, "yes".to_owned()),
    }
}
