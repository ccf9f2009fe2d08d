//! `convert`: weights and modules from one form into another.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};
use serde_json::json;
use tch::{Device, Kind};

use super::Scripted;
use crate::cli::export::{place, refuse_existing};
use crate::cli::family::Family;
use crate::cli::session;
use crate::models::Parameters;
use crate::reporting::{Log, Verbosity};
use crate::script::{Artifact, kind_of, load_module};
use crate::tasks::Task;
use crate::training::checkpoint::{Checkpoint, Progress};
use crate::training::run::RunFolder;
use crate::weights::{self, NamedTensors, tensors_of, write_safetensors};
use crate::{bad_input, bail_input, files};

/// Arguments of `convert`.
#[derive(Debug, Args)]
pub struct ConvertArgs {
    /// A module, or weights in any form
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// What to write
    #[arg(long, value_enum)]
    to: Target,
    /// The file or run folder to write
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
    /// Cast floating-point numbers
    #[arg(long, value_enum)]
    dtype: Option<FloatType>,
    /// Freeze the module for inference: parameters become constants
    #[arg(long)]
    freeze: bool,
    /// Freeze it, and store the weights of linear layers in 8 bits; they quantise their inputs at each call, on CPUs only
    #[arg(long, conflicts_with_all = ["freeze", "dtype"])]
    int8: bool,
    /// Methods to keep besides forward when freezing
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    keep: Vec<String>,
    /// The architecture of a run
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Names of a run's classes, one a line [default: their numbers]
    #[arg(long, value_name = "FILE")]
    classes: Option<PathBuf>,
    /// Set a key of the run's recipe; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// Form of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Target {
    /// Named tensors.
    Safetensors,
    /// A module, of a module.
    Torchscript,
    /// A run folder of `cnn` that evaluates, predicts, exports and is fine-tuned.
    Run,
}

/// Types of floating-point numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FloatType {
    Fp32,
    Fp16,
    Bf16,
    Fp64,
}

impl FloatType {
    fn kind(self) -> Kind {
        match self {
            Self::Fp32 => Kind::Float,
            Self::Fp16 => Kind::Half,
            Self::Bf16 => Kind::BFloat16,
            Self::Fp64 => Kind::Double,
        }
    }
}

/// Runs the verb.
pub fn run(arguments: &ConvertArgs) -> Result<()> {
    refuse_existing(&arguments.out)?;
    if arguments.to != Target::Run && arguments.model.is_some() {
        bail_input!("--model goes with --to run");
    }
    let freezes = arguments.freeze || arguments.int8;
    if arguments.to != Target::Torchscript && freezes {
        bail_input!("--freeze and --int8 go with --to torchscript");
    }
    if !freezes && !arguments.keep.is_empty() {
        bail_input!("--keep goes with --freeze or --int8");
    }
    match arguments.to {
        Target::Safetensors => {
            let mut tensors = weights::open(&arguments.file)?.tensors()?;
            if let Some(dtype) = arguments.dtype {
                cast(&mut tensors, dtype.kind())?;
            }
            // Tensors that share numbers, or lie with gaps, are written apart.
            for tensor in tensors.values_mut() {
                *tensor = tensor.f_contiguous()?;
            }
            place(&arguments.out, |staged| write_safetensors(staged, &tensors))
        }
        Target::Torchscript => {
            if let other @ (Artifact::Package | Artifact::Weights(_)) = kind_of(&arguments.file)? {
                bail_input!(
                    "{} is {}: a module is made of a module, or by `export --format torchscript` of a run",
                    arguments.file.display(),
                    other.describe()
                );
            }
            // Files are the same whatever device reads them.
            let module = load_module(&arguments.file, Device::Cpu)?;
            if let Some(dtype) = arguments.dtype {
                module.cast(dtype.kind())?;
            }
            let kept: Vec<&str> = arguments.keep.iter().map(String::as_str).collect();
            let unfrozen = |error: anyhow::Error| {
                bad_input!(
                    "{} cannot be frozen: {}",
                    arguments.file.display(),
                    crate::script::reason(&format!("{error:#}"))
                )
            };
            let module = if arguments.int8 {
                let (module, layers) = module.quantized(&kept).map_err(unfrozen)?;
                if layers == 0 {
                    bail_input!(
                        "{} has no linear layer in fp32 whose weights are its own: nothing of it can be stored in 8 bits",
                        arguments.file.display()
                    );
                }
                Log::new(Verbosity::from_flags(false, true))
                    .result(format!("weights of 8 bits in linear layers: {layers}"));
                module
            } else if arguments.freeze {
                module.frozen(&kept).map_err(unfrozen)?
            } else {
                module
            };
            place(&arguments.out, |staged| {
                module.save(staged)?;
                files::sync_file(staged)
            })
        }
        Target::Run => to_run(arguments),
    }
}

fn cast(tensors: &mut NamedTensors, kind: Kind) -> Result<()> {
    for tensor in tensors.values_mut().filter(|tensor| tensor.is_floating_point()) {
        *tensor = tensor.f_to_kind(kind)?;
    }
    Ok(())
}

/// Weights in an architecture, as a run of no steps.
fn to_run(arguments: &ConvertArgs) -> Result<()> {
    let Some(name) = &arguments.model else { bail_input!("--to run needs the architecture: --model NAME") };
    let opened = weights::open(&arguments.file)?;
    let classes = arguments.classes.as_deref().map(session::read_classes).transpose()?;
    let mut recipe = Scripted::recipe_of_weights(name, &opened, classes, &arguments.set)?;
    session::prepare(&mut recipe.training)?;
    // The weights are only copied here.
    let task = Scripted::build(&recipe, Parameters::undrawn(Device::Cpu))?;
    let loaded = weights::load_opened(task.parameters(), &opened, false)?;
    loaded.report.require_complete(&opened.origin)?;
    let folder = RunFolder::create(&arguments.out)?;
    folder.write_recipe(&json!(recipe))?;
    let checkpoint = Checkpoint {
        progress: Progress::default(),
        environment: session::environment(&recipe.training, 1)?,
        data: None,
        model: tensors_of(task.parameters()),
        average: None,
        optimizer: NamedTensors::new(),
        gradients: None,
    };
    folder.save(&checkpoint, false, 0)?;
    Log::new(Verbosity::from_flags(false, true)).result(format!("wrote {}", arguments.out.display()));
    Ok(())
}
