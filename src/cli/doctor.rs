//! `doctor`: libtorch, devices, threads, memory, and what is wrong with them.

use anyhow::Result;
use serde_json::json;

use super::args::{DoctorArgs, EvalFormat};
use super::print;
use crate::native::system::{self, MklKernels};

/// Runs the verb.
pub fn run(arguments: &DoctorArgs) -> Result<()> {
    let facts = system::facts()?;
    let heap = system::tune_heap().to_string();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if arguments.format == EvalFormat::Json {
        let mut all = serde_json::to_value(&facts)?;
        all["heap"] = json!(heap);
        all["cores"] = json!(cores);
        all["suite_version"] = json!(env!("CARGO_PKG_VERSION"));
        return print(&serde_json::to_string_pretty(&all)?);
    }
    let cuda = match (facts.cuda.linked, facts.cuda.usable) {
        (false, _) => {
            "not linked: this libtorch is a CPU build (`scripts/setup.sh --cuda` brings the other)".to_owned()
        }
        (true, true) => "usable".to_owned(),
        (true, false) => {
            format!(
                "linked, not usable: {}",
                facts.cuda.reason.as_deref().unwrap_or("no driver or device was found")
            )
        }
    };
    let mut rows = vec![
        ("tch-suite", env!("CARGO_PKG_VERSION").to_owned()),
        ("libtorch", format!("{}, loaded from {}", facts.libtorch_version, facts.libtorch_path.display())),
        ("processor", format!("{cores} cores, kernels for {}", facts.cpu_capability)),
        (
            "matrix products",
            match facts.mkl_kernels {
                Some(MklKernels::Instructions) => "MKL, its kernels chosen by the processor's instructions",
                Some(MklKernels::Maker) => {
                    "MKL, its kernels chosen by the processor's maker (TCH_SUITE_MKL=maker)"
                }
                None => "as libtorch has them",
            }
            .to_owned(),
        ),
        (
            "dropout",
            match facts.masks_of_pytorch {
                true => "PyTorch's masks (TCH_SUITE_DROPOUT=pytorch)",
                false => "masks of its own, on all threads",
            }
            .to_owned(),
        ),
        (
            "bf16 on the CPU",
            if facts.bf16_on_cpu { "in hardware" } else { "emulated: slower than fp32" }.to_owned(),
        ),
        (
            "threads",
            format!(
                "{} for kernels, {} for operators ({})",
                facts.intra_op_threads, facts.inter_op_threads, facts.parallel_backend
            ),
        ),
        ("allocator", facts.allocator.clone()),
        ("heap", heap),
        ("CUDA", cuda),
    ];
    for device in &facts.cuda.devices {
        let gigabytes = device.total_memory_bytes as f64 / 1e9;
        let (major, minor) = device.compute_capability;
        rows.push(("", format!("{}, {gigabytes:.1} GB, compute capability {major}.{minor}", device.name)));
    }
    rows.push(("MPS", if facts.mps_usable { "usable" } else { "not on this machine" }.to_owned()));
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines: Vec<String> = rows.iter().map(|(name, value)| format!("{name:width$}  {value}")).collect();
    print(&lines.join("\n"))
}
