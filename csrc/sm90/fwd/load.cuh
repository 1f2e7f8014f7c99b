// SM90 forward, load role: keeps queries, keys and values coming.
#pragma once

#include "csrc/sm90/fwd/block.cuh"
#include "flash_attn4/device/ptx/tma.cuh"

namespace fa4::sm90 {

/// Where a block of keys or values lies.
struct Rows {
  int first;
  int head;
  int batch;
};

template <FwdConfig kConfig>
struct Loader {
  using Plan = FwdPlan<kConfig>;

  const Block<kConfig>& b;
  Ring<Plan::kQStages> q_ring{kWriter};
  Ring<Plan::kKvStages> k_ring{kWriter};
  Ring<Plan::kKvStages> v_ring{kWriter};

  FA4_D void load_q(const QueryTile& tile) {
    b.template wait<kQEmpty>(q_ring.stage, q_ring.parity);
    const uint32_t bar = b.template bar<kQFull>(q_ring.stage);
    // A box holds queries * packed_heads rows, which may be fewer than the tile's.
    const int rows = b.args.tiling.queries * b.args.packed_heads;
    ptx::mbarrier_arrive_expect_tx(bar, 2 * Plan::kHeadDim * rows);
#pragma unroll
    for (int chunk = 0; chunk < Plan::kChunks; ++chunk) {
      ptx::tensor_load_5d(b.q(q_ring.stage) + chunk * Plan::q_layout().chunk_bytes(), &b.args.q,
                          bar, 64 * chunk, 0, tile.q_row + tile.first_query, tile.head, tile.batch);
    }
    q_ring.advance();
  }

  FA4_D void load_k(const Rows& rows) {
    b.template wait<kKEmpty>(k_ring.stage, k_ring.parity);
    load_block(b.k(k_ring.stage), &b.args.k, b.template bar<kKFull>(k_ring.stage), rows);
    k_ring.advance();
  }

  FA4_D void load_v(const Rows& rows) {
    b.template wait<kVEmpty>(v_ring.stage, v_ring.parity);
    load_block(b.v(v_ring.stage), &b.args.v, b.template bar<kVFull>(v_ring.stage), rows);
    v_ring.advance();
  }

 private:
  FA4_D void load_block(uint32_t to, const TensorMap* map, uint32_t bar, const Rows& rows) {
    ptx::mbarrier_arrive_expect_tx(bar, Plan::kKvBytes);
#pragma unroll
    for (int chunk = 0; chunk < Plan::kChunks; ++chunk) {
      ptx::tensor_load_4d(to + chunk * Plan::kv_layout().chunk_bytes(), map, bar, 64 * chunk,
                          rows.first, rows.head, rows.batch);
    }
  }
};

/// One thread. Blocks come from the last to the first. The list of blocks goes on over tile
/// borders, and the values of a block come behind the keys of the next, which is when they are
/// needed.
/// Waits: tile_full q_empty k_empty v_empty.  Signals: tile_empty q_full k_full v_full.
template <FwdConfig kConfig>
FA4_D void role_load(const Block<kConfig>& b) {
  using Plan = FwdPlan<kConfig>;
  Loader<kConfig> loader{b};
  Ring<Plan::kTileStages> ring(kReader);
  Rows before{};  // whose values are to come
  bool any = false;
  for (;; ring.advance()) {
    b.template wait<kTileFull>(ring.stage, ring.parity);
    const QueryTile tile = b.tile(ring.stage);
    b.template arrive<kTileEmpty>(ring.stage);
    if (tile.valid == 0) break;
    loader.load_q(tile);
    for (int block = tile.blocks.last - 1; block >= tile.blocks.first; --block) {
      const Rows rows{tile.k_row + block * Plan::kBlockN, tile.kv_head, tile.batch};
      loader.load_k(rows);
      if (any) loader.load_v(before);
      any = true;
      before = rows;
    }
  }
  if (any) loader.load_v(before);
}

}  // namespace fa4::sm90
