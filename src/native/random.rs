//! libtorch's random number generators: seeds, states that can be saved, PyTorch's permutations and its draws.

use super::{check, device_code, ffi, new_tensor};
use anyhow::Result;
use tch::{Device, Tensor};

/// Seeds the generators of every device, as `torch.manual_seed`.
pub fn manual_seed(seed: u64) -> Result<()> {
    // SAFETY: a plain value.
    check(unsafe { ffi::suite_manual_seed(seed) })
}

/// The state of a device's default generator: uint8 numbers on the CPU, whatever the device.
pub fn rng_state(device: Device) -> Result<Tensor> {
    let (device_type, index) = device_code(device)?;
    // SAFETY: plain values and a place to write to.
    new_tensor(|result| unsafe { ffi::suite_rng_state(device_type, index, result) })
}

/// Puts a device's default generator into a state that [`rng_state`] gave for the same kind of device.
pub fn set_rng_state(device: Device, state: &Tensor) -> Result<()> {
    let (device_type, index) = device_code(device)?;
    // SAFETY: the tensor is alive.
    check(unsafe { ffi::suite_set_rng_state(device_type, index, state.as_ptr()) })
}

/// A permutation of 0..`count`, int64 on the CPU: the numbers of
/// `torch.randperm(count, generator=torch.Generator().manual_seed(seed))`. The default generators are left alone.
pub fn permutation(count: i64, seed: u64) -> Result<Tensor> {
    // SAFETY: plain values and a place to write to.
    new_tensor(|result| unsafe { ffi::suite_permutation(count, seed, result) })
}

/// `count` draws with replacement of the positions of `weights` (float64, on the CPU) in proportion to them, int64: the numbers of
/// `torch.multinomial(weights, count, True, generator=torch.Generator().manual_seed(seed))`.
pub fn draw(weights: &Tensor, count: i64, seed: u64) -> Result<Tensor> {
    // SAFETY: the tensor is alive, the rest are plain values and a place to write to.
    new_tensor(|result| unsafe { ffi::suite_draw(weights.as_ptr(), count, seed, result) })
}

#[cfg(test)]
mod tests {
    use super::super::test_support::exclusive;
    use super::*;
    use tch::Kind;

    #[test]
    fn a_restored_state_repeats_normals_and_dropout() {
        let _lock = exclusive();
        let draw = || {
            let normals = Tensor::randn([33], (Kind::Float, Device::Cpu));
            let mask = Tensor::ones([1000], (Kind::Float, Device::Cpu)).dropout(0.5, true);
            Tensor::cat(&[normals, mask], 0)
        };
        manual_seed(7).unwrap();
        // An odd count leaves half of a pair of normals in the generator, which the state must hold too.
        let _ = draw();
        let state = rng_state(Device::Cpu).unwrap();
        assert_eq!((state.kind(), state.device()), (Kind::Uint8, Device::Cpu));
        let (first, other) = (draw(), draw());
        set_rng_state(Device::Cpu, &state).unwrap();
        assert!(draw().equal(&first) && !first.equal(&other));
        assert!(set_rng_state(Device::Cpu, &Tensor::from_slice(&[1u8, 2])).is_err());
    }

    #[test]
    fn a_seed_repeats() {
        let _lock = exclusive();
        let draw = |seed| {
            manual_seed(seed).unwrap();
            Tensor::rand([5], (Kind::Float, Device::Cpu))
        };
        assert!(draw(3).equal(&draw(3)) && !draw(3).equal(&draw(4)));
    }

    #[test]
    fn permutations_are_pytorchs() {
        let numbers = |count, seed| Vec::<i64>::try_from(permutation(count, seed).unwrap()).unwrap();
        // torch.randperm(10, generator=torch.Generator().manual_seed(0)).tolist()
        assert_eq!(numbers(10, 0), [4, 1, 7, 5, 3, 9, 0, 8, 6, 2]);
        assert!(numbers(0, 1).is_empty());
        // The same for 40000 and seed 5, and for 100000 and a seed of more than 32 bits.
        assert_eq!(numbers(40_000, 5)[..5], [13411, 2740, 33765, 33695, 20802]);
        assert_eq!(numbers(100_000, (1 << 40) + 7)[99_996..], [34296, 52301, 18202, 73623]);
        let mut many = numbers(40_000, 5);
        assert_ne!(many, numbers(40_000, 6));
        many.sort_unstable();
        assert!(many.into_iter().eq(0..40_000));
    }

    #[test]
    fn a_permutation_leaves_the_default_generator_alone() {
        let _lock = exclusive();
        let before = rng_state(Device::Cpu).unwrap();
        let _ = permutation(100, 1).unwrap();
        assert!(rng_state(Device::Cpu).unwrap().equal(&before));
    }
}
