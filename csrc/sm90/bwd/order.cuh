// SM90 backward, order role: the deterministic mode, in which the tiles of keys add to a block of
// queries in the order of the grid. So a tile waits for tiles alone that began before it.
#pragma once

#include "csrc/sm90/bwd/block.cuh"
#include "flash_attn4/device/ptx/global.cuh"

namespace fa4::sm90 {

/// How many tiles add to a block of queries before this one.
template <BwdConfig kConfig>
FA4_D int tiles_before(const BwdBlock<kConfig>& b, int query_block) {
  using Plan = BwdPlan<kConfig>;
  const KeyTiling& t = b.args.tiling;
  const int query = query_block * Plan::kBlockM;
  const BlockRange tiles = kv_range(query, query + Plan::kBlockM, Plan::kBlockN, b.tile.q_length,
                                    b.tile.k_length, t.window);
  const int tile = b.first_key() / Plan::kBlockN;
  return t.order.descending ? tiles.last - 1 - tile : tile - tiles.first;
}

/// One thread for each consumer. It asks for the turn ahead of the consumer, and hands it on behind.
/// Waits: dq_added.  Signals: dq_turn.
template <BwdConfig kConfig>
FA4_D void role_order(const BwdBlock<kConfig>& b, int consumer) {
  using Plan = BwdPlan<kConfig>;
  uint32_t parity = 0;
  BwdStep step = BwdStep::first(b);
  for (int i = 0; i < b.steps(); ++i, step.advance(b), parity ^= 1) {
    int32_t* additions =
        b.args.turns + int64_t{b.acc_block(step.head, step.block)} * Plan::kConsumers + consumer;
    wait_counter(additions, tiles_before(b, step.block));
    ptx::mbarrier_arrive(b.template bar<kBwdDqTurn>(consumer));
    b.template wait<kBwdDqAdded>(consumer, parity);
    ptx::red_add_release(additions, 1);
  }
}

}  // namespace fa4::sm90
