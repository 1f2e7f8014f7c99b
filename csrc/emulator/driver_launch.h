// Libraries, kernels and launches of the emulator's driver table.
#pragma once

#include <cuda.h>

namespace fa4::emulator {

constexpr int kMaxSharedBytes = 232448;     // static and dynamic, of a block that asks for it
constexpr int kDefaultSharedBytes = 49152;  // ... and of one that does not

/// cuLibraryLoadData of PTX text that sm_`number` runs.
CUresult load_library(CUlibrary* result, const void* code, int number);
CUresult get_kernel(CUkernel* result, CUlibrary handle, const char* name);
CUresult set_attribute(CUfunction_attribute attribute, int value, CUkernel handle, CUdevice device);
CUresult launch_kernel(const CUlaunchConfig* config, CUfunction function, void** params,
                       void** extra);

}  // namespace fa4::emulator
