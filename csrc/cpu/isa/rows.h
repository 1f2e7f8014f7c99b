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

/// `count` rows from `at` on as float32 rows at distance kRowFloats, and zero rows up to a whole
/// vector of rows. Advances `at`.
void load_query_rows(const Tile& tile, const QueryRows& src, PackedRow& at, int count, int dim,
                     float* dst) {
  for (int i = 0; i < count; ++i, at.next()) {
    load_row(tile.dtype, element(tile.dtype, src.data, at.offset(src)), dst + i * kRowFloats, dim);
  }
  for (int i = count; i < round_up(count, kLanes); ++i) zero_row(dst + i * kRowFloats, dim);
}

/// Offset of a key in elements.
FA4_INLINE int64_t key_offset(const KeyRows& rows, int64_t key) {
  if (rows.pages == nullptr) return key * rows.row_stride;
  return rows.pages[key / rows.page_size] * rows.page_stride +
         key % rows.page_size * rows.row_stride;
}

/// Keys [first, first + count) as float32 rows, and zero rows up to a whole group.
void load_key_rows(DType dtype, const KeyRows& src, int32_t first, int count, int dim, float* dst) {
  for (int i = 0; i < count; ++i) {
    load_row(dtype, element(dtype, src.data, key_offset(src, first + i)), dst + i * kRowFloats,
             dim);
  }
  for (int i = count; i < round_up(count, kGroup); ++i) zero_row(dst + i * kRowFloats, dim);
}

/// Whether a float32 row holds NaN or infinity.
FA4_INLINE bool is_finite_row(const float* row, int count) {
  IVec8 bad{};
  for (int i = 0; i < count; i += 8) bad |= (load<IVec8>(row + i) & 0x7f800000) == 0x7f800000;
  int any = 0;
  for (int i = 0; i < 8; ++i) any |= bad[i];
  return any == 0;
}

FA4_INLINE void prefetch_row(DType dtype, const KeyRows& rows, int32_t key, int dim) {
  const char* row = static_cast<const char*>(element(dtype, rows.data, key_offset(rows, key)));
  const int bytes = dim * (dtype == DType::kFloat32 ? 4 : 2);
  for (int i = 0; i < bytes; i += 64) __builtin_prefetch(row + i);
}

/// Brings the keys of the next block into the cache, a few rows per step, while the present block
/// is computed: rows are short pieces far apart, which the machine's own prefetchers do not follow.
class KeyPrefetch {
 public:
  FA4_INLINE KeyPrefetch(const Tile& tile, int32_t next_key, int steps)
      : tile_(tile),
        key_(next_key),
        end_(min_of(next_key + kBlockKeys, tile.seqlen_k)),
        per_step_(kBlockKeys / max_of(steps, 1) + 1) {}

  FA4_INLINE void step() {
    for (int i = 0; i < per_step_ && key_ < end_; ++i, ++key_) {
      prefetch_row(tile_.dtype, tile_.k, key_, tile_.head_dim);
      prefetch_row(tile_.dtype, tile_.v, key_, tile_.head_dim_v);
    }
  }

 private:
  const Tile& tile_;
  int32_t key_;
  int32_t end_;
  int per_step_;
};

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
/// `rows` is scratch for kLanes rows.
void load_panels(const Tile& tile, const QueryRows& src, int dim, float* rows, float* panels) {
  PackedRow at(tile.first_row, tile.group);
  for (int row = 0; row < tile.rows; row += kLanes) {
    const int count = min_of(kLanes, tile.rows - row);
    load_query_rows(tile, src, at, count, dim, rows);
    transpose_in<kPanel>(rows, dim, panels + row / kPanel * kPanel * dim + row % kPanel);
  }
}

}  // namespace
}  // namespace fa4::cpu
