//! Data sets of labelled images over any source, and the batches made of them.

use std::sync::Arc;

use anyhow::Result;
use clap::ValueEnum;
use tch::{Device, Kind, Tensor};

use super::augment::mixing::Mix;
use super::augment::{AugmentConfig, Context, Rectangle, ResizedCrop};
use super::decode::{ImageForm, RawImage};
use super::fingerprint::Fingerprint;
use super::image_source::ImageSource;
use super::images::require_size;
use super::pixel_cache::{Budget, PixelCache};
use super::random::Random;
use super::resize::Resize;
use super::{Batch, Dataset, Draw, Stretches};
use crate::reporting::{png, png_thumbnail};
use crate::{bad_input, bail_input};

/// How a source's images become a model's input.
#[derive(Clone, Debug)]
pub struct Reading {
    /// Channels and size of every image.
    pub form: ImageForm,
    /// Whether images of other sizes are scaled; else they are errors.
    pub free_size: bool,
    /// How they are scaled.
    pub resize: Resize,
    /// Variations in training.
    pub augment: AugmentConfig,
    /// Whether training decodes large files at a smaller scale.
    pub scaled_decoding: bool,
    /// Mean of each channel.
    pub mean: Vec<f64>,
    /// Standard deviation of each channel.
    pub std: Vec<f64>,
    /// How many labels there are to choose several from; none where an image has one class.
    pub labels_per_image: Option<usize>,
}

/// Several looks at each image in an evaluation, whose probabilities are averaged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Views {
    /// The image as it is.
    #[default]
    None,
    /// Also mirrored.
    Flip,
    /// The four corners and the middle (`FiveCrop`).
    FiveCrop,
    /// These, and these mirrored (`TenCrop`).
    TenCrop,
}

impl Views {
    /// How many looks that are.
    pub fn count(self) -> i64 {
        match self {
            Self::None => 1,
            Self::Flip => 2,
            Self::FiveCrop => 5,
            Self::TenCrop => 10,
        }
    }
}

/// Some of the images of a source, in one form.
#[derive(Clone)]
pub struct ImageDataset {
    source: Arc<dyn ImageSource>,
    samples: Vec<usize>,
    reading: Arc<Reading>,
    /// Decoded images, and whether they are kept as training takes them.
    cache: Option<(Arc<PixelCache>, bool)>,
    /// Images held back in a shuffle buffer, where the source is read in sequence.
    buffer: Option<usize>,
    views: Views,
    /// What batches hold in place of pixels.
    features: Option<Arc<Features>>,
}

/// What a frozen backbone makes of each sample of a data set.
#[derive(Debug)]
pub struct Features {
    /// Shape of one sample's.
    pub shape: Vec<i64>,
    /// Sample after sample.
    pub values: Vec<f32>,
}

impl ImageDataset {
    /// The samples at these positions of a source.
    pub fn new(source: Arc<dyn ImageSource>, samples: Vec<usize>, reading: Arc<Reading>) -> Self {
        Self { source, samples, reading, cache: None, buffer: None, views: Views::None, features: None }
    }

    /// The same, with decoded images kept as far as the budget goes: as training takes them, or as evaluation does.
    pub fn with_cache(self, budget: &Arc<Budget>, trains: bool) -> Self {
        if !self.source.is_encoded() {
            return self;
        }
        let cache = PixelCache::new(self.samples.len(), budget.clone());
        Self { cache: Some((Arc::new(cache), trains)), ..self }
    }

    /// The same, in an order that reads the source in sequence.
    pub fn read_in_sequence(self, buffer: usize) -> Self {
        Self { buffer: Some(buffer), ..self }
    }

    /// The same samples with features in place of pixels; one for each sample, in their order.
    pub fn with_features(&self, features: Features) -> Self {
        Self { features: Some(Arc::new(features)), ..self.clone() }
    }

    /// The same with several looks at each image.
    ///
    /// # Errors
    /// Crops are asked for, but images are not scaled to more than the input.
    pub fn with_views(&self, views: Views) -> Result<Self> {
        let margin = match self.reading.resize.shorter_side {
            Some(side) if self.reading.free_size => side > self.form().size[0].min(self.form().size[1]),
            _ => false,
        };
        if matches!(views, Views::FiveCrop | Views::TenCrop) && !margin {
            bail_input!(
                "crops need images larger than the input: data.resize.shorter_side must be above data.image_size; flip needs nothing"
            );
        }
        Ok(Self { views, ..self.clone() })
    }

    /// Whether a sample looks different in each epoch.
    pub fn is_varied(&self) -> bool {
        !self.reading.augment.is_none()
    }

    /// Channels and size of every image.
    pub fn form(&self) -> ImageForm {
        self.reading.form
    }

    /// The class of each sample.
    pub fn labels(&self) -> impl Iterator<Item = i64> {
        self.samples.iter().map(|&sample| self.source.label(sample))
    }

    /// Appends the bytes of one sample as an evaluation sees it, `[channel, height, width]`.
    pub fn append_image(&self, sample: usize, pixels: &mut Vec<u8>) -> Result<()> {
        let image = self.source.image(self.samples[sample])?;
        self.require_size(sample, image.size())?;
        image.append_fitted(self.form(), self.reading.resize, pixels)
    }

    fn require_size(&self, sample: usize, size: [usize; 2]) -> Result<()> {
        match self.reading.free_size {
            true => Ok(()),
            false => require_size(&self.describe(sample), size, self.form()),
        }
    }

    /// The cache, if it is of the kind of image that is asked for.
    fn cache(&self, train: bool) -> Option<&PixelCache> {
        self.cache.as_ref().filter(|(_, trains)| *trains == train).map(|(cache, _)| cache.as_ref())
    }

    /// Appends a sample in the form of the input, not varied.
    fn append_base(&self, sample: usize, train: bool, pixels: &mut Vec<u8>) -> Result<()> {
        let cache = self.cache(train);
        if let Some(kept) = cache.and_then(|cache| cache.get(sample)) {
            pixels.extend_from_slice(&kept.pixels);
            return Ok(());
        }
        let start = pixels.len();
        if train && self.reading.scaled_decoding {
            let (form, resize) = (self.form(), self.reading.resize);
            let mut least = |size: [usize; 2]| resize.scaled(size, form.size);
            let (image, size) = self.source.scaled_image(self.samples[sample], &mut least)?;
            self.require_size(sample, size)?;
            image.append_fitted(form, resize, pixels)?;
        } else {
            self.append_image(sample, pixels)?;
        }
        if let Some(cache) = cache {
            cache.offer(sample, self.form().size, &pixels[start..]);
        }
        Ok(())
    }

    /// Appends a random part of a sample, scaled to the form of the input.
    fn append_crop(
        &self,
        sample: usize,
        crop: ResizedCrop,
        random: &mut Random,
        spare: &mut Vec<u8>,
        pixels: &mut Vec<u8>,
    ) -> Result<()> {
        let (form, interpolation) = (self.form(), self.reading.resize.interpolation);
        let cache = self.cache(true);
        let kept = |size: [usize; 2]| ImageForm { channels: form.channels, size };
        if let Some(known) = cache.and_then(|cache| cache.get(sample)) {
            let image = RawImage::Planar { form: kept(known.size), pixels: &known.pixels };
            let part = crop.draw(known.size, random);
            return image.append_stretched(part, form, interpolation, spare, pixels);
        }
        let mut part = Rectangle { top: 0, left: 0, height: 0, width: 0 };
        let mut least = |size: [usize; 2]| {
            part = crop.draw(size, random);
            let sides = [part.height, part.width];
            let needed = |axis: usize| (size[axis] * form.size[axis]).div_ceil(sides[axis]).min(size[axis]);
            if self.reading.scaled_decoding { [needed(0), needed(1)] } else { size }
        };
        let (image, size) = self.source.scaled_image(self.samples[sample], &mut least)?;
        self.require_size(sample, size)?;
        let decoded = image.size();
        if decoded != size {
            part = scaled_part(part, size, decoded);
        }
        match cache {
            Some(cache) if cache.has_room(form.channels * decoded[0] * decoded[1]) => {
                let mut whole = Vec::new();
                image.append_part(image.whole(), form.channels, &mut whole)?;
                cache.offer(sample, decoded, &whole);
                let image = RawImage::Planar { form: kept(decoded), pixels: &whole };
                image.append_stretched(part, form, interpolation, spare, pixels)
            }
            _ => image.append_stretched(part, form, interpolation, spare, pixels),
        }
    }

    /// Appends the several looks at a sample.
    fn append_views(&self, sample: usize, pixels: &mut Vec<u8>) -> Result<()> {
        let ImageForm { channels, size: [height, width] } = self.form();
        let mirrored = |from: usize, pixels: &mut Vec<u8>| {
            let rows = from / width..pixels.len() / width;
            for row in rows {
                let begin = pixels.len();
                pixels.extend_from_within(row * width..(row + 1) * width);
                pixels[begin..].reverse();
            }
        };
        let start = pixels.len();
        match self.views {
            Views::None => self.append_base(sample, false, pixels)?,
            Views::Flip => {
                self.append_base(sample, false, pixels)?;
                mirrored(start, pixels);
            }
            Views::FiveCrop | Views::TenCrop => {
                let image = self.source.image(self.samples[sample])?;
                let (mut whole, mut scaled) = (Vec::new(), Vec::new());
                image.append_part(image.whole(), channels, &mut whole)?;
                let size = self.reading.resize.scaled(image.size(), [height, width]);
                let scaler = self.reading.resize.whole_scaler(image.size(), [height, width]);
                let [own_height, own_width] = image.size();
                for plane in whole.chunks_exact(own_height * own_width) {
                    scaler.append_plane(plane, &mut scaled);
                }
                let image = RawImage::Planar { form: ImageForm { channels, size }, pixels: &scaled };
                let (bottom, right) = (size[0] - height, size[1] - width);
                // The middle as torchvision's `center_crop` rounds it.
                let middle = |room: usize| (room as f64 / 2.0).round_ties_even() as usize;
                let corners =
                    [[0, 0], [0, right], [bottom, 0], [bottom, right], [middle(bottom), middle(right)]];
                for [top, left] in corners {
                    image.append_part(Rectangle { top, left, height, width }, channels, pixels)?;
                }
                if self.views == Views::TenCrop {
                    mirrored(start, pixels);
                }
            }
        }
        Ok(())
    }

    /// Refuses labels that the model has no output for.
    pub fn check_labels(&self, classes: i64) -> Result<()> {
        if self.reading.labels_per_image.is_some() {
            return Ok(());
        }
        match (0..self.samples.len()).find(|&sample| !(0..classes).contains(&self.label(sample))) {
            Some(sample) => bail_input!(
                "{} has label {}, outside 0..{} for {classes} classes",
                self.source.describe_label(self.samples[sample]),
                self.label(sample),
                classes - 1
            ),
            None => Ok(()),
        }
    }

    /// The class of a sample.
    pub fn class(&self, sample: usize) -> i64 {
        self.label(sample)
    }

    /// A sample's file as it is, or its pixels as PNG, with the ending of its name.
    pub fn content(&self, sample: usize) -> Result<(Vec<u8>, &'static str)> {
        if let Some(content) = self.source.content(self.samples[sample])? {
            let format = image::guess_format(&content)
                .map_err(|error| bad_input!("{} is no image: {error}", self.describe(sample)))?;
            return Ok((content, format.extensions_str().first().copied().unwrap_or("bin")));
        }
        let image = self.source.image(self.samples[sample])?;
        let [height, width] = image.size();
        let mut planes = Vec::new();
        image.append_part(image.whole(), self.form().channels, &mut planes)?;
        let (height, width) = (height as u32, width as u32);
        let encoded = match self.form().channels {
            1 => png(&planes, height, width, image::ExtendedColorType::L8)?,
            channels => png(&interleaved(&planes, channels), height, width, image::ExtendedColorType::Rgb8)?,
        };
        Ok((encoded, "png"))
    }

    fn label(&self, sample: usize) -> i64 {
        self.source.label(self.samples[sample])
    }

    fn label_tensor(&self, samples: &[usize]) -> Result<Tensor> {
        let Some(width) = self.reading.labels_per_image else {
            let labels: Vec<i64> = samples.iter().map(|&sample| self.label(sample)).collect();
            return Ok(Tensor::f_from_slice(&labels)?);
        };
        let mut labels = vec![0f32; samples.len() * width];
        for (row, &sample) in samples.iter().enumerate() {
            for &class in self.source.label_set(self.samples[sample]).unwrap_or_default() {
                labels[row * width + class as usize] = 1.0;
            }
        }
        Ok(Tensor::f_from_slice(&labels)?.f_view([samples.len() as i64, width as i64])?)
    }
}

/// A part of an image of one size, in whole pixels of the same image at another.
fn scaled_part(part: Rectangle, from: [usize; 2], to: [usize; 2]) -> Rectangle {
    let range = |start: usize, length: usize, axis: usize| {
        let factor = to[axis] as f64 / from[axis] as f64;
        let begin = ((start as f64 * factor).round() as usize).min(to[axis] - 1);
        let end = (((start + length) as f64 * factor).round() as usize).clamp(begin + 1, to[axis]);
        (begin, end - begin)
    };
    let ((top, height), (left, width)) = (range(part.top, part.height, 0), range(part.left, part.width, 1));
    Rectangle { top, left, height, width }
}

impl Features {
    /// Those of some samples, `[batch, …]`.
    fn batch(&self, samples: &[usize]) -> Result<Tensor> {
        let length = self.shape.iter().product::<i64>() as usize;
        let mut values = Vec::with_capacity(samples.len() * length);
        for &sample in samples {
            values.extend_from_slice(&self.values[sample * length..(sample + 1) * length]);
        }
        let mut shape = vec![samples.len() as i64];
        shape.extend(&self.shape);
        Ok(Tensor::f_from_slice(&values)?.f_view(&shape[..])?)
    }
}

/// Images and their classes.
#[derive(Debug)]
pub struct ImageBatch {
    /// Pixels, `[batch · views, channels, height, width]` bytes, or, as floats, the features that a frozen backbone makes of them, `[batch, …]`.
    pub images: Tensor,
    /// Class numbers, `[batch]` int64; where images may have several labels, 1 for each that one has, `[batch, labels]` float32.
    pub labels: Tensor,
    /// How the images and their targets are to be mixed, after normalisation.
    pub mix: Option<Mix>,
    /// How many images in a row show one sample.
    pub views: i64,
}

impl Batch for ImageBatch {
    fn to_device(self, device: Device) -> Result<Self> {
        let (images, labels) = (self.images.f_to_device(device)?, self.labels.f_to_device(device)?);
        Ok(Self { images, labels, ..self })
    }
}

impl Dataset for ImageDataset {
    type Batch = ImageBatch;

    fn len(&self) -> usize {
        self.samples.len()
    }

    fn classes(&self) -> Option<Vec<i64>> {
        self.reading.labels_per_image.is_none().then(|| self.labels().collect())
    }

    fn batch(&self, samples: &[usize], draw: Draw) -> Result<ImageBatch> {
        let labels = self.label_tensor(samples)?;
        if let Some(features) = &self.features {
            return Ok(ImageBatch { images: features.batch(samples)?, labels, mix: None, views: 1 });
        }
        let Reading { form, augment, mean, std, .. } = self.reading.as_ref();
        let views = if draw.train { 1 } else { self.views.count() };
        let mut pixels = Vec::with_capacity(samples.len() * views as usize * form.bytes());
        let context = Context { form: *form, mean, std };
        let copy_of = |place: usize| draw.copies.get(place).copied().unwrap_or(0);
        let (mut image, mut spare) = (Vec::new(), Vec::new());
        for (place, &sample) in samples.iter().enumerate() {
            if !draw.train {
                self.append_views(sample, &mut pixels)?;
            } else if augment.is_none() {
                self.append_base(sample, true, &mut pixels)?;
            } else {
                let mut random = Random::of_sample(draw, self.samples[sample], copy_of(place));
                image.clear();
                match augment.resized_crop {
                    Some(crop) => self.append_crop(sample, crop, &mut random, &mut spare, &mut image)?,
                    None => self.append_base(sample, true, &mut image)?,
                }
                for operation in augment.draw(*form, &mut random) {
                    operation.apply(&mut image, &mut spare, context, &mut random);
                }
                pixels.extend_from_slice(&image);
            }
        }
        let mix = match samples.first() {
            Some(&first) if draw.train => {
                augment.draw_mix(*form, &mut Random::of_batch(draw, self.samples[first], copy_of(0)))?
            }
            _ => None,
        };
        let ImageForm { channels, size: [height, width] } = *form;
        let shape = [samples.len() as i64 * views, channels as i64, height as i64, width as i64];
        Ok(ImageBatch { images: Tensor::f_from_data_size(&pixels, &shape, Kind::Uint8)?, labels, mix, views })
    }

    fn stretches(&self) -> Option<Stretches> {
        let buffer = self.buffer?;
        let mut lengths: Vec<usize> = Vec::new();
        let mut last = None;
        for &sample in &self.samples {
            let stretch = self.source.stretch(sample)?;
            match lengths.last_mut() {
                Some(length) if last == Some(stretch) => *length += 1,
                _ => lengths.push(1),
            }
            last = Some(stretch);
        }
        Some(Stretches { lengths, buffer })
    }

    fn describe(&self, sample: usize) -> String {
        self.source.describe(self.samples[sample])
    }

    /// Labels and names (of images in memory their bytes) of all samples, and the pixels of the first and the last.
    fn fingerprint(&self) -> Result<Fingerprint> {
        let mut fingerprint = Fingerprint::new(self.len());
        for &sample in &self.samples {
            for class in self.source.label_set(sample).unwrap_or(&[self.source.label(sample)]) {
                fingerprint.add(&class.to_le_bytes());
            }
            self.source.identify(sample, &mut fingerprint);
        }
        let mut pixels = Vec::new();
        for sample in [0, self.len().saturating_sub(1)].into_iter().filter(|&sample| sample < self.len()) {
            self.append_image(sample, &mut pixels)?;
        }
        fingerprint.add(&pixels);
        Ok(fingerprint)
    }

    fn picture(&self, sample: usize) -> Result<Option<Vec<u8>>> {
        const LARGEST_SIDE: u32 = 96;
        let ImageForm { channels, size: [height, width] } = self.form();
        let mut planes = Vec::new();
        self.append_image(sample, &mut planes)?;
        let interleaved = interleaved(&planes, channels);
        png_thumbnail(&interleaved, height as u32, width as u32, channels as u8, LARGEST_SIDE).map(Some)
    }
}

/// `[channel, pixel]` bytes to `[pixel, channel]`.
pub fn interleaved(planes: &[u8], channels: usize) -> Vec<u8> {
    let plane = planes.len() / channels;
    (0..plane).flat_map(|pixel| (0..channels).map(move |channel| planes[channel * plane + pixel])).collect()
}
