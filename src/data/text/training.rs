//! Tokenizers made from texts.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::PathBuf;

use anyhow::{Result, anyhow};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::models::unigram::{Unigram, UnigramTrainer};
use tokenizers::models::wordlevel::{WordLevel, WordLevelTrainer};
use tokenizers::models::wordpiece::{WordPiece, WordPieceTrainer};
use tokenizers::normalizers::{BertNormalizer, Lowercase, NFKC, Sequence};
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::whitespace::{Whitespace, WhitespaceSplit};
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{
    AddedToken, NormalizedString, Normalizer, NormalizerWrapper, OffsetReferential, OffsetType,
    PreTokenizedString, PreTokenizer, PreTokenizerWrapper, Tokenizer, Trainer,
};

use super::tokenizer::{Settings, TextTokenizer, in_our_words};
use crate::{bad_input, bail_input};

/// What a token is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum TokenizerKind {
    /// A character of the texts, numbered in their order.
    #[default]
    Characters,
    /// A byte, numbered by its value.
    Bytes,
    /// A word, the most frequent first.
    Words,
    /// A part of a word as BERT has them.
    WordPiece,
    /// A sequence of bytes that often come together, as in GPT-2.
    Bpe,
    /// A likely part of a text, as in T5 and XLNet. Made anew, its scores differ in their last digits, so keep its file.
    Unigram,
    /// What a tokenizer's own file says.
    File,
}

/// What parts words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum WordSplit {
    /// Space, and the change between letters and punctuation.
    #[default]
    Punctuation,
    /// Space alone: for texts that are already tokenised.
    Space,
}

/// How a tokenizer is made, or where it is.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct TokenizerConfig {
    /// What a token is.
    pub kind: TokenizerKind,
    /// For `file`: a tokenizer.json, a vocab.txt, or the folder of a model.
    pub path: Option<PathBuf>,
    /// Tokens at most, special ones counted; characters and bytes are what they are.
    pub vocab_size: usize,
    /// How often a token must occur to be one.
    pub min_frequency: u64,
    /// Whether upper case is lower case.
    pub lowercase: bool,
    /// What parts words, for `words`.
    pub split: WordSplit,
    /// Tokens that are told from text before anything else is, numbered from 0. If left out, none for characters and bytes; `<pad> <unk> <eos>` for
    /// words, BERT's `[PAD] [UNK] [CLS] [SEP] [MASK]` for WordPiece, `<pad> <unk> <s> </s>` for BPE and Unigram.
    pub special_tokens: Option<Vec<String>>,
}

impl Default for TokenizerConfig {
    fn default() -> Self {
        Self {
            kind: TokenizerKind::Characters,
            path: None,
            vocab_size: 8000,
            min_frequency: 1,
            lowercase: false,
            split: WordSplit::Punctuation,
            special_tokens: None,
        }
    }
}

impl TokenizerConfig {
    /// Checks what can be checked without texts.
    pub fn validate(&self) -> Result<()> {
        match (self.kind, &self.path) {
            (TokenizerKind::File, None) => bail_input!(
                "data.tokenizer.kind is file: give data.tokenizer.path, a tokenizer.json, a vocab.txt or the folder of a model"
            ),
            (TokenizerKind::File, Some(_)) | (_, None) => {}
            (_, Some(_)) => bail_input!("data.tokenizer.path is for the kind file"),
        }
        if self.vocab_size == 0 {
            bail_input!("data.tokenizer.vocab_size is 0: a vocabulary needs tokens");
        }
        if self.kind == TokenizerKind::Characters && self.lowercase {
            bail_input!(
                "data.tokenizer.lowercase is for tokens of words and their parts, not for characters"
            );
        }
        Ok(())
    }

    /// Whether a tokenizer is made from the texts, or there already.
    pub fn needs_texts(&self) -> bool {
        !matches!(self.kind, TokenizerKind::File | TokenizerKind::Bytes)
    }

    fn special(&self) -> Vec<String> {
        let usual: &[&str] = match self.kind {
            TokenizerKind::Characters | TokenizerKind::Bytes | TokenizerKind::File => &[],
            TokenizerKind::Words => &["<pad>", "<unk>", "<eos>"],
            TokenizerKind::WordPiece => &["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
            TokenizerKind::Bpe | TokenizerKind::Unigram => &["<pad>", "<unk>", "<s>", "</s>"],
        };
        self.special_tokens.clone().unwrap_or_else(|| usual.iter().map(|&token| token.to_owned()).collect())
    }
}

impl TextTokenizer {
    /// Makes a tokenizer from texts, or opens the file that `config` names.
    ///
    /// # Errors
    /// A file that is no tokenizer; texts without a character; a vocabulary too small for the characters of the texts (Unigram).
    pub fn train<S: AsRef<str> + Send>(
        config: &TokenizerConfig,
        texts: impl Iterator<Item = S> + Send,
    ) -> Result<Self> {
        config.validate()?;
        let special = config.special();
        let made = match config.kind {
            TokenizerKind::File => {
                let path = config.path.as_deref().ok_or_else(|| anyhow!("a tokenizer without a path"))?;
                return Self::open(path);
            }
            TokenizerKind::Characters => of_document(&characters(&special, config.min_frequency, texts)?)?,
            TokenizerKind::Bytes => of_document(&bytes(&special))?,
            TokenizerKind::Words => words(config, &special, texts)?,
            TokenizerKind::WordPiece => word_pieces(config, &special, texts)?,
            TokenizerKind::Bpe => byte_pairs(config, &special, texts)?,
            TokenizerKind::Unigram => unigrams(config, &special, texts)?,
        };
        if made.get_vocab_size(true) <= special.len() {
            bail_input!("there is no text to make a tokenizer from");
        }
        Self::of(made, &Settings::default())
    }
}

fn of_document(document: &Value) -> Result<Tokenizer> {
    Tokenizer::from_bytes(document.to_string()).map_err(in_our_words)
}

/// The pre-tokenizer that parts every character from the next.
pub(super) fn each_character() -> Value {
    json!({"type": "Split", "pattern": {"Regex": "(?s)."}, "behavior": "Isolated", "invert": false})
}

fn characters<S: AsRef<str>>(
    special: &[String],
    min_frequency: u64,
    texts: impl Iterator<Item = S>,
) -> Result<Value> {
    let mut counts: BTreeMap<char, u64> = BTreeMap::new();
    let mut ascii = [0u64; 128];
    for text in texts {
        for character in text.as_ref().chars() {
            match ascii.get_mut(character as usize) {
                Some(count) => *count += 1,
                None => *counts.entry(character).or_default() += 1,
            }
        }
    }
    counts.extend((0u8..128).map(|byte| (char::from(byte), ascii[usize::from(byte)])));
    let frequent = counts.into_iter().filter(|(_, count)| *count >= min_frequency.max(1));
    let tokens: Vec<String> =
        special.iter().cloned().chain(frequent.map(|(character, _)| character.to_string())).collect();
    let vocabulary: serde_json::Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
    if vocabulary.len() != tokens.len() {
        bail_input!("data.tokenizer.special_tokens names a token twice, or a single character of the texts");
    }
    // A token for the unknown has a name that no text needs: it is looked up, not found in texts.
    let added = special.iter().enumerate().filter(|(_, token)| *token != "<unk>");
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": added.map(|(id, token)| json!({
            "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true,
        })).collect::<Vec<_>>(),
        "normalizer": null, "pre_tokenizer": each_character(), "post_processor": null, "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    }))
}

/// The character by which byte-level tokenizers write each byte: itself where it is printable in Latin-1, else one from U+0100 on.
pub(super) fn byte_characters() -> [char; 256] {
    let mut next = 0x100;
    std::array::from_fn(|byte| {
        let printable = matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        let code = if printable { byte as u32 } else { next };
        next += u32::from(!printable);
        char::from_u32(code).unwrap_or_default()
    })
}

fn bytes(special: &[String]) -> Value {
    let tokens = special.iter().cloned().chain(byte_characters().map(String::from));
    let vocabulary: serde_json::Map<String, Value> =
        tokens.enumerate().map(|(id, token)| (token, json!(id))).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": special.iter().enumerate().map(|(id, token)| json!({
            "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true,
        })).collect::<Vec<_>>(),
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    })
}

fn added(special: &[String]) -> Vec<AddedToken> {
    special.iter().map(|token| AddedToken::from(token.as_str(), true)).collect()
}

fn train<S: AsRef<str> + Send>(
    mut tokenizer: Tokenizer,
    trainer: impl Into<TrainerWrapper>,
    texts: impl Iterator<Item = S> + Send,
) -> Result<Tokenizer> {
    tokenizer
        .train(&mut trainer.into(), texts)
        .map_err(|error| bad_input!("the tokenizer cannot be made: {error}"))?;
    Ok(tokenizer)
}

fn words<S: AsRef<str> + Send>(
    config: &TokenizerConfig,
    special: &[String],
    texts: impl Iterator<Item = S> + Send,
) -> Result<Tokenizer> {
    let model = WordLevel::builder().unk_token("<unk>".to_owned()).build().map_err(in_our_words)?;
    let mut tokenizer = Tokenizer::new(model);
    if config.lowercase {
        tokenizer.with_normalizer(Some(Lowercase)).map_err(in_our_words)?;
    }
    let splitter = match config.split {
        WordSplit::Punctuation => PreTokenizerWrapper::Whitespace(Whitespace),
        WordSplit::Space => PreTokenizerWrapper::WhitespaceSplit(WhitespaceSplit),
    };
    tokenizer.with_pre_tokenizer(Some(splitter));
    let trainer = WordLevelTrainer::builder()
        .show_progress(false)
        .vocab_size(config.vocab_size)
        .min_frequency(config.min_frequency)
        .special_tokens(added(special))
        .build()
        .map_err(|error| anyhow!("{error}"))?;
    train(tokenizer, trainer, texts)
}

fn word_pieces<S: AsRef<str> + Send>(
    config: &TokenizerConfig,
    special: &[String],
    texts: impl Iterator<Item = S> + Send,
) -> Result<Tokenizer> {
    let normalizer = BertNormalizer::new(true, true, None, config.lowercase);
    let words = |text: &str| -> tokenizers::Result<Vec<String>> {
        let mut normalized = NormalizedString::from(text);
        normalizer.normalize(&mut normalized)?;
        let mut parted = PreTokenizedString::from(normalized);
        BertPreTokenizer.pre_tokenize(&mut parted)?;
        let splits = parted.get_splits(OffsetReferential::Original, OffsetType::Byte);
        Ok(splits.into_iter().map(|(word, ..)| word.to_owned()).collect())
    };
    let mut all = Vec::new();
    let mut inside = BTreeSet::new();
    for text in texts {
        let words = words(text.as_ref()).map_err(in_our_words)?;
        inside.extend(words.iter().flat_map(|word| word.chars().skip(1)));
        all.push(words.join(" "));
    }
    // The crate numbers characters within words as it meets them, in the order of a hash table; named in advance they have an order.
    let inside = inside.into_iter().map(|character| format!("##{character}"));
    let named: Vec<String> = special.iter().cloned().chain(inside).collect();
    let mut trainer = WordPieceTrainer::builder()
        .show_progress(false)
        .vocab_size(config.vocab_size)
        .min_frequency(config.min_frequency)
        .special_tokens(added(&named))
        .build();
    let split = |text: &str| Ok(text.split(' ').map(str::to_owned).collect());
    trainer.feed(all.iter(), split).map_err(in_our_words)?;
    let mut model = WordPiece::builder().unk_token("[UNK]".to_owned()).build().map_err(in_our_words)?;
    trainer.train(&mut model).map_err(|error| bad_input!("the tokenizer cannot be made: {error}"))?;
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.add_special_tokens(added(special)).map_err(in_our_words)?;
    tokenizer.with_normalizer(Some(normalizer)).map_err(in_our_words)?;
    tokenizer.with_pre_tokenizer(Some(BertPreTokenizer));
    tokenizer.with_decoder(Some(tokenizers::decoders::wordpiece::WordPiece::new("##".to_owned(), true)));
    framed(tokenizer, "[CLS]", "[SEP]")
}

fn byte_pairs<S: AsRef<str> + Send>(
    config: &TokenizerConfig,
    special: &[String],
    texts: impl Iterator<Item = S> + Send,
) -> Result<Tokenizer> {
    let mut tokenizer = Tokenizer::new(BPE::default());
    if config.lowercase {
        tokenizer.with_normalizer(Some(Lowercase)).map_err(in_our_words)?;
    }
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    tokenizer.with_decoder(Some(ByteLevel::new(true, true, true)));
    let trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(config.vocab_size)
        .min_frequency(config.min_frequency)
        .initial_alphabet(byte_characters().into_iter().collect::<HashSet<char>>())
        .special_tokens(added(special))
        .build();
    framed(train(tokenizer, trainer, texts)?, "<s>", "</s>")
}

fn unigrams<S: AsRef<str> + Send>(
    config: &TokenizerConfig,
    special: &[String],
    texts: impl Iterator<Item = S> + Send,
) -> Result<Tokenizer> {
    let mut tokenizer = Tokenizer::new(Unigram::default());
    let mut normalizers = vec![NormalizerWrapper::from(NFKC)];
    normalizers.extend(config.lowercase.then_some(NormalizerWrapper::from(Lowercase)));
    tokenizer.with_normalizer(Some(Sequence::new(normalizers))).map_err(in_our_words)?;
    let space = || Metaspace::new('▁', PrependScheme::Always, true);
    tokenizer.with_pre_tokenizer(Some(space()));
    tokenizer.with_decoder(Some(space()));
    let trainer = UnigramTrainer::builder()
        .show_progress(false)
        .vocab_size(config.vocab_size as u32)
        .unk_token(Some("<unk>".to_owned()))
        .special_tokens(added(special))
        .build()
        .map_err(|error| anyhow!("{error}"))?;
    framed(train(tokenizer, trainer, texts)?, "<s>", "</s>")
}

/// Lets special tokens stand around texts, where the tokenizer has them.
fn framed(mut tokenizer: Tokenizer, begin: &str, end: &str) -> Result<Tokenizer> {
    if let (Some(begin_id), Some(end_id)) = (tokenizer.token_to_id(begin), tokenizer.token_to_id(end)) {
        let template = TemplateProcessing::builder()
            .try_single(format!("{begin} $A {end}"))
            .and_then(|template| template.try_pair(format!("{begin} $A {end} $B:1 {end}:1")))
            .map_err(|error| anyhow!("{error}"))?
            .special_tokens(vec![(begin, begin_id), (end, end_id)])
            .build()
            .map_err(|error| anyhow!("{error}"))?;
        tokenizer.with_post_processor(Some(template));
    }
    Ok(tokenizer)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXTS: [&str; 4] =
        ["low lower lowest", "new newer newest", "wide wider widest low low", "Low, new!"];

    #[test]
    fn the_same_texts_make_the_same_tokenizer() -> Result<()> {
        for kind in [TokenizerKind::Words, TokenizerKind::WordPiece, TokenizerKind::Bpe] {
            let config = TokenizerConfig { kind, vocab_size: 280, ..Default::default() };
            let make = || TextTokenizer::train(&config, TEXTS.iter())?.to_json();
            assert_eq!(make()?, make()?, "{kind:?}");
        }
        Ok(())
    }

    #[test]
    fn words_are_counted() -> Result<()> {
        let config = TokenizerConfig {
            kind: TokenizerKind::Words,
            vocab_size: 5,
            lowercase: true,
            ..Default::default()
        };
        let tokenizer = TextTokenizer::train(&config, TEXTS.iter())?;
        assert_eq!(tokenizer.vocabulary(), ["<pad>", "<unk>", "<eos>", "low", "new"]);
        assert_eq!(tokenizer.encode("LOW high, new")?, [3, 1, 1, 4]);
        let spaced = TokenizerConfig { split: WordSplit::Space, vocab_size: 100, ..config };
        let tokenizer = TextTokenizer::train(&spaced, TEXTS.iter())?;
        assert!(tokenizer.id("low,").is_some());
        Ok(())
    }

    #[test]
    fn impossible_tokenizers_are_refused() {
        let refusal = |config: TokenizerConfig| {
            TextTokenizer::train(&config, TEXTS.iter())
                .err()
                .map(|error| error.to_string())
                .unwrap_or_default()
        };
        let file = TokenizerConfig { kind: TokenizerKind::File, ..Default::default() };
        assert!(refusal(file.clone()).contains("data.tokenizer.path"));
        assert!(
            refusal(TokenizerConfig { path: Some("missing.json".into()), ..file }).contains("does not exist")
        );
        assert!(
            refusal(TokenizerConfig { special_tokens: Some(vec!["l".into()]), ..Default::default() })
                .contains("twice")
        );
        let nothing = TextTokenizer::train(&TokenizerConfig::default(), [""].iter()).unwrap_err();
        assert!(nothing.to_string().contains("no text to make a tokenizer from"), "{nothing}");
    }
}
