//! AlexNet: Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014, in torchvision's form.

use anyhow::Result;
use tch::Tensor;

use super::blocks::dropout;
use super::image::{ImageModel, ImageModelConfig};
use super::layers::{Conv2d, ConvConfig, Linear, max_pool_with};
use super::{Scope, bail_if_too_small};

/// Five convolutions and three dense layers; 61,100,840 parameters with 1,000 classes.
#[derive(Debug)]
pub struct AlexNet {
    convolutions: Vec<Conv2d>,
    classifier: [Linear; 3],
    dropout: f64,
}

/// Position in `features`, output channels, kernel, stride and padding of each convolution.
const CONVOLUTIONS: [(usize, i64, i64, i64, i64); 5] =
    [(0, 64, 11, 4, 2), (3, 192, 5, 1, 2), (6, 384, 3, 1, 1), (8, 256, 3, 1, 1), (10, 256, 3, 1, 1)];

impl AlexNet {
    /// Builds the network.
    pub fn new(scope: &Scope, config: &ImageModelConfig) -> Result<Self> {
        let shape = config.shape()?;
        bail_if_too_small("AlexNet", shape.size, 63)?;
        let mut inputs = shape.channels;
        let features = scope.child("features");
        let convolutions = CONVOLUTIONS
            .iter()
            .map(|&(position, outputs, kernel, stride, padding)| {
                let config = ConvConfig { stride, padding, ..Default::default() };
                let conv = Conv2d::new(&features.child(position), inputs, outputs, kernel, config)?;
                inputs = outputs;
                Ok(conv)
            })
            .collect::<Result<_>>()?;
        let classifier = scope.child("classifier");
        Ok(Self {
            convolutions,
            classifier: [
                Linear::new(&classifier.child(1), 256 * 6 * 6, 4096)?,
                Linear::new(&classifier.child(4), 4096, 4096)?,
                Linear::new(&classifier.child(6), 4096, shape.classes)?,
            ],
            dropout: config.dropout(),
        })
    }
}

impl ImageModel for AlexNet {
    fn maps(&self, images: &Tensor, _train: bool) -> Tensor {
        // [batch, 3, 224, 224]
        let mut x = images.shallow_clone();
        for (position, conv) in self.convolutions.iter().enumerate() {
            x = conv.forward_relu(&x);
            if [0, 1, 4].contains(&position) {
                x = max_pool_with(&x, 3, 2, 0);
            }
        }
        x // [batch, 256, 6, 6]
    }

    fn pool(&self, maps: &Tensor, _train: bool) -> Tensor {
        maps.adaptive_avg_pool2d([6, 6]).flatten(1, -1) // [batch, 9216]
    }

    fn head(&self, features: &Tensor, train: bool) -> Tensor {
        let [first, second, last] = &self.classifier;
        let x = dropout(features.shallow_clone(), self.dropout, train);
        let x = dropout(first.forward(&x).relu_(), self.dropout, train); // [batch, 4096]
        last.forward(&second.forward(&x).relu_()) // [batch, classes]
    }

    fn head_name(&self) -> &'static str {
        "classifier"
    }
}
