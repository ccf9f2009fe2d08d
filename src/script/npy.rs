//! NumPy's files: `.npy` (format versions 1 to 3) and archives of them, `.npz`.

use std::collections::BTreeMap;
use std::io::{Cursor, Read};
use std::path::Path;

use anyhow::Result;
use flate2::read::DeflateDecoder;
use tch::{Kind, Tensor};
use zip::{CompressionMethod, ZipArchive};

use crate::{bad_input, bail_input, files};

const MAGIC: &[u8] = b"\x93NUMPY";
/// Dimensions beyond this no tensor has.
const MOST_DIMENSIONS: usize = 64;

/// Type and shape of an array, and where its numbers begin.
struct Header<'a> {
    descriptor: &'a str,
    columns_first: bool,
    shape: Vec<i64>,
    start: usize,
}

/// The value of a key in the header, which is a dictionary in Python's notation.
fn value_of<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("'{key}':"))?;
    Some(rest.trim_start())
}

fn header<'a>(name: &str, bytes: &'a [u8]) -> Result<Header<'a>> {
    let damaged = || bad_input!("{name} is a damaged or truncated NPY file: its header cannot be read");
    let version = *bytes.get(MAGIC.len()).ok_or_else(damaged)?;
    let (length, start): (usize, usize) = match version {
        1 => {
            let field = bytes.get(8..10).ok_or_else(damaged)?;
            (usize::from(u16::from_le_bytes([field[0], field[1]])), 10)
        }
        2 | 3 => {
            let field = bytes.get(8..12).ok_or_else(damaged)?;
            (u32::from_le_bytes([field[0], field[1], field[2], field[3]]) as usize, 12)
        }
        other => bail_input!("{name} is an NPY file of version {other}: 1 to 3 are known"),
    };
    let end = start.checked_add(length).filter(|&end| end <= bytes.len()).ok_or_else(damaged)?;
    let text = std::str::from_utf8(&bytes[start..end]).map_err(|_| damaged())?;
    let descriptor = value_of(text, "descr").ok_or_else(damaged)?;
    if descriptor.starts_with('[') {
        bail_input!("{name} is an array of records, which is no tensor");
    }
    let descriptor = descriptor
        .strip_prefix('\'')
        .and_then(|rest| rest.split_once('\''))
        .map(|(inside, _)| inside)
        .ok_or_else(damaged)?;
    let order = value_of(text, "fortran_order").ok_or_else(damaged)?;
    let sizes = value_of(text, "shape")
        .and_then(|rest| rest.strip_prefix('('))
        .and_then(|rest| rest.split_once(')'))
        .map(|(inside, _)| inside)
        .ok_or_else(damaged)?;
    let shape = sizes
        .split(',')
        .map(str::trim)
        .filter(|size| !size.is_empty())
        .map(|size| size.parse::<i64>().ok().filter(|size| *size >= 0))
        .collect::<Option<Vec<i64>>>()
        .filter(|shape| shape.len() <= MOST_DIMENSIONS)
        .ok_or_else(damaged)?;
    Ok(Header { descriptor, columns_first: order.starts_with("True"), shape, start: end })
}

/// Reads an array. Unsigned numbers of 16 and 32 bits become wider signed ones.
///
/// # Errors
/// The bytes are no such array, of a type that tensors do not have, or fewer than its shape says.
pub fn parse(name: &str, bytes: &[u8]) -> Result<Tensor> {
    if !bytes.starts_with(MAGIC) {
        bail_input!("{name} is no NPY file");
    }
    let Header { descriptor, columns_first, shape, start } = header(name, bytes)?;
    let (order, code) = descriptor.split_at(descriptor.len().min(1));
    if order == ">" {
        bail_input!(
            "{name} holds big-endian numbers: save it with `array.astype(array.dtype.newbyteorder('<'))`"
        );
    }
    let (kind, size) = match code {
        "f2" => (Kind::Half, 2),
        "f4" => (Kind::Float, 4),
        "f8" => (Kind::Double, 8),
        "i1" => (Kind::Int8, 1),
        "i2" => (Kind::Int16, 2),
        "i4" => (Kind::Int, 4),
        "i8" => (Kind::Int64, 8),
        "u1" => (Kind::Uint8, 1),
        "u2" => (Kind::Int, 2),
        "u4" => (Kind::Int64, 4),
        "b1" => (Kind::Bool, 1),
        other => bail_input!("{name} holds values of the type `{other}`, which tensors do not have"),
    };
    let count = shape.iter().try_fold(1i64, |count, &size| count.checked_mul(size));
    // Sizes beside a 0 count too: libtorch multiplies them.
    let nonzero = shape.iter().try_fold(1i64, |count, &size| count.checked_mul(size.max(1)));
    let needed =
        count.and(nonzero).and(count).and_then(|count| usize::try_from(count).ok()?.checked_mul(size));
    let end = needed.and_then(|needed| start.checked_add(needed)).filter(|&end| end <= bytes.len());
    let Some(end) = end else {
        bail_input!("{name} is truncated: its shape {shape:?} needs more bytes than it has");
    };
    let content = &bytes[start..end];
    let mut stored = shape.clone();
    if columns_first {
        stored.reverse();
    }
    let tensor = match code {
        "u2" => {
            let wide = content.chunks_exact(2).map(|part| i32::from(u16::from_le_bytes([part[0], part[1]])));
            Tensor::f_from_slice(&wide.collect::<Vec<i32>>())?.f_view(stored.as_slice())?
        }
        "u4" => {
            let wide = content
                .chunks_exact(4)
                .map(|part| i64::from(u32::from_le_bytes([part[0], part[1], part[2], part[3]])));
            Tensor::f_from_slice(&wide.collect::<Vec<i64>>())?.f_view(stored.as_slice())?
        }
        "b1" => {
            let truths: Vec<u8> = content.iter().map(|&byte| u8::from(byte != 0)).collect();
            Tensor::f_from_data_size(&truths, &stored, kind)?
        }
        _ => Tensor::f_from_data_size(content, &stored, kind)?,
    };
    Ok(match columns_first {
        true => tensor.f_permute((0..shape.len() as i64).rev().collect::<Vec<_>>())?.f_contiguous()?,
        false => tensor,
    })
}

/// Reads a `.npy` file.
pub fn read_npy(path: &Path) -> Result<Tensor> {
    parse(&path.display().to_string(), &files::read(path)?)
}

/// Reads all arrays of a `.npz` file.
///
/// # Errors
/// It is damaged, or unpacks to far more than its size.
pub fn read_npz(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    parse_npz(&path.display().to_string(), &files::read(path)?)
}

/// The same of bytes.
pub fn parse_npz(name: &str, bytes: &[u8]) -> Result<BTreeMap<String, Tensor>> {
    let damaged = |error: zip::result::ZipError| bad_input!("{name} is no whole NPZ archive: {error}");
    let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(damaged)?;
    let mut left = (64u64 << 20).saturating_add(16 * bytes.len() as u64);
    let mut arrays = BTreeMap::new();
    for index in 0..archive.len() {
        let member = archive.by_index_raw(index).map_err(damaged)?;
        let path = member.name().map_err(damaged)?.into_owned();
        let Some(key) = path.strip_suffix(".npy") else { continue };
        let range = member.data_start().and_then(|start| {
            let end = start.checked_add(member.compressed_size())?;
            bytes.get(usize::try_from(start).ok()?..usize::try_from(end).ok()?)
        });
        let Some(packed) = range else {
            bail_input!("{name} is damaged: its entry `{path}` ends behind the file")
        };
        let mut content = Vec::new();
        let read = match member.compression() {
            CompressionMethod::Stored => packed.take(left + 1).read_to_end(&mut content),
            CompressionMethod::DEFLATE => {
                DeflateDecoder::new(packed).take(left + 1).read_to_end(&mut content)
            }
            other => bail_input!("{name}: its entry `{path}` is packed by {other:?}"),
        };
        let count = read.map_err(|error| bad_input!("{name} is damaged: `{path}`: {error}"))? as u64;
        if count > left {
            bail_input!("{name} is refused: it unpacks to far more than its size");
        }
        left -= count;
        arrays.insert(key.to_owned(), parse(&format!("{name}#{key}"), &content)?);
    }
    match arrays.is_empty() {
        true => bail_input!("{name} holds no array"),
        false => Ok(arrays),
    }
}

/// The bytes of a `.npy` file of a tensor; bfloat16, which NumPy lacks, is written as float32.
pub fn to_npy(tensor: &Tensor) -> Result<Vec<u8>> {
    let tensor = match tensor.kind() {
        Kind::BFloat16 => tensor.f_to_kind(Kind::Float)?,
        _ => tensor.shallow_clone(),
    };
    let (code, size) = match tensor.kind() {
        Kind::Half => ("<f2", 2),
        Kind::Float => ("<f4", 4),
        Kind::Double => ("<f8", 8),
        Kind::Int8 => ("|i1", 1),
        Kind::Int16 => ("<i2", 2),
        Kind::Int => ("<i4", 4),
        Kind::Int64 => ("<i8", 8),
        Kind::Uint8 => ("|u1", 1),
        Kind::Bool => ("|b1", 1),
        other => bail_input!("NPY files hold no values of the type {other:?}: write safetensors"),
    };
    let sizes: Vec<String> = tensor.size().iter().map(i64::to_string).collect();
    let shape = match sizes.as_slice() {
        [one] => format!("({one},)"),
        several => format!("({})", several.join(", ")),
    };
    let mut header = format!("{{'descr': '{code}', 'fortran_order': False, 'shape': {shape}, }}");
    // The numbers begin at a multiple of 64.
    let unpadded = MAGIC.len() + 4 + header.len() + 1;
    header.push_str(&" ".repeat(unpadded.next_multiple_of(64) - unpadded));
    header.push('\n');
    let mut bytes = MAGIC.to_vec();
    bytes.extend([1, 0]);
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    let start = bytes.len();
    let tensor = tensor.f_to_device(tch::Device::Cpu)?.f_contiguous()?; // files are written from the host
    bytes.resize(start + tensor.numel() * size, 0);
    tensor.f_copy_data_u8(&mut bytes[start..], tensor.numel())?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn what_is_written_is_read_again() -> Result<()> {
        for (kind, shape) in [
            (Kind::Float, vec![2, 3]),
            (Kind::Int64, vec![4]),
            (Kind::Bool, vec![]),
            (Kind::Double, vec![0, 2]),
            (Kind::Half, vec![1, 2, 2]),
        ] {
            let count = shape.iter().product::<i64>();
            let tensor = Tensor::arange(count, (Kind::Double, Device::Cpu)).view(&shape[..]).to_kind(kind);
            let bytes = to_npy(&tensor)?;
            assert!(
                bytes.len() >= 64
                    && (bytes.len() - count as usize * tensor.kind().elt_size_in_bytes()).is_multiple_of(64)
            );
            let read = parse("a.npy", &bytes)?;
            assert_eq!((read.kind(), read.size()), (kind, shape));
            assert!(read.equal(&tensor));
        }
        Ok(())
    }

    #[test]
    fn columns_first_and_damage() -> Result<()> {
        let mut bytes = to_npy(&Tensor::from_slice(&[1f32, 2.0, 3.0, 4.0, 5.0, 6.0]).view([2, 3]))?;
        let text = String::from_utf8_lossy(&bytes[..128]).replace("False", "True ");
        bytes[..128].copy_from_slice(&text.as_bytes()[text.len() - 128..]);
        bytes[..6].copy_from_slice(MAGIC);
        // [[1, 3, 5], [2, 4, 6]]
        assert_eq!(Vec::<f32>::try_from(parse("a", &bytes)?.flatten(0, -1))?, [1.0, 3.0, 5.0, 2.0, 4.0, 6.0]);
        assert!(parse("a.npy", &bytes[..bytes.len() - 1]).unwrap_err().to_string().contains("truncated"));
        assert!(parse("a.npy", b"\x93NUMPY\x01").is_err());
        assert!(parse("a.npy", b"text").unwrap_err().to_string().contains("no NPY file"));
        Ok(())
    }
}
