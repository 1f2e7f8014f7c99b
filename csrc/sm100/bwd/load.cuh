// SM100 backward, load role: keys and values once, then queries and dout of every step.
#pragma once

#include "csrc/sm100/bwd/block.cuh"
#include "flash_attn4/device/ptx/tma.cuh"

namespace fa4::sm100 {

/// 128 rows of one head.
template <class Plan>
FA4_D void load_tile(uint32_t to, const TensorMap* map, uint32_t bar, int row, int head,
                     int batch) {
#pragma unroll
  for (int column = 0; column < Plan::kHeadDim; column += Plan::kSpanColumns) {
    ptx::tensor_load_4d(to + Plan::query_layout().unswizzled_offset(0, column), map, bar, column,
                        row, head, batch);
  }
}

/// One thread.
/// Waits: q_empty dout_empty.  Signals: q_full dout_full.
template <BwdConfig kConfig>
FA4_D void role_load(const BwdBlock<kConfig>& b) {
  using Plan = BwdPlan<kConfig>;
  static_assert(Plan::kBlockM == Plan::kBlockN && Plan::kHeadDim == Plan::kHeadDimV,
                "load_tile is for all");
  const KeyTile& tile = b.tile;
  const int key_row = tile.k_row + tile.first_key;
  Ring<Plan::kQStages> q_ring(kWriter);
  Ring<Plan::kDoutStages> dout_ring(kWriter);
  BwdStep step = BwdStep::first(b);
  uint32_t key_bytes = Plan::kKeyBytes;  // that come with the step
  for (int left = b.steps(); left > 0; --left) {
    const int row = tile.q_row + step.block * Plan::kBlockM;
    const int64_t acc_row = b.acc_row(step.head, step.block);

    b.template wait<kBwdQEmpty>(q_ring.stage, q_ring.parity);
    const uint32_t q_bar = b.template bar<kBwdQFull>(q_ring.stage);
    ptx::mbarrier_arrive_expect_tx(q_bar, Plan::kQueryBytes + 2 * Plan::kStatBytes + key_bytes);
    if (key_bytes > 0) load_tile<Plan>(b.k(), &b.args.k, q_bar, key_row, tile.kv_head, tile.batch);
    load_tile<Plan>(b.q(q_ring.stage), &b.args.q, q_bar, row, step.head, tile.batch);
    ptx::bulk_load(b.lse2(q_ring.stage), b.args.lse2 + acc_row, Plan::kStatBytes, q_bar);
    ptx::bulk_load(b.delta(q_ring.stage), b.args.delta + acc_row, Plan::kStatBytes, q_bar);

    b.template wait<kBwdDoutEmpty>(dout_ring.stage, dout_ring.parity);
    const uint32_t dout_bar = b.template bar<kBwdDoutFull>(dout_ring.stage);
    ptx::mbarrier_arrive_expect_tx(dout_bar, Plan::kDoutBytes + key_bytes);
    if (key_bytes > 0) {
      load_tile<Plan>(b.v(), &b.args.v, dout_bar, key_row, tile.kv_head, tile.batch);
    }
    load_tile<Plan>(b.dout(dout_ring.stage), &b.args.dout, dout_bar, row, step.head, tile.batch);

    q_ring.advance();
    dout_ring.advance();
    step.advance(b);
    key_bytes = 0;
  }
}

}  // namespace fa4::sm100
