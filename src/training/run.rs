//! The run folder: everything about one training, in a form that can be moved.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use super::checkpoint::{Checkpoint, read_progress};
use crate::files::{self, FolderLock, ReplaceableFolder, share_files};
use crate::{bail_input, recipe};

const RECIPE: &str = "recipe.json";
const CHECKPOINTS: &str = "checkpoints";

/// A run folder that this process writes, under its lock.
pub struct RunFolder {
    path: PathBuf,
    _lock: FolderLock,
}

impl RunFolder {
    /// Makes the folder of a new run.
    ///
    /// # Errors
    /// The folder exists and is not empty: nothing of an earlier run is ever overwritten.
    pub fn create(path: &Path) -> Result<Self> {
        if fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some()) {
            bail_input!(
                "the folder {} exists already: choose another --out, or continue it with --resume {}",
                path.display(),
                path.display()
            );
        }
        fs::create_dir_all(path.join(CHECKPOINTS)).map_err(|error| files::cannot_write(path, &error))?;
        let lock = FolderLock::take(path)?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// Opens the folder of an earlier run to continue it, and puts an interrupted save in order.
    pub fn open(path: &Path) -> Result<Self> {
        require_run(path)?;
        let run = Self { path: path.to_owned(), _lock: FolderLock::take(path)? };
        for name in ["last", "best"] {
            run.checkpoint(name).recover()?;
        }
        Ok(run)
    }

    /// The first free name `runs/NAME`, `runs/NAME-2`, ….
    pub fn default_path(name: &str) -> PathBuf {
        let base = Path::new("runs").join(name);
        let numbered = (2..).map(|number| Path::new("runs").join(format!("{name}-{number}")));
        std::iter::once(base).chain(numbered).find(|path| !path.exists()).unwrap_or_default()
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file of the run.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Writes the resolved recipe.
    pub fn write_recipe(&self, recipe: &Value) -> Result<()> {
        files::write_atomic(&self.file(RECIPE), (serde_json::to_string_pretty(recipe)? + "\n").as_bytes())
    }

    /// The newest checkpoint, if the run has saved one.
    pub fn last(&self) -> Result<Option<Checkpoint>> {
        let folder = self.checkpoint("last");
        if !folder.path().is_dir() {
            return Ok(None);
        }
        Checkpoint::read(folder.path()).map(Some)
    }

    /// Saves a checkpoint as `last`, as `best` where it is, and as `step-N` where numbered ones are kept.
    ///
    /// `best` comes first: should the process die in between, `last` is still a state that knows nothing of it.
    pub fn save(&self, checkpoint: &Checkpoint, is_best: bool, keep: usize) -> Result<()> {
        let step = checkpoint.progress.step;
        let fill = |folder: &Path| checkpoint.write(folder);
        let written = if is_best {
            self.checkpoint("best").replace(fill)?;
            Some(self.checkpoint("best").path().to_owned())
        } else {
            None
        };
        self.checkpoint("last").replace(|folder| match &written {
            Some(source) => share_files(source, folder),
            None => checkpoint.write(folder),
        })?;
        if keep > 0 {
            let numbered = self.checkpoint(&format!("step-{step}"));
            numbered.replace(|folder| share_files(self.checkpoint("last").path(), folder))?;
            self.forget_all_but(keep)?;
        }
        Ok(())
    }

    fn checkpoint(&self, name: &str) -> ReplaceableFolder {
        ReplaceableFolder::new(self.path.join(CHECKPOINTS).join(name))
    }

    /// Removes the oldest numbered checkpoints.
    fn forget_all_but(&self, keep: usize) -> Result<()> {
        let folder = self.path.join(CHECKPOINTS);
        let mut numbered: Vec<(u64, PathBuf)> = fs::read_dir(&folder)
            .map_err(|error| files::cannot_read(&folder, &error))?
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                let step = path.file_name()?.to_str()?.strip_prefix("step-")?.parse().ok()?;
                Some((step, path))
            })
            .collect();
        numbered.sort_unstable();
        for (_, path) in numbered.iter().take(numbered.len().saturating_sub(keep)) {
            fs::remove_dir_all(path)
                .with_context(|| format!("removing the old checkpoint {}", path.display()))?;
        }
        Ok(())
    }
}

/// The recipe of a run, as it was resolved.
pub fn read_recipe(run: &Path) -> Result<Value> {
    require_run(run)?;
    let path = run.join(RECIPE);
    recipe::parse(&files::read_text(&path)?, &path.display().to_string())
}

/// A checkpoint folder of a run by name (`best`, `last`, `step-N`), or, without one, `best` where the run has it, else `last`. Also finds the
/// right folder while another process is replacing it.
pub fn find_checkpoint(run: &Path, name: Option<&str>) -> Result<PathBuf> {
    require_run(run)?;
    let current = |name: &str| ReplaceableFolder::new(run.join(CHECKPOINTS).join(name)).current();
    match name {
        Some(name) => match current(name) {
            Some(folder) => Ok(folder),
            None => bail_input!("{} has no checkpoint `{name}`", run.display()),
        },
        None => match current("best").or_else(|| current("last")) {
            Some(folder) => Ok(folder),
            None => bail_input!(
                "{} has no checkpoint yet: its training ended before the first save",
                run.display()
            ),
        },
    }
}

/// The step of a checkpoint folder.
pub fn step_of(checkpoint: &Path) -> Result<u64> {
    Ok(read_progress(checkpoint)?.step)
}

fn require_run(path: &Path) -> Result<()> {
    if !path.is_dir() {
        bail_input!("there is no run folder {}", path.display());
    }
    if !path.join(RECIPE).is_file() {
        bail_input!("{} is no run folder: it has no {RECIPE}", path.display());
    }
    Ok(())
}
