//! Variations of training images, each drawn from (seed, epoch, sample) alone.

use anyhow::Result;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use super::Draw;
use super::decode::ImageForm;
use crate::bail_input;

/// The `data.augment` section of an image recipe.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct AugmentConfig {
    /// Pixels of black added on each side before a crop of the original size is drawn (`RandomCrop(size, padding=…)`).
    pub crop_padding: usize,
    /// Whether half of the images are mirrored (`RandomHorizontalFlip`).
    pub flip: bool,
}

impl AugmentConfig {
    /// Checks every value on its own.
    pub fn validate(&self) -> Result<()> {
        if self.crop_padding > 1024 {
            bail_input!("data.augment.crop_padding is {}: it must be at most 1024 pixels", self.crop_padding);
        }
        Ok(())
    }

    /// Whether images stay as they are.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Appends a variation of `[channel, height, width]` bytes. `sample` is the sample's number in the data set.
    pub fn append(&self, image: &[u8], form: ImageForm, sample: usize, draw: Draw, pixels: &mut Vec<u8>) {
        let mut random = sample_random(draw, sample);
        let padding = self.crop_padding as i64;
        let mut offset =
            || if padding > 0 { below(&mut random, 2 * padding as u32 + 1) as i64 - padding } else { 0 };
        let (down, right) = (offset(), offset());
        let mirrored = self.flip && below(&mut random, 2) == 1;
        let [height, width] = form.size;
        let start = pixels.len();
        pixels.resize(start + image.len(), 0);
        let (rows_out, rows_in) = (pixels[start..].chunks_exact_mut(width), image.chunks_exact(width));
        let rows_in: Vec<&[u8]> = rows_in.collect();
        // The columns of the output that the shifted input covers.
        let first = (-right).clamp(0, width as i64) as usize;
        let last = (width as i64 - right).clamp(0, width as i64) as usize;
        for (row, out) in rows_out.enumerate() {
            let (channel, y) = (row / height, (row % height) as i64 + down);
            if (0..height as i64).contains(&y) && first < last {
                let source = rows_in[channel * height + y as usize];
                let from = (first as i64 + right) as usize;
                out[first..last].copy_from_slice(&source[from..from + (last - first)]);
            }
            if mirrored {
                out.reverse();
            }
        }
    }
}

/// The random numbers of one sample in one epoch, the same on any thread and any process.
pub fn sample_random(draw: Draw, sample: usize) -> ChaCha8Rng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&draw.seed.to_le_bytes());
    key[8..16].copy_from_slice(&draw.epoch.to_le_bytes());
    key[16..24].copy_from_slice(&(sample as u64).to_le_bytes());
    ChaCha8Rng::from_seed(key)
}

/// A number from 0 to `limit` − 1, by multiplication: its bias is below limit / 2³².
fn below(random: &mut ChaCha8Rng, limit: u32) -> u32 {
    ((u64::from(random.next_u32()) * u64::from(limit)) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORM: ImageForm = ImageForm { channels: 2, size: [4, 5] };

    fn varied(config: &AugmentConfig, sample: usize, epoch: u64) -> Vec<u8> {
        let image: Vec<u8> = (1..=FORM.bytes() as u8).collect();
        let mut pixels = Vec::new();
        config.append(&image, FORM, sample, Draw { seed: 3, epoch, train: true }, &mut pixels);
        pixels
    }

    #[test]
    fn a_variation_is_a_shifted_and_perhaps_mirrored_image() {
        let config = AugmentConfig { crop_padding: 2, flip: true };
        let image: Vec<u8> = (1..=FORM.bytes() as u8).collect();
        let at = |channel: usize, y: i64, x: i64| match (0..4).contains(&y) && (0..5).contains(&x) {
            true => image[channel * 20 + y as usize * 5 + x as usize],
            false => 0,
        };
        let mut seen = std::collections::BTreeSet::new();
        for sample in 0..400 {
            let result = varied(&config, sample, 0);
            let matches = |down: i64, right: i64, mirrored: bool| {
                (0..40).all(|position| {
                    let (channel, y, x) = (position / 20, (position % 20 / 5) as i64, (position % 5) as i64);
                    let x = if mirrored { 4 - x } else { x };
                    result[position] == at(channel, y + down, x + right)
                })
            };
            let found = (-2..=2)
                .flat_map(|down| {
                    (-2..=2).flat_map(move |right| [false, true].map(|mirrored| (down, right, mirrored)))
                })
                .find(|&(down, right, mirrored)| matches(down, right, mirrored));
            seen.insert(found.expect("every variation is a shift"));
        }
        assert_eq!(seen.len(), 50, "every shift and both directions occur");
    }

    #[test]
    fn a_variation_depends_on_sample_and_epoch_only() {
        let config = AugmentConfig { crop_padding: 2, flip: true };
        assert_eq!(varied(&config, 5, 1), varied(&config, 5, 1));
        assert!((0..20).any(|sample| varied(&config, sample, 1) != varied(&config, sample, 2)));
        let identity = AugmentConfig::default();
        assert_eq!(varied(&identity, 5, 1), (1..=40).collect::<Vec<u8>>());
    }
}
