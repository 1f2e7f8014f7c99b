// SM90 forward: what every role sees of its block.
#pragma once

#include "csrc/common/fwd_args.h"
#include "csrc/sm90/fwd/plan.h"
#include "flash_attn4/device/barriers.cuh"
#include "flash_attn4/device/ptx/elect.cuh"
#include "flash_attn4/device/ptx/mbarrier.cuh"

namespace fa4::sm90 {

/// The one argument of every role.
template <FwdConfig kConfig>
struct Block {
  using Plan = FwdPlan<kConfig>;

  const FwdArgs& args;
  uint8_t* shared;   // the block's shared memory, laid out by the plan
  uint32_t address;  // of it, as PTX takes it

  FA4_D uint32_t q(int stage) const { return address + Plan::kQOffset + stage * Plan::kQBytes; }
  FA4_D uint32_t k(int stage) const { return address + Plan::kKOffset + stage * Plan::kKvBytes; }
  FA4_D uint32_t v(int stage) const { return address + Plan::kVOffset + stage * Plan::kKvBytes; }
  FA4_D uint32_t out_offset(int consumer) const {
    return Plan::kOutOffset + consumer * Plan::kOutBytes;
  }
  FA4_D QueryTile& tile(int stage) const {
    return reinterpret_cast<QueryTile*>(shared + Plan::kTileOffset)[stage];
  }

  template <Bar kBar>
  FA4_D uint32_t bar(int stage) const {
    constexpr int kFirst = Plan::kBarriers.first(kBar);
    return address + Plan::kBarOffset + 8 * (kFirst + stage);
  }
  template <Bar kBar>
  FA4_D void wait(int stage, uint32_t parity) const {
    constexpr const char* kName = Plan::kBarriers.row[kBar].name;
    wait_parity(bar<kBar>(stage), parity, kName, stage);
  }
  template <Bar kBar>
  FA4_D void arrive(int stage) const {
    ptx::mbarrier_arrive(bar<kBar>(stage));
  }
  /// By a whole warp that is done with a buffer: one lane arrives for all.
  template <Bar kBar>
  FA4_D void release(int stage) const {
    __syncwarp();
    if (ptx::elect_sync()) arrive<kBar>(stage);
  }
};

}  // namespace fa4::sm90
