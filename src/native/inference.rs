//! What an [`InferenceMode`](super::modes::InferenceMode) of the thread makes faster. Convolutions and linear layers, of which the weights stay as they are: packed
//! once, with the batch normalisation behind them, for as long as it lasts; the first gigabyte of a model. Poolings, of which no gradient is needed.

use std::ptr;

use anyhow::Result;
use tch::Tensor;

use super::{ffi, new_tensor_if_any};

/// A two-dimensional convolution.
#[derive(Clone, Copy, Debug)]
pub struct Convolution<'a> {
    /// `[outputs, inputs / groups, height, width]`
    pub weight: &'a Tensor,
    /// `[outputs]`
    pub bias: Option<&'a Tensor>,
    /// Pixels from one position to the next.
    pub stride: i64,
    /// Zeros above and below, left and right.
    pub padding: [i64; 2],
    /// Pixels from one weight to the next.
    pub dilation: i64,
    /// Groups of channels that do not see each other.
    pub groups: i64,
}

/// A batch normalisation with its running statistics, each `[channels]`.
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    /// γ
    pub weight: &'a Tensor,
    /// β
    pub bias: &'a Tensor,
    /// μ
    pub running_mean: &'a Tensor,
    /// σ²
    pub running_var: &'a Tensor,
    /// Added to σ².
    pub eps: f64,
}

/// The convolution of `[batch, inputs, height, width]`, normalised by `norm` and, with `relu`, cut off at 0, through oneDNN with packed weights; under autocast in
/// bfloat16. None outside of inference mode, on other devices than the CPU, in other types and while a module is traced.
pub fn packed_convolution(
    input: &Tensor,
    convolution: Convolution,
    norm: Option<Norm>,
    relu: bool,
) -> Result<Option<Tensor>> {
    let Convolution { weight, bias, stride, padding, dilation, groups } = convolution;
    let convolution = ffi::Convolution {
        weight: weight.as_ptr(),
        bias: bias.map_or(ptr::null(), Tensor::as_ptr),
        stride,
        padding,
        dilation,
        groups,
    };
    let norm = norm.map(|norm| ffi::Norm {
        weight: norm.weight.as_ptr(),
        bias: norm.bias.as_ptr(),
        running_mean: norm.running_mean.as_ptr(),
        running_var: norm.running_var.as_ptr(),
        eps: norm.eps,
    });
    let norm = norm.as_ref().map_or(ptr::null(), ptr::from_ref);
    // SAFETY: the tensors are alive during the call, the structures on this stack; the normalisation may be null.
    new_tensor_if_any(|result| unsafe {
        ffi::suite_packed_convolution(input.as_ptr(), &convolution, norm, relu, result)
    })
}

/// `nn.MaxPool2d(size, stride, padding, ceil_mode=ceil)` of `[batch, channels, height, width]` with the channels innermost. None outside of inference mode, on other
/// devices than the CPU, in other types than float32 and bfloat16, in another layout, and while a module is traced.
pub fn max_pool(input: &Tensor, size: i64, stride: i64, padding: i64, ceil: bool) -> Result<Option<Tensor>> {
    // SAFETY: the tensor is alive during the call, the rest are plain values.
    new_tensor_if_any(|result| unsafe {
        ffi::suite_largest_of_windows(input.as_ptr(), size, stride, padding, ceil, result)
    })
}

/// y = x Wᵀ + b: `[…, inputs]` by a weight `[outputs, inputs]` that lives on, with packed weights; under autocast in bfloat16. None outside of inference mode, on other
/// devices than the CPU, in other types and while a module is traced.
pub fn packed_linear(input: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Option<Tensor>> {
    let bias = bias.map_or(ptr::null(), Tensor::as_ptr);
    // SAFETY: the tensors are alive during the call; the bias may be null.
    new_tensor_if_any(|result| unsafe {
        ffi::suite_packed_linear(input.as_ptr(), weight.as_ptr(), bias, result)
    })
}

#[cfg(test)]
mod tests {
    use super::super::modes::{Autocast, InferenceMode};
    use super::*;
    use tch::{Device, Kind};

    const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);

    fn largest_difference(left: &Tensor, right: &Tensor) -> f64 {
        f64::try_from((left.to_kind(Kind::Float) - right).abs().max()).unwrap()
    }

    #[test]
    fn packed_is_plain_for_every_form() {
        for (groups, stride, dilation, padding, with_bias, layout) in [
            (1, 1, 1, [1, 1], false, false),
            (1, 2, 1, [0, 2], true, true),
            (8, 1, 2, [2, 2], true, false),
            (2, 2, 1, [1, 1], false, true),
        ] {
            let weight = Tensor::randn([16, 8 / groups, 3, 3], FLOAT);
            let bias = with_bias.then(|| Tensor::randn([16], FLOAT));
            let [gamma, beta, mean] = [(); 3].map(|()| Tensor::randn([16], FLOAT));
            let var = Tensor::rand([16], FLOAT) + 0.1;
            let mut input = Tensor::randn([3, 8, 13, 11], FLOAT);
            if layout {
                input = super::super::layout::channels_last(&input).unwrap();
            }
            let convolution =
                Convolution { weight: &weight, bias: bias.as_ref(), stride, padding, dilation, groups };
            let norm =
                Norm { weight: &gamma, bias: &beta, running_mean: &mean, running_var: &var, eps: 1e-3 };
            assert!(packed_convolution(&input, convolution, Some(norm), true).unwrap().is_none());
            let plain = input.conv2d(&weight, bias.as_ref(), [stride; 2], padding, [dilation; 2], groups);
            let normed =
                plain.batch_norm(Some(&gamma), Some(&beta), Some(&mean), Some(&var), false, 0.1, 1e-3, true);
            let _inference = InferenceMode::enter().unwrap();
            // Twice: as it is packed, and from what was kept.
            for _ in 0..2 {
                let packed =
                    |norm, relu| packed_convolution(&input, convolution, norm, relu).unwrap().unwrap();
                assert!(largest_difference(&packed(None, false), &plain) < 1e-4);
                assert!(largest_difference(&packed(Some(norm), false), &normed) < 1e-4);
                assert!(largest_difference(&packed(Some(norm), true), &normed.relu()) < 1e-4);
            }
            let smaller = input.narrow(0, 0, 1).narrow(2, 0, 9);
            let packed = packed_convolution(&smaller, convolution, None, false).unwrap().unwrap();
            let plain = smaller.conv2d(&weight, bias.as_ref(), [stride; 2], padding, [dilation; 2], groups);
            assert!(largest_difference(&packed, &plain) < 1e-4);
            assert!(
                packed_convolution(&input.to_kind(Kind::Double), convolution, None, false).unwrap().is_none()
            );
            let _autocast = Autocast::enter(Device::Cpu, Some(Kind::BFloat16)).unwrap();
            if let Some(packed) = packed_convolution(&input, convolution, Some(norm), false).unwrap() {
                assert_eq!(packed.kind(), Kind::BFloat16);
                let scale = f64::try_from(normed.abs().max()).unwrap();
                assert!(largest_difference(&packed, &normed) < 0.03 * scale);
            }
        }
    }

    #[test]
    fn a_packed_linear_layer_is_a_plain_one() {
        let weight = Tensor::randn([600, 128], FLOAT);
        let bias = Tensor::randn([300], FLOAT);
        // A whole weight, a part of it and one that lies the other way around, with and without what is added.
        let square = weight.narrow(0, 0, 300);
        let layers = [
            (weight.shallow_clone(), None),
            (weight.narrow(0, 300, 300), Some(&bias)),
            (square.shallow_clone(), Some(&bias)),
            (square.shallow_clone(), None),
            (Tensor::randn([128, 300], FLOAT).tr(), Some(&bias)),
        ];
        let inputs =
            [vec![1, 128], vec![7, 128], vec![2, 5, 128]].map(|shape| Tensor::randn(&shape[..], FLOAT));
        assert!(packed_linear(&inputs[1], &weight, None).unwrap().is_none());
        let _inference = InferenceMode::enter().unwrap();
        for _ in 0..2 {
            for (weight, bias) in &layers {
                for input in &inputs {
                    let plain = input.linear(weight, *bias);
                    let packed = packed_linear(input, weight, *bias).unwrap().unwrap();
                    assert_eq!(packed.size(), plain.size());
                    assert!(largest_difference(&packed, &plain) < 1e-4);
                    let _autocast = Autocast::enter(Device::Cpu, Some(Kind::BFloat16)).unwrap();
                    if let Some(packed) = packed_linear(input, weight, *bias).unwrap() {
                        assert_eq!(packed.kind(), Kind::BFloat16);
                        let scale = f64::try_from(plain.abs().max()).unwrap();
                        assert!(largest_difference(&packed, &plain) < 0.02 * scale);
                    }
                }
            }
        }
        let double = inputs[1].to_kind(Kind::Double);
        assert!(packed_linear(&double, &weight.to_kind(Kind::Double), None).unwrap().is_none());
    }

    #[test]
    fn pooling_is_libtorchs_to_the_bit() {
        let images = Tensor::randn([3, 20, 13, 10], FLOAT);
        // What is no number wins, wherever it comes in its window.
        for place in [0, 7, 41, 129] {
            let _ = images.view([-1]).get(place).fill_(f64::NAN);
        }
        let nhwc = super::super::layout::channels_last(&images).unwrap();
        assert!(max_pool(&nhwc, 2, 2, 0, false).unwrap().is_none());
        let _inference = InferenceMode::enter().unwrap();
        assert!(max_pool(&images, 2, 2, 0, false).unwrap().is_none(), "another layout");
        for (size, stride, padding, ceil) in
            [(2, 2, 0, false), (3, 2, 1, false), (3, 2, 0, true), (3, 1, 1, false), (2, 2, 1, true)]
        {
            for kind in [Kind::Float, Kind::BFloat16] {
                let input = nhwc.to_kind(kind);
                let plain =
                    input.max_pool2d([size, size], [stride, stride], [padding, padding], [1, 1], ceil);
                let own = max_pool(&input, size, stride, padding, ceil).unwrap().unwrap();
                assert_eq!((own.kind(), own.size()), (kind, plain.size()));
                assert!(own.isnan().equal(&plain.isnan()));
                assert!(own.nan_to_num(0.0, None, None).equal(&plain.nan_to_num(0.0, None, None)));
            }
        }
    }

    #[test]
    fn weights_are_packed_anew_in_each_inference_mode() {
        let weight = Tensor::randn([4, 4, 3, 3], FLOAT);
        let input = Tensor::randn([1, 4, 8, 8], FLOAT);
        let convolution =
            Convolution { weight: &weight, bias: None, stride: 1, padding: [1, 1], dilation: 1, groups: 1 };
        let run = || {
            let _inference = InferenceMode::enter().unwrap();
            // One inside another ends nothing.
            drop(InferenceMode::enter().unwrap());
            packed_convolution(&input, convolution, None, false).unwrap().unwrap()
        };
        let before = run();
        let _ = weight.shallow_clone().multiply_scalar_(2.0);
        assert!(largest_difference(&run(), &(before * 2.0)) < 1e-5);
    }
}
