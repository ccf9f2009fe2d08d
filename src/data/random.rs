//! Random numbers about samples, batches and epochs, the same on any thread and in any process.

use std::f64::consts::TAU;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::Draw;

/// A sequence of random numbers that depends on its key alone.
#[derive(Debug)]
pub struct Random(ChaCha8Rng);

impl Random {
    /// Of one sample of the data set, the `copy`-th time that it comes in an epoch (from 0).
    pub fn of_sample(draw: Draw, sample: usize, copy: u32) -> Self {
        Self::keyed(draw, sample, copy, 0)
    }

    /// Of a batch, known by its first sample.
    pub fn of_batch(draw: Draw, first: usize, copy: u32) -> Self {
        Self::keyed(draw, first, copy, 1)
    }

    /// Of a pass over the data.
    pub fn of_epoch(seed: u64, epoch: u64) -> Self {
        Self::keyed(Draw { seed, epoch, train: true, copies: &[] }, 0, 0, 2)
    }

    fn keyed(draw: Draw, sample: usize, copy: u32, purpose: u32) -> Self {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&draw.seed.to_le_bytes());
        key[8..16].copy_from_slice(&draw.epoch.to_le_bytes());
        key[16..24].copy_from_slice(&(sample as u64).to_le_bytes());
        key[24..28].copy_from_slice(&copy.to_le_bytes());
        key[28..].copy_from_slice(&purpose.to_le_bytes());
        Self(ChaCha8Rng::from_seed(key))
    }

    /// A number from 0 to `limit` − 1, by multiplication: its bias is below limit / 2³².
    pub fn below(&mut self, limit: u32) -> u32 {
        ((u64::from(self.0.next_u32()) * u64::from(limit)) >> 32) as u32
    }

    /// A number of [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A number between two.
    pub fn between(&mut self, [low, high]: [f64; 2]) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Whether something of this probability happens.
    pub fn happens(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }

    /// A number from the standard normal distribution, by the method of Box and Muller.
    pub fn normal(&mut self) -> f64 {
        (-2.0 * (1.0 - self.unit()).ln()).sqrt() * (TAU * self.unit()).cos()
    }

    /// Puts a list into a random order (Fisher and Yates).
    pub fn shuffle<T>(&mut self, list: &mut [T]) {
        for last in (1..list.len()).rev() {
            list.swap(last, self.below(last as u32 + 1) as usize);
        }
    }
}
