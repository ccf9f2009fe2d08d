//! Sentences of words with a tag each: CoNLL's columns, or JSON lines.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, anyhow};
use serde_json::Value;
use tch::{Device, Tensor};
use tokenizers::{EncodeInput, InputSequence, TruncationParams};

use super::TokenBatch;
use super::classified::{add_texts, buckets};
use crate::data::fingerprint::Fingerprint;
use crate::data::order::Sampler;
use crate::data::table::open_bytes;
use crate::data::text::{EncodedTexts, TextTokenizer};
use crate::data::{Batch, Batching, Dataset, Draw};
use crate::{bad_input, bail_input, files};

/// What a token has in place of a tag that counts: special tokens, and those behind the first of a word.
pub const NO_TAG: i64 = -100;

/// A sentence of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct TaggedSentence {
    /// Its words.
    pub words: Vec<String>,
    /// The tag of each: `O`, `B-PER`, …
    pub tags: Vec<String>,
    /// The line of its first word, from 1.
    pub line: u64,
}

/// Reads sentences: words with their tags in the first and the last of columns between spaces or tabs and an empty line behind each sentence, or,
/// in a `.jsonl` file, `{"tokens": […], "tags": […]}` on each line (`ner_tags` too).
///
/// # Errors
/// The file is missing, empty, no UTF-8, or a line is malformed, which is named.
pub fn read_tagged(path: &Path) -> Result<Vec<TaggedSentence>> {
    let name = path.display().to_string();
    let reader =
        BufReader::new(open_bytes(path).map_err(|error| match error.downcast::<std::io::Error>() {
            Ok(error) => files::cannot_read(path, &error),
            Err(error) => error,
        })?);
    let is_json = name.trim_end_matches(".gz").ends_with("jsonl");
    let mut sentences = Vec::new();
    let mut current = TaggedSentence { words: Vec::new(), tags: Vec::new(), line: 1 };
    for (number, line) in reader.split(b'\n').enumerate() {
        let number = number as u64 + 1;
        let line = line.map_err(|error| bad_input!("{name}, line {number}: {error}"))?;
        let Ok(line) = std::str::from_utf8(&line) else {
            bail_input!("{name}, line {number}: this is not UTF-8: save the file as UTF-8");
        };
        let line = line.trim_end_matches('\r');
        if is_json {
            if !line.trim().is_empty() {
                sentences.push(of_json(line, number, &name)?);
            }
            continue;
        }
        let fields: Vec<&str> = line.split_whitespace().collect();
        match &fields[..] {
            [] => {
                if !current.words.is_empty() {
                    let next = TaggedSentence { words: Vec::new(), tags: Vec::new(), line: number + 1 };
                    sentences.push(std::mem::replace(&mut current, next));
                }
                current.line = number + 1;
            }
            ["-DOCSTART-", ..] => {}
            [word, .., tag] => {
                current.words.push((*word).to_owned());
                current.tags.push((*tag).to_owned());
            }
            [_] => bail_input!("{name}, line {number}: `{line}` has no tag behind the word"),
        }
    }
    sentences.extend((!current.words.is_empty()).then_some(current));
    if sentences.is_empty() {
        bail_input!("{name} holds no sentence");
    }
    Ok(sentences)
}

fn of_json(line: &str, number: u64, name: &str) -> Result<TaggedSentence> {
    let value: Value = serde_json::from_str(line)
        .map_err(|error| bad_input!("{name}, line {number}: this is no JSON: {error}"))?;
    let texts = |keys: &[&str]| -> Option<Vec<String>> {
        let list = keys.iter().find_map(|key| value.get(key))?.as_array()?;
        list.iter()
            .map(|one| {
                one.as_str().map(str::to_owned).or_else(|| one.as_i64().map(|number| number.to_string()))
            })
            .collect()
    };
    match (texts(&["tokens", "words"]), texts(&["tags", "ner_tags", "labels"])) {
        (Some(words), Some(tags)) if words.len() == tags.len() && !words.is_empty() => {
            Ok(TaggedSentence { words, tags, line: number })
        }
        (Some(words), Some(tags)) => {
            bail_input!("{name}, line {number}: {} words have {} tags", words.len(), tags.len())
        }
        _ => bail_input!("{name}, line {number}: this is no {{\"tokens\": […], \"tags\": […]}}"),
    }
}

/// Encoded sentences with the number of a tag for the first token of each word.
#[derive(Debug)]
pub struct TaggedWords {
    texts: EncodedTexts,
    lengths: Arc<[u32]>,
    tags: Vec<Vec<i64>>,
    padding: i64,
    buckets: bool,
    places: Vec<String>,
    /// Words beyond the longest sequence.
    pub cut_words: usize,
}

/// The tokens of a sentence in words: ids, and for each token the number of the word that it begins.
pub struct EncodedWords {
    /// The tokens.
    pub ids: Vec<u32>,
    /// The word whose first token it is.
    pub begins: Vec<Option<usize>>,
}

/// Encodes sentences in words, at most `max_length` tokens long.
pub fn encode_words(
    tokenizer: &TextTokenizer,
    sentences: &[&[String]],
    max_length: i64,
) -> Result<Vec<EncodedWords>> {
    let mut inner = tokenizer.inner().clone();
    let truncation = TruncationParams {
        max_length: usize::try_from(max_length).unwrap_or(0),
        ..TruncationParams::default()
    };
    inner.with_truncation(Some(truncation)).map_err(|error| anyhow!("cutting texts: {error}"))?;
    // Byte-level BPE tells the beginning of a word by the space before it.
    let spaced = tokenizer.kind() == "BPE";
    let inputs: Vec<EncodeInput<'_>> = sentences
        .iter()
        .map(|words| {
            let word = |(number, word): (usize, &String)| match spaced && number > 0 {
                true => format!(" {word}"),
                false => word.clone(),
            };
            EncodeInput::Single(InputSequence::from(
                words.iter().enumerate().map(word).collect::<Vec<String>>(),
            ))
        })
        .collect();
    let encodings = inner
        .encode_batch(inputs, true)
        .map_err(|error| bad_input!("the tokenizer cannot encode the words: {error}"))?;
    let begins = |encoding: tokenizers::Encoding| {
        let mut last = None;
        let begins = encoding.get_word_ids().iter().map(|word| {
            let word = word.map(|word| word as usize);
            let begins = word.filter(|_| word != last);
            last = word;
            begins
        });
        EncodedWords { begins: begins.collect(), ids: encoding.get_ids().to_vec() }
    };
    Ok(encodings.into_iter().map(begins).collect())
}

impl TaggedWords {
    /// Encodes sentences; `number` gives a tag its number, or an error.
    pub fn new(
        tokenizer: &TextTokenizer,
        sentences: &[TaggedSentence],
        name: &str,
        max_length: i64,
        padding: i64,
        buckets: bool,
        number: impl Fn(&str) -> Result<i64>,
    ) -> Result<Self> {
        let words: Vec<&[String]> = sentences.iter().map(|sentence| sentence.words.as_slice()).collect();
        let mut texts = EncodedTexts::new(tokenizer.vocabulary_size());
        let (mut tags, mut cut_words) = (Vec::new(), 0);
        for (sentence, encoded) in sentences.iter().zip(encode_words(tokenizer, &words, max_length)?) {
            let numbers = sentence
                .tags
                .iter()
                .map(|tag| number(tag).map_err(|error| bad_input!("{name}, line {}: {error}", sentence.line)))
                .collect::<Result<Vec<i64>>>()?;
            cut_words += sentence.words.len() - encoded.begins.iter().flatten().count();
            tags.push(encoded.begins.iter().map(|word| word.map_or(NO_TAG, |word| numbers[word])).collect());
            texts.push(&encoded.ids, encoded.ids.len());
        }
        let places = sentences.iter().map(|sentence| format!("{name}, line {}", sentence.line)).collect();
        Ok(Self { lengths: texts.lengths(), texts, tags, padding, buckets, places, cut_words })
    }
}

/// Sentences with tags.
#[derive(Debug)]
pub struct TaggedBatch {
    /// The sentences.
    pub tokens: TokenBatch,
    /// Tags, −100 where none counts, `[batch, longest]` int64.
    pub tags: Tensor,
    /// How many tags count.
    pub counted: usize,
}

impl Batch for TaggedBatch {
    fn to_device(self, device: Device) -> Result<Self> {
        Ok(Self { tokens: self.tokens.to_device(device)?, tags: self.tags.f_to_device(device)?, ..self })
    }
}

impl Dataset for TaggedWords {
    type Batch = TaggedBatch;

    fn len(&self) -> usize {
        self.texts.len()
    }

    fn batch(&self, samples: &[usize], _draw: Draw) -> Result<TaggedBatch> {
        let sequences: Vec<(Vec<i64>, usize)> =
            samples.iter().map(|&sample| (self.texts.ids(sample), self.texts.length(sample))).collect();
        let tags: Vec<Vec<i64>> = samples.iter().map(|&sample| self.tags[sample].clone()).collect();
        let counted = tags.iter().flatten().filter(|&&tag| tag != NO_TAG).count();
        Ok(TaggedBatch {
            tokens: TokenBatch::of(&sequences, self.padding)?,
            tags: crate::data::text::pad(&tags, NO_TAG)?.ids,
            counted,
        })
    }

    fn sampler(&self, wanted: Batching) -> Result<Option<Arc<dyn Sampler>>> {
        Ok(buckets(&self.lengths, self.buckets, wanted))
    }

    fn describe(&self, sample: usize) -> String {
        self.places[sample].clone()
    }

    fn fingerprint(&self) -> Result<Fingerprint> {
        let mut print = Fingerprint::new(self.len());
        add_texts(&mut print, &self.texts);
        for tags in &self.tags {
            print.add(&tags.iter().flat_map(|tag| tag.to_le_bytes()).collect::<Vec<u8>>());
        }
        Ok(print)
    }
}
