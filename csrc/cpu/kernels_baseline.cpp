// Kernels for the machine that the whole library is compiled for: SSE2 on x86-64, NEON on aarch64.
#include "csrc/cpu/isa/table.h"

namespace fa4::cpu {

const Kernels kKernelsBaseline = kernel_table("baseline");

}  // namespace fa4::cpu
