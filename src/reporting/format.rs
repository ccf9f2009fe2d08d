//! Numbers as people read them: in log lines, tables and reports.

/// A number with four significant digits: `0.03412`, `12.5`, `1,234`, `1.2e-5`. Whole numbers are written in full below 10^15.
pub fn number(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_string();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.to_string();
    }
    let magnitude = value.abs();
    if value == value.trunc() && magnitude < 1e15 {
        let sign = if value < 0.0 { "-" } else { "" };
        return format!("{sign}{}", count(magnitude as u64));
    }
    if !(1e-4..1e7).contains(&magnitude) {
        let text = format!("{value:.3e}");
        return match text.split_once('e') {
            Some((digits, exponent)) => format!("{}e{exponent}", without_trailing_zeros(digits)),
            None => text,
        };
    }
    if magnitude >= 1000.0 {
        return number(value.round());
    }
    // Digits before the point (or, negative, zeros behind it) say how many decimals make four significant digits.
    let leading = magnitude.log10().floor() as i32;
    let decimals = (3 - leading).max(0) as usize;
    without_trailing_zeros(&format!("{value:.decimals$}")).to_string()
}

fn without_trailing_zeros(text: &str) -> &str {
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { text }
}

/// A fraction as a percentage with two decimals: `98.73%`.
pub fn percent(fraction: f64) -> String {
    if fraction.is_finite() { format!("{:.2}%", fraction * 100.0) } else { number(fraction) }
}

/// A count with separators between thousands: `60,000`.
pub fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes in the unit that leaves one to three digits before the point: `3.5 MB`.
pub fn bytes(count: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 || value >= 10.0 {
        format!("{value:.0} {}", units[unit])
    } else {
        format!("{value:.1} {}", units[unit])
    }
}

/// A duration for reading: `820 ms`, `3.4 s`, `12 min 05 s`, `1 h 02 min`, `2 d 03 h`.
pub fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return number(seconds);
    }
    // Rounded before the unit is chosen, so that 59.96 s is a minute and not `60.0 s`.
    let milliseconds = (seconds * 1e3).round();
    let whole = seconds.round() as u64;
    if milliseconds < 1000.0 {
        format!("{} ms", number(milliseconds))
    } else if seconds < 59.95 {
        format!("{seconds:.1} s")
    } else if whole < 3600 {
        format!("{} min {:02} s", whole / 60, whole % 60)
    } else if whole < 86_400 {
        format!("{} h {:02} min", whole / 3600, whole % 3600 / 60)
    } else {
        format!("{} d {:02} h", whole / 86_400, whole % 86_400 / 3600)
    }
}

/// A duration as a clock shows it, to the second: `0:12`, `1:02:03`.
pub fn clock(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "-:--".to_string();
    }
    let whole = seconds.round() as u64;
    if whole < 3600 {
        format!("{}:{:02}", whole / 60, whole % 60)
    } else {
        format!("{}:{:02}:{:02}", whole / 3600, whole % 3600 / 60, whole % 60)
    }
}

/// A metric's value as its name asks for it: accuracies and other shares as a percentage, everything else as a number.
pub fn metric(name: &str, value: f64) -> String {
    if is_fraction(name) { percent(value) } else { number(value) }
}

/// Whether a metric of this name is a share of one that people read as a percentage.
pub fn is_fraction(name: &str) -> bool {
    parts(name).any(|part| matches!(part, "accuracy" | "precision" | "recall" | "f1"))
        || matches!(name, "data_wait" | "exact_match" | "ece")
}

/// Which way a metric gets better, where its name tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Better {
    /// A loss or an error.
    Lower,
    /// An accuracy or another score.
    Higher,
}

/// Which way the metric of this name gets better; `None` for a name that is not known.
pub fn better(name: &str) -> Option<Better> {
    let lower = [
        "loss",
        "perplexity",
        "mse",
        "rmse",
        "mae",
        "mape",
        "smape",
        "error",
        "deviance",
        "aic",
        "bic",
        "ece",
    ];
    let higher = [
        "accuracy",
        "precision",
        "recall",
        "f1",
        "auroc",
        "bleu",
        "chrf",
        "r2",
        "exact",
        "correlation",
        "mcc",
        "iou",
    ];
    if parts(name).any(|part| lower.contains(&part)) {
        Some(Better::Lower)
    } else if parts(name).any(|part| higher.contains(&part)) {
        Some(Better::Higher)
    } else {
        None
    }
}

/// A metric's key as words: `grad_norm` is "gradient norm", `top5_accuracy` "top-5 accuracy".
pub fn metric_label(name: &str) -> String {
    if name == "data_wait" {
        return "time spent waiting for data".to_string();
    }
    let words: Vec<String> = parts(name)
        .map(|part| match part {
            "lr" => "learning rate".to_string(),
            "grad" => "gradient".to_string(),
            "f1" => "F1".to_string(),
            "auroc" | "ece" | "mse" | "rmse" | "mae" | "mape" | "bleu" | "aic" | "bic" | "mcc" => {
                part.to_uppercase()
            }
            "smape" => "sMAPE".to_string(),
            "chrf" => "chrF".to_string(),
            "r2" => "R²".to_string(),
            _ => match part.strip_prefix("top") {
                Some(rank) if !rank.is_empty() && rank.bytes().all(|byte| byte.is_ascii_digit()) => {
                    format!("top-{rank}")
                }
                _ => part.to_string(),
            },
        })
        .collect();
    words.join(" ")
}

/// The text with its first letter in upper case.
pub fn capitalized(text: &str) -> String {
    let mut letters = text.chars();
    match letters.next() {
        Some(first) => first.to_uppercase().chain(letters).collect(),
        None => String::new(),
    }
}

/// The words of a metric's key.
fn parts(name: &str) -> impl Iterator<Item = &str> {
    name.split(['_', '.', '/', '-', ' ']).filter(|part| !part.is_empty())
}

/// The last folder and the file of a path: long paths break tables and grids.
pub fn short_path(path: &str) -> &str {
    path.rmatch_indices('/').nth(1).map_or(path, |(position, _)| &path[position + 1..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_a_unit() {
        let cases = [
            (0, "0 B"),
            (999, "999 B"),
            (1500, "1.5 kB"),
            (256_000_000, "256 MB"),
            (3_210_000_000, "3.2 GB"),
        ];
        for (count, text) in cases {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn numbers_have_four_significant_digits() {
        let cases = [
            (0.0, "0"),
            (3.0, "3"),
            (-2.5, "-2.5"),
            (0.034_119, "0.03412"),
            (0.001, "0.001"),
            (9.999_96, "10"),
            (12.345, "12.35"),
            (123.456, "123.5"),
            (1234.56, "1,235"),
            (60_000.0, "60,000"),
            (-60_000.0, "-60,000"),
            (1.25e-5, "1.25e-5"),
            (6e-12, "6e-12"),
            (1.234_567_8e9, "1,234,567,800"),
            (1.5e300, "1.5e300"),
            (f64::NAN, "NaN"),
            (f64::NEG_INFINITY, "-inf"),
        ];
        for (value, text) in cases {
            assert_eq!(number(value), text, "{value}");
        }
    }

    #[test]
    fn durations_choose_their_unit_after_rounding() {
        let cases = [
            (0.0, "0 ms"),
            (0.82, "820 ms"),
            (0.9996, "1.0 s"),
            (3.44, "3.4 s"),
            (59.96, "1 min 00 s"),
            (725.2, "12 min 05 s"),
            (3599.7, "1 h 00 min"),
            (3725.0, "1 h 02 min"),
            (183_600.0, "2 d 03 h"),
        ];
        for (seconds, text) in cases {
            assert_eq!(duration(seconds), text, "{seconds}");
        }
        assert_eq!(clock(12.4), "0:12");
        assert_eq!(clock(3723.0), "1:02:03");
        assert_eq!(clock(f64::INFINITY), "-:--");
    }

    #[test]
    fn names_say_how_a_metric_is_read() {
        assert_eq!(metric("accuracy", 0.98734), "98.73%");
        assert_eq!(metric("top5_accuracy", 1.0), "100.00%");
        assert_eq!(metric("macro_f1", 0.5), "50.00%");
        assert_eq!(metric("loss", 0.98734), "0.9873");
        assert_eq!(metric("accuracy", f64::NAN), "NaN");
        assert_eq!(better("validation_loss"), Some(Better::Lower));
        assert_eq!(better("top5_accuracy"), Some(Better::Higher));
        assert_eq!(better("lr"), None);
        assert_eq!(metric_label("top5_accuracy"), "top-5 accuracy");
        assert_eq!(metric_label("grad_norm"), "gradient norm");
        assert_eq!(metric_label("lr.head"), "learning rate head");
        assert_eq!(capitalized("éclair"), "Éclair");
        assert_eq!(capitalized(""), "");
    }

    #[test]
    fn paths_keep_their_last_two_parts() {
        assert_eq!(short_path("/data/train/cat/1.png"), "cat/1.png");
        assert_eq!(short_path("cat/1.png"), "cat/1.png");
        assert_eq!(short_path("/1.png"), "/1.png");
        assert_eq!(short_path("image 7"), "image 7");
    }

    #[test]
    fn counts_are_grouped() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1000), "1,000");
        assert_eq!(count(u64::MAX), "18,446,744,073,709,551,615");
    }
}
