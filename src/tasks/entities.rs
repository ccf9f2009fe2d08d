//! Entities in tagged words, and their scores as seqeval counts them (its default mode): an entity is right if type, first and last word are.
//!
//! Tags are a prefix (`B-` begins an entity, `I-` goes on, `E-` ends it, `S-` is one word alone) with a type, and `O` outside. IOB1, IOB2 (BIO),
//! IOE, IOBES and BILOU are told apart by nothing: what begins and ends an entity follows from neighbouring tags, as in the CoNLL evaluation
//! script.

use std::collections::{BTreeMap, BTreeSet};

/// An entity: words `first` to `last`, both counted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entity {
    /// Its type; empty where tags have none.
    pub kind: String,
    /// Its first word.
    pub first: usize,
    /// Its last word.
    pub last: usize,
}

/// The prefix of a tag and its type: (`B`, `PER`).
fn parts(tag: &str) -> (char, &str) {
    let prefix = tag.chars().next().unwrap_or('O');
    (prefix, tag.split_once('-').map_or("_", |(_, kind)| kind))
}

/// Whether an entity ends between two tags.
fn ends((before, kind_before): (char, &str), (now, kind_now): (char, &str)) -> bool {
    let by_prefix = match before {
        'E' | 'S' => true,
        'B' | 'I' => matches!(now, 'B' | 'S' | 'O'),
        _ => false,
    };
    by_prefix || (before != 'O' && before != '.' && kind_before != kind_now)
}

/// Whether an entity begins with the second of two tags.
fn begins((before, kind_before): (char, &str), (now, kind_now): (char, &str)) -> bool {
    let by_prefix = match now {
        'B' | 'S' => true,
        'E' | 'I' => matches!(before, 'E' | 'S' | 'O'),
        _ => false,
    };
    by_prefix || (now != 'O' && now != '.' && kind_before != kind_now)
}

/// The entities of a sentence's tags: seqeval's `get_entities`.
pub fn entities<S: AsRef<str>>(tags: &[S]) -> Vec<Entity> {
    let mut found = Vec::new();
    let (mut before, mut first) = (('O', ""), 0);
    let last = tags.len();
    for (position, tag) in tags.iter().map(|tag| parts(tag.as_ref())).chain([('O', "_")]).enumerate() {
        if ends(before, tag) && position > 0 {
            found.push(Entity { kind: before.1.to_owned(), first, last: position - 1 });
        }
        if begins(before, tag) && position < last {
            first = position;
        }
        before = tag;
    }
    found
}

/// Counts of entities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EntityCounts {
    /// Found and there.
    pub right: u64,
    /// Found.
    pub predicted: u64,
    /// There.
    pub support: u64,
}

impl EntityCounts {
    /// right / predicted; 0 of nothing.
    pub fn precision(&self) -> f64 {
        super::classification::ratio(self.right, self.predicted)
    }

    /// right / support; 0 of nothing.
    pub fn recall(&self) -> f64 {
        super::classification::ratio(self.right, self.support)
    }

    /// Their harmonic mean.
    pub fn f1(&self) -> f64 {
        super::classification::ratio(2 * self.right, self.predicted + self.support)
    }
}

/// Counts by type from the tags of many sentences, (given, predicted) each; the sum of all is what seqeval's scores average over.
pub fn count_entities<S: AsRef<str>>(sentences: &[(Vec<S>, Vec<S>)]) -> BTreeMap<String, EntityCounts> {
    let mut counts: BTreeMap<String, EntityCounts> = BTreeMap::new();
    for (given, predicted) in sentences {
        let given: BTreeSet<Entity> = entities(given).into_iter().collect();
        let predicted: BTreeSet<Entity> = entities(predicted).into_iter().collect();
        given.iter().for_each(|entity| counts.entry(entity.kind.clone()).or_default().support += 1);
        predicted.iter().for_each(|entity| counts.entry(entity.kind.clone()).or_default().predicted += 1);
        given
            .intersection(&predicted)
            .for_each(|entity| counts.entry(entity.kind.clone()).or_default().right += 1);
    }
    counts
}

/// The sum over types.
pub fn total(counts: &BTreeMap<String, EntityCounts>) -> EntityCounts {
    counts.values().fold(EntityCounts::default(), |sum, one| EntityCounts {
        right: sum.right + one.right,
        predicted: sum.predicted + one.predicted,
        support: sum.support + one.support,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_seqevals() {
        // Made by scripts/references/text_metrics.py.
        let fixture: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/fixtures/text_metrics.json")).unwrap();
        let cases = fixture["entities"].as_array().unwrap();
        assert!(cases.len() > 20);
        for case in cases {
            let given: Vec<Vec<String>> = serde_json::from_value(case["given"].clone()).unwrap();
            let predicted: Vec<Vec<String>> = serde_json::from_value(case["predicted"].clone()).unwrap();
            let all = total(&count_entities(&given.into_iter().zip(predicted).collect::<Vec<_>>()));
            for (name, value) in [("precision", all.precision()), ("recall", all.recall()), ("f1", all.f1())]
            {
                let expected = case[name].as_f64().unwrap();
                assert!((value - expected).abs() < 1e-12, "{case}: {name} {value}");
            }
        }
    }
}
