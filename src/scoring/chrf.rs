//! chrF: Popović, "chrF: character n-gram F-score for automatic MT evaluation", 2015, and chrF++ with words, 2017, as sacreBLEU 2.6 computes them.

use serde::{Deserialize, Serialize};

use super::{MATCHED_VERSION, ReferenceCount, is_white_space, matches, ngrams, words, yes};

/// What changes the score.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The longest n-grams of characters.
    pub character_order: usize,
    /// The longest n-grams of words: 0 for chrF, 2 for chrF++.
    pub word_order: usize,
    /// How many times as important as precision recall is.
    pub beta: u32,
    /// Compare without regard to case.
    pub lowercase: bool,
    /// Whether white space is a character.
    pub whitespace: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { character_order: 6, word_order: 0, beta: 2, lowercase: false, whitespace: false }
    }
}

/// How many n-grams of one order the hypothesis and the reference have, and how many they share.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    hypothesis: u64,
    reference: u64,
    shared: u64,
}

/// Collects sentences.
#[derive(Clone, Debug)]
pub struct Chrf {
    settings: Settings,
    references: ReferenceCount,
    counts: Vec<Counts>,
}

impl Default for Chrf {
    fn default() -> Self {
        Self::new(Settings::default())
    }
}

impl Chrf {
    /// An empty corpus.
    pub fn new(settings: Settings) -> Self {
        let orders = settings.character_order + settings.word_order;
        Self { settings, references: ReferenceCount::default(), counts: vec![Counts::default(); orders] }
    }

    /// Adds a hypothesis with its references, of which the one with the best score counts.
    pub fn add(&mut self, hypothesis: &str, references: &[&str]) {
        self.references.add(references.len());
        let hypothesis = self.units(hypothesis);
        let mut best: Option<(f64, Vec<Counts>)> = None;
        for reference in references {
            let counts = self.compare(&hypothesis, &self.units(reference));
            let score = self.f_score(&counts);
            if best.as_ref().is_none_or(|(most, _)| score > *most) {
                best = Some((score, counts));
            }
        }
        for (sum, counts) in self.counts.iter_mut().zip(best.map(|(_, counts)| counts).unwrap_or_default()) {
            sum.hypothesis += counts.hypothesis;
            sum.reference += counts.reference;
            sum.shared += counts.shared;
        }
    }

    /// What was counted, as numbers that add up over parts of a corpus.
    pub fn counts(&self) -> Vec<f64> {
        let each = self.counts.iter();
        each.flat_map(|counts| [counts.hypothesis, counts.reference, counts.shared])
            .map(|count| count as f64)
            .collect()
    }

    /// Replaces what was counted by the sum of the [`Chrf::counts`] of all parts.
    pub fn set_counts(&mut self, counts: &[f64]) {
        for (own, sums) in self.counts.iter_mut().zip(counts.chunks_exact(3)) {
            let [hypothesis, reference, shared] = [0, 1, 2].map(|place| sums[place] as u64);
            *own = Counts { hypothesis, reference, shared };
        }
    }

    /// The score of all sentences added so far, from 0 to 100.
    pub fn score(&self) -> f64 {
        self.f_score(&self.counts)
    }

    /// `chrF2`, or `chrF2++` with words.
    pub fn name(&self) -> String {
        format!("chrF{}{}", self.settings.beta, "+".repeat(self.settings.word_order))
    }

    /// The line that says how the score came about.
    pub fn signature(&self) -> String {
        let Settings { character_order, word_order, lowercase, whitespace, .. } = self.settings;
        format!(
            "nrefs:{}|case:{}|eff:yes|nc:{character_order}|nw:{word_order}|space:{}|version:{MATCHED_VERSION}",
            self.references,
            if lowercase { "lc" } else { "mixed" },
            yes(whitespace),
        )
    }

    fn units(&self, sentence: &str) -> Units {
        let sentence = if self.settings.lowercase { sentence.to_lowercase() } else { sentence.to_owned() };
        let keeps = |character: &char| self.settings.whitespace || !is_white_space(*character);
        Units {
            characters: sentence.chars().filter(keeps).collect(),
            words: if self.settings.word_order > 0 { split_punctuation(&sentence) } else { Vec::new() },
        }
    }

    fn compare(&self, hypothesis: &Units, reference: &Units) -> Vec<Counts> {
        let characters = (1..=self.settings.character_order)
            .map(|order| count(&hypothesis.characters, &reference.characters, order));
        let words =
            (1..=self.settings.word_order).map(|order| count(&hypothesis.words, &reference.words, order));
        characters.chain(words).collect()
    }

    fn f_score(&self, counts: &[Counts]) -> f64 {
        let factor = f64::from(self.settings.beta).powi(2);
        let (mut precision, mut recall, mut orders) = (0.0, 0.0, 0.0);
        for counts in counts.iter().filter(|counts| counts.hypothesis > 0 && counts.reference > 0) {
            precision += counts.shared as f64 / counts.hypothesis as f64;
            recall += counts.shared as f64 / counts.reference as f64;
            orders += 1.0;
        }
        if precision + recall == 0.0 {
            return 0.0;
        }
        let (precision, recall): (f64, f64) = (precision / orders, recall / orders);
        100.0 * (1.0 + factor) * precision * recall / (factor * precision + recall)
    }
}

struct Units {
    characters: Vec<char>,
    words: Vec<String>,
}

fn count<T: std::hash::Hash + Eq>(hypothesis: &[T], reference: &[T], order: usize) -> Counts {
    let all = |items: &[T]| (items.len() + 1).saturating_sub(order) as u64;
    let shared = matches(&ngrams(hypothesis, order), &ngrams(reference, order));
    // What no reference could have is no fault of the hypothesis.
    let hypothesis = if all(reference) > 0 { all(hypothesis) } else { 0 };
    Counts { hypothesis, reference: all(reference), shared }
}

/// Words with the punctuation mark at their end, or else the one at their beginning, apart.
fn split_punctuation(sentence: &str) -> Vec<String> {
    let mut parts = Vec::new();
    for word in words(sentence) {
        let mut characters = word.chars();
        let (first, last) = (characters.next(), characters.next_back());
        match (first, last) {
            (Some(_), Some(last)) if last.is_ascii_punctuation() => {
                parts.push(word[..word.len() - 1].to_owned());
                parts.push(last.to_string());
            }
            (Some(first), Some(_)) if first.is_ascii_punctuation() => {
                parts.push(first.to_string());
                parts.push(word[1..].to_owned());
            }
            _ => parts.push(word.to_owned()),
        }
    }
    parts
}
