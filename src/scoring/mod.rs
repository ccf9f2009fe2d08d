//! Scores of generated text against reference texts: [`bleu`], [`chrf`] and [`ter`] with sacreBLEU's results and signature lines,
//! [`rouge`] with rouge-score's.
//!
//! Each score is collected sentence by sentence in whole numbers and made once at the end, so that a corpus may be scored in parts. Texts
//! are given as people read them, detokenised; a score tokenises by itself.

pub mod bleu;
pub mod chrf;
pub mod rouge;
pub mod ter;
pub mod tokenize;

use std::collections::HashMap;
use std::hash::Hash;

use serde_json::{Value, json};

/// The version of sacreBLEU whose results are matched; it ends each signature.
const MATCHED_VERSION: &str = "2.6.0";

/// BLEU, chrF and TER of a corpus, with sacreBLEU's usual settings.
#[derive(Clone, Debug, Default)]
pub struct TranslationScores {
    bleu: bleu::Bleu,
    chrf: chrf::Chrf,
    ter: ter::Ter,
}

impl TranslationScores {
    /// Adds a hypothesis with its references.
    pub fn add(&mut self, hypothesis: &str, references: &[&str]) {
        self.bleu.add(hypothesis, references);
        self.chrf.add(hypothesis, references);
        self.ter.add(hypothesis, references);
    }

    /// What was counted, as numbers that add up over parts of a corpus.
    pub fn counts(&self) -> Vec<f64> {
        [self.bleu.counts(), self.chrf.counts(), self.ter.counts()].concat()
    }

    /// Replaces what was counted by the sum of the [`TranslationScores::counts`] of all parts.
    pub fn set_counts(&mut self, counts: &[f64]) {
        let (bleu, rest) = counts.split_at(self.bleu.counts().len());
        let (chrf, ter) = rest.split_at(self.chrf.counts().len());
        self.bleu.set_counts(bleu);
        self.chrf.set_counts(chrf);
        self.ter.set_counts(ter);
    }

    /// `bleu`, `chrf` and `ter`.
    pub fn metrics(&self) -> [(String, f64); 3] {
        let values =
            [("bleu", self.bleu.score().score), ("chrf", self.chrf.score()), ("ter", self.ter.score())];
        values.map(|(name, value)| (name.to_owned(), value))
    }

    /// The scores with their signatures.
    pub fn details(&self) -> Value {
        json!({
            "bleu": self.bleu.score(),
            "signatures": {
                "bleu": self.bleu.signature(),
                "chrf": self.chrf.signature(),
                "ter": self.ter.signature(),
            },
            "lines": [
                format!("BLEU|{} = {}", self.bleu.signature(), self.bleu.score()),
                format!("{}|{} = {:.2}", self.chrf.name(), self.chrf.signature(), self.chrf.score()),
                format!("TER|{} = {:.2}", self.ter.signature(), self.ter.score()),
            ],
        })
    }
}

/// How often each run of `order` items occurs.
fn ngrams<T: Hash + Eq>(items: &[T], order: usize) -> HashMap<&[T], u64> {
    let mut counts = HashMap::new();
    for ngram in items.windows(order) {
        *counts.entry(ngram).or_default() += 1;
    }
    counts
}

/// How many n-grams of `ours` are found in `theirs`, each as often as it is there.
fn matches<T: Hash + Eq>(ours: &HashMap<&[T], u64>, theirs: &HashMap<&[T], u64>) -> u64 {
    ours.iter().map(|(ngram, &count)| count.min(theirs.get(ngram).copied().unwrap_or(0))).sum()
}

/// Words as Python's `str.split()` finds them: it takes the four separators of ASCII for white space too.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(is_white_space).filter(|word| !word.is_empty())
}

fn is_white_space(character: char) -> bool {
    character.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&character)
}

/// How many references texts have, for signatures: the number, or that it varies.
#[derive(Clone, Copy, Debug, Default)]
struct ReferenceCount(Option<usize>);

impl ReferenceCount {
    fn add(&mut self, count: usize) {
        self.0 = match self.0 {
            Some(before) if before != count => Some(0),
            _ => Some(count),
        };
    }
}

impl std::fmt::Display for ReferenceCount {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(0) => formatter.write_str("var"),
            count => write!(formatter, "{}", count.unwrap_or(1)),
        }
    }
}

fn yes(flag: bool) -> &'static str {
    if flag { "yes" } else { "no" }
}
