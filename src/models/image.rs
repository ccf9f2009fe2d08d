//! What image classifiers have in common, and the list of them.

use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::Scope;
use super::alexnet::AlexNet;
use super::convnext::ConvNext;
use super::densenet::DenseNet;
use super::efficientnet::{EfficientNet, Scaling};
use super::efficientnet_lite::EfficientNetLite;
use super::googlenet::GoogLeNet;
use super::inception::InceptionV3;
use super::layers::{NormConfig, global_average};
use super::lenet::LeNet5;
use super::mlp::Mlp;
use super::mobilenet::{MobileNetV2, MobileNetV3, V3Size};
use super::resnet::BlockKind::{self, Basic, Bottleneck};
use super::resnet::ResNet;
use super::resnet_cifar::ResNetCifar;
use super::scripted::{self, ScriptConfig, ScriptedModel};
use super::small_cnn::{KerasCnn, TorchCnn};
use super::squeezenet::{SqueezeNet, Version};
use super::vgg::Vgg;
use super::vision_transformer::{Size, VisionTransformer};
use crate::recipe::nearest_hint;
use crate::{bad_input, bail_input};

/// A network from images to class scores: a backbone that makes maps and of them features, and a head that makes scores of these.
///
/// In each function `train` turns dropout and batch statistics on.
pub trait ImageModel: std::fmt::Debug {
    /// `[batch, channels, height, width]` to the last maps before their places are given up, `[batch, maps, rows, columns]`; in networks
    /// without convolutions, what comes before the features, of another number of dimensions.
    fn maps(&self, images: &Tensor, train: bool) -> Tensor;

    /// Maps to what the head takes, batch first: by default their means.
    fn pool(&self, maps: &Tensor, _train: bool) -> Tensor {
        global_average(maps)
    }

    /// `[batch, channels, height, width]` to what the head takes, batch first.
    fn features(&self, images: &Tensor, train: bool) -> Tensor {
        self.pool(&self.maps(images, train), train)
    }

    /// Features to logits `[batch, classes]`.
    fn head(&self, features: &Tensor, train: bool) -> Tensor;

    /// What the names of the head's parameters begin with.
    fn head_name(&self) -> &'static str;

    /// `[batch, channels, height, width]` to logits `[batch, classes]`.
    fn forward(&self, images: &Tensor, train: bool) -> Tensor {
        self.head(&self.features(images, train), train)
    }

    /// Writes the network as the TorchScript module that it is made of; nothing where it is made of layers of ours, which are traced.
    fn save_script(&self, _path: &Path) -> Option<Result<()>> {
        None
    }

    /// The logits of a training step, and those of classifiers that exist for training only.
    fn learn(&self, images: &Tensor) -> (Tensor, Vec<WeightedScores>) {
        (self.forward(images, true), Vec::new())
    }
}

/// What an auxiliary classifier makes of a batch.
#[derive(Debug)]
pub struct WeightedScores {
    /// Logits `[batch, classes]`.
    pub scores: Tensor,
    /// Factor on their loss, which is added to the main one.
    pub weight: f64,
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
    /// Probability with which hidden activations are dropped in training; the architecture's own if left out.
    pub dropout: Option<f64>,
    /// Probability with which the last residual branch is left out in training, earlier ones in proportion to their depth; the architecture's
    /// own if left out.
    pub stochastic_depth: Option<f64>,
    /// The module behind the name `torchscript`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub script: Option<ScriptConfig>,
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
    /// Of the name, with everything else left to the architecture and the data.
    pub fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            num_classes: None,
            in_channels: None,
            image_size: None,
            dropout: None,
            stochastic_depth: None,
            script: None,
        }
    }

    /// Probability of dropout, where [`build`] has settled it.
    pub(super) fn dropout(&self) -> f64 {
        self.dropout.unwrap_or_default()
    }

    /// Probability of leaving out the last residual branch, likewise.
    pub(super) fn stochastic_depth(&self) -> f64 {
        self.stochastic_depth.unwrap_or_default()
    }

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
        if self.name == scripted::NAME && self.script.is_none() {
            bail_input!(
                "model.script is missing: give the module's file with --init-from FILE --head linear"
            );
        }
        if self.script.is_some() && self.name != scripted::NAME {
            bail_input!("model.script goes with the name `{}`, not with `{}`", scripted::NAME, self.name);
        }
        let (dropout, stochastic_depth) = match &self.script {
            Some(_) => (None, None),
            None => {
                let architecture = find(&self.name)?;
                (architecture.dropout, architecture.stochastic_depth)
            }
        };
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
        for (key, given, own) in [
            ("dropout", self.dropout, dropout),
            ("stochastic_depth", self.stochastic_depth, stochastic_depth),
        ] {
            match (given, own) {
                (Some(value), _) if !(0.0..1.0).contains(&value) => {
                    bail_input!("model.{key} is {value}: it must be at least 0 and below 1")
                }
                (Some(value), None) if value > 0.0 => {
                    bail_input!("model.{key} is {value} but `{}` has no such layer: leave it out", self.name)
                }
                _ => {}
            }
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
    /// Classes it usually tells apart, likewise.
    pub usual_classes: i64,
    /// Its own probability of dropout, where it has such layers.
    pub dropout: Option<f64>,
    /// Its own probability of leaving out the last residual branch, where it does that.
    pub stochastic_depth: Option<f64>,
    /// Makes the network under a scope.
    build: fn(&Scope, &ImageModelConfig) -> Result<Box<dyn ImageModel>>,
}

type Build = fn(&Scope, &ImageModelConfig) -> Result<Box<dyn ImageModel>>;

/// A network for small images of ten kinds, in grey or colour.
const fn small(name: &'static str, channels: i64, side: i64, build: Build) -> ImageArchitecture {
    let (usual_input, usual_classes) = ((channels, [side, side]), 10);
    ImageArchitecture { name, usual_input, usual_classes, dropout: None, stochastic_depth: None, build }
}

/// A network for ImageNet's photographs.
const fn large(name: &'static str, side: i64, build: Build) -> ImageArchitecture {
    ImageArchitecture { usual_classes: 1000, ..small(name, 3, side, build) }
}

impl ImageArchitecture {
    const fn dropout(self, probability: f64) -> Self {
        Self { dropout: Some(probability), ..self }
    }

    const fn stochastic_depth(self, probability: f64) -> Self {
        Self { stochastic_depth: Some(probability), ..self }
    }
}

fn boxed<M: ImageModel + 'static>(model: Result<M>) -> Result<Box<dyn ImageModel>> {
    Ok(Box::new(model?))
}

const BOTTLENECK: BlockKind = Bottleneck { groups: 1, group_width: 64 };

/// The batch normalisation of EfficientNet B0 to B4.
const NORM: NormConfig = NormConfig { eps: 1e-5, momentum: 0.1 };
/// And of B5 to B7.
const LARGE_NORM: NormConfig = NormConfig { eps: 1e-3, momentum: 0.01 };

/// Every image classifier, by name. Those from `alexnet` on have torchvision's names and parameter names, `efficientnet-lite0` those of its
/// Python package.
#[rustfmt::skip]
pub const REGISTRY: &[ImageArchitecture] = &[
    small("lenet5", 1, 28, |scope, config| boxed(LeNet5::new(scope, config))).dropout(0.0),
    small("mlp", 1, 28, |scope, config| boxed(Mlp::for_images(scope, config))).dropout(0.0),
    small("keras-cnn", 3, 32, |scope, config| boxed(KerasCnn::new(scope, config))).dropout(0.0),
    small("torch-cnn", 3, 32, |scope, config| boxed(TorchCnn::new(scope, config))).dropout(0.0),
    small("resnet20", 3, 32, |scope, config| boxed(ResNetCifar::new(scope, config, 3))),
    small("resnet32", 3, 32, |scope, config| boxed(ResNetCifar::new(scope, config, 5))),
    small("resnet44", 3, 32, |scope, config| boxed(ResNetCifar::new(scope, config, 7))),
    small("resnet56", 3, 32, |scope, config| boxed(ResNetCifar::new(scope, config, 9))),
    large("alexnet", 224, |scope, config| boxed(AlexNet::new(scope, config))).dropout(0.5),
    large("vgg11", 224, |scope, config| boxed(Vgg::new(scope, config, [1, 1, 2, 2, 2], false))).dropout(0.5),
    large("vgg11_bn", 224, |scope, config| boxed(Vgg::new(scope, config, [1, 1, 2, 2, 2], true))).dropout(0.5),
    large("vgg13", 224, |scope, config| boxed(Vgg::new(scope, config, [2, 2, 2, 2, 2], false))).dropout(0.5),
    large("vgg13_bn", 224, |scope, config| boxed(Vgg::new(scope, config, [2, 2, 2, 2, 2], true))).dropout(0.5),
    large("vgg16", 224, |scope, config| boxed(Vgg::new(scope, config, [2, 2, 3, 3, 3], false))).dropout(0.5),
    large("vgg16_bn", 224, |scope, config| boxed(Vgg::new(scope, config, [2, 2, 3, 3, 3], true))).dropout(0.5),
    large("vgg19", 224, |scope, config| boxed(Vgg::new(scope, config, [2, 2, 4, 4, 4], false))).dropout(0.5),
    large("vgg19_bn", 224, |scope, config| boxed(Vgg::new(scope, config, [2, 2, 4, 4, 4], true))).dropout(0.5),
    large("googlenet", 224, |scope, config| boxed(GoogLeNet::new(scope, config))).dropout(0.2),
    large("inception_v3", 299, |scope, config| boxed(InceptionV3::new(scope, config))).dropout(0.5),
    large("resnet18", 224, |scope, config| boxed(ResNet::new(scope, config, Basic, [2, 2, 2, 2]))),
    large("resnet34", 224, |scope, config| boxed(ResNet::new(scope, config, Basic, [3, 4, 6, 3]))),
    large("resnet50", 224, |scope, config| boxed(ResNet::new(scope, config, BOTTLENECK, [3, 4, 6, 3]))),
    large("resnet101", 224, |scope, config| boxed(ResNet::new(scope, config, BOTTLENECK, [3, 4, 23, 3]))),
    large("resnet152", 224, |scope, config| boxed(ResNet::new(scope, config, BOTTLENECK, [3, 8, 36, 3]))),
    large("resnext50_32x4d", 224, |scope, config| {
        boxed(ResNet::new(scope, config, Bottleneck { groups: 32, group_width: 4 }, [3, 4, 6, 3]))
    }),
    large("resnext101_32x8d", 224, |scope, config| {
        boxed(ResNet::new(scope, config, Bottleneck { groups: 32, group_width: 8 }, [3, 4, 23, 3]))
    }),
    large("resnext101_64x4d", 224, |scope, config| {
        boxed(ResNet::new(scope, config, Bottleneck { groups: 64, group_width: 4 }, [3, 4, 23, 3]))
    }),
    large("wide_resnet50_2", 224, |scope, config| {
        boxed(ResNet::new(scope, config, Bottleneck { groups: 1, group_width: 128 }, [3, 4, 6, 3]))
    }),
    large("wide_resnet101_2", 224, |scope, config| {
        boxed(ResNet::new(scope, config, Bottleneck { groups: 1, group_width: 128 }, [3, 4, 23, 3]))
    }),
    large("densenet121", 224, |scope, config| boxed(DenseNet::new(scope, config, 32, 64, [6, 12, 24, 16]))),
    large("densenet161", 224, |scope, config| boxed(DenseNet::new(scope, config, 48, 96, [6, 12, 36, 24]))),
    large("densenet169", 224, |scope, config| boxed(DenseNet::new(scope, config, 32, 64, [6, 12, 32, 32]))),
    large("densenet201", 224, |scope, config| boxed(DenseNet::new(scope, config, 32, 64, [6, 12, 48, 32]))),
    large("mobilenet_v2", 224, |scope, config| boxed(MobileNetV2::new(scope, config))).dropout(0.2),
    large("mobilenet_v3_large", 224, |scope, config| boxed(MobileNetV3::new(scope, config, V3Size::Large))).dropout(0.2),
    large("mobilenet_v3_small", 224, |scope, config| boxed(MobileNetV3::new(scope, config, V3Size::Small))).dropout(0.2),
    large("squeezenet1_0", 224, |scope, config| boxed(SqueezeNet::new(scope, config, Version::V1_0))).dropout(0.5),
    large("squeezenet1_1", 224, |scope, config| boxed(SqueezeNet::new(scope, config, Version::V1_1))).dropout(0.5),
    large("efficientnet_b0", 224, |scope, config| efficientnet(scope, config, 1.0, 1.0, NORM)).dropout(0.2).stochastic_depth(0.2),
    large("efficientnet_b1", 240, |scope, config| efficientnet(scope, config, 1.0, 1.1, NORM)).dropout(0.2).stochastic_depth(0.2),
    large("efficientnet_b2", 288, |scope, config| efficientnet(scope, config, 1.1, 1.2, NORM)).dropout(0.3).stochastic_depth(0.2),
    large("efficientnet_b3", 300, |scope, config| efficientnet(scope, config, 1.2, 1.4, NORM)).dropout(0.3).stochastic_depth(0.2),
    large("efficientnet_b4", 380, |scope, config| efficientnet(scope, config, 1.4, 1.8, NORM)).dropout(0.4).stochastic_depth(0.2),
    large("efficientnet_b5", 456, |scope, config| efficientnet(scope, config, 1.6, 2.2, LARGE_NORM)).dropout(0.4).stochastic_depth(0.2),
    large("efficientnet_b6", 528, |scope, config| efficientnet(scope, config, 1.8, 2.6, LARGE_NORM)).dropout(0.5).stochastic_depth(0.2),
    large("efficientnet_b7", 600, |scope, config| efficientnet(scope, config, 2.0, 3.1, LARGE_NORM)).dropout(0.5).stochastic_depth(0.2),
    large("efficientnet-lite0", 224, |scope, config| boxed(EfficientNetLite::new(scope, config))).dropout(0.2).stochastic_depth(0.2),
    large("convnext_tiny", 224, |scope, config| boxed(ConvNext::new(scope, config, 96, [3, 3, 9, 3]))).stochastic_depth(0.1),
    large("convnext_small", 224, |scope, config| boxed(ConvNext::new(scope, config, 96, [3, 3, 27, 3]))).stochastic_depth(0.4),
    large("convnext_base", 224, |scope, config| boxed(ConvNext::new(scope, config, 128, [3, 3, 27, 3]))).stochastic_depth(0.5),
    large("convnext_large", 224, |scope, config| boxed(ConvNext::new(scope, config, 192, [3, 3, 27, 3]))).stochastic_depth(0.5),
    large("vit_b_16", 224, |scope, config| vision_transformer(scope, config, 16, 12, 12, 768)).dropout(0.0),
    large("vit_b_32", 224, |scope, config| vision_transformer(scope, config, 32, 12, 12, 768)).dropout(0.0),
    large("vit_l_16", 224, |scope, config| vision_transformer(scope, config, 16, 24, 16, 1024)).dropout(0.0),
    large("vit_l_32", 224, |scope, config| vision_transformer(scope, config, 32, 24, 16, 1024)).dropout(0.0),
    large("vit_h_14", 224, |scope, config| vision_transformer(scope, config, 14, 32, 16, 1280)).dropout(0.0),
];

fn efficientnet(
    scope: &Scope,
    config: &ImageModelConfig,
    width: f64,
    depth: f64,
    norm: NormConfig,
) -> Result<Box<dyn ImageModel>> {
    boxed(EfficientNet::new(scope, config, Scaling { width, depth, norm }))
}

fn vision_transformer(
    scope: &Scope,
    config: &ImageModelConfig,
    patch: i64,
    layers: usize,
    heads: i64,
    width: i64,
) -> Result<Box<dyn ImageModel>> {
    boxed(VisionTransformer::new(scope, config, Size { patch, layers, heads, width }))
}

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

/// Builds the model that `config` names, with the architecture's own dropout where the config has none.
pub fn build(scope: &Scope, config: &ImageModelConfig) -> Result<Box<dyn ImageModel>> {
    if let Some(script) = &config.script {
        let ImageShape { channels, size: [height, width], classes } = config.shape()?;
        let options = (Kind::Float, scope.parameters().device());
        let image = Tensor::f_zeros([1, channels, height, width], options)?;
        return boxed(ScriptedModel::new(scope, script, ("images", &image), classes));
    }
    let architecture = find(&config.name)?;
    let config = ImageModelConfig {
        dropout: config.dropout.or(architecture.dropout),
        stochastic_depth: config.stochastic_depth.or(architecture.stochastic_depth),
        ..config.clone()
    };
    (architecture.build)(scope, &config).with_context(|| format!("building the model `{}`", config.name))
}
