// The C++ interface: modules, launches, results as JSON.
#include <algorithm>
#include <utility>

#include "csrc/emulator/lower/lowering.h"
#include "csrc/emulator/machine/grid.h"
#include "flash_attn4/emulator.h"

namespace fa4::emulator {

namespace {

constexpr size_t kMaxSharedBytes = 232448;  // of a block, static and dynamic
constexpr uint64_t kMaxThreads = 1024;
constexpr uint64_t kMaxCluster = 16;

std::string extent_text(const Extent& e) {
  return "(" + std::to_string(e.x) + ", " + std::to_string(e.y) + ", " + std::to_string(e.z) + ")";
}

Extent extent_of(const std::array<uint32_t, 3>& values) {
  return {values[0], values[1], values[2]};
}

KernelInfo describe(const ptx::Module& module, const ptx::Kernel& kernel, const Code& code) {
  KernelInfo info = code.info;
  info.name = kernel.name;
  for (const uint32_t index : kernel.params) {
    const ptx::Symbol& symbol = module.symbols[index];
    info.parameters.push_back({symbol.name, symbol.offset, symbol.bytes, symbol.align});
  }
  info.parameter_bytes = kernel.param_bytes;
  info.static_shared_bytes = code.static_shared_bytes;
  info.max_threads = extent_of(kernel.max_threads);
  info.required_threads = extent_of(kernel.required_threads);
  info.required_cluster = extent_of(kernel.cluster);
  info.instructions = kernel.instructions.size();
  info.registers = kernel.registers.size();
  return info;
}

Status check_extents(const Launch& launch, const KernelInfo& kernel) {
  // Extents below 2^16, so that their products do not wrap.
  const auto small = [](const Extent& e) { return std::max({e.x, e.y, e.z}) < 1u << 16; };
  const uint64_t threads = small(launch.block) ? launch.block.count() : kMaxThreads + 1;
  if (launch.grid.count() == 0) {
    return Status::invalid_value("grid: must have at least one block, got " +
                                 extent_text(launch.grid));
  }
  if (threads == 0 || threads > kMaxThreads) {
    return Status::invalid_value("block: must have 1 to 1024 threads, got " +
                                 extent_text(launch.block));
  }
  const Extent& required = kernel.required_threads;
  if (required.x != 0 &&
      (launch.block.x != required.x || launch.block.y != std::max(1u, required.y) ||
       launch.block.z != std::max(1u, required.z))) {
    return Status::invalid_value("block: " + kernel.name + " requires " + extent_text(required) +
                                 ", got " + extent_text(launch.block));
  }
  const Extent& most = kernel.max_threads;
  const uint64_t limit = uint64_t{most.x} * std::max(1u, most.y) * std::max(1u, most.z);
  if (most.x != 0 && threads > limit) {
    return Status::invalid_value("block: " + kernel.name + " allows at most " +
                                 std::to_string(limit) + " threads, got " +
                                 extent_text(launch.block));
  }
  const Extent& c = launch.cluster;
  if (!small(c) || c.count() == 0 || c.count() > kMaxCluster || launch.grid.x % c.x != 0 ||
      launch.grid.y % c.y != 0 || launch.grid.z % c.z != 0) {
    return Status::invalid_value("cluster: must have 1 to 16 blocks and divide the grid " +
                                 extent_text(launch.grid) + ", got " + extent_text(c));
  }
  const Extent& wanted = kernel.required_cluster;
  if (wanted.x != 0 &&
      (c.x != wanted.x || c.y != std::max(1u, wanted.y) || c.z != std::max(1u, wanted.z))) {
    return Status::invalid_value("cluster: " + kernel.name + " requires " + extent_text(wanted) +
                                 ", got " + extent_text(c));
  }
  return {};
}

Status check_launch(const Launch& launch, const Options& options, const KernelInfo& kernel) {
  if (Status s = check_extents(launch, kernel); !s.ok()) return s;
  if (launch.parameters.size() != kernel.parameter_bytes) {
    return Status::invalid_value("parameters: " + kernel.name + " takes " +
                                 std::to_string(kernel.parameter_bytes) + " bytes, got " +
                                 std::to_string(launch.parameters.size()));
  }
  const size_t shared = kernel.static_shared_bytes + launch.dynamic_shared_bytes;
  if (shared > kMaxSharedBytes) {
    return Status::invalid_value("dynamic_shared_bytes: at most " +
                                 std::to_string(kMaxSharedBytes - kernel.static_shared_bytes) +
                                 " beside the kernel's own, got " +
                                 std::to_string(launch.dynamic_shared_bytes));
  }
  if (options.perturbation < 0 || options.perturbation > 0.1f) {
    return Status::invalid_value("perturbation: must be from 0 to 0.1, got " +
                                 std::to_string(options.perturbation));
  }
  if (options.threads < 0 || options.resident_clusters < 0) {
    return Status::invalid_value("threads, resident_clusters: must not be negative, got " +
                                 std::to_string(options.threads) + ", " +
                                 std::to_string(options.resident_clusters));
  }
  return {};
}

}  // namespace

struct Module::Content {
  ptx::Module module;
  std::unique_ptr<Variables> variables;
  std::vector<std::unique_ptr<Code>> code;
  std::vector<KernelInfo> kernels;
};

Module::Module() : content_(std::make_unique<Content>()) {}
Module::~Module() = default;

const std::vector<KernelInfo>& Module::kernels() const {
  return content_->kernels;
}
const std::string& Module::target() const {
  return content_->module.target;
}

Status Module::load(std::string_view text, std::string_view file, std::unique_ptr<Module>* result) {
  std::unique_ptr<Module> loaded(new Module());
  Content& content = *loaded->content_;
  if (Status s = ptx::parse(text, file, &content.module); !s.ok()) return s;
  content.variables = std::make_unique<Variables>(content.module);
  for (const ptx::Kernel& kernel : content.module.kernels) {
    content.code.push_back(std::make_unique<Code>());
    Code& code = *content.code.back();
    code.module = &content.module;
    code.kernel = &kernel;
    Lowering lowering(content.module, kernel, *content.variables, &code);
    try {
      lowering.run();
    } catch (const Unmodelled& problem) {
      const uint32_t line = lowering.line();
      return Status::unsupported(std::string(file) + ":" + std::to_string(line) + ": " +
                                 problem.what() + ": " + std::string(content.module.line(line)));
    }
    code.info = describe(content.module, kernel, code);
    content.kernels.push_back(code.info);
  }
  *result = std::move(loaded);
  return {};
}

Status Module::launch(const Launch& launch, const Options& options, Result* result) const {
  const auto& list = content_->kernels;
  const auto found = std::find_if(list.begin(), list.end(), [&](const KernelInfo& kernel) {
    return kernel.name == launch.kernel;
  });
  if (found == list.end()) {
    return Status::invalid_value("kernel: the module has no kernel named " + launch.kernel);
  }
  if (Status s = check_launch(launch, options, *found); !s.ok()) return s;
  std::vector<AddressRange> memory;
  for (const Region& region : launch.memory) {
    const auto begin = reinterpret_cast<uint64_t>(region.base);
    memory.push_back({begin, begin + region.bytes});
  }
  if (!memory.empty()) {
    for (const auto& [begin, end] : content_->variables->ranges()) memory.push_back({begin, end});
  }
  try {
    Grid grid(*content_->code[static_cast<size_t>(found - list.begin())], launch, options,
              std::move(memory));
    grid.run(result);
  } catch (const Fault& fault) {
    return Status::runtime(fault.what());
  }
  return {};
}

// ---- Results ----------------------------------------------------------------------------------

Statistics& Statistics::operator+=(const Statistics& part) {
  warp_instructions += part.warp_instructions;
  mma += part.mma;
  fma += part.fma;
  global_load_bytes += part.global_load_bytes;
  global_store_bytes += part.global_store_bytes;
  reduce_bytes += part.reduce_bytes;
  shared_operand_bytes += part.shared_operand_bytes;
  shared_store_bytes += part.shared_store_bytes;
  cluster_copy_bytes += part.cluster_copy_bytes;
  clusters += part.clusters;
  seconds += part.seconds;
  return *this;
}

namespace {

std::string quoted(const std::string& text) {
  std::string result = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') result += '\\';
    result += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  }
  return result + '"';
}

// Strings, not C++ streams: those of two C++ runtimes in one process can crash, and a Python process
// may hold two.

std::string member(const char* name, uint64_t value) {
  return quoted(name) + ": " + std::to_string(value);
}

std::string trace_json(const WarpTrace& trace) {
  std::string text = "{" + member("cluster", trace.cluster) + ", " + member("cta", trace.cta) +
                     ", " + member("warp", trace.warp) + ", \"classes\": {";
  const char* separator = "";
  for (const auto& [name, count] : trace.classes) {
    text += separator + member(name.c_str(), count);
    separator = ", ";
  }
  text += "}, \"waits\": [";
  separator = "";
  for (const WarpTrace::Wait& wait : trace.waits) {
    text += separator + ("{" + member("line", wait.line)) + ", \"what\": " + quoted(wait.what) +
            ", " + member("begin", wait.begin) + ", " + member("end", wait.end) + "}";
    separator = ", ";
  }
  return text + "]}";
}

}  // namespace

std::string Result::json() const {
  const Statistics& s = statistics;
  const std::pair<const char*, uint64_t> counts[] = {
      {"warp_instructions", s.warp_instructions},
      {"mma", s.mma},
      {"fma", s.fma},
      {"global_load_bytes", s.global_load_bytes},
      {"global_store_bytes", s.global_store_bytes},
      {"reduce_bytes", s.reduce_bytes},
      {"shared_operand_bytes", s.shared_operand_bytes},
      {"shared_store_bytes", s.shared_store_bytes},
      {"cluster_copy_bytes", s.cluster_copy_bytes},
      {"clusters", s.clusters}};
  std::string text = "{\"statistics\": {";
  for (const auto& [name, count] : counts) text += member(name, count) + ", ";
  text += "\"seconds\": " + std::to_string(s.seconds) + "}, \"trace\": [";
  for (size_t i = 0; i < trace.size(); ++i) text += (i == 0 ? "\n" : ",\n") + trace_json(trace[i]);
  return text + "]}\n";
}

}  // namespace fa4::emulator
