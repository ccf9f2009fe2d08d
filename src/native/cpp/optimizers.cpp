// One optimizer step over a group of parameters: libtorch's fused kernel where the device has one for it, else its foreach
// operations in the order in which torch.optim 2.13 applies them.
//
// All state is tensors on the parameters' device, the step counters included, so that a step that the loss scaler found to
// overflow can be undone there without asking the host.

#include "shim.h"

#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/_foreach_add.h>
#include <ATen/ops/_foreach_addcdiv.h>
#include <ATen/ops/_foreach_addcmul.h>
#include <ATen/ops/_foreach_clone.h>
#include <ATen/ops/_foreach_div.h>
#include <ATen/ops/_foreach_expm1.h>
#include <ATen/ops/_foreach_lerp.h>
#include <ATen/ops/_foreach_maximum.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_neg.h>
#include <ATen/ops/_foreach_reciprocal.h>
#include <ATen/ops/_foreach_sqrt.h>
#include <ATen/ops/_foreach_sub.h>
#include <ATen/ops/_fused_adagrad.h>
#include <ATen/ops/_fused_adam.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/_fused_sgd.h>
#include <ATen/ops/where.h>
#include <c10/core/TensorOptions.h>

#include <dlfcn.h>

#include <array>
#include <cmath>

using suite::Tensors;

extern "C" {

// Mirrored in ffi.rs.
struct SuiteSgd {
  double momentum, dampening, weight_decay;
  bool nesterov;
};
struct SuiteAdam {
  double beta1, beta2, eps, weight_decay;
  bool amsgrad, decoupled;
};
struct SuiteAdagrad {
  double lr_decay, eps, weight_decay;
};
struct SuiteRmsProp {
  double alpha, eps, weight_decay, momentum;
  bool centered;
};

}  // extern "C"

namespace {

// What one step needs besides the rule.
struct Call {
  const Tensors* parameters;
  const Tensors* const* state;
  size_t state_count;
  double lr;
  const at::Tensor* found_inf;  // on the device; null without loss scaling, or when the host knows that nothing overflowed
};

constexpr size_t most_states = 4;

// Some parameters, their gradients, and their state.
struct Slice {
  at::TensorList parameters, gradients;
  std::array<at::TensorList, most_states> state;
};

// The parameters that have a gradient, with their gradients and state, the large ones first.
struct Group {
  Tensors parameters, gradients;
  std::array<Tensors, most_states> state;
  size_t large = 0;
  int64_t small_elements = 0;

  bool on_host() const { return suite::on_host(parameters.front()); }

  Slice slice(size_t begin, size_t end) const {
    auto part = [&](const Tensors& tensors) { return tensors.empty() ? at::TensorList() : at::TensorList(tensors).slice(begin, end - begin); };
    Slice slice{part(parameters), part(gradients), {}};
    for (size_t kind = 0; kind < most_states; kind++) slice.state[kind] = part(state[kind]);
    return slice;
  }
};

// From this size on, libtorch shares the elements of a parameter out among the threads; of smaller ones each thread takes whole
// ones. Below this many elements in all, waking the other threads costs more than they save.
constexpr int64_t large_size = 1 << 15;

Group gather(const Call& call) {
  Group group;
  const Tensors& all = *call.parameters;
  TORCH_CHECK(call.state_count <= most_states, "an optimizer has ", call.state_count, " kinds of state");
  for (size_t kind = 0; kind < call.state_count; kind++) {
    TORCH_CHECK(call.state[kind]->size() == all.size(), "an optimizer has state for ", call.state[kind]->size(), " of ", all.size(),
                " parameters");
    group.state[kind].reserve(all.size());
  }
  group.parameters.reserve(all.size());
  group.gradients.reserve(all.size());
  for (bool large : {true, false}) {
    for (size_t i = 0; i < all.size(); i++) {
      const int64_t elements = all[i].numel();
      if ((elements >= large_size) != large) continue;
      const at::Tensor& gradient = suite::gradient_of(all[i]);
      if (!gradient.defined()) continue;
      group.parameters.push_back(all[i]);
      group.gradients.push_back(gradient);
      for (size_t kind = 0; kind < call.state_count; kind++) group.state[kind].push_back((*call.state[kind])[i]);
      if (large) group.large++;
      else group.small_elements += elements;
    }
  }
  return group;
}

// While one of these lives, libtorch's kernels run on the calling thread alone. Its interface sets the number of threads for the
// whole process only, so this asks the OpenMP runtime that it uses, by name; without one it does nothing.
class OneThread {
 public:
  OneThread() : threads_(at::get_num_threads()) {
    if (set_threads()) set_threads()(1);
  }
  ~OneThread() {
    if (set_threads()) set_threads()(threads_);
  }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  using SetThreads = void (*)(int);
  static SetThreads set_threads() {
    static const auto function = reinterpret_cast<SetThreads>(dlsym(RTLD_DEFAULT, "omp_set_num_threads"));
    return function;
  }
  int threads_;
};

// Runs `work` over the whole group, in slices. On the CPU the small parameters are dealt out to the threads once for all of them,
// or stay on this thread if they are not worth waking others: kernels that do this for each parameter wait more than they work.
template <class Work>
void share_out(const Group& group, Work&& work) {
  const size_t count = group.parameters.size();
  if (!group.on_host()) return work(group.slice(0, count));
  for (size_t i = 0; i < group.large; i++) work(group.slice(i, i + 1));
  if (group.large == count) return;
  if (group.small_elements < large_size) {
    OneThread one_thread;
    for (size_t i = group.large; i < count; i++) work(group.slice(i, i + 1));
    return;
  }
  // Bounds of runs of parameters with about equally many elements.
  const size_t threads = static_cast<size_t>(at::get_num_threads());
  std::vector<size_t> bounds{group.large};
  int64_t elements = 0;
  for (size_t i = group.large; i < count; i++) {
    elements += group.parameters[i].numel();
    if (elements * static_cast<int64_t>(threads) >= group.small_elements * static_cast<int64_t>(bounds.size())) bounds.push_back(i + 1);
  }
  if (bounds.back() != count) bounds.push_back(count);
  at::parallel_for(0, static_cast<int64_t>(bounds.size() - 1), 1, [&](int64_t begin, int64_t end) {
    // Other threads have modes of their own.
    at::NoGradGuard no_grad;
    for (size_t i = bounds[begin]; i < bounds[end]; i++) work(group.slice(i, i + 1));
  });
}

// Whether a fused kernel may run: it exists for the device, and the tensors are what it assumes without checking, namely equally
// laid out memory without holes, of one type and device. Foreach operations take anything.
bool fits_fused(const c10::OperatorHandle& kernel, const Call& call, const Group& group, size_t first_elementwise_state) {
  const at::Tensor& first = group.parameters.front();
  const at::ScalarType type = first.scalar_type();
  const at::Device device = first.device();
  // The CPU kernels take half-precision types too, but not for every rule and size.
  if (type != at::kFloat && type != at::kDouble) return false;
  // The Metal kernels read found_inf on the host, which cannot see it.
  if (device.is_mps() && call.found_inf) return false;
  if (!kernel.hasKernelForDispatchKey(c10::computeDispatchKey(type, at::kStrided, device))) return false;
  auto like = [&](const at::Tensor& tensor, const at::Tensor& parameter) {
    return tensor.scalar_type() == type && tensor.device() == device && tensor.sizes() == parameter.sizes() &&
           tensor.strides() == parameter.strides();
  };
  for (size_t i = 0; i < group.parameters.size(); i++) {
    const at::Tensor& parameter = group.parameters[i];
    if (!like(parameter, parameter) || !parameter.is_non_overlapping_and_dense() || !like(group.gradients[i], parameter)) return false;
    for (size_t kind = first_elementwise_state; kind < call.state_count; kind++)
      if (!like(group.state[kind][i], parameter)) return false;
  }
  return true;
}

c10::OperatorHandle find_kernel(const char* name) { return c10::Dispatcher::singleton().findSchemaOrThrow(name, ""); }

void count_step(const Tensors& steps) {
  for (const at::Tensor& step : steps)
    TORCH_CHECK(step.scalar_type() == at::kFloat && step.numel() == 1, "a step counter must be one float32 number");
  if (suite::on_host(steps.front())) {
    for (const at::Tensor& step : steps) *step.mutable_data_ptr<float>() += 1;
  } else {
    at::_foreach_add_(steps, 1);
  }
}

std::optional<at::Tensor> optional(const at::Tensor* tensor) {
  return tensor ? std::optional<at::Tensor>(*tensor) : std::nullopt;
}

// Runs a fused kernel, which leaves everything as it was when found_inf is 1, and counts the step, if it is counted.
template <class Kernel>
void run_fused(const Call& call, const Group& group, const Tensors* steps, Kernel&& kernel) {
  if (steps) count_step(*steps);
  const std::optional<at::Tensor> found_inf = optional(call.found_inf);
  share_out(group, [&](const Slice& slice) { kernel(slice, found_inf); });
  if (steps && call.found_inf) at::_foreach_sub_(*steps, Tensors(steps->size(), call.found_inf->reshape({})));
}

// Counts the step, if it is counted, and runs foreach operations. With a found_inf on the device they run in any case, and what
// they changed is put back if it is not 0.
template <class Step>
void run_foreach(const Call& call, const Group& group, const Tensors* steps, Step&& step) {
  Tensors changed, before;
  if (call.found_inf) {
    changed = group.parameters;
    for (const Tensors& state : group.state) changed.insert(changed.end(), state.begin(), state.end());
    before = at::_foreach_clone(changed);
  }
  if (steps) count_step(*steps);
  share_out(group, step);
  if (call.found_inf) {
    const at::Tensor overflowed = call.found_inf->reshape({}).ne(0);
    for (size_t i = 0; i < changed.size(); i++) changed[i].copy_(at::where(overflowed, before[i], changed[i]));
  }
}

// Runs `step` over the parameters that have a gradient, if there are any and the host does not already know of an overflow.
template <class Step>
char* run(const Tensors* parameters, const Tensors* const* state, size_t state_count, double lr, const at::Tensor* found_inf, Step&& step) {
  return suite::guarded([&] {
    at::NoGradGuard no_grad;
    Call call{parameters, state, state_count, lr, found_inf};
    if (found_inf && suite::on_host(*found_inf)) {
      if (found_inf->item<double>() != 0) return;
      call.found_inf = nullptr;
    }
    const Group group = gather(call);
    if (!group.parameters.empty()) step(call, group);
  });
}

// The gradients with weight decay in its L2 form added, in new tensors if there is any.
Tensors with_weight_decay(const Slice& slice, double weight_decay) {
  return weight_decay == 0 ? slice.gradients.vec() : at::_foreach_add(slice.gradients, slice.parameters, weight_decay);
}

// 1 - beta^step for each step counter. By expm1, because in single precision the plain difference has lost up to four digits
// during the first steps.
Tensors bias_corrections(at::TensorList steps, double beta) {
  Tensors corrections = at::_foreach_mul(steps, std::log(beta));
  at::_foreach_expm1_(corrections);
  at::_foreach_neg_(corrections);
  return corrections;
}

void sgd(const SuiteSgd& rule, const Call& call, const Group& group) {
  static const c10::OperatorHandle kernel = find_kernel("aten::_fused_sgd_");
  // The first value of a momentum buffer is the gradient. Without dampening that is what momentum * 0 + gradient gives; with it,
  // the step counters say which buffers are new.
  const bool dampened = rule.momentum != 0 && rule.dampening != 0;
  if (!dampened && fits_fused(kernel, call, group, 0)) {
    return run_fused(call, group, nullptr, [&](const Slice& slice, const std::optional<at::Tensor>& found_inf) {
      at::_fused_sgd_(slice.parameters, slice.gradients, slice.state[0], rule.weight_decay, rule.momentum, call.lr, rule.dampening,
                      rule.nesterov, /*maximize=*/false, /*is_first_step=*/false, /*grad_scale=*/{}, found_inf);
    });
  }
  run_foreach(call, group, dampened ? &group.state[1] : nullptr, [&](const Slice& slice) {
    Tensors gradients = with_weight_decay(slice, rule.weight_decay);
    if (rule.momentum != 0) {
      const at::TensorList buffers = slice.state[0];
      at::_foreach_mul_(buffers, rule.momentum);
      if (dampened) {
        Tensors shares;
        shares.reserve(buffers.size());
        for (const at::Tensor& step : slice.state[1])
          shares.push_back(at::where(step.eq(1), 1.0, 1 - rule.dampening).to(buffers.front().scalar_type()));
        at::_foreach_add_(buffers, at::_foreach_mul(gradients, shares));
      } else {
        at::_foreach_add_(buffers, gradients);
      }
      gradients = rule.nesterov ? at::_foreach_add(gradients, buffers, rule.momentum) : buffers.vec();
    }
    at::_foreach_add_(slice.parameters, gradients, -call.lr);
  });
}

void adam(const SuiteAdam& rule, const Call& call, const Group& group) {
  static const c10::OperatorHandle kernel = find_kernel("aten::_fused_adam_");
  static const c10::OperatorHandle decoupled_kernel = find_kernel("aten::_fused_adamw_");
  if (fits_fused(rule.decoupled ? decoupled_kernel : kernel, call, group, 1)) {
    return run_fused(call, group, &group.state[0], [&](const Slice& slice, const std::optional<at::Tensor>& found_inf) {
      const auto& [steps, means, squares, largest_squares] = slice.state;
      if (rule.decoupled)
        at::_fused_adamw_(slice.parameters, slice.gradients, means, squares, largest_squares, steps, call.lr, rule.beta1, rule.beta2,
                          rule.weight_decay, rule.eps, rule.amsgrad, /*maximize=*/false, /*grad_scale=*/{}, found_inf);
      else
        at::_fused_adam_(slice.parameters, slice.gradients, means, squares, largest_squares, steps, call.lr, rule.beta1, rule.beta2,
                         rule.weight_decay, rule.eps, rule.amsgrad, /*maximize=*/false, /*grad_scale=*/{}, found_inf);
    });
  }
  run_foreach(call, group, &group.state[0], [&](const Slice& slice) {
    const auto& [steps, means, squares, largest_squares] = slice.state;
    Tensors gradients = with_weight_decay(slice, rule.decoupled ? 0 : rule.weight_decay);
    if (rule.decoupled && rule.weight_decay != 0) at::_foreach_mul_(slice.parameters, 1 - call.lr * rule.weight_decay);
    at::_foreach_lerp_(means, gradients, 1 - rule.beta1);
    at::_foreach_mul_(squares, rule.beta2);
    at::_foreach_addcmul_(squares, gradients, gradients, 1 - rule.beta2);
    if (rule.amsgrad) at::_foreach_maximum_(largest_squares, squares);
    Tensors denominators = at::_foreach_sqrt(rule.amsgrad ? largest_squares : squares);
    Tensors square_corrections = bias_corrections(steps, rule.beta2);
    at::_foreach_sqrt_(square_corrections);
    at::_foreach_div_(denominators, square_corrections);
    at::_foreach_add_(denominators, rule.eps);
    Tensors step_sizes = bias_corrections(steps, rule.beta1);
    at::_foreach_reciprocal_(step_sizes);
    at::_foreach_mul_(step_sizes, -call.lr);
    Tensors updates = at::_foreach_div(means, denominators);
    at::_foreach_mul_(updates, step_sizes);
    at::_foreach_add_(slice.parameters, updates);
  });
}

void adagrad(const SuiteAdagrad& rule, const Call& call, const Group& group) {
  static const c10::OperatorHandle kernel = find_kernel("aten::_fused_adagrad_");
  if (fits_fused(kernel, call, group, 1)) {
    return run_fused(call, group, &group.state[0], [&](const Slice& slice, const std::optional<at::Tensor>& found_inf) {
      at::_fused_adagrad_(slice.parameters, slice.gradients, slice.state[1], slice.state[0], call.lr, rule.lr_decay, rule.weight_decay,
                          rule.eps, /*maximize=*/false, /*grad_scale=*/{}, found_inf);
    });
  }
  run_foreach(call, group, &group.state[0], [&](const Slice& slice) {
    const at::TensorList steps = slice.state[0], sums = slice.state[1];
    Tensors gradients = with_weight_decay(slice, rule.weight_decay);
    at::_foreach_addcmul_(sums, gradients, gradients, 1);
    Tensors denominators = at::_foreach_sqrt(sums);
    at::_foreach_add_(denominators, rule.eps);
    if (rule.lr_decay == 0) return at::_foreach_addcdiv_(slice.parameters, gradients, denominators, -call.lr);
    // -lr / (1 + (step - 1) * lr_decay)
    Tensors rates = at::_foreach_sub(steps, 1);
    at::_foreach_mul_(rates, rule.lr_decay);
    at::_foreach_add_(rates, 1);
    at::_foreach_reciprocal_(rates);
    at::_foreach_mul_(rates, -call.lr);
    at::_foreach_addcdiv_(slice.parameters, at::_foreach_mul(gradients, rates), denominators, 1);
  });
}

void rms_prop(const SuiteRmsProp& rule, const Call& call, const Group& group) {
  run_foreach(call, group, &group.state[0], [&](const Slice& slice) {
    const at::TensorList squares = slice.state[1], buffers = slice.state[2], means = slice.state[rule.momentum > 0 ? 3 : 2];
    Tensors gradients = with_weight_decay(slice, rule.weight_decay);
    at::_foreach_mul_(squares, rule.alpha);
    at::_foreach_addcmul_(squares, gradients, gradients, 1 - rule.alpha);
    Tensors denominators;
    if (rule.centered) {
      at::_foreach_lerp_(means, gradients, 1 - rule.alpha);
      denominators = at::_foreach_addcmul(squares, means, means, -1);
      at::_foreach_sqrt_(denominators);
    } else {
      denominators = at::_foreach_sqrt(squares);
    }
    at::_foreach_add_(denominators, rule.eps);
    if (rule.momentum > 0) {
      at::_foreach_mul_(buffers, rule.momentum);
      at::_foreach_addcdiv_(buffers, gradients, denominators);
      at::_foreach_add_(slice.parameters, buffers, -call.lr);
    } else {
      at::_foreach_addcdiv_(slice.parameters, gradients, denominators, -call.lr);
    }
  });
}

}  // namespace

extern "C" {

char* suite_sgd_step(const SuiteSgd* rule, const Tensors* parameters, const Tensors* const* state, size_t state_count, double lr,
                     const at::Tensor* found_inf) {
  return run(parameters, state, state_count, lr, found_inf, [&](const Call& call, const Group& group) { sgd(*rule, call, group); });
}

char* suite_adam_step(const SuiteAdam* rule, const Tensors* parameters, const Tensors* const* state, size_t state_count, double lr,
                      const at::Tensor* found_inf) {
  return run(parameters, state, state_count, lr, found_inf, [&](const Call& call, const Group& group) { adam(*rule, call, group); });
}

char* suite_adagrad_step(const SuiteAdagrad* rule, const Tensors* parameters, const Tensors* const* state, size_t state_count, double lr,
                         const at::Tensor* found_inf) {
  return run(parameters, state, state_count, lr, found_inf, [&](const Call& call, const Group& group) { adagrad(*rule, call, group); });
}

char* suite_rms_prop_step(const SuiteRmsProp* rule, const Tensors* parameters, const Tensors* const* state, size_t state_count, double lr,
                          const at::Tensor* found_inf) {
  return run(parameters, state, state_count, lr, found_inf, [&](const Call& call, const Group& group) { rms_prop(*rule, call, group); });
}

}  // extern "C"
