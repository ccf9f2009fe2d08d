//! ROUGE: Lin, "ROUGE: a package for automatic evaluation of summaries", 2004, as the Python package rouge-score 0.1.2 computes it without stemming.

use serde::Serialize;

use super::{matches, ngrams};

/// Collects texts: the F-measures of n-grams of one and two words, of the longest common subsequence of a text, and of its union over lines.
#[derive(Clone, Debug, Default)]
pub struct Rouge {
    texts: usize,
    sums: [f64; 4],
}

/// Mean F-measures as fractions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Score {
    /// Words.
    pub rouge1: f64,
    /// Pairs of words.
    pub rouge2: f64,
    /// The longest common subsequence.
    #[serde(rename = "rougeL")]
    pub rouge_l: f64,
    /// The same, line by line of the reference: the words that any line of the hypothesis shares with it in order.
    #[serde(rename = "rougeLsum")]
    pub rouge_l_sum: f64,
}

impl Rouge {
    /// Adds a text with its reference; lines are sentences.
    pub fn add(&mut self, hypothesis: &str, reference: &str) {
        let (ours, theirs) = (tokens(hypothesis), tokens(reference));
        self.texts += 1;
        for (index, order) in [1, 2].into_iter().enumerate() {
            let shared = matches(&ngrams(&ours, order), &ngrams(&theirs, order)) as usize;
            let count = |tokens: &[String]| (tokens.len() + 1).saturating_sub(order);
            self.sums[index] += f_measure(shared, count(&ours), count(&theirs));
        }
        let longest = subsequence(&theirs, &ours).len();
        self.sums[2] += f_measure(longest, ours.len(), theirs.len());
        self.sums[3] += summary_level(hypothesis, reference);
    }

    /// The means over all texts added so far.
    pub fn score(&self) -> Score {
        let [rouge1, rouge2, rouge_l, rouge_l_sum] = self.sums.map(|sum| sum / self.texts.max(1) as f64);
        Score { rouge1, rouge2, rouge_l, rouge_l_sum }
    }
}

/// Lower-case runs of ASCII letters and digits.
fn tokens(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    let runs = lower.split(|character: char| !character.is_ascii_alphanumeric());
    runs.filter(|run| !run.is_empty()).map(str::to_owned).collect()
}

fn f_measure(shared: usize, hypothesis: usize, reference: usize) -> f64 {
    if shared == 0 {
        return 0.0;
    }
    let (precision, recall) = (shared as f64 / hypothesis as f64, shared as f64 / reference as f64);
    2.0 * precision * recall / (precision + recall)
}

/// The places in `reference` of a longest common subsequence with `hypothesis`.
fn subsequence(reference: &[String], hypothesis: &[String]) -> Vec<usize> {
    let mut lengths = vec![vec![0u32; hypothesis.len() + 1]; reference.len() + 1];
    for (row, theirs) in reference.iter().enumerate() {
        for (column, ours) in hypothesis.iter().enumerate() {
            lengths[row + 1][column + 1] = if theirs == ours {
                lengths[row][column] + 1
            } else {
                lengths[row][column + 1].max(lengths[row + 1][column])
            };
        }
    }
    let (mut row, mut column) = (reference.len(), hypothesis.len());
    let mut places = Vec::new();
    while row > 0 && column > 0 {
        if reference[row - 1] == hypothesis[column - 1] {
            places.push(row - 1);
            row -= 1;
            column -= 1;
        } else if lengths[row][column - 1] > lengths[row - 1][column] {
            column -= 1;
        } else {
            row -= 1;
        }
    }
    places.reverse();
    places
}

fn summary_level(hypothesis: &str, reference: &str) -> f64 {
    let lines = |text: &str| -> Vec<Vec<String>> {
        text.lines().map(tokens).filter(|tokens| !tokens.is_empty()).collect()
    };
    let (ours, theirs) = (lines(hypothesis), lines(reference));
    let count = |lines: &[Vec<String>]| lines.iter().map(Vec::len).sum::<usize>();
    // A word counts at most as often as it is in either text.
    let mut available = std::collections::HashMap::<&str, (usize, usize)>::new();
    for token in theirs.iter().flatten() {
        available.entry(token).or_default().0 += 1;
    }
    for token in ours.iter().flatten() {
        available.entry(token).or_default().1 += 1;
    }
    let mut shared = 0;
    for line in &theirs {
        let union: std::collections::BTreeSet<usize> =
            ours.iter().flat_map(|other| subsequence(line, other)).collect();
        for place in union {
            if let Some((of_theirs, of_ours)) = available.get_mut(line[place].as_str())
                && *of_theirs > 0
                && *of_ours > 0
            {
                *of_theirs -= 1;
                *of_ours -= 1;
                shared += 1;
            }
        }
    }
    f_measure(shared, count(&ours), count(&theirs))
}
