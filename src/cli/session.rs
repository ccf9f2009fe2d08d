//! From arguments to a resolved recipe, and from a run folder back to its model.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;
use tch::Device;

use super::args::{ModelArgs, TrainArgs};
use super::calibrate::Calibration;
use super::family::{Family, FamilyRecipe};
use crate::distributed::rendezvous::Rendezvous;
use crate::models::Parameters;
use crate::native::{random, system};
use crate::recipe::{self, Attachments, differences};
use crate::reporting::{Log, Verbosity};
use crate::tasks::Task;
use crate::training::checkpoint::{Environment, load_mean_weights, load_weights};
use crate::training::config::{MAY_CHANGE_ON_RESUME, TrainingConfig};
use crate::training::precision::Precision;
use crate::training::run::{find_checkpoints, read_recipe, step_of};
use crate::weights;
use crate::{bad_input, bail_input, files};

/// The recipe of a new run: preset or file, then flags, then `--set`.
pub fn new_recipe<F: Family>(arguments: &TrainArgs) -> Result<FamilyRecipe<F>> {
    let of_task = arguments.task.as_deref().map_or(F::DEFAULT_RECIPE, F::recipe_of_task);
    let name = arguments.recipe.as_deref().unwrap_or(of_task);
    let mut value = recipe::find(name, F::presets())?;
    override_with::<F>(&mut value, arguments)?;
    typed::<F>(value, name)
}

/// The recipe of a run that is continued. Only what [`MAY_CHANGE_ON_RESUME`] lists may differ from what the run was started with.
pub fn resumed_recipe<F: Family>(run: &Path, arguments: &TrainArgs, log: &Log) -> Result<FamilyRecipe<F>> {
    let before = read_recipe(run)?;
    let origin = format!("the recipe of {}", run.display());
    // Through the types, so that both sides have every key.
    let before_typed = typed::<F>(before.clone(), &origin)?;
    let mut value = before;
    override_with::<F>(&mut value, arguments)?;
    let mut after = typed::<F>(value, &origin)?;
    let refused: Vec<String> =
        differences(&serde_json::to_value(&before_typed)?, &serde_json::to_value(&after)?)
            .into_iter()
            .filter(|(key, ..)| !MAY_CHANGE_ON_RESUME.contains(&key.as_str()))
            .map(|(key, before, after)| format!("{key} {before} → {after}"))
            .collect();
    if !refused.is_empty() {
        bail_input!(
            "a resumed run keeps its recipe, but the flags change {}: leave them out, or start a new run with --init-from {}",
            refused.join(", "),
            run.display()
        );
    }
    let length = |recipe: &FamilyRecipe<F>| match recipe.training.steps {
        Some(steps) => (Some(steps), None),
        None => (None, Some(recipe.training.epochs)),
    };
    if length(&before_typed) != length(&after) && after.training.rates_depend_on_length() {
        log.warning(
            "the learning rate follows the length of the run, which has changed: the steps to come have other rates than in a run of \
             this length from the beginning",
        );
    }
    // What the run keeps beside its recipe is no change of it.
    after.attachments = Attachments::of(run);
    Ok(after)
}

fn override_with<F: Family>(value: &mut Value, arguments: &TrainArgs) -> Result<()> {
    let data = arguments.data.iter().flat_map(|data| F::data_settings(data));
    let script = arguments.head.as_ref().map_or_else(|| Ok(Vec::new()), |_| F::script_settings())?;
    for (key, setting) in data.chain(script).chain(arguments.settings()) {
        recipe::set(value, key, setting)?;
    }
    for argument in &arguments.set {
        let (key, setting) = recipe::parse_setting(argument)?;
        recipe::set(value, &key, setting)?;
    }
    Ok(())
}

fn typed<F: Family>(value: Value, origin: &str) -> Result<FamilyRecipe<F>> {
    let recipe: FamilyRecipe<F> = recipe::typed(value, origin)?;
    recipe
        .training
        .validate()
        .and_then(|()| F::validate(&recipe))
        .with_context(|| format!("recipe {}", recipe.name))?;
    Ok(recipe)
}

/// Decides what `auto` stands for, applies the global settings, and returns the device.
pub fn prepare(config: &mut TrainingConfig) -> Result<Device> {
    prepare_among(config, None)
}

/// The same for one of several processes, of which each has a share of the machine: the CUDA device of its number, its part of the cores.
pub fn prepare_among(config: &mut TrainingConfig, place: Option<&Rendezvous>) -> Result<Device> {
    let name = match (config.device.as_str(), place) {
        // The number of the run's device was that of the first process.
        (device, Some(place)) if device.starts_with("cuda") => format!("cuda:{}", place.local_rank),
        ("auto", Some(place)) if tch::Cuda::is_available() => format!("cuda:{}", place.local_rank),
        (device, _) => device.to_owned(),
    };
    let device = parse_device(&name)?;
    config.distributed.processes =
        Some(config.distributed.processes.unwrap_or(place.map_or(1, |place| place.size)));
    config.device = match device {
        Device::Cpu => "cpu".to_owned(),
        Device::Cuda(number) => format!("cuda:{number}"),
        Device::Mps => "mps".to_owned(),
        Device::Vulkan => "vulkan".to_owned(),
    };
    let threads = match config.threads {
        Some(threads) => threads,
        None => {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            (cores / place.map_or(1, |place| place.local_size)).max(1)
        }
    };
    config.threads = Some(threads);
    tch::set_num_threads(
        i32::try_from(threads).map_err(|_| bad_input!("training.threads is {threads}: too many"))?,
    );
    config.precision = config.precision.resolve(device)?;
    // One thread keeps a CPU fed from memory; decoding on the way to a GPU wants more.
    config.workers =
        Some(config.workers.unwrap_or(if device == Device::Cpu { 1 } else { threads.clamp(1, 8) }));
    if config.deterministic {
        system::set_deterministic(true)?;
    }
    Ok(device)
}

/// The device that a name stands for.
///
/// # Errors
/// There is no such device, or it is not usable here; libtorch's reason is given.
pub fn parse_device(name: &str) -> Result<Device> {
    let cuda = |number: usize| -> Result<Device> {
        let facts = system::facts()?.cuda;
        if !facts.usable {
            let reason = match (facts.linked, facts.reason) {
                (false, _) => {
                    "this program is built on a libtorch without CUDA; `scripts/setup.sh --cuda` brings one"
                        .to_owned()
                }
                (true, reason) => reason.unwrap_or_else(|| "no CUDA driver or device was found".to_owned()),
            };
            bail_input!("--device {name} cannot be used: {reason}");
        }
        if number >= facts.devices.len() {
            bail_input!("--device {name}: there are {} CUDA devices, numbered from 0", facts.devices.len());
        }
        Ok(Device::Cuda(number))
    };
    match name {
        "cpu" => Ok(Device::Cpu),
        "auto" if tch::Cuda::is_available() => Ok(Device::Cuda(0)),
        "auto" => Ok(if tch::utils::has_mps() { Device::Mps } else { Device::Cpu }),
        "cuda" => cuda(0),
        "mps" if tch::utils::has_mps() => Ok(Device::Mps),
        "mps" => Err(bad_input!("--device mps cannot be used: this is no machine with Apple's GPU")),
        other => match other.strip_prefix("cuda:").map(str::parse) {
            Some(Ok(number)) => cuda(number),
            _ => Err(bad_input!("--device {other}: choose auto, cpu, cuda, cuda:N or mps")),
        },
    }
}

/// What results depend on besides the recipe.
pub fn environment(config: &TrainingConfig, processes: usize) -> Result<Environment> {
    let facts = system::facts()?;
    Ok(Environment {
        suite: env!("CARGO_PKG_VERSION").to_owned(),
        libtorch: facts.libtorch_version.clone(),
        processor: facts.arithmetic(),
        device: config.device.clone(),
        threads: config.threads.unwrap_or(1),
        processes,
    })
}

/// Makes the model of a recipe: seeded, so that the weights are those of PyTorch under the same seed, then, for a `fresh` run, overwritten
/// by `init_from`.
pub fn build<F: Family>(recipe: &FamilyRecipe<F>, device: Device, fresh: bool, log: &Log) -> Result<F::Task> {
    let doubles = recipe.training.precision == Precision::Fp64;
    if doubles && device == Device::Mps {
        bail_input!("--precision fp64: Apple's GPUs have no double precision; take --device cpu");
    }
    random::manual_seed(recipe.training.seed)?;
    // What comes from a checkpoint needs no draws.
    let parameters = if fresh { Parameters::new(device) } else { Parameters::undrawn(device) };
    let parameters = parameters.with_lora(recipe.training.fine_tune.lora.clone());
    let task = F::build(recipe, parameters)?;
    if let Some(source) = recipe.training.init_from.as_ref().filter(|_| fresh) {
        for note in F::load(&task, source, recipe.training.init_strict)?.notes {
            log.warning(note);
        }
    }
    if doubles {
        task.parameters().make_double()?;
    }
    task.parameters().freeze(&recipe.training.freeze)?;
    recipe.training.fine_tune.apply(task.parameters(), task.head_name())?;
    Ok(task)
}

/// A trained model with its recipe.
pub struct Session<F: Family> {
    /// As it was resolved, with the device of now.
    pub recipe: FamilyRecipe<F>,
    /// With the checkpoint's weights.
    pub task: F::Task,
    /// Where the weights come from, for people.
    pub origin: String,
    /// The step of the run's checkpoint; `None` for weights from elsewhere.
    pub step: Option<u64>,
}

impl<F: Family> Session<F> {
    /// Loads a checkpoint of a run, or an architecture with weights from elsewhere.
    pub fn open(arguments: &ModelArgs) -> Result<Self> {
        Self::open_among(arguments, None)
    }

    /// The same in one of several processes.
    pub fn open_among(arguments: &ModelArgs, place: Option<&Rendezvous>) -> Result<Self> {
        match (&arguments.run, &arguments.weights.model, &arguments.weights.init_from) {
            (Some(run), None, _) if run.join("recipe.json").is_file() || !is_elsewhere(run) => {
                Self::of_run(run, arguments, place)
            }
            (Some(folder), None, _) => Self::of_folder(folder, arguments, place),
            (None, Some(name), Some(source)) => Self::of_weights(name, source, arguments, place),
            (Some(run), Some(_), _) => {
                bail_input!("{} and --model: give a run, or an architecture with --init-from", run.display())
            }
            _ => bail_input!("give a run folder, or --model NAME with --init-from FILE"),
        }
    }

    fn of_run(run: &Path, arguments: &ModelArgs, place: Option<&Rendezvous>) -> Result<Self> {
        let mut recipe = trained_recipe::<F>(run)?;
        // The run's own device may not exist here; its precision still says how it is meant to be computed.
        recipe.training.device = "auto".to_owned();
        let origin = format!("the recipe of {}", run.display());
        let mut recipe = with_arguments::<F>(&recipe, arguments, &origin)?;
        let device = prepare_among(&mut recipe.training, place)?;
        let parameters = Parameters::undrawn(device).with_lora(recipe.training.fine_tune.lora.clone());
        let mut task = F::build(&recipe, parameters)?;
        if recipe.training.precision == Precision::Fp64 {
            task.parameters().make_double()?;
        }
        let checkpoints = find_checkpoints(run, arguments.checkpoint.as_deref())?;
        let steps = checkpoints.iter().map(|folder| step_of(folder)).collect::<Result<Vec<_>>>()?;
        let listed = steps.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
        let origin = match &checkpoints[..] {
            [checkpoint] => {
                load_weights(checkpoint, task.parameters())?;
                format!("checkpoint of step {listed}")
            }
            several => {
                load_mean_weights(several, task.parameters())?;
                format!("mean of the checkpoints of steps {listed}")
            }
        };
        let step = steps.last().copied();
        // Another temperature fits a mean.
        let calibration = Calibration::read(run)?.filter(|calibration| steps == [calibration.step]);
        if let Some(calibration) = calibration {
            F::set_temperature(&mut task, calibration.temperature);
        }
        Ok(Self { recipe, task, origin, step })
    }

    fn of_folder(folder: &Path, arguments: &ModelArgs, place: Option<&Rendezvous>) -> Result<Self> {
        let recipe = F::recipe_of_folder(folder)?;
        let origin = folder.display().to_string();
        let mut recipe = with_arguments::<F>(&recipe, arguments, &origin)?;
        let device = prepare_among(&mut recipe.training, place)?;
        let task = F::build(&recipe, Parameters::undrawn(device))?;
        let weights::Loaded { report, notes } = F::load(&task, folder, arguments.weights.strict)?;
        // A head that was never trained would answer at random.
        if !report.missing.is_empty() || !report.mismatched.is_empty() {
            bail_input!("{origin} has no trained model for this task: {}", report.describe());
        }
        let log = Log::new(Verbosity::from_flags(false, true));
        for note in notes {
            log.warning(note);
        }
        Ok(Self { recipe, task, origin, step: None })
    }

    fn of_weights(
        name: &str,
        source: &Path,
        arguments: &ModelArgs,
        place: Option<&Rendezvous>,
    ) -> Result<Self> {
        let weights = weights::open(source)?;
        let classes = arguments.weights.classes.as_deref().map(read_classes).transpose()?;
        let recipe = F::recipe_of_weights(name, &weights, classes, &arguments.weights.set)?;
        let mut recipe = with_arguments::<F>(&recipe, arguments, "the recipe of --model")?;
        let device = prepare_among(&mut recipe.training, place)?;
        let task = F::build(&recipe, Parameters::undrawn(device))?;
        let weights::Loaded { report, notes } =
            weights::load_opened(task.parameters(), &weights, arguments.weights.strict)?;
        // A head that was never trained would answer at random.
        if !report.mismatched.is_empty() {
            report.require_complete(&weights.origin)?;
        }
        let log = Log::new(Verbosity::from_flags(false, true));
        for note in notes {
            log.warning(note);
        }
        Ok(Self { recipe, task, origin: weights.origin, step: None })
    }
}

/// Whether what is given in place of a run is a model from elsewhere: a folder with a configuration, or a repository.
pub fn is_elsewhere(path: &Path) -> bool {
    path.join("config.json").is_file() || path.to_string_lossy().starts_with("hf:")
}

/// A recipe with what the arguments say about device and batches.
fn with_arguments<F: Family>(
    recipe: &FamilyRecipe<F>,
    arguments: &ModelArgs,
    origin: &str,
) -> Result<FamilyRecipe<F>> {
    let mut settings = Vec::new();
    arguments.device.settings(&mut settings);
    let mut value = serde_json::to_value(recipe)?;
    for (key, setting) in settings {
        recipe::set(&mut value, key, setting)?;
    }
    for argument in &arguments.weights.set {
        let (key, setting) = recipe::parse_setting(argument)?;
        recipe::set(&mut value, &key, setting)?;
    }
    let attachments = recipe.attachments.clone();
    let mut recipe: FamilyRecipe<F> = recipe::typed(value, origin)?;
    recipe.attachments = attachments;
    recipe.training.eval_batch_size = arguments.batch_size.or(recipe.training.eval_batch_size);
    // Whoever looks on does not change how a batch was meant.
    recipe.training.distributed.processes.get_or_insert(1);
    recipe.training.validate()?;
    Ok(recipe)
}

/// The names of classes in a file, one a line.
pub(super) fn read_classes(path: &Path) -> Result<Vec<String>> {
    let text = files::read_text(path)?;
    let names: Vec<String> = text.lines().map(|line| line.trim().to_owned()).collect();
    if names.is_empty() || names.iter().any(String::is_empty) {
        bail_input!("{} must name one class on every line", path.display());
    }
    Ok(names)
}

/// The recipe that a run was trained with.
pub fn trained_recipe<F: Family>(run: &Path) -> Result<FamilyRecipe<F>> {
    let mut recipe: FamilyRecipe<F> =
        recipe::typed(read_recipe(run)?, &format!("the recipe of {}", run.display()))?;
    recipe.attachments = Attachments::of(run);
    Ok(recipe)
}
