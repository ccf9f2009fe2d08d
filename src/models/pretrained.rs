//! What published weights expect of their input.
//!
//! The values are those of `torchvision.models.*_Weights.IMAGENET1K_V1.transforms()` (0.28) for its architectures, and of the authors for others.

use crate::data::resize::{Interpolation, Resize};

/// How an image becomes the input of a network with published weights, besides its size, which is the architecture's usual one.
#[derive(Clone, Debug, PartialEq)]
pub struct Preprocessing {
    /// Scaling before the middle is cut out.
    pub resize: Resize,
    /// Mean of each channel, of values in 0..1, subtracted from the input. One value serves all channels.
    pub mean: Vec<f64>,
    /// What the input is divided by after that.
    pub std: Vec<f64>,
}

/// Channel statistics of ImageNet.
const MEAN: [f64; 3] = [0.485, 0.456, 0.406];
const STD: [f64; 3] = [0.229, 0.224, 0.225];

/// The preprocessing of an architecture by name, for an input of so many channels and pixels a side. Those of which nothing is known are
/// taken for ImageNet's usual ones, scaled in proportion (256 pixels for 224), and those for small or grey images for values in 0..1.
pub fn preprocessing_of(name: &str, channels: i64, side: i64) -> Preprocessing {
    use Interpolation::{Bicubic, Bilinear};
    if channels != 3 || side < 64 {
        return Preprocessing { resize: Resize::default(), mean: vec![0.0], std: vec![1.0] };
    }
    let (shorter_side, interpolation) = match name {
        "inception_v3" => (342, Bilinear),
        "efficientnet-lite0" | "efficientnet_b0" | "efficientnet_b1" => (256, Bicubic),
        "efficientnet_b2" => (288, Bicubic),
        "efficientnet_b3" => (320, Bicubic),
        "efficientnet_b4" => (384, Bicubic),
        "efficientnet_b5" => (456, Bicubic),
        "efficientnet_b6" => (528, Bicubic),
        "efficientnet_b7" => (600, Bicubic),
        "convnext_tiny" => (236, Bilinear),
        "convnext_small" => (230, Bilinear),
        "convnext_base" | "convnext_large" | "resnext101_64x4d" => (232, Bilinear),
        "vit_l_16" => (242, Bilinear),
        // Its only weights for this size.
        "vit_h_14" => (224, Bicubic),
        _ => ((side as usize * 256).div_ceil(224), Bilinear),
    };
    let (mean, std) = match name {
        // Converted from TensorFlow's, which were trained on -1..1.
        // torchvision normalises these a second time inside the network (`transform_input`), which comes to the same.
        "efficientnet-lite0" | "googlenet" | "inception_v3" => (vec![0.5], vec![0.5]),
        _ => (MEAN.to_vec(), STD.to_vec()),
    };
    Preprocessing { resize: Resize { shorter_side: Some(shorter_side), interpolation }, mean, std }
}
