// SM90 backward: dk and dv of a tile of keys to memory.
#pragma once

#include "csrc/sm90/bwd/block.cuh"
#include "csrc/sm90/fragments.cuh"
#include "flash_attn4/device/ptx/compiler.cuh"
#include "flash_attn4/device/ptx/named_barrier.cuh"

namespace fa4::sm90 {

/// 16 bytes per lane, from this warp's 16 rows of the tile at `offset` in shared memory. Rows that
/// do not count are 0. By a whole warp, which has staged them.
template <BwdConfig kConfig>
FA4_D void store_rows(const BwdBlock<kConfig>& b, const GradientRows& to, uint32_t offset,
                      int first_row) {
  using Plan = BwdPlan<kConfig>;
  constexpr int kUnits = Plan::kHeadDim / 8;
  const int column = lane_index() % kUnits * 8;
  const int64_t base = b.tile.batch * to.stride.batch + b.tile.kv_head * to.stride.head;
#pragma unroll 1
  for (int row = first_row + lane_index() / kUnits; row < first_row + 16; row += 32 / kUnits) {
    const int key = b.first_key() + row;
    if (key >= b.tile.k_owned || column >= to.columns) continue;
    const uint4 unit =
        *reinterpret_cast<const uint4*>(b.shared + offset + Plan::key_layout().offset(row, column));
    store_unit(to.data, base + (b.tile.k_row + int64_t{key}) * to.stride.row + column,
               key < b.tile.k_length ? unit : uint4{}, b.args.vector_store);
  }
}

template <BwdConfig kConfig>
FA4_D void stage_rows(const BwdBlock<kConfig>& b, const float (&x)[BwdPlan<kConfig>::kHeadDim / 2],
                      float scale, uint32_t offset, int first_row) {
  using Plan = BwdPlan<kConfig>;
  uint32_t words[Plan::kHeadDim / 4];
#pragma unroll
  for (int i = 0; i < Plan::kHeadDim / 4; ++i) {
    words[i] = ptx::cvt_pack<kConfig.dtype>(x[2 * i] * scale, x[2 * i + 1] * scale);
  }
  store_fragment<Plan::kHeadDim>(b.address + offset, Plan::key_layout(), first_row, words,
                                 lane_index());
  __syncwarp();  // staged by all lanes
}

/// Of one consumer, when all its products have been waited for. Rows are staged over K and V.
template <BwdConfig kConfig>
FA4_D void store_gradients(const BwdBlock<kConfig>& b, int consumer, int warp,
                           const float (&dk)[BwdPlan<kConfig>::kHeadDim / 2],
                           const float (&dv)[BwdPlan<kConfig>::kHeadDim / 2]) {
  using Plan = BwdPlan<kConfig>;
  const int first_row = 64 * consumer + 16 * warp;
  // Only this consumer has read its rows of V, but 16 of them belong to each warp, and all four
  // read them all.
  ptx::bar_sync(kBwdGroup + consumer, 128);
  stage_rows(b, dv, 1.0f, Plan::kVOffset, first_row);
  store_rows(b, dv_rows(b), Plan::kVOffset, first_row);
  ptx::bar_sync(kBwdBoth, 128 * Plan::kConsumers);  // dq of both has read all of K
  stage_rows(b, dk, b.args.softmax_scale, Plan::kKOffset, first_row);
  store_rows(b, dk_rows(b), Plan::kKOffset, first_row);
}

}  // namespace fa4::sm90
