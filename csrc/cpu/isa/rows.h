// Rows between memory (any element type, any strides) and float32 scratch.
#pragma once

#include "csrc/cpu/isa/vec.h"
#include "csrc/cpu/kernels.h"

namespace fa4::cpu {
namespace {

FA4_INLINE int round_up(int value, int multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

FA4_INLINE const void* element(DType dtype, const void* base, int64_t index) {
  return static_cast<const char*>(base) + index * (dtype == DType::kFloat32 ? 4 : 2);
}

FA4_INLINE void* element(DType dtype, void* base, int64_t index) {
  return static_cast<char*>(base) + index * (dtype == DType::kFloat32 ? 4 : 2);
}

/// Converts one row of count elements; zeros up to the next multiple of 16 let vectors run over the
/// end.
void load_row(DType dtype, const void* src, float* dst, int count) {
  with_type(dtype, [&](auto type) {
    for (int i = 0; i < count; i += 8) store(dst + i, load8<type.value>(src, i));
  });
  if (count % 16 != 0) store(dst + count, Vec8{});
}

FA4_INLINE void zero_row(float* dst, int count) {
  for (int i = 0; i < round_up(count, 16); i += 8) store(dst + i, Vec8{});
}

void store_row(DType dtype, const float* src, float scale, void* dst, int count) {
  with_type(dtype, [&](auto type) {
    for (int i = 0; i < count; i += 8) store8<type.value>(dst, i, load<Vec8>(src + i) * scale);
  });
}

/// Sum over i of a[i] * b[i], a in float32.
float dot_row(DType dtype, const float* a, const void* b, int count) {
  Vec8 sum{};
  with_type(dtype, [&](auto type) {
    for (int i = 0; i < count; i += 8) sum += load<Vec8>(a + i) * load8<type.value>(b, i);
  });
  float total = 0.0f;
  for (int i = 0; i < 8; ++i) total += sum[i];
  return total;
}

/// Walks the packed rows of a tile: row and head without a division per row.
struct PackedRow {
  int64_t row;
  int head;
  int group;

  FA4_INLINE PackedRow(int64_t packed, int group_size)
      : row(packed / group_size), head(static_cast<int>(packed % group_size)), group(group_size) {}
  FA4_INLINE void next() {
    if (++head == group) head = 0, ++row;
  }
  template <class Rows>
  FA4_INLINE int64_t offset(const Rows& rows) const {
    return row * rows.row_stride + head * rows.head_stride;
  }
};

/// The rows of a tile as float32 rows at distance kRowFloats, and zero rows up to a whole vector of
/// rows.
void load_query_rows(const Tile& tile, const QueryRows& src, int dim, float* dst) {
  PackedRow at(tile.first_row, tile.group);
  for (int i = 0; i < tile.rows; ++i, at.next()) {
    load_row(tile.dtype, element(tile.dtype, src.data, at.offset(src)), dst + i * kRowFloats, dim);
  }
  for (int i = tile.rows; i < round_up(tile.rows, kLanes); ++i) zero_row(dst + i * kRowFloats, dim);
}

/// Keys [first, first + count) as float32 rows, and zero rows up to a whole group.
void load_key_rows(DType dtype, const KeyRows& src, int32_t first, int count, int dim, float* dst) {
  for (int i = 0; i < count; ++i) {
    int64_t offset = (first + i) * src.row_stride;
    if (src.pages != nullptr) {
      const int64_t key = first + i;
      offset =
          src.pages[key / src.page_size] * src.page_stride + key % src.page_size * src.row_stride;
    }
    load_row(dtype, element(dtype, src.data, offset), dst + i * kRowFloats, dim);
  }
  for (int i = count; i < round_up(count, kGroup); ++i) zero_row(dst + i * kRowFloats, dim);
}

/// dst[dim][lane] = src[lane][dim] for one vector of rows; dst rows are kStride floats apart.
template <int kStride>
FA4_INLINE void transpose_in(const float* src, int dim, float* dst) {
  for (int column = 0; column < dim; column += kLanes) {
    Vec block[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) block[i] = load<Vec>(src + i * kRowFloats + column);
    transpose(block);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      if (column + i < dim) store(dst + (column + i) * kStride, block[i]);
    }
  }
}

/// dst[lane][dim] = src[dim][lane] * factor[lane], the inverse; exactly 0 where the factor is 0, so
/// that nothing that a row without keys has accumulated shows.
template <int kStride>
FA4_INLINE void transpose_out(const float* src, Vec factor, int dim, float* dst) {
  for (int column = 0; column < dim; column += kLanes) {
    Vec block[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      const Vec value = column + i < dim ? load<Vec>(src + (column + i) * kStride) : Vec{};
      block[i] = factor == 0.0f ? Vec{} : value * factor;
    }
    transpose(block);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) store(dst + i * kRowFloats + column, block[i]);
  }
}

/// Query rows of a tile with the rows in the lanes: panels of [dim][kPanel], one after another.
void transpose_queries(const float* src, int rows, int dim, float* dst) {
  for (int row = 0; row < rows; row += kLanes) {
    float* panel = dst + row / kPanel * kPanel * dim + row % kPanel;
    transpose_in<kPanel>(src + row * kRowFloats, dim, panel);
  }
}

}  // namespace
}  // namespace fa4::cpu
