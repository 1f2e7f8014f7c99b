// SM100 forward, load role: keeps queries, keys and values coming.
#pragma once

#include "csrc/sm100/fwd/block.cuh"
#include "flash_attn4/device/ptx/tma.cuh"

namespace fa4::sm100 {

template <FwdConfig kConfig>
struct Loader {
  using Plan = FwdPlan<kConfig>;

  const Block<kConfig>& b;
  int key_row = b.rank() * Plan::kKeyRows;  // of a step, the first of this CTA
  int value_column = b.rank() * Plan::kValueColumns;
  uint32_t q_parity = kWriter;
  Ring<Plan::kKStages> k_ring{kWriter};
  Ring<Plan::kVStages> v_ring{kWriter};

  /// Both halves of a tile.
  FA4_D void load_q(const QueryTile& tile) {
    // A box holds box_queries * packed_heads rows, which may be fewer than a half's.
    const int bytes = 2 * Plan::kHeadDim * b.args.box_queries * b.args.packed_heads;
#pragma unroll
    for (int half = 0; half < Plan::kHalves; ++half) {
      b.template wait<kQEmpty>(half, q_parity);
      const uint32_t bar = b.template signal_bar<kQFull>(half);
      const int row = tile.q_row + tile.first_query + half * b.args.box_queries;
      b.template announce<kQFull>(half, bytes);
#pragma unroll
      for (int column = 0; column < Plan::kHeadDim; column += Plan::kSpanColumns) {
        const uint32_t to = b.q(half) + Plan::q_layout().unswizzled_offset(0, column);
        load(to, &b.args.q, bar, column, 0, row, tile.head, tile.batch);
      }
    }
    q_parity ^= 1;
  }

  FA4_D void load_k(const QueryTile& tile, int row) {
    b.template wait<kKEmpty>(k_ring.stage, k_ring.parity);
    const uint32_t bar = b.template signal_bar<kKFull>(k_ring.stage);
    b.template announce<kKFull>(k_ring.stage, Plan::kKBytes);
#pragma unroll
    for (int column = 0; column < Plan::kHeadDim; column += Plan::kSpanColumns) {
      const uint32_t to = b.k(k_ring.stage) + Plan::k_layout().unswizzled_offset(0, column);
      load(to, &b.args.k, bar, column, row + key_row, tile.kv_head, tile.batch);
    }
    k_ring.advance();
  }

  FA4_D void load_v(const QueryTile& tile, int row) {
#pragma unroll
    for (int part = 0; part < Plan::kValueParts; ++part) {
      b.template wait<kVEmpty>(v_ring.stage, v_ring.parity);
      const uint32_t bar = b.template signal_bar<kVFull>(v_ring.stage);
      b.template announce<kVFull>(v_ring.stage, Plan::kVBytes);
#pragma unroll
      for (int column = 0; column < Plan::kValueColumns; column += Plan::kSpanColumns) {
        const uint32_t to = b.v(v_ring.stage) + Plan::v_layout().unswizzled_offset(0, column);
        load(to, &b.args.v, bar, value_column + column, row + part * Plan::kValueRows, tile.kv_head,
             tile.batch);
      }
      v_ring.advance();
    }
  }

  FA4_D static void load(uint32_t to, const TensorMap* map, uint32_t bar, int c0, int c1, int c2,
                         int c3) {
    if constexpr (Plan::kPair) {
      ptx::tensor_load_4d_pair(to, map, bar, c0, c1, c2, c3);
    } else {
      ptx::tensor_load_4d(to, map, bar, c0, c1, c2, c3);
    }
  }
  FA4_D static void load(uint32_t to, const TensorMap* map, uint32_t bar, int c0, int c1, int c2,
                         int c3, int c4) {
    if constexpr (Plan::kPair) {
      ptx::tensor_load_5d_pair(to, map, bar, c0, c1, c2, c3, c4);
    } else {
      ptx::tensor_load_5d(to, map, bar, c0, c1, c2, c3, c4);
    }
  }
};

/// One thread. Blocks come from the last to the first, everything in the order in which the products
/// ask for it.
/// Waits: tile_full q_empty k_empty v_empty.  Signals: tile_empty q_full k_full v_full.
template <FwdConfig kConfig>
FA4_D void role_load(const Block<kConfig>& b) {
  using Plan = FwdPlan<kConfig>;
  Loader<kConfig> loader{b};
  Ring<Plan::kTileStages> ring(kReader);
  for (;; ring.advance()) {
    b.template wait<kTileFull>(ring.stage, ring.parity);
    const QueryTile tile = b.tile(ring.stage);
    b.template arrive<kTileEmpty>(ring.stage);
    if (tile.valid == 0) return;
    for (int block = tile.blocks.last - 1; block >= tile.blocks.first; --block) {
      const int row = tile.k_row + block * Plan::kBlockN;
      loader.load_k(tile, row);
      if (block == tile.blocks.last - 1) loader.load_q(tile);
      loader.load_v(tile, row);
    }
  }
}

}  // namespace fa4::sm100
