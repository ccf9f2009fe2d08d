// What every file of the shim shares: the error bridge and the list of tensors.
//
// Conventions of the C functions, whose declarations for Rust are in ffi.rs:
// - They return null when all went well, else a message that `suite_free_text` releases. No exception leaves them.
// - A tensor crosses as `at::Tensor*`. One that is written to an `at::Tensor** result` is new and belongs to the caller.
// - Nothing here records operations for autograd: gradients and parameters are changed in place.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <c10/util/Exception.h>

#include <exception>
#include <vector>

// One compilation of a function for each generation of vectors, chosen when the program starts. Integers, comparisons and single products only: all give the same bits.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define FOR_WIDE_VECTORS __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_WIDE_VECTORS
#endif

namespace suite {

using Tensors = std::vector<at::Tensor>;

// A copy that outlives the exception; never null.
char* copy_text(const char* text) noexcept;

// Runs `body` and turns whatever it throws into a message.
template <class Body>
char* guarded(Body&& body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const c10::Error& error) {
    return copy_text(error.what_without_backtrace());
  } catch (const std::exception& error) {
    return copy_text(error.what());
  } catch (...) {
    return copy_text("libtorch threw something that is not an exception");
  }
}

// Hands a tensor over to Rust.
inline void give(at::Tensor** result, at::Tensor tensor) {
  *result = new at::Tensor(std::move(tensor));
}

// Whether the host may read and write the tensor's memory without waiting for a device. The tests make CPU tensors answer no, so
// that what other devices get runs on any machine.
bool on_host(const at::Tensor& tensor) noexcept;

// Whether the processor multiplies bfloat16 numbers itself.
bool multiplies_bf16();

// The gradient of a parameter, which may be undefined. A sparse one is refused.
const at::Tensor& gradient_of(const at::Tensor& parameter);

// The gradients that are there, and through `owners` (if asked) the parameters they belong to.
Tensors gradients_of(const Tensors& parameters, Tensors* owners = nullptr);

}  // namespace suite
