// SM90 backward, load role: keys and values once, then queries and dout of every step.
#pragma once

#include "csrc/sm90/bwd/block.cuh"
#include "flash_attn4/device/ptx/tma.cuh"

namespace fa4::sm90 {

template <class Plan>
FA4_D void load_tile(uint32_t to, TileLayout layout, const TensorMap* map, uint32_t bar, int row,
                     int head, int batch) {
#pragma unroll
  for (int column = 0; column < Plan::kHeadDim; column += 64) {
    ptx::tensor_load_4d(to + layout.unswizzled_offset(0, column), map, bar, column, row, head,
                        batch);
  }
}

/// One thread.
/// Waits: queries_empty.  Signals: kv_full queries_full.
template <BwdConfig kConfig>
FA4_D void role_load(const BwdBlock<kConfig>& b) {
  using Plan = BwdPlan<kConfig>;
  const KeyTile& tile = b.tile;
  Ring<Plan::kStages> ring(kWriter);
  BwdStep step = BwdStep::first(b);
  for (int i = 0; i < b.steps(); ++i, step.advance(b)) {
    const int row = tile.q_row + step.block * Plan::kBlockM;
    const int64_t acc_row = b.acc_row(step.head, step.block);

    b.template wait<kBwdQueriesEmpty>(ring.stage, ring.parity);
    const uint32_t bar = b.template bar<kBwdQueriesFull>(ring.stage);
    ptx::mbarrier_arrive_expect_tx(bar, Plan::kStepBytes);
    load_tile<Plan>(b.q(ring.stage), Plan::query_layout(), &b.args.q, bar, row, step.head,
                    tile.batch);
    ptx::bulk_load(shared_address(b.lse2(ring.stage)), b.args.lse2 + acc_row, Plan::kStatBytes,
                   bar);
    if (i == 0) {
      const uint32_t kv_bar = b.template bar<kBwdKvFull>(0);
      const int key_row = tile.k_row + tile.first_key;
      ptx::mbarrier_arrive_expect_tx(kv_bar, 2 * Plan::kKeyBytes);
      load_tile<Plan>(b.k(), Plan::key_layout(), &b.args.k, kv_bar, key_row, tile.kv_head,
                      tile.batch);
      load_tile<Plan>(b.v(), Plan::key_layout(), &b.args.v, kv_bar, key_row, tile.kv_head,
                      tile.batch);
    }
    load_tile<Plan>(b.dout(ring.stage), Plan::query_layout(), &b.args.dout, bar, row, step.head,
                    tile.batch);
    ptx::bulk_load(shared_address(b.delta(ring.stage)), b.args.delta + acc_row, Plan::kStatBytes,
                   bar);
    ring.advance();
  }
}

}  // namespace fa4::sm90
