// c10d, libtorch's own engine for several processes: the store they meet at, collectives, and the Reducer that sums gradients
// while the backward pass is still going on.

#define USE_C10D_GLOO 1
#ifdef TCH_SUITE_NCCL
#define USE_C10D_NCCL 1
#endif

#include "distributed.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/zeros_like.h>
#include <c10/util/Logging.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <torch/csrc/distributed/c10d/reducer.hpp>
#ifdef TCH_SUITE_NCCL
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>
#endif

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>

using suite::Group;
using suite::Tensors;

namespace {

// A store and, below it, the connection that it speaks through.
struct StoreHandle {
  c10::intrusive_ptr<c10d::Store> store;
};

// A collective on its way, with the tensors that it works on.
struct Pending {
  c10::intrusive_ptr<c10d::Work> work;
  Tensors tensors;
};

std::vector<uint8_t> bytes_of(const char* text) { return {text, text + std::strlen(text)}; }

c10::intrusive_ptr<c10d::ProcessGroupGloo> host_backend(const c10::intrusive_ptr<c10d::Store>& store, int rank, int size,
                                                std::chrono::milliseconds timeout, const char* const* interfaces,
                                                size_t interface_count, const char* address) {
  auto options = c10d::ProcessGroupGloo::Options::create(timeout);
  for (size_t i = 0; i < interface_count; i++)
    options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForInterface(interfaces[i]));
  if (interface_count == 0)
    options->devices.push_back(address != nullptr ? c10d::ProcessGroupGloo::createDeviceForHostname(address)
                                                  : c10d::ProcessGroupGloo::createDefaultDevice());
  auto group = c10::make_intrusive<c10d::ProcessGroupGloo>(store, rank, size, options);
  group->setSequenceNumberForGroup();
  return group;
}

// Adds the gradients of all processes, without dividing by their number: a loss is divided by what it is a sum over in all of
// them before it is differentiated.
class SumHook : public c10d::CppCommHookInterface<c10::intrusive_ptr<c10d::ProcessGroup>> {
 public:
  using CppCommHookInterface::CppCommHookInterface;

  c10::intrusive_ptr<c10::ivalue::Future> runHook(c10d::GradBucket& bucket) override {
    std::vector<at::Tensor> tensors{bucket.getBufferRef()};
    return state_->allreduce(tensors)->getFuture();
  }
};

// The same with bfloat16 on the wire, as bf16_compress_hook of torch.distributed.
class Bfloat16SumHook : public c10d::CppCommHookInterface<c10::intrusive_ptr<c10d::ProcessGroup>> {
 public:
  using CppCommHookInterface::CppCommHookInterface;

  c10::intrusive_ptr<c10::ivalue::Future> runHook(c10d::GradBucket& bucket) override {
    std::vector<at::Tensor> tensors{bucket.getBufferRef().to(at::kBFloat16)};
    auto sum = state_->allreduce(tensors)->getFuture();
    at::Tensor buffer = bucket.getBufferRef();
    return sum->then(
        [buffer](c10::ivalue::Future& future) {
          const c10::IValue& value = future.value();
          buffer.copy_(value.isTensor() ? value.toTensor() : value.toTensorVector()[0]);
          return c10::IValue(buffer);
        },
        sum->elementType());
  }
};

struct GradientReducer {
  std::shared_ptr<c10d::Reducer> reducer;
  std::unordered_map<c10::TensorImpl*, size_t> places;
};

std::vector<std::vector<size_t>> layout_of(const size_t* places, const size_t* sizes, size_t buckets) {
  std::vector<std::vector<size_t>> layout;
  for (size_t i = 0; i < buckets; i++) {
    layout.emplace_back(places, places + sizes[i]);
    places += sizes[i];
  }
  return layout;
}

// "0,2;1": the places of each bucket's parameters.
std::string written(const std::vector<std::vector<size_t>>& buckets) {
  std::string text;
  for (const auto& bucket : buckets) {
    if (!text.empty()) text += ';';
    for (size_t i = 0; i < bucket.size(); i++) {
      if (i > 0) text += ',';
      text += std::to_string(bucket[i]);
    }
  }
  return text;
}

}  // namespace

namespace suite {

void sum_over(const Group& group, const at::Tensor& tensor) {
  at::NoGradGuard no_grad;
  std::vector<at::Tensor> tensors{tensor};
  if (tensor.is_cpu())
    group.control->allreduce(tensors)->wait();
  else
    group.main->allreduce(tensors)->wait();
}

at::Tensor gathered(const Group& group, const at::Tensor& tensor) {
  at::NoGradGuard no_grad;
  std::vector<at::Tensor> inputs{tensor.contiguous()};
  std::vector<std::vector<at::Tensor>> outputs(1);
  for (int i = 0; i < group.size; i++) outputs[0].push_back(at::empty_like(inputs[0]));
  if (tensor.is_cpu())
    group.control->allgather(outputs, inputs)->wait();
  else
    group.main->allgather(outputs, inputs)->wait();
  return at::stack(outputs[0]);
}

}  // namespace suite

extern "C" {

// c10d writes of every attempt to connect; what matters comes as an error.
void suite_distributed_quiet() noexcept {
  if (std::getenv("TORCH_CPP_LOG_LEVEL") == nullptr) FLAGS_caffe2_log_level = 3;
}

char* suite_store_new(const char* host, uint16_t port, bool server, int size, int64_t timeout, const char* prefix,
                      StoreHandle** result) {
  return suite::guarded([&] {
    c10d::TCPStoreOptions options;
    options.port = port;
    options.isServer = server;
    options.multiTenant = server;
    options.numWorkers = static_cast<size_t>(size);
    // A server waits for nobody here: who is missing is found out by name.
    options.waitWorkers = !server;
    options.timeout = std::chrono::milliseconds(timeout);
    c10::intrusive_ptr<c10d::Store> store = c10::make_intrusive<c10d::TCPStore>(std::string(host), options);
    if (*prefix != '\0') store = c10::make_intrusive<c10d::PrefixStore>(std::string(prefix), store);
    *result = new StoreHandle{store};
  });
}

// A connection of its own, so that one that waits does not hold up the other.
char* suite_store_clone(StoreHandle* handle, StoreHandle** result) {
  return suite::guarded([&] { *result = new StoreHandle{handle->store->clone()}; });
}

void suite_store_free(StoreHandle* handle) noexcept { delete handle; }

char* suite_store_set(StoreHandle* handle, const char* key, const char* value) {
  return suite::guarded([&] { handle->store->set(key, bytes_of(value)); });
}

char* suite_store_wait(StoreHandle* handle, const char* key, int64_t timeout, char** result) {
  return suite::guarded([&] {
    handle->store->wait({key}, std::chrono::milliseconds(timeout));
    const std::vector<uint8_t> value = handle->store->get(key);
    *result = suite::copy_text(std::string(value.begin(), value.end()).c_str());
  });
}

char* suite_store_has(StoreHandle* handle, const char* key, bool* result) {
  return suite::guarded([&] { *result = handle->store->check({key}); });
}

// Prefixes and names are those of torch.distributed.init_process_group("gloo") in 2.13, so that processes of Python may take part.
char* suite_group_new(StoreHandle* handle, int rank, int size, int64_t timeout, const char* const* interfaces,
                      size_t interface_count, const char* address, int cuda, bool with_control, Group** result) {
  return suite::guarded([&] {
    const std::chrono::milliseconds limit(timeout);
    auto main_store = c10::make_intrusive<c10d::PrefixStore>(
        "0/", c10::make_intrusive<c10d::PrefixStore>("default_pg", handle->store));
    auto group = c10::make_intrusive<c10d::ProcessGroup>(main_store, rank, size);
    c10::intrusive_ptr<c10d::ProcessGroupGloo> on_host =
        host_backend(c10::make_intrusive<c10d::PrefixStore>("cpu/", main_store), rank, size, limit, interfaces, interface_count, address);
    group->setDefaultBackend(cuda >= 0 ? c10d::ProcessGroup::BackendType::NCCL : c10d::ProcessGroup::BackendType::GLOO);
    group->setBackend(c10::DeviceType::CPU, c10d::ProcessGroup::BackendType::GLOO,
                      std::optional<c10::intrusive_ptr<c10d::Backend>>(on_host));
    if (cuda >= 0) {
#ifdef TCH_SUITE_NCCL
      auto options = c10d::ProcessGroupNCCL::Options::create();
      options->timeout = limit;
      auto on_device = c10::make_intrusive<c10d::ProcessGroupNCCL>(
          c10::make_intrusive<c10d::PrefixStore>("cuda/", main_store), rank, size, options);
      on_device->setSequenceNumberForGroup();
      group->setBoundDeviceId(at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(cuda)));
      group->setBackend(c10::DeviceType::CUDA, c10d::ProcessGroup::BackendType::NCCL,
                        std::optional<c10::intrusive_ptr<c10d::Backend>>(on_device));
#else
      TORCH_CHECK(false, "this program was built without NCCL: build it with --features nccl to train on several GPUs");
#endif
    }
    group->setGroupName("0");
    // What the host sums for itself goes its own way, so that it does not queue behind gradients.
    c10::intrusive_ptr<c10d::Backend> control = on_host;
    if (with_control)
      control = host_backend(c10::make_intrusive<c10d::PrefixStore>("tch_suite/control/", handle->store), rank, size, limit, interfaces,
                     interface_count, address);
    *result = new Group{group, control, rank, size};
  });
}

void suite_group_free(Group* group) noexcept { delete group; }

bool suite_nccl_built() noexcept {
#ifdef TCH_SUITE_NCCL
  return true;
#else
  return false;
#endif
}

char* suite_group_sum(const Group* group, const at::Tensor* tensor) {
  return suite::guarded([&] { suite::sum_over(*group, *tensor); });
}

// Begins to sum a tensor of the host; `suite_pending_wait` ends it.
char* suite_group_begin_sum(const Group* group, const at::Tensor* tensor, Pending** result) {
  return suite::guarded([&] {
    auto pending = std::make_unique<Pending>();
    pending->tensors.push_back(*tensor);
    pending->work = group->control->allreduce(pending->tensors);
    *result = pending.release();
  });
}

// Waits and frees.
char* suite_pending_wait(Pending* pending) {
  return suite::guarded([&] {
    std::unique_ptr<Pending> owned(pending);
    owned->work->wait();
  });
}

// Frees without waiting: the collective keeps what it needs.
void suite_pending_free(Pending* pending) noexcept { delete pending; }

char* suite_group_gather(const Group* group, const at::Tensor* tensor, at::Tensor** result) {
  return suite::guarded([&] { suite::give(result, suite::gathered(*group, *tensor)); });
}

// Every tensor takes the values that it has in process `root`.
char* suite_group_broadcast(const Group* group, const Tensors* tensors, int root) {
  return suite::guarded([&] {
    at::NoGradGuard no_grad;
    std::vector<at::Tensor> detached;
    for (const at::Tensor& tensor : *tensors) detached.push_back(tensor.detach());
    c10d::broadcast_coalesced(group->main, detached, size_t{250} << 20, root);
  });
}

char* suite_group_barrier(const Group* group) {
  return suite::guarded([&] { group->control->barrier()->wait(); });
}

// Sums gradients over all processes in one piece for each type of number, without a Reducer. Those that are not there count as zeros and are
// there afterwards.
char* suite_group_sum_gradients(const Group* group, const Tensors* parameters) {
  return suite::guarded([&] {
    at::NoGradGuard no_grad;
    std::vector<std::pair<at::ScalarType, Tensors>> kinds;
    for (const at::Tensor& parameter : *parameters) {
      if (!suite::gradient_of(parameter).defined()) parameter.mutable_grad() = at::zeros_like(parameter);
      const at::Tensor& gradient = parameter.grad();
      auto kind = std::find_if(kinds.begin(), kinds.end(), [&](const auto& known) { return known.first == gradient.scalar_type(); });
      if (kind == kinds.end()) kind = kinds.insert(kinds.end(), {gradient.scalar_type(), {}});
      kind->second.push_back(gradient);
    }
    for (auto& [type, gradients] : kinds) {
      Tensors flat;
      for (const at::Tensor& gradient : gradients) flat.push_back(gradient.reshape({-1}));
      std::vector<at::Tensor> sum{at::cat(flat)};
      group->main->allreduce(sum)->wait();
      int64_t place = 0;
      for (const at::Tensor& gradient : gradients) {
        gradient.copy_(sum[0].narrow(0, place, gradient.numel()).view(gradient.sizes()));
        place += gradient.numel();
      }
    }
  });
}

// Buckets of at most `first` and then `cap` bytes, the parameters that were made last in the first: their gradients come first.
char* suite_bucket_layout(const Tensors* parameters, size_t first, size_t cap, char** result) {
  return suite::guarded([&] {
    auto [buckets, limits] = c10d::compute_bucket_assignment_by_size(*parameters, {first, cap},
                                                                     std::vector<bool>(parameters->size(), false));
    std::reverse(buckets.begin(), buckets.end());
    *result = suite::copy_text(written(buckets).c_str());
  });
}

char* suite_reducer_new(const Group* group, const Tensors* parameters, const size_t* places, const size_t* sizes, size_t buckets,
                        size_t first, size_t cap, bool find_unused, bool compress, GradientReducer** result) {
  return suite::guarded([&] {
    const auto layout = layout_of(places, sizes, buckets);
    auto made = std::make_unique<GradientReducer>();
    for (size_t i = 0; i < parameters->size(); i++) made->places[(*parameters)[i].unsafeGetTensorImpl()] = i;
    std::unordered_map<size_t, std::string> names;
    for (size_t i = 0; i < parameters->size(); i++) names[i] = std::to_string(i);
    // Gradients are views of their buckets: they are reset after each step, not zeroed, so nothing else holds them.
    made->reducer = std::make_shared<c10d::Reducer>(*parameters, layout, group->main, std::vector<bool>(parameters->size(), false),
                                                    static_cast<int64_t>(cap), find_unused, true, names, static_cast<int64_t>(first),
                                                    false, false, std::vector<int64_t>{}, false);
    if (compress)
      made->reducer->register_comm_hook(std::make_unique<Bfloat16SumHook>(group->main));
    else
      made->reducer->register_comm_hook(std::make_unique<SumHook>(group->main));
    *result = made.release();
  });
}

void suite_reducer_free(GradientReducer* reducer) noexcept {
  try {
    delete reducer;
  } catch (...) {
    // Hooks that cannot be removed belong to a graph that is gone.
  }
}

// The next backward pass, from `loss`, is reduced.
char* suite_reducer_prepare(GradientReducer* reducer, const at::Tensor* loss) {
  return suite::guarded([&] {
    reducer->reducer->prepare_for_forward();
    reducer->reducer->prepare_for_backward({*loss});
  });
}

// Sorts the parameters into buckets in the order in which their gradients came in the first process.
char* suite_reducer_rebuild(GradientReducer* reducer, bool* rebuilt) {
  return suite::guarded([&] { *rebuilt = reducer->reducer->rebuild_buckets(); });
}

// Puts the parameters into these buckets.
char* suite_reducer_set_layout(GradientReducer* reducer, const size_t* places, const size_t* sizes, size_t buckets) {
  return suite::guarded([&] { reducer->reducer->initialize_buckets(layout_of(places, sizes, buckets)); });
}

char* suite_reducer_layout(const GradientReducer* reducer, char** result) {
  return suite::guarded([&] {
    std::vector<std::vector<size_t>> layout;
    for (const c10d::GradBucket& bucket : reducer->reducer->get_grad_buckets(true)) {
      std::vector<size_t> places;
      for (const at::Tensor& parameter : bucket.getParameters()) places.push_back(reducer->places.at(parameter.unsafeGetTensorImpl()));
      layout.push_back(std::move(places));
    }
    *result = suite::copy_text(written(layout).c_str());
  });
}

}  // extern "C"
