// 2^x on the FMA units, two floats at once (SM100); core/exp2.h has the algorithm and its errors.
#pragma once

#include "flash_attn4/core/exp2.h"
#include "flash_attn4/device/device.cuh"

namespace fa4 {

namespace detail {

/// horner of both.
template <int kDegree, int kFirst>
FA4_D float2 horner_pair(float2 f) {
  constexpr float kCoefficient = Exp2Coefficients<kDegree>::c[kFirst - 1];
  if constexpr (kFirst == kDegree) {
    return {kCoefficient, kCoefficient};
  } else {
    return __ffma2_rn(horner_pair<kDegree, kFirst + 1>(f), f, float2{kCoefficient, kCoefficient});
  }
}

}  // namespace detail

/// exp2_polynomial of both, to the bit: 10 instructions with degree 3, one more per degree above.
template <int kDegree>
FA4_D float2 exp2_polynomial_pair(float2 x) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23
  const float2 clamped = {detail::at_least(x.x, -127.0f), detail::at_least(x.y, -127.0f)};
  const float2 shifted = __fadd2_rd(clamped, float2{kMagic, kMagic});
  const float2 whole = __fadd2_rn(shifted, float2{-kMagic, -kMagic});
  const float2 f = __ffma2_rn(whole, float2{-1.0f, -1.0f}, clamped);  // exact: whole is near
  const float2 p = __ffma2_rn(detail::horner_pair<kDegree, 1>(f), f, float2{1.0f, 1.0f});
  return {__uint_as_float(__float_as_uint(p.x) + (__float_as_uint(shifted.x) << 23)),
          __uint_as_float(__float_as_uint(p.y) + (__float_as_uint(shifted.y) << 23))};
}

}  // namespace fa4
