//! Operations that move or mix pixels, on one plane after the other: affine maps as Pillow computes them (`Geometry.c`), filters.

use serde::{Deserialize, Serialize};

use crate::data::decode::ImageForm;

/// How a moved image finds its pixels. What comes from outside is black.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lookup {
    /// The nearest pixel.
    #[default]
    Nearest,
    /// Straight lines between four pixels.
    Bilinear,
}

/// A map from a place in the output to one in the input: x · m₀ + y · m₁ + m₂, x · m₃ + y · m₄ + m₅.
type Matrix = [f64; 6];

/// torchvision's `affine`: rotation by `angle` degrees, shear in degrees, scale and translation in pixels around a centre; the middle of the image if
/// none is given.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
pub struct Affine {
    /// Degrees, clockwise.
    pub angle: f64,
    /// Pixels to the right and down.
    pub translate: [f64; 2],
    /// Factor on the size.
    pub scale: f64,
    /// Degrees along x and y.
    pub shear: [f64; 2],
    /// What stays in its place, x and y.
    pub center: Option<[f64; 2]>,
}

impl Affine {
    /// The map that moves nothing.
    pub const IDENTITY: Self =
        Self { angle: 0.0, translate: [0.0; 2], scale: 1.0, shear: [0.0; 2], center: None };

    /// torchvision's `_get_inverse_affine_matrix`.
    fn matrix(&self, [height, width]: [usize; 2]) -> Matrix {
        let rotation = self.angle.to_radians();
        let [shear_x, shear_y] = self.shear.map(f64::to_radians);
        let [center_x, center_y] = self.center.unwrap_or([width as f64 * 0.5, height as f64 * 0.5]);
        let [right, down] = self.translate;
        let a = (rotation - shear_y).cos() / shear_y.cos();
        let b = -(rotation - shear_y).cos() * shear_x.tan() / shear_y.cos() - rotation.sin();
        let c = (rotation - shear_y).sin() / shear_y.cos();
        let d = -(rotation - shear_y).sin() * shear_x.tan() / shear_y.cos() + rotation.cos();
        let mut matrix = [d, -b, 0.0, -c, a, 0.0].map(|value| value / self.scale);
        matrix[2] = matrix[0] * (-center_x - right) + matrix[1] * (-center_y - down) + center_x;
        matrix[5] = matrix[3] * (-center_x - right) + matrix[4] * (-center_y - down) + center_y;
        matrix
    }

    /// Appends the moved image.
    pub fn append(&self, image: &[u8], form: ImageForm, lookup: Lookup, pixels: &mut Vec<u8>) {
        append_mapped(image, form, self.matrix(form.size), lookup, pixels);
    }
}

/// Appends the image turned by `angle` degrees counterclockwise around its middle, in its own size: Pillow's `rotate`.
pub fn append_rotated(image: &[u8], form: ImageForm, angle: f64, lookup: Lookup, pixels: &mut Vec<u8>) {
    let [height, width] = form.size;
    let angle = angle.rem_euclid(360.0);
    let turned = |from: &dyn Fn(usize, usize) -> usize, pixels: &mut Vec<u8>| {
        for plane in image.chunks_exact(height * width) {
            pixels.extend((0..height * width).map(|place| plane[from(place / width, place % width)]));
        }
    };
    if angle == 0.0 {
        return pixels.extend_from_slice(image);
    }
    if angle == 180.0 {
        return turned(&|row, column| (height - 1 - row) * width + width - 1 - column, pixels);
    }
    if angle == 90.0 && height == width {
        return turned(&|row, column| column * width + width - 1 - row, pixels);
    }
    if angle == 270.0 && height == width {
        return turned(&|row, column| (height - 1 - column) * width + row, pixels);
    }
    let radians = -angle.to_radians();
    // As Pillow, which rounds to 15 decimals.
    let round = |value: f64| (value * 1e15).round() / 1e15;
    let (cos, sin) = (round(radians.cos()), round(radians.sin()));
    let (center_x, center_y) = (width as f64 / 2.0, height as f64 / 2.0);
    let matrix = [
        cos,
        sin,
        cos * -center_x + sin * -center_y + center_x,
        -sin,
        cos,
        -sin * -center_x + cos * -center_y + center_y,
    ];
    append_mapped(image, form, matrix, lookup, pixels);
}

/// Pillow's `transform(size, AFFINE, matrix)`, black outside.
fn append_mapped(image: &[u8], form: ImageForm, matrix: Matrix, lookup: Lookup, pixels: &mut Vec<u8>) {
    let [height, width] = form.size;
    let start = pixels.len();
    pixels.resize(start + image.len(), 0);
    let plane = height * width;
    // [place in the output plane] to the place in the input plane
    match lookup {
        Lookup::Nearest => {
            for_each_nearest(matrix, form.size, |to, from| {
                for channel in 0..form.channels {
                    pixels[start + channel * plane + to] = image[channel * plane + from];
                }
            });
        }
        Lookup::Bilinear => {
            for to in 0..plane {
                let (x, y) = ((to % width) as f64 + 0.5, (to / width) as f64 + 0.5);
                let from_x = matrix[0] * x + matrix[1] * y + matrix[2];
                let from_y = matrix[3] * x + matrix[4] * y + matrix[5];
                if !(0.0..width as f64).contains(&from_x) || !(0.0..height as f64).contains(&from_y) {
                    continue;
                }
                let (from_x, from_y) = (from_x - 0.5, from_y - 0.5);
                let (column, row) = (from_x.floor(), from_y.floor());
                let (right, down) = (from_x - column, from_y - row);
                let within = |position: f64, side: usize| position.clamp(0.0, (side - 1) as f64) as usize;
                let columns = [within(column, width), within(column + 1.0, width)];
                let rows = [within(row, height), within(row + 1.0, height)];
                for channel in 0..form.channels {
                    let along = |row: usize| {
                        let at = |column: usize| f64::from(image[channel * plane + row * width + column]);
                        at(columns[0]) + (at(columns[1]) - at(columns[0])) * right
                    };
                    let (above, below) = (along(rows[0]), along(rows[1]));
                    pixels[start + channel * plane + to] = (above + (below - above) * down) as u8;
                }
            }
        }
    }
}

/// Calls `copy` with each place of the output whose pixel comes from the image, and that pixel's place. Pillow steps in 16-bit fixed point, or, where
/// rows stay rows and columns columns, in floating point along each.
fn for_each_nearest(matrix: Matrix, [height, width]: [usize; 2], mut copy: impl FnMut(usize, usize)) {
    let [m0, m1, m2, m3, m4, m5] = matrix;
    if m1 == 0.0 && m3 == 0.0 {
        let sources = |factor: f64, offset: f64, side: usize| -> Vec<Option<usize>> {
            let mut position = offset + factor * 0.5;
            let source = |_| {
                let found = (position >= 0.0 && position < side as f64).then_some(position as usize);
                position += factor;
                found
            };
            (0..side).map(source).collect()
        };
        let (columns, rows) = (sources(m0, m2, width), sources(m4, m5, height));
        for (row, from_row) in rows.iter().enumerate() {
            let Some(from_row) = from_row else { continue };
            for (column, from_column) in columns.iter().enumerate() {
                if let Some(from_column) = from_column {
                    copy(row * width + column, from_row * width + from_column);
                }
            }
        }
        return;
    }
    let fixed = |value: f64| (value * 65536.0 + 0.5).floor() as i64;
    let (step_x, step_y) = ([fixed(m0), fixed(m3)], [fixed(m1), fixed(m4)]);
    let mut line = [fixed(m2 + m0 * 0.5 + m1 * 0.5), fixed(m5 + m3 * 0.5 + m4 * 0.5)];
    for row in 0..height {
        let [mut x, mut y] = line;
        for column in 0..width {
            let (from_x, from_y) = (x >> 16, y >> 16);
            if (0..width as i64).contains(&from_x) && (0..height as i64).contains(&from_y) {
                copy(row * width + column, from_y as usize * width + from_x as usize);
            }
            x += step_x[0];
            y += step_x[1];
        }
        line[0] += step_y[0];
        line[1] += step_y[1];
    }
}

/// Shifts the image up and to the left, with black from the other side: a crop of its own size out of the padded image. `mirrored` turns it around
/// after that.
pub fn append_shifted(
    image: &[u8],
    form: ImageForm,
    [down, right]: [i64; 2],
    mirrored: bool,
    pixels: &mut Vec<u8>,
) {
    let [height, width] = form.size;
    let start = pixels.len();
    pixels.resize(start + image.len(), 0);
    // The columns of the output that the shifted input covers.
    let first = (-right).clamp(0, width as i64) as usize;
    let last = (width as i64 - right).clamp(0, width as i64) as usize;
    for (row, out) in pixels[start..].chunks_exact_mut(width).enumerate() {
        let (channel, y) = (row / height, (row % height) as i64 + down);
        if (0..height as i64).contains(&y) && first < last {
            let begin = (channel * height + y as usize) * width + (first as i64 + right) as usize;
            out[first..last].copy_from_slice(&image[begin..begin + (last - first)]);
        }
        if mirrored {
            out.reverse();
        }
    }
}

/// Turns each plane upside down.
pub fn flip_vertically(pixels: &mut [u8], form: ImageForm) {
    let [height, width] = form.size;
    for plane in pixels.chunks_exact_mut(height * width) {
        for row in 0..height / 2 {
            let (above, below) = plane.split_at_mut((height - 1 - row) * width);
            above[row * width..(row + 1) * width].swap_with_slice(&mut below[..width]);
        }
    }
}

/// `adjust_sharpness`: a blend of Pillow's `SMOOTH` filter with the image. The border stays as it is.
pub fn append_sharpened(image: &[u8], form: ImageForm, factor: f64, pixels: &mut Vec<u8>) {
    let [height, width] = form.size;
    pixels.reserve(image.len());
    let factor = factor as f32;
    for plane in image.chunks_exact(height * width) {
        for place in 0..plane.len() {
            let (row, column) = (place / width, place % width);
            if row == 0 || column == 0 || row + 1 == height || column + 1 == width {
                pixels.push(plane[place]);
                continue;
            }
            let around: u32 = [place - width, place, place + width]
                .into_iter()
                .map(|middle| {
                    plane[middle - 1..middle + 2].iter().map(|&value| u32::from(value)).sum::<u32>()
                })
                .sum();
            let smooth = ((around + 4 * u32::from(plane[place])) as f32 / 13.0 + 0.5) as u8;
            let (from, to) = (f32::from(smooth), f32::from(plane[place]));
            pixels.push((from + factor * (to - from)).clamp(0.0, 255.0) as u8);
        }
    }
}

/// `gaussian_blur` with a window of `size` pixels (an odd number) and this standard deviation; the image goes on beyond its border as its mirror image.
pub fn append_blurred(image: &[u8], form: ImageForm, size: usize, sigma: f64, pixels: &mut Vec<u8>) {
    let [height, width] = form.size;
    let half = (size / 2) as i64;
    let bell = (-half..=half).map(|place| (-0.5 * (place as f64 / sigma).powi(2)).exp());
    let total: f64 = bell.clone().sum();
    let weights: Vec<f32> = bell.map(|weight| (weight / total) as f32).collect();
    let mirrored = |position: i64, side: usize| {
        let last = side as i64 - 1;
        (last - (last - position.abs()).abs()).clamp(0, last) as usize
    };
    let mut across = vec![0f32; height * width];
    let mut line = vec![0f32; width];
    for plane in image.chunks_exact(height * width) {
        for (row, out) in plane.chunks_exact(width).zip(across.chunks_exact_mut(width)) {
            for (column, out) in out.iter_mut().enumerate() {
                let place = |tap: usize| mirrored(column as i64 + tap as i64 - half, width);
                *out =
                    weights.iter().enumerate().map(|(tap, weight)| weight * f32::from(row[place(tap)])).sum();
            }
        }
        for row in 0..height {
            line.fill(0.0);
            for (tap, weight) in weights.iter().enumerate() {
                let from = mirrored(row as i64 + tap as i64 - half, height) * width;
                for (sum, value) in line.iter_mut().zip(&across[from..from + width]) {
                    *sum += weight * value;
                }
            }
            pixels.extend(line.iter().map(|&sum| sum.round_ties_even().clamp(0.0, 255.0) as u8));
        }
    }
}
