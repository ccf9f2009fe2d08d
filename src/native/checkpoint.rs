//! Gradient checkpointing: Chen et al., "Training deep nets with sublinear memory cost", 2016.

use super::{ffi, new_tensor};
use anyhow::{Context, Result};
use std::ffi::{c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use tch::Tensor;
use torch_sys::C_tensor;

type Segment = Box<dyn Fn(&Tensor) -> Tensor>;

/// Computes `segment(input)` without keeping its intermediate values: the backward pass computes them again, under the same random numbers and
/// in the same precision, so gradients are the same to the last bit. As `torch.utils.checkpoint.checkpoint(use_reentrant=True)`, and
/// parameters inside learn even where the input does not.
///
/// The segment is kept until the backward pass is done or the result is dropped. On a GPU libtorch runs it there on a thread of its own while the thread
/// that asked for the backward pass waits, so it must not depend on the thread it runs on.
///
/// # Errors
/// The segment panicked, with its message.
pub fn checkpoint(input: &Tensor, segment: impl Fn(&Tensor) -> Tensor + 'static) -> Result<Tensor> {
    let segment: Box<Segment> = Box::new(Box::new(segment));
    let context = Box::into_raw(segment).cast();
    // SAFETY: the tensor is alive; the shim takes the context over and releases it once.
    new_tensor(|result| unsafe { ffi::suite_checkpoint(input.as_ptr(), compute, release, context, result) })
        .context("computing a part of the model that is to be computed again in the backward pass")
}

/// Called by the C++ side: no panic may pass through it.
///
/// # Safety
///
/// `context` is the segment of [`checkpoint`]; `input` is alive; `output` and `message` (of `capacity` bytes) are places to write to.
unsafe extern "C" fn compute(
    context: *mut c_void,
    input: *mut C_tensor,
    output: *mut *mut C_tensor,
    message: *mut c_char,
    capacity: usize,
) -> bool {
    // SAFETY: see above; nobody else uses the segment during the call.
    let segment = unsafe { &*context.cast::<Segment>() };
    let result = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: see above.
        let input = unsafe { Tensor::clone_from_ptr(input) };
        segment(&input)
    }));
    match result {
        Ok(mut tensor) => {
            // SAFETY: the tensor is alive, and `output` is a place for a second handle to it, which the C++ side deletes.
            unsafe { *output = torch_sys::at_shallow_clone(tensor.as_mut_ptr()) };
            true
        }
        Err(panic) => {
            let text = crate::data::loader::panic_message(&*panic);
            let bytes = &text.as_bytes()[..text.len().min(capacity - 1)];
            // SAFETY: `message` has the capacity for the bytes and the 0 behind them.
            unsafe {
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), message.cast(), bytes.len());
                *message.add(bytes.len()) = 0;
            }
            false
        }
    }
}

/// Called by the C++ side when no graph needs the segment any more.
///
/// # Safety
///
/// `context` is the segment of [`checkpoint`], released once.
unsafe extern "C" fn release(context: *mut c_void) {
    // SAFETY: see above.
    let segment = unsafe { Box::from_raw(context.cast::<Segment>()) };
    // What a destructor says must not pass into C++.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(segment)));
}

#[cfg(test)]
mod tests {
    use super::super::modes::Autocast;
    use super::*;
    use std::rc::Rc;
    use tch::{Device, Kind};

    const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);

    /// Numbers without a pattern; drawn ones would disturb tests that count on the generator.
    fn uneven(rows: i64, columns: i64, step: f64) -> Tensor {
        (Tensor::arange(rows * columns, FLOAT).square() * step).sin().view([rows, columns])
    }

    /// The gradients of input and weights of two layers, kept or computed again.
    fn gradients(again: bool, input_learns: bool, low: bool) -> Vec<Tensor> {
        let input = uneven(8, 16, 0.3).set_requires_grad(input_learns);
        let weights: Vec<Tensor> =
            [0.7, 1.1].map(|step| uneven(16, 16, step).set_requires_grad(true)).into_iter().collect();
        let layer = |weight: Tensor| move |x: &Tensor| x.matmul(&weight).gelu("none");
        let output = {
            let _autocast = low.then(|| Autocast::enter(Device::Cpu, Some(Kind::BFloat16)).unwrap());
            weights.iter().fold(input.shallow_clone(), |x, weight| {
                let layer = layer(weight.shallow_clone());
                if again { checkpoint(&x, layer).unwrap() } else { layer(&x) }
            })
        };
        output.to_kind(Kind::Float).square().sum(Kind::Float).backward();
        let learned = weights.iter().chain(input_learns.then_some(&input));
        learned.map(Tensor::grad).collect()
    }

    // That random numbers repeat is a test of whole models: tests/encoders.rs.
    #[test]
    fn gradients_are_the_same_to_the_last_bit() {
        for (input_learns, low) in [(true, false), (false, false), (true, true)] {
            let kept = gradients(false, input_learns, low);
            let again = gradients(true, input_learns, low);
            for (kept, again) in kept.iter().zip(&again) {
                assert_eq!(kept, again, "{input_learns} {low}");
            }
        }
    }

    #[test]
    fn a_panic_is_an_error_and_the_segment_is_dropped() {
        let input = Tensor::ones([2, 2], FLOAT).set_requires_grad(true);
        let wrong = Tensor::ones([3], FLOAT);
        let error = checkpoint(&input, move |x| x + &wrong).unwrap_err();
        assert!(format!("{error:#}").contains("must match"), "{error:#}");

        let kept = Rc::new(());
        let inside = kept.clone();
        let output = checkpoint(&input, move |x| {
            let _ = &inside;
            x * 2.0
        })
        .unwrap();
        assert_eq!(Rc::strong_count(&kept), 2);
        drop(output);
        assert_eq!(Rc::strong_count(&kept), 1);
    }
}
