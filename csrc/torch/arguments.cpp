#include "csrc/torch/arguments.h"

#include <dlfcn.h>

#include <algorithm>
#include <stdexcept>

namespace fa4::torch_ops {

namespace {

const char* exception_name(Code code) {
  switch (code) {
    case Code::kInvalidValue:
      return "ValueError";
    case Code::kInvalidType:
      return "TypeError";
    case Code::kUnsupported:
      return "NotImplementedError";
    default:
      return "RuntimeError";
  }
}

void torch_parallel(int64_t count, void (*body)(int64_t, int64_t, void*), void* context) {
  STABLE_TORCH_ERROR_CODE_CHECK(torch_parallel_for(0, count, 1, body, context));
}

/// torch's current stream of a device. The function lives in libtorch_cuda.so, which a CPU build of
/// torch does not have, so it is looked up in the loaded library instead of linked.
void* current_cuda_stream(int ordinal) {
  using CurrentStream = AOTITorchError (*)(int32_t, void**);
  static const auto current_stream = []() -> CurrentStream {
    void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
    void* symbol = library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr;
    return reinterpret_cast<CurrentStream>(symbol);
  }();
  if (current_stream == nullptr) {
    throw std::runtime_error(
        "fa4: RuntimeError: libtorch_cuda.so: must be loaded and hold "
        "aoti_torch_get_current_cuda_stream, got none");
  }
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(current_stream(ordinal, &stream));
  return stream;
}

}  // namespace

std::string dtype_text(int32_t dtype) {
  // torch names them differently in C++ and in Python.
  constexpr const char* kNames[][2] = {
      {"Float", "float32"}, {"Double", "float64"}, {"Half", "float16"}, {"BFloat16", "bfloat16"},
      {"Byte", "uint8"},    {"Char", "int8"},      {"Short", "int16"},  {"Int", "int32"},
      {"Long", "int64"},    {"Bool", "bool"},
  };
  const std::string found = torch::headeronly::toString(
      torch::stable::detail::to<torch::headeronly::ScalarType>(torch::stable::detail::from(dtype)));
  for (const auto& [name, python_name] : kNames) {
    if (found == name) return python_name;
  }
  return found;
}

void raise(const char* op, Code code, const std::string& text) {
  throw std::runtime_error(std::string("fa4::") + op + ": " + exception_name(code) + ": " + text);
}

void raise_unless_ok(const char* op, const Status& status) {
  if (!status.ok()) raise(op, status.code, status.message);
}

Argument::Argument(const char* op, const char* name, const Tensor& tensor)
    : op(op), name(name), tensor(&tensor) {
  // torch takes None for a Tensor argument and hands over an undefined tensor.
  if (!tensor.defined()) fail(Code::kInvalidType, "must be Tensor, got NoneType");
  int64_t* sizes = nullptr;
  int64_t* strides = nullptr;
  rank = tensor.dim();
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(tensor.get(), &sizes));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(tensor.get(), &strides));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &dtype));
  size = sizes;
  stride = strides;
  int32_t device_type = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &device_type));
  device_known =
      device_type == aoti_torch_device_type_cpu() || device_type == aoti_torch_device_type_cuda();
  if (device_type == aoti_torch_device_type_cuda()) {
    device.kind = Device::kCuda;
    device.ordinal = tensor.get_device_index();
  }
}

void Argument::fail(Code code, const std::string& text) const {
  raise(op, code, std::string(name) + ": " + text);
}

void Argument::want_rank(int64_t wanted, const char* shape) const {
  if (rank == wanted) return;
  fail(Code::kInvalidValue, std::string("must have shape ") + shape + ", got " + shape_text(*this));
}

void Argument::want_size(int64_t dim, int64_t wanted, const char* meaning) const {
  if (size[dim] == wanted) return;
  fail(Code::kInvalidValue, std::string(meaning) + " must be " + std::to_string(wanted) + ", got " +
                                std::to_string(size[dim]) + " in shape " + shape_text(*this));
}

void Argument::want_contiguous_last_dim() const {
  if (stride[rank - 1] == 1 || size[rank - 1] <= 1) return;
  fail(Code::kInvalidValue, "last dimension must be contiguous (stride 1), got stride " +
                                std::to_string(stride[rank - 1]));
}

void Argument::want_no_overlap() const {
  for (int64_t i = 0; i < rank; ++i) {
    if (stride[i] == 0 && size[i] > 1) {
      fail(Code::kInvalidValue,
           "must not overlap itself, got stride 0 in dimension " + std::to_string(i));
    }
  }
}

void Argument::want_int32() const {
  if (dtype == aoti_torch_dtype_int32()) return;
  fail(Code::kInvalidType, "must be int32, got " + dtype_text(dtype));
}

void Argument::want_float32() const {
  if (dtype == aoti_torch_dtype_float32()) return;
  fail(Code::kInvalidType, "must be float32, got " + dtype_text(dtype));
}

void Argument::want_same_device(const Argument& other) const {
  if (device_known && device.kind == other.device.kind && device.ordinal == other.device.ordinal)
    return;
  const auto text = [](const Argument& argument) {
    if (!argument.device_known) return std::string("another device type");
    return argument.device.kind == Device::kCpu ? std::string("cpu")
                                                : "cuda:" + std::to_string(argument.device.ordinal);
  };
  fail(Code::kInvalidValue, std::string("must be on the device of ") + other.name + " (" +
                                text(other) + "), got " + text(*this));
}

void Argument::want_same_dtype(const Argument& other) const {
  if (dtype == other.dtype) return;
  fail(Code::kInvalidType, std::string("must have the dtype of ") + other.name + " (" +
                               dtype_text(other.dtype) + "), got " + dtype_text(dtype));
}

DType Argument::float_dtype() const {
  if (dtype == aoti_torch_dtype_float32()) return DType::kFloat32;
  if (dtype == aoti_torch_dtype_float16()) return DType::kFloat16;
  if (dtype == aoti_torch_dtype_bfloat16()) return DType::kBFloat16;
  fail(Code::kInvalidType, "must be float16, bfloat16 or float32, got " + dtype_text(dtype));
}

const void* Argument::data() const {
  const void* base = tensor->const_data_ptr();
  if (emulating()) note(base);
  return base;
}

void* Argument::mutable_data() const {
  void* base = tensor->mutable_data_ptr();
  if (emulating()) note(base);
  return base;
}

void Argument::note(const void* base) const {
  int64_t elements = 1;
  for (int64_t i = 0; i < rank; ++i) elements += (size[i] - 1) * stride[i];
  for (int64_t i = 0; i < rank; ++i) elements = size[i] == 0 ? 0 : elements;
  int64_t storage_bytes = 0, offset = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(tensor->get(), &storage_bytes));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_offset(tensor->get(), &offset));
  const auto item = static_cast<int64_t>(aoti_torch_dtype_element_size(dtype));
  const int64_t held = std::max<int64_t>(storage_bytes - offset * item, 0);
  note_memory(base, static_cast<size_t>(std::min(elements * item, held)));
}

std::string shape_text(const Argument& argument) {
  std::string text = "(";
  for (int64_t i = 0; i < argument.rank; ++i) {
    text += (i ? ", " : "") + std::to_string(argument.size[i]);
  }
  return text + (argument.rank == 1 ? ",)" : ")");
}

Strides strides_of(const Argument& argument) {
  const int64_t* s = argument.stride;
  return argument.rank == 4 ? Strides{s[0], s[1], s[2]} : Strides{0, s[0], s[1]};
}

Strides lse_strides_of(const Argument& argument) {
  const int64_t* s = argument.stride;
  return argument.rank == 3 ? Strides{s[0], s[2], s[1]} : Strides{0, s[1], s[0]};
}

namespace {

Tensor new_tensor(const Argument& like, int64_t rank, const int64_t* sizes, int32_t dtype) {
  int64_t strides[8];
  int64_t running = 1;
  for (int64_t i = rank - 1; i >= 0; --i) {
    strides[i] = running;
    running *= std::max<int64_t>(sizes[i], 1);
  }
  const int32_t device_type = like.device.kind == Device::kCuda ? aoti_torch_device_type_cuda()
                                                                : aoti_torch_device_type_cpu();
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(rank, sizes, strides, dtype, device_type,
                                                         like.device.ordinal, &handle));
  Tensor tensor(handle);
  if (emulating()) Argument(like.op, "new tensor", tensor).data();
  return tensor;
}

}  // namespace

Tensor empty_tensor(const Argument& like, std::initializer_list<int64_t> sizes, int32_t dtype) {
  return new_tensor(like, static_cast<int64_t>(sizes.size()), sizes.begin(), dtype);
}

Tensor empty_like(const Argument& like) {
  return new_tensor(like, like.rank, like.size, like.dtype);
}

int32_t torch_dtype(DType dtype) {
  return dtype == DType::kFloat32   ? aoti_torch_dtype_float32()
         : dtype == DType::kFloat16 ? aoti_torch_dtype_float16()
                                    : aoti_torch_dtype_bfloat16();
}

Context context_of(const Argument& argument) {
  Context context;
  context.device = argument.device;
  if (context.device.kind == Device::kCuda) {
    context.stream = current_cuda_stream(context.device.ordinal);
    return context;
  }
  uint32_t threads = 1;
  STABLE_TORCH_ERROR_CODE_CHECK(torch_get_num_threads(&threads));
  context.parallel_for = torch_parallel;
  context.num_threads = static_cast<int>(threads);
  return context;
}

}  // namespace fa4::torch_ops
