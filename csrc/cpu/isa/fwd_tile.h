// Forward of one tile: the FA4 recurrence with query rows in the lanes of the vectors.
//
//     for every block of 64 keys that a row of the tile sees
//         K, V -> float32 rows
//         for every panel of two vectors of query rows
//             S^T = K Q^T                              [key][lane]
//             reference' = next_reference(reference, max over keys)
//             P^T = 2^(S^T * scale - reference')       in place
//             sum = sum * factor + sum over keys of P  factor = 2^(reference - reference')
//             O^T = O^T * factor + V^T P^T             [head dim][lane]
//
// The product of a block is accumulated from zero and added to O in the end. That keeps long sums
// accurate and makes the rescaling one fused multiply-add on a value that is loaded and stored
// anyway. So the slack of core/softmax.h saves no work here; it is kept because the CPU is the
// model of the GPU kernels.
#pragma once

#include "csrc/cpu/isa/matmul.h"
#include "csrc/cpu/isa/rows.h"
#include "csrc/cpu/isa/score.h"
#include "flash_attn4/core/softmax.h"

namespace fa4::cpu {
namespace {

/// What a block is for the panel at hand.
struct FwdBlock {
  const Tile& tile;
  Workspace& work;
  int32_t key;         // first key of the block
  int keys;            // keys of the block that exist
  bool masked;         // not every row of the tile sees every key
  uint64_t set_aside;  // keys whose values are in work.dout, see set_aside_values
  KeyPrefetch& prefetch;
};
static_assert(kBlockKeys <= 64, "a bit per key");

template <int kVecs>
FA4_INLINE void fwd_scores(const FwdBlock& block, const PanelKeys& keys, const float* q_t) {
  for (int n = keys.first; n < keys.last; n += kGroup) {
    block.prefetch.step();
    Accumulators<kVecs> acc;
    multiply<kVecs, kRowFloats, 1, kPanel>(block.work.k + n * kRowFloats, q_t, block.tile.head_dim,
                                           acc);
#pragma GCC unroll 8
    for (int i = 0; i < kGroup; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < kVecs; ++v) {
        store(block.work.scores + (n + i) * kPanel + v * kLanes, acc[i][v]);
      }
    }
  }
}

/// Masks and caps the scores of one vector of rows and returns their maximum in log2 units.
template <bool kMasked, bool kCapped>
FA4_INLINE Vec fwd_maximum(const FwdBlock& block, const PanelKeys& keys, float* scores, int row) {
  const ScoreFunction& score = block.tile.score;
  Vec maximum = splat(kMinusInfinity);
  const VisibleLanes visible(block.tile, row);
  for (int n = keys.first; n < keys.last; ++n) {
    Vec value = load<Vec>(scores + n * kPanel);
    if (kCapped) value = tanh(value * score.cap_in);
    if (kMasked) value = visible.select(block.key + n, value, kMinusInfinity);
    if (kMasked || kCapped) store(scores + n * kPanel, value);
    maximum = larger(value, maximum);
  }
  return maximum * (kCapped ? score.cap_out_log2 : score.scale_log2);
}

FA4_INLINE Vec fwd_maximum(const FwdBlock& block, const PanelKeys& keys, float* scores, int row) {
  if (block.tile.score.cap_out_log2 != 0.0f) {
    return keys.masked ? fwd_maximum<true, true>(block, keys, scores, row)
                       : fwd_maximum<false, true>(block, keys, scores, row);
  }
  return keys.masked ? fwd_maximum<true, false>(block, keys, scores, row)
                     : fwd_maximum<false, false>(block, keys, scores, row);
}

/// One vector of rows: scores become weights, reference and sum advance. Returns the factor for O.
FA4_INLINE Vec fwd_softmax(const FwdBlock& block, const PanelKeys& keys, float* scores, int row) {
  const ScoreFunction& score = block.tile.score;
  const Vec maximum = fwd_maximum(block, keys, scores, row);
  float* reference_at = block.work.reference + row;
  float* sum_at = block.work.sum + row;
  const Vec old_reference = load<Vec>(reference_at);
  // next_reference and usable_reference of core/softmax.h, lane by lane.
  const Vec reference = maximum - old_reference > kRescaleSlackLog2 ? maximum : old_reference;
  const Vec usable = reference == kMinusInfinity ? Vec{} : reference;
  const Vec factor = exp2(old_reference - usable);
  const float scale = score.cap_out_log2 != 0.0f ? score.cap_out_log2 : score.scale_log2;
  Vec sum{};
  for (int n = keys.first; n < keys.last; ++n) {
    const Vec weight = exp2(load<Vec>(scores + n * kPanel) * scale - usable);
    store(scores + n * kPanel, weight);
    sum += weight;
  }
  store(reference_at, reference);
  store(sum_at, load<Vec>(sum_at) * factor + sum);
  return factor;
}

/// O^T = O^T * factor + V^T P^T, or V^T P^T when nothing is accumulated yet, of the panel that
/// starts at `row`.
template <int kVecs>
FA4_INLINE void fwd_accumulate(const FwdBlock& block, const PanelKeys& keys,
                               const Vec (&factor)[kVecs], int row) {
  bool& started = block.work.started[row / kPanel];
  const float* weights = block.work.scores + keys.first * kPanel;
  const float* values = block.work.v + keys.first * kRowFloats;
  float* out_t = block.work.out_t + row * block.tile.head_dim_v;
  for (int n = 0; n < block.tile.head_dim_v; n += kGroup) {
    Accumulators<kVecs> acc;
    multiply<kVecs, 1, kRowFloats, kPanel>(values + n, weights, keys.last - keys.first, acc);
#pragma GCC unroll 8
    for (int i = 0; i < kGroup; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < kVecs; ++v) {
        float* at = out_t + (n + i) * kPanel + v * kLanes;
        store(at, started ? load<Vec>(at) * factor[v] + acc[i][v] : acc[i][v]);
      }
    }
  }
  started = true;
}

/// A weight of 0 hides a key only if its values are finite. In blocks where some rows do not see
/// some keys, rows of V with NaN or infinity are therefore replaced by zeros, kept in work.dout,
/// and added for the rows that see them. Returns their bits.
FA4_INLINE uint64_t set_aside_values(Workspace& work, int keys, int dim) {
  uint64_t set_aside = 0;
  for (int n = 0; n < keys; ++n) {
    float* row = work.v + n * kRowFloats;
    if (is_finite_row(row, dim)) continue;
    set_aside |= uint64_t{1} << n;
    __builtin_memcpy(work.dout + n * kRowFloats, row, dim * sizeof(float));
    zero_row(row, dim);
  }
  return set_aside;
}

/// O^T += V^T P^T over the keys set aside, for one vector of rows.
FA4_INLINE void add_set_aside(const FwdBlock& block, const float* weights, int row, float* out_t) {
  const VisibleLanes visible(block.tile, row);
  for (uint64_t rest = block.set_aside; rest != 0; rest &= rest - 1) {
    const int n = __builtin_ctzll(rest);
    const float* values = block.work.dout + n * kRowFloats;
    const Vec weight = load<Vec>(weights + n * kPanel);
    for (int i = 0; i < block.tile.head_dim_v; ++i) {
      const Vec product = visible.select(block.key + n, weight * values[i], 0.0f);
      store(out_t + i * kPanel, load<Vec>(out_t + i * kPanel) + product);
    }
  }
}

/// One panel of query rows against the block.
template <int kVecs>
FA4_INLINE void fwd_panel(const FwdBlock& block, int row) {
  Workspace& work = block.work;
  const PanelKeys keys = panel_keys(block.tile, block.masked, row, block.key, block.keys);
  if (keys.empty()) return;
  fwd_scores<kVecs>(block, keys, work.q_t + row * block.tile.head_dim);
  Vec factor[kVecs];
  for (int v = 0; v < kVecs; ++v) {
    factor[v] = fwd_softmax(block, keys, work.scores + v * kLanes, row + v * kLanes);
  }
  fwd_accumulate<kVecs>(block, keys, factor, row);
  if (block.set_aside == 0) return;
  float* out_t = work.out_t + row * block.tile.head_dim_v;
  for (int v = 0; v < kVecs; ++v) {
    add_set_aside(block, work.scores + v * kLanes, row + v * kLanes, out_t + v * kLanes);
  }
}

/// Adds the sink to a finished row of the tile and stores its lse. Returns the factor for its O.
FA4_INLINE float finish_row(const FwdTile& tile, Workspace& work, int row, const PackedRow& at) {
  float reference = work.reference[row];
  float sum = work.sum[row];
  float factor = reference == kMinusInfinity ? 0.0f : 1.0f;
  if (tile.sink_log2 != nullptr) factor *= add_sink(reference, sum, tile.sink_log2[at.head]);
  tile.lse.data[at.offset(tile.lse)] = row_lse(reference, sum);
  return factor * final_scale(sum);
}

/// Stores out and lse of one vector of rows.
FA4_INLINE void fwd_store(const FwdTile& tile, Workspace& work, int row) {
  float factor[kLanes] = {};
  const PackedRow start(tile.first_row + row, tile.group);
  const int rows = min_of(kLanes, tile.rows - row);
  PackedRow at = start;
  for (int i = 0; i < rows; ++i, at.next()) factor[i] = finish_row(tile, work, row + i, at);
  const float* panel = work.out_t + row / kPanel * kPanel * tile.head_dim_v + row % kPanel;
  transpose_out<kPanel>(panel, load<Vec>(factor), tile.head_dim_v, work.q);
  at = start;
  for (int i = 0; i < rows; ++i, at.next()) {
    store_row(tile.out_dtype, work.q + i * kRowFloats, 1.0f,
              element(tile.out_dtype, tile.out.data, at.offset(tile.out)), tile.head_dim_v);
  }
}

void fwd_tile(const FwdTile& tile, Workspace& work) {
  const int rows = round_up(tile.rows, kLanes);
  load_panels(tile, tile.q, tile.head_dim, work.q, work.q_t);
  for (int row = 0; row < rows; row += kLanes) {
    store(work.reference + row, splat(kMinusInfinity));
    store(work.sum + row, Vec{});
    work.started[row / kPanel] = false;
  }
  for (int32_t index = tile.blocks.first; index < tile.blocks.last; ++index) {
    const int32_t key = index * kBlockKeys;
    const int keys = min_of(kBlockKeys, tile.seqlen_k - key);
    load_key_rows(tile.dtype, tile.k, key, keys, tile.head_dim, work.k);
    load_key_rows(tile.dtype, tile.v, key, keys, tile.head_dim_v, work.v);
    KeyPrefetch prefetch(tile, key + keys, keys / kGroup * ceil_div(rows, kPanel));
    const bool masked = tile.blocks.needs_mask(index);
    const uint64_t set_aside = masked ? set_aside_values(work, keys, tile.head_dim_v) : 0;
    const FwdBlock block{tile, work, key, keys, masked, set_aside, prefetch};
    for (int row = 0; row < rows; row += kPanel) {
      if (rows - row > kLanes) {
        fwd_panel<2>(block, row);
      } else {
        fwd_panel<1>(block, row);
      }
    }
  }
  for (int row = 0; row < rows; row += kLanes) fwd_store(tile, work, row);
}

}  // namespace
}  // namespace fa4::cpu
