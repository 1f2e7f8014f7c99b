// SM100 forward: set-up, roles, end.
//
//     schedule --tiles--> load --Q, K, V--> mma --S--> softmax 0, 1 --P--> mma --O--> correction
//                                                          `---factors----> correction  |
//                                                            global memory <-- store <--'
//
// A block is persistent: it works through tiles of 256 query rows, each of two halves. While the
// scores of one half are in the softmax, the tensor core multiplies for the other. Scores, weights
// and output lie in tensor memory; O leaves it at a tile's end. A pair of blocks shares a tile of 512
// rows, keys and values; its leader issues the products of both. docs/kernels/fwd_sm100.md has the
// timeline, the arithmetic and what was tried.
#pragma once

#include "csrc/common/fwd_schedule.cuh"
#include "csrc/sm100/fwd/block.cuh"
#include "csrc/sm100/fwd/correction.cuh"
#include "csrc/sm100/fwd/load.cuh"
#include "csrc/sm100/fwd/mma.cuh"
#include "csrc/sm100/fwd/softmax.cuh"
#include "csrc/sm100/fwd/store.cuh"
#include "flash_attn4/device/ptx/cluster.cuh"
#include "flash_attn4/device/ptx/griddepcontrol.cuh"
#include "flash_attn4/device/ptx/registers.cuh"
#include "flash_attn4/device/ptx/tcgen05.cuh"

namespace fa4::sm100 {

/// With packed heads a half may have rows that no query fills: they are 0 from here on.
template <FwdConfig kConfig>
FA4_D void clear_unused_rows(const Block<kConfig>& b) {
  using Plan = FwdPlan<kConfig>;
  const int used = b.args.box_queries * b.args.packed_heads;
  constexpr int kUnits = Plan::kHeadDim / 8;  // of 16 bytes, per row
  const int units = (Plan::kHalfRows - used) * kUnits;
  for (int unit = threadIdx.x; unit < Plan::kHalves * units; unit += Plan::kThreads) {
    const int row = used + unit % units / kUnits;
    const uint32_t offset = Plan::q_layout().offset(row, unit % kUnits * 8);
    *reinterpret_cast<uint4*>(b.shared + Plan::kQOffset + unit / units * Plan::kQBytes + offset) =
        uint4{};
  }
  if (units > 0) ptx::fence_proxy_async();  // products read what these stores wrote
}

/// All threads of the CTA, or of both of a pair.
template <bool kPair>
FA4_D void meet() {
  if constexpr (kPair) {
    ptx::cluster_arrive();
    ptx::cluster_wait();
  } else {
    __syncthreads();
  }
}

template <FwdConfig kConfig>
FA4_D void fwd_body(const FwdArgs& args) {
  using Plan = FwdPlan<kConfig>;
  extern __shared__ __align__(1024) uint8_t shared[];
  uint32_t address = shared_address(shared);
  ptx::keep_here(address);  // a register, not three instructions wherever it is used
  const Block<kConfig> block{{address}, args, shared};
  const int warp = warp_index();

  if (threadIdx.x == 0) {
    if (block.address % 1024 != 0) __trap();  // the swizzle acts on absolute addresses
    init_barriers<Plan>(block.address + Plan::kBarOffset);
    for (const TensorMap* map : {&args.q, &args.k, &args.v}) ptx::prefetch_tensor_map(map);
    if (args.tensor_store) ptx::prefetch_tensor_map(&args.out);
  }
  if (warp == Plan::kMmaWarp)
    ptx::tcgen05_alloc_all<Plan::kCtas>(block.address + Plan::kTmemOffset);
  clear_unused_rows(block);
  ptx::tcgen05_fence_before();  // the allocation comes before what others do with it
  meet<Plan::kPair>();
  ptx::tcgen05_fence_after();
  // What comes before touches no memory of others. Every role reads or writes some from here on.
  ptx::griddepcontrol_wait();

  if (warp < Plan::kFirstCorrectionWarp) {
    ptx::setmaxnreg_inc<Plan::kSoftmaxRegisters>();
    role_softmax(block, warp);
  } else if (warp < Plan::kMmaWarp) {
    ptx::setmaxnreg_dec<Plan::kCorrectionRegisters>();
    role_correction(block, warp);
  } else {
    ptx::setmaxnreg_dec<Plan::kOtherRegisters>();
    if (warp == Plan::kMmaWarp) {
      if (ptx::elect_sync()) {
        if (block.rank() == 0) {
          role_mma(block);
        } else {
          role_mma_follower(block);
        }
      }
      __syncwarp();
      if constexpr (!Plan::kPair) ptx::tcgen05_dealloc_all(block.tmem());
    }
    if (warp == Plan::kLoadWarp && ptx::elect_sync()) role_load(block);
    if (warp == Plan::kStoreWarp && ptx::elect_sync()) role_store(block);
    if (warp == Plan::kScheduleWarp) schedule_tiles<kTileFull, kTileEmpty, Plan::kCtas>(block);
  }
  if constexpr (Plan::kPair) {
    // Products and arrivals of one CTA reach into the other: neither leaves before both are done.
    __syncwarp();
    ptx::tcgen05_fence_before();
    meet<true>();
    ptx::tcgen05_fence_after();
    if (warp == Plan::kMmaWarp) ptx::tcgen05_dealloc_all<2>(block.tmem());
  }
}

}  // namespace fa4::sm100
