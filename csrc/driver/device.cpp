#include "csrc/driver/device.h"

#include <map>
#include <mutex>
#include <utility>

namespace fa4::driver {

namespace {

/// Answers that do not change while a table is in use, asked once per (table, device).
template <class Value>
class PerDevice {
 public:
  template <class Ask>
  Status get(const Table& driver, int ordinal, Value* result, Ask ask) {
    const std::lock_guard lock(mutex_);
    const auto key = std::make_pair(&driver, ordinal);
    if (const auto found = values_.find(key); found != values_.end()) {
      *result = found->second;
      return {};
    }
    Status status = ask(result);
    if (status.ok()) values_.emplace(key, *result);
    return status;
  }

 private:
  std::mutex mutex_;
  std::map<std::pair<const Table*, int>, Value> values_;
};

Status ask_device(const Table& driver, int ordinal, DeviceInfo* result) {
  CUdevice device = 0;
  const std::string which = "device " + std::to_string(ordinal);
  if (Status s = check(driver, driver.cuDeviceGet(&device, ordinal), which); !s.ok()) return s;
  char name[256] = {};
  if (Status s = check(driver, driver.cuDeviceGetName(name, sizeof name, device), which); !s.ok()) {
    return s;
  }
  result->name = name;
  const std::pair<CUdevice_attribute, int*> facts[] = {
      {CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, &result->major},
      {CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, &result->minor},
      {CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, &result->sms},
  };
  for (const auto& [attribute, value] : facts) {
    Status s = check(driver, driver.cuDeviceGetAttribute(value, attribute, device), which);
    if (!s.ok()) return s;
  }
  return {};
}

/// The primary context of a device, retained once and kept: the process needs it as long as it
/// launches.
Status primary_context(const Table& driver, int ordinal, CUcontext* result) {
  static PerDevice<CUcontext> contexts;
  return contexts.get(driver, ordinal, result, [&](CUcontext* context) {
    CUdevice device = 0;
    if (Status s = check(driver, driver.cuDeviceGet(&device, ordinal), "cuDeviceGet"); !s.ok()) {
      return s;
    }
    return check(driver, driver.cuDevicePrimaryCtxRetain(context, device),
                 "cuDevicePrimaryCtxRetain");
  });
}

}  // namespace

Status device_info(int ordinal, DeviceInfo* result) {
  static PerDevice<DeviceInfo> infos;
  const Table* driver = nullptr;
  if (Status s = table(&driver); !s.ok()) return s;
  return infos.get(*driver, ordinal, result,
                   [&](DeviceInfo* info) { return ask_device(*driver, ordinal, info); });
}

Status device_count(int* result) {
  *result = 0;
  const Table* driver = nullptr;
  if (Status s = table(&driver); !s.ok()) return s;
  return check(*driver, driver->cuDeviceGetCount(result), "cuDeviceGetCount");
}

Status driver_version(int* result) {
  *result = 0;
  const Table* driver = nullptr;
  if (Status s = table(&driver); !s.ok()) return s;
  return check(*driver, driver->cuDriverGetVersion(result), "cuDriverGetVersion");
}

ContextGuard::ContextGuard(const Table& driver, int ordinal)
    : driver_(driver), status_(enter(ordinal)) {}

Status ContextGuard::enter(int ordinal) {
  CUcontext current = nullptr;
  if (Status s = check(driver_, driver_.cuCtxGetCurrent(&current), "cuCtxGetCurrent"); !s.ok()) {
    return s;
  }
  if (current != nullptr) {
    CUdevice device = 0;
    if (Status s = check(driver_, driver_.cuCtxGetDevice(&device), "cuCtxGetDevice"); !s.ok()) {
      return s;
    }
    CUdevice wanted = 0;
    if (Status s = check(driver_, driver_.cuDeviceGet(&wanted, ordinal), "cuDeviceGet"); !s.ok()) {
      return s;
    }
    if (device == wanted) return {};
  }
  CUcontext primary = nullptr;
  if (Status s = primary_context(driver_, ordinal, &primary); !s.ok()) return s;
  if (Status s = check(driver_, driver_.cuCtxSetCurrent(primary), "cuCtxSetCurrent"); !s.ok()) {
    return s;
  }
  former_ = current;
  return {};
}

ContextGuard::~ContextGuard() {
  if (former_ != nullptr) driver_.cuCtxSetCurrent(former_);
}

}  // namespace fa4::driver
