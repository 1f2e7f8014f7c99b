// Where an element of dq's float32 accumulator lies: the one function that the main kernel of the
// backward, the kernel that rounds the result, and tests share.
//
// SM90. The accumulator of a block of query rows consists of slices of 64 rows and 64 columns,
// 16 KiB each. A warpgroup adds one slice from the accumulator fragment of wgmma, each thread 16
// bytes at a time: registers 4 j .. 4 j + 3 of thread t are the floats from 4 (128 j + t) on. So a
// warp adds 512 bytes that lie together, and nothing is exchanged between threads.
//
// SM100. The accumulator consists of slices of 32 rows and all columns. A warp of the main kernel has
// a row per lane, and sends its columns, or a part of them, through shared memory to the copy engine,
// which adds what lies together: 16 bytes of each of the 32 rows, then the next 16 bytes of each, so
// that a store of the warp to shared memory fills 512 bytes.
#pragma once

#include <cstdint>

#include "flash_attn4/core/types.h"

namespace fa4 {

struct DqLayoutSm90 {
  static constexpr int kSliceRows = 64;
  static constexpr int kSliceColumns = 64;
  static constexpr int kSliceFloats = kSliceRows * kSliceColumns;
  // What lies together in 16 bytes, row by row: 2 columns of a row and of the 8th row after it.
  static constexpr int kVectorRows = 2;
  static constexpr int kVectorRowStep = 8;
  static constexpr int kVectorColumns = 2;

  /// Slices of a block lie row of slices after row of slices.
  FA4_HD static constexpr int slices(int block_m, int columns) {
    return block_m / kSliceRows * (columns / kSliceColumns);
  }
  FA4_HD static constexpr int slice(int row, int column, int columns) {
    return row / kSliceRows * (columns / kSliceColumns) + column / kSliceColumns;
  }

  /// Float of register `i` of thread `thread` of a warpgroup in its slice.
  FA4_HD static constexpr int fragment_offset(int thread, int i) {
    return 4 * (128 * (i / 4) + thread) + i % 4;
  }

  /// Float of an element in the accumulator of its block.
  FA4_HD static constexpr int offset(int row, int column, int columns) {
    const int r = row % kSliceRows, c = column % kSliceColumns;
    const int thread = 32 * (r / 16) + 4 * (r % 8) + c % 8 / 2;
    const int i = 4 * (c / 8) + 2 * (r % 16 / 8) + c % 2;
    return slice(row, column, columns) * kSliceFloats + fragment_offset(thread, i);
  }
};

struct DqLayoutSm100 {
  static constexpr int kSliceRows = 32;
  // What lies together in 16 bytes: 4 columns of a row.
  static constexpr int kVectorRows = 1;
  static constexpr int kVectorRowStep = 1;
  static constexpr int kVectorColumns = 4;

  /// Float of columns `column` to `column` + 3, column a multiple of 4, of row `row` in their slice.
  FA4_HD static constexpr int vector_offset(int row, int column) {
    return 4 * (column / 4 * kSliceRows + row);
  }

  /// Float of an element in the accumulator of its block.
  FA4_HD static constexpr int offset(int row, int column, int columns) {
    return row / kSliceRows * (kSliceRows * columns) + vector_offset(row % kSliceRows, column) +
           column % 4;
  }
};

}  // namespace fa4
