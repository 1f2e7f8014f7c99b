// Registers of wgmma.mma_async, by the letter of the ISA: accumulators belong to the tensor core until
// wgmma.wait_group, operands may not be written until then, and a wgmma.fence stands between other
// uses of a register and the wgmma that takes it. ptxas looks at all paths of a kernel for that, and
// so does this: what it finds is reported where the instruction is executed.
#pragma once

#include <cstdint>
#include <vector>

#include "csrc/emulator/lower/lowering.h"

namespace fa4::emulator {

struct Block {
  uint32_t begin = 0, end = 0;  // instructions
  std::vector<uint32_t> successors;
};

/// Sets wgmma_hazard of the drafts. `blocks` in the order of the program, the first is entered.
void find_wgmma_hazards(std::vector<Draft>& drafts, const std::vector<Block>& blocks,
                        uint32_t planes);

}  // namespace fa4::emulator
