// Products of one warpgroup over a whole tile: the loop over k around a single wgmma.
#pragma once

#include "flash_attn4/core/descriptors.h"
#include "flash_attn4/device/device.cuh"
#include "flash_attn4/device/ptx/wgmma.cuh"

namespace fa4 {

/// Descriptor of what lies at `address` of shared memory, a tile base plus a multiple of 16 bytes.
/// Its upper word is a constant; the lower one is built in 32 bits, which the compiler does not
/// carry through a loop as it does 64-bit parts.
FA4_D uint64_t gmma_operand(uint32_t address, TileLayout tile, Major major) {
  const uint64_t base = gmma_descriptor(0, tile, major);
  const uint32_t low = static_cast<uint32_t>(base) + (address >> 4);
  return base >> 32 << 32 | low;
}

/// D (64 x kN) = A B over kK steps of k, or += when accumulate; both in shared memory. `a` and `b`
/// describe what meets the first 16 of k, and begin at the product's first row and column.
template <DType kDType, int kN, int kK, Major kA, Major kB>
FA4_D void gmma_ss(float (&d)[kN / 2], uint64_t a, TileLayout a_tile, uint64_t b, TileLayout b_tile,
                   bool accumulate) {
#pragma unroll
  for (int step = 0; step < kK / 16; ++step) {
    ptx::wgmma_ss<kDType, kN, kA, kB>(d, advance_descriptor(a, a_tile.k_step_offset(kA, step)),
                                      advance_descriptor(b, b_tile.k_step_offset(kB, step)),
                                      accumulate || step > 0);
  }
}

/// D (64 x kN) = A B^T, both K-major in shared memory with kK columns: row m of A times row n of B.
template <DType kDType, int kN, int kK>
FA4_D void gmma_abt(float (&d)[kN / 2], uint64_t a, TileLayout a_tile, uint64_t b,
                    TileLayout b_tile) {
  gmma_ss<kDType, kN, kK, Major::kK, Major::kK>(d, a, a_tile, b, b_tile, /*accumulate=*/false);
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
