//! Mixing the images of a batch and their targets: mixup (Zhang, Cisse, Dauphin, Lopez-Paz, 2017) and CutMix (Yun et al., 2019), as `MixUp` and `CutMix` of
//! torchvision's transforms v2 do it: each image with the one before it in the batch, the first with the last.

use anyhow::{Context, Result};
use statrs::distribution::{Beta, ContinuousCDF};
use tch::{Kind, Tensor};

use crate::data::random::Random;

/// What is done to a batch. Weights are those of the image itself, the rest is its partner's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mix {
    /// Each image is a weighted mean of two.
    Mixup {
        /// Share of the image itself.
        weight: f64,
    },
    /// A rectangle of each image is its partner's.
    CutMix {
        /// First row.
        top: i64,
        /// First column.
        left: i64,
        /// Rows.
        height: i64,
        /// Columns.
        width: i64,
        /// Share of the image's area that stays.
        weight: f64,
    },
}

impl Mix {
    /// Mixup with a weight drawn from Beta(alpha, alpha).
    pub fn mixup(alpha: f64, random: &mut Random) -> Result<Self> {
        Ok(Self::Mixup { weight: share(alpha, random)? })
    }

    /// CutMix of a batch of images of this height and width.
    pub fn cutmix(alpha: f64, [height, width]: [usize; 2], random: &mut Random) -> Result<Self> {
        let kept = share(alpha, random)?;
        let center = [random.below(height as u32), random.below(width as u32)];
        Ok(Self::rectangle(kept, center.map(i64::from), [height as i64, width as i64]))
    }

    /// CutMix around a place (row, column), with the weight that the rectangle leaves within the image.
    pub fn rectangle(kept: f64, [row, column]: [i64; 2], [height, width]: [i64; 2]) -> Self {
        let half = 0.5 * (1.0 - kept).sqrt();
        let range = |middle: i64, side: i64| {
            let reach = (half * side as f64) as i64;
            ((middle - reach).max(0), (middle + reach).min(side))
        };
        let ((top, bottom), (left, right)) = (range(row, height), range(column, width));
        let area = ((bottom - top) * (right - left)) as f64;
        Self::CutMix {
            top,
            left,
            height: bottom - top,
            width: right - left,
            weight: 1.0 - area / (width * height) as f64,
        }
    }

    /// Mixes `[batch, channels, height, width]` floats.
    pub fn images(&self, images: &Tensor) -> Result<Tensor> {
        let partners = images.f_roll([1i64], [0i64])?;
        match *self {
            Self::Mixup { weight } => {
                Ok(partners.f_mul_scalar(1.0 - weight)?.f_add(&images.f_mul_scalar(weight)?)?)
            }
            Self::CutMix { top, left, height, width, .. } => {
                let mut mixed = images.f_empty_like()?;
                mixed.f_copy_(images)?;
                let cut = |images: &Tensor| images.f_narrow(2, top, height)?.f_narrow(3, left, width);
                cut(&mixed)?.f_copy_(&cut(&partners)?)?;
                Ok(mixed)
            }
        }
    }

    /// Class numbers `[batch]`, or what each of several labels is `[batch, classes]`, to the probability of each class, `[batch, classes]` float32.
    pub fn targets(&self, labels: &Tensor, classes: i64) -> Result<Tensor> {
        let labels = match labels.dim() {
            1 => labels.f_one_hot(classes).context("labels outside the classes")?.f_to_kind(Kind::Float)?,
            _ => labels.shallow_clone(),
        };
        let (Self::Mixup { weight } | Self::CutMix { weight, .. }) = *self;
        let partners = labels.f_roll([1i64], [0i64])?;
        Ok(partners.f_mul_scalar(1.0 - weight)?.f_add(&labels.f_mul_scalar(weight)?)?)
    }
}

/// A number drawn from Beta(alpha, alpha), by its inverse distribution function.
fn share(alpha: f64, random: &mut Random) -> Result<f64> {
    let uniform = random.unit();
    if alpha == 1.0 {
        return Ok(uniform);
    }
    Ok(Beta::new(alpha, alpha).context("the parameter of a mixing distribution")?.inverse_cdf(uniform))
}
