//! Scaling images as Pillow does, to the bit: an antialiasing filter in fixed-point arithmetic, along the rows and along the columns.
//!
//! torchvision's `Resize` and the preprocessing that published weights were made with are Pillow's; the arithmetic is that of its
//! `Resample.c` (version 13) for 8-bit images.

use serde::{Deserialize, Serialize};

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
    fn scaled(self, image: [usize; 2], input: [usize; 2]) -> [usize; 2] {
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
        let scaled = self.scaled(image, input);
        let rows = Filter::new(self.interpolation, image[0], scaled[0], middle(scaled[0], input[0]));
        let columns = Filter::new(self.interpolation, image[1], scaled[1], middle(scaled[1], input[1]));
        let [height, width] = image;
        // Pillow's rule for which direction comes first, which rounding in between makes visible.
        let (less_height, less_width) = (height as i64 - scaled[0] as i64, width as i64 - scaled[1] as i64);
        let columns_first = less_height > 0 && less_height > 2 * less_width;
        let (kept, out) = (input[1], input[0] * input[1]);
        pixels.reserve(out);
        if columns_first {
            // Only the columns that the second pass looks at.
            let seen = columns.seen();
            let mut shortened = Vec::with_capacity(input[0] * seen.len());
            for taps in &rows.taps {
                for column in seen.clone() {
                    shortened.push(taps.sum(plane[taps.first * width + column..].iter().step_by(width)));
                }
            }
            for row in shortened.chunks_exact(seen.len()) {
                pixels
                    .extend(columns.taps.iter().map(|taps| taps.sum(row[taps.first - seen.start..].iter())));
            }
        } else {
            let seen = rows.seen();
            let mut narrowed = Vec::with_capacity(seen.len() * kept);
            for row in plane[seen.start * width..seen.end * width].chunks_exact(width) {
                narrowed.extend(columns.taps.iter().map(|taps| taps.sum(row[taps.first..].iter())));
            }
            for taps in &rows.taps {
                for column in 0..kept {
                    let start = (taps.first - seen.start) * kept + column;
                    pixels.push(taps.sum(narrowed[start..].iter().step_by(kept)));
                }
            }
        }
    }
}

/// Where the middle of `length` out of `side` begins, and its length. Halves are rounded to even, as Python's `round` does.
fn middle(side: usize, length: usize) -> std::ops::Range<usize> {
    let start = ((side - length) as f64 / 2.0).round_ties_even() as usize;
    start..start + length
}

/// What one pixel is made of: neighbours with weights.
struct Taps {
    first: usize,
    /// In units of 2^-22.
    weights: Vec<i32>,
}

impl Taps {
    const PRECISION: u32 = 22;

    fn sum<'a>(&self, pixels: impl Iterator<Item = &'a u8>) -> u8 {
        let sum =
            self.weights.iter().zip(pixels).fold(1i64 << (Self::PRECISION - 1), |sum, (&weight, &pixel)| {
                sum + i64::from(weight) * i64::from(pixel)
            });
        (sum >> Self::PRECISION).clamp(0, 255) as u8
    }
}

struct Filter {
    taps: Vec<Taps>,
}

impl Filter {
    /// For the pixels `wanted` of a line of `from` pixels scaled to `to`.
    fn new(interpolation: Interpolation, from: usize, to: usize, wanted: std::ops::Range<usize>) -> Self {
        // A line that keeps its length keeps its pixels: Pillow leaves the pass out.
        if from == to {
            let unit = |pixel| Taps { first: pixel, weights: vec![1 << Taps::PRECISION] };
            return Self { taps: wanted.map(unit).collect() };
        }
        let scale = from as f64 / to as f64;
        let stretch = scale.max(1.0);
        let support = interpolation.reach() * stretch;
        let taps = wanted.map(|pixel| {
            let center = (pixel as f64 + 0.5) * scale;
            let first = (center - support + 0.5).max(0.0) as usize;
            let end = ((center + support + 0.5) as usize).min(from);
            let weights: Vec<f64> = (first..end)
                .map(|neighbour| interpolation.weight((neighbour as f64 - center + 0.5) * (1.0 / stretch)))
                .collect();
            let total: f64 = weights.iter().sum();
            let fixed = |weight: f64| {
                let scaled = weight / total * f64::from(1u32 << Taps::PRECISION);
                // Half away from zero.
                (scaled + 0.5f64.copysign(weight)) as i32
            };
            Taps { first, weights: weights.into_iter().map(fixed).collect() }
        });
        Self { taps: taps.collect() }
    }

    /// The pixels that any tap looks at.
    fn seen(&self) -> std::ops::Range<usize> {
        let start = self.taps.first().map_or(0, |taps| taps.first);
        start..self.taps.last().map_or(start, |taps| taps.first + taps.weights.len())
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
