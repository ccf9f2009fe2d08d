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

/// Colours from nothing to most, dark to bright, red, green, blue.
const HEAT: [[f32; 3]; 5] = [
    [13.0, 8.0, 135.0],
    [126.0, 3.0, 168.0],
    [204.0, 71.0, 120.0],
    [248.0, 149.0, 64.0],
    [240.0, 249.0, 33.0],
];

/// Lays heat over a picture of `[height, width, 3]` bytes: one number for each pixel, of which what is above 0 shows. The picture turns grey beneath, and the
/// more so the hotter; the hottest hundredth of the pixels has the brightest colour.
pub fn overlaid(picture: &[u8], heat: &[f32]) -> Vec<u8> {
    let mut positive: Vec<f32> = heat.iter().copied().filter(|value| *value > 0.0).collect();
    positive.sort_unstable_by(f32::total_cmp);
    let most = positive.get(positive.len().saturating_sub(1 + positive.len() / 100)).copied().unwrap_or(1.0);
    let shade = |(pixel, heat): (&[u8], &f32)| -> [u8; 3] {
        let share = (heat / most).clamp(0.0, 1.0);
        let place = share * (HEAT.len() - 1) as f32;
        let (step, rest) = ((place as usize).min(HEAT.len() - 2), place.fract());
        let rest = if place as usize > step { 1.0 } else { rest };
        let grey = 0.3 * f32::from(pixel[0]) + 0.59 * f32::from(pixel[1]) + 0.11 * f32::from(pixel[2]);
        let strength = 0.35 + 0.4 * share;
        std::array::from_fn(|channel| {
            let color = HEAT[step][channel] + rest * (HEAT[step + 1][channel] - HEAT[step][channel]);
            (grey + strength * (color - grey)).round() as u8
        })
    };
    picture.chunks_exact(3).zip(heat).flat_map(shade).collect()
}

/// Lays pictures of one size, `[height, width, 3]` bytes each, out in rows on white, as PNG. Small ones are enlarged by whole factors, with hard edges.
pub fn sheet(pictures: &[Vec<u8>], height: usize, width: usize, columns: usize) -> Result<Vec<u8>> {
    const GAP: usize = 4;
    const SMALLEST_SIDE: usize = 96;
    if columns == 0
        || pictures.is_empty()
        || pictures.iter().any(|picture| picture.len() != 3 * height * width)
    {
        bail!("{} pictures of {height} × {width} pixels make no sheet", pictures.len());
    }
    let factor = SMALLEST_SIDE.div_ceil(height.min(width)).max(1);
    let (tile_height, tile_width) = (height * factor + GAP, width * factor + GAP);
    let rows = pictures.len().div_ceil(columns);
    let (sheet_height, sheet_width) = (rows * tile_height + GAP, columns * tile_width + GAP);
    let mut pixels = vec![255u8; 3 * sheet_height * sheet_width];
    for (number, picture) in pictures.iter().enumerate() {
        let (top, left) = (GAP + number / columns * tile_height, GAP + number % columns * tile_width);
        for row in 0..height * factor {
            let from = &picture[3 * width * (row / factor)..3 * width * (row / factor + 1)];
            let start = 3 * ((top + row) * sheet_width + left);
            let to = &mut pixels[start..start + 3 * width * factor];
            for (color, block) in from.chunks_exact(3).zip(to.chunks_exact_mut(3 * factor)) {
                block.chunks_exact_mut(3).for_each(|pixel| pixel.copy_from_slice(color));
            }
        }
    }
    png(&pixels, sheet_height as u32, sheet_width as u32, ExtendedColorType::Rgb8)
}

/// Encodes pixels as PNG.
pub fn png(pixels: &[u8], height: u32, width: u32, color: ExtendedColorType) -> Result<Vec<u8>> {
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
    fn a_sheet_shows_every_picture_enlarged() -> Result<()> {
        let pictures: Vec<Vec<u8>> = (0..3u8).map(|number| vec![60 * number; 3 * 32 * 48]).collect();
        let sheet = image::load_from_memory(&sheet(&pictures, 32, 48, 2)?)?.to_rgb8();
        assert_eq!(sheet.dimensions(), (2 * 148 + 4, 2 * 100 + 4));
        for (place, value) in
            [((4, 4), 0), ((147, 99), 0), ((152, 4), 60), ((4, 104), 120), ((152, 104), 255)]
        {
            assert_eq!(sheet.get_pixel(place.0, place.1).0, [value; 3], "{place:?}");
        }
        assert!(super::sheet(&pictures, 32, 47, 2).is_err());
        Ok(())
    }

    #[test]
    fn heat_shows_where_it_is() {
        let picture = vec![100; 3 * 200];
        let mut heat = vec![-1.0; 200];
        heat[7] = 2.0;
        let shown = overlaid(&picture, &heat);
        assert!(shown[21] > 150 && shown[22] > 150 && shown[23] < 100, "{:?}", &shown[21..24]);
        assert!(shown[0] < 100 && shown[..21].chunks(3).all(|pixel| pixel == &shown[..3]));
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
