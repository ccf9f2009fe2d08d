//! Optimizer steps over whole groups of parameters, with state that we own.
//!
//! The rules and the order of their operations are those of `torch.optim` 2.13. A group is one call into libtorch's fused
//! kernel where the device has one (SGD, Adam, AdamW, Adagrad), else into its foreach operations.

use super::{TensorList, check, ffi};
use anyhow::{Result, ensure};
use std::ptr;
use tch::{Kind, Tensor};

/// An update rule with all its numbers but the learning rate.
///
/// Numbers are not checked here: a rate or decay that makes no sense makes no sense in the result.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rule {
    /// Stochastic gradient descent, as `torch.optim.SGD`: `buffer = momentum * buffer + (1 - dampening) * gradient`, where the
    /// first value of a buffer is the gradient itself.
    Sgd {
        /// Share of the old buffer; 0 keeps no buffer.
        momentum: f64,
        /// Share of the gradient that does not enter the buffer.
        dampening: f64,
        /// Looks ahead along the buffer.
        nesterov: bool,
        /// Added to the gradient, times the parameter.
        weight_decay: f64,
    },
    /// Adam with weight decay in its L2 form, as `torch.optim.Adam` (Kingma and Ba 2015).
    Adam {
        /// Decay of the means of gradients and of their squares.
        betas: (f64, f64),
        /// Added to the denominator.
        eps: f64,
        /// Added to the gradient, times the parameter.
        weight_decay: f64,
        /// Divides by the largest mean of squares so far (Reddi et al. 2018).
        amsgrad: bool,
    },
    /// Adam with decoupled weight decay, as `torch.optim.AdamW` (Loshchilov and Hutter 2019).
    AdamW {
        /// Decay of the means of gradients and of their squares.
        betas: (f64, f64),
        /// Added to the denominator.
        eps: f64,
        /// Shrinks the parameter by this share, times the learning rate, before the update.
        weight_decay: f64,
        /// Divides by the largest mean of squares so far (Reddi et al. 2018).
        amsgrad: bool,
    },
    /// Adagrad, as `torch.optim.Adagrad` (Duchi et al. 2011).
    Adagrad {
        /// The rate of step t is divided by `1 + (t - 1) * lr_decay`.
        lr_decay: f64,
        /// Added to the denominator.
        eps: f64,
        /// Added to the gradient, times the parameter.
        weight_decay: f64,
        /// Where the sums of squares start.
        initial_accumulator_value: f64,
    },
    /// RMSprop, as `torch.optim.RMSprop` (Hinton 2012; the centred form of Graves 2013).
    RmsProp {
        /// Decay of the mean of squares.
        alpha: f64,
        /// Added to the denominator, outside of the root.
        eps: f64,
        /// Added to the gradient, times the parameter.
        weight_decay: f64,
        /// Share of the old buffer; 0 keeps no buffer.
        momentum: f64,
        /// Divides by the estimated standard deviation instead of the root of the mean of squares.
        centered: bool,
    },
}

/// Most kinds of state that a rule keeps.
const MOST_STATES: usize = 4;

impl Rule {
    /// The names of the state that the rule keeps for each parameter, PyTorch's, in the order of [`initial_state`](Self::initial_state).
    pub fn state_names(&self) -> &'static [&'static str] {
        match *self {
            Rule::Sgd { momentum: 0.0, .. } => &[],
            Rule::Sgd { dampening: 0.0, .. } => &["momentum_buffer"],
            // The counter tells which buffers are new; PyTorch has no buffer there instead.
            Rule::Sgd { .. } => &["momentum_buffer", "step"],
            Rule::Adam { amsgrad: false, .. } | Rule::AdamW { amsgrad: false, .. } => {
                &["step", "exp_avg", "exp_avg_sq"]
            }
            Rule::Adam { amsgrad: true, .. } | Rule::AdamW { amsgrad: true, .. } => {
                &["step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"]
            }
            Rule::Adagrad { .. } => &["step", "sum"],
            Rule::RmsProp { momentum, centered, .. } => match (momentum > 0.0, centered) {
                (false, false) => &["step", "square_avg"],
                (true, false) => &["step", "square_avg", "momentum_buffer"],
                (false, true) => &["step", "square_avg", "grad_avg"],
                (true, true) => &["step", "square_avg", "momentum_buffer", "grad_avg"],
            },
        }
    }

    /// The state before the first step: for each name a list with one tensor for each parameter, on the parameter's device.
    ///
    /// `step` is a float32 scalar that counts the steps in which the parameter had a gradient; everything else has the
    /// parameter's shape, type and memory layout. There is no state besides these tensors: saving them, and copying the saved
    /// values back into a fresh initial state (`copy_`, which keeps type and layout), continues exactly.
    pub fn initial_state(&self, parameters: &TensorList) -> Result<Vec<TensorList>> {
        self.state_names()
            .iter()
            .map(|&name| {
                let tensors =
                    parameters.tensors().iter().map(|parameter| self.initial_tensor(name, parameter));
                TensorList::new(tensors.collect::<Result<Vec<Tensor>>>()?)
            })
            .collect()
    }

    fn initial_tensor(&self, name: &str, parameter: &Tensor) -> Result<Tensor> {
        Ok(match (name, self) {
            ("step", _) => Tensor::f_zeros([0i64; 0], (Kind::Float, parameter.device()))?,
            (_, Rule::Adagrad { initial_accumulator_value, .. }) => {
                parameter.f_full_like(*initial_accumulator_value)?
            }
            _ => parameter.f_zeros_like()?,
        })
    }

    /// Takes one step at learning rate `lr` with the gradients that the parameters hold; those without one are skipped.
    ///
    /// `found_inf` is the flag of loss scaling (see [`unscale`](super::loss_scaling::unscale)), one float32 number on the
    /// parameters' device: when it is not 0 nothing changes, the step counters included, and the host is not asked.
    pub fn step(
        &self,
        parameters: &TensorList,
        state: &[TensorList],
        lr: f64,
        found_inf: Option<&Tensor>,
    ) -> Result<()> {
        let names = self.state_names();
        ensure!(
            state.len() == names.len(),
            "an optimizer that keeps {} kinds of state was given {}",
            names.len(),
            state.len()
        );
        let mut lists = [ptr::null(); MOST_STATES];
        for (pointer, list) in lists.iter_mut().zip(state) {
            *pointer = list.as_ptr();
        }
        let (parameters, lists, count) = (parameters.as_ptr(), lists.as_ptr(), state.len());
        let found_inf = found_inf.map_or(ptr::null(), Tensor::as_ptr);
        // SAFETY: the rules live until the call returns, the lists and found_inf are borrowed, and there are `count` lists.
        check(match *self {
            Rule::Sgd { momentum, dampening, nesterov, weight_decay } => {
                let rule = ffi::Sgd { momentum, dampening, weight_decay, nesterov };
                unsafe { ffi::suite_sgd_step(&rule, parameters, lists, count, lr, found_inf) }
            }
            Rule::Adam { betas: (beta1, beta2), eps, weight_decay, amsgrad } => {
                let rule = ffi::Adam { beta1, beta2, eps, weight_decay, amsgrad, decoupled: false };
                unsafe { ffi::suite_adam_step(&rule, parameters, lists, count, lr, found_inf) }
            }
            Rule::AdamW { betas: (beta1, beta2), eps, weight_decay, amsgrad } => {
                let rule = ffi::Adam { beta1, beta2, eps, weight_decay, amsgrad, decoupled: true };
                unsafe { ffi::suite_adam_step(&rule, parameters, lists, count, lr, found_inf) }
            }
            Rule::Adagrad { lr_decay, eps, weight_decay, .. } => {
                let rule = ffi::Adagrad { lr_decay, eps, weight_decay };
                unsafe { ffi::suite_adagrad_step(&rule, parameters, lists, count, lr, found_inf) }
            }
            Rule::RmsProp { alpha, eps, weight_decay, momentum, centered } => {
                let rule = ffi::RmsProp { alpha, eps, weight_decay, momentum, centered };
                unsafe { ffi::suite_rms_prop_step(&rule, parameters, lists, count, lr, found_inf) }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::gradients;
    use super::super::test_support::{as_host_and_as_device, test_data};
    use super::*;
    use std::collections::HashMap;
    use tch::Device;

    const PLAIN_SGD: Rule = Rule::Sgd { momentum: 0.0, dampening: 0.0, nesterov: false, weight_decay: 0.0 };
    const ADAMW: Rule = Rule::AdamW { betas: (0.9, 0.999), eps: 1e-8, weight_decay: 0.01, amsgrad: false };

    /// One rule of each kind of arithmetic.
    fn rules() -> Vec<Rule> {
        let (betas, eps, weight_decay) = ((0.9, 0.99), 1e-8, 0.01);
        vec![
            PLAIN_SGD,
            Rule::Sgd { momentum: 0.9, dampening: 0.0, nesterov: true, weight_decay },
            Rule::Sgd { momentum: 0.9, dampening: 0.5, nesterov: false, weight_decay },
            Rule::Adam { betas, eps, weight_decay, amsgrad: false },
            Rule::AdamW { betas, eps, weight_decay, amsgrad: true },
            Rule::Adagrad { lr_decay: 0.1, eps: 1e-10, weight_decay, initial_accumulator_value: 0.5 },
            Rule::RmsProp { alpha: 0.99, eps, weight_decay, momentum: 0.9, centered: true },
            Rule::RmsProp { alpha: 0.99, eps, weight_decay: 0.0, momentum: 0.0, centered: false },
        ]
    }

    fn set_gradient(parameter: &Tensor, gradient: &Tensor) {
        gradients::clear(&TensorList::new([parameter]).unwrap()).unwrap();
        (parameter * gradient).sum(parameter.kind()).backward();
    }

    /// Numbers that differ from step to step, of the parameter's shape and layout.
    fn some_gradient(parameter: &Tensor, step: i64) -> Tensor {
        let count = parameter.numel() as i64;
        (Tensor::arange(count, (Kind::Double, Device::Cpu)) * 0.7 + step as f64)
            .sin()
            .reshape(parameter.size())
            .to_kind(parameter.kind())
    }

    fn parameter(shape: &[i64], kind: Kind) -> Tensor {
        let count: i64 = shape.iter().product();
        (Tensor::arange(count, (Kind::Double, Device::Cpu)) * 0.3)
            .cos()
            .reshape(shape)
            .to_kind(kind)
            .set_requires_grad(true)
    }

    fn largest_difference(left: &Tensor, right: &Tensor) -> f64 {
        (left.to_kind(Kind::Double) - right.to_kind(Kind::Double)).abs().max().double_value(&[])
    }

    /// Values of all tensors of a list of lists.
    fn snapshot<'a>(lists: impl IntoIterator<Item = &'a TensorList>) -> Vec<Tensor> {
        lists.into_iter().flat_map(|list| list.tensors()).map(|tensor| tensor.detach().copy()).collect()
    }

    fn number(settings: &serde_json::Value, key: &str, default: f64) -> f64 {
        settings.get(key).map_or(default, |value| value.as_f64().unwrap())
    }

    /// A rule and its rate from the keyword arguments of torch.optim, with PyTorch's defaults.
    fn rule_from(settings: &serde_json::Value) -> (Rule, f64) {
        let class = settings["class"].as_str().unwrap();
        let flag = |key: &str| settings.get(key).is_some_and(|value| value.as_bool().unwrap());
        let betas = settings
            .get("betas")
            .map_or((0.9, 0.999), |betas| (betas[0].as_f64().unwrap(), betas[1].as_f64().unwrap()));
        let weight_decay = number(settings, "weight_decay", if class == "AdamW" { 0.01 } else { 0.0 });
        let eps = number(settings, "eps", if class == "Adagrad" { 1e-10 } else { 1e-8 });
        let momentum = number(settings, "momentum", 0.0);
        let rule = match class {
            "SGD" => Rule::Sgd {
                momentum,
                dampening: number(settings, "dampening", 0.0),
                nesterov: flag("nesterov"),
                weight_decay,
            },
            "Adam" => Rule::Adam { betas, eps, weight_decay, amsgrad: flag("amsgrad") },
            "AdamW" => Rule::AdamW { betas, eps, weight_decay, amsgrad: flag("amsgrad") },
            "Adagrad" => Rule::Adagrad {
                lr_decay: number(settings, "lr_decay", 0.0),
                eps,
                weight_decay,
                initial_accumulator_value: 0.0,
            },
            "RMSprop" => Rule::RmsProp {
                alpha: number(settings, "alpha", 0.99),
                eps,
                weight_decay,
                momentum,
                centered: flag("centered"),
            },
            other => panic!("the reference has an unknown optimizer {other}"),
        };
        (rule, settings["lr"].as_f64().unwrap())
    }

    #[test]
    fn trajectories_are_pytorchs() {
        let (Some(settings), Some(tensors)) =
            (test_data("parity/optimizers.json"), test_data("parity/optimizers.safetensors"))
        else {
            return;
        };
        let settings: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(settings).unwrap()).unwrap();
        let tensors: HashMap<String, Tensor> =
            Tensor::read_safetensors(tensors).unwrap().into_iter().collect();
        let mut names: Vec<&str> = tensors.keys().filter_map(|key| key.strip_prefix("p0.")).collect();
        names.sort_unstable();
        assert!(!names.is_empty());
        for (config, settings) in settings["configs"].as_object().unwrap() {
            let (rule, lr) = rule_from(settings);
            let variables: Vec<Tensor> = names
                .iter()
                .map(|name| tensors[&format!("p0.{name}")].copy().set_requires_grad(true))
                .collect();
            let parameters = TensorList::new(&variables).unwrap();
            let state = rule.initial_state(&parameters).unwrap();
            for step in 1..=5 {
                for (name, variable) in names.iter().zip(&variables) {
                    set_gradient(variable, &tensors[&format!("grad.{step}.{name}")]);
                }
                rule.step(&parameters, &state, lr, None).unwrap();
                for (name, variable) in names.iter().zip(&variables) {
                    let expected = &tensors[&format!("{config}.{step}.{name}")];
                    let scale = expected.abs().max().double_value(&[]);
                    let difference = largest_difference(variable, expected);
                    assert!(
                        difference <= 1e-6 * scale,
                        "{config}, step {step}, {name}: off by {difference:e} at scale {scale}"
                    );
                }
            }
        }
    }

    #[test]
    fn clipping_is_pytorchs() {
        let Some(path) = test_data("parity/optimizers.safetensors") else { return };
        let tensors: HashMap<String, Tensor> = Tensor::read_safetensors(path).unwrap().into_iter().collect();
        let mut names: Vec<&str> = tensors.keys().filter_map(|key| key.strip_prefix("p0.")).collect();
        names.sort_unstable();
        let variables: Vec<Tensor> =
            names.iter().map(|name| tensors[&format!("p0.{name}")].copy().set_requires_grad(true)).collect();
        for (name, variable) in names.iter().zip(&variables) {
            set_gradient(variable, &tensors[&format!("grad.1.{name}")]);
        }
        let parameters = TensorList::new(&variables).unwrap();
        gradients::clip_by_norm(&parameters, &gradients::norm(&parameters).unwrap(), 1.0).unwrap();
        for (name, variable) in names.iter().zip(&variables) {
            let expected = &tensors[&format!("clip_grad_norm_1.{name}")];
            let difference = largest_difference(&variable.grad(), expected);
            assert!(
                difference <= 1e-6 * expected.abs().max().double_value(&[]),
                "{name}: off by {difference:e}"
            );
        }
    }

    #[test]
    fn fused_and_foreach_arithmetic_agree() {
        as_host_and_as_device(|| {
            for rule in rules() {
                // The same numbers twice: as they are, and with a state in another memory layout, which no fused kernel accepts.
                let [fused, foreach] =
                    [parameter(&[4, 3, 2, 5], Kind::Float), parameter(&[4, 3, 2, 5], Kind::Float)];
                let step_all = |variable: &Tensor, relayout: bool| {
                    let parameters = TensorList::new([variable]).unwrap();
                    let mut state = rule.initial_state(&parameters).unwrap();
                    if relayout {
                        for list in &mut state {
                            let tensors: Vec<Tensor> = list
                                .tensors()
                                .iter()
                                .map(|tensor| {
                                    if tensor.dim() == 4 {
                                        super::super::layout::channels_last(tensor).unwrap()
                                    } else {
                                        tensor.shallow_clone()
                                    }
                                })
                                .collect();
                            *list = TensorList::new(tensors).unwrap();
                        }
                    }
                    for step in 0..4 {
                        set_gradient(variable, &some_gradient(variable, step));
                        rule.step(&parameters, &state, 0.01, None).unwrap();
                    }
                };
                step_all(&fused, false);
                step_all(&foreach, true);
                assert!(largest_difference(&fused, &parameter(&[4, 3, 2, 5], Kind::Float)) > 1e-3);
                let difference = largest_difference(&fused, &foreach);
                assert!(difference < 3e-7, "{rule:?}: {difference:e}");
            }
        });
    }

    #[test]
    fn every_layout_and_kind_takes_the_same_step() {
        for rule in rules() {
            let plain = parameter(&[4, 3, 2, 5], Kind::Double);
            let run = |variable: &Tensor| {
                let parameters = TensorList::new([variable]).unwrap();
                let state = rule.initial_state(&parameters).unwrap();
                for step in 0..3 {
                    set_gradient(variable, &some_gradient(&plain, step).to_kind(variable.kind()));
                    rule.step(&parameters, &state, 0.01, None).unwrap();
                }
            };
            let channels_last =
                super::super::layout::channels_last(&plain.detach()).unwrap().set_requires_grad(true);
            // Every second column of a larger tensor: memory with holes, which fused kernels would overrun.
            let wide = Tensor::zeros([4, 3, 2, 10], (Kind::Double, Device::Cpu));
            let strided = wide.slice(3, None, None, 2).detach();
            strided.shallow_clone().copy_(&plain.detach());
            let strided = strided.set_requires_grad(true);
            let single = plain.detach().to_kind(Kind::Float).set_requires_grad(true);
            let half = plain.detach().to_kind(Kind::BFloat16).set_requires_grad(true);
            for variable in [&plain, &channels_last, &strided, &single, &half] {
                run(variable);
            }
            assert!(largest_difference(&plain, &channels_last) < 1e-12, "{rule:?}");
            assert!(largest_difference(&plain, &strided) < 1e-7, "{rule:?}");
            assert_eq!(
                wide.slice(3, 1, None, 2).abs().max().double_value(&[]),
                0.0,
                "{rule:?} wrote between the elements"
            );
            assert!(largest_difference(&plain, &single) < 2e-6, "{rule:?}");
            assert!(largest_difference(&plain, &half) < 0.05, "{rule:?}");
        }
    }

    #[test]
    fn a_group_takes_the_steps_of_its_parameters() {
        // Some are shared out among threads, some dealt out whole, and the small ones alone are too few to deal out.
        for sizes in [&[3, 40_000, 20_000, 17, 33_000, 25_000, 1, 30_000][..], &[5, 64, 9], &[70_000]] {
            for rule in rules() {
                let variables =
                    || sizes.iter().map(|&size| parameter(&[size], Kind::Double)).collect::<Vec<_>>();
                let run = |variables: &[Tensor]| {
                    let parameters = TensorList::new(variables).unwrap();
                    let state = rule.initial_state(&parameters).unwrap();
                    for step in 0..3 {
                        for variable in variables {
                            set_gradient(variable, &some_gradient(variable, step));
                        }
                        rule.step(&parameters, &state, 0.01, None).unwrap();
                    }
                };
                let (together, alone) = (variables(), variables());
                run(&together);
                for variable in &alone {
                    run(std::slice::from_ref(variable));
                }
                for (left, right) in together.iter().zip(&alone) {
                    assert!(largest_difference(left, right) < 1e-14, "{rule:?}, {:?}", left.size());
                }
            }
        }
    }

    #[test]
    fn a_step_leaves_the_number_of_threads_alone() {
        let _lock = super::super::test_support::exclusive();
        let threads = tch::get_num_threads();
        let variable = parameter(&[8], Kind::Float);
        let parameters = TensorList::new([&variable]).unwrap();
        let state = ADAMW.initial_state(&parameters).unwrap();
        set_gradient(&variable, &some_gradient(&variable, 0));
        ADAMW.step(&parameters, &state, 0.1, None).unwrap();
        assert_eq!(tch::get_num_threads(), threads);
    }

    #[test]
    fn a_parameter_that_gets_its_gradient_later_starts_later() {
        as_host_and_as_device(|| {
            for rule in rules() {
                let run = |variables: &[Tensor], skipped_steps: i64| {
                    let parameters = TensorList::new(variables).unwrap();
                    let state = rule.initial_state(&parameters).unwrap();
                    for step in -skipped_steps..3 {
                        for (index, variable) in variables.iter().enumerate() {
                            gradients::clear(&TensorList::new([variable]).unwrap()).unwrap();
                            if index == 0 || step >= 0 {
                                set_gradient(variable, &some_gradient(variable, step));
                            }
                        }
                        rule.step(&parameters, &state, 0.01, None).unwrap();
                    }
                };
                let late = [parameter(&[17], Kind::Float), parameter(&[3, 2], Kind::Float)];
                let alone = [parameter(&[17], Kind::Float), parameter(&[3, 2], Kind::Float)];
                run(&late, 2);
                run(&alone, 0);
                assert!(late[1].equal(&alone[1]), "{rule:?}");
                assert!(!late[0].equal(&alone[0]), "{rule:?}");
            }
        });
    }

    #[test]
    fn a_step_that_overflowed_changes_nothing() {
        as_host_and_as_device(|| {
            for rule in rules() {
                let variable = parameter(&[5, 7], Kind::Float);
                let parameters = TensorList::new([&variable]).unwrap();
                let state = rule.initial_state(&parameters).unwrap();
                let lists = || snapshot(std::iter::once(&parameters).chain(&state));
                let (calm, overflow) = (Tensor::from_slice(&[0.0f32]), Tensor::from_slice(&[1.0f32]));
                // Before the first step as well as later: the first one is special for momentum.
                for step in 0..2 {
                    let before = lists();
                    set_gradient(&variable, &(some_gradient(&variable, step) * f64::INFINITY));
                    rule.step(&parameters, &state, 0.01, Some(&overflow)).unwrap();
                    assert!(before.iter().zip(lists()).all(|(old, new)| old.equal(&new)), "{rule:?}");
                    set_gradient(&variable, &some_gradient(&variable, step));
                    rule.step(&parameters, &state, 0.01, Some(&calm)).unwrap();
                    assert!(before.iter().zip(lists()).all(|(old, new)| !old.equal(&new)), "{rule:?}");
                }
            }
        });
    }

    #[test]
    fn copied_state_continues_to_the_bit() {
        for rule in rules() {
            let run = |interrupted: bool| {
                let variable = parameter(&[9, 33], Kind::Float);
                let parameters = TensorList::new([&variable]).unwrap();
                let mut state = rule.initial_state(&parameters).unwrap();
                for step in 0..6 {
                    if interrupted && step == 3 {
                        let saved = snapshot(&state);
                        state = rule.initial_state(&parameters).unwrap();
                        for (fresh, saved) in state.iter().flat_map(|list| list.tensors()).zip(&saved) {
                            fresh.shallow_clone().copy_(saved);
                        }
                    }
                    set_gradient(&variable, &some_gradient(&variable, step));
                    rule.step(&parameters, &state, 0.01, None).unwrap();
                }
                variable
            };
            assert!(run(true).equal(&run(false)), "{rule:?}");
        }
    }

    #[test]
    fn wrong_state_is_refused() {
        let variable = parameter(&[2], Kind::Float);
        let parameters = TensorList::new([&variable]).unwrap();
        let message = ADAMW.step(&parameters, &[], 0.1, None).unwrap_err().to_string();
        assert_eq!(message, "an optimizer that keeps 3 kinds of state was given 0");
        let two = TensorList::new([&variable, &variable]).unwrap();
        let state = ADAMW.initial_state(&parameters).unwrap();
        set_gradient(&variable, &some_gradient(&variable, 0));
        assert!(
            ADAMW
                .step(&two, &state, 0.1, None)
                .unwrap_err()
                .to_string()
                .contains("state for 1 of 2 parameters")
        );
    }
}
