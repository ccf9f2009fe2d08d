//! Sums on the device that become means where a line is logged, and which direction of a metric is better.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::distributed::Reducer;

/// A quantity summed over samples (or tokens) with what the sum is to be divided by.
#[derive(Debug)]
pub struct Sum {
    /// Its name in logs: `accuracy`.
    pub name: &'static str,
    /// The sum over the batch: a scalar on the device.
    pub total: Tensor,
    /// Number of samples or tokens that it is over.
    pub weight: f64,
}

/// Running sums by name. Totals stay on the device until [`Totals::means`] reads them.
#[derive(Debug)]
pub struct Totals {
    device: Device,
    sums: BTreeMap<&'static str, (Tensor, f64)>,
}

/// A total and its weight as a checkpoint keeps them.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
pub struct SavedSum {
    total: f64,
    weight: f64,
}

impl Totals {
    /// No sums yet.
    pub fn new(device: Device) -> Self {
        Self { device, sums: BTreeMap::new() }
    }

    /// Adds a scalar; nothing is copied to the host.
    pub fn add(&mut self, name: &'static str, total: &Tensor, weight: f64) -> Result<()> {
        let _guard = tch::no_grad_guard();
        match self.sums.get_mut(name) {
            Some((running, running_weight)) => {
                let _ = running.f_add_(&total.detach())?;
                *running_weight += weight;
            }
            None => {
                // Sums of float32 losses over an epoch need more than float32's digits; MPS has no float64.
                let kind = if self.device == Device::Mps { Kind::Float } else { Kind::Double };
                self.sums.insert(name, (total.detach().f_to_kind(kind)?.f_view([0i64; 0])?, weight));
            }
        }
        Ok(())
    }

    /// Every mean by name over all processes, copied to the host.
    pub fn means(&self, reducer: &mut dyn Reducer) -> Result<BTreeMap<String, f64>> {
        let mean = |(name, sum): (String, SavedSum)| (name, sum.total / sum.weight);
        Ok(self.save(reducer)?.into_iter().map(mean).collect())
    }

    /// Forgets all sums.
    pub fn clear(&mut self) {
        self.sums.clear();
    }

    /// The sums over all processes, for a checkpoint.
    pub fn save(&self, reducer: &mut dyn Reducer) -> Result<BTreeMap<String, SavedSum>> {
        let own = self
            .sums
            .iter()
            .map(|(name, (total, weight))| {
                Ok(((*name).to_owned(), SavedSum { total: total.f_double_value(&[])?, weight: *weight }))
            })
            .collect::<Result<BTreeMap<String, SavedSum>>>()?;
        if reducer.world_size() == 1 {
            return Ok(own);
        }
        // A process without a sample has no sums yet.
        let names = own.keys().cloned().collect::<Vec<_>>().join("\n");
        let names = reducer.gather_texts(names)?;
        let names: BTreeSet<&str> = names.iter().flat_map(|names| names.lines()).collect();
        let none = SavedSum { total: 0.0, weight: 0.0 };
        let sums = names.iter().map(|name| own.get(*name).copied().unwrap_or(none));
        let rows = reducer.gather(sums.flat_map(|sum| [sum.total, sum.weight]).collect())?;
        let sum = |place: usize| -> f64 { rows.iter().skip(place).step_by(2 * names.len()).sum() };
        let named = names.iter().enumerate().map(|(number, name)| {
            ((*name).to_owned(), SavedSum { total: sum(2 * number), weight: sum(2 * number + 1) })
        });
        Ok(named.collect())
    }

    /// Takes saved sums over.
    pub fn load(&mut self, saved: &BTreeMap<String, SavedSum>) -> Result<()> {
        self.sums.clear();
        for (name, sum) in saved {
            let total = Tensor::f_from_slice(&[sum.total])
                .and_then(|total| total.f_view([0i64; 0]))
                .and_then(|total| total.f_to_device(self.device))
                .context("restoring a running sum")?;
            self.sums.insert(intern(name), (total, sum.weight));
        }
        Ok(())
    }
}

/// A static copy of a metric's name. Names are few and live as long as the run.
fn intern(name: &str) -> &'static str {
    Box::leak(name.to_owned().into_boxed_str())
}

/// Whether more of a metric is better: accuracy, F1, BLEU; not losses, errors, perplexities.
pub fn larger_is_better(metric: &str) -> bool {
    const SMALLER: [&str; 10] =
        ["loss", "perplexity", "error", "mse", "mae", "rmse", "mape", "smape", "ter", "bits"];
    !metric.split(['_', '-', '.']).any(|part| SMALLER.contains(&part))
}

/// Whether a value of a metric improves on the best so far by more than `min_delta`. The first value improves; one that is not finite never
/// does.
pub fn improves(metric: &str, value: f64, best: Option<f64>, min_delta: f64) -> bool {
    match best {
        _ if !value.is_finite() => false,
        None => true,
        Some(best) if larger_is_better(metric) => value > best + min_delta,
        Some(best) => value < best - min_delta,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::distributed::SingleProcess;

    #[test]
    fn means_divide_sums_by_weights_and_survive_saving() -> Result<()> {
        let mut totals = Totals::new(Device::Cpu);
        for (value, weight) in [(1.5f32, 2.0), (4.5, 1.0)] {
            totals.add("loss", &Tensor::from(value), weight)?;
        }
        let alone = &mut SingleProcess;
        assert_eq!(totals.means(alone)?["loss"], 2.0);
        let saved = totals.save(alone)?;
        let mut restored = Totals::new(Device::Cpu);
        restored.load(&saved)?;
        totals.add("loss", &Tensor::from(0.3f32), 1.0)?;
        restored.add("loss", &Tensor::from(0.3f32), 1.0)?;
        assert_eq!(totals.means(alone)?, restored.means(alone)?);
        Ok(())
    }

    #[test]
    fn direction_follows_the_name() {
        assert!(larger_is_better("accuracy") && larger_is_better("macro_f1"));
        assert!(!larger_is_better("loss") && !larger_is_better("token_perplexity"));
        assert!(improves("loss", 0.5, Some(0.6), 0.0) && !improves("loss", 0.55, Some(0.6), 0.1));
        assert!(!improves("accuracy", f64::NAN, None, 0.0) && !improves("loss", f64::INFINITY, None, 0.0));
    }
}
