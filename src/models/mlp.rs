//! A multilayer perceptron: linear layers with ReLU between them, on flattened images or on table rows.

use anyhow::Result;
use tch::Tensor;

use super::Scope;
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
        Self::new(scope, &[pixels, 256, shape.classes], config.dropout)
    }

    /// `[batch, inputs]` to `[batch, outputs]`, without an activation on the output.
    pub fn forward(&self, input: &Tensor, train: bool) -> Tensor {
        let last = self.layers.len() - 1;
        let mut x = input.shallow_clone();
        for (position, layer) in self.layers.iter().enumerate() {
            x = layer.forward(&x);
            if position < last {
                x = x.relu().dropout(self.dropout, train);
            }
        }
        x
    }
}

impl ImageModel for Mlp {
    fn forward(&self, images: &Tensor, train: bool) -> Tensor {
        Mlp::forward(self, &images.flatten(1, -1), train)
    }
}
