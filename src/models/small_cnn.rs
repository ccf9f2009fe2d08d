//! The two small convolutional networks of the frameworks' CIFAR-10 tutorials.

use anyhow::Result;
use tch::Tensor;

use super::blocks::dropout;
use super::image::{ImageModel, ImageModelConfig};
use super::layers::{Conv2d, ConvConfig, Linear, max_pool};
use super::{Scope, bail_if_too_small};

/// TensorFlow's "Convolutional Neural Network (CNN)" tutorial: three unpadded convolutions of 32, 64, 64 channels, two poolings, a dense
/// layer of 64; 122,570 parameters on 32 × 32 colour images with 10 classes. Features are flattened channels first, as PyTorch does.
#[derive(Debug)]
pub struct KerasCnn {
    conv1: Conv2d,
    conv2: Conv2d,
    conv3: Conv2d,
    fc1: Linear,
    fc2: Linear,
    dropout: f64,
}

impl KerasCnn {
    /// Builds the network for images of `config.image_size`.
    pub fn new(scope: &Scope, config: &ImageModelConfig) -> Result<Self> {
        let shape = config.shape()?;
        bail_if_too_small("keras-cnn", shape.size, 18)?;
        let side = |size: i64| ((size - 2) / 2 - 2) / 2 - 2;
        let convolution = |name: &str, inputs: i64, outputs: i64| {
            Conv2d::new(&scope.child(name), inputs, outputs, 3, ConvConfig::default())
        };
        Ok(Self {
            conv1: convolution("conv1", shape.channels, 32)?,
            conv2: convolution("conv2", 32, 64)?,
            conv3: convolution("conv3", 64, 64)?,
            fc1: Linear::new(&scope.child("fc1"), 64 * side(shape.size[0]) * side(shape.size[1]), 64)?,
            fc2: Linear::new(&scope.child("fc2"), 64, shape.classes)?,
            dropout: config.dropout(),
        })
    }
}

impl ImageModel for KerasCnn {
    fn maps(&self, images: &Tensor, _train: bool) -> Tensor {
        // [batch, 3, 32, 32]
        let x = max_pool(&self.conv1.forward_relu(images), 2); // [batch, 32, 15, 15]
        let x = max_pool(&self.conv2.forward_relu(&x), 2); // [batch, 64, 6, 6]
        self.conv3.forward_relu(&x) // [batch, 64, 4, 4]
    }

    fn pool(&self, maps: &Tensor, train: bool) -> Tensor {
        let x = maps.flatten(1, -1); // [batch, 1024]
        dropout(self.fc1.forward(&x).relu(), self.dropout, train) // [batch, 64]
    }

    fn head(&self, features: &Tensor, _train: bool) -> Tensor {
        self.fc2.forward(features) // [batch, classes]
    }

    fn head_name(&self) -> &'static str {
        "fc2"
    }
}

/// Two padded convolutions of 32 and 64 channels with pooling after each, then dense layers of 128 and of the classes; 545,098 parameters
/// on 32 × 32 colour images with 10 classes.
#[derive(Debug)]
pub struct TorchCnn {
    conv1: Conv2d,
    conv2: Conv2d,
    fc1: Linear,
    fc2: Linear,
    dropout: f64,
}

impl TorchCnn {
    /// Builds the network for images of `config.image_size`.
    pub fn new(scope: &Scope, config: &ImageModelConfig) -> Result<Self> {
        let shape = config.shape()?;
        bail_if_too_small("torch-cnn", shape.size, 4)?;
        let padded = ConvConfig { padding: 1, ..Default::default() };
        let flat = 64 * (shape.size[0] / 4) * (shape.size[1] / 4);
        Ok(Self {
            conv1: Conv2d::new(&scope.child("conv1"), shape.channels, 32, 3, padded)?,
            conv2: Conv2d::new(&scope.child("conv2"), 32, 64, 3, padded)?,
            fc1: Linear::new(&scope.child("fc1"), flat, 128)?,
            fc2: Linear::new(&scope.child("fc2"), 128, shape.classes)?,
            dropout: config.dropout(),
        })
    }
}

impl ImageModel for TorchCnn {
    fn maps(&self, images: &Tensor, _train: bool) -> Tensor {
        // [batch, 3, 32, 32]
        let x = max_pool(&self.conv1.forward_relu(images), 2); // [batch, 32, 16, 16]
        max_pool(&self.conv2.forward_relu(&x), 2) // [batch, 64, 8, 8]
    }

    fn pool(&self, maps: &Tensor, train: bool) -> Tensor {
        let x = maps.flatten(1, -1); // [batch, 4096]
        dropout(self.fc1.forward(&x).relu(), self.dropout, train) // [batch, 128]
    }

    fn head(&self, features: &Tensor, _train: bool) -> Tensor {
        self.fc2.forward(features) // [batch, classes]
    }

    fn head_name(&self) -> &'static str {
        "fc2"
    }
}
