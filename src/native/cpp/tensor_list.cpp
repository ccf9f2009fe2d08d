#include "shim.h"

#include <ATen/ops/_foreach_lerp.h>

#include <cstdlib>
#include <cstring>
#include <memory>

namespace suite {

namespace {
// What is left to say when there is no memory for the message itself.
char out_of_memory[] = "out of memory";

thread_local bool cpu_is_a_device = false;
}  // namespace

char* copy_text(const char* text) noexcept {
  char* copy = strdup(text);
  return copy ? copy : out_of_memory;
}

bool on_host(const at::Tensor& tensor) noexcept { return tensor.is_cpu() && !cpu_is_a_device; }

const at::Tensor& gradient_of(const at::Tensor& parameter) {
  const at::Tensor& gradient = parameter.grad();
  TORCH_CHECK(!gradient.defined() || gradient.layout() == at::kStrided,
              "a gradient is sparse, which is not supported: make the embedding without sparse gradients");
  return gradient;
}

Tensors gradients_of(const Tensors& parameters, Tensors* owners) {
  Tensors gradients;
  gradients.reserve(parameters.size());
  if (owners) owners->reserve(parameters.size());
  for (const at::Tensor& parameter : parameters) {
    const at::Tensor& gradient = gradient_of(parameter);
    if (!gradient.defined()) continue;
    gradients.push_back(gradient);
    if (owners) owners->push_back(parameter);
  }
  return gradients;
}

}  // namespace suite

using suite::Tensors;

extern "C" {

void suite_free_text(char* text) noexcept {
  if (text != suite::out_of_memory) std::free(text);
}

void suite_treat_cpu_as_a_device(bool on) noexcept { suite::cpu_is_a_device = on; }

char* suite_list_new(const at::Tensor* const* tensors, size_t count, Tensors** result) {
  return suite::guarded([&] {
    auto list = std::make_unique<Tensors>();
    list->reserve(count);
    for (size_t i = 0; i < count; i++) {
      TORCH_CHECK(tensors[i]->defined(), "tensor ", i, " of a list is undefined");
      list->push_back(*tensors[i]);
    }
    *result = list.release();
  });
}

void suite_list_free(Tensors* list) noexcept { delete list; }

char* suite_list_lerp(const Tensors* targets, const Tensors* sources, double weight) {
  return suite::guarded([&] {
    at::NoGradGuard no_grad;
    TORCH_CHECK(targets->size() == sources->size(), "cannot blend a list of ", sources->size(), " tensors into one of ",
                targets->size());
    Tensors floating_targets, floating_sources;
    floating_targets.reserve(targets->size());
    floating_sources.reserve(targets->size());
    for (size_t i = 0; i < targets->size(); i++) {
      const at::Tensor& target = (*targets)[i];
      if (target.is_floating_point()) {
        floating_targets.push_back(target);
        floating_sources.push_back((*sources)[i]);
      } else {
        target.copy_((*sources)[i]);
      }
    }
    if (!floating_targets.empty()) at::_foreach_lerp_(floating_targets, floating_sources, weight);
  });
}

}  // extern "C"
