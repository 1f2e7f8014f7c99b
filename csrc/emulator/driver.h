// The emulator as a GPU: a driver table (csrc/driver/driver.h) with one emulated device. Host code
// written for GPUs loads, sets up and launches through it as it does through libcuda.
//
// Differences to a driver: a library is PTX text, not machine code; memory is this process's; a launch
// returns when it is done, so streams are in order by construction and are not looked at;
// cuGetErrorString gives the report of the calling thread's last failure.
#pragma once

#include "csrc/driver/driver.h"
#include "flash_attn4/emulator.h"

extern "C" {

/// The table of "sm90" (Hopper, capability 9.0) or "sm100" (Blackwell, 10.0). Null for other names.
FA4_EMULATOR_API const fa4::driver::Table* fa4_emulator_table(const char* arch);

/// cuTensorMapEncodeTiled, for callers that have no table.
FA4_EMULATOR_API CUresult fa4_emulator_tensor_map_encode(
    CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* base, const cuuint64_t* dims,
    const cuuint64_t* strides, const cuuint32_t* box, const cuuint32_t* steps,
    CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle, CUtensorMapL2promotion promotion,
    CUtensorMapFloatOOBfill fill);

}  // extern "C"
