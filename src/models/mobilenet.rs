//! MobileNets: Sandler et al., "MobileNetV2: inverted residuals and linear bottlenecks", 2018; Howard et al., "Searching for
//! MobileNetV3", 2019. Both in torchvision's form.

use anyhow::Result;
use tch::Tensor;

use super::blocks::{
    Activation, ConvNorm, ConvNormConfig, Gate, SqueezeExcitation, conv_norm, divisible_by_8, dropout,
};
use super::image::{ImageModel, ImageModelConfig};
use super::init::{Fan, Init};
use super::layers::{BatchNorm2d, Conv2d, ConvConfig, Linear, NormConfig};
use super::{Parameters, Scope};

/// Widens, filters each channel alone, narrows; with a shortcut where nothing changes shape.
#[derive(Debug)]
struct InvertedResidual {
    expand: Option<ConvNorm>,
    depthwise: ConvNorm,
    squeeze: Option<SqueezeExcitation>,
    project: Projection,
    shortcut: bool,
}

/// The narrowing convolution with its normalisation: two fields of one list in version 2, a block of its own in version 3.
#[derive(Debug)]
enum Projection {
    Separate(Conv2d, BatchNorm2d),
    Block(ConvNorm),
}

impl InvertedResidual {
    fn forward(&self, input: &Tensor, train: bool) -> Tensor {
        let x = match &self.expand {
            Some(expand) => expand.forward(input, train),
            None => input.shallow_clone(),
        };
        let x = self.depthwise.forward(&x, train);
        let x = match &self.squeeze {
            Some(squeeze) => squeeze.forward(&x),
            None => x,
        };
        let x = match &self.project {
            Projection::Separate(conv, norm) => conv_norm(conv, norm, Activation::Identity, &x, train),
            Projection::Block(block) => block.forward(&x, train),
        };
        if self.shortcut { x + input } else { x }
    }
}

/// The loops at the end of both constructors.
fn redraw(parameters: &Parameters) -> Result<()> {
    parameters.redraw(|entry| {
        let shape = entry.tensor.size();
        match shape.len() {
            4 => Some(Init::relu_normal(Fan::Out, &shape)),
            2 => Some(Init::Normal { deviation: 0.01 }),
            _ if entry.name.ends_with("bias") => Some(Init::ZEROS),
            _ => None,
        }
    })
}

/// Version 2; 3,504,872 parameters with 1,000 classes.
#[derive(Debug)]
pub struct MobileNetV2 {
    first: ConvNorm,
    blocks: Vec<InvertedResidual>,
    last: ConvNorm,
    classifier: Linear,
    dropout: f64,
}

/// Expansion, output channels, blocks, stride of the first (table 2 of the paper).
const V2_GROUPS: [(i64, i64, usize, i64); 7] = [
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
];

impl MobileNetV2 {
    /// Builds the network.
    pub fn new(scope: &Scope, config: &ImageModelConfig) -> Result<Self> {
        let shape = config.shape()?;
        let plan = |kernel: i64, stride: i64, groups: i64| ConvNormConfig {
            kernel,
            stride,
            groups,
            norm: NormConfig::default(),
            activation: Activation::Relu6,
        };
        let features = scope.child("features");
        let first = ConvNorm::new(&features.child(0), shape.channels, 32, plan(3, 2, 1))?;
        let mut blocks = Vec::new();
        let mut inputs = 32;
        for (expansion, outputs, count, group_stride) in V2_GROUPS {
            for number in 0..count {
                let conv = features.child(blocks.len() + 1).child("conv");
                let stride = if number == 0 { group_stride } else { 1 };
                let hidden = inputs * expansion;
                let expand = match expansion {
                    1 => None,
                    _ => Some(ConvNorm::new(&conv.child(0), inputs, hidden, plan(1, 1, 1))?),
                };
                let at = usize::from(expand.is_some());
                let depthwise = ConvNorm::new(&conv.child(at), hidden, hidden, plan(3, stride, hidden))?;
                let plain = ConvConfig { bias: false, ..Default::default() };
                let project = Projection::Separate(
                    Conv2d::new(&conv.child(at + 1), hidden, outputs, 1, plain)?,
                    BatchNorm2d::new(&conv.child(at + 2), outputs)?,
                );
                let shortcut = stride == 1 && inputs == outputs;
                blocks.push(InvertedResidual { expand, depthwise, squeeze: None, project, shortcut });
                inputs = outputs;
            }
        }
        let last = ConvNorm::new(&features.child(blocks.len() + 1), inputs, 1280, plan(1, 1, 1))?;
        let classifier = Linear::new(&scope.child("classifier").child(1), 1280, shape.classes)?;
        redraw(scope.parameters())?;
        Ok(Self { first, blocks, last, classifier, dropout: config.dropout() })
    }
}

impl ImageModel for MobileNetV2 {
    fn maps(&self, images: &Tensor, train: bool) -> Tensor {
        // [batch, 3, 224, 224]
        let x = self.first.forward(images, train); // [batch, 32, 112, 112]
        let x = self.blocks.iter().fold(x, |x, block| block.forward(&x, train)); // [batch, 320, 7, 7]
        self.last.forward(&x, train) // [batch, 1280, 7, 7]
    }

    fn head(&self, features: &Tensor, train: bool) -> Tensor {
        self.classifier.forward(&dropout(features.shallow_clone(), self.dropout, train)) // [batch, classes]
    }

    fn head_name(&self) -> &'static str {
        "classifier"
    }
}

/// Which of the two networks of version 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum V3Size {
    /// Table 1 of the paper.
    Large,
    /// Table 2.
    Small,
}

/// Kernel, channels inside, channels out, squeeze-and-excitation, activation, stride.
type V3Block = (i64, i64, i64, bool, Activation, i64);

const RE: Activation = Activation::Relu;
const HS: Activation = Activation::Hardswish;

const V3_LARGE: [V3Block; 15] = [
    (3, 16, 16, false, RE, 1),
    (3, 64, 24, false, RE, 2),
    (3, 72, 24, false, RE, 1),
    (5, 72, 40, true, RE, 2),
    (5, 120, 40, true, RE, 1),
    (5, 120, 40, true, RE, 1),
    (3, 240, 80, false, HS, 2),
    (3, 200, 80, false, HS, 1),
    (3, 184, 80, false, HS, 1),
    (3, 184, 80, false, HS, 1),
    (3, 480, 112, true, HS, 1),
    (3, 672, 112, true, HS, 1),
    (5, 672, 160, true, HS, 2),
    (5, 960, 160, true, HS, 1),
    (5, 960, 160, true, HS, 1),
];

const V3_SMALL: [V3Block; 11] = [
    (3, 16, 16, true, RE, 2),
    (3, 72, 24, false, RE, 2),
    (3, 88, 24, false, RE, 1),
    (5, 96, 40, true, HS, 2),
    (5, 240, 40, true, HS, 1),
    (5, 240, 40, true, HS, 1),
    (5, 120, 48, true, HS, 1),
    (5, 144, 48, true, HS, 1),
    (5, 288, 96, true, HS, 2),
    (5, 576, 96, true, HS, 1),
    (5, 576, 96, true, HS, 1),
];

/// Version 3; 5,483,032 (large) or 2,542,856 (small) parameters with 1,000 classes.
#[derive(Debug)]
pub struct MobileNetV3 {
    first: ConvNorm,
    blocks: Vec<InvertedResidual>,
    last: ConvNorm,
    classifier: [Linear; 2],
    dropout: f64,
}

impl MobileNetV3 {
    /// Builds the network.
    pub fn new(scope: &Scope, config: &ImageModelConfig, size: V3Size) -> Result<Self> {
        let shape = config.shape()?;
        let (plan, hidden): (&[V3Block], i64) = match size {
            V3Size::Large => (&V3_LARGE, 1280),
            V3Size::Small => (&V3_SMALL, 1024),
        };
        let with = |kernel: i64, stride: i64, groups: i64, activation: Activation| ConvNormConfig {
            kernel,
            stride,
            groups,
            norm: NormConfig { eps: 1e-3, momentum: 0.01 },
            activation,
        };
        let features = scope.child("features");
        let first = ConvNorm::new(&features.child(0), shape.channels, 16, with(3, 2, 1, HS))?;
        let mut blocks = Vec::new();
        let mut inputs = 16;
        for &(kernel, inside, outputs, squeezes, activation, stride) in plan {
            let scope = features.child(blocks.len() + 1).child("block");
            let mut next = 0;
            let mut place = || {
                next += 1;
                scope.child(next - 1)
            };
            let expand = match inside == inputs {
                true => None,
                false => Some(ConvNorm::new(&place(), inputs, inside, with(1, 1, 1, activation))?),
            };
            let depthwise =
                ConvNorm::new(&place(), inside, inside, with(kernel, stride, inside, activation))?;
            let squeeze = match squeezes {
                true => {
                    let squeezed = divisible_by_8((inside / 4) as f64);
                    Some(SqueezeExcitation::new(&place(), inside, squeezed, RE, Gate::Hardsigmoid)?)
                }
                false => None,
            };
            let project = Projection::Block(ConvNorm::new(
                &place(),
                inside,
                outputs,
                with(1, 1, 1, Activation::Identity),
            )?);
            let shortcut = stride == 1 && inputs == outputs;
            blocks.push(InvertedResidual { expand, depthwise, squeeze, project, shortcut });
            inputs = outputs;
        }
        let last = ConvNorm::new(&features.child(blocks.len() + 1), inputs, 6 * inputs, with(1, 1, 1, HS))?;
        let classifier = scope.child("classifier");
        let classifier = [
            Linear::new(&classifier.child(0), 6 * inputs, hidden)?,
            Linear::new(&classifier.child(3), hidden, shape.classes)?,
        ];
        redraw(scope.parameters())?;
        Ok(Self { first, blocks, last, classifier, dropout: config.dropout() })
    }
}

impl ImageModel for MobileNetV3 {
    fn maps(&self, images: &Tensor, train: bool) -> Tensor {
        // [batch, 3, 224, 224]
        let x = self.first.forward(images, train); // [batch, 16, 112, 112]
        let x = self.blocks.iter().fold(x, |x, block| block.forward(&x, train)); // [batch, 160, 7, 7]
        self.last.forward(&x, train) // [batch, 960, 7, 7]
    }

    fn head(&self, features: &Tensor, train: bool) -> Tensor {
        let [first, last] = &self.classifier;
        last.forward(&dropout(first.forward(features).hardswish(), self.dropout, train)) // [batch, classes]
    }

    fn head_name(&self) -> &'static str {
        "classifier"
    }
}
