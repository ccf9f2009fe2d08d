//! The C++ shim over libtorch and its safe face: what tch does not offer, and the only unsafe code of the crate.
//!
//! Each submodule has its C++ side in `cpp/`. Exceptions come back as one-sentence errors, tensors cross as pointers, and every
//! function works on whatever device its tensors are on.

pub mod checkpoint;
pub mod distributed;
pub mod dropout;
mod ffi;
pub mod file_map;
pub mod gradients;
pub mod inference;
pub mod layout;
pub mod lookup;
pub mod loss_scaling;
pub mod modes;
pub mod optimizer_kernels;
pub mod random;
pub mod script;
pub mod system;
mod tensor_list;
pub mod trace;
pub mod vectors;

pub use tensor_list::TensorList;

use crate::error::without_backtrace;
use anyhow::{Context, Result, anyhow};
use std::ffi::{CStr, c_char};
use std::ptr;
use tch::{Device, Tensor};
use torch_sys::C_tensor;

/// Turns what a function of the shim returned into a `Result`, and frees the message.
fn check(outcome: ffi::Outcome) -> Result<()> {
    match take_text(outcome.0) {
        None => Ok(()),
        Some(message) => Err(anyhow!("{}", without_backtrace(&message))),
    }
}

/// Takes over a text of the shim; `None` for null.
fn take_text(text: *mut c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: the shim hands out null-terminated texts that stay valid until suite_free_text, which is called once, here.
    unsafe {
        let copy = CStr::from_ptr(text).to_string_lossy().into_owned();
        ffi::suite_free_text(text);
        Some(copy)
    }
}

/// Calls a function of the shim that makes a tensor.
fn new_tensor(call: impl FnOnce(*mut *mut C_tensor) -> ffi::Outcome) -> Result<Tensor> {
    new_tensor_if_any(call)?.context("libtorch returned no tensor")
}

/// Calls a function of the shim that makes a tensor, or stores null where it has none to give.
fn new_tensor_if_any(call: impl FnOnce(*mut *mut C_tensor) -> ffi::Outcome) -> Result<Option<Tensor>> {
    let mut result = ptr::null_mut();
    check(call(&mut result))?;
    // SAFETY: a function that succeeded has stored a tensor that now belongs to us alone, or null.
    Ok((!result.is_null()).then(|| unsafe { Tensor::from_ptr(result) }))
}

/// Calls a function of the shim that makes a text.
fn new_text(call: impl FnOnce(*mut *mut c_char) -> ffi::Outcome) -> Result<String> {
    let mut result = ptr::null_mut();
    check(call(&mut result))?;
    Ok(take_text(result).unwrap_or_default())
}

/// A device as libtorch counts them: `c10::DeviceType` and index, -1 where there is only one.
fn device_code(device: Device) -> Result<(i8, i8)> {
    Ok(match device {
        Device::Cpu => (0, -1),
        Device::Cuda(index) => {
            (1, i8::try_from(index).map_err(|_| anyhow!("there is no CUDA device {index}"))?)
        }
        Device::Vulkan => (10, -1),
        Device::Mps => (13, 0),
    })
}

#[cfg(test)]
#[path = "../../tests/support/larger_data.rs"]
mod larger_data;

/// What the tests of the submodules share.
#[cfg(test)]
mod test_support {
    use super::ffi;
    pub use super::larger_data::data as test_data;
    use std::marker::PhantomData;
    use std::sync::{Mutex, MutexGuard, PoisonError};

    /// Held by tests that change what belongs to the whole process: random number generators, thread counts, switches.
    pub fn exclusive() -> MutexGuard<'static, ()> {
        static GLOBAL_STATE: Mutex<()> = Mutex::new(());
        GLOBAL_STATE.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a test twice: as it is, and with CPU tensors treated as those of a device that the host must not wait for.
    pub fn as_host_and_as_device(test: impl Fn()) {
        struct CpuAgain(PhantomData<*const ()>);
        impl Drop for CpuAgain {
            fn drop(&mut self) {
                // SAFETY: a plain value.
                unsafe { ffi::suite_treat_cpu_as_a_device(false) };
            }
        }
        test();
        // SAFETY: a plain value.
        unsafe { ffi::suite_treat_cpu_as_a_device(true) };
        let _cpu_again = CpuAgain(PhantomData);
        test();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exception_becomes_one_sentence() {
        let flat = Tensor::zeros([3], (tch::Kind::Float, Device::Cpu));
        let message = layout::channels_last(&flat).unwrap_err().to_string();
        assert_eq!(
            message,
            "the channels-last layout needs a tensor [batch, channels, height, width], not one of 1 dimensions"
        );
        let libtorchs_own = random::permutation(-1, 0).unwrap_err().to_string();
        assert!(
            libtorchs_own.contains("negative dimension")
                && !libtorchs_own.contains('\n')
                && !libtorchs_own.contains("frame #"),
            "{libtorchs_own}"
        );
    }
}
