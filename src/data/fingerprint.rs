//! What tells data from other data, so that a run is not resumed on samples that it was not trained on.

use std::sync::Arc;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::{Dataset, Splits};

/// Number and checksum of the samples of one part. It says nothing about where they lie, so that data may move.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Fingerprint {
    /// How many samples there are.
    pub samples: u64,
    /// CRC-32C of what the data set added, in order.
    pub crc32c: u32,
}

impl Fingerprint {
    /// Of so many samples of which nothing is known yet.
    pub fn new(samples: usize) -> Self {
        Self { samples: samples as u64, crc32c: 0 }
    }

    /// Takes something in that the samples have and others would not have.
    pub fn add(&mut self, bytes: &[u8]) {
        self.crc32c = crc32c::crc32c_append(self.crc32c, bytes);
    }

    /// Takes so many bytes in of which only the CRC-32C is at hand.
    pub fn add_checksum(&mut self, crc32c: u32, length: usize) {
        self.crc32c = crc32c::crc32c_combine(self.crc32c, crc32c, length);
    }
}

/// Fingerprints of the parts that decide how a run goes on. The test part does not.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DataFingerprint {
    /// What is learned from.
    pub train: Fingerprint,
    /// What checkpoints are chosen by.
    pub validation: Option<Fingerprint>,
}

impl DataFingerprint {
    /// Takes the fingerprints of a data set.
    pub fn of<D: Dataset>(data: &Splits<Arc<D>>) -> Result<Self> {
        Ok(Self {
            train: data.train.fingerprint()?,
            validation: data.validation.as_ref().map(|part| part.fingerprint()).transpose()?,
        })
    }

    /// In what `now` differs, for a message.
    pub fn difference(&self, now: &Self) -> Option<String> {
        let parts = [
            ("training", Some(&self.train), Some(&now.train)),
            ("validation", self.validation.as_ref(), now.validation.as_ref()),
        ];
        let samples = |part: Option<&Fingerprint>| part.map_or(0, |part| part.samples);
        parts.into_iter().find(|(_, before, now)| before != now).map(|(name, before, now)| {
            match (samples(before), samples(now)) {
                (before, now) if before != now => {
                    format!("the {name} part had {before} samples and has {now}")
                }
                (count, _) => format!("the {count} samples of the {name} part are not those of before"),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_told_part_by_part() {
        let part = |samples, text: &str| {
            let mut part = Fingerprint::new(samples);
            part.add(text.as_bytes());
            part
        };
        let both = |train, validation| DataFingerprint { train, validation };
        let before = both(part(8, "abc"), Some(part(2, "d")));
        assert_eq!(before.difference(&before.clone()), None);
        for (now, told) in [
            (both(part(9, "abc"), Some(part(2, "d"))), "the training part had 8 samples and has 9"),
            (
                both(part(8, "abd"), Some(part(2, "d"))),
                "the 8 samples of the training part are not those of before",
            ),
            (
                both(part(8, "abc"), Some(part(2, "e"))),
                "the 2 samples of the validation part are not those of before",
            ),
            (both(part(8, "abc"), None), "the validation part had 2 samples and has 0"),
        ] {
            assert_eq!(before.difference(&now).as_deref(), Some(told));
        }
    }
}
