// Which of MKL's kernels libtorch's matrix products run on.
//
// MKL, which libtorch for x86 contains, takes its AVX-512 (or newest AVX2) kernels only on processors of its own maker and older ones on others, whatever
// instructions those have. It finds out who made the processor through the function below, which the dynamic linker looks for in the program first. With
// this definition MKL goes on to choose by the instructions, which it asks the processor for. An MKL that does not call it, or a libtorch without MKL, is
// left as it is.

#include "shim.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

namespace {

// Read once: MKL asks in many places, and its answer must not change.
bool by_maker() {
  static const bool by_maker = [] {
    const char* wish = std::getenv("TCH_SUITE_MKL");
    return wish != nullptr && std::strcmp(wish, "maker") == 0;
  }();
  return by_maker;
}

// Whether the processor is MKL's maker's, which it finds out itself in the function that is replaced here.
bool made_by_intel() {
#if defined(__x86_64__) && defined(__GNUC__)
  return __builtin_cpu_is("intel");
#else
  return false;
#endif
}

std::atomic<bool> asked{false};

}  // namespace

extern "C" {

__attribute__((visibility("default"), used)) int mkl_serv_intel_cpu_true() {
  asked.store(true, std::memory_order_relaxed);
  return !by_maker() || made_by_intel() ? 1 : 0;
}

// Whether MKL has chosen kernels of this process by the answer above, and by what it chose them: true for the maker of the processor.
void suite_mkl_kernels(bool* was_asked, bool* chosen_by_maker) noexcept {
  *was_asked = asked.load(std::memory_order_relaxed);
  *chosen_by_maker = by_maker();
}

}  // extern "C"
