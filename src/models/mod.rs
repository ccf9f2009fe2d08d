//! Architectures, one file each, and what they are made of.
//!
//! A model is a struct whose fields are named as the checkpoint's keys, a constructor that takes a [`Scope`], and a forward function. It
//! never sees the recipe. Adding one means a file, a line in its registry ([`image::REGISTRY`]) and a recipe.

pub mod alexnet;
pub mod attention;
pub mod blocks;
pub mod cache;
pub mod convnext;
pub mod decoders;
pub mod densenet;
pub mod efficientnet;
pub mod efficientnet_lite;
pub mod encoder_decoder;
pub mod encoders;
pub mod googlenet;
pub mod image;
pub mod inception;
pub mod init;
pub mod layers;
pub mod lenet;
pub mod lora;
pub mod mlp;
pub mod mobilenet;
mod parameters;
pub mod pretrained;
pub mod recurrent;
pub mod resnet;
pub mod resnet_cifar;
pub mod small_cnn;
pub mod squeezenet;
pub mod summary;
pub mod table_network;
pub mod vgg;
pub mod vision_transformer;

pub use parameters::{Entry, Parameters, Role, Scope, name_pattern};

use anyhow::Result;

use crate::bail_input;

/// Refuses images that would vanish on the way through a network.
fn bail_if_too_small(model: &str, size: [i64; 2], least: i64) -> Result<()> {
    let [height, width] = size;
    if height.min(width) < least {
        bail_input!(
            "images of {height} × {width} pixels are too small for {model}: it needs at least {least} × {least}"
        );
    }
    Ok(())
}
