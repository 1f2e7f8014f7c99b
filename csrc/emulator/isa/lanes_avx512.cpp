// Lane handlers for x86-64 with AVX512; compiled with flags of its own.
#include "csrc/emulator/isa/lanes_simd.h"

namespace fa4::emulator {

const LaneHandlers kLanesAvx512 = kHandlers;

}  // namespace fa4::emulator
