//! Keys and values of tokens that a decoder has seen, so that a step computes the new token only.

use tch::{Kind, Tensor};

/// What one attention layer keeps.
#[derive(Debug, Default)]
pub struct LayerCache {
    kept: Kept,
    length: i64,
}

/// Keys and values.
#[derive(Debug, Default)]
enum Kept {
    #[default]
    Nothing,
    /// As the layer computed them, `[batch, heads, length, head_dim]`, with their graph.
    Whole([Tensor; 2]),
    /// `[rows, capacity, heads, head_dim]`: what a row has seen is one block of memory.
    Buffers {
        now: [Tensor; 2],
        /// As large, for [`LayerCache::select`] to write into.
        spare: Option<[Tensor; 2]>,
    },
    /// As `Whole`, and they stay so: new ones are put behind them in new tensors.
    Joined([Tensor; 2]),
}

/// Places that a buffer has at least once it must grow.
const LEAST_CAPACITY: i64 = 32;

impl LayerCache {
    /// Of keys and values `[batch, heads, length, head_dim]` that come from elsewhere, to which new ones are joined by an operation of the
    /// graph. A traced step takes any number of them.
    pub fn joined(keys_and_values: [Tensor; 2]) -> Self {
        Self { length: keys_and_values[0].size()[2], kept: Kept::Joined(keys_and_values) }
    }

    /// All keys and values, `[batch, heads, length, head_dim]`; nothing before the first.
    pub fn keys_and_values(&self) -> Option<[Tensor; 2]> {
        match &self.kept {
            Kept::Nothing => None,
            Kept::Whole(kept) | Kept::Joined(kept) => Some(kept.each_ref().map(Tensor::shallow_clone)),
            Kept::Buffers { now, .. } => Some(now.each_ref().map(|buffer| filled(buffer, self.length))),
        }
    }

    /// The places of new `tokens` `[batch, length]` behind those that have been seen: `[length]` (int64), counted by tensors so that a traced model takes
    /// any length.
    pub fn places(&self, tokens: &Tensor) -> Tensor {
        let places = count(&tokens.select(0, 0)) - 1;
        match &self.kept {
            Kept::Joined([keys, _]) => places + seen_by(keys).sum(Kind::Int64),
            _ => places + self.length,
        }
    }

    /// The places of all tokens, those that have been seen and then the new ones at `places`.
    pub fn all_places(&self, places: &Tensor) -> Tensor {
        match &self.kept {
            Kept::Joined([keys, _]) => Tensor::cat(&[&(count(&seen_by(keys)) - 1), places], 0),
            _ if self.length == 0 => places.shallow_clone(),
            _ => Tensor::arange(self.length + places.size()[0], (Kind::Int64, places.device())),
        }
    }

    /// Which of all tokens each new one at `places` sees, `[new, all]`: itself and what is before it. None where attention's own causal rule does; that
    /// one goes by sizes, which a trace would keep.
    pub fn rule(&self, places: &Tensor) -> Option<Tensor> {
        matches!(self.kept, Kept::Joined(_))
            .then(|| self.all_places(places).unsqueeze(0).le_tensor(&places.unsqueeze(1)))
    }

    /// Appends the keys and values of new tokens, `[batch, heads, length, head_dim]`, and returns those of all tokens. The first tokens are kept as
    /// they are, so that a whole sequence with its graph costs nothing; later ones are copied into place, without a graph.
    pub fn append(&mut self, new: [Tensor; 2]) -> [Tensor; 2] {
        let added = new[0].size()[2];
        let seen = self.length;
        self.length += added;
        let mut now = match std::mem::take(&mut self.kept) {
            Kept::Nothing => {
                self.kept = Kept::Whole(new.each_ref().map(Tensor::shallow_clone));
                return new;
            }
            Kept::Joined([keys, values]) => {
                let [new_keys, new_values] = &new;
                let all = [Tensor::cat(&[&keys, new_keys], 2), Tensor::cat(&[&values, new_values], 2)];
                self.kept = Kept::Joined(all.each_ref().map(Tensor::shallow_clone));
                return all;
            }
            Kept::Whole(kept) => kept.map(|whole| roomy(&whole.transpose(1, 2), seen, self.length)),
            Kept::Buffers { now, spare } if now[0].size()[1] >= self.length => {
                self.kept = Kept::Buffers { now: now.each_ref().map(Tensor::shallow_clone), spare };
                now
            }
            Kept::Buffers { now, .. } => now.map(|buffer| roomy(&buffer, seen, self.length)),
        };
        for (buffer, new) in now.iter_mut().zip(&new) {
            buffer.narrow(1, seen, added).copy_(&new.transpose(1, 2));
        }
        let all = now.each_ref().map(|buffer| filled(buffer, self.length));
        if let Kept::Nothing = self.kept {
            self.kept = Kept::Buffers { now, spare: None };
        }
        all
    }

    /// Keeps the rows of the batch that are numbered, in that order; a row may be kept twice.
    pub fn select(&mut self, rows: &Tensor) {
        let length = self.length;
        match &mut self.kept {
            Kept::Nothing => {}
            Kept::Whole(kept) | Kept::Joined(kept) => {
                *kept = kept.each_ref().map(|tensor| tensor.index_select(0, rows));
            }
            Kept::Buffers { now, spare } => {
                // Only what is filled is copied, into memory that is there already.
                let (count, capacity) = (rows.size()[0], now[0].size()[1]);
                let fits = |spare: &[Tensor; 2]| {
                    let size = spare[0].size();
                    size[0] >= count && size[1] == capacity
                };
                let target = spare.take().filter(fits).unwrap_or_else(|| {
                    now.each_ref().map(|buffer| {
                        let mut shape = buffer.size();
                        shape[0] = count;
                        Tensor::empty(&shape, (buffer.kind(), buffer.device()))
                    })
                });
                let target = target.map(|buffer| buffer.narrow(0, 0, count));
                for (buffer, target) in now.iter().zip(&target) {
                    let _ =
                        buffer.narrow(1, 0, length).index_select_out(&target.narrow(1, 0, length), 0, rows);
                }
                *spare = Some(std::mem::replace(now, target));
            }
        }
    }

    /// How many tokens have been seen.
    pub fn len(&self) -> i64 {
        self.length
    }

    /// Whether none have.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }
}

/// Keys and values of all layers, `[layers, 2, batch, heads, length, head_dim]`; none if a layer has seen nothing.
pub fn stacked<'a>(layers: impl Iterator<Item = &'a LayerCache>) -> Option<Tensor> {
    let layers: Vec<Tensor> =
        layers.map(|layer| Some(Tensor::stack(&layer.keys_and_values()?, 0))).collect::<Option<_>>()?;
    (!layers.is_empty()).then(|| Tensor::stack(&layers, 0))
}

/// 1, 2, 3, … for the elements of `[length]`.
fn count(elements: &Tensor) -> Tensor {
    elements.ones_like().cumsum(0, Kind::Int64)
}

/// A one for each token that keys `[batch, heads, length, head_dim]` are of: `[length]` (int64).
fn seen_by(keys: &Tensor) -> Tensor {
    keys.select(0, 0).select(0, 0).select(1, 0).ones_like().to_kind(Kind::Int64)
}

/// A buffer with room for at least `needed` tokens that begins with the `seen` ones of another.
fn roomy(from: &Tensor, seen: i64, needed: i64) -> Tensor {
    let mut shape = from.size();
    shape[1] = (2 * shape[1]).max(needed).max(LEAST_CAPACITY);
    let buffer = Tensor::empty(&shape, (from.kind(), from.device()));
    buffer.narrow(1, 0, seen).copy_(&from.narrow(1, 0, seen));
    buffer
}

/// The places of a buffer that are filled, `[batch, heads, length, head_dim]`.
fn filled(buffer: &Tensor, length: i64) -> Tensor {
    buffer.narrow(1, 0, length).transpose(1, 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn rows_that_are_selected_keep_what_they_have_seen() {
        let _guard = tch::no_grad_guard();
        let mut cache = LayerCache::default();
        let mut joined: Option<LayerCache> = None;
        // What the cache should hold, [batch, heads, length, head_dim].
        let mut expected: Option<[Tensor; 2]> = None;
        let rows: [&[i64]; 5] = [&[0, 0, 1, 1], &[3, 1, 0, 2], &[1, 2], &[1, 0, 0], &[2, 1, 1, 0, 0]];
        let mut batch = 2;
        for (step, added) in [3, 1, 1, 30, 1, 1, 40, 1].into_iter().enumerate() {
            let new = [0, 1].map(|_| Tensor::randn([batch, 2, added, 4], (Kind::Float, Device::Cpu)));
            let all = cache.append(new.each_ref().map(Tensor::shallow_clone));
            let wanted = match expected.take() {
                None => new,
                Some(before) => {
                    let others = joined.get_or_insert_with(|| {
                        LayerCache::joined(before.each_ref().map(Tensor::shallow_clone))
                    });
                    let all = others.append(new.each_ref().map(Tensor::shallow_clone));
                    let wanted = std::array::from_fn(|part| Tensor::cat(&[&before[part], &new[part]], 2));
                    assert_eq!(all, wanted, "step {step}");
                    wanted
                }
            };
            assert_eq!(all, wanted, "step {step}");
            assert_eq!(cache.keys_and_values(), Some(wanted.each_ref().map(Tensor::shallow_clone)));
            assert_eq!(cache.len(), wanted[0].size()[2]);
            let rows = Tensor::from_slice(rows[step % rows.len()]);
            let most = rows.clamp_max(batch - 1);
            cache.select(&most);
            if let Some(joined) = &mut joined {
                joined.select(&most);
            }
            expected = Some(wanted.map(|tensor| tensor.index_select(0, &most)));
            batch = most.size()[0];
        }
    }
}
