//! Tables: delimited text (plain, gzipped, or on stdin) read in parallel into blocks of float64 rows; Parquet files.
//!
//! Every value of a table becomes a float64: numbers as they are, categories as the position of their text among the column's levels,
//! missing values as NaN. A file is read as a sequence of blocks in its own order, so a fit that keeps all blocks and a fit that looks at
//! them one at a time are the same program.

mod bytes;
mod describe;
mod dialect;
mod generated;
mod parquet;
mod reader;
mod rows;

pub use bytes::open_bytes;
pub use describe::{ColumnDescription, Description, describe};
pub use dialect::{Dialect, Head, is_missing};
pub use generated::{BuiltinTable, builtin};
pub use reader::{ColumnRequest, Levels, TableReader, Wanted, read_all, recode};
pub use rows::{TableBatch, TableRows};

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::bail_input;

/// What the values of a column are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ColumnType {
    /// Numbers.
    Number,
    /// One of a few texts.
    Category,
}

/// How a table file is written; what is left out is found out from its beginning.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TableForm {
    /// Names of the columns of a file without a header.
    pub columns: Option<Vec<String>>,
    /// The character between fields.
    pub delimiter: Option<char>,
    /// Whether fields may stand in double quotes.
    pub quoting: Option<bool>,
    /// Types of columns that are not to be guessed.
    pub types: BTreeMap<String, ColumnType>,
}

/// Where a table is.
#[derive(Clone, Debug, PartialEq)]
pub enum TableSource {
    /// A file, or stdin as `-`.
    Path(PathBuf),
    /// Compiled in.
    Builtin(BuiltinTable),
}

impl TableSource {
    /// What to call it in messages.
    pub fn name(&self) -> String {
        match self {
            TableSource::Path(path) if path.as_os_str() == "-" => "stdin".to_owned(),
            TableSource::Path(path) => path.display().to_string(),
            TableSource::Builtin(table) => format!("the table {}", table.name()),
        }
    }

    /// Opens it for reading from its beginning.
    ///
    /// # Errors
    /// The file is missing, unreadable or a folder.
    pub fn open(&self) -> Result<Box<dyn std::io::Read + Send>> {
        match self {
            TableSource::Path(path) => open_bytes(path),
            TableSource::Builtin(table) => Ok(Box::new(std::io::Cursor::new(builtin(*table)?))),
        }
    }

    /// Whether it can be read more than once.
    pub fn is_repeatable(&self) -> bool {
        !matches!(self, TableSource::Path(path) if path.as_os_str() == "-")
    }
}

/// A column as a recipe names it: by its name in the header.
///
/// # Errors
/// There is no such column; the nearest name is offered.
pub fn find_column(names: &[String], wanted: &str, key: &str, table: &str) -> Result<usize> {
    match names.iter().position(|name| name == wanted) {
        Some(position) => Ok(position),
        None => bail_input!(
            "{key}: {table} has no column `{wanted}`{}",
            crate::recipe::nearest_hint(wanted, names.iter().map(String::as_str))
        ),
    }
}
