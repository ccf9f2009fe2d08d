//! Images whose folders name their classes, in a folder or in tar archives: `train/CLASS/FILE`, or `CLASS/FILE` in one tree.
//!
//! Classes are numbered in the order of their names, as torchvision's `ImageFolder` does. Archives may also hold WebDataset samples:
//! `KEY.jpg` beside `KEY.cls`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use flate2::read::GzDecoder;
use walkdir::WalkDir;

use super::image_source::{Archive, Location};
use crate::{bad_input, bail_input, files};

/// Images by part (`train`, `validation`, `test`), with the names of the classes.
#[derive(Debug)]
pub struct LabelledImages {
    /// Names of the classes in the order of their numbers.
    pub classes: Vec<String>,
    /// Images of each part with their class numbers, in the order of their names.
    pub parts: BTreeMap<Part, Vec<(Location, i64)>>,
    /// Where images may have several classes: the sets that occur, which the numbers of images then stand for.
    pub label_sets: Option<Vec<Vec<i64>>>,
}

/// A part of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// To learn from.
    Train,
    /// To choose by.
    Validation,
    /// To look at once.
    Test,
}

impl Part {
    /// The part that a folder or a column value names.
    pub fn of_name(name: &str) -> Option<Self> {
        match name.to_ascii_lowercase().as_str() {
            "train" | "training" => Some(Self::Train),
            "val" | "valid" | "validation" | "dev" => Some(Self::Validation),
            "test" | "testing" => Some(Self::Test),
            _ => None,
        }
    }
}

const EXTENSIONS: [&str; 6] = ["jpg", "jpeg", "png", "bmp", "webp", "gif"];

/// Whether a name ends like an image's.
pub fn is_image_name(path: &Path) -> bool {
    let extension = path.extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase());
    extension.is_some_and(|extension| EXTENSIONS.contains(&extension.as_str()))
}

/// An image on its way: the folders above it, its label if a file beside it gives one.
struct Found {
    folders: Vec<String>,
    /// The part that its archive is named for.
    part: Option<Part>,
    label: Option<String>,
    location: Location,
}

/// Reads a folder tree.
pub fn read_folder(root: &Path) -> Result<LabelledImages> {
    let mut found = Vec::new();
    let mut empty: BTreeSet<PathBuf> = BTreeSet::new();
    for entry in WalkDir::new(root).follow_links(true).sort_by_file_name() {
        let entry = entry.map_err(|error| match error.loop_ancestor() {
            Some(ancestor) => bad_input!(
                "{} is a symbolic link that leads back to {}: remove it",
                error.path().unwrap_or(root).display(),
                ancestor.display()
            ),
            None => bad_input!("{} cannot be read: {error}", error.path().unwrap_or(root).display()),
        })?;
        let path = entry.path();
        if entry.file_type().is_dir() {
            if path != root && std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none()) {
                empty.insert(path.to_owned());
            }
        } else if is_image_name(path) {
            let relative = path.strip_prefix(root).unwrap_or(path);
            found.push(Found {
                folders: folders_of(relative),
                part: None,
                label: None,
                location: Location::File(path.to_owned()),
            });
        }
    }
    if let Some(folder) = empty.first() {
        bail_input!("the class folder {} is empty: fill or remove it", folder.display());
    }
    sort_out(found, &root.display().to_string())
}

/// Reads tar archives (`.tar`, `.tar.gz`, `.tgz`), or all that a folder holds, as one data set. Plain archives stay on disk; compressed ones
/// are unpacked in memory, up to a limit.
pub fn read_archives(paths: &[PathBuf]) -> Result<LabelledImages> {
    let name = paths.first().map(|path| path.display().to_string()).unwrap_or_default();
    let mut found = Vec::new();
    for (path, part) in paths.iter().zip(parts_of_archives(paths)) {
        let archive = Arc::new(open_archive(path)?);
        let mut labels: BTreeMap<PathBuf, String> = BTreeMap::new();
        let mut images: Vec<(PathBuf, Location)> = Vec::new();
        visit_files(&archive, |inside, entry| {
            if inside.extension().is_some_and(|extension| extension == "cls") && entry.size() < 256 {
                let mut text = String::new();
                entry.read_to_string(&mut text)?;
                labels.insert(inside.with_extension(""), text.trim().to_owned());
            } else if is_image_name(&inside) {
                let location = Location::Range {
                    archive: archive.clone(),
                    offset: entry.raw_file_position(),
                    length: entry.size() as usize,
                    name: inside.display().to_string(),
                };
                images.push((inside, location));
            }
            Ok(())
        })?;
        found.extend(images.into_iter().map(|(inside, location)| Found {
            folders: folders_of(&inside),
            part,
            label: labels.get(&inside.with_extension("")).cloned(),
            location,
        }));
    }
    sort_out(found, &name)
}

/// The parts that archives are named for, as in `train-0003.tar`: where one of them is for training.
pub fn parts_of_archives(paths: &[PathBuf]) -> Vec<Option<Part>> {
    let part = |path: &PathBuf| {
        let name = path.file_name()?.to_string_lossy().into_owned();
        let word: String = name.chars().take_while(|character| character.is_alphabetic()).collect();
        Part::of_name(&word)
    };
    let parts: Vec<Option<Part>> = paths.iter().map(part).collect();
    if parts.contains(&Some(Part::Train)) { parts } else { vec![None; paths.len()] }
}

/// Compressed archives larger than this, unpacked, are refused: unpack them on disk instead.
const MOST_IN_MEMORY: u64 = 4 << 30;

fn open_archive(path: &Path) -> Result<Archive> {
    let open = || File::open(path).map_err(|error| files::cannot_read(path, &error));
    let mut file = open()?;
    let mut magic = [0; 2];
    if file.read_exact(&mut magic).is_err() || magic != [0x1f, 0x8b] {
        return Ok(Archive::OnDisk { path: path.to_owned(), file });
    }
    let mut content = Vec::new();
    GzDecoder::new(BufReader::new(open()?))
        .take(MOST_IN_MEMORY + 1)
        .read_to_end(&mut content)
        .map_err(|error| bad_input!("{} is a damaged gzip file: {error}", path.display()))?;
    if content.len() as u64 > MOST_IN_MEMORY {
        bail_input!("{} holds more than 4 GiB: unpack it and give the folder", path.display());
    }
    Ok(Archive::InMemory { path: path.to_owned(), content })
}

/// Calls `visit` with the path of each file of an archive and its entry.
fn visit_files(
    archive: &Archive,
    mut visit: impl FnMut(PathBuf, &mut tar::Entry<'_, Box<dyn Read + '_>>) -> std::io::Result<()>,
) -> Result<()> {
    let path = archive.path();
    let reader: Box<dyn Read + '_> = match archive {
        Archive::InMemory { content, .. } => Box::new(content.as_slice()),
        Archive::OnDisk { .. } => {
            Box::new(BufReader::new(File::open(path).map_err(|error| files::cannot_read(path, &error))?))
        }
    };
    let walk = || -> std::io::Result<()> {
        for entry in tar::Archive::new(reader).entries()? {
            let mut entry = entry?;
            if entry.header().entry_type().is_file() {
                let inside = entry.path()?.into_owned();
                visit(inside, &mut entry)?;
            }
        }
        Ok(())
    };
    walk().map_err(|error| bad_input!("{} is a damaged archive: {error}", path.display()))
}

/// The names of the files of an archive, to find out what it holds.
pub fn member_names(path: &Path) -> Result<Vec<PathBuf>> {
    let mut names = Vec::new();
    visit_files(&open_archive(path)?, |inside, _| {
        names.push(inside);
        Ok(())
    })?;
    Ok(names)
}

/// The files of an archive whose names pass a filter, by their last component.
pub fn members(path: &Path, wanted: impl Fn(&str) -> bool) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut found = BTreeMap::new();
    visit_files(&open_archive(path)?, |inside, entry| {
        let name = inside.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if wanted(&name) {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            found.insert(name, bytes);
        }
        Ok(())
    })?;
    Ok(found)
}

fn folders_of(relative: &Path) -> Vec<String> {
    let names =
        relative.parent().into_iter().flat_map(Path::components).filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_string_lossy().into_owned()),
            _ => None,
        });
    names.collect()
}

/// Finds parts and classes in the folders above each image.
fn sort_out(mut found: Vec<Found>, origin: &str) -> Result<LabelledImages> {
    if found.is_empty() {
        bail_input!("{origin} holds no images ({})", EXTENSIONS.join(", "));
    }
    // An archive often has one folder around everything.
    while let Some(first) = found[0].folders.first().cloned() {
        let common = found.iter().all(|image| image.folders.len() > 1 && image.folders[0] == first);
        if !common || Part::of_name(&first).is_some() {
            break;
        }
        for image in &mut found {
            image.folders.remove(0);
        }
    }
    let mut classes: BTreeSet<String> = BTreeSet::new();
    let mut parts: BTreeMap<Part, Vec<(String, Location)>> = BTreeMap::new();
    for image in found {
        let part = image.folders.first().and_then(|name| Part::of_name(name));
        let in_folder = part;
        let part = part.or(image.part);
        let class = match (&image.label, in_folder) {
            (Some(label), _) => Some(label.clone()),
            (None, Some(_)) => image.folders.get(1).cloned(),
            (None, None) => image.folders.first().cloned(),
        };
        let class = class.ok_or_else(|| {
            bad_input!(
                "{} is in no class folder: write train/CLASS/FILE or CLASS/FILE",
                image.location.describe()
            )
        })?;
        let part = part.unwrap_or(Part::Train);
        if part == Part::Train {
            classes.insert(class.clone());
        }
        parts.entry(part).or_default().push((class, image.location));
    }
    let classes: Vec<String> = classes.into_iter().collect();
    if classes.is_empty() {
        bail_input!("{origin} has no training part: write train/CLASS/FILE or CLASS/FILE");
    }
    number_classes(classes, parts)
}

/// Turns class names into numbers.
pub fn number_classes(
    classes: Vec<String>,
    parts: BTreeMap<Part, Vec<(String, Location)>>,
) -> Result<LabelledImages> {
    let numbers: BTreeMap<&String, i64> = classes.iter().zip(0..).collect();
    let numbered = parts
        .into_iter()
        .map(|(part, images)| {
            let images = images.into_iter().map(|(class, location)| match numbers.get(&class) {
                Some(&number) => Ok((location, number)),
                None => Err(bad_input!(
                    "{} has the class `{class}`, which no training image has",
                    location.describe()
                )),
            });
            Ok((part, images.collect::<Result<_>>()?))
        })
        .collect::<Result<_>>()?;
    Ok(LabelledImages { parts: numbered, classes, label_sets: None })
}
