// SM90 backward, main kernel: set-up, roles, end.
//
//     load --K, V, then Q, dO, lse2, delta of every step--> consumer 0, 1 --dk, dv--> global memory
//                                                                        `-dq, added-> accumulator
//
// In the deterministic mode the role order keeps the turns of the tiles that add to dq.
//
// One block per tile of 128 keys. It passes all blocks of queries that see a key of the tile, head
// after head where heads share their keys; dk and dv stay in registers. docs/kernels/bwd_sm90.md has
// the timeline, the arithmetic and what was tried.
#pragma once

#include "csrc/sm90/bwd/block.cuh"
#include "csrc/sm90/bwd/consumer.cuh"
#include "csrc/sm90/bwd/load.cuh"
#include "csrc/sm90/bwd/order.cuh"
#include "csrc/sm90/bwd/store.cuh"
#include "flash_attn4/device/ptx/griddepcontrol.cuh"
#include "flash_attn4/device/ptx/registers.cuh"

namespace fa4::sm90 {

template <BwdConfig kConfig>
FA4_D void bwd_body(const BwdArgs& args) {
  using Plan = BwdPlan<kConfig>;
  extern __shared__ __align__(1024) uint8_t shared[];
  auto& tile = *reinterpret_cast<KeyTile*>(shared + Plan::kTileOffset);
  const BwdBlock<kConfig> block{{shared_address(shared)}, args, tile, shared};
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
  // Blocks of the next kernel need little and wait for the end of this grid: they may come any time.
  ptx::griddepcontrol_launch_dependents();
  if (threadIdx.x == 0) tile = key_tile(args.tiling, blockIdx.x);
  __syncthreads();

  if (tile.idle()) return;
  if (tile.blocks.size() == 0) return store_no_gradients(block);

  if (warp < Plan::kConsumerWarps) {
    ptx::setmaxnreg_inc<Plan::kConsumerRegisters>();
    role_consumer(block, warp);
  } else {
    ptx::setmaxnreg_dec<Plan::kProducerRegisters>();
    if (lane_index() != 0) return;
    if (warp == Plan::kConsumerWarps) return role_load(block);
    const int consumer = warp - Plan::kOrderWarp;
    if (args.turns != nullptr && consumer < Plan::kConsumers) role_order(block, consumer);
  }
}

}  // namespace fa4::sm90
