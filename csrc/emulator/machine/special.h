// Values that registers hold before the first instruction, and text of places.
#pragma once

#include <cstdint>
#include <string>

#include "csrc/emulator/machine/machine.h"

namespace fa4::emulator {

/// What a special register reads as; those that change while a kernel runs are not here.
uint64_t special_value(const Warp& warp, ptx::Special special, uint32_t lane);

/// Whether a special register keeps its value during a launch.
bool special_is_fixed(ptx::Special special);

uint64_t fill_value(const Warp& warp, const Fill& fill, uint32_t lane);

/// Lines for error messages: instruction, kernel, block, warp and lanes.
std::string where_text(const Warp& warp);

/// "line 12 (file.cu:34): text of the line"
std::string place_text(const Code& code, uint32_t pc);

/// Whether a warp can still run: it spins on memory or a test.
bool polling(const Cluster& cluster);

}  // namespace fa4::emulator
