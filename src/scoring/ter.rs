//! Translation edit rate: Snover et al., "A study of translation edit rate with targeted human annotation", 2006, with Tercom's choice of shifts as
//! sacreBLEU 2.6 makes it.

use std::collections::HashMap;
use std::sync::LazyLock;

use regex::Regex;
use serde::{Deserialize, Serialize};

use super::tokenize::{
    ASCII_PUNCTUATION, HYPHEN_AFTER_DIGIT, MARK_AFTER_TEXT, MARK_BEFORE_TEXT, rewrite, rules, unescape,
};
use super::{MATCHED_VERSION, ReferenceCount, is_white_space, words, yes};

/// Tercom's limits: words moved at once, places moved over, cells beside the diagonal that are looked at.
const LONGEST_SHIFT: usize = 10;
const FARTHEST_SHIFT: usize = 50;
const BEAM: usize = 25;
/// sacreBLEU's limit of shifts tried for one sentence.
const MOST_CANDIDATES: usize = 1000;
/// More edits than any sentence needs.
const UNREACHED: u64 = 10_000_000_000_000_000;

/// What changes the score.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Cut punctuation off words first.
    pub normalized: bool,
    /// Leave punctuation out.
    pub no_punctuation: bool,
    /// Upper and lower case differ.
    pub case_sensitive: bool,
}

/// Collects sentences.
#[derive(Clone, Debug, Default)]
pub struct Ter {
    settings: Settings,
    references: ReferenceCount,
    edits: u64,
    reference_length: f64,
}

impl Ter {
    /// An empty corpus.
    pub fn new(settings: Settings) -> Self {
        Self { settings, ..Self::default() }
    }

    /// Adds a hypothesis with its references: the fewest edits against the mean length count.
    pub fn add(&mut self, hypothesis: &str, references: &[&str]) {
        self.references.add(references.len());
        let hypothesis = self.prepare(hypothesis);
        let mut fewest: Option<u64> = None;
        let mut length = 0;
        for reference in references {
            let reference = self.prepare(reference);
            let mut numbers = HashMap::new();
            let mut number = |word| {
                let next = numbers.len();
                *numbers.entry(word).or_insert(next)
            };
            let ours: Vec<usize> = words(&hypothesis).map(&mut number).collect();
            let theirs: Vec<usize> = words(&reference).map(&mut number).collect();
            length += theirs.len();
            let edits = edits(ours, &theirs);
            fewest = Some(fewest.map_or(edits, |fewest| fewest.min(edits)));
        }
        if let Some(edits) = fewest {
            self.edits += edits;
            self.reference_length += length as f64 / references.len() as f64;
        }
    }

    /// What was counted, as numbers that add up over parts of a corpus.
    pub fn counts(&self) -> Vec<f64> {
        vec![self.edits as f64, self.reference_length]
    }

    /// Replaces what was counted by the sum of the [`Ter::counts`] of all parts.
    pub fn set_counts(&mut self, counts: &[f64]) {
        if let [edits, reference_length] = *counts {
            self.edits = edits as u64;
            self.reference_length = reference_length;
        }
    }

    /// Edits for a hundred words of the references.
    pub fn score(&self) -> f64 {
        if self.reference_length > 0.0 {
            100.0 * (self.edits as f64 / self.reference_length)
        } else if self.edits > 0 {
            100.0
        } else {
            0.0
        }
    }

    /// The line that says how the score came about.
    pub fn signature(&self) -> String {
        let Settings { normalized, no_punctuation, case_sensitive } = self.settings;
        format!(
            "nrefs:{}|case:{}|tok:tercom|norm:{}|punct:{}|asian:no|version:{MATCHED_VERSION}",
            self.references,
            if case_sensitive { "mixed" } else { "lc" },
            yes(normalized),
            yes(!no_punctuation),
        )
    }

    fn prepare(&self, sentence: &str) -> String {
        static NORMALIZE: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
            rules([
                ASCII_PUNCTUATION,
                ("'s ", " 's "),
                ("'s$", " 's"),
                MARK_AFTER_TEXT,
                MARK_BEFORE_TEXT,
                HYPHEN_AFTER_DIGIT,
            ])
        });
        static PUNCTUATION: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| rules([(r#"[.,?:;!"()]"#, "")]));
        let sentence = sentence.trim_end_matches(is_white_space);
        let mut sentence =
            if self.settings.case_sensitive { sentence.to_owned() } else { sentence.to_lowercase() };
        if self.settings.normalized && !sentence.is_empty() {
            let joined = unescape(&sentence.replace("\n-", "").replace('\n', " "));
            sentence = rewrite(&format!(" {joined} "), &NORMALIZE);
        }
        if self.settings.no_punctuation {
            sentence = rewrite(&sentence, &PUNCTUATION);
        }
        sentence
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Edit {
    Keep,
    Substitute,
    /// A word of the reference that the hypothesis lacks.
    Insert,
    /// A word of the hypothesis that the reference lacks.
    Delete,
}

type Cell = (u64, Edit);

/// How many words to insert, delete, replace, and runs of words to move, turn the hypothesis into the reference.
fn edits(mut hypothesis: Vec<usize>, reference: &[usize]) -> u64 {
    if reference.is_empty() {
        return hypothesis.len() as u64;
    }
    let mut shifts = 0;
    let mut tried = 0;
    loop {
        let table = Table::new(&hypothesis, reference, None);
        let best = best_shift(&hypothesis, reference, &table, &mut tried);
        match best {
            Some((gain, shifted)) if tried < MOST_CANDIDATES && gain > 0 => {
                shifts += 1;
                hypothesis = shifted;
            }
            _ => return shifts + table.distance(),
        }
    }
}

/// Edit distances of all beginnings of the hypothesis (rows) from all beginnings of the reference (columns), near the diagonal.
struct Table {
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// With the first rows of another table, of a hypothesis that has as many words and begins with the same ones.
    fn new(hypothesis: &[usize], reference: &[usize], known: Option<(&Table, usize)>) -> Self {
        let (ours, theirs) = (hypothesis.len(), reference.len());
        let mut rows: Vec<Vec<Cell>> = match known {
            Some((table, rows)) => table.rows[..=rows].to_vec(),
            None => vec![(0..=theirs as u64).map(|edits| (edits, Edit::Insert)).collect()],
        };
        let ratio = if ours > 0 { theirs as f64 / ours as f64 } else { 1.0 };
        let beam =
            if (BEAM as f64) < ratio / 2.0 { (ratio / 2.0 + BEAM as f64).ceil() as usize } else { BEAM };
        for row in rows.len()..=ours {
            let diagonal = (row as f64 * ratio).floor() as usize;
            let first = diagonal.saturating_sub(beam);
            let end = if row == ours { theirs + 1 } else { (theirs + 1).min(diagonal + beam) };
            let above = &rows[row - 1];
            let mut cells = vec![(UNREACHED, Edit::Substitute); theirs + 1];
            for column in first..end {
                if column == 0 {
                    cells[0] = (above[0].0 + 1, Edit::Delete);
                    continue;
                }
                let kept = if hypothesis[row - 1] == reference[column - 1] {
                    (above[column - 1].0, Edit::Keep)
                } else {
                    (above[column - 1].0 + 1, Edit::Substitute)
                };
                // Of equals the first is taken, as Tercom does.
                for candidate in
                    [kept, (above[column].0 + 1, Edit::Delete), (cells[column - 1].0 + 1, Edit::Insert)]
                {
                    if candidate.0 < cells[column].0 {
                        cells[column] = candidate;
                    }
                }
            }
            rows.push(cells);
        }
        Self { rows }
    }

    fn distance(&self) -> u64 {
        self.rows.last().and_then(|row| row.last()).map_or(0, |cell| cell.0)
    }

    /// For each word of the reference the place in the hypothesis where it stands or would stand (−1 before the first), and which words of
    /// either are wrong.
    fn alignment(&self) -> Alignment {
        let (mut row, mut column) = (self.rows.len() - 1, self.rows[0].len() - 1);
        let mut trace = Vec::with_capacity(row + column);
        while row > 0 || column > 0 {
            let edit = match (row, column) {
                (0, _) => Edit::Insert,
                (_, 0) => Edit::Delete,
                _ => self.rows[row][column].1,
            };
            trace.push(edit);
            row -= usize::from(edit != Edit::Insert);
            column -= usize::from(edit != Edit::Delete);
        }
        let mut alignment = Alignment::default();
        let mut position = -1;
        for edit in trace.into_iter().rev() {
            if edit != Edit::Insert {
                position += 1;
                alignment.wrong_in_hypothesis.push(edit != Edit::Keep);
            }
            if edit != Edit::Delete {
                alignment.places.push(position);
                alignment.wrong_in_reference.push(edit != Edit::Keep);
            }
        }
        alignment
    }
}

#[derive(Default)]
struct Alignment {
    places: Vec<isize>,
    wrong_in_hypothesis: Vec<bool>,
    wrong_in_reference: Vec<bool>,
}

/// The move of a run of words that lessens the edit distance most, with by how much; of equals the longest run, then the earliest, then the earliest
/// place.
fn best_shift(
    hypothesis: &[usize],
    reference: &[usize],
    table: &Table,
    tried: &mut usize,
) -> Option<(i64, Vec<usize>)> {
    type Rank = (i64, usize, std::cmp::Reverse<usize>, std::cmp::Reverse<usize>);
    let alignment = table.alignment();
    let before = table.distance() as i64;
    let mut best: Option<(Rank, Vec<usize>)> = None;
    for (start, found, length) in common_runs(hypothesis, reference) {
        let wrong = |flags: &[bool], from: usize| flags[from..from + length].iter().any(|&wrong| wrong);
        let inside = start as isize..(start + length) as isize;
        if !wrong(&alignment.wrong_in_hypothesis, start)
            || !wrong(&alignment.wrong_in_reference, found)
            || inside.contains(&alignment.places[found])
        {
            continue;
        }
        let mut previous = None;
        for offset in 0..=length {
            // Before the first word of the run's counterpart, then after each.
            let target = match (found + offset).checked_sub(1) {
                None => 0,
                Some(word) => match alignment.places.get(word) {
                    Some(place) => (place + 1) as usize,
                    None => break,
                },
            };
            if previous == Some(target) {
                continue;
            }
            previous = Some(target);
            let shifted = shift(hypothesis, start, length, target);
            let same = hypothesis.iter().zip(&shifted).take_while(|(a, b)| a == b).count();
            let gain = before - Table::new(&shifted, reference, Some((table, same))).distance() as i64;
            *tried += 1;
            let rank = (gain, length, std::cmp::Reverse(start), std::cmp::Reverse(target));
            if best.as_ref().is_none_or(|(most, _)| rank > *most) {
                best = Some((rank, shifted));
            }
        }
        if *tried >= MOST_CANDIDATES {
            break;
        }
    }
    best.map(|((gain, ..), shifted)| (gain, shifted))
}

/// Runs of words that both have: where in the hypothesis, where in the reference, how many.
fn common_runs<'a>(
    hypothesis: &'a [usize],
    reference: &'a [usize],
) -> impl Iterator<Item = (usize, usize, usize)> + 'a {
    (0..hypothesis.len()).flat_map(move |start| {
        let near = move |found: &usize| found.abs_diff(start) <= FARTHEST_SHIFT;
        (0..reference.len()).filter(near).flat_map(move |found| {
            let equal =
                hypothesis[start..].iter().zip(&reference[found..]).take_while(|(a, b)| a == b).count();
            (1..=equal.min(LONGEST_SHIFT)).map(move |length| (start, found, length))
        })
    })
}

/// The words with `length` of them, from `start` on, moved to before `target`; within the run itself `target` counts in what is left without it.
fn shift(words: &[usize], start: usize, length: usize, target: usize) -> Vec<usize> {
    let run = &words[start..start + length];
    let end = start + length;
    if target < start {
        [&words[..target], run, &words[target..start], &words[end..]].concat()
    } else if target > end {
        [&words[..start], &words[end..target], run, &words[target..]].concat()
    } else {
        let after = (length + target).min(words.len());
        [&words[..start], &words[end..after], run, &words[after..]].concat()
    }
}
