//! Files of `torch.save` and `torch.jit.save`: pickles that refer to raw numbers beside them.
//!
//! Since PyTorch 1.6 these are zip archives, uncompressed: `NAME/data.pkl` is the pickle, `NAME/data/KEY` the numbers of a storage,
//! `NAME/byteorder` their byte order. Before, a file was five pickles (magic number, protocol, system, object, keys of the storages), then for
//! each key a count of eight bytes and the numbers. TorchScript archives have the tree of modules in `data.pkl`, and constants in
//! `constants.pkl` with their numbers under `constants/`.

use std::collections::HashMap;
use std::io::Cursor;
use std::ops::Range;

use anyhow::{Context, Result};
use zip::{CompressionMethod, ZipArchive};

use super::content::{Format, Layout, StorageId, Weights};
use super::dtype::Dtype;
use super::pickle::{self, Function, Global, Node, Pickle, Value};
use crate::native::file_map::FileMap;
use crate::{bad_input, bail_input};

/// Pickles themselves are small: the numbers lie elsewhere.
const MOST_PICKLE_BYTES: usize = 256 << 20;

/// Containers around weights, the plain ones before their averages.
const PLAIN: &[&str] = &[
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "module",
    "net",
    "network",
    "params",
    "weights",
];
const AVERAGED: &[&str] =
    &["state_dict_ema", "model_ema", "ema", "ema_state_dict", "ema_model", "params_ema"];
/// What else a checkpoint keeps, whose tensors are no weights.
const NO_WEIGHTS: &[&str] = &[
    "optimizer",
    "optimizers",
    "optimizer_state",
    "optimizer_states",
    "optimizer_state_dict",
    "optim",
    "optim_state_dict",
    "lr_scheduler",
    "lr_schedulers",
    "lr_scheduler_state_dict",
    "scheduler",
    "scheduler_state_dict",
    "scaler",
    "grad_scaler",
    "amp",
    "callbacks",
    "loops",
    "rng_state",
];

/// Bounds on walks through what pickles make: parts may be reached by many ways.
const MOST_VISITS: usize = 4_000_000;
const DEEPEST: usize = 64;

/// Whether a file begins as a zip archive does.
pub fn is_zip(bytes: &[u8]) -> bool {
    bytes.starts_with(b"PK\x03\x04")
}

/// `torch.save`'s magic number as pickled before 1.6, in protocols 2 to 5, without the protocol's own number.
pub fn is_legacy(bytes: &[u8]) -> bool {
    const MAGIC: &[u8] = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
    bytes.first() == Some(&0x80) && bytes.get(2..2 + MAGIC.len()) == Some(MAGIC)
}

/// The entries of an archive by name without its first folder.
struct Archive {
    members: HashMap<String, Range<usize>>,
}

impl Archive {
    fn open(name: &str, bytes: &[u8]) -> Result<Self> {
        let damaged = |error: zip::result::ZipError| {
            bad_input!("{name} is no whole zip archive, so it is truncated or damaged: {error}")
        };
        let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(damaged)?;
        let mut found: Vec<(String, Range<usize>)> = Vec::with_capacity(archive.len());
        let mut total = 0u64;
        for index in 0..archive.len() {
            let member = archive.by_index_raw(index).map_err(damaged)?;
            let path = member.name().map_err(damaged)?.into_owned();
            let unsafe_part = |part: &str| matches!(part, ".." | ".") || part.contains('\\');
            if path.starts_with('/') || path.split('/').any(unsafe_part) {
                bail_input!("{name} is refused: its entry `{path}` leads out of the archive");
            }
            if member.is_dir() {
                continue;
            }
            // TorchScript's code is compressed; nothing reads it here.
            let inner = path.split_once('/').map_or(path.as_str(), |(_, inner)| inner);
            let needed = [path.as_str(), inner].iter().any(|name| {
                ["data.pkl", "constants.pkl", "byteorder"].contains(name)
                    || name.starts_with("data/")
                    || name.starts_with("constants/")
            });
            if member.compression() != CompressionMethod::Stored || member.encrypted() {
                if needed {
                    bail_input!(
                        "{name} is refused: its entry `{path}` is compressed or encrypted (to {} bytes), and torch.save does neither",
                        member.size()
                    );
                }
                continue;
            }
            let start = member.data_start().context("finding an entry of an archive")?;
            let end = start.checked_add(member.size()).filter(|&end| end <= bytes.len() as u64);
            let (Some(end), true) = (end, member.size() == member.compressed_size()) else {
                bail_input!(
                    "{name} is refused: its entry `{path}` claims {} bytes, more than the file has room for",
                    member.size()
                );
            };
            total = total.saturating_add(member.size());
            found.push((path, start as usize..end as usize));
        }
        // Entries that lie over each other would make much of little.
        if total > bytes.len() as u64 {
            bail_input!("{name} is refused: its entries claim {total} bytes, more than the file has");
        }
        let root = found.iter().find_map(|(path, _)| path.strip_suffix("data.pkl"));
        let Some(root) =
            root.filter(|root| root.is_empty() || root.matches('/').count() == 1).map(str::to_owned)
        else {
            bail_input!(
                "{name} is a zip archive without `data.pkl`: neither torch.save nor torch.jit.save wrote it"
            );
        };
        let members = found
            .into_iter()
            .filter_map(|(path, range)| Some((path.strip_prefix(root.as_str())?.to_owned(), range)))
            .collect();
        Ok(Self { members })
    }

    fn is_script(&self) -> bool {
        self.members.keys().any(|path| path == "constants.pkl" || path.starts_with("code/"))
    }

    /// Reads one of the archive's pickles.
    fn pickle(&self, name: &str, bytes: &[u8], member: &str, scripts: bool) -> Result<Option<Pickle>> {
        let Some(range) = self.members.get(member) else { return Ok(None) };
        if range.len() > MOST_PICKLE_BYTES {
            bail_input!("{name}: its pickle has {} bytes, which no weight file needs", range.len());
        }
        pickle::read(name, &bytes[range.clone()], scripts).map(Some)
    }
}

/// Opens a zip archive of `torch.save` or `torch.jit.save`. `selected` is the path of keys to the weights, where the user gives one.
pub fn open_zip(file: FileMap, selected: Option<&str>) -> Result<Weights> {
    let name = file.path().display().to_string();
    let archive = Archive::open(&name, &file)?;
    if let Some(range) = archive.members.get("byteorder")
        && &file[range.clone()] != b"little"
    {
        bail_input!(
            "{name} was written on a big-endian machine, which cannot be read: save it again on another"
        );
    }
    let script = archive.is_script();
    let Some(data) = archive.pickle(&name, &file, "data.pkl", script)? else {
        bail_input!("{name} has no data.pkl");
    };
    let constants = match script {
        true => archive.pickle(&name, &file, "constants.pkl", true)?,
        false => None,
    };
    let format = if script { Format::TorchScript } else { Format::TorchZip };
    let mut reader = Reader::new(Weights::new(file, format));
    let members = archive.members;
    match script {
        true => {
            if selected.is_some() {
                bail_input!("{name} is a TorchScript archive: it has no containers to choose from");
            }
            reader.place = Place::Members { members, folder: "data/" };
            reader.weights.quantised = data.quantised();
            reader.collect_modules(&data)?;
            if let Some(constants) = constants {
                reader.enter("constants/");
                reader.collect_constants(&constants)?;
            }
        }
        false => {
            reader.place = Place::Members { members, folder: "data/" };
            reader.collect_weights(&data, selected)?;
        }
    }
    reader.finish()
}

/// The modules of a TorchScript archive in the order of their making: dotted name, empty for the module itself, and class.
///
/// # Errors
/// As for other archives; this one is of something else.
pub fn script_modules(path: &std::path::Path) -> Result<Vec<(String, String)>> {
    let file = FileMap::open(path)?;
    let name = path.display().to_string();
    let archive = Archive::open(&name, &file)?;
    let Some(data) = archive.pickle(&name, &file, "data.pkl", true)? else {
        bail_input!("{name} has no data.pkl");
    };
    let (mut modules, mut waiting, mut bytes) = (Vec::new(), vec![(String::new(), data.root, 0)], 0);
    while let Some((prefix, value, depth)) = waiting.pop() {
        let Some(Node::Object { class: Some(class), state }) = data.node(value) else { continue };
        let Some(Node::Class(class)) = data.node(Value::Node(*class)) else { continue };
        bytes += prefix.len() + class.len();
        if modules.len() > MOST_VISITS / 64 || depth > DEEPEST || bytes > 4 * file.len() + (16 << 20) {
            bail_input!("{name} is refused: its modules contain each other in too many ways");
        }
        modules.push((prefix.clone(), class.clone()));
        let inner = data.dict(*state).unwrap_or_default().iter().rev();
        waiting.extend(inner.filter_map(|(key, value)| {
            let key = data.text(*key)?;
            let inner = if prefix.is_empty() { key.to_owned() } else { format!("{prefix}.{key}") };
            matches!(data.node(*value), Some(Node::Object { .. })).then_some((inner, *value, depth + 1))
        }));
    }
    if modules.is_empty() {
        bail_input!("{name} is a TorchScript archive of something that is no module");
    }
    Ok(modules)
}

/// Opens a file of `torch.save` from before 1.6.
pub fn open_legacy(file: FileMap, selected: Option<&str>) -> Result<Weights> {
    let name = file.path().display().to_string();
    let mut at = 0;
    let mut next = |what: &str| -> Result<Pickle> {
        let rest = &file[at..];
        let read = pickle::read(&name, &rest[..rest.len().min(MOST_PICKLE_BYTES)], false)
            .with_context(|| format!("reading {what}"))?;
        at += read.end;
        Ok(read)
    };
    let _magic = next("the magic number")?;
    let protocol = next("the protocol")?;
    if protocol.root != Value::Int(1001) {
        bail_input!("{name} is of an unknown version of torch.save's old format");
    }
    let system = next("the system's description")?;
    if system.get(system.root, "little_endian") == Some(Value::Bool(false)) {
        bail_input!(
            "{name} was written on a big-endian machine, which cannot be read: save it again on another"
        );
    }
    let data = next("the object")?;
    let keys = next("the keys of the storages")?;

    // How large a storage is follows from the type that the object's pickle gives it.
    let mut claimed: HashMap<&str, (usize, u64)> = HashMap::new();
    for reference in data.references() {
        let reference = Reference::of(&data, reference).map_err(|error| in_file(&name, &error))?;
        let size = (reference.dtype.unwrap_or(Dtype::UInt8).size(), reference.count);
        if claimed.insert(reference.key, size).is_some_and(|before| before != size) {
            bail_input!("{name} is damaged: two sizes are given for the storage {}", reference.key);
        }
    }
    let mut ranges = HashMap::new();
    for &key in keys.sequence(keys.root).unwrap_or_default() {
        let key = keys.text(key).ok_or_else(|| bad_input!("{name} is damaged: a storage has no name"))?;
        let Some(&(size, count)) = claimed.get(key) else {
            bail_input!("{name} is damaged: nothing refers to the storage {key}");
        };
        let start = at.checked_add(8).filter(|&start| start <= file.len());
        let bytes = count.checked_mul(size as u64).and_then(|bytes| usize::try_from(bytes).ok());
        let end = start.zip(bytes).and_then(|(start, bytes)| start.checked_add(bytes));
        let (Some(start), Some(end)) = (start, end.filter(|&end| end <= file.len())) else {
            bail_input!("{name} is truncated: it ends in the middle of the storage {key}");
        };
        let mut stated = [0; 8];
        stated.copy_from_slice(&file[at..start]);
        if u64::from_le_bytes(stated) != count {
            bail_input!(
                "{name} is damaged: the storage {key} has {} elements, {count} were announced",
                u64::from_le_bytes(stated)
            );
        }
        ranges.insert(key.to_owned(), start..end);
        at = end;
    }
    let mut reader = Reader::new(Weights::new(file, Format::TorchLegacy));
    reader.place = Place::Ranges(ranges);
    reader.collect_weights(&data, selected)?;
    reader.finish()
}

fn in_file(name: &str, error: &anyhow::Error) -> anyhow::Error {
    bad_input!("{name} is damaged: {error}")
}

/// What a pickle says of a storage.
struct Reference<'a> {
    /// `None` for an untyped one, which is counted in bytes.
    dtype: Option<Dtype>,
    key: &'a str,
    count: u64,
    /// First element and number of elements of a part of it that stands for a storage of its own.
    view: Option<(u64, u64)>,
}

impl<'a> Reference<'a> {
    /// `("storage", class, key, location, count)`, before 1.6 with a view or `None` at the end.
    fn of(pickle: &'a Pickle, reference: Value) -> Result<Self> {
        let parts = pickle.sequence(reference).unwrap_or_default();
        let wrong = || anyhow::anyhow!("it refers to something that is no storage");
        if parts.len() < 5 || pickle.text(parts[0]) != Some("storage") {
            return Err(wrong());
        }
        let Value::Global(Global::Storage(dtype)) = parts[1] else { return Err(wrong()) };
        let key = pickle.text(parts[2]).ok_or_else(wrong)?;
        let count = pickle::size(parts[4]).context("the size of a storage")?;
        let view = match parts.get(5).and_then(|&view| pickle.sequence(view)) {
            Some([_, offset, size]) => Some((pickle::size(*offset)?, pickle::size(*size)?)),
            Some(_) => return Err(wrong()),
            None => None,
        };
        Ok(Self { dtype, key, count, view })
    }
}

/// Where storages lie.
enum Place {
    /// Nowhere yet.
    None,
    /// In a folder of a zip archive.
    Members { members: HashMap<String, Range<usize>>, folder: &'static str },
    /// Behind old pickles.
    Ranges(HashMap<String, Range<usize>>),
}

/// A walk through a pickle that finds its tensors.
struct Reader {
    weights: Weights,
    place: Place,
    storages: HashMap<(&'static str, String), (StorageId, usize)>,
    visits: usize,
    /// Bytes of names made so far: parts that are reached by many ways have many.
    names: usize,
}

impl Reader {
    fn new(weights: Weights) -> Self {
        Self { weights, place: Place::None, storages: HashMap::new(), visits: 0, names: 0 }
    }

    /// Looks for storages in another folder of the archive.
    fn enter(&mut self, other: &'static str) {
        if let Place::Members { folder, .. } = &mut self.place {
            *folder = other;
        }
    }

    fn finish(mut self) -> Result<Weights> {
        if self.weights.is_empty() {
            bail_input!("{} holds no tensor", self.weights.origin);
        }
        self.weights.remove_prefixes();
        Ok(self.weights)
    }

    fn visit(&mut self, name: &str) -> Result<()> {
        self.visits += 1;
        self.names += name.len();
        if self.visits > MOST_VISITS || self.names > 4 * self.weights.bytes().len() + (16 << 20) {
            bail_input!("{} is refused: its parts contain each other in too many ways", self.weights.origin);
        }
        Ok(())
    }

    /// The storage of a reference and its number of bytes.
    fn storage(&mut self, reference: &Reference) -> Result<(StorageId, usize)> {
        let (folder, range) = match &self.place {
            Place::None => ("", None),
            Place::Members { members, folder } => {
                (*folder, members.get(&format!("{folder}{}", reference.key)).cloned())
            }
            Place::Ranges(ranges) => ("", ranges.get(reference.key).cloned()),
        };
        let origin = &self.weights.origin;
        let Some(range) = range else {
            bail_input!("{origin} is damaged or truncated: it lacks the storage {}", reference.key);
        };
        let needed = reference.count.checked_mul(reference.dtype.map_or(1, Dtype::size) as u64);
        if needed.is_none_or(|needed| needed > range.len() as u64) {
            bail_input!(
                "{origin} is damaged: the storage {} has {} bytes, too few for {} elements",
                reference.key,
                range.len(),
                reference.count
            );
        }
        let key = (folder, reference.key.to_owned());
        if let Some(found) = self.storages.get(&key) {
            return Ok(*found);
        }
        let length = range.len();
        let made = (self.weights.add_storage(range), length);
        self.storages.insert(key, made);
        Ok(made)
    }

    /// Adds the tensor that `value` is, if it is one.
    fn add(&mut self, pickle: &Pickle, name: &str, value: Value) -> Result<bool> {
        let Some((function, arguments)) = tensor_call(pickle, value) else { return Ok(false) };
        let layout = self.layout(pickle, function, arguments);
        let layout = layout.map_err(|error| match error.is::<crate::error::BadInput>() {
            true => error,
            false => bad_input!("{} is damaged: `{name}`: {error:#}", self.weights.origin),
        })?;
        self.weights.add(name.to_owned(), layout)?;
        Ok(true)
    }

    fn layout(&mut self, pickle: &Pickle, function: Function, arguments: &[Value]) -> Result<Layout> {
        let [storage, offset, shape, strides, ..] = arguments else {
            anyhow::bail!("too few arguments for a tensor");
        };
        let Some(Node::Persistent(reference)) = pickle.node(*storage) else {
            anyhow::bail!("a tensor without a storage");
        };
        let reference = Reference::of(pickle, *reference)?;
        let (storage, bytes) = self.storage(&reference)?;
        let dtype = match (function, arguments.get(6), reference.dtype) {
            (Function::UntypedTensor, Some(Value::Global(Global::Dtype(dtype))), _) => *dtype,
            (Function::Tensor, _, Some(dtype)) => dtype,
            _ => anyhow::bail!("a tensor without a type"),
        };
        let numbers = |value: &Value| -> Result<Vec<u64>> {
            let numbers = pickle.sequence(*value).context("sizes or strides are missing")?;
            numbers.iter().map(|&number| pickle::size(number)).collect()
        };
        let (shape, strides) =
            (numbers(shape).context("its shape")?, numbers(strides).context("its strides")?);
        let mut offset = pickle::size(*offset).context("its offset")?;
        if let Some((first, count)) = reference.view {
            let end = first.checked_add(count).and_then(|end| end.checked_mul(dtype.size() as u64));
            if end.is_none_or(|end| end > bytes as u64) {
                anyhow::bail!("a view reaches beyond its storage");
            }
            offset = offset.checked_add(first).context("an impossible offset")?;
        }
        Ok(Layout { storage, dtype, shape, strides, offset })
    }

    /// Finds the container of the weights and adds what is in it.
    fn collect_weights(&mut self, pickle: &Pickle, selected: Option<&str>) -> Result<()> {
        let mut root = pickle.root;
        match selected {
            Some(path) => {
                for key in path.split('.') {
                    let Some(inner) = pickle.get(root, key) else {
                        let known: Vec<&str> = pickle
                            .dict(root)
                            .unwrap_or_default()
                            .iter()
                            .filter_map(|(key, _)| pickle.text(*key))
                            .take(24)
                            .collect();
                        bail_input!(
                            "{} has no `{key}` to take weights from; it has {}",
                            self.weights.origin,
                            known.join(", ")
                        );
                    };
                    self.weights.container.push(key.to_owned());
                    root = inner;
                }
            }
            None => {
                while let Some((key, inner)) = self.container(pickle, root)? {
                    self.weights.container.push(key);
                    root = inner;
                    if self.weights.container.len() > DEEPEST {
                        bail_input!("{} has containers in containers without end", self.weights.origin);
                    }
                }
            }
        }
        if self.add(pickle, "tensor", root)? {
            return Ok(());
        }
        // Only what stands beside optimizers is passed over: a layer may be called so.
        let skip = selected.is_none() && self.weights.container.is_empty();
        self.collect(pickle, root, "", 0, skip)
    }

    /// The best of the known containers in a dictionary, with a note of the others.
    fn container(&mut self, pickle: &Pickle, root: Value) -> Result<Option<(String, Value)>> {
        let Some(entries) = pickle.dict(root) else { return Ok(None) };
        // Weights at the top level mean that it is the container itself.
        if entries.iter().any(|(_, value)| tensor_call(pickle, *value).is_some()) {
            return Ok(None);
        }
        let mut found = Vec::new();
        for key in PLAIN.iter().chain(AVERAGED) {
            if let Some(inner) = pickle.get(root, key)
                && self.holds_tensors(pickle, inner, 0)?
            {
                found.push(((*key).to_owned(), inner));
            }
        }
        let mut found = found.into_iter();
        let best = found.next();
        self.weights.left_out.extend(found.map(|(key, _)| key));
        if best.is_some() {
            self.weights.other_values += entries
                .iter()
                .filter(|(_, value)| pickle.dict(*value).is_none() && tensor_call(pickle, *value).is_none())
                .count();
        }
        Ok(best)
    }

    fn holds_tensors(&mut self, pickle: &Pickle, value: Value, depth: usize) -> Result<bool> {
        self.visit("")?;
        if depth > DEEPEST {
            return Ok(false);
        }
        for (_, inner) in pickle.dict(value).unwrap_or_default() {
            if tensor_call(pickle, *inner).is_some() || self.holds_tensors(pickle, *inner, depth + 1)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Adds the tensors in a dictionary or list, names joined by dots.
    fn collect(
        &mut self,
        pickle: &Pickle,
        value: Value,
        prefix: &str,
        depth: usize,
        top: bool,
    ) -> Result<()> {
        if depth > DEEPEST {
            bail_input!("{} is refused: it is nested more than {DEEPEST} deep", self.weights.origin);
        }
        let join = |key: &str| if prefix.is_empty() { key.to_owned() } else { format!("{prefix}.{key}") };
        if let Some(entries) = pickle.dict(value) {
            for (key, inner) in entries {
                let key = match (pickle.text(*key), key) {
                    (Some(key), _) => key.to_owned(),
                    (None, Value::Int(number)) => number.to_string(),
                    _ => {
                        self.weights.other_values += 1;
                        continue;
                    }
                };
                if top && NO_WEIGHTS.contains(&key.as_str()) {
                    self.weights.left_out.push(key);
                    continue;
                }
                self.collect_one(pickle, *inner, &join(&key), depth)?;
            }
        } else if let Some(values) = pickle.sequence(value) {
            for (number, inner) in values.iter().enumerate() {
                self.collect_one(pickle, *inner, &join(&number.to_string()), depth)?;
            }
        }
        Ok(())
    }

    fn collect_one(&mut self, pickle: &Pickle, value: Value, name: &str, depth: usize) -> Result<()> {
        self.visit(name)?;
        if self.add(pickle, name, value)? {
            return Ok(());
        }
        match pickle.node(value) {
            Some(Node::Dict(_) | Node::List(_) | Node::Tuple(_)) => {
                self.collect(pickle, value, name, depth + 1, false)
            }
            _ => {
                self.weights.other_values += 1;
                Ok(())
            }
        }
    }

    /// Adds the tensors of a tree of TorchScript modules, named by the fields that lead to them.
    fn collect_modules(&mut self, pickle: &Pickle) -> Result<()> {
        if !matches!(pickle.node(pickle.root), Some(Node::Object { class: Some(_), .. })) {
            bail_input!("{} is a TorchScript archive of something that is no module", self.weights.origin);
        }
        self.collect_fields(pickle, pickle.root, "", 0)
    }

    fn collect_fields(&mut self, pickle: &Pickle, object: Value, prefix: &str, depth: usize) -> Result<()> {
        if depth > DEEPEST {
            bail_input!(
                "{} is refused: its modules are nested more than {DEEPEST} deep",
                self.weights.origin
            );
        }
        let Some(Node::Object { state, .. }) = pickle.node(object) else { return Ok(()) };
        for (key, value) in pickle.dict(*state).unwrap_or_default() {
            let Some(key) = pickle.text(*key) else { continue };
            let name = if prefix.is_empty() { key.to_owned() } else { format!("{prefix}.{key}") };
            self.visit(&name)?;
            if self.add(pickle, &name, *value)? {
                continue;
            }
            match pickle.node(*value) {
                Some(Node::Object { class: Some(_), .. }) => {
                    self.collect_fields(pickle, *value, &name, depth + 1)?;
                }
                _ => self.weights.other_values += 1,
            }
        }
        Ok(())
    }

    /// Adds the tensors that frozen and traced modules keep as constants, under the names that their code has for them.
    fn collect_constants(&mut self, pickle: &Pickle) -> Result<()> {
        for (number, &value) in pickle.sequence(pickle.root).unwrap_or_default().iter().enumerate() {
            let name = format!("CONSTANTS.c{number}");
            self.visit(&name)?;
            self.add(pickle, &name, value)?;
        }
        Ok(())
    }
}

/// The call that makes a tensor, without what wraps it: parameters are tensors too.
fn tensor_call(pickle: &Pickle, value: Value) -> Option<(Function, &[Value])> {
    let mut value = value;
    for _ in 0..8 {
        let Some(Node::Call(function, arguments)) = pickle.node(value) else { return None };
        match function {
            Function::Tensor | Function::UntypedTensor => return Some((*function, arguments)),
            Function::Parameter => value = *arguments.first()?,
            Function::FromType => match (arguments.first()?, pickle.sequence(*arguments.get(2)?)?) {
                (Value::Global(Global::Function(Function::Parameter)), [inner, ..]) => value = *inner,
                (
                    Value::Global(Global::Function(function @ (Function::Tensor | Function::UntypedTensor))),
                    inner,
                ) => {
                    return Some((*function, inner));
                }
                _ => return None,
            },
            Function::Quantised => return None,
        }
    }
    None
}
