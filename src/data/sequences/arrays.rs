//! Sequences of numbers as arrays: NumPy's files, and safetensors.

use std::path::Path;

use anyhow::{Context, Result};
use tch::{Kind, Tensor};

use super::labelled::RawSequences;
use crate::bail_input;
use crate::weights::{NamedTensors, read_safetensors};

/// Training, validation and test part, as far as there are any.
type Parts = [Option<RawSequences>; 3];

/// Reads `x_train.npy` and `y_train.npy` (and `x_validation`, `x_test` likewise) of a folder, or the tensors of these names in a safetensors file, whose
/// training part may be called `x` and `y` alone: x `[sequence, step, feature]`, y `[sequence]` whole numbers. `None` where the path is neither.
///
/// # Errors
/// An array of another shape, a value that is not finite, as many labels as not sequences.
pub fn read(path: &Path) -> Result<Option<Parts>> {
    let tensors = if path.extension().is_some_and(|end| end == "safetensors") {
        read_safetensors(path)?
    } else if path.is_dir() && path.join("x_train.npy").is_file() {
        let mut tensors = NamedTensors::new();
        for part in ["train", "validation", "test"] {
            for letter in ["x", "y"] {
                let file = path.join(format!("{letter}_{part}.npy"));
                if file.is_file() {
                    let tensor = Tensor::read_npy(&file).map_err(|error| {
                        crate::bad_input!("{} is no NumPy array that can be read: {error}", file.display())
                    })?;
                    tensors.insert(format!("{letter}_{part}"), tensor);
                }
            }
        }
        tensors
    } else {
        return Ok(None);
    };
    let part = |names: [&str; 2]| -> Result<Option<RawSequences>> {
        let named = |letter: &str| {
            names
                .iter()
                .map(|name| format!("{letter}{name}"))
                .find_map(|name| tensors.get(&name).map(|tensor| (name, tensor)))
        };
        match (named("x"), named("y")) {
            (Some((x_name, x)), Some((_, y))) => sequences(path, &x_name, x, y).map(Some),
            (Some((name, _)), None) => bail_input!("{} has {name} without labels (y)", path.display()),
            _ => Ok(None),
        }
    };
    Ok(Some([part(["_train", ""])?, part(["_validation", "_val"])?, part(["_test", "_test"])?]))
}

fn sequences(path: &Path, name: &str, x: &Tensor, y: &Tensor) -> Result<RawSequences> {
    let [count, steps, features] = x.size()[..] else {
        bail_input!(
            "{}: {name} has {} dimensions, where [sequence, step, feature] is wanted",
            path.display(),
            x.dim()
        );
    };
    if y.size() != [count] {
        bail_input!("{}: {name} has {count} sequences, but there are labels {:?}", path.display(), y.size());
    }
    let x = x.f_to_kind(Kind::Float)?;
    let finite = x.f_isfinite()?.f_flatten(1, -1)?.f_all_dim(1, false)?;
    let finite = Vec::<bool>::try_from(finite).context("looking for values that are not finite")?;
    if let Some(bad) = finite.iter().position(|finite| !finite) {
        bail_input!("{}: sequence {bad} of {name} has a value that is NaN or infinite", path.display());
    }
    let all = Vec::<f32>::try_from(x.f_flatten(0, -1)?)?;
    let labels = Vec::<i64>::try_from(y.f_to_kind(Kind::Int64)?)?;
    let each = (steps * features) as usize;
    Ok(RawSequences {
        features: features as usize,
        values: (0..count as usize)
            .map(|sequence| all[sequence * each..(sequence + 1) * each].to_vec())
            .collect(),
        labels: labels.iter().map(i64::to_string).collect(),
        origins: (0..count)
            .map(|sequence| format!("{}, sequence {sequence} of {name}", path.display()))
            .collect(),
    })
}
