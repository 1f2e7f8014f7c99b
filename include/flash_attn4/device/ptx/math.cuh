// Single instructions of arithmetic. Not volatile: the compiler may move them, which hides their
// latency.
#pragma once

#include "flash_attn4/device/device.cuh"

namespace fa4::ptx {

/// 2^x; relative error 1.5e-7, results below 2^-126 are 0, -inf gives 0. The special function unit.
FA4_D float ex2(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

/// log2(x); absolute error 2e-6 on [1, 2^24], 0 gives -inf.
FA4_D float lg2(float x) {
  float result;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

/// 1 / x; relative error 1e-7.
FA4_D float rcp(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

/// The largest of three; NaN if any is. SM100: one instruction.
FA4_D float max3_nan(float a, float b, float c) {
  float result;
  asm("max.NaN.f32 %0, %1, %2, %3;" : "=f"(result) : "f"(a), "f"(b), "f"(c));
  return result;
}

/// Two floats rounded to 16 bit, `low` in bits 0-15.
template <DType kDType>
FA4_D uint32_t cvt_pack(float low, float high) {
  uint32_t result;
  if constexpr (kDType == DType::kBFloat16) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  }
  return result;
}

}  // namespace fa4::ptx
