// The backward's side of query_tile.h: from the position of a tile of keys to everything its roles
// ask about it.
//
// Rows of all sequences of a head lie behind each other in the accumulators and row statistics of
// the backward (lse2, delta, dq), each sequence's padded to whole blocks of block_m rows: `acc_row`
// is where they begin. Packed sequences begin where their first row, plus block_m for each sequence
// before, falls into a block; so the place needs no sum over lengths.
#pragma once

#include <cstdint>

#include "flash_attn4/core/kv_range.h"
#include "flash_attn4/core/mask.h"
#include "flash_attn4/core/seqlen.h"
#include "flash_attn4/core/tile_scheduler.h"
#include "flash_attn4/core/types.h"

namespace fa4 {

/// Rows per head of the accumulators.
FA4_HD constexpr int64_t accumulator_rows(int64_t batch, int64_t seqlen_q, int64_t total_q,
                                          bool packed, int64_t block_m) {
  return packed ? (total_q / block_m + batch) * block_m
                : batch * ceil_div(seqlen_q, block_m) * block_m;
}

/// First row of a sequence in the accumulators; first_row is that in the packed tensor.
FA4_HD constexpr int32_t accumulator_row(int32_t sequence, int32_t seqlen_q, int32_t first_row,
                                         bool packed, int32_t block_m) {
  return packed ? (first_row / block_m + sequence) * block_m
                : sequence * ceil_div(seqlen_q, block_m) * block_m;
}

/// One tile of keys of one KV head. 64 bytes.
struct KeyTile {
  int32_t batch;  // batch coordinate of the tensors: 0 when they are packed
  int32_t kv_head;
  int32_t first_key;  // in its sequence
  int32_t k_row;      // row of the tensors at which the sequence's keys start
  int32_t k_length;   // keys that count
  int32_t k_owned;    // rows from k_row on that this sequence's tiles have to write
  int32_t q_row;      // row of the tensors at which the sequence's queries start
  int32_t q_length;   // queries that count
  int32_t acc_row;    // row of the accumulators at which they start
  BlockRange blocks;  // of queries, in blocks of block_m
  int32_t valid;      // 0: there is no such tile
  // Query q sees the keys [q + first_shift, q + last_shift) that the sequence has.
  int32_t first_shift;
  int32_t last_shift;

  /// Queries that see key `key`, in 32 bits. Empty for a key that does not count.
  FA4_HD constexpr Interval queries_of(int32_t key) const {
    if (key >= k_length) return {0, 0};
    return {max_of(key - last_shift + 1, 0), min_of(key - first_shift + 1, q_length)};
  }
  /// Whether no row of the tile must be written.
  FA4_HD constexpr bool idle() const { return first_key >= k_owned; }
};
static_assert(sizeof(KeyTile) == 64);

/// What all tiles of a call have in common. The host fills it in.
struct KeyTiling {
  const int32_t* cu_seqlens_q = nullptr;
  const int32_t* cu_seqlens_k = nullptr;
  const int32_t* seqused_q = nullptr;
  const int32_t* seqused_k = nullptr;
  int32_t batch = 0;
  int32_t seqlen_q = 0;  // dense: rows per sequence
  int32_t seqlen_k = 0;
  int32_t total_k = 0;  // packed: rows of the whole tensor
  int32_t block_m = 0;  // queries per block
  int32_t block_n = 0;  // keys per tile
  Window window{Window::kUnbounded, Window::kUnbounded};
  TileOrder order;  // heads: KV heads
};

/// The tile at position `linear` of the order; valid = 0 past its end. All in 32 bits, as in
/// query_tile.
FA4_HD constexpr KeyTile key_tile(const KeyTiling& t, int32_t linear) {
  KeyTile tile{};
  if (linear >= t.order.count()) return tile;
  const bool packed = t.cu_seqlens_k != nullptr;
  const Tile place = t.order.at(linear);
  int32_t sequence = place.batch;
  int32_t index = place.tile;
  if (packed) {
    const VarlenTile found = varlen_tile(place.tile, t.cu_seqlens_k, t.batch, t.block_n);
    sequence = found.batch;
    index = found.tile;
  }
  const SeqSpan q = seq_span(sequence, t.seqlen_q, t.cu_seqlens_q, t.seqused_q);
  const SeqSpan k = seq_span(sequence, t.seqlen_k, t.cu_seqlens_k, t.seqused_k);
  tile.valid = 1;
  tile.batch = packed ? 0 : sequence;
  tile.kv_head = place.head;
  tile.first_key = index * t.block_n;
  tile.k_row = static_cast<int32_t>(k.first_row);
  tile.k_length = k.length;
  tile.q_row = static_cast<int32_t>(q.first_row);
  tile.q_length = q.length;
  tile.acc_row = accumulator_row(sequence, t.seqlen_q, tile.q_row, packed, t.block_m);
  // Rows of a packed tensor that belong to no sequence go to the last one.
  tile.k_owned = t.seqlen_k;
  if (packed) {
    const int32_t end = sequence + 1 == t.batch ? t.total_k : t.cu_seqlens_k[sequence + 1];
    tile.k_owned = end - tile.k_row;
  }
  // Beyond +-kFar a shift makes no difference, and query + shift stays within 32 bits.
  constexpr int64_t kFar = int64_t{1} << 30;
  const int64_t shift = int64_t{tile.k_length} - tile.q_length;
  const int64_t first = t.window.left == Window::kUnbounded ? -kFar : shift - t.window.left;
  const int64_t last = t.window.right == Window::kUnbounded ? kFar : shift + t.window.right + 1;
  tile.first_shift = static_cast<int32_t>(clamp_to(first, -kFar, kFar));
  tile.last_shift = static_cast<int32_t>(clamp_to(last, -kFar, kFar));
  tile.blocks = q_range(tile.first_key, tile.first_key + t.block_n, t.block_m, tile.q_length,
                        tile.k_length, t.window);
  return tile;
}

}  // namespace fa4
