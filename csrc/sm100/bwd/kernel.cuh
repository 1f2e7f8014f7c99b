// SM100 backward, main kernel: set-up, roles, end.
//
//     load --K, V, then Q, dO, lse2, delta of every step--> mma --S, dP--> compute --P, dS--> mma
//          mma --dQ of every step--> reduce --added--> accumulator in global memory
//          mma --dK, dV at the end--> compute --> global memory
//
// One block per tile of 128 keys. It passes all blocks of 128 queries that see a key of the tile,
// head after head where heads share their keys. Scores are transposed, a lane of tensor memory per
// key, so that P and dS are operands of the products for dv and dk where they lie; dv and dk stay
// in tensor memory. docs/kernels/bwd_sm100.md has the timeline, the arithmetic and what was tried.
#pragma once

#include "csrc/sm100/bwd/block.cuh"
#include "csrc/sm100/bwd/compute.cuh"
#include "csrc/sm100/bwd/load.cuh"
#include "csrc/sm100/bwd/mma.cuh"
#include "csrc/sm100/bwd/reduce.cuh"
#include "csrc/sm100/bwd/store.cuh"
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

template <BwdConfig kConfig>
FA4_D void bwd_body(const BwdArgs& args) {
  using Plan = BwdPlan<kConfig>;
  extern __shared__ __align__(1024) uint8_t shared[];
  uint32_t address = shared_address(shared);
  ptx::keep_here(address);  // a register, not three instructions wherever it is used
  auto& tile = *reinterpret_cast<KeyTile*>(shared + Plan::kTileOffset);
  const BwdBlock<kConfig> block{args, tile, shared, address};
  const int warp = warp_index();

  if (threadIdx.x == 0) {
    if (block.address % 1024 != 0) __trap();  // the swizzle acts on absolute addresses
    init_barriers<Plan>(block.address + Plan::kBarOffset);
    for (const TensorMap* map : {&args.q, &args.k, &args.v, &args.dout}) {
      ptx::prefetch_tensor_map(map);
    }
  }
  // What comes before touches no memory of others. Every role reads or writes some from here on.
  ptx::griddepcontrol_wait();
  // Blocks of the next kernel need little and wait for this grid's end: they may come any time.
  ptx::griddepcontrol_launch_dependents();
  if (threadIdx.x == 0) tile = key_tile(args.tiling, blockIdx.x);
  __syncthreads();

  // Votes: the compiler then knows that whole warps leave, and that one thread of a whole warp
  // issues products below.
  if (__any_sync(kAllLanes, tile.idle())) return;
  if (__any_sync(kAllLanes, tile.blocks.size() == 0)) return store_no_gradients(block);

  if (warp == Plan::kMmaWarp) ptx::tcgen05_alloc_all(block.address + Plan::kTmemOffset);
  ptx::tcgen05_fence_before();  // the allocation comes before what others do with it
  __syncthreads();
  ptx::tcgen05_fence_after();  // behind the allocation

  if (warp < Plan::kFirstComputeWarp) {
    set_registers<Plan::kReduceRegisters>();
    role_reduce(block, warp);
  } else if (warp < Plan::kMmaWarp) {
    set_registers<Plan::kComputeRegisters>();
    role_compute(block, warp);
  } else {
    set_registers<Plan::kOtherRegisters>();
    if (warp == Plan::kMmaWarp) {
      if (ptx::elect_sync()) role_mma(block);
      __syncwarp();  // a whole warp frees
      ptx::tcgen05_dealloc_all(block.tmem());
    }
    if (warp == Plan::kLoadWarp && ptx::elect_sync()) role_load(block);
  }
}

}  // namespace fa4::sm100
