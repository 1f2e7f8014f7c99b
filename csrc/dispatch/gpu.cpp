#include "csrc/dispatch/gpu.h"

#include "csrc/common/combine_launch.h"
#include "csrc/driver/device.h"

namespace fa4::gpu {

Status describe(int ordinal, DeviceFacts* result) {
  driver::DeviceInfo info;
  if (Status s = driver::device_info(ordinal, &info); !s.ok()) return s;
  result->major = info.major;
  result->minor = info.minor;
  result->description = "cuda:" + std::to_string(ordinal) + " (" + info.name + ", sm_" +
                        std::to_string(info.major) + std::to_string(info.minor) + ")";
  return {};
}

Status combine(const KernelRow& kernel, const CombineParams& params, const Context& context) {
  return launch_combine(kernel, params, context);
}

}  // namespace fa4::gpu
