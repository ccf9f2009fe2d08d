//! Two tiny dense networks, where the framework's overhead is the cost: `benches/pytorch/mlp_small.py`.

use anyhow::Result;
use serde_json::json;
use tch::{Device, Kind, Reduction, Tensor};
use tch_suite::data::Batch;
use tch_suite::models::Parameters;
use tch_suite::models::mlp::Mlp;
use tch_suite::native::modes::InferenceMode;
use tch_suite::recipe;
use tch_suite::tasks::{self, StepOutput, Task};
use tch_suite::training::config::TrainingConfig;

use super::harness::{
    Batches, Inference, Loop, Loss, Mode, Net, Options, Training, Usual, Work, measure, name_of,
};

const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);

/// Rows of a table with what is to be predicted.
pub struct Rows {
    /// `[batch, inputs]`, floats.
    inputs: Tensor,
    /// `[batch, 1]` floats in 0..1, or `[batch]` class numbers.
    targets: Tensor,
}

impl Batch for Rows {
    fn to_device(self, device: Device) -> Result<Self> {
        Ok(Self { inputs: self.inputs.f_to_device(device)?, targets: self.targets.f_to_device(device)? })
    }
}

/// How outputs are compared with targets.
#[derive(Clone, Copy)]
enum Criterion {
    BinaryLogits,
    BinaryProbabilities,
    CrossEntropy,
}

/// A dense network with its loss.
pub struct Dense {
    parameters: Parameters,
    network: Mlp,
    criterion: Criterion,
}

impl Task for Dense {
    type Batch = Rows;

    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn metrics(&self) -> &'static [&'static str] {
        &["loss"]
    }

    fn weight(&self, batch: &Rows, _mode: tasks::Mode) -> Result<f64> {
        Ok(batch.targets.numel() as f64)
    }

    fn step(&mut self, batch: &Rows, mode: tasks::Mode) -> Result<StepOutput> {
        let outputs = self.network.forward(&batch.inputs, mode == tasks::Mode::Train);
        let outputs = outputs.f_to_kind(Kind::Float)?;
        let loss_sum = match self.criterion {
            Criterion::BinaryLogits => outputs.f_binary_cross_entropy_with_logits::<Tensor>(
                &batch.targets,
                None,
                None,
                Reduction::Sum,
            ),
            Criterion::BinaryProbabilities => {
                outputs.f_sigmoid()?.f_binary_cross_entropy::<Tensor>(&batch.targets, None, Reduction::Sum)
            }
            Criterion::CrossEntropy => {
                outputs.f_cross_entropy_loss::<Tensor>(&batch.targets, None, Reduction::Sum, -100, 0.0)
            }
        }?;
        Ok(StepOutput { loss_sum, sums: Vec::new(), outcome: None })
    }
}

/// The network, and how many inputs it takes; `width` is the inner one of `mnist`.
pub fn network(net: Net, width: i64, loss: Loss) -> Result<(Dense, i64)> {
    let widths = match net {
        Net::Keras => [100, 2, 1],
        Net::Mnist => [784, width, 10],
    };
    let criterion = match (net, loss) {
        (Net::Keras, Loss::Logits) => Criterion::BinaryLogits,
        (Net::Keras, Loss::Bce) => Criterion::BinaryProbabilities,
        (Net::Mnist, _) => Criterion::CrossEntropy,
    };
    let parameters = Parameters::new(Device::Cpu);
    let network = Mlp::new(&parameters.root(), &widths, 0.0)?;
    Ok((Dense { parameters, network, criterion }, widths[0]))
}

/// Adam at 1e-3 in the arithmetic asked for.
pub fn training(options: &Options) -> Result<TrainingConfig> {
    recipe::typed(
        json!({ "optimizer": { "name": "adam", "lr": 0.001 }, "precision": options.precision() }),
        "mlp_small",
    )
}

/// Random rows for a network.
pub fn rows(net: Net, count: i64, inputs: i64) -> Result<Rows> {
    let targets = match net {
        Net::Keras => Tensor::f_randint(2, [count, 1], FLOAT)?,
        Net::Mnist => Tensor::f_randint(10, [count], (Kind::Int64, Device::Cpu))?,
    };
    Ok(Rows { inputs: Tensor::f_randn([count, inputs], FLOAT)?, targets })
}

/// A pool of batches, or 1000 rows that are gathered in a new order each epoch.
fn batches(options: &Options, size: i64, inputs: i64) -> Result<Batches<Rows>> {
    let net = options.net;
    match options.source {
        Loop::Resident => {
            let pool =
                (0..options.pool.max(1)).map(|_| rows(net, size, inputs)).collect::<Result<Vec<_>>>()?;
            Ok(Box::new(move |number| {
                let batch = &pool[number % pool.len()];
                Ok(Rows { inputs: batch.inputs.shallow_clone(), targets: batch.targets.shallow_clone() })
            }))
        }
        Loop::Epoch => {
            let per_epoch = (1000 / size).max(1);
            let all = rows(net, per_epoch * size, inputs)?;
            let mut order = Vec::new();
            Ok(Box::new(move |number| {
                let batch = number % per_epoch as usize;
                if batch == 0 || order.is_empty() {
                    let permutation = Tensor::f_randperm(per_epoch * size, (Kind::Int64, Device::Cpu))?;
                    order = permutation.f_split(size, 0)?;
                }
                Ok(Rows {
                    inputs: all.inputs.f_index_select(0, &order[batch])?,
                    targets: all.targets.f_index_select(0, &order[batch])?,
                })
            }))
        }
    }
}

/// Runs it.
pub fn run(options: &Options) -> Result<()> {
    let (usual_batch, inner) = match options.net {
        Net::Keras => (10, 100),
        Net::Mnist => (64, 20),
    };
    let size = options.batch.unwrap_or(usual_batch);
    let usual = Usual { steps: 50, warmup: 100, inner };
    let (task, inputs) = network(options.net, options.width, options.loss)?;
    let mut batches = batches(options, size as i64, inputs)?;
    let variant = options.variant(&[
        &name_of(options.net),
        &name_of(options.mode),
        &format!("b{size}"),
        &name_of(options.source),
    ]);
    let timed = |work: &mut dyn Work| measure("mlp_small", &variant, options, &usual, size, work);
    match options.mode {
        Mode::Train => timed(&mut Training::new(&training(options)?, task, batches)?),
        Mode::Infer => {
            let _inference = InferenceMode::enter()?;
            let _autocast = options.precision().autocast(Device::Cpu)?;
            timed(&mut Inference::new(Box::new(move |number| {
                Ok(task.network.forward(&batches(number)?.inputs, false))
            })))
        }
    }
}
