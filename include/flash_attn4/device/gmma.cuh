// Products of one warpgroup over a whole tile: the loop over k around a single wgmma.
#pragma once

#include "flash_attn4/core/descriptors.h"
#include "flash_attn4/device/device.cuh"
#include "flash_attn4/device/ptx/wgmma.cuh"

namespace fa4 {

/// D (64 x kN) = A B^T, both K-major in shared memory with kK columns: row m of A times row n of B.
/// `a` and `b` describe the first 16 columns; that of A begins at the warpgroup's first row.
template <DType kDType, int kN, int kK>
FA4_D void gmma_abt(float (&d)[kN / 2], uint64_t a, TileLayout a_tile, uint64_t b,
                    TileLayout b_tile) {
#pragma unroll
  for (int step = 0; step < kK / 16; ++step) {
    ptx::wgmma_ss<kDType, kN>(d, advance_descriptor(a, a_tile.k_step_offset(Major::kK, step)),
                              advance_descriptor(b, b_tile.k_step_offset(Major::kK, step)),
                              step > 0);
  }
}

/// D (64 x kN) = A B, or += when accumulate. A (64 x kK) is packed in registers; B has kK rows and
/// is MN-major, `b` describes its first 16.
template <DType kDType, int kN, int kK>
FA4_D void gmma_ab(float (&d)[kN / 2], const uint32_t (&a)[kK / 4], uint64_t b, TileLayout b_tile,
                   bool accumulate) {
#pragma unroll
  for (int step = 0; step < kK / 16; ++step) {
    const uint32_t fragment[4] = {a[4 * step], a[4 * step + 1], a[4 * step + 2], a[4 * step + 3]};
    ptx::wgmma_rs<kDType, kN>(d, fragment,
                              advance_descriptor(b, b_tile.k_step_offset(Major::kMN, step)),
                              accumulate || step > 0);
  }
}

}  // namespace fa4
