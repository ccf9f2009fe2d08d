//! A multilayer perceptron: linear layers with ReLU between them, on flattened images or on table rows.

use anyhow::Result;
use tch::Tensor;

use super::Scope;
use super::blocks::dropout;
use super::image::{ImageModel, ImageModelConfig};
use super::layers::Linear;

/// Linear layers named `0`, `2`, `4`, … as in `nn.Sequential(Linear, ReLU, Linear, …)`.
#[derive(Debug)]
pub struct Mlp {
    layers: Vec<Linear>,
    dropout: f64,
}

impl Mlp {
    /// A network of `widths[0]` inputs, `widths[1..]` the outputs of each layer. Dropout follows each hidden activation.
    pub fn new(scope: &Scope, widths: &[i64], dropout: f64) -> Result<Self> {
        let layers = widths
            .windows(2)
            .enumerate()
            .map(|(layer, pair)| Linear::new(&scope.child(2 * layer), pair[0], pair[1]))
            .collect::<Result<_>>()?;
        Ok(Self { layers, dropout })
    }

    /// An image classifier with one hidden layer of 256.
    pub fn for_images(scope: &Scope, config: &ImageModelConfig) -> Result<Self> {
        let shape = config.shape()?;
        let pixels = shape.channels * shape.size[0] * shape.size[1];
        Self::new(scope, &[pixels, 256, shape.classes], config.dropout())
    }

    /// `[batch, inputs]` to `[batch, outputs]`, without an activation on the output.
    pub fn forward(&self, input: &Tensor, train: bool) -> Tensor {
        self.last().forward(&self.hidden(input, train))
    }

    /// The activations that the last layer sees.
    fn hidden(&self, input: &Tensor, train: bool) -> Tensor {
        let hidden = &self.layers[..self.layers.len() - 1];
        hidden
            .iter()
            .fold(input.shallow_clone(), |x, layer| dropout(layer.forward(&x).relu(), self.dropout, train))
    }

    fn last(&self) -> &Linear {
        &self.layers[self.layers.len() - 1]
    }
}

impl ImageModel for Mlp {
    fn maps(&self, images: &Tensor, _train: bool) -> Tensor {
        images.flatten(1, -1) // [batch, inputs]
    }

    fn pool(&self, maps: &Tensor, train: bool) -> Tensor {
        self.hidden(maps, train)
    }

    fn head(&self, features: &Tensor, _train: bool) -> Tensor {
        self.last().forward(features)
    }

    fn head_name(&self) -> &'static str {
        "2"
    }
}
