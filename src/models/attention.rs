//! Multi-head attention: Vaswani et al., "Attention is all you need", 2017, in the form of `torch.nn.MultiheadAttention`.

use anyhow::Result;
use tch::Tensor;

use super::Scope;
use super::init::Init;
use super::layers::Linear;
use super::summary::record;

/// `nn.MultiheadAttention(batch_first=True)` where queries, keys and values are the same sequence.
#[derive(Debug)]
pub struct SelfAttention {
    name: String,
    in_proj_weight: Tensor,
    in_proj_bias: Tensor,
    out_proj: Linear,
    heads: i64,
}

impl SelfAttention {
    /// `in_proj_weight` is `[3 · width, width]`: queries, keys, values. `heads` divides `width`.
    pub fn new(scope: &Scope, width: i64, heads: i64) -> Result<Self> {
        let shape = [3 * width, width];
        let in_proj_weight = scope.parameter("in_proj_weight", &shape, Init::ZEROS)?;
        let in_proj_bias = scope.parameter("in_proj_bias", &[3 * width], Init::ZEROS)?;
        let out_proj = Linear::new(&scope.child("out_proj"), width, width)?;
        // PyTorch draws the output projection first.
        scope.parameters().redraw_tensor(&in_proj_weight, Init::xavier_uniform(&shape))?;
        out_proj.redraw_bias(scope, Init::ZEROS)?;
        Ok(Self { name: scope.name().to_owned(), in_proj_weight, in_proj_bias, out_proj, heads })
    }

    /// `[batch, length, width]` to the same shape.
    pub fn forward(&self, input: &Tensor) -> Tensor {
        let (batch, length, width) = input.size3().unwrap();
        let head_width = width / self.heads;
        let projected = input.linear(&self.in_proj_weight, Some(&self.in_proj_bias)); // [batch, length, 3 · width]
        record(
            &self.name,
            "SelfAttention",
            &projected,
            &[Some(&self.in_proj_weight), Some(&self.in_proj_bias)],
            || {
                // The projections, and the products of queries with keys and of weights with values.
                (batch * length * 3 * width * width + 2 * batch * length * length * width) as usize
            },
        );
        let parts = projected.view([batch, length, 3, self.heads, head_width]).permute([2, 0, 3, 1, 4]);
        let [queries, keys, values] = [0, 1, 2].map(|part| parts.select(0, part)); // [batch, heads, length, head width]
        let mixed = Tensor::scaled_dot_product_attention(
            &queries,
            &keys,
            &values,
            None::<&Tensor>,
            0.0,
            false,
            None,
            false,
        ); // [batch, heads, length, head width]
        self.out_proj.forward(&mixed.transpose(1, 2).reshape([batch, length, width]))
    }
}
