// The GPU side of dispatch: gpu.cpp in builds with GPU targets, gpu_absent.cpp in builds without.
#pragma once

#include <string>

#include "csrc/dispatch/kernel_list.h"
#include "flash_attn4/flash_attn4.h"

namespace fa4::gpu {

/// What dispatch needs to know of a device, and how messages call it.
struct DeviceFacts {
  int major = 0;  // compute capability
  int minor = 0;
  std::string description;  // "cuda:0 (NVIDIA H100 80GB HBM3, sm_90)", "emulated sm_100"
};
/// A GPU; while emulating, the emulated one for calls on the CPU, and an error for others.
Status describe(const Device& device, DeviceFacts* result);

Status combine(const KernelRow& kernel, const CombineParams& params, const Context& context);

}  // namespace fa4::gpu
