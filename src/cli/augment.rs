//! `augment`: a picture of what a model will see of its training data.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use tch::Kind;

use super::args::TrainArgs;
use super::cnn::Cnn;
use super::family::Family;
use super::session;
use crate::data::image_dataset::interleaved;
use crate::data::{Dataset, Draw, order};
use crate::reporting::{Log, Verbosity, format, sheet};
use crate::{bail_input, files};

/// Arguments of `augment`.
#[derive(Debug, Args)]
pub struct AugmentArgs {
    /// Data folder, or the name of a compiled-in set [default: the recipe's]
    #[arg(value_name = "DATA")]
    data: Option<String>,
    /// A recipe of `recipes`, or a JSON file
    #[arg(long, value_name = "NAME|FILE")]
    recipe: Option<String>,
    /// The picture to write
    #[arg(long, value_name = "FILE.png")]
    out: PathBuf,
    /// How many images to show, a row each
    #[arg(long, value_name = "N", default_value_t = 8)]
    images: usize,
    /// How many variations of each to show, those of the first epochs, after the image itself
    #[arg(long, value_name = "N", default_value_t = 8)]
    variations: usize,
    /// Seed of the choice of images and of their variations
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Set any key of the recipe, as in data.augment.policy={"name":"trivial-augment"}; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// Runs the verb.
pub fn augment(arguments: &AugmentArgs) -> Result<()> {
    if arguments.images == 0 || arguments.variations == 0 {
        bail_input!("--images and --variations must be at least 1");
    }
    let log = Log::new(Verbosity::from_flags(false, true));
    let mut recipe = session::new_recipe::<Cnn>(&TrainArgs {
        recipe: arguments.recipe.clone(),
        data: arguments.data.clone(),
        seed: arguments.seed,
        set: arguments.set.clone(),
        ..Default::default()
    })?;
    let data = Cnn::open(&mut recipe, &log)?.train;
    let seed = recipe.training.seed;
    let mut samples = order::permutation(data.len(), seed)?;
    samples.truncate(arguments.images);

    let form = data.form();
    let [height, width] = form.size;
    // [column][row] of `[channel, height, width]` bytes: the images themselves, then epoch after epoch
    let mut columns: Vec<Vec<Vec<u8>>> = Vec::new();
    for epoch in std::iter::once(None).chain((0..arguments.variations as u64).map(Some)) {
        let draw = Draw { seed, epoch: epoch.unwrap_or(0), train: epoch.is_some(), copies: &[] };
        let batch = data.batch(&samples, draw)?;
        let images = match batch.mix {
            // Mixing before normalisation is the same as after it.
            Some(mix) => {
                mix.images(&batch.images.f_to_kind(Kind::Float)?)?.f_round()?.f_to_kind(Kind::Uint8)?
            }
            None => batch.images,
        };
        let pixels = Vec::<u8>::try_from(images.f_flatten(0, -1)?)?;
        columns.push(pixels.chunks_exact(form.bytes()).map(<[u8]>::to_vec).collect());
    }
    let colored = |planes: &Vec<u8>| match form.channels {
        1 => planes.iter().flat_map(|&grey| [grey; 3]).collect(),
        channels => interleaved(planes, channels),
    };
    let tiles: Vec<Vec<u8>> =
        (0..samples.len()).flat_map(|row| columns.iter().map(move |column| colored(&column[row]))).collect();
    files::write_atomic(&arguments.out, &sheet(&tiles, height, width, columns.len())?)?;
    log.result(format!(
        "{}: {} images of {}, each as it is and in {} variations",
        arguments.out.display(),
        samples.len(),
        format::count(data.len() as u64),
        arguments.variations
    ));
    Ok(())
}
