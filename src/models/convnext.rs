//! ConvNeXt: Liu et al., "A ConvNet for the 2020s", 2022, in torchvision's form.

use anyhow::Result;
use tch::Tensor;

use super::blocks::stochastic_depth;
use super::image::{ImageModel, ImageModelConfig};
use super::init::Init;
use super::layers::{Conv2d, ConvConfig, LayerNorm, Linear};
use super::{Scope, bail_if_too_small};

const EPS: f64 = 1e-6;

/// A 7 × 7 filter of each channel, then a dense network on each pixel.
#[derive(Debug)]
struct Block {
    filter: Conv2d,
    norm: LayerNorm,
    widen: Linear,
    narrow: Linear,
    layer_scale: Tensor,
    dropped: f64,
}

impl Block {
    fn new(scope: &Scope, width: i64, dropped: f64) -> Result<Self> {
        let block = scope.child("block");
        let filter = ConvConfig { padding: 3, groups: width, ..Default::default() };
        Ok(Self {
            filter: Conv2d::new(&block.child(0), width, width, 7, filter)?,
            norm: LayerNorm::new(&block.child(2), width, EPS)?,
            widen: Linear::new(&block.child(3), width, 4 * width)?,
            narrow: Linear::new(&block.child(5), 4 * width, width)?,
            layer_scale: scope.parameter("layer_scale", &[width, 1, 1], Init::Constant(1e-6))?,
            dropped,
        })
    }

    fn forward(&self, input: &Tensor, train: bool) -> Tensor {
        let x = self.filter.forward(input).permute([0, 2, 3, 1]); // [batch, height, width, channels]
        let x = self.widen.forward(&self.norm.forward(&x)).gelu("none"); // [batch, height, width, 4 · channels]
        let x = self.narrow.forward(&x).permute([0, 3, 1, 2]); // [batch, channels, height, width]
        stochastic_depth(x * &self.layer_scale, self.dropped, train) + input
    }
}

/// One of the entries 2, 4 and 6 of `features`: half the image, twice the channels.
#[derive(Debug)]
struct Downsampling {
    norm: LayerNorm,
    conv: Conv2d,
}

/// Four stages; 28,589,128 parameters as ConvNeXt-T with 1,000 classes.
#[derive(Debug)]
pub struct ConvNext {
    stem: Conv2d,
    stem_norm: LayerNorm,
    stages: Vec<(Vec<Block>, Option<Downsampling>)>,
    norm: LayerNorm,
    classifier: Linear,
}

impl ConvNext {
    /// Builds the network with so many blocks in each stage, the first of `width` channels.
    pub fn new(scope: &Scope, config: &ImageModelConfig, width: i64, blocks: [usize; 4]) -> Result<Self> {
        let shape = config.shape()?;
        bail_if_too_small("a ConvNeXt", shape.size, 32)?;
        let features = scope.child("features");
        let patches = ConvConfig { stride: 4, ..Default::default() };
        let stem = Conv2d::new(&features.child(0).child(0), shape.channels, width, 4, patches)?;
        let stem_norm = LayerNorm::new(&features.child(0).child(1), width, EPS)?;
        let total: usize = blocks.iter().sum();
        let (mut stages, mut made) = (Vec::new(), 0);
        for (stage, &count) in blocks.iter().enumerate() {
            let width = width << stage;
            let place = features.child(2 * stage + 1);
            let mut list = Vec::new();
            for number in 0..count {
                let dropped = config.stochastic_depth() * made as f64 / (total as f64 - 1.0);
                list.push(Block::new(&place.child(number), width, dropped)?);
                made += 1;
            }
            let downsampling = match stage + 1 < blocks.len() {
                true => {
                    let place = features.child(2 * stage + 2);
                    let halving = ConvConfig { stride: 2, ..Default::default() };
                    Some(Downsampling {
                        norm: LayerNorm::new(&place.child(0), width, EPS)?,
                        conv: Conv2d::new(&place.child(1), width, 2 * width, 2, halving)?,
                    })
                }
                false => None,
            };
            stages.push((list, downsampling));
        }
        let classifier = scope.child("classifier");
        let norm = LayerNorm::new(&classifier.child(0), 8 * width, EPS)?;
        let classifier = Linear::new(&classifier.child(2), 8 * width, shape.classes)?;
        scope.parameters().redraw(|entry| match entry.tensor.dim() {
            2 | 4 => Some(Init::truncated_normal(0.02)),
            1 if entry.name.ends_with(".bias") => Some(Init::ZEROS),
            _ => None,
        })?;
        Ok(Self { stem, stem_norm, stages, norm, classifier })
    }
}

impl ImageModel for ConvNext {
    fn maps(&self, images: &Tensor, train: bool) -> Tensor {
        // [batch, 3, 224, 224]
        let mut x = self.stem_norm.forward_channels(&self.stem.forward(images)); // [batch, 96, 56, 56]
        for (blocks, downsampling) in &self.stages {
            x = blocks.iter().fold(x, |x, block| block.forward(&x, train));
            if let Some(Downsampling { norm, conv }) = downsampling {
                x = conv.forward(&norm.forward_channels(&x));
            }
        }
        x // [batch, 768, 7, 7]
    }

    fn pool(&self, maps: &Tensor, _train: bool) -> Tensor {
        maps.adaptive_avg_pool2d([1, 1]) // [batch, 768, 1, 1]
    }

    fn head(&self, features: &Tensor, _train: bool) -> Tensor {
        self.classifier.forward(&self.norm.forward_channels(features).flatten(1, -1)) // [batch, classes]
    }

    fn head_name(&self) -> &'static str {
        "classifier"
    }
}
