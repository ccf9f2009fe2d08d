//! Files of texts: TSV, CSV, JSON lines and plain text.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::tokenizer::UnknownText;
use crate::data::table::{Dialect, open_bytes};
use crate::error::BadInput;
use crate::recipe::nearest_hint;
use crate::{bad_input, bail_input, files};

/// How a file of texts is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TextFormat {
    /// Fields between tabs, a header line; `"` is a character like any other, as in GLUE's files.
    Tsv,
    /// Fields between commas, a header line; fields may stand in double quotes.
    Csv,
    /// A JSON object on each line.
    Jsonl,
    /// One text on each line; its only column is called `text`.
    Plain,
}

/// How a file is written, where its name does not say it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct TextForm {
    /// The format; by the end of the file's name if left out: `.tsv`, `.csv`, `.jsonl` or `.ndjson`, else plain. `.gz` behind it is looked through.
    pub format: Option<TextFormat>,
    /// Names of the columns of a TSV or CSV file without a header.
    pub columns: Option<Vec<String>>,
    /// Whether fields may stand in double quotes; in CSV if left out.
    pub quoting: Option<bool>,
}

impl TextForm {
    /// The format of a file.
    pub fn of(&self, path: &Path) -> TextFormat {
        let name = path.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
        let name = name.strip_suffix(".gz").unwrap_or(&name);
        self.format.unwrap_or(match name.rsplit('.').next() {
            Some("tsv" | "tab") => TextFormat::Tsv,
            Some("csv") => TextFormat::Csv,
            Some("jsonl" | "ndjson") => TextFormat::Jsonl,
            _ => TextFormat::Plain,
        })
    }
}

/// What a column holds in one row.
#[derive(Clone, Debug, PartialEq)]
pub enum Field {
    /// A text, or the text of a number or truth value.
    Text(String),
    /// A JSON array of them.
    List(Vec<String>),
}

/// A row of a file, with the columns that were asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct TextRow {
    /// Its line in the file, from 1.
    pub line: u64,
    /// In the order in which they were asked for.
    pub fields: Vec<Field>,
}

impl TextRow {
    /// The text of a column; a list's elements with commas between them are no text, so it has none.
    pub fn text(&self, column: usize) -> &str {
        match &self.fields[column] {
            Field::Text(text) => text,
            Field::List(_) => "",
        }
    }
}

/// Rows with where they are from.
#[derive(Clone, Debug)]
pub struct TextTable {
    /// The file, for messages.
    pub name: String,
    /// All rows.
    pub rows: Vec<TextRow>,
}

impl TextTable {
    /// `FILE, line N`.
    pub fn place(&self, row: usize) -> String {
        format!("{}, line {}", self.name, self.rows[row].line)
    }

    /// Puts file and line before what the tokenizer says about a text.
    pub fn blame(&self, error: anyhow::Error) -> anyhow::Error {
        match error.downcast::<UnknownText>() {
            Ok(unknown) if unknown.text < self.rows.len() => {
                bad_input!("{}: {unknown}", self.place(unknown.text))
            }
            Ok(unknown) => bad_input!("{}: {unknown}", self.name),
            Err(error) => error,
        }
    }

    /// Refuses rows whose text in a column is empty or nothing but space.
    ///
    /// # Errors
    /// Names the first such line.
    pub fn require_text(&self, column: usize) -> Result<()> {
        match self.rows.iter().position(|row| row.text(column).trim().is_empty()) {
            Some(row) => {
                bail_input!("{}: the text is empty: fill it in or take the line out", self.place(row))
            }
            None => Ok(()),
        }
    }
}

/// Reads the named columns of a file, gzipped or plain, or of stdin for `-`.
///
/// # Errors
/// The file is missing, empty or no UTF-8; a column is missing (the nearest name is offered); a line has another number of fields than the
/// header, or is no JSON object.
pub fn read_rows(path: &Path, form: &TextForm, columns: &[&str]) -> Result<TextTable> {
    let name = match path.as_os_str() == "-" {
        true => "stdin".to_owned(),
        false => path.display().to_string(),
    };
    let rows = rows_of(open_bytes(path)?, &name, form.of(path), form, columns)
        .map_err(|error| mended(error, path))?;
    if rows.is_empty() {
        bail_input!("{name} holds no text");
    }
    Ok(TextTable { name, rows })
}

/// An error of reading in the words of this project.
fn mended(error: anyhow::Error, path: &Path) -> anyhow::Error {
    match error.downcast::<std::io::Error>() {
        Ok(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::InvalidData
                    | std::io::ErrorKind::InvalidInput
                    | std::io::ErrorKind::UnexpectedEof
            ) =>
        {
            bad_input!("{} is a damaged gzip file: {error}", path.display())
        }
        Ok(error) => files::cannot_read(path, &error),
        Err(error) => error,
    }
}

/// Reads the named columns of a stream; `name` is for messages.
///
/// # Errors
/// Those of [`read_rows`], but a stream without rows is none.
pub fn rows_of(
    reader: Box<dyn Read + Send>,
    name: &str,
    format: TextFormat,
    form: &TextForm,
    columns: &[&str],
) -> Result<Vec<TextRow>> {
    match format {
        TextFormat::Tsv => delimited(reader, name, b'\t', form.quoting.unwrap_or(false), form, columns),
        TextFormat::Csv => delimited(reader, name, b',', form.quoting.unwrap_or(true), form, columns),
        TextFormat::Jsonl => json_lines(reader, name, columns),
        TextFormat::Plain => plain(reader, name, columns),
    }
}

fn delimited(
    reader: Box<dyn Read + Send>,
    name: &str,
    delimiter: u8,
    quoting: bool,
    form: &TextForm,
    columns: &[&str],
) -> Result<Vec<TextRow>> {
    let mut text = Vec::new();
    let mut reader = reader;
    reader.read_to_end(&mut text)?;
    let dialect = Dialect { delimiter, quoted: quoting };
    let (mut place, mut line) = (0, 1);
    let mut next_record = || {
        // Lines without anything are no rows.
        while let Some(end @ (b'\n' | b'\r')) = text.get(place) {
            line += u64::from(*end == b'\n');
            place += 1;
        }
        let (first, start) = (line, place);
        (place < text.len()).then(|| {
            let (fields, next) = dialect.line(&text, place);
            line += memchr::memchr_iter(b'\n', &text[start..next]).count() as u64;
            place = next;
            (first, fields)
        })
    };
    let names: Vec<String> = match &form.columns {
        Some(names) => names.clone(),
        None => match next_record() {
            Some((line, fields)) => {
                fields.iter().map(|field| utf8(field, name, line)).collect::<Result<_>>()?
            }
            None => bail_input!("{name} is empty"),
        },
    };
    let positions =
        columns.iter().map(|wanted| position(&names, wanted, name)).collect::<Result<Vec<_>>>()?;
    let mut rows = Vec::new();
    while let Some((line, fields)) = next_record() {
        if fields.len() != names.len() {
            bail_input!(
                "{name}, line {line}: {} fields where there are {} columns ({}): mend the line{}",
                fields.len(),
                names.len(),
                names.join(", "),
                if quoting { " (data.quoting=false takes `\"` as a character)" } else { "" }
            );
        }
        let wanted = positions.iter().map(|&column| Ok(Field::Text(utf8(&fields[column], name, line)?)));
        rows.push(TextRow { line, fields: wanted.collect::<Result<_>>()? });
    }
    Ok(rows)
}

fn json_lines(reader: Box<dyn Read + Send>, name: &str, columns: &[&str]) -> Result<Vec<TextRow>> {
    let mut rows = Vec::new();
    for_each_line(reader, name, |line, text| {
        if text.trim().is_empty() {
            return Ok(());
        }
        let value: Value = serde_json::from_str(text)
            .map_err(|error| bad_input!("{name}, line {line}: this is no JSON: {error}"))?;
        let Value::Object(object) = value else {
            bail_input!("{name}, line {line}: this is no JSON object, as in {{\"text\": …, \"label\": …}}");
        };
        let field = |wanted: &&str| match object.get(*wanted) {
            Some(Value::Array(list)) => list
                .iter()
                .map(|value| plain_text(value, wanted, name, line))
                .collect::<Result<_>>()
                .map(Field::List),
            Some(value) => plain_text(value, wanted, name, line).map(Field::Text),
            None => bail_input!(
                "{name}, line {line}: there is no `{wanted}`{}",
                nearest_hint(wanted, object.keys().map(String::as_str))
            ),
        };
        rows.push(TextRow { line, fields: columns.iter().map(field).collect::<Result<_>>()? });
        Ok(())
    })?;
    Ok(rows)
}

fn plain_text(value: &Value, column: &str, name: &str, line: u64) -> Result<String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(truth) => Ok(truth.to_string()),
        _ => bail_input!("{name}, line {line}: `{column}` is neither a text nor a number"),
    }
}

fn plain(reader: Box<dyn Read + Send>, name: &str, columns: &[&str]) -> Result<Vec<TextRow>> {
    for wanted in columns {
        position(&["text".to_owned()], wanted, name)?;
    }
    let mut rows = Vec::new();
    for_each_line(reader, name, |line, text| {
        rows.push(TextRow { line, fields: columns.iter().map(|_| Field::Text(text.to_owned())).collect() });
        Ok(())
    })?;
    Ok(rows)
}

/// Calls `take` with the number and the text of each line, without its end.
///
/// # Errors
/// A line is no UTF-8.
pub fn for_each_line(
    reader: Box<dyn Read + Send>,
    name: &str,
    mut take: impl FnMut(u64, &str) -> Result<()>,
) -> Result<()> {
    let mut reader = BufReader::with_capacity(1 << 16, reader);
    let (mut bytes, mut line) = (Vec::new(), 0);
    loop {
        bytes.clear();
        if reader.read_until(b'\n', &mut bytes)? == 0 {
            return Ok(());
        }
        line += 1;
        let text = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        take(line, utf8_ref(text, name, line)?)?;
    }
}

fn utf8(field: &[u8], name: &str, line: u64) -> Result<String> {
    utf8_ref(field, name, line).map(str::to_owned)
}

fn utf8_ref<'a>(field: &'a [u8], name: &str, line: u64) -> Result<&'a str> {
    std::str::from_utf8(field).map_err(|error| {
        anyhow::Error::new(BadInput(format!(
            "{name}, line {line}: byte 0x{:02x} is not UTF-8: save the file as UTF-8",
            field[error.valid_up_to()]
        )))
    })
}

fn position(names: &[String], wanted: &str, file: &str) -> Result<usize> {
    names.iter().position(|name| name == wanted).ok_or_else(|| {
        bad_input!(
            "{file} has no column `{wanted}`{}",
            nearest_hint(wanted, names.iter().map(String::as_str))
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(format: TextFormat, text: &[u8], form: &TextForm, columns: &[&str]) -> Result<Vec<TextRow>> {
        rows_of(Box::new(std::io::Cursor::new(text.to_vec())), "f", format, form, columns)
    }

    fn texts(rows: &[TextRow]) -> Vec<(u64, Vec<&str>)> {
        rows.iter().map(|row| (row.line, (0..row.fields.len()).map(|c| row.text(c)).collect())).collect()
    }

    #[test]
    fn quotes_are_characters_in_tsv_and_quotes_in_csv() -> Result<()> {
        let form = TextForm::default();
        let rows = read(
            TextFormat::Tsv,
            b"sentence\tlabel\n\"a , b\t1\r\nx \"y\t0\n",
            &form,
            &["label", "sentence"],
        )?;
        assert_eq!(texts(&rows), [(2, vec!["1", "\"a , b"]), (3, vec!["0", "x \"y"])]);
        let rows = read(TextFormat::Csv, b"text,label\n\"a, b\nc\",1\nd,0\n", &form, &["text"])?;
        assert_eq!(texts(&rows), [(2, vec!["a, b\nc"]), (4, vec!["d"])]);
        let headless = TextForm { columns: Some(vec!["a".into(), "b".into()]), ..form };
        assert_eq!(texts(&read(TextFormat::Tsv, b"1\t2\n", &headless, &["b"])?), [(1, vec!["2"])]);
        Ok(())
    }

    #[test]
    fn json_lines_and_plain_lines() -> Result<()> {
        let form = TextForm::default();
        let lines = b"{\"text\": \"a\\tb\", \"label\": 3}\n\n{\"label\": [\"x\", \"y\"], \"text\": \"c\"}\n";
        let rows = read(TextFormat::Jsonl, lines, &form, &["text", "label"])?;
        assert_eq!(
            rows[0],
            TextRow { line: 1, fields: vec![Field::Text("a\tb".into()), Field::Text("3".into())] }
        );
        assert_eq!(rows[1].line, 3);
        assert_eq!(rows[1].fields[1], Field::List(vec!["x".into(), "y".into()]));
        let rows = read(TextFormat::Plain, "one\n\nthrée".as_bytes(), &form, &["text"])?;
        assert_eq!(texts(&rows), [(1, vec!["one"]), (2, vec![""]), (3, vec!["thrée"])]);
        Ok(())
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let form = TextForm::default();
        for (format, text, words) in [
            (
                TextFormat::Tsv,
                &b"sentense\tlabel\na\t1\n"[..],
                "f has no column `sentence`: did you mean `sentense`?",
            ),
            (TextFormat::Tsv, b"sentence\tlabel\na\t1\t2\n", "f, line 2: 3 fields where there are 2 columns"),
            (TextFormat::Tsv, b"sentence\tlabel\na\t1\n\xff\t1\n", "f, line 3: byte 0xff is not UTF-8"),
            (TextFormat::Tsv, b"", "f is empty"),
            (TextFormat::Jsonl, b"{\"sentence\": \"a\"}\n{\n", "f, line 2: this is no JSON"),
            (TextFormat::Jsonl, b"[1]\n", "f, line 1: this is no JSON object"),
            (
                TextFormat::Jsonl,
                b"{\"sentance\": \"a\"}\n",
                "f, line 1: there is no `sentence`: did you mean `sentance`?",
            ),
            (TextFormat::Jsonl, b"{\"sentence\": null}\n", "`sentence` is neither a text nor a number"),
        ] {
            let message = read(format, text, &form, &["sentence"]).unwrap_err().to_string();
            assert!(message.contains(words), "{message}");
        }
    }

    #[test]
    fn names_tell_formats() {
        let form = TextForm::default();
        for (name, format) in [
            ("a.tsv", TextFormat::Tsv),
            ("a.CSV.gz", TextFormat::Csv),
            ("a.ndjson", TextFormat::Jsonl),
            ("input.txt", TextFormat::Plain),
            ("-", TextFormat::Plain),
        ] {
            assert_eq!(form.of(Path::new(name)), format, "{name}");
        }
    }
}
