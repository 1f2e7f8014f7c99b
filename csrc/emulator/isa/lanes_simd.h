// Bodies of the handlers in lanes.h, as loops over 32 lanes that the compiler turns into vectors of the
// instruction set that the including file is compiled for. Everything has internal linkage.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "csrc/emulator/isa/lanes.h"
#include "csrc/emulator/machine/machine.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace fa4::emulator {
namespace {

using Lanes = uint32_t[kWarpLanes];

// ---- Reading and writing planes ------------------------------------------------------------------------

/// Lanes of `mask` take the new values.
FA4_INLINE void write_lanes(uint32_t* to, const uint32_t* from, uint32_t mask) {
  if (mask == kAllLanes) [[likely]] {
    std::memcpy(to, from, sizeof(Lanes));
    return;
  }
  for (uint32_t l = 0; l < kWarpLanes; ++l) to[l] = (mask >> l & 1) != 0 ? from[l] : to[l];
}

/// Bit l of the result: whether lane l is not zero (0 or all ones).
FA4_INLINE uint32_t mask_of(const uint32_t* lanes) {
#if defined(__AVX512DQ__)
  const __m512i low = _mm512_loadu_si512(lanes), high = _mm512_loadu_si512(lanes + 16);
  return static_cast<uint32_t>(_mm512_movepi32_mask(low)) |
         static_cast<uint32_t>(_mm512_movepi32_mask(high)) << 16;
#elif defined(__AVX2__)
  uint32_t mask = 0;
  for (int i = 0; i < 4; ++i) {
    const __m256 part = _mm256_loadu_ps(reinterpret_cast<const float*>(lanes + 8 * i));
    mask |= static_cast<uint32_t>(_mm256_movemask_ps(part)) << (8 * i);
  }
  return mask;
#else
  uint32_t mask = 0;
  for (uint32_t l = 0; l < kWarpLanes; ++l) mask |= (lanes[l] & 1) << l;
  return mask;
#endif
}

FA4_INLINE float f(uint32_t bits) {
  return std::bit_cast<float>(bits);
}
FA4_INLINE uint32_t u(float value) {
  return std::bit_cast<uint32_t>(value);
}
FA4_INLINE int32_t s(uint32_t bits) {
  return static_cast<int32_t>(bits);
}

/// Denormal numbers to zero of the same sign.
template <bool kFtz>
FA4_INLINE uint32_t flushed(uint32_t bits) {
  if constexpr (!kFtz) return bits;
  return (bits & 0x7f800000u) != 0 ? bits : bits & 0x80000000u;
}

template <class F>
FA4_INLINE void map(Warp& w, const Op& op, int d, int a, int b, int c, F function) {
  const uint32_t* const pa = w.source(op.r[a]);
  const uint32_t* const pb = w.source(op.r[b]);
  const uint32_t* const pc = w.source(op.r[c]);
  alignas(64) Lanes result;
  for (int l = 0; l < kWarpLanes; ++l) result[l] = function(pa[l], pb[l], pc[l]);
  write_lanes(w.target(op.r[d]), result, w.exec);
}

/// d = function(a, b, c) on 32-bit lanes; unused sources are any plane.
template <class F>
FA4_INLINE void map32(Warp& w, const Op& op, F function) {
  map(w, op, kD, kA, kB, kC, function);
}

/// The same on the low planes and on the high planes of 64-bit operands.
template <class F>
FA4_INLINE void map_halves(Warp& w, const Op& op, F function) {
  // Both are computed before either is written: a result may be an operand of the same instruction.
  alignas(64) Lanes low, high;
  const uint32_t *a = w.source(op.r[kA]), *b = w.source(op.r[kB]), *c = w.source(op.r[kC]);
  for (int l = 0; l < kWarpLanes; ++l) low[l] = function(a[l], b[l], c[l]);
  a = w.source(op.r[kA + 1]), b = w.source(op.r[kB + 1]), c = w.source(op.r[kC + 1]);
  for (int l = 0; l < kWarpLanes; ++l) high[l] = function(a[l], b[l], c[l]);
  write_lanes(w.target(op.r[kD]), low, w.exec);
  write_lanes(w.target(op.r[kD + 1]), high, w.exec);
}

/// function(low words, high words, result low, result high) per lane.
template <class F>
FA4_INLINE void map64(Warp& w, const Op& op, F function) {
  const uint32_t *a = w.source(op.r[kA]), *ah = w.source(op.r[kA + 1]);
  const uint32_t *b = w.source(op.r[kB]), *bh = w.source(op.r[kB + 1]);
  alignas(64) Lanes low, high;
  for (int l = 0; l < kWarpLanes; ++l) function(a[l], ah[l], b[l], bh[l], low[l], high[l]);
  write_lanes(w.target(op.r[kD]), low, w.exec);
  write_lanes(w.target(op.r[kD + 1]), high, w.exec);
}

// ---- Integers ------------------------------------------------------------------------------------------

void mov32(Warp& w, const Op& op) {
  write_lanes(w.target(op.r[kD]), w.source(op.r[kA]), w.exec);
}
void mov64(Warp& w, const Op& op) {
  alignas(64) Lanes low;
  std::memcpy(low, w.source(op.r[kA]), sizeof low);
  alignas(64) Lanes high;
  std::memcpy(high, w.source(op.r[kA + 1]), sizeof high);
  write_lanes(w.target(op.r[kD]), low, w.exec);
  write_lanes(w.target(op.r[kD + 1]), high, w.exec);
}

#define FA4_MAP32(name, expression)                                                        \
  void name(Warp& w, const Op& op) {                                                       \
    map32(w, op,                                                                           \
          [&]([[maybe_unused]] uint32_t a, [[maybe_unused]] uint32_t b,                    \
              [[maybe_unused]] uint32_t c) FA4_LAMBDA -> uint32_t { return expression; }); \
  }
#define FA4_MAP_HALVES(name, expression)                                                        \
  void name(Warp& w, const Op& op) {                                                            \
    map_halves(w, op,                                                                           \
               [&]([[maybe_unused]] uint32_t a, [[maybe_unused]] uint32_t b,                    \
                   [[maybe_unused]] uint32_t c) FA4_LAMBDA -> uint32_t { return expression; }); \
  }
#define FA4_LAMBDA __attribute__((always_inline))

FA4_MAP32(add32, a + b)
FA4_MAP32(sub32, a - b)
FA4_MAP32(mul32, (a * b))
FA4_MAP32(mad32, (a * b + c))
FA4_MAP32(and32, (a & b))
FA4_MAP32(or32, a | b)
FA4_MAP32(xor32, a ^ b)
FA4_MAP32(not32, ~a)
FA4_MAP32(neg32, 0u - a)
FA4_MAP32(min_u32, a < b ? a : b)
FA4_MAP32(max_u32, a > b ? a : b)
FA4_MAP32(min_s32, s(a) < s(b) ? a : b)
FA4_MAP32(max_s32, s(a) > s(b) ? a : b)
FA4_MAP32(abs_s32, s(a) < 0 ? 0u - a : a)
// Shifts by 32 and more give 0, or copies of the sign.
FA4_MAP32(shl32, b > 31 ? 0u : a << (b & 31))
FA4_MAP32(shr_u32, b > 31 ? 0u : a >> (b & 31))
FA4_MAP32(shr_s32, static_cast<uint32_t>(s(a) >> (b > 31 ? 31 : b)))
FA4_MAP_HALVES(and64, (a & b))
FA4_MAP_HALVES(or64, a | b)
FA4_MAP_HALVES(xor64, a ^ b)
FA4_MAP_HALVES(not64, ~a)

/// Any function of three bits: bit 4a + 2b + c of the table in imm.
void lop3(Warp& w, const Op& op) {
  uint32_t term[8];
  for (int i = 0; i < 8; ++i) term[i] = (op.imm >> i & 1) != 0 ? kAllLanes : 0;
  map32(w, op, [&](uint32_t a, uint32_t b, uint32_t c) FA4_LAMBDA {
    const uint32_t both = b & c, only_b = b & ~c, only_c = ~b & c, neither = ~b & ~c;
    const uint32_t when_0 =
        (term[0] & neither) | (term[1] & only_c) | (term[2] & only_b) | (term[3] & both);
    const uint32_t when_1 =
        (term[4] & neither) | (term[5] & only_c) | (term[6] & only_b) | (term[7] & both);
    return (a & when_1) | (~a & when_0);
  });
}

void add64(Warp& w, const Op& op) {
  map64(w, op,
        [](uint32_t a, uint32_t ah, uint32_t b, uint32_t bh, uint32_t& low, uint32_t& high)
            FA4_LAMBDA {
              low = a + b;
              high = ah + bh + (low < a ? 1u : 0u);
            });
}
void sub64(Warp& w, const Op& op) {
  map64(w, op,
        [](uint32_t a, uint32_t ah, uint32_t b, uint32_t bh, uint32_t& low, uint32_t& high)
            FA4_LAMBDA {
              low = a - b;
              high = ah - bh - (a < b ? 1u : 0u);
            });
}

template <class Wide, class Narrow>
FA4_INLINE void multiply_wide(Warp& w, const Op& op, bool accumulate) {
  const uint32_t *a = w.source(op.r[kA]), *b = w.source(op.r[kB]);
  const uint32_t *c = w.source(op.r[kC]), *ch = w.source(op.r[kC + 1]);
  alignas(64) Lanes low, high;
  for (int l = 0; l < kWarpLanes; ++l) {
    auto product =
        static_cast<uint64_t>(Wide{static_cast<Narrow>(a[l])} * static_cast<Narrow>(b[l]));
    if (accumulate) product += uint64_t{ch[l]} << 32 | c[l];
    low[l] = static_cast<uint32_t>(product);
    high[l] = static_cast<uint32_t>(product >> 32);
  }
  write_lanes(w.target(op.r[kD]), low, w.exec);
  write_lanes(w.target(op.r[kD + 1]), high, w.exec);
}
void mul_wide_u32(Warp& w, const Op& op) {
  multiply_wide<uint64_t, uint32_t>(w, op, false);
}
void mul_wide_s32(Warp& w, const Op& op) {
  multiply_wide<int64_t, int32_t>(w, op, false);
}
void mad_wide_u32(Warp& w, const Op& op) {
  multiply_wide<uint64_t, uint32_t>(w, op, true);
}
void mad_wide_s32(Warp& w, const Op& op) {
  multiply_wide<int64_t, int32_t>(w, op, true);
}

// ---- Predicates ----------------------------------------------------------------------------------------

FA4_INLINE uint32_t source_pred(const Warp& w, const Op& op) {
  const uint32_t mask = w.pred(op.p[2]);
  return op.source_negated ? ~mask : mask;
}

void selp32(Warp& w, const Op& op) {
  const uint32_t mask = source_pred(w, op);
  const uint32_t *a = w.source(op.r[kA]), *b = w.source(op.r[kB]);
  alignas(64) Lanes result;
  for (uint32_t l = 0; l < kWarpLanes; ++l) result[l] = (mask >> l & 1) != 0 ? a[l] : b[l];
  write_lanes(w.target(op.r[kD]), result, w.exec);
}
void selp64(Warp& w, const Op& op) {
  const uint32_t mask = source_pred(w, op);
  alignas(64) Lanes result[2];
  for (int half = 0; half < 2; ++half) {
    const uint32_t *a = w.source(op.r[kA + half]), *b = w.source(op.r[kB + half]);
    for (uint32_t l = 0; l < kWarpLanes; ++l) result[half][l] = (mask >> l & 1) != 0 ? a[l] : b[l];
  }
  write_lanes(w.target(op.r[kD]), result[0], w.exec);
  write_lanes(w.target(op.r[kD + 1]), result[1], w.exec);
}

FA4_INLINE void write_comparison(Warp& w, const Op& op, uint32_t mask) {
  uint32_t first = mask, second = ~mask;
  switch (static_cast<Combine>(op.mode >> 4)) {
    case Combine::kNone:
      break;
    case Combine::kAnd:
      first &= source_pred(w, op), second &= source_pred(w, op);
      break;
    case Combine::kOr:
      first |= source_pred(w, op), second |= source_pred(w, op);
      break;
    case Combine::kXor:
      first ^= source_pred(w, op), second ^= source_pred(w, op);
      break;
  }
  w.set_pred(op.p[0], first);
  if (op.p[1] != kNoPred) w.set_pred(op.p[1], second);
}

template <class F>
FA4_INLINE uint32_t compare_lanes(const uint32_t* a, const uint32_t* b, F function) {
  alignas(64) Lanes result;
  for (int l = 0; l < kWarpLanes; ++l) result[l] = function(a[l], b[l]) ? kAllLanes : 0u;
  return mask_of(result);
}

template <class T>
FA4_INLINE void setp_integer(Warp& w, const Op& op) {
  const uint32_t *a = w.source(op.r[kA]), *b = w.source(op.r[kB]);
  uint32_t mask = 0;
#define FA4_COMPARE(name, op_)                                         \
  case Compare::name:                                                  \
    mask = compare_lanes(a, b, [](uint32_t x, uint32_t y) FA4_LAMBDA { \
      return static_cast<T>(x) op_ static_cast<T>(y);                  \
    });                                                                \
    break;
  switch (static_cast<Compare>(op.mode & 15)) {
    FA4_COMPARE(kEq, ==)
    FA4_COMPARE(kNe, !=)
    FA4_COMPARE(kLt, <)
    FA4_COMPARE(kLe, <=)
    FA4_COMPARE(kGt, >)
    FA4_COMPARE(kGe, >=)
    default:
      break;
  }
#undef FA4_COMPARE
  write_comparison(w, op, mask);
}
void setp_s32(Warp& w, const Op& op) {
  setp_integer<int32_t>(w, op);
}
void setp_u32(Warp& w, const Op& op) {
  setp_integer<uint32_t>(w, op);
}

template <bool kFtz>
FA4_INLINE void setp_float(Warp& w, const Op& op) {
  const uint32_t *a = w.source(op.r[kA]), *b = w.source(op.r[kB]);
  uint32_t mask = 0;
#define FA4_COMPARE(name, expression)                                    \
  case Compare::name:                                                    \
    mask = compare_lanes(a, b, [](uint32_t xb, uint32_t yb) FA4_LAMBDA { \
      const float x = f(flushed<kFtz>(xb)), y = f(flushed<kFtz>(yb));    \
      return expression;                                                 \
    });                                                                  \
    break;
  switch (static_cast<Compare>(op.mode & 15)) {
    FA4_COMPARE(kEq, x == y)
    FA4_COMPARE(kNe, x < y || x > y)
    FA4_COMPARE(kLt, x < y)
    FA4_COMPARE(kLe, x <= y)
    FA4_COMPARE(kGt, x > y)
    FA4_COMPARE(kGe, x >= y)
    FA4_COMPARE(kEqu, !(x < y || x > y))
    FA4_COMPARE(kNeu, x != y)
    FA4_COMPARE(kLtu, !(x >= y))
    FA4_COMPARE(kLeu, !(x > y))
    FA4_COMPARE(kGtu, !(x <= y))
    FA4_COMPARE(kGeu, !(x < y))
    FA4_COMPARE(kNum, x == x && y == y)
    FA4_COMPARE(kNan, x != x || y != y)
  }
#undef FA4_COMPARE
  write_comparison(w, op, mask);
}
void setp_f32(Warp& w, const Op& op) {
  setp_float<false>(w, op);
}
void setp_f32_ftz(Warp& w, const Op& op) {
  setp_float<true>(w, op);
}

// ---- fp32 ----------------------------------------------------------------------------------------------

// NaN results are the canonical 0x7fffffff, as hardware's.
template <bool kFtz>
FA4_INLINE uint32_t result_of(float value) {
  return value == value ? flushed<kFtz>(u(value)) : 0x7fffffffu;
}

template <bool kFtz>
FA4_INLINE uint32_t add_of(uint32_t a, uint32_t b) {
  return result_of<kFtz>(f(flushed<kFtz>(a)) + f(flushed<kFtz>(b)));
}
template <bool kFtz>
FA4_INLINE uint32_t sub_of(uint32_t a, uint32_t b) {
  return result_of<kFtz>(f(flushed<kFtz>(a)) - f(flushed<kFtz>(b)));
}
template <bool kFtz>
FA4_INLINE uint32_t mul_of(uint32_t a, uint32_t b) {
  return result_of<kFtz>(f(flushed<kFtz>(a)) * f(flushed<kFtz>(b)));
}
template <bool kFtz>
FA4_INLINE uint32_t fma_of(uint32_t a, uint32_t b, uint32_t c) {
  return result_of<kFtz>(
      __builtin_fmaf(f(flushed<kFtz>(a)), f(flushed<kFtz>(b)), f(flushed<kFtz>(c))));
}

/// a + b rounded towards minus infinity: the sum to nearest, one step down where it is above the exact
/// one. The rounding error of an addition is itself a float, found by the two-sum identity.
template <bool kFtz>
FA4_INLINE uint32_t add_down_of(uint32_t ab, uint32_t bb) {
  const float a = f(flushed<kFtz>(ab)), b = f(flushed<kFtz>(bb));
  const float sum = a + b;
  const float b_part = sum - a;
  const float error = (a - (sum - b_part)) + (b - b_part);
  const uint32_t bits = u(sum);
  const uint32_t below = s(bits) < 0 ? bits + 1 : bits == 0 ? 0x80000001u : bits - 1;
  // An exact zero of operands that are not both +0 is -0 in this rounding.
  const bool minus_zero = sum == 0 && error == 0 && (s(u(a)) < 0 || s(u(b)) < 0);
  // Finite operands never reach +infinity downwards.
  const bool overflow = bits == 0x7f800000u && (u(a) & 0x7fffffffu) < 0x7f800000u &&
                        (u(b) & 0x7fffffffu) < 0x7f800000u;
  const uint32_t exact = overflow ? 0x7f7fffffu : minus_zero ? 0x80000000u : bits;
  return result_of<kFtz>(f(error < 0 ? below : exact));
}

// The other operand where one is NaN; -0 is less than +0.
template <bool kFtz>
FA4_INLINE uint32_t max_of(uint32_t ab, uint32_t bb) {
  const uint32_t a = flushed<kFtz>(ab), b = flushed<kFtz>(bb);
  const bool a_nan = f(a) != f(a), b_nan = f(b) != f(b);
  const uint32_t larger = f(a) == f(b) ? a & b : f(a) > f(b) ? a : b;
  return a_nan ? (b_nan ? 0x7fffffffu : b) : b_nan ? a : larger;
}
template <bool kFtz>
FA4_INLINE uint32_t min_of(uint32_t ab, uint32_t bb) {
  const uint32_t a = flushed<kFtz>(ab), b = flushed<kFtz>(bb);
  const bool a_nan = f(a) != f(a), b_nan = f(b) != f(b);
  const uint32_t smaller = f(a) == f(b) ? a | b : f(a) < f(b) ? a : b;
  return a_nan ? (b_nan ? 0x7fffffffu : b) : b_nan ? a : smaller;
}

#define FA4_FLOAT(name, expression)    \
  FA4_MAP32(name, (expression(false))) \
  FA4_MAP32(name##_ftz, (expression(true)))
#define FA4_FLOAT_PAIR(name, expression)    \
  FA4_MAP_HALVES(name, (expression(false))) \
  FA4_MAP_HALVES(name##_ftz, (expression(true)))

#define FA4_ADD(ftz) add_of<ftz>(a, b)
#define FA4_SUB(ftz) sub_of<ftz>(a, b)
#define FA4_MUL(ftz) mul_of<ftz>(a, b)
#define FA4_FMA(ftz) fma_of<ftz>(a, b, c)
#define FA4_ADD_DOWN(ftz) add_down_of<ftz>(a, b)
#define FA4_MAX(ftz) max_of<ftz>(a, b)
#define FA4_MIN(ftz) min_of<ftz>(a, b)
#define FA4_MAX3(ftz) max_of<ftz>(max_of<ftz>(a, b), c)
#define FA4_MIN3(ftz) min_of<ftz>(min_of<ftz>(a, b), c)
FA4_FLOAT(add_f32, FA4_ADD)
FA4_FLOAT(sub_f32, FA4_SUB)
FA4_FLOAT(mul_f32, FA4_MUL)
FA4_FLOAT(fma_f32, FA4_FMA)
FA4_FLOAT(add_down_f32, FA4_ADD_DOWN)
FA4_FLOAT(max_f32, FA4_MAX)
FA4_FLOAT(min_f32, FA4_MIN)
FA4_FLOAT(max3_f32, FA4_MAX3)
FA4_FLOAT(min3_f32, FA4_MIN3)
FA4_FLOAT_PAIR(add_f32x2, FA4_ADD)
FA4_FLOAT_PAIR(sub_f32x2, FA4_SUB)
FA4_FLOAT_PAIR(mul_f32x2, FA4_MUL)
FA4_FLOAT_PAIR(fma_f32x2, FA4_FMA)
FA4_FLOAT_PAIR(add_down_f32x2, FA4_ADD_DOWN)
FA4_MAP32(neg_f32, a ^ 0x80000000u)
FA4_MAP32(abs_f32, a & 0x7fffffffu)

// ---- Approximate functions, at their best: the float nearest to the exact result --------------------------

/// 2^x in double: x = n + r with |r| <= 1/2, 2^r by its Taylor series to degree 8 (remainder below
/// 3e-10 of the result, a fiftieth of half an fp32 unit), so that rounding to fp32 gives the nearest
/// float but for near ties.
FA4_INLINE float exp2_of(float x) {
  const double clamped = x < -160.0f ? -160.0 : x > 130.0f ? 130.0 : static_cast<double>(x);
  const double shifted = clamped + 6755399441055744.0;  // 1.5 * 2^52: rounds to an integer
  const double n = shifted - 6755399441055744.0;
  const double r = (clamped - n) * 0.69314718055994530942;
  double p = 2.48015873015873e-5;  // 1/8!
  p = p * r + 1.984126984126984e-4;
  p = p * r + 1.388888888888889e-3;
  p = p * r + 8.333333333333333e-3;
  p = p * r + 4.1666666666666664e-2;
  p = p * r + 1.6666666666666666e-1;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  const uint64_t integer = std::bit_cast<uint64_t>(shifted) << 52;  // n in the exponent's place
  const double scale = std::bit_cast<double>(integer + (uint64_t{1023} << 52));
  return static_cast<float>(p * scale);
}

template <bool kFtz>
FA4_INLINE uint32_t ex2_of(uint32_t bits) {
  const float x = f(flushed<kFtz>(bits));
  return x == x ? flushed<kFtz>(u(exp2_of(x))) : 0x7fffffffu;
}
template <bool kFtz>
FA4_INLINE uint32_t rcp_of(uint32_t bits) {
  return result_of<kFtz>(1.0f / f(flushed<kFtz>(bits)));
}
#define FA4_EX2(ftz) ex2_of<ftz>(a)
#define FA4_RCP(ftz) rcp_of<ftz>(a)
FA4_FLOAT(ex2_f32, FA4_EX2)
FA4_FLOAT(rcp_f32, FA4_RCP)

// ---- Conversions ---------------------------------------------------------------------------------------

/// To bf16, round to nearest even.
FA4_INLINE uint32_t bf16_of(uint32_t bits) {
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return nan ? 0x7fffu : (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
}

/// To fp16, round to nearest even, by integer arithmetic alone.
FA4_INLINE uint32_t f16_of(uint32_t bits) {
  const uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  // Normal results: rebias the exponent, round the 13 bits that go.
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1)) >> 13;
  // Results below 2^-14: adding 1/2 aligns the significand to the last place of fp16.
  const uint32_t subnormal = u(f(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
  const uint32_t limited = finite > 0x7c00u ? 0x7c00u : finite;
  const uint32_t large = magnitude >= 0x47800000u ? 0x7c00u : limited;
  return magnitude > 0x7f800000u ? 0x7fffu : sign | large;
}

// The first source becomes the upper half.
FA4_MAP32(cvt_bf16x2_f32, bf16_of(a) << 16 | bf16_of(b))
FA4_MAP32(cvt_f16x2_f32, f16_of(a) << 16 | f16_of(b))
FA4_MAP32(cvt_bf16_f32, bf16_of(a))
FA4_MAP32(cvt_f32_bf16, a << 16)
FA4_MAP32(cvt_f32_s32, u(static_cast<float>(s(a))))
FA4_MAP32(cvt_f32_u32, u(static_cast<float>(a)))
FA4_MAP32(pack_16x2, (a & 0xffffu) | b << 16)

/// The low `width` bytes of a, as 32 or (op.mode) 64 bits.
void cvt_zero_extend(Warp& w, const Op& op) {
  const uint32_t keep = op.width >= 4 ? kAllLanes : (1u << (8 * op.width)) - 1;
  alignas(64) Lanes low, high;
  const uint32_t *a = w.source(op.r[kA]), *ah = w.source(op.r[kA + 1]);
  for (int l = 0; l < kWarpLanes; ++l) low[l] = a[l] & keep;
  for (int l = 0; l < kWarpLanes; ++l) high[l] = op.width == 8 ? ah[l] : 0u;
  write_lanes(w.target(op.r[kD]), low, w.exec);
  if (op.mode != 0) write_lanes(w.target(op.r[kD + 1]), high, w.exec);
}
void cvt_sign_extend(Warp& w, const Op& op) {
  const uint32_t shift = op.width >= 4 ? 0 : 32 - 8 * op.width;
  alignas(64) Lanes low, high;
  const uint32_t *a = w.source(op.r[kA]), *ah = w.source(op.r[kA + 1]);
  for (int l = 0; l < kWarpLanes; ++l) low[l] = static_cast<uint32_t>(s(a[l] << shift) >> shift);
  for (int l = 0; l < kWarpLanes; ++l)
    high[l] = op.width == 8 ? ah[l] : static_cast<uint32_t>(s(low[l]) >> 31);
  if (op.extra != 0) {  // a destination narrower than a register
    for (int l = 0; l < kWarpLanes; ++l) low[l] &= op.extra;
  }
  write_lanes(w.target(op.r[kD]), low, w.exec);
  if (op.mode != 0) write_lanes(w.target(op.r[kD + 1]), high, w.exec);
}

constexpr LaneHandlers kHandlers = {
#define FA4_EMULATOR_MEMBER(name) .name = name,
    FA4_EMULATOR_LANE_HANDLERS(FA4_EMULATOR_MEMBER)
#undef FA4_EMULATOR_MEMBER
};

}  // namespace
}  // namespace fa4::emulator
