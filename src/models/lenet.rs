//! LeNet-5: LeCun, Bottou, Bengio, Haffner, "Gradient-based learning applied to document recognition", 1998.
//!
//! The form in use today: ReLU and maximum pooling instead of scaled tanh and trained subsampling, a plain linear output instead
//! of radial basis functions, and every map of the second convolution sees all maps of the first. On 28 × 28 images the first
//! convolution pads by 2, which gives the paper's 32 × 32 input. Field names are those of PyTorch's tutorials.

use anyhow::Result;
use tch::Tensor;

use super::blocks::dropout;
use super::image::{ImageModel, ImageModelConfig};
use super::layers::{Conv2d, ConvConfig, Linear, max_pool};
use super::{Scope, bail_if_too_small};

/// The network: 61,706 parameters on 28 × 28 grey images with 10 classes.
#[derive(Debug)]
pub struct LeNet5 {
    conv1: Conv2d,
    conv2: Conv2d,
    fc1: Linear,
    fc2: Linear,
    fc3: Linear,
    dropout: f64,
}

impl LeNet5 {
    /// Builds the network for images of `config.image_size`.
    pub fn new(scope: &Scope, config: &ImageModelConfig) -> Result<Self> {
        let shape = config.shape()?;
        bail_if_too_small("lenet5", shape.size, 12)?;
        let side = |size: i64| (size / 2 - 4) / 2;
        let flat = 16 * side(shape.size[0]) * side(shape.size[1]);
        Ok(Self {
            conv1: Conv2d::new(
                &scope.child("conv1"),
                shape.channels,
                6,
                5,
                ConvConfig { padding: 2, ..Default::default() },
            )?,
            conv2: Conv2d::new(&scope.child("conv2"), 6, 16, 5, ConvConfig::default())?,
            fc1: Linear::new(&scope.child("fc1"), flat, 120)?,
            fc2: Linear::new(&scope.child("fc2"), 120, 84)?,
            fc3: Linear::new(&scope.child("fc3"), 84, shape.classes)?,
            dropout: config.dropout(),
        })
    }
}

impl ImageModel for LeNet5 {
    fn maps(&self, images: &Tensor, _train: bool) -> Tensor {
        // [batch, channels, 28, 28]
        let x = max_pool(&self.conv1.forward_relu(images), 2); // [batch, 6, 14, 14]
        max_pool(&self.conv2.forward_relu(&x), 2) // [batch, 16, 5, 5]
    }

    fn pool(&self, maps: &Tensor, train: bool) -> Tensor {
        let x = maps.flatten(1, -1); // [batch, 400]
        let x = dropout(self.fc1.forward(&x).relu(), self.dropout, train); // [batch, 120]
        dropout(self.fc2.forward(&x).relu(), self.dropout, train) // [batch, 84]
    }

    fn head(&self, features: &Tensor, _train: bool) -> Tensor {
        self.fc3.forward(features) // [batch, classes]
    }

    fn head_name(&self) -> &'static str {
        "fc3"
    }
}
