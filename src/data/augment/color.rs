//! Operations on colours, as torchvision does them on Pillow images: the arithmetic of `ImageEnhance` (a blend of the image with a
//! degenerate one), `ImageOps` (a table for each channel) and Pillow's conversions. All take `[channel, height, width]` bytes of one channel (grey) or
//! three (red, green, blue).

/// `degenerate + factor · (value − degenerate)` in float32, cut to a byte.
fn blend(degenerate: u8, value: u8, factor: f32) -> u8 {
    let (from, to) = (f32::from(degenerate), f32::from(value));
    (from + factor * (to - from)).clamp(0.0, 255.0) as u8
}

/// Replaces each value by what the table says.
fn look_up(pixels: &mut [u8], table: &[u8; 256]) {
    for pixel in pixels {
        *pixel = table[usize::from(*pixel)];
    }
}

fn table(value: impl Fn(u8) -> u8) -> [u8; 256] {
    std::array::from_fn(|level| value(level as u8))
}

/// Pillow's `convert("L")` (ITU-R 601-2 in 16-bit fixed point).
fn luminance(red: u8, green: u8, blue: u8) -> u8 {
    ((u32::from(red) * 19595 + u32::from(green) * 38470 + u32::from(blue) * 7471 + 0x8000) >> 16) as u8
}

/// The three planes of a colour image; none of a grey one.
fn planes(pixels: &mut [u8], channels: usize) -> Option<[&mut [u8]; 3]> {
    if channels != 3 {
        return None;
    }
    let (red, rest) = pixels.split_at_mut(pixels.len() / 3);
    let (green, blue) = rest.split_at_mut(rest.len() / 2);
    Some([red, green, blue])
}

/// Calls `change` with each pixel of a colour image.
fn for_each_color(pixels: &mut [u8], channels: usize, change: impl Fn(&mut u8, &mut u8, &mut u8)) {
    if let Some([red, green, blue]) = planes(pixels, channels) {
        for ((red, green), blue) in red.iter_mut().zip(green).zip(blue) {
            change(red, green, blue);
        }
    }
}

/// `adjust_brightness`: a blend with black.
pub fn brightness(pixels: &mut [u8], factor: f64) {
    look_up(pixels, &table(|value| blend(0, value, factor as f32)));
}

/// `adjust_contrast`: a blend with the mean of the grey image.
pub fn contrast(pixels: &mut [u8], channels: usize, factor: f64) {
    let count = pixels.len() / channels;
    let sum: u64 = match planes(pixels, channels) {
        Some([red, green, blue]) => red
            .iter()
            .zip(green.iter())
            .zip(blue.iter())
            .map(|((&red, &green), &blue)| u64::from(luminance(red, green, blue)))
            .sum(),
        None => pixels.iter().map(|&value| u64::from(value)).sum(),
    };
    let mean = (sum as f64 / count as f64 + 0.5) as u8;
    look_up(pixels, &table(|value| blend(mean, value, factor as f32)));
}

/// `adjust_saturation`: a blend with the grey image.
pub fn saturation(pixels: &mut [u8], channels: usize, factor: f64) {
    let factor = factor as f32;
    for_each_color(pixels, channels, |red, green, blue| {
        let grey = luminance(*red, *green, *blue);
        for value in [red, green, blue] {
            *value = blend(grey, *value, factor);
        }
    });
}

/// `adjust_hue` through Pillow's `HSV` images of bytes; `shift` is a share of the full circle, −0.5 to 0.5.
pub fn hue(pixels: &mut [u8], channels: usize, shift: f64) {
    let shift = ((shift * 255.0) as i32) as u8;
    for_each_color(pixels, channels, |red, green, blue| {
        let [hue, saturation, value] = to_hsv([*red, *green, *blue]);
        [*red, *green, *blue] = to_rgb([hue.wrapping_add(shift), saturation, value]);
    });
}

/// Pillow's `rgb2hsv_row`.
fn to_hsv([red, green, blue]: [u8; 3]) -> [u8; 3] {
    let (most, least) = (red.max(green).max(blue), red.min(green).min(blue));
    if most == least {
        return [0, 0, most];
    }
    let range = f32::from(most - least);
    let distance = |value: u8| f32::from(most - value) / range;
    let sixths = if red == most {
        f64::from(distance(blue) - distance(green))
    } else if green == most {
        2.0 + f64::from(distance(red)) - f64::from(distance(blue))
    } else {
        4.0 + f64::from(distance(green)) - f64::from(distance(red))
    } as f32;
    let hue = ((f64::from(sixths) / 6.0 + 1.0) % 1.0) as f32;
    let saturation = range / f32::from(most);
    let byte = |share: f32| (f64::from(share) * 255.0) as u8;
    [byte(hue), byte(saturation), most]
}

/// Pillow's `hsv2rgb`.
fn to_rgb([hue, saturation, value]: [u8; 3]) -> [u8; 3] {
    if saturation == 0 {
        return [value; 3];
    }
    let position = f32::from(hue) * 6.0 / 255.0;
    let sector = position.floor();
    let (rest, share) = (position - sector, f32::from(saturation) / 255.0);
    let dimmed = |by: f64| (f64::from(value) * (1.0 - by)).round().clamp(0.0, 255.0) as u8;
    let (share, rest) = (f64::from(share), f64::from(rest));
    let (low, falling, rising) = (dimmed(share), dimmed(share * rest), dimmed(share * (1.0 - rest)));
    match sector as i32 % 6 {
        0 => [value, rising, low],
        1 => [falling, value, low],
        2 => [low, value, rising],
        3 => [low, falling, value],
        4 => [rising, low, value],
        _ => [value, low, falling],
    }
}

/// `rgb_to_grayscale` with as many channels as before.
pub fn grayscale(pixels: &mut [u8], channels: usize) {
    for_each_color(pixels, channels, |red, green, blue| {
        let grey = luminance(*red, *green, *blue);
        (*red, *green, *blue) = (grey, grey, grey);
    });
}

/// `posterize`: keeps the highest bits of each value.
pub fn posterize(pixels: &mut [u8], bits: u32) {
    let mask = !(0xffu32 >> bits.min(8)) as u8;
    for pixel in pixels {
        *pixel &= mask;
    }
}

/// `solarize`: turns values from the threshold on around.
pub fn solarize(pixels: &mut [u8], threshold: f64) {
    look_up(pixels, &table(|value| if f64::from(value) < threshold { value } else { 255 - value }));
}

/// `autocontrast`: stretches each channel to the full range.
pub fn autocontrast(pixels: &mut [u8], channels: usize) {
    let plane = pixels.len() / channels;
    for plane in pixels.chunks_exact_mut(plane) {
        let (least, most) =
            plane.iter().fold((255, 0), |(least, most), &value| (value.min(least), value.max(most)));
        if most > least {
            let scale = 255.0 / f64::from(most - least);
            let offset = -f64::from(least) * scale;
            look_up(plane, &table(|value| (f64::from(value) * scale + offset).clamp(0.0, 255.0) as u8));
        }
    }
}

/// `equalize`: makes all values of each channel about equally frequent.
pub fn equalize(pixels: &mut [u8], channels: usize) {
    let plane = pixels.len() / channels;
    for plane in pixels.chunks_exact_mut(plane) {
        let mut counts = [0usize; 256];
        for &value in plane.iter() {
            counts[usize::from(value)] += 1;
        }
        let last = counts.iter().rev().find(|&&count| count > 0).copied().unwrap_or(0);
        let step = (plane.len() - last) / 255;
        if step == 0 {
            continue;
        }
        let mut sum = step / 2;
        let levels = counts.map(|count| {
            let level = (sum / step).min(255) as u8;
            sum += count;
            level
        });
        look_up(plane, &levels);
    }
}

/// `invert`.
pub fn invert(pixels: &mut [u8]) {
    for pixel in pixels {
        *pixel = 255 - *pixel;
    }
}
