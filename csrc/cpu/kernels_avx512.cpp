// Kernels for x86-64 with AVX-512 F, BW, DQ and VL; compiled with flags of its own.
#include "csrc/cpu/isa/table.h"

#if !defined(__AVX512F__) || !defined(__AVX512BW__) || !defined(__AVX512DQ__) || \
    !defined(__AVX512VL__)
#error "compile this file with -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mf16c"
#endif

namespace fa4::cpu {

const Kernels kKernelsAvx512 = kernel_table("avx512");

}  // namespace fa4::cpu
