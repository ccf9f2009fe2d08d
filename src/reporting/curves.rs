//! Which curves a report shows: from the records of one run, or of several that are compared.

use std::collections::BTreeSet;

use super::format::{better, capitalized, is_fraction, metric_label};
use super::metrics::{Record, Split};
use super::plots::{Chart, Mark, Scale, Series, TicksAbove};

/// Training metrics that tell about the machine rather than the model.
const SPEED: [&str; 3] = ["samples_per_second", "tokens_per_second", "data_wait"];
/// The seconds since the run began, which make no curve worth drawing.
const CLOCK: &str = "seconds";
/// Training metrics that tell about the optimizer.
const OPTIMIZER: [&str; 2] = ["lr", "grad_norm"];
/// How many metrics are drawn at once; the others are a click away.
const OPEN_METRICS: usize = 4;
/// Epoch numbers above a chart.
const EPOCH_TICKS: f64 = 8.0;

/// What is drawn of the runs' records.
#[derive(Debug, Default)]
pub(super) struct Curves {
    /// Loss and metrics, learning rate and gradient norm.
    pub learning: Vec<Chart>,
    /// The metrics beyond [`OPEN_METRICS`].
    pub further: Vec<Chart>,
    /// Throughput and waiting.
    pub speed: Vec<Chart>,
}

/// The curves of runs, given as name and records. `primary` is the metric that comes first behind the loss.
pub(super) fn curves(runs: &[(&str, &[Record])], primary: &str) -> Curves {
    let axis = Horizontal::of(runs);
    let names: BTreeSet<&str> = runs
        .iter()
        .flat_map(|(_, records)| records.iter())
        .flat_map(|record| record.values.keys().map(String::as_str))
        .collect();
    let rate = |name: &str| name == "lr" || name.starts_with("lr.");

    let mut metrics: Vec<&str> = names
        .iter()
        .copied()
        .filter(|name| !rate(name) && !SPEED.contains(name) && !OPTIMIZER.contains(name) && *name != CLOCK)
        .collect();
    // The loss, the primary metric, then what is known to be better or worse, by name.
    metrics.sort_by_key(|name| (*name != "loss", *name != primary, better(name).is_none(), *name));

    let drawn = |names: &[&str]| -> Vec<Chart> {
        names.iter().flat_map(|name| metric_charts(runs, name, &axis)).collect()
    };
    let (open, folded) = metrics.split_at(metrics.len().min(OPEN_METRICS));
    let (mut learning, further) = (drawn(open), drawn(folded));
    learning.extend(rate_charts(
        runs,
        &names.iter().copied().filter(|name| rate(name)).collect::<Vec<_>>(),
        &axis,
    ));
    learning.extend(metric_charts(runs, "grad_norm", &axis));
    Curves { learning, further, speed: drawn(&SPEED) }
}

/// One metric: of a single run all splits in one chart, of several runs a chart for each split.
fn metric_charts(runs: &[(&str, &[Record])], name: &str, axis: &Horizontal) -> Vec<Chart> {
    let splits = [Split::Train, Split::Validation, Split::Test];
    let groups: Vec<(String, Vec<Series>)> = match runs {
        [(_, records)] => {
            // A split without points keeps its place, so that every chart shows a split in the same colour.
            let series = splits.iter().map(|split| {
                let points = points(records, *split, name, axis);
                let mark = if *split == Split::Train { Mark::NoisyLine } else { Mark::LineWithDots };
                Series { name: split.to_string(), points, mark }
            });
            vec![(capitalized(&metric_label(name)), series.collect())]
        }
        _ => {
            let group = |split: Split| {
                let series = runs.iter().map(|(run, records)| {
                    let mark = if split == Split::Train { Mark::NoisyLine } else { Mark::LineWithDots };
                    Series { name: run.to_string(), points: points(records, split, name, axis), mark }
                });
                // Only training is told from other splits where the name alone would not do.
                let only_train = OPTIMIZER.contains(&name) || SPEED.contains(&name);
                let title =
                    if only_train { metric_label(name) } else { format!("{split} {}", metric_label(name)) };
                (capitalized(&title), series.collect())
            };
            splits.into_iter().map(group).collect()
        }
    };
    groups
        .into_iter()
        // A metric that was taken once is a number, not a curve.
        .filter(|(_, series): &(_, Vec<Series>)| series.iter().any(|series| series.points.len() > 1))
        .map(|(title, series)| Chart { percent: is_fraction(name), ..axis.chart(title, series) })
        .collect()
}

/// The learning rate: of a single run all parameter groups in one chart, of several runs each run's first group.
fn rate_charts(runs: &[(&str, &[Record])], names: &[&str], axis: &Horizontal) -> Option<Chart> {
    let series: Vec<Series> = match runs {
        [(_, records)] => names
            .iter()
            .map(|name| {
                let group = name.strip_prefix("lr.").unwrap_or("learning rate").to_string();
                Series { name: group, points: points(records, Split::Train, name, axis), mark: Mark::Line }
            })
            .collect(),
        _ => runs
            .iter()
            .map(|(run, records)| {
                let of = |name: &&str| points(records, Split::Train, name, axis);
                let points = names.iter().map(of).find(|points| !points.is_empty()).unwrap_or_default();
                Series { name: run.to_string(), points, mark: Mark::Line }
            })
            .collect(),
    };
    let drawn = series.iter().any(|series| series.points.len() > 1);
    drawn.then(|| Chart { y_scale: Scale::Linear, ..axis.chart("Learning rate".to_string(), series) })
}

fn points(records: &[Record], split: Split, name: &str, axis: &Horizontal) -> Vec<(f64, f64)> {
    let of_split = records.iter().filter(|record| record.split == split);
    of_split.filter_map(|record| Some((axis.place(record), *record.values.get(name)?))).collect()
}

/// What the horizontal axis counts.
struct Horizontal {
    /// Epochs instead of steps: for runs whose epochs differ in steps, which steps would compare badly.
    epochs: bool,
    /// Where all charts begin and end.
    range: Option<(f64, f64)>,
    ticks: Option<TicksAbove>,
}

impl Horizontal {
    fn of(runs: &[(&str, &[Record])]) -> Horizontal {
        let lengths: Vec<Option<f64>> = runs.iter().map(|(_, records)| steps_per_epoch(records)).collect();
        let known: Vec<f64> = lengths.iter().copied().flatten().collect();
        let shortest = known.iter().copied().fold(f64::INFINITY, f64::min);
        let longest = known.iter().copied().fold(0.0, f64::max);
        let all_known = !known.is_empty() && known.len() == lengths.len();

        let mut axis =
            Horizontal { epochs: all_known && longest > shortest * 1.02, range: None, ticks: None };
        let places = || runs.iter().flat_map(|(_, records)| records.iter()).map(|record| axis.place(record));
        let (first, last) = (places().fold(f64::INFINITY, f64::min), places().fold(0.0, f64::max));
        if first <= last {
            axis.range = Some((if first < 0.1 * last { 0.0 } else { first }, last));
        }
        if all_known && !axis.epochs {
            let ticks = epoch_ticks(first, last, longest);
            axis.ticks = (!ticks.is_empty()).then(|| TicksAbove { label: "epoch".to_string(), ticks });
        }
        axis
    }

    fn place(&self, record: &Record) -> f64 {
        if self.epochs { record.epoch } else { record.step as f64 }
    }

    fn chart(&self, title: String, series: Vec<Series>) -> Chart {
        let x_label = if self.epochs { "epoch" } else { "step" }.to_string();
        Chart {
            title,
            x_label,
            series,
            x_range: self.range,
            ticks_above: self.ticks.clone(),
            ..Chart::default()
        }
    }
}

/// The ends of epochs between two steps: of all, of every second, every fifth …, as there is room.
fn epoch_ticks(first: f64, last: f64, steps_per_epoch: f64) -> Vec<(f64, String)> {
    let epochs = last / steps_per_epoch;
    let every = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0]
        .into_iter()
        .find(|every| epochs / every <= EPOCH_TICKS)
        .unwrap_or((epochs / EPOCH_TICKS).ceil());
    (1..=EPOCH_TICKS as u64)
        .map(|index| index as f64 * every)
        .map(|epoch| (epoch * steps_per_epoch, epoch.to_string()))
        // The last record may lie a step before the epoch's end.
        .filter(|(step, _)| *step >= first && *step <= last * 1.001)
        .map(|(step, label)| (step.min(last), label))
        .collect()
}

/// Steps per epoch, where the records tell it: epochs are counted and grow evenly with the steps.
fn steps_per_epoch(records: &[Record]) -> Option<f64> {
    let last = records.iter().rev().find(|record| record.epoch > 0.0 && record.step > 0)?;
    let length = last.step as f64 / last.epoch;
    // A record may be rounded to a step.
    let even = records
        .iter()
        .all(|record| (record.epoch * length - record.step as f64).abs() <= 1.0 + 0.01 * record.step as f64);
    even.then_some(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Training records every 10 steps and a validation record at each epoch's end.
    fn run(steps_per_epoch: u64, epochs: u64, start: u64) -> Vec<Record> {
        let mut records = Vec::new();
        for step in (start + 1..=steps_per_epoch * epochs).filter(|step| step % 10 == 0) {
            let epoch = step as f64 / steps_per_epoch as f64;
            let train =
                [("loss", 1.0 / step as f64), ("lr", 0.1), ("grad_norm", 2.0), ("samples_per_second", 100.0)];
            let values = train.map(|(name, value)| (name.to_string(), value)).into();
            records.push(Record { split: Split::Train, step, epoch, values });
            if step % steps_per_epoch == 0 {
                let values = [("loss", 0.5), ("accuracy", 0.9), ("zeta", 1.0)]
                    .map(|(name, value)| (name.to_string(), value))
                    .into();
                records.push(Record { split: Split::Validation, step, epoch, values });
            }
        }
        records
    }

    fn titles(charts: &[Chart]) -> Vec<&str> {
        charts.iter().map(|chart| chart.title.as_str()).collect()
    }

    fn names(chart: &Chart) -> Vec<&str> {
        chart.series.iter().map(|series| series.name.as_str()).collect()
    }

    #[test]
    fn one_run_has_its_splits_together() {
        let mut records = run(100, 20, 0);
        records.push(Record {
            split: Split::Test,
            step: 2000,
            epoch: 20.0,
            values: [("loss".to_string(), 0.4), ("top5_accuracy".to_string(), 1.0)].into(),
        });
        let curves = curves(&[("a", &records)], "accuracy");
        assert_eq!(titles(&curves.learning), ["Loss", "Accuracy", "Zeta", "Learning rate", "Gradient norm"]);
        assert_eq!(titles(&curves.speed), ["Samples per second"]);
        assert_eq!(names(&curves.learning[0]), ["train", "validation", "test"]);
        assert_eq!(
            names(&curves.learning[1]),
            ["train", "validation", "test"],
            "places without points are kept"
        );
        assert!(curves.learning.iter().all(|chart| chart.x_range == Some((0.0, 2000.0))));
        assert_eq!(curves.learning[0].series[0].points.len(), 200);
        assert!(curves.learning[1].percent && !curves.learning[0].percent);
        let ticks = curves.learning[0].ticks_above.as_ref().unwrap();
        assert_eq!(
            ticks.ticks.iter().map(|(step, text)| (*step as u64, text.as_str())).collect::<Vec<_>>(),
            [(500, "5"), (1000, "10"), (1500, "15"), (2000, "20")]
        );
    }

    #[test]
    fn epochs_before_the_first_record_have_no_tick() {
        let records = run(100, 5, 250);
        let curves = curves(&[("a", &records)], "");
        let ticks = curves.learning[0].ticks_above.as_ref().unwrap();
        assert_eq!(ticks.ticks.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>(), ["3", "4", "5"]);
    }

    #[test]
    fn several_runs_have_a_chart_for_each_split() {
        let (first, second) = (run(100, 5, 0), run(100, 8, 0));
        let curves = curves(&[("a", &first), ("b", &second)], "accuracy");
        assert_eq!(
            titles(&curves.learning),
            [
                "Train loss",
                "Validation loss",
                "Validation accuracy",
                "Validation zeta",
                "Learning rate",
                "Gradient norm"
            ]
        );
        assert!(curves.learning.iter().all(|chart| names(chart) == ["a", "b"] && chart.x_label == "step"));
    }

    #[test]
    fn runs_with_epochs_of_different_length_are_compared_over_epochs() {
        let (first, second) = (run(100, 5, 0), run(50, 5, 0));
        let curves = curves(&[("a", &first), ("b", &second)], "");
        assert_eq!(curves.learning[0].x_label, "epoch");
        assert_eq!(curves.learning[0].series[1].points.last().unwrap().0, 5.0);
    }

    #[test]
    fn parameter_groups_share_the_rate_chart() {
        let record = |step: u64| Record {
            split: Split::Train,
            step,
            epoch: 0.0,
            values: [("lr.backbone".to_string(), 1e-4), ("lr.head".to_string(), 1e-3)].into(),
        };
        let curves = curves(&[("a", &[record(1), record(2)])], "");
        assert_eq!(titles(&curves.learning), ["Learning rate"]);
        assert_eq!(names(&curves.learning[0]), ["backbone", "head"]);
        assert!(curves.learning[0].ticks_above.is_none(), "epochs that are not counted have no ticks");
        assert!(super::curves(&[], "").learning.is_empty());
    }
}
