#include "csrc/driver/launch.h"

#include <map>
#include <mutex>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "csrc/driver/device.h"

namespace fa4::driver {

namespace {

constexpr size_t kDefaultSharedBytes = 48 * 1024;  // a kernel asks for more, once per device

/// What a table loads of an image.
const unsigned char* code_of(const Table& driver, const Image& image) {
  return driver.takes_ptx ? image.ptx_begin : image.cubin_begin;
}

/// A kernel and the dynamic shared memory it is allowed on a device.
struct ReadyKernel {
  CUkernel kernel = nullptr;
  size_t shared_bytes = 0;
};

/// Kernels by (table, image). A CUkernel serves every context; the driver instantiates it where it
/// is launched.
class LoadedKernels {
 public:
  /// The kernel, ready for `request` on its device.
  Status get(const Table& driver, const char* name, const Image& image, const Launch& request,
             ReadyKernel* result) {
    const std::lock_guard lock(mutex_);
    Loaded& loaded = kernels_[{&driver, code_of(driver, image)}];
    if (loaded.kernel == nullptr) {
      if (Status s = load(driver, name, image, &loaded.kernel); !s.ok()) return s;
    }
    const auto device = static_cast<size_t>(request.device);
    if (loaded.shared_bytes.size() <= device) {
      loaded.shared_bytes.resize(device + 1, kDefaultSharedBytes);
    }
    size_t& allowed = loaded.shared_bytes[device];
    if (allowed < request.shared_bytes) {
      if (Status s = allow_shared_bytes(driver, name, loaded.kernel, request); !s.ok()) return s;
      allowed = request.shared_bytes;
    }
    *result = {loaded.kernel, allowed};
    return {};
  }

 private:
  struct Loaded {
    CUkernel kernel = nullptr;
    std::vector<size_t> shared_bytes;  // allowed, by device
  };

  static Status load(const Table& driver, const char* name, const Image& image, CUkernel* kernel) {
    CUlibrary library = nullptr;
    CUresult result = driver.cuLibraryLoadData(&library, code_of(driver, image), nullptr, nullptr,
                                               0, nullptr, nullptr, 0);
    if (result != CUDA_SUCCESS) {
      int found = 0;
      driver.cuDriverGetVersion(&found);
      std::string what = "loading the image of " + std::string(name);
      if (found < kNeededDriverVersion) {
        what += ", which needs a driver for CUDA " + std::to_string(kNeededDriverVersion / 1000) +
                "." + std::to_string(kNeededDriverVersion % 1000 / 10) +
                " (R580 or newer), found CUDA " + std::to_string(found / 1000) + "." +
                std::to_string(found % 1000 / 10);
      }
      return check(driver, result, what);
    }
    return check(driver, driver.cuLibraryGetKernel(kernel, library, name),
                 "cuLibraryGetKernel " + std::string(name));
  }

  static Status allow_shared_bytes(const Table& driver, const char* name, CUkernel kernel,
                                   const Launch& request) {
    DeviceInfo device;
    if (Status s = device_info(request.device, &device); !s.ok()) return s;
    return check(
        driver,
        driver.cuKernelSetAttribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                                    static_cast<int>(request.shared_bytes), kernel, device.handle),
        std::string("shared memory of ") + name);
  }

  std::mutex mutex_;
  std::map<std::pair<const Table*, const unsigned char*>, Loaded> kernels_;
};

/// The kernel, ready for `request` on its device. A thread keeps what it has launched: a call takes
/// no lock, which calls of other threads may hold. What a kernel is allowed never shrinks.
Status ready_kernel(const Table& driver, const char* name, const Image& image,
                    const Launch& request, CUkernel* result) {
  static LoadedKernels loaded;
  thread_local std::map<std::tuple<const Table*, const unsigned char*, int>, ReadyKernel> known;
  ReadyKernel& ready = known[{&driver, code_of(driver, image), request.device}];
  if (ready.kernel == nullptr || ready.shared_bytes < request.shared_bytes) {
    if (Status s = loaded.get(driver, name, image, request, &ready); !s.ok()) return s;
  }
  *result = ready.kernel;
  return {};
}

}  // namespace

Status launch(const char* name, const Image& image, const Launch& request) {
  const Table* driver = nullptr;
  if (Status s = table(&driver); !s.ok()) return s;
  const ContextGuard context(*driver, request.device);
  if (!context.status().ok()) return context.status();
  CUkernel kernel = nullptr;
  if (Status s = ready_kernel(*driver, name, image, request, &kernel); !s.ok()) return s;

  CUlaunchConfig config{};
  config.gridDimX = request.grid.x;
  config.gridDimY = request.grid.y;
  config.gridDimZ = request.grid.z;
  config.blockDimX = request.threads;
  config.blockDimY = 1;
  config.blockDimZ = 1;
  config.sharedMemBytes = static_cast<unsigned>(request.shared_bytes);
  config.hStream = static_cast<CUstream>(request.stream);
  CUlaunchAttribute early_start{};
  early_start.id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
  early_start.value.programmaticStreamSerializationAllowed = 1;
  config.attrs = &early_start;
  config.numAttrs = request.early_start ? 1 : 0;
  void* params[] = {const_cast<void*>(request.args)};
  const CUresult result =
      driver->cuLaunchKernelEx(&config, reinterpret_cast<CUfunction>(kernel), params, nullptr);
  if (result == CUDA_SUCCESS) return {};
  return check(*driver, result, std::string("launch of ") + name);
}

}  // namespace fa4::driver
