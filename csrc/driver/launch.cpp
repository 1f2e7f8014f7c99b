#include "csrc/driver/launch.h"

#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "csrc/driver/device.h"

namespace fa4::driver {

namespace {

/// What a table loads of an image.
const unsigned char* code_of(const Table& driver, const Image& image) {
  return driver.takes_ptx ? image.ptx_begin : image.cubin_begin;
}

/// Kernels by (table, image). A CUkernel serves every context; the driver instantiates it where it
/// is launched.
class LoadedKernels {
 public:
  Status get(const Table& driver, const char* name, const Image& image, CUkernel* result) {
    const std::lock_guard lock(mutex_);
    CUkernel& kernel = kernels_[{&driver, code_of(driver, image)}];
    if (kernel == nullptr) {
      if (Status s = load(driver, name, image, &kernel); !s.ok()) return s;
    }
    *result = kernel;
    return {};
  }

 private:
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

  std::mutex mutex_;
  std::map<std::pair<const Table*, const unsigned char*>, CUkernel> kernels_;
};

}  // namespace

Status launch(const char* name, const Image& image, const Launch& request) {
  static LoadedKernels loaded;
  constexpr size_t kDefaultSharedBytes =
      48 * 1024;  // more must be asked for, per kernel and device

  const Table* driver = nullptr;
  if (Status s = table(&driver); !s.ok()) return s;
  const ContextGuard context(*driver, request.device);
  if (!context.status().ok()) return context.status();

  CUkernel kernel = nullptr;
  if (Status s = loaded.get(*driver, name, image, &kernel); !s.ok()) return s;
  if (request.shared_bytes > kDefaultSharedBytes) {
    CUdevice device = 0;
    if (Status s = check(*driver, driver->cuDeviceGet(&device, request.device), "cuDeviceGet");
        !s.ok()) {
      return s;
    }
    Status s =
        check(*driver,
              driver->cuKernelSetAttribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                                           static_cast<int>(request.shared_bytes), kernel, device),
              std::string("shared memory of ") + name);
    if (!s.ok()) return s;
  }

  CUlaunchConfig config{};
  config.gridDimX = request.grid.x;
  config.gridDimY = request.grid.y;
  config.gridDimZ = request.grid.z;
  config.blockDimX = request.threads;
  config.blockDimY = 1;
  config.blockDimZ = 1;
  config.sharedMemBytes = static_cast<unsigned>(request.shared_bytes);
  config.hStream = static_cast<CUstream>(request.stream);
  void* params[] = {const_cast<void*>(request.args)};
  return check(
      *driver,
      driver->cuLaunchKernelEx(&config, reinterpret_cast<CUfunction>(kernel), params, nullptr),
      std::string("launch of ") + name);
}

}  // namespace fa4::driver
