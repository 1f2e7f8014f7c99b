// Devices, their contexts, and which driver an image needs.
#pragma once

#include <string_view>

#include "csrc/driver/driver.h"
#include "flash_attn4/status.h"

namespace fa4::driver {

struct DeviceInfo {
  std::string_view name;         // both texts stay for the life of the process
  std::string_view description;  // "cuda:0 (NVIDIA H100 80GB HBM3, sm_90)", "emulated sm_100"
  CUdevice handle = 0;
  int major = 0;  // compute capability
  int minor = 0;
  int sms = 0;
};

/// Facts about device `ordinal`; asked of the driver once per table and device.
Status device_info(int ordinal, DeviceInfo* result);

/// Devices the driver sees; 0 where it sees none.
Status device_count(int* result);

/// The oldest driver API version that loads the images of this build, as cuDriverGetVersion counts
/// (13000 is CUDA 13.0, first served by driver R580).
constexpr int kNeededDriverVersion = 13000;

/// The driver API version found.
Status driver_version(int* result);

/// Makes a context of device `ordinal` current for the guard's lifetime.
///
/// A fresh thread and autograd's threads have no current context, and a launch there fails with
/// CUDA_ERROR_INVALID_CONTEXT. If none is current, or one of another device, the device's primary
/// context (the one torch uses) is retained and set. The former context, if any, comes back at the
/// end.
class ContextGuard {
 public:
  ContextGuard(const Table& driver, int ordinal);
  ~ContextGuard();
  ContextGuard(const ContextGuard&) = delete;
  ContextGuard& operator=(const ContextGuard&) = delete;

  const Status& status() const { return status_; }

 private:
  Status enter(int ordinal);

  const Table& driver_;
  CUcontext former_ = nullptr;
  Status status_;
};

}  // namespace fa4::driver
