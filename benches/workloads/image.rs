//! Image classifiers, through the family `cnn`.

use anyhow::Result;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};
use tch_suite::cli::cnn::Cnn;
use tch_suite::cli::{Family, FamilyRecipe};
use tch_suite::data::image_dataset::ImageBatch;
use tch_suite::models::Parameters;
use tch_suite::native::modes::InferenceMode;
use tch_suite::recipe;
use tch_suite::tasks;

use super::harness::{Batches, Inference, Mode, Options, Training, Usual, measure, name_of};

/// A network with its input and its optimizer.
pub struct ImageWorkload {
    /// Name of the workload.
    name: &'static str,
    /// Name of the architecture.
    model: &'static str,
    /// Channels, height, width.
    input: [i64; 3],
    classes: i64,
    batch: usize,
    optimizer: fn() -> Value,
    usual: Usual,
}

/// `benches/pytorch/lenet5.py`.
pub const LENET5: ImageWorkload = ImageWorkload {
    name: "lenet5",
    model: "lenet5",
    input: [1, 28, 28],
    classes: 10,
    batch: 128,
    optimizer: || json!({ "name": "adam", "lr": 0.001 }),
    usual: Usual { steps: 200, warmup: 20, inner: 1 },
};

/// `benches/pytorch/cnn_small.py`.
pub const CNN_SMALL: ImageWorkload = ImageWorkload {
    name: "cnn_small",
    model: "keras-cnn",
    input: [3, 32, 32],
    classes: 10,
    batch: 64,
    optimizer: || json!({ "name": "adam", "lr": 0.001 }),
    usual: Usual { steps: 200, warmup: 20, inner: 1 },
};

/// `benches/pytorch/resnet20_cifar.py`.
pub const RESNET20_CIFAR: ImageWorkload = ImageWorkload {
    name: "resnet20_cifar",
    model: "resnet20",
    input: [3, 32, 32],
    classes: 10,
    batch: 128,
    optimizer: resnet_optimizer,
    usual: Usual { steps: 40, warmup: 5, inner: 1 },
};

/// `benches/pytorch/resnet18_224.py`.
pub const RESNET18_224: ImageWorkload = ImageWorkload {
    name: "resnet18_224",
    model: "resnet18",
    input: [3, 224, 224],
    classes: 1000,
    batch: 16,
    optimizer: resnet_optimizer,
    usual: Usual { steps: 30, warmup: 5, inner: 1 },
};

fn resnet_optimizer() -> Value {
    json!({ "name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.0001 })
}

/// Runs it.
pub fn run(workload: &ImageWorkload, options: &Options) -> Result<()> {
    let size = options.batch.unwrap_or(workload.batch);
    let [channels, height, width] = workload.input;
    let recipe = json!({
        "name": workload.name,
        "model": {
            "name": workload.model,
            "num_classes": workload.classes,
            "in_channels": channels,
            "image_size": [height, width],
        },
        // Nothing is opened: the batches are made here. Bytes are normalised as the data would be.
        "data": { "format": "mnist-mini", "mean": [0.5], "std": [0.25] },
        "training": {
            "batch_size": size,
            "optimizer": (workload.optimizer)(),
            "precision": options.precision(),
            "channels_last": options.channels_last.map(|last| last == 1),
        },
    });
    let recipe: FamilyRecipe<Cnn> = recipe::typed(recipe, workload.name)?;
    let task = Cnn::build(&recipe, Parameters::new(Device::Cpu))?;
    let pool = (0..options.pool.max(1))
        .map(|_| {
            let images = [size as i64, channels, height, width];
            Ok(ImageBatch {
                images: Tensor::f_randint(256, images, (Kind::Uint8, Device::Cpu))?,
                labels: Tensor::f_randint(workload.classes, [size as i64], (Kind::Int64, Device::Cpu))?,
                mix: None,
                views: 1,
            })
        })
        .collect::<Result<Vec<_>>>()?;

    let variant = options.variant(&[&name_of(options.mode), &format!("b{size}")]);
    let timed = |work: &mut dyn super::harness::Work| {
        measure(workload.name, &variant, options, &workload.usual, size, work)
    };
    match options.mode {
        Mode::Train => {
            let batches: Batches<ImageBatch> = Box::new(move |number| {
                let batch = &pool[number % pool.len()];
                Ok(ImageBatch {
                    images: batch.images.shallow_clone(),
                    labels: batch.labels.shallow_clone(),
                    mix: None,
                    views: 1,
                })
            });
            timed(&mut Training::new(&recipe.training, task, batches)?)
        }
        Mode::Infer => {
            let _inference = InferenceMode::enter()?;
            let _autocast = recipe.training.precision.autocast(Device::Cpu)?;
            timed(&mut Inference::new(Box::new(move |number| {
                let images = task.normalise(&pool[number % pool.len()].images)?;
                Ok(task.forward(&images, tasks::Mode::Evaluate))
            })))
        }
    }
}
