//! The run folder: everything about one training, in a form that can be moved.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use super::checkpoint::{Checkpoint, read_data_fingerprint, read_progress};
use crate::data::fingerprint::DataFingerprint;
use crate::files::{self, FolderLock, ReplaceableFolder, share_files};
use crate::{bail_input, recipe};

const RECIPE: &str = "recipe.json";
const CHECKPOINTS: &str = "checkpoints";
/// Copied before the recipe is written.
const ATTACHMENT: &str = crate::models::scripted::ATTACHMENT;

/// A run folder that this process writes, under its lock.
pub struct RunFolder {
    path: PathBuf,
    /// None where another process writes.
    _lock: Option<FolderLock>,
}

impl RunFolder {
    /// Makes the folder of a new run. One whose process died before it wrote its recipe is taken over.
    ///
    /// # Errors
    /// The folder exists and holds anything else: nothing of an earlier run is ever overwritten.
    pub fn create(path: &Path) -> Result<Self> {
        let begun = |name: &std::ffi::OsStr| {
            [files::LOCK, CHECKPOINTS, ATTACHMENT].iter().any(|known| name == *known)
        };
        if fs::read_dir(path)
            .is_ok_and(|mut entries| entries.any(|entry| entry.is_ok_and(|entry| !begun(&entry.file_name()))))
            || fs::read_dir(path.join(CHECKPOINTS)).is_ok_and(|mut entries| entries.next().is_some())
        {
            bail_input!(
                "the folder {} exists already: choose another --out, or continue it with --resume {}",
                path.display(),
                path.display()
            );
        }
        fs::create_dir_all(path.join(CHECKPOINTS)).map_err(|error| files::cannot_write(path, &error))?;
        let lock = FolderLock::take(path)?;
        Ok(Self { path: path.to_owned(), _lock: Some(lock) })
    }

    /// Opens the folder of an earlier run to continue it, and puts an interrupted save in order.
    pub fn open(path: &Path) -> Result<Self> {
        require_run(path)?;
        let run = Self { path: path.to_owned(), _lock: Some(FolderLock::take(path)?) };
        for name in ["last", "best"] {
            run.checkpoint(name).recover()?;
        }
        Ok(run)
    }

    /// The folder of a run that another process of the same training writes: to read from, once that one has made or opened it.
    pub fn follow(path: &Path) -> Self {
        Self { path: path.to_owned(), _lock: None }
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

    /// Refuses to go on with other data than those of the newest checkpoint.
    pub fn require_data(&self, now: &DataFingerprint) -> Result<()> {
        let folder = self.checkpoint("last");
        if !folder.path().is_dir() {
            return Ok(());
        }
        let before = read_data_fingerprint(folder.path())?;
        match before.and_then(|before| before.difference(now)) {
            Some(difference) => bail_input!(
                "{} was trained on other data: {difference}; give the same data with --data, or start a new run with --init-from {}",
                self.path.display(),
                self.path.display()
            ),
            None => Ok(()),
        }
    }

    /// Saves a checkpoint as `best` where it is, as `step-N` where `keep` numbered ones are kept, and as `last`.
    ///
    /// `last` comes last: should the process die in between, it is a state that knows nothing of the others, and going on from it makes them
    /// again.
    pub fn save(&self, checkpoint: &Checkpoint, is_best: bool, keep: usize) -> Result<()> {
        let numbered = (keep > 0).then(|| format!("step-{}", checkpoint.progress.step));
        let names = is_best.then_some("best").into_iter().chain(numbered.as_deref()).chain(["last"]);
        let mut written: Option<PathBuf> = None;
        for name in names {
            let target = self.checkpoint(name);
            target.replace(|folder| match &written {
                Some(source) => share_files(source, folder),
                None => checkpoint.write(folder),
            })?;
            if Some(name) == numbered.as_deref() {
                self.forget_all_but(keep)?;
            }
            written = Some(target.path().to_owned());
        }
        Ok(())
    }

    fn checkpoint(&self, name: &str) -> ReplaceableFolder {
        ReplaceableFolder::new(self.path.join(CHECKPOINTS).join(name))
    }

    /// Removes the oldest numbered checkpoints.
    fn forget_all_but(&self, keep: usize) -> Result<()> {
        let numbered = numbered(&self.path)?;
        for (_, path) in numbered.iter().take(numbered.len().saturating_sub(keep)) {
            fs::remove_dir_all(path)
                .with_context(|| format!("removing the old checkpoint {}", path.display()))?;
        }
        Ok(())
    }
}

/// The numbered checkpoints of a run with their steps, oldest first.
fn numbered(run: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let folder = run.join(CHECKPOINTS);
    let mut numbered: Vec<(u64, PathBuf)> = fs::read_dir(&folder)
        .map_err(|error| files::cannot_read(&folder, &error))?
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let step = path.file_name()?.to_str()?.strip_prefix("step-")?.parse().ok()?;
            Some((step, path))
        })
        .collect();
    numbered.sort_unstable();
    Ok(numbered)
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

/// What `--checkpoint average:N` begins with.
const AVERAGE: &str = "average:";

/// The checkpoint folders that `--checkpoint` names, oldest first: for `average:N` the newest N of the numbered ones and `last`, whose weights are to be
/// averaged; else the one that [`find_checkpoint`] finds.
///
/// # Errors
/// There is no such checkpoint, or there are fewer than N.
pub fn find_checkpoints(run: &Path, name: Option<&str>) -> Result<Vec<PathBuf>> {
    let Some(count) = name.and_then(|name| name.strip_prefix(AVERAGE)) else {
        return Ok(vec![find_checkpoint(run, name)?]);
    };
    let Some(count) = count.parse().ok().filter(|&count: &usize| count > 0) else {
        bail_input!("--checkpoint {AVERAGE}{count}: give the number of checkpoints, as in {AVERAGE}5");
    };
    let last = find_checkpoint(run, Some("last"))?;
    let mut found = numbered(run)?;
    // The end of a run is numbered too, but for one that was interrupted.
    let step = step_of(&last)?;
    if found.last().is_none_or(|(newest, _)| *newest < step) {
        found.push((step, last));
    }
    if found.len() < count {
        bail_input!(
            "--checkpoint {AVERAGE}{count}: {} has {} checkpoint{} of different steps; train with --keep {count} to have more",
            run.display(),
            found.len(),
            if found.len() == 1 { "" } else { "s" }
        );
    }
    Ok(found.split_off(found.len() - count).into_iter().map(|(_, folder)| folder).collect())
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
