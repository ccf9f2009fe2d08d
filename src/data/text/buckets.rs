//! Batches of texts of like lengths, so that little is padding.
//!
//! The plan of an epoch is a function of the lengths, the seed and the epoch alone: a run resumed in the middle of an epoch sees what it would
//! have seen, and several processes that part each batch among them see together what one process sees.

use std::sync::Arc;

use anyhow::Result;

use crate::bail_input;
use crate::data::order::{EpochPlan, Sampler, permutation};

/// Batches that are sorted together: enough for like lengths, few enough that batches are mixed anew in each epoch.
const POOL: usize = 100;

/// A fixed number of samples in each batch: the samples of 100 batches at a time are sorted by length and cut into batches, which come in
/// random order.
#[derive(Clone, Debug)]
pub struct LengthBuckets {
    /// Tokens of each sample.
    pub lengths: Arc<[u32]>,
    /// Samples in a batch.
    pub batch_size: usize,
    /// The run's seed.
    pub seed: u64,
    /// Whether order is drawn anew in each epoch; evaluation goes from the longest to the shortest, so that memory runs out at once or never.
    pub shuffled: bool,
}

impl Sampler for LengthBuckets {
    fn batches_per_epoch(&self) -> usize {
        self.lengths.len().div_ceil(self.batch_size)
    }

    fn plan(&self, epoch: u64) -> Result<EpochPlan> {
        let longest_first = |samples: &mut [usize]| {
            // Stable: equal lengths keep their drawn order.
            samples.sort_by_key(|&sample| std::cmp::Reverse(self.lengths[sample]));
        };
        if !self.shuffled {
            let mut samples: Vec<usize> = (0..self.lengths.len()).collect();
            longest_first(&mut samples);
            return Ok(EpochPlan::even(samples, self.batch_size));
        }
        let seed = self.seed.wrapping_add(epoch);
        let mut samples = permutation(self.lengths.len(), seed)?;
        samples.chunks_mut(POOL * self.batch_size).for_each(longest_first);
        Ok(EpochPlan::of(in_random_order(samples.chunks(self.batch_size), seed)?))
    }
}

/// As many samples in each batch as fit into a number of tokens, padding counted: many short texts, few long ones.
///
/// Samples are sorted by length, in a drawn order among equal lengths, and cut into batches, which come in random order. So batches end at the
/// same lengths in each epoch, and there are as many in each.
#[derive(Clone, Debug)]
pub struct TokenBudget {
    lengths: Arc<[u32]>,
    ends: Vec<usize>,
    seed: u64,
    shuffled: bool,
}

impl TokenBudget {
    /// Batches of at most `max_tokens` tokens and `max_samples` samples.
    ///
    /// # Errors
    /// A sample alone is longer than a batch may be.
    pub fn new(
        lengths: Arc<[u32]>,
        max_tokens: usize,
        max_samples: Option<usize>,
        seed: u64,
        shuffled: bool,
    ) -> Result<Self> {
        let mut sorted: Vec<usize> = lengths.iter().map(|&length| length as usize).collect();
        sorted.sort_unstable_by(|a, b| b.cmp(a));
        if let Some(&longest) = sorted.first().filter(|&&longest| longest > max_tokens) {
            bail_input!(
                "a text of {longest} tokens does not fit into a batch of {max_tokens}: allow more tokens, or cut texts shorter"
            );
        }
        let (mut ends, mut start) = (Vec::new(), 0);
        for end in 1..=sorted.len() {
            // The first of a batch is its longest.
            let full = end < sorted.len()
                && ((end + 1 - start) * sorted[start] > max_tokens || Some(end - start) == max_samples);
            if full || end == sorted.len() {
                ends.push(end);
                start = end;
            }
        }
        Ok(Self { lengths, ends, seed, shuffled })
    }
}

impl Sampler for TokenBudget {
    fn batches_per_epoch(&self) -> usize {
        self.ends.len()
    }

    fn plan(&self, epoch: u64) -> Result<EpochPlan> {
        let seed = self.seed.wrapping_add(epoch);
        let mut samples = match self.shuffled {
            true => permutation(self.lengths.len(), seed)?,
            false => (0..self.lengths.len()).collect(),
        };
        samples.sort_by_key(|&sample| std::cmp::Reverse(self.lengths[sample]));
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        let batches: Vec<&[usize]> =
            starts.zip(&self.ends).map(|(start, &end)| &samples[start..end]).collect();
        Ok(EpochPlan::of(match self.shuffled {
            true => in_random_order(batches.into_iter(), seed)?,
            false => batches.into_iter().map(<[usize]>::to_vec).collect(),
        }))
    }
}

/// Batches in an order drawn from a seed, which is not the one that drew the samples.
fn in_random_order<'a>(batches: impl Iterator<Item = &'a [usize]>, seed: u64) -> Result<Vec<Vec<usize>>> {
    let batches: Vec<&[usize]> = batches.collect();
    let order = permutation(batches.len(), seed ^ 0x5851_f42d_4c95_7f2d)?;
    Ok(order.into_iter().map(|number| batches[number].to_vec()).collect())
}

/// The share of padding in the batches of a plan.
pub fn padding_share(plan: &EpochPlan, lengths: &[u32]) -> f64 {
    let (mut filled, mut all) = (0u64, 0u64);
    for number in 0..plan.batches() {
        let batch = plan.batch(number);
        let longest = batch.iter().map(|&sample| u64::from(lengths[sample])).max().unwrap_or(0);
        filled += batch.iter().map(|&sample| u64::from(lengths[sample])).sum::<u64>();
        all += longest * batch.len() as u64;
    }
    if all == 0 { 0.0 } else { 1.0 - filled as f64 / all as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(count: usize) -> Arc<[u32]> {
        (0..count).map(|sample| 1 + (sample * 37 % 50) as u32).collect()
    }

    fn everything(plan: &EpochPlan) -> Vec<usize> {
        let mut all: Vec<usize> =
            (0..plan.batches()).flat_map(|number| plan.batch(number).to_vec()).collect();
        all.sort_unstable();
        all
    }

    #[test]
    fn every_sample_comes_once_and_little_is_padding() -> Result<()> {
        let lengths = lengths(1003);
        let buckets = |shuffled| LengthBuckets { lengths: lengths.clone(), batch_size: 8, seed: 3, shuffled };
        let budget = |shuffled| TokenBudget::new(lengths.clone(), 400, Some(64), 3, shuffled);
        let samplers: [Box<dyn Sampler>; 4] = [
            Box::new(buckets(true)),
            Box::new(buckets(false)),
            Box::new(budget(true)?),
            Box::new(budget(false)?),
        ];
        for (number, sampler) in samplers.iter().enumerate() {
            let (first, second) = (sampler.plan(0)?, sampler.plan(1)?);
            assert_eq!(first, sampler.plan(0)?, "{number}");
            assert_eq!(first == second, number % 2 == 1, "{number}");
            for plan in [&first, &second] {
                assert_eq!(plan.batches(), sampler.batches_per_epoch());
                assert_eq!(everything(plan), (0..1003).collect::<Vec<_>>());
                assert!(padding_share(plan, &lengths) < 0.1, "{number}: {}", padding_share(plan, &lengths));
            }
        }
        Ok(())
    }

    #[test]
    fn a_budget_is_kept() -> Result<()> {
        let lengths = lengths(500);
        let sampler = TokenBudget::new(lengths.clone(), 120, Some(16), 0, true)?;
        let plan = sampler.plan(5)?;
        for number in 0..plan.batches() {
            let batch = plan.batch(number);
            let longest = batch.iter().map(|&sample| lengths[sample] as usize).max().unwrap_or(0);
            assert!(batch.len() * longest <= 120 && batch.len() <= 16 && !batch.is_empty());
        }
        let message = TokenBudget::new(lengths, 49, None, 0, true).unwrap_err().to_string();
        assert!(message.contains("a text of 50 tokens does not fit into a batch of 49"), "{message}");
        Ok(())
    }
}
