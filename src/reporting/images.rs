//! Small PNG pictures for reports and event files.

use anyhow::{Context, Result, bail};
use image::codecs::png::{CompressionType, FilterType as PngFilter, PngEncoder};
use image::imageops::{FilterType, replace, resize};
use image::{ExtendedColorType, ImageEncoder, Luma, Pixel, Rgb};

/// Encodes pixels `[height, width, channels]` (1 channel: grey, 3: red, green, blue; 0..=255) as PNG, made smaller so that no side
/// is over `max_side`. Small images stay as they are.
pub fn png_thumbnail(pixels: &[u8], height: u32, width: u32, channels: u8, max_side: u32) -> Result<Vec<u8>> {
    match channels {
        1 => thumbnail::<Luma<u8>>(pixels, height, width, max_side, ExtendedColorType::L8),
        3 => thumbnail::<Rgb<u8>>(pixels, height, width, max_side, ExtendedColorType::Rgb8),
        _ => bail!("a picture has 1 or 3 channels, not {channels}"),
    }
}

fn thumbnail<P: Pixel<Subpixel = u8> + 'static>(
    pixels: &[u8],
    height: u32,
    width: u32,
    max_side: u32,
    color: ExtendedColorType,
) -> Result<Vec<u8>> {
    let channels = P::CHANNEL_COUNT as usize;
    if height == 0
        || width == 0
        || max_side == 0
        || pixels.len() != height as usize * width as usize * channels
    {
        bail!("{} bytes are no picture of {height}x{width} with {channels} channels", pixels.len());
    }
    let longest = height.max(width);
    if longest <= max_side {
        return png(pixels, height, width, color);
    }
    let picture = image::ImageBuffer::<P, &[u8]>::from_raw(width, height, pixels)
        .context("the picture's size does not fit")?;
    let scaled = |side: u32| {
        ((u64::from(side) * u64::from(max_side) + u64::from(longest) / 2) / u64::from(longest)).max(1) as u32
    };
    let small = resize(&picture, scaled(width), scaled(height), FilterType::Triangle);
    png(small.as_raw(), small.height(), small.width(), color)
}

/// Puts a frame around a PNG picture: green where something is `right`, red where it is not.
pub fn framed(png_bytes: &[u8], right: bool) -> Result<Vec<u8>> {
    let picture = image::load_from_memory_with_format(png_bytes, image::ImageFormat::Png)
        .context("a picture to be framed is no PNG")?
        .to_rgb8();
    let (width, height) = picture.dimensions();
    let thickness = (width.max(height) / 16).max(1);
    let color = if right { Rgb([46, 158, 79]) } else { Rgb([214, 58, 58]) };
    let mut frame = image::RgbImage::from_pixel(width + 2 * thickness, height + 2 * thickness, color);
    replace(&mut frame, &picture, thickness.into(), thickness.into());
    png(frame.as_raw(), frame.height(), frame.width(), ExtendedColorType::Rgb8)
}

/// Encodes pixels as PNG.
pub(super) fn png(pixels: &[u8], height: u32, width: u32, color: ExtendedColorType) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // The fixed settings make equal pictures equal bytes.
    PngEncoder::new_with_quality(&mut bytes, CompressionType::Default, PngFilter::Adaptive)
        .write_image(pixels, width, height, color)
        .context("cannot encode a PNG")?;
    Ok(bytes)
}

/// (height, width) of a PNG by its header; `None` for bytes that are no PNG.
pub(super) fn png_size(bytes: &[u8]) -> Option<(u32, u32)> {
    // Signature, then the header chunk: length, `IHDR`, width, height (PNG specification, 5.2 and 11.2.2).
    let header = bytes.strip_prefix(b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR")?;
    let side = |range: std::ops::Range<usize>| Some(u32::from_be_bytes(header.get(range)?.try_into().ok()?));
    Some((side(4..8)?, side(0..4)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_picture_keeps_its_pixels() -> Result<()> {
        let pixels: Vec<u8> = (0..5 * 3 * 3).map(|value| value as u8 * 5).collect();
        let bytes = png_thumbnail(&pixels, 5, 3, 3, 64)?;
        assert_eq!(png_size(&bytes), Some((5, 3)));
        assert_eq!(image::load_from_memory(&bytes)?.to_rgb8().into_raw(), pixels);
        Ok(())
    }

    #[test]
    fn a_large_picture_keeps_its_shape_and_its_mean() -> Result<()> {
        // A ramp from left to right.
        let pixels: Vec<u8> = (0..100 * 256).map(|index| (index % 256) as u8).collect();
        let bytes = png_thumbnail(&pixels, 100, 256, 1, 64)?;
        assert_eq!(png_size(&bytes), Some((25, 64)));
        let small = image::load_from_memory(&bytes)?.to_luma8();
        let mean =
            small.as_raw().iter().map(|value| f64::from(*value)).sum::<f64>() / small.as_raw().len() as f64;
        assert!((mean - 127.5).abs() < 1.0, "{mean}");
        assert!(small.get_pixel(0, 10).0[0] < 8 && small.get_pixel(63, 10).0[0] > 247);
        Ok(())
    }

    #[test]
    fn a_frame_goes_around_a_picture() -> Result<()> {
        let plain = png(&[9; 32 * 16], 16, 32, ExtendedColorType::L8)?;
        for (right, color) in [(true, [46, 158, 79]), (false, [214, 58, 58])] {
            let picture = image::load_from_memory(&framed(&plain, right)?)?.to_rgb8();
            assert_eq!(picture.dimensions(), (36, 20));
            for (x, y, pixel) in picture.enumerate_pixels() {
                let inside = (2..34).contains(&x) && (2..18).contains(&y);
                assert_eq!(pixel.0, if inside { [9, 9, 9] } else { color });
            }
        }
        Ok(())
    }

    #[test]
    fn a_strip_keeps_at_least_one_row() -> Result<()> {
        assert_eq!(png_size(&png_thumbnail(&[7; 1000], 1, 1000, 1, 10)?), Some((1, 10)));
        Ok(())
    }

    #[test]
    fn bytes_that_do_not_fit_are_refused() {
        assert!(png_thumbnail(&[0; 11], 2, 2, 3, 8).is_err());
        assert!(png_thumbnail(&[0; 8], 2, 2, 2, 8).is_err());
        assert!(png_thumbnail(&[], 0, 0, 1, 8).is_err());
        assert_eq!(png_size(b"GIF89a"), None);
    }
}
