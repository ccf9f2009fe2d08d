//! Texts to tokens and back, by the tokenizers of Hugging Face.

use std::collections::HashMap;
use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use serde_json::{Value, json};
use tokenizers::{EncodeInput, Tokenizer, TruncationParams};

use super::cache::{StreamCache, cache_folder};
use super::encoded::{EncodedTexts, IN_MEMORY, TokenBuffer, TokenFileWriter, Tokens};
use super::sentencepiece::sentencepiece_json;
use crate::data::table::open_bytes;
use crate::error::BadInput;
use crate::recipe::Attachments;
use crate::{bad_input, bail_input, files};

/// Bytes of a text that are encoded as one piece of a stream, at least.
const PIECE: usize = 1 << 16;
/// Pieces, or short texts, that are encoded at a time on all cores.
const PIECES_AT_A_TIME: usize = 64;
const TEXTS_AT_A_TIME: usize = 4096;

/// A text, or a pair of them such as a question with its context.
#[derive(Clone, Copy, Debug)]
pub struct TextInput<'a> {
    /// The text, or the first of two.
    pub first: &'a str,
    /// The second of two.
    pub second: Option<&'a str>,
}

impl<'a> TextInput<'a> {
    /// One text.
    pub fn single(text: &'a str) -> Self {
        Self { first: text, second: None }
    }

    /// Two texts that are read as one sequence.
    pub fn pair(first: &'a str, second: &'a str) -> Self {
        Self { first, second: Some(second) }
    }
}

/// How texts become tokens.
#[derive(Clone, Copy, Debug, Default)]
pub struct EncodeOptions {
    /// Whether the tokenizer adds its special tokens (`[CLS]` … `[SEP]`, `<s>` … `</s>`).
    pub special_tokens: bool,
    /// Tokens of the longest sequence, special ones counted; longer texts are cut at their end, of two the longer one first.
    pub max_length: Option<usize>,
}

/// A text that a tokenizer without a token for the unknown cannot encode: bad input.
#[derive(Debug)]
pub struct UnknownText {
    /// Which of the texts.
    pub text: usize,
    cause: BadInput,
}

impl fmt::Display for UnknownText {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cause.fmt(formatter)
    }
}

impl std::error::Error for UnknownText {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.cause)
    }
}

/// The numbers of the tokens that have a meaning of their own; none where a tokenizer has no such token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Fills sequences up.
    pub pad: Option<i64>,
    /// Stands for what is not in the vocabulary.
    pub unknown: Option<i64>,
    /// Begins a sequence that is classified: `[CLS]`, or `<s>` in RoBERTa.
    pub class: Option<i64>,
    /// Ends each text of a sequence: `[SEP]`, or `</s>`.
    pub separator: Option<i64>,
    /// Hides a token that is to be guessed.
    pub mask: Option<i64>,
    /// Begins a text that is generated.
    pub begin: Option<i64>,
    /// Ends a text that is generated, or a line.
    pub end: Option<i64>,
}

/// The names under which Hugging Face's files and this project's own tokenizers know special tokens, usual texts first.
const SPECIAL: [(&str, &[&str]); 7] = [
    ("pad_token", &["[PAD]", "<pad>", "<|padding|>"]),
    ("unk_token", &["[UNK]", "<unk>"]),
    ("cls_token", &["[CLS]"]),
    ("sep_token", &["[SEP]"]),
    ("mask_token", &["[MASK]", "<mask>"]),
    ("bos_token", &["<s>", "[BOS]", "<|startoftext|>", "<|endoftext|>"]),
    ("eos_token", &["</s>", "<eos>", "[EOS]", "<|endoftext|>"]),
];

/// Where in a text a token is from, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextPosition {
    /// The token's number.
    pub id: i64,
    /// The token as the vocabulary writes it.
    pub token: String,
    /// First byte and the byte behind the last; an empty range for special tokens.
    pub bytes: std::ops::Range<usize>,
}

/// Tokenizers that need no search: what the crate does for them in general is done by looking a table up.
enum Direct {
    /// A token for each character.
    Characters {
        ascii: Box<[u32; 128]>,
        others: HashMap<char, u32>,
        unknown: Option<u32>,
        texts: Vec<String>,
    },
    /// A token for each byte, numbered by it.
    Bytes { first: u32 },
}

const NO_TOKEN: u32 = u32::MAX;

/// A tokenizer with its vocabulary.
pub struct TextTokenizer {
    inner: Tokenizer,
    direct: Option<Direct>,
    special: SpecialTokens,
    line_end: Option<i64>,
}

impl fmt::Debug for TextTokenizer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "TextTokenizer({} of {} tokens)", self.kind(), self.vocabulary_size())
    }
}

pub(super) fn in_our_words(error: Box<dyn std::error::Error + Send + Sync>) -> anyhow::Error {
    anyhow!("{error}")
}

/// Reads a `tokenizer.json`. The crate panics at some parts of the wrong form, which is the file's fault like any other.
fn parsed(bytes: &[u8], name: &str) -> Result<Tokenizer> {
    match std::panic::catch_unwind(|| Tokenizer::from_bytes(bytes)) {
        Ok(Ok(tokenizer)) => Ok(tokenizer),
        Ok(Err(error)) => bail_input!("{name} is no tokenizer.json: {error}"),
        Err(_) => bail_input!("{name} is no tokenizer.json: a part of it has the wrong form"),
    }
}

/// The file of a tokenizer, in a run and in a Hugging Face folder.
pub const TOKENIZER_FILE: &str = "tokenizer.json";

impl TextTokenizer {
    /// Opens a `tokenizer.json`, a `vocab.txt` of BERT, or the folder of a Hugging Face model with one of them, with GPT-2's `vocab.json` and
    /// `merges.txt`, or with a SentencePiece model (`spiece.model`, `tokenizer.model`). Names of special tokens and the treatment of letters are taken from `special_tokens_map.json` and
    /// `tokenizer_config.json` beside the file. Padding and truncation that a file asks for are left out: batches are padded by
    /// [`pad`](super::pad()).
    ///
    /// # Errors
    /// There is no such file, or it is no tokenizer.
    pub fn open(path: &Path) -> Result<Self> {
        let folder = match path.is_dir() {
            true => path,
            false => path.parent().unwrap_or(Path::new(".")),
        };
        let named = |name: &str| Some(folder.join(name)).filter(|path| path.is_file());
        let config = Settings::beside(folder)?;
        if !path.is_dir() {
            let is_json = path.extension().is_some_and(|extension| extension == "json");
            return if is_json {
                Self::of_json_file(path, &config)
            } else {
                Self::of_vocabulary(path, &config)
            };
        }
        if let Some(file) = named(TOKENIZER_FILE) {
            return Self::of_json_file(&file, &config);
        }
        if let Some(file) = named("vocab.txt") {
            return Self::of_vocabulary(&file, &config);
        }
        if let Some(file) = named("spiece.model").or_else(|| named("tokenizer.model")) {
            let json = sentencepiece_json(&file, config.sentinels(folder)?)?;
            return Self::of(parsed(json.as_bytes(), &file.display().to_string())?, &config);
        }
        match (named("vocab.json"), named("merges.txt")) {
            (Some(vocabulary), Some(merges)) => Self::of_merges(&vocabulary, &merges, &config),
            _ => bail_input!(
                "{} holds no tokenizer: tokenizer.json, vocab.txt, spiece.model, tokenizer.model, or vocab.json with merges.txt",
                path.display()
            ),
        }
    }

    /// A tokenizer from the text of a `tokenizer.json`.
    ///
    /// # Errors
    /// It is no such text.
    pub fn of_json(json: &str) -> Result<Self> {
        Self::of(parsed(json.as_bytes(), "this text")?, &Settings::default())
    }

    /// The tokenizer that is attached to a recipe under a name, if there is one.
    ///
    /// # Errors
    /// The file cannot be read, or is no tokenizer.
    pub fn attached(attachments: &Attachments, name: &str) -> Result<Option<Self>> {
        let Some(text) = attachments.text(name)? else { return Ok(None) };
        let mut settings = Settings::default();
        let special = special_tokens_of(name);
        if let Some(text) = attachments.text(&special)? {
            settings.files.push(crate::recipe::parse(&text, &attachments.place(&special))?);
        }
        Self::of(parsed(text.as_bytes(), &attachments.place(name))?, &settings).map(Some)
    }

    /// Attaches the tokenizer to a recipe under a name; beside it the names of its special tokens, where they are not the usual ones, which its own
    /// file does not tell.
    pub fn attach(&self, attachments: &mut Attachments, name: &str) -> Result<()> {
        let text = self.to_json()? + "\n";
        if Self::of(parsed(text.as_bytes(), name)?, &Settings::default())?.special != self.special {
            let SpecialTokens { pad, unknown, class, separator, mask, begin, end } = self.special;
            let named: serde_json::Map<String, Value> = SPECIAL
                .iter()
                .zip([pad, unknown, class, separator, mask, begin, end])
                .filter_map(|((key, _), id)| Some(((*key).to_owned(), json!(self.token(id?)?))))
                .collect();
            attachments.add(&special_tokens_of(name), format!("{:#}\n", Value::Object(named)));
        }
        attachments.add(name, text);
        Ok(())
    }

    fn of_json_file(path: &Path, config: &Settings) -> Result<Self> {
        Self::of(parsed(&files::read(path)?, &path.display().to_string())?, config)
    }

    /// BERT's WordPiece from a list of tokens, one a line.
    fn of_vocabulary(path: &Path, config: &Settings) -> Result<Self> {
        let text = files::read_text(path)?;
        let tokens: Vec<&str> = text.lines().map(str::trim_end).collect();
        let id = |wanted: &str| tokens.iter().position(|token| *token == wanted);
        let mut vocabulary = serde_json::Map::new();
        for (id, token) in tokens.iter().enumerate() {
            if vocabulary.insert((*token).to_owned(), json!(id)).is_some() {
                bail_input!("{}, line {}: the token `{token}` is there twice", path.display(), id + 1);
            }
        }
        let name = |key: &str, usual: &str| config.text(key).unwrap_or_else(|| usual.to_owned());
        let names = ["unk_token", "cls_token", "sep_token", "pad_token", "mask_token"].map(|key| {
            name(key, SPECIAL.iter().find(|(known, _)| *known == key).map_or("", |(_, usual)| usual[0]))
        });
        let [unknown, class, separator, ..] = &names;
        let (Some(_), Some(class_id), Some(separator_id)) = (id(unknown), id(class), id(separator)) else {
            bail_input!(
                "{} is no vocabulary of BERT: it lacks one of {unknown}, {class} and {separator}",
                path.display()
            );
        };
        let added: Vec<Value> = names.iter().filter_map(|name| Some(added_token(id(name)?, name))).collect();
        let document = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
            "normalizer": {
                "type": "BertNormalizer", "clean_text": true,
                "handle_chinese_chars": config.flag("tokenize_chinese_chars").unwrap_or(true),
                "strip_accents": config.flag("strip_accents"),
                "lowercase": config.flag("do_lower_case").unwrap_or(true),
            },
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": {"type": "BertProcessing", "sep": [separator, separator_id], "cls": [class, class_id]},
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
            "model": {
                "type": "WordPiece", "unk_token": unknown, "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100, "vocab": vocabulary,
            },
        });
        let inner = Tokenizer::from_bytes(document.to_string())
            .map_err(|error| bad_input!("{} is no vocabulary: {error}", path.display()))?;
        Self::of(inner, config)
    }

    /// GPT-2's byte-level BPE.
    fn of_merges(vocabulary: &Path, merges: &Path, config: &Settings) -> Result<Self> {
        let tokens: HashMap<String, u32> = serde_json::from_slice(&files::read(vocabulary)?)
            .map_err(|error| bad_input!("{} is no vocabulary: {error}", vocabulary.display()))?;
        let text = files::read_text(merges)?;
        let lines = text.lines().filter(|line| !line.starts_with("#version") && !line.is_empty());
        let special =
            ["unk_token", "bos_token", "eos_token", "pad_token", "cls_token", "sep_token", "mask_token"];
        let mut added: Vec<(u32, String)> = special
            .iter()
            .filter_map(|key| {
                let name = config.text(key)?;
                Some((*tokens.get(&name)?, name))
            })
            .collect();
        added.sort();
        added.dedup();
        let processor = match (config.text("cls_token"), config.text("sep_token")) {
            (Some(class), Some(separator))
                if tokens.contains_key(&class) && tokens.contains_key(&separator) =>
            {
                json!({
                    "type": "RobertaProcessing", "trim_offsets": true, "add_prefix_space": false,
                    "sep": [separator, tokens[&separator]], "cls": [class, tokens[&class]],
                })
            }
            _ => {
                json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true})
            }
        };
        let document = json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": added.iter().map(|(id, name)| added_token(*id as usize, name)).collect::<Vec<_>>(),
            "normalizer": null,
            "pre_tokenizer": {
                "type": "ByteLevel", "add_prefix_space": config.flag("add_prefix_space").unwrap_or(false),
                "trim_offsets": true, "use_regex": true,
            },
            "post_processor": processor,
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "vocab": tokens, "merges": lines.collect::<Vec<_>>()},
        });
        let inner = Tokenizer::from_bytes(document.to_string()).map_err(|error| {
            bad_input!("{} and {} are no tokenizer: {error}", vocabulary.display(), merges.display())
        })?;
        Self::of(inner, config)
    }

    /// Wraps a tokenizer of the crate.
    pub(super) fn of(mut inner: Tokenizer, config: &Settings) -> Result<Self> {
        inner.with_padding(None);
        inner.with_truncation(None).map_err(in_our_words)?;
        let id = |token: &str| inner.token_to_id(token).map(i64::from);
        let [pad, unknown, class, separator, mask, begin, end] =
            SPECIAL.map(|(key, usual)| match config.text(key) {
                Some(name) => id(&name),
                None => usual.iter().find_map(|token| id(token)),
            });
        let special = SpecialTokens { pad, unknown, class, separator, mask, begin, end };
        let direct = Direct::of(&inner)?;
        let mut tokenizer = Self { inner, direct, special, line_end: None };
        if tokenizer.direct.is_none() && !tokenizer.keeps_lines() {
            tokenizer.line_end = tokenizer.special.end;
        }
        Ok(tokenizer)
    }

    /// Whether line ends survive encoding.
    fn keeps_lines(&self) -> bool {
        let encoded = self.inner.encode_fast("a\nb", false);
        let decoded = encoded.and_then(|encoding| self.inner.decode(encoding.get_ids(), false));
        decoded.is_ok_and(|text| text.contains('\n'))
    }

    /// The text of a `tokenizer.json` that makes this tokenizer, here and in Python.
    pub fn to_json(&self) -> Result<String> {
        self.inner.to_string(true).map_err(in_our_words)
    }

    /// Writes a `tokenizer.json`.
    pub fn save(&self, path: &Path) -> Result<()> {
        files::write_atomic(path, (self.to_json()? + "\n").as_bytes())
    }

    /// The tokenizer of the crate, for what this one does not offer: offsets, word numbers.
    pub fn inner(&self) -> &Tokenizer {
        &self.inner
    }

    /// What it is, for people.
    pub fn kind(&self) -> &'static str {
        use tokenizers::ModelWrapper;
        match (&self.direct, self.inner.get_model()) {
            (Some(Direct::Characters { .. }), _) => "characters",
            (Some(Direct::Bytes { .. }), _) => "bytes",
            (None, ModelWrapper::BPE(_)) => "BPE",
            (None, ModelWrapper::WordPiece(_)) => "WordPiece",
            (None, ModelWrapper::WordLevel(_)) => "words",
            (None, ModelWrapper::Unigram(_)) => "Unigram",
        }
    }

    /// One more than the largest token number, added tokens counted: the rows of an embedding.
    pub fn vocabulary_size(&self) -> usize {
        let largest = self.inner.get_vocab(true).into_values().max();
        largest.map_or(0, |largest| largest as usize + 1)
    }

    /// The tokens with a meaning of their own.
    pub fn special(&self) -> &SpecialTokens {
        &self.special
    }

    /// The token that stands for the end of a line in [`TextTokenizer::encode_stream`], where the tokenizer itself drops line ends.
    pub fn line_end(&self) -> Option<i64> {
        self.line_end
    }

    /// The number of a token.
    pub fn id(&self, token: &str) -> Option<i64> {
        self.inner.token_to_id(token).map(i64::from)
    }

    /// The token of a number, as the vocabulary writes it.
    pub fn token(&self, id: i64) -> Option<String> {
        self.inner.id_to_token(u32::try_from(id).ok()?)
    }

    /// All tokens by number; empty where a number has none.
    pub fn vocabulary(&self) -> Vec<String> {
        let mut tokens = vec![String::new(); self.vocabulary_size()];
        for (token, id) in self.inner.get_vocab(true) {
            tokens[id as usize] = token;
        }
        tokens
    }

    /// The tokens of a text, without special ones.
    ///
    /// # Errors
    /// A character that is not in the vocabulary, where that has no token for the unknown.
    pub fn encode(&self, text: &str) -> Result<Vec<i64>> {
        let encoded = self.encode_all(&[TextInput::single(text)], EncodeOptions::default())?;
        Ok(encoded.ids(0))
    }

    /// The tokens of a text with the places they are from.
    ///
    /// # Errors
    /// As for [`TextTokenizer::encode`].
    pub fn positions(&self, text: &str, special_tokens: bool) -> Result<Vec<TextPosition>> {
        let encoding =
            self.inner.encode(text, special_tokens).map_err(|error| self.unknown_text(0, text, error))?;
        let tokens = encoding.get_ids().iter().zip(encoding.get_tokens()).zip(encoding.get_offsets());
        let position = |((&id, token), &(start, end)): ((&u32, &String), &(usize, usize))| TextPosition {
            id: i64::from(id),
            token: token.clone(),
            bytes: start..end,
        };
        Ok(tokens.map(position).collect())
    }

    /// The tokens of many texts, encoded on all cores.
    ///
    /// # Errors
    /// [`UnknownText`]: a character that is not in the vocabulary, where that has no token for the unknown.
    pub fn encode_all(&self, texts: &[TextInput<'_>], options: EncodeOptions) -> Result<EncodedTexts> {
        let mut encoded = EncodedTexts::new(self.vocabulary_size());
        if let Some(direct) = self.direct.as_ref().filter(|_| self.inner.get_post_processor().is_none()) {
            let mut ids = Vec::new();
            for (number, input) in texts.iter().enumerate() {
                ids.clear();
                let mut take = |text: &str| {
                    direct.encode(text, &mut ids).map_err(|character| UnknownText {
                        text: number,
                        cause: BadInput(unknown_character(character)),
                    })
                };
                take(input.first)?;
                input.second.map_or(Ok(()), take)?;
                ids.truncate(options.max_length.unwrap_or(usize::MAX));
                encoded.push(&ids, ids.len());
            }
            return Ok(encoded);
        }
        let cut;
        let tokenizer = match options.max_length {
            Some(max_length) => {
                let mut other = self.inner.clone();
                let truncation = TruncationParams { max_length, ..Default::default() };
                other.with_truncation(Some(truncation)).map_err(|error| {
                    bad_input!("texts cannot be cut to {max_length} tokens, special ones counted: {error}")
                })?;
                cut = other;
                &cut
            }
            None => &self.inner,
        };
        for (block, inputs) in texts.chunks(TEXTS_AT_A_TIME).enumerate() {
            let wrapped: Vec<EncodeInput<'_>> = inputs
                .iter()
                .map(|input| match input.second {
                    Some(second) => EncodeInput::Dual(input.first.into(), second.into()),
                    None => EncodeInput::Single(input.first.into()),
                })
                .collect();
            let encodings =
                tokenizer.encode_batch_fast(wrapped, options.special_tokens).map_err(|error| {
                    // The crate does not say which text it was.
                    let at = inputs.iter().position(|input| {
                        let second = input.second.unwrap_or_default();
                        self.inner.encode_fast(input.first, false).is_err()
                            || self.inner.encode_fast(second, false).is_err()
                    });
                    let at = at.unwrap_or(0);
                    self.unknown_text(block * TEXTS_AT_A_TIME + at, inputs[at].first, error)
                })?;
            for encoding in encodings {
                let types = encoding.get_type_ids();
                let second = types.iter().position(|&kind| kind == 1).unwrap_or(types.len());
                encoded.push(encoding.get_ids(), second);
            }
        }
        Ok(encoded)
    }

    fn unknown_text(
        &self,
        text: usize,
        content: &str,
        error: Box<dyn std::error::Error + Send + Sync>,
    ) -> anyhow::Error {
        let lacks = |character: &char| self.inner.encode_fast(character.to_string(), false).is_err();
        let message = match content.chars().find(lacks) {
            Some(character) => unknown_character(character),
            None => format!("the tokenizer cannot encode this text: {error}"),
        };
        anyhow::Error::new(UnknownText { text, cause: BadInput(message) })
    }

    /// A long text as one sequence of tokens, without special ones. Where the tokenizer drops line ends and has a token for the end of a text,
    /// that stands at the end of each line.
    ///
    /// The text is encoded in pieces of at least 64 KiB that end where a line does and the next begins with a letter, at which no tokenizer of
    /// words, bytes or characters joins anything.
    ///
    /// # Errors
    /// A line that is no UTF-8 or cannot be encoded, with its number.
    pub fn encode_stream(&self, reader: impl Read, name: &str) -> Result<Tokens> {
        let mut tokens = TokenBuffer::new(self.vocabulary_size());
        self.for_each_piece(reader, name, |ids| {
            tokens.extend(ids);
            Ok(())
        })?;
        Ok(tokens.finish())
    }

    /// The text of a file as [`TextTokenizer::encode_stream`] gives it. Files of more than [`IN_MEMORY`] bytes are encoded once and then mapped
    /// from the cache folder, as long as neither they nor the tokenizer change.
    ///
    /// # Errors
    /// Those of reading, and of writing the cache.
    pub fn encode_file(&self, path: &Path) -> Result<Tokens> {
        let name = path.display().to_string();
        let length = std::fs::metadata(path).map_err(|error| files::cannot_read(path, &error))?.len();
        let folder = cache_folder().filter(|_| length > IN_MEMORY);
        let Some(folder) = folder else { return self.encode_stream(open_bytes(path)?, &name) };
        let cache = StreamCache::new(&folder, path, &self.to_json()?)?;
        if let Some(tokens) = cache.open()? {
            return Ok(tokens);
        }
        let mut writer = TokenFileWriter::create(cache.path(), self.vocabulary_size())?;
        self.for_each_piece(open_bytes(path)?, &name, |ids| writer.extend(ids))?;
        writer.finish()
    }

    fn for_each_piece(
        &self,
        reader: impl Read,
        name: &str,
        mut take: impl FnMut(&[u32]) -> Result<()>,
    ) -> Result<()> {
        let mut pieces = Pieces::new(reader, name);
        loop {
            let mut block = Vec::new();
            while block.len() < PIECES_AT_A_TIME
                && let Some(piece) = pieces.next_piece()?
            {
                block.push(piece);
            }
            if block.is_empty() {
                return Ok(());
            }
            let located = |piece: &Piece, content: &str, error: anyhow::Error| {
                // The line in which the first such character is.
                let before = content
                    .char_indices()
                    .find(|(_, character)| error.to_string().contains(&quoted(*character)));
                let lines = before
                    .map_or(0, |(place, _)| memchr::memchr_iter(b'\n', &content.as_bytes()[..place]).count());
                bad_input!("{name}, line {}: {error}", piece.line + lines as u64)
            };
            match self.line_end {
                Some(line_end) => {
                    for piece in &block {
                        let lines: Vec<TextInput<'_>> = piece.text.lines().map(TextInput::single).collect();
                        let encoded = self
                            .encode_all(&lines, EncodeOptions::default())
                            .map_err(|error| located(piece, &piece.text, error))?;
                        for line in 0..lines.len() {
                            let mut ids: Vec<u32> =
                                encoded.ids(line).into_iter().map(|id| id as u32).collect();
                            ids.push(line_end as u32);
                            take(&ids)?;
                        }
                    }
                }
                None => {
                    let inputs: Vec<TextInput<'_>> =
                        block.iter().map(|piece| TextInput::single(&piece.text)).collect();
                    let encoded = self.encode_all(&inputs, EncodeOptions::default()).map_err(|error| {
                        let at = error.downcast_ref::<UnknownText>().map_or(0, |unknown| unknown.text);
                        located(&block[at], &block[at].text, error)
                    })?;
                    take(&encoded.tokens().to_vec())?;
                }
            }
        }
    }

    /// The text of tokens. What is no UTF-8 becomes U+FFFD; special tokens are left out where `skip_special` says so.
    pub fn decode(&self, ids: &[i64], skip_special: bool) -> Result<String> {
        let part = |ids: &[i64]| -> Result<String> {
            let ids: Vec<u32> = ids.iter().map(|&id| id as u32).collect();
            match &self.direct {
                Some(Direct::Bytes { first }) if ids.iter().all(|id| id >= first) => {
                    let bytes: Vec<u8> = ids.iter().map(|id| (id - first) as u8).collect();
                    Ok(String::from_utf8_lossy(&bytes).into_owned())
                }
                _ => self.inner.decode(&ids, skip_special).map_err(in_our_words),
            }
        };
        match self.line_end {
            Some(line_end) => {
                Ok(ids.split(|&id| id == line_end).map(part).collect::<Result<Vec<_>>>()?.join("\n"))
            }
            None => part(ids),
        }
    }

    /// The bytes that one token stands for, where that does not depend on its neighbours: characters and bytes.
    pub fn token_bytes(&self, id: i64) -> Option<&[u8]> {
        static BYTES: [u8; 256] = {
            let mut bytes = [0; 256];
            let mut byte = 0;
            while byte < 256 {
                bytes[byte] = byte as u8;
                byte += 1;
            }
            bytes
        };
        match self.direct.as_ref()? {
            Direct::Characters { texts, .. } => texts.get(usize::try_from(id).ok()?).map(String::as_bytes),
            Direct::Bytes { first } => {
                let byte = usize::try_from(id).ok()?.checked_sub(*first as usize)?;
                BYTES.get(byte..byte + 1)
            }
        }
    }
}

fn quoted(character: char) -> String {
    match character.is_control() || character.is_whitespace() {
        true => format!("U+{:04X}", u32::from(character)),
        false => format!("`{character}`"),
    }
}

fn unknown_character(character: char) -> String {
    format!(
        "the character {} is not in the vocabulary, which has no token for the unknown",
        quoted(character)
    )
}

/// A token that is told from text before anything else is.
fn added_token(id: usize, content: &str) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true})
}

impl Direct {
    /// Recognises the forms that [`TokenizerConfig`](super::TokenizerConfig) gives characters and bytes.
    fn of(inner: &Tokenizer) -> Result<Option<Self>> {
        use tokenizers::{ModelWrapper, PreTokenizerWrapper};
        if inner.get_normalizer().is_some() {
            return Ok(None);
        }
        match (inner.get_model(), inner.get_pre_tokenizer()) {
            (ModelWrapper::WordLevel(model), Some(PreTokenizerWrapper::Split(split)))
                if serde_json::to_value(split)? == super::training::each_character() =>
            {
                let (mut ascii, mut others) = (Box::new([NO_TOKEN; 128]), HashMap::new());
                let vocabulary = inner.get_vocab(true);
                let mut texts =
                    vec![String::new(); vocabulary.values().max().map_or(0, |&largest| largest as usize + 1)];
                let unknown = vocabulary.get(&model.unk_token).copied();
                for (token, id) in vocabulary {
                    let mut characters = token.chars();
                    if let (Some(character), None) = (characters.next(), characters.next()) {
                        match ascii.get_mut(character as usize) {
                            Some(place) => *place = id,
                            None => {
                                others.insert(character, id);
                            }
                        }
                        texts[id as usize] = token;
                    }
                }
                // Special tokens of several characters are recognised in texts by the crate alone.
                let plain = inner.get_added_tokens_decoder().is_empty();
                Ok(plain.then_some(Self::Characters { ascii, others, unknown, texts }))
            }
            (ModelWrapper::BPE(_), Some(PreTokenizerWrapper::ByteLevel(level)))
                if !level.use_regex
                    && !level.add_prefix_space
                    && inner.get_added_tokens_decoder().is_empty() =>
            {
                let characters = super::training::byte_characters();
                let ids = characters.map(|character| inner.token_to_id(&character.to_string()));
                let in_order =
                    ids[0].is_some() && ids.windows(2).all(|pair| pair[0].map(|id| id + 1) == pair[1]);
                let alone = inner.get_vocab_size(true) == 256;
                Ok(ids[0].filter(|_| in_order && alone).map(|first| Self::Bytes { first }))
            }
            _ => Ok(None),
        }
    }

    /// Appends the tokens of a text, or returns the first character that has none.
    fn encode(&self, text: &str, ids: &mut Vec<u32>) -> std::result::Result<(), char> {
        match self {
            Self::Bytes { first } => ids.extend(text.bytes().map(|byte| first + u32::from(byte))),
            Self::Characters { ascii, others, unknown, .. } => {
                ids.reserve(text.len());
                for character in text.chars() {
                    let id = match ascii.get(character as usize) {
                        Some(&id) => id,
                        None => others.get(&character).copied().unwrap_or(NO_TOKEN),
                    };
                    ids.push(match (id, unknown) {
                        (NO_TOKEN, Some(unknown)) => *unknown,
                        (NO_TOKEN, None) => return Err(character),
                        (id, _) => id,
                    });
                }
            }
        }
        Ok(())
    }
}

/// The file with the names of the special tokens of a tokenizer's file.
fn special_tokens_of(name: &str) -> String {
    name.replace("tokenizer", "special_tokens")
}

/// `special_tokens_map.json` over `tokenizer_config.json`.
#[derive(Debug, Default)]
pub(super) struct Settings {
    files: Vec<Value>,
}

impl Settings {
    fn beside(folder: &Path) -> Result<Self> {
        let mut read = Vec::new();
        for name in ["special_tokens_map.json", "tokenizer_config.json"] {
            let path: PathBuf = folder.join(name);
            if path.is_file() {
                read.push(crate::recipe::parse(&files::read_text(&path)?, &path.display().to_string())?);
            }
        }
        Ok(Self { files: read })
    }

    /// A token: its text, or an object with its `content`.
    fn text(&self, key: &str) -> Option<String> {
        self.files.iter().find_map(|file| {
            let value = &file[key];
            value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned)
        })
    }

    /// Tokens of T5 that its SentencePiece model does not hold.
    fn sentinels(&self, folder: &Path) -> Result<usize> {
        let path = folder.join("config.json");
        if !path.is_file() {
            return Ok(0);
        }
        let model = crate::recipe::parse(&files::read_text(&path)?, &path.display().to_string())?;
        let told = self.files.iter().find_map(|file| file["extra_ids"].as_u64());
        Ok(if model["model_type"] == "t5" { told.unwrap_or(USUAL_SENTINELS) as usize } else { 0 })
    }

    fn flag(&self, key: &str) -> Option<bool> {
        self.files.iter().find_map(|file| file[key].as_bool())
    }
}

/// How many tokens `<extra_id_…>` T5 has where its files do not say.
const USUAL_SENTINELS: u64 = 100;

struct Piece {
    text: String,
    /// Of its first character.
    line: u64,
}

/// Cuts a stream into pieces that can be encoded each on its own.
struct Pieces<'a, R> {
    reader: BufReader<R>,
    name: &'a str,
    line: u64,
    /// The line behind the last piece, already read.
    ahead: Vec<u8>,
}

impl<'a, R: Read> Pieces<'a, R> {
    fn new(reader: R, name: &'a str) -> Self {
        Self { reader: BufReader::with_capacity(PIECE, reader), name, line: 1, ahead: Vec::new() }
    }

    fn next_piece(&mut self) -> Result<Option<Piece>> {
        let mut bytes = std::mem::take(&mut self.ahead);
        loop {
            let end = bytes.len();
            let read = self.reader.read_until(b'\n', &mut bytes).map_err(|error| match error.kind() {
                std::io::ErrorKind::InvalidData
                | std::io::ErrorKind::InvalidInput
                | std::io::ErrorKind::UnexpectedEof => {
                    bad_input!("{} is a damaged gzip file: {error}", self.name)
                }
                _ => anyhow!("cannot read {}: {error}", self.name),
            })?;
            let begins_with_a_letter = bytes.get(end).is_some_and(|byte| !byte.is_ascii_whitespace());
            let ends_a_line_of_letters =
                end >= 2 && bytes[end - 1] == b'\n' && !bytes[end - 2].is_ascii_whitespace();
            if read > 0 && !(end >= PIECE && begins_with_a_letter && ends_a_line_of_letters) {
                continue;
            }
            self.ahead = bytes.split_off(end);
            if bytes.is_empty() {
                return Ok(None);
            }
            let line = self.line;
            self.line += memchr::memchr_iter(b'\n', &bytes).count() as u64;
            let text = String::from_utf8(bytes).map_err(|error| {
                let at = error.utf8_error().valid_up_to();
                let lines = memchr::memchr_iter(b'\n', &error.as_bytes()[..at]).count() as u64;
                bad_input!(
                    "{}, line {}: byte 0x{:02x} is not UTF-8: save the file as UTF-8",
                    self.name,
                    line + lines,
                    error.as_bytes()[at]
                )
            })?;
            return Ok(Some(Piece { text, line }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::training::{TokenizerConfig, TokenizerKind};
    use super::*;

    fn trained(kind: TokenizerKind, texts: &[&str]) -> Result<TextTokenizer> {
        let config = TokenizerConfig { kind, vocab_size: 300, ..Default::default() };
        TextTokenizer::train(&config, texts.iter().copied())
    }

    const TEXTS: [&str; 3] =
        ["the cat sat on the mat\n", "Über der Straße, naïve 🙂 cats\n", "\n\nthe end\n"];

    #[test]
    fn direct_forms_are_what_the_crate_makes_of_them() -> Result<()> {
        for kind in [TokenizerKind::Characters, TokenizerKind::Bytes] {
            let tokenizer = trained(kind, &TEXTS)?;
            assert!(tokenizer.direct.is_some());
            for text in TEXTS {
                let by_crate: Vec<i64> = tokenizer
                    .inner
                    .encode(text, false)
                    .map_err(in_our_words)?
                    .get_ids()
                    .iter()
                    .map(|&id| i64::from(id))
                    .collect();
                let ids = tokenizer.encode(text)?;
                assert_eq!(ids, by_crate, "{kind:?}");
                assert_eq!(tokenizer.decode(&ids, false)?, text);
                let bytes: Vec<u8> = ids
                    .iter()
                    .flat_map(|&id| tokenizer.token_bytes(id).unwrap_or_default().to_vec())
                    .collect();
                assert_eq!(bytes, text.as_bytes());
            }
        }
        let characters = trained(TokenizerKind::Characters, &["ba\nab"])?;
        assert_eq!(characters.vocabulary(), ["\n", "a", "b"], "sorted, nothing added");
        assert_eq!(trained(TokenizerKind::Bytes, &[])?.encode("é")?, [0xc3, 0xa9], "numbered by the byte");
        Ok(())
    }

    #[test]
    fn every_kind_survives_its_own_file() -> Result<()> {
        for kind in [
            TokenizerKind::Characters,
            TokenizerKind::Bytes,
            TokenizerKind::Words,
            TokenizerKind::WordPiece,
            TokenizerKind::Bpe,
            TokenizerKind::Unigram,
        ] {
            let tokenizer = trained(kind, &TEXTS)?;
            let again = TextTokenizer::of_json(&tokenizer.to_json()?)?;
            assert_eq!(again.special(), tokenizer.special(), "{kind:?}");
            assert_eq!(again.vocabulary(), tokenizer.vocabulary(), "{kind:?}");
            let ids = tokenizer.encode("the cats sat")?;
            assert!(!ids.is_empty());
            assert_eq!(again.encode("the cats sat")?, ids, "{kind:?}");
            assert_eq!(again.kind(), tokenizer.kind());
        }
        Ok(())
    }

    #[test]
    fn what_cannot_be_encoded_is_named_with_its_place() -> Result<()> {
        let tokenizer = trained(TokenizerKind::Characters, &["abc\n"])?;
        let error = tokenizer.encode("ab\u{1F642}").unwrap_err();
        assert!(error.to_string().contains("`\u{1F642}` is not in the vocabulary"), "{error}");
        assert!(error.chain().any(|cause| cause.is::<BadInput>()), "it is the input's fault");
        let error = tokenizer.encode_stream(&b"abc\nab\tc\n"[..], "f.txt").unwrap_err();
        assert!(error.to_string().starts_with("f.txt, line 2: the character U+0009"), "{error}");
        let error = tokenizer.encode_stream(&b"abc\na\xffb\n"[..], "f.txt").unwrap_err();
        assert!(error.to_string().contains("f.txt, line 2: byte 0xff is not UTF-8"), "{error}");
        Ok(())
    }

    #[test]
    fn a_stream_in_pieces_is_the_whole_text() -> Result<()> {
        let mut text = String::new();
        while text.len() < 5 * PIECE {
            text.push_str("the cat sat on the mat, don't\n\n\n  the cats 123\r\nsat\n");
        }
        for kind in [TokenizerKind::Characters, TokenizerKind::Bytes, TokenizerKind::Bpe] {
            let tokenizer = trained(kind, &[&text])?;
            let whole = tokenizer.encode(&text)?;
            let pieces = tokenizer.encode_stream(text.as_bytes(), "t")?;
            assert_eq!(pieces.len(), whole.len());
            assert_eq!(pieces.ids(0..whole.len()), whole, "{kind:?}");
        }
        let words = trained(TokenizerKind::Words, &["a b\n"])?;
        let end = words.line_end().unwrap_or(-1);
        let ids = words.encode_stream(&b"a b\n\nb"[..], "t")?.ids(0..5);
        let (a, b) = (words.id("a").unwrap_or(-1), words.id("b").unwrap_or(-1));
        assert_eq!(ids, [a, b, end, end, b]);
        assert_eq!(words.decode(&ids, true)?, "a b\n\nb");
        Ok(())
    }

    #[test]
    fn pairs_are_cut_and_parted() -> Result<()> {
        let tokenizer = trained(TokenizerKind::WordPiece, &TEXTS)?;
        let options = EncodeOptions { special_tokens: true, max_length: Some(8) };
        let inputs =
            [TextInput::single("the cat"), TextInput::pair("the cat", "the the the the the the the")];
        let encoded = tokenizer.encode_all(&inputs, options)?;
        let special = tokenizer.special();
        let ids = encoded.ids(1);
        assert_eq!(
            (ids.len(), ids.first().copied(), ids.last().copied()),
            (8, special.class, special.separator)
        );
        assert_eq!(encoded.second_from(0), encoded.length(0));
        let first_separator = ids.iter().position(|&id| Some(id) == special.separator).unwrap_or(0);
        assert_eq!(encoded.second_from(1), first_separator + 1);
        Ok(())
    }
}
