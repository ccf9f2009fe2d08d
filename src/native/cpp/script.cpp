// TorchScript modules and AOTInductor packages: loading, calling with nested values, training mode, saving.
//
// Values cross as trees of `SuiteValue`, which know nothing of TorchScript's types: the declared type of an argument decides what a list of
// numbers becomes.

#include "shim.h"

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/passes/dead_code_elimination.h>
#include <torch/csrc/jit/passes/freeze_module.h>
#include <torch/csrc/jit/passes/fuse_linear.h>
#include <torch/csrc/jit/runtime/graph_executor.h>
#include <torch/csrc/jit/serialization/import.h>

#include <dlfcn.h>

#include <limits>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

using suite::Tensors;
using torch::jit::Module;

extern "C" {

void suite_free_text(char* text) noexcept;

// Kinds of values, the same numbers as in script.rs. A dictionary's children are key, value, key, value, ….
enum SuiteKind : int32_t { kNone, kBool, kInt, kFloat, kText, kTensor, kList, kTuple, kDict };

struct SuiteValue {
  SuiteKind kind = kNone;
  int64_t integer = 0;
  double number = 0;
  std::string text;
  at::Tensor tensor;
  std::vector<std::unique_ptr<SuiteValue>> children;
};

}  // extern "C"

namespace {

const char* name_of(SuiteKind kind) {
  switch (kind) {
    case kNone: return "nothing";
    case kBool: return "a truth value";
    case kInt: return "an integer";
    case kFloat: return "a number";
    case kText: return "a text";
    case kTensor: return "a tensor";
    case kList: return "a list";
    case kTuple: return "a tuple";
    case kDict: return "a dictionary";
  }
  return "something unknown";
}

[[noreturn]] void refuse(const std::string& where, const c10::TypePtr& type, const SuiteValue& value) {
  TORCH_CHECK(false, where, " should be ", type->repr_str(), " but is ", name_of(value.kind));
}

// Adds the numbers of a nested list to `numbers` and finds its shape.
void flatten(const SuiteValue& value, const std::string& where, size_t depth, std::vector<int64_t>& shape, std::vector<double>& numbers,
             std::vector<int64_t>& integers, SuiteKind& kind) {
  TORCH_CHECK(depth < 64, where, " is nested too deeply for a tensor");
  if (value.kind == kList || value.kind == kTuple) {
    const auto size = static_cast<int64_t>(value.children.size());
    if (shape.size() == depth) shape.push_back(size);
    TORCH_CHECK(depth < shape.size() && shape[depth] == size, where, " has rows of different lengths, which make no tensor");
    for (const auto& child : value.children) flatten(*child, where, depth + 1, shape, numbers, integers, kind);
    return;
  }
  TORCH_CHECK(depth == shape.size(), where, " has rows of different depths, which make no tensor");
  TORCH_CHECK(value.kind == kBool || value.kind == kInt || value.kind == kFloat, where, " holds ", name_of(value.kind),
              " where a tensor needs numbers");
  kind = std::max(kind, value.kind);
  numbers.push_back(value.kind == kFloat ? value.number : static_cast<double>(value.integer));
  integers.push_back(value.integer);
}

// A tensor of plain numbers: float32 if one has a point, else int64, or bool of truth values.
at::Tensor tensor_of(const SuiteValue& value, const std::string& where) {
  std::vector<int64_t> shape, integers;
  std::vector<double> numbers;
  SuiteKind kind = kBool;
  flatten(value, where, 0, shape, numbers, integers, kind);
  if (kind == kFloat) return at::tensor(numbers, at::kDouble).to(at::kFloat).reshape(shape);
  if (integers.empty()) return at::empty(shape, at::kFloat);
  const at::Tensor whole = at::tensor(integers, at::kLong).reshape(shape);
  return kind == kBool ? whole.to(at::kBool) : whole;
}

c10::IValue convert(const SuiteValue& value, const c10::TypePtr& type, const std::string& where, const at::Device& device);

// Where nothing is declared: what Python would make of it.
c10::IValue guess(const SuiteValue& value, const std::string& where, const at::Device& device) {
  switch (value.kind) {
    case kNone: return {};
    case kBool: return value.integer != 0;
    case kInt: return value.integer;
    case kFloat: return value.number;
    case kText: return value.text;
    case kTensor: return value.tensor.to(device);
    case kTuple: {
      std::vector<c10::IValue> elements;
      for (const auto& child : value.children) elements.push_back(guess(*child, where, device));
      return c10::ivalue::Tuple::create(std::move(elements));
    }
    case kList: {
      c10::impl::GenericList list(c10::AnyType::get());
      for (const auto& child : value.children) list.push_back(guess(*child, where, device));
      return list;
    }
    case kDict: {
      c10::impl::GenericDict dict(c10::StringType::get(), c10::AnyType::get());
      for (size_t i = 0; i + 1 < value.children.size(); i += 2)
        dict.insert(guess(*value.children[i], where, device), guess(*value.children[i + 1], where, device));
      return dict;
    }
  }
  return {};
}

c10::IValue convert(const SuiteValue& value, const c10::TypePtr& type, const std::string& where, const at::Device& device) {
  switch (type->kind()) {
    case c10::TypeKind::AnyType: return guess(value, where, device);
    case c10::TypeKind::NoneType:
      if (value.kind != kNone) refuse(where, type, value);
      return {};
    case c10::TypeKind::TensorType:
      if (value.kind == kTensor) return value.tensor.to(device);
      if (value.kind == kNone || value.kind == kText || value.kind == kDict) refuse(where, type, value);
      return tensor_of(value, where).to(device);
    case c10::TypeKind::OptionalType:
      if (value.kind == kNone) return {};
      return convert(value, type->expectRef<c10::OptionalType>().getElementType(), where, device);
    case c10::TypeKind::BoolType:
      if (value.kind != kBool) refuse(where, type, value);
      return value.integer != 0;
    case c10::TypeKind::IntType:
      if (value.kind != kInt) refuse(where, type, value);
      return value.integer;
    case c10::TypeKind::FloatType:
      if (value.kind == kInt) return static_cast<double>(value.integer);
      if (value.kind != kFloat) refuse(where, type, value);
      return value.number;
    case c10::TypeKind::NumberType:
      if (value.kind == kInt) return value.integer;
      if (value.kind != kFloat) refuse(where, type, value);
      return value.number;
    case c10::TypeKind::StringType:
      if (value.kind != kText) refuse(where, type, value);
      return value.text;
    case c10::TypeKind::DeviceObjType:
      if (value.kind != kText) refuse(where, type, value);
      return c10::Device(value.text);
    case c10::TypeKind::ListType: {
      if (value.kind != kList && value.kind != kTuple) refuse(where, type, value);
      const auto element = type->expectRef<c10::ListType>().getElementType();
      c10::impl::GenericList list(element);
      for (size_t i = 0; i < value.children.size(); i++)
        list.push_back(convert(*value.children[i], element, where + "[" + std::to_string(i) + "]", device));
      return list;
    }
    case c10::TypeKind::TupleType: {
      if (value.kind != kList && value.kind != kTuple) refuse(where, type, value);
      const auto& elements = type->expectRef<c10::TupleType>().elements();
      TORCH_CHECK(elements.size() == value.children.size(), where, " should have ", elements.size(), " elements but has ",
                  value.children.size());
      std::vector<c10::IValue> made;
      for (size_t i = 0; i < elements.size(); i++)
        made.push_back(convert(*value.children[i], elements[i], where + "[" + std::to_string(i) + "]", device));
      if (type->expectRef<c10::TupleType>().schema()) return c10::ivalue::Tuple::createNamed(std::move(made), type->expect<c10::TupleType>());
      return c10::ivalue::Tuple::create(std::move(made));
    }
    case c10::TypeKind::DictType: {
      if (value.kind != kDict) refuse(where, type, value);
      const auto& declared = type->expectRef<c10::DictType>();
      c10::impl::GenericDict dict(declared.getKeyType(), declared.getValueType());
      for (size_t i = 0; i + 1 < value.children.size(); i += 2) {
        const SuiteValue& key = *value.children[i];
        const std::string inside = where + "[" + (key.kind == kText ? key.text : std::to_string(key.integer)) + "]";
        // JSON has no other keys than texts.
        if (key.kind == kText && declared.getKeyType()->kind() == c10::TypeKind::IntType) {
          SuiteValue number;
          number.kind = kInt;
          try {
            number.integer = std::stoll(key.text);
          } catch (const std::exception&) {
            refuse(inside, declared.getKeyType(), key);
          }
          dict.insert(convert(number, declared.getKeyType(), inside, device), convert(*value.children[i + 1], declared.getValueType(), inside, device));
          continue;
        }
        dict.insert(convert(key, declared.getKeyType(), inside, device), convert(*value.children[i + 1], declared.getValueType(), inside, device));
      }
      return dict;
    }
    case c10::TypeKind::UnionType: {
      for (const auto& candidate : type->expectRef<c10::UnionType>().containedTypes()) {
        try {
          return convert(value, candidate, where, device);
        } catch (const c10::Error&) {
        }
      }
      refuse(where, type, value);
    }
    default: TORCH_CHECK(false, where, " is of type ", type->repr_str(), ", which cannot be given from outside");
  }
}

std::unique_ptr<SuiteValue> back(const c10::IValue& value, size_t depth) {
  TORCH_CHECK(depth < 256, "the result is nested too deeply");
  auto made = std::make_unique<SuiteValue>();
  auto add = [&](const c10::IValue& child) { made->children.push_back(back(child, depth + 1)); };
  if (value.isNone()) {
    made->kind = kNone;
  } else if (value.isTensor()) {
    made->kind = kTensor;
    made->tensor = value.toTensor();
    if (!made->tensor.defined()) made->kind = kNone;
  } else if (value.isBool()) {
    made->kind = kBool;
    made->integer = value.toBool();
  } else if (value.isInt()) {
    made->kind = kInt;
    made->integer = value.toInt();
  } else if (value.isDouble()) {
    made->kind = kFloat;
    made->number = value.toDouble();
  } else if (value.isString()) {
    made->kind = kText;
    made->text = value.toStringRef();
  } else if (value.isDevice()) {
    made->kind = kText;
    made->text = value.toDevice().str();
  } else if (value.isTuple()) {
    made->kind = kTuple;
    for (const auto& child : value.toTupleRef().elements()) add(child);
  } else if (value.isList()) {
    made->kind = kList;
    for (const c10::IValue& child : value.toListRef()) add(child);
  } else if (value.isGenericDict()) {
    made->kind = kDict;
    for (const auto& entry : value.toGenericDict()) {
      add(entry.key());
      add(entry.value());
    }
  } else {
    TORCH_CHECK(false, "the result holds ", value.tagKind(), ", which has no form outside of TorchScript");
  }
  return made;
}

// What one operation of libtorch's gives for these arguments.
c10::IValue call(const char* operation, torch::jit::Stack stack) {
  c10::Dispatcher::singleton().findSchemaOrThrow(operation, "").callBoxed(&stack);
  return stack.front();
}

// Weights in 8 bits with a scale for each row, symmetric, as torch.ao's observer per channel has it; with the bias in the form that the kernel takes.
c10::IValue packed(const at::Tensor& weight, const c10::IValue& bias) {
  const at::Tensor scales = (weight.abs().amax(1).to(at::kDouble) / 127.5).clamp_min(std::numeric_limits<float>::epsilon());
  const at::Tensor zeros = at::zeros(scales.sizes(), at::kLong);
  return call("quantized::linear_prepack", {at::quantize_per_channel(weight, scales, zeros, 0, at::kQInt8), bias});
}

// Replaces the linear layers of a frozen graph, whose weights are constants, by such with dynamically quantised inputs. Their weights become attributes
// of the module.
void quantize_linear_layers(Module& module, torch::jit::Graph& graph, torch::jit::Block* block, size_t& layers) {
  using torch::jit::Node;
  using torch::jit::Value;
  for (auto next = block->nodes().begin(); next != block->nodes().end();) {
    Node* node = *next++;
    for (torch::jit::Block* inner : node->blocks()) quantize_linear_layers(module, graph, inner, layers);
    if (node->kind() != c10::aten::linear) continue;
    const auto weight = torch::jit::toIValue(node->input(1));
    const auto bias = torch::jit::toIValue(node->input(2));
    if (!weight || !bias || !weight->isTensor() || weight->toTensor().scalar_type() != at::kFloat || weight->toTensor().dim() != 2) continue;
    const std::string name = "int8_linear_" + std::to_string(layers++);
    const c10::IValue value = packed(weight->toTensor().cpu().contiguous(), *bias);
    module.register_attribute(name, value.type(), value);
    torch::jit::WithInsertPoint here(node);
    Value* attribute = graph.insertGetAttr(graph.inputs().at(0), name);
    // Inputs in 7 bits, which no kernel's sums overflow with.
    Value* reduce_range = graph.insertConstant(true);
    Node* made = graph.insertNode(
        graph.create(c10::Symbol::fromQualString("quantized::linear_dynamic"), {node->input(0), attribute, reduce_range}));
    made->output()->setType(c10::TensorType::get());
    node->output()->replaceAllUsesWith(made->output());
    node->destroy();
  }
}

torch::jit::Method method_of(const Module& module, const char* name) {
  const auto method = module.find_method(name);
  TORCH_CHECK(method, "there is no method `", name, "`");
  return *method;
}

// How many tensors a method is given where there are so many: as many as its first arguments are declared as such, and at least one.
size_t leading_tensors(const c10::FunctionSchema& schema, size_t count) {
  size_t taken = 0;
  for (const auto& argument : schema.arguments()) {
    if (argument.name() == "self") continue;
    const auto optional = argument.type()->cast<c10::OptionalType>();
    const auto type = optional ? optional->getElementType() : argument.type();
    if (taken == count || type->kind() != c10::TypeKind::TensorType) break;
    ++taken;
  }
  return std::min(count, std::max<size_t>(taken, 1));
}

std::vector<std::string> lines_of(const char* text) {
  std::istringstream stream(text);
  std::vector<std::string> lines;
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += name + "\n";
  return text;
}

struct Package {
  torch::inductor::AOTIModelPackageLoader loader;
};

}  // namespace

extern "C" {

// ---- values

SuiteValue* suite_value_new(int32_t kind, int64_t integer, double number, const char* text, size_t length, const at::Tensor* tensor) noexcept {
  auto* value = new SuiteValue;
  value->kind = static_cast<SuiteKind>(kind);
  value->integer = integer;
  value->number = number;
  if (text) value->text.assign(text, length);
  if (tensor) value->tensor = *tensor;
  return value;
}

// The child now belongs to the parent.
void suite_value_push(SuiteValue* parent, SuiteValue* child) noexcept { parent->children.emplace_back(child); }
void suite_value_free(SuiteValue* value) noexcept { delete value; }
int32_t suite_value_kind(const SuiteValue* value) noexcept { return value->kind; }
int64_t suite_value_integer(const SuiteValue* value) noexcept { return value->integer; }
double suite_value_number(const SuiteValue* value) noexcept { return value->number; }
const char* suite_value_text(const SuiteValue* value, size_t* length) noexcept {
  *length = value->text.size();
  return value->text.data();
}
char* suite_value_tensor(const SuiteValue* value, at::Tensor** result) {
  return suite::guarded([&] { suite::give(result, value->tensor); });
}
size_t suite_value_size(const SuiteValue* value) noexcept { return value->children.size(); }
const SuiteValue* suite_value_child(const SuiteValue* value, size_t place) noexcept { return value->children[place].get(); }

// ---- modules

char* suite_script_load(const char* path, int8_t device, int8_t index, Module** result) {
  return suite::guarded([&] {
    const c10::Device target(static_cast<c10::DeviceType>(device), index);
    *result = new Module(torch::jit::load(path, target));
  });
}

void suite_script_free(Module* module) noexcept { delete module; }

char* suite_script_save(const Module* module, const char* path) {
  return suite::guarded([&] { module->save(path); });
}

char* suite_script_train(Module* module, bool on) {
  return suite::guarded([&] { module->train(on); });
}

// A frozen copy: attributes become constants and what evaluation does not need goes. `kept` are other methods to keep.
char* suite_script_freeze(const Module* module, const char* const* kept, size_t count, Module** result) {
  return suite::guarded([&] {
    Module copy = module->clone();
    copy.eval();
    const std::vector<std::string> preserved(kept, kept + count);
    *result = new Module(torch::jit::freeze(copy, preserved, /*optimize_numerics=*/true));
  });
}

// The same with 8-bit weights in linear layers, as many as are counted.
char* suite_script_quantize(const Module* module, const char* const* kept, size_t count, Module** result, size_t* layers) {
  return suite::guarded([&] {
    at::NoGradGuard no_grad;
    Module copy = module->clone();
    copy.eval();
    const std::vector<std::string> preserved(kept, kept + count);
    // Without the numeric optimisations, which would make other operations of linear layers.
    Module frozen = torch::jit::freeze(copy, preserved, /*optimize_numerics=*/false);
    *layers = 0;
    for (const torch::jit::Method& method : frozen.get_methods()) {
      std::shared_ptr<torch::jit::Graph> graph = method.graph();
      torch::jit::FuseLinear(graph);
      quantize_linear_layers(frozen, *graph, graph->block(), *layers);
      torch::jit::EliminateDeadCode(graph);
    }
    *result = new Module(std::move(frozen));
  });
}

// Casts floating-point parameters and buffers.
char* suite_script_cast(Module* module, int8_t type) {
  return suite::guarded([&] {
    at::NoGradGuard no_grad;
    module->to(static_cast<at::ScalarType>(type));
  });
}

// One method name a line.
char* suite_script_methods(const Module* module, char** result) {
  return suite::guarded([&] {
    std::vector<std::string> names;
    for (const auto& method : module->get_methods()) names.push_back(method.name());
    *result = suite::copy_text(joined(names).c_str());
  });
}

char* suite_script_schema(const Module* module, const char* method, char** result) {
  return suite::guarded([&] {
    const auto& schema = method_of(*module, method).function().getSchema();
    std::string text = "(";
    bool first = true;
    for (const auto& argument : schema.arguments()) {
      if (argument.name() == "self") continue;
      if (!first) text += ", ";
      first = false;
      text += argument.name() + ": " + argument.type()->repr_str();
      if (argument.default_value()) {
        std::ostringstream value;
        value << *argument.default_value();
        text += " = " + value.str();
      }
    }
    text += ")";
    for (const auto& returned : schema.returns()) text += " -> " + returned.type()->repr_str();
    *result = suite::copy_text(text.c_str());
  });
}

// Argument names of a method without self, one a line.
char* suite_script_arguments(const Module* module, const char* method, char** result) {
  return suite::guarded([&] {
    std::vector<std::string> names;
    for (const auto& argument : method_of(*module, method).function().getSchema().arguments())
      if (argument.name() != "self") names.push_back(argument.name());
    *result = suite::copy_text(joined(names).c_str());
  });
}

// Dotted names, one a line, and the tensors that the module computes with.
char* suite_script_tensors(const Module* module, bool buffers, char** names, Tensors** tensors) {
  return suite::guarded([&] {
    std::vector<std::string> found;
    auto list = std::make_unique<Tensors>();
    auto take = [&](const auto& all) {
      for (const auto& entry : all) {
        if (!entry.value.defined()) continue;
        found.push_back(entry.name);
        list->push_back(entry.value);
      }
    };
    if (buffers) {
      take(module->named_buffers());
    } else {
      take(module->named_parameters());
    }
    *names = suite::copy_text(joined(found).c_str());
    *tensors = list.release();
  });
}

size_t suite_list_size(const Tensors* list) noexcept { return list->size(); }
char* suite_list_get(const Tensors* list, size_t place, at::Tensor** result) {
  return suite::guarded([&] { suite::give(result, list->at(place)); });
}

// `arguments` is a dictionary from argument names, or numbers of positions, to values.
char* suite_script_call(const Module* module, const char* name, const SuiteValue* arguments, int8_t device, int8_t index,
                        SuiteValue** result) {
  return suite::guarded([&] {
    const c10::Device target(static_cast<c10::DeviceType>(device), index);
    const auto method = method_of(*module, name);
    const auto& schema = method.function().getSchema();
    std::vector<c10::IValue> stack;
    std::vector<bool> used(arguments->children.size() / 2, false);
    size_t position = 0;
    for (const auto& argument : schema.arguments()) {
      if (argument.name() == "self") continue;
      const SuiteValue* given = nullptr;
      for (size_t i = 0; i < used.size(); i++) {
        const SuiteValue& key = *arguments->children[2 * i];
        const bool fits = key.kind == kText ? key.text == argument.name() : static_cast<size_t>(key.integer) == position;
        if (fits && !used[i]) {
          used[i] = true;
          given = arguments->children[2 * i + 1].get();
          break;
        }
      }
      position++;
      if (given) {
        stack.push_back(convert(*given, argument.type(), "the input `" + argument.name() + "`", target));
      } else {
        TORCH_CHECK(argument.default_value(), "the input `", argument.name(), "` is missing");
        stack.push_back(*argument.default_value());
      }
    }
    for (size_t i = 0; i < used.size(); i++) {
      if (used[i]) continue;
      const SuiteValue& key = *arguments->children[2 * i];
      TORCH_CHECK(false, "there is no input ", key.kind == kText ? "`" + key.text + "`" : "number " + std::to_string(key.integer + 1));
    }
    *result = back(method(std::move(stack)), 0).release();
  });
}

// The quick way for a network: one tensor in; of several outputs the one at `output`, a position in a tuple or list or a key of a dictionary.
char* suite_script_forward(const Module* module, const char* name, const at::Tensor* const* inputs, size_t count, const char* output,
                           at::Tensor** result) {
  return suite::guarded([&] {
    auto method = method_of(*module, name);
    std::vector<c10::IValue> given;
    for (size_t i = 0, taken = leading_tensors(method.function().getSchema(), count); i < taken; ++i) given.emplace_back(*inputs[i]);
    c10::IValue made = method(std::move(given));
    const std::string chosen(output);
    if (made.isTuple()) {
      const auto& elements = made.toTupleRef().elements();
      size_t place = chosen.empty() ? 0 : std::stoul(chosen);
      TORCH_CHECK(place < elements.size(), "the method `", name, "` has ", elements.size(), " outputs, so none is number ", place);
      c10::IValue element = elements[place];
      made = std::move(element);
    } else if (made.isList()) {
      const auto elements = made.toListRef();
      size_t place = chosen.empty() ? 0 : std::stoul(chosen);
      TORCH_CHECK(place < elements.size(), "the method `", name, "` has ", elements.size(), " outputs, so none is number ", place);
      c10::IValue element = elements[place];
      made = std::move(element);
    } else if (made.isGenericDict()) {
      const auto dict = made.toGenericDict();
      const auto found = dict.find(chosen);
      TORCH_CHECK(found != dict.end(), "the method `", name, "` has no output `", chosen, "`");
      c10::IValue element = found->value();
      made = std::move(element);
    }
    TORCH_CHECK(made.isTensor(), "the chosen output of `", name, "` is ", made.tagKind(), " and not a tensor");
    suite::give(result, made.toTensor());
  });
}

char* suite_script_save_with_head(const Module* module, const char* name, const char* output, const char* arguments, const char* lines,
                                  const at::Tensor* weight, const at::Tensor* bias, const char* path) {
  return suite::guarded([&] {
    const auto& schema = method_of(*module, name).function().getSchema();
    std::vector<std::string> names = lines_of(arguments);
    std::string declared, passed;
    for (size_t i = 0, taken = leading_tensors(schema, names.size()); i < names.size(); ++i) {
      declared += ", " + names[i];
      if (i < taken) passed += (i ? ", " : "") + names[i];
    }
    const auto returned = schema.returns().at(0).type();
    std::string chosen;
    const std::string wanted(output);
    if (returned->kind() == c10::TypeKind::TupleType || returned->kind() == c10::TypeKind::ListType) {
      chosen = "[" + (wanted.empty() ? std::string("0") : std::to_string(std::stoul(wanted))) + "]";
    } else if (returned->kind() == c10::TypeKind::DictType) {
      TORCH_CHECK(wanted.find_first_of("\"\\\n") == std::string::npos, "the output `", wanted, "` cannot be named in code");
      chosen = "[\"" + wanted + "\"]";
    }
    const auto unit = std::make_shared<torch::jit::CompilationUnit>();
    Module root(c10::QualifiedName("__torch__.Classifier"), unit);
    Module head(c10::QualifiedName("__torch__.Head"), unit);
    for (Module& made : {std::ref(root), std::ref(head)}) made.register_attribute("training", c10::BoolType::get(), false);
    head.register_parameter("weight", *weight, false);
    head.register_parameter("bias", *bias, false);
    root.register_module("backbone", *module);
    root.register_module("head", head);
    std::string code = "def forward(self" + declared + "):\n    features = self.backbone." + name + "(" + passed + ")" + chosen + "\n";
    for (const std::string& line : lines_of(lines)) code += "    " + line + "\n";
    root.define(code + "    return torch.linear(features, self.head.weight, self.head.bias)\n");
    root.save(path);
  });
}

// Without the optimising executor a graph computes the same in its first run and in every later one.
void suite_script_optimise(bool on) noexcept { torch::jit::setGraphExecutorOptimize(on); }

// ---- packages

char* suite_libtorch_path(char** result);

char* suite_package_load(const char* path, int8_t index, Package** result) {
  return suite::guarded([&] {
    // The package's library asks for libtorch.so by that name, which nothing else here has loaded.
    char* place = nullptr;
    char* failure = suite_libtorch_path(&place);
    if (!failure && place) {
      const std::string beside(place);
      const std::string library = beside.substr(0, beside.rfind('/') + 1) + "libtorch.so";
      dlopen(library.c_str(), RTLD_NOW | RTLD_GLOBAL);
    }
    suite_free_text(failure);
    suite_free_text(place);
    *result = new Package{torch::inductor::AOTIModelPackageLoader(path, "model", false, 1, static_cast<c10::DeviceIndex>(index))};
  });
}

void suite_package_free(Package* package) noexcept { delete package; }

char* suite_package_run(Package* package, const Tensors* inputs, Tensors** outputs) {
  return suite::guarded([&] {
    at::NoGradGuard no_grad;
    *outputs = new Tensors(package->loader.run(*inputs));
  });
}

char* suite_package_specification(Package* package, char** result) {
  return suite::guarded([&] { *result = suite::copy_text(joined(package->loader.get_call_spec()).c_str()); });
}

}  // extern "C"
