// Forward of a tile of few query rows, as in decoding: with the rows in the lanes most lanes would
// idle, so here the head dimension is in the lanes. K and V are converted on the way into the
// registers and read once, row by row, in the order in which they lie in memory.
#pragma once

#include "csrc/cpu/isa/fwd_tile.h"

namespace fa4::cpu {
namespace {

constexpr int kKeysAtOnce = 4;  // independent sums per row, and rows of V per pass over O
constexpr int kKeysAhead = 16;

FA4_INLINE float sum_lanes(Vec8 value) {
  typedef float Vec4 __attribute__((vector_size(16)));
  const Vec4 four = __builtin_shufflevector(value, value, 0, 1, 2, 3) +
                    __builtin_shufflevector(value, value, 4, 5, 6, 7);
  return (four[0] + four[2]) + (four[1] + four[3]);
}

/// Addresses of kKeys keys from `key` on.
template <DType kType, int kKeys>
struct KeyAddresses {
  const void* at[kKeys];

  FA4_INLINE KeyAddresses(const KeyRows& rows, int32_t key) {
#pragma GCC unroll 4
    for (int n = 0; n < kKeys; ++n) at[n] = element(kType, rows.data, key_offset(rows, key + n));
  }
};

/// scores[row][n] of kRows rows against kKeys keys.
template <DType kType, int kRows, int kKeys>
FA4_INLINE void few_scores(const float* q, const KeyRows& k, int32_t key, int dim, float* scores) {
  const KeyAddresses<kType, kKeys> keys(k, key);
  Vec8 acc[kRows][kKeys] = {};
  for (int i = 0; i < dim; i += 8) {
#pragma GCC unroll 4
    for (int n = 0; n < kKeys; ++n) {
      const Vec8 row = load8<kType>(keys.at[n], i);
#pragma GCC unroll 2
      for (int r = 0; r < kRows; ++r) acc[r][n] += row * load<Vec8>(q + r * kRowFloats + i);
    }
  }
#pragma GCC unroll 2
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int n = 0; n < kKeys; ++n) scores[r * kBlockKeys + n] = sum_lanes(acc[r][n]);
  }
}

/// out[row] += sum of weights[row][n] * values[n] over kKeys keys, for kRows rows.
template <DType kType, int kRows, int kKeys>
FA4_INLINE void few_accumulate(const float* weights, const KeyRows& v, int32_t key, int dim,
                               float* out) {
  const KeyAddresses<kType, kKeys> values(v, key);
  float weight[kRows][kKeys];
#pragma GCC unroll 2
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int n = 0; n < kKeys; ++n) weight[r][n] = weights[r * kBlockKeys + n];
  }
  for (int i = 0; i < dim; i += 8) {
    Vec8 acc[kRows];
#pragma GCC unroll 2
    for (int r = 0; r < kRows; ++r) acc[r] = load<Vec8>(out + r * kRowFloats + i);
#pragma GCC unroll 4
    for (int n = 0; n < kKeys; ++n) {
      const Vec8 value = load8<kType>(values.at[n], i);
#pragma GCC unroll 2
      for (int r = 0; r < kRows; ++r) acc[r] += value * weight[r][n];
    }
#pragma GCC unroll 2
    for (int r = 0; r < kRows; ++r) store(out + r * kRowFloats + i, acc[r]);
  }
}

/// Asks for the rows kKeysAhead further on.
FA4_INLINE void few_prefetch(DType dtype, const KeyRows& rows, int32_t key, int32_t seqlen,
                             int dim) {
  const int32_t end = min_of(key + kKeysAhead + kKeysAtOnce, seqlen);
  for (int32_t ahead = key + kKeysAhead; ahead < end; ++ahead)
    prefetch_row(dtype, rows, ahead, dim);
}

/// Scores of one row become weights, and 0 up to a whole vector; reference and sum advance. Returns
/// the factor for O.
FA4_INLINE float few_softmax(const ScoreFunction& score, float* scores, int count, float& reference,
                             float& sum) {
  const bool capped = score.cap_out_log2 != 0.0f;
  const float scale = capped ? score.cap_out_log2 : score.scale_log2;
  const int end = round_up(count, kLanes);
  for (int n = count; n < end; ++n) scores[n] = kMinusInfinity;
  Vec maximum = splat(kMinusInfinity);
  for (int n = 0; n < end; n += kLanes) {
    Vec value = load<Vec>(scores + n);
    if (capped) {
      const Vec cap = tanh(value * score.cap_in);
      value = value == kMinusInfinity ? value : cap;
      store(scores + n, value);
    }
    maximum = larger(value, maximum);
  }
  float block_max = kMinusInfinity;
  for (int lane = 0; lane < kLanes; ++lane) block_max = max_of(block_max, maximum[lane]);
  const float next = next_reference(reference, block_max * scale, kRescaleSlackLog2);
  const float usable = usable_reference(next);
  const float factor = exp2(splat(reference - usable))[0];
  Vec total{};
  for (int n = 0; n < end; n += kLanes) {
    const Vec weight = exp2(load<Vec>(scores + n) * scale - usable);
    store(scores + n, weight);
    total += weight;
  }
  float block_sum = 0.0f;
  for (int lane = 0; lane < kLanes; ++lane) block_sum += total[lane];
  reference = next;
  sum = sum * factor + block_sum;
  return factor;
}

/// Rows [row, row + kRows) of the tile against the keys [first, last) of one block, which all of
/// them see.
template <DType kType, int kRows>
FA4_INLINE void few_keys(const FwdTile& tile, Workspace& work, int row, int32_t first,
                         int32_t last) {
  const int count = last - first;
  const float* q = work.q + row * kRowFloats;
  int n = 0;
  for (; n + kKeysAtOnce <= count; n += kKeysAtOnce) {
    few_prefetch(kType, tile.k, first + n, tile.seqlen_k, tile.head_dim);
    few_scores<kType, kRows, kKeysAtOnce>(q, tile.k, first + n, tile.head_dim, work.scores + n);
  }
  for (; n < count; ++n)
    few_scores<kType, kRows, 1>(q, tile.k, first + n, tile.head_dim, work.scores + n);
  float factor[kRows];
  for (int r = 0; r < kRows; ++r) {
    factor[r] = few_softmax(tile.score, work.scores + r * kBlockKeys, count,
                            work.reference[row + r], work.sum[row + r]);
    zero_row(work.grads + r * kRowFloats, tile.head_dim_v);
  }
  for (n = 0; n + kKeysAtOnce <= count; n += kKeysAtOnce) {
    few_prefetch(kType, tile.v, first + n, tile.seqlen_k, tile.head_dim_v);
    few_accumulate<kType, kRows, kKeysAtOnce>(work.scores + n, tile.v, first + n, tile.head_dim_v,
                                              work.grads);
  }
  for (; n < count; ++n) {
    few_accumulate<kType, kRows, 1>(work.scores + n, tile.v, first + n, tile.head_dim_v,
                                    work.grads);
  }
  for (int r = 0; r < kRows; ++r) {
    float* out = work.out_t + (row + r) * kRowFloats;
    const float* block = work.grads + r * kRowFloats;
    for (int i = 0; i < tile.head_dim_v; i += 8) {
      store(out + i, load<Vec8>(out + i) * factor[r] + load<Vec8>(block + i));
    }
  }
}

/// A block for all rows. In blocks that need a mask every row visits just the keys it sees.
template <DType kType>
FA4_INLINE void few_block(const FwdTile& tile, Workspace& work, int32_t index) {
  const int32_t first = index * kBlockKeys;
  const int32_t last = min_of(first + kBlockKeys, tile.seqlen_k);
  int row = 0;
  if (tile.blocks.needs_mask(index)) {
    for (; row < tile.rows; ++row) {
      const int32_t row_first = max_of(first, tile.key_first[row]);
      const int32_t row_last = min_of(last, tile.key_last[row]);
      if (row_first < row_last) few_keys<kType, 1>(tile, work, row, row_first, row_last);
    }
    return;
  }
  for (; row + 1 < tile.rows; row += 2) few_keys<kType, 2>(tile, work, row, first, last);
  if (row < tile.rows) few_keys<kType, 1>(tile, work, row, first, last);
}

void fwd_few_rows(const FwdTile& tile, Workspace& work) {
  PackedRow at(tile.first_row, tile.group);
  load_query_rows(tile, tile.q, at, tile.rows, tile.head_dim, work.q);
  for (int row = 0; row < tile.rows; ++row) {
    work.reference[row] = kMinusInfinity;
    work.sum[row] = 0.0f;
    zero_row(work.out_t + row * kRowFloats, tile.head_dim_v);
  }
  with_type(tile.dtype, [&](auto type) {
    for (int32_t index = tile.blocks.first; index < tile.blocks.last; ++index) {
      few_block<type.value>(tile, work, index);
    }
  });
  at = PackedRow(tile.first_row, tile.group);
  for (int row = 0; row < tile.rows; ++row, at.next()) {
    const float factor = finish_row(tile, work, row, at);
    float* out = work.out_t + row * kRowFloats;
    if (factor == 0.0f) zero_row(out, tile.head_dim_v);
    store_row(tile.out_dtype, out, factor,
              element(tile.out_dtype, tile.out.data, at.offset(tile.out)), tile.head_dim_v);
  }
}

}  // namespace
}  // namespace fa4::cpu
