//! `shards`: a data set as tar archives that training reads in sequence.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;

use super::args::TrainArgs;
use super::cnn::Cnn;
use super::session;
use crate::data::image_dataset::ImageDataset;
use crate::data::{Dataset, order};
use crate::reporting::{Log, Verbosity, format};
use crate::{bail_input, files};

/// Arguments of `shards`.
#[derive(Debug, Args)]
pub struct ShardsArgs {
    /// Any data set of images with one label each
    #[arg(value_name = "DATA")]
    data: String,
    /// The folder to fill: train-000000.tar, …, and likewise for `val` and `test` where the data have such parts
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Megabytes of an archive
    #[arg(long, value_name = "MB", default_value_t = 256)]
    size: u64,
    /// Seed of the order of the images in the archives, and of the parts
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Share of the training part to become `val` where the data have no such part
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    val_fraction: f64,
    /// Set a key of the recipe's data section; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// Runs the verb.
pub fn run(arguments: &ShardsArgs) -> Result<()> {
    if arguments.size == 0 {
        bail_input!("--size must be at least 1");
    }
    let log = Log::new(Verbosity::from_flags(false, false));
    let mut recipe = session::new_recipe::<Cnn>(&TrainArgs {
        data: Some(arguments.data.clone()),
        seed: Some(arguments.seed),
        val_fraction: Some(arguments.val_fraction),
        set: arguments.set.clone(),
        ..Default::default()
    })?;
    recipe.data.resolve()?;
    if recipe.data.multi_label {
        bail_input!("shards hold images with one label each, which data.multi_label says these have not");
    }
    let opened = recipe.data.open(arguments.seed)?;
    let largest = opened.splits.train.labels().max().unwrap_or(0);
    let classes = opened.classes.unwrap_or_else(|| (0..=largest).map(|class| class.to_string()).collect());
    std::fs::create_dir_all(&arguments.out).map_err(|error| files::cannot_write(&arguments.out, &error))?;
    if std::fs::read_dir(&arguments.out).is_ok_and(|mut entries| entries.next().is_some()) {
        bail_input!("{} is not empty: give a new folder", arguments.out.display());
    }
    let splits = opened.splits;
    for (name, part) in [("train", Some(splits.train)), ("val", splits.validation), ("test", splits.test)] {
        if let Some(part) = part {
            let count = write_part(arguments, name, &part, &classes, &log)?;
            log.info(format!("{name}: {} images in {count} archives", format::count(part.len() as u64)));
        }
    }
    log.result(format!(
        "train on them with --data {} --set data.shuffle_buffer=10000",
        arguments.out.display()
    ));
    Ok(())
}

/// Writes the archives of one part and returns their number.
fn write_part(
    arguments: &ShardsArgs,
    name: &str,
    data: &ImageDataset,
    classes: &[String],
    log: &Log,
) -> Result<usize> {
    let bar = log.progress(name, 0, Some(data.len() as u64));
    let mut shard: Option<Shard> = None;
    let mut count = 0;
    for (number, sample) in order::permutation(data.len(), arguments.seed)?.into_iter().enumerate() {
        let (content, ending) = data.content(sample)?;
        let Some(class) = classes.get(data.class(sample) as usize) else {
            bail_input!("{} has a label without a class", data.describe(sample));
        };
        let mut open = match shard.take() {
            Some(open) => open,
            None => {
                count += 1;
                Shard::create(&arguments.out.join(format!("{name}-{:06}.tar", count - 1)))?
            }
        };
        open.add(&format!("{number:09}.{ending}"), &content)?;
        open.add(&format!("{number:09}.cls"), class.as_bytes())?;
        if open.bytes < arguments.size * 1_000_000 {
            shard = Some(open);
        } else {
            open.finish()?;
        }
        bar.advance(1);
    }
    shard.map_or(Ok(()), Shard::finish)?;
    Ok(count)
}

/// An archive that is being written, under a name that no reader takes for one.
struct Shard {
    path: PathBuf,
    partial: PathBuf,
    archive: tar::Builder<BufWriter<File>>,
    bytes: u64,
}

impl Shard {
    fn create(path: &Path) -> Result<Self> {
        let partial = path.with_extension("tar.partial");
        let file = File::create(&partial).map_err(|error| files::cannot_write(&partial, &error))?;
        let archive = tar::Builder::new(BufWriter::new(file));
        Ok(Self { path: path.to_owned(), partial, archive, bytes: 0 })
    }

    /// Adds a file; equal data sets make equal archives.
    fn add(&mut self, name: &str, content: &[u8]) -> Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        self.archive
            .append_data(&mut header, name, content)
            .map_err(|error| files::cannot_write(&self.partial, &error))?;
        self.bytes += 1024 + content.len() as u64;
        Ok(())
    }

    fn finish(self) -> Result<()> {
        let Self { path, partial, archive, .. } = self;
        let written = archive.into_inner().and_then(|mut writer| {
            writer.flush()?;
            writer.get_ref().sync_all()
        });
        written.map_err(|error| files::cannot_write(&partial, &error))?;
        std::fs::rename(&partial, &path)
            .with_context(|| format!("cannot rename {} to {}", partial.display(), path.display()))
    }
}
