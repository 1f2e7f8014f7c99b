#include "csrc/driver/emulator.h"

#include <dlfcn.h>

namespace fa4::driver {

namespace {

/// The emulator's only entry; declared in csrc/emulator/driver.h.
using GetTable = const Table* (*)(const char* arch);

/// Path of a file beside the library or program that holds this code.
std::string beside_this(const char* file) {
  Dl_info here{};
  if (dladdr(reinterpret_cast<void*>(&emulator_table), &here) == 0) return file;
  const std::string path = here.dli_fname;
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? file : path.substr(0, slash + 1) + file;
}

}  // namespace

Status emulator_table(const std::string& arch, const Table** result) {
  const std::string path = beside_this("libfa4_emulator.so");
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    return Status::runtime("the emulator cannot be opened: " + std::string(dlerror()));
  }
  const auto get_table = reinterpret_cast<GetTable>(dlsym(library, "fa4_emulator_table"));
  if (get_table == nullptr) return Status::runtime(path + ": has no fa4_emulator_table");
  *result = get_table(arch.c_str());
  if (*result == nullptr) {
    return Status::invalid_value("arch: must be sm90 or sm100, got " + arch);
  }
  return {};
}

}  // namespace fa4::driver
