//! Dropout by a counter-based generator, which draws several elements at once on each thread, and attention whose weights are dropped by it.
//!
//! libtorch's own draws element by element, and its fused attention kernels for CPUs take no dropout. Other devices get libtorch's own of both. The masks are
//! other ones than PyTorch's under the same seed; the same seed gives the same masks on any number of threads. `TCH_SUITE_DROPOUT=pytorch` in the environment
//! gets libtorch's own everywhere, and with it Python's masks.

use super::{ffi, new_tensor};
use std::ptr;

use anyhow::Result;
use tch::Tensor;

/// Whether the environment asks for PyTorch's masks.
pub fn masks_of_pytorch() -> bool {
    // SAFETY: reads a variable.
    unsafe { ffi::suite_masks_of_pytorch() }
}

/// `torch.nn.functional.dropout` in training: each element is zero with `probability`, else divided by 1 − `probability`, with gradients. On the CPU a call
/// takes one number from the default generator: the rest follows from it.
pub fn dropout(input: &Tensor, probability: f64) -> Result<Tensor> {
    // SAFETY: the tensor is alive.
    new_tensor(|result| unsafe { ffi::suite_dropout(input.as_ptr(), probability, result) })
}

/// softmax(scale · Q Kᵀ + mask) V with some of the softmax's results dropped: `torch.nn.functional.scaled_dot_product_attention`, but zeros for a query that sees
/// no key. All are `[batch, heads, length, width]` with as many heads; the mask is broadcast to `[batch, heads, queries, keys]`: booleans, true where a
/// query sees, or numbers that are added.
pub fn attention(
    [query, key, value]: [&Tensor; 3],
    mask: Option<&Tensor>,
    probability: f64,
    scale: f64,
) -> Result<Tensor> {
    let mask = mask.map_or(ptr::null(), Tensor::as_ptr);
    // SAFETY: the tensors are alive; the mask may be null.
    new_tensor(|result| unsafe {
        ffi::suite_attention(query.as_ptr(), key.as_ptr(), value.as_ptr(), mask, probability, scale, result)
    })
}

#[cfg(test)]
mod tests {
    use super::super::random::manual_seed;
    use super::super::test_support::{as_host_and_as_device, exclusive};
    use super::*;
    use tch::{Device, Kind};

    const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);

    fn seeded(seed: u64, input: &Tensor, probability: f64) -> Tensor {
        manual_seed(seed).unwrap();
        dropout(input, probability).unwrap()
    }

    fn numbers(tensor: &Tensor) -> Vec<f64> {
        Vec::try_from(tensor.flatten(0, -1).to_kind(Kind::Double)).unwrap()
    }

    #[test]
    fn elements_are_dropped_independently_with_the_probability() {
        let _lock = exclusive();
        const COUNT: usize = 1 << 20;
        let ones = Tensor::ones([COUNT as i64], FLOAT);
        for (seed, probability) in [(0, 0.1), (1, 0.5), (2, 0.003), (3, 0.9)] {
            let result = numbers(&seeded(seed, &ones, probability));
            let kept = 1.0 / (1.0 - probability);
            assert!(result.iter().all(|&value| value == 0.0 || (value - kept).abs() < 1e-6 * kept));
            let deviation = (probability * (1.0 - probability)).sqrt();
            let centred: Vec<f64> = result
                .iter()
                .map(|&value| (f64::from(u8::from(value == 0.0)) - probability) / deviation)
                .collect();
            // Sums of that many independent numbers of variance 1 deviate by a thousand; five of those happen once in millions.
            let bound = 5.0 * (COUNT as f64).sqrt();
            assert!(centred.iter().sum::<f64>().abs() < bound, "{probability}");
            // Neighbours, the lanes and words of a block, blocks and rows.
            for lag in [1, 2, 3, 16, 32, 48, 64, 128, 384, 1024, 4096] {
                let products: f64 =
                    centred.iter().zip(&centred[lag..]).map(|(left, right)| left * right).sum();
                assert!(products.abs() < bound, "{probability}, {lag} apart: {products}");
            }
            // Counts in groups of 64 vary as binomial ones do: 16,384 squares, each with mean 1 and a variance of about 2.
            let squares: f64 = centred.chunks(64).map(|group| group.iter().sum::<f64>().powi(2) / 64.0).sum();
            let groups = COUNT as f64 / 64.0;
            let spread = 2.0 + (1.0 / (deviation * deviation) - 6.0) / 64.0;
            assert!((squares - groups).abs() < 5.0 * (spread * groups).sqrt(), "{probability}: {squares}");
        }
        // Keys that follow each other give masks that have nothing to do with each other.
        manual_seed(4).unwrap();
        let [first, second] = [(); 2].map(|()| dropout(&ones, 0.5).unwrap() - 1.0);
        let product = f64::try_from((first * second).sum(Kind::Double)).unwrap();
        assert!(product.abs() < 5.0 * (COUNT as f64).sqrt(), "{product}");
    }

    #[test]
    fn gradients_have_the_mask_at_any_order_and_layout() {
        let _lock = exclusive();
        as_host_and_as_device(|| {
            let plain = Tensor::randn([6, 33, 70], FLOAT);
            for input in [plain.shallow_clone(), plain.transpose(0, 2), plain.slice(2, 1, 60, 2)] {
                let input = input.set_requires_grad(true);
                let result = seeded(5, &input, 0.4);
                let mask = seeded(5, &input.detach(), 0.4) / &input.detach();
                assert!(result.allclose(&(&input * &mask), 1e-6, 1e-7, false));
                // A gradient that is laid out otherwise.
                let weights = Tensor::randn(input.size().iter().rev().copied().collect::<Vec<_>>(), FLOAT)
                    .transpose(0, 2)
                    .set_requires_grad(true);
                let gradient =
                    Tensor::run_backward(&[(&result * &weights).sum(None)], &[&input], true, true).remove(0);
                assert!(gradient.allclose(&(&weights * &mask), 1e-6, 1e-7, false));
                let second = Tensor::run_backward(
                    &[(gradient * &input.detach()).sum(None)],
                    &[&weights],
                    false,
                    false,
                );
                assert!(second[0].allclose(&(input.detach() * &mask), 1e-6, 1e-7, false));
            }
        });
    }

    #[test]
    fn a_mask_depends_on_the_seed_alone() {
        let _lock = exclusive();
        let threads = tch::get_num_threads();
        let input = Tensor::randn([100_003], FLOAT);
        let expected = seeded(6, &input, 0.3);
        for count in [1, 2, 3] {
            tch::set_num_threads(count);
            assert!(seeded(6, &input, 0.3).equal(&expected), "{count} threads");
        }
        tch::set_num_threads(threads);
        assert!(!seeded(7, &input, 0.3).equal(&expected));
        let mask = expected.not_equal(0);
        for (kind, tolerance) in [(Kind::Double, 1e-12), (Kind::BFloat16, 8e-3), (Kind::Half, 2e-3)] {
            let converted = input.to_kind(kind);
            let result = seeded(6, &converted, 0.3);
            assert_eq!(result.kind(), kind);
            let kept = result.not_equal(0);
            let scaled = converted.to_kind(Kind::Double) / 0.7 * kept.to_kind(Kind::Double);
            assert!(result.to_kind(Kind::Double).allclose(&scaled, tolerance, 1e-7, false), "{kind:?}");
            // libtorch's own stands in for types without a kernel here.
            assert_eq!(kept.equal(&mask), kind != Kind::Half, "{kind:?}");
        }
        for shape in [&[][..], &[0], &[3, 0], &[1]] {
            assert_eq!(seeded(6, &Tensor::ones(shape, FLOAT), 0.5).size(), shape);
        }
        assert!(seeded(6, &input, 1.0).equal(&input.zeros_like()));
    }

    #[test]
    fn attention_is_the_definition_with_the_mask_on_its_weights() {
        let _lock = exclusive();
        let heads = |length: i64| Tensor::randn([2, 3, length, 8], FLOAT).set_requires_grad(true);
        let [query, key, value] = [heads(5), heads(7), heads(7)];
        // The second sequence's last two keys are padding; its third query sees none at all.
        let seen = Tensor::ones([2, 1, 5, 7], (Kind::Bool, Device::Cpu));
        let _ = seen.narrow(0, 1, 1).narrow(3, 5, 2).fill_(0);
        let _ = seen.narrow(0, 1, 1).narrow(2, 2, 1).fill_(0);
        let learned = Tensor::randn([1, 3, 5, 7], FLOAT).set_requires_grad(true);
        let hidden = seen.logical_not();
        let bias = &learned + Tensor::zeros([2, 1, 5, 7], FLOAT).masked_fill(&hidden, f64::NEG_INFINITY);
        let outward = Tensor::randn([2, 3, 5, 8], FLOAT);
        for (mask, added) in [(None, None), (Some(&seen), None), (Some(&bias), Some(&learned))] {
            manual_seed(8).unwrap();
            let result = attention([&query, &key, &value], mask, 0.25, 0.3).unwrap();
            let dropped = seeded(8, &Tensor::ones([2, 3, 5, 7], FLOAT), 0.25);
            let mut scores = query.matmul(&key.transpose(2, 3)) * 0.3;
            if let Some(added) = added {
                scores += added;
            }
            if mask.is_some() {
                scores = scores.masked_fill(&hidden, -1e30);
            }
            let mut weights = scores.softmax(-1, Kind::Float) * dropped;
            if mask.is_some() {
                weights = weights.masked_fill(&hidden, 0.0);
            }
            let expected = weights.matmul(&value);
            let inputs: Vec<&Tensor> = [&query, &key, &value].into_iter().chain(added).collect();
            let gradients = |output: &Tensor| {
                Tensor::run_backward(&[(output * &outward).sum(None)], &inputs, true, false)
            };
            assert!(result.allclose(&expected, 1e-5, 1e-6, false));
            for (own, right) in gradients(&result).iter().zip(gradients(&expected)) {
                assert!(own.allclose(&right, 1e-5, 1e-6, false));
            }
        }
    }

    #[test]
    fn types_without_a_kernel_here_get_libtorchs_attention() {
        let _lock = exclusive();
        let heads = Tensor::randn([2, 3, 5, 8], FLOAT).to_kind(Kind::Half);
        let seen = Tensor::ones([2, 1, 1, 5], (Kind::Bool, Device::Cpu));
        for mask in [None, Some(&seen)] {
            let result = attention([&heads, &heads, &heads], mask, 0.25, 0.3).unwrap();
            assert_eq!((result.kind(), result.size()), (Kind::Half, vec![2, 3, 5, 8]));
        }
    }

    #[test]
    fn a_network_learns_as_with_libtorchs_own_dropout() {
        let _lock = exclusive();
        let last_losses = |drop: &dyn Fn(&Tensor) -> Tensor| -> Vec<f64> {
            (0..8)
                .map(|seed| {
                    manual_seed(seed).unwrap();
                    let input = Tensor::randn([64, 20], FLOAT);
                    let target = input.narrow(1, 0, 5).sum_dim_intlist(1, true, Kind::Float).tanh();
                    let [inner, outer] = [[20, 64], [64, 1]]
                        .map(|shape| (Tensor::randn(shape, FLOAT) * 0.2).set_requires_grad(true));
                    let mut late = 0.0;
                    for step in 0..300 {
                        let loss = (drop(&input.matmul(&inner).relu()).matmul(&outer) - &target)
                            .square()
                            .mean(Kind::Float);
                        let gradients = Tensor::run_backward(&[&loss], &[&inner, &outer], false, false);
                        tch::no_grad(|| {
                            for (weight, gradient) in [&inner, &outer].into_iter().zip(gradients) {
                                let _ = weight.shallow_clone().subtract_(&(gradient * 0.05));
                            }
                        });
                        if step >= 250 {
                            late += f64::try_from(&loss).unwrap() / 50.0;
                        }
                    }
                    late
                })
                .collect()
        };
        let own = last_losses(&|hidden| dropout(hidden, 0.3).unwrap());
        let libtorch = last_losses(&|hidden| hidden.dropout(0.3, true));
        // The same data and initial weights under each seed: what differs is the masks.
        let differences: Vec<f64> = own.iter().zip(&libtorch).map(|(own, other)| own - other).collect();
        let count = differences.len() as f64;
        let mean = differences.iter().sum::<f64>() / count;
        let variance = differences.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0);
        assert!(mean.abs() < 4.0 * (variance / count).sqrt(), "{own:?} {libtorch:?}");
        assert!(mean.abs() < 0.1 * libtorch.iter().sum::<f64>() / count, "{own:?} {libtorch:?}");
    }
}
