//! `run`: a method of a module, or a compiled package, on inputs from files.

use std::path::PathBuf;

use anyhow::{Result, anyhow};
use clap::Args;
use tch::{Device, Kind, Tensor};

use super::PreprocessArgs;
use crate::cli::args::{DeviceArgs, EvalFormat};
use crate::cli::table::align;
use crate::cli::{print, session};
use crate::native::modes::InferenceMode;
use crate::native::script::{CompiledPackage, ScriptModule, Value};
use crate::reporting::{Log, Verbosity};
use crate::script::values::{ValueReader, leaves, tensors_of, to_json, write};
use crate::script::{Artifact, kind_of, load_module};
use crate::training::config::TrainingConfig;
use crate::weights::{NamedTensors, read_safetensors};
use crate::{bad_input, bail_input};

/// Arguments of `run`.
#[derive(Debug, Args)]
pub struct RunModuleArgs {
    /// A TorchScript module or a compiled package
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// NAME=FILE for each argument (or FILE, in their order): .npy, .npz, .safetensors, .json, .txt, .wav or images; of several tensors one by
    /// FILE#NAME; also json:…, text:…, zeros:, ones: or random: with type and sizes, as in random:4x3x64x64
    #[arg(long = "input", value_name = "NAME=FILE")]
    inputs: Vec<String>,
    /// The method to call
    #[arg(long, value_name = "NAME", default_value = "forward")]
    method: String,
    /// Call it chunk by chunk along a dimension of an input, NAME:DIMENSION:SIZE, and join what comes out
    #[arg(long, value_name = "NAME:DIM:SIZE")]
    chunk: Option<String>,
    /// The dimension of the outputs along which chunks are joined [default: that of the input]
    #[arg(long, value_name = "DIM", requires = "chunk", allow_hyphen_values = true)]
    join: Option<i64>,
    /// A method without arguments to call before the first chunk
    #[arg(long, value_name = "NAME")]
    reset: Option<String>,
    /// Write the result: .safetensors, .npy or .json
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Compare the result with this file: .safetensors with output, output.0, …, or one tensor, as FILE.npy or FILE#NAME
    #[arg(long, value_name = "FILE")]
    check: Option<String>,
    /// Relative tolerance of --check
    #[arg(long, value_name = "X", default_value_t = 1e-4)]
    rtol: f64,
    /// Absolute tolerance of --check
    #[arg(long, value_name = "X", default_value_t = 1e-5)]
    atol: f64,
    /// How to print
    #[arg(long, value_enum, default_value_t = EvalFormat::Table)]
    format: EvalFormat,
    /// Seed of random inputs and of what the module draws
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    preprocess: PreprocessArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Decides device, threads and precision.
pub(super) fn prepare(arguments: &DeviceArgs) -> Result<(Device, TrainingConfig)> {
    let usual = TrainingConfig::default();
    let mut config = TrainingConfig {
        device: arguments.device.clone().unwrap_or_else(|| "auto".to_owned()),
        threads: arguments.threads,
        precision: arguments.precision.unwrap_or(usual.precision),
        ..usual
    };
    let device = session::prepare(&mut config)?;
    Ok((device, config))
}

/// `NAME=SPECIFICATION`, or a specification by itself.
pub(super) fn parse_input(input: &str) -> (Option<&str>, &str) {
    let is_name = |name: &str| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    match input.split_once('=') {
        Some((name, specification)) if is_name(name) => (Some(name), specification),
        _ => (None, input),
    }
}

/// What the inputs of a method are, with the names or positions under which they are given.
pub(super) fn read_inputs(reader: &ValueReader, inputs: &[String]) -> Result<Vec<(Value, Value)>> {
    inputs
        .iter()
        .enumerate()
        .map(|(position, input)| {
            let (name, specification) = parse_input(input);
            let told = name.map_or_else(|| (position + 1).to_string(), str::to_owned);
            let value = reader.read(specification, &told)?;
            let key = name.map_or(Value::Int(position as i64), |name| Value::Text(name.to_owned()));
            Ok((key, value))
        })
        .collect()
}

/// Calls a method, and puts its signature behind what went wrong with its inputs.
pub(super) fn call(module: &ScriptModule, method: &str, inputs: Vec<(Value, Value)>) -> Result<Value> {
    module.call(method, inputs).map_err(|error| {
        let text = format!("{error:#}");
        if text.starts_with("there is no method") {
            let methods = module.methods().unwrap_or_default().join(", ");
            return bad_input!("{text}; the module has {methods}");
        }
        let signature = module.signature(method).unwrap_or_default();
        bad_input!("{method}{signature}: {}", innermost(&text))
    })
}

/// TorchScript's errors repeat the code that led to them; what matters is what stands behind the last name of an error.
fn innermost(text: &str) -> &str {
    if !text.contains("failed in the TorchScript interpreter") {
        return text;
    }
    let behind =
        ["Error: ", "Exception: "].iter().filter_map(|word| Some(text.rfind(word)? + word.len())).max();
    behind.map_or(text, |start| text[start..].trim())
}

/// Runs the verb.
pub fn run(arguments: &RunModuleArgs) -> Result<()> {
    if let Some(out) = &arguments.out {
        crate::cli::export::refuse_existing(out)?;
    }
    let (device, config) = prepare(&arguments.device)?;
    let reader = arguments.preprocess.reader()?;
    crate::native::random::manual_seed(arguments.seed)?;
    let inputs = read_inputs(&reader, &arguments.inputs)?;
    let _inference = InferenceMode::enter()?;
    let _autocast = config.precision.autocast(device)?;
    let result = match kind_of(&arguments.file)? {
        Artifact::Package => {
            if arguments.method != "forward" || arguments.chunk.is_some() || arguments.reset.is_some() {
                bail_input!(
                    "a compiled package has one entry and no state: leave out --method, --chunk and --reset"
                );
            }
            let package = load_package(&arguments.file, device)?;
            let tensors = inputs
                .iter()
                .map(|(_, value)| match value {
                    Value::Tensor(tensor) => Ok(tensor.f_to_device(device)?.f_contiguous()?),
                    _ => Err(bad_input!("a compiled package takes tensors only, in their order")),
                })
                .collect::<Result<Vec<_>>>()?;
            let shapes: Vec<Vec<i64>> = tensors.iter().map(Tensor::size).collect();
            let mut outputs = package.run(&tensors).map_err(|error| {
                bad_input!(
                    "{} does not take {} inputs of the shapes {shapes:?}: {}",
                    arguments.file.display(),
                    shapes.len(),
                    crate::script::reason(&format!("{error:#}"))
                )
            })?;
            match outputs.len() {
                1 => Value::Tensor(outputs.remove(0)),
                _ => Value::Tuple(outputs.into_iter().map(Value::Tensor).collect()),
            }
        }
        _ => {
            let module = load_module(&arguments.file, device)?;
            module.set_training(false)?;
            if let Some(reset) = &arguments.reset {
                call(&module, reset, Vec::new())?;
            }
            match &arguments.chunk {
                None => call(&module, &arguments.method, inputs)?,
                Some(chunk) => in_chunks(&module, arguments, chunk, inputs)?,
            }
        }
    };
    if let Some(out) = &arguments.out {
        write(&result, out)?;
        Log::new(Verbosity::from_flags(false, true)).result(format!("wrote {}", out.display()));
    }
    if let Some(check) = &arguments.check {
        return compare(&result, check, arguments.rtol, arguments.atol);
    }
    match (arguments.format, &arguments.out) {
        (EvalFormat::Json, _) => print(&serde_json::to_string(&to_json(&result)?)?),
        (EvalFormat::Table, Some(_)) => Ok(()),
        (EvalFormat::Table, None) => print(&described(&result)?),
    }
}

/// Loads a package, and says in the suite's words why it cannot be.
pub(super) fn load_package(file: &std::path::Path, device: Device) -> Result<CompiledPackage> {
    CompiledPackage::load(file, device).map_err(|error| {
        bad_input!(
            "{} cannot be loaded (it must be compiled for this machine and libtorch {}): {}",
            file.display(),
            env!("TCH_SUITE_LIBTORCH_VERSION"),
            crate::script::reason(&format!("{error:#}"))
        )
    })
}

/// Calls a method on one piece of an input after the other, and joins the outputs.
fn in_chunks(
    module: &ScriptModule,
    arguments: &RunModuleArgs,
    chunk: &str,
    inputs: Vec<(Value, Value)>,
) -> Result<Value> {
    let parts: Vec<&str> = chunk.split(':').collect();
    let parsed = match parts.as_slice() {
        [name, dimension, size] => {
            dimension.parse::<i64>().ok().zip(size.parse::<i64>().ok()).map(|(d, s)| (*name, d, s))
        }
        _ => None,
    };
    let Some((name, dimension, size)) = parsed.filter(|(_, _, size)| *size > 0) else {
        bail_input!("--chunk {chunk}: write NAME:DIMENSION:SIZE, as in x:1:160");
    };
    let names = module.arguments(&arguments.method).map_err(|error| bad_input!("{error:#}"))?;
    let wanted = names.iter().position(|known| known == name);
    let place = inputs.iter().position(|(key, _)| match key {
        Value::Text(text) => text == name,
        Value::Int(position) => wanted == usize::try_from(*position).ok(),
        _ => false,
    });
    let Some(place) = place else { bail_input!("--chunk {chunk}: there is no --input `{name}`") };
    let Value::Tensor(whole) = &inputs[place].1 else {
        bail_input!("--chunk {chunk}: the input `{name}` is no tensor")
    };
    let dimensions = whole.dim() as i64;
    if !(-dimensions..dimensions).contains(&dimension) {
        bail_input!("--chunk {chunk}: the input has {dimensions} dimensions");
    }
    let length = whole.size()[dimension.rem_euclid(dimensions) as usize];
    let mut results = Vec::new();
    let mut start = 0;
    while start < length {
        let piece = whole.f_narrow(dimension, start, size.min(length - start))?;
        let given = inputs
            .iter()
            .enumerate()
            .map(|(position, (key, value))| {
                let value =
                    if position == place { Value::Tensor(piece.shallow_clone()) } else { again(value) };
                (again(key), value)
            })
            .collect();
        results.push(call(module, &arguments.method, given)?);
        start += size;
    }
    joined(&results, arguments.join.unwrap_or(dimension))
}

/// The same value; tensors are shared.
pub(super) fn again(value: &Value) -> Value {
    match value {
        Value::None => Value::None,
        Value::Bool(value) => Value::Bool(*value),
        Value::Int(value) => Value::Int(*value),
        Value::Float(value) => Value::Float(*value),
        Value::Text(value) => Value::Text(value.clone()),
        Value::Tensor(value) => Value::Tensor(value.shallow_clone()),
        Value::List(values) => Value::List(values.iter().map(again).collect()),
        Value::Tuple(values) => Value::Tuple(values.iter().map(again).collect()),
        Value::Dict(entries) => {
            Value::Dict(entries.iter().map(|(key, value)| (again(key), again(value))).collect())
        }
    }
}

/// Tensors of equal place are joined along a dimension; what has no such dimension, or is no tensor, is listed.
fn joined(results: &[Value], dimension: i64) -> Result<Value> {
    let Some(first) = results.first() else { bail_input!("--chunk: the input is empty") };
    let inner = |place: usize| -> Result<Value> {
        let parts = results.iter().filter_map(|result| match result {
            Value::List(values) | Value::Tuple(values) => values.get(place).map(again),
            Value::Dict(entries) => entries.get(place).map(|(_, value)| again(value)),
            _ => None,
        });
        joined(&parts.collect::<Vec<_>>(), dimension)
    };
    Ok(match first {
        Value::Tensor(tensor) if (-(tensor.dim() as i64)..tensor.dim() as i64).contains(&dimension) => {
            let tensors: Vec<&Tensor> = results
                .iter()
                .filter_map(|result| match result {
                    Value::Tensor(tensor) => Some(tensor),
                    _ => None,
                })
                .collect();
            Value::Tensor(Tensor::f_cat(&tensors, dimension).map_err(|error| {
                bad_input!("--join {dimension}: the outputs of the chunks cannot be joined: {error}")
            })?)
        }
        Value::Tuple(values) => Value::Tuple((0..values.len()).map(inner).collect::<Result<_>>()?),
        Value::Dict(entries) => Value::Dict(
            entries
                .iter()
                .enumerate()
                .map(|(place, (key, _))| Ok((again(key), inner(place)?)))
                .collect::<Result<_>>()?,
        ),
        _ => Value::List(results.iter().map(again).collect()),
    })
}

/// A line for each leaf: path, type, shape and, of tensors, their range.
fn described(value: &Value) -> Result<String> {
    let mut rows = vec![["output", "type", "shape", "value"].map(str::to_owned)];
    for (path, leaf) in leaves(value, "output") {
        rows.push(match leaf {
            Value::Tensor(tensor) => {
                let told = match tensor.numel() {
                    0 => "empty".to_owned(),
                    1 => format!(
                        "{:?}",
                        tensor.f_to_kind(Kind::Double)?.f_double_value(&vec![0; tensor.dim()])?
                    ),
                    _ => {
                        let numbers = tensor.f_to_kind(Kind::Double)?;
                        let of = |tensor: Tensor| -> Result<f64> { Ok(tensor.f_double_value(&[])?) };
                        format!(
                            "min {:.6} mean {:.6} max {:.6}",
                            of(numbers.f_min()?)?,
                            of(numbers.f_mean(Kind::Double)?)?,
                            of(numbers.f_max()?)?
                        )
                    }
                };
                [path, format!("{:?}", tensor.kind()).to_lowercase(), format!("{:?}", tensor.size()), told]
            }
            other => [path, String::new(), String::new(), to_json(other)?.to_string()],
        });
    }
    Ok(align(&rows, 4))
}

/// Compares tensors by path with those of a file.
fn compare(result: &Value, check: &str, rtol: f64, atol: f64) -> Result<()> {
    let found = tensors_of(result)?;
    let path = std::path::Path::new(check);
    let expected: NamedTensors =
        if path.extension().is_some_and(|ending| ending == "safetensors") && path.exists() {
            read_safetensors(path)?
        } else {
            match ValueReader::default().read(check, "--check")? {
                Value::Tensor(tensor) => NamedTensors::from([("output".to_owned(), tensor)]),
                other => tensors_of(&other)?,
            }
        };
    // One expected tensor without a path is compared with the first output.
    let only = (expected.len() == 1).then(|| expected.keys().next()).flatten();
    let pairs: Vec<(&String, &Tensor, &Tensor)> = match only {
        Some(name) if !found.contains_key(name) => {
            found.iter().take(1).map(|(path, tensor)| (path, tensor, &expected[name])).collect()
        }
        _ => found.iter().filter_map(|(path, tensor)| Some((path, tensor, expected.get(path)?))).collect(),
    };
    if pairs.is_empty() {
        let paths: Vec<&str> = found.keys().map(String::as_str).collect();
        bail_input!("--check {check} has none of the outputs {}: name one with FILE#NAME", paths.join(", "));
    }
    let (mut lines, mut apart) = (Vec::new(), Vec::new());
    for (path, found, expected) in pairs {
        if found.size() != expected.size() {
            apart.push(format!("{path} has the shape {:?}, not {:?}", found.size(), expected.size()));
            continue;
        }
        let (found, expected) = (found.f_to_kind(Kind::Double)?, expected.f_to_kind(Kind::Double)?);
        let difference = (&found - &expected).f_abs()?;
        let beyond = difference.f_gt_tensor(&(expected.f_abs()? * rtol + atol))?;
        let largest = match difference.numel() {
            0 => 0.0,
            _ => difference.f_max()?.f_double_value(&[])?,
        };
        // NaN is beyond any tolerance, except where it is expected.
        let unequal = found.f_isnan()?.f_not_equal_tensor(&expected.f_isnan()?)?;
        let count = beyond.f_logical_or(&unequal)?.f_sum(Kind::Int64)?.f_int64_value(&[])?;
        lines.push(format!("{path}: largest difference {largest:.3e}"));
        if count > 0 {
            apart.push(format!(
                "{count} of {} values of {path} differ, by up to {largest:.3e}",
                found.numel()
            ));
        }
    }
    print(&lines.join("\n"))?;
    match apart.is_empty() {
        true => Ok(()),
        false => Err(anyhow!("--check {check}: {}", apart.join("; "))),
    }
}
