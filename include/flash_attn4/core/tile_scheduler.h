// Which tile comes when: the (batch, head, tile) triples of a call as a function of a linear index,
// and packed sequences as a search in cu_seqlens.
//
//     one tile per block   order.at(block)
//     persistent           order.at(i) for i = block, block + blocks, ... below order.count()
//     dynamic              order.at(value of a shared counter)
//     packed               the static order with tiles = varlen_slots(...), batch = 1; its tiles
//                          are slots
//
// The linear index is all a block needs: no table, no prepare kernel, no host that knows lengths.
#pragma once

#include <cstdint>

#include "flash_attn4/core/mask.h"
#include "flash_attn4/core/types.h"

namespace fa4 {

struct Tile {
  int32_t batch;
  int32_t head;
  int32_t tile;  // index of the tile in its sequence; packed: a slot, see varlen_tile
};

/// Order of the tiles of a call. (batch, head) pairs form groups, the last one maybe smaller.
/// Groups follow each other; in a group all heads pass with one tile before any passes with the
/// next. The default, group = 1, is the static order: the tiles of a head, then those of the next.
///
/// Turning: where tiles get longer with their index, every group passes them against the direction
/// of the group before it, and the last group from long to short. Lengths then never jump, so
/// persistent blocks that take every n-th tile get nearly equal work: within 4 % of the mean on 132
/// blocks with two or more groups of 256 tiles or more, where one direction alone leaves up to 30 %
/// (tests/core).
///
/// 32 bits, because a division of 64 is a long routine on a GPU: a call has at most kMaxTiles.
struct TileOrder {
  int32_t tiles = 0;  // per (batch, head)
  int32_t heads = 0;
  int32_t batch = 0;
  int32_t group = 1;  // (batch, head) pairs per group, see heads_per_group; at most all of them
  bool descending = false;  // last tile first; turning: in the last group
  bool turning = false;

  static constexpr int64_t kMaxTiles = int64_t{1} << 30;

  FA4_HD constexpr int32_t count() const { return tiles * heads * batch; }

  /// The tile at position `linear`, [0, count()).
  FA4_HD constexpr Tile at(int32_t linear) const {
    const int32_t index = linear / (group * tiles);
    const int32_t first_pair = index * group;
    const int32_t in_group = linear - first_pair * tiles;
    const int32_t pairs = min_of(group, heads * batch - first_pair);
    const int32_t tile = in_group / pairs;
    const int32_t pair = first_pair + in_group - tile * pairs;
    const int32_t of_batch = pair / heads;
    const bool turned = turning && ((heads * batch - 1) / group - index) % 2 != 0;
    return {of_batch, pair - of_batch * heads, descending != turned ? tiles - 1 - tile : tile};
  }
};

/// Query heads per group such that the keys and values of a group stay in the L2 cache while its
/// query tiles pass: the largest power of two of KV heads within the budget, at least one, times
/// the query heads that share a KV head.
///   kv_heads           KV heads of the call, all sequences together: there is no larger group
///   query_heads_per_kv query heads per KV head
///   kv_head_bytes      keys and values of one head: seqlen_k * (head_dim + head_dim_v) * element
FA4_HD constexpr int64_t heads_per_group(int64_t kv_heads, int64_t query_heads_per_kv,
                                         int64_t kv_head_bytes, int64_t budget_bytes) {
  int64_t group = 1;
  while (group < kv_heads && 2 * group * kv_head_bytes <= budget_bytes) group *= 2;
  return group * query_heads_per_kv;
}

/// Order of query tiles of sequences that are equally long. Under a window tiles differ in length:
/// groups turn, and the last one ends with the shortest so that no block begins a long one last.
/// With a right end (causal) the last rows see the most keys, with a left end alone the first rows
/// do. There are two groups at least, because one alone has nobody to make up for its last round.
/// Without a window all tiles are equal: static.
FA4_HD constexpr TileOrder query_tile_order(int32_t tiles, int32_t heads, int32_t batch,
                                            int32_t group, Window window) {
  const int32_t half = ceil_div(heads * batch, 2);
  return {tiles,
          heads,
          batch,
          window.bounded() ? clamp_to(group, 1, max_of(half, 1)) : 1,
          window.right != Window::kUnbounded,
          window.bounded()};
}

// Packed sequences. The slots of sequence b begin at cu_seqlens[b] / tile_rows + b (rounded down)
// and end where those of b + 1 begin: never fewer than its ceil(length / tile_rows) tiles, at most
// one more, which is idle. Exact counts would need a sum over the lengths before the first answer;
// slots need a binary search in cu_seqlens, and their number follows from the capacities.

/// Slots of a packed tensor: the size of a grid, known without reading device memory.
///   total_rows   rows of the packed tensor, at least cu_seqlens[batch]
FA4_HD constexpr int64_t varlen_slots(int64_t total_rows, int64_t batch, int64_t tile_rows) {
  return total_rows / tile_rows + batch;
}

struct VarlenTile {
  int32_t batch;
  int32_t tile;  // idle unless int64_t{tile} * tile_rows < SeqSpan::length of the sequence
};

/// The tile of slot `slot`, [0, varlen_slots(...)). cu_seqlens starts at 0 and does not decrease.
/// Slots past those of the last sequence count as its idle tiles.
FA4_HD constexpr VarlenTile varlen_tile(int32_t slot, const int32_t* cu_seqlens, int32_t batch,
                                        int32_t tile_rows) {
  int32_t low = 0;  // the sequence is in [low, high)
  int32_t high = batch;
  while (high - low > 1) {
    const int32_t middle = low + (high - low) / 2;
    if (cu_seqlens[middle] / tile_rows + middle <= slot) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return {low, slot - (cu_seqlens[low] / tile_rows + low)};
}

}  // namespace fa4
