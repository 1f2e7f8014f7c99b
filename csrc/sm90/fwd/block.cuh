// SM90 forward: what every role sees of its block.
#pragma once

#include "csrc/common/fwd_args.h"
#include "csrc/sm90/fwd/plan.h"
#include "flash_attn4/device/barriers.cuh"

namespace fa4::sm90 {

/// The one argument of every role.
template <FwdConfig kConfig>
struct Block : BlockBarriers<FwdPlan<kConfig>, Bar> {
  using Plan = FwdPlan<kConfig>;
  using BlockBarriers<Plan, Bar>::address;

  const FwdArgs& args;
  uint8_t* shared;  // the block's shared memory, laid out by the plan

  FA4_D uint32_t q(int stage) const { return address + Plan::kQOffset + stage * Plan::kQBytes; }
  FA4_D uint32_t k(int stage) const { return address + Plan::kKOffset + stage * Plan::kKvBytes; }
  FA4_D uint32_t v(int stage) const { return address + Plan::kVOffset + stage * Plan::kKvBytes; }
  FA4_D uint32_t out_offset(int consumer) const {
    return Plan::kOutOffset + consumer * Plan::kOutBytes;
  }
  FA4_D QueryTile& tile(int stage) const {
    return reinterpret_cast<QueryTile*>(shared + Plan::kTileOffset)[stage];
  }
};

}  // namespace fa4::sm90
