//! A drawing of values with their intervals, one row for each.

use super::format::number;
use super::html::Figure;
use super::plots::{escape, even_ticks, labelled};

const WIDTH: f64 = 480.0;
const ROW: f64 = 20.0;
/// Room for a letter of a name.
const LETTER: f64 = 7.6;
/// Letters of a name that are shown.
const NAME: usize = 26;

/// A value and the interval around it.
#[derive(Clone, Debug)]
pub struct Interval {
    /// What it is the value of.
    pub name: String,
    /// The value.
    pub value: f64,
    /// Lower and upper end; none where only the value is known.
    pub ends: Option<(f64, f64)>,
}

/// Values as dots on their intervals, in the order given, over a line at zero.
pub fn interval_figure(title: &str, description: &str, rows: &[Interval]) -> Figure {
    let shown: Vec<&Interval> = rows.iter().filter(|row| row.value.is_finite()).collect();
    let ends = |row: &&Interval| {
        let (low, high) = row
            .ends
            .filter(|ends| ends.0.is_finite() && ends.1.is_finite())
            .unwrap_or((row.value, row.value));
        [low, high, row.value]
    };
    let (low, high) = shown
        .iter()
        .flat_map(ends)
        .fold((0.0, 0.0), |(low, high): (f64, f64), value| (low.min(value), high.max(value)));
    // Dots at the ends have room, too.
    let margin = if high > low { (high - low) * 0.04 } else { 1.0 };
    let (low, high) = (low - margin, high + margin);
    let span = high - low;
    let name = |row: &Interval| -> String {
        match row.name.chars().count() > NAME {
            true => row.name.chars().take(NAME - 1).chain(['…']).collect(),
            false => row.name.clone(),
        }
    };
    let longest = shown.iter().map(|row| name(row).chars().count()).max().unwrap_or(0);
    let (left, right) = (longest as f64 * LETTER + 10.0, WIDTH - 16.0);
    let place = |value: f64| left + (value - low) / span * (right - left);
    let bottom = shown.len() as f64 * ROW + 6.0;
    let mut svg = format!(
        "<svg class=\"chart\" viewBox=\"0 0 {WIDTH} {:.0}\" role=\"img\"><title>{}</title>\n",
        bottom + 24.0,
        escape(title)
    );
    svg.push_str(&format!(
        "<line class=\"reference\" x1=\"{0:.1}\" y1=\"0\" x2=\"{0:.1}\" y2=\"{bottom:.1}\"/>\
         <path class=\"axis\" d=\"M{left:.1} {bottom:.1}H{right:.1}\"/>\n",
        place(0.0)
    ));
    for (tick, label) in labelled(&even_ticks(low, high, 4), false) {
        svg.push_str(&format!(
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{label}</text>\n",
            place(tick),
            bottom + 17.0
        ));
    }
    for (position, row) in shown.iter().enumerate() {
        let y = position as f64 * ROW + ROW / 2.0 + 2.0;
        svg.push_str(&format!(
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            left - 8.0,
            y + 4.0,
            escape(&name(row))
        ));
        let told = match row.ends {
            Some((from, to)) if from.is_finite() && to.is_finite() => {
                svg.push_str(&format!(
                    "<line class=\"line s0\" x1=\"{:.1}\" y1=\"{y:.1}\" x2=\"{:.1}\" y2=\"{y:.1}\"/>",
                    place(from),
                    place(to)
                ));
                format!("{}: {} ({} to {})", row.name, number(row.value), number(from), number(to))
            }
            _ => format!("{}: {}", row.name, number(row.value)),
        };
        svg.push_str(&format!(
            "<circle class=\"dot s0\" cx=\"{:.1}\" cy=\"{y:.1}\" r=\"3.2\"><title>{}</title></circle>\n",
            place(row.value),
            escape(&told)
        ));
    }
    svg.push_str("</svg>");
    Figure { title: title.to_owned(), svg, description: description.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_and_intervals_stay_inside() {
        let rows = [
            Interval { name: "a<b".to_owned(), value: 1.0, ends: Some((-2.0, 4.0)) },
            Interval { name: "c".to_owned(), value: 3.0, ends: None },
            Interval { name: "d".to_owned(), value: f64::NAN, ends: None },
        ];
        let figure = interval_figure("Coefficients", "", &rows);
        assert!(figure.svg.contains("a&lt;b") && !figure.svg.contains("a<b"));
        assert_eq!(figure.svg.matches("<circle").count(), 2);
        for place in figure.svg.split("x1=\"").skip(1) {
            let x: f64 = place.split('"').next().unwrap().parse().unwrap();
            assert!((0.0..=WIDTH).contains(&x));
        }
    }
}
