#include "csrc/emulator/driver.h"

#include <algorithm>
#include <cstring>
#include <string_view>
#include <utility>

#include "csrc/emulator/driver_failure.h"
#include "csrc/emulator/driver_launch.h"

namespace fa4::emulator {

namespace {

using std::to_string;

// ---- Devices -------------------------------------------------------------------------------------

struct DeviceModel {
  const char* arch;  // of fa4_emulator_table
  const char* name;
  int number;  // of sm_NUMBER: ten times the compute capability
  int sms;
};
constexpr DeviceModel kSm90{"sm90", "Emulated SM90", 90, 132};
constexpr DeviceModel kSm100{"sm100", "Emulated SM100", 100, 148};

constexpr int kDriverVersion = 13000;  // CUDA 13.0, which images are built for

// ---- Initialisation, devices, contexts -----------------------------------------------------------

CUresult init(unsigned flags) {
  return flags == 0 ? CUDA_SUCCESS : invalid("cuInit: flags: must be 0, got " + to_string(flags));
}

CUresult driver_version(int* version) {
  *version = kDriverVersion;
  return CUDA_SUCCESS;
}

CUresult device_count(int* count) {
  *count = 1;
  return CUDA_SUCCESS;
}

CUresult device_get(CUdevice* device, int ordinal) {
  if (ordinal != 0) return wrong_device("cuDeviceGet", ordinal);
  *device = 0;
  return CUDA_SUCCESS;
}

template <const DeviceModel& kModel>
CUresult device_name(char* name, int bytes, CUdevice device) {
  if (device != 0) return wrong_device("cuDeviceGetName", device);
  if (bytes < 1) return invalid("cuDeviceGetName: len: must be >= 1, got " + to_string(bytes));
  const size_t length = std::min(std::strlen(kModel.name), static_cast<size_t>(bytes) - 1);
  std::memcpy(name, kModel.name, length);
  name[length] = '\0';
  return CUDA_SUCCESS;
}

/// Limits that both architectures share.
constexpr std::pair<CUdevice_attribute, int> kAttributes[] = {
    {CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK, 1024},
    {CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X, 1024},
    {CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y, 1024},
    {CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z, 64},
    {CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X, INT32_MAX},
    {CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y, 65535},
    {CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z, 65535},
    {CU_DEVICE_ATTRIBUTE_WARP_SIZE, 32},
    {CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK, 65536},
    {CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR, 65536},
    {CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR, 2048},
    {CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR, 32},
    {CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK, kDefaultSharedBytes},
    {CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, kMaxSharedBytes},
    {CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR, kMaxSharedBytes + 1024},
    {CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK, 1024},
    {CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH, 1},
    {CU_DEVICE_ATTRIBUTE_CLUSTER_LAUNCH, 1},
    {CU_DEVICE_ATTRIBUTE_TENSOR_MAP_ACCESS_SUPPORTED, 1},
};

template <const DeviceModel& kModel>
CUresult device_attribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  if (device != 0) return wrong_device("cuDeviceGetAttribute", device);
  switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
      *value = kModel.number / 10;
      return CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR:
      *value = kModel.number % 10;
      return CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT:
      *value = kModel.sms;
      return CUDA_SUCCESS;
    default:
      break;
  }
  for (const auto& [known, answer] : kAttributes) {
    if (known != attribute) continue;
    *value = answer;
    return CUDA_SUCCESS;
  }
  return invalid("cuDeviceGetAttribute: attribute: must be one the emulator knows, got " +
                 to_string(static_cast<int>(attribute)));
}

// A context holds nothing here. What matters is whether the calling thread has one, because a launch
// without fails on a GPU.
char the_context;
thread_local CUcontext current_context = nullptr;

CUresult primary_context(CUcontext* context, CUdevice device) {
  if (device != 0) return wrong_device("cuDevicePrimaryCtxRetain", device);
  *context = reinterpret_cast<CUcontext>(&the_context);
  return CUDA_SUCCESS;
}

CUresult get_context(CUcontext* context) {
  *context = current_context;
  return CUDA_SUCCESS;
}

CUresult set_context(CUcontext context) {
  if (context != nullptr && context != reinterpret_cast<CUcontext>(&the_context)) {
    return fail(CUDA_ERROR_INVALID_CONTEXT,
                "cuCtxSetCurrent: ctx: must be null or the emulated device's context");
  }
  current_context = context;
  return CUDA_SUCCESS;
}

CUresult no_context(const char* function) {
  return fail(CUDA_ERROR_INVALID_CONTEXT,
              std::string(function) + ": the calling thread must have a current context, got none");
}

CUresult context_device(CUdevice* device) {
  if (current_context == nullptr) return no_context("cuCtxGetDevice");
  *device = 0;
  return CUDA_SUCCESS;
}

// ---- The table -----------------------------------------------------------------------------------

template <const DeviceModel& kModel>
CUresult library_load_data(CUlibrary* library, const void* code, CUjit_option*, void**,
                           unsigned jit_options, CUlibraryOption*, void**,
                           unsigned library_options) {
  if (code == nullptr) return invalid("cuLibraryLoadData: code: must be PTX text, got null");
  if (jit_options != 0 || library_options != 0) {
    return invalid("cuLibraryLoadData: options: must be none, got " +
                   to_string(jit_options + library_options));
  }
  return load_library(library, code, kModel.number);
}

CUresult launch(const CUlaunchConfig* config, CUfunction function, void** params, void** extra) {
  if (current_context == nullptr) return no_context("cuLaunchKernelEx");
  return launch_kernel(config, function, params, extra);
}

template <const DeviceModel& kModel>
driver::Table make_table() {
  driver::Table table;
  table.cuInit = init;
  table.cuDriverGetVersion = driver_version;
  table.cuGetErrorName = get_error_name;
  table.cuGetErrorString = get_error_string;
  table.cuDeviceGetCount = device_count;
  table.cuDeviceGet = device_get;
  table.cuDeviceGetName = device_name<kModel>;
  table.cuDeviceGetAttribute = device_attribute<kModel>;
  table.cuDevicePrimaryCtxRetain = primary_context;
  table.cuCtxGetCurrent = get_context;
  table.cuCtxSetCurrent = set_context;
  table.cuCtxGetDevice = context_device;
  table.cuLibraryLoadData = library_load_data<kModel>;
  table.cuLibraryGetKernel = get_kernel;
  table.cuKernelSetAttribute = set_attribute;
  table.cuTensorMapEncodeTiled = fa4_emulator_tensor_map_encode;
  table.cuLaunchKernelEx = launch;
  table.takes_ptx = true;
  table.note_memory = [](const void* base, size_t bytes) { note_memory({base, bytes}); };
  table.forget_memory = forget_memory;
  return table;
}

CUresult outside(const char* argument, const char* rule, uint64_t got) {
  return invalid(std::string("cuTensorMapEncodeTiled: ") + argument + ": must be " + rule +
                 ", got " + to_string(got));
}

}  // namespace

}  // namespace fa4::emulator

const fa4::driver::Table* fa4_emulator_table(const char* arch) {
  using namespace fa4::emulator;
  static const fa4::driver::Table sm90 = make_table<kSm90>(), sm100 = make_table<kSm100>();
  const std::string_view name = arch == nullptr ? "" : arch;
  return name == kSm90.arch ? &sm90 : name == kSm100.arch ? &sm100 : nullptr;
}

CUresult fa4_emulator_tensor_map_encode(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank,
                                        void* base, const cuuint64_t* dims,
                                        const cuuint64_t* strides, const cuuint32_t* box,
                                        const cuuint32_t* steps, CUtensorMapInterleave interleave,
                                        CUtensorMapSwizzle swizzle, CUtensorMapL2promotion,
                                        CUtensorMapFloatOOBfill fill) {
  using namespace fa4::emulator;
  if (map == nullptr || dims == nullptr || box == nullptr || steps == nullptr ||
      (strides == nullptr && rank > 1)) {
    return invalid("cuTensorMapEncodeTiled: no pointer may be null, got one");
  }
  if (reinterpret_cast<uintptr_t>(map) % 64 != 0) {
    return outside("tensorMap", "64-byte aligned", reinterpret_cast<uintptr_t>(map));
  }
  if (rank < 1 || rank > 5) return outside("tensorRank", "1 to 5", rank);
  if (type > CU_TENSOR_MAP_DATA_TYPE_BFLOAT16) {
    return outside("tensorDataType", "at most 9 (BFLOAT16)", type);
  }
  if (interleave != CU_TENSOR_MAP_INTERLEAVE_NONE) return outside("interleave", "0", interleave);
  if (swizzle > CU_TENSOR_MAP_SWIZZLE_128B) return outside("swizzle", "at most 3 (128B)", swizzle);
  if (fill > CU_TENSOR_MAP_FLOAT_OOB_FILL_NAN_REQUEST_ZERO_FMA) {
    return outside("oobFill", "0 or 1", fill);
  }
  TensorMapRequest request;
  request.base = base;
  request.type = static_cast<ElementType>(type);
  request.dims.assign(dims, dims + rank);
  request.strides.assign(strides, strides + (rank - 1));
  request.box.assign(box, box + rank);
  request.steps.assign(steps, steps + rank);
  request.swizzle = swizzle == CU_TENSOR_MAP_SWIZZLE_NONE ? 0 : 16u << swizzle;
  request.fill_nan = fill == CU_TENSOR_MAP_FLOAT_OOB_FILL_NAN_REQUEST_ZERO_FMA;
  TensorMapBytes bytes;
  if (fa4::Status s = encode_tensor_map(request, &bytes); !s.ok()) {
    return invalid("cuTensorMapEncodeTiled: " + s.message);
  }
  static_assert(sizeof *map == sizeof bytes.bytes);
  std::memcpy(map, bytes.bytes, sizeof bytes.bytes);
  return CUDA_SUCCESS;
}
