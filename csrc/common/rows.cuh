// Rows of 16-bit elements in global memory, 16 bytes at a time; single elements of any type.
#pragma once

#include "flash_attn4/device/device.cuh"

namespace fa4 {

/// Two elements as float32, `x` that of bits 0-15.
template <DType kDType>
FA4_D float2 unpack(uint32_t word) {
  if constexpr (kDType == DType::kBFloat16) {
    return {__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u)};
  } else {
    return __half22float2(*reinterpret_cast<const __half2*>(&word));
  }
}

/// Eight elements from `offset` on, in one load where rows begin at multiples of 16 bytes
/// (`vector`).
FA4_D uint4 load_unit(const void* data, int64_t offset, bool vector) {
  const auto* from = static_cast<const uint16_t*>(data) + offset;
  if (vector) return *reinterpret_cast<const uint4*>(from);
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) words[i] = from[2 * i] | uint32_t{from[2 * i + 1]} << 16;
  return {words[0], words[1], words[2], words[3]};
}

/// Eight elements from `offset` on, in one store where rows begin at multiples of 16 bytes
/// (`vector`).
FA4_D void store_unit(void* data, int64_t offset, const uint4& unit, bool vector) {
  auto* to = static_cast<uint16_t*>(data) + offset;
  if (vector) {
    *reinterpret_cast<uint4*>(to) = unit;
    return;
  }
  const uint32_t words[4] = {unit.x, unit.y, unit.z, unit.w};
#pragma unroll
  for (int i = 0; i < 8; ++i) to[i] = static_cast<uint16_t>(words[i / 2] >> (16 * (i % 2)));
}

FA4_D float load_scalar(DType dtype, const void* data, int64_t index) {
  switch (dtype) {
    case DType::kFloat32:
      return static_cast<const float*>(data)[index];
    case DType::kFloat16:
      return __half2float(static_cast<const __half*>(data)[index]);
    default:
      return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[index]);
  }
}

FA4_D void store_scalar(DType dtype, void* data, int64_t index, float value) {
  switch (dtype) {
    case DType::kFloat32:
      static_cast<float*>(data)[index] = value;
      return;
    case DType::kFloat16:
      static_cast<__half*>(data)[index] = __float2half_rn(value);
      return;
    default:
      static_cast<__nv_bfloat16*>(data)[index] = __float2bfloat16_rn(value);
  }
}

}  // namespace fa4
