//! Attention: Vaswani et al., "Attention is all you need", 2017. [`attention`] is what every transformer here computes;
//! [`SelfAttention`] puts it into the form of `torch.nn.MultiheadAttention`.

use anyhow::Result;
use tch::{Kind, Tensor};

use super::Scope;
use super::init::Init;
use super::layers::Linear;
use super::summary::record;

/// What attention does besides looking from each query at each key.
#[derive(Clone, Copy, Debug, Default)]
pub struct AttentionOptions<'a> {
    /// Which keys a query sees, broadcast to `[batch, heads, queries, keys]`: booleans, true where it sees, or numbers that are added to the
    /// scores. A query that sees no key gets zeros. Leaving it out where all is seen is faster.
    pub mask: Option<&'a Tensor>,
    /// Whether the last query sees all keys, the one before it all but one, and so on: the rule of decoders, also where the first keys come
    /// from a cache and have no queries.
    pub causal: bool,
    /// Probability that a weight is dropped; 0 in evaluation.
    pub dropout: f64,
    /// Factor on the scores; 1/√head_dim if left out.
    pub scale: Option<f64>,
}

/// Scaled-dot-product attention through libtorch's fused kernels: softmax(scale · Q Kᵀ + mask) V.
///
/// `query` is `[batch, heads, queries, head_dim]`, `key` `[batch, key heads, keys, head_dim]` and `value`
/// `[batch, key heads, keys, value_dim]`, where the heads are a multiple of the key heads (grouped-query attention: consecutive heads share
/// keys and values). The result is `[batch, heads, queries, value_dim]`.
pub fn attention(query: &Tensor, key: &Tensor, value: &Tensor, options: AttentionOptions<'_>) -> Tensor {
    let (queries, keys) = (query.size()[2], key.size()[2]);
    // The kernels count their own causal rule from the first key, and take no mask beside it.
    let kernel_causal = options.causal && options.mask.is_none() && queries == keys;
    let rule = (options.causal && !kernel_causal && queries > 1).then(|| {
        Tensor::ones([queries, keys], (Kind::Bool, query.device())).tril(keys - queries) // [queries, keys]
    });
    let mask = match (options.mask, rule) {
        (Some(mask), Some(rule)) if mask.kind() == Kind::Bool => Some(mask.logical_and(&rule)),
        (Some(mask), Some(rule)) => Some(mask.where_scalarother(&rule, f64::NEG_INFINITY)),
        (Some(mask), None) => Some(mask.shallow_clone()),
        (None, rule) => rule,
    };
    // Numbers must have the type of the scores; under autocast that is taken care of.
    let mask = mask.map(|mask| if mask.kind() == Kind::Bool { mask } else { mask.to_kind(query.kind()) });
    Tensor::scaled_dot_product_attention(
        query,
        key,
        value,
        mask,
        options.dropout,
        kernel_causal && queries > 1,
        options.scale,
        query.size()[1] != key.size()[1],
    )
}

/// `[batch, length, heads · head_dim]` to `[batch, heads, length, head_dim]`, with lengths left to the tensors so that a traced model takes any.
pub fn split_heads(input: &Tensor, head_dim: i64) -> Tensor {
    input.unflatten(-1, [-1, head_dim]).transpose(1, 2)
}

/// `[batch, heads, length, head_dim]` to `[batch, length, heads · head_dim]`.
pub fn join_heads(input: &Tensor) -> Tensor {
    input.transpose(1, 2).flatten(2, 3)
}

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
        let mixed = attention(&queries, &keys, &values, AttentionOptions::default()); // [batch, heads, length, head width]
        self.out_proj.forward(&join_heads(&mixed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, IndexOp};

    const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);

    /// The definition, with keys and values repeated for each query head.
    fn plain(query: &Tensor, key: &Tensor, value: &Tensor, seen: &Tensor, scale: f64) -> Tensor {
        let groups = query.size()[1] / key.size()[1];
        let [key, value] = [key, value].map(|heads| heads.repeat_interleave_self_int(groups, 1, None));
        let scores: Tensor = query.matmul(&key.transpose(2, 3)) * scale;
        scores.masked_fill(&seen.logical_not(), f64::NEG_INFINITY).softmax(-1, Kind::Float).matmul(&value)
    }

    #[test]
    fn every_combination_of_rules_is_the_definition() {
        for (heads, key_heads, queries, keys) in [(4, 4, 5, 5), (4, 2, 5, 5), (4, 1, 3, 7), (2, 2, 1, 6)] {
            let query = Tensor::randn([2, heads, queries, 8], FLOAT);
            let key = Tensor::randn([2, key_heads, keys, 8], FLOAT);
            let value = Tensor::randn([2, key_heads, keys, 8], FLOAT);
            let all = Tensor::ones([2, 1, queries, keys], (Kind::Bool, Device::Cpu));
            // The last key of the second sequence is padding.
            let padding = Tensor::ones([2, 1, 1, keys], (Kind::Bool, Device::Cpu));
            let _ = padding.i((1, 0, 0, keys - 1)).fill_(0);
            for (masked, causal) in [(false, false), (true, false), (false, true), (true, true)] {
                let mut seen = all.shallow_clone();
                if masked {
                    seen = seen.logical_and(&padding);
                }
                if causal {
                    seen = seen.tril(keys - queries);
                }
                let expected = plain(&query, &key, &value, &seen, 0.3);
                let additive = padding.zeros_like().to_kind(Kind::Float);
                let additive = additive.masked_fill(&padding.logical_not(), f64::NEG_INFINITY);
                for mask in [&padding, &additive] {
                    let options = AttentionOptions {
                        mask: masked.then_some(mask),
                        causal,
                        scale: Some(0.3),
                        ..AttentionOptions::default()
                    };
                    let difference = (attention(&query, &key, &value, options) - &expected).abs().max();
                    let difference = f64::try_from(difference).unwrap();
                    assert!(
                        difference < 1e-5,
                        "{heads}/{key_heads}, {queries}/{keys}, {masked}, {causal}: {difference}"
                    );
                }
            }
        }
    }
}
