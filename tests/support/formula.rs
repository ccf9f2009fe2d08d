//! Weights and images from a formula that Python computes too: `scripts/references/image_models.py`.

use anyhow::Result;
use std::sync::OnceLock;
use tch::Tensor;
use tch_suite::models::Parameters;

const MODULUS: i64 = 1_000_003;
const STEP: i64 = 7919;
const SHIFT: i64 = 104_729;

/// `count` values in -1..1 for the tensor of that number.
///
/// Value i depends on (STEP · i + SHIFT · (number + 1)) mod MODULUS alone, so all tensors are cut out of one period.
fn values(count: usize, number: usize) -> Vec<f32> {
    static PERIOD: OnceLock<Vec<f32>> = OnceLock::new();
    let period = PERIOD.get_or_init(|| {
        let value = |position: i64| {
            let mixed = position * STEP % MODULUS;
            let mixed = (mixed * mixed + 12_345) % MODULUS;
            ((2 * mixed) as f64 / MODULUS as f64 - 1.0) as f32
        };
        (0..MODULUS).map(value).collect()
    });
    // The position at which the period has what this tensor begins with: SHIFT · (number + 1) / STEP mod MODULUS.
    let mut start = ((number as i64 + 1) * SHIFT % MODULUS * inverse(STEP) % MODULUS) as usize;
    let mut values = Vec::with_capacity(count);
    while values.len() < count {
        let piece = &period[start..period.len().min(start + count - values.len())];
        values.extend_from_slice(piece);
        start = 0;
    }
    values
}

/// The number that `value` times it is 1 modulo the prime MODULUS: value^(MODULUS − 2).
fn inverse(value: i64) -> i64 {
    let (mut result, mut base, mut exponent) = (1, value, MODULUS - 2);
    while exponent > 0 {
        if exponent % 2 == 1 {
            result = result * base % MODULUS;
        }
        base = base * base % MODULUS;
        exponent /= 2;
    }
    result
}

/// Gives every tensor of a model, in the order of the names, its values.
pub fn fill(parameters: &Parameters) -> Result<()> {
    let _guard = tch::no_grad_guard();
    let mut entries = parameters.entries();
    entries.sort_by(|one, other| one.name.cmp(&other.name));
    for (number, entry) in entries.into_iter().enumerate() {
        let name = &entry.name;
        let mut tensor = entry.tensor;
        if name.ends_with("num_batches_tracked") {
            continue;
        }
        let size = tensor.size();
        let values = Tensor::from_slice(&values(tensor.numel(), number)).view(&size[..]);
        let values = if name.ends_with("running_var") {
            1 + 0.3 * values
        } else if size.len() > 1 && name.ends_with("weight") {
            let fan_in: i64 = size[1..].iter().product();
            values * (3.0 / fan_in as f64).sqrt()
        } else if name.ends_with("weight") || name.ends_with("layer_scale") {
            1 + 0.2 * values
        } else {
            0.1 * values
        };
        tensor.f_copy_(&values)?;
    }
    Ok(())
}

/// A tensor of that number in the formula's order, in −1..1.
pub fn tensor(shape: &[i64], number: usize) -> Tensor {
    Tensor::from_slice(&values(shape.iter().product::<i64>() as usize, number)).view(shape)
}

/// A batch of images, `[batch, channels, side, side]`.
pub fn images(batch: i64, channels: i64, [height, width]: [i64; 2]) -> Tensor {
    let size = [batch, channels, height, width];
    Tensor::from_slice(&values(size.iter().product::<i64>() as usize, 1000)).view(size)
}
