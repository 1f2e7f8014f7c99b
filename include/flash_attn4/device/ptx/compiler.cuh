// No instructions: what the compiler may not do.
#pragma once

#include "flash_attn4/device/device.cuh"

namespace fa4::ptx {

/// Accesses to these registers stay on their side of this point. The compiler knows nothing of the
/// asynchronous reads and writes of wgmma, and would move them.
template <int kCount>
FA4_D void hold(float (&registers)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(registers[i])::"memory");
}
template <int kCount>
FA4_D void hold(uint32_t (&registers)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(registers[i])::"memory");
}

/// What follows from `value` is computed after this point, not ahead of a loop around it.
FA4_D void keep_here(int& value) {
  asm volatile("" : "+r"(value));
}
FA4_D void keep_here(uint32_t& value) {
  asm volatile("" : "+r"(value));
}

}  // namespace fa4::ptx
