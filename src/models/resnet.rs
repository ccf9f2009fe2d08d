//! ResNets for large images: He, Zhang, Ren, Sun, "Deep residual learning for image recognition", 2015, in the form of torchvision's
//! `resnet.py`: its names, its initial values, and the stride of a bottleneck on its 3 × 3 convolution ("v1.5").

use anyhow::Result;
use tch::Tensor;

use super::image::{ImageModel, ImageModelConfig};
use super::layers::{BatchNorm2d, Conv2d, ConvConfig, Fan, Linear, redraw_convolutions};
use super::{Scope, bail_if_too_small};

/// What a ResNet's groups are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockKind {
    /// Two 3 × 3 convolutions (ResNet-18 and 34).
    Basic,
    /// 1 × 1, 3 × 3, 1 × 1, the last with four times the channels (ResNet-50 and deeper).
    Bottleneck,
}

impl BlockKind {
    /// Output channels of a block / channels of its 3 × 3 convolution.
    fn expansion(self) -> i64 {
        match self {
            Self::Basic => 1,
            Self::Bottleneck => 4,
        }
    }
}

/// Convolutions with their normalisations in turn, and the shortcut around them.
#[derive(Debug)]
struct Block {
    convolutions: Vec<(Conv2d, BatchNorm2d)>,
    downsample: Option<(Conv2d, BatchNorm2d)>,
}

fn convolution(scope: &Scope, inputs: i64, outputs: i64, kernel: i64, stride: i64) -> Result<Conv2d> {
    let config = ConvConfig { stride, padding: kernel / 2, bias: false, ..Default::default() };
    Conv2d::new(scope, inputs, outputs, kernel, config)
}

impl Block {
    fn new(scope: &Scope, kind: BlockKind, inputs: i64, width: i64, stride: i64) -> Result<Self> {
        let outputs = width * kind.expansion();
        // (inputs, outputs, kernel, stride) of each convolution
        let plan: &[(i64, i64, i64, i64)] = match kind {
            BlockKind::Basic => &[(inputs, width, 3, stride), (width, width, 3, 1)],
            BlockKind::Bottleneck => {
                &[(inputs, width, 1, 1), (width, width, 3, stride), (width, outputs, 1, 1)]
            }
        };
        let convolutions = plan
            .iter()
            .zip(1..)
            .map(|(&(inputs, outputs, kernel, stride), number)| {
                let conv =
                    convolution(&scope.child(format!("conv{number}")), inputs, outputs, kernel, stride)?;
                Ok((conv, BatchNorm2d::new(&scope.child(format!("bn{number}")), outputs)?))
            })
            .collect::<Result<_>>()?;
        let downsample = match stride != 1 || inputs != outputs {
            true => {
                let scope = scope.child("downsample");
                let conv = convolution(&scope.child(0), inputs, outputs, 1, stride)?;
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
            x = bn.forward(&conv.forward(&x), train);
            if position < last {
                x = x.relu_();
            }
        }
        let shortcut = match &self.downsample {
            Some((conv, bn)) => bn.forward(&conv.forward(input), train),
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
        bail_if_too_small("a ResNet", shape.size, 32)?;
        let conv1 = convolution(&scope.child("conv1"), shape.channels, 64, 7, 2)?;
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
        redraw_convolutions(scope.parameters(), Fan::Out)?;
        Ok(Self { conv1, bn1, layers, fc })
    }
}

impl ImageModel for ResNet {
    fn forward(&self, images: &Tensor, train: bool) -> Tensor {
        // [batch, 3, 224, 224]
        let x = self.bn1.forward(&self.conv1.forward(images), train).relu_(); // [batch, 64, 112, 112]
        let mut x = x.max_pool2d([3, 3], [2, 2], [1, 1], [1, 1], false); // [batch, 64, 56, 56]
        for block in &self.layers {
            x = block.forward(&x, train);
        }
        // [batch, 512 · expansion, 7, 7]
        let x = x.adaptive_avg_pool2d([1, 1]).flatten(1, -1); // [batch, 512 · expansion]
        self.fc.forward(&x) // [batch, classes]
    }
}
