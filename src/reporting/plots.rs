//! Charts as SVG that takes its colours from the style sheet around it, so that one drawing serves light mode, dark mode and paper.
//!
//! Lines are told apart by dashes and marks as well as by colour. Long series are thinned for drawing; what they reach stays.

use super::format::{count, number, percent};

/// The style sheet that the drawings need; `report.html` has it too.
pub(super) const STYLE: &str = include_str!("plots.css");

/// A chart: series of points over one pair of axes.
#[derive(Clone, Debug, Default)]
pub struct Chart {
    /// What it shows.
    pub title: String,
    /// Name of the horizontal axis.
    pub x_label: String,
    /// Name of the vertical axis, where the title does not say it.
    pub y_label: String,
    /// What is drawn, the most important first. The place in this list gives a series its colour and dashes; one without points is
    /// left out but keeps its place.
    pub series: Vec<Series>,
    /// How the vertical axis is divided.
    pub y_scale: Scale,
    /// Whether the values are fractions that are read as percentages.
    pub percent: bool,
    /// What the horizontal axis reaches over, where the points alone should not say it.
    pub x_range: Option<(f64, f64)>,
    /// A second division of the horizontal axis, drawn above: epochs over steps.
    pub ticks_above: Option<TicksAbove>,
    /// A sentence below the chart; may be empty.
    pub note: String,
}

/// Marks above a chart, at places of its horizontal axis.
#[derive(Clone, Debug)]
pub struct TicksAbove {
    /// What they count.
    pub label: String,
    /// Place and text of each.
    pub ticks: Vec<(f64, String)>,
}

/// Points (x, y) under a name.
#[derive(Clone, Debug)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// The points, in the order in which a line connects them. A point that is not finite interrupts the line.
    pub points: Vec<(f64, f64)>,
    /// How they are drawn.
    pub mark: Mark,
}

/// How a series is drawn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mark {
    /// A line.
    Line,
    /// A line; where there are many points, a faint one under a running mean.
    NoisyLine,
    /// A line with a dot at each point, as long as there is room for dots.
    LineWithDots,
    /// Dots alone.
    Dots,
    /// Bars from zero, as wide as the points' distance allows.
    Bars,
    /// A thin dashed line to compare with.
    Reference,
}

/// How a vertical axis is divided.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Scale {
    /// Logarithmic where all values are positive and the largest is more than 50 times the smallest.
    #[default]
    Auto,
    /// Evenly.
    Linear,
    /// Logarithmic; values that are not positive are left out.
    Log,
}

const WIDTH: f64 = 480.0;
const HEIGHT: f64 = 280.0;
/// Room for a letter of an axis's text, with the larger letters of narrow screens in mind.
const LETTER: f64 = 8.0;
/// A line is drawn with about this many points at most; there are not many more pixels.
const DRAWN_POINTS: usize = 400;
/// Dots that are drawn at most.
const DRAWN_DOTS: usize = 1500;
/// A line has dots up to this many points.
const ROOM_FOR_DOTS: usize = 60;
/// From this many points on, a noisy line gets a running mean.
const NOISY_POINTS: usize = 60;
/// How many colours the style sheet has.
pub(super) const COLORS: usize = 8;
/// How many kinds of dashes the style sheet has, the unbroken line being the first.
const DASHES: usize = 4;

/// The chart as an HTML figure with caption, legend and note, for a page with the report's style sheet.
pub fn figure(chart: &Chart) -> String {
    let mut html = format!("<figure class=\"plot\">\n<figcaption>{}</figcaption>\n", escape(&chart.title));
    if shown_series(chart).count() > 1 {
        html.push_str("<ul class=\"legend\">");
        for (index, series) in shown_series(chart) {
            html.push_str(&format!(
                "<li><svg class=\"key\" viewBox=\"0 0 26 10\" aria-hidden=\"true\">{}</svg>{}</li>",
                key(chart, index),
                escape(&series.name)
            ));
        }
        html.push_str("</ul>\n");
    }
    html.push_str(&drawing(chart));
    let note = note(chart);
    if !note.is_empty() {
        html.push_str(&format!("<p class=\"note\">{}</p>\n", escape(&note)));
    }
    html.push_str("</figure>\n");
    html
}

/// The series that have points, each with its place among all.
fn shown_series(chart: &Chart) -> impl Iterator<Item = (usize, &Series)> {
    chart.series.iter().enumerate().filter(|(_, series)| !series.points.is_empty())
}

/// The chart as an SVG file of its own, with title and legend, for light and dark surroundings.
pub fn svg_document(chart: &Chart) -> String {
    let mut head = format!("<text class=\"heading\" x=\"0\" y=\"16\">{}</text>\n", escape(&chart.title));
    let (mut x, mut y) = (0.0, 36.0);
    if shown_series(chart).count() > 1 {
        for (index, series) in shown_series(chart) {
            let width = 46.0 + series.name.chars().count() as f64 * 6.6;
            if x > 0.0 && x + width > WIDTH {
                (x, y) = (0.0, y + 18.0);
            }
            head.push_str(&format!(
                "<g class=\"key\" transform=\"translate({x:.1} {:.1})\">{}</g><text x=\"{:.1}\" y=\"{y:.1}\">{}</text>\n",
                y - 9.0,
                key(chart, index),
                x + 32.0,
                escape(&series.name)
            ));
            x += width;
        }
        y += 12.0;
    } else {
        y = 26.0;
    }
    let frame = Frame::of(chart);
    let height = y + HEIGHT;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"chart\" role=\"img\" viewBox=\"-8 -6 {:.0} {:.0}\" width=\"{:.0}\">\n\
         <title>{}</title>\n<desc>{}</desc>\n<style>{STYLE}</style>\n\
         <rect x=\"-8\" y=\"-6\" width=\"100%\" height=\"100%\" style=\"fill:var(--surface)\"/>\n\
         {head}<g transform=\"translate(0 {y:.0})\">\n{}</g>\n</svg>\n",
        WIDTH + 16.0,
        height + 10.0,
        (WIDTH + 16.0) * 1.5,
        escape(&chart.title),
        escape(&description(chart)),
        inside(chart, &frame)
    )
}

/// The drawing alone, without title and legend.
fn drawing(chart: &Chart) -> String {
    let frame = Frame::of(chart);
    let percent = if chart.percent { " data-percent=\"1\"" } else { "" };
    format!(
        "<svg class=\"chart\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" data-x=\"{}\"{percent}>\n\
         <title>{}</title>\n<desc>{}</desc>\n{}</svg>\n",
        escape(&chart.x_label),
        escape(&chart.title),
        escape(&description(chart)),
        inside(chart, &frame)
    )
}

fn inside(chart: &Chart, frame: &Frame) -> String {
    let mut svg = axes(chart, frame);
    // The first series is the most important one and is drawn last, on top.
    for (index, series) in chart.series.iter().enumerate().rev() {
        svg.push_str(&match series.mark {
            Mark::Line | Mark::NoisyLine | Mark::LineWithDots | Mark::Reference => line(chart, index, frame),
            Mark::Dots => dots(index, series, frame),
            Mark::Bars => bars(index, series, frame),
        });
    }
    svg
}

/// A range of values and where it lies in the drawing.
struct Axis {
    low: f64,
    high: f64,
    log: bool,
    start: f64,
    end: f64,
}

impl Axis {
    fn place(&self, value: f64) -> f64 {
        let scaled = |value: f64| if self.log { value.log10() } else { value };
        let share = (scaled(value) - scaled(self.low)) / (scaled(self.high) - scaled(self.low));
        self.start + share * (self.end - self.start)
    }

    fn ticks(&self, wanted: usize) -> Vec<f64> {
        if self.log {
            log_ticks(self.low, self.high, wanted)
        } else {
            even_ticks(self.low, self.high, wanted)
        }
    }
}

struct Frame {
    x: Axis,
    y: Axis,
    y_ticks: Vec<(f64, String)>,
}

impl Frame {
    fn of(chart: &Chart) -> Frame {
        let shown =
            || chart.series.iter().flat_map(|series| series.points.iter()).filter(|point| finite(point));
        let has = |marks: &[Mark]| chart.series.iter().any(|series| marks.contains(&series.mark));
        let (x_low, x_high) = chart.x_range.unwrap_or_else(|| bounds(shown().map(|point| point.0)));
        let (y_low, y_high) = bounds(shown().map(|point| point.1));
        let log = match chart.y_scale {
            Scale::Linear => false,
            Scale::Log => shown().any(|point| point.1 > 0.0),
            Scale::Auto => y_low > 0.0 && y_high / y_low > 50.0 && !has(&[Mark::Bars]),
        };

        let mut y = Axis { low: y_low, high: y_high, log, start: HEIGHT - 34.0, end: 8.0 };
        if log {
            let positive = bounds(shown().map(|point| point.1).filter(|value| *value > 0.0));
            let (low, high) =
                if positive.0 == positive.1 { (positive.0 / 2.0, positive.1 * 2.0) } else { positive };
            let margin = (high / low).powf(0.04);
            (y.low, y.high) = (low / margin, high * margin);
        } else {
            if has(&[Mark::Bars]) {
                (y.low, y.high) = (y.low.min(0.0), y.high.max(0.0));
            }
            (y.low, y.high) = widened(y.low, y.high);
            let margin = (y.high - y.low) * 0.04;
            // A margin does not lead to where no values are.
            let (below_zero, above_one) = (y_low < 0.0, y_high > 1.0);
            (y.low, y.high) = (y.low - margin, y.high + margin);
            if !below_zero {
                y.low = y.low.max(0.0);
            }
            if chart.percent && !above_one {
                y.high = y.high.min(1.0);
            }
        }
        y.end += if log || !chart.y_label.is_empty() { 15.0 } else { 0.0 };
        y.end += if chart.ticks_above.is_some() { 21.0 } else { 0.0 };
        let y_ticks = labelled(&y.ticks(5), chart.percent);
        let longest = y_ticks.iter().map(|(_, label)| label.chars().count()).max().unwrap_or(0);
        let above = chart.ticks_above.as_ref().map_or(0, |ticks| ticks.label.chars().count());
        let left = longest.max(above) as f64 * LETTER + 8.0;

        let (mut x_low, mut x_high) = widened(x_low, x_high);
        if has(&[Mark::Dots, Mark::Bars]) {
            let widest = chart
                .series
                .iter()
                .filter(|series| series.mark == Mark::Bars)
                .map(bar_width)
                .fold(0.0, f64::max);
            let margin = if widest > 0.0 { widest * 0.6 } else { (x_high - x_low) * 0.03 };
            (x_low, x_high) = (x_low - margin, x_high + margin);
        }
        let x = Axis { low: x_low, high: x_high, log: false, start: left, end: WIDTH - 14.0 };
        Frame { x, y, y_ticks }
    }

    /// The place of a point, unless the axes cannot hold it.
    fn place(&self, point: &(f64, f64)) -> Option<(f64, f64)> {
        (finite(point) && (!self.y.log || point.1 > 0.0))
            .then(|| (self.x.place(point.0), self.y.place(point.1)))
    }
}

fn finite(point: &(f64, f64)) -> bool {
    point.0.is_finite() && point.1.is_finite()
}

/// The smallest and the largest value; (0, 1) where there are none.
fn bounds(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let bounds = values
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
    if bounds.0 <= bounds.1 { bounds } else { (0.0, 1.0) }
}

/// A range that is not empty.
fn widened(low: f64, high: f64) -> (f64, f64) {
    if high - low > low.abs().max(high.abs()) * 1e-9 {
        (low, high)
    } else if low == 0.0 {
        (-1.0, 1.0)
    } else {
        (low - low.abs() * 0.1, high + high.abs() * 0.1)
    }
}

/// About `wanted` round values within a range: multiples of 1, 2 or 5 times a power of ten.
pub(super) fn even_ticks(low: f64, high: f64, wanted: usize) -> Vec<f64> {
    let rough = (high - low) / wanted.max(1) as f64;
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|step| *step >= rough * 0.72)
        .unwrap_or(power * 10.0);
    let (first, last) = ((low / step - 1e-9).ceil(), (high / step + 1e-9).floor());
    // Counted, not added up: 0.1 + 0.2 is not 0.3.
    (0..=(last - first).clamp(0.0, 100.0) as usize).map(|index| (first + index as f64) * step).collect()
}

/// Powers of ten within a range, with 2 and 5 times them where these are few.
fn log_ticks(low: f64, high: f64, wanted: usize) -> Vec<f64> {
    let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
    let inside = |factors: &[f64], every: usize| -> Vec<f64> {
        let ticks = (first..=last)
            .step_by(every)
            .flat_map(|power| factors.iter().map(move |factor| factor * 10_f64.powi(power)));
        ticks.filter(|tick| *tick >= low * 0.999 && *tick <= high * 1.001).collect()
    };
    let decades = inside(&[1.0], 1);
    if decades.len() > wanted + 2 {
        return inside(&[1.0], decades.len().div_ceil(wanted));
    }
    let candidates = [decades, inside(&[1.0, 3.0], 1), inside(&[1.0, 2.0, 5.0], 1)];
    let enough = candidates.iter().find(|ticks| ticks.len() >= 3.min(wanted)).cloned();
    enough.unwrap_or_else(|| even_ticks(low, high, wanted))
}

/// Ticks with their texts, all to the same number of decimals.
pub(super) fn labelled(ticks: &[f64], as_percent: bool) -> Vec<(f64, String)> {
    let factor = if as_percent { 100.0 } else { 1.0 };
    let values: Vec<f64> = ticks.iter().map(|tick| tick * factor).collect();
    let largest = values.iter().fold(0.0, |largest: f64, value| largest.max(value.abs()));
    let smallest = values
        .iter()
        .filter(|value| **value != 0.0)
        .fold(f64::INFINITY, |smallest: f64, value| smallest.min(value.abs()));
    // Evenly divided ticks share their decimals; on a logarithmic axis each has its own.
    let even = values.len() < 3
        || (values[1] - values[0] - (values[2] - values[1])).abs() < (values[1] - values[0]).abs() * 1e-6;
    let (divisor, suffix) = match largest {
        1e9.. => (1e9, "G"),
        1e6.. => (1e6, "M"),
        1e4.. => (1e3, "k"),
        _ => (1.0, ""),
    };
    let text = |value: f64| {
        if value == 0.0 {
            return "0".to_string();
        }
        if !(1e-3..1e12).contains(&largest) || (!even && !(1e-3..1e4).contains(&value.abs())) {
            return format!(
                "{}e{}",
                number(value / 10_f64.powf(value.abs().log10().floor())),
                value.abs().log10().floor()
            );
        }
        if !even {
            return number(value);
        }
        let step = if values.len() > 1 { (values[1] - values[0]).abs() } else { smallest };
        let decimals = (-(step / divisor).log10() - 1e-9).ceil().clamp(0.0, 9.0) as usize;
        format!("{:.decimals$}{suffix}", value / divisor)
    };
    values
        .iter()
        .zip(ticks)
        .map(|(value, tick)| (*tick, format!("{}{}", text(*value), if as_percent { "%" } else { "" })))
        .collect()
}

fn axes(chart: &Chart, frame: &Frame) -> String {
    let (x, y) = (&frame.x, &frame.y);
    let mut svg = String::new();
    for (tick, label) in &frame.y_ticks {
        let place = y.place(*tick);
        svg.push_str(&format!(
            "<line class=\"grid\" x1=\"{:.1}\" y1=\"{place:.1}\" x2=\"{:.1}\" y2=\"{place:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>\n",
            x.start,
            x.end,
            x.start - 6.0,
            place + 4.0
        ));
    }
    svg.push_str(&format!("<path class=\"axis\" d=\"M{:.1} {:.1}H{:.1}", x.start, y.start, x.end));
    let ticks = labelled(&x.ticks(6), false);
    for (tick, _) in &ticks {
        svg.push_str(&format!("M{:.1} {:.1}v4", x.place(*tick), y.start));
    }
    if let Some(above) = &chart.ticks_above {
        for (tick, _) in &above.ticks {
            svg.push_str(&format!("M{:.1} {:.1}v-4", x.place(*tick), y.end));
        }
    }
    svg.push_str("\"/>\n");
    for (tick, label) in &ticks {
        svg.push_str(&format!(
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{label}</text>\n",
            x.place(*tick),
            y.start + 17.0
        ));
    }
    if !chart.x_label.is_empty() {
        svg.push_str(&format!(
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n",
            x.end,
            y.start + 31.0,
            escape(&chart.x_label)
        ));
    }
    if let Some(above) = &chart.ticks_above {
        let place = y.end - 12.0;
        svg.push_str(&format!(
            "<text x=\"{:.1}\" y=\"{place:.1}\" text-anchor=\"end\">{}</text>\n",
            x.start - 6.0,
            escape(&above.label)
        ));
        for (tick, label) in &above.ticks {
            svg.push_str(&format!(
                "<text x=\"{:.1}\" y=\"{place:.1}\" text-anchor=\"middle\">{}</text>\n",
                x.place(*tick),
                escape(label)
            ));
        }
    }
    let y_label = match (chart.y_label.is_empty(), y.log) {
        (true, true) => "log scale".to_string(),
        (false, true) => format!("{} (log scale)", chart.y_label),
        (_, false) => chart.y_label.clone(),
    };
    if !y_label.is_empty() {
        svg.push_str(&format!("<text x=\"0\" y=\"11\">{}</text>\n", escape(&y_label)));
    }
    svg
}

fn line(chart: &Chart, index: usize, frame: &Frame) -> String {
    let series = &chart.series[index];
    let segments = segments(series, frame);
    let points: usize = segments.iter().map(Vec::len).sum();
    let noisy = series.mark == Mark::NoisyLine && points >= NOISY_POINTS;
    let dotted = has_dots(series);
    let (class, dash) = match series.mark {
        Mark::Reference => ("reference", 0),
        _ => ("line", dash(chart, index)),
    };
    let mut svg = String::new();
    for segment in &segments {
        let [only] = segment[..] else {
            let drawn = thinned(segment, points);
            if noisy {
                svg.push_str(&polyline(&format!("raw s{}", index % COLORS), &drawn, Some(series), frame));
                let mean = thinned(&running_mean(segment, (points / 40).max(5)), points);
                svg.push_str(&polyline(&format!("line s{} d{dash}", index % COLORS), &mean, None, frame));
            } else {
                svg.push_str(&polyline(
                    &format!("{class} s{} d{dash}", index % COLORS),
                    &drawn,
                    Some(series),
                    frame,
                ));
            }
            continue;
        };
        // A line through one point cannot be seen; a dot can.
        if (!dotted || points == 1)
            && let Some(place) = frame.place(&only)
        {
            svg.push_str(&dot(index, place, "dot", 3.2));
        }
    }
    if dotted && points > 1 {
        for place in series.points.iter().filter_map(|point| frame.place(point)) {
            svg.push_str(&dot(index, place, "dot", 2.6));
        }
    }
    svg.push('\n');
    svg
}

fn polyline(class: &str, points: &[(f64, f64)], named: Option<&Series>, frame: &Frame) -> String {
    let places: Vec<String> = points
        .iter()
        .filter_map(|point| frame.place(point))
        .map(|(x, y)| format!("{},{}", short(x), short(y)))
        .collect();
    // The values as they are, for what shows them under the pointer.
    let values = named.map_or(String::new(), |series| {
        let values: Vec<String> =
            points.iter().map(|(x, y)| format!("{} {}", exact(*x), exact(*y))).collect();
        format!(" data-name=\"{}\" data-v=\"{}\"", escape(&series.name), values.join(","))
    });
    format!("<polyline class=\"{class}\" points=\"{}\"{values}/>", places.join(" "))
}

/// A coordinate to a tenth of a unit.
fn short(place: f64) -> String {
    let text = format!("{place:.1}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_string)
}

/// A value with five significant digits, whole numbers in full, in a form that programs read.
fn exact(value: f64) -> String {
    if value == value.trunc() && value.abs() < 1e15 {
        return format!("{value:.0}");
    }
    let digits = format!("{value:.4e}");
    digits.parse::<f64>().map_or(digits, |rounded| rounded.to_string())
}

fn dots(index: usize, series: &Series, frame: &Frame) -> String {
    let every = series.points.len().div_ceil(DRAWN_DOTS).max(1);
    let few = series.points.len() <= ROOM_FOR_DOTS;
    let places = series.points.iter().step_by(every).filter_map(|point| frame.place(point));
    let mut svg: String = places
        .map(|place| if few { dot(index, place, "dot", 3.2) } else { dot(index, place, "scatter", 2.2) })
        .collect();
    svg.push('\n');
    svg
}

/// A mark: a circle, a diamond or a square, by the series.
fn dot(index: usize, (x, y): (f64, f64), class: &str, radius: f64) -> String {
    let class = format!("{class} s{}", index % COLORS);
    match index % 3 {
        2 => {
            let reach = radius * 1.35;
            format!(
                "<path class=\"{class}\" d=\"M{x:.1} {:.1}l{reach} {reach}l-{reach} {reach}l-{reach} -{reach}z\"/>",
                y - reach
            )
        }
        1 => {
            let side = radius * 1.75;
            format!(
                "<rect class=\"{class}\" x=\"{:.1}\" y=\"{:.1}\" width=\"{side:.1}\" height=\"{side:.1}\"/>",
                x - side / 2.0,
                y - side / 2.0
            )
        }
        _ => format!("<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\"/>"),
    }
}

fn bars(index: usize, series: &Series, frame: &Frame) -> String {
    let width = bar_width(series);
    let mut svg = String::new();
    for point in series.points.iter().filter(|point| finite(point)) {
        let (left, right) = (frame.x.place(point.0 - width / 2.0), frame.x.place(point.0 + width / 2.0));
        let (zero, value) = (frame.y.place(0.0_f64.clamp(frame.y.low, frame.y.high)), frame.y.place(point.1));
        svg.push_str(&format!(
            "<rect class=\"bar s{}\" x=\"{left:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\"><title>{}: {}</title></rect>",
            index % COLORS,
            zero.min(value),
            (right - left).max(0.5),
            (zero - value).abs(),
            number(point.0),
            number(point.1)
        ));
    }
    svg.push('\n');
    svg
}

/// The width of a bar in units of the horizontal axis: nine tenths of the smallest distance.
fn bar_width(series: &Series) -> f64 {
    let mut places: Vec<f64> =
        series.points.iter().filter(|point| finite(point)).map(|point| point.0).collect();
    places.sort_by(f64::total_cmp);
    let smallest = places
        .windows(2)
        .map(|pair| pair[1] - pair[0])
        .filter(|distance| *distance > 0.0)
        .fold(f64::INFINITY, f64::min);
    if smallest.is_finite() { smallest * 0.9 } else { 0.9 }
}

/// What stands for a series in a legend, 26 by 10.
fn key(chart: &Chart, index: usize) -> String {
    let series = &chart.series[index];
    let color = index % COLORS;
    match series.mark {
        Mark::Dots => {
            dot(index, (13.0, 5.0), if series.points.len() <= ROOM_FOR_DOTS { "dot" } else { "scatter" }, 3.2)
        }
        Mark::Bars => format!("<rect class=\"bar s{color}\" x=\"7\" y=\"0\" width=\"12\" height=\"10\"/>"),
        Mark::Reference => "<line class=\"reference\" x1=\"1\" y1=\"5\" x2=\"25\" y2=\"5\"/>".to_string(),
        // One point is drawn as a dot.
        Mark::Line | Mark::NoisyLine | Mark::LineWithDots if series.points.len() == 1 => {
            dot(index, (13.0, 5.0), "dot", 3.2)
        }
        Mark::Line | Mark::NoisyLine | Mark::LineWithDots => {
            let line = format!(
                "<line class=\"line s{color} d{}\" x1=\"1\" y1=\"5\" x2=\"25\" y2=\"5\"/>",
                dash(chart, index)
            );
            if has_dots(series) { line + &dot(index, (13.0, 5.0), "dot", 2.6) } else { line }
        }
    }
}

fn has_dots(series: &Series) -> bool {
    series.mark == Mark::LineWithDots && series.points.len() <= ROOM_FOR_DOTS
}

/// Which dashes a line has: none where dots mark it already, or where it is the chart's only one.
fn dash(chart: &Chart, index: usize) -> usize {
    let told_apart = has_dots(&chart.series[index]) && index < COLORS;
    if told_apart || shown_series(chart).count() == 1 { 0 } else { index % DASHES }
}

/// The parts of a line between points that cannot be drawn.
fn segments(series: &Series, frame: &Frame) -> Vec<Vec<(f64, f64)>> {
    let parts = series.points.split(|point| frame.place(point).is_none());
    parts.filter(|part| !part.is_empty()).map(<[_]>::to_vec).collect()
}

/// A line with fewer points that reaches as high and as low: of every stretch the smallest and the largest are kept, in their
/// order, and the line's two ends. `whole` is the number of points of all the segments that share the drawing.
fn thinned(points: &[(f64, f64)], whole: usize) -> Vec<(f64, f64)> {
    let stretch = whole.div_ceil(DRAWN_POINTS / 2);
    if whole <= DRAWN_POINTS || stretch <= 2 {
        return points.to_vec();
    }
    let mut kept = Vec::with_capacity(DRAWN_POINTS + 2);
    for (number, part) in points.chunks(stretch).enumerate() {
        let by_value = |left: &usize, right: &usize| part[*left].1.total_cmp(&part[*right].1);
        let smallest = (0..part.len()).min_by(by_value).unwrap_or(0);
        let largest = (0..part.len()).max_by(by_value).unwrap_or(0);
        let mut indices = vec![smallest, largest];
        if number == 0 {
            indices.push(0);
        }
        if (number + 1) * stretch >= points.len() {
            indices.push(part.len() - 1);
        }
        indices.sort_unstable();
        indices.dedup();
        kept.extend(indices.into_iter().map(|index| part[index]));
    }
    kept
}

/// The mean of the `window` points around each, of fewer at the two ends.
fn running_mean(points: &[(f64, f64)], window: usize) -> Vec<(f64, f64)> {
    let reach = window / 2;
    // Sums up to each point; the mean is taken from differences to the first value, which are small.
    let origin = points.first().map_or(0.0, |point| point.1);
    let mut sums = Vec::with_capacity(points.len() + 1);
    sums.push(0.0);
    for point in points {
        sums.push(sums[sums.len() - 1] + (point.1 - origin));
    }
    let mean = |index: usize| {
        // At the beginning as many on either side, so that a steep start keeps its height; at the end, where lines are flat, all
        // that there are.
        let (first, last) = (index - reach.min(index), (index + reach.min(index) + 1).min(points.len()));
        origin + (sums[last] - sums[first]) / (last - first) as f64
    };
    (0..points.len()).map(|index| (points[index].0, mean(index))).collect()
}

/// What a chart shows, in words.
fn description(chart: &Chart) -> String {
    let value = |value: f64| if chart.percent { percent(value) } else { number(value) };
    let over = if chart.x_label.is_empty() { "x" } else { &chart.x_label };
    let mut parts = Vec::new();
    for (_, series) in shown_series(chart) {
        let points: Vec<_> = series.points.iter().filter(|point| finite(point)).collect();
        let (Some(first), Some(last)) = (points.first(), points.last()) else {
            parts.push(format!("{}: no values", series.name));
            continue;
        };
        let (low, high) = bounds(points.iter().map(|point| point.1));
        parts.push(if points.len() == 1 {
            format!("{}: {} at {over} {}", series.name, value(first.1), number(first.0))
        } else {
            format!(
                "{}: {} values, from {} at {over} {} to {} at {over} {}, lowest {}, highest {}",
                series.name,
                count(points.len() as u64),
                value(first.1),
                number(first.0),
                value(last.1),
                number(last.0),
                value(low),
                value(high)
            )
        });
    }
    parts.join("; ")
}

/// The chart's note, with what the drawing alone does not tell.
fn note(chart: &Chart) -> String {
    let mut notes = Vec::new();
    if !chart.note.is_empty() {
        notes.push(chart.note.clone());
    }
    let frame = Frame::of(chart);
    let noisy = |series: &Series| series.mark == Mark::NoisyLine && series.points.len() >= NOISY_POINTS;
    if chart.series.iter().any(noisy) {
        notes.push("Faint: as logged; strong: running mean.".to_string());
    }
    for series in &chart.series {
        let missing = series.points.iter().filter(|point| frame.place(point).is_none()).count();
        if missing > 0 {
            notes.push(format!(
                "{}: {} of {} values cannot be drawn.",
                series.name,
                count(missing as u64),
                count(series.points.len() as u64)
            ));
        }
        if series.mark == Mark::Dots && series.points.len() > DRAWN_DOTS {
            let every = series.points.len().div_ceil(DRAWN_DOTS);
            notes.push(format!("{}: one point in {every} is drawn.", series.name));
        }
    }
    notes.join(" ")
}

/// Text for HTML and SVG, in content and in quoted attributes. Control characters, which XML forbids, are left out.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            letter if letter.is_control() && !letter.is_ascii_whitespace() => {}
            letter => escaped.push(letter),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(name: &str, mark: Mark, points: Vec<(f64, f64)>) -> Series {
        Series { name: name.to_string(), points, mark }
    }

    fn texts(ticks: &[f64], as_percent: bool) -> Vec<String> {
        labelled(ticks, as_percent).into_iter().map(|(_, text)| text).collect()
    }

    /// Values of an attribute in the order of the document.
    fn attributes<'a>(svg: &'a str, name: &str) -> Vec<&'a str> {
        let start = format!(" {name}=\"");
        svg.split(&start).skip(1).map(|rest| rest.split('"').next().unwrap()).collect()
    }

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(texts(&even_ticks(0.0, 1.0, 5), false), ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(texts(&even_ticks(0.87, 0.993, 5), true), ["88%", "90%", "92%", "94%", "96%", "98%"]);
        assert_eq!(texts(&even_ticks(0.0, 51_000.0, 6), false), ["0", "10k", "20k", "30k", "40k", "50k"]);
        assert_eq!(texts(&even_ticks(0.0, 9e-4, 5), false), ["0", "2e-4", "4e-4", "6e-4", "8e-4"]);
        assert_eq!(texts(&even_ticks(-1.0, 1.0, 4), false), ["-1.0", "-0.5", "0", "0.5", "1.0"]);
        assert_eq!(texts(&log_ticks(0.011, 3.0, 5), false), ["0.03", "0.1", "0.3", "1", "3"]);
        assert_eq!(
            texts(&log_ticks(0.5e-3, 2e3, 5), false),
            ["0.001", "0.01", "0.1", "1", "10", "100", "1,000"]
        );
        assert_eq!(texts(&log_ticks(1e-9, 1e9, 5), false), ["1e-9", "1e-5", "0.1", "1,000", "1e7"]);
        assert!(log_ticks(1.1, 1.4, 5).len() >= 3, "a range without round powers has ticks too");
    }

    #[test]
    fn thinning_keeps_ends_and_extremes() {
        let mut points: Vec<(f64, f64)> =
            (0..100_003).map(|step| (step as f64, (step as f64 * 0.01).sin())).collect();
        points[41_234].1 = 9.0;
        points[77_777].1 = -9.0;
        let drawn = thinned(&points, points.len());
        assert!(drawn.len() <= DRAWN_POINTS + 2, "{}", drawn.len());
        assert_eq!((drawn[0], drawn[drawn.len() - 1]), (points[0], points[points.len() - 1]));
        assert!(drawn.contains(&points[41_234]) && drawn.contains(&points[77_777]));
        assert!(drawn.is_sorted_by(|left, right| left.0 < right.0));
        assert_eq!(thinned(&points[..300], 300), points[..300]);
    }

    #[test]
    fn a_running_mean_keeps_a_steep_start_and_calms_the_end() {
        let zigzag = |step: i32| if step % 2 == 0 { 1.0 } else { -1.0 };
        let slope = |step: i32| if step < 25 { 3.0 * f64::from(25 - step) } else { 0.0 };
        let points: Vec<(f64, f64)> =
            (0..50).map(|step| (f64::from(step), slope(step) + zigzag(step))).collect();
        let mean = running_mean(&points, 11);
        assert_eq!(mean.len(), 50);
        assert_eq!(mean[0], points[0]);
        for (x, y) in &mean[5..20] {
            assert!((y - slope(*x as i32)).abs() < 0.1, "{x}: {y}");
        }
        for (x, y) in &mean[31..] {
            assert!(y.abs() < 0.2, "{x}: {y}");
        }
    }

    #[test]
    fn places_lie_inside_the_drawing_whatever_the_values() {
        let cases: [(&str, Vec<(f64, f64)>); 8] = [
            ("nothing", vec![]),
            ("one point", vec![(3.0, 0.5)]),
            ("a constant", vec![(0.0, 1e-3), (1.0, 1e-3)]),
            ("zeros", vec![(0.0, 0.0), (1.0, 0.0)]),
            ("many decades", vec![(0.0, 1e-12), (1.0, 1e12), (2.0, 3.0)]),
            ("a gap", vec![(0.0, 1.0), (1.0, f64::NAN), (2.0, f64::INFINITY), (3.0, 2.0), (4.0, 1.5)]),
            ("negative", vec![(-5.0, -3.0), (5.0, -1e6)]),
            ("one place", vec![(7.0, 1.0), (7.0, 2.0)]),
        ];
        for (name, points) in cases {
            for mark in
                [Mark::Line, Mark::NoisyLine, Mark::LineWithDots, Mark::Dots, Mark::Bars, Mark::Reference]
            {
                for y_scale in [Scale::Auto, Scale::Linear, Scale::Log] {
                    let chart = Chart {
                        series: vec![series("a", mark, points.clone())],
                        y_scale,
                        ..Chart::default()
                    };
                    let svg = drawing(&chart);
                    assert!(
                        !svg.contains("NaN") && !svg.contains("inf"),
                        "{name}, {mark:?}, {y_scale:?}: {svg}"
                    );
                    let limits = [
                        ("x1", WIDTH),
                        ("x", WIDTH),
                        ("cx", WIDTH),
                        ("y1", HEIGHT),
                        ("y", HEIGHT),
                        ("cy", HEIGHT),
                    ];
                    for (attribute, most) in limits {
                        for value in attributes(&svg, attribute) {
                            let value: f64 = value.parse().unwrap();
                            assert!(
                                (-0.1..=most + 0.1).contains(&value),
                                "{name}, {mark:?}, {y_scale:?}: {attribute}={value}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_line_breaks_where_a_value_is_missing_and_the_note_says_so() {
        let points = vec![
            (0.0, 1.0),
            (1.0, 2.0),
            (2.0, f64::NAN),
            (3.0, 1.0),
            (4.0, 3.0),
            (5.0, f64::NAN),
            (6.0, 2.0),
        ];
        let chart = Chart { series: vec![series("loss", Mark::Line, points)], ..Chart::default() };
        let html = figure(&chart);
        assert_eq!(html.matches("<polyline").count(), 2);
        assert_eq!(html.matches("<circle").count(), 1, "a lone point is a dot");
        assert!(html.contains("loss: 2 of 7 values cannot be drawn."));
    }

    #[test]
    fn the_scale_is_logarithmic_where_values_span_decades() {
        let chart = |low: f64| Chart {
            series: vec![series("a", Mark::Line, vec![(0.0, low), (1.0, 1.0)])],
            ..Chart::default()
        };
        assert!(drawing(&chart(0.001)).contains("log scale"));
        assert!(!drawing(&chart(0.1)).contains("log scale"));
        assert!(!drawing(&chart(0.0)).contains("log scale"));
        assert!(!drawing(&Chart { y_scale: Scale::Linear, ..chart(0.001) }).contains("log scale"));
        // On a logarithmic axis equal ratios are equal distances.
        let frame = Frame::of(&chart(0.001));
        let [first, second, third] = [0.01, 0.1, 1.0].map(|value| frame.y.place(value));
        assert!((first - second - (second - third)).abs() < 1e-9 && first > second);
    }

    #[test]
    fn the_values_under_the_pointer_are_the_given_ones() {
        let points = vec![(12_345.0, 2.512_345), (60_000.0, 1e-7)];
        let svg = drawing(&Chart { series: vec![series("a", Mark::Line, points)], ..Chart::default() });
        assert_eq!(attributes(&svg, "data-v"), ["12345 2.5123,60000 0.0000001"]);
    }

    #[test]
    fn names_are_escaped_everywhere() {
        let evil = "</title><script>alert(\"quoted\")</script>&'\u{1}";
        let points = vec![(0.0, 1.0), (1.0, 2.0)];
        let chart = Chart {
            title: evil.to_string(),
            x_label: evil.to_string(),
            y_label: evil.to_string(),
            series: vec![series(evil, Mark::Line, points.clone()), series(evil, Mark::Bars, points)],
            ticks_above: Some(TicksAbove { label: evil.to_string(), ticks: vec![(0.5, evil.to_string())] }),
            note: evil.to_string(),
            ..Chart::default()
        };
        for text in [figure(&chart), svg_document(&chart)] {
            assert!(!text.contains("<script") && !text.contains('\u{1}') && !text.contains("\"quoted\""));
            assert!(text.contains("&lt;script&gt;alert(&quot;quoted&quot;)"));
        }
    }

    #[test]
    fn many_dots_are_drawn_in_part_and_said_to_be() {
        let points = (0..10_000).map(|index| (index as f64, (index % 7) as f64)).collect();
        let html =
            figure(&Chart { series: vec![series("residuals", Mark::Dots, points)], ..Chart::default() });
        assert!((1000..=DRAWN_DOTS).contains(&html.matches("<circle").count()));
        assert!(html.contains("residuals: one point in 7 is drawn."));
    }

    #[test]
    fn a_document_needs_nothing_else() {
        let points: Vec<(f64, f64)> = (0..5).map(|step| (step as f64, step as f64)).collect();
        let names = ["PyTorch, fp32", "this suite, fp32", "PyTorch, bf16", "this suite, bf16"];
        let series: Vec<Series> = names.iter().map(|name| series(name, Mark::Line, points.clone())).collect();
        let document = svg_document(&Chart { title: "Speed".to_string(), series, ..Chart::default() });
        assert!(
            document.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\"")
                && document.contains("prefers-color-scheme: dark")
        );
        assert_eq!(document.matches("<svg").count(), 1);
        assert_eq!(document.matches("http").count(), 1);
        assert!(names.iter().all(|name| document.contains(name)));
    }
}
