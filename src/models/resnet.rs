//! ResNets for large images: He, Zhang, Ren, Sun, "Deep residual learning for image recognition", 2015, in the form of torchvision's
//! `resnet.py`: its names, its initial values, and the stride of a bottleneck on its 3 × 3 convolution ("v1.5"). With groups in that
//! convolution it is a ResNeXt (Xie et al., "Aggregated residual transformations for deep neural networks", 2016), with more channels in it a
//! Wide ResNet (Zagoruyko, Komodakis, "Wide residual networks", 2016).

use anyhow::Result;
use tch::Tensor;

use super::Scope;
use super::blocks::{Activation, conv_norm};
use super::image::{ImageModel, ImageModelConfig};
use super::init::{Fan, Init};
use super::layers::{BatchNorm2d, Conv2d, ConvConfig, Linear, max_pool_with};

/// What a ResNet's groups are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockKind {
    /// Two 3 × 3 convolutions (ResNet-18 and 34).
    Basic,
    /// 1 × 1, 3 × 3, 1 × 1, the last with four times the channels (ResNet-50 and deeper).
    Bottleneck {
        /// Groups of the 3 × 3 convolution; 1 in a ResNet.
        groups: i64,
        /// Channels of each of its groups in the first group of blocks; 64 in a ResNet.
        group_width: i64,
    },
}

impl BlockKind {
    /// Output channels of a block / channels of its 3 × 3 convolution.
    fn expansion(self) -> i64 {
        match self {
            Self::Basic => 1,
            Self::Bottleneck { .. } => 4,
        }
    }
}

/// Convolutions with their normalisations in turn, and the shortcut around them.
#[derive(Debug)]
struct Block {
    convolutions: Vec<(Conv2d, BatchNorm2d)>,
    downsample: Option<(Conv2d, BatchNorm2d)>,
}

fn convolution(
    scope: &Scope,
    inputs: i64,
    outputs: i64,
    kernel: i64,
    stride: i64,
    groups: i64,
) -> Result<Conv2d> {
    let config = ConvConfig { stride, padding: kernel / 2, groups, bias: false, ..Default::default() };
    Conv2d::new(scope, inputs, outputs, kernel, config)
}

impl Block {
    fn new(scope: &Scope, kind: BlockKind, inputs: i64, width: i64, stride: i64) -> Result<Self> {
        let outputs = width * kind.expansion();
        // (inputs, outputs, kernel, stride, groups) of each convolution
        let plan = match kind {
            BlockKind::Basic => vec![(inputs, width, 3, stride, 1), (width, width, 3, 1, 1)],
            BlockKind::Bottleneck { groups, group_width } => {
                let inside = width * group_width / 64 * groups;
                vec![
                    (inputs, inside, 1, 1, 1),
                    (inside, inside, 3, stride, groups),
                    (inside, outputs, 1, 1, 1),
                ]
            }
        };
        let convolutions = plan
            .iter()
            .zip(1..)
            .map(|(&(inputs, outputs, kernel, stride, groups), number)| {
                let scope_of_conv = scope.child(format!("conv{number}"));
                let conv = convolution(&scope_of_conv, inputs, outputs, kernel, stride, groups)?;
                Ok((conv, BatchNorm2d::new(&scope.child(format!("bn{number}")), outputs)?))
            })
            .collect::<Result<_>>()?;
        let downsample = match stride != 1 || inputs != outputs {
            true => {
                let scope = scope.child("downsample");
                let conv = convolution(&scope.child(0), inputs, outputs, 1, stride, 1)?;
                Some((conv, BatchNorm2d::new(&scope.child(1), outputs)?))
            }
            false => None,
        };
        Ok(Self { convolutions, downsample })
    }

    fn forward(&self, input: &Tensor, train: bool) -> Tensor {
        let last = self.convolutions.len() - 1;
        let mut x = input.shallow_clone();
        for (position, (conv, bn)) in self.convolutions.iter().enumerate() {
            let activation = if position < last { Activation::Relu } else { Activation::Identity };
            x = conv_norm(conv, bn, activation, &x, train);
        }
        let shortcut = match &self.downsample {
            Some((conv, bn)) => conv_norm(conv, bn, Activation::Identity, input, train),
            None => input.shallow_clone(),
        };
        (x + shortcut).relu_()
    }
}

/// A ResNet with four groups of blocks; 11,689,512 parameters as ResNet-18 with 1,000 classes.
#[derive(Debug)]
pub struct ResNet {
    conv1: Conv2d,
    bn1: BatchNorm2d,
    layers: Vec<Block>,
    fc: Linear,
}

impl ResNet {
    /// Builds the network with so many blocks in each group.
    pub fn new(
        scope: &Scope,
        config: &ImageModelConfig,
        kind: BlockKind,
        blocks: [usize; 4],
    ) -> Result<Self> {
        let shape = config.shape()?;
        let conv1 = convolution(&scope.child("conv1"), shape.channels, 64, 7, 2, 1)?;
        let bn1 = BatchNorm2d::new(&scope.child("bn1"), 64)?;
        let mut layers = Vec::new();
        let mut inputs = 64;
        for (group, &count) in blocks.iter().enumerate() {
            let scope = scope.child(format!("layer{}", group + 1));
            let width = 64 << group;
            for position in 0..count {
                let stride = if group > 0 && position == 0 { 2 } else { 1 };
                layers.push(Block::new(&scope.child(position), kind, inputs, width, stride)?);
                inputs = width * kind.expansion();
            }
        }
        let fc = Linear::new(&scope.child("fc"), inputs, shape.classes)?;
        scope.parameters().redraw(|entry| {
            let shape = entry.tensor.size();
            (shape.len() == 4).then(|| Init::relu_normal(Fan::Out, &shape))
        })?;
        Ok(Self { conv1, bn1, layers, fc })
    }
}

impl ImageModel for ResNet {
    fn maps(&self, images: &Tensor, train: bool) -> Tensor {
        // [batch, 3, 224, 224]
        let x = conv_norm(&self.conv1, &self.bn1, Activation::Relu, images, train); // [batch, 64, 112, 112]
        let x = max_pool_with(&x, 3, 2, 1); // [batch, 64, 56, 56]
        self.layers.iter().fold(x, |x, block| block.forward(&x, train)) // [batch, 512 · expansion, 7, 7]
    }

    fn head(&self, features: &Tensor, _train: bool) -> Tensor {
        self.fc.forward(features) // [batch, classes]
    }

    fn head_name(&self) -> &'static str {
        "fc"
    }
}
