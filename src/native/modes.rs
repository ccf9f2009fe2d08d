//! Modes of the calling thread, as guards: automatic mixed precision and inference mode.
//!
//! A guard holds until it is dropped, so bind it to a name (`let _guard = …`; `let _ = …` drops it at once), and drop guards in
//! the reverse order of their making, as scopes do. They cannot leave their thread.

use super::{check, device_code, ffi};
use anyhow::{Result, bail};
use std::marker::PhantomData;
use std::ptr;
use tch::{Device, Kind};

/// Marks a type as bound to its thread.
type NotSend = PhantomData<*const ()>;

/// Automatic mixed precision, as `torch.autocast`: inside, libtorch runs matrix products and convolutions in the low-precision
/// type, and what needs the range in float32.
#[derive(Debug)]
pub struct Autocast {
    device: i8,
    previously_enabled: bool,
    previous_kind: i8,
    thread: NotSend,
}

impl Autocast {
    /// Enters a region for operations on `device`: in `Kind::BFloat16` or `Kind::Half`, or with `None` one in full precision
    /// inside of another.
    ///
    /// Casts of parameters are kept until the outermost region ends, so let it end before the optimizer changes them.
    pub fn enter(device: Device, kind: Option<Kind>) -> Result<Autocast> {
        let (device_type, _) = device_code(device)?;
        if device == Device::Vulkan {
            bail!("there is no mixed precision on {device:?}");
        }
        // Of c10::ScalarType.
        let type_code = match kind {
            None => -1,
            Some(Kind::Half) => 5,
            Some(Kind::BFloat16) => 15,
            Some(other) => bail!("mixed precision is in BFloat16 or Half, not in {other:?}"),
        };
        let mut guard = Autocast {
            device: device_type,
            previously_enabled: false,
            previous_kind: 0,
            thread: PhantomData,
        };
        // SAFETY: plain values, and two places to write to.
        let outcome = check(unsafe {
            ffi::suite_autocast_enter(
                device_type,
                kind.is_some(),
                type_code,
                &mut guard.previously_enabled,
                &mut guard.previous_kind,
            )
        });
        if let Err(error) = outcome {
            // Nothing was entered, so there is nothing to leave.
            std::mem::forget(guard);
            return Err(error);
        }
        Ok(guard)
    }
}

impl Drop for Autocast {
    fn drop(&mut self) {
        // SAFETY: the values are those that suite_autocast_enter gave on this thread. It fails only for an unknown device, which
        // entering would have refused.
        let _ = check(unsafe {
            ffi::suite_autocast_exit(self.device, self.previously_enabled, self.previous_kind)
        });
    }
}

/// libtorch's inference mode: no autograd records and no version counters. Tensors made inside cannot take part in a later
/// backward pass.
#[derive(Debug)]
pub struct InferenceMode {
    mode: *mut ffi::InferenceModeGuard,
    thread: NotSend,
}

impl InferenceMode {
    /// Enters inference mode.
    pub fn enter() -> Result<InferenceMode> {
        let mut mode = ptr::null_mut();
        // SAFETY: a place to write the guard to, which Drop frees on this same thread.
        check(unsafe { ffi::suite_inference_mode_enter(&mut mode) })?;
        Ok(InferenceMode { mode, thread: PhantomData })
    }
}

impl Drop for InferenceMode {
    fn drop(&mut self) {
        // SAFETY: made by suite_inference_mode_enter on this thread, freed once.
        unsafe { ffi::suite_inference_mode_exit(self.mode) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Tensor;

    fn product_kind() -> Kind {
        let matrix = Tensor::ones([4, 4], (Kind::Float, Device::Cpu));
        matrix.matmul(&matrix).kind()
    }

    #[test]
    fn autocast_nests_and_restores() {
        assert_eq!(product_kind(), Kind::Float);
        {
            let _outer = Autocast::enter(Device::Cpu, Some(Kind::BFloat16)).unwrap();
            assert_eq!(product_kind(), Kind::BFloat16);
            {
                let _full = Autocast::enter(Device::Cpu, None).unwrap();
                assert_eq!(product_kind(), Kind::Float);
                let _half = Autocast::enter(Device::Cpu, Some(Kind::Half)).unwrap();
                assert_eq!(product_kind(), Kind::Half);
            }
            assert_eq!(product_kind(), Kind::BFloat16);
        }
        assert_eq!(product_kind(), Kind::Float);
    }

    #[test]
    fn casts_of_parameters_do_not_outlive_the_region() {
        let weight = Tensor::ones([4, 4], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let input = Tensor::ones([1, 4], (Kind::Float, Device::Cpu));
        let output = || {
            let _guard = Autocast::enter(Device::Cpu, Some(Kind::BFloat16)).unwrap();
            input.matmul(&weight).double_value(&[0, 0])
        };
        assert_eq!(output(), 4.0);
        let _ = tch::no_grad(|| weight.shallow_clone().fill_(2.0));
        assert_eq!(output(), 8.0);
    }

    #[test]
    fn impossible_kinds_and_devices_are_refused() {
        assert!(Autocast::enter(Device::Cpu, Some(Kind::Int64)).unwrap_err().to_string().contains("Int64"));
        assert!(Autocast::enter(Device::Vulkan, None).is_err());
    }

    #[test]
    fn inference_mode_records_nothing() {
        let weight = Tensor::ones([2], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        {
            let _guard = InferenceMode::enter().unwrap();
            assert!(!(&weight * 2.0).requires_grad());
        }
        assert!((&weight * 2.0).requires_grad());
    }
}
