// What tensor_core.cpp and the kernels compiled once per instruction set say to each other. Nothing
// inline lives here, because an inline function that the AVX-512 file emits could be the one the
// linker keeps for every file.
#pragma once

#include <cstddef>
#include <cstdint>

#include "csrc/emulator/tensor/tensor_core.h"

namespace fa4::emulator {

constexpr int kMaxOperandRows = 256;

/// Where the operand of a descriptor lies: it consists of units of 16 bytes, eight of which are a
/// core matrix of 8 (M or N) x 8 (K) elements. unit[(2 * group + half) * 8 + line] is the
/// shared-memory address of a unit of rows 8 group .. 8 group + 7 and k = 8 half .. 8 half + 7:
/// K-major, line counts rows and the unit runs along k; MN-major, line counts k and the unit runs
/// along the rows.
struct OperandUnits {
  int groups;
  OperandMajor major;
  uint32_t unit[kMaxOperandRows / 8 * 16];
};

struct TensorKernels {
  const char* name;
  void (*multiply)(const Product& product, Accumulate mode);
  void (*multiply_fragments)(float* const* d, const float* a, const float* b, int n,
                             bool accumulate, Accumulate mode);
  void (*read_units)(const OperandUnits& units, const uint8_t* shared, Half type, float* to,
                     size_t stride);
  void (*copy_units)(const OperandUnits& units, const uint8_t* shared, uint16_t* to);
  /// Index of the first unit that holds the 16-bit element, -1 if none does.
  int (*find_in_units)(const OperandUnits& units, const uint8_t* shared, uint16_t pattern);
  void (*read_tmem_operand)(const uint32_t* cells, size_t column_cells, int rows, Half type,
                            float* to, size_t stride);
  void (*read_fragment_operand)(const uint32_t* const* planes, Half type, float* to);
};

extern const TensorKernels kTensorKernelsBaseline;
#if defined(__x86_64__)
extern const TensorKernels kTensorKernelsAvx2;
extern const TensorKernels kTensorKernelsAvx512;
#endif

}  // namespace fa4::emulator
