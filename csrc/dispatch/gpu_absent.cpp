#include "csrc/dispatch/emulation.h"
#include "csrc/dispatch/gpu.h"

namespace fa4 {

Status use_emulator(const char* arch) {
  if (arch == nullptr) return {};
  return Status::unsupported(std::string("this build has no GPU kernels (FA4_ARCHS=cpu), got ") +
                             arch + " to emulate");
}

void note_memory(const void*, size_t) {}
void forget_memory() {}

}  // namespace fa4

namespace fa4::gpu {

Status describe(const Device& device, Place*) {
  return Status::unsupported("this build has no GPU kernels (FA4_ARCHS=cpu), got tensors on cuda:" +
                             std::to_string(device.ordinal));
}

bool readable(DType, const void*, int64_t, const int64_t*, const int64_t*) {
  return true;
}

double clocks(const KernelRow&, const FwdParams&, const Place&) {
  return 0.0;
}
double clocks(const KernelRow&, const BwdParams&, const Place&) {
  return 0.0;
}
double clocks(const KernelRow&, const CombineParams&, const Place&) {
  return 0.0;
}

Status fwd(const KernelRow& kernel, const FwdParams&, const Context&) {
  return Status::unsupported(std::string(kernel.name) + ": this build has no GPU kernels");
}

Status bwd(const KernelRow& kernel, const BwdParams&, const Context&) {
  return Status::unsupported(std::string(kernel.name) + ": this build has no GPU kernels");
}

Status bwd_workspace_bytes(const KernelRow& kernel, const BwdParams&, int64_t*) {
  return Status::unsupported(std::string(kernel.name) + ": this build has no GPU kernels");
}

Status combine(const KernelRow& kernel, const CombineParams&, const Context&) {
  return Status::unsupported(std::string(kernel.name) + ": this build has no GPU kernels");
}

}  // namespace fa4::gpu
