//! What the trainer needs of other processes.

use anyhow::Result;

/// Sums over all processes that train together.
pub trait Reducer {
    /// How many processes there are.
    fn world_size(&self) -> usize;

    /// The number of this one, from 0.
    fn rank(&self) -> usize;

    /// The sum of a number over all processes.
    fn sum(&mut self, value: f64) -> Result<f64>;

    /// The rows of all processes, in the order of their ranks.
    fn gather(&mut self, rows: Vec<f64>) -> Result<Vec<f64>>;
}

/// Training in one process.
#[derive(Clone, Copy, Debug, Default)]
pub struct SingleProcess;

impl Reducer for SingleProcess {
    fn world_size(&self) -> usize {
        1
    }

    fn rank(&self) -> usize {
        0
    }

    fn sum(&mut self, value: f64) -> Result<f64> {
        Ok(value)
    }

    fn gather(&mut self, rows: Vec<f64>) -> Result<Vec<f64>> {
        Ok(rows)
    }
}
