//! Layers with `torch.nn`'s parameter names, initial values and order of random draws: a model made here after `manual_seed(s)` has the
//! very weights that the same model has in Python after `torch.manual_seed(s)`.
//!
//! Initial values follow PyTorch 2.13: `nn.Linear` and `nn.Conv2d` draw weight and bias uniformly from ±1/√fan_in, written there as
//! Kaiming-uniform with a = √5; `nn.BatchNorm2d` starts at weight 1, bias 0.

use anyhow::Result;
use tch::{Kind, Tensor};

use super::Scope;
use super::init::Init;
use super::lora::Adapter;
use super::summary::record;
use crate::native::distributed;
use crate::native::inference::{self, Convolution, Norm, packed_convolution, packed_linear};

/// An input in double precision for a layer that is: what comes from the data is float32.
fn as_wide_as(weight: &Tensor, input: &Tensor) -> Tensor {
    match (weight.kind(), input.kind()) {
        (Kind::Double, Kind::Float) => input.to_kind(Kind::Double),
        _ => input.shallow_clone(),
    }
}

/// `F.linear`: y = x Wᵀ + b on the last dimension. In inference the weight may be packed and kept so: it is one of the model's own, or a part of one.
pub fn forward_linear(input: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
    let packed = packed_linear(input, weight, bias).expect("a linear layer");
    packed.unwrap_or_else(|| input.linear(weight, bias))
}

/// `nn.Linear`: y = x Wᵀ + b on the last dimension.
#[derive(Debug)]
pub struct Linear {
    name: String,
    weight: Tensor,
    bias: Option<Tensor>,
    adapter: Option<Adapter>,
}

impl Linear {
    /// `weight` is `[outputs, inputs]`, `bias` `[outputs]`.
    pub fn new(scope: &Scope, inputs: i64, outputs: i64) -> Result<Self> {
        let shape = [outputs, inputs];
        let weight = scope.parameter("weight", &shape, Init::default_weight(&shape))?;
        let bias = scope.parameter("bias", &[outputs], Init::default_bias(&shape))?;
        Self::of(scope, weight, Some(bias))
    }

    /// `nn.Linear(bias=False)`.
    pub fn without_bias(scope: &Scope, inputs: i64, outputs: i64) -> Result<Self> {
        let shape = [outputs, inputs];
        let weight = scope.parameter("weight", &shape, Init::default_weight(&shape))?;
        Self::of(scope, weight, None)
    }

    fn of(scope: &Scope, weight: Tensor, bias: Option<Tensor>) -> Result<Self> {
        let size = weight.size();
        let adapter = Adapter::of_layer(scope, size[1], size[0])?;
        Ok(Self { name: scope.name().to_owned(), weight, bias, adapter })
    }

    /// Draws the weight anew; `scope` is any scope of its model.
    pub fn redraw_weight(&self, scope: &Scope, init: Init) -> Result<()> {
        scope.parameters().redraw_tensor(&self.weight, init)
    }

    /// Draws the bias anew, where there is one.
    pub fn redraw_bias(&self, scope: &Scope, init: Init) -> Result<()> {
        self.bias.as_ref().map_or(Ok(()), |bias| scope.parameters().redraw_tensor(bias, init))
    }

    /// `[outputs, inputs]`
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// `[outputs]`, where there is one.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// Whether it is trained, that is, not frozen.
    pub fn is_trained(&self) -> bool {
        self.weight.requires_grad()
    }

    /// `[…, inputs]` to `[…, outputs]`.
    pub fn forward(&self, input: &Tensor) -> Tensor {
        let input = as_wide_as(&self.weight, input);
        let output = forward_linear(&input, &self.weight, self.bias.as_ref());
        let output = match &self.adapter {
            Some(adapter) => output + adapter.forward(&input),
            None => output,
        };
        record(&self.name, "Linear", &output, &[Some(&self.weight), self.bias.as_ref()], || {
            output.numel() * self.inputs()
        });
        output
    }

    fn inputs(&self) -> usize {
        self.weight.size()[1] as usize
    }
}

/// `nn.Embedding`: a row of a table for each number.
#[derive(Debug)]
pub struct Embedding {
    name: String,
    weight: Tensor,
    padding: Option<i64>,
}

impl Embedding {
    /// `weight` is `[count, width]`, drawn from a normal distribution. The row `padding` begins as zeros and does not learn.
    pub fn new(scope: &Scope, count: i64, width: i64, padding: Option<i64>) -> Result<Self> {
        let weight = scope.parameter("weight", &[count, width], Init::Normal { deviation: 1.0 })?;
        let embedding = Self { name: scope.name().to_owned(), weight, padding };
        embedding.clear_padding()?;
        Ok(embedding)
    }

    /// Draws the table anew; `scope` is any scope of its model.
    pub fn redraw(&self, scope: &Scope, init: Init) -> Result<()> {
        scope.parameters().redraw_tensor(&self.weight, init)?;
        self.clear_padding()
    }

    fn clear_padding(&self) -> Result<()> {
        if let Some(row) = self.padding {
            let _guard = tch::no_grad_guard();
            let _ = self.weight.f_select(0, row)?.f_zero_()?;
        }
        Ok(())
    }

    /// The table, `[count, width]`.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// `[…]` int64 numbers to `[…, width]`.
    pub fn forward(&self, numbers: &Tensor) -> Tensor {
        let output = Tensor::embedding(&self.weight, numbers, self.padding.unwrap_or(-1), false, false);
        record(&self.name, "Embedding", &output, &[Some(&self.weight)], || 0);
        output
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

/// `nn.Conv2d`.
#[derive(Debug)]
pub struct Conv2d {
    name: String,
    weight: Tensor,
    bias: Option<Tensor>,
    config: ConvConfig,
    /// Zeros added above and below, left and right, in pixels.
    padding: [i64; 2],
}

impl Conv2d {
    /// A square kernel: `weight` is `[outputs, inputs / groups, kernel, kernel]`, `bias` `[outputs]`.
    pub fn new(scope: &Scope, inputs: i64, outputs: i64, kernel: i64, config: ConvConfig) -> Result<Self> {
        Self::with(scope, inputs, outputs, [kernel, kernel], config, [config.padding; 2])
    }

    /// A kernel of odd height and width, moved pixel by pixel and padded so that the image keeps its size, without bias.
    pub fn rectangular(scope: &Scope, inputs: i64, outputs: i64, kernel: [i64; 2]) -> Result<Self> {
        let config = ConvConfig { bias: false, ..Default::default() };
        Self::with(scope, inputs, outputs, kernel, config, kernel.map(|side| side / 2))
    }

    fn with(
        scope: &Scope,
        inputs: i64,
        outputs: i64,
        [height, width]: [i64; 2],
        config: ConvConfig,
        padding: [i64; 2],
    ) -> Result<Self> {
        let shape = [outputs, inputs / config.groups, height, width];
        let weight = scope.parameter("weight", &shape, Init::default_weight(&shape))?;
        let bias = match config.bias {
            true => Some(scope.parameter("bias", &[outputs], Init::default_bias(&shape))?),
            false => None,
        };
        Ok(Self { name: scope.name().to_owned(), weight, bias, config, padding })
    }

    /// Draws weight and bias anew; `scope` is any scope of its model.
    pub fn redraw(&self, scope: &Scope, weight: Init, bias: Init) -> Result<()> {
        scope.parameters().redraw_tensor(&self.weight, weight)?;
        self.bias.as_ref().map_or(Ok(()), |tensor| scope.parameters().redraw_tensor(tensor, bias))
    }

    /// The kernel's height and width, in pixels.
    pub fn kernel(&self) -> [i64; 2] {
        let shape = self.weight.size();
        [shape[2], shape[3]]
    }

    /// `[batch, inputs, height, width]` to `[batch, outputs, height', width']`.
    pub fn forward(&self, input: &Tensor) -> Tensor {
        let ConvConfig { stride, dilation, groups, .. } = self.config;
        let output = self.packed(input, None, false).expect("a convolution").unwrap_or_else(|| {
            as_wide_as(&self.weight, input).conv2d(
                &self.weight,
                self.bias.as_ref(),
                [stride, stride],
                self.padding,
                [dilation, dilation],
                groups,
            )
        });
        self.tell(&output);
        output
    }

    /// The same and max(x, 0), as one operation in inference, where weights can be packed for it.
    pub fn forward_relu(&self, input: &Tensor) -> Tensor {
        match self.packed(input, None, true).expect("a convolution") {
            Some(output) => {
                self.tell(&output);
                output
            }
            None => self.forward(input).relu_(),
        }
    }

    /// The same, and a normalisation in evaluation, and with `relu` max(x, 0), as one operation; none where weights cannot be packed.
    pub fn forward_normed(&self, input: &Tensor, norm: &BatchNorm2d, relu: bool) -> Option<Tensor> {
        let output = self.packed(input, Some(norm), relu).expect("a convolution")?;
        self.tell(&output);
        norm.tell(&output);
        Some(output)
    }

    fn packed(&self, input: &Tensor, norm: Option<&BatchNorm2d>, relu: bool) -> Result<Option<Tensor>> {
        let ConvConfig { stride, dilation, groups, .. } = self.config;
        let convolution = Convolution {
            weight: &self.weight,
            bias: self.bias.as_ref(),
            stride,
            padding: self.padding,
            dilation,
            groups,
        };
        let norm = norm.map(|norm| Norm {
            weight: &norm.weight,
            bias: &norm.bias,
            running_mean: &norm.running_mean,
            running_var: &norm.running_var,
            eps: norm.config.eps,
        });
        packed_convolution(input, convolution, norm, relu)
    }

    fn tell(&self, output: &Tensor) {
        record(&self.name, "Conv2d", output, &[Some(&self.weight), self.bias.as_ref()], || {
            output.numel() * (self.weight.numel() / self.weight.size()[0] as usize)
        });
    }
}

/// How a batch normalisation computes.
#[derive(Clone, Copy, Debug)]
pub struct NormConfig {
    /// Added to the variance.
    pub eps: f64,
    /// Share of a batch's statistics in the running ones.
    pub momentum: f64,
}

impl Default for NormConfig {
    fn default() -> Self {
        Self { eps: 1e-5, momentum: 0.1 }
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
    config: NormConfig,
}

impl BatchNorm2d {
    /// PyTorch's defaults: momentum 0.1, eps 1e-5. All tensors are `[channels]` but the counter.
    pub fn new(scope: &Scope, channels: i64) -> Result<Self> {
        Self::with(scope, channels, NormConfig::default())
    }

    /// With another momentum and eps.
    pub fn with(scope: &Scope, channels: i64, config: NormConfig) -> Result<Self> {
        Ok(Self {
            name: scope.name().to_owned(),
            kind: "BatchNorm2d",
            weight: scope.parameter("weight", &[channels], Init::ONES)?,
            bias: scope.parameter("bias", &[channels], Init::ZEROS)?,
            running_mean: scope.buffer("running_mean", Init::ZEROS.draw(&[channels])?)?,
            running_var: scope.buffer("running_var", Init::ONES.draw(&[channels])?)?,
            num_batches_tracked: scope.buffer("num_batches_tracked", Tensor::from(0i64))?,
            config,
        })
    }

    /// `nn.BatchNorm1d`: the same for rows `[batch, channels]`.
    pub fn of_rows(scope: &Scope, channels: i64) -> Result<Self> {
        Ok(Self { kind: "BatchNorm1d", ..Self::new(scope, channels)? })
    }

    /// `[batch, channels, height, width]`; changes the running statistics when training. A frozen layer keeps to the statistics it has.
    pub fn forward(&self, input: &Tensor, train: bool) -> Tensor {
        let train = train && self.weight.requires_grad();
        if train {
            let _ = self.num_batches_tracked.shallow_clone().g_add_scalar_(1);
        }
        let output = if train && distributed::synchronises_batch_norm() {
            let NormConfig { eps, momentum } = self.config;
            let (weights, running) = ([&self.weight, &self.bias], [&self.running_mean, &self.running_var]);
            distributed::sync_batch_norm(input, weights, running, momentum, eps)
                .expect("normalising over all processes")
        } else {
            input.batch_norm(
                Some(&self.weight),
                Some(&self.bias),
                Some(&self.running_mean),
                Some(&self.running_var),
                train,
                self.config.momentum,
                self.config.eps,
                true,
            )
        };
        self.tell(&output);
        output
    }

    fn tell(&self, output: &Tensor) {
        record(&self.name, self.kind, output, &[Some(&self.weight), Some(&self.bias)], || 0);
    }
}

/// `nn.LayerNorm` over the last dimension.
#[derive(Debug)]
pub struct LayerNorm {
    name: String,
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    /// `weight` and `bias` are `[features]`.
    pub fn new(scope: &Scope, features: i64, eps: f64) -> Result<Self> {
        Ok(Self {
            name: scope.name().to_owned(),
            weight: scope.parameter("weight", &[features], Init::ONES)?,
            bias: scope.parameter("bias", &[features], Init::ZEROS)?,
            eps,
        })
    }

    /// `[…, features]`, normalised over the features.
    pub fn forward(&self, input: &Tensor) -> Tensor {
        let output =
            input.layer_norm(self.weight.size(), Some(&self.weight), Some(&self.bias), self.eps, true);
        record(&self.name, "LayerNorm", &output, &[Some(&self.weight), Some(&self.bias)], || 0);
        output
    }

    /// `[batch, channels, height, width]`, normalised over the channels of each pixel.
    pub fn forward_channels(&self, input: &Tensor) -> Tensor {
        self.forward(&input.permute([0, 2, 3, 1])).permute([0, 3, 1, 2])
    }
}

/// `T5LayerNorm`, `LlamaRMSNorm`: the last dimension divided by its root mean square. Zhang and Sennrich, "Root mean square layer
/// normalization", 2019.
#[derive(Debug)]
pub struct RmsNorm {
    name: String,
    weight: Tensor,
    eps: f64,
}

impl RmsNorm {
    /// `weight` is `[features]`.
    pub fn new(scope: &Scope, features: i64, eps: f64) -> Result<Self> {
        let weight = scope.parameter("weight", &[features], Init::ONES)?;
        Ok(Self { name: scope.name().to_owned(), weight, eps })
    }

    /// `[…, features]`, normalised over the features in single precision.
    pub fn forward(&self, input: &Tensor) -> Tensor {
        let kind = input.kind();
        let wide = input.to_kind(if kind == Kind::Double { kind } else { Kind::Float });
        let mean_square = wide.square().mean_dim([-1i64].as_slice(), true, None::<Kind>);
        let output = (wide * (mean_square + self.eps).rsqrt()).to_kind(kind) * &self.weight;
        record(&self.name, "RMSNorm", &output, &[Some(&self.weight)], || 0);
        output
    }
}

/// 2 × 2 (or `size` × `size`) maximum pooling with the stride of its size, `nn.MaxPool2d(size)`.
pub fn max_pool(input: &Tensor, size: i64) -> Tensor {
    forward_max_pool(input, size, size, 0, false)
}

/// Largest value of each `size` × `size` window, `nn.MaxPool2d(size, stride, padding)`.
pub fn max_pool_with(input: &Tensor, size: i64, stride: i64, padding: i64) -> Tensor {
    forward_max_pool(input, size, stride, padding, false)
}

/// Likewise with `ceil_mode=True`: a window that reaches over the edge counts too.
pub fn max_pool_ceil(input: &Tensor, size: i64, stride: i64, padding: i64) -> Tensor {
    forward_max_pool(input, size, stride, padding, true)
}

fn forward_max_pool(input: &Tensor, size: i64, stride: i64, padding: i64, ceil: bool) -> Tensor {
    let pooled = inference::max_pool(input, size, stride, padding, ceil).expect("a pooling");
    pooled
        .unwrap_or_else(|| input.max_pool2d([size, size], [stride, stride], [padding, padding], [1, 1], ceil))
}

/// The mean over each image: `[batch, channels, height, width]` to `[batch, channels]`.
pub fn global_average(input: &Tensor) -> Tensor {
    input.adaptive_avg_pool2d([1, 1]).flatten(1, -1)
}
