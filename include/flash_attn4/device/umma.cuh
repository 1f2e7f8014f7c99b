// Products into tensor memory over a whole tile: the loop over k around a single tcgen05.mma.
#pragma once

#include "flash_attn4/core/descriptors.h"
#include "flash_attn4/device/device.cuh"
#include "flash_attn4/device/ptx/compiler.cuh"
#include "flash_attn4/device/ptx/tcgen05.cuh"

// Addresses of operands are kept where they are used: the compiler would else compute the
// descriptors of all steps ahead of the loop over keys, and spill them.

namespace fa4 {

/// Descriptor of the operand `offset` bytes behind the tile at `address`. Its upper word is a
/// constant; the lower one is built in 32 bits, which the compiler keeps in one register.
FA4_D uint64_t umma_operand(uint32_t address, uint32_t offset, TileLayout tile, Major major) {
  const uint64_t base = umma_descriptor(0, tile, major);
  const uint32_t low = static_cast<uint32_t>(base) + (address >> 4) + (offset >> 4);
  return base >> 32 << 32 | low;
}

/// D = A B^T, both K-major in shared memory with kK columns: row m of A times row n of B.
template <int kK, int kCtas = 1>
FA4_D void umma_abt(uint32_t d, uint32_t a, TileLayout a_tile, uint32_t b, TileLayout b_tile,
                    uint32_t instruction) {
  ptx::keep_here(a);
  ptx::keep_here(b);
#pragma unroll
  for (int step = 0; step < kK / 16; ++step) {
    ptx::tcgen05_mma_ss<kCtas>(
        d, umma_operand(a, a_tile.k_step_offset(Major::kK, step), a_tile, Major::kK),
        umma_operand(b, b_tile.k_step_offset(Major::kK, step), b_tile, Major::kK), instruction,
        step > 0);
  }
}

/// D = A^T B, both MN-major in shared memory with kK rows: column m of A times column n of B.
template <int kK, int kCtas = 1>
FA4_D void umma_atb(uint32_t d, uint32_t a, TileLayout a_tile, uint32_t b, TileLayout b_tile,
                    uint32_t instruction) {
  ptx::keep_here(a);
  ptx::keep_here(b);
#pragma unroll
  for (int step = 0; step < kK / 16; ++step) {
    ptx::tcgen05_mma_ss<kCtas>(
        d, umma_operand(a, a_tile.k_step_offset(Major::kMN, step), a_tile, Major::kMN),
        umma_operand(b, b_tile.k_step_offset(Major::kMN, step), b_tile, Major::kMN), instruction,
        step > 0);
  }
}

/// D += A B for the k-steps [first, last) of A, which is in tensor memory, where B is the tile at
/// `b`, MN-major, whose first row meets k-step `origin` of A. D = A B in k-step 0 unless accumulate.
template <int kCtas = 1>
FA4_D void umma_ab(uint32_t d, uint32_t a, uint32_t b, TileLayout b_tile, uint32_t instruction,
                   int origin, int first, int last, bool accumulate) {
  ptx::keep_here(a);
  ptx::keep_here(b);
#pragma unroll
  for (int step = first; step < last; ++step) {
    const uint32_t offset = b_tile.k_step_offset(Major::kMN, step - origin);
    ptx::tcgen05_mma_ts<kCtas>(d, a + 8 * step, umma_operand(b, offset, b_tile, Major::kMN),
                               instruction, accumulate || step > 0);
  }
}

}  // namespace fa4
