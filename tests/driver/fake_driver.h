// A driver table that launches nothing and records everything.
#pragma once

#include <cstring>
#include <deque>
#include <string>
#include <vector>

#include "csrc/driver/driver.h"

namespace fa4::driver::test {

/// A tensor map that was asked for. The map's first byte is its number, counted from 1.
struct FakeMap {
  CUtensorMapDataType type;
  const void* base;
  std::vector<uint64_t> sizes;
  std::vector<uint64_t> strides;  // bytes
  std::vector<uint32_t> box;
  CUtensorMapSwizzle swizzle;
  CUtensorMapL2promotion l2;
  CUtensorMapFloatOOBfill fill;
  CUcontext context;  // current at the call
};

/// What the fake driver is told and what it answers. Reset by FakeDriver.
struct FakeState {
  int devices = 2;
  int capability_major = 9;
  int capability_minor = 0;
  int driver_version = 13000;
  CUresult load_result = CUDA_SUCCESS;
  CUresult launch_result = CUDA_SUCCESS;

  CUresult attribute_result = CUDA_SUCCESS;
  CUresult map_result = CUDA_SUCCESS;

  CUcontext current = nullptr;
  int device_gets = 0;
  int loads = 0;
  std::vector<std::string> kernels;  // asked for by name
  std::vector<int> shared_bytes;     // set as attributes
  std::vector<FakeMap> maps;
  std::vector<CUlaunchConfig> launches;
  std::vector<int> early_starts;  // 1 where the launch asked for one
  std::vector<CUcontext> launch_contexts;
  std::vector<char> args;  // first bytes of the last launch's parameter struct
  size_t args_bytes = 0;   // how many of them to keep
};

inline FakeState state;

/// Context number `n` of the fake: its device is n % 10.
inline CUcontext context(int n) {
  return reinterpret_cast<CUcontext>(static_cast<uintptr_t>(n + 100));
}
inline int context_number(CUcontext c) {
  return static_cast<int>(reinterpret_cast<uintptr_t>(c)) - 100;
}

inline Table make_fake_table() {
  Table t;
  t.cuInit = [](unsigned) { return CUDA_SUCCESS; };
  t.cuDriverGetVersion = [](int* v) {
    *v = state.driver_version;
    return CUDA_SUCCESS;
  };
  t.cuGetErrorName = [](CUresult, const char** text) {
    *text = "CUDA_ERROR_FAKE";
    return CUDA_SUCCESS;
  };
  t.cuGetErrorString = [](CUresult, const char** text) {
    *text = "fake text";
    return CUDA_SUCCESS;
  };
  t.cuDeviceGetCount = [](int* n) {
    *n = state.devices;
    return CUDA_SUCCESS;
  };
  t.cuDeviceGet = [](CUdevice* device, int ordinal) {
    ++state.device_gets;
    *device = ordinal;
    return ordinal < state.devices ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
  };
  t.cuDeviceGetName = [](char* name, int bytes, CUdevice) {
    std::strncpy(name, "Fake GPU", static_cast<size_t>(bytes));
    return CUDA_SUCCESS;
  };
  t.cuDeviceGetAttribute = [](int* value, CUdevice_attribute attribute, CUdevice) {
    *value = attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR   ? state.capability_major
             : attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR ? state.capability_minor
                                                                         : 132;
    return CUDA_SUCCESS;
  };
  t.cuDevicePrimaryCtxRetain = [](CUcontext* c, CUdevice device) {
    *c = context(device);
    return CUDA_SUCCESS;
  };
  t.cuCtxGetCurrent = [](CUcontext* c) {
    *c = state.current;
    return CUDA_SUCCESS;
  };
  t.cuCtxSetCurrent = [](CUcontext c) {
    state.current = c;
    return CUDA_SUCCESS;
  };
  t.cuCtxGetDevice = [](CUdevice* device) {
    *device = context_number(state.current) % 10;
    return CUDA_SUCCESS;
  };
  t.cuLibraryLoadData = [](CUlibrary* library, const void* code, CUjit_option*, void**, unsigned,
                           CUlibraryOption*, void**, unsigned) {
    ++state.loads;
    *library = reinterpret_cast<CUlibrary>(const_cast<void*>(code));
    return state.load_result;
  };
  t.cuLibraryGetKernel = [](CUkernel* kernel, CUlibrary library, const char* name) {
    state.kernels.emplace_back(name);
    *kernel = reinterpret_cast<CUkernel>(library);
    return CUDA_SUCCESS;
  };
  t.cuKernelSetAttribute = [](CUfunction_attribute, int value, CUkernel, CUdevice) {
    state.shared_bytes.push_back(value);
    return state.attribute_result;
  };
  t.cuTensorMapEncodeTiled = [](CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank,
                                void* base, const cuuint64_t* sizes, const cuuint64_t* strides,
                                const cuuint32_t* box, const cuuint32_t*, CUtensorMapInterleave,
                                CUtensorMapSwizzle swizzle, CUtensorMapL2promotion l2,
                                CUtensorMapFloatOOBfill fill) {
    if (reinterpret_cast<uintptr_t>(map) % 64 != 0) return CUDA_ERROR_MISALIGNED_ADDRESS;
    state.maps.push_back({type,
                          base,
                          {sizes, sizes + rank},
                          {strides, strides + rank - 1},
                          {box, box + rank},
                          swizzle,
                          l2,
                          fill,
                          state.current});
    // By bytes: the type asks for 128-byte alignment, the function for 64.
    const uint64_t number = state.maps.size();
    std::memset(map, 0, sizeof *map);
    std::memcpy(map, &number, sizeof number);
    return state.map_result;
  };
  t.cuLaunchKernelEx = [](const CUlaunchConfig* config, CUfunction, void** params, void**) {
    state.launches.push_back(*config);
    state.early_starts.push_back(0);
    for (unsigned i = 0; i < config->numAttrs; ++i) {
      const CUlaunchAttribute& attribute = config->attrs[i];
      if (attribute.id != CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION) continue;
      state.early_starts.back() = attribute.value.programmaticStreamSerializationAllowed;
    }
    state.launch_contexts.push_back(state.current);
    const char* bytes = static_cast<const char*>(params[0]);
    state.args.assign(bytes, bytes + state.args_bytes);
    return state.launch_result;
  };
  return t;
}

/// Puts a fresh fake driver in place of the real one while it lives.
class FakeDriver {
 public:
  FakeDriver() : table(new_table()) {
    state = FakeState{};
    replace_table(&table);
  }
  ~FakeDriver() { replace_table(nullptr); }
  FakeDriver(const FakeDriver&) = delete;
  FakeDriver& operator=(const FakeDriver&) = delete;

  Table& table;

 private:
  // What was learned and loaded is kept per table, by address: so no address serves twice.
  static Table& new_table() {
    static std::deque<Table> tables;
    return tables.emplace_back(make_fake_table());
  }
};

}  // namespace fa4::driver::test
