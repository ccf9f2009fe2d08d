//! The times of a series: parsed, checked to be even, continued, and told by the calendar.

use anyhow::Result;
use jiff::ToSpan;
use jiff::civil::DateTime;

use crate::{bad_input, bail_input};

/// The time between two rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interval {
    /// So many seconds.
    Seconds(i64),
    /// So many months, whatever their lengths.
    Months(i64),
    /// So much of a number that is no date.
    Number(i64),
}

/// A moment of a series.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Moment {
    Date(DateTime),
    Number(i64),
}

/// Evenly spaced times.
#[derive(Clone, Debug)]
pub struct TimeAxis {
    moments: Vec<Moment>,
    interval: Interval,
    /// Whether dates are written without a time of day, and with a `T` before it.
    dates_only: bool,
    with_t: bool,
}

fn parse(text: &str) -> Option<Moment> {
    let text = text.trim();
    if let Ok(number) = text.parse() {
        return Some(Moment::Number(number));
    }
    text.parse().ok().map(Moment::Date)
}

impl TimeAxis {
    /// Checks that times are even: `lines` are their lines in `file`, for messages.
    ///
    /// # Errors
    /// A time that is none, two equal ones, one before the last, a gap: with file and line.
    pub fn new(texts: &[&str], lines: &[u64], file: &str) -> Result<Self> {
        let place = |row: usize| format!("{file}, line {}", lines[row]);
        let mut moments = Vec::with_capacity(texts.len());
        for (row, text) in texts.iter().enumerate() {
            moments.push(parse(text).ok_or_else(|| {
                bad_input!(
                    "{}: `{text}` is no time: write 2016-07-01 00:00:00, 2016-07-01 or a whole number",
                    place(row)
                )
            })?);
        }
        let [first, second, ..] = moments[..] else {
            bail_input!("{file} has {} rows: a series needs two at least", moments.len());
        };
        let interval = match (first, second) {
            (Moment::Number(a), Moment::Number(b)) => Interval::Number(b - a),
            (Moment::Date(a), Moment::Date(b)) => {
                let months = months_between(a, b);
                match months > 0
                    && a.checked_add(months.months()).ok() == Some(b)
                    && a.day() == b.day()
                    && a.time() == b.time()
                {
                    true => Interval::Months(months),
                    false => Interval::Seconds(seconds_between(a, b)),
                }
            }
            _ => bail_input!("{}: a number and a date are times of one series", place(1)),
        };
        let mut axis = Self { moments, interval, dates_only: false, with_t: texts[0].contains('T') };
        axis.dates_only = !texts[0].contains(':');
        for row in 1..axis.moments.len() {
            let (before, now) = (axis.moments[row - 1], axis.moments[row]);
            let (before_text, now_text) = (texts[row - 1].trim(), texts[row].trim());
            match order(before, now) {
                Some(std::cmp::Ordering::Less) => {}
                Some(std::cmp::Ordering::Equal) => {
                    bail_input!("{}: the time {now_text} is there twice: keep one row", place(row))
                }
                Some(std::cmp::Ordering::Greater) => {
                    bail_input!(
                        "{}: the time {now_text} comes after {before_text}: put the rows in order",
                        place(row)
                    )
                }
                None => bail_input!("{}: a number and a date are times of one series", place(row)),
            }
            if axis.after(before, 1) != Some(now) {
                bail_input!(
                    "{}: {now_text} follows {before_text}, but rows are {} apart: fill the gap, or resample the series",
                    place(row),
                    axis.spelled()
                );
            }
        }
        Ok(axis)
    }

    /// The time between rows.
    pub fn interval(&self) -> Interval {
        self.interval
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.moments.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.moments.is_empty()
    }

    /// A row's time, or one behind the last.
    fn moment(&self, row: usize) -> Option<Moment> {
        match self.moments.get(row) {
            Some(moment) => Some(*moment),
            None => self.after(*self.moments.last()?, (row + 1 - self.moments.len()) as i64),
        }
    }

    /// The time of a row as the file writes it; of rows behind the last one too.
    pub fn text(&self, row: usize) -> String {
        match self.moment(row) {
            Some(Moment::Number(number)) => number.to_string(),
            Some(Moment::Date(date)) if self.dates_only => date.date().to_string(),
            Some(Moment::Date(date)) if self.with_t => date.to_string(),
            Some(Moment::Date(date)) => date.to_string().replace('T', " "),
            None => String::new(),
        }
    }

    /// What the calendar says of a row, from −0.5 to 0.5: one of `minute`, `hour`, `weekday`, `day`, `month`. Rows behind the last one are told too.
    ///
    /// # Errors
    /// Another name, or times that are no dates.
    pub fn calendar(&self, row: usize, what: &str) -> Result<f64> {
        let Some(Moment::Date(date)) = self.moment(row) else {
            bail_input!("data.calendar needs dates, but the times of the series are numbers");
        };
        let (value, most) = match what {
            "minute" => (f64::from(date.minute()), 59.0),
            "hour" => (f64::from(date.hour()), 23.0),
            "weekday" => (f64::from(date.weekday().to_monday_zero_offset()), 6.0),
            "day" => (f64::from(date.day()) - 1.0, 30.0),
            "month" => (f64::from(date.month()) - 1.0, 11.0),
            other => bail_input!(
                "data.calendar: there is no `{other}`{}",
                crate::recipe::nearest_hint(other, ["minute", "hour", "weekday", "day", "month"])
            ),
        };
        Ok(value / most - 0.5)
    }

    fn after(&self, moment: Moment, steps: i64) -> Option<Moment> {
        match (moment, self.interval) {
            (Moment::Number(number), Interval::Number(by)) => {
                Some(Moment::Number(number.checked_add(by.checked_mul(steps)?)?))
            }
            (Moment::Date(date), Interval::Seconds(by)) => {
                date.checked_add(by.checked_mul(steps)?.seconds()).ok().map(Moment::Date)
            }
            (Moment::Date(date), Interval::Months(by)) => {
                date.checked_add(by.checked_mul(steps)?.months()).ok().map(Moment::Date)
            }
            _ => None,
        }
    }

    fn spelled(&self) -> String {
        match self.interval {
            Interval::Number(by) => by.to_string(),
            Interval::Months(by) => format!("{by} months"),
            Interval::Seconds(by) if by % 86_400 == 0 => format!("{} days", by / 86_400),
            Interval::Seconds(by) if by % 3_600 == 0 => format!("{} hours", by / 3_600),
            Interval::Seconds(by) if by % 60 == 0 => format!("{} minutes", by / 60),
            Interval::Seconds(by) => format!("{by} seconds"),
        }
    }
}

fn order(a: Moment, b: Moment) -> Option<std::cmp::Ordering> {
    match (a, b) {
        (Moment::Number(a), Moment::Number(b)) => Some(a.cmp(&b)),
        (Moment::Date(a), Moment::Date(b)) => Some(a.cmp(&b)),
        _ => None,
    }
}

fn months_between(a: DateTime, b: DateTime) -> i64 {
    let months = |date: DateTime| i64::from(date.year()) * 12 + i64::from(date.month());
    months(b) - months(a)
}

fn seconds_between(a: DateTime, b: DateTime) -> i64 {
    b.duration_since(a).as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(texts: &[&str]) -> Result<TimeAxis> {
        let lines: Vec<u64> = (0..texts.len() as u64).map(|row| row + 2).collect();
        TimeAxis::new(texts, &lines, "s.csv")
    }

    #[test]
    fn times_go_on_as_they_are_written() -> Result<()> {
        for (texts, next) in [
            (&["2016-07-01 22:00:00", "2016-07-01 23:00:00"][..], "2016-07-02 00:00:00"),
            (&["2016-07-01T00:15", "2016-07-01T00:30"], "2016-07-01T00:45:00"),
            (&["2020-02-27", "2020-02-28"], "2020-02-29"),
            (&["2020-11-01", "2020-12-01"], "2021-01-01"),
            (&["5", "10"], "15"),
        ] {
            assert_eq!(axis(texts)?.text(texts.len()), next);
        }
        let hourly = axis(&["2016-07-01 22:00:00", "2016-07-01 23:00:00"])?;
        assert_eq!(hourly.calendar(1, "hour")?, 0.5);
        assert_eq!(hourly.calendar(2, "hour")?, -0.5);
        assert!((hourly.calendar(0, "weekday")? - (4.0 / 6.0 - 0.5)).abs() < 1e-12, "a Friday");
        assert!(hourly.calendar(0, "wekday").is_err());
        Ok(())
    }

    #[test]
    fn uneven_times_are_told_with_their_line() {
        for (texts, words) in [
            (
                &["2020-01-01", "2020-01-02", "2020-01-04"][..],
                "s.csv, line 4: 2020-01-04 follows 2020-01-02, but rows are 1 days apart",
            ),
            (
                &["2020-01-01", "2020-01-02", "2020-01-02"],
                "s.csv, line 4: the time 2020-01-02 is there twice",
            ),
            (
                &["2020-01-02", "2020-01-03", "2020-01-01"],
                "s.csv, line 4: the time 2020-01-01 comes after 2020-01-03",
            ),
            (&["2020-01-02", "2020-01-01"], "s.csv, line 3: the time 2020-01-01 comes after"),
            (&["2020-01-01", "soon"], "s.csv, line 3: `soon` is no time"),
            (&["2020-01-01"], "s.csv has 1 rows"),
        ] {
            let message = axis(texts).unwrap_err().to_string();
            assert!(message.contains(words), "{message}");
        }
    }
}
