//! WAV files: uncompressed samples as a tensor.

use anyhow::Result;
use tch::Tensor;

use crate::{bad_input, bail_input};

/// Reads samples as float32 `[channels, samples]` in −1..1, and their rate.
///
/// # Errors
/// The bytes are no WAV file, are cut off, or are compressed.
pub fn parse(name: &str, bytes: &[u8]) -> Result<(Tensor, u32)> {
    if !bytes.starts_with(b"RIFF") || bytes.get(8..12) != Some(b"WAVE") {
        bail_input!("{name} is no WAV file");
    }
    let damaged = || bad_input!("{name} is a damaged or truncated WAV file");
    let short = |place: usize| -> Result<u16> {
        let field = bytes.get(place..place + 2).ok_or_else(damaged)?;
        Ok(u16::from_le_bytes([field[0], field[1]]))
    };
    let word = |place: usize| -> Result<u32> {
        let field = bytes.get(place..place + 4).ok_or_else(damaged)?;
        Ok(u32::from_le_bytes([field[0], field[1], field[2], field[3]]))
    };
    let (mut place, mut form, mut data) = (12usize, None, None);
    while place + 8 <= bytes.len() {
        let (start, length) = (place + 8, word(place + 4)? as usize);
        match &bytes[place..place + 4] {
            b"fmt " => {
                // WAVE_FORMAT_EXTENSIBLE has the true format further on.
                let code = match short(start)? {
                    0xfffe => short(start + 24)?,
                    code => code,
                };
                form = Some((code, short(start + 2)?, word(start + 4)?, short(start + 14)?));
            }
            // A recorder that was killed leaves a length of nothing or too much.
            b"data" => data = Some(&bytes[start..start.saturating_add(length).min(bytes.len())]),
            _ => {}
        }
        place = start.saturating_add(length).saturating_add(length % 2);
    }
    let (Some((code, channels, rate, bits)), Some(data)) = (form, data) else { return Err(damaged()) };
    let channels = usize::from(channels);
    if channels == 0 || channels > 1024 {
        bail_input!("{name} has {channels} channels");
    }
    let values: Vec<f32> = match (code, bits) {
        (1, 8) => data.iter().map(|&byte| (f32::from(byte) - 128.0) / 128.0).collect(),
        (1, 16) => data
            .chunks_exact(2)
            .map(|part| f32::from(i16::from_le_bytes([part[0], part[1]])) / 32768.0)
            .collect(),
        (1, 24) => data
            .chunks_exact(3)
            .map(|part| i32::from_le_bytes([0, part[0], part[1], part[2]]) as f32 / 2147483648.0)
            .collect(),
        (1, 32) => data
            .chunks_exact(4)
            .map(|part| i32::from_le_bytes([part[0], part[1], part[2], part[3]]) as f32 / 2147483648.0)
            .collect(),
        (3, 32) => data
            .chunks_exact(4)
            .map(|part| f32::from_le_bytes([part[0], part[1], part[2], part[3]]))
            .collect(),
        _ => bail_input!("{name} has samples of format {code} with {bits} bits: save it as PCM or float32"),
    };
    let samples = values.len() / channels;
    let interleaved = Tensor::f_from_slice(&values[..samples * channels])?;
    Ok((interleaved.f_view([samples as i64, channels as i64])?.f_tr()?.f_contiguous()?, rate))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixteen_bits_in_two_channels() -> Result<()> {
        let mut bytes =
            b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0\x01\0\x02\0\x80\x3e\0\0\0\0\0\0\x04\0\x10\0data\x08\0\0\0"
                .to_vec();
        for sample in [0i16, 16384, -32768, 8192] {
            bytes.extend(sample.to_le_bytes());
        }
        let (tensor, rate) = parse("a.wav", &bytes)?;
        assert_eq!((tensor.size(), rate), (vec![2, 2], 16000));
        assert_eq!(Vec::<f32>::try_from(tensor.flatten(0, -1))?, [0.0, -1.0, 0.5, 0.25]);
        assert!(parse("a.wav", &bytes[..30]).is_err());
        assert!(parse("a.wav", b"text").is_err());
        Ok(())
    }
}
