//! Sinusoidal positions: Vaswani et al., "Attention is all you need", 2017, section 3.5.

use tch::{Device, Kind, Tensor};

/// Where sines and cosines stand in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrangement {
    /// sin, cos, sin, cos, … as in the paper.
    Interleaved,
    /// All sines, then all cosines, as in Marian.
    Halves,
}

/// A table `[length, width]`: for each position sines and cosines of it at width / 2 frequencies from 1 down to 1/10000.
pub fn sinusoidal(length: i64, width: i64, arrangement: Arrangement, device: Device) -> Tensor {
    let half = (width + 1) / 2;
    let double = (Kind::Double, device);
    let exponents = Tensor::arange(half, double) * (-2.0 * 10_000f64.ln() / width as f64);
    let angles = Tensor::arange(length, double).unsqueeze(1) * exponents.exp(); // [length, width / 2]
    let (sines, cosines) = (angles.sin(), angles.cos());
    let table = match arrangement {
        Arrangement::Interleaved => Tensor::stack(&[sines, cosines], 2).flatten(1, 2),
        Arrangement::Halves => Tensor::cat(&[sines, cosines.narrow(1, 0, width / 2)], 1),
    };
    table.narrow(1, 0, width).to_kind(Kind::Float)
}
