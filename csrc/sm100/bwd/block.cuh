// SM100 backward: what every role sees of its block.
#pragma once

#include "csrc/common/bwd_args.h"
#include "csrc/sm100/bwd/plan.h"
#include "flash_attn4/device/barriers.cuh"
#include "flash_attn4/device/ptx/cluster.cuh"
#include "flash_attn4/device/ptx/elect.cuh"
#include "flash_attn4/device/ptx/mbarrier.cuh"
#include "flash_attn4/device/ptx/tcgen05.cuh"

namespace fa4::sm100 {

/// The one argument of every role.
template <BwdConfig kConfig>
struct BwdBlock {
  using Plan = BwdPlan<kConfig>;

  const BwdArgs& args;
  const KeyTile& tile;  // in shared memory: registers are scarce
  uint8_t* shared;      // the block's shared memory, laid out by the plan
  uint32_t address;     // of it, as PTX takes it

  /// This CTA of its pair; 0 leads. One that shares its tile with nobody leads, too.
  FA4_D uint32_t rank() const { return Plan::kPair ? blockIdx.x % 2 : 0; }
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

  template <BwdBar kBar>
  static constexpr Holder kHolder = Plan::kBarriers.row[kBar].holder;

  template <BwdBar kBar>
  FA4_D static uint32_t bar_offset(int stage) {
    constexpr int kFirst = Plan::kBarriers.first(kBar);
    return Plan::kBarOffset + 8 * (kFirst + stage);
  }
  /// Where this CTA waits.
  template <BwdBar kBar>
  FA4_D uint32_t bar(int stage) const {
    return address + bar_offset<kBar>(stage);
  }
  /// Where it signals.
  template <BwdBar kBar>
  FA4_D uint32_t signal_bar(int stage) const {
    if constexpr (kHolder<kBar> == Holder::kPeer) {
      return ptx::cluster_address(bar<kBar>(stage), rank() ^ 1);
    } else if constexpr (kHolder<kBar> == Holder::kLeader) {
      return ptx::cluster_address(bar<kBar>(stage), 0);
    } else {
      return bar<kBar>(stage);
    }
  }
  template <BwdBar kBar>
  FA4_D void wait(int stage, uint32_t parity) const {
    constexpr const char* kName = Plan::kBarriers.row[kBar].name;
    wait_parity(bar<kBar>(stage), parity, kName, stage);
  }
  template <BwdBar kBar>
  FA4_D void arrive(int stage) const {
    if constexpr (kHolder<kBar> == Holder::kOwn) {
      ptx::mbarrier_arrive(bar<kBar>(stage));
    } else if constexpr (kHolder<kBar> == Holder::kLeader) {
      ptx::mbarrier_arrive_cluster(signal_bar<kBar>(stage));
    } else {
      for (uint32_t to = 0; to < 2; ++to)
        ptx::mbarrier_arrive_cluster(ptx::cluster_address(bar<kBar>(stage), to));
    }
  }
  /// When all products issued so far are complete.
  template <BwdBar kBar>
  FA4_D void commit(int stage) const {
    if constexpr (kHolder<kBar> == Holder::kOwn) {
      ptx::tcgen05_commit(bar<kBar>(stage));
    } else {
      ptx::tcgen05_commit_pair(bar<kBar>(stage));
    }
  }
  /// The leader announces what all CTAs load, `bytes` each, by an arrival that counts for both.
  template <BwdBar kBar>
  FA4_D void announce(int stage, uint32_t bytes) const {
    if (rank() == 0) ptx::mbarrier_arrive_expect_tx(bar<kBar>(stage), Plan::kCtas * bytes);
  }
  /// By a whole warp that is done: one lane arrives for all.
  template <BwdBar kBar>
  FA4_D void release(int stage) const {
    __syncwarp();
    if (ptx::elect_sync()) arrive<kBar>(stage);
  }
};

/// One step: a block of queries of one head. Heads come one after the other, blocks upwards.
struct BwdStep {
  int head;
  int block;

  template <class Block>
  FA4_D static BwdStep first(const Block& b) {
    return {b.tile.kv_head * b.args.group, b.tile.blocks.first};
  }
  template <class Block>
  FA4_D void advance(const Block& b) {
    if (++block < b.tile.blocks.last) return;
    block = b.tile.blocks.first;
    ++head;
  }
};

}  // namespace fa4::sm100
