//! Image files to bytes of the form that a model takes.

use std::io::Cursor;

use anyhow::Result;
use image::{DynamicImage, ImageDecoder, ImageReader, RgbImage};

use super::resize::Resize;
use crate::{bad_input, bail_input};

/// Images with more pixels are refused before they are decoded: Pillow's limit for decompression bombs.
const MOST_PIXELS: u64 = 178_956_970;

/// Channels and size of a model's input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageForm {
    /// 1 (grey) or 3 (red, green, blue).
    pub channels: usize,
    /// Height and width in pixels.
    pub size: [usize; 2],
}

impl ImageForm {
    /// Bytes of one image.
    pub fn bytes(&self) -> usize {
        self.channels * self.size[0] * self.size[1]
    }
}

/// An image as its source has it.
pub enum RawImage<'a> {
    /// `[channel, height, width]` bytes in memory.
    Planar {
        /// Channels and size.
        form: ImageForm,
        /// The bytes.
        pixels: &'a [u8],
    },
    /// A decoded file.
    Decoded(DynamicImage),
}

impl RawImage<'_> {
    /// Height and width in pixels.
    pub fn size(&self) -> [usize; 2] {
        match self {
            Self::Planar { form, .. } => form.size,
            Self::Decoded(image) => [image.height() as usize, image.width() as usize],
        }
    }

    /// Appends the image in the form asked for, `[channel, height, width]`: as it is where it has that size and `resize` asks for no scaling
    /// beforehand, else scaled and its middle cut out.
    pub fn append_fitted(&self, form: ImageForm, resize: Resize, pixels: &mut Vec<u8>) -> Result<()> {
        let same = self.size() == form.size && resize.shorter_side.is_none();
        let planes = |pixels: &mut Vec<u8>| match self {
            Self::Planar { form: own, pixels: bytes } if own.channels == form.channels => {
                pixels.extend_from_slice(bytes);
                Ok(())
            }
            Self::Planar { form: own, pixels: bytes } => {
                append_planar(&to_image(*own, bytes)?, form.channels, pixels)
            }
            Self::Decoded(image) => append_planar(image, form.channels, pixels),
        };
        if same {
            return planes(pixels);
        }
        let mut whole = Vec::new();
        planes(&mut whole)?;
        let [height, width] = self.size();
        for plane in whole.chunks_exact(height * width) {
            resize.append_plane(plane, self.size(), form.size, pixels);
        }
        Ok(())
    }
}

/// Decodes a file's content: JPEG, PNG, BMP, WebP or GIF (its first frame), grey, palette or colour, turned as its EXIF data say. Transparency is
/// dropped, as Pillow's `convert("RGB")` drops it.
///
/// # Errors
/// It is no image, damaged, or too large to be one; `name` is for the message.
pub fn decode(name: &str, content: &[u8]) -> Result<DynamicImage> {
    if content.is_empty() {
        bail_input!("{name} is an empty file, not an image");
    }
    let unreadable = |error: image::ImageError| bad_input!("{name} is no readable image: {error}");
    let reader = ImageReader::new(Cursor::new(content))
        .with_guessed_format()
        .map_err(|error| bad_input!("{name} is no readable image: {error}"))?;
    let mut decoder = reader.into_decoder().map_err(unreadable)?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > MOST_PIXELS {
        bail_input!(
            "{name} claims {width} × {height} pixels: more than {MOST_PIXELS} are taken for a decompression bomb"
        );
    }
    let orientation = decoder.orientation().map_err(unreadable)?;
    let mut image = DynamicImage::from_decoder(decoder).map_err(unreadable)?;
    image.apply_orientation(orientation);
    Ok(image)
}

/// Appends an image's channels, each a plane.
fn append_planar(image: &DynamicImage, channels: usize, pixels: &mut Vec<u8>) -> Result<()> {
    match channels {
        1 => pixels.extend_from_slice(image.to_luma8().as_raw()),
        3 => {
            let interleaved = image.to_rgb8();
            for channel in 0..3 {
                pixels.extend(interleaved.as_raw().iter().skip(channel).step_by(3));
            }
        }
        channels => bail_input!("the model takes {channels} channels: images have 1 or 3"),
    }
    Ok(())
}

/// Bytes in memory as an image, to change its channels.
fn to_image(form: ImageForm, pixels: &[u8]) -> Result<DynamicImage> {
    let [height, width] = form.size;
    let plane = height * width;
    let image = match form.channels {
        1 => image::GrayImage::from_raw(width as u32, height as u32, pixels.to_vec()).map(DynamicImage::from),
        3 => {
            let interleaved =
                (0..plane).flat_map(|pixel| (0..3).map(move |channel| pixels[channel * plane + pixel]));
            RgbImage::from_raw(width as u32, height as u32, interleaved.collect()).map(DynamicImage::from)
        }
        _ => None,
    };
    image.ok_or_else(|| bad_input!("images of {} channels cannot be converted", form.channels))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_planar_image_keeps_its_bytes_and_can_be_scaled() -> Result<()> {
        let form = ImageForm { channels: 3, size: [2, 2] };
        let bytes: Vec<u8> = vec![10, 10, 10, 10, 20, 20, 20, 20, 30, 30, 30, 30];
        let raw = RawImage::Planar { form, pixels: &bytes };
        let mut same = Vec::new();
        raw.append_fitted(form, Resize::default(), &mut same)?;
        assert_eq!(same, bytes);
        let mut larger = Vec::new();
        raw.append_fitted(ImageForm { channels: 3, size: [4, 4] }, Resize::default(), &mut larger)?;
        assert_eq!(larger, [[10; 16], [20; 16], [30; 16]].concat());
        Ok(())
    }

    #[test]
    fn what_is_no_image_is_refused_by_name() {
        for content in [&b""[..], b"hello", &[0xff, 0xd8, 0xff, 0xe0, 0, 1]] {
            let error = decode("a.jpg", content).unwrap_err().to_string();
            assert!(error.starts_with("a.jpg is"), "{error}");
        }
        // A PNG header that claims 60,000 × 60,000 pixels.
        let mut bomb = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec();
        bomb.extend([0, 0, 0xea, 0x60, 0, 0, 0xea, 0x60, 8, 2, 0, 0, 0]);
        let checksum = crc32(&bomb[12..]);
        bomb.extend(checksum.to_be_bytes());
        bomb.extend(b"\0\0\0\0IDAT\x35\xaf\x06\x1e");
        let error = decode("b.png", &bomb).unwrap_err().to_string();
        assert!(error.contains("bomb"), "{error}");
    }

    fn crc32(bytes: &[u8]) -> u32 {
        let mut crc = flate2::Crc::new();
        crc.update(bytes);
        crc.sum()
    }
}
