//! Throughput of whole workloads: training steps, inference, start-up.
//!
//! `cargo bench --bench workloads` runs them all with their usual sizes; `-- --workload NAME` with further flags runs one. Each prints one
//! JSON line with the keys that the programs of the same names in `benches/pytorch/` print, whose docstrings specify shapes, loss and
//! optimizer; `scripts/compare_with_pytorch.sh` runs both sides alternately.
//!
//! What is timed is what the verbs run: [`Stepper`](tch_suite::training::step::Stepper) with a task for training, the forward pass of `predict`
//! for inference. To add a workload: a variant of [`Workload`] with its line in `run`, a program in `benches/pytorch/`, and its cases
//! in `benches/compare.py`.

mod bert_minilm_finetune;
mod dataloading;
mod gpt;
mod harness;
mod image;
mod lstm;
mod mlp_small;
mod seq2seq_transformer;
mod startup;
mod tokenising;

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use harness::{Options, WaitPolicy};
use tch_suite::error::{exit_code, one_sentence};
use tch_suite::native::{random, system};

/// Throughput of a workload, as one JSON line
#[derive(Parser)]
#[command(name = "workloads", version)]
struct Arguments {
    /// What to run [default: each, in a process of its own]
    #[arg(long, value_enum)]
    workload: Option<Workload>,
    #[command(flatten)]
    options: Options,
    /// The process that `startup` times: load, build, one step
    #[arg(long, hide = true)]
    startup_child: bool,
    /// What `cargo bench` passes
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Workload {
    /// LeNet-5 on 28 × 28 grey images
    #[value(name = "lenet5")]
    LeNet5,
    /// Two tiny dense networks, where overhead is the cost
    #[value(name = "mlp_small")]
    MlpSmall,
    /// The small network of TensorFlow's CIFAR-10 tutorial
    #[value(name = "cnn_small")]
    CnnSmall,
    /// ResNet-20 on 32 × 32 colour images
    #[value(name = "resnet20_cifar")]
    ResNet20Cifar,
    /// ResNet-18 on 224 × 224 colour images
    #[value(name = "resnet18_224")]
    ResNet18,
    /// A BERT of MiniLM's shape that learns to classify texts
    #[value(name = "bert_minilm_finetune")]
    BertMinilmFinetune,
    /// An encoder-decoder in training, and translating greedily or with a beam
    #[value(name = "seq2seq_transformer")]
    Seq2seqTransformer,
    /// A small GPT-2 of characters, learning or writing
    Gpt,
    /// A character language model of two LSTM layers
    #[value(name = "lstm_charlm")]
    LstmCharLm,
    /// The same model writing, one token at a time
    #[value(name = "lstm_generate")]
    LstmGenerate,
    /// Batches of varied images out of a folder of JPEG files, which --folder names
    Dataloading,
    /// The sentences of SST-2 into tokens, out of the data folder that --folder names
    Tokenising,
    /// Process start to the first training step done
    Startup,
}

fn main() -> ExitCode {
    system::tune_heap();
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("workloads: {}", one_sentence(&error));
            exit_code(&error)
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let options = &arguments.options;
    if arguments.startup_child {
        return startup::child(options);
    }
    let Some(workload) = arguments.workload else { return each() };
    settle_openmp(options)?;
    tch::set_num_threads(i32::try_from(options.threads).context("--threads")?);
    random::manual_seed(options.seed)?;
    match workload {
        Workload::LeNet5 => image::run(&image::LENET5, options),
        Workload::MlpSmall => mlp_small::run(options),
        Workload::CnnSmall => image::run(&image::CNN_SMALL, options),
        Workload::ResNet20Cifar => image::run(&image::RESNET20_CIFAR, options),
        Workload::ResNet18 => image::run(&image::RESNET18_224, options),
        Workload::BertMinilmFinetune => bert_minilm_finetune::run(options),
        Workload::Seq2seqTransformer => seq2seq_transformer::run(options),
        Workload::Gpt => gpt::run(options),
        Workload::LstmCharLm => lstm::run(options),
        Workload::LstmGenerate => lstm::generate(options),
        Workload::Dataloading => dataloading::run(options),
        Workload::Tokenising => tokenising::run(options),
        Workload::Startup => startup::run(options),
    }
}

/// Every workload with the same further flags, each in its own process so that memory and start-up are its own.
fn each() -> Result<()> {
    for workload in Workload::value_variants() {
        let name = workload.to_possible_value().context("a workload without a name")?;
        if matches!(workload, Workload::Dataloading | Workload::Tokenising) {
            eprintln!("workloads: {} is left out: it needs a --folder of its own", name.get_name());
            continue;
        }
        let program = std::env::current_exe().context("finding this program")?;
        let status = Command::new(program)
            .args(["--workload", name.get_name()])
            .args(std::env::args().skip(1))
            .status()
            .context("starting a workload")?;
        if !status.success() {
            bail!("the workload {} failed", name.get_name());
        }
    }
    Ok(())
}

/// OpenMP reads its variables when it is loaded, which is before `main`: where they are not as asked, the process starts over with them.
fn settle_openmp(options: &Options) -> Result<()> {
    let mut wanted = vec![("OMP_NUM_THREADS", options.threads.to_string())];
    match options.omp_wait {
        WaitPolicy::Default => {}
        WaitPolicy::Passive => wanted.push(("OMP_WAIT_POLICY", "passive".to_owned())),
        WaitPolicy::Active => wanted.push(("OMP_WAIT_POLICY", "active".to_owned())),
    }
    wanted.retain(|(name, value)| std::env::var(name).ok().as_ref() != Some(value));
    if wanted.is_empty() {
        return Ok(());
    }
    let program = std::env::current_exe().context("finding this program")?;
    let error = Command::new(program).args(std::env::args_os().skip(1)).envs(wanted).exec();
    Err(error).context("starting over with OpenMP's variables")
}
