//! Reads a table: chunks of lines are parsed on all threads and come out as blocks of rows in the order of the file. Parquet files are
//! decoded by [`super::parquet`] instead, under the same plan.

use std::collections::{BTreeMap, HashMap};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Result, anyhow};
use tch::{Device, Kind, Tensor};

use super::bytes::Chunks;
use super::dialect::{Dialect, Head, is_blank, is_missing, number, utf8};
use super::parquet::{MAGIC, ParquetTable};
use super::{ColumnType, TableForm, TableSource, find_column};
use crate::{bad_input, bail_input};

/// Bytes at the beginning of a file from which dialect and types are found out.
const HEAD_BYTES: usize = 1 << 20;

/// What a column is wanted as.
#[derive(Clone, Debug, PartialEq)]
pub enum Wanted {
    /// Whatever its type is found to be. More categories than `limit` are an error.
    Feature {
        /// Most distinct texts.
        limit: usize,
    },
    /// Numbers; text is an error.
    Number,
    /// Texts, however many, also where they look like numbers.
    Category,
    /// One of these texts, coded by position. Another one is an error, or coded as `otherwise`.
    OneOf {
        /// The known texts.
        levels: Vec<String>,
        /// The code of every other text.
        otherwise: Option<f64>,
    },
    /// Numbers and texts as they come, for a description: no value is refused, and of texts no more than `limit` are told apart.
    Anything {
        /// Most distinct texts.
        limit: usize,
    },
}

/// A column that is wanted.
#[derive(Clone, Debug, PartialEq)]
pub struct ColumnRequest {
    /// Its name.
    pub name: String,
    /// As what.
    pub wanted: Wanted,
}

/// The texts of a category column. The code of a text is its position.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Levels {
    /// In ascending order; numbers by their value.
    pub texts: Vec<String>,
    /// Whether there were more than were told apart.
    pub overflow: bool,
}

/// Reads wanted columns of a table.
pub struct TableReader {
    name: String,
    head: Head,
    body: Body,
    form: TableForm,
    skip_bad: bool,
    skipped: u64,
    missing: Vec<u64>,
}

/// Where the rows come from.
enum Body {
    Text(Chunks),
    Parquet(ParquetTable),
}

impl TableReader {
    /// Opens a table and finds out how it is written.
    ///
    /// # Errors
    /// As [`TableSource::open`] and [`Head::find_out`].
    pub fn open(source: &TableSource, form: &TableForm) -> Result<Self> {
        let name = source.name();
        if let Some(table) = ParquetTable::open(source)? {
            let head = table.head(form)?;
            let body = Body::Parquet(table);
            return Ok(Self {
                name,
                head,
                body,
                form: form.clone(),
                skip_bad: false,
                skipped: 0,
                missing: Vec::new(),
            });
        }
        let mut chunks = Chunks::new(source.open()?, &name);
        if chunks.peek(HEAD_BYTES)?.starts_with(MAGIC) {
            bail_input!("{name} is a Parquet file, which is read from its end: give it as a file, unpacked");
        }
        let whole = chunks.ended();
        let head = Head::find_out(chunks.peek(HEAD_BYTES)?, whole, form, &name)?;
        chunks.skip(head.header_bytes);
        chunks.set_quoted(head.dialect.quoted);
        let body = Body::Text(chunks);
        Ok(Self { name, head, body, form: form.clone(), skip_bad: false, skipped: 0, missing: Vec::new() })
    }

    /// What the beginning of the file told.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// What to call the table in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Leaves out rows that cannot be read, and counts them, instead of stopping at the first.
    pub fn skip_bad_rows(&mut self) {
        self.skip_bad = true;
    }

    /// How many rows were left out.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// How many rows of the last reading have no value, for each of its requests.
    pub fn missing(&self) -> &[u64] {
        &self.missing
    }

    /// Reads to the end and hands each block `[rows, requests]` (float64) to `consume`, in the order of the file. Categories carry codes
    /// in the order of their first appearance to some thread; [`recode`] with what this returns puts them in the order of the levels.
    ///
    /// # Errors
    /// The first row that cannot be read, with its line.
    pub fn read(
        &mut self,
        requests: &[ColumnRequest],
        threads: usize,
        consume: &mut dyn FnMut(Tensor) -> Result<()>,
    ) -> Result<Vec<Option<Levels>>> {
        self.read_keeping(requests, &[], threads, &mut |block, _| consume(block))
    }

    /// As [`TableReader::read`], and hands on the texts of further columns as they stand in the file, row by row.
    pub fn read_keeping(
        &mut self,
        requests: &[ColumnRequest],
        keep: &[String],
        threads: usize,
        consume: &mut dyn FnMut(Tensor, Vec<String>) -> Result<()>,
    ) -> Result<Vec<Option<Levels>>> {
        let mut plan = Plan::new(&self.head, requests, &self.form, &self.name, self.skip_bad)?;
        for column in keep {
            plan.keep.push(find_column(&self.head.names, column, "--keep", &self.name)?);
        }
        let first_line = self.head.header_lines;
        let chunks = match &mut self.body {
            Body::Text(chunks) => Mutex::new(chunks),
            Body::Parquet(table) => {
                let tally = table.read(&plan, consume)?;
                self.skipped += tally.skipped;
                self.missing = tally.missing;
                return plan.levels();
            }
        };
        let threads = threads.max(1);
        let mut order = InOrder { next: 0, line: first_line, waiting: BTreeMap::new() };
        let mut tally = Tally::new(plan.width);
        std::thread::scope(|scope| -> Result<()> {
            let (sender, receiver) = sync_channel::<(usize, Result<Parsed>)>(threads);
            for _ in 0..threads {
                let (sender, chunks, plan) = (sender.clone(), &chunks, &plan);
                scope.spawn(move || {
                    let (mut bytes, mut parser) = (Vec::new(), Parser::new(plan));
                    loop {
                        let next = lock(chunks).next(&mut bytes);
                        let (number, parsed) = match next {
                            Ok(Some(number)) => (number, parser.parse(&bytes)),
                            Ok(None) => return,
                            Err(error) => (usize::MAX, Err(error)),
                        };
                        let failed = parsed.is_err();
                        if sender.send((number, parsed)).is_err() || failed {
                            return;
                        }
                    }
                });
            }
            drop(sender);
            for (number, parsed) in receiver {
                order.waiting.insert(number, parsed?);
                while let Some(parsed) = order.waiting.remove(&order.next) {
                    if let Some(flaw) = parsed.flaw {
                        return Err(bad_input!(
                            "{}, line {}{}",
                            self.name,
                            order.line + flaw.line + 1,
                            flaw.message
                        ));
                    }
                    order.next += 1;
                    order.line += parsed.lines;
                    tally.add(&parsed.tally);
                    if let Some(block) = parsed.block {
                        consume(block, parsed.kept)?;
                    }
                }
            }
            Ok(())
        })?;
        self.skipped += tally.skipped;
        self.missing = tally.missing;
        plan.levels()
    }
}

/// What was counted while reading.
pub(super) struct Tally {
    /// Rows that were left out.
    pub skipped: u64,
    /// Missing values of each request in the other rows.
    pub missing: Vec<u64>,
}

impl Tally {
    pub fn new(width: usize) -> Self {
        Self { skipped: 0, missing: vec![0; width] }
    }

    pub fn add(&mut self, other: &Tally) {
        self.skipped += other.skipped;
        for (total, count) in self.missing.iter_mut().zip(&other.missing) {
            *total += count;
        }
    }

    /// Counts the missing values of rows.
    pub fn count_missing(&mut self, values: &[f64]) {
        for row in values.chunks_exact(self.missing.len().max(1)) {
            for (total, value) in self.missing.iter_mut().zip(row) {
                *total += u64::from(value.is_nan());
            }
        }
    }
}

/// Blocks that came before their turn.
struct InOrder {
    next: usize,
    /// Lines before the next chunk.
    line: u64,
    waiting: BTreeMap<usize, Parsed>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What to do with each field of a row.
pub(super) struct Plan<'a> {
    pub name: &'a str,
    dialect: Dialect,
    names: &'a [String],
    /// For each column of the file.
    pub fields: Vec<Target>,
    /// In the order of the requests; none for numbers.
    dictionaries: Vec<Option<Dictionary>>,
    pub width: usize,
    /// Columns wanted more than once: (from, to).
    copies: Vec<(usize, usize)>,
    /// Positions of columns whose text is handed on.
    pub keep: Vec<usize>,
    pub skip_bad: bool,
}

#[derive(Clone, Copy)]
pub(super) enum Target {
    /// Nobody wants it.
    Skip,
    /// A number for this request.
    Number { request: usize, strict: bool },
    /// A text for this request.
    Category { request: usize },
}

/// The code of each text, and the text of each code.
type Codes = (HashMap<Arc<str>, f64>, Vec<Arc<str>>);

/// Texts with their codes, shared by all threads.
struct Dictionary {
    codes: Mutex<Codes>,
    limit: usize,
    /// Whether reaching the limit is an error.
    strict: bool,
    fixed: Option<Option<f64>>,
}

impl Dictionary {
    fn open(limit: usize, strict: bool) -> Self {
        Self { codes: Mutex::default(), limit, strict, fixed: None }
    }

    fn fixed(levels: &[String], otherwise: Option<f64>) -> Self {
        let texts: Vec<Arc<str>> = levels.iter().map(|text| Arc::from(text.as_str())).collect();
        let codes = texts.iter().enumerate().map(|(code, text)| (text.clone(), code as f64)).collect();
        Self { codes: Mutex::new((codes, texts)), limit: usize::MAX, strict: true, fixed: Some(otherwise) }
    }

    /// The code of a text; an error says why it has none.
    fn code(&self, text: &str) -> std::result::Result<f64, String> {
        let mut shared = lock(&self.codes);
        if let Some(&code) = shared.0.get(text) {
            return Ok(code);
        }
        match self.fixed {
            Some(Some(otherwise)) => return Ok(otherwise),
            Some(None) => {
                let known =
                    shared.1.iter().take(12).map(|text| text.to_string()).collect::<Vec<_>>().join(", ");
                return Err(format!(
                    "has the category `{text}`, which the model does not know (known: {known}): correct it, or predict it as the reference with --unseen reference"
                ));
            }
            None => {}
        }
        let code = shared.1.len();
        if code >= self.limit {
            return match self.strict {
                true => Err(format!(
                    "has more than {} distinct texts: leave it out with --drop, or raise data.max_categories",
                    self.limit
                )),
                false => Ok(self.limit as f64),
            };
        }
        let text: Arc<str> = Arc::from(text);
        shared.0.insert(text.clone(), code as f64);
        shared.1.push(text);
        Ok(code as f64)
    }
}

impl<'a> Plan<'a> {
    fn new(
        head: &'a Head,
        requests: &[ColumnRequest],
        form: &TableForm,
        name: &'a str,
        skip_bad: bool,
    ) -> Result<Self> {
        let mut fields = vec![Target::Skip; head.names.len()];
        let (mut dictionaries, mut copies) = (Vec::new(), Vec::new());
        for (request, wanted) in requests.iter().enumerate() {
            let position = find_column(&head.names, &wanted.name, "data", name)?;
            let kind = form.types.get(&wanted.name).copied().unwrap_or(head.types[position]);
            let (target, dictionary) = match (&wanted.wanted, kind) {
                (Wanted::Number, _) | (Wanted::Feature { .. }, ColumnType::Number) => {
                    (Target::Number { request, strict: true }, None)
                }
                (Wanted::Anything { .. }, ColumnType::Number) => {
                    (Target::Number { request, strict: false }, None)
                }
                (Wanted::Feature { limit }, ColumnType::Category) => {
                    (Target::Category { request }, Some(Dictionary::open(*limit, true)))
                }
                (Wanted::Anything { limit }, ColumnType::Category) => {
                    (Target::Category { request }, Some(Dictionary::open(*limit, false)))
                }
                (Wanted::Category, _) => {
                    (Target::Category { request }, Some(Dictionary::open(usize::MAX, true)))
                }
                (Wanted::OneOf { levels, otherwise }, _) => {
                    (Target::Category { request }, Some(Dictionary::fixed(levels, *otherwise)))
                }
            };
            match fields[position] {
                Target::Skip => fields[position] = target,
                Target::Number { request: from, .. } | Target::Category { request: from } => {
                    copies.push((from, request));
                }
            }
            dictionaries.push(dictionary);
        }
        Ok(Self {
            name,
            dialect: head.dialect,
            names: &head.names,
            fields,
            dictionaries,
            width: requests.len(),
            copies,
            keep: Vec::new(),
            skip_bad,
        })
    }

    /// The value of a field that should be a number.
    pub fn number(&self, content: &[u8], strict: bool, column: usize) -> std::result::Result<f64, String> {
        let name = &self.names[column];
        match number(content) {
            _ if is_missing(content) => Ok(f64::NAN),
            Some(value) => self.checked(value, strict, column),
            None if strict => {
                let text: String = String::from_utf8_lossy(content).chars().take(40).collect();
                Err(format!(
                    ": column `{name}` holds `{text}`, which is no number: correct it, or read the column as text with --types {name}=category"
                ))
            }
            None => Ok(f64::NAN),
        }
    }

    /// A number, unless it is infinite where that is refused.
    pub fn checked(&self, value: f64, strict: bool, column: usize) -> std::result::Result<f64, String> {
        match strict && value.is_infinite() {
            true => Err(format!(": column `{}` is infinite", self.names[column])),
            false => Ok(value),
        }
    }

    /// Fills in the columns of a row that are wanted more than once.
    pub fn copy(&self, row: &mut [f64]) -> std::result::Result<(), String> {
        for &(from, to) in &self.copies {
            row[to] = match &self.dictionaries[to] {
                // A column that is wanted as number and as category takes its code from the number's text.
                Some(dictionary) if self.dictionaries[from].is_none() => match row[from] {
                    value if value.is_nan() => f64::NAN,
                    value => dictionary.code(&value.to_string()).map_err(|why| format!(": {why}"))?,
                },
                _ => row[from],
            };
        }
        Ok(())
    }

    /// The texts found, in the order of their codes.
    fn levels(self) -> Result<Vec<Option<Levels>>> {
        let levels = |dictionary: Option<Dictionary>| {
            dictionary.map(|dictionary| {
                let limit = dictionary.limit;
                let (_, texts) = dictionary.codes.into_inner().unwrap_or_else(PoisonError::into_inner);
                let overflow = texts.len() >= limit;
                Levels { texts: texts.iter().map(|text| text.to_string()).collect(), overflow }
            })
        };
        Ok(self.dictionaries.into_iter().map(levels).collect())
    }
}

/// A chunk that was parsed.
struct Parsed {
    /// `[rows, requests]`; none where no row was left.
    block: Option<Tensor>,
    /// Texts of the columns to keep, row by row.
    kept: Vec<String>,
    lines: u64,
    tally: Tally,
    flaw: Option<Flaw>,
}

/// What is wrong with a row.
struct Flaw {
    /// Lines before it in its chunk.
    line: u64,
    /// What to say after the file and the line.
    message: String,
}

/// A thread's part of the reading.
pub(super) struct Parser<'a> {
    plan: &'a Plan<'a>,
    values: Vec<f64>,
    /// Codes that this thread has asked for before.
    known: Vec<HashMap<Vec<u8>, f64>>,
}

impl<'a> Parser<'a> {
    pub fn new(plan: &'a Plan<'a>) -> Self {
        Self { plan, values: Vec::new(), known: vec![HashMap::new(); plan.width] }
    }

    fn parse(&mut self, text: &[u8]) -> Result<Parsed> {
        self.values.clear();
        let (mut place, mut line, mut flaw) = (0, 0, None);
        let mut tally = Tally::new(self.plan.width);
        let mut kept = Vec::new();
        while place < text.len() {
            if is_blank(text, place) {
                place += if text[place] == b'\r' { 2 } else { 1 };
                line += 1;
                continue;
            }
            let row = self.values.len();
            self.values.resize(row + self.plan.width, f64::NAN);
            match self.row(text, place, row) {
                Ok((next, lines)) => {
                    if !self.plan.keep.is_empty() {
                        let fields = self.plan.dialect.line(text, place).0;
                        let text = |&column: &usize| String::from_utf8_lossy(&fields[column]).into_owned();
                        kept.extend(self.plan.keep.iter().map(text));
                    }
                    (place, line) = (next, line + lines);
                }
                Err(_) if self.plan.skip_bad => {
                    self.values.truncate(row);
                    tally.skipped += 1;
                    let (_, next) = self.plan.dialect.line(text, place);
                    line += memchr::memchr_iter(b'\n', &text[place..next]).count() as u64;
                    place = next;
                }
                Err(message) => {
                    flaw = Some(Flaw { line, message });
                    break;
                }
            }
        }
        let rows = self.values.len().checked_div(self.plan.width).unwrap_or(0) as i64;
        let block = match flaw.is_none() && rows > 0 {
            true => Some(Tensor::f_from_slice(&self.values)?.f_view([rows, self.plan.width as i64])?),
            false => None,
        };
        tally.count_missing(&self.values);
        Ok(Parsed { block, kept, lines: line, tally, flaw })
    }

    /// Parses the row at `start` into `values[row..]` and returns where the next one begins and how many lines this one had.
    fn row(&mut self, text: &[u8], start: usize, row: usize) -> std::result::Result<(usize, u64), String> {
        let plan = self.plan;
        let (mut place, mut count, mut lines) = (start, 0, 1);
        loop {
            let Some(&target) = plan.fields.get(count) else {
                return Err(self.wrong_count(text, start));
            };
            count += 1;
            let next = match target {
                Target::Number { request, strict } => {
                    // Most fields are a number with nothing around it: parsed without looking for its end first.
                    let parsed = match text[place..].first() {
                        Some(b'0'..=b'9' | b'-' | b'.') => {
                            fast_float2::parse_partial::<f64, _>(&text[place..]).ok()
                        }
                        _ => None,
                    };
                    let ends = |end: usize| match text.get(end) {
                        None | Some(b'\n') => true,
                        Some(b'\r') => text.get(end + 1) == Some(&b'\n'),
                        Some(&byte) => byte == plan.dialect.delimiter,
                    };
                    match parsed {
                        Some((value, length)) if value.is_finite() && ends(place + length) => {
                            self.values[row + request] = value;
                            let end = place + length;
                            if text.get(end) == Some(&b'\r') && plan.dialect.delimiter != b'\r' {
                                end + 1
                            } else {
                                end
                            }
                        }
                        _ => {
                            let field = plan.dialect.field(text, place);
                            let content = field.content(text);
                            let content = content.trim_ascii();
                            self.values[row + request] = plan.number(content, strict, count - 1)?;
                            lines += line_ends(&text[place..field.next.min(text.len())]);
                            field.next
                        }
                    }
                }
                Target::Category { request } => {
                    let field = plan.dialect.field(text, place);
                    let content = field.content(text);
                    let content = content.trim_ascii();
                    self.values[row + request] = self.code(content, request, count - 1)?;
                    lines += line_ends(&text[field.start..field.end]);
                    field.next
                }
                Target::Skip => {
                    let field = plan.dialect.field(text, place);
                    if plan.dialect.quoted {
                        lines += line_ends(&text[field.start..field.end]);
                    }
                    field.next
                }
            };
            place = next + 1;
            if next >= text.len() || text[next] == b'\n' {
                break;
            }
        }
        if count != plan.fields.len() {
            return Err(self.wrong_count(text, start));
        }
        plan.copy(&mut self.values[row..])?;
        Ok((place.min(text.len()), lines))
    }

    /// The code of a text for a request.
    pub fn code(
        &mut self,
        content: &[u8],
        request: usize,
        column: usize,
    ) -> std::result::Result<f64, String> {
        if is_missing(content) {
            return Ok(f64::NAN);
        }
        if let Some(&code) = self.known[request].get(content) {
            return Ok(code);
        }
        let name = &self.plan.names[column];
        let text = utf8(content, "", 0)
            .map_err(|_| format!(": column `{name}` is not UTF-8: save the file as UTF-8"))?;
        let Some(dictionary) = &self.plan.dictionaries[request] else { return Ok(f64::NAN) };
        let code = dictionary.code(&text).map_err(|why| format!(": column `{name}` {why}"))?;
        // A column of names would fill the memory.
        if self.known[request].len() < 10_000 {
            self.known[request].insert(content.to_vec(), code);
        }
        Ok(code)
    }

    fn wrong_count(&self, text: &[u8], start: usize) -> String {
        let found = self.plan.dialect.line(text, start).0.len();
        let s = if found == 1 { "" } else { "s" };
        format!(" has {found} field{s} where {} has {} columns", self.plan.name, self.plan.fields.len())
    }
}

fn line_ends(text: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', text).count() as u64
}

impl Levels {
    /// The same levels in ascending order (numbers by value, and before texts), and the new code of each old one.
    pub fn sorted(&self) -> (Levels, Vec<f64>) {
        let key = |text: &str| number(text.as_bytes());
        let mut order: Vec<usize> = (0..self.texts.len()).collect();
        order.sort_by(|&a, &b| {
            let (left, right) = (&self.texts[a], &self.texts[b]);
            match (key(left), key(right)) {
                (Some(x), Some(y)) => x.total_cmp(&y).then_with(|| left.cmp(right)),
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (None, None) => left.cmp(right),
            }
        });
        let mut codes = vec![0.0; order.len()];
        for (new, &old) in order.iter().enumerate() {
            codes[old] = new as f64;
        }
        let texts = order.iter().map(|&old| self.texts[old].clone()).collect();
        (Levels { texts, overflow: self.overflow }, codes)
    }
}

/// Replaces the codes in one column of a block in place: code `c` becomes `codes[c]`, NaN and codes without an entry become NaN.
pub fn recode(block: &Tensor, column: i64, codes: &[f64]) -> Result<()> {
    let with_missing: Vec<f64> = codes.iter().copied().chain([f64::NAN]).collect();
    // The tables of the reader are in the host's memory.
    let lookup = Tensor::f_from_slice(&with_missing)?.f_to_device(Device::Cpu)?;
    let mut values = block.f_select(1, column)?;
    let missing = codes.len() as f64;
    let positions =
        values.f_nan_to_num(missing, missing, missing)?.f_clamp(0.0, missing)?.f_to_kind(Kind::Int64)?;
    values.f_copy_(&lookup.f_index_select(0, &positions)?).map_err(|error| anyhow!(error))
}

/// Reads all wanted columns at once, with the categories in the order of their levels.
///
/// # Errors
/// As [`TableReader::read`]; no row is left.
pub fn read_all(
    reader: &mut TableReader,
    requests: &[ColumnRequest],
    threads: usize,
) -> Result<(Vec<Tensor>, Vec<Option<Levels>>)> {
    let mut blocks = Vec::new();
    let levels = reader.read(requests, threads, &mut |block| {
        blocks.push(block);
        Ok(())
    })?;
    if blocks.is_empty() {
        bail_input!("{} has no row that can be read", reader.name());
    }
    let mut sorted = Vec::with_capacity(levels.len());
    for (column, (levels, request)) in levels.into_iter().zip(requests).enumerate() {
        sorted.push(match levels {
            Some(levels) if !matches!(request.wanted, Wanted::OneOf { .. }) => {
                let (levels, codes) = levels.sorted();
                for block in &blocks {
                    recode(block, column as i64, &codes)?;
                }
                Some(levels)
            }
            other => other,
        });
    }
    Ok((blocks, sorted))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn table(name: &str, text: &[u8]) -> Result<(std::path::PathBuf, TableSource)> {
        let path = std::env::temp_dir().join(format!("tch-suite-table-{name}-{}.csv", std::process::id()));
        std::fs::File::create(&path)?.write_all(text)?;
        Ok((path.clone(), TableSource::Path(path)))
    }

    fn request(name: &str, wanted: Wanted) -> ColumnRequest {
        ColumnRequest { name: name.to_owned(), wanted }
    }

    fn rows(blocks: &[Tensor]) -> Result<Vec<Vec<f64>>> {
        Ok(Vec::<Vec<f64>>::try_from(Tensor::f_cat(blocks, 0)?)?)
    }

    #[test]
    fn values_categories_and_missing_ones_come_in_the_order_of_the_file() -> Result<()> {
        let text = b"\xef\xbb\xbfn,unused,c\r\n1.5,\"x,\ny\",b\r\n\r\n,z, a \r\n-2e3,z,NA\r\n+4,z,\"b\"";
        let (path, source) = table("values", text)?;
        let requests = [request("c", Wanted::Feature { limit: 5 }), request("n", Wanted::Number)];
        let mut reader = TableReader::open(&source, &TableForm::default())?;
        let (blocks, levels) = read_all(&mut reader, &requests, 2)?;
        let found = rows(&blocks)?;
        let expected = [[1.0, 1.5], [0.0, f64::NAN], [f64::NAN, -2000.0], [1.0, 4.0]];
        assert_eq!(format!("{found:?}"), format!("{expected:?}"));
        assert_eq!(
            levels[0].as_ref().map(|levels| levels.texts.clone()),
            Some(vec!["a".to_owned(), "b".to_owned()])
        );
        Ok(std::fs::remove_file(path)?)
    }

    #[test]
    fn large_files_are_the_same_on_any_number_of_threads_and_flaws_have_their_line() -> Result<()> {
        let mut text = "a,b,c\n".to_owned();
        for row in 0..300_000 {
            text.push_str(&format!("{row},{},k{}\n", row as f64 / 7.0, row % 11));
        }
        let (path, source) = table("large", text.as_bytes())?;
        let requests = ["a", "b", "c"].map(|name| request(name, Wanted::Feature { limit: 100 }));
        let mut all = Vec::new();
        for threads in [1, 3] {
            let mut reader = TableReader::open(&source, &TableForm::default())?;
            let (blocks, levels) = read_all(&mut reader, &requests, threads)?;
            assert!(blocks.len() > 1);
            assert_eq!(levels[2].as_ref().map(|levels| levels.texts.len()), Some(11));
            all.push(rows(&blocks)?);
        }
        assert_eq!(all[0], all[1]);
        assert_eq!(all[0].len(), 300_000);
        assert_eq!(all[0][299_999][1], 299_999.0 / 7.0);

        let broken = text.replace("\n250000,", "\n250000,9,").replace("\n270000,", "\nx,");
        std::fs::write(&path, broken)?;
        let read = |skip: bool| -> Result<(usize, u64)> {
            let mut reader = TableReader::open(&source, &TableForm::default())?;
            if skip {
                reader.skip_bad_rows();
            }
            let (blocks, _) = read_all(&mut reader, &requests, 2)?;
            Ok((rows(&blocks)?.len(), reader.skipped()))
        };
        let message = read(false).unwrap_err().to_string();
        assert!(message.contains("line 250002 has 4 fields"), "{message}");
        assert_eq!(read(true)?, (299_998, 2));
        Ok(std::fs::remove_file(path)?)
    }

    #[test]
    fn bad_values_are_told_with_line_column_and_value() -> Result<()> {
        let long = "1,x\n".repeat(40);
        for (text, words) in [
            (format!("a,b\n{long}inf,x\n"), "line 42: column `a` is infinite"),
            (format!("a,b\n{long}12a,x\n"), "line 42: column `a` holds `12a`, which is no number"),
            (format!("a,b\n{long}1\n"), "line 42 has 1 field where"),
            ("a,b\n1,p\n2,q\n3,r\n".to_owned(), "column `b` has more than 2 distinct texts"),
        ] {
            let (path, source) = table("bad", text.as_bytes())?;
            let requests = ["a", "b"].map(|name| request(name, Wanted::Feature { limit: 2 }));
            let mut reader = TableReader::open(&source, &TableForm::default())?;
            let message = read_all(&mut reader, &requests, 1).map(|_| ()).unwrap_err().to_string();
            assert!(message.contains(words), "{message}");
            std::fs::remove_file(path)?;
        }
        let (path, source) = table("latin1", b"a,b\n1,\xfcber\n")?;
        let mut reader = TableReader::open(&source, &TableForm::default())?;
        let message =
            read_all(&mut reader, &[request("b", Wanted::Category)], 1).map(|_| ()).unwrap_err().to_string();
        assert!(message.contains("line 2: column `b` is not UTF-8"), "{message}");
        Ok(std::fs::remove_file(path)?)
    }
}
