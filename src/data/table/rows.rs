//! Rows of a design in memory, for training in batches.

use anyhow::{Context, Result};
use tch::{Device, Tensor};

use crate::data::{Batch, Dataset, Draw, Fingerprint};

/// Rows with their targets, in float32 as networks are trained.
pub struct TableRows {
    columns: usize,
    /// `[rows, columns]`
    x: Vec<f32>,
    /// Numbers, or numbers of classes.
    y: Vec<f32>,
    /// Weights of the rows, where they have any.
    weight: Option<Vec<f32>>,
}

impl TableRows {
    /// Takes rows `[rows, columns]`, row by row, with their targets and weights.
    pub fn new(columns: usize, x: Vec<f32>, y: Vec<f32>, weight: Option<Vec<f32>>) -> Self {
        Self { columns, x, y, weight }
    }
}

/// Some rows.
pub struct TableBatch {
    /// `[batch, columns]`
    pub x: Tensor,
    /// `[batch]`
    pub y: Tensor,
    /// `[batch]`
    pub weight: Option<Tensor>,
    /// Sum of the weights, or the number of rows.
    pub total_weight: f64,
}

impl Batch for TableBatch {
    fn to_device(self, device: Device) -> Result<Self> {
        Ok(Self {
            x: self.x.f_to_device(device)?,
            y: self.y.f_to_device(device)?,
            weight: self.weight.map(|weight| weight.f_to_device(device)).transpose()?,
            total_weight: self.total_weight,
        })
    }
}

impl Dataset for TableRows {
    type Batch = TableBatch;

    fn len(&self) -> usize {
        self.y.len()
    }

    fn batch(&self, samples: &[usize], _draw: Draw) -> Result<TableBatch> {
        let mut x = Vec::with_capacity(samples.len() * self.columns);
        for &sample in samples {
            x.extend_from_slice(&self.x[sample * self.columns..(sample + 1) * self.columns]);
        }
        let of = |values: &[f32]| samples.iter().map(|&sample| values[sample]).collect::<Vec<f32>>();
        let weights = self.weight.as_deref().map(of);
        let total_weight = match &weights {
            Some(weights) => weights.iter().map(|&weight| f64::from(weight)).sum(),
            None => samples.len() as f64,
        };
        let shape = [samples.len() as i64, self.columns as i64];
        Ok(TableBatch {
            x: Tensor::f_from_slice(&x).and_then(|x| x.f_view(shape)).context("making a batch of rows")?,
            y: Tensor::f_from_slice(&of(&self.y))?,
            weight: weights.map(|weights| Tensor::f_from_slice(&weights)).transpose()?,
            total_weight,
        })
    }

    fn fingerprint(&self) -> Result<Fingerprint> {
        let mut fingerprint = Fingerprint::new(self.len());
        for values in [Some(&self.x), Some(&self.y), self.weight.as_ref()].into_iter().flatten() {
            for some in values.chunks(1 << 12) {
                let bytes: Vec<u8> = some.iter().flat_map(|value| value.to_le_bytes()).collect();
                fingerprint.add(&bytes);
            }
        }
        Ok(fingerprint)
    }

    fn describe(&self, sample: usize) -> String {
        format!("row {} of the training rows", sample + 1)
    }
}
