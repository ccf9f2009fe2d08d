//! Lists of tensors that the C++ side can use as they are.

use super::{check, ffi};
use anyhow::Result;
use std::borrow::Borrow;
use std::fmt;
use std::ptr;
use tch::Tensor;

/// Tensors prepared for the functions of [`native`](crate::native): built once, used in every step without an allocation here.
///
/// It holds shallow clones, which share storage and gradient with the tensors that it was made of.
pub struct TensorList {
    list: *mut ffi::TensorVector,
    tensors: Vec<Tensor>,
}

// SAFETY: a `Tensor` may move to another thread, and so may a vector of them; as with `Tensor`, there is no `Sync`.
unsafe impl Send for TensorList {}

impl TensorList {
    /// Prepares tensors, given as values or references. An undefined one is an error.
    pub fn new<T: Borrow<Tensor>>(tensors: impl IntoIterator<Item = T>) -> Result<TensorList> {
        let tensors: Vec<Tensor> =
            tensors.into_iter().map(|tensor| tensor.borrow().shallow_clone()).collect();
        let pointers: Vec<_> = tensors.iter().map(Tensor::as_ptr).collect();
        let mut list = ptr::null_mut();
        // SAFETY: the pointers are those of live tensors, of which the list takes clones.
        check(unsafe { ffi::suite_list_new(pointers.as_ptr(), pointers.len(), &mut list) })?;
        Ok(TensorList { list, tensors })
    }

    /// The tensors, in the order in which they were given.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// How many tensors there are.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Moves each tensor towards its source: `self += weight * (source - self)`, as `torch.lerp` computes it, in place and
    /// without recording gradients. Tensors that hold no floating-point numbers become copies of their sources.
    ///
    /// An exponential moving average with decay `d` is `average.lerp(&parameters, 1.0 - d)`.
    pub fn lerp(&self, sources: &TensorList, weight: f64) -> Result<()> {
        // SAFETY: both lists are alive.
        check(unsafe { ffi::suite_list_lerp(self.as_ptr(), sources.as_ptr(), weight) })
    }

    pub(super) fn as_ptr(&self) -> *const ffi::TensorVector {
        self.list
    }
}

impl Drop for TensorList {
    fn drop(&mut self) {
        // SAFETY: the list was made by suite_list_new and belongs to this value alone.
        unsafe { ffi::suite_list_free(self.list) }
    }
}

impl fmt::Debug for TensorList {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_list().entries(&self.tensors).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn lerp_blends_numbers_and_copies_counters() {
        let average = Tensor::from_slice(&[1.0f32, -2.0]);
        let counter = Tensor::from_slice(&[3i64]);
        let targets = TensorList::new([&average, &counter]).unwrap();
        let sources =
            TensorList::new([Tensor::from_slice(&[2.0f32, 6.0]), Tensor::from_slice(&[9i64])]).unwrap();
        targets.lerp(&sources, 0.25).unwrap();
        assert_eq!(Vec::<f32>::try_from(&average).unwrap(), [1.25, 0.0]);
        assert_eq!(Vec::<i64>::try_from(&counter).unwrap(), [9]);
        let one = TensorList::new([&average]).unwrap();
        assert!(one.lerp(&sources, 0.5).unwrap_err().to_string().contains("2 tensors into one of 1"));
    }

    #[test]
    fn lerp_reaches_variables_that_require_gradients() {
        let variable = Tensor::ones([2, 2], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let target = TensorList::new([&variable]).unwrap();
        target
            .lerp(&TensorList::new([Tensor::zeros([2, 2], (Kind::Float, Device::Cpu))]).unwrap(), 1.0)
            .unwrap();
        assert_eq!(variable.abs().max().double_value(&[]), 0.0);
        assert!(variable.requires_grad() && variable.is_leaf());
    }

    #[test]
    fn undefined_tensors_are_refused() {
        assert_eq!(
            TensorList::new([Tensor::new()]).unwrap_err().to_string(),
            "tensor 0 of a list is undefined"
        );
        assert!(TensorList::new(Vec::<Tensor>::new()).unwrap().is_empty());
    }
}
