//! Values looked up in tables, on the CPU.

use std::mem::MaybeUninit;
use std::slice;

use anyhow::{Result, ensure};
use tch::{Device, Kind, Tensor};

/// A value for each byte.
pub type ByteTable = [f32; 256];

/// The values that the tables, one for each channel, have for the bytes of `[batch, channels, height, width]`: float32 of the same shape, in memory with the channels
/// innermost if asked for.
///
/// One thread does it. Threads of a loader are at work on the next images meanwhile, and each of libtorch's threads would wait for a
/// core that one of them has.
///
/// # Errors
/// These are no bytes of that shape on the CPU.
pub fn look_up(bytes: &Tensor, tables: &[ByteTable], channels_last: bool) -> Result<Tensor> {
    let (batch, channels, height, width) = bytes.size4()?;
    ensure!(
        bytes.kind() == Kind::Uint8 && bytes.device() == Device::Cpu && channels as usize == tables.len(),
        "tables of {} channels are for as many of bytes on the CPU",
        tables.len()
    );
    let bytes = bytes.f_contiguous()?;
    let shape =
        if channels_last { [batch, height, width, channels] } else { [batch, channels, height, width] };
    let values = Tensor::f_empty(shape, (Kind::Float, Device::Cpu))?;
    let plane = (height * width) as usize;
    if values.numel() == 0 {
        return Ok(values.f_view([batch, channels, height, width])?);
    }
    // SAFETY: both are contiguous, on the CPU, of as many elements, and of the kinds read and written; `values` is nobody else's yet.
    let (bytes, out) = unsafe {
        let length = values.numel();
        (
            slice::from_raw_parts(bytes.data_ptr().cast::<u8>(), length),
            slice::from_raw_parts_mut(values.data_ptr().cast::<MaybeUninit<f32>>(), length),
        )
    };
    if channels_last {
        let image = plane * tables.len();
        for (bytes, out) in bytes.chunks_exact(image).zip(out.chunks_exact_mut(image)) {
            for (channel, (bytes, table)) in bytes.chunks_exact(plane).zip(tables).enumerate() {
                for (&byte, out) in bytes.iter().zip(out[channel..].iter_mut().step_by(tables.len())) {
                    out.write(table[usize::from(byte)]);
                }
            }
        }
        return Ok(values.f_permute([0, 3, 1, 2])?);
    }
    let planes = bytes.chunks_exact(plane).zip(out.chunks_exact_mut(plane));
    for ((bytes, out), table) in planes.zip(tables.iter().cycle()) {
        for (&byte, out) in bytes.iter().zip(out) {
            out.write(table[usize::from(byte)]);
        }
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_channel_has_its_own_table() -> Result<()> {
        let tables = [0.0, 1000.0].map(|start| std::array::from_fn(|byte| start + byte as f32));
        let bytes = Tensor::arange(24, (Kind::Uint8, Device::Cpu)).f_view([2, 2, 2, 3])?;
        let expected = bytes.to_kind(Kind::Float) + Tensor::from_slice(&[0f32, 1000.0]).view([1, 2, 1, 1]);
        for channels_last in [false, true] {
            let found = look_up(&bytes, &tables, channels_last)?;
            assert_eq!(found, expected);
            assert_eq!(super::super::layout::is_channels_last(&found)?, channels_last);
            // What lies in memory in another order, and nothing at all.
            let turned = bytes.transpose(2, 3);
            assert_eq!(look_up(&turned, &tables, channels_last)?, expected.transpose(2, 3));
            assert_eq!(look_up(&bytes.narrow(0, 0, 0), &tables, channels_last)?.size(), [0, 2, 2, 3]);
            assert!(look_up(&bytes, &tables[..1], channels_last).is_err());
            assert!(look_up(&expected, &tables, channels_last).is_err());
        }
        Ok(())
    }
}
