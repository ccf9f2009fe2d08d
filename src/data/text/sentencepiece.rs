//! SentencePiece models (Kudo and Richardson, 2018), which the folders of Marian, T5 and LLaMA hold, older ones in place of a tokenizer.json.

use std::collections::{BTreeSet, HashMap, HashSet};
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
    #[prost(bool, optional, tag = "24")]
    treat_whitespace_as_suffix: Option<bool>,
}

#[derive(Clone, PartialEq, Message)]
struct NormalizerSpec {
    #[prost(bytes = "vec", optional, tag = "2")]
    precompiled_charsmap: Option<Vec<u8>>,
    #[prost(bool, optional, tag = "3")]
    add_dummy_prefix: Option<bool>,
    #[prost(bool, optional, tag = "4")]
    remove_extra_whitespaces: Option<bool>,
    #[prost(bool, optional, tag = "5")]
    escape_whitespaces: Option<bool>,
}

const UNIGRAM: i32 = 1;
const BPE: i32 = 2;

const ORDINARY: i32 = 1;
const UNKNOWN: i32 = 2;
const MARK: i32 = 3;
const GIVEN: i32 = 4;
const BYTE: i32 = 6;

/// What stands for a space.
const SPACE: char = '\u{2581}';

/// Scores of pieces that a model does not know but the vocabulary has, since another model shares it. Marian looks runs of characters that the model does not
/// know up in the vocabulary as they are: those of one character are found there, taken where nothing else fits. Longer ones are unknown here, as they
/// are there but for the few that are a piece as a whole. Other pieces are never taken, but can be read back.
const LAST_RESORT: f64 = -1e6;
const NEVER: f64 = -1e9;

/// Stands for what is unknown: a code point that is no character.
const NOT_IN_ANY_TEXT: char = '\u{10FFFF}';

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
    Ok(Some((with_vocabulary(&source, &vocabulary)?, with_vocabulary(&target, &of_target)?)))
}

/// The `tokenizer.json` of a SentencePiece model by itself, the pieces numbered as they are there: the `spiece.model` of T5, whose model knows
/// `sentinels` further tokens `<extra_id_…>` (the last of them is `<extra_id_0>`), or the `tokenizer.model` of LLaMA.
///
/// # Errors
/// The file is no such model, or one of another kind than Unigram and BPE.
pub(super) fn sentencepiece_json(path: &Path, sentinels: usize) -> Result<String> {
    let model = SentencePiece::read(path)?;
    let mut pieces: Vec<(String, f64)> = Vec::with_capacity(model.pieces.len() + sentinels);
    let mut added = Vec::new();
    let mut unknown = None;
    let ordinary = model.pieces.iter().filter(|piece| piece.kind.unwrap_or(ORDINARY) == ORDINARY);
    let best = ordinary.filter_map(|piece| piece.score).fold(f32::NEG_INFINITY, f32::max);
    let best = f64::from(best);
    for (number, piece) in model.pieces.iter().enumerate() {
        let text = piece.piece.clone().unwrap_or_default();
        match piece.kind.unwrap_or(ORDINARY) {
            UNKNOWN => {
                unknown = Some((number, text.clone()));
                added.push(added_token(number, &text, true));
            }
            MARK => added.push(added_token(number, &text, true)),
            GIVEN if model.kind == BPE => added.push(added_token(number, &text, false)),
            _ => {}
        }
        let score = match piece.kind {
            // As the package computes it: better than any other pieces for the same characters.
            Some(GIVEN) => text.chars().count() as f64 * best - 0.1,
            _ => f64::from(piece.score.unwrap_or(0.0)),
        };
        pieces.push((text, score));
    }
    for number in (0..sentinels).rev() {
        let text = format!("<extra_id_{number}>");
        added.push(added_token(pieces.len(), &text, true));
        pieces.push((text, 0.0));
    }
    let Some((unknown, unknown_text)) = unknown else {
        bail_input!("{} has no piece for what is unknown", path.display());
    };
    let bytes = model.pieces.iter().any(|piece| piece.kind == Some(BYTE));
    let inner = match model.kind {
        UNIGRAM => json!({ "type": "Unigram", "unk_id": unknown, "vocab": pieces, "byte_fallback": bytes }),
        _ => {
            let merges = merges(&pieces);
            let vocabulary: HashMap<&str, usize> =
                pieces.iter().enumerate().map(|(number, (piece, _))| (piece.as_str(), number)).collect();
            json!({
                "type": "BPE", "vocab": vocabulary, "merges": merges, "unk_token": unknown_text, "fuse_unk": true,
                "byte_fallback": bytes, "dropout": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "ignore_merges": false,
            })
        }
    };
    Ok(model.document(added, inner, bytes, None).to_string())
}

/// The pairs that BPE joins, soonest first: every way to split a piece into two others, in the order of the pieces' scores.
fn merges(pieces: &[(String, f64)]) -> Vec<[&str; 2]> {
    let known: HashMap<&str, f64> = pieces.iter().map(|(piece, score)| (piece.as_str(), *score)).collect();
    let mut ranked: Vec<(f64, usize, [&str; 2])> = Vec::new();
    for (number, (piece, score)) in pieces.iter().enumerate() {
        let splits = piece.char_indices().skip(1).map(|(at, _)| piece.split_at(at));
        let both = splits.filter(|(left, right)| known.contains_key(left) && known.contains_key(right));
        ranked.extend(both.map(|(left, right)| (*score, number, [left, right])));
    }
    ranked.sort_by(|one, other| other.0.total_cmp(&one.0).then(one.1.cmp(&other.1)));
    ranked.into_iter().map(|(_, _, pair)| pair).collect()
}

/// A model as its file says it.
struct SentencePiece {
    pieces: Vec<Piece>,
    kind: i32,
    normalizer: NormalizerSpec,
}

impl SentencePiece {
    fn read(path: &Path) -> Result<Self> {
        let name = path.display();
        let proto = ModelProto::decode(files::read(path)?.as_slice())
            .map_err(|error| bad_input!("{name} is no SentencePiece model: {error}"))?;
        let kind = proto.trainer.as_ref().and_then(|trainer| trainer.model_type).unwrap_or(UNIGRAM);
        if kind != UNIGRAM && kind != BPE {
            bail_input!(
                "{name} is a SentencePiece model of words or characters, which is not here: Unigram and BPE are"
            );
        }
        let normalizer = proto.normalizer.unwrap_or_default();
        let suffix = proto.trainer.and_then(|trainer| trainer.treat_whitespace_as_suffix);
        if suffix == Some(true) || normalizer.escape_whitespaces == Some(false) {
            bail_input!(
                "{name} marks spaces in another way than at the beginnings of words, which is not here"
            );
        }
        Ok(Self { pieces: proto.pieces, kind, normalizer })
    }

    /// A `tokenizer.json` that does to a text what the model does. What `unknown` matches becomes a character that no piece has.
    fn document(&self, added: Vec<Value>, model: Value, bytes: bool, unknown: Option<String>) -> Value {
        let mut steps = Vec::new();
        if let Some(map) = self.normalizer.precompiled_charsmap.as_ref().filter(|map| !map.is_empty()) {
            steps.push(json!({ "type": "Precompiled", "precompiled_charsmap": BASE64_STANDARD.encode(map) }));
        }
        if self.normalizer.remove_extra_whitespaces.unwrap_or(true) {
            steps.push(json!({ "type": "Replace", "pattern": { "Regex": "^ +| +$" }, "content": "" }));
            steps.push(json!({ "type": "Replace", "pattern": { "Regex": " {2,}" }, "content": " " }));
        }
        if let Some(unknown) = unknown {
            let pattern = json!({ "Regex": unknown });
            steps.push(json!({ "type": "Replace", "pattern": pattern, "content": NOT_IN_ANY_TEXT }));
        }
        // Also where a text begins with a space, which `Metaspace` would take for the prefix.
        let prefix = self.normalizer.add_dummy_prefix.unwrap_or(true);
        if prefix {
            steps.push(json!({ "type": "Prepend", "prepend": SPACE }));
        }
        // Pieces of BPE may hold several spaces.
        let split = self.kind == UNIGRAM;
        let metaspace = |scheme: &str| json!({ "type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": split });
        let reading = metaspace(if prefix { "always" } else { "never" });
        let decoder = match bytes {
            false => reading,
            true => json!({ "type": "Sequence", "decoders": [{ "type": "ByteFallback" }, reading] }),
        };
        json!({
            "version": "1.0",
            "added_tokens": added,
            "normalizer": { "type": "Sequence", "normalizers": steps },
            "pre_tokenizer": metaspace("never"),
            "post_processor": null,
            "decoder": decoder,
            "model": model,
        })
    }
}

/// A token that is found as a whole.
fn added_token(number: usize, text: &str, special: bool) -> Value {
    json!({
        "id": number, "content": text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        "special": special,
    })
}

/// A tokenizer of the pieces of a Unigram model with the numbers of a vocabulary.
fn with_vocabulary(path: &Path, vocabulary: &Path) -> Result<TextTokenizer> {
    let model = SentencePiece::read(path)?;
    if model.kind != UNIGRAM {
        bail_input!(
            "{} is a SentencePiece model of another kind than Unigram, which Marian has not",
            path.display()
        );
    }
    let scores: HashMap<&str, f64> = model
        .pieces
        .iter()
        .filter(|piece| piece.kind.unwrap_or(ORDINARY) == ORDINARY)
        .filter_map(|piece| Some((piece.piece.as_deref()?, f64::from(piece.score?))))
        .collect();
    let characters: HashSet<char> = scores.keys().flat_map(|piece| piece.chars()).collect();
    let text = files::read_text(vocabulary)?;
    let numbers: HashMap<String, usize> = serde_json::from_str(&text)
        .map_err(|error| bad_input!("{} is no vocabulary: {error}", vocabulary.display()))?;
    let size = numbers.values().max().map_or(0, |largest| largest + 1);
    // A number that no piece has is one that no text has.
    let mut pieces: Vec<(String, f64)> =
        (0..size).map(|number| (format!("<unused{number}>"), NEVER)).collect();
    let mut looked_up = BTreeSet::new();
    for (piece, &number) in &numbers {
        let known = scores.get(piece.as_str()).copied();
        let mut letters = piece.chars();
        let score = match (known, letters.next(), letters.next()) {
            (Some(score), ..) => score,
            (None, Some(only), None) if !characters.contains(&only) => {
                looked_up.insert(only);
                LAST_RESORT
            }
            _ => NEVER,
        };
        pieces[number] = (piece.clone(), score);
    }
    let Some(unknown) = numbers.get("<unk>") else {
        bail_input!("{} has no `<unk>`", vocabulary.display());
    };
    let marks = ["</s>", "<unk>", "<pad>"];
    let added = marks.iter().filter_map(|mark| Some(added_token(*numbers.get(*mark)?, mark, true))).collect();
    let inner = json!({ "type": "Unigram", "unk_id": unknown, "vocab": pieces, "byte_fallback": false });
    let class = |characters: &mut dyn Iterator<Item = char>| {
        characters.map(|character| format!("\\x{{{:X}}}", u32::from(character))).collect::<String>()
    };
    // Spaces are marked later.
    let spaced = characters.iter().copied().filter(|&character| character != SPACE).chain([' ']);
    let known = class(&mut spaced.collect::<BTreeSet<char>>().into_iter());
    let looked_up = class(&mut looked_up.into_iter());
    let unheard = format!("[^{known}]{{2,}}|[^{known}{looked_up}]");
    TextTokenizer::of_json(&model.document(added, inner, false, Some(unheard)).to_string())
}
