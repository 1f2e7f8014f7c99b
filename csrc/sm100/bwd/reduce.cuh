// SM100 backward, reduce role: adds dq of every step to the accumulator in global memory.
#pragma once

#include "csrc/sm100/bwd/block.cuh"
#include "csrc/sm100/scores.cuh"
#include "flash_attn4/device/ptx/compiler.cuh"
#include "flash_attn4/device/ptx/global.cuh"
#include "flash_attn4/device/ptx/shared.cuh"
#include "flash_attn4/device/ptx/tcgen05.cuh"
#include "flash_attn4/device/ptx/tma.cuh"

namespace fa4::sm100 {

/// State of one reduce thread, which has a query; of a pair half of its columns. Warps do not meet:
/// each has its queries, its shared memory and its part of the accumulator.
template <BwdConfig kConfig>
struct BwdReduce {
  using Plan = BwdPlan<kConfig>;
  using Layout = typename Plan::DqLayout;
  static constexpr int kD = Plan::kOwnColumns;

  const BwdBlock<kConfig>& b;
  int warp;
  bool sends;       // this lane talks to the copy engine
  uint32_t staged;  // address of the warp's dq in shared memory
  float dq[kD];

  FA4_D BwdReduce(const BwdBlock<kConfig>& block, int warp_)
      : b(block),
        warp(warp_),
        sends(ptx::elect_sync()),
        staged(b.address + Plan::kDqOffset + warp * Plan::kDqBytes) {}

  FA4_D void load(uint32_t tmem, uint32_t parity) {
    b.template wait<kBwdDqFull>(0, parity);
    ptx::tcgen05_fence_after();
#pragma unroll
    for (int column = 0; column < kD; column += 32) {
      ptx::tcgen05_ld_x32(dq + column, tmem_address(tmem, warp, Plan::tmem_dq() + column));
    }
    ptx::tcgen05_wait_ld();
    ptx::hold(dq);
    ptx::tcgen05_fence_before();
    b.template release<kBwdDqEmpty>(0);
  }

  /// To the slice at `to`.
  FA4_D void add(float* to) {
    const uint32_t lane = staged + 4 * Layout::vector_offset(lane_index(), 0);
#pragma unroll
    for (int column = 0; column < kD; column += Plan::kDqColumns) {
      if (sends) ptx::bulk_wait_group_read<0>();  // what was staged before is sent
      __syncwarp();
#pragma unroll
      for (int i = 0; i < Plan::kDqColumns; i += 4) {
        ptx::store_shared_v4(lane + 4 * Layout::vector_offset(0, i), dq + column + i);
      }
      ptx::fence_proxy_async();  // by every writer: the copy reads what these stores wrote
      __syncwarp();              // staged by all lanes
      if (sends) {
        ptx::bulk_reduce_add(to + Layout::vector_offset(0, column), staged, Plan::kDqBytes);
        ptx::bulk_commit_group();
      }
    }
    if (Plan::kSerial && sends) {  // doutt of the next step comes to lie here
      ptx::bulk_wait_group_read<0>();
      b.template arrive<kBwdDqSent>(0);
    }
  }

  /// Of the accumulator of a block of queries, the float with which this warp's part begins. Of a
  /// pair each CTA has two slices, and two warps the columns of each.
  FA4_D int first_float() const {
    constexpr int kSlice = Layout::kSliceRows * Plan::kHeadDim;
    if constexpr (!Plan::kPair) return warp * kSlice;
    const int slice = 2 * static_cast<int>(b.rank()) + warp % 2;
    return slice * kSlice + Layout::vector_offset(0, warp / 2 * Plan::kOwnColumns);
  }

  // Deterministic: the tiles of keys that add to a block of queries do so in the order of the grid,
  // so that a tile waits for tiles alone that began before it. Warps count apart.
  FA4_D int32_t* additions(int acc_block) const {
    const int part = static_cast<int>(b.rank()) * Plan::kReduceWarps + warp;
    return b.args.turns + int64_t{acc_block} * Plan::kTurns + part;
  }
  FA4_D void begin_addition(int acc_block, int block) {
    if (!sends) return;
    const KeyTiling& t = b.args.tiling;
    const int query = block * Plan::kBlockM;
    const BlockRange tiles = kv_range(query, query + Plan::kBlockM, Plan::kTileKeys,
                                      b.tile.q_length, b.tile.k_length, t.window);
    const int tile = b.tile.first_key / Plan::kTileKeys;
    wait_counter(additions(acc_block),
                 t.order.descending ? tiles.last - 1 - tile : tile - tiles.first);
    ptx::fence_proxy_async_global();
  }
  FA4_D void end_addition(int acc_block) {
    if (!sends) return;
    ptx::bulk_wait_group<0>();  // all of it has been added
    ptx::red_add_release(additions(acc_block), 1);
  }
};

template <bool kOrdered, BwdConfig kConfig>
FA4_D void reduce_steps(BwdReduce<kConfig>& reduce) {
  using Plan = BwdPlan<kConfig>;
  const BwdBlock<kConfig>& b = reduce.b;
  const uint32_t tmem = b.tmem();
  const int first = b.tile.blocks.first, last = b.tile.blocks.last;
  const int skipped =
      b.head_blocks() - (last - first);  // from a head's last block to the next first
  float* const slice = b.args.dq_accumulator + reduce.first_float();
  int block = first;
  int acc_block = b.acc_block(b.tile.kv_head * b.args.group, first);
  uint32_t parity = 0;
#pragma unroll 1
  for (int left = b.steps(); left > 0; --left) {
    reduce.load(tmem, parity);
    if (kOrdered) reduce.begin_addition(acc_block, block);
    reduce.add(slice + int64_t{acc_block} * (Plan::kBlockM * Plan::kHeadDim));
    if (kOrdered) reduce.end_addition(acc_block);
    ++acc_block;
    if (++block == last) {
      block = first;
      acc_block += skipped;
    }
    parity ^= 1;
  }
  // Shared memory lasts as long as the block.
  if (!Plan::kSerial && reduce.sends) ptx::bulk_wait_group_read<0>();
}

/// A warpgroup.
/// Waits: dq_full.  Signals: dq_empty, serial: dq_sent.
template <BwdConfig kConfig>
FA4_D void role_reduce(const BwdBlock<kConfig>& b, int warp) {
  BwdReduce<kConfig> reduce(b, warp);
  if (b.args.turns == nullptr) {
    reduce_steps<false>(reduce);
  } else {
    reduce_steps<true>(reduce);
  }
}

}  // namespace fa4::sm100
