// Handlers that work on all lanes of a warp with vector instructions of the host: what kernels execute
// most. Compiled once per instruction set of the host (lanes_simd.h), chosen at run time.
#pragma once

#include "csrc/emulator/machine/op.h"

namespace fa4::emulator {

// Operands: d is place kD, sources a, b, c are kA, kB, kC. f32 forms with _ftz flush denormal
// operands and results to zero.
// clang-format off
#define FA4_EMULATOR_LANE_HANDLERS(X)                                                             \
  X(mov32) X(mov64) X(add32) X(sub32) X(mul32) X(mad32) X(add64) X(sub64) X(mul_wide_u32)         \
  X(mul_wide_s32) X(mad_wide_u32) X(mad_wide_s32) X(and32) X(or32) X(xor32) X(not32) X(neg32)     \
  X(and64) X(or64) X(xor64) X(not64) X(shl32) X(shr_u32) X(shr_s32) X(min_s32) X(max_s32)         \
  X(min_u32) X(max_u32) X(abs_s32) X(lop3) X(selp32) X(selp64) X(setp_s32) X(setp_u32)            \
  X(setp_f32) X(setp_f32_ftz) X(add_f32) X(add_f32_ftz) X(sub_f32) X(sub_f32_ftz) X(mul_f32)      \
  X(mul_f32_ftz) X(fma_f32) X(fma_f32_ftz) X(max_f32) X(max_f32_ftz) X(min_f32) X(min_f32_ftz)    \
  X(max3_f32) X(max3_f32_ftz) X(min3_f32) X(min3_f32_ftz) X(neg_f32) X(abs_f32) X(add_f32x2)      \
  X(add_f32x2_ftz) X(sub_f32x2) X(sub_f32x2_ftz) X(mul_f32x2) X(mul_f32x2_ftz) X(fma_f32x2)       \
  X(fma_f32x2_ftz) X(add_down_f32) X(add_down_f32_ftz) X(add_down_f32x2) X(add_down_f32x2_ftz)    \
  X(ex2_f32) X(ex2_f32_ftz) X(rcp_f32) X(rcp_f32_ftz) X(cvt_bf16x2_f32) X(cvt_f16x2_f32)          \
  X(cvt_bf16_f32) X(cvt_f32_bf16) X(cvt_f32_s32) X(cvt_f32_u32) X(cvt_zero_extend)                \
  X(cvt_sign_extend) X(pack_16x2)
// clang-format on

struct LaneHandlers {
#define FA4_EMULATOR_MEMBER(name) Handler name;
  FA4_EMULATOR_LANE_HANDLERS(FA4_EMULATOR_MEMBER)
#undef FA4_EMULATOR_MEMBER
};

extern const LaneHandlers kLanesBaseline, kLanesAvx2, kLanesAvx512;

/// The handlers for this host.
const LaneHandlers& lanes();

/// Op::mode of setp and set: how a and b compare. Those ending in u are true if one is NaN.
enum class Compare : uint8_t {
  kEq,
  kNe,
  kLt,
  kLe,
  kGt,
  kGe,
  kEqu,
  kNeu,
  kLtu,
  kLeu,
  kGtu,
  kGeu,
  kNum,
  kNan,
};

/// How setp combines its result with the source predicate; in the upper half of Op::mode.
enum class Combine : uint8_t { kNone, kAnd, kOr, kXor };

constexpr uint8_t compare_mode(Compare compare, Combine combine) {
  return static_cast<uint8_t>(static_cast<int>(compare) | static_cast<int>(combine) << 4);
}

}  // namespace fa4::emulator
