// Forward on GPUs: what happens to scores ahead of the softmax, wherever a kernel holds them.
#pragma once

#include "flash_attn4/core/softmax.h"
#include "flash_attn4/device/device.cuh"
#include "flash_attn4/device/ptx/math.cuh"

namespace fa4 {

/// The lowest `count` of 32 bits; none for a negative count, all for one past 31.
FA4_D uint32_t low_bits(int count) {
  return ~__funnelshift_lc(0u, ~0u, max_of(count, 0));  // a shift that ends at 32
}

/// tanh, relative error 3e-7; tanh.approx is off by 5e-4. Near 0, where 1 - 2 / (e^2y + 1) would
/// cancel, an odd polynomial: y + y^3 p(y^2), minimax on |y| <= 0.65 with a relative error of 7e-9.
FA4_D float tanh_accurate(float y) {
  const float square = y * y;
  float p = fmaf(-0.005515161f, square, 0.020469418f);
  p = fmaf(p, square, -0.053688023f);
  p = fmaf(p, square, 0.1333083f);
  p = fmaf(p, square, -0.3333326f);
  const float small = fmaf(y * square, p, y);
  const float large = 1.0f - 2.0f * ptx::rcp(ptx::ex2(y * (2.0f * kLog2e)) + 1.0f);
  return fabsf(y) <= 0.65f ? small : large;
}

}  // namespace fa4
