// Batch normalisation with the statistics of all processes, as torch.nn.SyncBatchNorm, on any device.

#include "distributed.h"

#include <ATen/ops/batch_norm_update_stats.h>
#include <ATen/ops/native_batch_norm.h>
#include <ATen/ops/native_batch_norm_backward.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <torch/csrc/autograd/custom_function.h>

#include <atomic>
#include <memory>
#include <mutex>

using suite::Group;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

namespace {

std::mutex group_lock;
std::shared_ptr<const Group> group_of_norms;
std::atomic<bool> stands_in{false};

std::shared_ptr<const Group> current_group() {
  std::lock_guard<std::mutex> lock(group_lock);
  return group_of_norms;
}

// A tensor of one number for each channel, to be multiplied with one of `dimensions`.
at::Tensor by_channel(const at::Tensor& values, int64_t dimensions) {
  std::vector<int64_t> shape(dimensions, 1);
  shape[1] = values.numel();
  return values.view(shape);
}

class SyncBatchNorm : public torch::autograd::Function<SyncBatchNorm> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& input, const at::Tensor& weight, const at::Tensor& bias,
                            const at::Tensor& running_mean, const at::Tensor& running_var, double momentum, double eps) {
    const std::shared_ptr<const Group> group = current_group();
    TORCH_CHECK(group != nullptr, "batch normalisation is not synchronised");
    const int64_t channels = input.size(1);
    const bool counts = !stands_in;
    const double own_count = counts ? static_cast<double>(input.numel() / channels) : 0.0;
    auto [own_mean, own_var] = at::batch_norm_update_stats(input, {}, {}, 0.0);

    // Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979: [mean, squared
    // deviations, count] of each process become those of all.
    const at::Tensor count = at::full({1}, own_count, own_mean.options().dtype(at::kDouble));
    at::Tensor row = at::cat({own_mean.to(at::kDouble), own_var.to(at::kDouble) * own_count, count});
    if (!counts) row.zero_();
    const at::Tensor rows = suite::gathered(*group, row);  // [processes, 2 · channels + 1]
    const at::Tensor counted = rows.narrow(1, 2 * channels, 1);
    const at::Tensor total = counted.sum();
    const at::Tensor means = rows.narrow(1, 0, channels);
    const at::Tensor mean = (means * counted).sum(0) / total;
    const at::Tensor deviations = (rows.narrow(1, channels, channels) + (means - mean).square() * counted).sum(0);
    const at::Tensor var = deviations / total;

    running_mean.mul_(1 - momentum).add_(mean.to(running_mean.scalar_type()), momentum);
    running_var.mul_(1 - momentum).add_((deviations / (total - 1)).to(running_var.scalar_type()), momentum);

    const at::Tensor rounded_mean = mean.to(own_mean.scalar_type());
    const at::Tensor rounded_var = var.to(own_mean.scalar_type());
    const at::Tensor inverse_deviation = (var + eps).rsqrt().to(own_mean.scalar_type());
    context->save_for_backward({input, weight, rounded_mean, inverse_deviation, total});
    context->saved_data["eps"] = eps;
    context->saved_data["counts"] = counts;
    return std::get<0>(at::native_batch_norm(input, weight, bias, rounded_mean, rounded_var, false, 0.0, eps));
  }

  static variable_list backward(AutogradContext* context, variable_list outputs) {
    const std::shared_ptr<const Group> group = current_group();
    TORCH_CHECK(group != nullptr, "batch normalisation is not synchronised any more");
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &input = saved[0], &weight = saved[1], &mean = saved[2], &inverse_deviation = saved[3], &total = saved[4];
    const at::Tensor gradient = outputs[0].contiguous(input.suggest_memory_format());
    // Σ dy · x̂ and Σ dy of this process: the gradients of weight and bias.
    auto [unused, weight_gradient, bias_gradient] =
        at::native_batch_norm_backward(gradient, input, weight, mean, mean, mean, inverse_deviation, true,
                                       context->saved_data["eps"].toDouble(), {false, true, true});
    const int64_t channels = input.size(1);
    const at::Tensor sums = at::cat({weight_gradient.to(at::kDouble), bias_gradient.to(at::kDouble)});
    suite::sum_over(*group, sums);
    const at::Tensor means = sums / total;
    // dx = weight / deviation · (dy − mean(dy) − x̂ · mean(dy · x̂)), as one multiple of dy, one of x and a constant for each channel.
    const at::Tensor of_gradient = weight.to(at::kDouble) * inverse_deviation.to(at::kDouble);
    const at::Tensor of_input = -of_gradient * inverse_deviation.to(at::kDouble) * means.narrow(0, 0, channels);
    const at::Tensor constant = -of_gradient * means.narrow(0, channels, channels) - of_input * mean.to(at::kDouble);
    const auto type = mean.scalar_type();
    const int64_t dimensions = input.dim();
    at::Tensor result = gradient * by_channel(of_gradient.to(type), dimensions);
    // Statistics that the input took no part in do not change with it.
    if (!context->saved_data["counts"].toBool())
      return {result.to(input.scalar_type()), weight_gradient, bias_gradient, at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor()};
    result.addcmul_(input.to(result.scalar_type()), by_channel(of_input.to(result.scalar_type()), dimensions));
    result.add_(by_channel(constant.to(result.scalar_type()), dimensions));
    return {result.to(input.scalar_type()), weight_gradient, bias_gradient, at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

extern "C" {

// From now on batch normalisation is over this group; null ends it.
char* suite_sync_batch_norm_over(const Group* group) {
  return suite::guarded([&] {
    std::lock_guard<std::mutex> lock(group_lock);
    group_of_norms = group == nullptr ? nullptr : std::make_shared<const Group>(*group);
  });
}

// Whether what this process computes counts for nothing in the statistics: it only takes part because the others wait for it.
void suite_sync_batch_norm_stand_in(bool on) noexcept { stands_in = on; }

char* suite_sync_batch_norm(const at::Tensor* input, const at::Tensor* weight, const at::Tensor* bias, const at::Tensor* running_mean,
                            const at::Tensor* running_var, double momentum, double eps, at::Tensor** result) {
  return suite::guarded([&] {
    suite::give(result, SyncBatchNorm::apply(*input, *weight, *bias, *running_mean, *running_var, momentum, eps));
  });
}

}  // extern "C"
