//! Dynamic loss scaling for half-precision training, from the operations that `torch.amp.GradScaler` is made of.
//!
//! The loss is multiplied by `scale` before the backward pass. [`unscale`] divides the gradients and raises `found_inf` if any
//! overflowed; the optimizer step takes `found_inf` and then changes nothing; [`update_scale`] adapts the scale. All of it stays
//! on the device.

use super::{TensorList, check, ffi};
use anyhow::Result;
use tch::Tensor;

/// Multiplies the gradients by `inverse_scale` and sets `found_inf` to 1 if any of their elements is not finite.
///
/// `found_inf` (to be zeroed before) and `inverse_scale` are one float32 number each, on the gradients' device.
pub fn unscale(parameters: &TensorList, found_inf: &Tensor, inverse_scale: &Tensor) -> Result<()> {
    // SAFETY: list and tensors are alive.
    check(unsafe { ffi::suite_unscale(parameters.as_ptr(), found_inf.as_ptr(), inverse_scale.as_ptr()) })
}

/// Adapts `scale` (float32) and `growth_tracker` (int32), one number each: after an overflow the scale is multiplied by
/// `backoff_factor`, after `growth_interval` steps without one by `growth_factor`.
pub fn update_scale(
    scale: &Tensor,
    growth_tracker: &Tensor,
    found_inf: &Tensor,
    growth_factor: f64,
    backoff_factor: f64,
    growth_interval: i64,
) -> Result<()> {
    // SAFETY: the tensors are alive.
    check(unsafe {
        ffi::suite_update_scale(
            scale.as_ptr(),
            growth_tracker.as_ptr(),
            found_inf.as_ptr(),
            growth_factor,
            backoff_factor,
            growth_interval,
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    #[test]
    fn gradients_are_unscaled_and_overflow_is_found() {
        let parameter = Tensor::from_slice(&[1.0f32, 2.0]).set_requires_grad(true);
        (&parameter * 8.0).sum(Kind::Float).backward();
        let parameters = TensorList::new([&parameter]).unwrap();
        let (found_inf, inverse_scale) = (Tensor::from_slice(&[0.0f32]), Tensor::from_slice(&[0.125f32]));
        unscale(&parameters, &found_inf, &inverse_scale).unwrap();
        assert_eq!(Vec::<f32>::try_from(parameter.grad()).unwrap(), [1.0, 1.0]);
        assert_eq!(found_inf.double_value(&[0]), 0.0);
        (&parameter * f64::INFINITY).sum(Kind::Float).backward();
        unscale(&parameters, &found_inf, &inverse_scale).unwrap();
        assert_eq!(found_inf.double_value(&[0]), 1.0);
    }

    #[test]
    fn the_scale_backs_off_at_once_and_grows_after_the_interval() {
        let (scale, tracker) = (Tensor::from_slice(&[1024.0f32]), Tensor::from_slice(&[0i32]));
        let (calm, overflow) = (Tensor::from_slice(&[0.0f32]), Tensor::from_slice(&[1.0f32]));
        let update = |found_inf: &Tensor| {
            update_scale(&scale, &tracker, found_inf, 2.0, 0.5, 3).unwrap();
            (scale.double_value(&[0]), tracker.int64_value(&[0]))
        };
        assert_eq!(update(&calm), (1024.0, 1));
        assert_eq!(update(&overflow), (512.0, 0));
        assert_eq!((update(&calm), update(&calm)), ((512.0, 1), (512.0, 2)));
        assert_eq!(update(&calm), (1024.0, 0));
    }
}
