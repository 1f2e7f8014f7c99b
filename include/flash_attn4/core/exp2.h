// 2^x on the FMA units: range reduction and a polynomial, for the share of exponentials that the
// special function unit has no time for.
//
// x = n + f with n = floor(x), f in [0, 1]; 2^f ~ p(f) = 1 + c1 f + ... + c_d f^d; 2^n is an
// integer addition to the exponent bits of p. The floor comes from adding M = 1.5 * 2^23 rounded
// toward minus infinity: the sum's low mantissa bits hold n, ready for the shift by 23.
//
// p(0) = 1 exactly: x <= -127 (a masked score) then yields bit pattern 0, an exact zero.
// Coefficients are minimax for the relative error on [0, 1] under that constraint. Largest relative
// errors over all float32 inputs in [-126, 8.5] (measured by tests/core/test_exp2.cpp):
//     degree 3: 8.57e-5     degree 4: 2.97e-6     degree 5: 1.56e-7   (ex2.approx.ftz: 1.46e-7)
// Between -127 and -126 the result is a denormal without meaning (below 1.2e-38). Valid for x
// below 128. NaN: the clamp drops it and the result is 0, so at least one exponential of a row must
// not come from here if NaN is to show.
#pragma once

#include <cmath>
#include <cstdint>

#include "flash_attn4/core/types.h"

namespace fa4 {

/// Coefficients c1..c_degree of p; degree 3, 4 or 5.
template <int kDegree>
struct Exp2Coefficients;
template <>
struct Exp2Coefficients<3> {
  static constexpr float c[] = {0.695116818f, 0.227644965f, 0.0770670623f};
};
template <>
struct Exp2Coefficients<4> {
  static constexpr float c[] = {0.693044841f, 0.241280198f, 0.0522424728f, 0.0134266857f};
};
template <>
struct Exp2Coefficients<5> {
  static constexpr float c[] = {0.693151295f, 0.240164459f, 0.0558000915f, 0.00901685189f,
                                0.00186713005f};
};

/// Largest relative error of exp2_polynomial<degree>, for test bounds.
constexpr float exp2_max_error(int degree) {
  return degree == 3 ? 8.6e-5f : degree == 4 ? 3.0e-6f : 1.6e-7f;
}

namespace detail {

/// value * f + addend, rounded once.
FA4_HD inline float fused(float value, float f, float addend) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(value, f, addend);
#else
  return std::fma(value, f, addend);
#endif
}

/// The larger of x and low; low where x is NaN.
FA4_HD inline float at_least(float x, float low) {
#if defined(__CUDA_ARCH__)
  return fmaxf(x, low);  // one instruction, where a comparison and a selection are two
#else
  return x > low ? x : low;
#endif
}

/// x + magic rounded toward minus infinity, for x in [-127, 128) and magic = 1.5 * 2^23.
FA4_HD inline float add_magic_down(float x, float magic) {
#if defined(__CUDA_ARCH__)
  return __fadd_rd(x, magic);
#else
  // Integers near magic are floats: magic + floor(x) is exact, and the rounded-down sum.
  return magic + std::floor(x);
#endif
}

/// c_k + f (c_{k+1} + f (... + f c_degree)) with k = kFirst. The index is a template parameter
/// because device code reads the elements of a constexpr array only as constants.
template <int kDegree, int kFirst>
FA4_HD inline float horner(float f) {
  constexpr float coefficient = Exp2Coefficients<kDegree>::c[kFirst - 1];
  if constexpr (kFirst == kDegree) {
    return coefficient;
  } else {
    return fused(horner<kDegree, kFirst + 1>(f), f, coefficient);
  }
}

}  // namespace detail

/// p(f) by Horner, f in [0, 1].
template <int kDegree>
FA4_HD inline float exp2_fraction(float f) {
  return detail::fused(detail::horner<kDegree, 1>(f), f, 1.0f);
}

/// 2^x for x < 128; exact 0 for x <= -127, -inf included.
template <int kDegree>
FA4_HD inline float exp2_polynomial(float x) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: one unit in the last place is 1
  const float clamped = detail::at_least(x, -127.0f);
  const float shifted = detail::add_magic_down(clamped, kMagic);
  const float f = clamped - (shifted - kMagic);
  const uint32_t bits = __builtin_bit_cast(uint32_t, exp2_fraction<kDegree>(f)) +
                        (__builtin_bit_cast(uint32_t, shifted) << 23);
  return __builtin_bit_cast(float, bits);
}

}  // namespace fa4
