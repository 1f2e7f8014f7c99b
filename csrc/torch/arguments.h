// Reading op arguments: tensor facts fetched once, checks that name argument, rule and value.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <string>

#include "csrc/dispatch/emulation.h"
#include "flash_attn4/flash_attn4.h"

// Headers of torch before 2.12 have this macro under its older name.
#ifndef STABLE_TORCH_ERROR_CODE_CHECK
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

namespace fa4::torch_ops {

using torch::stable::Tensor;

/// Throws what the Python layer turns into an exception type: "fa4::<op>: <ExceptionName>: <text>".
[[noreturn]] void raise(const char* op, Code code, const std::string& text);
/// A dtype as Python prints it: "bfloat16".
std::string dtype_text(int32_t dtype);
void raise_unless_ok(const char* op, const Status& status);

/// A tensor argument: its name for messages, and its facts.
struct Argument {
  Argument(const char* op, const char* name, const Tensor& tensor);

  const char* op;
  const char* name;
  const Tensor* tensor;
  int64_t rank;
  const int64_t* size;
  const int64_t* stride;
  int32_t dtype;  // torch's number
  Device device;
  bool device_known;  // cpu or cuda

  [[noreturn]] void fail(Code code, const std::string& text) const;
  void want_rank(int64_t wanted, const char* shape) const;
  void want_size(int64_t dim, int64_t wanted, const char* meaning) const;
  /// Last dimension contiguous; the other strides are free.
  void want_contiguous_last_dim() const;
  /// For tensors that are written: no two elements at one address by a stride of 0.
  void want_no_overlap() const;
  void want_int32() const;
  void want_float32() const;
  void want_same_device(const Argument& other) const;
  void want_same_dtype(const Argument& other) const;
  /// Element type of attention operands, or TypeError.
  DType float_dtype() const;

  /// The address of the first element. While emulating, the emulator learns that kernels may touch the
  /// tensor: from its first to its last element, as far as its storage goes.
  const void* data() const;
  void* mutable_data() const;

 private:
  void note(const void* base) const;
};

/// Lives as long as an op runs: an emulator forgets the memory of the op's tensors when it ends.
class MemoryScope {
 public:
  MemoryScope() = default;
  ~MemoryScope() {
    if (emulating()) forget_memory();
  }
  MemoryScope(const MemoryScope&) = delete;
  MemoryScope& operator=(const MemoryScope&) = delete;
};

/// "(2, 128, 8, 64)"
std::string shape_text(const Argument& argument);

/// View of a dense (batch, row, head, dim) or packed (row, head, dim) tensor.
Strides strides_of(const Argument& argument);
/// Strides of an lse: dense (batch, head, row) or packed (head, row).
Strides lse_strides_of(const Argument& argument);

/// A new tensor on the device of `like`, contiguous. Kernels may touch it.
Tensor empty_tensor(const Argument& like, std::initializer_list<int64_t> sizes, int32_t dtype);
/// ... and with the sizes and the type of `like`, too.
Tensor empty_like(const Argument& like);
int32_t torch_dtype(DType dtype);

/// Whether a call with this argument runs on a GPU, emulated ones included.
inline bool runs_on_gpu(const Argument& argument) {
  return argument.device.kind == Device::kCuda || emulating();
}

/// Where a call with this argument runs: torch's threads on the CPU, torch's current stream on a
/// GPU.
Context context_of(const Argument& argument);

}  // namespace fa4::torch_ops
