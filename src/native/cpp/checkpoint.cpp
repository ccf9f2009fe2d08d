// Gradient checkpointing: a part of a network whose intermediate values are computed again in the backward pass instead of being kept.

#include "shim.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/autocast_mode.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/api/include/torch/autograd.h>

#include <mutex>
#include <utility>

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

namespace {

constexpr size_t message_capacity = 512;

// Computes the part: borrows the input, makes a new output tensor; false with a message if it failed.
using SuiteSegment = bool (*)(void* context, const at::Tensor* input, at::Tensor** output, char* message, size_t capacity);
using SuiteRelease = void (*)(void* context);

// The part as the graph owns it; released with the last node that needs it.
struct Segment : torch::CustomClassHolder {
  SuiteSegment compute;
  SuiteRelease release;
  void* context;

  Segment(SuiteSegment compute, SuiteRelease release, void* context) : compute(compute), release(release), context(context) {}
  ~Segment() override { release(context); }

  at::Tensor operator()(const at::Tensor& input) const {
    at::Tensor* output = nullptr;
    char message[message_capacity] = {};
    const bool succeeded = compute(context, &input, &output, message, message_capacity);
    at::Tensor result;
    if (output != nullptr) {
      result = std::move(*output);
      delete output;
    }
    TORCH_CHECK(succeeded, message);
    return result;
  }
};

// What the second computation must find as the first one did is saved with the node: random numbers and mixed precision.

at::Tensor random_state(const at::Device& device) {
  at::Generator generator = at::globalContext().defaultGenerator(device);
  std::lock_guard<std::mutex> lock(generator.mutex());
  return generator.get_state();
}

void set_random_state(const at::Device& device, const at::Tensor& state) {
  at::Generator generator = at::globalContext().defaultGenerator(device);
  std::lock_guard<std::mutex> lock(generator.mutex());
  generator.set_state(state);
}

struct Checkpoint : torch::autograd::Function<Checkpoint> {
  // `anchor` requires a gradient, so that the output does even where only the part's own parameters learn.
  static at::Tensor forward(AutogradContext* context, const at::Tensor& input, const at::Tensor& anchor,
                            const c10::intrusive_ptr<Segment>& segment) {
    (void)anchor;
    const auto device = input.device();
    context->saved_data["segment"] = c10::IValue::make_capsule(segment);
    context->saved_data["cpu_random"] = random_state(at::kCPU);
    if (!device.is_cpu()) context->saved_data["device_random"] = random_state(device);
    context->saved_data["autocast"] = at::autocast::is_autocast_enabled(device.type());
    context->saved_data["autocast_type"] = static_cast<int64_t>(at::autocast::get_autocast_dtype(device.type()));
    context->saved_data["learns"] = input.requires_grad();
    context->save_for_backward({input});
    return (*segment)(input);
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const at::Tensor saved = context->get_saved_variables()[0];
    const auto segment = c10::static_intrusive_pointer_cast<Segment>(context->saved_data["segment"].toCapsule());
    const auto device = saved.device();
    at::Tensor input = saved.detach();
    input.requires_grad_(context->saved_data["learns"].toBool());

    const at::Tensor cpu_random = random_state(at::kCPU);
    const at::Tensor device_random = device.is_cpu() ? at::Tensor() : random_state(device);
    const bool autocast = at::autocast::is_autocast_enabled(device.type());
    const at::ScalarType autocast_type = at::autocast::get_autocast_dtype(device.type());
    const auto restore = [&] {
      set_random_state(at::kCPU, cpu_random);
      if (!device.is_cpu()) set_random_state(device, device_random);
      at::autocast::set_autocast_dtype(device.type(), autocast_type);
      at::autocast::set_autocast_enabled(device.type(), autocast);
      if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
    };
    set_random_state(at::kCPU, context->saved_data["cpu_random"].toTensor());
    if (!device.is_cpu()) set_random_state(device, context->saved_data["device_random"].toTensor());
    at::autocast::set_autocast_dtype(device.type(), static_cast<at::ScalarType>(context->saved_data["autocast_type"].toInt()));
    at::autocast::set_autocast_enabled(device.type(), context->saved_data["autocast"].toBool());
    at::autocast::increment_nesting();
    at::Tensor output;
    try {
      at::AutoGradMode enabled(true);
      output = (*segment)(input);
    } catch (...) {
      restore();
      throw;
    }
    restore();
    // The parameters of the part get their gradients here, the input's is handed on.
    torch::autograd::backward({output}, {gradients[0]});
    return {input.grad(), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

extern "C" {

// Takes the context over: it is released even if this fails.
char* suite_checkpoint(const at::Tensor* input, SuiteSegment compute, SuiteRelease release, void* context, at::Tensor** result) {
  return suite::guarded([&] {
    auto segment = c10::make_intrusive<Segment>(compute, release, context);
    if (!at::GradMode::is_enabled()) {
      suite::give(result, (*segment)(*input));
      return;
    }
    const at::Tensor anchor = at::zeros({0}, at::TensorOptions(at::kFloat)).requires_grad_(true);
    suite::give(result, Checkpoint::apply(*input, anchor, segment));
  });
}

}  // extern "C"
