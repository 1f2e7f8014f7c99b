// SM100 backward, main kernel: set-up, roles, end.
//
//     load --K, V, then Q, dO, lse2, delta of every step--> mma --S, dP--> compute --P, dS--> mma
//          mma --dQ of every step--> reduce --added--> accumulator in global memory
//          mma --dK, dV at the end--> compute --> global memory
//
// One block per tile of 128 keys, or a pair of them per 256 (BwdConfig::ctas). It passes all blocks
// of 128 queries that see a key of the tile, head after head where heads share their keys. Scores
// are transposed, a lane of tensor memory per key, so that P and dS are operands of the products
// for dv and dk where they lie; dv and dk stay in tensor memory. docs/kernels/bwd_sm100.md has the
// timeline, the arithmetic and what was tried.
#pragma once

#include "csrc/sm100/bwd/block.cuh"
#include "csrc/sm100/bwd/compute.cuh"
#include "csrc/sm100/bwd/load.cuh"
#include "csrc/sm100/bwd/mma.cuh"
#include "csrc/sm100/bwd/pair_load.cuh"
#include "csrc/sm100/bwd/pair_mma.cuh"
#include "csrc/sm100/bwd/reduce.cuh"
#include "csrc/sm100/bwd/serial_load.cuh"
#include "csrc/sm100/bwd/serial_mma.cuh"
#include "csrc/sm100/bwd/store.cuh"
#include "flash_attn4/device/ptx/cluster.cuh"
#include "flash_attn4/device/ptx/griddepcontrol.cuh"
#include "flash_attn4/device/ptx/registers.cuh"
#include "flash_attn4/device/ptx/tcgen05.cuh"

namespace fa4::sm100 {

/// The launch hands out 128 registers per thread.
template <int kRegisters>
FA4_D void set_registers() {
  if constexpr (kRegisters > 128) ptx::setmaxnreg_inc<kRegisters>();
  if constexpr (kRegisters < 128) ptx::setmaxnreg_dec<kRegisters>();
}

/// All threads of the CTA, or of both of a pair.
template <bool kPair>
FA4_D void meet_tile() {
  if constexpr (kPair) {
    ptx::cluster_arrive();
    ptx::cluster_wait();
  } else {
    __syncthreads();
  }
}

/// Roles of one thread.
template <BwdConfig kConfig>
FA4_D void single_roles(const BwdBlock<kConfig>& block, int warp) {
  using Plan = BwdPlan<kConfig>;
  if constexpr (Plan::kPair) {
    if (warp == Plan::kMmaWarp && block.rank() == 0 && ptx::elect_sync()) {
      if constexpr (Plan::kSerial) {
        role_serial_mma(block);
      } else {
        role_pair_mma(block);
      }
    }
    if (warp == Plan::kLoadWarp && ptx::elect_sync()) {
      if constexpr (Plan::kSerial) {
        role_serial_load(block);
      } else {
        role_pair_load(block);
      }
    }
    if (warp == Plan::kRelayWarp && ptx::elect_sync()) role_relay(block);
  } else {
    if (warp == Plan::kMmaWarp) {
      if (ptx::elect_sync()) role_mma(block);
      __syncwarp();  // a whole warp frees
      ptx::tcgen05_dealloc_all(block.tmem());
    }
    if (warp == Plan::kLoadWarp && ptx::elect_sync()) role_load(block);
  }
}

template <BwdConfig kConfig>
FA4_D void bwd_body(const BwdArgs& args) {
  using Plan = BwdPlan<kConfig>;
  extern __shared__ __align__(1024) uint8_t shared[];
  uint32_t address = shared_address(shared);
  ptx::keep_here(address);  // a register, not three instructions wherever it is used
  auto& tile = *reinterpret_cast<KeyTile*>(shared + Plan::kTileOffset);
  const BwdBlock<kConfig> block{{address}, args, tile, shared};
  const int warp = warp_index();

  if (threadIdx.x == 0) {
    if (block.address % 1024 != 0) __trap();  // the swizzle acts on absolute addresses
    init_barriers<Plan>(block.address + Plan::kBarOffset);
    for (const TensorMap* map : {&args.q, &args.k, &args.v, &args.dout}) {
      ptx::prefetch_tensor_map(map);
    }
    if constexpr (Plan::kAcrossSwizzle != Plan::kSwizzle) {
      ptx::prefetch_tensor_map(&args.qt);
      ptx::prefetch_tensor_map(&args.kt);
    }
  }
  // What comes before touches no memory of others. Every role reads or writes some from here on.
  ptx::griddepcontrol_wait();
  // Blocks of the next kernel need little and wait for this grid's end: they may come any time.
  ptx::griddepcontrol_launch_dependents();
  if (threadIdx.x == 0) tile = key_tile(args.tiling, blockIdx.x / Plan::kCtas);
  __syncthreads();

  // Votes: the compiler then knows that whole warps leave, and that one thread of a whole warp
  // issues products below.
  if (__any_sync(kAllLanes, tile.idle())) return;
  if (__any_sync(kAllLanes, tile.blocks.size() == 0)) return store_no_gradients(block);

  if (warp == Plan::kMmaWarp)
    ptx::tcgen05_alloc_all<Plan::kCtas>(block.address + Plan::kTmemOffset);
  ptx::tcgen05_fence_before();  // the allocation comes before what others do with it
  meet_tile<Plan::kPair>();
  ptx::tcgen05_fence_after();  // behind the allocation

  if (warp < Plan::kFirstComputeWarp) {
    set_registers<Plan::kReduceRegisters>();
    role_reduce(block, warp);
  } else if (warp < Plan::kMmaWarp) {
    set_registers<Plan::kComputeRegisters>();
    role_compute(block, warp);
  } else {
    set_registers<Plan::kOtherRegisters>();
    single_roles(block, warp);
  }
  if constexpr (Plan::kPair) {
    // Products, copies and arrivals of one CTA reach into the other: neither leaves before both are
    // done.
    __syncwarp();  // a whole warp meets
    ptx::tcgen05_fence_before();
    meet_tile<true>();
    ptx::tcgen05_fence_after();  // it is freed behind what both did with it
    if (warp == Plan::kMmaWarp) ptx::tcgen05_dealloc_all<2>(block.tmem());
  }
}

}  // namespace fa4::sm100
