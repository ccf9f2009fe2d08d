//! ResNets for CIFAR: He, Zhang, Ren, Sun, "Deep residual learning for image recognition", 2015, section 4.2.
//!
//! A 3 × 3 convolution of 16 channels, then three groups of n blocks with 16, 32 and 64 channels, the second and third halving the
//! image; 6n + 2 layers. Shortcuts that change shape take every second pixel and pad the new channels with zeros on both sides
//! (option A, no parameters). Convolutions start as the paper's: normal, variance 2 / fan-in. Field names follow torchvision's ResNets.

use anyhow::Result;
use tch::Tensor;

use super::blocks::{Activation, conv_norm};
use super::image::{ImageModel, ImageModelConfig};
use super::init::{Fan, Init};
use super::layers::{BatchNorm2d, Conv2d, ConvConfig, Linear};
use super::{Scope, bail_if_too_small};

#[derive(Debug)]
struct Block {
    conv1: Conv2d,
    bn1: BatchNorm2d,
    conv2: Conv2d,
    bn2: BatchNorm2d,
    stride: i64,
    /// Channels of zeros to add on each side of the shortcut.
    padding: i64,
}

/// 3 × 3, padded, without bias.
fn convolution(scope: &Scope, inputs: i64, outputs: i64, stride: i64) -> Result<Conv2d> {
    Conv2d::new(
        scope,
        inputs,
        outputs,
        3,
        ConvConfig { stride, padding: 1, bias: false, ..Default::default() },
    )
}

impl Block {
    fn new(scope: &Scope, inputs: i64, outputs: i64, stride: i64) -> Result<Self> {
        Ok(Self {
            conv1: convolution(&scope.child("conv1"), inputs, outputs, stride)?,
            bn1: BatchNorm2d::new(&scope.child("bn1"), outputs)?,
            conv2: convolution(&scope.child("conv2"), outputs, outputs, 1)?,
            bn2: BatchNorm2d::new(&scope.child("bn2"), outputs)?,
            stride,
            padding: (outputs - inputs) / 2,
        })
    }

    fn forward(&self, input: &Tensor, train: bool) -> Tensor {
        let mut x = conv_norm(&self.conv1, &self.bn1, Activation::Relu, input, train);
        x = conv_norm(&self.conv2, &self.bn2, Activation::Identity, &x, train);
        let shortcut = match (self.stride, self.padding) {
            (1, 0) => input.shallow_clone(),
            (stride, padding) => input
                .slice(2, None, None, stride)
                .slice(3, None, None, stride)
                .constant_pad_nd([0, 0, 0, 0, padding, padding]),
        };
        (x + shortcut).relu_()
    }
}

/// A ResNet of 6n + 2 layers; 269,722 parameters for n = 3 with 10 classes.
#[derive(Debug)]
pub struct ResNetCifar {
    conv1: Conv2d,
    bn1: BatchNorm2d,
    layers: [Vec<Block>; 3],
    fc: Linear,
}

impl ResNetCifar {
    /// Builds the network with `blocks` blocks in each group.
    pub fn new(scope: &Scope, config: &ImageModelConfig, blocks: usize) -> Result<Self> {
        let shape = config.shape()?;
        bail_if_too_small("a CIFAR ResNet", shape.size, 8)?;
        let conv1 = convolution(&scope.child("conv1"), shape.channels, 16, 1)?;
        let bn1 = BatchNorm2d::new(&scope.child("bn1"), 16)?;
        let group = |name: &str, inputs: i64, outputs: i64, stride: i64| {
            let scope = scope.child(name);
            let block = |position: usize| {
                let (inputs, stride) = if position == 0 { (inputs, stride) } else { (outputs, 1) };
                Block::new(&scope.child(position), inputs, outputs, stride)
            };
            (0..blocks).map(block).collect::<Result<Vec<_>>>()
        };
        let layers = [group("layer1", 16, 16, 1)?, group("layer2", 16, 32, 2)?, group("layer3", 32, 64, 2)?];
        let fc = Linear::new(&scope.child("fc"), 64, shape.classes)?;
        scope.parameters().redraw(|entry| {
            let shape = entry.tensor.size();
            (shape.len() == 4).then(|| Init::relu_normal(Fan::In, &shape))
        })?;
        Ok(Self { conv1, bn1, layers, fc })
    }
}

impl ImageModel for ResNetCifar {
    fn maps(&self, images: &Tensor, train: bool) -> Tensor {
        // [batch, 3, 32, 32]
        let x = conv_norm(&self.conv1, &self.bn1, Activation::Relu, images, train); // [batch, 16, 32, 32]
        self.layers.iter().flatten().fold(x, |x, block| block.forward(&x, train)) // [batch, 64, 8, 8]
    }

    fn head(&self, features: &Tensor, _train: bool) -> Tensor {
        self.fc.forward(features) // [batch, classes]
    }

    fn head_name(&self) -> &'static str {
        "fc"
    }
}
