// Conversion of operands to fp32, for the instruction set that the including file is compiled for.
// Everything has internal linkage: each kernel file gets its own copy.
#pragma once

#include "csrc/cpu/isa/vec.h"
#include "csrc/emulator/tensor/kernels.h"

namespace fa4::emulator {
namespace {

using cpu::HVec8;
using cpu::load;
using cpu::store;
using cpu::UVec8;
using cpu::Vec8;

template <Half kType>
FA4_INLINE Vec8 to_floats(HVec8 halves) {
  return kType == Half::kF16 ? cpu::f16_to_f32(halves) : cpu::bf16_to_f32(halves);
}

/// Transposes 8 x 8 elements: interleaving lines i and i + 4 three times over.
FA4_INLINE void transpose(HVec8 (&lines)[8]) {
#pragma GCC unroll 3
  for (int pass = 0; pass < 3; ++pass) {
    HVec8 next[8];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      next[2 * i] = __builtin_shufflevector(lines[i], lines[i + 4], 0, 8, 1, 9, 2, 10, 3, 11);
      next[2 * i + 1] = __builtin_shufflevector(lines[i], lines[i + 4], 4, 12, 5, 13, 6, 14, 7, 15);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) lines[i] = next[i];
  }
}

/// Calls visit(k, row, halves) with eight rows of each k.
template <OperandMajor kMajor, class Visit>
FA4_INLINE void for_each_eight_rows(const OperandUnits& units, const uint8_t* shared, Visit visit) {
  for (int matrix = 0; matrix < 2 * units.groups; ++matrix) {
    const uint32_t* unit = units.unit + 8 * matrix;
    HVec8 lines[8];
#pragma GCC unroll 8
    for (int line = 0; line < 8; ++line) lines[line] = load<HVec8>(shared + unit[line]);
    if constexpr (kMajor == OperandMajor::kK) transpose(lines);
#pragma GCC unroll 8
    for (int line = 0; line < 8; ++line) visit(matrix % 2 * 8 + line, matrix / 2 * 8, lines[line]);
  }
}

template <Half kType>
FA4_INLINE void read_units_as(const OperandUnits& units, const uint8_t* shared, float* to,
                              size_t stride) {
  const auto convert = [=](int k, int row, HVec8 halves) {
    store(to + k * stride + row, to_floats<kType>(halves));
  };
  if (units.major == OperandMajor::kK) {
    for_each_eight_rows<OperandMajor::kK>(units, shared, convert);
  } else {
    for_each_eight_rows<OperandMajor::kMN>(units, shared, convert);
  }
}

void read_units(const OperandUnits& units, const uint8_t* shared, Half type, float* to,
                size_t stride) {
  if (type == Half::kF16) {
    read_units_as<Half::kF16>(units, shared, to, stride);
  } else {
    read_units_as<Half::kBF16>(units, shared, to, stride);
  }
}

void copy_units(const OperandUnits& units, const uint8_t* shared, uint16_t* to) {
  const int rows = 8 * units.groups;
  const auto copy = [=](int k, int row, HVec8 halves) { store(to + k * rows + row, halves); };
  if (units.major == OperandMajor::kK) {
    for_each_eight_rows<OperandMajor::kK>(units, shared, copy);
  } else {
    for_each_eight_rows<OperandMajor::kMN>(units, shared, copy);
  }
}

FA4_INLINE bool any(HVec8 mask) {
  typedef uint64_t Words __attribute__((vector_size(16)));
  const Words words = (Words)mask;
  return (words[0] | words[1]) != 0;
}

int find_in_units(const OperandUnits& units, const uint8_t* shared, uint16_t pattern) {
  const HVec8 wanted = HVec8{} + pattern;
  for (int first = 0; first < 16 * units.groups; first += 8) {
    HVec8 found{};
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i)
      found |= (HVec8)(load<HVec8>(shared + units.unit[first + i]) == wanted);
    if (!any(found)) continue;
    for (int i = first;; ++i) {
      if (any((HVec8)(load<HVec8>(shared + units.unit[i]) == wanted))) return i;
    }
  }
  return -1;
}

/// Eight cells of two elements each: the low halves, the high halves.
template <Half kType>
FA4_INLINE void split(UVec8 cells, float* low, float* high) {
  if constexpr (kType == Half::kF16) {
    store(low, cpu::f16_to_f32(__builtin_convertvector(cells & 0xffffu, HVec8)));
    store(high, cpu::f16_to_f32(__builtin_convertvector(cells >> 16, HVec8)));
  } else {
    store(low, cells << 16);
    store(high, cells & 0xffff0000u);
  }
}

template <Half kType>
FA4_INLINE void read_cells_as(const uint32_t* cells, size_t column_cells, int rows, float* to,
                              size_t stride) {
  for (int column = 0; column < kK / 2; ++column) {
    float* low = to + 2 * column * stride;
    for (int row = 0; row < rows; row += 8)
      split<kType>(load<UVec8>(cells + column * column_cells + row), low + row, low + stride + row);
  }
}

void read_cells(const uint32_t* cells, size_t column_cells, int rows, Half type, float* to,
                size_t stride) {
  if (type == Half::kF16) {
    read_cells_as<Half::kF16>(cells, column_cells, rows, to, stride);
  } else {
    read_cells_as<Half::kBF16>(cells, column_cells, rows, to, stride);
  }
}

constexpr int kFragmentRows = 16;  // of a warp's share of wgmma

/// Plane p has rows 8 (p % 2) on and k from 8 (p / 2) on: lane 4 r + q holds row r and k = 2 q,
/// 2 q + 1.
template <Half kType>
FA4_INLINE void read_planes_as(const uint32_t* const* planes, float* to) {
  for (int p = 0; p < 4; ++p) {
    const uint32_t* lanes = planes[p];
    float* first = to + p / 2 * 8 * kFragmentRows + p % 2 * 8;
    for (int q = 0; q < 4; ++q) {
      const UVec8 rows = {lanes[q],      lanes[q + 4],  lanes[q + 8],  lanes[q + 12],
                          lanes[q + 16], lanes[q + 20], lanes[q + 24], lanes[q + 28]};
      float* low = first + 2 * q * kFragmentRows;
      split<kType>(rows, low, low + kFragmentRows);
    }
  }
}

void read_planes(const uint32_t* const* planes, Half type, float* to) {
  if (type == Half::kF16) {
    read_planes_as<Half::kF16>(planes, to);
  } else {
    read_planes_as<Half::kBF16>(planes, to);
  }
}

}  // namespace
}  // namespace fa4::emulator
