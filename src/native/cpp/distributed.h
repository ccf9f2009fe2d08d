// The group of processes, as the files that speak to it share it.
#pragma once

#include "shim.h"

#include <ATen/ops/empty_like.h>
#include <ATen/ops/stack.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

namespace suite {

struct Group {
  // What reduces gradients: NCCL for those on GPUs, Gloo for those on the host.
  c10::intrusive_ptr<c10d::ProcessGroup> main;
  // What sums numbers of the host: Gloo, over connections of its own.
  c10::intrusive_ptr<c10d::Backend> control;
  int rank;
  int size;
};

// Sums a tensor over all processes, in place.
void sum_over(const Group& group, const at::Tensor& tensor);

// The tensors of all processes, which have one shape, stacked in the order of their ranks.
at::Tensor gathered(const Group& group, const at::Tensor& tensor);

}  // namespace suite
