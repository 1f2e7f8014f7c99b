// Global memory that several CTAs write: reductions, counters.
#pragma once

#include "flash_attn4/device/device.cuh"

namespace fa4::ptx {

/// Adds four floats to those at `to`, a multiple of 16 bytes. Each addition is atomic; the order of
/// additions by several threads is not determined.
FA4_D void red_add_v4(float* to, float a, float b, float c, float d) {
  asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(a),
               "f"(b), "f"(c), "f"(d)
               : "memory");
}

/// What the thread has written, and what it knows to be written, is seen by who sees the new value.
FA4_D void red_add_release(int32_t* to, int32_t value) {
  asm volatile("red.release.gpu.global.add.s32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}

FA4_D int32_t load_acquire(const int32_t* from) {
  int32_t value;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}

}  // namespace fa4::ptx
