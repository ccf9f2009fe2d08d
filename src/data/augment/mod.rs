//! Variations of training images, each drawn from (seed, epoch, sample) alone.
//!
//! [`AugmentConfig`] draws, [`Operation`] acts: torchvision's operations on Pillow images, on `[channel, height, width]` bytes.

pub mod color;
pub mod geometry;
pub mod mixing;
pub mod policy;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::decode::ImageForm;
use super::random::Random;
use crate::bail_input;
use geometry::{Affine, Lookup};
use mixing::Mix;
use policy::{LEVELS, Policy};

/// The `data.augment` section of an image recipe. What is asked for happens in the order of the keys; mixing comes last, on the whole batch.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct AugmentConfig {
    /// A part of random size and shape, scaled to the input's size, in place of the middle (`RandomResizedCrop`).
    pub resized_crop: Option<ResizedCrop>,
    /// Pixels of black added on each side before a crop of the original size is drawn (`RandomCrop(size, padding=…)`).
    pub crop_padding: usize,
    /// Whether half of the images are mirrored (`RandomHorizontalFlip`).
    pub flip: bool,
    /// Whether half of the images are turned upside down (`RandomVerticalFlip`).
    pub vertical_flip: bool,
    /// How pixels are found by `rotation`, `affine` and `policy`.
    pub lookup: Lookup,
    /// Largest angle in degrees by which images are turned, in both directions (`RandomRotation`).
    pub rotation: f64,
    /// Rotation, translation, scale and shear in one (`RandomAffine`).
    pub affine: Option<RandomAffine>,
    /// RandAugment or TrivialAugment.
    pub policy: Option<Policy>,
    /// Changes of colour (`ColorJitter`).
    pub color_jitter: Option<ColorJitter>,
    /// Probability of losing all colour (`RandomGrayscale`).
    pub grayscale: f64,
    /// Blur (`GaussianBlur`).
    pub blur: Option<Blur>,
    /// A rectangle that is covered (`RandomErasing`).
    pub erasing: Option<Erasing>,
    /// Parameter of the Beta distribution of mixup's weights; 0 for no mixup. With both this and `cutmix` each batch takes one of the two.
    pub mixup: f64,
    /// Likewise of CutMix.
    pub cutmix: f64,
}

/// `RandomResizedCrop`.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ResizedCrop {
    /// Least and largest share of the image's area.
    pub scale: [f64; 2],
    /// Least and largest width / height.
    pub ratio: [f64; 2],
}

impl Default for ResizedCrop {
    fn default() -> Self {
        Self { scale: [0.08, 1.0], ratio: [3.0 / 4.0, 4.0 / 3.0] }
    }
}

/// `RandomAffine`.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct RandomAffine {
    /// Largest angle in degrees, in both directions.
    pub degrees: f64,
    /// Largest translation as a share of width and height, in both directions.
    pub translate: [f64; 2],
    /// Least and largest factor on the size.
    pub scale: [f64; 2],
    /// Largest shear in degrees along x and y, in both directions.
    pub shear: [f64; 2],
}

impl Default for RandomAffine {
    fn default() -> Self {
        Self { degrees: 0.0, translate: [0.0; 2], scale: [1.0; 2], shear: [0.0; 2] }
    }
}

/// `ColorJitter`, in `RandomApply` where the probability is below 1.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ColorJitter {
    /// Share of the images that are changed.
    pub probability: f64,
    /// Factors are drawn from 1 − this (at least 0) to 1 + this.
    pub brightness: f64,
    /// Likewise.
    pub contrast: f64,
    /// Likewise.
    pub saturation: f64,
    /// Largest shift as a share of the circle of hues, up to 0.5, in both directions.
    pub hue: f64,
}

impl Default for ColorJitter {
    fn default() -> Self {
        Self { probability: 1.0, brightness: 0.0, contrast: 0.0, saturation: 0.0, hue: 0.0 }
    }
}

/// `GaussianBlur`, in `RandomApply` where the probability is below 1.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Blur {
    /// Share of the images that are blurred.
    pub probability: f64,
    /// Side of the window in pixels: an odd number.
    pub kernel_size: usize,
    /// Least and largest standard deviation in pixels.
    pub sigma: [f64; 2],
}

impl Default for Blur {
    fn default() -> Self {
        Self { probability: 1.0, kernel_size: 3, sigma: [0.1, 2.0] }
    }
}

/// `RandomErasing`.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Erasing {
    /// Share of the images that lose a rectangle.
    pub probability: f64,
    /// Least and largest share of the image's area.
    pub scale: [f64; 2],
    /// Least and largest height / width.
    pub ratio: [f64; 2],
    /// What covers it.
    pub fill: Fill,
}

impl Default for Erasing {
    fn default() -> Self {
        Self { probability: 0.5, scale: [0.02, 0.33], ratio: [0.3, 3.3], fill: Fill::Mean }
    }
}

/// What covers an erased rectangle. Erasing comes before normalisation here, after it in torchvision: its 0 is the mean, to half a level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fill {
    /// `data.mean`, which becomes 0.
    #[default]
    Mean,
    /// Black.
    Black,
    /// Numbers of the standard normal distribution after normalisation, as far as bytes reach (`value="random"`).
    Random,
}

/// A part of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Rectangle {
    /// First row.
    pub top: usize,
    /// First column.
    pub left: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

/// What an operation needs to know of the images besides their pixels.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// Channels and size.
    pub form: ImageForm,
    /// Mean of each channel, 0..1.
    pub mean: &'a [f64],
    /// Standard deviation of each channel, 0..1.
    pub std: &'a [f64],
}

/// One change of an image, with its parameters.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(tag = "name", rename_all = "kebab-case")]
#[allow(missing_docs)] // The parameters are those of the functions named.
pub enum Operation {
    /// [`geometry::append_shifted`].
    Shift { down: i64, right: i64, mirrored: bool },
    /// [`geometry::flip_vertically`].
    FlipVertically,
    /// [`geometry::append_rotated`].
    Rotate { angle: f64, lookup: Lookup },
    /// [`Affine::append`].
    Affine { affine: Affine, lookup: Lookup },
    /// [`color::brightness`].
    Brightness { factor: f64 },
    /// [`color::contrast`].
    Contrast { factor: f64 },
    /// [`color::saturation`].
    Saturation { factor: f64 },
    /// [`color::hue`].
    Hue { shift: f64 },
    /// [`geometry::append_sharpened`].
    Sharpness { factor: f64 },
    /// [`color::posterize`].
    Posterize { bits: u32 },
    /// [`color::solarize`].
    Solarize { threshold: f64 },
    /// [`color::autocontrast`].
    AutoContrast,
    /// [`color::equalize`].
    Equalize,
    /// [`color::invert`].
    Invert,
    /// [`color::grayscale`].
    Grayscale,
    /// [`geometry::append_blurred`].
    Blur { kernel_size: usize, sigma: f64 },
    /// Covers a part; the seed is that of random pixels.
    Erase { part: Rectangle, fill: Fill },
}

impl Operation {
    /// Changes `image`; `spare` is room that may be used on the way. `random` is asked only where the operation itself is random.
    pub fn apply(&self, image: &mut Vec<u8>, spare: &mut Vec<u8>, context: Context, random: &mut Random) {
        let form = context.form;
        let channels = form.channels;
        spare.clear();
        match *self {
            Self::Shift { down, right, mirrored } => {
                geometry::append_shifted(image, form, [down, right], mirrored, spare);
            }
            Self::Rotate { angle, lookup } => geometry::append_rotated(image, form, angle, lookup, spare),
            Self::Affine { affine, lookup } => affine.append(image, form, lookup, spare),
            Self::Sharpness { factor } => geometry::append_sharpened(image, form, factor, spare),
            Self::Blur { kernel_size, sigma } => {
                geometry::append_blurred(image, form, kernel_size, sigma, spare);
            }
            Self::FlipVertically => geometry::flip_vertically(image, form),
            Self::Brightness { factor } => color::brightness(image, factor),
            Self::Contrast { factor } => color::contrast(image, channels, factor),
            Self::Saturation { factor } => color::saturation(image, channels, factor),
            Self::Hue { shift } => color::hue(image, channels, shift),
            Self::Posterize { bits } => color::posterize(image, bits),
            Self::Solarize { threshold } => color::solarize(image, threshold),
            Self::AutoContrast => color::autocontrast(image, channels),
            Self::Equalize => color::equalize(image, channels),
            Self::Invert => color::invert(image),
            Self::Grayscale => color::grayscale(image, channels),
            Self::Erase { part, fill } => erase(image, context, part, fill, random),
        }
        if !spare.is_empty() {
            std::mem::swap(image, spare);
        }
    }
}

fn erase(image: &mut [u8], context: Context, part: Rectangle, fill: Fill, random: &mut Random) {
    let [height, width] = context.form.size;
    for (channel, plane) in image.chunks_exact_mut(height * width).enumerate() {
        let (mean, std) = (context.mean[channel], context.std[channel]);
        let byte = |value: f64| (255.0 * value).round().clamp(0.0, 255.0) as u8;
        for row in part.top..part.top + part.height {
            let covered = &mut plane[row * width + part.left..row * width + part.left + part.width];
            match fill {
                Fill::Mean => covered.fill(byte(mean)),
                Fill::Black => covered.fill(0),
                Fill::Random => covered.fill_with(|| byte(mean + std * random.normal())),
            }
        }
    }
}

impl ResizedCrop {
    /// Draws the part of an image of this height and width (`RandomResizedCrop.get_params`).
    pub fn draw(&self, [height, width]: [usize; 2], random: &mut Random) -> Rectangle {
        let area = (height * width) as f64;
        for _ in 0..ATTEMPTS {
            let wanted = area * random.between(self.scale);
            let ratio = random.between(self.ratio.map(f64::ln)).exp();
            let part_width = (wanted * ratio).sqrt().round_ties_even() as usize;
            let part_height = (wanted / ratio).sqrt().round_ties_even() as usize;
            if (1..=width).contains(&part_width) && (1..=height).contains(&part_height) {
                let top = random.below((height - part_height + 1) as u32) as usize;
                let left = random.below((width - part_width + 1) as u32) as usize;
                return Rectangle { top, left, height: part_height, width: part_width };
            }
        }
        // The largest part of an allowed shape, out of the middle.
        let ratio = width as f64 / height as f64;
        let [least, most] = self.ratio;
        let (part_height, part_width) = if ratio < least {
            (((width as f64 / least).round_ties_even() as usize).clamp(1, height), width)
        } else if ratio > most {
            (height, ((height as f64 * most).round_ties_even() as usize).clamp(1, width))
        } else {
            (height, width)
        };
        Rectangle {
            top: (height - part_height) / 2,
            left: (width - part_width) / 2,
            height: part_height,
            width: part_width,
        }
    }
}

/// How often torchvision tries to find a rectangle that fits.
const ATTEMPTS: usize = 10;

impl RandomAffine {
    fn draw(&self, [height, width]: [usize; 2], random: &mut Random) -> Affine {
        let mut around_zero = |most: f64| random.between([-most, most]);
        let angle = around_zero(self.degrees);
        let [x, y] = self.translate;
        // Whole pixels, as in torchvision.
        let right = around_zero(x * width as f64).round_ties_even();
        let down = around_zero(y * height as f64).round_ties_even();
        let shear = self.shear.map(&mut around_zero);
        let scale = random.between(self.scale);
        Affine { angle, translate: [right, down], scale, shear, center: None }
    }
}

impl ColorJitter {
    fn draw(&self, random: &mut Random, plan: &mut Vec<Operation>) {
        if self.probability < 1.0 && !random.happens(self.probability) {
            return;
        }
        let mut order = [0, 1, 2, 3];
        random.shuffle(&mut order);
        let mut factor = |by: f64| random.between([(1.0 - by).max(0.0), 1.0 + by]);
        for kind in order {
            match kind {
                0 if self.brightness > 0.0 => {
                    plan.push(Operation::Brightness { factor: factor(self.brightness) });
                }
                1 if self.contrast > 0.0 => plan.push(Operation::Contrast { factor: factor(self.contrast) }),
                2 if self.saturation > 0.0 => {
                    plan.push(Operation::Saturation { factor: factor(self.saturation) });
                }
                3 if self.hue > 0.0 => {
                    // From −hue to +hue.
                    let shift = factor(1.0) - 1.0;
                    plan.push(Operation::Hue { shift: self.hue * shift });
                }
                _ => {}
            }
        }
    }
}

impl Erasing {
    /// Draws the part that is covered (`RandomErasing.get_params`); none if no attempt fits.
    fn draw(&self, [height, width]: [usize; 2], random: &mut Random) -> Option<Operation> {
        if !random.happens(self.probability) {
            return None;
        }
        let area = (height * width) as f64;
        for _ in 0..ATTEMPTS {
            let wanted = area * random.between(self.scale);
            let ratio = random.between(self.ratio.map(f64::ln)).exp();
            let part_height = (wanted * ratio).sqrt().round_ties_even() as usize;
            let part_width = (wanted / ratio).sqrt().round_ties_even() as usize;
            if part_height < height && part_width < width {
                let top = random.below((height - part_height + 1) as u32) as usize;
                let left = random.below((width - part_width + 1) as u32) as usize;
                let part = Rectangle { top, left, height: part_height, width: part_width };
                return Some(Operation::Erase { part, fill: self.fill });
            }
        }
        None
    }
}

impl AugmentConfig {
    /// Checks every value on its own and against the others.
    pub fn validate(&self) -> Result<()> {
        if self.crop_padding > 1024 {
            bail_input!("data.augment.crop_padding is {}: it must be at most 1024 pixels", self.crop_padding);
        }
        if self.crop_padding > 0 && self.resized_crop.is_some() {
            bail_input!(
                "data.augment has both crop_padding and resized_crop: they are two ways to cut; leave one out"
            );
        }
        let ColorJitter { probability: jittered, brightness, contrast, saturation, hue } =
            self.color_jitter.unwrap_or_default();
        let blur = self.blur.unwrap_or_default();
        let erasing = self.erasing.unwrap_or_default();
        for (key, value) in [
            ("grayscale", self.grayscale),
            ("color_jitter.probability", jittered),
            ("blur.probability", blur.probability),
            ("erasing.probability", erasing.probability),
        ] {
            if !(0.0..=1.0).contains(&value) {
                bail_input!("data.augment.{key} is {value}: a probability is from 0 to 1");
            }
        }
        for (key, value) in [
            ("color_jitter.brightness", brightness),
            ("color_jitter.contrast", contrast),
            ("color_jitter.saturation", saturation),
            ("mixup", self.mixup),
            ("cutmix", self.cutmix),
        ] {
            if !value.is_finite() || value < 0.0 {
                bail_input!("data.augment.{key} is {value}: it must be at least 0");
            }
        }
        if !(0.0..=0.5).contains(&hue) {
            bail_input!("data.augment.color_jitter.hue is {hue}: it must be from 0 to 0.5");
        }
        let affine = self.affine.unwrap_or_default();
        for (key, value, most) in [
            ("rotation", self.rotation, 180.0),
            ("affine.degrees", affine.degrees, 180.0),
            ("affine.translate", affine.translate[0], 1.0),
            ("affine.translate", affine.translate[1], 1.0),
            ("affine.shear", affine.shear[0], 89.0),
            ("affine.shear", affine.shear[1], 89.0),
        ] {
            if !(0.0..=most).contains(&value) {
                bail_input!("data.augment.{key} is {value}: it must be from 0 to {most}");
            }
        }
        let crop = self.resized_crop.unwrap_or_default();
        for (key, [low, high], most) in [
            ("affine.scale", affine.scale, f64::MAX),
            ("resized_crop.scale", crop.scale, 1.0),
            ("resized_crop.ratio", crop.ratio, f64::MAX),
            ("blur.sigma", blur.sigma, f64::MAX),
            ("erasing.scale", erasing.scale, 1.0),
            ("erasing.ratio", erasing.ratio, f64::MAX),
        ] {
            if !(low > 0.0 && low <= high && high <= most) {
                let limit = if most < f64::MAX { format!(", at most {most}") } else { String::new() };
                bail_input!(
                    "data.augment.{key} is [{low}, {high}]: give the least and the largest, both above 0{limit}"
                );
            }
        }
        if blur.kernel_size.is_multiple_of(2) || blur.kernel_size > 255 {
            bail_input!(
                "data.augment.blur.kernel_size is {}: it must be odd and below 256",
                blur.kernel_size
            );
        }
        if let Some(Policy::RandAugment { operations, magnitude }) = self.policy
            && (operations == 0 || magnitude >= LEVELS)
        {
            bail_input!(
                "data.augment.policy has {operations} operations of magnitude {magnitude}: at least one operation, magnitude 0 to {}",
                LEVELS - 1
            );
        }
        Ok(())
    }

    /// Whether images stay as they are.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Whether images of a batch are mixed.
    pub fn mixes(&self) -> bool {
        self.mixup > 0.0 || self.cutmix > 0.0
    }

    /// Draws what happens to an image that has been cut, in order.
    pub fn draw(&self, form: ImageForm, random: &mut Random) -> Vec<Operation> {
        let mut plan = Vec::new();
        let padding = self.crop_padding as u32;
        let mut offset = || match padding {
            0 => 0,
            _ => i64::from(random.below(2 * padding + 1)) - i64::from(padding),
        };
        let (down, right) = (offset(), offset());
        let mirrored = self.flip && random.below(2) == 1;
        if (down, right, mirrored) != (0, 0, false) {
            plan.push(Operation::Shift { down, right, mirrored });
        }
        if self.vertical_flip && random.below(2) == 1 {
            plan.push(Operation::FlipVertically);
        }
        let lookup = self.lookup;
        if self.rotation > 0.0 {
            let angle = random.between([-self.rotation, self.rotation]);
            plan.push(Operation::Rotate { angle, lookup });
        }
        if let Some(affine) = &self.affine {
            plan.push(Operation::Affine { affine: affine.draw(form.size, random), lookup });
        }
        if let Some(policy) = &self.policy {
            policy.draw(form, lookup, random, &mut plan);
        }
        if let Some(jitter) = &self.color_jitter {
            jitter.draw(random, &mut plan);
        }
        if self.grayscale > 0.0 && random.happens(self.grayscale) {
            plan.push(Operation::Grayscale);
        }
        if let Some(Blur { probability, kernel_size, sigma }) = self.blur
            && (probability >= 1.0 || random.happens(probability))
        {
            plan.push(Operation::Blur { kernel_size, sigma: random.between(sigma) });
        }
        if let Some(erasing) = &self.erasing {
            plan.extend(erasing.draw(form.size, random));
        }
        plan
    }

    /// Draws how the images of a batch of this form are mixed, if they are.
    pub fn draw_mix(&self, form: ImageForm, random: &mut Random) -> Result<Option<Mix>> {
        Ok(match (self.mixup > 0.0, self.cutmix > 0.0) {
            (false, false) => None,
            (true, true) if random.below(2) == 1 => Some(Mix::cutmix(self.cutmix, form.size, random)?),
            (true, _) => Some(Mix::mixup(self.mixup, random)?),
            (false, true) => Some(Mix::cutmix(self.cutmix, form.size, random)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Draw;

    const FORM: ImageForm = ImageForm { channels: 1, size: [4, 5] };
    const CONTEXT: Context = Context { form: FORM, mean: &[0.5], std: &[0.25] };

    fn varied(config: &AugmentConfig, sample: usize, epoch: u64, copy: u32) -> Vec<u8> {
        let mut image: Vec<u8> = (1..=FORM.bytes() as u8).collect();
        let draw = Draw { seed: 3, epoch, train: true, copies: &[] };
        let mut random = Random::of_sample(draw, sample, copy);
        let mut spare = Vec::new();
        for operation in config.draw(FORM, &mut random) {
            operation.apply(&mut image, &mut spare, CONTEXT, &mut random);
        }
        image
    }

    #[test]
    fn a_variation_is_a_shifted_and_perhaps_mirrored_image() {
        let config = AugmentConfig { crop_padding: 2, flip: true, ..Default::default() };
        let image: Vec<u8> = (1..=FORM.bytes() as u8).collect();
        let at = |y: i64, x: i64| match (0..4).contains(&y) && (0..5).contains(&x) {
            true => image[y as usize * 5 + x as usize],
            false => 0,
        };
        let mut seen = std::collections::BTreeSet::new();
        for sample in 0..400 {
            let result = varied(&config, sample, 0, 0);
            let matches = |down: i64, right: i64, mirrored: bool| {
                (0..20).all(|position| {
                    let (y, x) = ((position / 5) as i64, (position % 5) as i64);
                    let x = if mirrored { 4 - x } else { x };
                    result[position] == at(y + down, x + right)
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
    fn a_variation_depends_on_sample_epoch_and_copy_only() {
        let config = AugmentConfig { crop_padding: 2, flip: true, ..Default::default() };
        assert_eq!(varied(&config, 5, 1, 0), varied(&config, 5, 1, 0));
        assert!((0..20).any(|sample| varied(&config, sample, 1, 0) != varied(&config, sample, 2, 0)));
        assert!((0..20).any(|sample| varied(&config, sample, 1, 0) != varied(&config, sample, 1, 1)));
        assert_eq!(varied(&AugmentConfig::default(), 5, 1, 0), (1..=20).collect::<Vec<u8>>());
    }

    #[test]
    fn what_is_drawn_stays_within_its_limits() {
        let draw = Draw { seed: 1, epoch: 0, train: true, copies: &[] };
        let (mut areas, mut erased) = (Vec::new(), 0);
        for sample in 0..500 {
            let mut random = Random::of_sample(draw, sample, 0);
            let size = [60 + sample % 50, 90];
            let Rectangle { top, left, height, width } = ResizedCrop::default().draw(size, &mut random);
            assert!(height > 0 && width > 0 && top + height <= size[0] && left + width <= size[1]);
            areas.push((height * width) as f64 / (size[0] * size[1]) as f64);
            if let Some(Operation::Erase { part, .. }) = Erasing::default().draw(size, &mut random) {
                assert!(part.top + part.height <= size[0] && part.left + part.width <= size[1]);
                let share = (part.height * part.width) as f64 / (size[0] * size[1]) as f64;
                assert!((0.01..0.36).contains(&share), "{share}");
                erased += 1;
            }
        }
        let mean = areas.iter().sum::<f64>() / areas.len() as f64;
        assert!((0.4..0.6).contains(&mean), "{mean}");
        assert!((200..300).contains(&erased), "{erased}");
        // An image too long for any allowed shape is cut in its middle.
        let part = ResizedCrop { scale: [1.0, 1.0], ..Default::default() }
            .draw([10, 100], &mut Random::of_sample(draw, 0, 0));
        assert_eq!(part, Rectangle { top: 0, left: 43, height: 10, width: 13 });
    }

    #[test]
    fn mixing_weights_follow_the_beta_distribution() -> Result<()> {
        let draw = Draw { seed: 1, epoch: 0, train: true, copies: &[] };
        for alpha in [0.2, 1.0, 4.0] {
            let weights = (0..2000)
                .map(|sample| match Mix::mixup(alpha, &mut Random::of_batch(draw, sample, 0))? {
                    Mix::Mixup { weight } => Ok(weight),
                    Mix::CutMix { weight, .. } => Ok(weight),
                })
                .collect::<Result<Vec<f64>>>()?;
            let mean = weights.iter().sum::<f64>() / 2000.0;
            let variance = weights.iter().map(|weight| (weight - 0.5).powi(2)).sum::<f64>() / 2000.0;
            let expected = 1.0 / (4.0 * (2.0 * alpha + 1.0));
            assert!((mean - 0.5).abs() < 0.04, "{alpha}: mean {mean}");
            assert!((variance / expected - 1.0).abs() < 0.1, "{alpha}: variance {variance}, not {expected}");
        }
        Ok(())
    }
}
