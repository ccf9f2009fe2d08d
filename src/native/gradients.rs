//! Operations on the gradients of a list of parameters: norm, clipping, penalties, scaling, and a watch for bad values.
//!
//! Parameters whose gradient is undefined (they took no part in the loss, or are frozen) are skipped. Nothing is recorded for
//! autograd, and on devices other than the CPU nothing is copied to the host. All gradients are on one device.

use super::{TensorList, check, ffi, new_tensor};
use anyhow::Result;
use tch::Tensor;

/// The 2-norm of all gradients taken as one vector, as `torch.nn.utils.get_total_norm`: a floating-point scalar on the
/// gradients' device, 0 when there are none.
///
/// On the CPU squares are summed in double precision and in an order that does not depend on the number of threads.
pub fn norm(parameters: &TensorList) -> Result<Tensor> {
    // SAFETY: the list is alive.
    new_tensor(|result| unsafe { ffi::suite_gradients_norm(parameters.as_ptr(), result) })
}

/// Scales the gradients so that their total norm is at most `max_norm`, as `torch.nn.utils.clip_grads_with_norm_`:
/// multiplied by `min(1, max_norm / (total_norm + 1e-6))`. A norm that is NaN makes every gradient NaN.
pub fn clip_by_norm(parameters: &TensorList, total_norm: &Tensor, max_norm: f64) -> Result<()> {
    // SAFETY: list and tensor are alive.
    check(unsafe { ffi::suite_gradients_clip_by_norm(parameters.as_ptr(), total_norm.as_ptr(), max_norm) })
}

/// Clamps every element of the gradients to [-`limit`, `limit`], as `torch.nn.utils.clip_grad_value_`.
pub fn clip_by_value(parameters: &TensorList, limit: f64) -> Result<()> {
    // SAFETY: the list is alive.
    check(unsafe { ffi::suite_gradients_clip_by_value(parameters.as_ptr(), limit) })
}

/// Removes the gradients, as `zero_grad(set_to_none=True)`.
pub fn clear(parameters: &TensorList) -> Result<()> {
    // SAFETY: the list is alive.
    check(unsafe { ffi::suite_gradients_clear(parameters.as_ptr()) })
}

/// Adds the gradient of `l1 * |p| + l2 / 2 * p^2`, that is `l1 * sign(p) + l2 * p`, to the gradient of each parameter.
pub fn add_penalty(parameters: &TensorList, l1: f64, l2: f64) -> Result<()> {
    // SAFETY: the list is alive.
    check(unsafe { ffi::suite_gradients_add_penalty(parameters.as_ptr(), l1, l2) })
}

/// Multiplies the gradients by a number.
pub fn scale(parameters: &TensorList, factor: f64) -> Result<()> {
    // SAFETY: the list is alive.
    check(unsafe { ffi::suite_gradients_scale(parameters.as_ptr(), factor) })
}

/// Multiplies the gradients by a number that is on their device.
pub fn scale_by(parameters: &TensorList, factor: &Tensor) -> Result<()> {
    // SAFETY: list and tensor are alive.
    check(unsafe { ffi::suite_gradients_scale_by(parameters.as_ptr(), factor.as_ptr()) })
}

/// Remembers the first step in which a value was NaN or infinite, without asking the device for anything.
///
/// `first_bad` is one int64 number on the values' device, -1 at the start. It becomes `step` if any element of any value is not
/// finite and it is still negative. Read it where the host waits for the device anyway.
pub fn watch_finite(values: &[&Tensor], step: i64, first_bad: &Tensor) -> Result<()> {
    let pointers: Vec<_> = values.iter().map(|value| value.as_ptr()).collect();
    // SAFETY: the pointers are those of live tensors.
    check(unsafe { ffi::suite_watch_finite(pointers.as_ptr(), pointers.len(), step, first_bad.as_ptr()) })
}

#[cfg(test)]
mod tests {
    use super::super::test_support::as_host_and_as_device;
    use super::*;
    use tch::{Device, Kind};

    /// Parameters with the given gradients, and one without.
    fn parameters_with(gradients: &[Tensor]) -> TensorList {
        let mut parameters = Vec::new();
        for gradient in gradients {
            let parameter = gradient.ones_like().set_requires_grad(true);
            (&parameter * gradient).sum(gradient.kind()).backward();
            parameters.push(parameter);
        }
        parameters.push(Tensor::ones([2], (Kind::Float, Device::Cpu)).set_requires_grad(true));
        TensorList::new(parameters).unwrap()
    }

    fn gradient(parameters: &TensorList, index: usize) -> Vec<f32> {
        Vec::try_from(parameters.tensors()[index].grad().flatten(0, -1)).unwrap()
    }

    #[test]
    fn the_norm_is_over_all_gradients() {
        as_host_and_as_device(|| {
            let parameters = parameters_with(&[
                Tensor::from_slice(&[3.0f32, 0.0]),
                Tensor::from_slice(&[-4.0f32]).reshape([1, 1]),
            ]);
            let total = norm(&parameters).unwrap();
            assert_eq!((total.double_value(&[]), total.kind(), total.dim()), (5.0, Kind::Float, 0));
            let double = parameters_with(&[Tensor::from_slice(&[1e200f64]) / 1e190]);
            assert_eq!(norm(&double).unwrap().kind(), Kind::Double);
            // Half precision takes libtorch's own path.
            let half = parameters_with(&[Tensor::from_slice(&[3.0f32, 4.0]).to_kind(Kind::BFloat16)]);
            assert_eq!(norm(&half).unwrap().double_value(&[]), 5.0);
            let none = parameters_with(&[]);
            assert_eq!(norm(&none).unwrap().double_value(&[]), 0.0);
        });
    }

    #[test]
    fn the_norm_of_many_elements_is_exact_to_single_precision() {
        let first = Tensor::arange(300_000, (Kind::Float, Device::Cpu)).sin().reshape([3, 100, 1000]);
        // A transposed gradient is memory without holes in another order.
        let second = Tensor::arange(77, (Kind::Float, Device::Cpu)).cos().reshape([7, 11]).tr();
        let expected = Tensor::cat(&[first.flatten(0, -1), second.flatten(0, -1)], 0)
            .to_kind(Kind::Double)
            .norm()
            .double_value(&[]);
        let found = norm(&parameters_with(&[first, second])).unwrap().double_value(&[]);
        assert!((found / expected - 1.0).abs() < 1e-7, "{found} is not {expected}");
    }

    #[test]
    fn clipping_by_norm_only_shrinks() {
        as_host_and_as_device(|| {
            let parameters =
                parameters_with(&[Tensor::from_slice(&[3.0f32, 0.0]), Tensor::from_slice(&[-4.0f32])]);
            clip_by_norm(&parameters, &norm(&parameters).unwrap(), 10.0).unwrap();
            assert_eq!((gradient(&parameters, 0), gradient(&parameters, 1)), (vec![3.0, 0.0], vec![-4.0]));
            clip_by_norm(&parameters, &norm(&parameters).unwrap(), 1.0).unwrap();
            assert!((norm(&parameters).unwrap().double_value(&[]) - 1.0).abs() < 1e-6);
            assert!((gradient(&parameters, 0)[0] - 0.6).abs() < 1e-6);
            clip_by_norm(&parameters, &Tensor::from(f32::NAN), 1.0).unwrap();
            assert!(gradient(&parameters, 1)[0].is_nan());
        });
    }

    #[test]
    fn values_are_clamped_scaled_penalised_and_cleared() {
        as_host_and_as_device(|| {
            let parameters = parameters_with(&[Tensor::from_slice(&[3.0f32, -0.25, -4.0])]);
            clip_by_value(&parameters, 2.0).unwrap();
            assert_eq!(gradient(&parameters, 0), [2.0, -0.25, -2.0]);
            scale(&parameters, 2.0).unwrap();
            scale_by(&parameters, &Tensor::from_slice(&[0.25f32])).unwrap();
            assert_eq!(gradient(&parameters, 0), [1.0, -0.125, -1.0]);
            // The parameters are ones.
            add_penalty(&parameters, 0.5, 0.25).unwrap();
            assert_eq!(gradient(&parameters, 0), [1.75, 0.625, -0.25]);
            clear(&parameters).unwrap();
            assert!(parameters.tensors().iter().all(|parameter| !parameter.grad().defined()));
            // Nothing is left to work on, which is not an error.
            for outcome in [
                clip_by_value(&parameters, 1.0),
                scale(&parameters, 2.0),
                add_penalty(&parameters, 1.0, 1.0),
                clear(&parameters),
            ] {
                outcome.unwrap();
            }
        });
    }

    #[test]
    fn sparse_gradients_are_refused_in_words() {
        let table = Tensor::ones([4, 2], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        Tensor::embedding(&table, &Tensor::from_slice(&[1i64]), -1, false, true).sum(Kind::Float).backward();
        let message = norm(&TensorList::new([&table]).unwrap()).unwrap_err().to_string();
        assert!(message.contains("sparse"), "{message}");
    }

    #[test]
    fn the_first_bad_step_is_remembered() {
        as_host_and_as_device(|| {
            let first_bad = Tensor::from(-1i64);
            let good = Tensor::from(1.0f32);
            let bad = Tensor::from(f32::INFINITY);
            let bad_element = Tensor::from_slice(&[0.0f64, f64::NAN]);
            watch_finite(&[&good], 1, &first_bad).unwrap();
            assert_eq!(first_bad.int64_value(&[]), -1);
            watch_finite(&[&good, &bad_element], 2, &first_bad).unwrap();
            watch_finite(&[&bad], 3, &first_bad).unwrap();
            assert_eq!(first_bad.int64_value(&[]), 2);
            let half = Tensor::from(-1i64);
            watch_finite(&[&bad.to_kind(Kind::BFloat16)], 7, &half).unwrap();
            assert_eq!(half.int64_value(&[]), 7);
            assert!(watch_finite(&[&good], 1, &Tensor::from(-1.0f32)).is_err());
        });
    }
}
