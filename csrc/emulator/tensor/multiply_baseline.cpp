// Tensor-core kernels for the machine that the whole library is compiled for: SSE2 on x86-64, NEON
// on aarch64.
#include "csrc/emulator/tensor/multiply.h"

namespace fa4::emulator {

const TensorKernels kTensorKernelsBaseline = tensor_kernels("baseline");

}  // namespace fa4::emulator
