//! GoogLeNet: Szegedy et al., "Going deeper with convolutions", 2014, in torchvision's form: batch normalisation after each convolution, and 3 × 3
//! where the paper has 5 × 5.

use anyhow::Result;
use tch::Tensor;

use super::blocks::dropout;
use super::image::{ImageModel, ImageModelConfig, WeightedScores};
use super::inception::BasicConv;
use super::init::Init;
use super::layers::{Linear, max_pool_ceil};
use super::{Scope, bail_if_too_small};

/// Four branches over the same input, side by side.
#[derive(Debug)]
struct Inception {
    branch1: BasicConv,
    branch2: [BasicConv; 2],
    branch3: [BasicConv; 2],
    branch4: BasicConv,
}

/// Output channels: 1 × 1; before and after the 3 × 3; before and after the second 3 × 3; after the pooling.
type Widths = [i64; 6];

impl Inception {
    fn new(scope: &Scope, inputs: i64, widths: Widths) -> Result<Self> {
        let [single, reduced3, wide3, reduced5, wide5, pooled] = widths;
        let pair = |name: &str, reduced: i64, wide: i64| -> Result<[BasicConv; 2]> {
            let scope = scope.child(name);
            Ok([
                BasicConv::new(&scope.child(0), inputs, reduced, 1, 1, 0)?,
                BasicConv::new(&scope.child(1), reduced, wide, 3, 1, 1)?,
            ])
        };
        Ok(Self {
            branch1: BasicConv::new(&scope.child("branch1"), inputs, single, 1, 1, 0)?,
            branch2: pair("branch2", reduced3, wide3)?,
            branch3: pair("branch3", reduced5, wide5)?,
            branch4: BasicConv::new(&scope.child("branch4").child(1), inputs, pooled, 1, 1, 0)?,
        })
    }

    fn forward(&self, input: &Tensor, train: bool) -> Tensor {
        let pair = |[first, second]: &[BasicConv; 2]| second.forward(&first.forward(input, train), train);
        let pooled = max_pool_ceil(input, 3, 1, 1);
        let branches = [
            self.branch1.forward(input, train),
            pair(&self.branch2),
            pair(&self.branch3),
            self.branch4.forward(&pooled, train),
        ];
        Tensor::cat(&branches, 1)
    }
}

/// A classifier on intermediate features, which only training uses.
#[derive(Debug)]
struct Auxiliary {
    conv: BasicConv,
    fc1: Linear,
    fc2: Linear,
}

impl Auxiliary {
    fn new(scope: &Scope, inputs: i64, classes: i64) -> Result<Self> {
        Ok(Self {
            conv: BasicConv::new(&scope.child("conv"), inputs, 128, 1, 1, 0)?,
            fc1: Linear::new(&scope.child("fc1"), 2048, 1024)?,
            fc2: Linear::new(&scope.child("fc2"), 1024, classes)?,
        })
    }

    /// `[batch, inputs, 14, 14]` to `[batch, classes]`.
    fn forward(&self, input: &Tensor, probability: f64) -> Tensor {
        let x = self.conv.forward(&input.adaptive_avg_pool2d([4, 4]), true).flatten(1, -1); // [batch, 2048]
        self.fc2.forward(&dropout(self.fc1.forward(&x).relu_(), probability, true))
    }
}

/// Name, input channels and widths of each module; after `3b` and `4e` the image is halved.
const MODULES: [(&str, i64, Widths); 9] = [
    ("inception3a", 192, [64, 96, 128, 16, 32, 32]),
    ("inception3b", 256, [128, 128, 192, 32, 96, 64]),
    ("inception4a", 480, [192, 96, 208, 16, 48, 64]),
    ("inception4b", 512, [160, 112, 224, 24, 64, 64]),
    ("inception4c", 512, [128, 128, 256, 24, 64, 64]),
    ("inception4d", 512, [112, 144, 288, 32, 64, 64]),
    ("inception4e", 528, [256, 160, 320, 32, 128, 128]),
    ("inception5a", 832, [256, 160, 320, 32, 128, 128]),
    ("inception5b", 832, [384, 192, 384, 48, 128, 128]),
];

/// Nine inception modules and two auxiliary classifiers; 13,004,888 parameters with 1,000 classes.
#[derive(Debug)]
pub struct GoogLeNet {
    stem: [BasicConv; 3],
    modules: Vec<Inception>,
    /// After `4a` and after `4d`.
    auxiliaries: [Auxiliary; 2],
    fc: Linear,
    dropout: f64,
}

/// The paper's weight of each auxiliary loss (section 5).
const AUXILIARY_WEIGHT: f64 = 0.3;

impl GoogLeNet {
    /// Builds the network.
    pub fn new(scope: &Scope, config: &ImageModelConfig) -> Result<Self> {
        let shape = config.shape()?;
        bail_if_too_small("GoogLeNet", shape.size, 15)?;
        let stem = [
            BasicConv::new(&scope.child("conv1"), shape.channels, 64, 7, 2, 3)?,
            BasicConv::new(&scope.child("conv2"), 64, 64, 1, 1, 0)?,
            BasicConv::new(&scope.child("conv3"), 64, 192, 3, 1, 1)?,
        ];
        let modules = MODULES
            .iter()
            .map(|&(name, inputs, widths)| Inception::new(&scope.child(name), inputs, widths))
            .collect::<Result<_>>()?;
        let auxiliaries = [
            Auxiliary::new(&scope.child("aux1"), 512, shape.classes)?,
            Auxiliary::new(&scope.child("aux2"), 528, shape.classes)?,
        ];
        let fc = Linear::new(&scope.child("fc"), 1024, shape.classes)?;
        scope.parameters().redraw(|entry| (entry.tensor.dim() > 1).then(|| Init::truncated_normal(0.01)))?;
        Ok(Self { stem, modules, auxiliaries, fc, dropout: config.dropout() })
    }

    /// The pooled features, and what the auxiliary classifiers look at.
    fn run(&self, images: &Tensor, train: bool) -> (Tensor, [Tensor; 2]) {
        let [conv1, conv2, conv3] = &self.stem;
        // [batch, 3, 224, 224]
        let x = max_pool_ceil(&conv1.forward(images, train), 3, 2, 0); // [batch, 64, 56, 56]
        let x = conv3.forward(&conv2.forward(&x, train), train); // [batch, 192, 56, 56]
        let mut x = max_pool_ceil(&x, 3, 2, 0); // [batch, 192, 28, 28]
        let mut seen = Vec::with_capacity(self.modules.len());
        for (module, (name, ..)) in self.modules.iter().zip(MODULES) {
            x = module.forward(&x, train);
            seen.push(x.shallow_clone());
            x = match name {
                "inception3b" => max_pool_ceil(&x, 3, 2, 0), // [batch, 480, 14, 14]
                "inception4e" => max_pool_ceil(&x, 2, 2, 0), // [batch, 832, 7, 7]
                _ => x,
            };
        }
        // [batch, 1024, 7, 7]
        (x, [seen.swap_remove(2), seen.swap_remove(5)])
    }
}

impl ImageModel for GoogLeNet {
    fn maps(&self, images: &Tensor, train: bool) -> Tensor {
        self.run(images, train).0 // [batch, 1024, 7, 7]
    }

    fn head(&self, features: &Tensor, train: bool) -> Tensor {
        self.fc.forward(&dropout(features.shallow_clone(), self.dropout, train)) // [batch, classes]
    }

    fn head_name(&self) -> &'static str {
        "fc"
    }

    fn learn(&self, images: &Tensor) -> (Tensor, Vec<WeightedScores>) {
        let (maps, seen) = self.run(images, true);
        let trained = self.auxiliaries.iter().zip(&seen).filter(|(auxiliary, _)| auxiliary.fc2.is_trained());
        // torchvision drops 0.7 of the auxiliary activations where it drops 0.2 of the final ones.
        let probability = if self.dropout > 0.0 { 0.7 } else { 0.0 };
        let scores = trained
            .map(|(auxiliary, seen)| WeightedScores {
                scores: auxiliary.forward(seen, probability),
                weight: AUXILIARY_WEIGHT,
            })
            .collect();
        (self.head(&self.pool(&maps, true), true), scores)
    }
}
