// Facts about the process, the processor and the devices, and settings of the whole process.

#include "shim.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/cpu/Utils.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/detail/MPSHooksInterface.h>
#include <ATen/ops/empty.h>

#include <dlfcn.h>
#include <sys/resource.h>

#include <cstdlib>
#include <cstring>
#include <string>

#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace {

void give_text(char** result, const std::string& text) { *result = suite::copy_text(text.c_str()); }

// The shared library (or program) that holds the code at `address`.
std::string library_of(const void* address) {
  Dl_info info;
  if (dladdr(address, &info) == 0 || info.dli_fname == nullptr) return "";
  return info.dli_fname;
}

// NVIDIA's driver interface, opened by name: its functions are stable, it needs no headers, and it is there or not whatever
// libtorch was built for.
class CudaDriver {
 public:
  CudaDriver() {
    library_ = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!library_) return;
    auto* initialise = find<int (*)(unsigned)>("cuInit");
    usable_ = initialise && initialise(0) == 0;
  }
  bool usable() const { return usable_; }

  template <class Function>
  Function find(const char* name) const {
    return reinterpret_cast<Function>(dlsym(library_, name));
  }

 private:
  void* library_ = nullptr;
  bool usable_ = false;
};

const CudaDriver& cuda_driver() {
  static const CudaDriver driver;
  return driver;
}

// CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
constexpr int attribute_major = 75, attribute_minor = 76;

}  // namespace

bool suite::multiplies_bf16() {
  static const bool found = [] {
    const auto capabilities = at::cpu::get_cpu_capabilities();
    for (const char* name : {"avx512_bf16", "amx_bf16", "arm_bf16", "bf16", "sve_bf16"}) {
      const auto capability = capabilities.find(name);
      if (capability != capabilities.end() && capability->second.isBool() && capability->second.toBool()) return true;
    }
    return false;
  }();
  return found;
}

extern "C" {

// Mirrored in ffi.rs.
struct SuiteCudaDevice {
  char name[256];
  uint64_t total_memory;
  int32_t major, minor;
};

// What glibc's allocator accepted; 0 where it is not glibc's.
struct SuiteHeap {
  bool glibc;
  int64_t mmap_threshold;  // bytes; 0: refused
  bool never_trims;
};

void suite_tune_heap(SuiteHeap* heap) noexcept {
  *heap = {};
#ifdef __GLIBC__
  heap->glibc = true;
  // Blocks below the threshold come from the heap and go back to it, instead of being mapped, cleared page by page and unmapped
  // again in every step. Versions before 2.35 accept at most 32 MiB.
  for (int64_t threshold : {int64_t{512} << 20, int64_t{32} << 20}) {
    if (mallopt(M_MMAP_THRESHOLD, static_cast<int>(threshold)) == 1) {
      heap->mmap_threshold = threshold;
      break;
    }
  }
  // mallopt takes an int, so the largest threshold is below 2 GiB, less than one step of a large model frees. -1 is the
  // documented way to say "never".
  heap->never_trims = mallopt(M_TRIM_THRESHOLD, -1) == 1;
#endif
}

void suite_release_unused_memory() noexcept {
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}

char* suite_peak_memory(uint64_t* bytes) {
  return suite::guarded([&] {
    struct rusage usage {};
    TORCH_CHECK(getrusage(RUSAGE_SELF, &usage) == 0, "getrusage failed: ", std::strerror(errno));
#ifdef __APPLE__
    *bytes = static_cast<uint64_t>(usage.ru_maxrss);
#else
    *bytes = static_cast<uint64_t>(usage.ru_maxrss) * 1024;
#endif
  });
}

char* suite_libtorch_path(char** result) {
  return suite::guarded([&] { give_text(result, library_of(reinterpret_cast<const void*>(&at::get_cpu_capability))); });
}

char* suite_allocator_path(char** result) {
  // Asked by name: the address of `malloc` in this program may be its own jump table.
  return suite::guarded([&] { give_text(result, library_of(dlsym(RTLD_DEFAULT, "malloc"))); });
}

char* suite_cpu_capability(char** result) {
  return suite::guarded([&] { give_text(result, at::get_cpu_capability()); });
}

char* suite_parallel_info(char** result) {
  return suite::guarded([&] { give_text(result, at::get_parallel_info()); });
}

char* suite_threads(uint64_t* intra_op, uint64_t* inter_op) {
  return suite::guarded([&] {
    *intra_op = static_cast<uint64_t>(at::get_num_threads());
    *inter_op = at::get_num_interop_threads();
  });
}

char* suite_cuda_linked(bool* result) {
  return suite::guarded([&] { *result = at::detail::getCUDAHooks().hasCUDART(); });
}

// Null if a tensor can be made on the device, else libtorch's reason.
char* suite_try_device(int8_t device, int8_t index) {
  return suite::guarded([&] {
    at::empty({1}, at::TensorOptions(at::kFloat).device(at::Device(static_cast<c10::DeviceType>(device), index)));
  });
}

char* suite_mps_usable(bool* result) {
  return suite::guarded([&] { *result = at::detail::getMPSHooks().hasMPS(); });
}

char* suite_cuda_device_count(int32_t* count) {
  return suite::guarded([&] {
    *count = 0;
    const CudaDriver& driver = cuda_driver();
    if (!driver.usable()) return;
    auto* get_count = driver.find<int (*)(int*)>("cuDeviceGetCount");
    TORCH_CHECK(get_count && get_count(count) == 0, "the NVIDIA driver does not tell how many devices there are");
  });
}

char* suite_cuda_device(int32_t index, SuiteCudaDevice* result) {
  return suite::guarded([&] {
    const CudaDriver& driver = cuda_driver();
    TORCH_CHECK(driver.usable(), "there is no usable NVIDIA driver (libcuda.so.1)");
    int device = 0;
    size_t total = 0;
    auto* get = driver.find<int (*)(int*, int)>("cuDeviceGet");
    auto* get_name = driver.find<int (*)(char*, int, int)>("cuDeviceGetName");
    auto* get_memory = driver.find<int (*)(size_t*, int)>("cuDeviceTotalMem_v2");
    auto* get_attribute = driver.find<int (*)(int*, int, int)>("cuDeviceGetAttribute");
    *result = {};
    TORCH_CHECK(get && get_name && get_memory && get_attribute && get(&device, index) == 0 &&
                    get_name(result->name, sizeof result->name - 1, device) == 0 && get_memory(&total, device) == 0 &&
                    get_attribute(&result->major, attribute_major, device) == 0 &&
                    get_attribute(&result->minor, attribute_minor, device) == 0,
                "the NVIDIA driver does not describe device ", index);
    result->total_memory = total;
  });
}

char* suite_cpu_bf16(bool* result) {
  return suite::guarded([&] { *result = suite::multiplies_bf16(); });
}

char* suite_mps_bf16(bool* result) {
  // bfloat16 came with macOS 14.
  return suite::guarded([&] { *result = at::detail::getMPSHooks().hasMPS() && at::detail::getMPSHooks().isOnMacOSorNewer(14, 0); });
}

char* suite_set_deterministic(bool on) {
  return suite::guarded([&] {
    at::Context& context = at::globalContext();
    context.setDeterministicAlgorithms(on, /*warn_only=*/false);
    context.setDeterministicCuDNN(on);
    context.setBenchmarkCuDNN(false);
    // Filling fresh memory with NaN finds programs that read it; it changes no result and costs a pass over every new tensor.
    context.setDeterministicFillUninitializedMemory(false);
  });
}

char* suite_set_flush_denormal(bool on, bool* supported) {
  return suite::guarded([&] { *supported = at::globalContext().setFlushDenormal(on); });
}

char* suite_set_float32_matmul_precision(const char* precision) {
  return suite::guarded([&] { at::globalContext().setFloat32MatmulPrecision(precision); });
}

}  // extern "C"
