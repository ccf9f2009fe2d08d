//! Scaling images as Pillow does, to the bit: an antialiasing filter in fixed-point arithmetic, along the rows and along the columns.
//!
//! torchvision's `Resize` and the preprocessing that published weights were made with are Pillow's; the arithmetic is that of its
//! `Resample.c` (version 13) for 8-bit images.

use serde::{Deserialize, Serialize};

use crate::native::vectors::{ColorFilter, IntegerLoop, part_colors, run_wide};

/// How the values between pixels are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Interpolation {
    /// Straight lines: a triangle of one pixel's reach.
    #[default]
    Bilinear,
    /// Cubic curves: Keys' with a = −0.5, of two pixels' reach.
    Bicubic,
}

impl Interpolation {
    fn reach(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        let x = x.abs();
        match self {
            Self::Bilinear if x < 1.0 => 1.0 - x,
            Self::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            _ => 0.0,
        }
    }
}

/// How images become as large as a model's input (`data.image_size`, height and width): they are scaled with their proportions, and
/// the middle is cut out, as torchvision's `Resize` and `CenterCrop` do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Resize {
    /// Length of the shorter side after scaling; just enough to cover the input if left out.
    #[serde(default)]
    pub shorter_side: Option<usize>,
    /// How the values between pixels are found.
    #[serde(default)]
    pub interpolation: Interpolation,
}

impl Resize {
    /// Height and width after scaling, for an image and an input of these.
    pub fn scaled(self, image: [usize; 2], input: [usize; 2]) -> [usize; 2] {
        let [height, width] = image;
        let long =
            |side: usize, short: usize, length: usize| (side as f64 * length as f64 / short as f64) as usize;
        match self.shorter_side {
            // torchvision rounds the longer side down.
            Some(length) if height <= width => [length, long(width, height, length).max(length)],
            Some(length) => [long(height, width, length).max(length), length],
            // The side that must be scaled more is the one that fits.
            None if input[0] * width >= input[1] * height => [
                input[0],
                (width as f64 * input[0] as f64 / height as f64).round().max(input[1] as f64) as usize,
            ],
            None => [
                (height as f64 * input[1] as f64 / width as f64).round().max(input[0] as f64) as usize,
                input[1],
            ],
        }
    }

    /// Scales one channel, `[height, width]` bytes, and appends the middle of it.
    pub fn append_plane(self, plane: &[u8], image: [usize; 2], input: [usize; 2], pixels: &mut Vec<u8>) {
        self.scaler(image, input).append_plane(plane, pixels);
    }

    /// Scales all of the images of this height and width, and cuts nothing away.
    pub fn whole_scaler(self, image: [usize; 2], input: [usize; 2]) -> Scaler {
        Scaler::stretching(self.interpolation, image, self.scaled(image, input))
    }

    /// What scales the channels of images of this height and width, and cuts their middle out.
    pub fn scaler(self, image: [usize; 2], input: [usize; 2]) -> Scaler {
        let scaled = self.scaled(image, input);
        let wanted = [0, 1].map(|axis| middle(scaled[axis], input[axis]));
        Scaler::new(self.interpolation, image, scaled, wanted)
    }
}

/// Scales planes of one size to another, as Pillow does.
#[derive(Debug)]
pub struct Scaler {
    rows: Filter,
    columns: Filter,
    width: usize,
    rows_first: bool,
}

impl Scaler {
    /// Makes an image fill a size whatever its proportions.
    pub fn stretching(interpolation: Interpolation, image: [usize; 2], to: [usize; 2]) -> Self {
        Self::new(interpolation, image, to, to.map(|side| 0..side))
    }

    fn new(
        interpolation: Interpolation,
        image: [usize; 2],
        scaled: [usize; 2],
        [rows, columns]: [std::ops::Range<usize>; 2],
    ) -> Self {
        let [height, width] = image;
        // Pillow's rule for which direction comes first, which rounding in between makes visible.
        let (less_height, less_width) = (height as i64 - scaled[0] as i64, width as i64 - scaled[1] as i64);
        Self {
            rows: Filter::new(interpolation, height, scaled[0], rows),
            columns: Filter::new(interpolation, width, scaled[1], columns),
            width,
            rows_first: less_height > 0 && less_height > 2 * less_width,
        }
    }

    /// Appends one channel, `[height, width]` bytes, at the new size.
    pub fn append_plane(&self, plane: &[u8], pixels: &mut Vec<u8>) {
        run_wide(Scaling::<1> { scaler: self, image: plane, line: self.width, pixels });
    }

    /// Appends the channels of `[height, width, 3]` bytes at the new size, each a plane; the rows of the image begin `line` bytes apart. `spare` is room that may
    /// be used on the way.
    pub fn append_colors(&self, image: &[u8], line: usize, spare: &mut Vec<u8>, pixels: &mut Vec<u8>) {
        spare.clear();
        run_wide(Scaling::<3> { scaler: self, image, line, pixels: spare });
        let start = pixels.len();
        pixels.resize(start + spare.len(), 0);
        let (red, rest) = pixels[start..].split_at_mut(spare.len() / 3);
        let (green, blue) = rest.split_at_mut(spare.len() / 3);
        part_colors(spare, [red, green, blue]);
    }
}

/// The scaling of an image of so many interleaved channels, whose rows begin `line` bytes apart.
struct Scaling<'a, const CHANNELS: usize> {
    scaler: &'a Scaler,
    image: &'a [u8],
    line: usize,
    pixels: &'a mut Vec<u8>,
}

impl<const CHANNELS: usize> IntegerLoop for Scaling<'_, CHANNELS> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { scaler: Scaler { rows, columns, rows_first, .. }, image, line, pixels } = self;
        pixels.reserve(CHANNELS * rows.len() * columns.len());
        if *rows_first {
            // Only the columns that the second pass looks at.
            let seen = columns.seen();
            let bytes = CHANNELS * seen.start..CHANNELS * seen.end;
            let mut shortened = Vec::with_capacity(rows.len() * bytes.len());
            rows.append_combined(image, line, bytes.clone(), 0, &mut shortened);
            columns.append_narrowed::<CHANNELS>(&shortened, bytes.len(), rows.len(), seen.start, pixels);
        } else {
            let seen = rows.seen();
            let kept = CHANNELS * columns.len();
            let mut narrowed = Vec::with_capacity(seen.len() * kept);
            columns.append_narrowed::<CHANNELS>(
                &image[seen.start * line..],
                line,
                seen.len(),
                0,
                &mut narrowed,
            );
            rows.append_combined(&narrowed, kept, 0..kept, seen.start, pixels);
        }
    }
}

/// Where the middle of `length` out of `side` begins, and its length. Halves are rounded to even, as Python's `round` does.
fn middle(side: usize, length: usize) -> std::ops::Range<usize> {
    let start = ((side - length) as f64 / 2.0).round_ties_even() as usize;
    start..start + length
}

/// What the pixels of a line are made of: each of as many neighbours, with weights. Where the filter reaches fewer, some weights are 0: loops of one
/// length are faster than such whose length changes from pixel to pixel.
#[derive(Debug)]
struct Filter {
    /// How many neighbours.
    reach: usize,
    /// The first neighbour of each pixel.
    first: Vec<usize>,
    /// `reach` for each pixel, in units of 2^-22.
    weights: Vec<i32>,
}

impl Filter {
    const PRECISION: u32 = 22;
    const HALF: i32 = 1 << (Self::PRECISION - 1);

    /// Sums are in 32 bits, as Pillow's, which the weights of both interpolations leave room for.
    #[inline(always)]
    fn byte(sum: i32) -> u8 {
        (sum >> Self::PRECISION).clamp(0, 255) as u8
    }

    /// For the pixels `wanted` of a line of `from` pixels scaled to `to`.
    fn new(interpolation: Interpolation, from: usize, to: usize, wanted: std::ops::Range<usize>) -> Self {
        // A line that keeps its length keeps its pixels: Pillow leaves the pass out.
        if from == to {
            return Self {
                reach: 1,
                weights: vec![1 << Self::PRECISION; wanted.len()],
                first: wanted.collect(),
            };
        }
        let scale = from as f64 / to as f64;
        let stretch = scale.max(1.0);
        let support = interpolation.reach() * stretch;
        let reached = |pixel: usize| {
            let center = (pixel as f64 + 0.5) * scale;
            (center - support + 0.5).max(0.0) as usize..((center + support + 0.5) as usize).min(from)
        };
        let reach = wanted.clone().map(|pixel| reached(pixel).len()).max().unwrap_or(1);
        let mut first = Vec::with_capacity(wanted.len());
        let mut weights = vec![0; wanted.len() * reach];
        let mut exact: Vec<f64> = Vec::with_capacity(reach);
        for (pixel, weights) in wanted.zip(weights.chunks_exact_mut(reach)) {
            let neighbours = reached(pixel);
            let center = (pixel as f64 + 0.5) * scale;
            exact.clear();
            exact.extend(
                neighbours.clone().map(|neighbour| {
                    interpolation.weight((neighbour as f64 - center + 0.5) * (1.0 / stretch))
                }),
            );
            let total: f64 = exact.iter().sum();
            // Neighbours that do not count come before at the end of the line, and after elsewhere.
            let start = neighbours.start.min(from - reach);
            for (fixed, &weight) in weights[neighbours.start - start..].iter_mut().zip(&exact) {
                let scaled = weight / total * f64::from(1u32 << Self::PRECISION);
                // Half away from zero.
                *fixed = (scaled + 0.5f64.copysign(weight)) as i32;
            }
            first.push(start);
        }
        Self { reach, first, weights }
    }

    /// How many pixels it makes.
    fn len(&self) -> usize {
        self.first.len()
    }

    /// Filters along so many rows, which begin `line` bytes apart; their first pixel is pixel `offset` of the line that the filter is for.
    #[inline(always)]
    fn append_narrowed<const CHANNELS: usize>(
        &self,
        image: &[u8],
        line: usize,
        rows: usize,
        offset: usize,
        pixels: &mut Vec<u8>,
    ) {
        let start = pixels.len();
        let kept = CHANNELS * self.len();
        pixels.resize(start + rows * kept, 0);
        let colors = match CHANNELS {
            3 => ColorFilter::new(&self.first, &self.weights, self.reach, Self::PRECISION),
            _ => None,
        };
        for (row, out) in pixels[start..].chunks_exact_mut(kept).enumerate() {
            let row = &image[row * line..];
            // The last pixels of the last row have too few bytes after them.
            let done = colors.as_ref().map_or(0, |colors| colors.run(row, offset, out));
            self.narrow::<CHANNELS>(row, offset, done, &mut out[CHANNELS * done..]);
        }
    }

    /// Filters along one row, from pixel `from` on.
    #[inline(always)]
    fn narrow<const CHANNELS: usize>(&self, row: &[u8], offset: usize, from: usize, out: &mut [u8]) {
        let weights = self.weights.chunks_exact(self.reach);
        for ((&first, weights), out) in
            self.first.iter().zip(weights).skip(from).zip(out.chunks_exact_mut(CHANNELS))
        {
            let seen = row[CHANNELS * (first - offset)..].chunks_exact(CHANNELS);
            let mut sums = [Self::HALF; CHANNELS];
            for (pixel, &weight) in seen.zip(weights) {
                for (sum, &value) in sums.iter_mut().zip(pixel) {
                    *sum = sum.wrapping_add(weight.wrapping_mul(i32::from(value)));
                }
            }
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = Self::byte(sum);
            }
        }
    }

    /// Filters across rows of `length` bytes, of which only some count; the first row is row `offset` of the line that the filter is for.
    #[inline(always)]
    fn append_combined(
        &self,
        rows: &[u8],
        length: usize,
        bytes: std::ops::Range<usize>,
        offset: usize,
        pixels: &mut Vec<u8>,
    ) {
        const BLOCK: usize = 32;
        let start = pixels.len();
        pixels.resize(start + self.len() * bytes.len(), 0);
        let lines = pixels[start..].chunks_exact_mut(bytes.len());
        for ((&first, weights), line) in
            self.first.iter().zip(self.weights.chunks_exact(self.reach)).zip(lines)
        {
            let row = |tap: usize| {
                let start = (first - offset + tap) * length;
                &rows[start + bytes.start..start + bytes.end]
            };
            // Blocks whose sums stay in the processor's registers.
            let mut blocks = line.chunks_exact_mut(BLOCK);
            let mut done = 0;
            for out in &mut blocks {
                let mut sums = [Self::HALF; BLOCK];
                for (tap, &weight) in weights.iter().enumerate() {
                    for (sum, &value) in sums.iter_mut().zip(&row(tap)[done..done + BLOCK]) {
                        *sum = sum.wrapping_add(weight.wrapping_mul(i32::from(value)));
                    }
                }
                for (out, sum) in out.iter_mut().zip(sums) {
                    *out = Self::byte(sum);
                }
                done += BLOCK;
            }
            for (byte, out) in blocks.into_remainder().iter_mut().enumerate() {
                let mut sum = Self::HALF;
                for (tap, &weight) in weights.iter().enumerate() {
                    sum = sum.wrapping_add(weight.wrapping_mul(i32::from(row(tap)[done + byte])));
                }
                *out = Self::byte(sum);
            }
        }
    }

    /// The pixels that any weight is for.
    fn seen(&self) -> std::ops::Range<usize> {
        let start = self.first.first().copied().unwrap_or(0);
        start..self.first.last().map_or(start, |last| last + self.reach)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_and_middles_are_those_of_torchvision() {
        let to = |shorter_side| Resize { shorter_side, interpolation: Interpolation::Bilinear };
        assert_eq!(to(Some(256)).scaled([427, 640], [224, 224]), [256, 383]);
        assert_eq!(to(Some(256)).scaled([640, 427], [224, 224]), [383, 256]);
        assert_eq!(to(Some(7)).scaled([5, 5], [7, 7]), [7, 7]);
        assert_eq!(to(None).scaled([427, 640], [224, 224]), [224, 336]);
        assert_eq!(to(None).scaled([100, 50], [20, 40]), [80, 40]);
        assert_eq!(to(None).scaled([2, 2], [4, 4]), [4, 4]);
        // round(79.5) and round(80.5) are both 80 in Python.
        assert_eq!(middle(383, 224), 80..304);
        assert_eq!(middle(385, 224), 80..304);
    }
}
