//! EfficientNet: Tan, Le, "EfficientNet: rethinking model scaling for convolutional neural networks", 2019, in torchvision's form.

use anyhow::Result;
use tch::Tensor;

use super::Scope;
use super::blocks::{
    Activation, ConvNorm, ConvNormConfig, Gate, SqueezeExcitation, divisible_by_8, dropout, stochastic_depth,
};
use super::image::{ImageModel, ImageModelConfig};
use super::init::{Fan, Init};
use super::layers::{Linear, NormConfig};

/// One member of the family.
#[derive(Clone, Copy, Debug)]
pub struct Scaling {
    /// Factor on every number of channels.
    pub width: f64,
    /// Factor on every number of blocks.
    pub depth: f64,
    /// Of the batch normalisations: B5 and larger have their own.
    pub norm: NormConfig,
}

/// Expansion, kernel, stride of the first, input channels, output channels, blocks (table 1 of the paper).
pub(super) const STAGES: [(i64, i64, i64, i64, i64, i64); 7] = [
    (1, 3, 1, 32, 16, 1),
    (6, 3, 2, 16, 24, 2),
    (6, 5, 2, 24, 40, 2),
    (6, 3, 2, 40, 80, 3),
    (6, 5, 1, 80, 112, 3),
    (6, 5, 2, 112, 192, 4),
    (6, 3, 1, 192, 320, 1),
];

/// `MBConv`: widens, filters each channel alone, weighs channels, narrows.
#[derive(Debug)]
struct Block {
    expand: Option<ConvNorm>,
    depthwise: ConvNorm,
    squeeze: SqueezeExcitation,
    project: ConvNorm,
    shortcut: bool,
    /// Probability of being left out of a training step.
    dropped: f64,
}

impl Block {
    fn forward(&self, input: &Tensor, train: bool) -> Tensor {
        let x = match &self.expand {
            Some(expand) => expand.forward(input, train),
            None => input.shallow_clone(),
        };
        let x = self.squeeze.forward(&self.depthwise.forward(&x, train));
        let x = self.project.forward(&x, train);
        if self.shortcut { stochastic_depth(x, self.dropped, train) + input } else { x }
    }
}

/// Seven stages of inverted residuals; 5,288,548 parameters as B0 with 1,000 classes.
#[derive(Debug)]
pub struct EfficientNet {
    first: ConvNorm,
    blocks: Vec<Block>,
    last: ConvNorm,
    classifier: Linear,
    dropout: f64,
}

impl EfficientNet {
    /// Builds one member of the family.
    pub fn new(scope: &Scope, config: &ImageModelConfig, scaling: Scaling) -> Result<Self> {
        let shape = config.shape()?;
        let Scaling { width, depth, norm } = scaling;
        let channels = |count: i64| divisible_by_8(count as f64 * width);
        let repeated = |count: i64| (count as f64 * depth).ceil() as i64;
        let with = |kernel: i64, stride: i64, groups: i64, activation: Activation| ConvNormConfig {
            kernel,
            stride,
            groups,
            norm,
            activation,
        };
        let features = scope.child("features");
        let stem = with(3, 2, 1, Activation::Silu);
        let first = ConvNorm::new(&features.child(0), shape.channels, channels(32), stem)?;
        let total: i64 = STAGES.iter().map(|stage| repeated(stage.5)).sum();
        let mut blocks = Vec::new();
        for (stage, (expansion, kernel, first_stride, inputs, outputs, count)) in (1..).zip(STAGES) {
            let outputs = channels(outputs);
            for number in 0..repeated(count) {
                let block = features.child(stage).child(number).child("block");
                let (inputs, stride) =
                    if number == 0 { (channels(inputs), first_stride) } else { (outputs, 1) };
                let inside = divisible_by_8((inputs * expansion) as f64);
                let expand = match inside == inputs {
                    true => None,
                    false => {
                        Some(ConvNorm::new(&block.child(0), inputs, inside, with(1, 1, 1, Activation::Silu))?)
                    }
                };
                let at = usize::from(expand.is_some());
                let filter = with(kernel, stride, inside, Activation::Silu);
                let depthwise = ConvNorm::new(&block.child(at), inside, inside, filter)?;
                let squeezed = (inputs / 4).max(1);
                let squeeze = SqueezeExcitation::new(
                    &block.child(at + 1),
                    inside,
                    squeezed,
                    Activation::Silu,
                    Gate::Sigmoid,
                )?;
                let narrow = with(1, 1, 1, Activation::Identity);
                let project = ConvNorm::new(&block.child(at + 2), inside, outputs, narrow)?;
                let dropped = config.stochastic_depth() * blocks.len() as f64 / total as f64;
                let shortcut = stride == 1 && inputs == outputs;
                blocks.push(Block { expand, depthwise, squeeze, project, shortcut, dropped });
            }
        }
        let (narrow, wide) = (channels(320), 4 * channels(320));
        let last = ConvNorm::new(&features.child(8), narrow, wide, with(1, 1, 1, Activation::Silu))?;
        let classifier = Linear::new(&scope.child("classifier").child(1), wide, shape.classes)?;
        scope.parameters().redraw(|entry| {
            let shape = entry.tensor.size();
            match shape.len() {
                4 => Some(Init::relu_normal(Fan::Out, &shape)),
                2 => Some(Init::Uniform { bound: 1.0 / (shape[0] as f64).sqrt() }),
                _ if entry.name.ends_with("bias") => Some(Init::ZEROS),
                _ => None,
            }
        })?;
        Ok(Self { first, blocks, last, classifier, dropout: config.dropout() })
    }
}

impl ImageModel for EfficientNet {
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
