//! What encoder tasks share as families: models, tokenizers, weights. A task adds its data, its head and its loss.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, anyhow};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use super::pretrained::Pretrained;
use super::{PRESETS, TaskName};
use crate::cli::family::{Family, FamilyRecipe, FolderFormat, Network};
use crate::data::encoder_texts::{BUILTIN, EncoderDataConfig, TokenBatch};
use crate::data::text::{TOKENIZER_FILE, TextTokenizer, TokenizerConfig, TokenizerKind};
use crate::data::{Dataset, Splits};
use crate::models::Parameters;
use crate::models::encoders::{
    EncoderConfig, EncoderInputs, EncoderModel, HeadKind, MODEL_TYPES, ModuleConfig,
};
use crate::models::lora::is_adapter;
use crate::models::scripted::{ATTACHMENT, ScriptConfig, ScriptHead, ScriptedNetwork};
use crate::recipe::{Preset, Recipe};
use crate::reporting::{Log, Report};
use crate::tasks::sentence_embedding::{PairLoss, Pooling};
use crate::tasks::{Evaluation, Task};
use crate::training::fine_tuning::is_of;
use crate::weights::{self, Loaded};
use crate::{bail_input, files};

/// The `model` section of encoders.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct EncoderSection {
    /// What the model is for.
    pub task: TaskName,
    /// The architecture, where neither `config` nor the weights to start from say it.
    #[serde(default)]
    pub name: Option<String>,
    /// The keys of `config.json`; taken from the weights to start from if left out.
    #[serde(default)]
    pub config: Option<EncoderConfig>,
    /// The module that stands in place of the encoder, until `config` has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub script: Option<ScriptConfig>,
    /// One dropout in place of all that the configuration names.
    #[serde(default)]
    pub dropout: Option<f64>,
    /// Outputs of the head; found in the data if left out.
    #[serde(default)]
    pub num_labels: Option<i64>,
    /// Whether layers are computed again in the backward pass instead of being kept.
    #[serde(default)]
    pub gradient_checkpointing: bool,
    /// How the vectors of tokens become one, for `embed`; by the files of the weights to start from, else the mean, if left out.
    #[serde(default)]
    pub pooling: Option<Pooling>,
    /// Whether embeddings have length 1, for `embed`.
    #[serde(default)]
    pub normalise: Option<bool>,
    /// What pairs teach, for `embed`.
    #[serde(default)]
    pub pair_loss: PairLoss,
}

impl EncoderSection {
    /// The usual section of a task.
    pub fn of(task: TaskName) -> Self {
        Self {
            task,
            name: None,
            config: None,
            script: None,
            dropout: None,
            num_labels: None,
            gradient_checkpointing: false,
            pooling: None,
            normalise: None,
            pair_loss: PairLoss::default(),
        }
    }

    /// The configuration of a complete recipe.
    pub fn config(&self) -> Result<&EncoderConfig> {
        self.config.as_ref().ok_or_else(|| anyhow!("the recipe has no model.config"))
    }

    /// The number of outputs of a complete recipe.
    pub fn labels(&self) -> Result<i64> {
        self.num_labels.ok_or_else(|| anyhow!("the recipe has no model.num_labels"))
    }
}

/// The recipe of an encoder task.
pub type EncoderRecipe = Recipe<EncoderSection, EncoderDataConfig>;

/// What tells one encoder task from another.
pub trait EncoderTask: Sized {
    /// Its name.
    const TASK: TaskName;
    /// What `train --task` runs with no recipe.
    const RECIPE: &'static str;
    /// Its samples.
    type Dataset: Dataset;
    /// Its loss and metrics.
    type Task: Task<Batch = <Self::Dataset as Dataset>::Batch>;

    /// Checks the sections further.
    fn validate(_recipe: &EncoderRecipe) -> Result<()> {
        Ok(())
    }

    /// The texts of the training part, where a tokenizer is to be made from them.
    fn texts(recipe: &EncoderRecipe) -> Result<Vec<String>>;

    /// Opens the data and writes into the recipe what they decide.
    fn open(
        recipe: &mut EncoderRecipe,
        tokenizer: &TextTokenizer,
        log: &Log,
    ) -> Result<Splits<Self::Dataset>>;

    /// The head of a complete section.
    fn head(model: &EncoderSection) -> Result<HeadKind>;

    /// Puts a task together.
    fn task(recipe: &EncoderRecipe, parameters: Parameters, model: EncoderModel) -> Result<Self::Task>;

    /// The network of a task.
    fn model(task: &Self::Task) -> &EncoderModel;

    /// Adds what the task shows of an evaluation to a report.
    fn illustrate(_report: &mut Report, _recipe: &EncoderRecipe, _evaluation: &Evaluation) -> Result<()> {
        Ok(())
    }
}

/// An encoder task as a family.
pub struct Encoders<T>(std::marker::PhantomData<T>);

/// The longest sequence if neither recipe nor model say less.
const USUAL_LENGTH: i64 = 512;

impl<T: EncoderTask + 'static> Family for Encoders<T> {
    const NAME: &'static str = super::NAME;
    const ABOUT: &'static str = super::ABOUT;
    const DEFAULT_RECIPE: &'static str = T::RECIPE;
    type Model = EncoderSection;
    type Data = EncoderDataConfig;
    type Dataset = T::Dataset;
    type Task = T::Task;

    fn presets() -> &'static [Preset] {
        PRESETS
    }

    fn models() -> Vec<&'static str> {
        MODEL_TYPES.to_vec()
    }

    fn data_settings(argument: &str) -> Vec<(&'static str, Value)> {
        super::text_settings(argument, BUILTIN)
    }

    fn evaluation_settings(argument: &str) -> Vec<(&'static str, Value)> {
        let mut settings = Self::data_settings(argument);
        settings.extend([("data.validation", Value::Null), ("data.test", Value::Null)]);
        if Path::new(argument).is_file() {
            // One file is looked at whole.
            settings.extend([("data.test", json!(argument)), ("data.val_fraction", json!(0.0))]);
        }
        settings
    }

    fn script_settings() -> Result<Vec<(&'static str, Value)>> {
        Ok(vec![("model.name", Value::Null), ("model.config", Value::Null)])
    }

    fn validate(recipe: &FamilyRecipe<Self>) -> Result<()> {
        if recipe.model.task != T::TASK {
            bail_input!(
                "model.task is `{}`, but this is `{}`: give --task {}",
                recipe.model.task.name(),
                T::TASK.name(),
                recipe.model.task.name()
            );
        }
        if let Some(config) = &recipe.model.config {
            config.validate("model.config")?;
        }
        if let Some(dropout) = recipe.model.dropout.filter(|dropout| !(0.0..1.0).contains(dropout)) {
            bail_input!("model.dropout is {dropout}: it must be at least 0 and below 1");
        }
        recipe.data.validate()?;
        T::validate(recipe)
    }

    fn open(recipe: &mut FamilyRecipe<Self>, log: &Log) -> Result<Splits<Arc<Self::Dataset>>> {
        take_module(recipe)?;
        let pretrained = match (&recipe.training.init_from, &recipe.model.config, &recipe.data.tokenizer) {
            // A run that goes on has all of it: what it began with may be gone.
            (Some(_), Some(_), Some(_)) | (None, ..) => None,
            (Some(source), ..) => Some(Pretrained::find(source)?),
        };
        let tokenizer = tokenizer_of::<T>(recipe, pretrained.as_ref())?;
        let made_here = recipe.training.init_from.is_none();
        complete_model(&mut recipe.model, pretrained.as_ref(), &tokenizer, made_here)?;
        if let Some(pretrained) = &pretrained {
            if T::TASK == TaskName::Embed {
                let (pooling, normalise, _) = pretrained.pooling()?;
                recipe.model.pooling = recipe.model.pooling.or(pooling);
                recipe.model.normalise = recipe.model.normalise.or(normalise);
            }
            if recipe.data.classes.is_none() && pretrained.task().ok() == Some(T::TASK) {
                recipe.data.classes = pretrained.labels();
            }
        }
        complete_length(recipe)?;
        let Splits { train, validation, test } = T::open(recipe, &tokenizer, log)?;
        Ok(Splits { train: Arc::new(train), validation: validation.map(Arc::new), test: test.map(Arc::new) })
    }

    fn build(recipe: &FamilyRecipe<Self>, parameters: Parameters) -> Result<T::Task> {
        let mut config = recipe.model.config()?.clone();
        if let EncoderConfig::TorchScript(module) = &mut config {
            module.script = module.script.clone().kept(&recipe.attachments);
        }
        let model = EncoderModel::new(
            &parameters.root(),
            &config,
            T::head(&recipe.model)?,
            recipe.model.gradient_checkpointing,
        )?;
        T::task(recipe, parameters, model)
    }

    fn load(task: &T::Task, source: &Path, strict: bool) -> Result<Loaded> {
        let head = T::model(task).head_name();
        let may_be_new = |name: &str| {
            is_adapter(name)
                || name.contains("pooler.")
                || name.starts_with("pre_classifier.")
                || head.is_some_and(|head| is_of(name, head))
                || MASKED_LM_HEADS.iter().any(|part| name.starts_with(part))
        };
        weights::load_pretrained(task.parameters(), source, strict, may_be_new)
    }

    fn recipe_of_folder(folder: &Path) -> Result<FamilyRecipe<Self>> {
        let pretrained = Pretrained::find(folder)?;
        let task = pretrained.task()?;
        if task != T::TASK {
            bail_input!(
                "{} is a model for `{}`, not for `{}`",
                pretrained.origin,
                task.name(),
                T::TASK.name()
            );
        }
        let (pooling, normalise, length) = pretrained.pooling()?;
        let labels = pretrained.labels();
        let count = pretrained.label_count() as i64;
        let goal = match pretrained.problem() {
            Some("regression") => "value",
            Some("multi_label_classification") => "labels",
            _ if count == 1 => "value",
            _ => "class",
        };
        let classes = labels.unwrap_or_else(|| (0..count).map(|number| number.to_string()).collect());
        let named = matches!(T::TASK, TaskName::Classify | TaskName::Tokens) && goal != "value";
        let mut recipe: FamilyRecipe<Self> = crate::recipe::typed(
            json!({
                "name": folder.file_name().map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned()),
                "source": pretrained.origin,
                "model": { "task": T::TASK, "pooling": pooling, "normalise": normalise },
                "data": { "goal": goal, "classes": named.then_some(classes) },
            }),
            &pretrained.origin,
        )?;
        recipe.model.config = Some(pretrained.encoder()?);
        recipe.model.num_labels = Some(count);
        recipe.data.tokenizer = Some(tokenizer_at(pretrained.folder.clone()));
        recipe.data.max_length = length.or(recipe.data.max_length);
        complete_length(&mut recipe)?;
        Ok(recipe)
    }

    fn export_folder(
        recipe: &FamilyRecipe<Self>,
        task: &T::Task,
        format: FolderFormat,
        folder: &Path,
    ) -> Result<()> {
        let (model, parameters) = (T::model(task), task.parameters());
        if model.encoder().is_none() {
            bail_input!("{} has no form for a TorchScript module: give --format torchscript", format.name());
        }
        match format {
            FolderFormat::HuggingFace => super::export::hugging_face(recipe, model, parameters, folder),
            FolderFormat::Peft => super::export::peft(recipe, model, parameters, folder),
        }
    }

    fn usual_model(name: &str) -> Result<EncoderSection> {
        let Some(config) = EncoderConfig::usual(name) else {
            bail_input!(
                "there is no architecture `{name}`{}",
                crate::recipe::nearest_hint(name, MODEL_TYPES)
            );
        };
        Ok(EncoderSection { config: Some(config), num_labels: Some(2), ..EncoderSection::of(T::TASK) })
    }

    fn example_inputs(model: &EncoderSection, batch: i64) -> Result<Vec<(&'static str, Tensor)>> {
        const LENGTH: i64 = 16;
        let numbers = model.config()?.dimensions();
        let length = LENGTH.min(model.config()?.longest_text());
        let options = (Kind::Int64, Device::Cpu);
        // Any tokens but padding.
        let token = i64::from(numbers.padding == 0).min(numbers.vocabulary - 1);
        let ids = Tensor::f_full([batch, length], token, options)?;
        let mut inputs =
            vec![("input_ids", ids), ("attention_mask", Tensor::f_ones([batch, length], options)?)];
        if numbers.segments > 1 {
            inputs.push(("token_type_ids", Tensor::f_zeros([batch, length], options)?));
        }
        Ok(inputs)
    }

    fn network(model: &EncoderSection, device: Device) -> Result<Network> {
        let parameters = Parameters::undrawn(device);
        let network = EncoderModel::new(&parameters.root(), model.config()?, T::head(model)?, false)?;
        let forward = move |inputs: &[Tensor]| vec![network.forward(&inputs_of(inputs), false)];
        Ok(Network { parameters, forward: Box::new(forward) })
    }

    fn forward(task: &T::Task, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        Ok(vec![T::model(task).forward(&inputs_of(inputs), false)])
    }

    fn save_script(task: &T::Task, path: &Path) -> Option<Result<()>> {
        T::model(task).save_script(path)
    }

    fn illustrate(
        report: &mut Report,
        recipe: &FamilyRecipe<Self>,
        _task: &T::Task,
        _data: &Self::Dataset,
        evaluation: &Evaluation,
    ) -> Result<()> {
        T::illustrate(report, recipe, evaluation)
    }
}

/// What the names of the parts of masked-LM heads begin with.
const MASKED_LM_HEADS: [&str; 8] = [
    "cls.",
    "lm_head.",
    "generator_predictions.",
    "generator_lm_head.",
    "vocab_transform.",
    "vocab_layer_norm.",
    "vocab_projector.",
    "qa_outputs.",
];

fn inputs_of(inputs: &[Tensor]) -> EncoderInputs<'_> {
    EncoderInputs { ids: &inputs[0], mask: inputs.get(1), segments: inputs.get(2) }
}

/// A tokenizer that is there.
pub fn tokenizer_at(path: PathBuf) -> TokenizerConfig {
    TokenizerConfig { kind: TokenizerKind::File, path: Some(path), ..TokenizerConfig::default() }
}

/// The tokenizer of a run or of a folder.
pub fn open_tokenizer(recipe: &EncoderRecipe) -> Result<TextTokenizer> {
    if let Some(kept) = TextTokenizer::attached(&recipe.attachments, TOKENIZER_FILE)? {
        return Ok(kept);
    }
    match recipe.data.tokenizer.as_ref().and_then(|config| config.path.as_ref()) {
        Some(path) => TextTokenizer::open(path),
        None => bail_input!("the run has no tokenizer.json: it was made by another program, or is not whole"),
    }
}

/// The tokenizer of a recipe: what its run has kept, a file's, that of the weights to start from, or one made from the training texts.
fn tokenizer_of<T: EncoderTask>(
    recipe: &mut EncoderRecipe,
    pretrained: Option<&Pretrained>,
) -> Result<TextTokenizer> {
    if let Some(kept) = TextTokenizer::attached(&recipe.attachments, TOKENIZER_FILE)? {
        return Ok(kept);
    }
    let config = match (&recipe.data.tokenizer, pretrained) {
        (Some(config), _) => config.clone(),
        (None, Some(pretrained)) => tokenizer_at(pretrained.folder.clone()),
        (None, None) => {
            TokenizerConfig { kind: TokenizerKind::WordPiece, lowercase: true, ..TokenizerConfig::default() }
        }
    };
    let tokenizer = match &config.path {
        Some(path) => TextTokenizer::open(path)?,
        None => TextTokenizer::train(&config, T::texts(recipe)?.into_iter())?,
    };
    recipe.data.tokenizer = Some(config);
    if tokenizer.special().pad.is_none() {
        bail_input!("the tokenizer has no padding token, which batches of texts need");
    }
    tokenizer.attach(&mut recipe.attachments, TOKENIZER_FILE)?;
    Ok(tokenizer)
}

/// Makes the configuration of a module that is to stand in the encoder's place (`--init-from FILE --head linear`), and has the run keep it.
fn take_module(recipe: &mut EncoderRecipe) -> Result<()> {
    if let Some(script) = recipe.model.script.take() {
        if script.head == ScriptHead::None {
            bail_input!(
                "--head none: the heads of texts are put on a module's hidden states: give --head linear"
            );
        }
        let kind = recipe.data.tokenizer.as_ref().map(|tokenizer| tokenizer.kind);
        if kind != Some(TokenizerKind::File) {
            bail_input!(
                "a module reads the tokens of its own tokenizer: give --set 'data.tokenizer={{\"kind\": \"file\", \"path\": \"…/tokenizer.json\"}}'"
            );
        }
        // Looked at once; the model itself is made with the run's seed and on its device.
        let network = ScriptedNetwork::new(&Parameters::undrawn(Device::Cpu).root(), &script)?;
        let hidden = EncoderModel::hidden_of_module(&network, Device::Cpu)?;
        recipe.model.config = Some(EncoderConfig::TorchScript(ModuleConfig {
            script,
            vocab_size: 1,
            hidden_size: hidden.size().last().copied().unwrap_or(1),
            max_position_embeddings: recipe.data.max_length.unwrap_or(USUAL_LENGTH),
            pad_token_id: 0,
            hidden_dropout_prob: 0.1,
        }));
    }
    if let Some(EncoderConfig::TorchScript(module)) = &recipe.model.config {
        recipe.attachments.add_file(ATTACHMENT, &module.script.file);
    }
    Ok(())
}

/// Decides the configuration: the recipe's, that of the weights to start from, or the usual one of an architecture with the vocabulary of the tokenizer.
fn complete_model(
    model: &mut EncoderSection,
    pretrained: Option<&Pretrained>,
    tokenizer: &TextTokenizer,
    made_here: bool,
) -> Result<()> {
    let vocabulary = tokenizer.vocabulary_size() as i64;
    let mut config = match (model.config.take(), pretrained) {
        (Some(config), _) => config,
        (None, Some(pretrained)) => pretrained.encoder()?,
        (None, None) => {
            let name = model.name.as_deref().unwrap_or("bert");
            EncoderConfig::usual(name).ok_or_else(|| {
                crate::bad_input!(
                    "model.name: there is no architecture `{name}`{}",
                    crate::recipe::nearest_hint(name, MODEL_TYPES)
                )
            })?
        }
    };
    let kind = config.kind().name();
    if let Some(name) = model.name.as_deref().filter(|name| *name != kind) {
        bail_input!("--model {name}: the configuration is that of a {kind}; leave --model out");
    }
    model.name = Some(kind.to_owned());
    if made_here && config.dimensions().vocabulary != vocabulary {
        config.set_vocabulary(vocabulary);
    }
    if made_here && let Some(pad) = tokenizer.special().pad {
        config.set_padding(pad);
    }
    if vocabulary > config.dimensions().vocabulary {
        bail_input!(
            "the tokenizer has {vocabulary} tokens, but the model's word table only {}: they do not belong together",
            config.dimensions().vocabulary
        );
    }
    if let Some(dropout) = model.dropout {
        config.set_dropout(dropout);
    }
    model.config = Some(config);
    Ok(())
}

/// Decides the longest sequence: no model reads more than it has positions for.
fn complete_length(recipe: &mut EncoderRecipe) -> Result<()> {
    let longest = recipe.model.config()?.longest_text();
    recipe.data.max_length = Some(recipe.data.max_length.unwrap_or(USUAL_LENGTH).min(longest));
    Ok(())
}

/// The longest sequence of a complete recipe.
pub fn longest(recipe: &EncoderRecipe) -> i64 {
    recipe.data.max_length.unwrap_or(USUAL_LENGTH)
}

/// Tells how many texts were cut.
pub fn tell_cut(log: &Log, part: &str, cut: usize, all: usize, length: i64) {
    if cut > 0 {
        log.warning(format!(
            "{cut} of {all} texts of {part} are longer than {length} tokens and were cut (data.max_length)"
        ));
    }
}

/// A batch of encoded texts on a device.
pub fn batch_of(
    encoded: &crate::data::text::EncodedTexts,
    texts: &[usize],
    padding: i64,
    device: Device,
) -> Result<TokenBatch> {
    let sequences: Vec<(Vec<i64>, usize)> =
        texts.iter().map(|&text| (encoded.ids(text), encoded.second_from(text))).collect();
    TokenBatch::of(&sequences, padding)?.to_device(device)
}

/// Writes a JSON file.
pub fn write_json(path: &Path, value: &Value) -> Result<()> {
    files::write_synced(path, (serde_json::to_string_pretty(value)? + "\n").as_bytes())
        .map_err(|error| files::cannot_write(path, &error))
}
