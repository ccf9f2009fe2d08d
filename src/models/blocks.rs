//! What several networks are built of; the convolutional parts have the names of torchvision's `ops/misc.py`.

use anyhow::Result;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::Scope;
use super::layers::{BatchNorm2d, Conv2d, ConvConfig, NormConfig};
use crate::native;

/// What follows a linear layer or a normalisation; in configurations by the names of transformers' `ACT2FN`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// Nothing.
    #[serde(alias = "linear")]
    Identity,
    /// max(x, 0).
    Relu,
    /// x · Φ(x). Hendrycks and Gimpel, "Gaussian error linear units", 2016.
    #[serde(alias = "gelu_python")]
    Gelu,
    /// The same with tanh for Φ, as in GPT-2.
    #[serde(rename = "gelu_new", alias = "gelu_pytorch_tanh", alias = "gelu_fast")]
    GeluTanh,
    /// The hyperbolic tangent.
    Tanh,
    /// min(max(x, 0), 6).
    Relu6,
    /// x · σ(x), also called swish.
    #[serde(alias = "swish")]
    Silu,
    /// x · ReLU6(x + 3) / 6.
    Hardswish,
}

impl Activation {
    /// May overwrite its input.
    pub fn apply(self, mut input: Tensor) -> Tensor {
        match self {
            Self::Identity => input,
            Self::Relu => input.relu_(),
            Self::Gelu => input.gelu("none"),
            Self::GeluTanh => input.gelu("tanh"),
            Self::Tanh => input.tanh(),
            Self::Relu6 => input.relu6_(),
            Self::Silu => input.silu(),
            Self::Hardswish => input.hardswish(),
        }
    }
}

/// A convolution, the normalisation of what it gives, and an activation: one operation in inference, where weights can be packed for it.
pub fn conv_norm(
    conv: &Conv2d,
    norm: &BatchNorm2d,
    activation: Activation,
    input: &Tensor,
    train: bool,
) -> Tensor {
    let relu = activation == Activation::Relu;
    match if train { None } else { conv.forward_normed(input, norm, relu) } {
        Some(output) if relu => output,
        Some(output) => activation.apply(output),
        None => activation.apply(norm.forward(&conv.forward(input), train)),
    }
}

/// `Conv2dNormActivation`: a convolution without bias (`0`), batch normalisation (`1`) and an activation.
#[derive(Debug)]
pub struct ConvNorm {
    conv: Conv2d,
    norm: BatchNorm2d,
    activation: Activation,
}

/// How a [`ConvNorm`] is made.
#[derive(Clone, Copy, Debug)]
pub struct ConvNormConfig {
    /// Side of the kernel, in pixels; the image is padded by half of it.
    pub kernel: i64,
    /// Step between positions, in pixels.
    pub stride: i64,
    /// Groups of channels that do not see each other.
    pub groups: i64,
    /// Of the batch normalisation.
    pub norm: NormConfig,
    /// At the end.
    pub activation: Activation,
}

impl ConvNorm {
    /// Makes the two layers under `0` and `1`.
    pub fn new(scope: &Scope, inputs: i64, outputs: i64, config: ConvNormConfig) -> Result<Self> {
        let ConvNormConfig { kernel, stride, groups, norm, activation } = config;
        let convolution =
            ConvConfig { stride, padding: (kernel - 1) / 2, groups, bias: false, ..Default::default() };
        Ok(Self {
            conv: Conv2d::new(&scope.child(0), inputs, outputs, kernel, convolution)?,
            norm: BatchNorm2d::with(&scope.child(1), outputs, norm)?,
            activation,
        })
    }

    /// `[batch, inputs, height, width]` to `[batch, outputs, height / stride, width / stride]`.
    pub fn forward(&self, input: &Tensor, train: bool) -> Tensor {
        conv_norm(&self.conv, &self.norm, self.activation, input, train)
    }
}

/// `SqueezeExcitation`: each channel scaled by what two 1 × 1 convolutions make of the means of all channels. Hu, Shen, Sun,
/// "Squeeze-and-excitation networks", 2017.
#[derive(Debug)]
pub struct SqueezeExcitation {
    fc1: Conv2d,
    fc2: Conv2d,
    activation: Activation,
    gate: Gate,
}

/// What makes a factor of a score.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// σ(x).
    Sigmoid,
    /// ReLU6(x + 3) / 6.
    Hardsigmoid,
}

impl SqueezeExcitation {
    /// From `channels` to `squeezed` means and back.
    pub fn new(
        scope: &Scope,
        channels: i64,
        squeezed: i64,
        activation: Activation,
        gate: Gate,
    ) -> Result<Self> {
        Ok(Self {
            fc1: Conv2d::new(&scope.child("fc1"), channels, squeezed, 1, ConvConfig::default())?,
            fc2: Conv2d::new(&scope.child("fc2"), squeezed, channels, 1, ConvConfig::default())?,
            activation,
            gate,
        })
    }

    /// `[batch, channels, height, width]`, scaled.
    pub fn forward(&self, input: &Tensor) -> Tensor {
        let means = input.adaptive_avg_pool2d([1, 1]); // [batch, channels, 1, 1]
        let scores = self.fc2.forward(&self.activation.apply(self.fc1.forward(&means)));
        let factors = match self.gate {
            Gate::Sigmoid => scores.sigmoid(),
            Gate::Hardsigmoid => scores.hardsigmoid(),
        };
        factors * input
    }
}

/// Stochastic depth: in training a residual branch is left out for a sample with a given probability, and scaled up otherwise so that its
/// expectation stays. Huang et al., "Deep networks with stochastic depth", 2016; torchvision's `StochasticDepth(mode="row")`.
pub fn stochastic_depth(branch: Tensor, probability: f64, train: bool) -> Tensor {
    if !train || probability == 0.0 {
        return branch;
    }
    let survival = 1.0 - probability;
    let mut shape = vec![1; branch.dim()];
    shape[0] = branch.size()[0];
    let kept = Tensor::empty(shape, (branch.kind(), branch.device())).bernoulli_float_(survival);
    branch * (kept / survival)
}

/// The multiple of 8 nearest to a scaled number of channels, and never below 90 % of it: torchvision's `_make_divisible`.
pub fn divisible_by_8(channels: f64) -> i64 {
    let rounded = (((channels + 4.0) / 8.0).floor() as i64 * 8).max(8);
    if (rounded as f64) < 0.9 * channels { rounded + 8 } else { rounded }
}

/// `nn.Dropout`; does nothing in evaluation.
pub fn dropout(input: Tensor, probability: f64, train: bool) -> Tensor {
    match train && probability > 0.0 {
        true => native::dropout::dropout(&input, probability).expect("dropout"),
        false => input,
    }
}
