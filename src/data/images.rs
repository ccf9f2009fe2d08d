//! Labelled images in memory as bytes, the batches made of them, and single images decoded for prediction.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use image::imageops::FilterType;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::order::hold_out;
use super::{Batch, Dataset, Draw, Splits, idx};
use crate::recipe::nearest_hint;
use crate::{bad_input, bail_input, files};

/// The `data` section of an image recipe.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ImageDataConfig {
    /// `mnist-mini` (compiled in), `idx` (a folder in MNIST's format), or `auto`: what the path turns out to be.
    #[serde(default = "auto")]
    pub format: String,
    /// Where the data are; not for compiled-in sets.
    pub path: Option<PathBuf>,
    /// Share of the training part held out for validation where the set has no validation part of its own; 0 for none.
    #[serde(default = "a_tenth")]
    pub val_fraction: f64,
    /// Names of the classes in the order of their numbers; the numbers themselves if left out.
    pub classes: Option<Vec<String>>,
    /// Mean of each channel, of values in 0..1, subtracted from the input. One value serves all channels.
    #[serde(default = "zero")]
    pub mean: Vec<f64>,
    /// What the input is divided by after that, likewise.
    #[serde(default = "one")]
    pub std: Vec<f64>,
}

fn auto() -> String {
    "auto".to_owned()
}

fn a_tenth() -> f64 {
    0.1
}

fn zero() -> Vec<f64> {
    vec![0.0]
}

fn one() -> Vec<f64> {
    vec![1.0]
}

/// The compiled-in part of MNIST: 10,000 training and 2,000 test images (`assets/README.md`).
pub const MNIST_MINI: &str = "mnist-mini";
const IDX: &str = "idx";
const FORMATS: [&str; 3] = ["auto", MNIST_MINI, IDX];

macro_rules! mnist_mini_part {
    ($part:literal) => {
        idx::parse(
            concat!("mnist-mini ", $part, " images"),
            include_bytes!(concat!("../../assets/mnist-mini/", $part, "-images-idx3-ubyte.gz")),
            concat!("mnist-mini ", $part, " labels"),
            include_bytes!(concat!("../../assets/mnist-mini/", $part, "-labels-idx1-ubyte.gz")),
        )
    };
}

impl ImageDataConfig {
    /// Checks every value on its own.
    pub fn validate(&self) -> Result<()> {
        if !FORMATS.contains(&self.format.as_str()) {
            bail_input!(
                "data.format: there is no format `{}`{}",
                self.format,
                nearest_hint(&self.format, FORMATS)
            );
        }
        if self.format == MNIST_MINI && self.path.is_some() {
            bail_input!(
                "data.path: {MNIST_MINI} is compiled in and has no path; leave out --data or set data.format"
            );
        }
        if self.format != MNIST_MINI && self.path.is_none() {
            bail_input!("data.path is missing: give --data DIR");
        }
        if !(0.0..1.0).contains(&self.val_fraction) {
            bail_input!("data.val_fraction is {}: it must be at least 0 and below 1", self.val_fraction);
        }
        if self.mean.is_empty() || self.std.is_empty() || self.std.iter().any(|&value| value <= 0.0) {
            bail_input!("data.mean and data.std need a value per channel (or one for all), std above 0");
        }
        Ok(())
    }

    /// Finds out the format of the path, and makes the path absolute so that the run can be resumed from another folder.
    pub fn resolve(&mut self) -> Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let path = path.canonicalize().map_err(|error| files::cannot_read(path, &error))?;
        if self.format == "auto" {
            if !idx::is_idx_folder(&path) {
                bail_input!(
                    "data.path: {} holds no images that are known here (train-images-idx3-ubyte[.gz] and its labels)",
                    path.display()
                );
            }
            self.format = IDX.to_owned();
        }
        self.path = Some(path);
        Ok(())
    }

    /// Opens the parts of the data set.
    pub fn open(&self, seed: u64) -> Result<Splits<ImageDataset>> {
        let (train, test) = match (self.format.as_str(), &self.path) {
            (MNIST_MINI, _) => (mnist_mini_part!("train")?, Some(mnist_mini_part!("t10k")?)),
            (_, Some(path)) => {
                let part = |name: &str| idx::read_part(path, name);
                let train = part("train")?.with_context(|| {
                    bad_input!("{} holds no train-images-idx3-ubyte[.gz]", path.display())
                })?;
                (train, part("t10k")?)
            }
            (_, None) => bail_input!("data.path is missing: give --data DIR"),
        };
        if let Some(test) = &test
            && test.shape() != train.shape()
        {
            bail_input!(
                "training images are {:?} but test images {:?} (channels, height, width)",
                train.shape(),
                test.shape()
            );
        }
        let train = Arc::new(train);
        let (learned, held_out) = hold_out(train.len(), self.val_fraction, seed)?;
        let validation =
            (!held_out.is_empty()).then(|| ImageDataset { store: train.clone(), samples: held_out });
        Ok(Splits {
            train: ImageDataset { store: train, samples: learned },
            validation,
            test: test.map(ImageDataset::whole),
        })
    }

    /// The value of each of `channels` channels.
    fn per_channel(values: &[f64], channels: usize, key: &str) -> Result<Vec<f64>> {
        match values {
            [value] => Ok(vec![*value; channels]),
            values if values.len() == channels => Ok(values.to_vec()),
            _ => bail_input!("data.{key} has {} values but images have {channels} channels", values.len()),
        }
    }

    /// How images of so many channels are normalised.
    pub fn normalisation(&self, channels: usize) -> Result<Normalisation> {
        let mean = Self::per_channel(&self.mean, channels, "mean")?;
        let std = Self::per_channel(&self.std, channels, "std")?;
        let column = |values: Vec<f64>| -> Result<Tensor> {
            Ok(Tensor::f_from_slice(&values)?.f_to_kind(Kind::Float)?.f_view([1, -1, 1, 1])?)
        };
        Ok(Normalisation {
            factor: column(std.iter().map(|std| 1.0 / (255.0 * std)).collect())?,
            offset: column(mean.iter().zip(&std).map(|(mean, std)| -mean / std).collect())?,
        })
    }
}

/// (pixel / 255 − mean) / std, as one multiplication and one addition per value.
#[derive(Debug)]
pub struct Normalisation {
    factor: Tensor,
    offset: Tensor,
}

impl Normalisation {
    /// The same on another device.
    pub fn to_device(&self, device: Device) -> Result<Self> {
        Ok(Self { factor: self.factor.f_to_device(device)?, offset: self.offset.f_to_device(device)? })
    }

    /// `[batch, channels, height, width]` bytes to floats.
    pub fn apply(&self, pixels: &Tensor) -> Result<Tensor> {
        Ok(self.offset.f_addcmul(&pixels.f_to_kind(Kind::Float)?, &self.factor)?)
    }
}

/// Images of one size with their labels, as bytes.
#[derive(Debug)]
pub struct ImageStore {
    shape: [usize; 3],
    pixels: Vec<u8>,
    labels: Vec<i64>,
}

impl ImageStore {
    /// `pixels` are `[image, channel, height, width]`, one label for each image.
    pub fn new(shape: [usize; 3], pixels: Vec<u8>, labels: Vec<i64>) -> Result<Self> {
        let image = shape.iter().product::<usize>();
        if image * labels.len() != pixels.len() {
            bail_input!("{} bytes are not {} images of {shape:?}", pixels.len(), labels.len());
        }
        Ok(Self { shape, pixels, labels })
    }

    /// Channels, height, width.
    pub fn shape(&self) -> [usize; 3] {
        self.shape
    }

    /// How many images there are.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The class of each image.
    pub fn labels(&self) -> &[i64] {
        &self.labels
    }

    /// The bytes of one image, `[channel, height, width]`.
    pub fn image(&self, position: usize) -> &[u8] {
        let size = self.shape.iter().product::<usize>();
        &self.pixels[position * size..(position + 1) * size]
    }
}

/// Some of the images of a store.
#[derive(Clone, Debug)]
pub struct ImageDataset {
    store: Arc<ImageStore>,
    samples: Vec<usize>,
}

impl ImageDataset {
    /// All images of a store.
    pub fn whole(store: ImageStore) -> Self {
        let samples = (0..store.len()).collect();
        Self { store: Arc::new(store), samples }
    }

    /// Channels, height, width.
    pub fn shape(&self) -> [usize; 3] {
        self.store.shape()
    }

    /// The class of each sample.
    pub fn labels(&self) -> impl Iterator<Item = i64> {
        self.samples.iter().map(|&sample| self.store.labels[sample])
    }

    /// The bytes of one sample, `[channel, height, width]`.
    pub fn image(&self, sample: usize) -> &[u8] {
        self.store.image(self.samples[sample])
    }

    /// Refuses labels that the model has no output for.
    pub fn check_labels(&self, part: &str, classes: i64) -> Result<()> {
        match self.samples.iter().find(|&&sample| !(0..classes).contains(&self.store.labels[sample])) {
            Some(&sample) => bail_input!(
                "{part} image {sample} has label {}, outside 0..{} for {classes} classes",
                self.store.labels[sample],
                classes - 1
            ),
            None => Ok(()),
        }
    }
}

/// Images and their classes.
#[derive(Debug)]
pub struct ImageBatch {
    /// `[batch, channels, height, width]`, bytes.
    pub images: Tensor,
    /// `[batch]`, int64.
    pub labels: Tensor,
}

impl Batch for ImageBatch {
    fn to_device(self, device: Device) -> Result<Self> {
        Ok(Self { images: self.images.f_to_device(device)?, labels: self.labels.f_to_device(device)? })
    }
}

impl Dataset for ImageDataset {
    type Batch = ImageBatch;

    fn len(&self) -> usize {
        self.samples.len()
    }

    fn batch(&self, samples: &[usize], _draw: Draw) -> Result<ImageBatch> {
        let mut pixels = Vec::with_capacity(samples.len() * self.shape().iter().product::<usize>());
        let mut labels = Vec::with_capacity(samples.len());
        for &sample in samples {
            pixels.extend_from_slice(self.image(sample));
            labels.push(self.store.labels[self.samples[sample]]);
        }
        let [channels, height, width] = self.shape().map(|size| size as i64);
        Ok(ImageBatch {
            images: Tensor::f_from_data_size(
                &pixels,
                &[samples.len() as i64, channels, height, width],
                Kind::Uint8,
            )?,
            labels: Tensor::f_from_slice(&labels)?,
        })
    }
}

/// Decodes an image file to the channels and size of a model's input: `[channels, height, width]` bytes. The shorter side is scaled to
/// the input's, bilinearly, and the middle is cut out.
pub fn decode_file(path: &Path, channels: i64, size: [i64; 2]) -> Result<Vec<u8>> {
    let bytes = files::read(path)?;
    let decoded = image::load_from_memory(&bytes)
        .map_err(|error| bad_input!("{} is no readable image: {error}", path.display()))?;
    let [height, width] = size.map(|side| side as u32);
    let fitted = match (decoded.height(), decoded.width()) == (height, width) {
        true => decoded,
        false => decoded.resize_to_fill(width, height, FilterType::Triangle),
    };
    match channels {
        1 => Ok(fitted.to_luma8().into_raw()),
        3 => {
            let interleaved = fitted.to_rgb8().into_raw();
            Ok((0..3).flat_map(|channel| interleaved.iter().skip(channel).step_by(3).copied()).collect())
        }
        _ => bail_input!("the model takes {channels} channels: image files have 1 or 3"),
    }
}
