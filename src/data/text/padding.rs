//! Sequences of several lengths as one tensor.

use anyhow::Result;
use tch::{Kind, Tensor};

/// Token sequences filled up to the longest.
#[derive(Debug)]
pub struct Padded {
    /// `[batch, longest]` int64.
    pub ids: Tensor,
    /// Tokens of each sequence, `[batch]` int64.
    pub lengths: Tensor,
}

impl Padded {
    /// `[batch, longest]`, true where there is a token; on the device of the tokens.
    pub fn mask(&self) -> Result<Tensor> {
        mask_of(&self.lengths, *self.ids.size().last().unwrap_or(&0))
    }
}

/// `[batch, longest]`, true in the first `lengths` places of each row.
pub fn mask_of(lengths: &Tensor, longest: i64) -> Result<Tensor> {
    let places = Tensor::f_arange(longest, (Kind::Int64, lengths.device()))?;
    Ok(places.f_unsqueeze(0)?.f_lt_tensor(&lengths.f_unsqueeze(1)?)?)
}

/// Fills sequences up to the longest with `pad_id`, on the right.
pub fn pad(sequences: &[Vec<i64>], pad_id: i64) -> Result<Padded> {
    let longest = sequences.iter().map(Vec::len).max().unwrap_or(0);
    let mut ids = Vec::with_capacity(sequences.len() * longest);
    for sequence in sequences {
        ids.extend_from_slice(sequence);
        ids.resize(ids.len() + longest - sequence.len(), pad_id);
    }
    let lengths: Vec<i64> = sequences.iter().map(|sequence| sequence.len() as i64).collect();
    Ok(Padded {
        ids: Tensor::f_from_slice(&ids)?.f_view([sequences.len() as i64, longest as i64])?,
        lengths: Tensor::f_from_slice(&lengths)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_are_filled_on_the_right() -> Result<()> {
        let padded = pad(&[vec![1, 2, 3], vec![4], vec![]], 9)?;
        assert_eq!(Vec::<Vec<i64>>::try_from(&padded.ids)?, [[1, 2, 3], [4, 9, 9], [9, 9, 9]]);
        assert_eq!(Vec::<i64>::try_from(&padded.lengths)?, [3, 1, 0]);
        let mask = Vec::<Vec<bool>>::try_from(padded.mask()?)?;
        assert_eq!(mask, [[true, true, true], [true, false, false], [false, false, false]]);
        Ok(())
    }
}
