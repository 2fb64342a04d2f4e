// A simulated accelerator for tests: a PrivateUse1 device whose memory is the host's own.
//
// As on a GPU, an operation on tensors of two devices is an error, a value that the host reads makes it wait, and
// memory has an end. Waits, copies, and live and peak bytes are counted. Every operation is computed by PyTorch's CPU
// kernel on a view of the device's memory, so results are the CPU's. It says nothing about speed, streams or kernels.
#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/ops/as_strided_native.h>
#include <torch/library.h>

#include <cstring>
#include <set>
#include <string>
#include <vector>

#include "memory.h"

namespace {

bool on_device(const at::Tensor& tensor) { return tensor.defined() && tensor.device().type() == DEVICE; }

at::Tensor on_cpu(const at::Tensor& tensor) {  // the same memory as a CPU tensor
  if (!on_device(tensor)) return tensor;
  const c10::Storage& storage = tensor.storage();
  const auto items = static_cast<int64_t>(storage.nbytes() / tensor.itemsize());
  auto whole = at::from_blob(storage.mutable_data(), {items}, [storage](void*) {}, tensor.options().device(c10::kCPU));
  return whole.as_strided(tensor.sizes(), tensor.strides(), tensor.storage_offset());
}

at::Tensor new_strided(at::IntArrayRef sizes, at::IntArrayRef strides, std::optional<at::ScalarType> type,
                         std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(sizes, strides, &memory, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                           type.value_or(at::get_default_dtype_as_scalartype()));
}

at::Tensor new_empty(at::IntArrayRef sizes, std::optional<at::ScalarType> type, std::optional<at::Layout>,
                 std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(sizes, &memory, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   type.value_or(at::get_default_dtype_as_scalartype()), format);
}

at::Tensor moved(const at::Tensor& result) {  // what a CPU kernel returned, in the device's memory
  if (!result.defined() || on_device(result)) return result;
  auto there = new_strided(result.sizes(), result.strides(), result.scalar_type(), {}, {}, {});
  on_cpu(there).copy_(result);
  return there;
}

// A copy to pinned memory that need not be there yet is waited for by an event, see Event in simulated.py.
at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool non_blocking) {
  if (on_device(from) && !on_device(to) && !(non_blocking && is_pinned(to.storage().data()))) tell(WAIT);
  if (!on_device(from) && on_device(to)) tell(TO_DEVICE);
  on_cpu(to).copy_(on_cpu(from));
  return to;
}

const at::Tensor& grown(const at::Tensor& tensor, at::IntArrayRef sizes, std::optional<at::MemoryFormat>) {
  const size_t bytes = (c10::multiply_integers(sizes) + tensor.storage_offset()) * tensor.itemsize();
  c10::Storage storage = tensor.storage();
  if (storage.nbytes() < bytes) {
    auto larger = memory.allocate(bytes);
    std::memcpy(larger.get(), storage.data(), storage.nbytes());
    storage.set_data_ptr_noswap(std::move(larger));
    storage.set_nbytes(bytes);
  }
  tensor.unsafeGetTensorImpl()->set_sizes_contiguous(sizes);
  return tensor;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  grown(to, from.sizes(), {});
  return copy_from(from, to, false);
}

at::Tensor strided(const at::Tensor& tensor, at::IntArrayRef sizes, at::IntArrayRef strides,
                      std::optional<int64_t> offset) {
  return at::native::as_strided_tensorimpl(tensor, sizes, strides, offset);
}

at::Tensor& set_storage(at::Tensor& tensor, at::Storage storage, int64_t offset, at::IntArrayRef sizes,
                        at::IntArrayRef strides) {
  auto* implementation = tensor.unsafeGetTensorImpl();
  implementation->set_storage_keep_dtype(std::move(storage));
  implementation->set_sizes_and_strides(sizes, strides, offset);
  return tensor;
}

// Operations after which the host knows a value, or a size that depends on values.
const std::set<std::string> READS = {
    "aten::_local_scalar_dense", "aten::nonzero",    "aten::masked_select", "aten::equal", "aten::_unique2",
    "aten::unique_consecutive",  "aten::unique_dim", "aten::repeat_interleave"};
// Operations to which a GPU takes indices from the host: it copies them.
const std::set<std::string> INDEXED = {"aten::index", "aten::index_put_", "aten::_index_put_impl_",
                                       "aten::_unsafe_index"};

// Sums of products: a GPU takes those of half types in float32 and rounds once. So does this, which is also faster.
const std::set<std::string> PRODUCTS = {"aten::convolution_overrideable", "aten::convolution_backward_overrideable",
                                        "aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"};

struct Inputs {
  std::optional<at::ScalarType> half;  // of a sum of products, where it is a half type
  bool device = false, host = false, mask = false;
  int64_t indices = 0;  // on the host

  void see(const at::Tensor& tensor, bool index) {
    if (!tensor.defined()) return;
    const bool boolean = tensor.scalar_type() == at::kBool || tensor.scalar_type() == at::kByte;
    if (index && boolean) mask = true;
    if (on_device(tensor)) device = true;
    else if (index) indices++;
    else if (tensor.dim() > 0) host = true;  // a GPU takes a number of the host as an argument
  }
};

bool is_half(const at::Tensor& tensor) {
  return tensor.defined() && (tensor.scalar_type() == at::kHalf || tensor.scalar_type() == at::kBFloat16);
}

at::Tensor as_input(const at::Tensor& tensor, bool out, bool product) {
  const auto type = product && is_half(tensor) ? at::kFloat : tensor.defined() ? tensor.scalar_type() : at::kFloat;
  // What an `out` holds is not read, and the kernel may need it larger: it gets one of its own.
  if (out && on_device(tensor)) return at::empty({0}, tensor.options().device(c10::kCPU).dtype(type));
  return tensor.defined() ? on_cpu(tensor).to(type) : tensor;
}

void put_out(const at::Tensor& given, const at::Tensor& computed) {
  if (given.sizes() != computed.sizes()) grown(given, computed.sizes(), {});
  on_cpu(given).copy_(computed);
}

// Convolutions have operations of their own for devices outside PyTorch; here the usual ones compute them.
c10::OperatorHandle computed_by(const c10::OperatorHandle& operation, torch::jit::Stack* stack) {
  const auto& name = operation.schema().name();
  auto& dispatcher = c10::Dispatcher::singleton();
  if (name == "aten::convolution_overrideable") return dispatcher.findSchemaOrThrow("aten::convolution", "");
  if (name != "aten::convolution_backward_overrideable") return operation;
  const auto first = stack->end() - static_cast<int64_t>(operation.schema().arguments().size());
  const int64_t channels = first->toTensor().size(1);
  stack->insert(first + 3, c10::IValue(std::vector<int64_t>{channels}));  // the bias has one number per channel
  return dispatcher.findSchemaOrThrow("aten::convolution_backward", "");
}

const at::Tensor* argument_of(const c10::AliasInfo& alias, const c10::FunctionSchema& schema,
                              const std::vector<c10::IValue>& given) {
  for (size_t i = 0; i < given.size(); i++) {
    const auto* other = schema.arguments()[i].alias_info();
    if (other != nullptr && other->beforeSets() == alias.beforeSets() && given[i].isTensor())
      return &given[i].toTensor();
  }
  return nullptr;
}

c10::IValue as_output(const c10::IValue& result, const c10::AliasInfo* alias, const c10::FunctionSchema& schema,
                      const std::vector<c10::IValue>& given) {
  if (result.isTensorList()) {
    c10::List<at::Tensor> list;
    for (const at::Tensor& tensor : result.toTensorVector()) list.push_back(moved(tensor));
    return list;
  }
  if (!result.isTensor()) return result;
  const at::Tensor& tensor = result.toTensor();
  const at::Tensor* source = alias == nullptr ? nullptr : argument_of(*alias, schema, given);
  if (source == nullptr || !on_device(*source)) return moved(tensor);
  if (alias->isWrite()) return *source;
  return strided(*source, tensor.sizes(), tensor.strides(), tensor.storage_offset());  // a view stays one
}

void compute(const c10::OperatorHandle& operation, torch::jit::Stack* stack) {
  const auto& schema = operation.schema();
  const std::string& name = schema.name();
  const size_t count = schema.arguments().size(), begin = stack->size() - count;
  const std::vector<c10::IValue> given(stack->begin() + static_cast<int64_t>(begin), stack->end());
  const bool indexed = INDEXED.count(name) > 0, product = PRODUCTS.count(name) > 0;
  Inputs inputs;
  for (size_t i = 0; i < count; i++) {
    auto& value = (*stack)[begin + i];
    const auto& argument = schema.arguments()[i];
    const bool out = argument.kwarg_only() && argument.alias_info() != nullptr && argument.alias_info()->isWrite();
    if (value.isTensor()) {
      inputs.see(value.toTensor(), false);
      if (product && is_half(value.toTensor())) inputs.half = value.toTensor().scalar_type();
      value = as_input(value.toTensor(), out, product);
    } else if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& tensor : value.toTensorVector()) inputs.see(tensor, false), list.push_back(on_cpu(tensor));
      value = list;
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> list;
      for (const std::optional<at::Tensor>& tensor : value.toOptionalTensorVector()) {
        if (tensor) inputs.see(*tensor, indexed);
        list.push_back(tensor ? std::optional<at::Tensor>(on_cpu(*tensor)) : std::nullopt);
      }
      value = list;
    } else if (value.isDevice() && value.toDevice().type() == DEVICE) {
      value = c10::Device(c10::kCPU);
    }
  }
  TORCH_CHECK(!inputs.device || !inputs.host, "Expected all tensors to be on the same device, but found at least two "
              "devices, the simulated one and cpu, in ", name);
  if (inputs.device && (READS.count(name) || (indexed && inputs.mask))) tell(WAIT);
  for (int64_t i = 0; inputs.device && i < inputs.indices; i++) tell(TO_DEVICE);
  const auto kernel = computed_by(operation, stack);
  const std::vector<c10::IValue> aliases(stack->end() - static_cast<int64_t>(count), stack->end());
  kernel.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  for (size_t i = 0; i < count; i++) {
    const auto& argument = schema.arguments()[i];
    if (argument.kwarg_only() && argument.alias_info() != nullptr && given[i].isTensor() && on_device(given[i].toTensor()))
      put_out(given[i].toTensor(), aliases[i].toTensor());
  }
  const size_t results = schema.returns().size(), end = stack->size();
  for (size_t i = 0; i < results; i++) {
    auto& result = (*stack)[end - results + i];
    const auto* alias = schema.returns()[i].alias_info();
    if (inputs.half && alias == nullptr && result.isTensor() && result.toTensor().defined())
      result = result.toTensor().to(*inputs.half);
    result = as_output(result, alias, schema, given);
  }
}

}  // namespace

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) { library.fallback(torch::CppFunction::makeFromBoxedFunction<&compute>()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("empty.memory_format", &new_empty);
  library.impl("empty_strided", &new_strided);
  library.impl("_copy_from", &copy_from);
  library.impl("_copy_from_and_resize", &copy_from_and_resize);
  library.impl("as_strided", &strided);
  library.impl("resize_", &grown);
  library.impl("set_.source_Storage_storage_offset", &set_storage);
  library.impl("index.Tensor", torch::CppFunction::makeFromBoxedFunction<&compute>());  // the usual way reads masks twice
  library.impl("convolution_overrideable", torch::CppFunction::makeFromBoxedFunction<&compute>());
  library.impl("convolution_backward_overrideable", torch::CppFunction::makeFromBoxedFunction<&compute>());
}

extern "C" {
// waits, copies to the device, live bytes, peak bytes, allocations
void simulated_counts(int64_t* out) {
  const int64_t now[] = {waits, to_device, live, peak, allocations};
  std::memcpy(out, now, sizeof(now));
}
// All counts begin anew; the peak at what lives now.
void simulated_reset() {
  waits = to_device = allocations = 0;
  peak = live.load();
}
// The n-th allocation after the last reset fails; 0 for none.
void simulated_fail_at(int64_t allocation) { fails_at = allocation; }
// The host waits for the device.
void simulated_wait() { tell(WAIT); }
void simulated_listen(Listener listening) { listener = listening; }
}
