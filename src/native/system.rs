//! Facts about process, processor and devices, and settings of the whole process.

use super::{check, device_code, dropout, ffi, new_text};
use anyhow::Result;
use serde::Serialize;
use std::ffi::CStr;
use std::fmt;
use std::path::PathBuf;
use tch::{Device, Kind, Tensor};

/// What [`tune_heap`] did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HeapTuning {
    /// Large blocks are kept for reuse.
    Tuned {
        /// Blocks from this many bytes on are mapped one by one; 0 where the allocator kept its own threshold.
        mmap_threshold: u64,
        /// Whether free memory at the end of the heap is given back only by [`release_unused_memory`].
        never_trims: bool,
    },
    /// The user has settings for the allocator in the environment.
    LeftToUser {
        /// The variable that says so.
        variable: String,
    },
    /// The C library is not glibc.
    NotGlibc,
}

impl fmt::Display for HeapTuning {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HeapTuning::Tuned { mmap_threshold, never_trims } => {
                match mmap_threshold {
                    0 => write!(formatter, "glibc's own mmap threshold")?,
                    bytes => write!(formatter, "blocks below {} MiB stay in the heap", bytes >> 20)?,
                }
                write!(
                    formatter,
                    ", {}",
                    if *never_trims { "which is not trimmed" } else { "which is trimmed as glibc does" }
                )
            }
            HeapTuning::LeftToUser { variable } => write!(formatter, "left as {variable} says"),
            HeapTuning::NotGlibc => write!(formatter, "not glibc, left alone"),
        }
    }
}

/// Keeps large memory blocks in the heap between training steps; to be called first in `main`.
///
/// glibc otherwise maps every large tensor anew and unmaps it after use, and the kernel clears its pages in between: up to a
/// third of the time of a small convolutional network. The thresholds are 512 MiB for mapping (32 MiB before glibc 2.35) and no
/// trimming at all, because the interface cannot express a trim threshold of 2 GiB or more. Does nothing when the environment
/// has `MALLOC_…` variables or `GLIBC_TUNABLES`.
pub fn tune_heap() -> HeapTuning {
    let user_settings = std::env::vars_os()
        .filter_map(|(name, _)| name.into_string().ok())
        .filter(|name| name == "GLIBC_TUNABLES" || name.starts_with("MALLOC_"))
        .min();
    if let Some(variable) = user_settings {
        return HeapTuning::LeftToUser { variable };
    }
    let mut heap = ffi::Heap { glibc: false, mmap_threshold: 0, never_trims: false };
    // SAFETY: a place to write to.
    unsafe { ffi::suite_tune_heap(&mut heap) };
    if heap.glibc {
        HeapTuning::Tuned {
            mmap_threshold: heap.mmap_threshold.unsigned_abs(),
            never_trims: heap.never_trims,
        }
    } else {
        HeapTuning::NotGlibc
    }
}

/// Gives free memory of the heap back to the system: worth it once between preparing data and training.
pub fn release_unused_memory() {
    // SAFETY: takes and returns nothing.
    unsafe { ffi::suite_release_unused_memory() }
}

/// The most memory that the process has had resident so far, in bytes.
pub fn peak_memory_bytes() -> Result<u64> {
    let mut bytes = 0;
    // SAFETY: a place to write to.
    check(unsafe { ffi::suite_peak_memory(&mut bytes) })?;
    Ok(bytes)
}

/// Whether a device multiplies bfloat16 numbers in hardware: a processor with AVX512_BF16, AMX or ARM's BF16 instructions, a
/// CUDA device of compute capability 8.0 or more, MPS from macOS 14 on. Elsewhere bfloat16 works, but more slowly than float32.
pub fn supports_bf16(device: Device) -> Result<bool> {
    let mut supported = false;
    match device {
        // SAFETY: a place to write to, here and below.
        Device::Cpu => check(unsafe { ffi::suite_cpu_bf16(&mut supported) })?,
        Device::Mps => check(unsafe { ffi::suite_mps_bf16(&mut supported) })?,
        Device::Cuda(index) => supported = cuda_device(i32::try_from(index)?)?.compute_capability >= (8, 0),
        Device::Vulkan => {}
    }
    Ok(supported)
}

/// Makes libtorch use deterministic algorithms only (an operation that has none becomes an error), or allows the others again.
///
/// On CUDA this needs the variable `CUBLAS_WORKSPACE_CONFIG` before cuBLAS is first used; it is set to `:4096:8` here unless it
/// is set already. Call this before starting threads: they must not read the environment at the same time.
pub fn set_deterministic(on: bool) -> Result<()> {
    if on && std::env::var_os("CUBLAS_WORKSPACE_CONFIG").is_none() {
        // cuBLAS is deterministic only with a workspace of fixed size.
        // SAFETY: there are no threads yet that read the environment from C, as the documentation demands.
        unsafe { std::env::set_var("CUBLAS_WORKSPACE_CONFIG", ":4096:8") };
    }
    // SAFETY: a plain value.
    check(unsafe { ffi::suite_set_deterministic(on) })
}

/// Treats denormal numbers as zero on the calling thread and the threads it starts from now on. Returns whether the processor
/// can do that.
pub fn set_flush_denormal(on: bool) -> Result<bool> {
    let mut supported = false;
    // SAFETY: a plain value and a place to write to.
    check(unsafe { ffi::suite_set_flush_denormal(on, &mut supported) })?;
    Ok(supported)
}

/// How exact products of float32 matrices are, as `torch.set_float32_matmul_precision`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MatmulPrecision {
    /// In float32.
    Highest,
    /// In TensorFloat32 or as sums of bfloat16 products, where the device has them.
    High,
    /// In bfloat16, where the device has it.
    Medium,
}

/// Sets how exact products of float32 matrices are.
pub fn set_float32_matmul_precision(precision: MatmulPrecision) -> Result<()> {
    let name = match precision {
        MatmulPrecision::Highest => c"highest",
        MatmulPrecision::High => c"high",
        MatmulPrecision::Medium => c"medium",
    };
    // SAFETY: a null-terminated text.
    check(unsafe { ffi::suite_set_float32_matmul_precision(name.as_ptr()) })
}

/// What there is to say about libtorch and the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Facts {
    /// The version that the program was built with, `2.13.0+cpu` where its distribution names the build.
    pub libtorch_version: String,
    /// The library that is loaded.
    pub libtorch_path: PathBuf,
    /// The instruction set that libtorch's kernels use: `DEFAULT`, `AVX2`, `AVX512`, …
    pub cpu_capability: String,
    /// By what MKL, where this libtorch has it, chooses the kernels of matrix products.
    pub mkl_kernels: Option<MklKernels>,
    /// Whether dropout draws PyTorch's masks, as the environment asks for, and not its own.
    pub masks_of_pytorch: bool,
    /// Threads that one operation uses.
    pub intra_op_threads: u64,
    /// Threads that run operations side by side.
    pub inter_op_threads: u64,
    /// What runs the threads: `OpenMP`, `native thread pool`, …
    pub parallel_backend: String,
    /// libtorch's own report on threads, several lines.
    pub parallel_info: String,
    /// The library that provides `malloc`.
    pub allocator: String,
    /// Whether the processor multiplies bfloat16 numbers itself.
    pub bf16_on_cpu: bool,
    /// NVIDIA devices.
    pub cuda: Cuda,
    /// Whether Apple's GPU can be used.
    pub mps_usable: bool,
}

/// By what MKL chooses its kernels. By itself it goes by the processor's maker, and takes old ones on all but one maker's; these programs make it go by the
/// instructions, which doubles the speed of float32 products on recent processors of others. `TCH_SUITE_MKL=maker` in the environment leaves it alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MklKernels {
    /// By the instructions that the processor has.
    Instructions,
    /// By who made the processor, as the environment asks for.
    Maker,
}

impl Facts {
    /// What the results of this processor depend on: its vector instructions, and which of our kernels the environment switches off.
    pub fn arithmetic(&self) -> String {
        let mut words = vec![self.cpu_capability.as_str()];
        if self.mkl_kernels == Some(MklKernels::Maker) {
            words.push("MKL's kernels by the maker");
        }
        if self.masks_of_pytorch {
            words.push("PyTorch's dropout");
        }
        words.join(", ")
    }
}

/// NVIDIA devices as libtorch and as the driver see them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cuda {
    /// Whether this libtorch was built with CUDA and its CUDA part is loaded.
    pub linked: bool,
    /// Whether a tensor can be made on a device.
    pub usable: bool,
    /// Why not, as far as libtorch says.
    pub reason: Option<String>,
    /// The devices that the driver shows, also when libtorch cannot use them.
    pub devices: Vec<CudaDevice>,
}

/// One NVIDIA device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CudaDevice {
    /// The marketing name.
    pub name: String,
    /// Its memory in bytes.
    pub total_memory_bytes: u64,
    /// Major and minor number.
    pub compute_capability: (i32, i32),
}

/// Collects the facts. Initialises CUDA where there is any.
pub fn facts() -> Result<Facts> {
    let (mut intra_op_threads, mut inter_op_threads, mut mps_usable) = (0, 0, false);
    // SAFETY: places to write to, in all calls.
    check(unsafe { ffi::suite_threads(&mut intra_op_threads, &mut inter_op_threads) })?;
    check(unsafe { ffi::suite_mps_usable(&mut mps_usable) })?;
    let parallel_info = new_text(|result| unsafe { ffi::suite_parallel_info(result) })?;
    let parallel_backend = parallel_info
        .lines()
        .find_map(|line| line.strip_prefix("ATen parallel backend: "))
        .unwrap_or("unknown")
        .to_owned();
    Ok(Facts {
        libtorch_version: env!("TCH_SUITE_LIBTORCH_VERSION").to_owned(),
        libtorch_path: new_text(|result| unsafe { ffi::suite_libtorch_path(result) })?.into(),
        cpu_capability: new_text(|result| unsafe { ffi::suite_cpu_capability(result) })?,
        mkl_kernels: mkl_kernels()?,
        masks_of_pytorch: dropout::masks_of_pytorch(),
        intra_op_threads,
        inter_op_threads,
        parallel_backend,
        parallel_info,
        allocator: new_text(|result| unsafe { ffi::suite_allocator_path(result) })?,
        bf16_on_cpu: supports_bf16(Device::Cpu)?,
        cuda: cuda_facts()?,
        mps_usable,
    })
}

fn mkl_kernels() -> Result<Option<MklKernels>> {
    // It chooses at its first product.
    let matrix = Tensor::f_ones([64, 64], (Kind::Float, Device::Cpu))?;
    let _ = matrix.f_mm(&matrix)?;
    let (mut was_asked, mut by_maker) = (false, false);
    // SAFETY: places to write to.
    unsafe { ffi::suite_mkl_kernels(&mut was_asked, &mut by_maker) };
    let chosen = if by_maker { MklKernels::Maker } else { MklKernels::Instructions };
    Ok(was_asked.then_some(chosen))
}

fn cuda_facts() -> Result<Cuda> {
    let (mut linked, mut count) = (false, 0);
    // SAFETY: places to write to, in all calls.
    check(unsafe { ffi::suite_cuda_linked(&mut linked) })?;
    check(unsafe { ffi::suite_cuda_device_count(&mut count) })?;
    let devices = (0..count).map(cuda_device).collect::<Result<Vec<_>>>()?;
    let reason = match linked {
        true => {
            let (device_type, index) = device_code(Device::Cuda(0))?;
            check(unsafe { ffi::suite_try_device(device_type, index) }).err().map(|error| error.to_string())
        }
        // libtorch's own answer is pages long.
        false => Some("this libtorch was built without CUDA".to_owned()),
    };
    Ok(Cuda { linked, usable: reason.is_none(), reason, devices })
}

fn cuda_device(index: i32) -> Result<CudaDevice> {
    let mut device = ffi::CudaDevice { name: [0; 256], total_memory: 0, major: 0, minor: 0 };
    // SAFETY: a place to write to.
    check(unsafe { ffi::suite_cuda_device(index, &mut device) })?;
    // SAFETY: the shim leaves the last byte zero.
    let name = unsafe { CStr::from_ptr(device.name.as_ptr()) }.to_string_lossy().into_owned();
    Ok(CudaDevice {
        name,
        total_memory_bytes: device.total_memory,
        compute_capability: (device.major, device.minor),
    })
}

#[cfg(test)]
mod tests {
    use super::super::test_support::exclusive;
    use super::*;

    #[test]
    fn facts_name_the_library_and_its_version() {
        let facts = facts().unwrap();
        assert!(facts.libtorch_version.starts_with("2."), "{}", facts.libtorch_version);
        assert!(facts.libtorch_path.is_file() && facts.libtorch_path.to_string_lossy().contains("torch_cpu"));
        assert!(facts.intra_op_threads > 0 && facts.inter_op_threads > 0);
        assert!(!facts.cpu_capability.is_empty() && !facts.allocator.is_empty());
        if cfg!(all(target_os = "linux", target_arch = "x86_64")) {
            // The program's answer is the one that MKL asks for.
            assert_eq!(facts.mkl_kernels, Some(MklKernels::Instructions));
        }
        assert_ne!(facts.parallel_backend, "unknown", "{}", facts.parallel_info);
        assert_eq!(facts.cuda.usable, facts.cuda.reason.is_none());
        assert_eq!(facts.cuda.usable, tch::Cuda::is_available());
        assert!(facts.cuda.reason.is_none_or(|reason| reason.len() < 400 && !reason.contains("frame #")));
    }

    #[test]
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    fn bf16_is_what_the_kernel_lists() {
        let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap();
        let listed = flags.split_whitespace().any(|flag| flag == "avx512_bf16" || flag == "amx_bf16");
        assert_eq!(supports_bf16(Device::Cpu).unwrap(), listed);
    }

    #[test]
    fn peak_memory_covers_what_is_allocated() {
        let before = peak_memory_bytes().unwrap();
        let tensor = Tensor::ones([64 << 20], (Kind::Uint8, Device::Cpu));
        let after = peak_memory_bytes().unwrap();
        assert!(before > 1 << 20 && after >= 64 << 20 && after >= before, "{before} {after}");
        drop(tensor);
    }

    #[test]
    fn switches_can_be_set_and_reset() {
        let _lock = exclusive();
        set_deterministic(true).unwrap();
        assert!(std::env::var("CUBLAS_WORKSPACE_CONFIG").is_ok());
        // An operation without a deterministic form says so now.
        let input = Tensor::ones([4], (Kind::Float, Device::Cpu));
        let output = input.f_put(&Tensor::from_slice(&[0i64]), &Tensor::from_slice(&[2.0f32]), false);
        set_deterministic(false).unwrap();
        assert!(output.is_err());
        for precision in [MatmulPrecision::Medium, MatmulPrecision::High, MatmulPrecision::Highest] {
            set_float32_matmul_precision(precision).unwrap();
        }
        let supported = set_flush_denormal(true).unwrap();
        let tiny = (Tensor::from(1e-30f32) * 1e-10).double_value(&[]);
        set_flush_denormal(false).unwrap();
        assert_eq!(tiny == 0.0, supported);
    }

    #[test]
    fn the_heap_is_tuned_unless_the_user_did() {
        let expected_user = std::env::vars_os().any(|(name, _)| {
            let name = name.to_string_lossy();
            name == "GLIBC_TUNABLES" || name.starts_with("MALLOC_")
        });
        let tuning = tune_heap();
        assert_eq!(matches!(tuning, HeapTuning::LeftToUser { .. }), expected_user);
        if cfg!(target_env = "gnu") && !expected_user {
            let HeapTuning::Tuned { mmap_threshold, never_trims } = tuning else { panic!("{tuning:?}") };
            assert!(mmap_threshold >= 32 << 20 && never_trims);
        }
        release_unused_memory();
    }
}
