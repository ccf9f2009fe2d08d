//! VGG: Simonyan, Zisserman, "Very deep convolutional networks for large-scale image recognition", 2014, in torchvision's form.

use anyhow::Result;
use tch::Tensor;

use super::blocks::{Activation, conv_norm, dropout};
use super::image::{ImageModel, ImageModelConfig};
use super::init::{Fan, Init};
use super::layers::{BatchNorm2d, Conv2d, ConvConfig, Linear, max_pool};
use super::{Scope, bail_if_too_small};

/// One entry of `features`.
#[derive(Debug)]
enum Step {
    Convolution(Conv2d, Option<BatchNorm2d>),
    Pooling,
}

/// Five groups of 3 × 3 convolutions with pooling after each, and three dense layers; 138,357,544 parameters as VGG-16 with 1,000 classes.
#[derive(Debug)]
pub struct Vgg {
    features: Vec<Step>,
    classifier: [Linear; 3],
    dropout: f64,
}

impl Vgg {
    /// Builds the network with so many convolutions in each group, with batch normalisation after each or without.
    pub fn new(
        scope: &Scope,
        config: &ImageModelConfig,
        convolutions: [usize; 5],
        batch_norm: bool,
    ) -> Result<Self> {
        let shape = config.shape()?;
        bail_if_too_small("a VGG", shape.size, 32)?;
        let features_scope = scope.child("features");
        let mut features = Vec::new();
        let (mut position, mut inputs) = (0, shape.channels);
        for (&count, width) in convolutions.iter().zip([64, 128, 256, 512, 512]) {
            for _ in 0..count {
                let padded = ConvConfig { padding: 1, ..Default::default() };
                let conv = Conv2d::new(&features_scope.child(position), inputs, width, 3, padded)?;
                let norm = match batch_norm {
                    true => Some(BatchNorm2d::new(&features_scope.child(position + 1), width)?),
                    false => None,
                };
                position += 2 + usize::from(batch_norm);
                features.push(Step::Convolution(conv, norm));
                inputs = width;
            }
            features.push(Step::Pooling);
            position += 1;
        }
        let classifier_scope = scope.child("classifier");
        let classifier = [
            Linear::new(&classifier_scope.child(0), 512 * 7 * 7, 4096)?,
            Linear::new(&classifier_scope.child(3), 4096, 4096)?,
            Linear::new(&classifier_scope.child(6), 4096, shape.classes)?,
        ];
        scope.parameters().redraw(|entry| match entry.tensor.size()[..] {
            [_, _, _, _] => Some(Init::relu_normal(Fan::Out, &entry.tensor.size())),
            [_, _] => Some(Init::Normal { deviation: 0.01 }),
            _ if entry.name.ends_with(".bias") => Some(Init::ZEROS),
            _ => None,
        })?;
        Ok(Self { features, classifier, dropout: config.dropout() })
    }
}

impl ImageModel for Vgg {
    fn maps(&self, images: &Tensor, train: bool) -> Tensor {
        // [batch, 3, 224, 224]
        let mut x = images.shallow_clone();
        for step in &self.features {
            x = match step {
                Step::Convolution(conv, None) => conv.forward_relu(&x),
                Step::Convolution(conv, Some(norm)) => conv_norm(conv, norm, Activation::Relu, &x, train),
                Step::Pooling => max_pool(&x, 2),
            };
        }
        x // [batch, 512, 7, 7]
    }

    fn pool(&self, maps: &Tensor, _train: bool) -> Tensor {
        maps.adaptive_avg_pool2d([7, 7]).flatten(1, -1) // [batch, 25088]
    }

    fn head(&self, features: &Tensor, train: bool) -> Tensor {
        let [first, second, last] = &self.classifier;
        let x = dropout(first.forward(features).relu_(), self.dropout, train); // [batch, 4096]
        let x = dropout(second.forward(&x).relu_(), self.dropout, train); // [batch, 4096]
        last.forward(&x) // [batch, classes]
    }

    fn head_name(&self) -> &'static str {
        "classifier"
    }
}
