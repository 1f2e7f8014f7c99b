// The driver seam: everything this library asks of a GPU goes through one table of functions with
// the signatures of the CUDA driver API. Filled from libcuda.so.1 at run time, so the library links
// no CUDA library; whoever fills it otherwise (a test, an emulator) sees the same calls in the same
// order.
#pragma once

#include <cuda.h>

#include <cstddef>
#include <string>

#include "flash_attn4/status.h"

namespace fa4::driver {

// Every function that is used. No name here has a versioned successor in cuda.h.
#define FA4_DRIVER_FUNCTIONS(X) \
  X(cuInit)                     \
  X(cuDriverGetVersion)         \
  X(cuGetErrorName)             \
  X(cuGetErrorString)           \
  X(cuDeviceGetCount)           \
  X(cuDeviceGet)                \
  X(cuDeviceGetName)            \
  X(cuDeviceGetAttribute)       \
  X(cuDevicePrimaryCtxRetain)   \
  X(cuCtxGetCurrent)            \
  X(cuCtxSetCurrent)            \
  X(cuCtxGetDevice)             \
  X(cuLibraryLoadData)          \
  X(cuLibraryGetKernel)         \
  X(cuKernelSetAttribute)       \
  X(cuTensorMapEncodeTiled)     \
  X(cuLaunchKernelEx)

struct Table {
#define FA4_DRIVER_MEMBER(name) decltype(&::name) name = nullptr;
  FA4_DRIVER_FUNCTIONS(FA4_DRIVER_MEMBER)
#undef FA4_DRIVER_MEMBER

  // An emulator takes a kernel's PTX instead of its machine code, and is told which memory the launches
  // of the calling thread may touch: a region more, or (forget_memory) any memory again. Null: nobody
  // asks.
  bool takes_ptx = false;
  void (*note_memory)(const void* base, size_t bytes) = nullptr;
  void (*forget_memory)() = nullptr;
};

/// The table in use, initialised (cuInit). Fails where libcuda.so.1 is missing or too old to have
/// every function, with a message that says which.
Status table(const Table** result);

/// Makes `replacement` the table in use, null for the real driver. For tests; call it before the
/// first launch of the thread that uses it. Kernels loaded through another table are loaded again.
void replace_table(const Table* replacement);

/// "function: CUDA_ERROR_NAME (text)" as a run-time failure; ok for CUDA_SUCCESS.
Status check(const Table& driver, CUresult result, const std::string& what);

}  // namespace fa4::driver
