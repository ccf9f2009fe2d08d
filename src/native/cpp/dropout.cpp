// Dropout on the host by a counter-based generator: whether an element is kept is a function of the call's key and the element's place in
// memory. So threads need no order, and the backward pass computes the mask again in place of reading it.
//
// libtorch's own draws one number after the other, which takes longer than the matrix products of a small encoder.

#include "shim.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <ATen/ops/dropout.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <mutex>
#include <optional>
#include <vector>

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

namespace {

// Philox 4x32 with 7 rounds: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011, who find no fault with 7. Each counter gives four
// words; those of `lanes` counters are made together.
constexpr int64_t lanes = 64, words = 4, block = lanes * words;

// The words of the counters from number · lanes on; word w of lane l is draw w · lanes + l.
inline __attribute__((always_inline)) void philox(uint64_t number, uint64_t key, uint32_t* draws) {
  const uint64_t first = number * lanes;
  // Blocks do not straddle the counter's halves.
  const uint32_t low = static_cast<uint32_t>(first), high = static_cast<uint32_t>(first >> 32);
  for (uint32_t lane = 0; lane < lanes; lane++) {
    uint32_t c0 = low + lane, c1 = high, c2 = 0, c3 = 0;
    uint32_t key0 = static_cast<uint32_t>(key), key1 = static_cast<uint32_t>(key >> 32);
#pragma GCC unroll 7
    for (int round = 0; round < 7; round++) {
      const uint64_t left = uint64_t{0xD2511F53} * c0, right = uint64_t{0xCD9E8D57} * c2;
      c0 = static_cast<uint32_t>(right >> 32) ^ c1 ^ key0;
      c2 = static_cast<uint32_t>(left >> 32) ^ c3 ^ key1;
      c1 = static_cast<uint32_t>(right);
      c3 = static_cast<uint32_t>(left);
      key0 += 0x9E3779B9;
      key1 += 0xBB67AE85;
    }
    draws[lane] = c0;
    draws[lanes + lane] = c1;
    draws[2 * lanes + lane] = c2;
    draws[3 * lanes + lane] = c3;
  }
}

// An element is dropped where its draw is below `threshold`, and multiplied with `scale` elsewhere.
struct Rule {
  uint64_t key;
  uint32_t threshold;
  double scale;
};

Rule rule_of(uint64_t key, double probability) {
  const double threshold = std::round(std::ldexp(probability, 32));
  const double most = static_cast<double>(std::numeric_limits<uint32_t>::max());
  return {key, static_cast<uint32_t>(std::min(threshold, most)), 1.0 / (1.0 - probability)};
}

// How numbers of memory are multiplied: as what they are, bfloat16 as float.
struct Floats {
  using Number = float;
  static float load(float value) { return value; }
  static float store(float value) { return value; }
};
struct Doubles {
  using Number = double;
  static double load(double value) { return value; }
  static double store(double value) { return value; }
};
struct Bfloats {
  using Number = float;
  static inline __attribute__((always_inline)) float load(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }
  // To the nearest, ties to even. A multiple of a bfloat16 that is not a number ends in zeros, which stay it through the rounding; the test for such
  // in c10's own costs as much as all else.
  static inline __attribute__((always_inline)) uint16_t store(float value) {
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
  }
};

// `begin` is a multiple of `block`.
template <class As, class T>
inline __attribute__((always_inline)) void drop(const T* from, T* to, int64_t begin, int64_t end, const Rule& rule) {
  uint32_t draws[block];
  const auto scale = static_cast<typename As::Number>(rule.scale);
  const uint32_t threshold = rule.threshold;
  for (int64_t start = begin; start < end; start += block) {
    philox(static_cast<uint64_t>(start / block), rule.key, draws);
    const int64_t count = std::min(block, end - start);
#pragma GCC ivdep
    for (int64_t i = 0; i < count; i++) {
      const T value = As::store(As::load(from[start + i]) * scale);
      to[start + i] = draws[i] < threshold ? T(0) : value;
    }
  }
}

FOR_WIDE_VECTORS void drop_floats(const float* from, float* to, int64_t begin, int64_t end, const Rule& rule) {
  drop<Floats>(from, to, begin, end, rule);
}
FOR_WIDE_VECTORS void drop_doubles(const double* from, double* to, int64_t begin, int64_t end, const Rule& rule) {
  drop<Doubles>(from, to, begin, end, rule);
}
FOR_WIDE_VECTORS void drop_bfloats(const uint16_t* from, uint16_t* to, int64_t begin, int64_t end, const Rule& rule) {
  drop<Bfloats>(from, to, begin, end, rule);
}

// Whether the environment asks for libtorch's dropout, whose masks are Python's under the same seed. Read once.
bool masks_of_pytorch() {
  static const bool wanted = [] {
    const char* wish = std::getenv("TCH_SUITE_DROPOUT");
    return wish != nullptr && std::strcmp(wish, "pytorch") == 0;
  }();
  return wanted;
}

bool supported(const at::Tensor& input) {
  const at::ScalarType type = input.scalar_type();
  return !masks_of_pytorch() && suite::on_host(input) && (type == at::kFloat || type == at::kDouble || type == at::kBFloat16);
}

// Both are of one type and lie in memory in one way, without gaps.
void fill(const at::Tensor& from, const at::Tensor& to, const Rule& rule) {
  // What a thread should have at least, in blocks.
  constexpr int64_t grain = 64;
  const int64_t elements = from.numel();
  const void* source = from.const_data_ptr();
  void* target = to.mutable_data_ptr();
  const at::ScalarType type = from.scalar_type();
  at::parallel_for(0, (elements + block - 1) / block, grain, [&](int64_t first, int64_t last) {
    const int64_t begin = first * block, end = std::min(last * block, elements);
    switch (type) {
      case at::kFloat:
        return drop_floats(static_cast<const float*>(source), static_cast<float*>(target), begin, end, rule);
      case at::kDouble:
        return drop_doubles(static_cast<const double*>(source), static_cast<double*>(target), begin, end, rule);
      default:
        return drop_bfloats(static_cast<const uint16_t*>(source), static_cast<uint16_t*>(target), begin, end, rule);
    }
  });
}

// Linear in its input: its derivative is the same mask applied to the gradient, and so is the derivative of that.
class Dropout : public torch::autograd::Function<Dropout> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& input, int64_t key, double probability, at::IntArrayRef strides) {
    context->saved_data["key"] = key;
    context->saved_data["probability"] = probability;
    context->saved_data["strides"] = strides;
    // An element's draw belongs to its place in memory, so a gradient is laid out as the input was.
    at::Tensor source = input;
    if (input.strides() != strides) source = at::empty_strided(input.sizes(), strides, input.options()).copy_(input);
    at::Tensor result = at::empty_like(source);
    fill(source, result, rule_of(static_cast<uint64_t>(key), probability));
    return result;
  }

  static variable_list backward(AutogradContext* context, variable_list outputs) {
    const auto& data = context->saved_data;
    const std::vector<int64_t> strides = data.at("strides").toIntVector();
    return {apply(outputs[0], data.at("key").toInt(), data.at("probability").toDouble(), strides), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

// A key for one call. It comes from libtorch's generator, so that seeds, saved states and recomputed passes hold for it.
int64_t draw_key() {
  at::Generator generator = at::detail::getDefaultCPUGenerator();
  std::lock_guard<std::mutex> lock(generator.mutex());
  return static_cast<int64_t>(at::check_generator<at::CPUGeneratorImpl>(generator)->random64());
}

at::Tensor dropout(const at::Tensor& input, double probability) {
  if (!supported(input) || probability >= 1.0 || probability <= 0.0) return at::dropout(input, probability, true);
  const at::Tensor dense = input.is_non_overlapping_and_dense() ? input : input.contiguous();
  return Dropout::apply(dense, draw_key(), probability, dense.strides());
}

// Which queries see no key, as [batch or 1, heads or 1, queries or 1, 1]; undefined where each sees one. `mask` has numbers.
at::Tensor blind(const at::Tensor& mask) {
  const at::Tensor hidden = (mask == -std::numeric_limits<double>::infinity()).all(-1, true);
  return hidden.any().item<bool>() ? hidden : at::Tensor();
}

// softmax(scale · Q Kᵀ + mask), some of it dropped, times V.
at::Tensor attention(at::Tensor query, at::Tensor key, at::Tensor value, at::Tensor mask, double probability, double scale) {
  if (at::autocast::is_autocast_enabled(query.device().type())) {
    const at::ScalarType type = at::autocast::get_autocast_dtype(query.device().type());
    for (at::Tensor* tensor : {&query, &key, &value}) *tensor = tensor->to(type);
  }
  // Under autocast the softmax would make numbers of twice the size.
  c10::impl::ExcludeDispatchKeyGuard plain(c10::autocast_dispatch_keyset);
  at::Tensor scores = at::matmul(query * scale, key.transpose(-2, -1));  // [batch, heads, queries, keys]
  at::Tensor unseeing;
  if (mask.defined()) {
    if (mask.scalar_type() == at::kBool)
      mask = at::zeros(mask.sizes(), scores.options()).masked_fill_(mask.logical_not(), -std::numeric_limits<double>::infinity());
    mask = mask.to(scores.scalar_type());
    unseeing = blind(mask);
    // A row of nothing but −∞ would make NaN.
    if (unseeing.defined()) mask = mask.masked_fill(unseeing, 0.0);
    scores.add_(mask);
  }
  at::Tensor result = at::matmul(dropout(at::softmax(scores, -1), probability), value);
  return unseeing.defined() ? result.masked_fill(unseeing, 0.0) : result;
}

}  // namespace

extern "C" {

bool suite_masks_of_pytorch() noexcept { return masks_of_pytorch(); }

char* suite_dropout(const at::Tensor* input, double probability, at::Tensor** result) {
  return suite::guarded([&] { suite::give(result, dropout(*input, probability)); });
}

// `mask` may be null: booleans, true where a query sees, or numbers to add to the scores. Key and value have as many heads as the query.
char* suite_attention(const at::Tensor* query, const at::Tensor* key, const at::Tensor* value, const at::Tensor* mask, double probability,
                      double scale, at::Tensor** result) {
  return suite::guarded([&] {
    std::optional<at::Tensor> given;
    if (mask != nullptr) given = *mask;
    suite::give(result, supported(*query) ? attention(*query, *key, *value, given.value_or(at::Tensor()), probability, scale)
                                          : at::scaled_dot_product_attention(*query, *key, *value, given, probability, false, scale));
  });
}

}  // extern "C"
