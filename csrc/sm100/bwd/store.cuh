// SM100 backward: dk and dv of a tile of keys to memory.
#pragma once

#include "csrc/sm100/bwd/block.cuh"
#include "flash_attn4/device/ptx/compiler.cuh"
#include "flash_attn4/device/ptx/math.cuh"
#include "flash_attn4/device/ptx/tcgen05.cuh"

namespace fa4::sm100 {

/// Half of the kColumns columns of this warp's 32 keys, from tensor memory at `from`, scaled and rounded, to
/// the tile at `offset` in shared memory.
template <int kColumns, BwdConfig kConfig>
FA4_D void stage_rows(const BwdBlock<kConfig>& b, uint32_t from, float scale, uint32_t offset,
                      int row, int first_column) {
  using Plan = BwdPlan<kConfig>;
  constexpr int kStep = 16;
#pragma unroll 1
  for (int column = first_column; column < first_column + kColumns / 2; column += kStep) {
    float x[kStep];
    ptx::tcgen05_ld_x16(x, from + column);
    ptx::tcgen05_wait_ld();
    ptx::hold(x);
#pragma unroll
    for (int i = 0; i < kStep; i += 8) {
      uint32_t words[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        words[k] = ptx::cvt_pack<kConfig.dtype>(x[i + 2 * k] * scale, x[i + 2 * k + 1] * scale);
      }
      *reinterpret_cast<uint4*>(b.shared + offset + Plan::key_layout().offset(row, column + i)) =
          uint4{words[0], words[1], words[2], words[3]};
    }
  }
}

/// The same rows and columns from shared to global memory, 16 bytes per lane. Rows that do not
/// count are 0. By a whole warp, which has staged them.
template <int kColumns, BwdConfig kConfig>
FA4_D void store_rows(const BwdBlock<kConfig>& b, const GradientRows& to, uint32_t offset,
                      int first_row, int first_column) {
  using Plan = BwdPlan<kConfig>;
  constexpr int kUnits = kColumns / 2 / 8;
  const int64_t base = b.tile.batch * to.stride.batch + b.tile.kv_head * to.stride.head;
#pragma unroll 1
  for (int i = lane_index(); i < 32 * kUnits; i += 32) {
    const int row = first_row + i / kUnits;
    const int column = first_column + i % kUnits * 8;
    const int key = b.first_key() + row;
    if (key >= b.tile.k_owned || column >= to.columns) continue;
    const uint4 unit =
        *reinterpret_cast<const uint4*>(b.shared + offset + Plan::key_layout().offset(row, column));
    store_unit(to.data, base + (b.tile.k_row + int64_t{key}) * to.stride.row + column,
               key < b.tile.k_length ? unit : uint4{}, b.args.vector_store);
  }
}

/// By the compute warps, each its keys and half of the columns. `tmem`: in the warp's lanes.
template <BwdConfig kConfig>
FA4_D void store_gradients(const BwdBlock<kConfig>& b, int group, int warp, uint32_t tmem) {
  using Plan = BwdPlan<kConfig>;
  const int first_row = 32 * warp, row = first_row + lane_index();
  constexpr int kD = Plan::kHeadDim, kDv = Plan::kHeadDimV;
  // Staged over dout and q, which all products have read that the commits cover; of a pair over v
  // and k.
  b.template wait<kBwdDvFull>(0, 0);
  ptx::tcgen05_fence_after();
  stage_rows<kDv>(b, tmem + Plan::tmem_dv(), 1.0f, Plan::kDvStagedOffset, row, group * (kDv / 2));
  __syncwarp();  // staged by all lanes
  store_rows<kDv>(b, dv_rows(b), Plan::kDvStagedOffset, first_row, group * (kDv / 2));
  b.template wait<kBwdDkFull>(0, 0);
  ptx::tcgen05_fence_after();
  stage_rows<kD>(b, tmem + Plan::tmem_dk(), b.args.softmax_scale, Plan::kDkStagedOffset, row,
                 group * (kD / 2));
  if constexpr (Plan::kPair) {
    __syncwarp();  // staged by all lanes
  } else {
    ptx::tcgen05_fence_before();
    b.template release<kBwdDkvEmpty>(0);  // where the warp meets
  }
  store_rows<kD>(b, dk_rows(b), Plan::kDkStagedOffset, first_row, group * (kD / 2));
}

}  // namespace fa4::sm100
