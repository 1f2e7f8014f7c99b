// Shared memory by 32-bit address: one register, where a pointer takes two or is computed anew.
#pragma once

#include "flash_attn4/device/device.cuh"

namespace fa4::ptx {

FA4_D void store_shared(uint32_t to, float value) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(to), "f"(value) : "memory");
}

}  // namespace fa4::ptx
