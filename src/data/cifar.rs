//! CIFAR-10 and CIFAR-100 in their binary form, as a folder, a `tar.gz` or a single file. Format: the page of Krizhevsky.
//!
//! A record is the label (for CIFAR-100 the coarse label, then the fine one, which counts) and 3 × 1024 bytes: red, green, blue.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::decode::ImageForm;
use super::image_source::{Bytes, ImageStore, Records};
use super::image_tree::members;
use crate::{bail_input, files};

const FORM: ImageForm = ImageForm { channels: 3, size: [32, 32] };
const IMAGE: usize = 3 * 32 * 32;

/// What a set of files holds.
pub struct Cifar {
    /// The training images.
    pub train: ImageStore,
    /// The test images, if there are.
    pub test: Option<ImageStore>,
    /// Names of the classes, if a file lists them.
    pub classes: Option<Vec<String>>,
}

/// Whether a file name belongs to one of the two sets.
pub fn is_cifar_name(name: &str) -> bool {
    let numbered = name.strip_prefix("data_batch_").and_then(|rest| rest.strip_suffix(".bin"));
    numbered.is_some_and(|number| number.parse::<u8>().is_ok())
        || ["test_batch.bin", "train.bin", "test.bin", "batches.meta.txt", "fine_label_names.txt"]
            .contains(&name)
}

/// The folder that holds the files: the one given, or the one that the official archives unpack to.
pub fn find_folder(path: &Path) -> Option<PathBuf> {
    let candidates = [path.to_owned(), path.join("cifar-10-batches-bin"), path.join("cifar-100-binary")];
    candidates
        .into_iter()
        .find(|folder| ["data_batch_1.bin", "train.bin"].iter().any(|name| folder.join(name).is_file()))
}

/// Reads a folder, an archive, or one file of records.
pub fn read(path: &Path) -> Result<Cifar> {
    let name = path.display().to_string();
    let mut contents: BTreeMap<String, Bytes> = if path.is_dir() {
        let folder = find_folder(path).unwrap_or_else(|| path.to_owned());
        let mut found = BTreeMap::new();
        for entry in std::fs::read_dir(&folder).map_err(|error| files::cannot_read(&folder, &error))? {
            let entry = entry.map_err(|error| files::cannot_read(&folder, &error))?;
            let file = entry.file_name().to_string_lossy().into_owned();
            if is_cifar_name(&file) {
                found.insert(file, Bytes::open(&entry.path())?);
            }
        }
        found
    } else if path.extension().is_some_and(|extension| extension == "bin") {
        BTreeMap::from([("data_batch_1.bin".to_owned(), Bytes::open(path)?)])
    } else {
        let members = members(path, is_cifar_name)?;
        members.into_iter().map(|(name, bytes)| (name, Bytes::Owned(bytes))).collect()
    };
    let names = ["batches.meta.txt", "fine_label_names.txt"].iter().find_map(|file| contents.remove(*file));
    let classes = names.map(|bytes| {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
    });
    let fine = contents.contains_key("train.bin");
    let test = [contents.remove("test_batch.bin"), contents.remove("test.bin")].into_iter().flatten().next();
    if contents.is_empty() {
        bail_input!("{name} holds no CIFAR training file (data_batch_1.bin or train.bin)");
    }
    Ok(Cifar {
        train: records(&format!("{name} training"), contents.into_values().collect(), fine)?,
        test: test.map(|bytes| records(&format!("{name} test"), vec![bytes], fine)).transpose()?,
        classes,
    })
}

/// Finds the records of files that follow one another; CIFAR-100 has two label bytes.
fn records(name: &str, contents: Vec<Bytes>, fine: bool) -> Result<ImageStore> {
    let labels_bytes = if fine { 2 } else { 1 };
    let record = labels_bytes + IMAGE;
    let most = if fine { 100 } else { 10 };
    let (mut files, mut labels) = (Vec::new(), Vec::new());
    for bytes in contents {
        if bytes.is_empty() || !bytes.len().is_multiple_of(record) {
            bail_input!("{name} records are truncated: {} bytes are no multiple of {record}", bytes.len());
        }
        for record in bytes.chunks_exact(record) {
            let label = i64::from(record[labels_bytes - 1]);
            if label >= most {
                bail_input!("{name} record {} has label {label}, outside 0..{}", labels.len(), most - 1);
            }
            labels.push(label);
        }
        let count = bytes.len() / record;
        files.push(Records { bytes, offset: labels_bytes, stride: record, count });
    }
    ImageStore::new(name, FORM, files, labels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::image_source::ImageSource;

    #[test]
    fn records_are_taken_apart() -> Result<()> {
        let record = |labels: &[u8], value: u8| [labels, &vec![value; IMAGE]].concat();
        let read = |contents: &[&[u8]], fine: bool| {
            records("x", contents.iter().map(|bytes| Bytes::Owned(bytes.to_vec())).collect(), fine)
        };
        let store = read(&[&[record(&[3], 9), record(&[7], 8)].concat(), &record(&[5], 6)], false)?;
        assert_eq!((store.len(), store.labels()), (3, &[3, 7, 5][..]));
        for (position, value) in [9, 8, 6].into_iter().enumerate() {
            let mut pixels = Vec::new();
            let image = store.image(position)?;
            image.append_part(image.whole(), 3, &mut pixels)?;
            assert_eq!(pixels, vec![value; IMAGE]);
        }
        assert_eq!(read(&[&record(&[19, 99], 9)], true)?.labels(), [99]);
        assert!(read(&[&record(&[3], 9)[1..]], false).is_err());
        assert!(read(&[&record(&[10], 9)], false).is_err());
        assert!(read(&[&[]], false).is_err());
        Ok(())
    }
}
