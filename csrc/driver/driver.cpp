#include "csrc/driver/driver.h"

#include <dlfcn.h>

#include <atomic>

namespace fa4::driver {

namespace {

struct RealDriver {
  Table table;
  Status status;

  RealDriver() : status(open()) {}

 private:
  Status open() {
    void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      return Status::runtime("no NVIDIA driver on this machine: libcuda.so.1 cannot be opened");
    }
#define FA4_DRIVER_LOAD(name)                                                 \
  table.name = reinterpret_cast<decltype(table.name)>(dlsym(library, #name)); \
  if (table.name == nullptr) return Status::runtime("the NVIDIA driver is too old: no " #name);
    FA4_DRIVER_FUNCTIONS(FA4_DRIVER_LOAD)
#undef FA4_DRIVER_LOAD
    return check(table, table.cuInit(0), "cuInit");
  }
};

std::atomic<const Table*> replaced_table{nullptr};

}  // namespace

Status table(const Table** result) {
  if (const Table* replacement = replaced_table.load(std::memory_order_acquire)) {
    *result = replacement;
    return {};
  }
  static const RealDriver real;
  *result = &real.table;
  return real.status;
}

void replace_table(const Table* replacement) {
  replaced_table.store(replacement, std::memory_order_release);
}

Status check(const Table& driver, CUresult result, const std::string& what) {
  if (result == CUDA_SUCCESS) return {};
  const char* name = nullptr;
  const char* text = nullptr;
  driver.cuGetErrorName(result, &name);
  driver.cuGetErrorString(result, &text);
  return Status::runtime(what + ": " + (name ? name : "error " + std::to_string(result)) +
                         (text ? std::string(" (") + text + ")" : ""));
}

}  // namespace fa4::driver
