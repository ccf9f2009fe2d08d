//! SentencePiece models (Kudo and Richardson, 2018), which Marian's folders hold in place of a tokenizer.json.

use std::collections::HashMap;
use std::path::Path;

use anyhow::Result;
use base64::prelude::{BASE64_STANDARD, Engine};
use prost::Message;
use serde_json::{Value, json};

use super::tokenizer::TextTokenizer;
use crate::{bad_input, bail_input, files};

/// What is read of `sentencepiece_model.proto`.
#[derive(Clone, PartialEq, Message)]
struct ModelProto {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<Piece>,
    #[prost(message, optional, tag = "2")]
    trainer: Option<TrainerSpec>,
    #[prost(message, optional, tag = "3")]
    normalizer: Option<NormalizerSpec>,
}

#[derive(Clone, PartialEq, Message)]
struct Piece {
    #[prost(string, optional, tag = "1")]
    piece: Option<String>,
    #[prost(float, optional, tag = "2")]
    score: Option<f32>,
    /// 1 an ordinary piece, 2 the unknown, 3 a mark, 4 given by the user, 5 unused, 6 a byte.
    #[prost(int32, optional, tag = "3")]
    kind: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct TrainerSpec {
    /// 1 Unigram, 2 BPE, 3 words, 4 characters.
    #[prost(int32, optional, tag = "3")]
    model_type: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct NormalizerSpec {
    #[prost(bytes = "vec", optional, tag = "2")]
    precompiled_charsmap: Option<Vec<u8>>,
    #[prost(bool, optional, tag = "3")]
    add_dummy_prefix: Option<bool>,
    #[prost(bool, optional, tag = "4")]
    remove_extra_whitespaces: Option<bool>,
}

const ORDINARY: i32 = 1;
const UNIGRAM: i32 = 1;
/// The score of pieces that a model does not know but its vocabulary has: they are taken only where nothing else fits.
const LAST_RESORT: f64 = -1e6;

/// The tokenizers of sources and targets of a Marian folder (`source.spm`, `target.spm`, `vocab.json`, with a `target_vocab.json` where vocabularies
/// differ); none where the folder has no such files.
///
/// # Errors
/// Files that are no such models, or models that are not Unigram ones.
pub fn marian_tokenizers(folder: &Path) -> Result<Option<(TextTokenizer, TextTokenizer)>> {
    let [source, target, vocabulary] =
        ["source.spm", "target.spm", "vocab.json"].map(|name| folder.join(name));
    if !source.is_file() || !target.is_file() || folder.join("tokenizer.json").is_file() {
        return Ok(None);
    }
    let own = folder.join("target_vocab.json");
    let of_target = if own.is_file() { own } else { vocabulary.clone() };
    Ok(Some((open(&source, &vocabulary)?, open(&target, &of_target)?)))
}

/// A tokenizer of the pieces of a model with the numbers of a vocabulary.
fn open(model: &Path, vocabulary: &Path) -> Result<TextTokenizer> {
    let name = model.display();
    let proto = ModelProto::decode(files::read(model)?.as_slice())
        .map_err(|error| bad_input!("{name} is no SentencePiece model: {error}"))?;
    let kind = proto.trainer.as_ref().and_then(|trainer| trainer.model_type).unwrap_or(UNIGRAM);
    if kind != UNIGRAM {
        bail_input!("{name} is a SentencePiece model of another kind than Unigram, which is not here");
    }
    let scores: HashMap<&str, f64> = proto
        .pieces
        .iter()
        .filter(|piece| piece.kind.unwrap_or(ORDINARY) == ORDINARY)
        .filter_map(|piece| Some((piece.piece.as_deref()?, f64::from(piece.score?))))
        .collect();
    let text = files::read_text(vocabulary)?;
    let numbers: HashMap<String, usize> = serde_json::from_str(&text)
        .map_err(|error| bad_input!("{} is no vocabulary: {error}", vocabulary.display()))?;
    let size = numbers.values().max().map_or(0, |largest| largest + 1);
    // A number that no piece has is one that no text has.
    let mut pieces: Vec<(String, f64)> =
        (0..size).map(|number| (format!("<unused{number}>"), LAST_RESORT)).collect();
    for (piece, &number) in &numbers {
        let score = scores.get(piece.as_str()).copied().unwrap_or(LAST_RESORT);
        pieces[number] = (piece.clone(), score);
    }
    let marks = ["</s>", "<unk>", "<pad>"];
    let Some(unknown) = numbers.get("<unk>") else {
        bail_input!("{} has no `<unk>`", vocabulary.display());
    };
    let added: Vec<Value> = marks
        .iter()
        .filter_map(|mark| {
            let number = numbers.get(*mark)?;
            Some(json!({
                "id": number, "content": mark, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true,
            }))
        })
        .collect();
    let normalizer = proto.normalizer.unwrap_or_default();
    let mut steps = Vec::new();
    if let Some(map) = normalizer.precompiled_charsmap.filter(|map| !map.is_empty()) {
        steps.push(json!({ "type": "Precompiled", "precompiled_charsmap": BASE64_STANDARD.encode(map) }));
    }
    if normalizer.remove_extra_whitespaces.unwrap_or(true) {
        steps.push(json!({ "type": "Strip", "strip_left": true, "strip_right": true }));
        steps.push(json!({ "type": "Replace", "pattern": { "Regex": " {2,}" }, "content": " " }));
    }
    let prefix = if normalizer.add_dummy_prefix.unwrap_or(true) { "always" } else { "never" };
    let metaspace =
        json!({ "type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": prefix, "split": true });
    let document = json!({
        "version": "1.0",
        "added_tokens": added,
        "normalizer": { "type": "Sequence", "normalizers": steps },
        "pre_tokenizer": metaspace,
        "post_processor": null,
        "decoder": metaspace,
        "model": { "type": "Unigram", "unk_id": unknown, "vocab": pieces, "byte_fallback": false },
    });
    TextTokenizer::of_json(&document.to_string())
}
