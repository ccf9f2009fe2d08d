// Random number generators: states, seeds, permutations and draws.

#include "shim.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/ops/multinomial.h>
#include <ATen/ops/randperm.h>

#include <mutex>

namespace {

at::Generator generator_of(int8_t device, int8_t index) {
  return at::globalContext().defaultGenerator(at::Device(static_cast<c10::DeviceType>(device), index));
}

}  // namespace

extern "C" {

char* suite_manual_seed(uint64_t seed) {
  return suite::guarded([&] { at::manual_seed(seed); });
}

char* suite_rng_state(int8_t device, int8_t index, at::Tensor** result) {
  return suite::guarded([&] {
    at::Generator generator = generator_of(device, index);
    std::lock_guard<std::mutex> lock(generator.mutex());
    suite::give(result, generator.get_state());
  });
}

char* suite_set_rng_state(int8_t device, int8_t index, const at::Tensor* state) {
  return suite::guarded([&] {
    at::Generator generator = generator_of(device, index);
    std::lock_guard<std::mutex> lock(generator.mutex());
    generator.set_state(*state);
  });
}

char* suite_permutation(int64_t count, uint64_t seed, at::Tensor** result) {
  return suite::guarded([&] {
    suite::give(result, at::randperm(count, at::detail::createCPUGenerator(seed), at::TensorOptions(at::kLong)));
  });
}

char* suite_draw(const at::Tensor* weights, int64_t count, uint64_t seed, at::Tensor** result) {
  return suite::guarded([&] {
    suite::give(result, at::multinomial(*weights, count, /*replacement=*/true, at::detail::createCPUGenerator(seed)));
  });
}

}  // extern "C"
