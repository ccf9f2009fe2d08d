//! Files mapped into memory, so that reading a part of a large one costs that part.

use std::fs::File;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use anyhow::Result;
use memmap2::Mmap;

use crate::{bail_input, files};

/// The content of a file, brought in by the system page by page as it is read.
#[derive(Debug)]
pub struct FileMap {
    path: PathBuf,
    map: Mmap,
}

impl FileMap {
    /// Maps a file for reading.
    ///
    /// # Errors
    /// There is no such file, or it is a folder or may not be read.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|error| files::cannot_read(path, &error))?;
        let kind = file.metadata().map_err(|error| files::cannot_read(path, &error))?.file_type();
        if !kind.is_file() {
            bail_input!("{} is no file", path.display());
        }
        // SAFETY: the map is only read, as bytes, of which every value is valid. Another process that shortens the file meanwhile ends this one
        // by a signal; weight files are replaced by renaming, here and by PyTorch's users, not shortened in place.
        let map = unsafe { Mmap::map(&file) }.map_err(|error| files::cannot_read(path, &error))?;
        Ok(Self { path: path.to_owned(), map })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Deref for FileMap {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}
