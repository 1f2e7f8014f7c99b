// Which of the code paths compiled per instruction set this machine runs.
#pragma once

#include <cstdint>

namespace fa4::emulator {

/// In ascending order: a machine that runs one runs all before it.
enum class Isa : uint8_t { kBaseline, kAvx2, kAvx512 };

/// kAvx2 stands for AVX2, FMA and F16C; kAvx512 for its F, BW, DQ and VL parts on top.
bool host_supports(Isa isa);

/// The widest instruction set this machine runs; the environment variable FA4_EMULATOR_ISA
/// (baseline, avx2, avx512) asks for a narrower one. Read once.
Isa host_isa();

}  // namespace fa4::emulator
