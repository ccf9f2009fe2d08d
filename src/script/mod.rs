//! Files that hold a network with its code: TorchScript archives and compiled packages, looked at without running anything, and values for their
//! methods.

pub mod archive;
pub mod npy;
pub mod signature;
pub mod values;
pub mod wav;

pub use archive::{Artifact, Inspection, inspect, kind_of};

use std::path::Path;

use anyhow::Result;
use tch::Device;

use crate::native::script::ScriptModule;
use crate::{bad_input, bail_input};

/// Loads a module, and says in the suite's words why it cannot be.
///
/// # Errors
/// The file is no module, is damaged, or needs an operator that libtorch does not have.
pub fn load_module(path: &Path, device: Device) -> Result<ScriptModule> {
    let name = path.display();
    match kind_of(path)? {
        Artifact::Module => {}
        Artifact::Package => bail_input!("{name} is a compiled package, which has no methods to choose from"),
        other => bail_input!(
            "{name} is {}, which holds weights without code: save the network with torch.jit.script(model).save(…), or give the weights to `cnn --init-from`",
            other.describe()
        ),
    }
    ScriptModule::load(path, device).map_err(|error| {
        let text = format!("{error:#}");
        match text.split_once("Unknown builtin op: ") {
            Some((_, rest)) => {
                let operator = rest.split(['.', ' ', '\n']).next().unwrap_or(rest);
                bad_input!(
                    "{name} needs the operator `{operator}`, which this libtorch does not have: it comes from an extension that cannot be loaded here"
                )
            }
            None => bad_input!("{name} cannot be loaded: {}", reason(&text)),
        }
    })
}

/// What a message of libtorch says is wrong: what was raised in a module, which stands behind the code that it was raised in, else the first line.
pub(crate) fn reason(text: &str) -> &str {
    let text = match text.rsplit_once("Error: ") {
        Some((code, raised)) if code.contains("TorchScript interpreter") => raised,
        _ => text,
    };
    text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or(text)
}
