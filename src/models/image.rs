//! What image classifiers have in common, and the list of them.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::Scope;
use super::lenet::LeNet5;
use super::mlp::Mlp;
use super::resnet::BlockKind::{Basic, Bottleneck};
use super::resnet::ResNet;
use super::resnet_cifar::ResNetCifar;
use super::small_cnn::{KerasCnn, TorchCnn};
use crate::recipe::nearest_hint;
use crate::{bad_input, bail_input};

/// A network from images to class scores.
pub trait ImageModel: std::fmt::Debug {
    /// `[batch, channels, height, width]` to logits `[batch, classes]`. `train` turns dropout and batch statistics on.
    fn forward(&self, images: &Tensor, train: bool) -> Tensor;
}

/// The `model` section of an image recipe. What the data decide may be left out.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ImageModelConfig {
    /// A name of [`REGISTRY`].
    pub name: String,
    /// Classes to tell apart; from the data if left out.
    pub num_classes: Option<i64>,
    /// Colour channels of the input; from the data if left out.
    pub in_channels: Option<i64>,
    /// Height and width of the input in pixels; from the data if left out.
    pub image_size: Option<[i64; 2]>,
    /// Probability with which hidden activations are dropped in training.
    #[serde(default)]
    pub dropout: f64,
}

/// What a constructor needs to know of its input and output.
#[derive(Clone, Copy, Debug)]
pub struct ImageShape {
    /// Colour channels.
    pub channels: i64,
    /// Height and width in pixels.
    pub size: [i64; 2],
    /// Classes.
    pub classes: i64,
}

impl ImageModelConfig {
    /// The complete shape.
    ///
    /// # Errors
    /// A part is missing, which `--model NAME` without data or weights can cause.
    pub fn shape(&self) -> Result<ImageShape> {
        let missing =
            |key: &str| bad_input!("model.{key} is not known without data: give --set model.{key}=…");
        Ok(ImageShape {
            channels: self.in_channels.ok_or_else(|| missing("in_channels"))?,
            size: self.image_size.ok_or_else(|| missing("image_size"))?,
            classes: self.num_classes.ok_or_else(|| missing("num_classes"))?,
        })
    }

    /// Checks every value on its own.
    pub fn validate(&self) -> Result<()> {
        find(&self.name)?;
        let positive = [
            ("num_classes", self.num_classes),
            ("in_channels", self.in_channels),
            ("image_size", self.image_size.map(|[height, width]| height.min(width))),
        ];
        for (key, value) in positive {
            if value.is_some_and(|value| value < 1) {
                bail_input!("model.{key} must be at least 1");
            }
        }
        if !(0.0..1.0).contains(&self.dropout) {
            bail_input!("model.dropout is {}: it must be at least 0 and below 1", self.dropout);
        }
        Ok(())
    }
}

/// One line of the list of image classifiers.
pub struct ImageArchitecture {
    /// The name in recipes.
    pub name: &'static str,
    /// Channels, height and width it is usually given, for `info --model`.
    pub usual_input: (i64, [i64; 2]),
    /// Makes the network under a scope.
    pub build: fn(&Scope, &ImageModelConfig) -> Result<Box<dyn ImageModel>>,
}

/// A line of the list: name, channels and side of the usual input, constructor.
macro_rules! architecture {
    ($name:literal, $channels:literal, $side:literal, |$scope:ident, $config:ident| $build:expr) => {
        ImageArchitecture {
            name: $name,
            usual_input: ($channels, [$side, $side]),
            build: |$scope, $config| Ok(Box::new($build?)),
        }
    };
}

/// Every image classifier, by name.
pub const REGISTRY: &[ImageArchitecture] = &[
    architecture!("lenet5", 1, 28, |scope, config| LeNet5::new(scope, config)),
    architecture!("mlp", 1, 28, |scope, config| Mlp::for_images(scope, config)),
    architecture!("keras-cnn", 3, 32, |scope, config| KerasCnn::new(scope, config)),
    architecture!("torch-cnn", 3, 32, |scope, config| TorchCnn::new(scope, config)),
    architecture!("resnet20", 3, 32, |scope, config| ResNetCifar::new(scope, config, 3)),
    architecture!("resnet32", 3, 32, |scope, config| ResNetCifar::new(scope, config, 5)),
    architecture!("resnet44", 3, 32, |scope, config| ResNetCifar::new(scope, config, 7)),
    architecture!("resnet56", 3, 32, |scope, config| ResNetCifar::new(scope, config, 9)),
    architecture!("resnet18", 3, 224, |scope, config| ResNet::new(scope, config, Basic, [2, 2, 2, 2])),
    architecture!("resnet34", 3, 224, |scope, config| ResNet::new(scope, config, Basic, [3, 4, 6, 3])),
    architecture!("resnet50", 3, 224, |scope, config| ResNet::new(scope, config, Bottleneck, [3, 4, 6, 3])),
];

/// The architecture of that name.
///
/// # Errors
/// There is none; the nearest name is offered.
pub fn find(name: &str) -> Result<&'static ImageArchitecture> {
    REGISTRY.iter().find(|entry| entry.name == name).ok_or_else(|| {
        let names = REGISTRY.iter().map(|entry| entry.name);
        bad_input!("there is no image model `{name}`{}; `info` lists them", nearest_hint(name, names))
    })
}

/// Builds the model that `config` names.
pub fn build(scope: &Scope, config: &ImageModelConfig) -> Result<Box<dyn ImageModel>> {
    (find(&config.name)?.build)(scope, config)
        .with_context(|| format!("building the model `{}`", config.name))
}
