// Lane handlers for x86-64 with AVX2; compiled with flags of its own.
#include "csrc/emulator/isa/lanes_simd.h"

namespace fa4::emulator {

const LaneHandlers kLanesAvx2 = kHandlers;

}  // namespace fa4::emulator
