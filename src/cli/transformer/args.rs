//! Arguments of `train`, and what they set in a recipe.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use crate::cli::TrainArgs;

/// Arguments of `train`.
#[derive(Debug, Args)]
pub struct TransformerTrainArgs {
    #[command(flatten)]
    pub train: TrainArgs,
    #[command(flatten)]
    pub text: TextArgs,
    #[command(flatten)]
    pub tuning: TuningArgs,
}

/// Which texts, and what of them.
#[derive(Debug, Default, Args)]
pub struct TextArgs {
    /// The validation file [default: that of the data folder, else a held-out share]
    #[arg(long, value_name = "FILE")]
    pub validation: Option<PathBuf>,
    /// The test file [default: that of the data folder]
    #[arg(long, value_name = "FILE")]
    pub test: Option<PathBuf>,
    /// The column of the text [default: sentence, text, sentence1, premise or question]
    #[arg(long, value_name = "NAME")]
    pub text_column: Option<String>,
    /// The column of a second text [default: sentence2, text2, hypothesis, question2 or positive]
    #[arg(long, value_name = "NAME")]
    pub pair_column: Option<String>,
    /// The column of the label or score [default: label, labels or score]
    #[arg(long, value_name = "NAME")]
    pub label_column: Option<String>,
    /// A text has any number of labels (classify)
    #[arg(long, conflicts_with = "regression")]
    pub multi_label: bool,
    /// The label is a number (classify)
    #[arg(long)]
    pub regression: bool,
    /// Most tokens of a sequence, special ones counted
    #[arg(long, value_name = "N")]
    pub max_length: Option<i64>,
    /// A tokenizer.json, a vocab.txt or a folder with one [default: that of --init-from, else one made from the training texts]
    #[arg(long, value_name = "PATH")]
    pub tokenizer: Option<PathBuf>,
    /// Share of tokens to hide (mlm)
    #[arg(long, value_name = "SHARE")]
    pub mask_probability: Option<f64>,
    /// Hide whole words (mlm)
    #[arg(long)]
    pub whole_words: bool,
    /// Keep each line a sequence of its own (mlm)
    #[arg(long)]
    pub line_by_line: bool,
    /// Tokens by which windows over a long context move (qa)
    #[arg(long, value_name = "N")]
    pub stride: Option<i64>,
}

/// What of the encoder learns, and how.
#[derive(Debug, Default, Args)]
pub struct TuningArgs {
    /// Train the head and so many layers below it
    #[arg(long, value_name = "N")]
    pub top_layers: Option<usize>,
    /// Train low-rank adapters of this rank beside the layers (LoRA)
    #[arg(long, value_name = "R")]
    pub lora_rank: Option<i64>,
    /// Their strength: they are multiplied by alpha / rank
    #[arg(long, value_name = "X")]
    pub lora_alpha: Option<f64>,
    /// Layers with adapters, by the ends of their names [default: queries and values]
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub lora_targets: Option<Vec<String>>,
    /// Compute layers again in the backward pass instead of keeping their values: less memory, a third more time
    #[arg(long)]
    pub gradient_checkpointing: bool,
    /// One dropout in place of all that the configuration names
    #[arg(long, value_name = "SHARE")]
    pub dropout: Option<f64>,
}

impl TransformerTrainArgs {
    /// The recipe keys that the flags set.
    pub fn settings(&self) -> Vec<(&'static str, Value)> {
        let mut list: Vec<(&'static str, Value)> = Vec::new();
        let mut put = |key: &'static str, value: Option<Value>| list.extend(value.map(|value| (key, value)));
        let (text, tuning) = (&self.text, &self.tuning);
        let is_set = |set: bool| set.then_some(json!(true));
        put("data.validation", text.validation.as_ref().map(|path| json!(path)));
        put("data.test", text.test.as_ref().map(|path| json!(path)));
        put("data.text", text.text_column.as_ref().map(|name| json!(name)));
        put("data.pair", text.pair_column.as_ref().map(|name| json!(name)));
        put("data.label", text.label_column.as_ref().map(|name| json!(name)));
        put("data.goal", text.multi_label.then_some(json!("labels")));
        put("data.goal", text.regression.then_some(json!("value")));
        put("data.max_length", text.max_length.map(|length| json!(length)));
        put("data.tokenizer", text.tokenizer.as_ref().map(|path| json!({"kind": "file", "path": path})));
        put("data.masking.probability", text.mask_probability.map(|share| json!(share)));
        put("data.masking.whole_words", is_set(text.whole_words));
        put("data.masking.line_by_line", is_set(text.line_by_line));
        put("data.stride", text.stride.map(|stride| json!(stride)));
        put("data.strict", is_set(self.train.strict));
        put("training.fine_tune.top_layers", tuning.top_layers.map(|count| json!(count)));
        put("training.fine_tune.lora.rank", tuning.lora_rank.map(|rank| json!(rank)));
        put("training.fine_tune.lora.alpha", tuning.lora_alpha.map(|alpha| json!(alpha)));
        put("training.fine_tune.lora.targets", tuning.lora_targets.as_ref().map(|targets| json!(targets)));
        put("model.gradient_checkpointing", is_set(tuning.gradient_checkpointing));
        put("model.dropout", tuning.dropout.map(|dropout| json!(dropout)));
        list
    }
}
