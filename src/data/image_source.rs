//! Where labelled images come from: memory, files, or archives.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};

use super::decode::{ImageForm, RawImage, decode};
use super::fingerprint::Fingerprint;
use crate::{bail_input, files};

/// Labelled images by position.
pub trait ImageSource: Send + Sync {
    /// How many there are.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The class of an image, or the number of its set of classes where it may have several.
    fn label(&self, position: usize) -> i64;

    /// The classes of an image that may have several.
    fn label_set(&self, _position: usize) -> Option<&[i64]> {
        None
    }

    /// The image as it is stored.
    fn image(&self, position: usize) -> Result<RawImage<'_>>;

    /// Its file, or its number in the file.
    fn describe(&self, position: usize) -> String;

    /// Adds what tells an image from others without decoding it.
    fn identify(&self, position: usize, fingerprint: &mut Fingerprint);

    /// Where its label comes from.
    fn describe_label(&self, position: usize) -> String {
        self.describe(position)
    }
}

/// Images of one size in memory, as bytes.
#[derive(Debug)]
pub struct ImageStore {
    form: ImageForm,
    pixels: Vec<u8>,
    labels: Vec<i64>,
    name: String,
    labels_name: String,
}

impl ImageStore {
    /// `pixels` are `[image, channel, height, width]`, one label for each image; the name is for messages.
    pub fn new(name: &str, form: ImageForm, pixels: Vec<u8>, labels: Vec<i64>) -> Result<Self> {
        if form.bytes() * labels.len() != pixels.len() {
            bail_input!("{name}: {} bytes are not {} images of {form:?}", pixels.len(), labels.len());
        }
        Ok(Self { form, pixels, labels, name: name.to_owned(), labels_name: name.to_owned() })
    }

    /// Names the file that the labels come from, where it is another one.
    pub fn with_labels_from(mut self, name: &str) -> Self {
        self.labels_name = name.to_owned();
        self
    }

    /// Channels and size of every image.
    pub fn form(&self) -> ImageForm {
        self.form
    }

    /// The class of each image.
    pub fn labels(&self) -> &[i64] {
        &self.labels
    }
}

impl ImageSource for ImageStore {
    fn len(&self) -> usize {
        self.labels.len()
    }

    fn label(&self, position: usize) -> i64 {
        self.labels[position]
    }

    fn image(&self, position: usize) -> Result<RawImage<'_>> {
        let size = self.form.bytes();
        Ok(RawImage::Planar { form: self.form, pixels: &self.pixels[position * size..(position + 1) * size] })
    }

    fn describe(&self, position: usize) -> String {
        format!("{} image {position}", self.name)
    }

    fn identify(&self, position: usize, fingerprint: &mut Fingerprint) {
        let size = self.form.bytes();
        fingerprint.add(&self.pixels[position * size..(position + 1) * size]);
    }

    fn describe_label(&self, position: usize) -> String {
        format!("{} item {position}", self.labels_name)
    }
}

/// Where the bytes of one encoded image are.
#[derive(Clone, Debug)]
pub enum Location {
    /// A file of its own.
    File(PathBuf),
    /// A range of an archive.
    Range {
        /// The archive.
        archive: Arc<Archive>,
        /// First byte.
        offset: u64,
        /// Number of bytes.
        length: usize,
        /// The name in the archive.
        name: String,
    },
}

/// An archive whose members are read in place.
#[derive(Debug)]
pub enum Archive {
    /// On disk, uncompressed.
    OnDisk {
        /// Its path, for messages.
        path: PathBuf,
        /// Open for reading.
        file: File,
    },
    /// Unpacked in memory, since a compressed stream has no positions.
    InMemory {
        /// Its path, for messages.
        path: PathBuf,
        /// The unpacked bytes.
        content: Vec<u8>,
    },
}

impl Archive {
    /// Where it is.
    pub fn path(&self) -> &Path {
        match self {
            Self::OnDisk { path, .. } | Self::InMemory { path, .. } => path,
        }
    }
}

impl Location {
    /// What to call it in messages.
    pub fn describe(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Range { archive, name, .. } => format!("{}:{name}", archive.path().display()),
        }
    }

    /// The last part of its name, which stays when data move.
    pub fn file_name(&self) -> &OsStr {
        let path = match self {
            Self::File(path) => path.as_path(),
            Self::Range { name, .. } => Path::new(name),
        };
        path.file_name().unwrap_or_default()
    }

    /// All its bytes.
    pub fn read(&self) -> Result<Vec<u8>> {
        match self {
            Self::File(path) => files::read(path),
            Self::Range { archive, offset, length, .. } => {
                let mut bytes = vec![0; *length];
                match archive.as_ref() {
                    Archive::OnDisk { file, .. } => {
                        std::os::unix::fs::FileExt::read_exact_at(file, &mut bytes, *offset)
                            .with_context(|| format!("reading {}", self.describe()))?
                    }
                    Archive::InMemory { content, .. } => {
                        let start = *offset as usize;
                        match content.get(start..start + length) {
                            Some(range) => bytes.copy_from_slice(range),
                            None => bail_input!("{} is truncated", archive.path().display()),
                        }
                    }
                }
                Ok(bytes)
            }
        }
    }
}

/// Encoded images, decoded when asked for.
#[derive(Debug)]
pub struct EncodedImages {
    images: Vec<(Location, i64)>,
    label_sets: Option<Arc<Vec<Vec<i64>>>>,
}

impl EncodedImages {
    /// Images with their classes, or, with `label_sets`, with the numbers of their sets of classes.
    pub fn new(images: Vec<(Location, i64)>, label_sets: Option<Arc<Vec<Vec<i64>>>>) -> Self {
        Self { images, label_sets }
    }

    /// Decodes every image once, on all cores, and leaves out those that cannot be. Returns the messages about them.
    pub fn drop_unreadable(&mut self) -> Vec<String> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let share = self.images.len().div_ceil(threads).max(1);
        let check = |images: &[(Location, i64)]| -> Vec<Option<String>> {
            images
                .iter()
                .map(|(location, _)| {
                    decode_at(location).err().map(|error| crate::error::one_sentence(&error))
                })
                .collect()
        };
        let verdicts: Vec<Option<String>> = std::thread::scope(|scope| {
            let workers: Vec<_> =
                self.images.chunks(share).map(|chunk| scope.spawn(move || check(chunk))).collect();
            // A decoder that panics has met a file that cannot be read.
            let lost = |count: usize| vec![Some("a file could not be decoded".to_owned()); count];
            workers
                .into_iter()
                .zip(self.images.chunks(share))
                .flat_map(|(worker, chunk)| worker.join().unwrap_or_else(|_| lost(chunk.len())))
                .collect()
        });
        let mut verdicts = verdicts.into_iter();
        let mut messages = Vec::new();
        self.images.retain(|_| match verdicts.next().flatten() {
            Some(message) => {
                messages.push(message);
                false
            }
            None => true,
        });
        messages
    }
}

fn decode_at(location: &Location) -> Result<image::DynamicImage> {
    decode(&location.describe(), &location.read()?)
}

impl ImageSource for EncodedImages {
    fn len(&self) -> usize {
        self.images.len()
    }

    fn label(&self, position: usize) -> i64 {
        self.images[position].1
    }

    fn label_set(&self, position: usize) -> Option<&[i64]> {
        let sets = self.label_sets.as_ref()?;
        sets.get(self.label(position) as usize).map(Vec::as_slice)
    }

    fn image(&self, position: usize) -> Result<RawImage<'_>> {
        decode_at(&self.images[position].0).map(RawImage::Decoded)
    }

    fn describe(&self, position: usize) -> String {
        self.images[position].0.describe()
    }

    fn identify(&self, position: usize, fingerprint: &mut Fingerprint) {
        fingerprint.add(self.images[position].0.file_name().as_encoded_bytes());
    }
}
