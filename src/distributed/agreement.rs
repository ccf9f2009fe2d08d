//! The check that all processes are about to do the same, made through the store before the first collective: libtorch ends a process whose
//! tensors have other shapes than those of the others.

use anyhow::Result;
use serde_json::Value;

use super::health::Meeting;
use crate::bail_input;

/// What must be equal in all processes, by what to call it in a message.
#[derive(Clone, Debug, Default)]
pub struct Agreement {
    facts: Facts,
}

/// In the order in which they are compared: what others follow from comes first.
type Facts = Vec<(String, Value)>;

impl Agreement {
    /// Adds something, with a name that says what it is: `the recipe`.
    pub fn add(&mut self, name: impl Into<String>, value: Value) {
        self.facts.push((name.into(), value));
    }

    /// Compares with the first process.
    ///
    /// # Errors
    /// The sentence that names the first process that differs and in what; the same in all processes.
    pub fn check(&self, meeting: &Meeting) -> Result<()> {
        let told = meeting.exchange("agreement", &serde_json::to_string(&self.facts)?)?;
        let facts =
            told.iter().map(|text| Ok(serde_json::from_str(text)?)).collect::<Result<Vec<Facts>>>()?;
        for (rank, other) in facts.iter().enumerate().skip(1) {
            if let Some(difference) = difference(&facts[0], other, rank) {
                bail_input!(
                    "rank {rank} is about to do something else than rank 0: {difference}; start all processes with the same program, arguments and data"
                );
            }
        }
        Ok(())
    }
}

/// The first thing in which two processes differ.
fn difference(first: &Facts, other: &Facts, rank: usize) -> Option<String> {
    if first.len() != other.len() {
        return Some("they are programs of different versions".to_owned());
    }
    let mut pairs = first.iter().zip(other);
    let ((name, before), (_, now)) = pairs.find(|(before, now)| before != now)?;
    if before.is_object() && now.is_object() {
        let (key, before, now) = crate::recipe::differences(before, now).into_iter().next()?;
        return Some(format!("{name} has {key} {before} in rank 0 and {now} in rank {rank}"));
    }
    Some(format!("{name} is {before} in rank 0 and {now} in rank {rank}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_first_difference_is_named() {
        let facts = |seed: u32, samples: u32| -> Facts {
            vec![
                ("the recipe".to_owned(), json!({"seed": seed, "lr": 0.5})),
                ("the number of samples".to_owned(), json!(samples)),
            ]
        };
        let first = facts(1, 10);
        assert_eq!(difference(&first, &first, 1), None);
        let told = difference(&first, &facts(2, 11), 3).unwrap();
        assert!(told.contains("the recipe has seed 1 in rank 0 and 2 in rank 3"), "{told}");
        let told = difference(&first, &facts(1, 11), 3).unwrap();
        assert!(told.contains("the number of samples is 10 in rank 0 and 11 in rank 3"), "{told}");
        assert!(difference(&first, &facts(1, 10)[..1].to_vec(), 1).is_some());
    }
}
