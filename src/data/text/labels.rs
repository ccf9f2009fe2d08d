//! The names of classes and their numbers.

use std::collections::HashMap;

use anyhow::Result;

use super::reader::{Field, TextTable};
use crate::bail_input;
use crate::recipe::nearest_hint;

/// What parts several labels in one field of a TSV or CSV file.
const SEPARATOR: char = ',';

/// The classes of a data set, in the order of their numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct LabelSet {
    names: Vec<String>,
    numbers: HashMap<String, usize>,
}

impl LabelSet {
    /// Classes in the order given.
    ///
    /// # Errors
    /// A name comes twice or is empty.
    pub fn new(names: Vec<String>) -> Result<Self> {
        let mut numbers = HashMap::new();
        for (number, name) in names.iter().enumerate() {
            if name.is_empty() {
                bail_input!("class {number} has no name");
            }
            if numbers.insert(name.clone(), number).is_some() {
                bail_input!("two classes are called `{name}`");
            }
        }
        Ok(Self { names, numbers })
    }

    /// The distinct labels of a column: in numeric order where all are whole numbers, else in the order of their characters.
    pub fn collect<'a>(labels: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        let distinct: std::collections::BTreeSet<&str> = labels.into_iter().collect();
        let mut names: Vec<String> = distinct.into_iter().map(str::to_owned).collect();
        if names.iter().all(|name| name.parse::<i64>().is_ok()) {
            names.sort_by_key(|name| name.parse::<i64>().unwrap_or(0));
        }
        Self::new(names)
    }

    /// The names, by number.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The number of a class.
    pub fn number(&self, name: &str) -> Option<usize> {
        self.numbers.get(name).copied()
    }

    /// The one label of each row.
    ///
    /// # Errors
    /// A label that is none of the classes, with file and line.
    pub fn numbers_of(&self, table: &TextTable, column: usize) -> Result<Vec<i64>> {
        let number =
            |row: usize| self.known(table.rows[row].text(column), table, row).map(|number| number as i64);
        (0..table.rows.len()).map(number).collect()
    }

    /// The labels of each row: the elements of a JSON array, or a text with commas between them; none in an empty one.
    ///
    /// # Errors
    /// As for [`LabelSet::numbers_of`].
    pub fn sets_of(&self, table: &TextTable, column: usize) -> Result<Vec<Vec<usize>>> {
        let set = |row: usize| {
            split_labels(&table.rows[row].fields[column]).map(|label| self.known(label, table, row)).collect()
        };
        (0..table.rows.len()).map(set).collect()
    }

    fn known(&self, label: &str, table: &TextTable, row: usize) -> Result<usize> {
        match self.number(label) {
            Some(number) => Ok(number),
            None => bail_input!(
                "{}: the label `{label}` is none of the {} classes{}",
                table.place(row),
                self.names.len(),
                nearest_hint(label, self.names.iter().map(String::as_str))
            ),
        }
    }
}

/// The labels in a field that may hold several.
pub fn split_labels(field: &Field) -> Box<dyn Iterator<Item = &str> + '_> {
    match field {
        Field::List(list) => Box::new(list.iter().map(String::as_str)),
        Field::Text(text) => Box::new(text.split(SEPARATOR).map(str::trim).filter(|label| !label.is_empty())),
    }
}

#[cfg(test)]
mod tests {
    use super::super::reader::TextRow;
    use super::*;

    fn table(labels: &[Field]) -> TextTable {
        let row = |(number, field): (usize, &Field)| TextRow {
            line: number as u64 + 2,
            fields: vec![field.clone()],
        };
        TextTable { name: "f.tsv".to_owned(), rows: labels.iter().enumerate().map(row).collect() }
    }

    #[test]
    fn numbers_are_ordered_as_numbers() -> Result<()> {
        assert_eq!(LabelSet::collect(["10", "9", "10", "-1"])?.names(), ["-1", "9", "10"]);
        assert_eq!(LabelSet::collect(["pos", "neg", "10"])?.names(), ["10", "neg", "pos"]);
        assert!(LabelSet::new(vec!["a".into(), "a".into()]).is_err());
        Ok(())
    }

    #[test]
    fn an_unseen_label_is_told_with_its_line() -> Result<()> {
        let labels = LabelSet::collect(["negative", "positive"])?;
        let good = table(&[Field::Text("positive".into()), Field::Text("negative".into())]);
        assert_eq!(labels.numbers_of(&good, 0)?, [1, 0]);
        let bad = table(&[Field::Text("positive".into()), Field::Text("negatve".into())]);
        let message = labels.numbers_of(&bad, 0).unwrap_err().to_string();
        assert_eq!(
            message,
            "f.tsv, line 3: the label `negatve` is none of the 2 classes: did you mean `negative`?"
        );
        let several = table(&[
            Field::List(vec!["positive".into()]),
            Field::Text("positive, negative".into()),
            Field::Text("".into()),
        ]);
        assert_eq!(labels.sets_of(&several, 0)?, [vec![1], vec![1, 0], vec![]]);
        Ok(())
    }
}
