// Norms, clipping, penalties and the watch for values that are not finite.
//
// On the CPU the dispatcher costs more than the arithmetic of a small model, so what a step does every time (the norm, the
// clipping coefficient, the watch) reads the memory directly there. On other devices nothing is copied to the host.

#include "shim.h"

#include <ATen/Parallel.h>
#include <ATen/ops/_foreach_add.h>
#include <ATen/ops/_foreach_clamp_max.h>
#include <ATen/ops/_foreach_clamp_min.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/_foreach_sign.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>

using suite::Tensors;

namespace {

// Elements that one task sums. The partial sums are added in order, so that the result does not depend on the threads.
constexpr int64_t block_size = 1 << 14;
// Below this many elements, waking the other threads costs more than they save.
constexpr int64_t worth_threads = 1 << 16;

template <class Scalar>
double sum_of_squares(const Scalar* values, int64_t count) {
  // Independent sums, which the compiler keeps in vector registers.
  double lanes[8] = {};
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    for (int lane = 0; lane < 8; lane++) {
      double value = values[i + lane];
      lanes[lane] += value * value;
    }
  }
  for (; i < count; i++) {
    double value = values[i];
    lanes[0] += value * value;
  }
  return ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
}

// Calls `prepare(number of blocks)`, then `work(block, values, count)` for all memory of the tensors, block by block, on as many
// threads as it is worth.
template <class Scalar, class Prepare, class Work>
void for_each_block(const Tensors& tensors, Prepare&& prepare, Work&& work) {
  struct Block {
    Scalar* values;
    int64_t count;
  };
  std::vector<Block> blocks;
  blocks.reserve(tensors.size());
  int64_t total = 0;
  for (const at::Tensor& tensor : tensors) {
    Scalar* values = static_cast<Scalar*>(tensor.data_ptr());
    const int64_t count = tensor.numel();
    total += count;
    for (int64_t start = 0; start < count; start += block_size)
      blocks.push_back({values + start, std::min(block_size, count - start)});
  }
  prepare(blocks.size());
  auto visit = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) work(i, blocks[i].values, blocks[i].count);
  };
  const auto block_count = static_cast<int64_t>(blocks.size());
  if (total < worth_threads)
    visit(0, block_count);
  else
    at::parallel_for(0, block_count, 1, visit);
}

template <class Scalar>
double sum_of_squares(const Tensors& tensors) {
  std::vector<double> partial;
  for_each_block<Scalar>(
      tensors, [&](size_t count) { partial.resize(count); },
      [&](int64_t index, const Scalar* values, int64_t count) { partial[index] = sum_of_squares(values, count); });
  double sum = 0;
  for (double part : partial) sum += part;
  return sum;
}

template <class Scalar>
void multiply(const Tensors& tensors, double factor) {
  const auto rounded = static_cast<Scalar>(factor);
  for_each_block<Scalar>(
      tensors, [](size_t) {},
      [&](int64_t, Scalar* values, int64_t count) {
        for (int64_t i = 0; i < count; i++) values[i] *= rounded;
      });
}

// Whether all tensors are memory of the CPU, without holes, of this type: their elements can be visited in any order.
bool plain_memory(const Tensors& tensors, at::ScalarType type) {
  return std::all_of(tensors.begin(), tensors.end(), [&](const at::Tensor& tensor) {
    return suite::on_host(tensor) && tensor.scalar_type() == type && tensor.is_non_overlapping_and_dense();
  });
}

at::Tensor total_norm(const Tensors& gradients) {
  if (plain_memory(gradients, at::kFloat))
    return at::scalar_tensor(std::sqrt(sum_of_squares<float>(gradients)), at::kFloat);
  if (plain_memory(gradients, at::kDouble))
    return at::scalar_tensor(std::sqrt(sum_of_squares<double>(gradients)), at::kDouble);
  return at::linalg_vector_norm(at::stack(at::_foreach_norm(gradients, 2)), 2);
}

void multiply(const Tensors& gradients, double factor) {
  if (plain_memory(gradients, at::kFloat)) return multiply<float>(gradients, factor);
  if (plain_memory(gradients, at::kDouble)) return multiply<double>(gradients, factor);
  at::_foreach_mul_(gradients, factor);
}

template <class Scalar>
bool all_finite(const at::Tensor& tensor) {
  const Scalar* values = tensor.const_data_ptr<Scalar>();
  return std::all_of(values, values + tensor.numel(), [](Scalar value) { return std::isfinite(value); });
}

bool all_finite_on_host(const at::Tensor& tensor) {
  if (tensor.is_contiguous() && tensor.scalar_type() == at::kFloat) return all_finite<float>(tensor);
  if (tensor.is_contiguous() && tensor.scalar_type() == at::kDouble) return all_finite<double>(tensor);
  return at::isfinite(tensor).all().item<bool>();
}

}  // namespace

extern "C" {

char* suite_gradients_norm(const Tensors* parameters, at::Tensor** result) {
  return suite::guarded([&] {
    at::NoGradGuard no_grad;
    const Tensors gradients = suite::gradients_of(*parameters);
    if (!gradients.empty()) return suite::give(result, total_norm(gradients));
    const at::Device device = parameters->empty() ? at::Device(at::kCPU) : parameters->front().device();
    suite::give(result, at::zeros({}, at::TensorOptions(at::kFloat).device(device)));
  });
}

char* suite_gradients_clip_by_norm(const Tensors* parameters, const at::Tensor* total_norm, double max_norm) {
  return suite::guarded([&] {
    at::NoGradGuard no_grad;
    const Tensors gradients = suite::gradients_of(*parameters);
    if (gradients.empty()) return;
    if (suite::on_host(*total_norm)) {
      const double coefficient = max_norm / (total_norm->item<double>() + 1e-6);
      // A norm that is NaN must reach the gradients, so it does not count as small enough.
      if (!(coefficient >= 1)) multiply(gradients, coefficient);
    } else {
      at::_foreach_mul_(gradients, total_norm->reshape({}).add(1e-6).reciprocal_().mul_(max_norm).clamp_max_(1));
    }
  });
}

char* suite_gradients_clip_by_value(const Tensors* parameters, double limit) {
  return suite::guarded([&] {
    at::NoGradGuard no_grad;
    const Tensors gradients = suite::gradients_of(*parameters);
    if (gradients.empty()) return;
    at::_foreach_clamp_min_(gradients, -limit);
    at::_foreach_clamp_max_(gradients, limit);
  });
}

char* suite_gradients_clear(const Tensors* parameters) {
  return suite::guarded([&] {
    for (const at::Tensor& parameter : *parameters)
      // Asking first: mutable_grad() makes autograd metadata where there are none.
      if (parameter.grad().defined()) parameter.mutable_grad().reset();
  });
}

char* suite_gradients_add_penalty(const Tensors* parameters, double l1, double l2) {
  return suite::guarded([&] {
    at::NoGradGuard no_grad;
    Tensors owners;
    const Tensors gradients = suite::gradients_of(*parameters, &owners);
    if (gradients.empty()) return;
    if (l1 != 0) at::_foreach_add_(gradients, at::_foreach_sign(owners), l1);
    if (l2 != 0) at::_foreach_add_(gradients, owners, l2);
  });
}

char* suite_gradients_scale(const Tensors* parameters, double factor) {
  return suite::guarded([&] {
    at::NoGradGuard no_grad;
    const Tensors gradients = suite::gradients_of(*parameters);
    if (!gradients.empty()) multiply(gradients, factor);
  });
}

char* suite_gradients_scale_by(const Tensors* parameters, const at::Tensor* factor) {
  return suite::guarded([&] {
    at::NoGradGuard no_grad;
    const Tensors gradients = suite::gradients_of(*parameters);
    if (!gradients.empty()) at::_foreach_mul_(gradients, factor->reshape({}));
  });
}

char* suite_watch_finite(const at::Tensor* const* values, size_t count, int64_t step, const at::Tensor* first_bad) {
  return suite::guarded([&] {
    at::NoGradGuard no_grad;
    TORCH_CHECK(first_bad->scalar_type() == at::kLong && first_bad->numel() == 1,
                "the record of the first bad step must be one int64 number");
    for (size_t i = 0; i < count; i++)
      TORCH_CHECK(values[i]->device() == first_bad->device(), "a watched value is on ", values[i]->device(),
                  " but the record of the first bad step is on ", first_bad->device());
    if (suite::on_host(*first_bad)) {
      int64_t& record = *first_bad->mutable_data_ptr<int64_t>();
      for (size_t i = 0; i < count && record < 0; i++)
        if (!all_finite_on_host(*values[i])) record = step;
      return;
    }
    at::Tensor unrecorded = first_bad->lt(0);
    at::Tensor finite;
    for (size_t i = 0; i < count; i++) {
      at::Tensor value_finite = at::isfinite(*values[i]);
      if (value_finite.dim() > 0) value_finite = value_finite.all();
      finite = finite.defined() ? finite.logical_and_(value_finite) : value_finite;
    }
    if (finite.defined()) first_bad->masked_fill_(finite.logical_not_().logical_and(unrecorded), step);
  });
}

}  // extern "C"
