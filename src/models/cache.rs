//! Keys and values of tokens that a decoder has seen, so that a step computes the new token only.

use tch::Tensor;

/// What one attention layer keeps: keys and values `[batch, heads, length, head_dim]` in a buffer that grows by doubling.
#[derive(Debug, Default)]
pub struct LayerCache {
    buffers: Option<[Tensor; 2]>,
    length: i64,
}

/// Places that a buffer has at least once it must grow.
const LEAST_CAPACITY: i64 = 32;

impl LayerCache {
    /// Appends the keys and values of new tokens and returns those of all tokens. The first tokens are kept as they are, so that a whole
    /// sequence with its graph costs nothing; later ones are copied into place, without a graph.
    pub fn append(&mut self, new: [Tensor; 2]) -> [Tensor; 2] {
        let added = new[0].size()[2];
        let Some(buffers) = &mut self.buffers else {
            self.length = added;
            self.buffers = Some(new.each_ref().map(Tensor::shallow_clone));
            return new;
        };
        let needed = self.length + added;
        for (buffer, new) in buffers.iter_mut().zip(&new) {
            let capacity = buffer.size()[2];
            if needed > capacity {
                let mut shape = buffer.size();
                shape[2] = (2 * capacity).max(needed).max(LEAST_CAPACITY);
                let grown = Tensor::empty(&shape, (buffer.kind(), buffer.device()));
                grown.narrow(2, 0, self.length).copy_(&buffer.narrow(2, 0, self.length));
                *buffer = grown;
            }
            buffer.narrow(2, self.length, added).copy_(new);
        }
        self.length = needed;
        buffers.each_ref().map(|buffer| buffer.narrow(2, 0, needed))
    }

    /// Keeps the rows of the batch that are numbered, in that order; a row may be kept twice.
    pub fn select(&mut self, rows: &Tensor) {
        if let Some(buffers) = &mut self.buffers {
            *buffers = buffers.each_ref().map(|buffer| buffer.index_select(0, rows));
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
