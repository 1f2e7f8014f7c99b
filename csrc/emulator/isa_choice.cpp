#include "csrc/emulator/isa_choice.h"

#include <cstdlib>
#include <string_view>

namespace fa4::emulator {
namespace {

Isa widest() {
  const char* wish = std::getenv("FA4_EMULATOR_ISA");
  const std::string_view name = wish == nullptr ? "" : wish;
  if (name == "baseline" || !host_supports(Isa::kAvx2)) return Isa::kBaseline;
  if (name == "avx2" || !host_supports(Isa::kAvx512)) return Isa::kAvx2;
  return Isa::kAvx512;
}

}  // namespace

bool host_supports(Isa isa) {
  if (isa == Isa::kBaseline) return true;
#if defined(__x86_64__)
  __builtin_cpu_init();
  // Every processor with AVX2 and FMA has F16C, which not every compiler can ask for.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == Isa::kAvx2) return avx2;
  return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

Isa host_isa() {
  static const Isa chosen = widest();
  return chosen;
}

}  // namespace fa4::emulator
