//! Windows of time series with what follows them.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use tch::{Device, Kind, Tensor};

use super::config::SequenceDataConfig;
use super::labelled::{column_names, number};
use super::time::TimeAxis;
use crate::bail_input;
use crate::data::Splits;
use crate::data::fingerprint::Fingerprint;
use crate::data::text::{TextForm, TextFormat, read_rows};
use crate::recipe::nearest_hint;

/// The baselines that stand beside every forecast: the last value, the value a season ago, and a linear map of the window (DLinear's class of
/// functions, one map for all series), fitted by least squares to the training part.
pub const BASELINES: [&str; 3] = ["naive", "seasonal_naive", "linear"];

/// The columns of a forecast, in the order in which the network sees them.
#[derive(Clone, Debug, PartialEq)]
pub struct Fields {
    /// What is forecast.
    pub targets: Vec<String>,
    /// What is looked at.
    pub observed: Vec<String>,
    /// What is known of the future, the calendar's columns last.
    pub known: Vec<String>,
    /// How many of the known ones are the calendar's.
    pub calendar: usize,
}

impl Fields {
    /// Numbers of each step.
    pub fn count(&self) -> usize {
        self.targets.len() + self.observed.len() + self.known.len()
    }

    /// Those that are columns of the file.
    fn in_file(&self) -> impl Iterator<Item = &str> {
        let known = &self.known[..self.known.len() - self.calendar];
        self.targets.iter().chain(&self.observed).chain(known).map(String::as_str)
    }
}

/// A series as it was read: `[row, column]` in the order of [`Fields`].
#[derive(Debug)]
pub struct SeriesTable {
    /// Its columns.
    pub fields: Fields,
    /// Its rows; not standardised.
    pub values: Vec<f64>,
    /// Times of the rows, where there is a column of them.
    pub time: Option<TimeAxis>,
    /// Rows.
    pub rows: usize,
    /// The file.
    pub name: String,
    /// Lines of the rows.
    pub lines: Vec<u64>,
}

impl SeriesTable {
    /// Reads the columns that a recipe names.
    ///
    /// # Errors
    /// A missing column, a value that is no number, times that are uneven: with file and line.
    pub fn read(path: &Path, config: &SequenceDataConfig) -> Result<Self> {
        let mut names = column_names(path)?;
        let time = match &config.time {
            Some(time) if names.contains(time) => Some(time.clone()),
            Some(time) if *time == SequenceDataConfig::default().time.unwrap_or_default() => None,
            Some(time) => bail_input!(
                "data.time: {} has no column `{time}`{}",
                path.display(),
                nearest_hint(time, names.iter().map(String::as_str))
            ),
            None => None,
        };
        names.retain(|name| Some(name) != time.as_ref());
        let other = |name: &String| !config.observed.contains(name) && !config.known.contains(name);
        let targets = match &config.targets {
            Some(targets) => targets.clone(),
            None => names.iter().filter(|name| other(name)).cloned().collect(),
        };
        for (key, wanted) in [("targets", &targets), ("observed", &config.observed), ("known", &config.known)]
        {
            for column in wanted {
                if !names.contains(column) {
                    bail_input!(
                        "data.{key}: {} has no column `{column}`{}",
                        path.display(),
                        nearest_hint(column, names.iter().map(String::as_str))
                    );
                }
            }
        }
        if targets.is_empty() {
            bail_input!("{} has no column to forecast: name one with data.targets", path.display());
        }
        let known: Vec<String> = config.known.iter().chain(&config.calendar).cloned().collect();
        let fields =
            Fields { targets, observed: config.observed.clone(), known, calendar: config.calendar.len() };
        let in_file: Vec<&str> = fields.in_file().collect();
        let columns: Vec<&str> = in_file.iter().copied().chain(time.as_deref()).collect();
        let form = TextForm {
            format: Some(config.text_format.unwrap_or(match TextForm::default().of(path) {
                TextFormat::Plain => TextFormat::Csv,
                known => known,
            })),
            ..Default::default()
        };
        let table = read_rows(path, &form, &columns)?;
        let lines: Vec<u64> = table.rows.iter().map(|row| row.line).collect();
        let axis = match &time {
            Some(_) => {
                let texts: Vec<&str> = table.rows.iter().map(|row| row.text(in_file.len())).collect();
                Some(TimeAxis::new(&texts, &lines, &table.name)?)
            }
            None => None,
        };
        let mut values = Vec::with_capacity(table.rows.len() * fields.count());
        for (row, content) in table.rows.iter().enumerate() {
            for (column, name) in in_file.iter().enumerate() {
                let place = || format!("{}, column {name}", table.place(row));
                values.push(f64::from(number(content.text(column), &place)?));
            }
            values.extend(calendar(axis.as_ref(), row, config)?);
        }
        Ok(Self { values, rows: table.rows.len(), time: axis, name: table.name, fields, lines })
    }

    /// Standardised rows as `[rows, columns]` float32 numbers.
    fn scaled(&self, mean: &[f64], std: &[f64]) -> Vec<f32> {
        let columns = self.fields.count();
        let scaled =
            |(place, &value): (usize, &f64)| ((value - mean[place % columns]) / std[place % columns]) as f32;
        self.values.iter().enumerate().map(scaled).collect()
    }
}

/// What the calendar says of a row.
fn calendar(axis: Option<&TimeAxis>, row: usize, config: &SequenceDataConfig) -> Result<Vec<f64>> {
    match (axis, config.calendar.is_empty()) {
        (_, true) => Ok(Vec::new()),
        (Some(axis), false) => config.calendar.iter().map(|what| axis.calendar(row, what)).collect(),
        (None, false) => bail_input!("data.calendar needs the column of times: name it with data.time"),
    }
}

/// A map of windows to what follows, the same for every series.
#[derive(Debug)]
struct LinearMap {
    /// `[input, horizon]`, of the window without its last value to what follows without it.
    weight: Vec<f32>,
}

/// Windows of a part of a series, each a sample.
#[derive(Debug)]
pub struct SeriesWindows {
    /// `[rows, columns]`, standardised.
    values: Arc<Vec<f32>>,
    fields: Fields,
    input: usize,
    horizon: usize,
    season: usize,
    /// The row at which the first window begins, the number of windows, the rows between them.
    first: usize,
    count: usize,
    stride: usize,
    linear: Arc<LinearMap>,
    lines: Arc<Vec<u64>>,
    name: String,
}

/// Windows with what follows them.
#[derive(Debug)]
pub struct SeriesBatch {
    /// `[batch, input, columns]`
    pub window: Tensor,
    /// What is known of the horizon, `[batch, horizon, known]`.
    pub future: Tensor,
    /// What follows, `[batch, horizon, targets]`.
    pub targets: Tensor,
    /// What the baselines say, `[3, batch, horizon, targets]`; made for evaluation.
    pub baselines: Option<Tensor>,
}

impl SeriesBatch {
    /// The same on another device.
    pub fn to_device(self, device: Device) -> Result<Self> {
        Ok(Self {
            window: self.window.f_to_device(device)?,
            future: self.future.f_to_device(device)?,
            targets: self.targets.f_to_device(device)?,
            baselines: self.baselines.map(|baselines| baselines.f_to_device(device)).transpose()?,
        })
    }
}

impl SeriesWindows {
    /// How many windows there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Some of them as tensors; with baselines where they are looked at.
    pub fn batch(&self, samples: &[usize], train: bool) -> Result<SeriesBatch> {
        let (columns, targets, known) =
            (self.fields.count(), self.fields.targets.len(), self.fields.known.len());
        let (mut window, mut future, mut after) = (Vec::new(), Vec::new(), Vec::new());
        for &sample in samples {
            let start = self.first + sample * self.stride;
            let behind = start + self.input;
            window.extend_from_slice(&self.values[start * columns..behind * columns]);
            for row in behind..behind + self.horizon {
                let row = &self.values[row * columns..(row + 1) * columns];
                after.extend_from_slice(&row[..targets]);
                future.extend_from_slice(&row[columns - known..]);
            }
        }
        let batch = samples.len() as i64;
        let (input, horizon) = (self.input as i64, self.horizon as i64);
        let window = Tensor::f_from_slice(&window)?.f_view([batch, input, columns as i64])?;
        let baselines = if train { None } else { Some(self.baselines(&window)?) };
        Ok(SeriesBatch {
            window,
            future: Tensor::f_from_slice(&future)?.f_view([batch, horizon, known as i64])?,
            targets: Tensor::f_from_slice(&after)?.f_view([batch, horizon, targets as i64])?,
            baselines,
        })
    }

    /// What the baselines make of windows.
    pub fn baselines(&self, window: &Tensor) -> Result<Tensor> {
        let (input, horizon, season) = (self.input as i64, self.horizon as i64, self.season as i64);
        let series = window.f_narrow(2, 0, self.fields.targets.len() as i64)?; // [batch, input, targets]
        let last = series.f_narrow(1, input - 1, 1)?;
        let naive = last.f_expand([-1, horizon, -1], false)?;
        // The steps of the last season again and again.
        let places: Vec<i64> = (0..horizon).map(|step| input - season + step % season).collect();
        let seasonal = series.f_index_select(1, &Tensor::f_from_slice(&places)?)?;
        let weight = Tensor::f_from_slice(&self.linear.weight)?.f_view([input, horizon])?;
        let linear = (&series - &last).f_transpose(1, 2)?.f_matmul(&weight)?.f_transpose(1, 2)? + &last;
        Ok(Tensor::f_stack(&[naive.f_contiguous()?, seasonal, linear], 0)?)
    }

    /// Columns.
    pub fn fields(&self) -> &Fields {
        &self.fields
    }

    /// Where a window begins.
    pub fn describe(&self, sample: usize) -> String {
        format!("{}, line {}", self.name, self.lines[self.first + sample * self.stride])
    }

    /// What tells these windows from others.
    pub fn take_print(&self, print: &mut Fingerprint) {
        let columns = self.fields.count();
        let rows =
            if self.count == 0 { 0 } else { (self.count - 1) * self.stride + self.input + self.horizon };
        let values = &self.values[self.first * columns..(self.first + rows) * columns];
        print.add(&values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>());
    }
}

/// A series that was opened for forecasts.
#[derive(Debug)]
pub struct OpenedSeries {
    /// Windows of its parts.
    pub splits: Splits<SeriesWindows>,
    /// Its columns.
    pub fields: Fields,
    /// Mean and standard deviation of each column in the training part.
    pub standards: (Vec<f64>, Vec<f64>),
}

/// Opens the series of a recipe. Windows of the validation and the test part may look back into the part before.
///
/// # Errors
/// Those of [`SeriesTable::read`]; parts that are shorter than a window.
pub fn open_series(config: &SequenceDataConfig) -> Result<OpenedSeries> {
    let Some(path) = &config.path else { bail_input!("a forecast needs a series: give --data FILE.csv") };
    let table = SeriesTable::read(path, config)?;
    let rows = parts(config, table.rows, &table.name)?;
    let (input, horizon, columns) = (config.input, config.horizon, table.fields.count());
    if rows[0] < input + horizon {
        bail_input!(
            "the training part of {} has {} rows, but a window has {} ({input} and {horizon} to forecast): take shorter windows or more rows",
            table.name,
            rows[0],
            input + horizon
        );
    }
    let standards = match (&config.mean, &config.std) {
        (Some(mean), Some(std)) if mean.len() == columns && std.len() == columns => {
            (mean.clone(), std.clone())
        }
        (Some(mean), _) => {
            bail_input!("data.mean has {} numbers, but there are {columns} columns", mean.len())
        }
        _ => standards_of(&table, rows[0]),
    };
    let values = Arc::new(table.scaled(&standards.0, &standards.1));
    let linear = Arc::new(fit(&values, &table.fields, rows[0], input, horizon)?);
    let lines = Arc::new(table.lines.clone());
    let part = |from: usize, to: usize, stride: usize| SeriesWindows {
        values: values.clone(),
        fields: table.fields.clone(),
        input,
        horizon,
        season: config.season,
        first: from,
        count: (to - from).checked_sub(input + horizon).map_or(0, |spare| spare / stride + 1),
        stride,
        linear: linear.clone(),
        lines: lines.clone(),
        name: table.name.clone(),
    };
    let look = |from: usize, count: usize, what: &str| -> Result<Option<SeriesWindows>> {
        if count == 0 {
            return Ok(None);
        }
        if count < horizon {
            bail_input!(
                "the {what} part of {} has {count} rows, but {horizon} are to be forecast",
                table.name
            );
        }
        Ok(Some(part(from - input, from + count, config.stride)))
    };
    let [train, validation, test] = rows;
    let splits = Splits {
        train: part(0, train, 1),
        validation: look(train, validation, "validation")?,
        test: look(train + validation, test, "test")?,
    };
    Ok(OpenedSeries { splits, fields: table.fields, standards })
}

/// Rows of each part.
fn parts(config: &SequenceDataConfig, rows: usize, name: &str) -> Result<[usize; 3]> {
    let split = config.split;
    if split.iter().all(|part| *part <= 1.0) {
        let [train, validation, _] =
            split.map(|part| (rows as f64 * part / split.iter().sum::<f64>()).round() as usize);
        let test = if split[2] == 0.0 { 0 } else { rows - train - validation };
        return Ok([train, validation.min(rows - train), test]);
    }
    let counts = split.map(|part| part as usize);
    if counts.iter().sum::<usize>() > rows {
        bail_input!("data.split asks for {} rows, but {name} has {rows}", counts.iter().sum::<usize>());
    }
    Ok(counts)
}

/// Mean and population standard deviation of each column over the first rows; the calendar's columns stay as they are.
fn standards_of(table: &SeriesTable, rows: usize) -> (Vec<f64>, Vec<f64>) {
    let columns = table.fields.count();
    let standard = |column: usize| {
        if column >= columns - table.fields.calendar {
            return (0.0, 1.0);
        }
        let values = || table.values[..rows * columns].iter().skip(column).step_by(columns);
        let mean = values().sum::<f64>() / rows as f64;
        let variance = values().map(|value| (value - mean).powi(2)).sum::<f64>() / rows as f64;
        (mean, if variance > 0.0 { variance.sqrt() } else { 1.0 })
    };
    (0..columns).map(standard).unzip()
}

/// Ridge that keeps the normal equations solvable, as a share of the mean of their diagonal.
const RIDGE: f64 = 1e-6;

/// Least squares of what follows on windows, both without the last value, over all targets and windows of the training part.
fn fit(values: &[f32], fields: &Fields, rows: usize, input: usize, horizon: usize) -> Result<LinearMap> {
    const AT_A_TIME: usize = 4096;
    let (columns, targets) = (fields.count() as i64, fields.targets.len() as i64);
    let (input, horizon) = (input as i64, horizon as i64);
    let all = Tensor::f_from_slice(&values[..rows * columns as usize])?.f_view([rows as i64, columns])?;
    let series = all.f_narrow(1, 0, targets)?.f_to_kind(Kind::Double)?; // [rows, targets]
    let windows = series.f_unfold(0, input + horizon, 1)?; // [windows, targets, input + horizon]
    // Sums of a fit are made where the data are: on the CPU, once.
    let options = (Kind::Double, Device::Cpu);
    let mut xx = Tensor::f_zeros([input, input], options)?;
    let mut xy = Tensor::f_zeros([input, horizon], options)?;
    let count = windows.size()[0];
    for start in (0..count).step_by(AT_A_TIME) {
        let block = windows
            .f_narrow(0, start, (count - start).min(AT_A_TIME as i64))?
            .f_reshape([-1, input + horizon])?;
        let block = &block - block.f_narrow(1, input - 1, 1)?;
        let (x, y) = (block.f_narrow(1, 0, input)?, block.f_narrow(1, input, horizon)?);
        xx += x.f_transpose(0, 1)?.f_matmul(&x)?;
        xy += x.f_transpose(0, 1)?.f_matmul(&y)?;
    }
    let diagonal = xx.f_diagonal(0, 0, 1)?.f_mean(Kind::Double)?.f_double_value(&[])?;
    let ridge =
        Tensor::f_eye(input, options)? * (RIDGE * diagonal.max(f64::MIN_POSITIVE) + f64::MIN_POSITIVE.sqrt());
    let (weight, _) = Tensor::f_linalg_solve_ex(&(xx + ridge), &xy, true, false)
        .map(|(weight, info)| (weight, info))
        .context("fitting the linear baseline")?;
    let weight = Vec::<f32>::try_from(weight.f_to_kind(Kind::Float)?.f_contiguous()?.f_flatten(0, -1)?)?;
    Ok(LinearMap { weight })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str, name: &str) -> Result<SequenceDataConfig> {
        let path = std::env::temp_dir().join(format!("tch-suite-series-{}-{name}.csv", std::process::id()));
        std::fs::write(&path, text)?;
        Ok(SequenceDataConfig { path: Some(path), input: 4, horizon: 2, season: 2, ..Default::default() })
    }

    fn table() -> String {
        let mut text = "date,a,b\n".to_owned();
        for day in 0..40 {
            let date =
                jiff::civil::date(2020, 1, 1).checked_add(jiff::Span::new().days(day)).unwrap_or_default();
            text.push_str(&format!("{date},{},{}\n", day, (day % 2) * 10));
        }
        text
    }

    #[test]
    fn windows_look_back_into_the_part_before_and_baselines_do_what_they_say() -> Result<()> {
        let mut config = config(&table(), "parts")?;
        config.split = [20.0, 10.0, 10.0];
        config.calendar = vec!["weekday".to_owned()];
        let opened = open_series(&config)?;
        assert_eq!(opened.fields.targets, ["a", "b"]);
        let (mean, std) = &opened.standards;
        assert_eq!(
            (mean[0], mean[2], std[2]),
            (9.5, 0.0, 1.0),
            "of the training part, the calendar as it is"
        );
        let test = opened.splits.test.as_ref().map(|test| (test.len(), test.batch(&[0], false)));
        let (count, batch) = test.context("no test part")?;
        assert_eq!((opened.splits.train.len(), count), (15, 9));
        let batch = batch?;
        let day = |step: i64| batch.targets.double_value(&[0, step, 0]) * std[0] + mean[0];
        assert!((day(0) - 30.0).abs() < 1e-4, "the first forecast is the first row of the part: {}", day(0));
        let baselines = batch.baselines.context("no baselines")?;
        let said = |baseline: i64, step: i64, target: i64| {
            baselines.double_value(&[baseline, 0, step, target]) * std[target as usize]
                + mean[target as usize]
        };
        assert!((said(0, 1, 0) - 29.0).abs() < 1e-4);
        assert!((said(1, 0, 0) - 28.0).abs() < 1e-4 && (said(1, 1, 1) - 10.0).abs() < 1e-4);
        // Both series go on linearly in their windows.
        assert!(
            (said(2, 1, 0) - 31.0).abs() < 0.05 && (said(2, 1, 1) - 10.0).abs() < 0.05,
            "{}",
            said(2, 1, 0)
        );
        Ok(())
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() -> Result<()> {
        let refusal = |text: &str, change: fn(&mut SequenceDataConfig), name: &str| -> Result<String> {
            let mut config = config(text, name)?;
            change(&mut config);
            Ok(open_series(&config).err().map(|error| error.to_string()).unwrap_or_default())
        };
        let good = table();
        let nan = good.replace("2020-01-05,4,0", "2020-01-05,4,NaN");
        let message = refusal(&nan, |_| {}, "nan")?;
        assert!(message.contains("line 6, column b: a value is missing"), "{message}");
        let word = refusal(&good.replace("2020-01-05,4,0", "2020-01-05,x,0"), |_| {}, "word")?;
        assert!(word.contains("line 6, column a: `x` is no finite number"), "{word}");
        let column = refusal(&good, |config| config.targets = Some(vec!["aa".to_owned()]), "column")?;
        assert!(column.contains("data.targets") && column.contains("`aa`"), "{column}");
        let short = refusal(&good, |config| config.input = 50, "short")?;
        assert!(short.contains("has 28 rows, but a window has 52"), "{short}");
        let gap = refusal(&good.replace("2020-01-05,4,0\n", ""), |_| {}, "gap")?;
        assert!(gap.contains("line 6: 2020-01-06 follows 2020-01-04"), "{gap}");
        Ok(())
    }
}
