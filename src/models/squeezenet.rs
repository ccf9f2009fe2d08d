//! SqueezeNet: Iandola et al., "SqueezeNet: AlexNet-level accuracy with 50x fewer parameters and < 0.5 MB model size", 2016, in
//! torchvision's form.

use anyhow::Result;
use tch::Tensor;

use super::blocks::dropout;
use super::image::{ImageModel, ImageModelConfig};
use super::init::Init;
use super::layers::{Conv2d, ConvConfig, global_average, max_pool_ceil};
use super::{Scope, bail_if_too_small};

/// A 1 × 1 convolution to few channels, then 1 × 1 and 3 × 3 ones side by side.
#[derive(Debug)]
struct Fire {
    squeeze: Conv2d,
    expand1x1: Conv2d,
    expand3x3: Conv2d,
}

impl Fire {
    /// `expanded` channels come from each of the two expanding convolutions.
    fn new(scope: &Scope, inputs: i64, squeezed: i64, expanded: i64) -> Result<Self> {
        let plain = ConvConfig::default();
        let padded = ConvConfig { padding: 1, ..plain };
        Ok(Self {
            squeeze: Conv2d::new(&scope.child("squeeze"), inputs, squeezed, 1, plain)?,
            expand1x1: Conv2d::new(&scope.child("expand1x1"), squeezed, expanded, 1, plain)?,
            expand3x3: Conv2d::new(&scope.child("expand3x3"), squeezed, expanded, 3, padded)?,
        })
    }

    fn forward(&self, input: &Tensor) -> Tensor {
        let x = self.squeeze.forward(input).relu_();
        Tensor::cat(&[self.expand1x1.forward(&x).relu_(), self.expand3x3.forward(&x).relu_()], 1)
    }
}

/// Which of the two published networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// As in the paper.
    V1_0,
    /// With less than half of the arithmetic.
    V1_1,
}

/// Squeezed and expanded channels of the eight fire modules.
const FIRES: [(i64, i64); 8] =
    [(16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256)];

/// Eight fire modules between two convolutions, no dense layer; 1,248,424 parameters (1.0) or 1,235,496 (1.1) with 1,000 classes.
#[derive(Debug)]
pub struct SqueezeNet {
    conv: Conv2d,
    fires: Vec<Fire>,
    /// Fire modules that a pooling precedes.
    pooled: [usize; 3],
    classifier: Conv2d,
    dropout: f64,
}

impl SqueezeNet {
    /// Builds the network.
    pub fn new(scope: &Scope, config: &ImageModelConfig, version: Version) -> Result<Self> {
        let shape = config.shape()?;
        bail_if_too_small("SqueezeNet", shape.size, if version == Version::V1_0 { 21 } else { 17 })?;
        let features = scope.child("features");
        let (width, kernel, pooled) = match version {
            Version::V1_0 => (96, 7, [0, 3, 7]),
            Version::V1_1 => (64, 3, [0, 2, 4]),
        };
        let strided = ConvConfig { stride: 2, ..Default::default() };
        let conv = Conv2d::new(&features.child(0), shape.channels, width, kernel, strided)?;
        let (mut position, mut inputs) = (2, width);
        let mut fires = Vec::new();
        for (number, &(squeezed, expanded)) in FIRES.iter().enumerate() {
            position += usize::from(pooled.contains(&number));
            fires.push(Fire::new(&features.child(position), inputs, squeezed, expanded)?);
            position += 1;
            inputs = 2 * expanded;
        }
        let classifier_scope = scope.child("classifier").child(1);
        let classifier = Conv2d::new(&classifier_scope, 512, shape.classes, 1, ConvConfig::default())?;
        scope.parameters().redraw(|entry| {
            let shape = entry.tensor.size();
            Some(match (shape.len(), entry.name.starts_with("classifier")) {
                (4, true) => Init::Normal { deviation: 0.01 },
                (4, false) => Init::relu_uniform(&shape),
                _ => Init::ZEROS,
            })
        })?;
        Ok(Self { conv, fires, pooled, classifier, dropout: config.dropout() })
    }
}

impl ImageModel for SqueezeNet {
    fn maps(&self, images: &Tensor, _train: bool) -> Tensor {
        let mut x = self.conv.forward(images).relu_(); // [batch, 96, 109, 109]
        for (number, fire) in self.fires.iter().enumerate() {
            if self.pooled.contains(&number) {
                x = max_pool_ceil(&x, 3, 2, 0);
            }
            x = fire.forward(&x);
        }
        x // [batch, 512, 13, 13]
    }

    /// The classifier is a convolution: it takes the maps themselves.
    fn pool(&self, maps: &Tensor, _train: bool) -> Tensor {
        maps.shallow_clone()
    }

    fn head(&self, features: &Tensor, train: bool) -> Tensor {
        let x = dropout(features.shallow_clone(), self.dropout, train);
        global_average(&self.classifier.forward(&x).relu_()) // [batch, classes]
    }

    fn head_name(&self) -> &'static str {
        "classifier"
    }
}
