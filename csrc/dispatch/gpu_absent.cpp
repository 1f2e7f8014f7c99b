#include "csrc/dispatch/gpu.h"

namespace fa4::gpu {

Status describe(int ordinal, DeviceFacts*) {
  return Status::unsupported("this build has no GPU kernels (FA4_ARCHS=cpu), got tensors on cuda:" +
                             std::to_string(ordinal));
}

Status combine(const KernelRow& kernel, const CombineParams&, const Context&) {
  return Status::unsupported(std::string(kernel.name) + ": this build has no GPU kernels");
}

}  // namespace fa4::gpu
