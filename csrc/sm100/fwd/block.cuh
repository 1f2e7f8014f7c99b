// SM100 forward: what every role sees of its block.
#pragma once

#include "csrc/common/fwd_args.h"
#include "csrc/sm100/barriers.cuh"
#include "csrc/sm100/fwd/plan.h"

namespace fa4::sm100 {

/// What the correction learns of a row: in each step but a tile's first the factor for O, at the
/// tile's end sum and reference.
struct RowStat {
  float factor_or_sum;
  float reference;  // log2 units
};

template <FwdConfig kConfig>
using Barriers = PairBarriers<FwdPlan<kConfig>, Bar, /*kKeepLeader=*/true>;

/// The one argument of every role.
template <FwdConfig kConfig>
struct Block : Barriers<kConfig> {
  using Plan = FwdPlan<kConfig>;
  using Barriers<kConfig>::address;

  const FwdArgs& args;
  uint8_t* shared;  // the block's shared memory, laid out by the plan

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
};

}  // namespace fa4::sm100
