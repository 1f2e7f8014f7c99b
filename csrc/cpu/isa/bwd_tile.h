// Backward of one tile of query rows against blocks of keys.
//
//     S^T = K Q^T             P^T = 2^(S^T * scale - lse)     both [key][row]
//     dP^T = V dO^T           dS^T = P^T * (dP^T - D)        D = sum over dims of dO * O, less dlse
//     dV += P^T dO            dK += dS^T Q                    [key][head dim], float32 accumulators
//     dQ^T += K^T dS^T                                        [head dim][row], in scratch
//
// Every product of a (tile, block) pair is summed from zero and then added to its accumulator.
// Whoever visits the pairs in the same order gets the same bits, however the pairs are spread over
// threads.
#pragma once

#include "csrc/cpu/isa/matmul.h"
#include "csrc/cpu/isa/rows.h"
#include "csrc/cpu/isa/score.h"
#include "flash_attn4/core/softmax.h"

namespace fa4::cpu {
namespace {

struct BwdBlock {
  const BwdTile& tile;
  Workspace& work;
  int32_t key;  // first key of the block
  int keys;     // keys of the block that exist
  bool masked;  // not every row of the tile sees every key
  KeyPrefetch& prefetch;
};

/// dst[n][row] = sum over k of rows[n][k] * panel[k][row], for one panel of query rows.
template <int kVecs>
FA4_INLINE void key_products(const BwdBlock& block, const PanelKeys& keys, const float* rows,
                             const float* panel, int dim, float* dst) {
  for (int n = keys.first; n < keys.last; n += kGroup) {
    block.prefetch.step();
    Accumulators<kVecs> acc;
    multiply<kVecs, kRowFloats, 1, kPanel>(rows + n * kRowFloats, panel, dim, acc);
#pragma GCC unroll 8
    for (int i = 0; i < kGroup; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < kVecs; ++v) store(dst + (n + i) * kTileRows + v * kLanes, acc[i][v]);
    }
  }
}

/// One vector of rows: S^T becomes P^T and dP^T becomes dS^T, in place.
template <bool kMasked, bool kCapped>
FA4_INLINE void bwd_softmax(const BwdBlock& block, const PanelKeys& keys, int row) {
  const ScoreFunction& score = block.tile.score;
  const Vec lse_log2 = load<Vec>(block.work.reference + row);
  const Vec delta = load<Vec>(block.work.sum + row);
  const VisibleLanes visible(block.tile, row);
  for (int n = keys.first; n < keys.last; ++n) {
    float* p_at = block.work.scores + n * kTileRows + row;
    float* ds_at = block.work.grads + n * kTileRows + row;
    Vec s = load<Vec>(p_at);
    if (kCapped) s = tanh(s * score.cap_in);
    Vec p = exp2(s * (kCapped ? score.cap_out_log2 : score.scale_log2) - lse_log2);
    Vec ds = p * (load<Vec>(ds_at) - delta);
    if (kCapped) ds *= 1.0f - s * s;
    if (kMasked) p = visible.select(block.key + n, p, 0.0f);
    if (kMasked) ds = visible.select(block.key + n, ds, 0.0f);
    store(p_at, p);
    store(ds_at, ds);
  }
}

FA4_INLINE void bwd_softmax(const BwdBlock& block, const PanelKeys& keys, int row) {
  if (block.tile.score.cap_out_log2 != 0.0f) {
    keys.masked ? bwd_softmax<true, true>(block, keys, row)
                : bwd_softmax<false, true>(block, keys, row);
  } else {
    keys.masked ? bwd_softmax<true, false>(block, keys, row)
                : bwd_softmax<false, false>(block, keys, row);
  }
}

/// P^T = dS^T = 0 for the keys [first, last) and one vector of rows.
FA4_INLINE void clear_weights(Workspace& work, int first, int last, int row) {
  for (int n = first; n < last; ++n) {
    store(work.scores + n * kTileRows + row, Vec{});
    store(work.grads + n * kTileRows + row, Vec{});
  }
}

/// P^T and dS^T of one panel of query rows; 0 for the keys of the block that no row of the panel
/// sees.
template <int kVecs>
FA4_INLINE void bwd_weights(const BwdBlock& block, const PanelKeys& keys, int row) {
  const BwdTile& tile = block.tile;
  Workspace& work = block.work;
  key_products<kVecs>(block, keys, work.k, work.q_t + row * tile.head_dim, tile.head_dim,
                      work.scores + row);
  key_products<kVecs>(block, keys, work.v, work.dout_t + row * tile.head_dim_v, tile.head_dim_v,
                      work.grads + row);
  for (int v = 0; v < kVecs; ++v) {
    bwd_softmax(block, keys, row + v * kLanes);
    clear_weights(work, 0, keys.first, row + v * kLanes);
    clear_weights(work, keys.last, block.keys, row + v * kLanes);
  }
}

/// dQ^T += K^T dS^T for one panel of query rows.
template <int kVecs>
FA4_INLINE void bwd_queries(const BwdBlock& block, const PanelKeys& keys, int row) {
  bool& started = block.work.started[row / kPanel];
  const float* weights = block.work.grads + keys.first * kTileRows + row;
  const float* k = block.work.k + keys.first * kRowFloats;
  float* dq_t = block.work.out_t + row * block.tile.head_dim;
  for (int n = 0; n < block.tile.head_dim; n += kGroup) {
    Accumulators<kVecs> acc;
    multiply<kVecs, 1, kRowFloats, kTileRows>(k + n, weights, keys.last - keys.first, acc);
#pragma GCC unroll 8
    for (int i = 0; i < kGroup; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < kVecs; ++v) {
        float* at = dq_t + (n + i) * kPanel + v * kLanes;
        store(at, started ? load<Vec>(at) + acc[i][v] : acc[i][v]);
      }
    }
  }
  started = true;
}

/// One of dV += P^T dO and dK += dS^T Q.
struct KeyProduct {
  const float* weights;  // [key][kTileRows]
  const float* rows;     // [row][kRowFloats]
  int dim;
  float* dst;
  int64_t stride;
};

/// Columns from `column` on of dst[key][dim] += sum over the rows [first, last) of
/// weights[key][row] * rows[row][dim]. Keys past the last are computed, and not stored.
template <int kVecs>
FA4_INLINE void bwd_columns(const KeyProduct& product, int keys, Interval rows, int column) {
  const float* x = product.rows + rows.first * kRowFloats + column;
  for (int n = 0; n < keys; n += kGroup) {
    Accumulators<kVecs> acc;
    const float* weights = product.weights + n * kTileRows + rows.first;
    multiply<kVecs, kTileRows, 1, kRowFloats>(weights, x, rows.last - rows.first, acc);
#pragma GCC unroll 8
    for (int i = 0; i < kGroup; ++i) {
      if (n + i >= keys) break;
#pragma GCC unroll 2
      for (int v = 0; v < kVecs; ++v) {
        float* at = product.dst + (n + i) * product.stride + column + v * kLanes;
        store(at, load<Vec>(at) + acc[i][v]);
      }
    }
  }
}

void bwd_keys(const KeyProduct& product, int keys, Interval rows) {
  int column = 0;
  for (; column + kLanes < product.dim; column += kPanel)
    bwd_columns<2>(product, keys, rows, column);
  if (column < product.dim) bwd_columns<1>(product, keys, rows, column);
}

/// lse in log2 units and D of the tile's rows. Rows without keys and rows that do not exist get an
/// lse of +inf, which makes all their weights 0, and rows of zeros, because 0 * NaN is not 0.
void load_statistics(const BwdTile& tile, Workspace& work) {
  PackedRow at(tile.first_row, tile.group);
  for (int i = 0; i < tile.rows; ++i, at.next()) {
    const float lse = tile.lse.data[at.offset(tile.lse)];
    const float dlse = tile.dlse.data == nullptr ? 0.0f : tile.dlse.data[at.offset(tile.dlse)];
    if (lse == kMinusInfinity) {
      work.reference[i] = -kMinusInfinity;
      work.sum[i] = 0.0f;
      zero_row(work.q + i * kRowFloats, tile.head_dim);
      zero_row(work.dout + i * kRowFloats, tile.head_dim_v);
      continue;
    }
    const void* out = element(tile.dtype, tile.out.data, at.offset(tile.out));
    work.reference[i] = lse * kLog2e;
    work.sum[i] = dot_row(tile.dtype, work.dout + i * kRowFloats, out, tile.head_dim_v) - dlse;
  }
  for (int i = tile.rows; i < round_up(tile.rows, kLanes); ++i) {
    work.reference[i] = -kMinusInfinity;
    work.sum[i] = 0.0f;
  }
}

void bwd_store_queries(const BwdTile& tile, Workspace& work) {
  PackedRow at(tile.first_row, tile.group);
  for (int row = 0; row < tile.rows; row += kLanes) {
    const float* panel = work.out_t + row / kPanel * kPanel * tile.head_dim + row % kPanel;
    const float scale = work.started[row / kPanel] ? tile.softmax_scale : 0.0f;
    transpose_out<kPanel>(panel, splat(scale), tile.head_dim, work.q);
    for (int i = 0; i < min_of(kLanes, tile.rows - row); ++i, at.next()) {
      store_row(tile.dtype, work.q + i * kRowFloats, 1.0f,
                element(tile.dtype, tile.dq.data, at.offset(tile.dq)), tile.head_dim);
    }
  }
}

/// Zeros for rows that hold NaN or infinity. Where such a row is seen, its P or dS is NaN already
/// and stays NaN in the product with zero; where it is not seen, the weight 0 would not hide it.
void clear_nonfinite_rows(float* rows, int count, int dim) {
  for (int i = 0; i < count; ++i) {
    if (!is_finite_row(rows + i * kRowFloats, dim)) zero_row(rows + i * kRowFloats, dim);
  }
}

/// Calls body(row, keys, vectors) for every panel that sees something of the block; vectors is a
/// compile-time 1 or 2.
template <class Body>
FA4_INLINE void for_each_panel(const BwdBlock& block, Body body) {
  for (int row = 0; row < block.tile.rows; row += kPanel) {
    const PanelKeys keys = panel_keys(block.tile, block.masked, row, block.key, block.keys);
    if (keys.empty()) continue;
    if (block.tile.rows - row > kLanes) {
      body(row, keys, std::integral_constant<int, 2>{});
    } else {
      body(row, keys, std::integral_constant<int, 1>{});
    }
  }
}

void bwd_block(const BwdBlock& block) {
  const BwdTile& tile = block.tile;
  Workspace& work = block.work;
  load_key_rows(tile.dtype, tile.k, block.key, block.keys, tile.head_dim, work.k);
  load_key_rows(tile.dtype, tile.v, block.key, block.keys, tile.head_dim_v, work.v);
  Interval seen{tile.rows, 0};  // rows of the panels that see something: they are neighbours
  for_each_panel(block, [&](int row, const PanelKeys& keys, auto vectors) {
    bwd_weights<vectors.value>(block, keys, row);
    seen = {min_of(seen.first, row), min_of(row + kPanel, tile.rows)};
  });
  if (block.masked) clear_nonfinite_rows(work.k, block.keys, tile.head_dim);
  if (tile.dq.data != nullptr) {
    for_each_panel(block, [&](int row, const PanelKeys& keys, auto vectors) {
      bwd_queries<vectors.value>(block, keys, row);
    });
  }
  if (tile.dk == nullptr || seen.empty()) return;
  const int64_t key = block.key - tile.accumulator_key;
  bwd_keys(
      {work.scores, work.dout, tile.head_dim_v, tile.dv + key * tile.dv_stride, tile.dv_stride},
      block.keys, seen);
  bwd_keys({work.grads, work.q, tile.head_dim, tile.dk + key * tile.dk_stride, tile.dk_stride},
           block.keys, seen);
}

void transpose_queries(const float* src, int rows, int dim, float* dst) {
  for (int row = 0; row < rows; row += kLanes) {
    float* panel = dst + row / kPanel * kPanel * dim + row % kPanel;
    transpose_in<kPanel>(src + row * kRowFloats, dim, panel);
  }
}

/// Q and dO of the tile, as rows and as panels.
void load_queries(const BwdTile& tile, Workspace& work) {
  PackedRow at(tile.first_row, tile.group);
  load_query_rows(tile, tile.q, at, tile.rows, tile.head_dim, work.q);
  at = PackedRow(tile.first_row, tile.group);
  load_query_rows(tile, tile.dout, at, tile.rows, tile.head_dim_v, work.dout);
  load_statistics(tile, work);
  transpose_queries(work.q, tile.rows, tile.head_dim, work.q_t);
  transpose_queries(work.dout, tile.rows, tile.head_dim_v, work.dout_t);
  clear_nonfinite_rows(work.q, tile.rows, tile.head_dim);
}

void bwd_tile(const BwdTile& tile, Workspace& work) {
  for (int row = 0; row < tile.rows; row += kPanel) work.started[row / kPanel] = false;
  if (tile.blocks.size() > 0) load_queries(tile, work);
  for (int32_t index = tile.blocks.first; index < tile.blocks.last; ++index) {
    const int32_t key = index * kBlockKeys;
    const int keys = min_of(kBlockKeys, tile.seqlen_k - key);
    KeyPrefetch prefetch(tile, key + keys, 2 * (keys / kGroup) * ceil_div(tile.rows, kPanel));
    bwd_block({tile, work, key, keys, tile.blocks.needs_mask(index), prefetch});
  }
  if (tile.dq.data != nullptr) bwd_store_queries(tile, work);
}

}  // namespace
}  // namespace fa4::cpu
