// SM90 backward: what every role sees of its block.
#pragma once

#include "csrc/common/bwd_args.h"
#include "csrc/common/bwd_tile.cuh"
#include "csrc/sm90/bwd/plan.h"
#include "flash_attn4/device/barriers.cuh"

namespace fa4::sm90 {

/// The one argument of every role.
template <BwdConfig kConfig>
struct BwdBlock : BlockBarriers<BwdPlan<kConfig>, BwdBar> {
  using Plan = BwdPlan<kConfig>;
  using BlockBarriers<Plan, BwdBar>::address;

  const BwdArgs& args;
  const KeyTile& tile;  // in shared memory: registers are scarce
  uint8_t* shared;      // the block's shared memory, laid out by the plan

  FA4_D int first_key() const { return tile.first_key; }

  FA4_D uint32_t k() const { return address + Plan::kKOffset; }
  FA4_D uint32_t v() const { return address + Plan::kVOffset; }
  FA4_D uint32_t q_offset(int stage) const { return Plan::kQOffset + stage * Plan::kQueryBytes; }
  FA4_D uint32_t dout_offset(int stage) const {
    return Plan::kDoutOffset + stage * Plan::kQueryBytes;
  }
  FA4_D uint32_t q(int stage) const { return address + q_offset(stage); }
  FA4_D uint32_t dout(int stage) const { return address + dout_offset(stage); }
  FA4_D uint32_t ds(int stage) const { return address + Plan::kDsOffset + stage * Plan::kDsBytes; }
  FA4_D float* lse2(int stage) const {
    return reinterpret_cast<float*>(shared + Plan::kLseOffset + stage * Plan::kStatBytes);
  }
  FA4_D float* delta(int stage) const {
    return reinterpret_cast<float*>(shared + Plan::kDeltaOffset + stage * Plan::kStatBytes);
  }

  /// Steps of this block: the query blocks of every query head that shares the KV head.
  FA4_D int steps() const { return args.group * tile.blocks.size(); }
  /// Row of the accumulators at which block `block` of query head `head` begins.
  FA4_D int64_t acc_row(int head, int block) const {
    return head * args.acc_rows + tile.acc_row + block * Plan::kBlockM;
  }
  /// The same in blocks: accumulators hold whole ones. 32 bits, which counts of tiles fit.
  FA4_D int acc_block(int head, int block) const {
    return (head * static_cast<int>(args.acc_rows / 64) + tile.acc_row / 64) /
               (Plan::kBlockM / 64) +
           block;
  }
};

}  // namespace fa4::sm90
