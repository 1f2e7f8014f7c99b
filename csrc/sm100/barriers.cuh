// Barriers of SM100 kernels: the tensor core signals them too, and a pair of CTAs shares some.
#pragma once

#include "flash_attn4/device/barriers.cuh"
#include "flash_attn4/device/ptx/cluster.cuh"
#include "flash_attn4/device/ptx/tcgen05.cuh"

namespace fa4::sm100 {

/// Who waits does so at a barrier of its own CTA. Who signals does so where the plan's column
/// `holder` says. kKeepLeader: whether a register holds the leader's address. It saves instructions
/// where warps arrive there; the backward has no register to spare.
template <class Plan, class Bar, bool kKeepLeader>
struct PairBarriers : BlockBarriers<Plan, Bar> {
  using Own = BlockBarriers<Plan, Bar>;

  uint32_t leader;  // as Own::address, of the pair's leader, as the cluster addresses it

  FA4_D PairBarriers(uint32_t address) : Own{address}, leader(address) {
    if constexpr (Plan::kPair) leader = ptx::cluster_address(address, 0);
  }

  /// This CTA of its pair; 0 leads. One that shares its tile with nobody leads, too.
  FA4_D uint32_t rank() const { return Plan::kPair ? blockIdx.x % 2 : 0; }

  template <Bar kBar>
  static constexpr Holder kHolder = Plan::kBarriers.row[kBar].holder;

  /// Of those that one CTA holds.
  template <Bar kBar>
  FA4_D uint32_t signal_bar(int stage) const {
    if constexpr (kHolder<kBar> == Holder::kPeer) {
      return ptx::cluster_address(Own::template bar<kBar>(stage), rank() ^ 1);
    } else if constexpr (kHolder<kBar> == Holder::kLeader) {
      if constexpr (kKeepLeader) return leader + Own::template bar_offset<kBar>(stage);
      return ptx::cluster_address(Own::template bar<kBar>(stage), 0);
    } else {
      return Own::template bar<kBar>(stage);
    }
  }
  template <Bar kBar>
  FA4_D void arrive(int stage) const {
    if constexpr (kHolder<kBar> == Holder::kOwn) {
      Own::template arrive<kBar>(stage);
    } else if constexpr (kHolder<kBar> == Holder::kLeader) {
      ptx::mbarrier_arrive_cluster(signal_bar<kBar>(stage));
    } else {
      for (uint32_t to = 0; to < 2; ++to)
        ptx::mbarrier_arrive_cluster(ptx::cluster_address(Own::template bar<kBar>(stage), to));
    }
  }
  /// By a whole warp that is done: one lane arrives for all.
  template <Bar kBar>
  FA4_D void release(int stage) const {
    __syncwarp();
    if (ptx::elect_sync()) arrive<kBar>(stage);
  }
  /// When all products issued so far are complete.
  template <Bar kBar>
  FA4_D void commit(int stage) const {
    if constexpr (kHolder<kBar> == Holder::kOwn) {
      ptx::tcgen05_commit(Own::template bar<kBar>(stage));
    } else {
      ptx::tcgen05_commit_pair(Own::template bar<kBar>(stage));
    }
  }
  /// The leader announces what all CTAs load, `bytes` each, by an arrival that counts for both.
  template <Bar kBar>
  FA4_D void announce(int stage, uint32_t bytes) const {
    if (rank() == 0)
      ptx::mbarrier_arrive_expect_tx(Own::template bar<kBar>(stage), Plan::kCtas * bytes);
  }
};

}  // namespace fa4::sm100
