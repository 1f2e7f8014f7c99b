// The GPU side of dispatch: gpu.cpp in builds with GPU targets, gpu_absent.cpp in builds without.
#pragma once

#include <cstdint>

#include "csrc/dispatch/kernel_list.h"
#include "csrc/dispatch/select.h"
#include "flash_attn4/flash_attn4.h"

namespace fa4::gpu {

/// A GPU, and how messages call it: "cuda:0 (NVIDIA H100 80GB HBM3, sm_90)", "emulated sm_100".
/// While emulating, the emulated one for calls on the CPU, and an error for others.
Status describe(const Device& device, Place* result);

/// Whether kernels can read an operand of attention where it is: its element type, its address, and
/// sizes and strides of its dimensions beside the last, which is contiguous. The copy engine wants
/// the address at a multiple of 16 bytes and strides of multiples of 8 elements; fwd and bwd refuse
/// what it cannot read. Float32 is never at fault: no kernel takes it.
bool readable(DType dtype, const void* data, int64_t rank, const int64_t* size,
              const int64_t* stride);

/// What a call is predicted to take with this kernel, see Cost. 0 where kernels have one form.
double clocks(const KernelRow& kernel, const FwdParams& params, const Place& place);
double clocks(const KernelRow& kernel, const BwdParams& params, const Place& place);
double clocks(const KernelRow& kernel, const CombineParams& params, const Place& place);

Status fwd(const KernelRow& kernel, const FwdParams& params, const Context& context);
Status bwd(const KernelRow& kernel, const BwdParams& params, const Context& context);
Status bwd_workspace_bytes(const KernelRow& kernel, const BwdParams& params, int64_t* bytes);
Status combine(const KernelRow& kernel, const CombineParams& params, const Context& context);

}  // namespace fa4::gpu
