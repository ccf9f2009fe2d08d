//! safetensors files: a JSON header, then the raw values. Format: huggingface/safetensors.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result};
use safetensors::tensor::{Dtype, SafeTensors, View, serialize};
use tch::{Device, Kind, Tensor};

use super::NamedTensors;
use super::content::{Format, Layout, Weights};
use crate::native::file_map::FileMap;
use crate::{bad_input, bail_input, files};

/// A tensor's bytes as the format stores them.
struct Bytes {
    dtype: Dtype,
    shape: Vec<usize>,
    data: Vec<u8>,
}

impl View for &Bytes {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.data)
    }

    fn data_len(&self) -> usize {
        self.data.len()
    }
}

/// Writes tensors to a new file, flushed to the disk. Equal tensors make equal files: names are sorted and nothing else is in it but
/// `format: pt`, which transformers asks for.
pub fn write_safetensors(path: &Path, tensors: &NamedTensors) -> Result<()> {
    let copied = tensors
        .iter()
        .map(|(name, tensor)| Ok((name, bytes_of(tensor).with_context(|| format!("reading `{name}`"))?)))
        .collect::<Result<Vec<_>>>()?;
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let content = serialize(copied.iter().map(|(name, bytes)| (name.as_str(), bytes)), Some(metadata))
        .with_context(|| format!("encoding {}", path.display()))?;
    files::write_synced(path, &content).map_err(|error| files::cannot_write(path, &error))
}

fn bytes_of(tensor: &Tensor) -> Result<Bytes> {
    let dtype = match tensor.kind() {
        Kind::Double => Dtype::F64,
        Kind::Float => Dtype::F32,
        Kind::Half => Dtype::F16,
        Kind::BFloat16 => Dtype::BF16,
        Kind::Int64 => Dtype::I64,
        Kind::Int => Dtype::I32,
        Kind::Int16 => Dtype::I16,
        Kind::Int8 => Dtype::I8,
        Kind::Uint8 => Dtype::U8,
        Kind::Bool => Dtype::BOOL,
        other => bail_input!("safetensors cannot hold values of kind {other:?}"),
    };
    let plain = tensor.detach().f_to_device(Device::Cpu)?.f_contiguous()?;
    let mut data = vec![0; plain.numel() * plain.kind().elt_size_in_bytes()];
    plain.f_copy_data_u8(&mut data, plain.numel())?;
    Ok(Bytes { dtype, shape: tensor.size().iter().map(|&size| size as usize).collect(), data })
}

/// Reads all tensors of a file.
pub fn read_safetensors(path: &Path) -> Result<NamedTensors> {
    open_safetensors(FileMap::open(path)?)?.tensors()
}

/// Opens a file; its values are read when asked for.
pub fn open_safetensors(file: FileMap) -> Result<Weights> {
    let path = file.path().display().to_string();
    let (header, metadata) = SafeTensors::read_metadata(&file)
        .map_err(|error| bad_input!("{path} is no whole safetensors file: {error}"))?;
    let mut weights = Weights::new(file, Format::Safetensors);
    // The header's length stands before it, in eight bytes.
    let start = header + 8;
    for (name, info) in metadata.tensors() {
        let dtype = match info.dtype {
            Dtype::F64 => super::Dtype::Float64,
            Dtype::F32 => super::Dtype::Float32,
            Dtype::F16 => super::Dtype::Float16,
            Dtype::BF16 => super::Dtype::BFloat16,
            Dtype::F8_E4M3 => super::Dtype::Float8E4M3Fn,
            Dtype::F8_E4M3FNUZ => super::Dtype::Float8E4M3FnUz,
            Dtype::F8_E5M2 => super::Dtype::Float8E5M2,
            Dtype::F8_E5M2FNUZ => super::Dtype::Float8E5M2FnUz,
            Dtype::I64 => super::Dtype::Int64,
            Dtype::I32 => super::Dtype::Int32,
            Dtype::I16 => super::Dtype::Int16,
            Dtype::I8 => super::Dtype::Int8,
            Dtype::U64 => super::Dtype::UInt64,
            Dtype::U32 => super::Dtype::UInt32,
            Dtype::U16 => super::Dtype::UInt16,
            Dtype::U8 => super::Dtype::UInt8,
            Dtype::BOOL => super::Dtype::Bool,
            Dtype::C64 => super::Dtype::Complex64,
            other => bail_input!("{path}: `{name}` has the type {other:?}, which is not supported"),
        };
        let (first, end) = info.data_offsets;
        let storage = weights.add_storage(start + first..start + end);
        let shape: Vec<u64> = info.shape.iter().map(|&size| size as u64).collect();
        let strides = contiguous(&shape);
        weights.add(name.clone(), Layout { storage, dtype, shape, strides, offset: 0 })?;
    }
    weights.metadata =
        metadata.metadata().iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect();
    Ok(weights)
}

/// The strides of a tensor whose values lie in a row.
fn contiguous(shape: &[u64]) -> Vec<u64> {
    let mut strides = vec![1u64; shape.len()];
    for dimension in (1..shape.len()).rev() {
        // Too large a product is found again, and refused, where the tensor is added.
        strides[dimension - 1] = strides[dimension].saturating_mul(shape[dimension].max(1));
    }
    strides
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_and_equal_tensors_make_equal_files() -> Result<()> {
        let path = std::env::temp_dir().join(format!("tch-suite-{}.safetensors", std::process::id()));
        let images = Tensor::arange(48, (Kind::Float, Device::Cpu)).view([2, 2, 3, 4]);
        let tensors = NamedTensors::from([
            ("half".to_owned(), Tensor::from_slice(&[1.5f32, -2.0]).to_kind(Kind::Half)),
            ("layers.0.weight".to_owned(), crate::native::layout::channels_last(&images)?),
            ("steps".to_owned(), Tensor::from(7i64)),
        ]);
        write_safetensors(&path, &tensors)?;
        let first = files::read(&path)?;
        let read = read_safetensors(&path)?;
        for (name, tensor) in &tensors {
            assert_eq!(read[name].size(), tensor.size());
            assert!(read[name].equal(tensor), "{name}");
        }
        write_safetensors(&path, &read)?;
        assert_eq!(files::read(&path)?, first, "memory layout does not reach the file");
        std::fs::write(&path, &first[..first.len() - 1])?;
        let error = read_safetensors(&path).unwrap_err();
        assert!(error.to_string().contains("no whole safetensors file"), "{error}");
        Ok(std::fs::remove_file(&path)?)
    }
}
