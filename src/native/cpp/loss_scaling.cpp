// The two operations behind dynamic loss scaling, as torch.amp.GradScaler uses them.

#include "shim.h"

#include <ATen/ops/_amp_foreach_non_finite_check_and_unscale.h>
#include <ATen/ops/_amp_update_scale.h>

using suite::Tensors;

extern "C" {

char* suite_unscale(const Tensors* parameters, const at::Tensor* found_inf, const at::Tensor* inverse_scale) {
  return suite::guarded([&] {
    at::NoGradGuard no_grad;
    const Tensors gradients = suite::gradients_of(*parameters);
    if (gradients.empty()) return;
    at::Tensor flag = *found_inf;
    at::_amp_foreach_non_finite_check_and_unscale_(gradients, flag, *inverse_scale);
  });
}

char* suite_update_scale(const at::Tensor* scale, const at::Tensor* growth_tracker, const at::Tensor* found_inf, double growth_factor,
                         double backoff_factor, int64_t growth_interval) {
  return suite::guarded([&] {
    at::NoGradGuard no_grad;
    at::Tensor scale_in_place = *scale, tracker_in_place = *growth_tracker;
    at::_amp_update_scale_(scale_in_place, tracker_in_place, *found_inf, growth_factor, backoff_factor, growth_interval);
  });
}

}  // extern "C"
