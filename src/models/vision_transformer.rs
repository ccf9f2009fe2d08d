//! Vision transformers: Dosovitskiy et al., "An image is worth 16x16 words: transformers for image recognition at scale", 2020, in torchvision's form.

use anyhow::Result;
use tch::Tensor;

use super::Scope;
use super::attention::{AttentionOptions, MultiheadAttention};
use super::blocks::dropout;
use super::image::{ImageModel, ImageModelConfig};
use super::init::Init;
use super::layers::{Conv2d, ConvConfig, LayerNorm, Linear};
use crate::bail_input;

const EPS: f64 = 1e-6;

/// One member of the family.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Side of the square patches, in pixels.
    pub patch: i64,
    /// Encoder layers.
    pub layers: usize,
    /// Attention heads.
    pub heads: i64,
    /// Features of a patch.
    pub width: i64,
}

/// Attention and a dense network, each after a normalisation and around a shortcut.
#[derive(Debug)]
struct Layer {
    ln_1: LayerNorm,
    self_attention: MultiheadAttention,
    ln_2: LayerNorm,
    mlp: [Linear; 2],
    dropout: f64,
}

impl Layer {
    fn new(scope: &Scope, size: Size, dropout: f64) -> Result<Self> {
        let width = size.width;
        let ln_1 = LayerNorm::new(&scope.child("ln_1"), width, EPS)?;
        let self_attention = MultiheadAttention::new(&scope.child("self_attention"), width, size.heads)?;
        let ln_2 = LayerNorm::new(&scope.child("ln_2"), width, EPS)?;
        let mlp = scope.child("mlp");
        let mlp =
            [Linear::new(&mlp.child(0), width, 4 * width)?, Linear::new(&mlp.child(3), 4 * width, width)?];
        for linear in &mlp {
            linear.redraw_weight(scope, Init::xavier_uniform(&[4 * width, width]))?;
            linear.redraw_bias(scope, Init::Normal { deviation: 1e-6 })?;
        }
        Ok(Self { ln_1, self_attention, ln_2, mlp, dropout })
    }

    /// `[batch, patches + 1, width]` to the same shape.
    fn forward(&self, input: &Tensor, train: bool) -> Tensor {
        let [widen, narrow] = &self.mlp;
        let attended = self.self_attention.forward(&self.ln_1.forward(input), AttentionOptions::default());
        let x = dropout(attended, self.dropout, train) + input;
        let y = dropout(widen.forward(&self.ln_2.forward(&x)).gelu("none"), self.dropout, train);
        dropout(narrow.forward(&y), self.dropout, train) + x
    }
}

/// An encoder over patches; 86,567,656 parameters as ViT-B/16 on 224 × 224 pixels with 1,000 classes.
#[derive(Debug)]
pub struct VisionTransformer {
    conv_proj: Conv2d,
    class_token: Tensor,
    pos_embedding: Tensor,
    layers: Vec<Layer>,
    ln: LayerNorm,
    head: Linear,
    dropout: f64,
}

impl VisionTransformer {
    /// Builds the network. The image's sides must be multiples of the patch's; the position embedding has an entry for each patch.
    pub fn new(scope: &Scope, config: &ImageModelConfig, size: Size) -> Result<Self> {
        let shape = config.shape()?;
        let [height, width] = shape.size;
        let patch = size.patch;
        if height % patch != 0 || width % patch != 0 {
            bail_input!(
                "`{}` cuts images into patches of {patch} × {patch} pixels, which {height} × {width} pixels cannot be cut into: give --set \
                 data.image_size with multiples of {patch}",
                config.name
            );
        }
        let patches = ConvConfig { stride: patch, ..Default::default() };
        let conv_proj = Conv2d::new(&scope.child("conv_proj"), shape.channels, size.width, patch, patches)?;
        let class_token = scope.parameter("class_token", &[1, 1, size.width], Init::ZEROS)?;
        let encoder = scope.child("encoder");
        let length = (height / patch) * (width / patch) + 1;
        let positions = [1, length, size.width];
        let pos_embedding =
            encoder.parameter("pos_embedding", &positions, Init::Normal { deviation: 0.02 })?;
        let layers = (0..size.layers)
            .map(|number| {
                let scope = encoder.child("layers").child(format!("encoder_layer_{number}"));
                Layer::new(&scope, size, config.dropout())
            })
            .collect::<Result<_>>()?;
        let ln = LayerNorm::new(&encoder.child("ln"), size.width, EPS)?;
        let head = Linear::new(&scope.child("heads").child("head"), size.width, shape.classes)?;
        let fan_in = (shape.channels * patch * patch) as f64;
        conv_proj.redraw(scope, Init::truncated_normal((1.0 / fan_in).sqrt()), Init::ZEROS)?;
        head.redraw_weight(scope, Init::ZEROS)?;
        head.redraw_bias(scope, Init::ZEROS)?;
        Ok(Self { conv_proj, class_token, pos_embedding, layers, ln, head, dropout: config.dropout() })
    }
}

impl ImageModel for VisionTransformer {
    fn maps(&self, images: &Tensor, train: bool) -> Tensor {
        let batch = images.size()[0];
        // [batch, 3, 224, 224]
        let patches = self.conv_proj.forward(images).flatten(2, -1).transpose(1, 2); // [batch, 196, 768]
        let class_token = self.class_token.expand([batch, -1, -1], false).to_kind(patches.kind());
        let x = Tensor::cat(&[class_token, patches], 1) + &self.pos_embedding; // [batch, 197, 768]
        let x = dropout(x, self.dropout, train);
        self.layers.iter().fold(x, |x, layer| layer.forward(&x, train)) // [batch, 197, 768]
    }

    fn pool(&self, maps: &Tensor, _train: bool) -> Tensor {
        self.ln.forward(maps).select(1, 0) // [batch, 768]
    }

    fn head(&self, features: &Tensor, _train: bool) -> Tensor {
        self.head.forward(features) // [batch, classes]
    }

    fn head_name(&self) -> &'static str {
        "heads"
    }
}
