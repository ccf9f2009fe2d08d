//! How a delimited text is written: delimiter, quoting, header, and the types of its columns, found out from its beginning.

use std::borrow::Cow;

use anyhow::Result;

use super::{ColumnType, TableForm};
use crate::{bad_input, bail_input};

/// Delimiters that are tried, in the order in which they win a draw.
const DELIMITERS: [u8; 4] = [b',', b'\t', b';', b'|'];
/// Lines that the delimiter is found out from.
const DELIMITER_LINES: usize = 100;
/// A column is one of numbers where at least this share of its values are numbers; the rest are then mistakes and not categories.
const NUMBERS: f64 = 0.9;

/// How fields are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dialect {
    /// The byte between fields.
    pub delimiter: u8,
    /// Whether a field may stand in double quotes.
    pub quoted: bool,
}

/// What the beginning of a file tells.
#[derive(Clone, Debug)]
pub struct Head {
    /// How fields are told apart.
    pub dialect: Dialect,
    /// Names of all columns.
    pub names: Vec<String>,
    /// Types of all columns.
    pub types: Vec<ColumnType>,
    /// Bytes of the header line; 0 without one.
    pub header_bytes: usize,
    /// Lines of the header.
    pub header_lines: u64,
}

/// Whether a text stands for a missing value: the list of pandas.
pub fn is_missing(text: &[u8]) -> bool {
    matches!(
        text,
        b"" | b"NA"
            | b"N/A"
            | b"n/a"
            | b"NaN"
            | b"nan"
            | b"-NaN"
            | b"-nan"
            | b"NULL"
            | b"null"
            | b"None"
            | b"<NA>"
            | b"#N/A"
            | b"#N/A N/A"
            | b"#NA"
            | b"1.#IND"
            | b"-1.#IND"
            | b"1.#QNAN"
            | b"-1.#QNAN"
    )
}

/// Parses a number; spaces around it do not count.
pub fn number(text: &[u8]) -> Option<f64> {
    fast_float2::parse(text.trim_ascii()).ok()
}

/// Where a field begins and ends.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// First byte of its content, after the opening quote.
    pub start: usize,
    /// Behind the last byte of its content.
    pub end: usize,
    /// Whether its content holds doubled quotes.
    pub doubled: bool,
    /// The delimiter or line end behind it, or the end of the text.
    pub next: usize,
}

impl Field {
    /// The content without quotes.
    pub fn content<'a>(&self, text: &'a [u8]) -> Cow<'a, [u8]> {
        let raw = &text[self.start..self.end];
        if !self.doubled {
            return Cow::Borrowed(raw);
        }
        let mut plain = Vec::with_capacity(raw.len());
        let mut bytes = raw.iter();
        while let Some(&byte) = bytes.next() {
            plain.push(byte);
            if byte == b'"' {
                bytes.next();
            }
        }
        Cow::Owned(plain)
    }
}

impl Dialect {
    /// The field that begins at `start`.
    pub fn field(&self, text: &[u8], start: usize) -> Field {
        let bare_end = |from: usize| {
            memchr::memchr2(self.delimiter, b'\n', &text[from..]).map_or(text.len(), |found| from + found)
        };
        if !self.quoted || text.get(start) != Some(&b'"') {
            let next = bare_end(start);
            let carriage_return =
                next > start && text[next - 1] == b'\r' && text.get(next) != Some(&self.delimiter);
            return Field { start, end: next - usize::from(carriage_return), doubled: false, next };
        }
        let (mut place, mut doubled) = (start + 1, false);
        loop {
            let Some(found) = memchr::memchr(b'"', &text[place..]) else {
                return Field { start: start + 1, end: text.len(), doubled, next: text.len() };
            };
            let quote = place + found;
            if text.get(quote + 1) == Some(&b'"') {
                doubled = true;
                place = quote + 2;
                continue;
            }
            // What stands between the closing quote and the delimiter is left out.
            return Field { start: start + 1, end: quote, doubled, next: bare_end(quote + 1) };
        }
    }

    /// The fields of the line that begins at `start`, and where the next line begins.
    pub fn line<'a>(&self, text: &'a [u8], start: usize) -> (Vec<Cow<'a, [u8]>>, usize) {
        let (mut fields, mut place) = (Vec::new(), start);
        loop {
            let field = self.field(text, place);
            fields.push(field.content(text));
            place = field.next + 1;
            if field.next >= text.len() || text[field.next] == b'\n' {
                return (fields, place.min(text.len()));
            }
        }
    }
}

/// Whether a line holds nothing.
pub fn is_blank(text: &[u8], start: usize) -> bool {
    matches!(text.get(start), Some(b'\n')) || text[start..].starts_with(b"\r\n")
}

impl Head {
    /// Finds out from the beginning of a file how it is written. `whole` says that `text` is all of it.
    ///
    /// # Errors
    /// The file is empty, has no header or one with a name twice, or is not text.
    pub fn find_out(text: &[u8], whole: bool, form: &TableForm, name: &str) -> Result<Head> {
        // A last line that is cut off tells nothing.
        let text = match (whole, memchr::memrchr(b'\n', text)) {
            (false, Some(end)) => &text[..=end],
            _ => text,
        };
        if text.trim_ascii().is_empty() {
            bail_input!("{name} is empty");
        }
        if memchr::memchr(0, text).is_some() {
            bail_input!("{name} is no text: it has a zero byte");
        }
        let delimiter = match form.delimiter {
            Some(delimiter) => u8::try_from(delimiter)
                .ok()
                .filter(u8::is_ascii)
                .ok_or_else(|| bad_input!("data.delimiter: `{delimiter}` is no ASCII character"))?,
            None => find_delimiter(text),
        };
        let quoted = form.quoting.unwrap_or_else(|| has_quotes(text, delimiter));
        let dialect = Dialect { delimiter, quoted };

        let mut start = 0;
        while is_blank(text, start) {
            start += if text[start] == b'\r' { 2 } else { 1 };
        }
        let (names, header_bytes) = match &form.columns {
            Some(names) => (names.clone(), 0),
            None => {
                let (fields, next) = dialect.line(text, start);
                if fields.iter().all(|field| number(field).is_some()) {
                    bail_input!(
                        "{name}: the first line holds numbers only: name the columns with --columns a,b,…"
                    );
                }
                let names = fields.iter().map(|field| utf8(field, name, 1)).collect::<Result<Vec<_>>>()?;
                (names, next)
            }
        };
        for (position, column) in names.iter().enumerate() {
            if column.is_empty() {
                bail_input!(
                    "{name}: column {} has no name in the header: name the columns with --columns",
                    position + 1
                );
            }
            if names[..position].contains(column) {
                bail_input!("{name}: two columns are called `{column}`: rename one");
            }
        }
        for column in form.types.keys() {
            super::find_column(&names, column, "data.types", name)?;
        }

        let mut counts = vec![(0usize, 0usize); names.len()];
        let mut place = header_bytes;
        while place < text.len() {
            if is_blank(text, place) {
                place += if text[place] == b'\r' { 2 } else { 1 };
                continue;
            }
            let (fields, next) = dialect.line(text, place);
            place = next;
            for (field, (values, numbers)) in fields.iter().zip(&mut counts) {
                if !is_missing(field) {
                    *values += 1;
                    *numbers += usize::from(number(field).is_some());
                }
            }
        }
        if place <= header_bytes || text[header_bytes..].trim_ascii().is_empty() {
            bail_input!("{name} has a header and no rows");
        }
        let guess = |(column, &(values, numbers)): (&String, &(usize, usize))| {
            form.types.get(column).copied().unwrap_or(match numbers as f64 >= NUMBERS * values as f64 {
                true => ColumnType::Number,
                false => ColumnType::Category,
            })
        };
        let types = names.iter().zip(&counts).map(guess).collect();
        let header_lines = memchr::memchr_iter(b'\n', &text[..header_bytes]).count() as u64;
        Ok(Head { dialect, names, types, header_bytes, header_lines })
    }
}

/// A text of a file.
pub fn utf8(field: &[u8], name: &str, line: u64) -> Result<String> {
    match std::str::from_utf8(field) {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(error) => bail_input!(
            "{name}, line {line}: byte 0x{:02x} is not UTF-8: save the file as UTF-8",
            field[error.valid_up_to()]
        ),
    }
}

/// The delimiter that parts most lines into the same number of fields, the largest such number.
fn find_delimiter(text: &[u8]) -> u8 {
    let fields = |delimiter: u8| {
        let dialect = Dialect { delimiter, quoted: has_quotes(text, delimiter) };
        let (mut counts, mut place) = (Vec::new(), 0);
        while place < text.len() && counts.len() < DELIMITER_LINES {
            let (fields, next) = dialect.line(text, place);
            if !is_blank(text, place) {
                counts.push(fields.len());
            }
            place = next;
        }
        let first = counts.first().copied().unwrap_or(1);
        let agreeing = counts.iter().filter(|&&count| count == first).count();
        // Nine lines of ten must agree: one broken line is told later, with its number.
        if agreeing * 10 >= counts.len() * 9 { first } else { 1 }
    };
    let best = DELIMITERS
        .into_iter()
        .map(|delimiter| (fields(delimiter), delimiter))
        .rev()
        .max_by_key(|(count, _)| *count);
    match best {
        Some((count, delimiter)) if count > 1 => delimiter,
        _ => b',',
    }
}

/// Whether some field begins with a quote and ends with one: a lone quote, as in inches, is a letter.
fn has_quotes(text: &[u8], delimiter: u8) -> bool {
    let begins = |place: usize| place == 0 || text[place - 1] == delimiter || text[place - 1] == b'\n';
    let ends = |place: usize| {
        matches!(text.get(place + 1), None | Some(b'\n' | b'\r')) || text.get(place + 1) == Some(&delimiter)
    };
    let mut opened = false;
    for place in memchr::memchr_iter(b'"', text) {
        if opened && ends(place) {
            return true;
        }
        opened |= begins(place);
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(text: &str) -> Result<Head> {
        Head::find_out(text.as_bytes(), true, &TableForm::default(), "t.csv")
    }

    #[test]
    fn delimiters_quotes_and_types_are_found() -> Result<()> {
        for (text, delimiter, quoted) in [
            ("a,b\n1,2\n", b',', false),
            ("a\tb\n1\t2,5\n", b'\t', false),
            ("a;b\n1,5;2\n", b';', false),
            ("a|b\n1|\"x|y\"\n", b'|', true),
            ("size,note\n5\",x\n6\",y\n", b',', false),
        ] {
            let found = head(text)?;
            assert_eq!(found.dialect, Dialect { delimiter, quoted }, "{text:?}");
            assert_eq!(found.names.len(), 2);
        }
        let found = head("\r\nn,c,mixed\r\n1,x,1\r\n,y,oops\r\n3,x,3\r\n4,y,4\r\n")?;
        assert_eq!(found.types, [ColumnType::Number, ColumnType::Category, ColumnType::Category]);
        assert_eq!(found.names, ["n", "c", "mixed"]);
        Ok(())
    }

    #[test]
    fn fields_in_quotes_keep_delimiters_line_ends_and_doubled_quotes() {
        let dialect = Dialect { delimiter: b',', quoted: true };
        let text = b"\"a,\"\"b\"\"\nc\",2\r\nnext";
        let (fields, next) = dialect.line(text, 0);
        assert_eq!(fields[0].as_ref(), b"a,\"b\"\nc");
        assert_eq!(fields[1].as_ref(), b"2");
        assert_eq!(&text[next..], b"next");
    }

    #[test]
    fn what_is_no_table_is_refused() {
        for (text, words) in [
            ("", "is empty"),
            ("  \n \n", "is empty"),
            ("a,b\n", "no rows"),
            ("1,2\n3,4\n", "--columns"),
            ("a,a\n1,2\n", "two columns are called `a`"),
            ("a,\n1,2\n", "column 2 has no name"),
            ("a,b\0\n1,2\n", "zero byte"),
        ] {
            let message = head(text).unwrap_err().to_string();
            assert!(message.contains(words), "{text:?}: {message}");
        }
        let latin1 = Head::find_out(b"a,\xfcber\n1,2\n", true, &TableForm::default(), "t.csv");
        assert!(latin1.unwrap_err().to_string().contains("0xfc is not UTF-8"));
    }
}
