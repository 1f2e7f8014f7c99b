// Vectors of the instruction set that the including file is compiled for, through the vector
// extension that GCC and Clang share. Everything has internal linkage: each kernel file gets its
// own copy.
#pragma once

#include <cstdint>
#include <utility>

#include "flash_attn4/core/exp2.h"
#include "flash_attn4/core/types.h"

#if defined(__F16C__)
#include <immintrin.h>
#endif

#define FA4_INLINE __attribute__((always_inline)) inline

namespace fa4::cpu {
namespace {

// kGroup: rows of accumulators of a micro-kernel, two vectors wide. Two vectors of operands, a
// broadcast and 2 * kGroup accumulators fit into the registers: 32 with AVX-512 and on aarch64,
// otherwise 16.
#if defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr int kGroup = 8;
#elif defined(__AVX__)
constexpr int kLanes = 8;
constexpr int kGroup = 4;
#elif defined(__aarch64__)
constexpr int kLanes = 4;
constexpr int kGroup = 8;
#else
constexpr int kLanes = 4;
constexpr int kGroup = 4;
#endif
constexpr int kPanel = 2 * kLanes;  // query rows side by side in the lanes of a micro-kernel

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef int32_t IVec __attribute__((vector_size(kLanes * 4)));
typedef uint32_t UVec __attribute__((vector_size(kLanes * 4)));

// Rows are converted in eights, whatever the vector length: head dimensions are multiples of 8.
typedef float Vec8 __attribute__((vector_size(32)));
typedef int32_t IVec8 __attribute__((vector_size(32)));
typedef uint32_t UVec8 __attribute__((vector_size(32)));
typedef uint16_t HVec8 __attribute__((vector_size(16)));

template <class V>
FA4_INLINE V load(const void* address) {
  V value;
  __builtin_memcpy(&value, address, sizeof(V));
  return value;
}

template <class V>
FA4_INLINE void store(void* address, V value) {
  __builtin_memcpy(address, &value, sizeof(V));
}

FA4_INLINE Vec splat(float value) {
  return value - Vec{};
}

FA4_INLINE Vec larger(Vec a, Vec b) {
  return a > b ? a : b;
}

/// 2^x for x <= 127 with the polynomial of core/exp2.h: relative error 1.6e-7, exactly 0 below
/// -126.5, and exactly 1 at 0. Unlike the core routine it keeps NaN: the clamp and the product let
/// it pass.
FA4_INLINE Vec exp2(Vec x) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: one unit in the last place is 1
  constexpr const float* c = Exp2Coefficients<5>::c;
  const Vec clamped = x < -126.75f ? splat(-126.75f) : x;
  const Vec shifted = (clamped - 0.5f) + kMagic;  // rounds to floor(x), or x - 1 for some integers
  const Vec f = clamped - (shifted - kMagic);     // in [0, 1]
  Vec p = splat(c[4]);
  p = p * f + c[3];
  p = p * f + c[2];
  p = p * f + c[1];
  p = p * f + c[0];
  p = p * f + 1.0f;
  const UVec power = ((UVec)shifted << 23) + 0x3f800000u;  // 2^floor(x); 0 for -127
  return p * (Vec)power;
}

/// Lanes of a and b whose index has bit kBit clear (kHigh 0) or set (kHigh 1), each in the place
/// that a transposition of 2 x 2 sub-blocks of kBit lanes gives it.
template <int kBit, int kHigh, int... kIndex>
FA4_INLINE Vec exchange(Vec a, Vec b, std::integer_sequence<int, kIndex...>) {
  return __builtin_shufflevector(a, b,
                                 ((kIndex & kBit) ? kLanes + (kHigh ? kIndex : kIndex - kBit)
                                                  : (kHigh ? kIndex + kBit : kIndex))...);
}

template <int kBit>
FA4_INLINE void transpose_step(Vec (&rows)[kLanes]) {
  using Index = std::make_integer_sequence<int, kLanes>;
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if (i & kBit) continue;
    const Vec low = exchange<kBit, 0>(rows[i], rows[i + kBit], Index{});
    const Vec high = exchange<kBit, 1>(rows[i], rows[i + kBit], Index{});
    rows[i] = low;
    rows[i + kBit] = high;
  }
}

/// Transposes a block of kLanes x kLanes in place.
FA4_INLINE void transpose(Vec (&rows)[kLanes]) {
  transpose_step<1>(rows);
  transpose_step<2>(rows);
  if constexpr (kLanes >= 8) transpose_step<4>(rows);
  if constexpr (kLanes >= 16) transpose_step<8>(rows);
}

FA4_INLINE Vec8 bf16_to_f32(HVec8 half) {
  return (Vec8)(__builtin_convertvector(half, UVec8) << 16);
}

/// Rounds to nearest even; NaN stays NaN.
FA4_INLINE HVec8 f32_to_bf16(Vec8 value) {
  const UVec8 bits = (UVec8)value;
  const UVec8 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const UVec8 nan = (bits >> 16) | 0x40u;
  return __builtin_convertvector(value == value ? rounded : nan, HVec8);
}

#if defined(__F16C__)
FA4_INLINE Vec8 f16_to_f32(HVec8 half) {
  return (Vec8)_mm256_cvtph_ps((__m128i)half);
}
FA4_INLINE HVec8 f32_to_f16(Vec8 value) {
  return (HVec8)_mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT);
}
#else
FA4_INLINE Vec8 f16_to_f32(HVec8 half) {
  const UVec8 wide = __builtin_convertvector(half, UVec8);
  const UVec8 sign = (wide & 0x8000u) << 16;
  const UVec8 magnitude = (wide & 0x7fffu) << 13;
  const UVec8 exponent = magnitude & (0x7c00u << 13);
  const UVec8 rebias = UVec8{} + (112u << 23);  // exponent bias 127 instead of 15
  UVec8 bits = magnitude + rebias;
  bits = exponent == (0x7c00u << 13) ? bits + rebias : bits;  // infinity and NaN
  // A denormal is mantissa * 2^-24: as the mantissa of a number at 2^-14, less that 2^-14.
  const Vec8 denormal = (Vec8)(bits + (1u << 23)) - 0x1p-14f;
  bits = exponent == 0u ? (UVec8)denormal : bits;
  return (Vec8)(bits | sign);
}

/// Rounds to nearest even; values from 65520 on become infinity, NaN stays NaN.
FA4_INLINE HVec8 f32_to_f16(Vec8 value) {
  const UVec8 sign = ((UVec8)value >> 16) & 0x8000u;
  const UVec8 magnitude = (UVec8)value & 0x7fffffffu;
  const UVec8 normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // One unit in the last place of 0.5 is the smallest denormal, so the addition does the rounding.
  const UVec8 denormal = (UVec8)((Vec8)magnitude + 0.5f) - 0x3f000000u;
  UVec8 half = magnitude < (113u << 23) ? denormal : normal;
  half = magnitude >= 0x477ff000u ? UVec8{} + 0x7c00u : half;
  half = magnitude > 0x7f800000u ? UVec8{} + 0x7e00u : half;
  return __builtin_convertvector(half | sign, HVec8);
}
#endif

template <DType kType>
FA4_INLINE Vec8 load8(const void* row, int64_t index) {
  if constexpr (kType == DType::kFloat32) return load<Vec8>(static_cast<const float*>(row) + index);
  const HVec8 half = load<HVec8>(static_cast<const uint16_t*>(row) + index);
  if constexpr (kType == DType::kFloat16) return f16_to_f32(half);
  return bf16_to_f32(half);
}

template <DType kType>
FA4_INLINE void store8(void* row, int64_t index, Vec8 value) {
  if constexpr (kType == DType::kFloat32) {
    store(static_cast<float*>(row) + index, value);
  } else {
    const HVec8 half = kType == DType::kFloat16 ? f32_to_f16(value) : f32_to_bf16(value);
    store(static_cast<uint16_t*>(row) + index, half);
  }
}

/// Calls body with the element type as a compile-time constant.
template <class Body>
FA4_INLINE auto with_type(DType dtype, Body body) {
  switch (dtype) {
    case DType::kFloat32:
      return body(std::integral_constant<DType, DType::kFloat32>{});
    case DType::kFloat16:
      return body(std::integral_constant<DType, DType::kFloat16>{});
    default:
      return body(std::integral_constant<DType, DType::kBFloat16>{});
  }
}

}  // namespace
}  // namespace fa4::cpu
