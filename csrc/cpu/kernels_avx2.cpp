// Kernels for x86-64 with AVX2, FMA and F16C; compiled with flags of its own.
#include "csrc/cpu/isa/table.h"

#if !defined(__AVX2__) || !defined(__FMA__) || !defined(__F16C__)
#error "compile this file with -mavx2 -mfma -mf16c"
#endif

namespace fa4::cpu {

const Kernels kKernelsAvx2 = kernel_table("avx2");

}  // namespace fa4::cpu
