//! `lm`: decoder language models.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, anyhow};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use super::export::PeftAdapters;
use super::pretrained::Pretrained;
use super::{ABOUT, NAME, PRESETS, TaskName};
use crate::cli::family::{Family, FamilyRecipe, FolderFormat, Network, ScriptPart};
use crate::data::Splits;
use crate::data::language::{
    ChatTemplate, Conversation, LanguageData, LanguageDataConfig, Rows, TextBlocks, read_conversations,
};
use crate::data::order::hold_out;
use crate::data::text::{TOKENIZER_FILE, TextTokenizer, Tokens};
use crate::models::Parameters;
use crate::models::decoders::{DecoderCache, DecoderConfig, Layout, MODEL_TYPES, step};
use crate::recipe::{self, Preset, Recipe, nearest_hint};
use crate::reporting::{Log, Report};
use crate::tasks::language_model::LanguageModel;
use crate::tasks::{Evaluation, Task};
use crate::weights::{self, Loaded};
use crate::{bail_input, files};

/// The file of a run that holds its chat template.
const TEMPLATE: &str = "chat_template.jinja";

/// The compiled-in text: a part of Shakespeare's plays.
pub const BUILTIN: &str = "shakespeare-mini";
const BUILTIN_TEXT: &[u8] = include_bytes!("../../../assets/texts/shakespeare-mini.txt.gz");

/// The `model` section of decoder language models.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct LanguageSection {
    /// What the model is for.
    pub task: TaskName,
    /// The architecture; taken from the weights to start from if left out. A `vocab_size` of 0 becomes the tokenizer's.
    #[serde(default)]
    pub config: Option<DecoderConfig>,
    /// Whether layers are computed again in the backward pass instead of being kept.
    #[serde(default)]
    pub gradient_checkpointing: bool,
}

impl LanguageSection {
    /// The architecture of a complete recipe.
    pub fn config(&self) -> Result<&DecoderConfig> {
        self.config.as_ref().ok_or_else(|| anyhow!("the recipe has no model.config"))
    }
}

/// The recipe of a decoder language model.
pub type LanguageRecipe = Recipe<LanguageSection, LanguageDataConfig>;

/// Decoder language models.
pub struct LanguageModelling;

/// The tokenizer of a run or of a folder.
///
/// # Errors
/// There is none.
pub fn open_tokenizer(recipe: &LanguageRecipe) -> Result<TextTokenizer> {
    match TextTokenizer::attached(&recipe.attachments, TOKENIZER_FILE)? {
        Some(tokenizer) => Ok(tokenizer),
        None => {
            bail_input!("there is no {TOKENIZER_FILE}: the run was made by another program, or is not whole")
        }
    }
}

/// How conversations become texts in a run.
///
/// # Errors
/// Its template cannot be read.
pub fn open_template(recipe: &LanguageRecipe, tokenizer: &TextTokenizer) -> Result<ChatTemplate> {
    ChatTemplate::of(recipe.attachments.text(TEMPLATE)?.map(|text| text.to_string()), tokenizer)
}

/// The files of all parts.
struct Parts {
    train: PathBuf,
    validation: Option<PathBuf>,
    test: Option<PathBuf>,
}

const ENDINGS: [&str; 4] = ["txt", "jsonl", "ndjson", "txt.gz"];
const VALIDATION: [&str; 4] = ["validation", "val", "valid", "dev"];

fn parts(config: &LanguageDataConfig) -> Result<Parts> {
    let Some(path) = &config.path else {
        bail_input!(
            "there is no data: give --data, a text, a JSON lines file of conversations, or a folder with a train file"
        );
    };
    if !path.is_dir() {
        return Ok(Parts {
            train: path.clone(),
            validation: config.validation.clone(),
            test: config.test.clone(),
        });
    }
    let find = |names: &[&str]| {
        let candidates =
            names.iter().flat_map(|name| ENDINGS.iter().map(move |ending| format!("{name}.{ending}")));
        candidates.map(|name| path.join(name)).find(|path| path.is_file())
    };
    let Some(train) = find(&["train"]) else {
        bail_input!("{} has no train.txt or train.jsonl", path.display());
    };
    Ok(Parts {
        train,
        validation: config.validation.clone().or_else(|| find(&VALIDATION)),
        test: config.test.clone().or_else(|| find(&["test"])),
    })
}

fn is_conversations(path: &Path) -> bool {
    let name = path.to_string_lossy().to_lowercase();
    let name = name.strip_suffix(".gz").unwrap_or(&name);
    name.ends_with(".jsonl") || name.ends_with(".ndjson")
}

/// The whole compiled-in text.
fn builtin_text() -> Result<String> {
    let mut text = String::new();
    std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(BUILTIN_TEXT), &mut text)?;
    Ok(text)
}

/// The tokens of a text with its place for messages.
fn tokens_of(tokenizer: &TextTokenizer, path: Option<&Path>) -> Result<Tokens> {
    match path {
        Some(path) => tokenizer.encode_file(path),
        None => tokenizer.encode_stream(builtin_text()?.as_bytes(), BUILTIN),
    }
}

/// Texts to make a tokenizer from.
fn training_texts(config: &LanguageDataConfig) -> Result<Vec<String>> {
    if config.builtin.is_some() {
        return Ok(vec![builtin_text()?]);
    }
    let train = parts(config)?.train;
    if is_conversations(&train) {
        let said = read_conversations(&train)?.into_iter().flat_map(|one| one.messages);
        return Ok(said.map(|message| message.content).collect());
    }
    let mut lines = Vec::new();
    let name = train.display().to_string();
    crate::data::text::for_each_line(crate::data::table::open_bytes(&train)?, &name, |_, line| {
        lines.push(format!("{line}\n"));
        Ok(())
    })?;
    Ok(lines)
}

impl Family for LanguageModelling {
    const NAME: &'static str = NAME;
    const ABOUT: &'static str = ABOUT;
    const DEFAULT_RECIPE: &'static str = "gpt-shakespeare-mini";
    type Model = LanguageSection;
    type Data = LanguageDataConfig;
    type Dataset = LanguageData;
    type Task = LanguageModel;

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
        if Path::new(argument).is_file() {
            // One file is looked at whole.
            settings.extend([
                ("data.validation", Value::Null),
                ("data.test", json!(argument)),
                ("data.val_fraction", json!(0.0)),
            ]);
        }
        settings
    }

    fn validate(recipe: &LanguageRecipe) -> Result<()> {
        if recipe.model.task != TaskName::Lm {
            bail_input!(
                "model.task is `{}`: give --task {}",
                recipe.model.task.name(),
                recipe.model.task.name()
            );
        }
        recipe.data.validate()?;
        if let Some(name) = recipe.data.builtin.as_deref().filter(|name| *name != BUILTIN) {
            bail_input!("data.builtin: there is no compiled-in text `{name}`; `{BUILTIN}` is one");
        }
        if let (Some(block), Some(config)) = (recipe.data.block, &recipe.model.config)
            && block as i64 > config.context()
        {
            bail_input!("data.block is {block}, but the model reads {} tokens at most", config.context());
        }
        Ok(())
    }

    fn open(recipe: &mut LanguageRecipe, log: &Log) -> Result<Splits<Arc<LanguageData>>> {
        if recipe.attachments.text(TOKENIZER_FILE)?.is_none() {
            let pretrained = match (&recipe.training.init_from, &recipe.model.config) {
                (Some(source), None) => Some(Pretrained::find(source)?),
                _ => None,
            };
            let tokenizer = match (&pretrained, &recipe.data.tokenizer) {
                (_, Some(config)) if config.needs_texts() => {
                    TextTokenizer::train(config, training_texts(&recipe.data)?.iter())?
                }
                (_, Some(config)) => TextTokenizer::train(config, std::iter::empty::<&str>())?,
                (Some(pretrained), None) => TextTokenizer::open(&pretrained.folder)?,
                (None, None) => {
                    bail_input!(
                        "data.tokenizer says no tokenizer: give one, or a folder to start from with --init-from"
                    )
                }
            };
            tokenizer.attach(&mut recipe.attachments, TOKENIZER_FILE)?;
            if let Some(pretrained) = pretrained {
                recipe.model.config = Some(decoder(&pretrained)?);
                if let Some(template) = ChatTemplate::find(&pretrained.folder)? {
                    recipe.attachments.add(TEMPLATE, template);
                }
            }
        }
        let tokenizer = open_tokenizer(recipe)?;
        let Some(config) = &mut recipe.model.config else {
            bail_input!(
                "model.config says no architecture: give one, or a folder to start from with --init-from"
            );
        };
        let tokens = tokenizer.vocabulary_size() as i64;
        if config.vocabulary() == 0 {
            config.set_vocabulary(tokens);
        }
        if tokens > config.vocabulary() {
            bail_input!(
                "the tokenizer has {tokens} tokens, but the model knows {}: they do not belong together",
                config.vocabulary()
            );
        }
        let block = recipe.data.block.unwrap_or(config.context() as usize);
        recipe.data.block = Some(block);
        let found = match recipe.data.builtin {
            Some(_) => None,
            None => Some(parts(&recipe.data)?),
        };
        if let Some(parts) = found.as_ref().filter(|parts| is_conversations(&parts.train)) {
            return conversations(recipe, parts, &tokenizer, block, log);
        }
        let name = |path: Option<&Path>| path.map_or(BUILTIN.to_owned(), |path| path.display().to_string());
        let train_path = found.as_ref().map(|parts| parts.train.as_path());
        let mut train = tokens_of(&tokenizer, train_path)?;
        let other = |path: Option<&PathBuf>| -> Result<Option<Arc<LanguageData>>> {
            let Some(path) = path else { return Ok(None) };
            let tokens = tokenizer.encode_file(path)?;
            Ok(Some(Arc::new(LanguageData::Blocks(TextBlocks::new(
                tokens,
                block,
                false,
                &path.display().to_string(),
            )?))))
        };
        let mut validation = other(found.as_ref().and_then(|parts| parts.validation.as_ref()))?;
        if validation.is_none() && recipe.data.val_fraction > 0.0 {
            // The end of the text, so that nothing of it is near to what is learned.
            let kept = (train.len() as f64 * (1.0 - recipe.data.val_fraction)) as usize;
            let end = train.slice(kept..train.len());
            train = train.slice(0..kept);
            validation =
                Some(Arc::new(LanguageData::Blocks(TextBlocks::new(end, block, false, &name(train_path))?)));
        }
        Ok(Splits {
            train: Arc::new(LanguageData::Blocks(TextBlocks::new(train, block, true, &name(train_path))?)),
            validation,
            test: other(found.as_ref().and_then(|parts| parts.test.as_ref()))?,
        })
    }

    fn build(recipe: &LanguageRecipe, parameters: Parameters) -> Result<LanguageModel> {
        let mut model = recipe.model.config()?.build(&parameters.root())?;
        model.recompute_layers(recipe.model.gradient_checkpointing);
        Ok(LanguageModel::new(parameters, model))
    }

    fn load(task: &LanguageModel, source: &Path, strict: bool) -> Result<Loaded> {
        weights::load_pretrained(task.parameters(), source, strict, crate::models::lora::is_adapter)
    }

    fn recipe_of_folder(folder: &Path) -> Result<LanguageRecipe> {
        let pretrained = Pretrained::find(folder)?;
        let mut found: LanguageRecipe = recipe::typed(
            json!({
                "name": folder.file_name().map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned()),
                "source": pretrained.origin,
                "model": { "task": "lm" },
                "data": {},
            }),
            &pretrained.origin,
        )?;
        found.model.config = Some(decoder(&pretrained)?);
        TextTokenizer::open(&pretrained.folder)?.attach(&mut found.attachments, TOKENIZER_FILE)?;
        if let Some(template) = ChatTemplate::find(&pretrained.folder)? {
            found.attachments.add(TEMPLATE, template);
        }
        Ok(found)
    }

    fn export_folder(
        recipe: &LanguageRecipe,
        task: &LanguageModel,
        format: FolderFormat,
        folder: &Path,
    ) -> Result<()> {
        let config = recipe.model.config()?;
        let tokenizer = open_tokenizer(recipe)?;
        if format == FolderFormat::Peft {
            let adapters = PeftAdapters {
                task: "CAUSAL_LM",
                base: recipe.training.init_from.as_deref(),
                head: None,
                // GPT-2's layers keep their weights transposed.
                transposed: matches!(config, DecoderConfig::Gpt2(_)),
            };
            adapters.write(task.parameters(), folder)?;
            return tokenizer.save(&folder.join(TOKENIZER_FILE));
        }
        std::fs::create_dir(folder).map_err(|error| files::cannot_write(folder, &error))?;
        let mut value = serde_json::to_value(config)?;
        value["architectures"] = json!([match config {
            DecoderConfig::Gpt2(_) => "GPT2LMHeadModel",
            DecoderConfig::Llama(_) => "LlamaForCausalLM",
        }]);
        let special = tokenizer.special();
        for (key, id) in
            [("bos_token_id", special.begin), ("eos_token_id", special.end), ("pad_token_id", special.pad)]
        {
            value[key] = json!(id);
        }
        if let Some(object) = value.as_object_mut() {
            // transformers takes what is missing for its own defaults, and a null for a value; the ends of texts are nothing where there are none.
            object.retain(|key, value| {
                !value.is_null() || ["bos_token_id", "eos_token_id"].contains(&key.as_str())
            });
        }
        let text = serde_json::to_string_pretty(&value)? + "\n";
        files::write_atomic(&folder.join("config.json"), text.as_bytes())?;
        let tensors = crate::models::lora::merged(task.parameters())?;
        weights::write_safetensors(&folder.join("model.safetensors"), &tensors)?;
        tokenizer.save(&folder.join(TOKENIZER_FILE))?;
        if let Some(template) = recipe.attachments.text(TEMPLATE)? {
            files::write_atomic(&folder.join(TEMPLATE), template.as_bytes())?;
        }
        Ok(())
    }

    fn usual_model(name: &str) -> Result<LanguageSection> {
        let Some(config) = DecoderConfig::usual(name) else {
            bail_input!("there is no architecture `{name}`{}", nearest_hint(name, MODEL_TYPES));
        };
        Ok(LanguageSection { task: TaskName::Lm, config: Some(config), gradient_checkpointing: false })
    }

    fn example_inputs(model: &LanguageSection, batch: i64) -> Result<Vec<(&'static str, Tensor)>> {
        let length = model.config()?.context().min(16);
        Ok(vec![("input_ids", Tensor::f_zeros([batch, length], (Kind::Int64, Device::Cpu))?)])
    }

    fn network(model: &LanguageSection, device: Device) -> Result<Network> {
        let parameters = Parameters::undrawn(device);
        let network = model.config()?.build(&parameters.root())?;
        let forward = move |inputs: &[Tensor]| vec![network.forward(&inputs[0], Layout::default(), false)];
        Ok(Network { parameters, forward: Box::new(forward) })
    }

    fn forward(task: &LanguageModel, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        Ok(vec![task.model().forward(&inputs[0], Layout::default(), false)])
    }

    fn script_parts(task: &LanguageModel) -> Result<Option<Vec<ScriptPart<'_>>>> {
        let model = task.model();
        let device = task.parameters().device();
        let tokens = Tensor::f_zeros([2, 3], (Kind::Int64, device))?;
        let mut cache = DecoderCache::new(model.layers());
        let _ = model.read(&tokens, Layout::default(), &mut cache, false);
        let Some(past) = cache.past() else {
            bail_input!("the model has no layer, and so no cache to export")
        };
        Ok(Some(vec![ScriptPart {
            name: "step",
            inputs: vec![
                ("input_ids", tokens.f_narrow(1, 0, 1)?.f_contiguous()?),
                ("attention_mask", Tensor::f_ones([2, 4], (Kind::Int64, device))?),
                ("past", past),
            ],
            forward: Box::new(move |inputs| {
                Ok(step(model, &inputs[0], &inputs[1], &inputs[2])?.into_iter().collect())
            }),
        }]))
    }

    fn illustrate(
        _report: &mut Report,
        _recipe: &LanguageRecipe,
        _task: &LanguageModel,
        _data: &LanguageData,
        _evaluation: &Evaluation,
    ) -> Result<()> {
        Ok(())
    }
}

/// Conversations of all parts.
fn conversations(
    recipe: &FamilyRecipe<LanguageModelling>,
    parts: &Parts,
    tokenizer: &TextTokenizer,
    context: usize,
    log: &Log,
) -> Result<Splits<Arc<LanguageData>>> {
    let template = open_template(recipe, tokenizer)?;
    let pad = tokenizer.special().pad.or(tokenizer.special().end).unwrap_or(0);
    let part = |path: &Path,
                all: &[Conversation],
                chosen: Option<&[usize]>,
                train: bool|
     -> Result<Arc<LanguageData>> {
        let mut texts = Vec::new();
        let mut cut = 0;
        let every: Vec<usize> = (0..all.len()).collect();
        for &number in chosen.unwrap_or(&every) {
            let one = &all[number];
            let (tokens, learned) = template
                .encode(&one.messages, tokenizer)
                .map_err(|error| error.context(format!("{}, line {}", path.display(), one.line)))?;
            cut += usize::from(tokens.len() > context);
            // What is cut before its answer teaches nothing.
            if learned.iter().take(context).skip(1).any(|&learned| learned) {
                texts.push((tokens, learned));
            }
        }
        if cut > 0 {
            log.warning(format!(
                "{}: {cut} conversations are longer than {context} tokens and cut",
                path.display()
            ));
        }
        if texts.is_empty() {
            bail_input!("{}: no answer begins within {context} tokens", path.display());
        }
        Ok(Arc::new(LanguageData::Rows(Rows::new(texts, context, recipe.data.pack && train, pad))))
    };
    let read = |path: &PathBuf| Ok::<_, anyhow::Error>((path.clone(), read_conversations(path)?));
    let train = read_conversations(&parts.train)?;
    let test = parts.test.as_ref().map(read).transpose()?;
    let test = test.map(|(path, all)| part(&path, &all, None, false)).transpose()?;
    if let Some((path, all)) = parts.validation.as_ref().map(read).transpose()? {
        let validation = Some(part(&path, &all, None, false)?);
        return Ok(Splits { train: part(&parts.train, &train, None, true)?, validation, test });
    }
    if recipe.data.val_fraction == 0.0 {
        return Ok(Splits { train: part(&parts.train, &train, None, true)?, validation: None, test });
    }
    let (learned, held_out) = hold_out(train.len(), recipe.data.val_fraction, recipe.training.seed)?;
    Ok(Splits {
        train: part(&parts.train, &train, Some(&learned), true)?,
        validation: Some(part(&parts.train, &train, Some(&held_out), false)?),
        test,
    })
}

/// The architecture of a folder.
fn decoder(pretrained: &Pretrained) -> Result<DecoderConfig> {
    recipe::known_config(&pretrained.config, &pretrained.origin, &MODEL_TYPES, DecoderConfig::usual)
}
