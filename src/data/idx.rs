//! IDX, the file format of MNIST and its relatives: a magic number, big-endian sizes, then the values, gzipped or not.
//!
//! Format: the page of LeCun, Cortes and Burges. Magic 2051 (0x00000803) is unsigned bytes in three dimensions (images), 2049
//! (0x00000801) unsigned bytes in one (labels).

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::decode::ImageForm;
use super::image_source::{Bytes, ImageStore, Records};
use crate::{bad_input, bail_input};

const IMAGES: u32 = 2051;
const LABELS: u32 = 2049;

/// The official names of a part's files, without `.gz`.
fn file_names(part: &str) -> [String; 2] {
    [format!("{part}-images-idx3-ubyte"), format!("{part}-labels-idx1-ubyte")]
}

/// Whether a folder holds the training part of an IDX data set.
pub fn is_idx_folder(folder: &Path) -> bool {
    file_names("train").iter().all(|name| existing(folder, name).is_some())
}

/// Reads one part (`train` or `t10k`) of a folder; `None` where it has no such files.
pub fn read_part(folder: &Path, part: &str) -> Result<Option<ImageStore>> {
    let [images, labels] = file_names(part);
    match (existing(folder, &images), existing(folder, &labels)) {
        (Some(images), Some(labels)) => {
            let name = |path: &Path| path.display().to_string();
            parse(&name(&images), Bytes::open(&images)?, &name(&labels), Bytes::open(&labels)?).map(Some)
        }
        (None, None) => Ok(None),
        (Some(_), None) => bail_input!("{} has {images} but no {labels}", folder.display()),
        (None, Some(_)) => bail_input!("{} has {labels} but no {images}", folder.display()),
    }
}

fn existing(folder: &Path, name: &str) -> Option<PathBuf> {
    [folder.join(name), folder.join(format!("{name}.gz"))].into_iter().find(|path| path.is_file())
}

/// Parses the content of an image file and of its label file; the names are for messages.
///
/// # Errors
/// A wrong magic number, truncated or surplus bytes, counts that differ, sizes of zero.
pub fn parse(images_name: &str, images: Bytes, labels_name: &str, labels: Bytes) -> Result<ImageStore> {
    let ([count, height, width], pixels) = header::<3>(images_name, &images, IMAGES, "images")?;
    let ([label_count], values) = header::<1>(labels_name, &labels, LABELS, "labels")?;
    if count != label_count {
        bail_input!("{images_name} holds {count} images but {labels_name} holds {label_count} labels");
    }
    let form = ImageForm { channels: 1, size: [height, width] };
    let labels = labels[values..].iter().map(|&label| i64::from(label)).collect();
    let records = Records { bytes: images, offset: pixels, stride: form.bytes(), count };
    Ok(ImageStore::new(images_name, form, vec![records], labels)?.with_labels_from(labels_name))
}

/// Checks magic number and sizes, and returns the sizes and where the values begin.
fn header<const DIMENSIONS: usize>(
    name: &str,
    bytes: &[u8],
    magic: u32,
    content: &str,
) -> Result<([usize; DIMENSIONS], usize)> {
    let word = |position: usize| {
        let start = 4 * position;
        bytes.get(start..start + 4).map(|word| u32::from_be_bytes([word[0], word[1], word[2], word[3]]))
    };
    let Some(found) = word(0) else {
        bail_input!("{name} is too short for an IDX file: {} bytes", bytes.len());
    };
    if found != magic {
        bail_input!("{name} is no IDX file of {content}: it begins with {found}, not {magic}");
    }
    let mut sizes = [0; DIMENSIONS];
    let mut expected = Some(1usize);
    for (dimension, size) in sizes.iter_mut().enumerate() {
        *size = word(dimension + 1).ok_or_else(|| bad_input!("{name} ends in its header"))? as usize;
        if *size == 0 {
            bail_input!("{name} holds no {content}: size {} of its header is 0", dimension + 1);
        }
        expected = expected.and_then(|product| product.checked_mul(*size));
    }
    let start = 4 * (DIMENSIONS + 1);
    let values = bytes.len() - start;
    if expected != Some(values) {
        let sizes = sizes.map(|size| size.to_string()).join(" × ");
        bail_input!("{name} is truncated or damaged: its header promises {sizes} bytes, {values} follow");
    }
    Ok((sizes, start))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image_file(count: u32, side: u32) -> Vec<u8> {
        let header =
            [IMAGES, count, side, side].iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<u8>>();
        header.into_iter().chain((0..count * side * side).map(|value| value as u8)).collect()
    }

    fn label_file(count: u32) -> Vec<u8> {
        let header = [LABELS, count].iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<u8>>();
        header.into_iter().chain((0..count).map(|value| (value % 10) as u8)).collect()
    }

    fn parsed(images: &[u8], labels: &[u8]) -> Result<ImageStore> {
        parse("images", Bytes::of("images", images)?, "labels", Bytes::of("labels", labels)?)
    }

    fn refusal(images: &[u8], labels: &[u8]) -> String {
        let error = parsed(images, labels).expect_err("it must be refused");
        assert!(error.chain().any(|cause| cause.is::<crate::error::BadInput>()), "{error:?}");
        format!("{error:#}")
    }

    #[test]
    fn whole_files_are_read_and_damaged_ones_refused() -> Result<()> {
        let store = parsed(&image_file(3, 4), &label_file(3))?;
        assert_eq!(store.form(), ImageForm { channels: 1, size: [4, 4] });
        assert_eq!(store.labels(), [0, 1, 2]);
        assert!(refusal(&image_file(3, 4)[..40], &label_file(3)).contains("3 × 4 × 4 bytes, 24 follow"));
        assert!(refusal(&image_file(3, 4)[..6], &label_file(3)).contains("ends in its header"));
        assert!(refusal(&[0], &label_file(3)).contains("too short"));
        assert!(refusal(&label_file(3), &label_file(3)).contains("begins with 2049, not 2051"));
        assert!(refusal(&image_file(3, 4), &label_file(2)).contains("3 images but labels holds 2"));
        assert!(refusal(&image_file(0, 4), &label_file(3)).contains("holds no images"));
        assert!(refusal(&[0x1f, 0x8b, 8, 0, 1], &label_file(3)).contains("damaged gzip"));
        // A header whose product overflows is a damaged file, not a panic.
        let huge = [IMAGES, u32::MAX, u32::MAX, u32::MAX]
            .iter()
            .flat_map(|word| word.to_be_bytes())
            .collect::<Vec<u8>>();
        assert!(refusal(&huge, &label_file(3)).contains("damaged"));
        Ok(())
    }
}
