// SM100 backward: what every role sees of its block.
#pragma once

#include "csrc/common/bwd_args.h"
#include "csrc/common/bwd_tile.cuh"
#include "csrc/sm100/barriers.cuh"
#include "csrc/sm100/bwd/plan.h"

namespace fa4::sm100 {

template <BwdConfig kConfig>
using BwdBarriers = PairBarriers<BwdPlan<kConfig>, BwdBar, /*kKeepLeader=*/false>;

/// The one argument of every role.
template <BwdConfig kConfig>
struct BwdBlock : BwdBarriers<kConfig> {
  using Plan = BwdPlan<kConfig>;
  using BwdBarriers<kConfig>::address;
  using BwdBarriers<kConfig>::rank;

  const BwdArgs& args;
  const KeyTile& tile;  // in shared memory: registers are scarce
  uint8_t* shared;      // the block's shared memory, laid out by the plan

  /// Of this CTA; the tile begins with the leader's.
  FA4_D int first_key() const { return tile.first_key + static_cast<int>(rank()) * Plan::kBlockN; }

  FA4_D uint32_t k() const { return address + Plan::kKOffset; }
  FA4_D uint32_t v() const { return address + Plan::kVOffset; }
  FA4_D uint32_t q_offset(int stage) const { return Plan::kQOffset + stage * Plan::kQueryBytes; }
  FA4_D uint32_t dout_offset(int stage) const {
    return Plan::kDoutOffset + stage * Plan::kDoutBytes;
  }
  FA4_D uint32_t q(int stage) const { return address + q_offset(stage); }
  FA4_D uint32_t dout(int stage) const { return address + dout_offset(stage); }
  FA4_D uint32_t qt() const { return address + Plan::kQtOffset; }
  FA4_D uint32_t doutt() const { return address + Plan::kDouttOffset; }
  FA4_D uint32_t kt() const { return address + Plan::kKtOffset; }
  FA4_D uint32_t ds() const { return address + Plan::kDsOffset; }
  FA4_D uint32_t lse2(int stage) const {
    return address + Plan::kLseOffset + stage * Plan::kStatBytes;
  }
  FA4_D uint32_t delta(int stage) const {
    return address + Plan::kDeltaOffset + stage * Plan::kStatBytes;
  }
  /// Base of the block's tensor memory.
  FA4_D uint32_t tmem() const {
    return *reinterpret_cast<const uint32_t*>(shared + Plan::kTmemOffset);
  }

  /// Steps of this block: the query blocks of every query head that shares the KV head.
  FA4_D int steps() const { return args.group * tile.blocks.size(); }
  /// Row of the accumulators at which block `block` of query head `head` begins.
  FA4_D int64_t acc_row(int head, int block) const {
    return head * args.acc_rows + tile.acc_row + block * Plan::kBlockM;
  }
  /// The same in blocks: accumulators hold whole ones. 32 bits, which counts of tiles fit.
  FA4_D int acc_block(int head, int block) const {
    return head * head_blocks() + tile.acc_row / Plan::kBlockM + block;
  }
  FA4_D int head_blocks() const { return static_cast<int>(args.acc_rows / Plan::kBlockM); }

  // Rows that do not count may hold anything, NaN included. Their weights are 0, but 0 times NaN is
  // not: they are cleared before a product reads them that is not masked. Queries that lie behind
  // the sequence's last, or see no key, the first ones where there are more queries than keys; keys
  // behind the last.
  FA4_D int blind_queries() const { return 1 - tile.last_shift; }
  FA4_D int queries_that_count() const {
    return args.clear_query_tail ? tile.q_length : tile.blocks.last * Plan::kBlockM;
  }
  FA4_D bool ragged_keys() const {
    return args.clear_key_tail && tile.first_key + Plan::kTileKeys > tile.k_length;
  }
  /// Blocks of queries that need no clearing.
  FA4_D Interval clean_blocks() const {
    return {ceil_div(max_of(blind_queries(), 0), Plan::kBlockM),
            queries_that_count() / Plan::kBlockM};
  }

  /// Keys behind the last have weights 0 in every block of queries: their dS meet keys in dq.
  FA4_D bool masks_all() const { return tile.first_key + Plan::kTileKeys > tile.k_length; }
};

}  // namespace fa4::sm100
