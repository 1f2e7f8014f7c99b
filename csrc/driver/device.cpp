#include "csrc/driver/device.h"

#include <deque>
#include <map>
#include <mutex>
#include <string>
#include <utility>

namespace fa4::driver {

namespace {

/// Answers that do not change while a table is in use, asked once per (table, device). A thread
/// keeps what it has learned: a call takes no lock, which calls of other threads may hold. Every
/// place of use has its own answers, because Ask is the type of its lambda.
template <class Value, class Ask>
Status ask_once(const Table& driver, int ordinal, Value* result, Ask ask) {
  using Answers = std::map<std::pair<const Table*, int>, Value>;
  thread_local Answers known;
  const auto key = std::make_pair(&driver, ordinal);
  if (const auto found = known.find(key); found != known.end()) {
    *result = found->second;
    return {};
  }
  static std::mutex mutex;
  static Answers answers;  // of all threads
  const std::lock_guard lock(mutex);
  if (const auto found = answers.find(key); found != answers.end()) {
    *result = found->second;
  } else {
    if (Status s = ask(result); !s.ok()) return s;
    answers.emplace(key, *result);
  }
  known.emplace(key, *result);
  return {};
}

/// A text that stays for the life of the process.
std::string_view kept(std::string text) {
  static std::mutex mutex;
  static std::deque<std::string> texts;
  const std::lock_guard lock(mutex);
  return texts.emplace_back(std::move(text));
}

Status ask_device(const Table& driver, int ordinal, DeviceInfo* result) {
  const std::string which = "device " + std::to_string(ordinal);
  if (Status s = check(driver, driver.cuDeviceGet(&result->handle, ordinal), which); !s.ok()) {
    return s;
  }
  char name[256] = {};
  Status named = check(driver, driver.cuDeviceGetName(name, sizeof name, result->handle), which);
  if (!named.ok()) return named;
  const std::pair<CUdevice_attribute, int*> facts[] = {
      {CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, &result->major},
      {CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, &result->minor},
      {CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, &result->sms},
  };
  for (const auto& [attribute, value] : facts) {
    Status s = check(driver, driver.cuDeviceGetAttribute(value, attribute, result->handle), which);
    if (!s.ok()) return s;
  }
  const std::string arch = "sm_" + std::to_string(result->major) + std::to_string(result->minor);
  result->name = kept(name);
  result->description =
      kept(driver.takes_ptx ? "emulated " + arch
                            : "cuda:" + std::to_string(ordinal) + " (" + name + ", " + arch + ")");
  return {};
}

/// Facts about device `ordinal` of a table. Asked at every call: only the first asks the driver.
Status known_device(const Table& driver, int ordinal, DeviceInfo* result) {
  return ask_once(driver, ordinal, result,
                  [&](DeviceInfo* info) { return ask_device(driver, ordinal, info); });
}

/// The primary context of a device, retained once and kept: the process needs it as long as it
/// launches.
Status primary_context(const Table& driver, int ordinal, CUcontext* result) {
  return ask_once(driver, ordinal, result, [&](CUcontext* context) {
    DeviceInfo info;
    if (Status s = known_device(driver, ordinal, &info); !s.ok()) return s;
    return check(driver, driver.cuDevicePrimaryCtxRetain(context, info.handle),
                 "cuDevicePrimaryCtxRetain");
  });
}

}  // namespace

Status device_info(int ordinal, DeviceInfo* result) {
  const Table* driver = nullptr;
  if (Status s = table(&driver); !s.ok()) return s;
  return known_device(*driver, ordinal, result);
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
    DeviceInfo wanted;
    if (Status s = known_device(driver_, ordinal, &wanted); !s.ok()) return s;
    if (device == wanted.handle) return {};
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
