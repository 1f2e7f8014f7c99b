// Stores of matrix fragments to shared memory.
#pragma once

#include "flash_attn4/device/device.cuh"

namespace fa4::ptx {

/// Four 8 x 8 matrices of 16-bit elements. Lane l gives the address of row l % 8 of matrix l / 8
/// and holds elements 2 * (l % 4), + 1 of row l / 4 of matrix i in m[i]. By a whole warp.
FA4_D void stmatrix_x4(uint32_t address, const uint32_t (&m)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
               "r"(m[0]), "r"(m[1]), "r"(m[2]), "r"(m[3])
               : "memory");
}

}  // namespace fa4::ptx
