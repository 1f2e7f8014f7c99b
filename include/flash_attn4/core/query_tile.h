// From the position of a tile to everything its roles ask about it: which rows, which keys, which
// blocks.
//
// Packing: with grouped queries the `group` query heads of one KV head may share a tile. Row r of
// such a tile is query r / group of head r % group, so that few queries still fill it. Without
// packing group is 1 and the rows are queries of one head.
#pragma once

#include <cstdint>

#include "flash_attn4/core/kv_range.h"
#include "flash_attn4/core/mask.h"
#include "flash_attn4/core/seqlen.h"
#include "flash_attn4/core/tile_scheduler.h"
#include "flash_attn4/core/types.h"

namespace fa4 {

/// One tile of query rows. 64 bytes, so that a block can hand it from role to role.
struct QueryTile {
  int32_t batch;        // batch coordinate of the tensors: 0 when they are packed
  int32_t head;         // in units of the tiles: a query head, or a KV head when heads are packed
  int32_t kv_head;      // whose keys it sees
  int32_t first_query;  // in its sequence
  int32_t q_row;        // row of the tensor at which the sequence's queries start
  int32_t q_length;     // queries that count
  int32_t q_owned;      // rows from q_row on that this sequence's tiles have to write
  int32_t k_row;        // row of the tensor at which the sequence's keys start
  int32_t k_length;     // keys that count
  BlockRange blocks;    // of keys, in units of the tile's block size
  int32_t valid;        // 0: there is no such tile, the role is done
  // Query q sees the keys [q + first_shift, q + last_shift) that the sequence has.
  int32_t first_shift;
  int32_t last_shift;

  /// Keys that query `query` sees: visible_keys in 32 bits.
  FA4_HD constexpr Interval keys_of(int32_t query) const {
    return {max_of(query + first_shift, 0), min_of(query + last_shift, k_length)};
  }

  /// Whether no row of the tile must be written.
  FA4_HD constexpr bool idle() const { return first_query >= q_owned; }
};
static_assert(sizeof(QueryTile) == 64);

/// What all tiles of a call have in common. The host fills it in.
struct QueryTiling {
  const int32_t* cu_seqlens_q = nullptr;
  const int32_t* cu_seqlens_k = nullptr;
  const int32_t* seqused_q = nullptr;
  const int32_t* seqused_k = nullptr;
  int32_t batch = 0;
  int32_t seqlen_q = 0;  // dense: rows per sequence
  int32_t seqlen_k = 0;
  int32_t total_q = 0;       // packed: rows of the whole tensor
  int32_t heads_per_kv = 1;  // tile heads that share a KV head; 1 when heads are packed
  int32_t queries = 0;       // per tile
  int32_t block_n = 0;       // keys per block
  Window window{Window::kUnbounded, Window::kUnbounded};
  TileOrder order;
};

/// The tile at position `linear` of the order; valid = 0 past its end. All in 32 bits: an idle tile
/// begins at most a tile behind the last row, and launchers leave two tiles between that row and
/// 2^30, so first_query + queries is far from the end of int32, and so are its sums with shifts.
FA4_HD constexpr QueryTile query_tile(const QueryTiling& t, int32_t linear) {
  QueryTile tile{};
  if (linear >= t.order.count()) return tile;
  const Tile place = t.order.at(linear);
  int32_t sequence = place.batch;
  int32_t index = place.tile;
  if (t.cu_seqlens_q != nullptr) {
    const VarlenTile found = varlen_tile(place.tile, t.cu_seqlens_q, t.batch, t.queries);
    sequence = found.batch;
    index = found.tile;
  }
  const SeqSpan q = seq_span(sequence, t.seqlen_q, t.cu_seqlens_q, t.seqused_q);
  const SeqSpan k = seq_span(sequence, t.seqlen_k, t.cu_seqlens_k, t.seqused_k);
  tile.valid = 1;
  tile.batch = t.cu_seqlens_q != nullptr ? 0 : sequence;
  tile.head = place.head;
  tile.kv_head = place.head / t.heads_per_kv;
  tile.first_query = index * t.queries;
  tile.q_row = static_cast<int32_t>(q.first_row);
  tile.q_length = q.length;
  tile.k_row = static_cast<int32_t>(k.first_row);
  tile.k_length = k.length;
  // Rows of a packed tensor that belong to no sequence go to the last one.
  tile.q_owned = t.seqlen_q;
  if (t.cu_seqlens_q != nullptr) {
    const int32_t end = sequence + 1 == t.batch ? t.total_q : t.cu_seqlens_q[sequence + 1];
    tile.q_owned = end - tile.q_row;
  }
  // Beyond +-kFar a shift makes no difference, and query + shift stays within 32 bits.
  constexpr int64_t kFar = int64_t{1} << 30;
  const int64_t shift = int64_t{tile.k_length} - tile.q_length;
  const int64_t first = t.window.left == Window::kUnbounded ? -kFar : shift - t.window.left;
  const int64_t last = t.window.right == Window::kUnbounded ? kFar : shift + t.window.right + 1;
  tile.first_shift = static_cast<int32_t>(clamp_to(first, -kFar, kFar));
  tile.last_shift = static_cast<int32_t>(clamp_to(last, -kFar, kFar));
  tile.blocks = kv_range(tile.first_query, tile.first_query + t.queries, t.block_n, tile.q_length,
                         tile.k_length, t.window);
  return tile;
}

}  // namespace fa4
