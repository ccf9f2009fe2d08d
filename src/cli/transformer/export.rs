//! Folders that Python loads: transformers', sentence-transformers' and PEFT's.

use std::path::Path;

use anyhow::Result;
use serde_json::{Map, Value, json};

use super::TaskName;
use super::family::{EncoderRecipe, open_tokenizer, write_json};
use crate::data::encoder_texts::Goal;
use crate::data::text::TOKENIZER_FILE;
use crate::models::Parameters;
use crate::models::encoders::{EncoderModel, HeadKind};
use crate::models::lora::{adapters, merged};
use crate::tasks::sentence_embedding::Pooling;
use crate::training::fine_tuning::is_of;
use crate::weights::write_safetensors;
use crate::{bail_input, files};

/// Configuration, weights with adapters merged, and tokenizer, for transformers' `from_pretrained`; with the files of sentence-transformers
/// for embeddings.
pub fn hugging_face(
    recipe: &EncoderRecipe,
    model: &EncoderModel,
    parameters: &Parameters,
    folder: &Path,
) -> Result<()> {
    make(folder)?;
    write_json(&folder.join("config.json"), &configuration(recipe, model)?)?;
    write_safetensors(&folder.join("model.safetensors"), &merged(parameters)?)?;
    write_tokenizer(recipe, folder)?;
    if recipe.model.task == TaskName::Embed {
        write_pooling(recipe, folder)?;
    }
    Ok(())
}

/// The adapters and the head for PEFT's `PeftModel.from_pretrained`.
pub fn peft(
    recipe: &EncoderRecipe,
    model: &EncoderModel,
    parameters: &Parameters,
    folder: &Path,
) -> Result<()> {
    let kind = match model.head_kind() {
        HeadKind::None => "FEATURE_EXTRACTION",
        HeadKind::MaskedLm => "FEATURE_EXTRACTION",
        HeadKind::Sequence(_) => "SEQ_CLS",
        HeadKind::Tokens(_) => "TOKEN_CLS",
        HeadKind::Answers => "QUESTION_ANS",
    };
    let base = recipe.training.init_from.as_deref();
    let adapters = PeftAdapters { task: kind, base, head: model.head_name(), transposed: false };
    adapters.write(parameters, folder)?;
    write_tokenizer(recipe, folder)
}

/// What PEFT wants to know of a model with adapters.
pub struct PeftAdapters<'a> {
    /// PEFT's name for what the model is for.
    pub task: &'static str,
    /// What the model was before the adapters learned.
    pub base: Option<&'a Path>,
    /// The part that learned as a whole.
    pub head: Option<&'a str>,
    /// Whether the layers with adapters have weights `[inputs, outputs]`.
    pub transposed: bool,
}

impl PeftAdapters<'_> {
    /// Writes the folder.
    ///
    /// # Errors
    /// The model has no adapters, or the folder cannot be written.
    pub fn write(&self, parameters: &Parameters, folder: &Path) -> Result<()> {
        let Some(lora) = parameters.lora() else {
            bail_input!("the run has no adapters: train with --lora-rank, or export --format hf");
        };
        make(folder)?;
        let config = json!({
            "peft_type": "LORA",
            "task_type": self.task,
            "base_model_name_or_path": self.base.map(|path| path.display().to_string()),
            "inference_mode": true,
            "r": lora.rank,
            "lora_alpha": lora.alpha,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": self.transposed,
            "init_lora_weights": true,
            "target_modules": lora.targets(),
            "modules_to_save": self.head.map(|head| vec![head]),
        });
        write_json(&folder.join("adapter_config.json"), &config)?;
        let tensors = adapters(parameters, |name| self.head.is_some_and(|head| is_of(name, head)));
        write_safetensors(&folder.join("adapter_model.safetensors"), &tensors)
    }
}

fn make(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|error| files::cannot_write(folder, &error))
}

/// What transformers wants to know beside the architecture.
fn configuration(recipe: &EncoderRecipe, model: &EncoderModel) -> Result<Value> {
    let config = recipe.model.config()?;
    let mut value = serde_json::to_value(config)?;
    let numbers = config.dimensions();
    value["architectures"] =
        json!([format!("{}{}", config.kind().class(), model.head_kind().class_ending())]);
    value["pad_token_id"] = json!(numbers.padding);
    value["torch_dtype"] = json!("float32");
    if matches!(model.head_kind(), HeadKind::Sequence(_) | HeadKind::Tokens(_)) {
        let numbered: Vec<String> =
            (0..recipe.model.labels()?).map(|number| format!("LABEL_{number}")).collect();
        let names = recipe.data.classes.clone().unwrap_or(numbered);
        let by_number: Map<String, Value> =
            names.iter().enumerate().map(|(number, name)| (number.to_string(), json!(name))).collect();
        let by_name: Map<String, Value> =
            names.iter().enumerate().map(|(number, name)| (name.clone(), json!(number))).collect();
        value["id2label"] = Value::Object(by_number);
        value["label2id"] = Value::Object(by_name);
    }
    if recipe.model.task == TaskName::Classify {
        value["problem_type"] = json!(match recipe.data.goal {
            Goal::Class => "single_label_classification",
            Goal::Labels => "multi_label_classification",
            Goal::Value => "regression",
        });
    }
    Ok(value)
}

fn write_tokenizer(recipe: &EncoderRecipe, folder: &Path) -> Result<()> {
    let tokenizer = open_tokenizer(recipe)?;
    tokenizer.save(&folder.join(TOKENIZER_FILE))?;
    let special = tokenizer.special();
    let mut config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": recipe.model.config()?.longest_text(),
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
    });
    if recipe.model.config()?.dimensions().segments < 2 {
        config["model_input_names"] = json!(["input_ids", "attention_mask"]);
    }
    let named = [
        ("pad_token", special.pad),
        ("unk_token", special.unknown),
        ("cls_token", special.class),
        ("sep_token", special.separator),
        ("mask_token", special.mask),
    ];
    for (key, token) in named {
        if let Some(text) = token.and_then(|id| tokenizer.token(id)) {
            config[key] = json!(text);
        }
    }
    write_json(&folder.join("tokenizer_config.json"), &config)
}

/// `modules.json` and the configurations of its modules.
fn write_pooling(recipe: &EncoderRecipe, folder: &Path) -> Result<()> {
    let pooling = recipe.model.pooling.unwrap_or_default();
    let mut modules = vec![
        json!({"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}),
        json!({"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}),
    ];
    if recipe.model.normalise.unwrap_or(true) {
        modules.push(json!({"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}));
        make(&folder.join("2_Normalize"))?;
    }
    write_json(&folder.join("modules.json"), &json!(modules))?;
    write_json(
        &folder.join("sentence_bert_config.json"),
        &json!({"max_seq_length": recipe.data.max_length, "do_lower_case": false}),
    )?;
    make(&folder.join("1_Pooling"))?;
    let config = json!({
        "word_embedding_dimension": recipe.model.config()?.dimensions().width,
        "pooling_mode_cls_token": pooling == Pooling::Cls,
        "pooling_mode_mean_tokens": pooling == Pooling::Mean,
        "pooling_mode_max_tokens": pooling == Pooling::Max,
        "pooling_mode_mean_sqrt_len_tokens": false,
    });
    write_json(&folder.join("1_Pooling").join("config.json"), &config)
}
