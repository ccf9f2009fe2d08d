//! EfficientNet-Lite0: the member of Google's EfficientNet-Lite for devices without squeeze-and-excitation or swish
//! (tensorflow/tpu, 2020), with the parameter names of the Python package efficientnet-lite-pytorch 0.1.0 and TensorFlow's "same" padding.

use anyhow::Result;
use tch::Tensor;

use super::Scope;
use super::blocks::{dropout, stochastic_depth};
use super::efficientnet::STAGES;
use super::image::{ImageModel, ImageModelConfig};
use super::init::{Fan, Init};
use super::layers::{BatchNorm2d, Conv2d, ConvConfig, Linear, NormConfig};

/// TensorFlow's BatchNorm: eps 1e-3 and a decay of 0.99.
const NORM: NormConfig = NormConfig { eps: 1e-3, momentum: 0.01 };

/// A convolution whose output has ⌈size / stride⌉ pixels: where an odd number of zeros is needed, the further one goes below and to the right.
#[derive(Debug)]
struct SameConv {
    conv: Conv2d,
    stride: i64,
}

impl SameConv {
    fn new(scope: &Scope, inputs: i64, outputs: i64, kernel: i64, stride: i64, groups: i64) -> Result<Self> {
        let config = ConvConfig { stride, groups, bias: false, ..Default::default() };
        Ok(Self { conv: Conv2d::new(scope, inputs, outputs, kernel, config)?, stride })
    }

    fn forward(&self, input: &Tensor) -> Tensor {
        let size = input.size();
        let [kernel, _] = self.conv.kernel();
        let missing = |side: i64| {
            ((side + self.stride - 1) / self.stride * self.stride - self.stride + kernel - side).max(0)
        };
        let (down, right) = (missing(size[2]), missing(size[3]));
        if down == 0 && right == 0 {
            return self.conv.forward(input);
        }
        let padding = [right / 2, right - right / 2, down / 2, down - down / 2];
        self.conv.forward(&input.constant_pad_nd(padding))
    }
}

/// Widens, filters each channel alone, narrows.
#[derive(Debug)]
struct Block {
    expand: Option<(SameConv, BatchNorm2d)>,
    depthwise: SameConv,
    bn1: BatchNorm2d,
    project: SameConv,
    bn2: BatchNorm2d,
    shortcut: bool,
    dropped: f64,
}

impl Block {
    fn forward(&self, input: &Tensor, train: bool) -> Tensor {
        let x = match &self.expand {
            Some((conv, norm)) => norm.forward(&conv.forward(input), train).relu6_(),
            None => input.shallow_clone(),
        };
        let x = self.bn1.forward(&self.depthwise.forward(&x), train).relu6_();
        let x = self.bn2.forward(&self.project.forward(&x), train);
        if self.shortcut { stochastic_depth(x, self.dropped, train) + input } else { x }
    }
}

/// 16 inverted residuals; 4,652,008 parameters with 1,000 classes.
#[derive(Debug)]
pub struct EfficientNetLite {
    conv_stem: SameConv,
    bn0: BatchNorm2d,
    blocks: Vec<Block>,
    conv_head: SameConv,
    bn1: BatchNorm2d,
    fc: Linear,
    dropout: f64,
}

impl EfficientNetLite {
    /// Builds the network.
    pub fn new(scope: &Scope, config: &ImageModelConfig) -> Result<Self> {
        let shape = config.shape()?;
        let norm =
            |scope: &Scope, name: &str, channels: i64| BatchNorm2d::with(&scope.child(name), channels, NORM);
        let conv_stem = SameConv::new(&scope.child("_conv_stem"), shape.channels, 32, 3, 2, 1)?;
        let bn0 = norm(scope, "_bn0", 32)?;
        let total: i64 = STAGES.iter().map(|stage| stage.5).sum();
        let mut blocks: Vec<Block> = Vec::new();
        for (expansion, kernel, first_stride, inputs, outputs, count) in STAGES {
            for number in 0..count {
                let scope = scope.child("_blocks").child(blocks.len());
                let (inputs, stride) = if number == 0 { (inputs, first_stride) } else { (outputs, 1) };
                let inside = inputs * expansion;
                let expand = match expansion {
                    1 => None,
                    _ => Some((
                        SameConv::new(&scope.child("_expand_conv"), inputs, inside, 1, 1, 1)?,
                        norm(&scope, "_bn0", inside)?,
                    )),
                };
                blocks.push(Block {
                    expand,
                    depthwise: SameConv::new(
                        &scope.child("_depthwise_conv"),
                        inside,
                        inside,
                        kernel,
                        stride,
                        inside,
                    )?,
                    bn1: norm(&scope, "_bn1", inside)?,
                    project: SameConv::new(&scope.child("_project_conv"), inside, outputs, 1, 1, 1)?,
                    bn2: norm(&scope, "_bn2", outputs)?,
                    shortcut: stride == 1 && inputs == outputs,
                    dropped: config.stochastic_depth() * blocks.len() as f64 / total as f64,
                });
            }
        }
        let conv_head = SameConv::new(&scope.child("_conv_head"), 320, 1280, 1, 1, 1)?;
        let bn1 = norm(scope, "_bn1", 1280)?;
        let fc = Linear::new(&scope.child("_fc"), 1280, shape.classes)?;
        // TensorFlow's EfficientNet draws from a normal distribution of variance 2 / fan-out, where the fan-out of a filter of one channel is its own
        // size; PyTorch would count all channels.
        scope.parameters().redraw(|entry| {
            let shape = entry.tensor.size();
            let outputs = if entry.name.contains("_depthwise_conv.") { 1 } else { shape[0] };
            (shape.len() == 4).then(|| Init::relu_normal(Fan::Out, &[&[outputs], &shape[1..]].concat()))
        })?;
        Ok(Self { conv_stem, bn0, blocks, conv_head, bn1, fc, dropout: config.dropout() })
    }
}

impl ImageModel for EfficientNetLite {
    fn maps(&self, images: &Tensor, train: bool) -> Tensor {
        // [batch, 3, 224, 224]
        let x = self.bn0.forward(&self.conv_stem.forward(images), train).relu6_(); // [batch, 32, 112, 112]
        let x = self.blocks.iter().fold(x, |x, block| block.forward(&x, train)); // [batch, 320, 7, 7]
        self.bn1.forward(&self.conv_head.forward(&x), train).relu6_() // [batch, 1280, 7, 7]
    }

    fn head(&self, features: &Tensor, train: bool) -> Tensor {
        self.fc.forward(&dropout(features.shallow_clone(), self.dropout, train)) // [batch, classes]
    }

    fn head_name(&self) -> &'static str {
        "_fc"
    }
}
