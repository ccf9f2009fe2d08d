// Inference mode, and what it allows. No gradient is needed, so that a pooling need not know where its values come from. While it lasts no weight changes, so that
// convolutions and linear layers keep theirs in the layout that the kernels compute with, convolutions with the batch normalisation behind them multiplied in.
// libtorch's own operations put the weights into such a layout in every call, which for few rows takes longer than the rest.

#include "shim.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mkldnn_reorder_conv2d_weight.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/rsqrt.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/jit/frontend/tracer.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

extern "C" {

// Mirrored in ffi.rs.
struct SuiteConvolution {
  const at::Tensor *weight, *bias;  // the bias may be null
  int64_t stride, padding[2], dilation, groups;
};
// torch.nn.BatchNorm2d in evaluation.
struct SuiteNorm {
  const at::Tensor *weight, *bias, *running_mean, *running_var;
  double eps;
};

}  // extern "C"

namespace {

// Weights ready to run.
struct Packed {
  at::Tensor weight, bias;
};

// Which weights: these elements of this storage, which is held so that no other takes its place in memory; with what beside them: the mean of a normalisation,
// or a bias; and in which arithmetic.
struct Key {
  at::Storage weight, beside;
  int64_t offset, rows, stride;
  at::ScalarType type;

  Key(const at::Tensor& weight, const at::Tensor* beside, at::ScalarType type)
      : weight(weight.storage()),
        beside(beside == nullptr ? at::Storage() : beside->storage()),
        offset(weight.storage_offset()),
        rows(weight.size(0)),
        stride(weight.stride(0)),
        type(type) {}

  bool operator<(const Key& other) const {
    const auto parts = [](const Key& key) {
      return std::tuple(key.weight.unsafeGetStorageImpl(), key.beside.unsafeGetStorageImpl(), key.offset, key.rows, key.stride, key.type);
    };
    return parts(*this) < parts(other);
  }
};

// What the outermost inference mode of this thread has packed, and how many bytes of it.
struct Packs {
  int modes = 0;
  size_t bytes = 0;
  std::map<Key, Packed> packed;
};
thread_local Packs packs;

// Models of more than this are run as they are rather than held twice.
constexpr size_t kMostBytes = size_t{1} << 30;

// An operation that libtorch has no function for; none where it is built without oneDNN.
const std::optional<c10::OperatorHandle>& convolution_kernel() {
  static const std::optional<c10::OperatorHandle> kernel = c10::Dispatcher::singleton().findSchema({"mkldnn::_convolution_pointwise", ""});
  return kernel;
}

const std::optional<c10::OperatorHandle>& linear_kernel() {
  static const std::optional<c10::OperatorHandle> kernel = c10::Dispatcher::singleton().findSchema({"mkldnn::_linear_pointwise", ""});
  return kernel;
}

const std::optional<c10::OperatorHandle>& linear_layout() {
  static const std::optional<c10::OperatorHandle> kernel = c10::Dispatcher::singleton().findSchema({"mkldnn::_reorder_linear_weight", ""});
  return kernel;
}

// The arithmetic in which oneDNN can take an operation over; none where it cannot, or must not: a trace would hold the packed weights.
std::optional<at::ScalarType> arithmetic(const at::Tensor& input, const at::Tensor& weight) {
  if (packs.modes == 0 || input.numel() == 0 || !suite::on_host(input) || !suite::on_host(weight) || !at::globalContext().userEnabledMkldnn() ||
      torch::jit::tracer::isTracing())
    return std::nullopt;
  if (weight.scalar_type() != at::kFloat) return std::nullopt;
  if (!at::autocast::is_autocast_enabled(at::kCPU)) return input.scalar_type() == at::kFloat ? std::optional(at::kFloat) : std::nullopt;
  const at::ScalarType type = at::autocast::get_autocast_dtype(at::kCPU);
  return type == at::kBFloat16 && suite::multiplies_bf16() ? std::optional(type) : std::nullopt;
}

// The packed weights of that key, made where they are not there; none where there is no room.
template <typename Pack>
const Packed* find_or_pack(const Key& key, size_t elements, const Pack& pack) {
  const auto found = packs.packed.find(key);
  if (found != packs.packed.end()) return &found->second;
  const size_t bytes = elements * c10::elementSize(key.type);
  if (packs.bytes + bytes > kMostBytes) return nullptr;
  packs.bytes += bytes;
  return &packs.packed.emplace(key, pack()).first->second;
}

at::Tensor call(const std::optional<c10::OperatorHandle>& kernel, std::vector<c10::IValue> stack) {
  kernel->callBoxed(stack);
  return stack.front().toTensor();
}

Packed pack(const SuiteConvolution& convolution, const SuiteNorm* norm, at::ScalarType type, const at::Tensor& input) {
  Packed packed;
  at::Tensor weight = *convolution.weight, bias = convolution.bias == nullptr ? at::Tensor() : *convolution.bias;
  if (norm != nullptr) {
    // γ · (w ∗ x + b − μ) / √(σ² + ε) + β, in double precision: it is done once.
    const at::Tensor factor = norm->weight->to(at::kDouble) * at::rsqrt(norm->running_var->to(at::kDouble) + norm->eps);
    at::Tensor centre = -norm->running_mean->to(at::kDouble);
    if (bias.defined()) centre = centre + bias.to(at::kDouble);
    bias = (centre * factor + norm->bias->to(at::kDouble)).to(at::kFloat);
    weight = (weight.to(at::kDouble) * factor.view({-1, 1, 1, 1})).to(at::kFloat);
  }
  packed.weight = at::mkldnn_reorder_conv2d_weight(weight.to(type).contiguous().to_mkldnn(), convolution.padding, {convolution.stride, convolution.stride},
                                                   {convolution.dilation, convolution.dilation}, convolution.groups, input.sizes());
  if (bias.defined()) packed.bias = bias.to(type).contiguous();
  return packed;
}

c10::IValue optional(const at::Tensor& tensor) { return tensor.defined() ? c10::IValue(tensor) : c10::IValue(); }

at::Tensor run(const Packed& packed, const SuiteConvolution& convolution, bool relu, const at::Tensor& input) {
  return call(convolution_kernel(), {
                                input,
                                packed.weight,
                                optional(packed.bias),
                                std::vector<int64_t>{convolution.padding[0], convolution.padding[1]},
                                std::vector<int64_t>{convolution.stride, convolution.stride},
                                std::vector<int64_t>{convolution.dilation, convolution.dilation},
                                convolution.groups,
                                std::string(relu ? "relu" : "none"),
                                c10::List<std::optional<at::Scalar>>(),
                                std::string(),
                            });
}

// Of a linear layer: in bfloat16 in oneDNN's layout, in float32 as [inputs, outputs]. Measured on weights of 2^14 to 2^24 elements, 1 to 1,000 rows: MKL's products with
// that are up to four times as fast as with [outputs, inputs] for few rows, and no slower for many; oneDNN's are slower for small weights, and at most a fifth faster for
// large ones.
Packed pack(const at::Tensor& weight, const at::Tensor* bias, at::ScalarType type, int64_t rows) {
  Packed packed;
  packed.weight = type == at::kBFloat16 ? call(linear_layout(), {weight.to(type).contiguous(), c10::SymInt(rows)}) : weight.t().contiguous();
  if (bias != nullptr) packed.bias = bias->to(type).contiguous();
  return packed;
}

at::Tensor run(const Packed& packed, const at::Tensor& input, at::ScalarType type) {
  if (type == at::kBFloat16)
    return call(linear_kernel(), {input.to(type), packed.weight, optional(packed.bias), std::string("none"), c10::List<std::optional<at::Scalar>>(), std::string()});
  const at::Tensor rows = input.reshape({-1, packed.weight.size(0)});
  const at::Tensor product = packed.bias.defined() ? at::addmm(packed.bias, rows, packed.weight) : at::mm(rows, packed.weight);
  std::vector<int64_t> shape = input.sizes().vec();
  shape.back() = packed.weight.size(1);
  return product.view(shape);
}

// The windows of a pooling: of one that reaches over the edge, what lies inside.
struct Windows {
  int64_t height, width, channels, rows, columns, size, stride, padding;

  std::pair<int64_t, int64_t> range(int64_t position, int64_t limit) const {
    const int64_t begin = position * stride - padding;
    return {std::max<int64_t>(begin, 0), std::min(begin + size, limit)};
  }
};

inline float widened(float value) { return value; }

// bfloat16 is the upper half of a float32 number.
inline float widened(uint16_t half) {
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// One row of results, `[columns, channels]`, of an image `[height, width, channels]`. A value that is no number wins, as in libtorch. Part of its callers, so that it is
// compiled for each generation of vectors with them.
template <typename Number>
__attribute__((always_inline)) inline void pool_row_of(const Number* image, Number* results, int64_t row, const Windows& windows) {
  const auto [top, bottom] = windows.range(row, windows.height);
  for (int64_t column = 0; column < windows.columns; column++) {
    const auto [left, right] = windows.range(column, windows.width);
    Number* result = results + column * windows.channels;
    for (int64_t y = top; y < bottom; y++) {
      for (int64_t x = left; x < right; x++) {
        const Number* pixel = image + (y * windows.width + x) * windows.channels;
        const bool is_first = y == top && x == left;
        for (int64_t channel = 0; channel < windows.channels; channel++) {
          const float value = widened(pixel[channel]), best = widened(result[channel]);
          result[channel] = is_first || value > best || value != value ? pixel[channel] : result[channel];
        }
      }
    }
  }
}

FOR_WIDE_VECTORS void pool_row(const float* image, float* results, int64_t row, const Windows& windows) { pool_row_of(image, results, row, windows); }
FOR_WIDE_VECTORS void pool_row(const uint16_t* image, uint16_t* results, int64_t row, const Windows& windows) { pool_row_of(image, results, row, windows); }

template <typename Number>
void pool(const Number* images, Number* results, int64_t count, const Windows& windows) {
  const int64_t image = windows.height * windows.width * windows.channels, row = windows.columns * windows.channels;
  // Some tens of microseconds of work for each thread.
  const int64_t grain = std::max<int64_t>(1, (1 << 16) / (row * windows.size * windows.size));
  at::parallel_for(0, count * windows.rows, grain, [&](int64_t first, int64_t last) {
    for (int64_t number = first; number < last; number++)
      pool_row(images + number / windows.rows * image, results + number * row, number % windows.rows, windows);
  });
}

}  // namespace

extern "C" {

char* suite_inference_mode_enter(c10::InferenceMode** result) {
  return suite::guarded([&] {
    *result = new c10::InferenceMode(true);
    packs.modes++;
  });
}

void suite_inference_mode_exit(c10::InferenceMode* mode) noexcept {
  if (--packs.modes == 0) {
    packs.packed.clear();
    packs.bytes = 0;
  }
  delete mode;
}

// A convolution, the normalisation behind it (may be null) and max(x, 0), with packed weights. Stores null where that cannot be had: outside of inference
// mode, on other devices, in other arithmetic.
char* suite_packed_convolution(const at::Tensor* input, const SuiteConvolution* convolution, const SuiteNorm* norm, bool relu, at::Tensor** result) {
  return suite::guarded([&] {
    *result = nullptr;
    if (input->dim() != 4 || !convolution_kernel()) return;
    const std::optional<at::ScalarType> type = arithmetic(*input, *convolution->weight);
    if (!type) return;
    // Everything has the type that autocast would give it.
    c10::impl::ExcludeDispatchKeyGuard plain(c10::autocast_dispatch_keyset);
    const at::Tensor source = input->to(*type);
    const Key key(*convolution->weight, norm == nullptr ? convolution->bias : norm->running_mean, *type);
    const Packed* packed = find_or_pack(key, convolution->weight->numel(), [&] { return pack(*convolution, norm, *type, source); });
    if (packed != nullptr) suite::give(result, run(*packed, *convolution, relu, source));
  });
}

// The largest value of each window of images that lie with their channels innermost. libtorch's operation also finds where it was, which only gradients need.
// Stores null outside of inference mode, on other devices, in other types and layouts.
char* suite_largest_of_windows(const at::Tensor* input, int64_t size, int64_t stride, int64_t padding, bool ceil, at::Tensor** result) {
  return suite::guarded([&] {
    *result = nullptr;
    const at::ScalarType type = input->scalar_type();
    if (packs.modes == 0 || input->dim() != 4 || input->numel() == 0 || !suite::on_host(*input) || torch::jit::tracer::isTracing() ||
        !(type == at::kFloat || type == at::kBFloat16) || !input->is_contiguous(at::MemoryFormat::ChannelsLast))
      return;
    const int64_t height = input->size(2), width = input->size(3);
    const auto positions = [&](int64_t side) {
      const int64_t reach = side + 2 * padding - size;
      if (reach < 0) return int64_t{0};
      const int64_t count = (reach + (ceil ? stride - 1 : 0)) / stride + 1;
      // The last window begins inside the image.
      return (count - 1) * stride >= side + padding ? count - 1 : count;
    };
    const Windows windows{height, width, input->size(1), positions(height), positions(width), size, stride, padding};
    // libtorch has the words for what cannot be.
    if (windows.rows < 1 || windows.columns < 1 || padding > size / 2 || stride < 1) return;
    at::Tensor pooled = at::empty({input->size(0), windows.channels, windows.rows, windows.columns}, input->options().memory_format(at::MemoryFormat::ChannelsLast));
    if (type == at::kFloat)
      pool(input->const_data_ptr<float>(), pooled.mutable_data_ptr<float>(), input->size(0), windows);
    else
      pool(static_cast<const uint16_t*>(input->const_data_ptr()), static_cast<uint16_t*>(pooled.mutable_data_ptr()), input->size(0), windows);
    suite::give(result, pooled);
  });
}

// y = x Wᵀ + b on the last dimension, with packed weights; the bias may be null. Stores null where that cannot be had or does not pay.
char* suite_packed_linear(const at::Tensor* input, const at::Tensor* weight, const at::Tensor* bias, at::Tensor** result) {
  return suite::guarded([&] {
    *result = nullptr;
    if (packs.modes == 0 || input->dim() < 2 || weight->dim() != 2 || input->size(-1) != weight->size(1)) return;
    const std::optional<at::ScalarType> type = arithmetic(*input, *weight);
    if (!type) return;
    // oneDNN's calls have a fixed cost, which counts for the smallest weights.
    constexpr int64_t kSmall = 4096;
    if (*type == at::kBFloat16 && (weight->numel() < kSmall || !linear_kernel() || !linear_layout())) return;
    c10::impl::ExcludeDispatchKeyGuard plain(c10::autocast_dispatch_keyset);
    const int64_t rows = input->numel() / weight->size(1);
    const Packed* packed = find_or_pack(Key(*weight, bias, *type), weight->numel(), [&] { return pack(*weight, bias, *type, rows); });
    if (packed != nullptr) suite::give(result, run(*packed, *input, *type));
  });
}

}  // extern "C"
