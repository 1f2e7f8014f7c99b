// SM100 forward: what every role sees of its block.
#pragma once

#include "csrc/common/fwd_args.h"
#include "csrc/sm100/fwd/plan.h"
#include "flash_attn4/device/barriers.cuh"
#include "flash_attn4/device/ptx/cluster.cuh"
#include "flash_attn4/device/ptx/elect.cuh"
#include "flash_attn4/device/ptx/mbarrier.cuh"
#include "flash_attn4/device/ptx/tcgen05.cuh"

namespace fa4::sm100 {

/// What the correction learns of a row: in each step but a tile's first the factor for O, at the
/// tile's end sum and reference.
struct RowStat {
  float factor_or_sum;
  float reference;  // log2 units
};

/// The one argument of every role.
template <FwdConfig kConfig>
struct Block {
  using Plan = FwdPlan<kConfig>;

  const FwdArgs& args;
  uint8_t* shared;   // the block's shared memory, laid out by the plan
  uint32_t address;  // of it, as PTX takes it
  uint32_t leader;   // of the same in the pair's leader, as the cluster addresses it

  /// This CTA of its pair; 0 leads. One that shares its tile with nobody leads, too.
  FA4_D uint32_t rank() const { return Plan::kPair ? blockIdx.x % 2 : 0; }

  FA4_D uint32_t q(int half) const { return address + Plan::kQOffset + half * Plan::kQBytes; }
  FA4_D uint32_t k(int stage) const { return address + Plan::kKOffset + stage * Plan::kKBytes; }
  FA4_D uint32_t v(int stage) const { return address + Plan::kVOffset + stage * Plan::kVBytes; }
  FA4_D uint32_t out_offset(int stage) const { return Plan::kOutOffset + stage * Plan::kOutBytes; }
  FA4_D QueryTile& tile(int stage) const {
    return reinterpret_cast<QueryTile*>(shared + Plan::kTileOffset)[stage];
  }
  FA4_D uint32_t stat_offset(int half, int row) const {
    return Plan::kStatOffset +
           (half * Plan::kHalfRows + row) * static_cast<uint32_t>(sizeof(RowStat));
  }
  FA4_D RowStat& stat(int half, int row) const {
    return *reinterpret_cast<RowStat*>(shared + stat_offset(half, row));
  }
  /// Base of the block's tensor memory.
  FA4_D uint32_t tmem() const {
    return *reinterpret_cast<const uint32_t*>(shared + Plan::kTmemOffset);
  }

  /// Value rows behind the last key of this tile may hold anything, NaN included.
  FA4_D bool ragged(const QueryTile& tile) const {
    return args.clear_value_tail && tile.blocks.last * Plan::kBlockN > tile.k_length;
  }

  template <Bar kBar>
  static constexpr Holder kHolder = Plan::kBarriers.row[kBar].holder;

  template <Bar kBar>
  FA4_D static uint32_t bar_offset(int stage) {
    constexpr int kFirst = Plan::kBarriers.first(kBar);
    return Plan::kBarOffset + 8 * (kFirst + stage);
  }
  /// Where this CTA waits.
  template <Bar kBar>
  FA4_D uint32_t bar(int stage) const {
    return address + bar_offset<kBar>(stage);
  }
  /// Where it signals.
  template <Bar kBar>
  FA4_D uint32_t signal_bar(int stage) const {
    return (kHolder<kBar> == Holder::kLeader ? leader : address) + bar_offset<kBar>(stage);
  }
  template <Bar kBar>
  FA4_D void wait(int stage, uint32_t parity) const {
    constexpr const char* kName = Plan::kBarriers.row[kBar].name;
    wait_parity(bar<kBar>(stage), parity, kName, stage);
  }
  template <Bar kBar>
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
  template <Bar kBar>
  FA4_D void commit(int stage) const {
    if constexpr (kHolder<kBar> == Holder::kOwn) {
      ptx::tcgen05_commit(bar<kBar>(stage));
    } else {
      ptx::tcgen05_commit_pair(bar<kBar>(stage));
    }
  }
  /// The leader announces what all CTAs load, `bytes` each, by an arrival that counts for both.
  template <Bar kBar>
  FA4_D void announce(int stage, uint32_t bytes) const {
    if (rank() == 0) ptx::mbarrier_arrive_expect_tx(bar<kBar>(stage), Plan::kCtas * bytes);
  }
  /// By a whole warp that is done: one lane arrives for all.
  template <Bar kBar>
  FA4_D void release(int stage) const {
    __syncwarp();
    if (ptx::elect_sync()) arrive<kBar>(stage);
  }
};

}  // namespace fa4::sm100
