//! `describe`: the columns of a table.

use anyhow::Result;
use clap::Args;

use crate::cli::args::EvalFormat;
use crate::cli::print;
use crate::cli::table::align;
use crate::data::table::{ColumnType, TableReader, describe};
use crate::recipe;
use crate::regression::config::TableDataConfig;
use crate::reporting::format::{count, number};

/// Arguments of `describe`.
#[derive(Debug, Args)]
pub struct DescribeArgs {
    /// A table, a compiled-in one by name, or - for stdin
    #[arg(value_name = "FILE|NAME")]
    table: String,
    /// Show how each column is related to this one
    #[arg(long, value_name = "NAME")]
    target: Option<String>,
    #[command(flatten)]
    form: super::args::FormArgs,
    /// Leave out rows that cannot be read, and say how many
    #[arg(long)]
    skip_bad: bool,
    /// How to print
    #[arg(long, value_enum, default_value_t = EvalFormat::Table)]
    format: EvalFormat,
}

/// Runs the verb.
pub fn run(arguments: &DescribeArgs) -> Result<()> {
    let mut value = serde_json::json!({ "data": {} });
    let settings = TableDataConfig::settings(&arguments.table).into_iter().chain(arguments.form.settings()?);
    for (key, setting) in settings {
        recipe::set(&mut value, key, setting)?;
    }
    let data: TableDataConfig = recipe::typed(value["data"].take(), "the flags")?;
    let mut reader = TableReader::open(&data.source()?, &data.form())?;
    if arguments.skip_bad {
        reader.skip_bad_rows();
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let found = describe(&mut reader, arguments.target.as_deref(), threads)?;
    if arguments.format == EvalFormat::Json {
        return print(&serde_json::to_string_pretty(&found)?);
    }
    let mut head: Vec<String> =
        ["column", "type", "missing", "distinct", "min", "mean", "std", "median", "max"]
            .map(str::to_owned)
            .to_vec();
    if arguments.target.is_some() {
        head.push("relation".to_owned());
    }
    let mut table = vec![head];
    let told = |value: Option<f64>| value.map_or_else(String::new, number);
    for column in &found.columns {
        let mut row = vec![
            column.name.clone(),
            match column.kind {
                ColumnType::Number => "number".to_owned(),
                ColumnType::Category => "category".to_owned(),
            },
            count(column.missing),
            count(column.distinct as u64),
            told(column.min),
            told(column.mean),
            told(column.std),
            told(column.median),
            told(column.max),
        ];
        if arguments.target.is_some() {
            row.push(told(column.relation));
        }
        table.push(row);
    }
    let mut lines = vec![
        format!("{}: {} rows, {} columns", found.table, count(found.rows), found.columns.len()),
        String::new(),
        align(&table, 2),
    ];
    for column in &found.columns {
        if !column.frequent.is_empty() {
            let listed: Vec<String> =
                column.frequent.iter().map(|(text, rows)| format!("{text} {}", count(*rows))).collect();
            let more = if column.distinct > listed.len() { ", …" } else { "" };
            lines.push(format!("{}: {}{more}", column.name, listed.join(", ")));
        }
        if column.infinite > 0 {
            lines.push(format!("{}: {} values are infinite", column.name, count(column.infinite)));
        }
    }
    if found.skipped > 0 {
        lines.push(format!("{} rows that cannot be read were left out", count(found.skipped)));
    }
    print(&lines.join("\n"))
}
