//! `bench`: how long a module or package takes, over batch sizes and threads.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use serde_json::json;
use tch::{Device, Tensor};

use super::PreprocessArgs;
use super::run::{call, load_package, parse_input, prepare, read_inputs};
use crate::bail_input;
use crate::cli::args::{DeviceArgs, EvalFormat};
use crate::cli::print;
use crate::cli::table::align;
use crate::native::modes::InferenceMode;
use crate::native::script::{CompiledPackage, ScriptModule, Value};
use crate::script::{Artifact, kind_of, load_module};
use crate::training::precision::Precision;

/// Arguments of `bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// A TorchScript module or a compiled package
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// NAME=FILE for each argument, as for `run`; tensors are repeated along their first dimension to each batch size
    #[arg(long = "input", value_name = "NAME=FILE")]
    inputs: Vec<String>,
    /// The method to call
    #[arg(long, value_name = "NAME", default_value = "forward")]
    method: String,
    /// Batch sizes
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1,8")]
    batch: Vec<i64>,
    /// Numbers of threads [default: all cores]
    #[arg(long, value_name = "N,…", value_delimiter = ',')]
    threads: Vec<usize>,
    /// Arithmetic: fp32, bf16
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', default_value = "fp32")]
    precision: Vec<Precision>,
    /// Also time the module frozen for inference
    #[arg(long)]
    freeze: bool,
    /// Calls before the clock starts
    #[arg(long, value_name = "N", default_value_t = 5)]
    warm_up: usize,
    /// Calls that are timed
    #[arg(long, value_name = "N", default_value_t = 30)]
    calls: usize,
    /// cpu, cuda, cuda:N or mps
    #[arg(long, value_name = "NAME")]
    device: Option<String>,
    /// How to print
    #[arg(long, value_enum, default_value_t = EvalFormat::Table)]
    format: EvalFormat,
    #[command(flatten)]
    preprocess: PreprocessArgs,
}

/// One line of the result.
#[derive(Debug, Serialize)]
struct Timing {
    batch: i64,
    threads: usize,
    precision: Precision,
    frozen: bool,
    /// Milliseconds of a call: the median, and what 90 and 99 of 100 calls keep below.
    p50_ms: f64,
    p90_ms: f64,
    p99_ms: f64,
    /// Rows of the batch a second, at the median.
    samples_per_second: f64,
}

enum Callable {
    Module(ScriptModule),
    Package(CompiledPackage),
}

/// Runs the verb.
pub fn run(arguments: &BenchArgs) -> Result<()> {
    if arguments.calls == 0 || arguments.batch.iter().any(|size| *size < 1) {
        bail_input!("--calls and --batch must be at least 1");
    }
    let all_cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = if arguments.threads.is_empty() { vec![all_cores] } else { arguments.threads.clone() };
    let device_args =
        DeviceArgs { device: arguments.device.clone(), threads: threads.first().copied(), precision: None };
    let (device, _) = prepare(&device_args)?;
    let reader = arguments.preprocess.reader()?;
    let inputs = read_inputs(&reader, &arguments.inputs)?;
    if !arguments.inputs.iter().any(|input| !parse_input(input).1.is_empty()) {
        bail_input!("give at least one --input, as in --input x=random:1x3x224x224");
    }
    let mut callables = Vec::new();
    match kind_of(&arguments.file)? {
        Artifact::Package => {
            callables.push((false, Callable::Package(load_package(&arguments.file, device)?)));
        }
        _ => {
            let module = load_module(&arguments.file, device)?;
            module.set_training(false)?;
            if arguments.freeze {
                let kept: Vec<&str> =
                    Some(arguments.method.as_str()).filter(|name| *name != "forward").into_iter().collect();
                callables.push((true, Callable::Module(module.frozen(&kept)?)));
            }
            callables.insert(0, (false, Callable::Module(module)));
        }
    }
    let _inference = InferenceMode::enter()?;
    let mut timings = Vec::new();
    for &count in &threads {
        tch::set_num_threads(i32::try_from(count.max(1)).unwrap_or(1));
        for &precision in &arguments.precision {
            let _autocast = precision.autocast(device)?;
            for (frozen, callable) in &callables {
                for &batch in &arguments.batch {
                    let inputs = of_batch(&inputs, batch, device)?;
                    let mut milliseconds = Vec::with_capacity(arguments.calls);
                    for number in 0..arguments.warm_up + arguments.calls {
                        let given = handles(&inputs);
                        let began = Instant::now();
                        let result = compute(callable, &arguments.method, given)?;
                        wait_for(&result, device)?;
                        if number >= arguments.warm_up {
                            milliseconds.push(began.elapsed().as_secs_f64() * 1e3);
                        }
                    }
                    milliseconds.sort_by(f64::total_cmp);
                    let at =
                        |share: f64| milliseconds[((milliseconds.len() - 1) as f64 * share).round() as usize];
                    timings.push(Timing {
                        batch,
                        threads: count,
                        precision,
                        frozen: *frozen,
                        p50_ms: at(0.5),
                        p90_ms: at(0.9),
                        p99_ms: at(0.99),
                        samples_per_second: batch as f64 * 1e3 / at(0.5),
                    });
                }
            }
        }
    }
    if arguments.format == EvalFormat::Json {
        return print(&serde_json::to_string_pretty(&json!(timings))?);
    }
    let mut rows = vec![
        ["batch", "threads", "precision", "frozen", "p50 ms", "p90 ms", "p99 ms", "samples/s"]
            .map(str::to_owned),
    ];
    for timing in &timings {
        rows.push([
            timing.batch.to_string(),
            timing.threads.to_string(),
            timing.precision.to_string(),
            if timing.frozen { "yes" } else { "no" }.to_owned(),
            format!("{:.3}", timing.p50_ms),
            format!("{:.3}", timing.p90_ms),
            format!("{:.3}", timing.p99_ms),
            format!("{:.1}", timing.samples_per_second),
        ]);
    }
    print(&align(&rows, 0))
}

/// The inputs with every tensor's first dimension repeated or cut to a batch size; values other than tensors, and scalars, stay.
fn of_batch(inputs: &[(Value, Value)], batch: i64, device: Device) -> Result<Vec<(Value, Value)>> {
    inputs
        .iter()
        .map(|(key, value)| {
            let value = match value {
                Value::Tensor(tensor) if tensor.dim() > 0 && tensor.size()[0] > 0 => {
                    // Positions are made on the host.
                    let rows = Tensor::f_arange(batch, (tch::Kind::Int64, Device::Cpu))?
                        .f_remainder(tensor.size()[0])?;
                    Value::Tensor(tensor.f_index_select(0, &rows)?.f_to_device(device)?)
                }
                other => handle(other),
            };
            Ok((handle(key), value))
        })
        .collect()
}

fn handles(inputs: &[(Value, Value)]) -> Vec<(Value, Value)> {
    inputs.iter().map(|(key, value)| (handle(key), handle(value))).collect()
}

fn handle(value: &Value) -> Value {
    super::run::again(value)
}

fn compute(callable: &Callable, method: &str, inputs: Vec<(Value, Value)>) -> Result<Value> {
    match callable {
        Callable::Module(module) => call(module, method, inputs),
        Callable::Package(package) => {
            let mut tensors = Vec::with_capacity(inputs.len());
            for (_, value) in inputs {
                match value {
                    Value::Tensor(tensor) => tensors.push(tensor),
                    _ => bail_input!("a compiled package takes tensors only, in their order"),
                }
            }
            Ok(Value::List(package.run(&tensors)?.into_iter().map(Value::Tensor).collect()))
        }
    }
}

/// A GPU computes on after the call has returned: reading one number waits for it.
fn wait_for(value: &Value, device: Device) -> Result<()> {
    if device == Device::Cpu {
        return Ok(());
    }
    if let Some((_, Value::Tensor(tensor))) = crate::script::values::leaves(value, "output").first()
        && tensor.numel() > 0
    {
        tensor.f_reshape([-1])?.f_select(0, 0)?.f_to_kind(tch::Kind::Double)?.f_double_value(&[])?;
    }
    Ok(())
}
