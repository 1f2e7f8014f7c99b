// Tensor-core kernels for x86-64 with AVX-512 F, BW, DQ and VL; compiled with flags of its own.
#include "csrc/emulator/tensor/multiply.h"

#if !defined(__AVX512F__) || !defined(__AVX512BW__) || !defined(__AVX512DQ__) || \
    !defined(__AVX512VL__)
#error "compile this file with -mavx512f -mavx512bw -mavx512dq -mavx512vl on top of AVX2's flags"
#endif

namespace fa4::emulator {

const TensorKernels kTensorKernelsAvx512 = tensor_kernels("avx512");

}  // namespace fa4::emulator
