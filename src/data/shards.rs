//! Tar archives that are read in sequence: WebDataset shards with more images than memory should hold.
//!
//! An image is `KEY.jpg`, its label `KEY.cls` or the `label`, `cls` or `class` of `KEY.json` right after or before it, or the name of the folder that it is in.
//! The headers are read once; of each image 32 bytes are kept. In training the archives follow one another in random order and their images go through a
//! shuffle buffer ([`super::order::Buffered`]). The buffer holds positions, not images: the system is asked to read the archive ahead in sequence, the image
//! itself is taken out of what it has read when its turn comes. So a resumed run has nothing to read again.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use rustix::fs::{Advice, fadvise};
use serde_json::Value;

use super::decode::{RawImage, decode, decode_scaled};
use super::fingerprint::Fingerprint;
use super::image_source::ImageSource;
use super::image_tree::{Part, is_image_name, parts_of_archives};
use crate::{bad_input, bail_input, files};

/// An archive on disk.
#[derive(Debug)]
struct Shard {
    path: PathBuf,
    file: File,
    /// Number of the block that the system was last asked to read.
    ahead: AtomicU64,
}

/// What the system is asked to read at once.
const BLOCK: u64 = 8 << 20;

impl Shard {
    /// Asks the system to read on where a new block is entered.
    fn read_ahead(&self, offset: u64) {
        let block = offset / BLOCK;
        if block == 0 || block + 1 > self.ahead.load(Ordering::Relaxed) {
            if self.ahead.swap(block + 1, Ordering::Relaxed) == block + 1 {
                return;
            }
            // A hint: a file system that knows no hints reads later.
            let _ =
                fadvise(&self.file, block * BLOCK, std::num::NonZeroU64::new(2 * BLOCK), Advice::WillNeed);
        }
    }
}

/// Where an image is.
#[derive(Clone, Copy, Debug)]
struct Member {
    offset: u64,
    length: u32,
    shard: u32,
    label: u32,
    /// CRC-32C and length of the file name, for the fingerprint.
    name_checksum: u32,
    name_length: u32,
}

/// The images of one part.
#[derive(Debug)]
pub struct ShardedImages {
    shards: Arc<Vec<Shard>>,
    members: Vec<Member>,
}

/// All parts, with the names of the classes.
#[derive(Debug)]
pub struct ShardedParts {
    /// Names of the classes in the order of their numbers.
    pub classes: Vec<String>,
    /// Images of each part, in the order of the archives.
    pub parts: BTreeMap<Part, ShardedImages>,
}

/// Class names by the number under which members carry them for the time being.
#[derive(Default)]
struct Names(BTreeMap<String, u32>);

impl Names {
    fn number(&mut self, name: &str) -> u32 {
        match self.0.get(name) {
            Some(&number) => number,
            None => {
                let number = self.0.len() as u32;
                self.0.insert(name.to_owned(), number);
                number
            }
        }
    }
}

/// A key whose files are being collected.
#[derive(Default)]
struct Sample {
    key: PathBuf,
    image: Option<Member>,
    label: Option<u32>,
    folders: Vec<String>,
}

/// Reads the headers of plain tar archives.
///
/// # Errors
/// An archive is compressed or damaged; an image has no label; a class occurs outside the training part only.
pub fn read_shards(paths: &[PathBuf]) -> Result<ShardedParts> {
    let (mut shards, mut names) = (Vec::new(), Names::default());
    let mut members: BTreeMap<Part, Vec<Member>> = BTreeMap::new();
    for (path, part) in paths.iter().zip(parts_of_archives(paths)) {
        let file = File::open(path).map_err(|error| files::cannot_read(path, &error))?;
        let mut magic = [0; 2];
        if file.read_exact_at(&mut magic, 0).is_ok() && magic == [0x1f, 0x8b] {
            bail_input!(
                "data.shuffle_buffer: {} is compressed, and so cannot be read from a position; unpack it with gunzip",
                path.display()
            );
        }
        shards.push(Shard { path: path.clone(), file, ahead: AtomicU64::new(0) });
        let number = shards.len() - 1;
        read_members(&shards[number], number as u32, part, &mut names, &mut members)?;
    }
    let Some(training) = members.get(&Part::Train) else {
        bail_input!(
            "{} holds no training image",
            paths.first().map(|path| path.display().to_string()).unwrap_or_default()
        );
    };
    // Numbers in the order of the names, of classes that training images have.
    let mut occurs = vec![false; names.0.len()];
    for member in training {
        occurs[member.label as usize] = true;
    }
    let known: Vec<(&String, u32)> = names
        .0
        .iter()
        .map(|(name, &number)| (name, number))
        .filter(|(_, number)| occurs[*number as usize])
        .collect();
    let mut sorted = vec![None; names.0.len()];
    for (place, (_, number)) in known.iter().enumerate() {
        sorted[*number as usize] = Some(place as u32);
    }
    let classes = known.into_iter().map(|(name, _)| name.clone()).collect();
    let shards = Arc::new(shards);
    let parts = members
        .into_iter()
        .map(|(part, mut members)| {
            for member in &mut members {
                member.label = sorted[member.label as usize].ok_or_else(|| {
                    let shard = &shards[member.shard as usize].path;
                    bad_input!("{} has an image of a class that no training image has", shard.display())
                })?;
            }
            Ok((part, ShardedImages { shards: shards.clone(), members }))
        })
        .collect::<Result<_>>()?;
    Ok(ShardedParts { classes, parts })
}

fn read_members(
    shard: &Shard,
    number: u32,
    part: Option<Part>,
    names: &mut Names,
    members: &mut BTreeMap<Part, Vec<Member>>,
) -> Result<()> {
    let path = &shard.path;
    let damaged = |error: std::io::Error| bad_input!("{} is a damaged archive: {error}", path.display());
    let mut archive = tar::Archive::new(&shard.file);
    let mut sample = Sample::default();
    for entry in archive.entries_with_seek().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let inside = entry.path().map_err(damaged)?.into_owned();
        let key = inside.with_extension("");
        if key != sample.key {
            finish(&std::mem::take(&mut sample), path, part, names, members)?;
            sample.key = key;
        }
        let extension =
            inside.extension().map(|extension| extension.to_ascii_lowercase()).unwrap_or_default();
        if is_image_name(&inside) {
            let name = inside.file_name().unwrap_or_default().as_encoded_bytes();
            sample.image = Some(Member {
                offset: entry.raw_file_position(),
                length: u32::try_from(entry.size())
                    .map_err(|_| bad_input!("{}:{} is too large", path.display(), inside.display()))?,
                shard: number,
                label: 0,
                name_checksum: crc32c::crc32c(name),
                name_length: name.len() as u32,
            });
            let folders = inside.parent().into_iter().flat_map(Path::iter);
            sample.folders = folders.map(|folder| folder.to_string_lossy().into_owned()).collect();
        } else if extension == "cls" || extension == "json" {
            let mut text = String::new();
            entry.read_to_string(&mut text).map_err(damaged)?;
            let label = match extension == "cls" {
                true => Some(text.trim().to_owned()),
                false => label_of_json(&text).map_err(|error| {
                    bad_input!("{}:{} is not valid JSON: {error}", path.display(), inside.display())
                })?,
            };
            if let Some(label) = label {
                sample.label = Some(names.number(&label));
            }
        }
    }
    finish(&sample, path, part, names, members)
}

/// The label in a sample's JSON, if it has one.
fn label_of_json(text: &str) -> serde_json::Result<Option<String>> {
    let value: Value = serde_json::from_str(text)?;
    let label = ["label", "cls", "class"].iter().find_map(|key| value.get(key));
    Ok(match label {
        Some(Value::String(name)) => Some(name.clone()),
        Some(Value::Number(number)) => Some(number.to_string()),
        _ => None,
    })
}

/// Takes a collected sample over, if it has an image.
fn finish(
    sample: &Sample,
    shard: &Path,
    part: Option<Part>,
    names: &mut Names,
    members: &mut BTreeMap<Part, Vec<Member>>,
) -> Result<()> {
    let Some(image) = sample.image else { return Ok(()) };
    let in_folder = sample.folders.iter().position(|folder| Part::of_name(folder).is_some());
    let part = match in_folder {
        Some(place) => Part::of_name(&sample.folders[place]),
        None => part,
    };
    let label = match sample.label {
        Some(label) => label,
        None => {
            let class = match in_folder {
                Some(place) => sample.folders.get(place + 1),
                None => sample.folders.last(),
            };
            let class = class.ok_or_else(|| {
                bad_input!(
                    "{}:{} has no label: a file of the same name with the ending cls or json belongs right beside it",
                    shard.display(),
                    sample.key.display()
                )
            })?;
            names.number(class)
        }
    };
    members.entry(part.unwrap_or(Part::Train)).or_default().push(Member { label, ..image });
    Ok(())
}

impl ShardedImages {
    fn read(&self, position: usize) -> Result<Vec<u8>> {
        let Member { offset, length, shard, .. } = self.members[position];
        let shard = &self.shards[shard as usize];
        shard.read_ahead(offset);
        let mut bytes = vec![0; length as usize];
        shard
            .file
            .read_exact_at(&mut bytes, offset)
            .with_context(|| format!("reading {}", self.describe(position)))?;
        Ok(bytes)
    }
}

impl ImageSource for ShardedImages {
    fn len(&self) -> usize {
        self.members.len()
    }

    fn label(&self, position: usize) -> i64 {
        i64::from(self.members[position].label)
    }

    fn image(&self, position: usize) -> Result<RawImage<'_>> {
        decode(&self.describe(position), &self.read(position)?).map(RawImage::Decoded)
    }

    fn scaled_image(
        &self,
        position: usize,
        least: &mut dyn FnMut([usize; 2]) -> [usize; 2],
    ) -> Result<(RawImage<'_>, [usize; 2])> {
        let (image, size) = decode_scaled(&self.describe(position), &self.read(position)?, least)?;
        Ok((RawImage::Decoded(image), size))
    }

    fn content(&self, position: usize) -> Result<Option<Vec<u8>>> {
        self.read(position).map(Some)
    }

    fn is_encoded(&self) -> bool {
        true
    }

    fn stretch(&self, position: usize) -> Option<usize> {
        Some(self.members[position].shard as usize)
    }

    /// The archive and the name in it, which stands in the header right before the content.
    fn describe(&self, position: usize) -> String {
        let Member { offset, shard, .. } = self.members[position];
        let Shard { path, file, .. } = &self.shards[shard as usize];
        let mut header = tar::Header::new_old();
        let name = file
            .read_exact_at(header.as_mut_bytes(), offset.saturating_sub(512))
            .and_then(|()| header.path());
        match name {
            Ok(name) => format!("{}:{}", path.display(), name.display()),
            Err(_) => format!("{} at byte {offset}", path.display()),
        }
    }

    fn identify(&self, position: usize, fingerprint: &mut Fingerprint) {
        let Member { name_checksum, name_length, .. } = self.members[position];
        fingerprint.add_checksum(name_checksum, name_length as usize);
    }
}
