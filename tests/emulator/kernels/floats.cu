// Floating-point instructions, one kernel each: out[i] = op(a[i], b[i], c[i]) for n elements.
#include "ptx.cuh"

#define F32(name, text) OPERATION(name, float, "f", float, "f", float, "f", float, "f", text)
#define TO_S32(name, text) OPERATION(name, int, "r", float, "f", float, "f", float, "f", text)
#define TO_S64(name, text) OPERATION(name, int64_t, "l", float, "f", float, "f", float, "f", text)
#define TO_16(name, text) OPERATION(name, uint16_t, "h", float, "f", float, "f", float, "f", text)
#define FROM_S32(name, text) OPERATION(name, float, "f", int, "r", int, "r", int, "r", text)
#define FROM_S64(name, text) \
  OPERATION(name, float, "f", int64_t, "l", int64_t, "l", int64_t, "l", text)
#define FROM_16(name, text) \
  OPERATION(name, float, "f", uint16_t, "h", uint16_t, "h", uint16_t, "h", text)
#define HALF(name, text) \
  OPERATION(name, uint16_t, "h", uint16_t, "h", uint16_t, "h", uint16_t, "h", text)
#define PAIR(name, text) \
  OPERATION(name, uint32_t, "r", uint32_t, "r", uint32_t, "r", uint32_t, "r", text)

// ---- Arithmetic and rounding --------------------------------------------------------------------

F32(add_f32, "add.f32 %0, %1, %2;")
F32(add_rn_ftz_f32, "add.rn.ftz.f32 %0, %1, %2;")
F32(add_rz_f32, "add.rz.f32 %0, %1, %2;")
F32(add_rm_f32, "add.rm.f32 %0, %1, %2;")
F32(add_rp_f32, "add.rp.f32 %0, %1, %2;")
F32(add_rm_ftz_f32, "add.rm.ftz.f32 %0, %1, %2;")
F32(add_sat_f32, "add.sat.f32 %0, %1, %2;")
F32(sub_f32, "sub.f32 %0, %1, %2;")
F32(sub_ftz_f32, "sub.ftz.f32 %0, %1, %2;")
F32(mul_f32, "mul.f32 %0, %1, %2;")
F32(mul_ftz_f32, "mul.ftz.f32 %0, %1, %2;")
F32(mul_rz_f32, "mul.rz.f32 %0, %1, %2;")
F32(mul_rp_f32, "mul.rp.f32 %0, %1, %2;")
F32(fma_rn_f32, "fma.rn.f32 %0, %1, %2, %3;")
F32(fma_rn_ftz_f32, "fma.rn.ftz.f32 %0, %1, %2, %3;")
F32(fma_rz_f32, "fma.rz.f32 %0, %1, %2, %3;")
F32(fma_rm_f32, "fma.rm.f32 %0, %1, %2, %3;")
F32(fma_rp_f32, "fma.rp.f32 %0, %1, %2, %3;")
F32(fma_rn_sat_f32, "fma.rn.sat.f32 %0, %1, %2, %3;")
F32(div_rn_f32, "div.rn.f32 %0, %1, %2;")
F32(div_full_f32, "div.full.f32 %0, %1, %2;")
F32(div_approx_ftz_f32, "div.approx.ftz.f32 %0, %1, %2;")
F32(rcp_rn_f32, "rcp.rn.f32 %0, %1;")
F32(sqrt_rn_f32, "sqrt.rn.f32 %0, %1;")
F32(neg_f32, "neg.f32 %0, %1;")
F32(abs_f32, "abs.f32 %0, %1;")
F32(neg_ftz_f32, "neg.ftz.f32 %0, %1;")
F32(copysign_f32, "copysign.f32 %0, %1, %2;")
F32(min_f32, "min.f32 %0, %1, %2;")
F32(max_f32, "max.f32 %0, %1, %2;")
F32(min_nan_f32, "min.NaN.f32 %0, %1, %2;")
F32(max_nan_f32, "max.NaN.f32 %0, %1, %2;")
F32(max_ftz_f32, "max.ftz.f32 %0, %1, %2;")
F32(selp_f32, "{\n.reg .pred p;\nsetp.gt.f32 p, %3, 0f00000000;\nselp.f32 %0, %1, %2, p;\n}")

// ---- Approximate functions ----------------------------------------------------------------------

F32(ex2_approx_f32, "ex2.approx.f32 %0, %1;")
F32(ex2_approx_ftz_f32, "ex2.approx.ftz.f32 %0, %1;")
F32(lg2_approx_f32, "lg2.approx.f32 %0, %1;")
F32(lg2_approx_ftz_f32, "lg2.approx.ftz.f32 %0, %1;")
F32(rcp_approx_ftz_f32, "rcp.approx.ftz.f32 %0, %1;")
F32(rsqrt_approx_f32, "rsqrt.approx.f32 %0, %1;")
F32(rsqrt_approx_ftz_f32, "rsqrt.approx.ftz.f32 %0, %1;")
F32(sqrt_approx_f32, "sqrt.approx.f32 %0, %1;")
F32(tanh_approx_f32, "tanh.approx.f32 %0, %1;")
F32(sin_approx_f32, "sin.approx.f32 %0, %1;")
F32(cos_approx_f32, "cos.approx.f32 %0, %1;")

// ---- Conversions --------------------------------------------------------------------------------

TO_S32(cvt_rni_s32_f32, "cvt.rni.s32.f32 %0, %1;")
TO_S32(cvt_rzi_s32_f32, "cvt.rzi.s32.f32 %0, %1;")
TO_S32(cvt_rmi_s32_f32, "cvt.rmi.s32.f32 %0, %1;")
TO_S32(cvt_rpi_s32_f32, "cvt.rpi.s32.f32 %0, %1;")
TO_S32(cvt_rzi_u32_f32, "cvt.rzi.u32.f32 %0, %1;")
TO_S64(cvt_rzi_s64_f32, "cvt.rzi.s64.f32 %0, %1;")
F32(cvt_rni_f32_f32, "cvt.rni.f32.f32 %0, %1;")
F32(cvt_rmi_f32_f32, "cvt.rmi.f32.f32 %0, %1;")
F32(cvt_rpi_f32_f32, "cvt.rpi.f32.f32 %0, %1;")
F32(cvt_rzi_f32_f32, "cvt.rzi.f32.f32 %0, %1;")
F32(cvt_sat_f32_f32, "cvt.sat.f32.f32 %0, %1;")
FROM_S32(cvt_rn_f32_s32, "cvt.rn.f32.s32 %0, %1;")
FROM_S32(cvt_rn_f32_u32, "cvt.rn.f32.u32 %0, %1;")
FROM_S32(cvt_rz_f32_s32, "cvt.rz.f32.s32 %0, %1;")
FROM_S64(cvt_rn_f32_s64, "cvt.rn.f32.s64 %0, %1;")
TO_16(cvt_rn_f16_f32, "cvt.rn.f16.f32 %0, %1;")
TO_16(cvt_rz_f16_f32, "cvt.rz.f16.f32 %0, %1;")
TO_16(cvt_rn_bf16_f32, "cvt.rn.bf16.f32 %0, %1;")
TO_16(cvt_rz_bf16_f32, "cvt.rz.bf16.f32 %0, %1;")
TO_16(cvt_rn_relu_bf16_f32, "cvt.rn.relu.bf16.f32 %0, %1;")
FROM_16(cvt_f32_f16, "cvt.f32.f16 %0, %1;")
FROM_16(cvt_f32_bf16, "cvt.f32.bf16 %0, %1;")
#define TO_PAIR(name, text) OPERATION(name, uint32_t, "r", float, "f", float, "f", float, "f", text)
TO_PAIR(cvt_rn_f16x2_f32, "cvt.rn.f16x2.f32 %0, %1, %2;")
TO_PAIR(cvt_rn_bf16x2_f32, "cvt.rn.bf16x2.f32 %0, %1, %2;")
TO_PAIR(cvt_rz_bf16x2_f32, "cvt.rz.bf16x2.f32 %0, %1, %2;")
TO_PAIR(cvt_rn_relu_bf16x2_f32, "cvt.rn.relu.bf16x2.f32 %0, %1, %2;")
TO_PAIR(cvt_rn_relu_f16x2_f32, "cvt.rn.relu.f16x2.f32 %0, %1, %2;")
OPERATION(cvt_rn_f16_s32, uint16_t, "h", int, "r", int, "r", int, "r", "cvt.rn.f16.s32 %0, %1;")
OPERATION(cvt_rni_s32_f16, int, "r", uint16_t, "h", uint16_t, "h", uint16_t, "h",
          "cvt.rni.s32.f16 %0, %1;")

// ---- 16-bit arithmetic --------------------------------------------------------------------------

HALF(add_f16, "add.f16 %0, %1, %2;")
HALF(mul_f16, "mul.f16 %0, %1, %2;")
HALF(fma_rn_f16, "fma.rn.f16 %0, %1, %2, %3;")
HALF(max_f16, "max.f16 %0, %1, %2;")
HALF(neg_f16, "neg.f16 %0, %1;")
HALF(fma_rn_bf16, "fma.rn.bf16 %0, %1, %2, %3;")
HALF(max_bf16, "max.bf16 %0, %1, %2;")
HALF(abs_bf16, "abs.bf16 %0, %1;")
HALF(neg_bf16, "neg.bf16 %0, %1;")
PAIR(add_f16x2, "add.f16x2 %0, %1, %2;")
PAIR(sub_f16x2, "sub.f16x2 %0, %1, %2;")
PAIR(mul_f16x2, "mul.f16x2 %0, %1, %2;")
PAIR(fma_rn_f16x2, "fma.rn.f16x2 %0, %1, %2, %3;")
PAIR(fma_rn_relu_f16x2, "fma.rn.relu.f16x2 %0, %1, %2, %3;")
PAIR(max_f16x2, "max.f16x2 %0, %1, %2;")
PAIR(min_f16x2, "min.f16x2 %0, %1, %2;")
PAIR(max_nan_f16x2, "max.NaN.f16x2 %0, %1, %2;")
PAIR(neg_f16x2, "neg.f16x2 %0, %1;")
PAIR(abs_f16x2, "abs.f16x2 %0, %1;")
PAIR(add_bf16x2, "add.bf16x2 %0, %1, %2;")
PAIR(sub_bf16x2, "sub.bf16x2 %0, %1, %2;")
PAIR(mul_bf16x2, "mul.bf16x2 %0, %1, %2;")
PAIR(fma_rn_bf16x2, "fma.rn.bf16x2 %0, %1, %2, %3;")
PAIR(max_bf16x2, "max.bf16x2 %0, %1, %2;")
PAIR(min_bf16x2, "min.bf16x2 %0, %1, %2;")
PAIR(neg_bf16x2, "neg.bf16x2 %0, %1;")
PAIR(ex2_approx_f16x2, "ex2.approx.f16x2 %0, %1;")
PAIR(ex2_approx_ftz_bf16x2, "ex2.approx.ftz.bf16x2 %0, %1;")
PAIR(tanh_approx_f16x2, "tanh.approx.f16x2 %0, %1;")
PAIR(tanh_approx_bf16x2, "tanh.approx.bf16x2 %0, %1;")

// ---- Comparisons: 1 or 0 ------------------------------------------------------------------------

#define COMPARE(test)       \
  TO_S32(setp_##test##_f32, \
         "{\n.reg .pred p;\nsetp." #test ".f32 p, %1, %2;\nselp.b32 %0, 1, 0, p;\n}")
COMPARE(eq)
COMPARE(ne)
COMPARE(lt)
COMPARE(le)
COMPARE(gt)
COMPARE(ge)
COMPARE(equ)
COMPARE(neu)
COMPARE(ltu)
COMPARE(leu)
COMPARE(gtu)
COMPARE(geu)
COMPARE(num)
COMPARE(nan)
TO_S32(setp_lt_ftz_f32, "{\n.reg .pred p;\nsetp.lt.ftz.f32 p, %1, %2;\nselp.b32 %0, 1, 0, p;\n}")
#define COMPARE16(name, test)                                            \
  OPERATION(name, int, "r", uint16_t, "h", uint16_t, "h", uint16_t, "h", \
            "{\n.reg .pred p;\n" test " p, %1, %2;\nselp.b32 %0, 1, 0, p;\n}")
COMPARE16(setp_gt_f16, "setp.gt.f16")
COMPARE16(setp_neu_f16, "setp.neu.f16")
COMPARE16(setp_lt_bf16, "setp.lt.bf16")

// ---- Blackwell ----------------------------------------------------------------------------------

#if HAS_SM100
#define PAIR_F32(name, text) \
  OPERATION(name, uint64_t, "l", uint64_t, "l", uint64_t, "l", uint64_t, "l", text)
PAIR_F32(add_rn_f32x2, "add.rn.f32x2 %0, %1, %2;")
PAIR_F32(add_rm_f32x2, "add.rm.f32x2 %0, %1, %2;")
PAIR_F32(add_rn_ftz_f32x2, "add.rn.ftz.f32x2 %0, %1, %2;")
PAIR_F32(sub_rn_f32x2, "sub.rn.f32x2 %0, %1, %2;")
PAIR_F32(mul_rn_f32x2, "mul.rn.f32x2 %0, %1, %2;")
PAIR_F32(mul_rn_ftz_f32x2, "mul.rn.ftz.f32x2 %0, %1, %2;")
PAIR_F32(fma_rn_f32x2, "fma.rn.f32x2 %0, %1, %2, %3;")
PAIR_F32(fma_rn_ftz_f32x2, "fma.rn.ftz.f32x2 %0, %1, %2, %3;")
PAIR_F32(fma_rp_f32x2, "fma.rp.f32x2 %0, %1, %2, %3;")
F32(max_3_f32, "max.f32 %0, %1, %2, %3;")
F32(min_3_f32, "min.f32 %0, %1, %2, %3;")
F32(max_3_nan_f32, "max.NaN.f32 %0, %1, %2, %3;")
F32(max_3_ftz_f32, "max.ftz.f32 %0, %1, %2, %3;")
#define MIXED(name, text) \
  OPERATION(name, float, "f", uint16_t, "h", uint16_t, "h", float, "f", text)
MIXED(fma_rn_f32_bf16, "fma.rn.f32.bf16 %0, %1, %2, %3;")
MIXED(fma_rn_f32_f16, "fma.rn.f32.f16 %0, %1, %2, %3;")
MIXED(add_f32_bf16, "add.f32.bf16 %0, %1, %3;")
MIXED(sub_f32_f16, "sub.f32.f16 %0, %1, %3;")
#endif

/// The exponential by arithmetic: magic rounding, a cubic, and a shift into the exponent.
KERNEL exp2_by_polynomial(const float* in, float* out, int n) {
  const int i = static_cast<int>(threadIdx.x);
  if (i >= n) return;
  const float x = fmaxf(in[i], -127.0f);
  float shifted;
  asm("add.rm.ftz.f32 %0, %1, %2;" : "=f"(shifted) : "f"(x), "f"(12582912.0f));
  const float fraction = x - (shifted - 12582912.0f);
  float value = fmaf(fraction, 0.0770670623f, 0.227644965f);
  value = fmaf(value, fraction, 0.695116818f);
  value = fmaf(value, fraction, 1.0f);
  out[i] = __int_as_float(__float_as_int(value) + (__float_as_int(shifted) << 23));
}
