//! Attention: Vaswani et al., "Attention is all you need", 2017. [`attention`] is what every transformer here computes;
//! [`MultiheadAttention`] puts it into the form of `torch.nn.MultiheadAttention`.

use std::cell::RefCell;

use anyhow::Result;
use tch::{Device, Kind, Tensor};

use super::Scope;
use super::init::Init;
use super::layers::{Linear, forward_linear};
use super::summary::record;
use crate::native::dropout;

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

thread_local! {
    static WEIGHTS: RefCell<Option<Vec<Tensor>>> = const { RefCell::new(None) };
}

/// Runs `forward` and returns the weights of every [`attention`] in it, in the order of the calls: `[batch, heads, queries, keys]` each.
pub fn weights_of<T>(forward: impl FnOnce() -> T) -> (T, Vec<Tensor>) {
    WEIGHTS.with_borrow_mut(|weights| *weights = Some(Vec::new()));
    let result = forward();
    (result, WEIGHTS.with_borrow_mut(Option::take).unwrap_or_default())
}

/// Scaled-dot-product attention through libtorch's fused kernels: softmax(scale · Q Kᵀ + mask) V.
///
/// `query` is `[batch, heads, queries, head_dim]`, `key` `[batch, key heads, keys, head_dim]` and `value`
/// `[batch, key heads, keys, value_dim]`, where the heads are a multiple of the key heads (grouped-query attention: consecutive heads share
/// keys and values). The result is `[batch, heads, queries, value_dim]`.
pub fn attention(query: &Tensor, key: &Tensor, value: &Tensor, options: AttentionOptions<'_>) -> Tensor {
    let (queries, keys) = (query.size()[2], key.size()[2]);
    record("", "attention", query, &[], || {
        // The products of queries with keys and of weights with values.
        query.numel() * keys as usize
            + query.numel() / query.size()[3] as usize * (keys * value.size()[3]) as usize
    });
    // On a CPU libtorch has no fused kernel that drops weights.
    let drops_here = options.dropout > 0.0 && query.device() == Device::Cpu;
    // The kernels count their own causal rule from the first key, and take no mask beside it.
    let kernel_causal = options.causal && options.mask.is_none() && queries == keys && !drops_here;
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
    WEIGHTS.with_borrow_mut(|collected| {
        if let Some(collected) = collected {
            collected.push(weights(query, key, mask.as_ref(), kernel_causal, options.scale));
        }
    });
    if drops_here {
        let [key, value] = [key, value].map(|heads| for_each_head(query, heads));
        let scale = options.scale.unwrap_or_else(|| usual_scale(query));
        return dropout::attention([query, &key, &value], mask.as_ref(), options.dropout, scale)
            .expect("attention with dropout");
    }
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

/// Keys or values repeated, so that there are as many heads of them as of the query.
fn for_each_head(query: &Tensor, heads: &Tensor) -> Tensor {
    match query.size()[1] / heads.size()[1] {
        1 => heads.shallow_clone(),
        groups => heads.repeat_interleave_self_int(groups, 1, None),
    }
}

/// 1/√head_dim.
fn usual_scale(query: &Tensor) -> f64 {
    (query.size()[3] as f64).powf(-0.5)
}

/// What the fused kernels compute on their way: `[batch, heads, queries, keys]`.
fn weights(query: &Tensor, key: &Tensor, mask: Option<&Tensor>, causal: bool, scale: Option<f64>) -> Tensor {
    let key = for_each_head(query, key);
    let scale = scale.unwrap_or_else(|| usual_scale(query));
    let mut scores = query.matmul(&key.transpose(2, 3)).to_kind(Kind::Float) * scale;
    if causal {
        let ahead = scores.ones_like().triu(1).to_kind(Kind::Bool);
        scores = scores.masked_fill(&ahead, f64::NEG_INFINITY);
    }
    match mask {
        Some(mask) if mask.kind() == Kind::Bool => {
            scores = scores.masked_fill(&mask.logical_not(), f64::NEG_INFINITY);
        }
        Some(mask) => scores += mask,
        None => {}
    }
    scores.softmax(-1, Kind::Float)
}

/// `[batch, length, heads · head_dim]` to `[batch, heads, length, head_dim]`, with lengths left to the tensors so that a traced model takes any.
pub fn split_heads(input: &Tensor, head_dim: i64) -> Tensor {
    input.unflatten(-1, [-1, head_dim]).transpose(1, 2)
}

/// `[batch, heads, length, head_dim]` to `[batch, length, heads · head_dim]`.
pub fn join_heads(input: &Tensor) -> Tensor {
    input.transpose(1, 2).flatten(2, 3)
}

/// Queries, keys and values of attention, each `[batch, heads, length, head_dim]`.
pub type Projected = [Tensor; 3];

/// `nn.MultiheadAttention(batch_first=True)` with one projection for queries, keys and values.
#[derive(Debug)]
pub struct MultiheadAttention {
    name: String,
    in_proj_weight: Tensor,
    in_proj_bias: Tensor,
    out_proj: Linear,
    head_dim: i64,
}

impl MultiheadAttention {
    /// `in_proj_weight` is `[3 · width, width]`: queries, keys, values. `heads` divides `width`.
    pub fn new(scope: &Scope, width: i64, heads: i64) -> Result<Self> {
        let shape = [3 * width, width];
        let in_proj_weight = scope.parameter("in_proj_weight", &shape, Init::ZEROS)?;
        let in_proj_bias = scope.parameter("in_proj_bias", &[3 * width], Init::ZEROS)?;
        let out_proj = Linear::new(&scope.child("out_proj"), width, width)?;
        // PyTorch draws the output projection first.
        scope.redraw(&in_proj_weight, Init::xavier_uniform(&shape))?;
        out_proj.redraw_bias(scope, Init::ZEROS)?;
        Ok(Self {
            name: scope.name().to_owned(),
            in_proj_weight,
            in_proj_bias,
            out_proj,
            head_dim: width / heads,
        })
    }

    /// Queries, keys and values of one sequence `[batch, length, width]`.
    pub fn project(&self, input: &Tensor) -> Projected {
        self.project_rows(input, 0, 3)
    }

    /// Queries of a sequence `[batch, length, width]` that looks at another.
    pub fn project_query(&self, input: &Tensor) -> Tensor {
        let [query] = self.project_rows(input, 0, 1);
        query
    }

    /// Keys and values of the sequence that is looked at.
    pub fn project_memory(&self, memory: &Tensor) -> [Tensor; 2] {
        self.project_rows(memory, 1, 2)
    }

    /// `parts` of the three projections from `first` on, in one product.
    fn project_rows<const N: usize>(&self, input: &Tensor, first: i64, parts: i64) -> [Tensor; N] {
        let width = self.in_proj_weight.size()[1];
        let part = |whole: &Tensor| match parts {
            // Under autocast a weight is cast once for all steps, a view of it in each.
            3 => whole.shallow_clone(),
            _ => whole.narrow(0, first * width, parts * width),
        };
        let (weight, bias) = (part(&self.in_proj_weight), part(&self.in_proj_bias));
        let projected = forward_linear(input, &weight, Some(&bias)); // [batch, length, parts · width]
        record(&self.name, "MultiheadAttention", &projected, &[Some(&weight), Some(&bias)], || {
            projected.numel() * width as usize
        });
        // [parts, batch, heads, length, head_dim]
        let split = projected.unflatten(-1, [parts, -1, self.head_dim]).permute([2, 0, 3, 1, 4]);
        std::array::from_fn(|part| split.select(0, part as i64))
    }

    /// Attention and the output projection: `[batch, length, width]`.
    pub fn attend(
        &self,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
        options: AttentionOptions<'_>,
    ) -> Tensor {
        self.out_proj.forward(&join_heads(&attention(query, key, value, options)))
    }

    /// A sequence `[batch, length, width]` that looks at itself.
    pub fn forward(&self, input: &Tensor, options: AttentionOptions<'_>) -> Tensor {
        let [query, key, value] = self.project(input);
        self.attend(&query, &key, &value, options)
    }
}

/// Attention with a linear layer each for queries, keys, values and output, as transformers' models have it. The names and biases of the four
/// are the architecture's; keys and values may have fewer heads than queries.
#[derive(Debug)]
pub struct SeparateAttention {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    head_dim: i64,
}

impl SeparateAttention {
    /// From the layers for queries, keys, values and output.
    pub fn new([query, key, value, output]: [Linear; 4], head_dim: i64) -> Self {
        Self { query, key, value, output, head_dim }
    }

    /// Queries of `[batch, length, width]`: `[batch, heads, length, head_dim]`.
    pub fn project_query(&self, input: &Tensor) -> Tensor {
        split_heads(&self.query.forward(input), self.head_dim)
    }

    /// Keys and values.
    pub fn project_memory(&self, memory: &Tensor) -> [Tensor; 2] {
        [&self.key, &self.value].map(|layer| split_heads(&layer.forward(memory), self.head_dim))
    }

    /// Attention and the output projection: `[batch, length, width]`.
    pub fn attend(
        &self,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
        options: AttentionOptions<'_>,
    ) -> Tensor {
        self.output.forward(&join_heads(&attention(query, key, value, options)))
    }

    /// A sequence `[batch, length, width]` that looks at itself.
    pub fn forward(&self, input: &Tensor, options: AttentionOptions<'_>) -> Tensor {
        let [key, value] = self.project_memory(input);
        self.attend(&self.project_query(input), &key, &value, options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::IndexOp;

    const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);

    /// Numbers without a pattern; drawn ones would disturb tests that count on the generator.
    fn uneven(shape: [i64; 4], step: f64) -> Tensor {
        let count = shape.iter().product::<i64>();
        (Tensor::arange(count, FLOAT).square() * step).sin().view(shape) * 2.0
    }

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
            let query = uneven([2, heads, queries, 8], 0.7);
            let key = uneven([2, key_heads, keys, 8], 1.3);
            let value = uneven([2, key_heads, keys, 8], 2.9);
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
