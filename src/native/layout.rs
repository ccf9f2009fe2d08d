//! The channels-last memory layout of image batches, in which convolutions are faster on most processors.

use super::{check, ffi, new_tensor};
use anyhow::Result;
use tch::Tensor;

/// The tensor [batch, channels, height, width] with its channels innermost in memory; itself if it already is. Shape and values
/// stay. Gradients flow through it.
pub fn channels_last(tensor: &Tensor) -> Result<Tensor> {
    // SAFETY: the tensor is alive.
    new_tensor(|result| unsafe { ffi::suite_channels_last(tensor.as_ptr(), result) })
}

/// Whether a tensor [batch, channels, height, width] has its channels innermost in memory; false for other dimensions.
pub fn is_channels_last(tensor: &Tensor) -> Result<bool> {
    let mut result = false;
    // SAFETY: the tensor is alive.
    check(unsafe { ffi::suite_is_channels_last(tensor.as_ptr(), &mut result) })?;
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn convolutions_keep_the_layout() {
        let images = Tensor::arange(2 * 3 * 4 * 5, (Kind::Float, Device::Cpu)).reshape([2, 3, 4, 5]);
        assert!(!is_channels_last(&images).unwrap());
        let converted = channels_last(&images).unwrap();
        assert!(is_channels_last(&converted).unwrap() && converted.equal(&images));
        assert_eq!(converted.stride(), [60, 1, 15, 3]);
        let weight = channels_last(&Tensor::ones([8, 3, 3, 3], (Kind::Float, Device::Cpu))).unwrap();
        let output = converted.conv2d(&weight, None::<&Tensor>, [1, 1], [1, 1], [1, 1], 1);
        assert!(is_channels_last(&output).unwrap());
        assert!(!is_channels_last(&Tensor::ones([2], (Kind::Float, Device::Cpu))).unwrap());
    }
}
