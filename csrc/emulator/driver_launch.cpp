#include "csrc/emulator/driver_launch.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <deque>
#include <mutex>
#include <utility>

#include "csrc/emulator/driver_failure.h"
#include "flash_attn4/emulator.h"

namespace fa4::emulator {

namespace {

using std::to_string;

constexpr uint32_t kPortableCluster = 8;  // CTAs; more must be allowed per kernel

// ---- What all launches share ---------------------------------------------------------------------

/// A kernel that runs in place of the loaded one of its name.
struct Replacement {
  std::unique_ptr<Module> module;
  const KernelInfo* info = nullptr;  // in the module
};

struct Settings {
  std::mutex mutex;
  Options options;
  Statistics statistics;
  std::map<std::string, std::shared_ptr<const Replacement>> replacements;  // by kernel
};
Settings& settings() {
  static Settings shared;
  return shared;
}

/// Memory that launches of this thread may touch; empty: any.
thread_local std::vector<Region> noted_memory;

// ---- Libraries and kernels -----------------------------------------------------------------------

struct Kernel {
  Kernel(const Module& module, const KernelInfo& info, int number)
      : module(module),
        info(info),
        number(number),
        max_dynamic_shared(std::max(0, kDefaultSharedBytes - static_shared())) {}
  int static_shared() const { return static_cast<int>(info.static_shared_bytes); }

  const Module& module;
  const KernelInfo& info;
  const int number;  // of sm_NUMBER, which it was loaded for
  std::mutex mutex;  // of what cuKernelSetAttribute sets
  int max_dynamic_shared;
  bool non_portable_cluster = false;
  std::array<uint32_t, 3> required_cluster{};  // 0: not set
};

struct Library {
  std::unique_ptr<Module> module;
  std::deque<Kernel> kernels;
};

/// Every library that was loaded. None is ever unloaded: the driver seam keeps its kernels.
class Registry {
 public:
  CUlibrary add(std::unique_ptr<Module> module, int number) {
    const std::lock_guard lock(mutex_);
    Library& library = libraries_.emplace_back();
    library.module = std::move(module);
    for (const KernelInfo& info : library.module->kernels()) {
      library.kernels.emplace_back(*library.module, info, number);
    }
    return reinterpret_cast<CUlibrary>(&library);
  }

  /// Null where the handle is none that this registry gave out.
  Library* library(CUlibrary handle) {
    const std::lock_guard lock(mutex_);
    for (Library& library : libraries_) {
      if (reinterpret_cast<CUlibrary>(&library) == handle) return &library;
    }
    return nullptr;
  }

  Kernel* kernel(const void* handle) {
    const std::lock_guard lock(mutex_);
    for (Library& library : libraries_) {
      for (Kernel& kernel : library.kernels) {
        if (&kernel == handle) return &kernel;
      }
    }
    return nullptr;
  }

 private:
  std::mutex mutex_;
  std::deque<Library> libraries_;  // addresses stay
};

Registry& registry() {
  // Never destroyed: a thread may still launch while the process ends.
  static Registry& all = *new Registry;
  return all;
}

/// Whether PTX for `target` ("sm_90a", "sm_100f") may run on sm_`number`: 'a' asks for that very
/// architecture, 'f' for its family, a plain one for it or any later.
bool runs_on(const std::string& target, int number) {
  int wanted = 0;
  const char* end = target.data() + target.size();
  const char* digits = target.data() + std::min(target.size(), std::strlen("sm_"));
  const char* suffix = std::from_chars(digits, end, wanted).ptr;
  if (suffix == digits) return false;
  if (suffix == end) return wanted <= number;
  if (*suffix == 'f') return wanted / 10 == number / 10 && wanted <= number;
  return wanted == number;
}

/// What messages call the text: its first kernel, as a file.
std::string file_name(std::string_view text) {
  constexpr std::string_view kEntry = ".entry ";
  const size_t at = text.find(kEntry);
  if (at == std::string_view::npos) return "image.ptx";
  const std::string_view rest = text.substr(at + kEntry.size());
  return std::string(rest.substr(0, rest.find_first_of("( \t\r\n"))) + ".ptx";
}

CUresult set_max_dynamic_shared(Kernel& kernel, int bytes) {
  const int most = kMaxSharedBytes - kernel.static_shared();
  if (bytes < 0 || bytes > most) {
    return invalid("cuKernelSetAttribute: dynamic shared memory of " + kernel.info.name +
                   ": must lie in 0.." + to_string(most) + " (" + to_string(kMaxSharedBytes) +
                   " less " + to_string(kernel.static_shared()) + " static), got " +
                   to_string(bytes));
  }
  kernel.max_dynamic_shared = bytes;
  return CUDA_SUCCESS;
}

// ---- Replacements --------------------------------------------------------------------------------
// They are looked up by name at each launch: the driver seam keeps the handles of kernels for good.

Status load_replacement(const std::string& name, const std::string& text, Replacement* result) {
  if (Status s = Module::load(text, name + ".ptx", &result->module); !s.ok()) {
    return {s.code, "images: " + s.message};
  }
  std::string known;
  for (const KernelInfo& info : result->module->kernels()) {
    if (info.name == name) {
      result->info = &info;
      return {};
    }
    known += (known.empty() ? "" : ", ") + info.name;
  }
  return Status::invalid_value("images: " + name + ": must hold a kernel of that name, got " +
                               (known.empty() ? "none" : known));
}

/// Null where the kernel itself runs.
std::shared_ptr<const Replacement> replacement_of(const Kernel& kernel) {
  const std::lock_guard lock(settings().mutex);
  const auto found = settings().replacements.find(kernel.info.name);
  return found == settings().replacements.end() ? nullptr : found->second;
}

std::string parameters_text(const KernelInfo& info) {
  std::string text;
  for (const Parameter& parameter : info.parameters) {
    text += (text.empty() ? "" : ", ") + to_string(parameter.bytes);
  }
  return text.empty() ? "none" : text + " bytes";
}

/// Host code prepares a launch for the kernel that it loaded; another one must be able to take it.
CUresult check_replacement(const Kernel& kernel, const Replacement& replacement) {
  const std::string name = "images: " + kernel.info.name;
  const std::string& target = replacement.module->target();
  if (!runs_on(target, kernel.number)) {
    return fail(CUDA_ERROR_NO_BINARY_FOR_GPU,
                name + ": .target: must run on sm_" + to_string(kernel.number) + ", got " + target);
  }
  if (!std::ranges::equal(replacement.info->parameters, kernel.info.parameters, {},
                          &Parameter::bytes, &Parameter::bytes)) {
    return invalid(name + ": parameters: must be those of the kernel it replaces, " +
                   parameters_text(kernel.info) + ", got " + parameters_text(*replacement.info));
  }
  return CUDA_SUCCESS;
}

// ---- Launches ------------------------------------------------------------------------------------

std::string text_of(const Extent& extent) {
  return "(" + to_string(extent.x) + ", " + to_string(extent.y) + ", " + to_string(extent.z) + ")";
}

CUresult read_attributes(const CUlaunchConfig& config, Launch* launch) {
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    const CUlaunchAttribute& attribute = config.attrs[i];
    switch (attribute.id) {
      case CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION: {
        const auto& dim = attribute.value.clusterDim;
        launch->cluster = {dim.x, dim.y, dim.z};
        if (launch->cluster.count() > 0) break;
        return fail(
            CUDA_ERROR_INVALID_CLUSTER_SIZE,
            "cuLaunchKernelEx: clusterDim: must be >= 1 each, got " + text_of(launch->cluster));
      }
      case CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION:
        launch->early_start = attribute.value.programmaticStreamSerializationAllowed != 0;
        break;
      case CU_LAUNCH_ATTRIBUTE_IGNORE:
      case CU_LAUNCH_ATTRIBUTE_COOPERATIVE:
      case CU_LAUNCH_ATTRIBUTE_PRIORITY:
        break;  // launches run one after the other, to their end
      default:
        return invalid("cuLaunchKernelEx: attribute: must be one the emulator knows, got " +
                       to_string(static_cast<int>(attribute.id)));
    }
  }
  return CUDA_SUCCESS;
}

/// What cuKernelSetAttribute, or else the PTX, requires; x = 0: nothing.
Extent required_cluster(const Kernel& kernel, const KernelInfo& info) {
  const auto& set = kernel.required_cluster;
  const Extent declared = info.required_cluster;
  const Extent required = set[0] != 0 ? Extent{set[0], set[1], set[2]} : declared;
  return {required.x, std::max(required.y, 1u), std::max(required.z, 1u)};
}

/// The cluster that kernel and launch agree on.
CUresult choose_cluster(const Kernel& kernel, const KernelInfo& info, Launch* launch) {
  const Extent required = required_cluster(kernel, info);
  const Extent asked = launch->cluster;
  if (asked.x == 0) {
    launch->cluster = required.x == 0 ? Extent{} : required;
  } else if (required.x != 0 && asked != required) {
    return fail(CUDA_ERROR_INVALID_CLUSTER_SIZE,
                "cuLaunchKernelEx: cluster of " + kernel.info.name + ": must be " +
                    text_of(required) + " as the kernel requires, got " + text_of(asked));
  }
  if (launch->cluster.count() > kPortableCluster && !kernel.non_portable_cluster) {
    return fail(CUDA_ERROR_INVALID_CLUSTER_SIZE,
                "cuLaunchKernelEx: cluster of " + kernel.info.name + ": must have at most " +
                    to_string(kPortableCluster) +
                    " CTAs (CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED is not set), got " +
                    text_of(launch->cluster));
  }
  return CUDA_SUCCESS;
}

/// Grid, block, cluster and shared memory of the launch, checked against what the kernel was allowed.
/// info: of the code that runs, the kernel's own or its replacement's.
CUresult read_config(const CUlaunchConfig& config, Kernel& kernel, const KernelInfo& info,
                     Launch* launch) {
  launch->kernel = kernel.info.name;
  launch->grid = {config.gridDimX, config.gridDimY, config.gridDimZ};
  launch->block = {config.blockDimX, config.blockDimY, config.blockDimZ};
  launch->cluster = {0, 0, 0};
  launch->dynamic_shared_bytes = config.sharedMemBytes;
  if (CUresult r = read_attributes(config, launch); r != CUDA_SUCCESS) return r;
  const std::lock_guard lock(kernel.mutex);
  if (static_cast<int64_t>(config.sharedMemBytes) > kernel.max_dynamic_shared) {
    return invalid("cuLaunchKernelEx: dynamic shared memory of " + kernel.info.name +
                   ": must be at most " + to_string(kernel.max_dynamic_shared) +
                   " (CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES), got " +
                   to_string(config.sharedMemBytes));
  }
  return choose_cluster(kernel, info, launch);
}

/// The parameter block, from one pointer per parameter.
CUresult read_parameters(const KernelInfo& info, void** params, std::vector<uint8_t>* block) {
  if (params == nullptr && !info.parameters.empty()) {
    return invalid("cuLaunchKernelEx: kernelParams of " + info.name + ": must be " +
                   to_string(info.parameters.size()) + " pointers, got null");
  }
  block->resize(info.parameter_bytes);
  for (size_t i = 0; i < info.parameters.size(); ++i) {
    const Parameter& parameter = info.parameters[i];
    if (params[i] == nullptr) {
      return invalid("cuLaunchKernelEx: kernelParams[" + to_string(i) + "] of " + info.name +
                     ": must point to " + to_string(parameter.bytes) + " bytes, got null");
    }
    std::memcpy(block->data() + parameter.offset, params[i], parameter.bytes);
  }
  return CUDA_SUCCESS;
}

CUresult run(const Module& module, const Launch& launch) {
  Result result;
  if (Status s = module.launch(launch, driver_options(), &result); !s.ok()) {
    const CUresult code = s.code == Code::kRuntime       ? CUDA_ERROR_LAUNCH_FAILED
                          : s.code == Code::kUnsupported ? CUDA_ERROR_NOT_SUPPORTED
                                                         : CUDA_ERROR_INVALID_VALUE;
    return fail(code, s.message);
  }
  const std::lock_guard lock(settings().mutex);
  settings().statistics += result.statistics;
  return CUDA_SUCCESS;
}

}  // namespace

CUresult load_library(CUlibrary* result, const void* code, int number) {
  const std::string_view text = static_cast<const char*>(code);
  if (text.starts_with("\177ELF")) {
    return fail(CUDA_ERROR_INVALID_IMAGE,
                "cuLibraryLoadData: code: must be PTX text, got machine code (a cubin)");
  }
  std::unique_ptr<Module> module;
  if (Status s = Module::load(text, file_name(text), &module); !s.ok()) {
    const bool unsupported = s.code == Code::kUnsupported;
    return fail(unsupported ? CUDA_ERROR_NOT_SUPPORTED : CUDA_ERROR_INVALID_PTX, s.message);
  }
  if (!runs_on(module->target(), number)) {
    return fail(CUDA_ERROR_NO_BINARY_FOR_GPU, file_name(text) + ": .target: must run on sm_" +
                                                  to_string(number) + ", got " + module->target());
  }
  *result = registry().add(std::move(module), number);
  return CUDA_SUCCESS;
}

CUresult get_kernel(CUkernel* result, CUlibrary handle, const char* name) {
  Library* library = registry().library(handle);
  if (library == nullptr) {
    return fail(CUDA_ERROR_INVALID_HANDLE, "cuLibraryGetKernel: library: is no loaded library");
  }
  std::string known;
  for (Kernel& found : library->kernels) {
    if (found.info.name == name) {
      *result = reinterpret_cast<CUkernel>(&found);
      return CUDA_SUCCESS;
    }
    known += (known.empty() ? "" : ", ") + found.info.name;
  }
  return fail(CUDA_ERROR_NOT_FOUND,
              "cuLibraryGetKernel: name: must be one of " + known + ", got " + name);
}

CUresult set_attribute(CUfunction_attribute attribute, int value, CUkernel handle,
                       CUdevice device) {
  if (device != 0) return wrong_device("cuKernelSetAttribute", device);
  Kernel* kernel = registry().kernel(handle);
  if (kernel == nullptr) {
    return fail(CUDA_ERROR_INVALID_HANDLE, "cuKernelSetAttribute: kernel: is no loaded kernel");
  }
  const std::lock_guard lock(kernel->mutex);
  switch (attribute) {
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES:
      return set_max_dynamic_shared(*kernel, value);
    case CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED:
      kernel->non_portable_cluster = value != 0;
      return CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_WIDTH:
    case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_HEIGHT:
    case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_DEPTH:
      if (value < 1) {
        return invalid("cuKernelSetAttribute: required cluster: must be >= 1, got " +
                       to_string(value));
      }
      kernel->required_cluster[attribute - CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_WIDTH] =
          static_cast<uint32_t>(value);
      return CUDA_SUCCESS;
    default:
      return invalid("cuKernelSetAttribute: attribute: must be one the emulator knows, got " +
                     to_string(static_cast<int>(attribute)));
  }
}

CUresult launch_kernel(const CUlaunchConfig* config, CUfunction function, void** params,
                       void** extra) {
  if (config == nullptr) return invalid("cuLaunchKernelEx: config: must be given, got null");
  if (extra != nullptr) {
    return invalid("cuLaunchKernelEx: extra: must be null, parameters come as kernelParams");
  }
  Kernel* kernel = registry().kernel(function);
  if (kernel == nullptr) {
    return fail(CUDA_ERROR_INVALID_HANDLE, "cuLaunchKernelEx: f: is no loaded kernel");
  }
  const std::shared_ptr<const Replacement> other = replacement_of(*kernel);
  if (other != nullptr) {
    if (CUresult r = check_replacement(*kernel, *other); r != CUDA_SUCCESS) return r;
  }
  const KernelInfo& info = other == nullptr ? kernel->info : *other->info;
  Launch launch;
  std::vector<uint8_t> block;
  if (CUresult r = read_config(*config, *kernel, info, &launch); r != CUDA_SUCCESS) return r;
  if (CUresult r = read_parameters(info, params, &block); r != CUDA_SUCCESS) return r;
  launch.parameters = block;
  launch.memory = noted_memory;
  return run(other == nullptr ? kernel->module : *other->module, launch);
}

void set_driver_options(const Options& options) {
  const std::lock_guard lock(settings().mutex);
  settings().options = options;
}

Options driver_options() {
  const std::lock_guard lock(settings().mutex);
  return settings().options;
}

Status set_driver_images(const std::map<std::string, std::string>& images) {
  std::map<std::string, std::shared_ptr<const Replacement>> replacements;
  for (const auto& [name, text] : images) {
    const auto replacement = std::make_shared<Replacement>();
    if (Status s = load_replacement(name, text, replacement.get()); !s.ok()) return s;
    replacements[name] = replacement;
  }
  const std::lock_guard lock(settings().mutex);
  settings().replacements = std::move(replacements);
  return {};
}

Statistics take_statistics() {
  const std::lock_guard lock(settings().mutex);
  return std::exchange(settings().statistics, {});
}

void note_memory(const Region& region) {
  noted_memory.push_back(region);
}

void forget_memory() {
  noted_memory.clear();
}

}  // namespace fa4::emulator
