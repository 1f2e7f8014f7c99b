// SM90 forward: set-up, roles, end.
//
//     schedule --tiles--> load --Q, K, V--> consumer 0 .. n-1 --out, lse--> global memory
//                                 64 rows each, in ping-pong
//
// A block is persistent: it works through tiles of query rows. Consumers own 64 rows of each tile
// and run independently but for their turns at the tensor core; the next tile's loads begin while
// they finish this one. docs/kernels/fwd_sm90.md has the timeline, the arithmetic and what was
// tried.
#pragma once

#include "csrc/common/fwd_schedule.cuh"
#include "csrc/sm90/fwd/block.cuh"
#include "csrc/sm90/fwd/consumer.cuh"
#include "csrc/sm90/fwd/load.cuh"
#include "flash_attn4/device/ptx/griddepcontrol.cuh"
#include "flash_attn4/device/ptx/registers.cuh"

namespace fa4::sm90 {

/// With packed heads a tile may have rows that no query fills: they are 0 from here on.
template <FwdConfig kConfig>
FA4_D void clear_unused_rows(const Block<kConfig>& b) {
  using Plan = FwdPlan<kConfig>;
  const int used = b.args.tiling.queries * b.args.packed_heads;
  constexpr int kUnits = Plan::kHeadDim / 8;  // of 16 bytes, per row
  const int units = (Plan::kBlockM - used) * kUnits;
  for (int unit = threadIdx.x; unit < Plan::kQStages * units; unit += Plan::kThreads) {
    const int row = used + unit % units / kUnits;
    const uint32_t offset = Plan::q_layout().offset(row, unit % kUnits * 8);
    *reinterpret_cast<uint4*>(b.shared + Plan::kQOffset + unit / units * Plan::kQBytes + offset) =
        uint4{};
  }
  if (units > 0) ptx::fence_proxy_async();  // wgmma reads what these stores wrote
}

template <FwdConfig kConfig>
FA4_D void fwd_body(const FwdArgs& args) {
  using Plan = FwdPlan<kConfig>;
  extern __shared__ __align__(1024) uint8_t shared[];
  const Block<kConfig> block{{shared_address(shared)}, args, shared};
  const int warp = warp_index();

  if (threadIdx.x == 0) {
    if (block.address % 1024 != 0) __trap();  // the swizzle acts on absolute addresses
    init_barriers<Plan>(block.address + Plan::kBarOffset);
    for (const TensorMap* map : {&args.q, &args.k, &args.v}) ptx::prefetch_tensor_map(map);
    if (args.tensor_store) ptx::prefetch_tensor_map(&args.out);
  }
  clear_unused_rows(block);
  __syncthreads();
  // What comes before touches no memory of others. Every role reads or writes some from here on.
  ptx::griddepcontrol_wait();

  if (warp < Plan::kConsumerWarps) {
    ptx::setmaxnreg_inc<Plan::kConsumerRegisters>();
    role_consumer(block, warp);
  } else {
    ptx::setmaxnreg_dec<Plan::kProducerRegisters>();
    if (warp == Plan::kConsumerWarps && lane_index() == 0) role_load(block);
    if (warp == Plan::kConsumerWarps + 1) schedule_tiles<kTileFull, kTileEmpty>(block);
  }
}

}  // namespace fa4::sm90
