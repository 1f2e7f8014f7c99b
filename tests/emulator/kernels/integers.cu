// Integer instructions, one kernel each: out[i] = op(a[i], b[i], c[i]) for n elements.
#include "ptx.cuh"

#define U32(name, text) \
  OPERATION(name, uint32_t, "r", uint32_t, "r", uint32_t, "r", uint32_t, "r", text)
#define U64(name, text) \
  OPERATION(name, uint64_t, "l", uint64_t, "l", uint64_t, "l", uint64_t, "l", text)
#define U16(name, text) \
  OPERATION(name, uint16_t, "h", uint16_t, "h", uint16_t, "h", uint16_t, "h", text)
#define WIDE(name, text) \
  OPERATION(name, uint64_t, "l", uint32_t, "r", uint32_t, "r", uint64_t, "l", text)
#define WIDE16(name, text) \
  OPERATION(name, uint32_t, "r", uint16_t, "h", uint16_t, "h", uint32_t, "r", text)
#define SHIFT64(name, text) \
  OPERATION(name, uint64_t, "l", uint64_t, "l", uint32_t, "r", uint32_t, "r", text)
#define SHIFT16(name, text) \
  OPERATION(name, uint16_t, "h", uint16_t, "h", uint32_t, "r", uint32_t, "r", text)
#define COUNT64(name, text) \
  OPERATION(name, uint32_t, "r", uint64_t, "l", uint64_t, "l", uint64_t, "l", text)

U32(add_u32, "add.u32 %0, %1, %2;")
U32(sub_s32, "sub.s32 %0, %1, %2;")
U32(mul_lo_u32, "mul.lo.u32 %0, %1, %2;")
U32(mul_hi_u32, "mul.hi.u32 %0, %1, %2;")
U32(mul_hi_s32, "mul.hi.s32 %0, %1, %2;")
U32(mad_lo_s32, "mad.lo.s32 %0, %1, %2, %3;")
U32(mad_hi_u32, "mad.hi.u32 %0, %1, %2, %3;")
U32(mad_hi_s32, "mad.hi.s32 %0, %1, %2, %3;")
U32(div_u32, "div.u32 %0, %1, %2;")
U32(div_s32, "div.s32 %0, %1, %2;")
U32(rem_u32, "rem.u32 %0, %1, %2;")
U32(rem_s32, "rem.s32 %0, %1, %2;")
U32(and_b32, "and.b32 %0, %1, %2;")
U32(or_b32, "or.b32 %0, %1, %2;")
U32(xor_b32, "xor.b32 %0, %1, %2;")
U32(not_b32, "not.b32 %0, %1;")
U32(neg_s32, "neg.s32 %0, %1;")
U32(abs_s32, "abs.s32 %0, %1;")
U32(min_s32, "min.s32 %0, %1, %2;")
U32(max_s32, "max.s32 %0, %1, %2;")
U32(min_u32, "min.u32 %0, %1, %2;")
U32(max_u32, "max.u32 %0, %1, %2;")
U32(shl_b32, "shl.b32 %0, %1, %2;")
U32(shr_u32, "shr.u32 %0, %1, %2;")
U32(shr_s32, "shr.s32 %0, %1, %2;")
U32(bfe_u32, "bfe.u32 %0, %1, %2, %3;")
U32(bfe_s32, "bfe.s32 %0, %1, %2, %3;")
U32(bfi_b32, "bfi.b32 %0, %1, 0x12345678, %2, %3;")
U32(popc_b32, "popc.b32 %0, %1;")
U32(clz_b32, "clz.b32 %0, %1;")
U32(brev_b32, "brev.b32 %0, %1;")
U32(prmt_b32, "prmt.b32 %0, %1, %2, %3;")
U32(shf_l_wrap, "shf.l.wrap.b32 %0, %1, %2, %3;")
U32(shf_r_wrap, "shf.r.wrap.b32 %0, %1, %2, %3;")
U32(shf_l_clamp, "shf.l.clamp.b32 %0, %1, %2, %3;")
U32(shf_r_clamp, "shf.r.clamp.b32 %0, %1, %2, %3;")
U32(lop3_majority, "lop3.b32 %0, %1, %2, %3, 0xe8;")
U32(lop3_select, "lop3.b32 %0, %1, %2, %3, 0xca;")
U32(lop3_odd, "lop3.b32 %0, %1, %2, %3, 0x96;")
U32(lop3_mixed, "lop3.b32 %0, %1, %2, %3, 0x1d;")

U64(add_u64, "add.u64 %0, %1, %2;")
U64(sub_s64, "sub.s64 %0, %1, %2;")
U64(mul_lo_u64, "mul.lo.u64 %0, %1, %2;")
U64(mul_hi_u64, "mul.hi.u64 %0, %1, %2;")
U64(mul_hi_s64, "mul.hi.s64 %0, %1, %2;")
U64(mad_lo_s64, "mad.lo.s64 %0, %1, %2, %3;")
U64(div_u64, "div.u64 %0, %1, %2;")
U64(div_s64, "div.s64 %0, %1, %2;")
U64(rem_u64, "rem.u64 %0, %1, %2;")
U64(rem_s64, "rem.s64 %0, %1, %2;")
U64(and_b64, "and.b64 %0, %1, %2;")
U64(or_b64, "or.b64 %0, %1, %2;")
U64(xor_b64, "xor.b64 %0, %1, %2;")
U64(not_b64, "not.b64 %0, %1;")
U64(neg_s64, "neg.s64 %0, %1;")
U64(abs_s64, "abs.s64 %0, %1;")
U64(min_s64, "min.s64 %0, %1, %2;")
U64(max_u64, "max.u64 %0, %1, %2;")
U64(brev_b64, "brev.b64 %0, %1;")
COUNT64(popc_b64, "popc.b64 %0, %1;")
COUNT64(clz_b64, "clz.b64 %0, %1;")
COUNT64(low_word, "{\n.reg .b32 high;\nmov.b64 {%0, high}, %1;\n}")
COUNT64(high_word, "{\n.reg .b32 low;\nmov.b64 {low, %0}, %1;\n}")
SHIFT64(shl_b64, "shl.b64 %0, %1, %2;")
SHIFT64(shr_u64, "shr.u64 %0, %1, %2;")
SHIFT64(shr_s64, "shr.s64 %0, %1, %2;")
SHIFT64(bfe_u64, "bfe.u64 %0, %1, %2, %3;")

WIDE(mul_wide_u32, "mul.wide.u32 %0, %1, %2;")
WIDE(mul_wide_s32, "mul.wide.s32 %0, %1, %2;")
WIDE(mad_wide_u32, "mad.wide.u32 %0, %1, %2, %3;")
WIDE(mad_wide_s32, "mad.wide.s32 %0, %1, %2, %3;")
WIDE(pack_b64, "mov.b64 %0, {%1, %2};")
WIDE(cvt_u64_u32, "cvt.u64.u32 %0, %1;")
WIDE(cvt_s64_s32, "cvt.s64.s32 %0, %1;")
WIDE16(mul_wide_u16, "mul.wide.u16 %0, %1, %2;")
WIDE16(mul_wide_s16, "mul.wide.s16 %0, %1, %2;")
WIDE16(pack_b32, "mov.b32 %0, {%1, %2};")
WIDE16(cvt_u32_u16, "cvt.u32.u16 %0, %1;")
WIDE16(cvt_s32_s16, "cvt.s32.s16 %0, %1;")
WIDE16(cvt_s32_s8, "cvt.s32.s8 %0, %1;")
WIDE16(cvt_u32_u8, "cvt.u32.u8 %0, %1;")

U16(add_s16, "add.s16 %0, %1, %2;")
U16(sub_u16, "sub.u16 %0, %1, %2;")
U16(mul_lo_u16, "mul.lo.u16 %0, %1, %2;")
U16(mul_hi_u16, "mul.hi.u16 %0, %1, %2;")
U16(mul_hi_s16, "mul.hi.s16 %0, %1, %2;")
U16(mad_lo_u16, "mad.lo.u16 %0, %1, %2, %3;")
U16(div_u16, "div.u16 %0, %1, %2;")
U16(div_s16, "div.s16 %0, %1, %2;")
U16(rem_u16, "rem.u16 %0, %1, %2;")
U16(rem_s16, "rem.s16 %0, %1, %2;")
U16(min_s16, "min.s16 %0, %1, %2;")
U16(max_u16, "max.u16 %0, %1, %2;")
U16(and_b16, "and.b16 %0, %1, %2;")
U16(or_b16, "or.b16 %0, %1, %2;")
U16(not_b16, "not.b16 %0, %1;")
SHIFT16(shl_b16, "shl.b16 %0, %1, %2;")
SHIFT16(shr_u16, "shr.u16 %0, %1, %2;")
SHIFT16(shr_s16, "shr.s16 %0, %1, %2;")

// Saturating and truncating conversions of integers.
U32(add_sat_s32, "add.sat.s32 %0, %1, %2;")
U32(sub_sat_s32, "sub.sat.s32 %0, %1, %2;")
OPERATION(cvt_sat_s16_s32, uint16_t, "h", uint32_t, "r", uint32_t, "r", uint32_t, "r",
          "cvt.sat.s16.s32 %0, %1;")
OPERATION(cvt_sat_u16_s32, uint16_t, "h", uint32_t, "r", uint32_t, "r", uint32_t, "r",
          "cvt.sat.u16.s32 %0, %1;")
OPERATION(cvt_u16_u32, uint16_t, "h", uint32_t, "r", uint32_t, "r", uint32_t, "r",
          "cvt.u16.u32 %0, %1;")
OPERATION(cvt_u32_u64, uint32_t, "r", uint64_t, "l", uint64_t, "l", uint64_t, "l",
          "cvt.u32.u64 %0, %1;")

// Comparisons: 1 or 0.
#define COMPARE(name, wide, text) wide(name, "{\n.reg .pred p;\n" text "\nselp.b32 %0, 1, 0, p;\n}")
#define COMPARE32(test, type) \
  COMPARE(setp_##test##_##type, U32, "setp." #test "." #type " p, %1, %2;")
#define COMPARE64(test, type) \
  COMPARE(setp_##test##_##type, COUNT64, "setp." #test "." #type " p, %1, %2;")
COMPARE32(eq, b32)
COMPARE32(ne, s32)
COMPARE32(lt, s32)
COMPARE32(le, s32)
COMPARE32(gt, s32)
COMPARE32(ge, s32)
COMPARE32(lt, u32)
COMPARE32(le, u32)
COMPARE32(gt, u32)
COMPARE32(ge, u32)
COMPARE32(lo, u32)
COMPARE32(hi, u32)
COMPARE32(ls, u32)
COMPARE32(hs, u32)
COMPARE64(eq, b64)
COMPARE64(ne, u64)
COMPARE64(lt, s64)
COMPARE64(gt, u64)
OPERATION(setp_lt_s16, uint32_t, "r", uint16_t, "h", uint16_t, "h", uint32_t, "r",
          "{\n.reg .pred p;\nsetp.lt.s16 p, %1, %2;\nselp.b32 %0, 1, 0, p;\n}")
OPERATION(setp_ge_u16, uint32_t, "r", uint16_t, "h", uint16_t, "h", uint32_t, "r",
          "{\n.reg .pred p;\nsetp.ge.u16 p, %1, %2;\nselp.b32 %0, 1, 0, p;\n}")
// With a second predicate, the complement, and a third that is combined in.
U32(setp_both,
    "{\n.reg .pred p, q, r;\nsetp.ne.u32 r, %3, 0;\nsetp.lt.and.s32 p|q, %1, %2, r;\n"
    ".reg .u32 t;\nselp.b32 %0, 1, 0, p;\nselp.b32 t, 2, 0, q;\nor.b32 %0, %0, t;\n}")
U32(predicates,
    "{\n.reg .pred p, q, r;\nsetp.lt.s32 p, %1, 0;\nsetp.lt.s32 q, %2, 0;\nand.pred r, p, q;\n"
    "xor.pred q, p, q;\nnot.pred p, p;\nor.pred p, p, r;\nmov.u32 %0, 0;\n"
    "@p add.u32 %0, %0, 1;\n@!q add.u32 %0, %0, 2;\n@r add.u32 %0, %0, 4;\n}")

/// Three-input minimum and maximum of integers, and with a floor of zero.
KERNEL three_inputs(const int* a, const int* b, const int* c, int* out, int n) {
  const int i = static_cast<int>(threadIdx.x);
  if (i >= n) return;
  out[i] = __vimax3_s32(a[i], b[i], c[i]);
  out[n + i] = __vimin3_s32(a[i], b[i], c[i]);
  out[2 * n + i] = __vimax_s32_relu(a[i], b[i]);
}
