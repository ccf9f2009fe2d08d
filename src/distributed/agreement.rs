//! The check that all processes are about to do the same, made through the store before the first collective: libtorch ends a process whose
//! tensors have other shapes than those of the others.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::Value;

use super::health::Meeting;
use crate::bail_input;

/// What must be equal in all processes, by what to call it in a message.
#[derive(Clone, Debug, Default)]
pub struct Agreement {
    facts: BTreeMap<String, Value>,
}

impl Agreement {
    /// Adds something, with a name that says what it is: `the recipe`.
    pub fn add(&mut self, name: impl Into<String>, value: Value) {
        self.facts.insert(name.into(), value);
    }

    /// Compares with the first process.
    ///
    /// # Errors
    /// The sentence that names the first process that differs and in what; the same in all processes.
    pub fn check(&self, meeting: &Meeting) -> Result<()> {
        let told = meeting.exchange("agreement", &serde_json::to_string(&self.facts)?)?;
        let facts = told
            .iter()
            .map(|text| Ok(serde_json::from_str(text)?))
            .collect::<Result<Vec<BTreeMap<String, Value>>>>()?;
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
fn difference(
    first: &BTreeMap<String, Value>,
    other: &BTreeMap<String, Value>,
    rank: usize,
) -> Option<String> {
    let names = first.keys().chain(other.keys().filter(|name| !first.contains_key(*name)));
    for name in names {
        let (Some(before), Some(now)) = (first.get(name), other.get(name)) else {
            return Some(format!("only one of them has {name}"));
        };
        if before == now {
            continue;
        }
        if before.is_object() && now.is_object() {
            let (key, before, now) = crate::recipe::differences(before, now).into_iter().next()?;
            return Some(format!("{name} has {key} {before} in rank 0 and {now} in rank {rank}"));
        }
        return Some(format!("{name} is {before} in rank 0 and {now} in rank {rank}"));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_first_difference_is_named() {
        let facts = |value: Value| -> BTreeMap<String, Value> { serde_json::from_value(value).unwrap() };
        let first = facts(json!({"the recipe": {"seed": 1, "lr": 0.5}, "the version": "1"}));
        assert_eq!(difference(&first, &first, 1), None);
        let other = facts(json!({"the recipe": {"seed": 2, "lr": 0.5}, "the version": "1"}));
        let told = difference(&first, &other, 3).unwrap();
        assert!(told.contains("the recipe has seed 1 in rank 0 and 2 in rank 3"), "{told}");
        assert!(difference(&first, &facts(json!({"the version": "1"})), 1).unwrap().contains("only one"));
    }
}
