// Traces a forward pass into a TorchScript file whose parameters and buffers are attributes of a tree of modules.

#include "shim.h"

#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/frontend/tracer.h>

#include <memory>
#include <set>
#include <string>
#include <tuple>
#include <utility>

using suite::Tensors;
using torch::jit::Module;

namespace {

std::shared_ptr<torch::jit::CompilationUnit> compilation_unit() { return std::make_shared<torch::jit::CompilationUnit>(); }

Module new_module(const std::shared_ptr<torch::jit::CompilationUnit>& unit, const std::string& type_name) {
  Module module(c10::QualifiedName(type_name), unit, /*shouldMangle=*/true);
  // Python's train() and eval() look for it.
  module.register_attribute("training", c10::BoolType::get(), false);
  return module;
}

// Registers `layers.0.weight` as attribute `weight` of the module `0` of the module `layers` of `root`.
void register_tensor(Module root, const std::string& root_type, const std::string& name, const at::Tensor& tensor, bool is_buffer) {
  const auto unit = root._ivalue()->compilation_unit();
  Module module = root;
  std::string type_name = root_type;
  size_t start = 0;
  for (size_t dot; (dot = name.find('.', start)) != std::string::npos; start = dot + 1) {
    const std::string part = name.substr(start, dot - start);
    TORCH_CHECK(!part.empty(), "`", name, "` is not a parameter name");
    // A prefix, because a type's name cannot be a number.
    type_name += ".module_" + part;
    if (!module.hasattr(part)) module.register_module(part, new_module(unit, type_name));
    const c10::IValue child = module.attr(part);
    TORCH_CHECK(child.isModule(), "`", name, "` is inside of `", name.substr(0, dot), "`, which is a tensor");
    module = child.toModule();
  }
  const std::string leaf = name.substr(start);
  TORCH_CHECK(!leaf.empty(), "`", name, "` is not a parameter name");
  TORCH_CHECK(!module.hasattr(leaf), "`", name, "` names two things");
  module.register_parameter(leaf, tensor, is_buffer);
}

// The dotted name under which `value`, a module or a tensor, is reached from the graph's module; empty for the module itself.
std::string name_of(const torch::jit::Value* value) {
  const torch::jit::Node* node = value->node();
  if (node->kind() != torch::jit::prim::GetAttr) return "";
  const std::string parent = name_of(node->input());
  const std::string& own = node->s(torch::jit::attr::name);
  return parent.empty() ? own : parent + "." + own;
}

// The names of all tensors of the module that a graph computes with.
void collect_used(const torch::jit::Block* block, std::set<std::string>& used) {
  for (const torch::jit::Node* node : block->nodes()) {
    if (node->kind() == torch::jit::prim::GetAttr && node->hasUses()) used.insert(name_of(node->output()));
    for (const torch::jit::Block* inner : node->blocks()) collect_used(inner, used);
  }
}

}  // namespace

extern "C" {

// Called with borrowed inputs; appends outputs through suite_trace_output and returns whether it succeeded.
using SuiteForward = bool (*)(void* context, const at::Tensor* const* inputs, size_t count, Tensors* outputs);

void suite_trace_output(Tensors* outputs, const at::Tensor* tensor) noexcept { outputs->push_back(*tensor); }

char* suite_trace_module(const char* class_name, const char* const* names, const at::Tensor* const* tensors, const bool* are_buffers,
                         size_t tensor_count, const char* const* input_names, const at::Tensor* const* inputs, size_t input_count,
                         bool used_only, SuiteForward forward, void* context, const char* path) {
  return suite::guarded([&] {
    at::NoGradGuard no_grad;
    torch::jit::Stack examples;
    std::vector<std::string> argument_names;
    for (size_t i = 0; i < input_count; i++) {
      examples.emplace_back(*inputs[i]);
      argument_names.emplace_back(input_names[i]);
    }
    auto run = [&](torch::jit::Stack stack) -> torch::jit::Stack {
      Tensors traced;
      std::vector<const at::Tensor*> borrowed;
      traced.reserve(stack.size());
      for (const c10::IValue& value : stack) traced.push_back(value.toTensor());
      for (const at::Tensor& tensor : traced) borrowed.push_back(&tensor);
      Tensors outputs;
      // The caller knows why it failed.
      TORCH_CHECK(forward(context, borrowed.data(), borrowed.size(), &outputs), "the traced forward pass failed");
      TORCH_CHECK(!outputs.empty(), "the traced forward pass has no output");
      if (outputs.size() == 1) return {outputs.front()};
      std::vector<c10::IValue> elements(outputs.begin(), outputs.end());
      return {c10::ivalue::Tuple::create(std::move(elements))};
    };
    auto no_variable_names = [](const at::Tensor&) { return std::string(); };
    const std::string type_name = std::string("__torch__.") + class_name;
    // Traces with the tensors that are named, and returns the module and the graph of its pass. The tracer evaluates the pass on the way.
    auto trace = [&](const std::set<std::string>* wanted) {
      Module module = new_module(compilation_unit(), type_name);
      for (size_t i = 0; i < tensor_count; i++) {
        if (wanted == nullptr || wanted->count(names[i]) != 0) register_tensor(module, type_name, names[i], *tensors[i], are_buffers[i]);
      }
      const auto traced =
          torch::jit::tracer::trace(examples, run, no_variable_names, /*strict=*/true, /*force_outplace=*/false, &module, argument_names);
      return std::make_pair(module, traced.first->graph);
    };
    auto [module, graph] = trace(nullptr);
    if (used_only) {
      std::set<std::string> used;
      collect_used(graph->block(), used);
      std::tie(module, graph) = trace(&used);
    }
    const auto method = module._ivalue()->compilation_unit()->create_function(c10::QualifiedName(*module.type()->name(), "forward"), graph);
    module.type()->addMethod(method);
    module.save(path);
  });
}

}  // extern "C"
