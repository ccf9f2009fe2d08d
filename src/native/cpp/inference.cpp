// Inference mode, and what it allows: while it lasts no weight changes, so that convolutions keep theirs in the layout that oneDNN computes with, with the
// batch normalisation behind them multiplied in. libtorch's own convolution puts the weights into that layout in every call, which for a single image takes as
// long as the rest.

#include "shim.h"

#include <ATen/Context.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/mkldnn_reorder_conv2d_weight.h>
#include <ATen/ops/rsqrt.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/jit/frontend/tracer.h>

#include <map>
#include <optional>
#include <string>
#include <tuple>
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

// A convolution ready to run. The tensors that it was made of are held, so that no other takes their place in memory.
struct Packed {
  at::Tensor weight, bias;
  std::vector<at::Tensor> made_of;
};

// Which convolution, which normalisation, in which arithmetic.
using Key = std::tuple<const void*, const void*, at::ScalarType>;

// What the outermost inference mode of this thread has packed.
struct Packs {
  int modes = 0;
  std::map<Key, Packed> convolutions;
};
thread_local Packs packs;

const c10::OperatorHandle* convolution_kernel() {
  static const std::optional<c10::OperatorHandle> kernel = c10::Dispatcher::singleton().findSchema({"mkldnn::_convolution_pointwise", ""});
  return kernel ? &*kernel : nullptr;
}

// The arithmetic in which oneDNN can take the convolution over; none where it cannot, or must not: a trace would hold the packed weights.
std::optional<at::ScalarType> arithmetic(const at::Tensor& input, const at::Tensor& weight) {
  if (packs.modes == 0 || input.dim() != 4 || input.numel() == 0 || !suite::on_host(input) || !suite::on_host(weight) || convolution_kernel() == nullptr ||
      !at::globalContext().userEnabledMkldnn() || torch::jit::tracer::isTracing())
    return std::nullopt;
  if (weight.scalar_type() != at::kFloat) return std::nullopt;
  if (!at::autocast::is_autocast_enabled(at::kCPU)) return input.scalar_type() == at::kFloat ? std::optional(at::kFloat) : std::nullopt;
  const at::ScalarType type = at::autocast::get_autocast_dtype(at::kCPU);
  return type == at::kBFloat16 && suite::multiplies_bf16() ? std::optional(type) : std::nullopt;
}

Packed pack(const SuiteConvolution& convolution, const SuiteNorm* norm, at::ScalarType type, const at::Tensor& input) {
  Packed packed;
  at::Tensor weight = *convolution.weight, bias = convolution.bias == nullptr ? at::Tensor() : *convolution.bias;
  packed.made_of = {weight, bias};
  if (norm != nullptr) {
    // γ · (w ∗ x + b − μ) / √(σ² + ε) + β, in double precision: it is done once.
    const at::Tensor factor = norm->weight->to(at::kDouble) * at::rsqrt(norm->running_var->to(at::kDouble) + norm->eps);
    at::Tensor centre = -norm->running_mean->to(at::kDouble);
    if (bias.defined()) centre = centre + bias.to(at::kDouble);
    bias = (centre * factor + norm->bias->to(at::kDouble)).to(at::kFloat);
    weight = (weight.to(at::kDouble) * factor.view({-1, 1, 1, 1})).to(at::kFloat);
    packed.made_of.push_back(*norm->running_mean);
  }
  packed.weight = at::mkldnn_reorder_conv2d_weight(weight.to(type).contiguous().to_mkldnn(), convolution.padding, {convolution.stride, convolution.stride},
                                                   {convolution.dilation, convolution.dilation}, convolution.groups, input.sizes());
  if (bias.defined()) packed.bias = bias.to(type).contiguous();
  return packed;
}

at::Tensor run(const Packed& packed, const SuiteConvolution& convolution, bool relu, const at::Tensor& input) {
  std::vector<c10::IValue> stack{
      input,
      packed.weight,
      packed.bias.defined() ? c10::IValue(packed.bias) : c10::IValue(),
      std::vector<int64_t>{convolution.padding[0], convolution.padding[1]},
      std::vector<int64_t>{convolution.stride, convolution.stride},
      std::vector<int64_t>{convolution.dilation, convolution.dilation},
      convolution.groups,
      std::string(relu ? "relu" : "none"),
      c10::List<std::optional<at::Scalar>>(),
      std::string(),
  };
  convolution_kernel()->callBoxed(stack);
  return stack.front().toTensor();
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
  if (--packs.modes == 0) packs.convolutions.clear();
  delete mode;
}

// A convolution, the normalisation behind it (may be null) and max(x, 0), with packed weights. Stores null where that cannot be had: outside of inference
// mode, on other devices, in other arithmetic.
char* suite_packed_convolution(const at::Tensor* input, const SuiteConvolution* convolution, const SuiteNorm* norm, bool relu, at::Tensor** result) {
  return suite::guarded([&] {
    *result = nullptr;
    const std::optional<at::ScalarType> type = arithmetic(*input, *convolution->weight);
    if (!type) return;
    // Everything has the type that autocast would give it.
    c10::impl::ExcludeDispatchKeyGuard plain(c10::autocast_dispatch_keyset);
    const at::Tensor source = input->to(*type);
    const Key key{convolution->weight->unsafeGetTensorImpl(), norm == nullptr ? nullptr : norm->running_mean->unsafeGetTensorImpl(), *type};
    auto found = packs.convolutions.find(key);
    if (found == packs.convolutions.end()) found = packs.convolutions.emplace(key, pack(*convolution, norm, *type, source)).first;
    suite::give(result, run(found->second, *convolution, relu, source));
  });
}

}  // extern "C"
