//! `translate` and `seq2seq`: texts made of texts by an encoder-decoder.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, anyhow};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use super::pretrained::Pretrained;
use super::{ABOUT, NAME, PRESETS, TaskName};
use crate::cli::family::{Family, FolderFormat, Network, ScriptPart};
use crate::data::Splits;
use crate::data::text::{TOKENIZER_FILE, TextTokenizer, TokenizerConfig, TokenizerKind};
use crate::data::translation::{PairPart, PairTokenizers, TranslationDataConfig, Translations, read_pairs};
use crate::generation::search::{Marks, SearchConfig};
use crate::models::Parameters;
use crate::models::encoder_decoder::{EncoderDecoderConfig, MODEL_TYPES, encode, step};
use crate::recipe::{self, Attachments, Preset, Recipe, nearest_hint};
use crate::reporting::{Log, Report, Table};
use crate::tasks::translation::Translation;
use crate::tasks::{Evaluation, PredictedSample, Task};
use crate::weights::{self, Loaded};
use crate::{bail_input, files};

/// The files of a run that hold its tokenizers where each language has its own.
const SEPARATE: [&str; 2] = ["source_tokenizer.json", "target_tokenizer.json"];

/// The `model` section of tasks from text to text.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TranslationSection {
    /// What the model is for.
    pub task: TaskName,
    /// The architecture; taken from the weights to start from if left out.
    #[serde(default)]
    pub config: Option<EncoderDecoderConfig>,
    /// How targets are decoded in evaluation, and by default afterwards; by itself greedily.
    #[serde(default = "greedy")]
    pub search: SearchConfig,
    /// Whether targets are decoded in evaluation at all. Without it there are no BLEU, chrF and TER, and evaluation is quick.
    #[serde(default = "yes")]
    pub decode: bool,
}

fn greedy() -> SearchConfig {
    SearchConfig { beam: 1, max_length: 128, ..SearchConfig::default() }
}

fn yes() -> bool {
    true
}

impl TranslationSection {
    /// The architecture of a complete recipe.
    pub fn config(&self) -> Result<&EncoderDecoderConfig> {
        self.config.as_ref().ok_or_else(|| anyhow!("the recipe has no model.config"))
    }
}

/// The recipe of a translation.
pub type TranslationRecipe = Recipe<TranslationSection, TranslationDataConfig>;

/// Translation and other tasks from text to text.
pub struct Translating;

/// The tokenizers of a run or of a folder that comes with some.
///
/// # Errors
/// There are none, or they have not the marks that the model needs.
pub fn open_tokenizers(recipe: &TranslationRecipe) -> Result<PairTokenizers> {
    match kept_tokenizers(recipe)? {
        Some(kept) => Ok(kept),
        None => bail_input!(
            "there is no {TOKENIZER_FILE}, nor {} with {}: the run was made by another program, or is not whole",
            SEPARATE[0],
            SEPARATE[1]
        ),
    }
}

fn kept_tokenizers(recipe: &TranslationRecipe) -> Result<Option<PairTokenizers>> {
    let open = |name: &str| -> Result<Option<Arc<TextTokenizer>>> {
        Ok(TextTokenizer::attached(&recipe.attachments, name)?.map(Arc::new))
    };
    let found = match open(TOKENIZER_FILE)? {
        Some(joint) => Some((joint.clone(), joint)),
        None => open(SEPARATE[0])?.zip(open(SEPARATE[1])?),
    };
    found.map(|(source, target)| tokenizers_of(source, target, recipe.model.config.as_ref())).transpose()
}

fn tokenizers_of(
    source: Arc<TextTokenizer>,
    target: Arc<TextTokenizer>,
    config: Option<&EncoderDecoderConfig>,
) -> Result<PairTokenizers> {
    match config.and_then(EncoderDecoderConfig::marks) {
        Some([pad, begin, end]) => Ok(PairTokenizers { source, target, pad, begin, end }),
        None => PairTokenizers::of(source, target),
    }
}

fn attach(attachments: &mut Attachments, tokenizers: &PairTokenizers) -> Result<()> {
    if Arc::ptr_eq(&tokenizers.source, &tokenizers.target) {
        tokenizers.source.attach(attachments, TOKENIZER_FILE)?;
    } else {
        tokenizers.source.attach(attachments, SEPARATE[0])?;
        tokenizers.target.attach(attachments, SEPARATE[1])?;
    }
    Ok(())
}

/// The tokenizers of a Hugging Face folder: `tokenizer.json`, or the two of Marian.
fn tokenizers_of_folder(folder: &Path, config: &EncoderDecoderConfig) -> Result<PairTokenizers> {
    let (source, target) = match crate::data::text::marian_tokenizers(folder)? {
        Some((source, target)) => (Arc::new(source), Arc::new(target)),
        None => {
            let both = Arc::new(TextTokenizer::open(folder)?);
            (both.clone(), both)
        }
    };
    tokenizers_of(source, target, Some(config))
}

/// Puts the sizes of the vocabularies into a new model, and refuses tokenizers that do not fit one that is there.
fn fit_vocabularies(config: &mut EncoderDecoderConfig, tokenizers: &PairTokenizers) -> Result<()> {
    let sizes = [&tokenizers.source, &tokenizers.target].map(|tokenizer| tokenizer.vocabulary_size() as i64);
    if let EncoderDecoderConfig::Transformer(config) = config
        && config.source_vocabulary == 0
        && config.target_vocabulary == 0
    {
        config.source_vocabulary = sizes[0];
        config.target_vocabulary = sizes[1];
        config.pad_token_id = tokenizers.pad;
    }
    for (side, (tokens, rows)) in
        ["source", "target"].iter().zip(sizes.into_iter().zip(config.vocabularies()))
    {
        if tokens > rows {
            bail_input!(
                "the tokenizer of {side}s has {tokens} tokens, but the model knows {rows}: they do not belong together"
            );
        }
    }
    Ok(())
}

impl Family for Translating {
    const NAME: &'static str = NAME;
    const ABOUT: &'static str = ABOUT;
    const DEFAULT_RECIPE: &'static str = "multi30k-en-de";
    type Model = TranslationSection;
    type Data = TranslationDataConfig;
    type Dataset = Translations;
    type Task = Translation;

    fn presets() -> &'static [Preset] {
        PRESETS
    }

    fn models() -> Vec<&'static str> {
        MODEL_TYPES.to_vec()
    }

    fn data_settings(argument: &str) -> Vec<(&'static str, Value)> {
        vec![("data.path", json!(argument))]
    }

    fn evaluation_settings(argument: &str) -> Vec<(&'static str, Value)> {
        let mut settings = Self::data_settings(argument);
        if Path::new(argument).is_file() {
            settings.extend([("data.validation", Value::Null), ("data.test", Value::Null)]);
        }
        settings
    }

    fn validate(recipe: &TranslationRecipe) -> Result<()> {
        if !matches!(recipe.model.task, TaskName::Translate | TaskName::Seq2seq) {
            bail_input!(
                "model.task is `{}`: give --task {}",
                recipe.model.task.name(),
                recipe.model.task.name()
            );
        }
        if let Some(EncoderDecoderConfig::Transformer(config)) = &recipe.model.config {
            config.validate()?;
        }
        recipe.model.search.validate()?;
        recipe.data.validate()?;
        let longest = recipe.model.config.as_ref().and_then(EncoderDecoderConfig::longest);
        if let Some(longest) = longest.filter(|longest| recipe.data.max_length as i64 > *longest) {
            bail_input!(
                "data.max_length is {}, but the model has places for {longest} tokens: lower it, or raise the model's",
                recipe.data.max_length
            );
        }
        Ok(())
    }

    fn open(recipe: &mut TranslationRecipe, log: &Log) -> Result<Splits<Arc<Translations>>> {
        let [train, validation, test] = read_pairs(&recipe.data, recipe.training.seed)?;
        let train = train.ok_or_else(|| anyhow!("there is no training part"))?;
        let tokenizers = match kept_tokenizers(recipe)? {
            Some(kept) => kept,
            None => {
                let start = recipe.training.init_from.as_ref().filter(|_| recipe.model.config.is_none());
                let made = match start {
                    Some(source) => {
                        let pretrained = Pretrained::find(source)?;
                        let config = encoder_decoder(&pretrained)?;
                        let tokenizers = tokenizers_of_folder(&pretrained.folder, &config)?;
                        recipe.model.config = Some(config);
                        tokenizers
                    }
                    None => PairTokenizers::make(&recipe.data, &train)?,
                };
                attach(&mut recipe.attachments, &made)?;
                made
            }
        };
        let Some(config) = &mut recipe.model.config else {
            bail_input!(
                "model.config says no architecture: give one, or a folder to start from with --init-from"
            );
        };
        fit_vocabularies(config, &tokenizers)?;
        let part = |pairs: &PairPart, train: bool| -> Result<Arc<Translations>> {
            let (data, losses) = Translations::new(pairs, &tokenizers, &recipe.data, train)?;
            if losses.too_long > 0 {
                log.warning(format!(
                    "{}: {} of {} pairs are longer than {} tokens and left out",
                    pairs.name,
                    losses.too_long,
                    pairs.len(),
                    recipe.data.max_length
                ));
            }
            if losses.cut > 0 {
                log.warning(format!(
                    "{}: {} of {} sources are cut to {} tokens",
                    pairs.name,
                    losses.cut,
                    pairs.len(),
                    recipe.data.max_length
                ));
            }
            Ok(Arc::new(data))
        };
        Ok(Splits {
            train: part(&train, true)?,
            validation: validation.as_ref().map(|pairs| part(pairs, false)).transpose()?,
            test: test.as_ref().map(|pairs| part(pairs, false)).transpose()?,
        })
    }

    fn build(recipe: &TranslationRecipe, parameters: Parameters) -> Result<Translation> {
        let config = recipe.model.config()?;
        let tokenizers = Arc::new(open_tokenizers(recipe)?);
        let model = config.build(&parameters.root())?;
        let marks = Marks {
            begin: tokenizers.begin,
            end: tokenizers.end,
            // Padding is no word. Where it also begins targets, as in Marian, it could be written.
            never: vec![tokenizers.pad],
            force_end: matches!(config, EncoderDecoderConfig::Marian(_)),
        };
        let search = recipe.model.decode.then(|| recipe.model.search.clone());
        Ok(Translation::new(parameters, model, tokenizers, marks, recipe.training.label_smoothing, search))
    }

    fn load(task: &Translation, source: &Path, strict: bool) -> Result<Loaded> {
        weights::load_pretrained(task.parameters(), source, strict, |_| false)
    }

    fn recipe_of_folder(folder: &Path) -> Result<TranslationRecipe> {
        let pretrained = Pretrained::find(folder)?;
        let config = encoder_decoder(&pretrained)?;
        let tokenizers = tokenizers_of_folder(&pretrained.folder, &config)?;
        let mut found: TranslationRecipe = recipe::typed(
            json!({
                "name": folder.file_name().map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned()),
                "source": pretrained.origin,
                "model": { "task": "translate", "search": SearchConfig::default() },
                "data": { "source": "source", "target": "target" },
            }),
            &pretrained.origin,
        )?;
        attach(&mut found.attachments, &tokenizers)?;
        found.model.config = Some(config);
        found.data.tokenizer = TokenizerConfig {
            kind: TokenizerKind::File,
            path: Some(pretrained.folder.clone()),
            ..TokenizerConfig::default()
        };
        Ok(found)
    }

    fn export_folder(
        recipe: &TranslationRecipe,
        task: &Translation,
        format: FolderFormat,
        folder: &Path,
    ) -> Result<()> {
        let config = recipe.model.config()?;
        if format != FolderFormat::HuggingFace || matches!(config, EncoderDecoderConfig::Transformer(_)) {
            bail_input!(
                "a {} cannot be written as a Hugging Face folder: take --format safetensors, whose names are torch.nn.Transformer's",
                serde_json::to_value(config)?["model_type"].as_str().unwrap_or_default()
            );
        }
        std::fs::create_dir(folder).map_err(|error| files::cannot_write(folder, &error))?;
        let mut value = serde_json::to_value(config)?;
        let (class, other) = match config {
            EncoderDecoderConfig::T5(_) => ("T5ForConditionalGeneration", json!({})),
            _ => ("MarianMTModel", json!({ "forced_eos_token_id": value["eos_token_id"] })),
        };
        value["architectures"] = json!([class]);
        value["is_encoder_decoder"] = json!(true);
        for (key, setting) in other.as_object().into_iter().flatten() {
            value[key] = setting.clone();
        }
        if let Some(object) = value.as_object_mut() {
            object.retain(|_, value| !value.is_null());
        }
        files::write_atomic(
            &folder.join("config.json"),
            (serde_json::to_string_pretty(&value)? + "\n").as_bytes(),
        )?;
        weights::write_safetensors(
            &folder.join("model.safetensors"),
            &weights::tensors_of(task.parameters()),
        )?;
        let tokenizers = task.tokenizers();
        if Arc::ptr_eq(&tokenizers.source, &tokenizers.target) {
            tokenizers.source.save(&folder.join(TOKENIZER_FILE))?;
        } else {
            tokenizers.source.save(&folder.join(SEPARATE[0]))?;
            tokenizers.target.save(&folder.join(SEPARATE[1]))?;
        }
        Ok(())
    }

    fn usual_model(name: &str) -> Result<TranslationSection> {
        let Some(config) = EncoderDecoderConfig::usual(name) else {
            bail_input!("there is no architecture `{name}`{}", nearest_hint(name, MODEL_TYPES));
        };
        Ok(TranslationSection {
            task: TaskName::Translate,
            config: Some(config),
            search: SearchConfig::default(),
            decode: true,
        })
    }

    fn example_inputs(model: &TranslationSection, batch: i64) -> Result<Vec<(&'static str, Tensor)>> {
        // Any tokens but padding.
        let [source, target] = model.config()?.vocabularies().map(|tokens| (tokens - 1).clamp(0, 3));
        let options = (Kind::Int64, Device::Cpu);
        Ok(vec![
            ("input_ids", Tensor::f_full([batch, 12], source, options)?),
            ("attention_mask", Tensor::f_ones([batch, 12], options)?),
            ("decoder_input_ids", Tensor::f_full([batch, 9], target, options)?),
        ])
    }

    fn network(model: &TranslationSection, device: Device) -> Result<Network> {
        let parameters = Parameters::undrawn(device);
        let network = model.config()?.build(&parameters.root())?;
        let forward =
            move |inputs: &[Tensor]| vec![network.forward(&inputs[0], &inputs[1].ne(0), &inputs[2], false)];
        Ok(Network { parameters, forward: Box::new(forward) })
    }

    fn forward(task: &Translation, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        Ok(vec![task.model().forward(&inputs[0], &inputs[1].f_ne(0)?, &inputs[2], false)])
    }

    fn script_parts(task: &Translation) -> Result<Option<Vec<ScriptPart<'_>>>> {
        let model = task.model();
        let device = task.parameters().device();
        let tokens = |length| Tensor::f_full([2, length], task.marks().end, (Kind::Int64, device));
        let (source, target) = (tokens(4)?, tokens(3)?);
        let mask = source.f_ones_like()?;
        let there = mask.f_ne(0)?;
        let mut state = model.start(&model.encode(&source, &there, false), &there);
        let memory = state.memory();
        let _ = model.decode(&target, &mut state, false);
        let Some(past) = state.past() else {
            bail_input!("the decoder has no layer, and so no step to export")
        };
        Ok(Some(vec![
            ScriptPart {
                name: "encoder",
                inputs: vec![("input_ids", source), ("attention_mask", mask.shallow_clone())],
                forward: Box::new(move |inputs| {
                    Ok(encode(model, &inputs[0], &inputs[1]).into_iter().collect())
                }),
            },
            ScriptPart {
                name: "decoder",
                inputs: vec![
                    ("decoder_input_ids", tokens(1)?),
                    ("attention_mask", mask),
                    ("memory", memory),
                    ("past", past),
                ],
                forward: Box::new(move |inputs| {
                    let found = step(model, &inputs[0], &inputs[1], &inputs[2], &inputs[3])?;
                    Ok(found.into_iter().collect())
                }),
            },
        ]))
    }

    fn illustrate(
        report: &mut Report,
        _recipe: &TranslationRecipe,
        _task: &Translation,
        _data: &Translations,
        evaluation: &Evaluation,
    ) -> Result<()> {
        let listed: Vec<PredictedSample> =
            serde_json::from_value(evaluation.details["translations"].clone()).unwrap_or_default();
        if !listed.is_empty() {
            report.tables.push(Table {
                title: "Translations".to_owned(),
                columns: ["reference", "translation"].map(str::to_owned).to_vec(),
                note: String::new(),
                rows: listed.into_iter().map(|one| vec![one.label.into(), one.prediction.into()]).collect(),
            });
            let signatures = evaluation.details["signatures"].as_object().into_iter().flatten();
            report.tables.push(Table {
                title: "sacreBLEU signatures".to_owned(),
                columns: ["score", "signature"].map(str::to_owned).to_vec(),
                note: String::new(),
                rows: signatures
                    .map(|(name, signature)| {
                        vec![name.clone().into(), signature.as_str().unwrap_or_default().into()]
                    })
                    .collect(),
            });
        }
        Ok(())
    }
}

/// The architecture of a folder.
fn encoder_decoder(pretrained: &Pretrained) -> Result<EncoderDecoderConfig> {
    recipe::known_config(&pretrained.config, &pretrained.origin, &MODEL_TYPES, EncoderDecoderConfig::usual)
}
