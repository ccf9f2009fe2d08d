//! Encoded texts that are kept from run to run.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::encoded::Tokens;
use crate::files;

/// Where encoded texts are kept: `TCH_SUITE_CACHE`, else `tch-suite` in the user's cache folder; none where there is no such folder.
pub fn cache_folder() -> Option<PathBuf> {
    let from = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    from("TCH_SUITE_CACHE")
        .or_else(|| from("XDG_CACHE_HOME").map(|folder| folder.join("tch-suite")))
        .or_else(|| from("HOME").map(|folder| folder.join(".cache/tch-suite")))
}

/// The place of one encoded text.
pub(super) struct StreamCache {
    path: PathBuf,
}

impl StreamCache {
    /// The place that belongs to a file as it is now (path, length, time of its last change) and to a tokenizer.
    pub fn new(folder: &Path, file: &Path, tokenizer: &str) -> Result<Self> {
        let cannot_read = |error: std::io::Error| files::cannot_read(file, &error);
        let mut state = DefaultHasher::new();
        file.canonicalize().map_err(cannot_read)?.hash(&mut state);
        let facts = file.metadata().map_err(cannot_read)?;
        (facts.len(), facts.modified().map_err(cannot_read)?, tokenizer).hash(&mut state);
        std::fs::create_dir_all(folder).map_err(|error| files::cannot_write(folder, &error))?;
        Ok(Self { path: folder.join(format!("{:016x}.tokens", state.finish())) })
    }

    /// Where the tokens are or are to be.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The tokens, if they are there. A file that is not whole is as good as none.
    pub fn open(&self) -> Result<Option<Tokens>> {
        Ok(if self.path.is_file() { Tokens::open(&self.path).ok() } else { None })
    }
}
