// SM100 forward, store role: sends staged output on its way.
#pragma once

#include "csrc/sm100/fwd/block.cuh"
#include "flash_attn4/device/ptx/tma.cuh"

namespace fa4::sm100 {

/// One thread.
/// Waits: tile_full out_full.  Signals: tile_empty out_empty.
template <FwdConfig kConfig>
FA4_D void role_store(const Block<kConfig>& b) {
  using Plan = FwdPlan<kConfig>;
  Ring<Plan::kTileStages> ring(kReader);
  Ring<max_of(Plan::kOutStages, 1)> out_ring(kReader);
  for (;; ring.advance()) {
    b.template wait<kTileFull>(ring.stage, ring.parity);
    const QueryTile& tile = b.tile(ring.stage);
    if (tile.valid == 0) return;
    for (int half = 0; half < Plan::kHalves; ++half) {
      if (Plan::kOutStages == 0 || !b.args.tensor_store) break;  // rows left from registers
      const int query = tile.first_query + half * b.args.box_queries;
#pragma unroll 1
      for (int column = 0; column < Plan::kHeadDimV; column += Plan::kSpanColumns) {
        b.template wait<kOutFull>(out_ring.stage, out_ring.parity);
        ptx::tensor_store_5d(&b.args.out, b.address + b.out_offset(out_ring.stage), column, 0,
                             query, tile.head, tile.batch);
        ptx::bulk_commit_group();
        ptx::bulk_wait_group_read<0>();
        b.template arrive<kOutEmpty>(out_ring.stage);
        out_ring.advance();
      }
    }
    b.template arrive<kTileEmpty>(ring.stage);
  }
}

}  // namespace fa4::sm100
