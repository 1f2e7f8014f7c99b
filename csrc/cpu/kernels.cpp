// Choice of the kernels for this machine.
#include "csrc/cpu/kernels.h"

#include <cstdlib>
#include <string_view>

namespace fa4::cpu {
namespace {

const Kernels& choose() {
#if defined(__x86_64__)
  const char* wish = std::getenv("FA4_CPU_ISA");
  const std::string_view name = wish == nullptr ? "" : wish;
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  if (avx512 && name != "avx2" && name != "baseline") return kKernelsAvx512;
  if (avx2 && name != "baseline") return kKernelsAvx2;
#endif
  return kKernelsBaseline;
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace fa4::cpu
