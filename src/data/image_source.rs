//! Where labelled images come from: memory, files, or archives.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use flate2::read::GzDecoder;

use super::decode::{ImageForm, RawImage, decode, decode_scaled};
use super::fingerprint::Fingerprint;
use crate::native::file_map::FileMap;
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

    /// The image for training, with its full height and width: files may be decoded at a half, a quarter or an eighth of their size where
    /// `least`, which is told the full size, does not need more.
    fn scaled_image(
        &self,
        position: usize,
        least: &mut dyn FnMut([usize; 2]) -> [usize; 2],
    ) -> Result<(RawImage<'_>, [usize; 2])> {
        let image = self.image(position)?;
        let size = image.size();
        least(size);
        Ok((image, size))
    }

    /// The number of the archive that an image is in, where archives want to be read in sequence.
    fn stretch(&self, _position: usize) -> Option<usize> {
        None
    }

    /// An image's file, where it has one.
    fn content(&self, _position: usize) -> Result<Option<Vec<u8>>> {
        Ok(None)
    }

    /// Whether images have to be decoded.
    fn is_encoded(&self) -> bool {
        false
    }

    /// Its file, or its number in the file.
    fn describe(&self, position: usize) -> String;

    /// Adds what tells an image from others without decoding it.
    fn identify(&self, position: usize, fingerprint: &mut Fingerprint);

    /// Where its label comes from.
    fn describe_label(&self, position: usize) -> String {
        self.describe(position)
    }
}

/// The content of a file of pixels: mapped, so that the system brings in what is looked at and may forget it again, or unpacked in memory.
#[derive(Debug)]
pub enum Bytes {
    /// In memory.
    Owned(Vec<u8>),
    /// In the file.
    Mapped(FileMap),
}

impl Bytes {
    /// Of a file, gzipped or not.
    ///
    /// # Errors
    /// The file cannot be read, or is a damaged gzip file.
    pub fn open(path: &Path) -> Result<Self> {
        let size = std::fs::metadata(path).map_err(|error| files::cannot_read(path, &error))?.len();
        if size == 0 {
            // What is empty cannot be mapped.
            return Ok(Self::Owned(Vec::new()));
        }
        let map = FileMap::open(path)?;
        match is_gzip(&map) {
            true => Self::unpack(&path.display().to_string(), &map),
            false => Ok(Self::Mapped(map)),
        }
    }

    /// Of bytes in memory, gzipped or not; the name is for messages.
    pub fn of(name: &str, bytes: &[u8]) -> Result<Self> {
        if is_gzip(bytes) { Self::unpack(name, bytes) } else { Ok(Self::Owned(bytes.to_vec())) }
    }

    fn unpack(name: &str, bytes: &[u8]) -> Result<Self> {
        let mut plain = Vec::new();
        match GzDecoder::new(bytes).read_to_end(&mut plain) {
            Ok(_) => Ok(Self::Owned(plain)),
            Err(error) => bail_input!("{name} is a damaged gzip file: {error}"),
        }
    }
}

fn is_gzip(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0x1f, 0x8b])
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Owned(bytes) => bytes,
            Self::Mapped(map) => map,
        }
    }
}

/// Images at even distances in a file's content.
#[derive(Debug)]
pub struct Records {
    /// The content.
    pub bytes: Bytes,
    /// Where the pixels of the first image begin.
    pub offset: usize,
    /// From one image to the next.
    pub stride: usize,
    /// How many images there are.
    pub count: usize,
}

/// Images of one size, as bytes, in memory or in mapped files.
#[derive(Debug)]
pub struct ImageStore {
    form: ImageForm,
    files: Vec<Records>,
    labels: Vec<i64>,
    name: String,
    labels_name: String,
}

impl ImageStore {
    /// The pixels of an image are `[channel, height, width]`, one label for each image; the name is for messages.
    pub fn new(name: &str, form: ImageForm, files: Vec<Records>, labels: Vec<i64>) -> Result<Self> {
        let images: usize = files.iter().map(|records| records.count).sum();
        let fits = |records: &Records| {
            records.count == 0
                || records.offset + (records.count - 1) * records.stride + form.bytes() <= records.bytes.len()
        };
        if images != labels.len() || !files.iter().all(fits) {
            bail_input!("{name} does not hold {} images of {form:?}", labels.len());
        }
        Ok(Self { form, files, labels, name: name.to_owned(), labels_name: name.to_owned() })
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

    fn pixels(&self, mut position: usize) -> &[u8] {
        for Records { bytes, offset, stride, count } in &self.files {
            if position < *count {
                let start = offset + position * stride;
                return &bytes[start..start + self.form.bytes()];
            }
            position -= count;
        }
        &[]
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
        Ok(RawImage::Planar { form: self.form, pixels: self.pixels(position) })
    }

    fn describe(&self, position: usize) -> String {
        format!("{} image {position}", self.name)
    }

    fn identify(&self, position: usize, fingerprint: &mut Fingerprint) {
        fingerprint.add(self.pixels(position));
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

    fn scaled_image(
        &self,
        position: usize,
        least: &mut dyn FnMut([usize; 2]) -> [usize; 2],
    ) -> Result<(RawImage<'_>, [usize; 2])> {
        let location = &self.images[position].0;
        let (image, size) = decode_scaled(&location.describe(), &location.read()?, least)?;
        Ok((RawImage::Decoded(image), size))
    }

    fn content(&self, position: usize) -> Result<Option<Vec<u8>>> {
        self.images[position].0.read().map(Some)
    }

    fn is_encoded(&self) -> bool {
        true
    }

    fn describe(&self, position: usize) -> String {
        self.images[position].0.describe()
    }

    fn identify(&self, position: usize, fingerprint: &mut Fingerprint) {
        fingerprint.add(self.images[position].0.file_name().as_encoded_bytes());
    }
}
