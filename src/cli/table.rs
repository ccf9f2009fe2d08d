//! Tables for people.

/// Columns of equal width, two spaces between them; those from number `first_right` on stand to the right.
pub fn align<Row: AsRef<[String]>>(table: &[Row], first_right: usize) -> String {
    let columns = table.iter().map(|row| row.as_ref().len()).max().unwrap_or(0);
    let cell = |row: &Row, column: usize| row.as_ref().get(column).cloned().unwrap_or_default();
    let width = |column: usize| table.iter().map(|row| cell(row, column).chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Row| {
        let padded = |column: usize| match column < first_right {
            true => format!("{:width$}", cell(row, column), width = widths[column]),
            false => format!("{:>width$}", cell(row, column), width = widths[column]),
        };
        (0..columns).map(padded).collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    table.iter().map(line).collect::<Vec<_>>().join("\n")
}
