//! Compiles the C++ shim of `src/native/cpp` against the libtorch that torch-sys found, and tells the linker where that
//! libtorch is, so that the programs start without `LD_LIBRARY_PATH`.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

const SOURCES: &str = "src/native/cpp";

fn main() {
    if let Err(message) = build() {
        // One line: Cargo reads directives line by line.
        println!("cargo::error={}", message.split_whitespace().collect::<Vec<_>>().join(" "));
    }
}

fn build() -> Result<(), String> {
    let library_folder = library_folder()?;
    let include_folder = include_folder(&library_folder)?;
    compile_shim(&include_folder)?;
    link(&library_folder);
    let version = libtorch_version(&library_folder, &include_folder)?;
    println!("cargo::rustc-env=TCH_SUITE_LIBTORCH_VERSION={version}");
    Ok(())
}

/// The folder of libtorch's shared libraries, as torch-sys (whose `links` key is `tch`) reports it.
fn library_folder() -> Result<PathBuf, String> {
    let reported = env::var_os("DEP_TCH_LIBTORCH_LIB").ok_or(
        "torch-sys reported no libtorch folder: run scripts/setup.sh, or set LIBTORCH to the folder of a libtorch 2.13 for Linux or macOS",
    )?;
    let reported = PathBuf::from(reported);
    fs::canonicalize(&reported).map_err(|error| {
        format!(
            "cannot open libtorch's library folder {} ({error}): run scripts/setup.sh, or set LIBTORCH to the folder of a libtorch 2.13",
            reported.display()
        )
    })
}

/// The headers: beside the libraries in every official layout, elsewhere where LIBTORCH_INCLUDE says so, as torch-sys reads it.
fn include_folder(library_folder: &Path) -> Result<PathBuf, String> {
    println!("cargo::rerun-if-env-changed=LIBTORCH_INCLUDE");
    let from_variable = env::var_os("LIBTORCH_INCLUDE").map(|root| PathBuf::from(root).join("include"));
    let beside_libraries = library_folder.parent().map(|root| root.join("include"));
    let candidates: Vec<PathBuf> = from_variable.into_iter().chain(beside_libraries).collect();
    candidates.iter().find(|folder| folder.join("ATen/ATen.h").is_file()).cloned().ok_or_else(|| {
        format!(
            "no libtorch headers (ATen/ATen.h) for {}: that folder must come from a complete libtorch 2.13, as scripts/setup.sh makes it",
            library_folder.display()
        )
    })
}

fn compile_shim(include_folder: &Path) -> Result<(), String> {
    println!("cargo::rerun-if-changed={SOURCES}");
    println!("cargo::rerun-if-env-changed=LIBTORCH_CXX11_ABI");
    let mut sources = Vec::new();
    for entry in fs::read_dir(SOURCES).map_err(|error| format!("cannot list {SOURCES}: {error}"))? {
        let path = entry.map_err(|error| format!("cannot list {SOURCES}: {error}"))?.path();
        if path.extension().is_some_and(|extension| extension == "cpp") {
            sources.push(path);
        }
    }
    sources.sort();

    let abi = env::var("LIBTORCH_CXX11_ABI").unwrap_or_else(|_| "1".to_owned());
    let mut compiler = cc::Build::new();
    compiler.cpp(true).std("c++20").pic(true).warnings(true).extra_warnings(true).files(&sources);
    if env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") && compiler.get_compiler().is_like_gnu() {
        // Loops that libtorch's headers share out among its threads run on one otherwise. Other compilers have another OpenMP than libtorch.
        compiler.flag("-fopenmp");
    }
    // torch-sys defines it too; both sides must agree on std::string's layout.
    compiler.define("_GLIBCXX_USE_CXX11_ABI", abi.as_str());
    // What libtorch's own headers include of gloo, whose headers are not distributed with it.
    compiler.include(format!("{SOURCES}/declarations"));
    if env::var_os("CARGO_FEATURE_NCCL").is_some() {
        compiler.define("TCH_SUITE_NCCL", None);
        for folder in nccl_folders(include_folder)? {
            compiler.flag("-isystem").flag(folder);
        }
    }
    for folder in [include_folder.to_path_buf(), include_folder.join("torch/csrc/api/include")] {
        // As system headers, so that their warnings are not ours.
        compiler.flag("-isystem").flag(folder);
    }
    compiler.try_compile("tch_suite_native").map_err(|error| {
        format!("the C++ shim in {SOURCES} does not compile (a C++20 compiler is needed; run with -vv to see its messages): {error}")
    })
}

/// The headers that NCCL's process group needs besides libtorch's: CUDA's and NCCL's own, which lie beside libtorch where it comes from Python's packages,
/// else where CUDA_HOME and NCCL_HOME say.
fn nccl_folders(include_folder: &Path) -> Result<Vec<PathBuf>, String> {
    println!("cargo::rerun-if-env-changed=CUDA_HOME");
    println!("cargo::rerun-if-env-changed=NCCL_HOME");
    let packages = fs::canonicalize(include_folder)
        .ok()
        .and_then(|folder| Some(folder.parent()?.parent()?.join("nvidia")));
    let home = |variable: &str| env::var_os(variable).map(|home| PathBuf::from(home).join("include"));
    let candidates = |own: Option<PathBuf>, package: &str, usual: &str| -> Vec<PathBuf> {
        let package = packages.as_ref().map(|packages| packages.join(package).join("include"));
        own.into_iter().chain(package).chain([PathBuf::from(usual)]).collect()
    };
    let find = |folders: Vec<PathBuf>, header: &str, what: &str| {
        folders.into_iter().find(|folder| folder.join(header).is_file()).ok_or_else(|| {
            format!("the feature nccl needs the headers of {what} ({header}): run scripts/setup.sh --cuda, or set CUDA_HOME and NCCL_HOME to where they are")
        })
    };
    let cuda =
        find(candidates(home("CUDA_HOME"), "cu13", "/usr/local/cuda/include"), "cuda_runtime_api.h", "CUDA")?;
    let nccl = find(candidates(home("NCCL_HOME"), "nccl", "/usr/include"), "nccl.h", "NCCL")?;
    Ok(vec![cuda, nccl])
}

/// Link arguments of this package's programs, tests and examples: torch-sys's own do not reach them.
fn link(library_folder: &Path) {
    let library_folder = library_folder.display();
    println!("cargo::rustc-link-search=native={library_folder}");
    if env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        // kernels.cpp: libtorch must find this function in the program.
        println!("cargo::rustc-link-arg=-Wl,--undefined=mkl_serv_intel_cpu_true");
        println!("cargo::rustc-link-arg=-Wl,--export-dynamic-symbol=mkl_serv_intel_cpu_true");
    }
    let beside_program = match env::var("CARGO_CFG_TARGET_OS").as_deref() {
        Ok("macos") => "@loader_path/../lib",
        _ => "$ORIGIN/../lib",
    };
    // First the copy that travels with an installed program (bin/ beside lib/), then the one it was built with.
    println!("cargo::rustc-link-arg=-Wl,-rpath,{beside_program}");
    println!("cargo::rustc-link-arg=-Wl,-rpath,{library_folder}");
    if Path::new(&library_folder.to_string()).join("libtorch_cuda.so").is_file() {
        // libtorch_cuda registers its kernels when it is loaded, but nothing refers to its symbols: the linker would drop it,
        // and CUDA would silently be missing.
        println!("cargo::rustc-link-arg=-Wl,--no-as-needed");
        println!("cargo::rustc-link-arg=-ltorch_cuda");
        println!("cargo::rustc-link-arg=-ltorch");
        println!("cargo::rustc-link-arg=-Wl,--as-needed");
    }
}

/// The version with its build tag (`2.13.0+cpu`) where the distribution says it, else the number in the headers.
fn libtorch_version(library_folder: &Path, include_folder: &Path) -> Result<String, String> {
    if let Some(file) = library_folder.parent().map(|root| root.join("build-version")) {
        println!("cargo::rerun-if-changed={}", file.display());
        if let Ok(version) = fs::read_to_string(&file)
            && !version.trim().is_empty()
        {
            return Ok(version.trim().to_owned());
        }
    }
    let header = include_folder.join("torch/headeronly/version.h");
    let text =
        fs::read_to_string(&header).map_err(|error| format!("cannot read {}: {error}", header.display()))?;
    text.split_once("#define TORCH_VERSION ")
        .and_then(|(_, rest)| rest.split('"').nth(1))
        .map(str::to_owned)
        .ok_or_else(|| format!("{} does not define TORCH_VERSION", header.display()))
}
