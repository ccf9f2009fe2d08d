//! BLEU: Papineni et al., "BLEU: a method for automatic evaluation of machine translation", 2002, as sacreBLEU 2.6 computes it.

use std::collections::HashMap;
use std::fmt;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::tokenize::Tokenizer;
use super::{MATCHED_VERSION, ReferenceCount, matches, ngrams, words, yes};

/// The longest n-grams that are compared.
const ORDER: usize = 4;

/// What stands for a precision of 0: Chen and Cherry, "A systematic comparison of smoothing techniques for sentence-level BLEU", 2014.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Smoothing {
    /// Half of what stood for the order before, as mteval-v13a does.
    #[default]
    Exp,
    /// 0.1 matches.
    Floor,
    /// One more match and one more n-gram in every order but the first.
    AddK,
    /// Nothing: the score is 0.
    None,
}

/// What changes the score.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Compare without regard to case.
    pub lowercase: bool,
    /// How sentences become words.
    pub tokenize: Tokenizer,
    /// What stands for a precision of 0.
    pub smoothing: Smoothing,
    /// Leave out orders that the hypothesis is too short for; for single sentences.
    pub effective_order: bool,
}

/// Collects sentences.
#[derive(Clone, Debug, Default)]
pub struct Bleu {
    settings: Settings,
    references: ReferenceCount,
    hypothesis_length: u64,
    reference_length: u64,
    correct: [u64; ORDER],
    total: [u64; ORDER],
}

/// A score with what it is made of.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Score {
    /// From 0 to 100.
    pub score: f64,
    /// Share of n-grams that a reference has, for each order, in percent.
    pub precisions: [f64; ORDER],
    /// What the score was multiplied by because the hypotheses are shorter than the references.
    pub brevity_penalty: f64,
    /// Words of all hypotheses.
    pub hypothesis_length: u64,
    /// Words of the references, for each sentence those of the one that is nearest in length.
    pub reference_length: u64,
    /// n-grams that a reference has.
    pub correct: [u64; ORDER],
    /// n-grams of the hypotheses.
    pub total: [u64; ORDER],
}

impl Bleu {
    /// An empty corpus.
    pub fn new(settings: Settings) -> Self {
        Self { settings, ..Self::default() }
    }

    /// Adds a hypothesis with its references.
    pub fn add(&mut self, hypothesis: &str, references: &[&str]) {
        self.references.add(references.len());
        let hypothesis = self.prepare(hypothesis);
        let hypothesis: Vec<&str> = words(&hypothesis).collect();
        let references: Vec<String> = references.iter().map(|reference| self.prepare(reference)).collect();
        let references: Vec<Vec<&str>> = references.iter().map(|text| words(text).collect()).collect();
        let distance = |length: &usize| (length.abs_diff(hypothesis.len()), *length);
        let nearest = references.iter().map(Vec::len).min_by_key(distance).unwrap_or(0);
        self.hypothesis_length += hypothesis.len() as u64;
        self.reference_length += nearest as u64;
        for order in 1..=ORDER {
            let mut most: HashMap<&[&str], u64> = HashMap::new();
            for reference in &references {
                for (ngram, count) in ngrams(reference, order) {
                    let entry = most.entry(ngram).or_default();
                    *entry = count.max(*entry);
                }
            }
            self.correct[order - 1] += matches(&ngrams(&hypothesis, order), &most);
            self.total[order - 1] += (hypothesis.len() + 1).saturating_sub(order) as u64;
        }
    }

    /// What was counted, as numbers that add up over parts of a corpus.
    pub fn counts(&self) -> Vec<f64> {
        let lengths = [self.hypothesis_length, self.reference_length];
        lengths.iter().chain(&self.correct).chain(&self.total).map(|&count| count as f64).collect()
    }

    /// Replaces what was counted by the sum of the [`Bleu::counts`] of all parts.
    pub fn set_counts(&mut self, counts: &[f64]) {
        let mut counts = counts.iter().map(|&count| count as u64);
        let mut next = || counts.next().unwrap_or_default();
        self.hypothesis_length = next();
        self.reference_length = next();
        self.correct = std::array::from_fn(|_| next());
        self.total = std::array::from_fn(|_| next());
    }

    /// The score of all sentences added so far.
    pub fn score(&self) -> Score {
        let Self { hypothesis_length, reference_length, correct, total, settings, .. } = *self;
        let brevity_penalty = match (hypothesis_length, reference_length) {
            (ours, theirs) if ours >= theirs => 1.0,
            (0, _) => 0.0,
            (ours, theirs) => (1.0 - theirs as f64 / ours as f64).exp(),
        };
        let mut precisions = [0.0; ORDER];
        let mut score = 0.0;
        if correct.iter().any(|&count| count > 0) {
            let mut divisor = 1.0;
            let mut orders = ORDER;
            for (index, precision) in precisions.iter_mut().enumerate() {
                let added = if settings.smoothing == Smoothing::AddK && index > 0 { 1.0 } else { 0.0 };
                let (correct, total) = (correct[index] as f64 + added, total[index] as f64 + added);
                if total == 0.0 {
                    break;
                }
                if settings.effective_order {
                    orders = index + 1;
                }
                *precision = if correct > 0.0 {
                    100.0 * correct / total
                } else {
                    match settings.smoothing {
                        Smoothing::Exp => {
                            divisor *= 2.0;
                            100.0 / (divisor * total)
                        }
                        Smoothing::Floor => 100.0 * 0.1 / total,
                        Smoothing::AddK | Smoothing::None => 0.0,
                    }
                };
            }
            // The logarithm of nothing is so low that nothing remains.
            let logarithms =
                precisions[..orders].iter().map(|p| if *p > 0.0 { p.ln() } else { -9_999_999_999.0 });
            score = brevity_penalty * (logarithms.sum::<f64>() / orders as f64).exp();
        }
        Score { score, precisions, brevity_penalty, hypothesis_length, reference_length, correct, total }
    }

    /// The line that says how the score came about.
    pub fn signature(&self) -> String {
        let Settings { lowercase, tokenize, smoothing, effective_order } = self.settings;
        let smoothing = match smoothing {
            Smoothing::Exp => "exp",
            Smoothing::Floor => "floor[0.10]",
            Smoothing::AddK => "add-k[1.00]",
            Smoothing::None => "none",
        };
        format!(
            "nrefs:{}|case:{}|eff:{}|tok:{}|smooth:{smoothing}|version:{MATCHED_VERSION}",
            self.references,
            if lowercase { "lc" } else { "mixed" },
            yes(effective_order),
            tokenize.name(),
        )
    }

    fn prepare(&self, sentence: &str) -> String {
        match self.settings.lowercase {
            true => self.settings.tokenize.apply(&sentence.to_lowercase()),
            false => self.settings.tokenize.apply(sentence),
        }
    }
}

impl fmt::Display for Score {
    /// sacreBLEU's line: the score, the precisions, the brevity penalty and the lengths.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let precisions = self.precisions.map(|precision| format!("{precision:.1}")).join("/");
        let ratio = if self.reference_length > 0 {
            self.hypothesis_length as f64 / self.reference_length as f64
        } else {
            0.0
        };
        write!(
            formatter,
            "{:.2} {precisions} (BP = {:.3} ratio = {ratio:.3} hyp_len = {} ref_len = {})",
            self.score, self.brevity_penalty, self.hypothesis_length, self.reference_length
        )
    }
}
