//! Batches of varied images out of a folder of files: `benches/pytorch/dataloading.py`, and with `--photographs` its `--photographs`.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use serde_json::json;
use tch::{Kind, Tensor};
use tch_suite::data::Dataset;
use tch_suite::data::image_dataset::ImageDataset;
use tch_suite::data::images::{ImageDataConfig, Normalisation};
use tch_suite::data::loader::{Loader, LoaderConfig, Position};
use tch_suite::data::order::Shuffled;
use tch_suite::recipe;

use super::harness::{Options, Timed, Usual, Work, time};

const USUAL: Usual = Usual { steps: 20, warmup: 10, inner: 10 };

/// The training loop's wait for data and its normalisation.
struct Loading {
    loader: Loader<ImageDataset>,
    normalisation: Normalisation,
    batch_size: usize,
    images: Option<Tensor>,
}

impl Work for Loading {
    fn step(&mut self, _number: usize) -> Result<()> {
        let mut loaded = self.loader.next_batch()?;
        if loaded.samples.len() < self.batch_size {
            // The smaller last batch of an epoch does not count.
            loaded = self.loader.next_batch()?;
        }
        self.images = Some(self.normalisation.apply(&loaded.batch.images)?);
        Ok(())
    }

    fn value(&mut self) -> Result<f64> {
        let images = self.images.as_ref().context("nothing has been loaded")?;
        Ok(images.f_mean(Kind::Float)?.f_double_value(&[])?)
    }
}

/// Runs it once for each number of workers and prints the fastest.
pub fn run(options: &Options) -> Result<()> {
    let size = options.batch.unwrap_or(if options.photographs { 32 } else { 128 });
    let folder = options.folder.as_ref().context("dataloading needs --folder")?;
    let data: ImageDataConfig = recipe::typed(
        json!({
            "format": "folder",
            "path": folder,
            "val_fraction": 0,
            "mean": [0.4914, 0.4822, 0.4465],
            "std": [0.2470, 0.2435, 0.2616],
            "image_size": if options.photographs { json!([224, 224]) } else { json!(null) },
            "augment": match options.photographs {
                true => json!({ "resized_crop": {}, "flip": true }),
                false => json!({ "crop_padding": 4, "flip": true }),
            },
            "cache_mb": options.cache_mb,
        }),
        "dataloading",
    )?;
    let images = Arc::new(data.open(options.seed)?.splits.train);
    if images.len() < size {
        bail!("{} holds {} images, fewer than a batch of {size}", folder.display(), images.len());
    }
    let mut fastest = None;
    for &workers in &options.workers {
        let config = LoaderConfig { workers, ahead: 4, seed: options.seed, train: true };
        let sampler = Shuffled { len: images.len(), batch_size: size, seed: options.seed };
        let start = Position { epoch: 0, batch: 0 };
        let mut loading = Loading {
            loader: Loader::new(images.clone(), Arc::new(sampler), config, start)?,
            normalisation: data.normalisation(images.form().channels)?,
            batch_size: size,
            images: None,
        };
        let timed = time(options, &USUAL, size, &mut loading)?;
        if fastest.as_ref().is_none_or(|(_, known): &(usize, Timed)| timed.median() > known.median()) {
            fastest = Some((workers, timed));
        }
    }
    let kind = if options.photographs { "photographs-" } else { "" };
    let (workers, timed) = fastest.context("--workers names no number")?;
    let variant = options.variant(&[&format!("{kind}workers{workers}"), &format!("b{size}")]);
    timed.emit("dataloading", &variant, "images/s", &[("files", json!(images.len()))])
}
