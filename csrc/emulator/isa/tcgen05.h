// What the two files of tcgen05 instructions share.
#pragma once

#include "csrc/emulator/lower/lowering.h"
#include "csrc/emulator/machine/machine.h"

namespace fa4::emulator {

/// A kernel uses one cta_group; faults on the second.
void use_cta_group(Cta& cta, int group);

/// Faults unless columns [first, first + count) are allocated.
void check_columns(const TensorMemory& tmem, uint32_t first, uint32_t count);

/// tcgen05.mma and tcgen05.commit (tcgen05_mma.cpp).
void lower_tensor_pipe(Lowering& l);

}  // namespace fa4::emulator
