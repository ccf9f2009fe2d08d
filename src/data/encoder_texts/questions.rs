//! Questions with the contexts that hold their answers: SQuAD 1.1 and 2.0.
//!
//! A context longer than a sequence becomes several windows that overlap, each with the question before it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, anyhow};
use serde::Deserialize;
use tch::{Device, Tensor};
use tokenizers::{EncodeInput, TruncationDirection, TruncationParams, TruncationStrategy};

use super::TokenBatch;
use super::classified::buckets;
use crate::data::fingerprint::Fingerprint;
use crate::data::order::Sampler;
use crate::data::text::{EncodeOptions, TextInput, TextTokenizer};
use crate::data::{Batch, Batching, Dataset, Draw};
use crate::{bad_input, bail_input, files, recipe};

/// An answer that people gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Its text.
    pub text: String,
    /// Where it begins in the context, in bytes.
    pub start: usize,
}

/// A question of a file.
#[derive(Clone, Debug)]
pub struct Question {
    /// Its name.
    pub id: String,
    /// The question.
    pub question: String,
    /// The text that may hold the answer.
    pub context: Arc<str>,
    /// What people answered; nothing where the context holds no answer.
    pub answers: Vec<Answer>,
}

#[derive(Deserialize)]
struct SquadFile {
    data: Vec<SquadArticle>,
}

#[derive(Deserialize)]
struct SquadArticle {
    paragraphs: Vec<SquadParagraph>,
}

#[derive(Deserialize)]
struct SquadParagraph {
    context: String,
    qas: Vec<SquadQuestion>,
}

#[derive(Deserialize)]
struct SquadQuestion {
    id: serde_json::Value,
    question: String,
    #[serde(default)]
    answers: Vec<SquadAnswer>,
    #[serde(default)]
    is_impossible: bool,
}

#[derive(Deserialize)]
struct SquadAnswer {
    text: String,
    answer_start: usize,
}

/// Reads a file in SQuAD's form.
///
/// # Errors
/// It is no such file, or an answer is not where it says it is.
pub fn read_squad(path: &Path) -> Result<Vec<Question>> {
    let name = path.display().to_string();
    let file: SquadFile = recipe::typed(recipe::parse(&files::read_text(path)?, &name)?, &name)?;
    let mut questions = Vec::new();
    for paragraph in file.data.into_iter().flat_map(|article| article.paragraphs) {
        let context: Arc<str> = paragraph.context.into();
        // Places are counted in characters there and in bytes here.
        let bytes: Vec<usize> = context.char_indices().map(|(byte, _)| byte).chain([context.len()]).collect();
        for SquadQuestion { id, question, answers, is_impossible } in paragraph.qas {
            let id = id.as_str().map_or_else(|| id.to_string(), str::to_owned);
            let answers = answers.into_iter().filter(|_| !is_impossible).map(|answer| {
                let start = bytes.get(answer.answer_start).copied();
                match start.filter(|&start| context[start..].starts_with(&answer.text)) {
                    Some(start) => Ok(Answer { text: answer.text, start }),
                    None => Err(bad_input!(
                        "{name}: the answer `{}` of question {id} does not begin at character {} of its context",
                        answer.text,
                        answer.answer_start
                    )),
                }
            });
            let answers = answers.collect::<Result<_>>()?;
            questions.push(Question { id, question, context: context.clone(), answers });
        }
    }
    if questions.is_empty() {
        bail_input!("{name} holds no question");
    }
    Ok(questions)
}

/// A window over a context with its question before it.
#[derive(Clone, Debug)]
pub struct Passage {
    /// The number of its question.
    pub question: usize,
    /// The tokens.
    pub ids: Vec<i64>,
    /// Where the second segment begins; the length where there is none.
    pub second: usize,
    /// The place of each token in the context, in bytes; nothing for tokens that are not of the context.
    pub bytes: Vec<Option<Range<u32>>>,
    /// The first and last token of the answer; the first token twice where the window does not hold it.
    pub answer: (i64, i64),
}

/// Cuts the contexts of questions into windows.
///
/// # Errors
/// A question that leaves no room for its context, or a text that the tokenizer cannot encode.
pub fn passages(
    tokenizer: &TextTokenizer,
    questions: &[Question],
    max_length: i64,
    stride: i64,
) -> Result<Vec<Passage>> {
    let asked: Vec<TextInput<'_>> =
        questions.iter().map(|question| TextInput::single(question.question.trim_start())).collect();
    let lengths = tokenizer.encode_all(&asked, EncodeOptions::default())?.lengths();
    let mut by_stride: BTreeMap<i64, Vec<usize>> = BTreeMap::new();
    for (number, (question, &length)) in questions.iter().zip(lengths.iter()).enumerate() {
        // Special tokens, and room for the window to move on.
        let room = max_length - i64::from(length) - 4;
        if room < 1 {
            bail_input!(
                "question {} has {length} tokens, which leaves no room for its context in {max_length}: raise data.max_length",
                question.id
            );
        }
        // Nearly always the one that was asked for.
        by_stride.entry(stride.min(room - 1)).or_default().push(number);
    }
    let mut windows: Vec<Vec<Passage>> = vec![Vec::new(); questions.len()];
    for (stride, numbers) in by_stride {
        let mut inner = tokenizer.inner().clone();
        let truncation = TruncationParams {
            max_length: usize::try_from(max_length).unwrap_or(0),
            strategy: TruncationStrategy::OnlySecond,
            stride: usize::try_from(stride).unwrap_or(0),
            direction: TruncationDirection::Right,
        };
        inner.with_truncation(Some(truncation)).map_err(|error| anyhow!("cutting contexts: {error}"))?;
        for block in numbers.chunks(QUESTIONS_AT_A_TIME) {
            let inputs: Vec<EncodeInput<'_>> = block
                .iter()
                .map(|&number| {
                    EncodeInput::Dual(asked[number].first.into(), (&*questions[number].context).into())
                })
                .collect();
            let encodings = inner.encode_batch(inputs, true).map_err(|error| {
                bad_input!(
                    "question {} or one behind it: the tokenizer cannot encode it: {error}",
                    questions[block[0]].id
                )
            })?;
            for (&number, first) in block.iter().zip(&encodings) {
                let all = std::iter::once(first).chain(first.get_overflowing());
                windows[number] = all.map(|window| passage(number, &questions[number], window)).collect();
            }
        }
    }
    Ok(windows.into_iter().flatten().collect())
}

/// Questions that are encoded at a time, on all cores.
const QUESTIONS_AT_A_TIME: usize = 1024;

fn passage(number: usize, question: &Question, window: &tokenizers::Encoding) -> Passage {
    let sequences = window.get_sequence_ids();
    let bytes: Vec<Option<Range<u32>>> = window
        .get_offsets()
        .iter()
        .zip(&sequences)
        .map(|(&(start, end), sequence)| (*sequence == Some(1)).then_some(start as u32..end as u32))
        .collect();
    let types = window.get_type_ids();
    let answer = question.answers.first().and_then(|answer| {
        let (start, end) = (answer.start as u32, (answer.start + answer.text.len()) as u32);
        let first = bytes
            .iter()
            .position(|place| place.as_ref().is_some_and(|place| place.start <= start && start < place.end));
        let last = bytes
            .iter()
            .rposition(|place| place.as_ref().is_some_and(|place| place.start < end && end <= place.end));
        first.zip(last).filter(|(first, last)| first <= last)
    });
    Passage {
        question: number,
        ids: window.get_ids().iter().map(|&id| i64::from(id)).collect(),
        second: types.iter().position(|&kind| kind == 1).unwrap_or(types.len()),
        bytes,
        answer: answer.map_or((0, 0), |(first, last)| (first as i64, last as i64)),
    }
}

/// Questions with their windows.
#[derive(Debug)]
pub struct Questions {
    shared: Arc<QuestionSet>,
    lengths: Arc<[u32]>,
    padding: i64,
    buckets: bool,
}

/// What a batch carries along for whoever judges its answers.
#[derive(Debug)]
pub struct QuestionSet {
    /// The questions.
    pub questions: Vec<Question>,
    /// The windows, one after the other for each question.
    pub passages: Vec<Passage>,
}

impl Questions {
    /// Puts questions and windows together.
    pub fn new(questions: Vec<Question>, passages: Vec<Passage>, padding: i64, buckets: bool) -> Self {
        let lengths = passages.iter().map(|passage| passage.ids.len() as u32).collect();
        Self { shared: Arc::new(QuestionSet { questions, passages }), lengths, padding, buckets }
    }

    /// Questions and windows.
    pub fn set(&self) -> &Arc<QuestionSet> {
        &self.shared
    }
}

/// Windows with the places of their answers.
#[derive(Debug)]
pub struct QuestionBatch {
    /// The windows.
    pub tokens: TokenBatch,
    /// First token of each answer, `[batch]` int64; 0 where the window does not hold it.
    pub starts: Tensor,
    /// Last token likewise.
    pub ends: Tensor,
    /// Questions and windows of the data set.
    pub set: Arc<QuestionSet>,
}

impl Batch for QuestionBatch {
    fn to_device(self, device: Device) -> Result<Self> {
        Ok(Self {
            tokens: self.tokens.to_device(device)?,
            starts: self.starts.f_to_device(device)?,
            ends: self.ends.f_to_device(device)?,
            ..self
        })
    }
}

impl Dataset for Questions {
    type Batch = QuestionBatch;

    fn len(&self) -> usize {
        self.shared.passages.len()
    }

    fn batch(&self, samples: &[usize], _draw: Draw) -> Result<QuestionBatch> {
        let passages: Vec<&Passage> = samples.iter().map(|&sample| &self.shared.passages[sample]).collect();
        let sequences: Vec<(Vec<i64>, usize)> =
            passages.iter().map(|passage| (passage.ids.clone(), passage.second)).collect();
        let answers = |side: fn(&(i64, i64)) -> i64| {
            Tensor::f_from_slice(&passages.iter().map(|passage| side(&passage.answer)).collect::<Vec<_>>())
        };
        Ok(QuestionBatch {
            tokens: TokenBatch::of(&sequences, self.padding)?,
            starts: answers(|(start, _)| *start)?,
            ends: answers(|(_, end)| *end)?,
            set: self.shared.clone(),
        })
    }

    fn sampler(&self, wanted: Batching) -> Result<Option<Arc<dyn Sampler>>> {
        Ok(buckets(&self.lengths, self.buckets, wanted))
    }

    fn describe(&self, sample: usize) -> String {
        format!("question {}", self.shared.questions[self.shared.passages[sample].question].id)
    }

    fn fingerprint(&self) -> Result<Fingerprint> {
        let mut print = Fingerprint::new(self.len());
        for passage in &self.shared.passages {
            print.add(&passage.ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>());
            print.add(&passage.answer.0.to_le_bytes());
            print.add(&passage.answer.1.to_le_bytes());
        }
        Ok(print)
    }
}
