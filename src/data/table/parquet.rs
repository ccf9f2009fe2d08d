//! Parquet files: the wanted columns, decoded some thousand rows at a time.
//!
//! Numbers keep their values (64-bit integers as float64 where they are wanted as numbers, exactly where they name a class), decimals are
//! divided out, truth values are 0 and 1 (as classes `false` and `true`), dates and times are the numbers of the file in its own unit. Fields of
//! structures are columns with dotted names. Lists and types without a number or a text cannot be read, and are refused where they are wanted.

use std::borrow::Cow;
use std::fs::File;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::{Result, anyhow};
use parquet::basic::{ConvertedType, LogicalType, Type as PhysicalType};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, DataType, FixedLenByteArray};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::schema::types::ColumnDescriptor;
use tch::Tensor;

use super::dialect::{Dialect, Head};
use super::reader::{Parser, Plan, Tally, Target};
use super::{ColumnType, TableForm, TableSource};
use crate::data::loader::panic_message;
use crate::{bad_input, bail_input, files};

/// First and last bytes of every Parquet file.
pub(super) const MAGIC: &[u8] = b"PAR1";
/// Values of a block: few enough that it stays in a processor's cache.
const BLOCK_VALUES: usize = 1 << 17;

/// An open file.
pub(super) struct ParquetTable {
    name: String,
    file: SerializedFileReader<File>,
    columns: Vec<Column>,
}

/// A leaf of the schema.
struct Column {
    name: String,
    form: Form,
    /// The definition level of a value that is there.
    present: i16,
}

/// What the values of a column are.
#[derive(Clone, Copy)]
enum Form {
    Truth,
    Integer { unsigned: bool },
    Decimal { scale: u32 },
    Real,
    Text,
    Unreadable(&'static str),
}

impl ParquetTable {
    /// Opens a table if it is a Parquet file.
    ///
    /// # Errors
    /// The file cannot be read, or its footer is damaged.
    pub fn open(source: &TableSource) -> Result<Option<Self>> {
        let TableSource::Path(path) = source else { return Ok(None) };
        if path.as_os_str() == "-" || !path.is_file() {
            return Ok(None);
        }
        let cannot_read = |error: &std::io::Error| files::cannot_read(path, error);
        let mut file = File::open(path).map_err(|error| cannot_read(&error))?;
        let mut start = [0; MAGIC.len()];
        match file.read_exact(&mut start) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other.map_err(|error| cannot_read(&error))?,
        }
        if start != MAGIC {
            return Ok(None);
        }
        let name = source.name();
        let file = SerializedFileReader::new(file).map_err(|error| damaged(&name, &error))?;
        let columns = file.metadata().file_metadata().schema_descr().columns().iter();
        let columns = columns.map(|column| Column::of(column)).collect();
        Ok(Some(Self { name, file, columns }))
    }

    /// Names and types of the columns.
    ///
    /// # Errors
    /// There is no row; the form asks for what only text has; a name is there twice.
    pub fn head(&self, form: &TableForm) -> Result<Head> {
        let for_text = [
            ("columns", form.columns.is_some()),
            ("delimiter", form.delimiter.is_some()),
            ("quoting", form.quoting.is_some()),
        ];
        if let Some((key, _)) = for_text.iter().find(|(_, given)| *given) {
            bail_input!(
                "data.{key} is for tables of text, and {} is a Parquet file: leave it out",
                self.name
            );
        }
        if self.file.metadata().file_metadata().num_rows() <= 0 {
            bail_input!("{} has no rows", self.name);
        }
        let names: Vec<String> = self.columns.iter().map(|column| column.name.clone()).collect();
        for (position, name) in names.iter().enumerate() {
            if names[..position].contains(name) {
                bail_input!("{}: two columns are called `{name}`: rename one", self.name);
            }
        }
        for column in form.types.keys() {
            super::find_column(&names, column, "data.types", &self.name)?;
        }
        let types = self.columns.iter().map(|column| {
            let found = match column.form {
                Form::Text | Form::Unreadable(_) => ColumnType::Category,
                _ => ColumnType::Number,
            };
            form.types.get(&column.name).copied().unwrap_or(found)
        });
        let dialect = Dialect { delimiter: b',', quoted: false };
        Ok(Head { dialect, types: types.collect(), names, header_bytes: 0, header_lines: 0 })
    }

    /// Reads every row as [`super::TableReader::read_keeping`] does.
    pub fn read(
        &self,
        plan: &Plan<'_>,
        consume: &mut dyn FnMut(Tensor, Vec<String>) -> Result<()>,
    ) -> Result<Tally> {
        let wanted: Vec<usize> = (0..self.columns.len())
            .filter(|&column| !matches!(plan.fields[column], Target::Skip) || plan.keep.contains(&column))
            .collect();
        for &column in &wanted {
            let column = &self.columns[column];
            if let Form::Unreadable(what) = column.form {
                bail_input!(
                    "{}: column `{}` holds {what}, which cannot be read: leave it out with --drop {}",
                    self.name,
                    column.name,
                    column.name
                );
            }
        }
        let most = (BLOCK_VALUES / wanted.len().max(1)).clamp(64, 1 << 16);
        let (mut parser, mut before, mut tally) = (Parser::new(plan), 0u64, Tally::new(plan.width));
        for number in 0..self.file.num_row_groups() {
            let group = self.file.get_row_group(number).map_err(|error| damaged(&self.name, &error))?;
            let readers = || wanted.iter().map(|&column| group.get_column_reader(column)).collect();
            let mut readers: Vec<ColumnReader> =
                guarded(readers).map_err(|error| damaged(&self.name, &error))?;
            let rows = usize::try_from(group.metadata().num_rows()).map_err(|_| {
                bad_input!("{} is a damaged Parquet file: a number of rows is negative", self.name)
            })?;
            let mut left = rows;
            while left > 0 {
                let count = left.min(most);
                let cells = || {
                    let readers = readers.iter_mut().zip(&wanted);
                    readers
                        .map(|(reader, &column)| Cells::read(reader, &self.columns[column], count))
                        .collect()
                };
                let cells: Vec<Cells> = guarded(cells).map_err(|error| damaged(&self.name, &error))?;
                let made = rows_of(plan, &mut parser, &wanted, &cells, count).map_err(|(row, message)| {
                    bad_input!("{}, row {}{message}", self.name, before + row as u64 + 1)
                })?;
                tally.skipped += (count - made.rows) as u64;
                tally.count_missing(&made.values);
                if made.rows > 0 {
                    let block = Tensor::f_from_slice(&made.values)?;
                    consume(block.f_view([made.rows as i64, plan.width as i64])?, made.kept)?;
                }
                before += count as u64;
                left -= count;
            }
        }
        Ok(tally)
    }
}

/// Some rows as the plan wants them.
struct Rows {
    /// `[rows, width]`
    values: Vec<f64>,
    kept: Vec<String>,
    rows: usize,
}

/// Puts columns together to rows. An error has the row, counted from the first of these.
fn rows_of(
    plan: &Plan<'_>,
    parser: &mut Parser<'_>,
    wanted: &[usize],
    cells: &[Cells],
    count: usize,
) -> std::result::Result<Rows, (usize, String)> {
    let width = plan.width;
    let mut values = vec![f64::NAN; count * width];
    let mut bad = vec![false; count];
    let mut refuse = |row: usize, message: String| match plan.skip_bad {
        true => {
            bad[row] = true;
            Ok(f64::NAN)
        }
        false => Err((row, message)),
    };
    for (&column, cells) in wanted.iter().zip(cells) {
        match plan.fields[column] {
            Target::Skip => {}
            Target::Number { request, strict } => {
                for row in 0..count {
                    let value = match cells.number(row) {
                        Some(value) => plan.checked(value, strict, column),
                        None => plan.number(&cells.text(row), strict, column),
                    };
                    values[row * width + request] = value.or_else(|message| refuse(row, message))?;
                }
            }
            Target::Category { request } => {
                for row in 0..count {
                    let code = parser.code(cells.text(row).trim_ascii(), request, column);
                    values[row * width + request] = code.or_else(|message| refuse(row, message))?;
                }
            }
        }
    }
    for row in 0..count {
        if let Err(message) = plan.copy(&mut values[row * width..(row + 1) * width]) {
            refuse(row, message)?;
        }
    }
    let mut kept = Vec::with_capacity(count * plan.keep.len());
    let sources: Vec<&Cells> = plan
        .keep
        .iter()
        .filter_map(|column| wanted.iter().position(|known| known == column).map(|place| &cells[place]))
        .collect();
    for row in (0..count).filter(|&row| !bad[row]) {
        kept.extend(sources.iter().map(|cells| String::from_utf8_lossy(&cells.text(row)).into_owned()));
    }
    let rows = bad.iter().filter(|bad| !**bad).count();
    if rows < count {
        let mut row = 0;
        values = values
            .chunks_exact(width.max(1))
            .filter(|_| {
                row += 1;
                !bad[row - 1]
            })
            .flatten()
            .copied()
            .collect();
    }
    Ok(Rows { values, kept, rows })
}

impl Column {
    fn of(column: &ColumnDescriptor) -> Self {
        let converted = column.converted_type();
        let logical = column.logical_type_ref();
        let is_decimal =
            converted == ConvertedType::DECIMAL || matches!(logical, Some(LogicalType::Decimal(_)));
        let form = if column.max_rep_level() > 0 {
            Form::Unreadable("lists")
        } else if is_decimal {
            match u32::try_from(column.type_scale()) {
                Ok(scale) if scale <= 38 => Form::Decimal { scale },
                _ => Form::Unreadable("decimals of an unknown scale"),
            }
        } else {
            match column.physical_type() {
                PhysicalType::BOOLEAN => Form::Truth,
                PhysicalType::INT32 | PhysicalType::INT64 => Form::Integer {
                    unsigned: matches!(
                        converted,
                        ConvertedType::UINT_8
                            | ConvertedType::UINT_16
                            | ConvertedType::UINT_32
                            | ConvertedType::UINT_64
                    ) || matches!(logical, Some(LogicalType::Integer(form)) if !form.is_signed),
                },
                PhysicalType::FLOAT | PhysicalType::DOUBLE => Form::Real,
                PhysicalType::BYTE_ARRAY => Form::Text,
                PhysicalType::INT96 => Form::Unreadable("times of 96 bits"),
                PhysicalType::FIXED_LEN_BYTE_ARRAY => Form::Unreadable("bytes"),
            }
        };
        Self { name: column.path().parts().join("."), form, present: column.max_def_level() }
    }
}

/// The values of some rows of a column, in the file's own type.
struct Cells {
    values: Values,
    /// Position of each row's value; none where every row has one.
    places: Option<Vec<Option<usize>>>,
    form: Form,
}

enum Values {
    Truths(Vec<bool>),
    Short(Vec<i32>),
    Long(Vec<i64>),
    Single(Vec<f32>),
    Double(Vec<f64>),
    Bytes(Vec<ByteArray>),
    FixedBytes(Vec<FixedLenByteArray>),
}

impl Cells {
    fn read(
        reader: &mut ColumnReader,
        column: &Column,
        rows: usize,
    ) -> std::result::Result<Self, ParquetError> {
        let mut levels = Vec::new();
        let values = match reader {
            ColumnReader::BoolColumnReader(reader) => Values::Truths(decode(reader, rows, &mut levels)?),
            ColumnReader::Int32ColumnReader(reader) => Values::Short(decode(reader, rows, &mut levels)?),
            ColumnReader::Int64ColumnReader(reader) => Values::Long(decode(reader, rows, &mut levels)?),
            ColumnReader::FloatColumnReader(reader) => Values::Single(decode(reader, rows, &mut levels)?),
            ColumnReader::DoubleColumnReader(reader) => Values::Double(decode(reader, rows, &mut levels)?),
            ColumnReader::ByteArrayColumnReader(reader) => Values::Bytes(decode(reader, rows, &mut levels)?),
            ColumnReader::FixedLenByteArrayColumnReader(reader) => {
                Values::FixedBytes(decode(reader, rows, &mut levels)?)
            }
            ColumnReader::Int96ColumnReader(_) => {
                return Err(ParquetError::General("a column of 96 bits".to_owned()));
            }
        };
        let length = match &values {
            Values::Truths(values) => values.len(),
            Values::Short(values) => values.len(),
            Values::Long(values) => values.len(),
            Values::Single(values) => values.len(),
            Values::Double(values) => values.len(),
            Values::Bytes(values) => values.len(),
            Values::FixedBytes(values) => values.len(),
        };
        let present = match column.present {
            0 => rows,
            _ => levels.iter().filter(|level| **level == column.present).count(),
        };
        if length != present {
            return Err(ParquetError::General(format!("column `{}` has too few values", column.name)));
        }
        let places = (present < rows).then(|| {
            let mut next = 0;
            levels
                .iter()
                .map(|level| {
                    let here = *level == column.present;
                    next += usize::from(here);
                    here.then(|| next - 1)
                })
                .collect()
        });
        Ok(Self { values, places, form: column.form })
    }

    fn place(&self, row: usize) -> Option<usize> {
        self.places.as_ref().map_or(Some(row), |places| places[row])
    }

    /// The number in a row, NaN where it is missing; none of a text.
    fn number(&self, row: usize) -> Option<f64> {
        let Some(place) = self.place(row) else { return Some(f64::NAN) };
        if let Form::Decimal { scale } = self.form {
            // Both are exact up to 2^53, and then the quotient is the nearest number to the decimal.
            return Some(self.whole(place) as f64 / 10f64.powi(scale as i32));
        }
        Some(match &self.values {
            Values::Truths(values) => f64::from(u8::from(values[place])),
            Values::Short(_) | Values::Long(_) => self.whole(place) as f64,
            Values::Single(values) => f64::from(values[place]),
            Values::Double(values) => values[place],
            Values::Bytes(_) | Values::FixedBytes(_) => return None,
        })
    }

    /// The integer that is stored.
    fn whole(&self, place: usize) -> i128 {
        let unsigned = matches!(self.form, Form::Integer { unsigned: true });
        match &self.values {
            Values::Short(values) if unsigned => i128::from(values[place] as u32),
            Values::Short(values) => i128::from(values[place]),
            Values::Long(values) if unsigned => i128::from(values[place] as u64),
            Values::Long(values) => i128::from(values[place]),
            Values::Bytes(values) => big_endian(values[place].data()),
            Values::FixedBytes(values) => big_endian(values[place].data()),
            Values::Truths(_) | Values::Single(_) | Values::Double(_) => 0,
        }
    }

    /// The text in a row, as it would stand in a table of text; empty where it is missing.
    fn text(&self, row: usize) -> Cow<'_, [u8]> {
        let Some(place) = self.place(row) else { return Cow::Borrowed(b"") };
        let text = match (&self.values, self.form) {
            (Values::Bytes(values), Form::Text) => return Cow::Borrowed(values[place].data()),
            (_, Form::Decimal { .. }) => self.number(row).map(|value| value.to_string()).unwrap_or_default(),
            (Values::Truths(values), _) => values[place].to_string(),
            (Values::Single(values), _) => values[place].to_string(),
            (Values::Double(values), _) => values[place].to_string(),
            _ => self.whole(place).to_string(),
        };
        Cow::Owned(text.into_bytes())
    }
}

/// Reads the values of the next rows.
fn decode<T: DataType>(
    reader: &mut ColumnReaderImpl<T>,
    rows: usize,
    levels: &mut Vec<i16>,
) -> std::result::Result<Vec<T::T>, ParquetError> {
    let mut values = Vec::with_capacity(rows);
    let mut found = 0;
    while found < rows {
        let (records, _, _) = reader.read_records(rows - found, Some(levels), None, &mut values)?;
        if records == 0 {
            return Err(ParquetError::General("a column ends before its row group".to_owned()));
        }
        found += records;
    }
    Ok(values)
}

/// Runs a part of the parquet crate, which panics at some contradictions in a file that it has not checked before.
fn guarded<T>(
    part: impl FnOnce() -> std::result::Result<T, ParquetError>,
) -> std::result::Result<T, ParquetError> {
    catch_unwind(AssertUnwindSafe(part))
        .unwrap_or_else(|panic| Err(ParquetError::General(panic_message(&*panic))))
}

/// A two's complement number, most significant byte first; the last sixteen bytes of a longer one.
fn big_endian(bytes: &[u8]) -> i128 {
    let sign = if bytes.first().is_some_and(|first| *first >= 0x80) { -1 } else { 0 };
    bytes.iter().fold(sign, |value: i128, byte| (value << 8) | i128::from(*byte))
}

/// What is wrong with a file: the machine's fault or the file's.
fn damaged(name: &str, error: &ParquetError) -> anyhow::Error {
    match error {
        ParquetError::External(inner) if inner.is::<std::io::Error>() => {
            anyhow!("cannot read {name}: {inner}")
        }
        ParquetError::NYI(what) => {
            bad_input!("{name} is a Parquet file of a kind that cannot be read ({what}): write it anew")
        }
        other => {
            let text = other.to_string();
            let first = text.lines().next().unwrap_or_default();
            bad_input!("{name} is a damaged Parquet file: {first}")
        }
    }
}
