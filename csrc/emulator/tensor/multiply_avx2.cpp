// Tensor-core kernels for x86-64 with AVX2, FMA and F16C; compiled with flags of its own.
#include "csrc/emulator/tensor/multiply.h"

#if !defined(__AVX2__) || !defined(__FMA__) || !defined(__F16C__)
#error "compile this file with -mavx2 -mfma -mf16c"
#endif

namespace fa4::emulator {

const TensorKernels kTensorKernelsAvx2 = tensor_kernels("avx2");

}  // namespace fa4::emulator
