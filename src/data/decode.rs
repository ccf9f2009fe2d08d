//! Image files to bytes of the form that a model takes.

use std::io::Cursor;

use anyhow::Result;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageReader, RgbImage};

use super::augment::Rectangle;
use super::resize::{Interpolation, Resize, Scaler};
use crate::native::vectors::part_colors;
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
        if self.size() == form.size && resize.shorter_side.is_none() {
            return self.append_part(self.whole(), form.channels, pixels);
        }
        let mut whole = Vec::new();
        let scaler = resize.scaler(self.size(), form.size);
        if let (Self::Decoded(DynamicImage::ImageRgb8(image)), 3) = (self, form.channels) {
            // Colours are scaled together, before they are taken apart.
            scaler.append_colors(image.as_raw(), 3 * image.width() as usize, &mut whole, pixels);
            return Ok(());
        }
        self.append_part(self.whole(), form.channels, &mut whole)?;
        let [height, width] = self.size();
        for plane in whole.chunks_exact(height * width) {
            scaler.append_plane(plane, pixels);
        }
        Ok(())
    }

    /// Appends a part of the image, scaled to the form asked for whatever its proportions. `spare` is room that may be used on the way.
    pub fn append_stretched(
        &self,
        part: Rectangle,
        form: ImageForm,
        interpolation: Interpolation,
        spare: &mut Vec<u8>,
        pixels: &mut Vec<u8>,
    ) -> Result<()> {
        let size = [part.height, part.width];
        if size == form.size {
            return self.append_part(part, form.channels, pixels);
        }
        let scaler = Scaler::stretching(interpolation, size, form.size);
        if let (Self::Decoded(DynamicImage::ImageRgb8(image)), 3) = (self, form.channels) {
            let line = 3 * image.width() as usize;
            let rows = &image.as_raw()[part.top * line + 3 * part.left..];
            scaler.append_colors(rows, line, spare, pixels);
            return Ok(());
        }
        spare.clear();
        self.append_part(part, form.channels, spare)?;
        for plane in spare.chunks_exact(part.height * part.width) {
            scaler.append_plane(plane, pixels);
        }
        Ok(())
    }

    /// All of the image.
    pub fn whole(&self) -> Rectangle {
        let [height, width] = self.size();
        Rectangle { top: 0, left: 0, height, width }
    }

    /// Appends a part of the image with so many channels, each a plane.
    pub fn append_part(&self, part: Rectangle, channels: usize, pixels: &mut Vec<u8>) -> Result<()> {
        match self {
            Self::Planar { form, pixels: bytes } if form.channels == channels => {
                let [height, width] = form.size;
                for plane in bytes.chunks_exact(height * width) {
                    for row in plane.chunks_exact(width).skip(part.top).take(part.height) {
                        pixels.extend_from_slice(&row[part.left..part.left + part.width]);
                    }
                }
                Ok(())
            }
            Self::Planar { form, pixels: bytes } => {
                append_planar(&to_image(*form, bytes)?, part, channels, pixels)
            }
            Self::Decoded(image) => append_planar(image, part, channels, pixels),
        }
    }
}

/// Decodes a file's content: JPEG, PNG, BMP, WebP or GIF (its first frame), grey, palette or colour, turned as its EXIF data say. Transparency is
/// dropped, as Pillow's `convert("RGB")` drops it.
///
/// # Errors
/// It is no image, damaged, or too large to be one; `name` is for the message.
pub fn decode(name: &str, content: &[u8]) -> Result<DynamicImage> {
    Opened::new(name, content)?.decode(name)
}

/// The same for training, where a JPEG file may be decoded at a half, a quarter or an eighth of its size, which takes less time: `least` is told the full height
/// and width and says how large the image must be. Also returns the full size.
///
/// # Errors
/// As for [`decode`].
pub fn decode_scaled(
    name: &str,
    content: &[u8],
    least: &mut dyn FnMut([usize; 2]) -> [usize; 2],
) -> Result<(DynamicImage, [usize; 2])> {
    let opened = Opened::new(name, content)?;
    let size = opened.size();
    let needed = least(size);
    let scale =
        [8, 4, 2].into_iter().find(|&scale| (0..2).all(|axis| size[axis].div_ceil(scale) >= needed[axis]));
    let scaled = match scale {
        Some(scale) if opened.is_jpeg => {
            decode_smaller(content, opened.stored(size.map(|side| side.div_ceil(scale))))
        }
        _ => None,
    };
    let image = match scaled {
        Some(mut image) => {
            image.apply_orientation(opened.orientation);
            image
        }
        None => opened.decode(name)?,
    };
    Ok((image, size))
}

/// A JPEG file's image at the scale of this height and width. None for what this decoder does not take (damaged files, CMYK): the
/// usual one has the last word.
fn decode_smaller(content: &[u8], [height, width]: [usize; 2]) -> Option<DynamicImage> {
    let mut decoder = jpeg_decoder::Decoder::new(content);
    decoder.scale(u16::try_from(width).ok()?, u16::try_from(height).ok()?).ok()?;
    let pixels = decoder.decode().ok()?;
    let about = decoder.info()?;
    let (width, height) = (u32::from(about.width), u32::from(about.height));
    match about.pixel_format {
        jpeg_decoder::PixelFormat::L8 => {
            image::GrayImage::from_raw(width, height, pixels).map(DynamicImage::from)
        }
        jpeg_decoder::PixelFormat::RGB24 => RgbImage::from_raw(width, height, pixels).map(DynamicImage::from),
        _ => None,
    }
}

/// A file whose header has been read.
struct Opened<D> {
    decoder: D,
    orientation: Orientation,
    is_jpeg: bool,
}

impl<'a> Opened<Box<dyn ImageDecoder + 'a>> {
    fn new(name: &str, content: &'a [u8]) -> Result<Self> {
        if content.is_empty() {
            bail_input!("{name} is an empty file, not an image");
        }
        let reader = ImageReader::new(Cursor::new(content))
            .with_guessed_format()
            .map_err(|error| bad_input!("{name} is no readable image: {error}"))?;
        let is_jpeg = reader.format() == Some(image::ImageFormat::Jpeg);
        let mut decoder: Box<dyn ImageDecoder + 'a> =
            Box::new(reader.into_decoder().map_err(|error| unreadable(name, &error))?);
        let (width, height) = decoder.dimensions();
        if u64::from(width) * u64::from(height) > MOST_PIXELS {
            bail_input!(
                "{name} claims {width} × {height} pixels: more than {MOST_PIXELS} are taken for a decompression bomb"
            );
        }
        let orientation = decoder.orientation().map_err(|error| unreadable(name, &error))?;
        Ok(Self { decoder, orientation, is_jpeg })
    }

    /// Height and width as the image is shown.
    fn size(&self) -> [usize; 2] {
        let (width, height) = self.decoder.dimensions();
        self.stored([height as usize, width as usize])
    }

    /// What is height and width on the screen, or in the file: the other way around for images that lie on their side.
    fn stored(&self, [height, width]: [usize; 2]) -> [usize; 2] {
        use Orientation::{Rotate90, Rotate90FlipH, Rotate270, Rotate270FlipH};
        match self.orientation {
            Rotate90 | Rotate270 | Rotate90FlipH | Rotate270FlipH => [width, height],
            _ => [height, width],
        }
    }

    fn decode(self, name: &str) -> Result<DynamicImage> {
        let mut image = DynamicImage::from_decoder(self.decoder).map_err(|error| unreadable(name, &error))?;
        image.apply_orientation(self.orientation);
        Ok(image)
    }
}

fn unreadable(name: &str, error: &image::ImageError) -> anyhow::Error {
    bad_input!("{name} is no readable image: {error}")
}

/// Appends the channels of a part of an image, each a plane.
fn append_planar(image: &DynamicImage, part: Rectangle, channels: usize, pixels: &mut Vec<u8>) -> Result<()> {
    let Rectangle { top, left, height, width } = part;
    let cut = || image.crop_imm(left as u32, top as u32, width as u32, height as u32);
    match (channels, image) {
        (1, image)
            if [top, left] == [0, 0] && [width as u32, height as u32] == [image.width(), image.height()] =>
        {
            pixels.extend_from_slice(image.to_luma8().as_raw());
        }
        (1, _) => pixels.extend_from_slice(cut().to_luma8().as_raw()),
        (3, DynamicImage::ImageRgb8(image)) => {
            append_colors(image.as_raw(), image.width() as usize, part, pixels);
        }
        (3, _) => {
            let colors = cut().to_rgb8();
            append_colors(colors.as_raw(), width, Rectangle { top: 0, left: 0, ..part }, pixels);
        }
        (channels, _) => bail_input!("the model takes {channels} channels: images have 1 or 3"),
    }
    Ok(())
}

/// Takes a part of `[height, width, 3]` bytes apart into planes.
fn append_colors(interleaved: &[u8], width: usize, part: Rectangle, pixels: &mut Vec<u8>) {
    let plane = part.height * part.width;
    let start = pixels.len();
    pixels.resize(start + 3 * plane, 0);
    let (red, rest) = pixels[start..].split_at_mut(plane);
    let (green, blue) = rest.split_at_mut(plane);
    let rows = interleaved.chunks_exact(3 * width).skip(part.top);
    let planes = red
        .chunks_exact_mut(part.width)
        .zip(green.chunks_exact_mut(part.width))
        .zip(blue.chunks_exact_mut(part.width));
    for (row, ((red, green), blue)) in rows.zip(planes) {
        part_colors(&row[3 * part.left..3 * (part.left + part.width)], [red, green, blue]);
    }
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
