// Lane handlers for the machine that the whole library is compiled for.
#include "csrc/emulator/isa/lanes_simd.h"

namespace fa4::emulator {

const LaneHandlers kLanesBaseline = kHandlers;

}  // namespace fa4::emulator
