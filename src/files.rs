//! Files that are written whole or not at all, folders that are replaced as one, and the lock of a run folder.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};

use crate::bail_input;

/// Writes `content` to `path` so that a reader, or a machine that loses power, sees the old file or the new one: a temporary file beside
/// it, flushed to the disk, then renamed over it.
///
/// # Errors
/// The folder is missing or not writable, or the disk is full; the previous file is then untouched.
pub fn write_atomic(path: &Path, content: &[u8]) -> Result<()> {
    let staged = sibling(path, "partial");
    let written = write_synced(&staged, content).and_then(|()| fs::rename(&staged, path));
    if written.is_err() {
        let _ = fs::remove_file(&staged);
    }
    written.map_err(|error| cannot_write(path, &error))?;
    sync_folder(parent(path))
}

/// Writes a new file and flushes it to the disk, without the protection of [`write_atomic`]; for files in a staged folder.
pub fn write_synced(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(content)?;
    file.sync_all()
}

/// Flushes a file that something else has written to the disk.
pub fn sync_file(path: &Path) -> Result<()> {
    File::open(path).and_then(|file| file.sync_all()).map_err(|error| cannot_write(path, &error))
}

/// Flushes a folder's list of names to the disk, so that a rename in it outlives a loss of power.
pub fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder)
        .and_then(|handle| handle.sync_all())
        .with_context(|| format!("cannot flush the folder {} to the disk", folder.display()))
}

/// What a failed write means to the user.
pub fn cannot_write(path: &Path, error: &io::Error) -> anyhow::Error {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            anyhow!(
                "the disk is full: {} could not be written; what was there before is kept",
                path.display()
            )
        }
        _ => anyhow!("cannot write {}: {error}", path.display()),
    }
}

/// What a failed read means to the user: their path is wrong (bad input) or the machine failed.
pub fn cannot_read(path: &Path, error: &io::Error) -> anyhow::Error {
    match error.kind() {
        io::ErrorKind::NotFound => crate::bad_input!("{} does not exist", path.display()),
        io::ErrorKind::PermissionDenied => {
            crate::bad_input!("{} may not be read by this user", path.display())
        }
        io::ErrorKind::IsADirectory => crate::bad_input!("{} is a folder, not a file", path.display()),
        _ => anyhow!("cannot read {}: {error}", path.display()),
    }
}

/// Reads a whole file.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|error| cannot_read(path, &error))
}

/// Reads a whole file as UTF-8.
pub fn read_text(path: &Path) -> Result<String> {
    let bytes = read(path)?;
    String::from_utf8(bytes).map_err(|error| {
        crate::bad_input!(
            "{} is not UTF-8 text: byte {} is invalid",
            path.display(),
            error.utf8_error().valid_up_to()
        )
    })
}

/// `NAME.partial` style name beside a path, hidden.
fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    path.with_file_name(format!(".{name}.{suffix}"))
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A folder that is replaced as one: it is filled under another name and takes the place of the old one by renaming.
///
/// No file system swaps two folders by a portable call, so there is an instant in which only the staged or the old folder has a hidden
/// name. [`ReplaceableFolder::recover`] puts the newest whole one back in place; it runs before every read and write.
///
/// | on disk | meaning |
/// | --- | --- |
/// | `NAME` | the folder |
/// | `.NAME.partial` | being filled: never used |
/// | `.NAME.new` | whole, not yet in place |
/// | `.NAME.old` | replaced, to be removed |
pub struct ReplaceableFolder {
    path: PathBuf,
}

impl ReplaceableFolder {
    /// The folder at `path`, which need not exist yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Where the folder is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Finishes what an interrupted replacement left, and tells whether there is a folder now. Only the process that holds the run's lock
    /// may call it.
    pub fn recover(&self) -> Result<bool> {
        let (partial, new, old) = self.staged_names();
        remove_folder(&partial)?;
        if new.exists() {
            self.put_in_place(&new, &old)?;
        } else if old.exists() && !self.path.exists() {
            rename(&old, &self.path)?;
        }
        remove_folder(&old)?;
        Ok(self.path.exists())
    }

    /// The newest whole folder on disk, without changing anything: for readers beside a run that is being written, or after one that died.
    pub fn current(&self) -> Option<PathBuf> {
        let (_, new, old) = self.staged_names();
        [&new, &self.path, &old].into_iter().find(|path| path.is_dir()).cloned()
    }

    /// Replaces the folder by one that `fill` writes. On an error the old folder stays as it was.
    pub fn replace(&self, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        self.recover()?;
        let (partial, new, old) = self.staged_names();
        let filled = fs::create_dir_all(&partial)
            .map_err(|error| cannot_write(&partial, &error))
            .and_then(|()| fill(&partial))
            .and_then(|()| sync_folder(&partial));
        if let Err(error) = filled {
            let _ = fs::remove_dir_all(&partial);
            return Err(error);
        }
        rename(&partial, &new)?;
        self.put_in_place(&new, &old)?;
        remove_folder(&old)
    }

    fn put_in_place(&self, new: &Path, old: &Path) -> Result<()> {
        if self.path.exists() {
            remove_folder(old)?;
            rename(&self.path, old)?;
        }
        rename(new, &self.path)?;
        sync_folder(parent(&self.path))
    }

    fn staged_names(&self) -> (PathBuf, PathBuf, PathBuf) {
        (sibling(&self.path, "partial"), sibling(&self.path, "new"), sibling(&self.path, "old"))
    }
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).with_context(|| format!("cannot rename {} to {}", from.display(), to.display()))
}

fn remove_folder(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(anyhow!("cannot remove the folder {}: {error}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Fills `target` with the files of `source`, sharing their content on disk where the file system can (hard links), else copying.
/// The files of a checkpoint are never changed in place, so sharing is safe.
pub fn share_files(source: &Path, target: &Path) -> Result<()> {
    for entry in fs::read_dir(source).map_err(|error| cannot_read(source, &error))? {
        let entry = entry.map_err(|error| cannot_read(source, &error))?;
        let destination = target.join(entry.file_name());
        if fs::hard_link(entry.path(), &destination).is_err() {
            let content = read(&entry.path())?;
            write_synced(&destination, &content).map_err(|error| cannot_write(&destination, &error))?;
        }
    }
    Ok(())
}

/// The file in a folder that [`FolderLock`] locks.
pub const LOCK: &str = ".lock";

/// An exclusive hold on a folder, given up when dropped or when the process ends, however it ends.
pub struct FolderLock {
    _file: File,
}

impl FolderLock {
    /// Takes the lock.
    ///
    /// # Errors
    /// Another process holds it: bad input, since waiting would hide the mistake.
    pub fn take(folder: &Path) -> Result<Self> {
        let path = folder.join(LOCK);
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|error| cannot_write(&path, &error))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => bail_input!(
                "the run folder {} is in use by another process: wait for it or choose another --out",
                folder.display()
            ),
            Err(TryLockError::Error(error)) => Err(anyhow!("cannot lock {}: {error}", path.display())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_replaced_whole_and_recovered_from_every_interruption() -> Result<()> {
        let root = std::env::temp_dir().join(format!("tch-suite-files-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(&root)?;
        let folder = ReplaceableFolder::new(root.join("last"));
        let write =
            |text: &'static str| move |path: &Path| Ok(write_synced(&path.join("state"), text.as_bytes())?);
        let content = || fs::read_to_string(root.join("last/state")).unwrap_or_default();

        folder.replace(write("one"))?;
        assert_eq!(content(), "one");
        assert!(folder.replace(|_| Err(anyhow!("full"))).is_err());
        assert_eq!(content(), "one");

        // Died while filling.
        fs::create_dir(root.join(".last.partial"))?;
        assert!(folder.recover()?);
        assert!(!root.join(".last.partial").exists());
        // Died before the old folder was moved away.
        fs::create_dir(root.join(".last.new"))?;
        fs::write(root.join(".last.new/state"), "two")?;
        assert_eq!(folder.current(), Some(root.join(".last.new")));
        folder.recover()?;
        assert_eq!(content(), "two");
        // Died between the two renames.
        fs::rename(root.join("last"), root.join(".last.old"))?;
        fs::create_dir(root.join(".last.new"))?;
        fs::write(root.join(".last.new/state"), "three")?;
        folder.recover()?;
        assert_eq!(content(), "three");
        assert!(!root.join(".last.old").exists());
        // Died with only the old one left, which cannot happen but must not lose it.
        fs::rename(root.join("last"), root.join(".last.old"))?;
        assert_eq!(folder.current(), Some(root.join(".last.old")));
        folder.recover()?;
        assert_eq!(content(), "three");
        Ok(fs::remove_dir_all(&root)?)
    }

    #[test]
    fn a_lock_is_exclusive() -> Result<()> {
        let folder = std::env::temp_dir().join(format!("tch-suite-lock-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        let lock = FolderLock::take(&folder)?;
        let refused = FolderLock::take(&folder).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(refused.contains("in use"), "{refused}");
        drop(lock);
        FolderLock::take(&folder)?;
        Ok(fs::remove_dir_all(&folder)?)
    }
}
