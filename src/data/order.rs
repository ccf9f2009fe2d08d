//! The order of samples: a function of (seed, epoch) alone, the same on any number of threads.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::Result;
use tch::Tensor;

use super::Stretches;
use super::random::Random;
use crate::{bail_input, native};

/// The batches of one pass over the data.
#[derive(Debug, PartialEq)]
pub struct EpochPlan {
    samples: Vec<usize>,
    ends: Vec<usize>,
    /// How often each sample came before; empty where each comes once.
    copies: Vec<u32>,
    /// What each batch is a part of; empty where it is whole.
    parts: Vec<Part>,
}

/// A batch that is a part of a larger one, whose other parts other processes have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Samples of the whole; 0 where an earlier part of this process has told them.
    pub whole: usize,
    /// Whether the whole has no sample for this part: the one that is there instead counts for nothing.
    pub stands_in: bool,
    /// Whether it is the last of this process.
    pub is_last: bool,
}

impl EpochPlan {
    /// Cuts `samples` into batches of `batch_size`; the last may be smaller.
    pub fn even(samples: Vec<usize>, batch_size: usize) -> Self {
        let ends =
            (batch_size..samples.len()).step_by(batch_size).chain(std::iter::once(samples.len())).collect();
        Self { samples, ends, copies: Vec::new(), parts: Vec::new() }
    }

    /// The same where samples may come several times.
    pub fn with_copies(samples: Vec<usize>, batch_size: usize) -> Self {
        let mut seen: HashMap<usize, u32> = HashMap::new();
        let mut count = |&sample: &usize| {
            let times = seen.entry(sample).or_default();
            *times += 1;
            *times - 1
        };
        let copies = samples.iter().map(&mut count).collect();
        Self { copies, ..Self::even(samples, batch_size) }
    }

    /// The batches themselves.
    pub fn of(batches: Vec<Vec<usize>>) -> Self {
        let ends = batches
            .iter()
            .scan(0, |end, batch| {
                *end += batch.len();
                Some(*end)
            })
            .collect();
        Self { samples: batches.concat(), ends, copies: Vec::new(), parts: Vec::new() }
    }

    /// How many batches there are.
    pub fn batches(&self) -> usize {
        self.ends.len()
    }

    /// The samples of a batch.
    pub fn batch(&self, number: usize) -> &[usize] {
        &self.samples[self.range(number)]
    }

    /// How often each sample of a batch came before in this pass; empty where each comes once.
    pub fn copies(&self, number: usize) -> &[u32] {
        if self.copies.is_empty() { &[] } else { &self.copies[self.range(number)] }
    }

    /// What a batch is a part of.
    pub fn part(&self, number: usize) -> Part {
        let whole = Part { whole: self.range(number).len(), stands_in: false, is_last: true };
        self.parts.get(number).copied().unwrap_or(whole)
    }

    fn range(&self, number: usize) -> std::ops::Range<usize> {
        let start = if number == 0 { 0 } else { self.ends[number - 1] };
        start..self.ends[number]
    }
}

/// Decides which samples form which batch.
pub trait Sampler: Send + Sync {
    /// Batches in each pass, the same for every pass.
    fn batches_per_epoch(&self) -> usize;

    /// The plan of one pass.
    fn plan(&self, epoch: u64) -> Result<EpochPlan>;

    /// Whether each batch goes on where the one before it ended, sample by sample.
    fn is_sequence(&self) -> bool {
        false
    }
}

/// The part that one of several processes has of each batch: every so many samples, as `DistributedSampler` deals them out, so that samples that were
/// sorted by length are shared fairly. A process may have several parts of a batch, one after the other.
pub struct Parted {
    sampler: Arc<dyn Sampler>,
    rank: usize,
    size: usize,
    pieces: usize,
}

impl Parted {
    /// Deals the batches of `sampler`, each for `processes` processes, out to `size` of them, of which this is number `rank`. Where these are fewer, each has
    /// as many parts of a batch as it takes to be no larger than what one of `processes` would have, unless it must be one part (`whole`).
    ///
    /// # Errors
    /// The batches follow one another and have fewer samples than there are processes.
    pub fn new(
        sampler: Arc<dyn Sampler>,
        [rank, size]: [usize; 2],
        processes: usize,
        whole: bool,
    ) -> Result<Self> {
        let is_sequence = sampler.is_sequence();
        if is_sequence && size > 1 && sampler.plan(0)?.batch(0).len() < size {
            bail_input!(
                "there are fewer streams side by side (the batch size of all processes) than {size} processes: take a larger --batch-size"
            );
        }
        let pieces = if whole || is_sequence { 1 } else { processes.div_ceil(size) };
        Ok(Self { sampler, rank, size, pieces })
    }
}

impl Sampler for Parted {
    fn batches_per_epoch(&self) -> usize {
        self.sampler.batches_per_epoch() * self.pieces
    }

    fn plan(&self, epoch: u64) -> Result<EpochPlan> {
        let plan = self.sampler.plan(epoch)?;
        if self.size * self.pieces == 1 {
            return Ok(plan);
        }
        let mut parted = EpochPlan::of(Vec::new());
        for number in 0..plan.batches() {
            let (batch, copies) = (plan.batch(number), plan.copies(number));
            for piece in 0..self.pieces {
                let first = self.rank + self.size * piece;
                let stands_in = first >= batch.len();
                let places = first..if stands_in { first + 1 } else { batch.len() };
                for place in places.step_by(self.size * self.pieces) {
                    let place = if stands_in { 0 } else { place };
                    parted.samples.push(batch[place]);
                    parted.copies.extend(copies.get(place));
                }
                parted.ends.push(parted.samples.len());
                let whole = if piece == 0 { batch.len() } else { 0 };
                parted.parts.push(Part { whole, stands_in, is_last: piece + 1 == self.pieces });
            }
        }
        Ok(parted)
    }

    fn is_sequence(&self) -> bool {
        self.sampler.is_sequence()
    }
}

/// Every so many of a sampler's batches, as they are: what one of several processes looks at in an evaluation.
pub struct EveryNth {
    /// Makes the batches.
    pub sampler: Arc<dyn Sampler>,
    /// The first of them.
    pub first: usize,
    /// From each to the next.
    pub step: usize,
}

impl Sampler for EveryNth {
    fn batches_per_epoch(&self) -> usize {
        self.sampler.batches_per_epoch().saturating_sub(self.first).div_ceil(self.step)
    }

    fn plan(&self, epoch: u64) -> Result<EpochPlan> {
        let plan = self.sampler.plan(epoch)?;
        let own = (self.first..plan.batches()).step_by(self.step);
        Ok(EpochPlan::of(own.map(|number| plan.batch(number).to_vec()).collect()))
    }
}

/// Every sample once per pass, in a new random order each time: `torch.randperm` under a generator seeded with seed + epoch, which is the
/// order of PyTorch's `DistributedSampler(shuffle=True, seed=seed)`.
#[derive(Clone, Copy, Debug)]
pub struct Shuffled {
    /// Number of samples.
    pub len: usize,
    /// Samples in a batch.
    pub batch_size: usize,
    /// The run's seed.
    pub seed: u64,
}

impl Sampler for Shuffled {
    fn batches_per_epoch(&self) -> usize {
        self.len.div_ceil(self.batch_size)
    }

    fn plan(&self, epoch: u64) -> Result<EpochPlan> {
        Ok(EpochPlan::even(permutation(self.len, self.seed.wrapping_add(epoch))?, self.batch_size))
    }
}

/// As many samples per pass as there are, drawn with replacement in proportion to their weights: PyTorch's
/// `WeightedRandomSampler(weights, len(weights))` under a generator seeded with seed + epoch.
#[derive(Clone, Debug)]
pub struct Weighted {
    /// Weight of each sample.
    pub weights: Vec<f64>,
    /// Samples in a batch.
    pub batch_size: usize,
    /// The run's seed.
    pub seed: u64,
}

impl Sampler for Weighted {
    fn batches_per_epoch(&self) -> usize {
        self.weights.len().div_ceil(self.batch_size)
    }

    fn plan(&self, epoch: u64) -> Result<EpochPlan> {
        let weights = Tensor::f_from_slice(&self.weights)?;
        let drawn = native::random::draw(&weights, self.weights.len() as i64, self.seed.wrapping_add(epoch))?;
        let samples = Vec::<i64>::try_from(drawn)?.into_iter().map(|sample| sample as usize).collect();
        Ok(EpochPlan::with_copies(samples, self.batch_size))
    }
}

/// Repeated augmentation (Hoffer et al., "Augment your batch", 2019): each sample several times in a row, varied anew each time. A pass is as long as without
/// it, so it has only some of the samples: the first of [`Shuffled`]'s order, as in `RASampler` of torchvision's references, which also drops what
/// exceeds a multiple of 256.
#[derive(Clone, Copy, Debug)]
pub struct Repeated {
    /// Number of samples.
    pub len: usize,
    /// How often each comes.
    pub repeats: usize,
    /// Samples in a batch.
    pub batch_size: usize,
    /// The run's seed.
    pub seed: u64,
}

impl Sampler for Repeated {
    fn batches_per_epoch(&self) -> usize {
        self.len.div_ceil(self.batch_size)
    }

    fn plan(&self, epoch: u64) -> Result<EpochPlan> {
        let order = permutation(self.len, self.seed.wrapping_add(epoch))?;
        let repeated = order.into_iter().flat_map(|sample| std::iter::repeat_n(sample, self.repeats));
        Ok(EpochPlan::with_copies(repeated.take(self.len).collect(), self.batch_size))
    }
}

/// Every sample once per pass, stretch after stretch in a random order of stretches, through a buffer that samples leave in random order.
#[derive(Clone, Debug)]
pub struct Buffered {
    /// Which samples lie together, and how many are held back.
    pub stretches: Stretches,
    /// Samples in a batch.
    pub batch_size: usize,
    /// The run's seed.
    pub seed: u64,
}

impl Sampler for Buffered {
    fn batches_per_epoch(&self) -> usize {
        self.stretches.lengths.iter().sum::<usize>().div_ceil(self.batch_size)
    }

    fn plan(&self, epoch: u64) -> Result<EpochPlan> {
        let Stretches { lengths, buffer } = &self.stretches;
        let starts: Vec<usize> = lengths
            .iter()
            .scan(0, |next, length| {
                let start = *next;
                *next += length;
                Some(start)
            })
            .collect();
        let mut random = Random::of_epoch(self.seed, epoch);
        let mut samples = Vec::with_capacity(lengths.iter().sum());
        let mut held = Vec::with_capacity(*buffer);
        for stretch in permutation(lengths.len(), self.seed.wrapping_add(epoch))? {
            for sample in starts[stretch]..starts[stretch] + lengths[stretch] {
                if held.len() < (*buffer).max(1) {
                    held.push(sample);
                } else {
                    let place = random.below(held.len() as u32) as usize;
                    samples.push(std::mem::replace(&mut held[place], sample));
                }
            }
        }
        random.shuffle(&mut held);
        samples.append(&mut held);
        Ok(EpochPlan::even(samples, self.batch_size))
    }
}

/// The weight of each sample with which every class is drawn equally often: 1 / samples of its class.
pub fn balanced_weights(classes: &[i64]) -> Vec<f64> {
    let mut counts: HashMap<i64, u64> = HashMap::new();
    for &class in classes {
        *counts.entry(class).or_default() += 1;
    }
    classes.iter().map(|class| 1.0 / counts[class] as f64).collect()
}

/// Every sample once, in its own order: for evaluation.
#[derive(Clone, Copy, Debug)]
pub struct Sequential {
    /// Number of samples.
    pub len: usize,
    /// Samples in a batch.
    pub batch_size: usize,
}

impl Sampler for Sequential {
    fn batches_per_epoch(&self) -> usize {
        self.len.div_ceil(self.batch_size)
    }

    fn plan(&self, _epoch: u64) -> Result<EpochPlan> {
        Ok(EpochPlan::even((0..self.len).collect(), self.batch_size))
    }
}

/// The numbers 0 to `len` − 1 in an order drawn from `seed`.
pub fn permutation(len: usize, seed: u64) -> Result<Vec<usize>> {
    let order = Vec::<i64>::try_from(native::random::permutation(len as i64, seed)?)?;
    Ok(order.into_iter().map(|sample| sample as usize).collect())
}

/// Parts `len` samples into a part to learn from and a seeded share to hold out, both in ascending order.
///
/// At least one sample goes to each part where there are two and the fraction is positive.
pub fn hold_out(len: usize, fraction: f64, seed: u64) -> Result<(Vec<usize>, Vec<usize>)> {
    let mut held_out = (len as f64 * fraction).round() as usize;
    if fraction > 0.0 && len > 1 {
        held_out = held_out.clamp(1, len - 1);
    }
    let order = permutation(len, seed)?;
    let (mut validation, mut train) = (order[..held_out].to_vec(), order[held_out..].to_vec());
    train.sort_unstable();
    validation.sort_unstable();
    Ok((train, validation))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sample_comes_once_per_epoch_in_a_new_order() -> Result<()> {
        let sampler = Shuffled { len: 10, batch_size: 4, seed: 7 };
        let plan = sampler.plan(0)?;
        assert_eq!(plan.batches(), sampler.batches_per_epoch());
        assert_eq!((0..3).map(|number| plan.batch(number).len()).collect::<Vec<_>>(), [4, 4, 2]);
        let mut all: Vec<_> = (0..3).flat_map(|number| plan.batch(number).to_vec()).collect();
        all.sort_unstable();
        assert_eq!(all, (0..10).collect::<Vec<_>>());
        assert_eq!(plan, sampler.plan(0)?);
        assert_ne!(plan, sampler.plan(1)?);
        Ok(())
    }

    #[test]
    fn the_order_is_pytorchs() -> Result<()> {
        // scripts/references/order.py: torch.randperm(10, generator=torch.Generator().manual_seed(7))
        assert_eq!(permutation(10, 7)?, [5, 0, 3, 4, 1, 7, 9, 6, 8, 2]);
        Ok(())
    }

    #[test]
    fn weighted_draws_are_pytorchs() -> Result<()> {
        let classes = [0, 0, 0, 0, 0, 0, 1, 1, 1, 2];
        let weights = balanced_weights(&classes);
        assert_eq!(weights[5], 1.0 / 6.0);
        assert_eq!(weights[9], 1.0);
        let sampler = Weighted { weights, batch_size: 4, seed: 7 };
        // scripts/references/order.py: WeightedRandomSampler(weights, 10, True, torch.Generator().manual_seed(8))
        let plan = sampler.plan(1)?;
        assert_eq!(plan.samples, [9, 8, 1, 3, 8, 6, 8, 0, 6, 9]);
        assert_eq!(plan.batches(), sampler.batches_per_epoch());
        Ok(())
    }

    #[test]
    fn repeated_samples_come_in_a_row_and_are_counted() -> Result<()> {
        let plan = Repeated { len: 10, repeats: 3, batch_size: 4, seed: 7 }.plan(0)?;
        let order = permutation(10, 7)?;
        let expected: Vec<usize> = order.iter().flat_map(|&sample| [sample; 3]).take(10).collect();
        assert_eq!(plan.samples, expected);
        assert_eq!((plan.copies(0), plan.copies(2)), (&[0, 1, 2, 0][..], &[2, 0][..]));
        assert_eq!(plan.batches(), 3);
        Ok(())
    }

    #[test]
    fn a_buffer_keeps_samples_near_their_stretch() -> Result<()> {
        let stretches = Stretches { lengths: vec![50, 30, 0, 70], buffer: 20 };
        let sampler = Buffered { stretches, batch_size: 16, seed: 5 };
        let plan = sampler.plan(3)?;
        assert_eq!(plan.batches(), sampler.batches_per_epoch());
        let mut all = plan.samples.clone();
        all.sort_unstable();
        assert_eq!(all, (0..150).collect::<Vec<_>>());
        assert_eq!(plan, sampler.plan(3)?);
        assert_ne!(plan, sampler.plan(4)?);
        // In the order of reading: a sample never comes before the buffer could have taken it in.
        let order = permutation(4, 5 + 3)?;
        let (starts, lengths) = ([0, 50, 80, 80], [50, 30, 0, 70]);
        let read: Vec<usize> =
            order.iter().flat_map(|&stretch| starts[stretch]..starts[stretch] + lengths[stretch]).collect();
        for (emitted, sample) in plan.samples.iter().enumerate() {
            let place = read.iter().position(|known| known == sample).unwrap_or_default();
            assert!(place < emitted + 20, "sample {sample} comes {emitted}th but is read {place}th");
        }
        // And not in the order of reading itself.
        assert_ne!(plan.samples, read);
        Ok(())
    }

    #[test]
    fn processes_share_each_batch_and_no_sample_is_lost() -> Result<()> {
        let sampler: Arc<dyn Sampler> = Arc::new(Shuffled { len: 25, batch_size: 8, seed: 7 });
        let whole = sampler.plan(2)?;
        for (size, processes) in [(1, 1), (2, 2), (4, 4), (1, 4), (3, 4), (8, 2), (2, 1)] {
            let mut seen: Vec<Vec<usize>> = vec![Vec::new(); whole.batches()];
            for rank in 0..size {
                let parted = Parted::new(sampler.clone(), [rank, size], processes, false)?;
                let plan = parted.plan(2)?;
                assert_eq!(plan.batches(), parted.batches_per_epoch());
                let (mut number, mut told) = (0, 0);
                for part in 0..plan.batches() {
                    let Part { whole, stands_in, is_last } = plan.part(part);
                    let most = 8usize.div_ceil(size.max(processes));
                    assert!((1..=most).contains(&plan.batch(part).len()), "{size} {processes}");
                    if !stands_in {
                        seen[number].extend(plan.batch(part));
                    }
                    told += whole;
                    number += usize::from(is_last);
                }
                assert_eq!((number, told), (whole.batches(), 25));
            }
            for (number, mut samples) in seen.into_iter().enumerate() {
                let mut expected = whole.batch(number).to_vec();
                expected.sort_unstable();
                samples.sort_unstable();
                assert_eq!(samples, expected, "{size} of {processes}");
            }
        }
        // As PyTorch's DistributedSampler: rank 1 of 2 has every second sample of the order.
        let order = permutation(25, 7 + 2)?;
        let second = Parted::new(sampler.clone(), [1, 2], 2, false)?.plan(2)?;
        assert_eq!(second.batch(0), [order[1], order[3], order[5], order[7]]);
        let looked_at: Vec<usize> = (0..3)
            .map(|first| EveryNth { sampler: sampler.clone(), first, step: 3 })
            .flat_map(|part| part.plan(0).unwrap().samples)
            .collect();
        assert_eq!(looked_at.len(), 25);
        Ok(())
    }

    #[test]
    fn held_out_samples_are_not_learned_from() -> Result<()> {
        let (train, validation) = hold_out(1000, 0.1, 3)?;
        assert_eq!((train.len(), validation.len()), (900, 100));
        assert!(validation.iter().all(|sample| train.binary_search(sample).is_err()));
        assert_eq!(hold_out(5, 0.0, 3)?.1.len(), 0);
        assert_eq!(hold_out(2, 0.01, 3)?.1.len(), 1);
        Ok(())
    }
}
