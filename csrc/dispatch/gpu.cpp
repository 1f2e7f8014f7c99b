#include "csrc/dispatch/gpu.h"

#include "csrc/common/combine_launch.h"
#include "csrc/dispatch/emulation.h"
#include "csrc/driver/device.h"

namespace fa4::gpu {

Status describe(const Device& device, DeviceFacts* result) {
  const std::string cuda = "cuda:" + std::to_string(device.ordinal);
  if (emulating() && device.kind != Device::kCpu) {
    return Status::invalid_value("tensors must be on cpu while the emulator is in use, got " +
                                 cuda);
  }
  driver::DeviceInfo info;
  if (Status s = driver::device_info(device.ordinal, &info); !s.ok()) return s;
  result->major = info.major;
  result->minor = info.minor;
  const std::string arch = "sm_" + std::to_string(info.major) + std::to_string(info.minor);
  result->description =
      emulating() ? "emulated " + arch : cuda + " (" + info.name + ", " + arch + ")";
  return {};
}

Status combine(const KernelRow& kernel, const CombineParams& params, const Context& context) {
  return launch_combine(kernel, params, context);
}

}  // namespace fa4::gpu
