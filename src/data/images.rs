//! The `data` section of image recipes, and how a data set is opened.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::augment::AugmentConfig;
use super::decode::{ImageForm, decode};
use super::image_dataset::{ImageDataset, Reading};
use super::image_list::{is_list, read_list};
use super::image_source::{Bytes, EncodedImages, ImageSource, ImageStore};
use super::image_tree::{LabelledImages, Part, is_image_name, member_names, read_archives, read_folder};
use super::order::hold_out;
use super::pixel_cache::Budget;
use super::resize::Resize;
use super::shards::{ShardedParts, read_shards};
use super::{Splits, cifar, idx};
use crate::native::layout::channels_last;
use crate::native::lookup::{ByteTable, look_up};
use crate::recipe::nearest_hint;
use crate::{bad_input, bail_input, files};

/// The `data` section of an image recipe.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ImageDataConfig {
    /// What is at `path`, or the compiled-in `mnist-mini`.
    #[serde(default)]
    pub format: ImageFormat,
    /// Where the data are; not for compiled-in sets.
    pub path: Option<PathBuf>,
    /// Share of the training part held out for validation where the set has no validation part of its own; 0 for none.
    #[serde(default = "a_tenth")]
    pub val_fraction: f64,
    /// Share of the training part held out for the test where the set has no test part of its own; 0 for none.
    #[serde(default)]
    pub test_fraction: f64,
    /// Names of the classes in the order of their numbers; those of the data if left out.
    pub classes: Option<Vec<String>>,
    /// 1 for grey, 3 for colour; the data's own, or 3 for image files, if left out.
    pub channels: Option<usize>,
    /// Height and width that images are scaled and cut to; their own, which must then be one, if left out.
    pub image_size: Option<[usize; 2]>,
    /// How they are scaled to it.
    #[serde(default)]
    pub resize: Resize,
    /// Mean of each channel, of values in 0..1, subtracted from the input. One value serves all channels.
    #[serde(default = "zero")]
    pub mean: Vec<f64>,
    /// What the input is divided by after that, likewise.
    #[serde(default = "one")]
    pub std: Vec<f64>,
    /// Variations of training images.
    #[serde(default)]
    pub augment: AugmentConfig,
    /// Decode large JPEG files for training at a half, a quarter or an eighth of their size where the model's input needs no more: faster, not to the
    /// bit the same. Evaluation and prediction never do.
    #[serde(default)]
    pub scaled_decoding: bool,
    /// Megabytes of decoded images that are kept in memory from one epoch to the next.
    #[serde(default)]
    pub cache_mb: usize,
    /// Read tar archives in sequence and shuffle through a buffer of so many images, for sets larger than memory; by positions in random order if
    /// left out.
    #[serde(default)]
    pub shuffle_buffer: Option<usize>,
    /// Whether an image may have several labels, or none; for tables of files, whose labels are then joined by `;` (in JSON lines: a list).
    #[serde(default)]
    pub multi_label: bool,
    /// Leave out image files that cannot be decoded, after looking at all of them once, instead of stopping at the first.
    #[serde(default)]
    pub skip_bad: bool,
}

/// Forms of image data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageFormat {
    /// Whatever the path turns out to be.
    #[default]
    Auto,
    /// The compiled-in part of MNIST: 10,000 training and 2,000 test images (`assets/README.md`).
    MnistMini,
    /// A folder of MNIST's files.
    Idx,
    /// CIFAR's binary files: a folder, an archive or one file.
    Cifar,
    /// Folders that name classes.
    Folder,
    /// Tar archives of such folders, or of WebDataset samples.
    Tar,
    /// A table of files: CSV, TSV or JSON lines.
    List,
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

/// A limit that a number of bytes still has room for.
const MOST_CACHE_MB: usize = 1 << 40;

/// The name of the compiled-in set on the command line.
pub const MNIST_MINI: &str = "mnist-mini";

macro_rules! mnist_mini_part {
    ($part:literal) => {
        idx::parse(
            concat!("mnist-mini ", $part),
            Bytes::of(
                $part,
                include_bytes!(concat!("../../assets/mnist-mini/", $part, "-images-idx3-ubyte.gz")),
            )?,
            concat!("mnist-mini ", $part, " labels"),
            Bytes::of(
                $part,
                include_bytes!(concat!("../../assets/mnist-mini/", $part, "-labels-idx1-ubyte.gz")),
            )?,
        )
    };
}

/// The parts of a source, before validation samples are held out.
struct Opened {
    train: Arc<dyn ImageSource>,
    validation: Option<Arc<dyn ImageSource>>,
    test: Option<Arc<dyn ImageSource>>,
    /// Names of the classes, where the data give them.
    classes: Option<Vec<String>>,
    warnings: Vec<String>,
}

/// A data set ready to train on, with what it found out about itself.
pub struct OpenedImages {
    /// Training, validation and test part.
    pub splits: Splits<ImageDataset>,
    /// Channels and size of every image.
    pub form: ImageForm,
    /// Names of the classes, where the data give them.
    pub classes: Option<Vec<String>>,
    /// What the user should know.
    pub warnings: Vec<String>,
}

impl ImageDataConfig {
    /// Checks every value on its own.
    pub fn validate(&self) -> Result<()> {
        if self.format == ImageFormat::MnistMini && self.path.is_some() {
            bail_input!(
                "data.path: {MNIST_MINI} is compiled in and has no path; leave out --data or set data.format"
            );
        }
        if self.multi_label && !matches!(self.format, ImageFormat::Auto | ImageFormat::List) {
            bail_input!("data.multi_label needs a CSV, TSV or JSONL table of files with their labels");
        }
        if self.format != ImageFormat::MnistMini && self.path.is_none() {
            bail_input!("data.path is missing: give --data DIR");
        }
        for (key, value) in [("val_fraction", self.val_fraction), ("test_fraction", self.test_fraction)] {
            if !(0.0..1.0).contains(&value) {
                bail_input!("data.{key} is {value}: it must be at least 0 and below 1");
            }
        }
        if self.channels.is_some_and(|channels| ![1, 3].contains(&channels)) {
            bail_input!("data.channels must be 1 (grey) or 3 (colour)");
        }
        if self.image_size.is_some_and(|size| size.contains(&0)) {
            bail_input!("data.image_size must be at least 1 × 1");
        }
        if let Some(side) = self.resize.shorter_side {
            match self.image_size {
                Some([height, width]) if side < height.max(width) => bail_input!(
                    "data.resize.shorter_side is {side}, too small to cut data.image_size, {height} × {width}, out of it"
                ),
                Some(_) => {}
                None => bail_input!(
                    "data.resize.shorter_side needs data.image_size, which is cut out of the scaled image"
                ),
            }
        }
        if self.mean.is_empty()
            || self.std.is_empty()
            || self.std.iter().any(|&value| value.is_nan() || value <= 0.0)
        {
            bail_input!("data.mean and data.std need a value per channel (or one for all), std above 0");
        }
        if self.shuffle_buffer.is_some() && !matches!(self.format, ImageFormat::Auto | ImageFormat::Tar) {
            bail_input!("data.shuffle_buffer is for tar archives, which data.format says these are not");
        }
        if self.shuffle_buffer.is_some_and(|buffer| buffer == 0 || u32::try_from(buffer).is_err()) {
            bail_input!("data.shuffle_buffer must be at least 1");
        }
        if self.shuffle_buffer.is_some() && self.skip_bad {
            bail_input!(
                "data.skip_bad would read all of the archives that data.shuffle_buffer reads one after the other: leave one out"
            );
        }
        if self.scaled_decoding && self.cache_mb > 0 && self.augment.resized_crop.is_some() {
            bail_input!(
                "data.cache_mb keeps whole images for data.augment.resized_crop, data.scaled_decoding never has them: leave one out"
            );
        }
        if self.cache_mb > MOST_CACHE_MB {
            bail_input!("data.cache_mb is {}: it must be at most {MOST_CACHE_MB}", self.cache_mb);
        }
        self.augment.validate()
    }

    /// Finds out the format of the path, and makes the path absolute so that the run can be resumed from another folder.
    pub fn resolve(&mut self) -> Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let path = path.canonicalize().map_err(|error| files::cannot_read(path, &error))?;
        if self.format == ImageFormat::Auto {
            self.format = detect(&path)?;
            self.validate()?;
        }
        self.path = Some(path);
        Ok(())
    }

    /// Opens the parts of the data set. `names` are the classes that a trained model knows, which the data must then have too.
    pub fn open(&self, seed: u64) -> Result<OpenedImages> {
        let opened = self.open_source()?;
        if let (Some(known), Some(found)) = (&self.classes, &opened.classes)
            && known != found
        {
            let different = known.iter().zip(found).find(|(known, found)| known != found);
            let example = different.map_or_else(
                || format!("{} classes against {}", found.len(), known.len()),
                |(known, found)| format!("`{found}` where `{known}` is expected"),
            );
            bail_input!("the classes of the data are not those of the run: {example}");
        }
        let form = self.form(opened.train.as_ref())?;
        for source in [&opened.validation, &opened.test].into_iter().flatten() {
            self.require_size(source.as_ref(), form)?;
        }
        let reading = Arc::new(Reading {
            form,
            free_size: self.image_size.is_some(),
            resize: self.resize,
            augment: self.augment.clone(),
            scaled_decoding: self.scaled_decoding,
            mean: Self::per_channel(&self.mean, form.channels, "mean")?,
            std: Self::per_channel(&self.std, form.channels, "std")?,
            labels_per_image: opened.classes.as_ref().filter(|_| self.multi_label).map(Vec::len),
        });
        let dataset = |source: &Arc<dyn ImageSource>, samples: Vec<usize>| {
            ImageDataset::new(source.clone(), samples, reading.clone())
        };
        let whole = |source: &Arc<dyn ImageSource>| dataset(source, (0..source.len()).collect());

        let mut learned: Vec<usize> = (0..opened.train.len()).collect();
        let mut take = |fraction: f64, seed: u64| -> Result<Option<ImageDataset>> {
            let (kept, held_out) = hold_out(learned.len(), fraction, seed)?;
            let pick = |positions: Vec<usize>| {
                positions.into_iter().map(|position| learned[position]).collect::<Vec<_>>()
            };
            let held_out = pick(held_out);
            learned = pick(kept);
            Ok((!held_out.is_empty()).then(|| dataset(&opened.train, held_out)))
        };
        let test = match &opened.test {
            Some(source) => Some(whole(source)),
            // Another seed, or the same samples would be first in both draws.
            None => take(self.test_fraction, seed.wrapping_add(1))?,
        };
        let validation = match &opened.validation {
            Some(source) => Some(whole(source)),
            None => take(self.val_fraction, seed)?,
        };
        let budget = Arc::new(Budget::new(self.cache_mb * 1_000_000));
        let caching = |part: ImageDataset, trains: bool| match self.cache_mb {
            0 => part,
            _ => part.with_cache(&budget, trains),
        };
        let train = caching(dataset(&opened.train, learned), true);
        let train = match self.shuffle_buffer {
            Some(buffer) => train.read_in_sequence(buffer),
            None => train,
        };
        let validation = validation.map(|part| caching(part, false));
        Ok(OpenedImages {
            splits: Splits { train, validation, test },
            form,
            classes: opened.classes,
            warnings: opened.warnings,
        })
    }

    fn open_source(&self) -> Result<Opened> {
        let memory = |store: ImageStore| -> Arc<dyn ImageSource> { Arc::new(store) };
        let plain = |train: ImageStore, test: Option<ImageStore>, classes| Opened {
            train: memory(train),
            validation: None,
            test: test.map(memory),
            classes,
            warnings: Vec::new(),
        };
        let Some(path) = &self.path else {
            return Ok(plain(mnist_mini_part!("train")?, Some(mnist_mini_part!("t10k")?), None));
        };
        match self.format {
            ImageFormat::MnistMini | ImageFormat::Auto => {
                bail_input!("data.format does not fit {}", path.display())
            }
            ImageFormat::Idx => match idx::read_part(path, "train")? {
                Some(train) => Ok(plain(train, idx::read_part(path, "t10k")?, None)),
                None => bail_input!("{} holds no train-images-idx3-ubyte[.gz]", path.display()),
            },
            ImageFormat::Cifar => {
                let cifar = cifar::read(path)?;
                Ok(plain(cifar.train, cifar.test, cifar.classes))
            }
            ImageFormat::Folder => self.encoded(read_folder(path)?),
            ImageFormat::Tar if self.shuffle_buffer.is_some() => sharded(&archives(path)?),
            ImageFormat::Tar => self.encoded(read_archives(&archives(path)?)?),
            ImageFormat::List => self.encoded(read_list(path, self.multi_label)?),
        }
    }

    fn encoded(&self, images: LabelledImages) -> Result<Opened> {
        let LabelledImages { classes, mut parts, label_sets } = images;
        if self.multi_label && label_sets.is_none() {
            bail_input!("data.multi_label needs a CSV, TSV or JSONL table of files with their labels");
        }
        let label_sets = label_sets.map(Arc::new);
        let mut warnings = Vec::new();
        let mut source = |part: Part| -> Option<Arc<dyn ImageSource>> {
            let mut images = EncodedImages::new(parts.remove(&part)?, label_sets.clone());
            if self.skip_bad {
                let messages = images.drop_unreadable();
                if let Some(first) = messages.first() {
                    warnings.push(format!(
                        "{} unreadable images are left out; the first: {first}",
                        messages.len()
                    ));
                }
            }
            (!images.is_empty()).then(|| Arc::new(images) as Arc<dyn ImageSource>)
        };
        let (train, validation, test) = (source(Part::Train), source(Part::Validation), source(Part::Test));
        match train {
            Some(train) => Ok(Opened { train, validation, test, classes: Some(classes), warnings }),
            None => bail_input!("no training image is left"),
        }
    }

    /// Channels and size of every image: as the recipe says, else as the first image is.
    fn form(&self, source: &dyn ImageSource) -> Result<ImageForm> {
        let first = source.image(0)?;
        let own_channels = match &first {
            super::decode::RawImage::Planar { form, .. } => form.channels,
            super::decode::RawImage::Decoded(_) => 3,
        };
        Ok(ImageForm {
            channels: self.channels.unwrap_or(own_channels),
            size: self.image_size.unwrap_or_else(|| first.size()),
        })
    }

    /// Refuses a part whose first image shows that it has another size, before anything is trained.
    fn require_size(&self, source: &dyn ImageSource, form: ImageForm) -> Result<()> {
        match self.image_size {
            None => require_size(&source.describe(0), source.image(0)?.size(), form),
            Some(_) => Ok(()),
        }
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
        let mut normalisation = Normalisation {
            factor: column(std.iter().map(|std| 1.0 / (255.0 * std)).collect())?,
            offset: column(mean.iter().zip(&std).map(|(mean, std)| -mean / std).collect())?,
            tables: Vec::new(),
            channels_last: false,
        };
        let bytes = Tensor::f_arange(256, (Kind::Uint8, Device::Cpu))?.f_view([1, 1, 1, 256])?;
        let values = normalisation.compute(&bytes)?.f_contiguous()?.f_view(-1)?;
        let values = Vec::<f32>::try_from(&values)?;
        normalisation.tables = values.as_chunks().0.to_vec();
        Ok(normalisation)
    }
}

/// The parts of archives that are read in sequence.
fn sharded(paths: &[PathBuf]) -> Result<Opened> {
    let ShardedParts { classes, mut parts } = read_shards(paths)?;
    let mut source = |part: Part| parts.remove(&part).map(|images| Arc::new(images) as Arc<dyn ImageSource>);
    let (train, validation, test) = (source(Part::Train), source(Part::Validation), source(Part::Test));
    match train {
        Some(train) => Ok(Opened { train, validation, test, classes: Some(classes), warnings: Vec::new() }),
        None => bail_input!("the archives hold no training image"),
    }
}

/// Refuses an image of another size where images are not scaled.
pub(super) fn require_size(name: &str, size: [usize; 2], form: ImageForm) -> Result<()> {
    let ([height, width], [own_height, own_width]) = (form.size, size);
    if size != form.size {
        bail_input!(
            "{name} is {own_height} × {own_width} pixels but the first training image is {height} × {width}: give --set \
             data.image_size=[{height},{width}] to scale all to one size"
        );
    }
    Ok(())
}

fn is_archive(path: &Path) -> bool {
    let name = path.file_name().map(|name| name.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    [".tar", ".tar.gz", ".tgz"].iter().any(|ending| name.ends_with(ending))
}

/// The archive given, or all those in the folder given, in order of their names.
fn archives(path: &Path) -> Result<Vec<PathBuf>> {
    if path.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = std::fs::read_dir(path).map_err(|error| files::cannot_read(path, &error))?;
    let mut found: Vec<PathBuf> =
        entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| is_archive(path)).collect();
    found.sort();
    Ok(found)
}

/// What a path holds.
fn detect(path: &Path) -> Result<ImageFormat> {
    if path.is_dir() {
        if idx::is_idx_folder(path) {
            return Ok(ImageFormat::Idx);
        }
        if cifar::find_folder(path).is_some() {
            return Ok(ImageFormat::Cifar);
        }
        if !archives(path)?.is_empty() {
            return Ok(ImageFormat::Tar);
        }
        return Ok(ImageFormat::Folder);
    }
    if is_list(path) {
        return Ok(ImageFormat::List);
    }
    if path.extension().is_some_and(|extension| extension == "bin") {
        return Ok(ImageFormat::Cifar);
    }
    if is_archive(path) {
        let names = member_names(path)?;
        let cifar = |name: &PathBuf| {
            name.file_name().is_some_and(|name| cifar::is_cifar_name(&name.to_string_lossy()))
        };
        return match names.iter().any(|name| is_image_name(name)) {
            false if names.iter().any(cifar) => Ok(ImageFormat::Cifar),
            _ => Ok(ImageFormat::Tar),
        };
    }
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    Err(bad_input!(
        "data.path: {} is no data set that is known here{}: give a folder of images, MNIST or CIFAR files, a tar archive, or a CSV, TSV or JSONL list",
        path.display(),
        nearest_hint(&name, [MNIST_MINI])
    ))
}

/// (pixel / 255 − mean) / std, as one multiplication and one addition per value.
#[derive(Debug)]
pub struct Normalisation {
    factor: Tensor,
    offset: Tensor,
    /// What it makes of each byte, per channel: on the CPU, looking that up is faster than computing it.
    tables: Vec<ByteTable>,
    /// Whether the result has its channels innermost.
    channels_last: bool,
}

impl Normalisation {
    /// The same on another device, in the layout that the network takes there.
    pub fn to_device(&self, device: Device, channels_last: bool) -> Result<Self> {
        Ok(Self {
            factor: self.factor.f_to_device(device)?,
            offset: self.offset.f_to_device(device)?,
            tables: self.tables.clone(),
            channels_last,
        })
    }

    /// `[batch, channels, height, width]` bytes to floats.
    pub fn apply(&self, pixels: &Tensor) -> Result<Tensor> {
        match pixels.device() {
            Device::Cpu => look_up(pixels, &self.tables, self.channels_last),
            _ if self.channels_last => channels_last(&self.compute(pixels)?),
            _ => self.compute(pixels),
        }
    }

    fn compute(&self, pixels: &Tensor) -> Result<Tensor> {
        Ok(self.offset.f_addcmul(&pixels.f_to_kind(Kind::Float)?, &self.factor)?)
    }
}

/// Decodes an image file to the form of a model's input.
pub fn decode_file(path: &Path, form: ImageForm, resize: Resize, pixels: &mut Vec<u8>) -> Result<()> {
    let image = decode(&path.display().to_string(), &files::read(path)?)?;
    super::decode::RawImage::Decoded(image).append_fitted(form, resize, pixels)
}
