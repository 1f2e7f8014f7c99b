// Putting the emulator (libfa4_emulator.so) in the driver's place.
#pragma once

#include <string>

#include "csrc/driver/driver.h"
#include "flash_attn4/status.h"

namespace fa4::driver {

/// The emulator's table for an architecture, "sm90" or "sm100". The library is looked for beside the
/// file that holds this code; it is opened at the first call and stays.
Status emulator_table(const std::string& arch, const Table** result);

}  // namespace fa4::driver
