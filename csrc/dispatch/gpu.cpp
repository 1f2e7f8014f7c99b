#include "csrc/dispatch/gpu.h"

#include "csrc/common/combine_launch.h"
#include "csrc/dispatch/emulation.h"
#include "csrc/driver/device.h"
#include "csrc/driver/tensor_map.h"
#include "csrc/sm100/bwd/launch.h"
#include "csrc/sm100/fwd/launch.h"
#include "csrc/sm90/bwd/launch.h"
#include "csrc/sm90/fwd/launch.h"

namespace fa4::gpu {

namespace {

/// A row of the list whose launcher is missing here: a defect of the build, not of the call.
Status no_launcher(const KernelRow& kernel) {
  return Status::runtime(std::string(kernel.name) + ": is listed for " +
                         target_name(kernel.target) + ", which has no launcher");
}

}  // namespace

Status describe(const Device& device, Place* result) {
  if (emulating() && device.kind != Device::kCpu) {
    return Status::invalid_value("tensors must be on cpu while the emulator is in use, got cuda:" +
                                 std::to_string(device.ordinal));
  }
  driver::DeviceInfo info;
  if (Status s = driver::device_info(device.ordinal, &info); !s.ok()) return s;
  *result = {false, info.major, info.minor, std::string(info.description), info.sms};
  return {};
}

bool readable(DType dtype, const void* data, int64_t rank, const int64_t* size,
              const int64_t* stride) {
  return dtype == DType::kFloat32 ||
         driver::tensor_map_fits(data, static_cast<int>(rank), size, stride);
}

double clocks(const KernelRow& kernel, const FwdParams& params, const Place& place) {
  return kernel.target == Target::kSm100f ? sm100::fwd_clocks(kernel, params, place.sms) : 0.0;
}
double clocks(const KernelRow& kernel, const BwdParams& params, const Place& place) {
  return kernel.target == Target::kSm100f ? sm100::bwd_clocks(kernel, params, place.sms) : 0.0;
}
double clocks(const KernelRow&, const CombineParams&, const Place&) {
  return 0.0;
}

Status fwd(const KernelRow& kernel, const FwdParams& params, const Context& context) {
  switch (kernel.target) {
    case Target::kSm90a:
      return sm90::launch_fwd(kernel, params, context);
    case Target::kSm100f:
      return sm100::launch_fwd(kernel, params, context);
    default:
      return no_launcher(kernel);
  }
}

Status bwd(const KernelRow& kernel, const BwdParams& params, const Context& context) {
  switch (kernel.target) {
    case Target::kSm90a:
      return sm90::launch_bwd(kernel, params, context);
    case Target::kSm100f:
      return sm100::launch_bwd(kernel, params, context);
    default:
      return no_launcher(kernel);
  }
}

Status bwd_workspace_bytes(const KernelRow& kernel, const BwdParams& params, int64_t* bytes) {
  switch (kernel.target) {
    case Target::kSm90a:
      return sm90::bwd_workspace_bytes(kernel, params, bytes);
    case Target::kSm100f:
      return sm100::bwd_workspace_bytes(kernel, params, bytes);
    default:
      return no_launcher(kernel);
  }
}

Status combine(const KernelRow& kernel, const CombineParams& params, const Context& context) {
  return launch_combine(kernel, params, context);
}

}  // namespace fa4::gpu
