//! DenseNet: Huang, Liu, van der Maaten, Weinberger, "Densely connected convolutional networks", 2016, in torchvision's form (BC).

use anyhow::Result;
use tch::Tensor;

use super::blocks::{Activation, conv_norm};
use super::image::{ImageModel, ImageModelConfig};
use super::init::{Fan, Init};
use super::layers::{BatchNorm2d, Conv2d, ConvConfig, Linear, max_pool_with};
use super::{Scope, bail_if_too_small};

fn convolution(scope: &Scope, inputs: i64, outputs: i64, kernel: i64, stride: i64) -> Result<Conv2d> {
    let config = ConvConfig { stride, padding: kernel / 2, bias: false, ..Default::default() };
    Conv2d::new(scope, inputs, outputs, kernel, config)
}

/// Normalisation before convolution, twice: from all channels so far to `growth` new ones.
#[derive(Debug)]
struct DenseLayer {
    norm1: BatchNorm2d,
    conv1: Conv2d,
    norm2: BatchNorm2d,
    conv2: Conv2d,
}

impl DenseLayer {
    fn new(scope: &Scope, inputs: i64, growth: i64) -> Result<Self> {
        Ok(Self {
            norm1: BatchNorm2d::new(&scope.child("norm1"), inputs)?,
            conv1: convolution(&scope.child("conv1"), inputs, 4 * growth, 1, 1)?,
            norm2: BatchNorm2d::new(&scope.child("norm2"), 4 * growth)?,
            conv2: convolution(&scope.child("conv2"), 4 * growth, growth, 3, 1)?,
        })
    }

    fn forward(&self, input: &Tensor, train: bool) -> Tensor {
        let x = self.conv1.forward(&self.norm1.forward(input, train).relu_());
        self.conv2.forward(&self.norm2.forward(&x, train).relu_())
    }
}

/// Half the channels and half the image.
#[derive(Debug)]
struct Transition {
    norm: BatchNorm2d,
    conv: Conv2d,
}

impl Transition {
    fn forward(&self, input: &Tensor, train: bool) -> Tensor {
        let x = self.conv.forward(&self.norm.forward(input, train).relu_());
        x.avg_pool2d([2, 2], [2, 2], [0, 0], false, true, None)
    }
}

/// Four dense blocks with transitions between them; 7,978,856 parameters as DenseNet-121 with 1,000 classes.
#[derive(Debug)]
pub struct DenseNet {
    conv0: Conv2d,
    norm0: BatchNorm2d,
    blocks: Vec<(Vec<DenseLayer>, Option<Transition>)>,
    norm5: BatchNorm2d,
    classifier: Linear,
}

impl DenseNet {
    /// Builds the network with so many layers in each block, each adding `growth` channels to the first `width`.
    pub fn new(
        scope: &Scope,
        config: &ImageModelConfig,
        growth: i64,
        width: i64,
        layers: [usize; 4],
    ) -> Result<Self> {
        let shape = config.shape()?;
        bail_if_too_small("a DenseNet", shape.size, 29)?;
        let features = scope.child("features");
        let conv0 = convolution(&features.child("conv0"), shape.channels, width, 7, 2)?;
        let norm0 = BatchNorm2d::new(&features.child("norm0"), width)?;
        let mut blocks = Vec::new();
        let mut channels = width;
        for (number, &count) in (1..).zip(&layers) {
            let block = features.child(format!("denseblock{number}"));
            let mut dense = Vec::new();
            for layer in 1..=count {
                dense.push(DenseLayer::new(&block.child(format!("denselayer{layer}")), channels, growth)?);
                channels += growth;
            }
            let transition = match number < layers.len() {
                true => {
                    let scope = features.child(format!("transition{number}"));
                    let norm = BatchNorm2d::new(&scope.child("norm"), channels)?;
                    channels /= 2;
                    Some(Transition {
                        norm,
                        conv: convolution(&scope.child("conv"), 2 * channels, channels, 1, 1)?,
                    })
                }
                false => None,
            };
            blocks.push((dense, transition));
        }
        let norm5 = BatchNorm2d::new(&features.child("norm5"), channels)?;
        let classifier = Linear::new(&scope.child("classifier"), channels, shape.classes)?;
        scope.parameters().redraw(|entry| {
            let shape = entry.tensor.size();
            match shape.len() {
                4 => Some(Init::relu_normal(Fan::In, &shape)),
                _ if entry.name == "classifier.bias" => Some(Init::ZEROS),
                _ => None,
            }
        })?;
        Ok(Self { conv0, norm0, blocks, norm5, classifier })
    }
}

impl ImageModel for DenseNet {
    fn maps(&self, images: &Tensor, train: bool) -> Tensor {
        // [batch, 3, 224, 224]
        let x = conv_norm(&self.conv0, &self.norm0, Activation::Relu, images, train); // [batch, 64, 112, 112]
        let mut x = max_pool_with(&x, 3, 2, 1); // [batch, 64, 56, 56]
        for (layers, transition) in &self.blocks {
            let mut parts = vec![x];
            for layer in layers {
                let new = layer.forward(&Tensor::cat(&parts, 1), train);
                parts.push(new);
            }
            x = Tensor::cat(&parts, 1);
            if let Some(transition) = transition {
                x = transition.forward(&x, train);
            }
        }
        self.norm5.forward(&x, train).relu_() // [batch, 1024, 7, 7]
    }

    fn head(&self, features: &Tensor, _train: bool) -> Tensor {
        self.classifier.forward(features) // [batch, classes]
    }

    fn head_name(&self) -> &'static str {
        "classifier"
    }
}
