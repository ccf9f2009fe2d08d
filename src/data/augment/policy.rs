//! Policies that draw operations from a list: RandAugment (Cubuk, Zoph, Shlens, Le, 2019) and TrivialAugment in its wide form (Müller, Hutter, 2021), with
//! torchvision's operations, ranges and 31 levels of strength.

use serde::{Deserialize, Serialize};

use super::Operation;
use super::geometry::{Affine, Lookup};
use crate::data::decode::ImageForm;
use crate::data::random::Random;

/// The `data.augment.policy` of an image recipe.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(tag = "name", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Policy {
    /// Some operations, all of one strength.
    RandAugment {
        /// Operations in a row.
        #[serde(default = "two")]
        operations: usize,
        /// Strength, 0 to 30.
        #[serde(default = "nine")]
        magnitude: usize,
    },
    /// One operation of any strength, in ranges wider than RandAugment's.
    TrivialAugment {},
}

fn two() -> usize {
    2
}

fn nine() -> usize {
    9
}

/// Levels of strength.
pub const LEVELS: usize = 31;

/// What a policy may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Identity,
    ShearX,
    ShearY,
    TranslateX,
    TranslateY,
    Rotate,
    Brightness,
    Color,
    Contrast,
    Sharpness,
    Posterize,
    Solarize,
    AutoContrast,
    Equalize,
}

/// torchvision's order.
const KINDS: [Kind; 14] = [
    Kind::Identity,
    Kind::ShearX,
    Kind::ShearY,
    Kind::TranslateX,
    Kind::TranslateY,
    Kind::Rotate,
    Kind::Brightness,
    Kind::Color,
    Kind::Contrast,
    Kind::Sharpness,
    Kind::Posterize,
    Kind::Solarize,
    Kind::AutoContrast,
    Kind::Equalize,
];

impl Policy {
    /// Draws what happens to one image.
    pub fn draw(&self, form: ImageForm, lookup: Lookup, random: &mut Random, plan: &mut Vec<Operation>) {
        let (count, fixed) = match *self {
            Self::RandAugment { operations, magnitude } => (operations, Some(magnitude)),
            Self::TrivialAugment {} => (1, None),
        };
        for _ in 0..count {
            let kind = KINDS[random.below(KINDS.len() as u32) as usize];
            let level = fixed.unwrap_or_else(|| random.below(LEVELS as u32) as usize);
            let negative = kind.is_signed() && random.below(2) == 1;
            plan.extend(self.operation(kind, level, negative, form, lookup));
        }
    }

    /// The operation of a kind at a level; none for the identity.
    fn operation(
        &self,
        kind: Kind,
        level: usize,
        negative: bool,
        form: ImageForm,
        lookup: Lookup,
    ) -> Option<Operation> {
        let wide = matches!(self, Self::TrivialAugment {});
        let share = level as f64 / (LEVELS - 1) as f64;
        let [height, width] = form.size.map(|side| side as f64);
        let sign = if negative { -1.0 } else { 1.0 };
        let up_to = |narrow: f64, wider: f64| sign * share * if wide { wider } else { narrow };
        let affine = |affine: Affine| Operation::Affine { affine, lookup };
        let sheared =
            |shear: [f64; 2]| affine(Affine { shear, center: Some([0.0, 0.0]), ..Affine::IDENTITY });
        let moved = |translate: [f64; 2]| affine(Affine { translate, ..Affine::IDENTITY });
        let shear = || up_to(0.3, 0.99).atan().to_degrees();
        // Whole pixels, cut off as torchvision does.
        let shift = |side: f64| up_to(150.0 / 331.0 * side, 32.0).trunc();
        let factor = || 1.0 + up_to(0.9, 0.99);
        Some(match kind {
            Kind::Identity => return None,
            Kind::ShearX => sheared([shear(), 0.0]),
            Kind::ShearY => sheared([0.0, shear()]),
            Kind::TranslateX => moved([shift(width), 0.0]),
            Kind::TranslateY => moved([0.0, shift(height)]),
            Kind::Rotate => Operation::Rotate { angle: up_to(30.0, 135.0), lookup },
            Kind::Brightness => Operation::Brightness { factor: factor() },
            Kind::Color => Operation::Saturation { factor: factor() },
            Kind::Contrast => Operation::Contrast { factor: factor() },
            Kind::Sharpness => Operation::Sharpness { factor: factor() },
            Kind::Posterize => {
                let taken = share * if wide { 6.0 } else { 4.0 };
                Operation::Posterize { bits: 8 - taken.round_ties_even() as u32 }
            }
            Kind::Solarize => Operation::Solarize { threshold: 255.0 * (1.0 - share) },
            Kind::AutoContrast => Operation::AutoContrast,
            Kind::Equalize => Operation::Equalize,
        })
    }

    /// Every kind by its name in torchvision with its operation at a level, for comparing the tables.
    pub fn table(&self, level: usize, form: ImageForm) -> Vec<(String, Option<Operation>)> {
        let entry =
            |kind: Kind| (format!("{kind:?}"), self.operation(kind, level, false, form, Lookup::Nearest));
        KINDS.into_iter().map(entry).collect()
    }
}

impl Kind {
    /// Whether the strength is turned around for half of the images.
    fn is_signed(self) -> bool {
        use Kind::{Brightness, Color, Contrast, Rotate, Sharpness, ShearX, ShearY, TranslateX, TranslateY};
        matches!(
            self,
            ShearX | ShearY | TranslateX | TranslateY | Rotate | Brightness | Color | Contrast | Sharpness
        )
    }
}
