//! Inception v3: Szegedy et al., "Rethinking the Inception architecture for computer vision", 2015, in torchvision's form.

use anyhow::Result;
use tch::Tensor;

use super::blocks::{Activation, conv_norm, dropout};
use super::image::{ImageModel, ImageModelConfig, WeightedScores};
use super::init::Init;
use super::layers::{BatchNorm2d, Conv2d, ConvConfig, Linear, NormConfig, global_average, max_pool_with};
use super::{Scope, bail_if_too_small};

/// A convolution without bias, batch normalisation with eps 1e-3, ReLU: `BasicConv2d`.
#[derive(Debug)]
pub(super) struct BasicConv {
    conv: Conv2d,
    bn: BatchNorm2d,
}

impl BasicConv {
    /// A square kernel.
    pub(super) fn new(
        scope: &Scope,
        inputs: i64,
        outputs: i64,
        kernel: i64,
        stride: i64,
        padding: i64,
    ) -> Result<Self> {
        let config = ConvConfig { stride, padding, bias: false, ..Default::default() };
        Self::of(scope, Conv2d::new(&scope.child("conv"), inputs, outputs, kernel, config)?, outputs)
    }

    /// A kernel that keeps the image's size.
    fn rectangular(scope: &Scope, inputs: i64, outputs: i64, kernel: [i64; 2]) -> Result<Self> {
        Self::of(scope, Conv2d::rectangular(&scope.child("conv"), inputs, outputs, kernel)?, outputs)
    }

    fn of(scope: &Scope, conv: Conv2d, outputs: i64) -> Result<Self> {
        let norm = NormConfig { eps: 1e-3, ..Default::default() };
        Ok(Self { conv, bn: BatchNorm2d::with(&scope.child("bn"), outputs, norm)? })
    }

    /// `[batch, inputs, height, width]` to `[batch, outputs, height', width']`.
    pub(super) fn forward(&self, input: &Tensor, train: bool) -> Tensor {
        conv_norm(&self.conv, &self.bn, Activation::Relu, input, train)
    }
}

/// Convolutions in a row.
#[derive(Debug)]
struct Chain(Vec<BasicConv>);

impl Chain {
    /// `steps`: field name, output channels, kernel, stride.
    fn new(scope: &Scope, inputs: i64, steps: &[(&str, i64, [i64; 2], i64)]) -> Result<Self> {
        let mut inputs = inputs;
        let chain = steps.iter().map(|&(name, outputs, kernel, stride)| {
            let scope = scope.child(name);
            let conv = match (kernel, stride) {
                // What halves the image is not padded.
                ([side, other], 2) if side == other => BasicConv::new(&scope, inputs, outputs, side, 2, 0),
                _ => BasicConv::rectangular(&scope, inputs, outputs, kernel),
            };
            inputs = outputs;
            conv
        });
        Ok(Self(chain.collect::<Result<_>>()?))
    }

    fn forward(&self, input: &Tensor, train: bool) -> Tensor {
        self.0.iter().fold(input.shallow_clone(), |x, conv| conv.forward(&x, train))
    }
}

/// Mean of each 3 × 3 window, zeros around the image counted.
fn average_pool(input: &Tensor) -> Tensor {
    input.avg_pool2d([3, 3], [1, 1], [1, 1], false, true, None)
}

const ONE: [i64; 2] = [1, 1];
const THREE: [i64; 2] = [3, 3];

/// One mixed module: chains side by side, a pooling branch, and, in the last two, chains that fork at their end.
#[derive(Debug)]
struct Mixed {
    chains: Vec<Chain>,
    /// Chains that fork: the common part and the two ends.
    forks: Vec<(Chain, [BasicConv; 2])>,
    pooling: Pooling,
}

#[derive(Debug)]
enum Pooling {
    /// An average of the neighbourhood, then a 1 × 1 convolution.
    Average(BasicConv),
    /// The largest of the neighbourhood, which halves the image.
    Largest,
}

impl Mixed {
    /// 35 × 35 modules.
    fn a(scope: &Scope, inputs: i64, pooled: i64) -> Result<Self> {
        let five = [5, 5];
        Ok(Self {
            chains: vec![
                Chain::new(scope, inputs, &[("branch1x1", 64, ONE, 1)])?,
                Chain::new(scope, inputs, &[("branch5x5_1", 48, ONE, 1), ("branch5x5_2", 64, five, 1)])?,
                Chain::new(
                    scope,
                    inputs,
                    &[
                        ("branch3x3dbl_1", 64, ONE, 1),
                        ("branch3x3dbl_2", 96, THREE, 1),
                        ("branch3x3dbl_3", 96, THREE, 1),
                    ],
                )?,
            ],
            forks: Vec::new(),
            pooling: Pooling::Average(BasicConv::new(&scope.child("branch_pool"), inputs, pooled, 1, 1, 0)?),
        })
    }

    /// From 35 × 35 to 17 × 17.
    fn b(scope: &Scope, inputs: i64) -> Result<Self> {
        Ok(Self {
            chains: vec![
                Chain::new(scope, inputs, &[("branch3x3", 384, THREE, 2)])?,
                Chain::new(
                    scope,
                    inputs,
                    &[
                        ("branch3x3dbl_1", 64, ONE, 1),
                        ("branch3x3dbl_2", 96, THREE, 1),
                        ("branch3x3dbl_3", 96, THREE, 2),
                    ],
                )?,
            ],
            forks: Vec::new(),
            pooling: Pooling::Largest,
        })
    }

    /// 17 × 17 modules.
    fn c(scope: &Scope, inputs: i64, width: i64) -> Result<Self> {
        let (flat, tall) = ([1, 7], [7, 1]);
        Ok(Self {
            chains: vec![
                Chain::new(scope, inputs, &[("branch1x1", 192, ONE, 1)])?,
                Chain::new(
                    scope,
                    inputs,
                    &[
                        ("branch7x7_1", width, ONE, 1),
                        ("branch7x7_2", width, flat, 1),
                        ("branch7x7_3", 192, tall, 1),
                    ],
                )?,
                Chain::new(
                    scope,
                    inputs,
                    &[
                        ("branch7x7dbl_1", width, ONE, 1),
                        ("branch7x7dbl_2", width, tall, 1),
                        ("branch7x7dbl_3", width, flat, 1),
                        ("branch7x7dbl_4", width, tall, 1),
                        ("branch7x7dbl_5", 192, flat, 1),
                    ],
                )?,
            ],
            forks: Vec::new(),
            pooling: Pooling::Average(BasicConv::new(&scope.child("branch_pool"), inputs, 192, 1, 1, 0)?),
        })
    }

    /// From 17 × 17 to 8 × 8.
    fn d(scope: &Scope, inputs: i64) -> Result<Self> {
        Ok(Self {
            chains: vec![
                Chain::new(scope, inputs, &[("branch3x3_1", 192, ONE, 1), ("branch3x3_2", 320, THREE, 2)])?,
                Chain::new(
                    scope,
                    inputs,
                    &[
                        ("branch7x7x3_1", 192, ONE, 1),
                        ("branch7x7x3_2", 192, [1, 7], 1),
                        ("branch7x7x3_3", 192, [7, 1], 1),
                        ("branch7x7x3_4", 192, THREE, 2),
                    ],
                )?,
            ],
            forks: Vec::new(),
            pooling: Pooling::Largest,
        })
    }

    /// 8 × 8 modules.
    fn e(scope: &Scope, inputs: i64) -> Result<Self> {
        let fork = |prefix: &str, number: usize| -> Result<[BasicConv; 2]> {
            let end = |letter: &str, kernel: [i64; 2]| {
                BasicConv::rectangular(&scope.child(format!("{prefix}_{number}{letter}")), 384, 384, kernel)
            };
            Ok([end("a", [1, 3])?, end("b", [3, 1])?])
        };
        let single = Chain::new(scope, inputs, &[("branch1x1", 320, ONE, 1)])?;
        let first = Chain::new(scope, inputs, &[("branch3x3_1", 384, ONE, 1)])?;
        let first_ends = fork("branch3x3", 2)?;
        let second =
            Chain::new(scope, inputs, &[("branch3x3dbl_1", 448, ONE, 1), ("branch3x3dbl_2", 384, THREE, 1)])?;
        let second_ends = fork("branch3x3dbl", 3)?;
        Ok(Self {
            chains: vec![single],
            forks: vec![(first, first_ends), (second, second_ends)],
            pooling: Pooling::Average(BasicConv::new(&scope.child("branch_pool"), inputs, 192, 1, 1, 0)?),
        })
    }

    fn forward(&self, input: &Tensor, train: bool) -> Tensor {
        let mut parts: Vec<Tensor> = self.chains.iter().map(|chain| chain.forward(input, train)).collect();
        for (common, [first, second]) in &self.forks {
            let x = common.forward(input, train);
            parts.extend([first.forward(&x, train), second.forward(&x, train)]);
        }
        parts.push(match &self.pooling {
            Pooling::Average(conv) => conv.forward(&average_pool(input), train),
            Pooling::Largest => max_pool_with(input, 3, 2, 0),
        });
        Tensor::cat(&parts, 1)
    }
}

/// The classifier on the 17 × 17 features, which only training uses.
#[derive(Debug)]
struct Auxiliary {
    conv0: BasicConv,
    conv1: BasicConv,
    fc: Linear,
}

/// The smallest feature map that the auxiliary classifier's pooling and 5 × 5 convolution leave something of.
const LEAST_AUXILIARY_SIDE: i64 = 17;

impl Auxiliary {
    fn new(scope: &Scope, inputs: i64, classes: i64) -> Result<Self> {
        Ok(Self {
            conv0: BasicConv::new(&scope.child("conv0"), inputs, 128, 1, 1, 0)?,
            conv1: BasicConv::new(&scope.child("conv1"), 128, 768, 5, 1, 0)?,
            fc: Linear::new(&scope.child("fc"), 768, classes)?,
        })
    }

    /// `[batch, 768, 17, 17]` to `[batch, classes]`.
    fn forward(&self, input: &Tensor) -> Tensor {
        let x = input.avg_pool2d([5, 5], [3, 3], [0, 0], false, true, None); // [batch, 768, 5, 5]
        let x = self.conv1.forward(&self.conv0.forward(&x, true), true); // [batch, 768, 1, 1]
        self.fc.forward(&global_average(&x))
    }
}

/// Eleven mixed modules and an auxiliary classifier; 27,161,264 parameters with 1,000 classes.
#[derive(Debug)]
pub struct InceptionV3 {
    stem: [BasicConv; 5],
    before: Vec<Mixed>,
    auxiliary: Auxiliary,
    after: Vec<Mixed>,
    fc: Linear,
    dropout: f64,
}

/// The weight of the auxiliary loss, as in PyTorch's fine-tuning tutorial.
const AUXILIARY_WEIGHT: f64 = 0.4;

impl InceptionV3 {
    /// Builds the network.
    pub fn new(scope: &Scope, config: &ImageModelConfig) -> Result<Self> {
        let shape = config.shape()?;
        bail_if_too_small("Inception v3", shape.size, 75)?;
        let stem = [
            BasicConv::new(&scope.child("Conv2d_1a_3x3"), shape.channels, 32, 3, 2, 0)?,
            BasicConv::new(&scope.child("Conv2d_2a_3x3"), 32, 32, 3, 1, 0)?,
            BasicConv::new(&scope.child("Conv2d_2b_3x3"), 32, 64, 3, 1, 1)?,
            BasicConv::new(&scope.child("Conv2d_3b_1x1"), 64, 80, 1, 1, 0)?,
            BasicConv::new(&scope.child("Conv2d_4a_3x3"), 80, 192, 3, 1, 0)?,
        ];
        let before = vec![
            Mixed::a(&scope.child("Mixed_5b"), 192, 32)?,
            Mixed::a(&scope.child("Mixed_5c"), 256, 64)?,
            Mixed::a(&scope.child("Mixed_5d"), 288, 64)?,
            Mixed::b(&scope.child("Mixed_6a"), 288)?,
            Mixed::c(&scope.child("Mixed_6b"), 768, 128)?,
            Mixed::c(&scope.child("Mixed_6c"), 768, 160)?,
            Mixed::c(&scope.child("Mixed_6d"), 768, 160)?,
            Mixed::c(&scope.child("Mixed_6e"), 768, 192)?,
        ];
        let auxiliary = Auxiliary::new(&scope.child("AuxLogits"), 768, shape.classes)?;
        let after = vec![
            Mixed::d(&scope.child("Mixed_7a"), 768)?,
            Mixed::e(&scope.child("Mixed_7b"), 1280)?,
            Mixed::e(&scope.child("Mixed_7c"), 2048)?,
        ];
        let fc = Linear::new(&scope.child("fc"), 2048, shape.classes)?;
        scope.parameters().redraw(|entry| {
            let deviation = if entry.name == "AuxLogits.fc.weight" { 0.001 } else { 0.1 };
            (entry.tensor.dim() > 1).then(|| Init::truncated_normal(deviation))
        })?;
        Ok(Self { stem, before, auxiliary, after, fc, dropout: config.dropout() })
    }

    /// The features that the auxiliary classifier looks at.
    fn middle(&self, images: &Tensor, train: bool) -> Tensor {
        let [conv1, conv2, conv3, conv4, conv5] = &self.stem;
        // [batch, 3, 299, 299]
        let x = conv2.forward(&conv1.forward(images, train), train); // [batch, 32, 147, 147]
        let x = max_pool_with(&conv3.forward(&x, train), 3, 2, 0); // [batch, 64, 73, 73]
        let x = conv5.forward(&conv4.forward(&x, train), train); // [batch, 192, 71, 71]
        let x = max_pool_with(&x, 3, 2, 0); // [batch, 192, 35, 35]
        self.before.iter().fold(x, |x, module| module.forward(&x, train)) // [batch, 768, 17, 17]
    }

    fn end(&self, middle: &Tensor, train: bool) -> Tensor {
        // [batch, 2048, 8, 8]
        self.after.iter().fold(middle.shallow_clone(), |x, module| module.forward(&x, train))
    }
}

impl ImageModel for InceptionV3 {
    fn maps(&self, images: &Tensor, train: bool) -> Tensor {
        self.end(&self.middle(images, train), train)
    }

    fn head(&self, features: &Tensor, train: bool) -> Tensor {
        self.fc.forward(&dropout(features.shallow_clone(), self.dropout, train)) // [batch, classes]
    }

    fn head_name(&self) -> &'static str {
        "fc"
    }

    fn learn(&self, images: &Tensor) -> (Tensor, Vec<WeightedScores>) {
        let middle = self.middle(images, true);
        let side = middle.size()[2..].iter().min().copied().unwrap_or_default();
        let auxiliary = (side >= LEAST_AUXILIARY_SIDE && self.auxiliary.fc.is_trained())
            .then(|| WeightedScores { scores: self.auxiliary.forward(&middle), weight: AUXILIARY_WEIGHT });
        (self.head(&self.pool(&self.end(&middle, true), true), true), auxiliary.into_iter().collect())
    }
}
