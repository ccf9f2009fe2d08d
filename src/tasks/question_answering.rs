//! Answers as spans of a context, judged as SQuAD's official script (version 2.0) does.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context, Result};
use serde_json::json;
use tch::{Reduction, Tensor};

use super::{Evaluation, Evaluator, Mode, Outcome, StepOutput, Task, wide};
use crate::data::encoder_texts::{Passage, QuestionBatch, QuestionSet};
use crate::distributed::Reducer;
use crate::models::Parameters;
use crate::models::encoders::EncoderModel;

/// What an evaluation yields: shares of questions.
pub const METRICS: &[&str] =
    &["loss", "f1", "exact_match", "answerable_f1", "answerable_exact_match", "unanswerable_exact_match"];

/// How spans are chosen.
#[derive(Clone, Copy, Debug)]
pub struct SpanRule {
    /// Most tokens of an answer.
    pub max_answer_length: i64,
    /// Whether a question may have no answer.
    pub may_be_unanswerable: bool,
    /// No answer is given if that scores better than the best one by more than this.
    pub null_threshold: f64,
}

/// Beginnings and ends that are looked at in each window, the best ones: as in transformers' examples.
const CANDIDATES: usize = 20;

/// An encoder that scores each token as the beginning and as the end of an answer.
pub struct QuestionAnswering {
    parameters: Parameters,
    model: EncoderModel,
    rule: SpanRule,
    /// The questions of the data that were looked at last, for the evaluator: the data set itself is not at hand there.
    judged: Rc<RefCell<Option<Arc<QuestionSet>>>>,
}

impl QuestionAnswering {
    /// Puts the parts together.
    pub fn new(parameters: Parameters, model: EncoderModel, rule: SpanRule) -> Self {
        Self { parameters, model, rule, judged: Rc::default() }
    }

    /// The network.
    pub fn model(&self) -> &EncoderModel {
        &self.model
    }

    /// How spans are chosen.
    pub fn rule(&self) -> SpanRule {
        self.rule
    }
}

impl Task for QuestionAnswering {
    type Batch = QuestionBatch;

    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn head_name(&self) -> Option<&str> {
        self.model.head_name()
    }

    fn metrics(&self) -> &'static [&'static str] {
        METRICS
    }

    fn weight(&self, batch: &QuestionBatch, _mode: Mode) -> Result<f64> {
        Ok(batch.starts.size()[0] as f64)
    }

    fn step(&mut self, batch: &QuestionBatch, mode: Mode) -> Result<StepOutput> {
        let train = mode == Mode::Train;
        let scores = wide(&self.model.forward(&batch.tokens.inputs(), train))?; // [batch, longest, 2]
        let side = |number: i64, targets: &Tensor| {
            let scores = scores.f_select(-1, number)?;
            scores.f_cross_entropy_loss(targets, None::<&Tensor>, Reduction::Sum, -100, 0.0)
        };
        let loss_sum = side(0, &batch.starts)?.f_add(&side(1, &batch.ends)?)?.f_div_scalar(2.0)?;
        let outcome = (mode == Mode::Evaluate).then(|| {
            *self.judged.borrow_mut() = Some(batch.set.clone());
            Outcome { prediction: scores.detach(), target: batch.starts.shallow_clone() }
        });
        Ok(StepOutput { loss_sum, sums: Vec::new(), outcome })
    }

    fn evaluator(&self) -> Option<Box<dyn Evaluator>> {
        Some(Box::new(AnswerEvaluator {
            rule: self.rule,
            judged: self.judged.clone(),
            spans: BTreeMap::new(),
        }))
    }
}

/// The best span of a window.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// First byte in the context and the byte behind the last.
    pub bytes: (usize, usize),
    /// Score of the beginning plus that of the end.
    pub score: f64,
    /// The score of there being no answer.
    pub null_score: f64,
}

/// The best span of a window from the scores of its tokens, `[(beginning, end)]`. A window without a possible span gives an empty one.
pub fn best_span(passage: &Passage, scores: &[(f32, f32)], max_answer_length: i64) -> Span {
    let best = |side: fn(&(f32, f32)) -> f32| {
        let mut order: Vec<usize> = (0..passage.bytes.len()).collect();
        // The later of equal ones first, as from argsort read backwards.
        order.sort_by(|&one, &other| {
            side(&scores[other]).total_cmp(&side(&scores[one])).then(other.cmp(&one))
        });
        order.truncate(CANDIDATES);
        order
    };
    let null_score = f64::from(scores[0].0) + f64::from(scores[0].1);
    let mut chosen = Span { bytes: (0, 0), score: f64::NEG_INFINITY, null_score };
    let ends = best(|(_, end)| *end);
    for start in best(|(start, _)| *start) {
        for &end in &ends {
            let (Some(first), Some(last)) = (&passage.bytes[start], &passage.bytes[end]) else { continue };
            if end < start || (end - start + 1) as i64 > max_answer_length {
                continue;
            }
            let score = f64::from(scores[start].0) + f64::from(scores[end].1);
            if score > chosen.score {
                chosen = Span { bytes: (first.start as usize, last.end as usize), score, null_score };
            }
        }
    }
    chosen
}

/// The answer to a question from the best spans of its windows, with its score; nothing where no answer scores better.
pub fn answer_of<'a>(spans: &[Span], context: &'a str, rule: SpanRule) -> (&'a str, f64) {
    let best = spans.iter().max_by(|a, b| a.score.total_cmp(&b.score));
    let null = spans.iter().map(|span| span.null_score).fold(f64::INFINITY, f64::min);
    match best {
        Some(best)
            if !(rule.may_be_unanswerable && null - best.score > rule.null_threshold)
                && best.score.is_finite() =>
        {
            (context.get(best.bytes.0..best.bytes.1).unwrap_or_default(), best.score)
        }
        _ => ("", null),
    }
}

/// Collects the best span of each window.
struct AnswerEvaluator {
    rule: SpanRule,
    judged: Rc<RefCell<Option<Arc<QuestionSet>>>>,
    spans: BTreeMap<usize, Span>,
}

impl Evaluator for AnswerEvaluator {
    /// `prediction` is `[batch, longest, 2]` scores of beginning and end.
    fn add(&mut self, samples: &[usize], outcome: &Outcome) -> Result<()> {
        let judged = self.judged.borrow();
        let set = judged.as_ref().context("answers without questions")?;
        let (_, longest, _) = outcome.prediction.size3()?;
        let flat = Vec::<f32>::try_from(outcome.prediction.f_flatten(0, -1)?)?;
        for (row, &sample) in samples.iter().enumerate() {
            let row = &flat[row * longest as usize * 2..(row + 1) * longest as usize * 2];
            let scores: Vec<(f32, f32)> = row.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
            let span = best_span(&set.passages[sample], &scores, self.rule.max_answer_length);
            self.spans.insert(sample, span);
        }
        Ok(())
    }

    fn gather(&mut self, reducer: &mut dyn Reducer) -> Result<()> {
        if reducer.world_size() == 1 {
            return Ok(());
        }
        let rows = self.spans.iter().flat_map(|(&sample, span)| {
            [sample as f64, span.bytes.0 as f64, span.bytes.1 as f64, span.score, span.null_score]
        });
        for row in reducer.gather(rows.collect())?.chunks_exact(5) {
            let bytes = (row[1] as usize, row[2] as usize);
            self.spans.insert(row[0] as usize, Span { bytes, score: row[3], null_score: row[4] });
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Evaluation> {
        let judged = self.judged.borrow();
        let set = judged.as_ref().context("answers without questions")?;
        let mut spans: Vec<Vec<Span>> = vec![Vec::new(); set.questions.len()];
        for (passage, span) in &self.spans {
            spans[set.passages[*passage].question].push(span.clone());
        }
        let mut sums = [[0.0; 3]; 2];
        let mut predictions = serde_json::Map::new();
        for (question, spans) in set.questions.iter().zip(&spans) {
            let (answer, _) = answer_of(spans, &question.context, self.rule);
            let given: Vec<&str> = question.answers.iter().map(|answer| answer.text.as_str()).collect();
            let (exact, f1) = judge_answer(answer, &given);
            let kind = &mut sums[usize::from(given.is_empty())];
            *kind = [kind[0] + 1.0, kind[1] + exact, kind[2] + f1];
            predictions.insert(question.id.clone(), json!(answer));
        }
        let [answerable, unanswerable] = sums;
        let count = answerable[0] + unanswerable[0];
        let mut metrics = BTreeMap::from([
            ("exact_match".to_owned(), (answerable[1] + unanswerable[1]) / count),
            ("f1".to_owned(), (answerable[2] + unanswerable[2]) / count),
        ]);
        if answerable[0] > 0.0 && unanswerable[0] > 0.0 {
            metrics.insert("answerable_exact_match".to_owned(), answerable[1] / answerable[0]);
            metrics.insert("answerable_f1".to_owned(), answerable[2] / answerable[0]);
            metrics.insert("unanswerable_exact_match".to_owned(), unanswerable[1] / unanswerable[0]);
        }
        Ok(Evaluation { metrics, details: json!({ "predictions": predictions }) })
    }
}

/// Lower case, without punctuation, articles and superfluous space: `normalize_answer` of the official script.
pub fn normalise_answer(text: &str) -> String {
    const PUNCTUATION: &str = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~";
    let lower = text.to_lowercase();
    let plain: String = lower.chars().filter(|letter| !PUNCTUATION.contains(*letter)).collect();
    // Articles are words as regular expressions see them: letters, digits and underscores with something else around.
    let mut words = String::new();
    let mut word = String::new();
    let close = |word: &mut String, words: &mut String| {
        words.push_str(if matches!(word.as_str(), "a" | "an" | "the") { " " } else { word.as_str() });
        word.clear();
    };
    for letter in plain.chars() {
        if letter.is_alphanumeric() || letter == '_' {
            word.push(letter);
        } else {
            close(&mut word, &mut words);
            words.push(letter);
        }
    }
    close(&mut word, &mut words);
    words.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Exact match and F1 of an answer against those that people gave, the better one of each; without given answers, whether it is empty.
pub fn judge_answer(answer: &str, given: &[&str]) -> (f64, f64) {
    // Answers of nothing but articles and punctuation do not count.
    let kept: Vec<&str> =
        given.iter().copied().filter(|answer| !normalise_answer(answer).is_empty()).collect();
    let given: &[&str] = if kept.is_empty() { &[""] } else { &kept };
    let found = normalise_answer(answer);
    let found_words: Vec<&str> = found.split_whitespace().collect();
    let judge = |given: &&str| {
        let given = normalise_answer(given);
        let words: Vec<&str> = given.split_whitespace().collect();
        let exact = f64::from(u8::from(found == given));
        if words.is_empty() || found_words.is_empty() {
            return (exact, f64::from(u8::from(words == found_words)));
        }
        let mut left: HashMap<&str, usize> = HashMap::new();
        words.iter().for_each(|word| *left.entry(word).or_default() += 1);
        let mut common = 0.0;
        for word in &found_words {
            if let Some(count) = left.get_mut(word).filter(|count| **count > 0) {
                *count -= 1;
                common += 1.0;
            }
        }
        if common == 0.0 {
            return (exact, 0.0);
        }
        let (precision, recall) = (common / found_words.len() as f64, common / words.len() as f64);
        (exact, 2.0 * precision * recall / (precision + recall))
    };
    given.iter().map(judge).fold((0.0, 0.0), |best, one| (f64::max(best.0, one.0), f64::max(best.1, one.1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_those_of_the_official_script() {
        // Made by scripts/references/text_metrics.py.
        let fixture: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/fixtures/text_metrics.json")).unwrap();
        let cases = fixture["answers"].as_array().unwrap();
        assert!(cases.len() > 15);
        for case in cases {
            let given: Vec<String> = serde_json::from_value(case["given"].clone()).unwrap();
            let given: Vec<&str> = given.iter().map(String::as_str).collect();
            let (exact, f1) = judge_answer(case["answer"].as_str().unwrap(), &given);
            assert_eq!(Some(exact), case["exact"].as_f64(), "{case}");
            assert!((f1 - case["f1"].as_f64().unwrap()).abs() < 1e-12, "{case}: {f1}");
        }
    }

    #[test]
    fn spans_end_behind_their_beginning_and_stay_in_the_context() {
        let passage = Passage {
            question: 0,
            ids: vec![0; 5],
            second: 2,
            bytes: vec![None, None, Some(0..3), Some(4..7), Some(8..11)],
            answer: (0, 0),
        };
        let scores = [(9.0, 9.0), (0.0, 0.0), (1.0, 5.0), (3.0, 0.0), (2.0, 2.0)];
        let span = best_span(&passage, &scores, 30);
        assert_eq!(span, Span { bytes: (0, 3), score: 6.0, null_score: 18.0 });
        let rule = SpanRule { max_answer_length: 30, may_be_unanswerable: false, null_threshold: 0.0 };
        assert_eq!(answer_of(std::slice::from_ref(&span), "one two six", rule).0, "one");
        let rule = SpanRule { may_be_unanswerable: true, ..rule };
        assert_eq!(answer_of(std::slice::from_ref(&span), "one two six", rule).0, "");
    }
}
