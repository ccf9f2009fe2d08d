//! `export`: files that Python loads unchanged.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tch::Tensor;

use super::args::{ExportArgs, ExportFormat};
use super::family::{Family, FolderFormat};
use super::session::Session;
use crate::bail_input;
use crate::files;
use crate::models::lora::merged;
use crate::native::trace::{Entry, Stored, trace_module};
use crate::reporting::{Log, Verbosity};
use crate::tasks::Task;
use crate::weights::write_safetensors;

/// Runs the verb.
pub fn run<F: Family>(arguments: &ExportArgs) -> Result<()> {
    refuse_existing(&arguments.out)?;
    let session = Session::<F>::open(&arguments.run)?;
    place(&arguments.out, |staged| match arguments.format {
        ExportFormat::Torchscript => trace::<F>(&session, staged),
        ExportFormat::Safetensors => write_safetensors(staged, &merged(session.task.parameters())?),
        ExportFormat::Hf => {
            F::export_folder(&session.recipe, &session.task, FolderFormat::HuggingFace, staged)
        }
        ExportFormat::Peft => F::export_folder(&session.recipe, &session.task, FolderFormat::Peft, staged),
    })
}

/// Nothing is overwritten.
pub(super) fn refuse_existing(out: &Path) -> Result<()> {
    match out.exists() {
        true => bail_input!("{} exists already: choose another --out", out.display()),
        false => Ok(()),
    }
}

/// Puts a file in its place once `write` has written it whole under another name.
pub(super) fn place(out: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let staged = staged_name(out)?;
    let placed = write(&staged)
        .and_then(|()| std::fs::rename(&staged, out).map_err(|error| files::cannot_write(out, &error)));
    if placed.is_err() {
        let _ =
            if staged.is_dir() { std::fs::remove_dir_all(&staged) } else { std::fs::remove_file(&staged) };
    }
    placed?;
    Log::new(Verbosity::from_flags(false, true)).result(format!("wrote {}", out.display()));
    Ok(())
}

/// The name that a file has until it is whole.
fn staged_name(out: &Path) -> Result<PathBuf> {
    let Some(name) = out.file_name() else { bail_input!("--out {} names no file", out.display()) };
    let staged = out.with_file_name(format!(".{}.partial", name.to_string_lossy()));
    match out.parent() {
        Some(folder) if !folder.as_os_str().is_empty() && !folder.is_dir() => {
            bail_input!("--out {}: there is no folder {}", out.display(), folder.display())
        }
        _ => Ok(staged),
    }
}

/// Traces the network in evaluation mode, with parameters and buffers under their names. Another batch size works, since no layer reads it.
fn trace<F: Family>(session: &Session<F>, path: &Path) -> Result<()> {
    if let Some(saved) = F::save_script(&session.task, path) {
        return saved.and_then(|()| files::sync_file(path));
    }
    let parameters = session.task.parameters();
    let device = parameters.device();
    let entries = parameters.entries();
    let entries: Vec<Entry<'_>> = entries.iter().map(Entry::from).collect();
    let class = class_name(F::NAME);
    let write = |path: &Path,
                 inputs: &[(&str, Tensor)],
                 stored: Stored,
                 forward: &mut dyn FnMut(&[Tensor]) -> Result<Vec<Tensor>>| {
        let inputs = inputs
            .iter()
            .map(|(name, tensor)| Ok((*name, tensor.f_to_device(device)?)))
            .collect::<Result<Vec<_>>>()?;
        let named: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, tensor)| (*name, tensor)).collect();
        trace_module(&class, &entries, stored, &named, path, forward).context("tracing the network")?;
        files::sync_file(path)
    };
    let _guard = tch::no_grad_guard();
    let Some(parts) = F::script_parts(&session.task)? else {
        let inputs = F::example_inputs(&session.recipe.model, 2)?;
        return write(path, &inputs, Stored::All, &mut |inputs| F::forward(&session.task, inputs));
    };
    if let [part] = &parts[..] {
        return write(path, &part.inputs, Stored::Used, &mut |inputs| (part.forward)(inputs));
    }
    std::fs::create_dir(path).map_err(|error| files::cannot_write(path, &error))?;
    for part in parts {
        let file = path.join(format!("{}.pt", part.name));
        write(&file, &part.inputs, Stored::Used, &mut |inputs| (part.forward)(inputs))?;
    }
    Ok(())
}

/// `cnn` as `Cnn`: the class that Python shows.
fn class_name(family: &str) -> String {
    let mut letters = family.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}
