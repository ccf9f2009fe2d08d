//! What an opened weight file holds: names, forms and places of tensors, whose numbers are read when asked for.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use anyhow::{Context, Result};
use tch::{Kind, Tensor};

use super::NamedTensors;
use super::dtype::Dtype;
use super::pickle;
use crate::native::file_map::FileMap;
use crate::{bad_input, bail_input};

/// More dimensions than libtorch has.
const MOST_DIMENSIONS: usize = 64;

/// Type and shape of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorForm {
    /// Type of its values.
    pub dtype: Dtype,
    /// Its sizes.
    pub shape: Vec<i64>,
}

impl std::fmt::Display for TensorForm {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{:?} of {}", self.shape, self.dtype)
    }
}

/// Tensors by name, read one at a time.
pub trait TensorSource {
    /// All names, sorted.
    fn names(&self) -> Vec<&str>;

    /// Type and shape of a tensor, or nothing where there is none of that name.
    fn form(&self, name: &str) -> Option<TensorForm>;

    /// A tensor's values, on the CPU.
    fn tensor(&self, name: &str) -> Result<Tensor>;
}

impl TensorSource for NamedTensors {
    fn names(&self) -> Vec<&str> {
        self.keys().map(String::as_str).collect()
    }

    fn form(&self, name: &str) -> Option<TensorForm> {
        let tensor = self.get(name)?;
        Some(TensorForm { dtype: Dtype::of_kind(tensor.kind())?, shape: tensor.size() })
    }

    fn tensor(&self, name: &str) -> Result<Tensor> {
        self.get(name).map(Tensor::shallow_clone).with_context(|| format!("there is no tensor `{name}`"))
    }
}

/// Kinds of weight files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// huggingface/safetensors.
    Safetensors,
    /// `torch.save` since PyTorch 1.6: a zip archive.
    TorchZip,
    /// `torch.save` before: pickles with raw numbers behind them.
    TorchLegacy,
    /// `torch.jit.save`.
    TorchScript,
}

impl Format {
    /// For people.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Safetensors => "safetensors",
            Self::TorchZip => "PyTorch pickle in a zip archive (torch.save since 1.6)",
            Self::TorchLegacy => "PyTorch pickle (torch.save before 1.6)",
            Self::TorchScript => "TorchScript archive",
        }
    }

    /// For programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Safetensors => "safetensors",
            Self::TorchZip => "pytorch-zip",
            Self::TorchLegacy => "pytorch-legacy",
            Self::TorchScript => "torchscript",
        }
    }
}

/// Numbers in a row in a file.
#[derive(Clone, Debug)]
struct Storage {
    file: usize,
    range: Range<usize>,
    /// How many tensors look at it.
    users: usize,
}

/// How a tensor looks at its storage.
#[derive(Clone, Debug)]
struct Entry {
    form: TensorForm,
    /// Elements from one index of a dimension to the next.
    strides: Vec<i64>,
    storage: usize,
    /// First element.
    offset: i64,
}

/// An opened weight file, or several that belong together.
#[derive(Debug)]
pub struct Weights {
    /// What was opened, for messages.
    pub origin: String,
    /// The kind of its files.
    pub format: Format,
    /// Where the weights were found in a pickle: the keys from the outermost container inwards.
    pub container: Vec<String>,
    /// Other keys that were there to choose from.
    pub left_out: Vec<String>,
    /// What every name began with, removed.
    pub prefix: String,
    /// Values beside the tensors that are none: epochs, scores, options.
    pub other_values: usize,
    /// Quantised tensors of a module, which are left out.
    pub quantised: usize,
    /// What the file says of itself.
    pub metadata: BTreeMap<String, String>,
    files: Vec<FileMap>,
    storages: Vec<Storage>,
    entries: BTreeMap<String, Entry>,
    /// Storages that several tensors look at, so that they are read once.
    shared: RefCell<HashMap<(usize, Dtype), Tensor>>,
}

/// The place of a storage in [`Weights`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StorageId(usize);

/// How a tensor looks at its storage, as a file says.
pub(super) struct Layout {
    pub(super) storage: StorageId,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<u64>,
    pub(super) strides: Vec<u64>,
    pub(super) offset: u64,
}

impl Weights {
    /// A file of which nothing is known yet.
    pub(super) fn new(file: FileMap, format: Format) -> Self {
        let origin = file.path().display().to_string();
        Self { files: vec![file], ..Self::of_shards(origin, format) }
    }

    /// Several files, of which there are none yet.
    pub(super) fn of_shards(origin: String, format: Format) -> Self {
        Self {
            origin,
            format,
            container: Vec::new(),
            left_out: Vec::new(),
            prefix: String::new(),
            other_values: 0,
            quantised: 0,
            metadata: BTreeMap::new(),
            files: Vec::new(),
            storages: Vec::new(),
            entries: BTreeMap::new(),
            shared: RefCell::default(),
        }
    }

    /// The bytes of the first file.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.files[0]
    }

    /// Makes a range of the first file a storage.
    pub(super) fn add_storage(&mut self, range: Range<usize>) -> StorageId {
        self.storages.push(Storage { file: 0, range, users: 0 });
        StorageId(self.storages.len() - 1)
    }

    /// Checks a tensor against its storage and adds it. A name that comes again replaces the earlier one, as in a dictionary of Python.
    pub(super) fn add(&mut self, name: String, layout: Layout) -> Result<()> {
        let Layout { storage: StorageId(storage), dtype, shape, strides, offset } = layout;
        let bytes = self.storages[storage].range.len() as u64;
        let refuse = |what: &str| bad_input!("{}: `{name}` {what}", self.origin);
        if shape.len() > MOST_DIMENSIONS || shape.len() != strides.len() {
            return Err(refuse("has an impossible number of dimensions"));
        }
        let count = shape.iter().try_fold(1u64, |count, &size| count.checked_mul(size));
        // Sizes beside a 0 count too: libtorch multiplies them.
        let nonzero = shape.iter().try_fold(1u64, |count, &size| count.checked_mul(size.max(1)));
        let values = count.zip(nonzero).filter(|(_, nonzero)| i64::try_from(*nonzero).is_ok());
        let Some((values, _)) = values else {
            return Err(refuse(&format!("has the impossible shape {shape:?}")));
        };
        // The element behind the last one that it looks at.
        let reach = shape.iter().zip(&strides).try_fold(offset, |reach, (&size, &stride)| {
            reach.checked_add(size.saturating_sub(1).checked_mul(stride)?)
        });
        let end = match values {
            0 => Some(0),
            _ => reach.and_then(|last| last.checked_add(1)?.checked_mul(dtype.size() as u64)),
        };
        if end.is_none_or(|end| end > bytes) {
            return Err(refuse(&format!(
                "reaches beyond its storage of {bytes} bytes: shape {shape:?}, strides {strides:?}, offset {offset}, {dtype}"
            )));
        }
        // Strides of 0 repeat values for nothing: what they would fill is bounded.
        let most = 4 * self.files.iter().map(|file| file.len() as u64).sum::<u64>() + (64 << 20);
        if values.checked_mul(dtype.size() as u64).is_none_or(|filled| filled > most) {
            return Err(refuse(&format!(
                "repeats its values to the shape {shape:?}, far beyond the size of the file"
            )));
        }
        let signed = |numbers: &[u64]| -> Result<Vec<i64>> {
            numbers.iter().map(|&number| Ok(i64::try_from(number)?)).collect()
        };
        let (shape, strides, offset) = match values {
            // Where nothing is looked at, strides may be anything.
            0 => (signed(&shape)?, vec![1; shape.len()], 0),
            _ => (
                signed(&shape)?,
                // Nor does a stride count that leads nowhere, and it may be beyond any number.
                strides
                    .iter()
                    .zip(&shape)
                    .map(|(&stride, &size)| if size == 1 { 1 } else { stride as i64 })
                    .collect(),
                i64::try_from(offset)?,
            ),
        };
        self.storages[storage].users += 1;
        self.entries.insert(name, Entry { form: TensorForm { dtype, shape }, strides, storage, offset });
        Ok(())
    }

    /// Adds the tensors of another file whose names are asked for.
    pub(super) fn append(&mut self, other: Weights, names: &[&str]) -> Result<()> {
        let (first_file, first_storage) = (self.files.len(), self.storages.len());
        for name in names {
            let Some(entry) = other.entries.get(*name) else {
                bail_input!(
                    "{}: the index says that {} holds `{name}`, but it does not",
                    self.origin,
                    other.origin
                );
            };
            let entry = Entry { storage: entry.storage + first_storage, ..entry.clone() };
            self.entries.insert((*name).to_owned(), entry);
        }
        self.files.extend(other.files);
        let moved = |storage: Storage| Storage { file: storage.file + first_file, ..storage };
        self.storages.extend(other.storages.into_iter().map(moved));
        self.other_values += other.other_values;
        Ok(())
    }

    /// Removes what data-parallel and compiled modules put before every name.
    pub(super) fn remove_prefixes(&mut self) {
        while let Some(prefix) = ["module.", "_orig_mod."].into_iter().find(|prefix| {
            !self.entries.is_empty() && self.entries.keys().all(|name| name.starts_with(prefix))
        }) {
            let entries = std::mem::take(&mut self.entries);
            self.entries =
                entries.into_iter().map(|(name, entry)| (name[prefix.len()..].to_owned(), entry)).collect();
            self.prefix.push_str(prefix);
        }
    }

    /// How many tensors there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many files were opened.
    pub fn file_count(&self) -> usize {
        self.files.len()
    }

    /// All tensors. Those that share numbers in the file share them here.
    pub fn tensors(&self) -> Result<NamedTensors> {
        if self.quantised > 0 {
            return Err(pickle::quantised(&self.origin));
        }
        self.entries.keys().map(|name| Ok((name.clone(), self.tensor(name)?))).collect()
    }

    /// What to tell a user who asks where the weights came from: container, removed prefix.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if !self.container.is_empty() {
            let others = match self.left_out.is_empty() {
                true => String::new(),
                false => format!("; there are also {}", quoted(&self.left_out)),
            };
            notes.push(format!("the weights are those under `{}`{others}", self.container.join(".")));
        }
        if self.quantised > 0 {
            notes.push(format!("{} quantised tensors are left out", self.quantised));
        }
        if !self.prefix.is_empty() {
            notes.push(format!("`{}` is removed from the names", self.prefix));
        }
        notes
    }

    /// The values of a storage from one element to before another.
    fn read(&self, storage: usize, dtype: Dtype, elements: Range<usize>) -> Result<Tensor> {
        let Storage { file, range, .. } = &self.storages[storage];
        let bytes = &self.files[*file][range.clone()];
        let bytes = &bytes[elements.start * dtype.size()..elements.end * dtype.size()];
        let shape = [elements.len() as i64];
        let make = |bytes: &[u8], kind: Kind| Ok(Tensor::f_from_data_size(bytes, &shape, kind)?);
        match dtype {
            // A byte that is neither 0 nor 1 is no `bool` of C++.
            Dtype::Bool => {
                make(&bytes.iter().map(|&byte| u8::from(byte != 0)).collect::<Vec<u8>>(), Kind::Bool)
            }
            Dtype::UInt16 => {
                let wide =
                    bytes.chunks_exact(2).map(|value| i32::from(u16::from_le_bytes([value[0], value[1]])));
                Ok(Tensor::f_from_slice(&wide.collect::<Vec<i32>>())?)
            }
            Dtype::UInt32 => {
                let wide = bytes
                    .chunks_exact(4)
                    .map(|value| i64::from(u32::from_le_bytes([value[0], value[1], value[2], value[3]])));
                Ok(Tensor::f_from_slice(&wide.collect::<Vec<i64>>())?)
            }
            Dtype::UInt64 => {
                // The highest bit is that of the last byte.
                if bytes.chunks_exact(8).any(|value| value[7] >= 0x80) {
                    bail_input!("{} holds uint64 values of 2^63 and more, which cannot be read", self.origin);
                }
                make(bytes, Kind::Int64)
            }
            _ => make(bytes, dtype.kind()),
        }
    }
}

impl TensorSource for Weights {
    fn names(&self) -> Vec<&str> {
        self.entries.keys().map(String::as_str).collect()
    }

    fn form(&self, name: &str) -> Option<TensorForm> {
        self.entries.get(name).map(|entry| entry.form.clone())
    }

    fn tensor(&self, name: &str) -> Result<Tensor> {
        let Some(entry) = self.entries.get(name) else {
            bail_input!("{} holds no tensor `{name}`", self.origin);
        };
        let Entry { form: TensorForm { dtype, shape }, strides, storage, offset } = entry;
        let read = || -> Result<Tensor> {
            let count: i64 = shape.iter().product();
            if count == 0 {
                return Ok(Tensor::f_zeros(shape.as_slice(), (dtype.kind(), tch::Device::Cpu))?);
            }
            let whole = &self.storages[*storage];
            if whole.users > 1 {
                let mut shared = self.shared.borrow_mut();
                let tensor = match shared.entry((*storage, *dtype)) {
                    std::collections::hash_map::Entry::Occupied(found) => found.into_mut(),
                    std::collections::hash_map::Entry::Vacant(place) => {
                        place.insert(self.read(*storage, *dtype, 0..whole.range.len() / dtype.size())?)
                    }
                };
                return Ok(tensor.f_as_strided(shape.as_slice(), strides.as_slice(), *offset)?);
            }
            let last: i64 = shape.iter().zip(strides).map(|(size, stride)| (size - 1) * stride).sum();
            let (first, end) = (*offset as usize, (*offset + last + 1) as usize);
            Ok(self.read(*storage, *dtype, first..end)?.f_as_strided(
                shape.as_slice(),
                strides.as_slice(),
                0,
            )?)
        };
        read().with_context(|| format!("reading `{name}` of {}", self.origin))
    }
}

/// Names in backquotes, the first few of many.
pub(super) fn quoted<T: AsRef<str>>(names: &[T]) -> String {
    const MOST: usize = 3;
    let first: Vec<String> = names.iter().take(MOST).map(|name| format!("`{}`", name.as_ref())).collect();
    let more = if names.len() > MOST { ", …" } else { "" };
    first.join(", ") + more
}
