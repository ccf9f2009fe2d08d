//! Layers with `torch.nn`'s parameter names, initial values and order of random draws: a model made here after `manual_seed(s)` has the
//! very weights that the same model has in Python after `torch.manual_seed(s)`.
//!
//! Initial values follow PyTorch 2.13: `nn.Linear` and `nn.Conv2d` draw weight and bias uniformly from ±1/√fan_in, written there as
//! Kaiming-uniform with a = √5; `nn.BatchNorm2d` starts at weight 1, bias 0.

use anyhow::Result;
use tch::{Device, Kind, Tensor};

use super::summary::record;
use super::{Parameters, Scope};

// Initial values are drawn on the CPU, so that they are the same on every device.
const CPU_FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);

/// Draws uniformly from ±bound, from libtorch's default CPU generator.
fn uniform(shape: &[i64], bound: f64) -> Result<Tensor> {
    Ok(Tensor::f_empty(shape, CPU_FLOAT)?.f_uniform_(-bound, bound)?)
}

/// `torch.nn.init.kaiming_uniform_(a=math.sqrt(5))`, with the roundings of its own arithmetic so that the values agree to the last bit.
fn kaiming_uniform(shape: &[i64], fan_in: i64) -> Result<Tensor> {
    let negative_slope = 5f64.sqrt();
    let gain = (2.0 / (1.0 + negative_slope * negative_slope)).sqrt();
    let deviation = gain / (fan_in as f64).sqrt();
    uniform(shape, 3f64.sqrt() * deviation)
}

/// The uniform bias of `nn.Linear` and `nn.Conv2d`.
fn uniform_bias(features: i64, fan_in: i64) -> Result<Tensor> {
    uniform(&[features], 1.0 / (fan_in as f64).sqrt())
}

/// `nn.Linear`: y = x Wᵀ + b on the last dimension.
#[derive(Debug)]
pub struct Linear {
    name: String,
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// `weight` is `[outputs, inputs]`, `bias` `[outputs]`.
    pub fn new(scope: &Scope, inputs: i64, outputs: i64) -> Result<Self> {
        let weight = scope.parameter("weight", kaiming_uniform(&[outputs, inputs], inputs)?)?;
        let bias = scope.parameter("bias", uniform_bias(outputs, inputs)?)?;
        Ok(Self { name: scope.name().to_owned(), weight, bias: Some(bias) })
    }

    /// `nn.Linear(bias=False)`.
    pub fn without_bias(scope: &Scope, inputs: i64, outputs: i64) -> Result<Self> {
        let weight = scope.parameter("weight", kaiming_uniform(&[outputs, inputs], inputs)?)?;
        Ok(Self { name: scope.name().to_owned(), weight, bias: None })
    }

    /// `[…, inputs]` to `[…, outputs]`.
    pub fn forward(&self, input: &Tensor) -> Tensor {
        let output = input.linear(&self.weight, self.bias.as_ref());
        record(&self.name, "Linear", &output, &[Some(&self.weight), self.bias.as_ref()], || {
            output.numel() * self.inputs()
        });
        output
    }

    fn inputs(&self) -> usize {
        self.weight.size()[1] as usize
    }
}

/// How a convolution moves over its input.
#[derive(Clone, Copy, Debug)]
pub struct ConvConfig {
    /// Step between positions, in pixels, both directions.
    pub stride: i64,
    /// Zeros added on each side, in pixels.
    pub padding: i64,
    /// Distance between the taps of the kernel, in pixels.
    pub dilation: i64,
    /// Groups of channels that do not see each other.
    pub groups: i64,
    /// Whether there is a bias; networks with batch normalisation do without.
    pub bias: bool,
}

impl Default for ConvConfig {
    fn default() -> Self {
        Self { stride: 1, padding: 0, dilation: 1, groups: 1, bias: true }
    }
}

/// `nn.Conv2d` with a square kernel.
#[derive(Debug)]
pub struct Conv2d {
    name: String,
    weight: Tensor,
    bias: Option<Tensor>,
    config: ConvConfig,
}

impl Conv2d {
    /// `weight` is `[outputs, inputs / groups, kernel, kernel]`, `bias` `[outputs]`.
    pub fn new(scope: &Scope, inputs: i64, outputs: i64, kernel: i64, config: ConvConfig) -> Result<Self> {
        let fan_in = inputs / config.groups * kernel * kernel;
        let shape = [outputs, inputs / config.groups, kernel, kernel];
        let weight = scope.parameter("weight", kaiming_uniform(&shape, fan_in)?)?;
        let bias = match config.bias {
            true => Some(scope.parameter("bias", uniform_bias(outputs, fan_in)?)?),
            false => None,
        };
        Ok(Self { name: scope.name().to_owned(), weight, bias, config })
    }

    /// `[batch, inputs, height, width]` to `[batch, outputs, height', width']`.
    pub fn forward(&self, input: &Tensor) -> Tensor {
        let ConvConfig { stride, padding, dilation, groups, .. } = self.config;
        let output = input.conv2d(
            &self.weight,
            self.bias.as_ref(),
            [stride, stride],
            [padding, padding],
            [dilation, dilation],
            groups,
        );
        record(&self.name, "Conv2d", &output, &[Some(&self.weight), self.bias.as_ref()], || {
            output.numel() * (self.weight.numel() / self.weight.size()[0] as usize)
        });
        output
    }
}

/// `nn.BatchNorm2d`: each channel normalised by the batch's statistics in training, by running ones otherwise.
#[derive(Debug)]
pub struct BatchNorm2d {
    name: String,
    kind: &'static str,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    num_batches_tracked: Tensor,
    momentum: f64,
    eps: f64,
}

impl BatchNorm2d {
    /// PyTorch's defaults: momentum 0.1, eps 1e-5. All tensors are `[channels]` but the counter.
    pub fn new(scope: &Scope, channels: i64) -> Result<Self> {
        Ok(Self {
            name: scope.name().to_owned(),
            kind: "BatchNorm2d",
            weight: scope.parameter("weight", Tensor::f_ones([channels], CPU_FLOAT)?)?,
            bias: scope.parameter("bias", Tensor::f_zeros([channels], CPU_FLOAT)?)?,
            running_mean: scope.buffer("running_mean", Tensor::f_zeros([channels], CPU_FLOAT)?)?,
            running_var: scope.buffer("running_var", Tensor::f_ones([channels], CPU_FLOAT)?)?,
            num_batches_tracked: scope
                .buffer("num_batches_tracked", Tensor::f_zeros([0i64; 0], (Kind::Int64, CPU_FLOAT.1))?)?,
            momentum: 0.1,
            eps: 1e-5,
        })
    }

    /// `nn.BatchNorm1d`: the same for rows `[batch, channels]`.
    pub fn of_rows(scope: &Scope, channels: i64) -> Result<Self> {
        Ok(Self { kind: "BatchNorm1d", ..Self::new(scope, channels)? })
    }

    /// `[batch, channels, height, width]`; changes the running statistics when training.
    pub fn forward(&self, input: &Tensor, train: bool) -> Tensor {
        if train {
            let _ = self.num_batches_tracked.shallow_clone().g_add_scalar_(1);
        }
        let output = input.batch_norm(
            Some(&self.weight),
            Some(&self.bias),
            Some(&self.running_mean),
            Some(&self.running_var),
            train,
            self.momentum,
            self.eps,
            true,
        );
        record(&self.name, self.kind, &output, &[Some(&self.weight), Some(&self.bias)], || 0);
        output
    }
}

/// Redraws every convolution's weight as `nn.init.kaiming_normal_(mode="fan_out", nonlinearity="relu")` (or by its fan-in), in the order in which
/// the model made them, as the loops over `self.modules()` in PyTorch's ResNets do.
pub fn redraw_convolutions(parameters: &Parameters, fan: Fan) -> Result<()> {
    let _guard = tch::no_grad_guard();
    for entry in parameters.entries() {
        let shape = entry.tensor.size();
        if let [outputs, inputs, height, width] = shape[..] {
            let fan = match fan {
                Fan::Out => outputs,
                Fan::In => inputs,
            } * height
                * width;
            let deviation = 2f64.sqrt() / (fan as f64).sqrt();
            let drawn = Tensor::f_empty(&shape, CPU_FLOAT)?.f_normal_(0.0, deviation)?;
            entry.tensor.shallow_clone().f_copy_(&drawn)?;
        }
    }
    Ok(())
}

/// Which side of a convolution its initial variance is fitted to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fan {
    /// Keeps the variance of activations.
    In,
    /// Keeps the variance of gradients.
    Out,
}

/// 2 × 2 (or `size` × `size`) maximum pooling with the stride of its size, `nn.MaxPool2d(size)`.
pub fn max_pool(input: &Tensor, size: i64) -> Tensor {
    input.max_pool2d([size, size], [size, size], [0, 0], [1, 1], false)
}
