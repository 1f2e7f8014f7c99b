// The emulator from C++: run PTX for sm_90a and sm_100 on the CPU. Library libfa4_emulator; no torch,
// no Python, no GPU. What is modelled and what is not: csrc/emulator/README.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "flash_attn4/status.h"

#define FA4_EMULATOR_API __attribute__((visibility("default")))

namespace fa4::emulator {

// ---- Tensor maps ---------------------------------------------------------------------------------

/// Element types of tensor maps, numbered as CUtensorMapDataType is.
enum class ElementType : uint8_t {
  kU8,
  kU16,
  kU32,
  kS32,
  kU64,
  kS64,
  kF16,
  kF32,
  kF64,
  kBF16,
};

/// As cuTensorMapEncodeTiled takes them. Dimensions are innermost first; extents count elements.
struct TensorMapRequest {
  void* base = nullptr;  // 16-byte aligned
  ElementType type = ElementType::kBF16;
  std::vector<uint64_t> dims;     // 1 to 5 extents, each 1..2^32
  std::vector<uint64_t> strides;  // bytes, of dimensions 1 and up; multiples of 16
  std::vector<uint32_t> box;      // extents of the box, each 1..256
  std::vector<uint32_t> steps;    // element strides, each 1..8; empty: all 1
  uint32_t swizzle = 0;           // bytes: 0 (none), 32, 64 or 128
  bool fill_nan = false;          // what out-of-bounds elements read as
};

/// 128 bytes that stand for a CUtensorMap in kernel parameters. Valid in this process only.
struct alignas(64) TensorMapBytes {
  uint8_t bytes[128] = {};
};

/// Checks the request as the driver does. invalid_value names field, rule and value.
FA4_EMULATOR_API Status encode_tensor_map(const TensorMapRequest& request, TensorMapBytes* result);

// ---- Modules and kernels ---------------------------------------------------------------------------

struct Extent {
  uint32_t x = 1, y = 1, z = 1;
  uint64_t count() const { return uint64_t{x} * y * z; }
  bool operator==(const Extent&) const = default;
};

struct Parameter {
  std::string name;
  size_t offset = 0;  // in the parameter block
  size_t bytes = 0;
  size_t align = 1;
};

struct KernelInfo {
  std::string name;
  std::vector<Parameter> parameters;
  size_t parameter_bytes = 0;
  size_t static_shared_bytes = 0;
  Extent max_threads{0, 0, 0};  // 0: not declared
  Extent required_threads{0, 0, 0};
  Extent required_cluster{0, 0, 0};
  size_t instructions = 0;
  size_t registers = 0;                 // virtual registers of the PTX
  size_t register_slots = 0;            // 32-bit registers per thread after allocation here
  std::map<std::string, size_t> forms;  // opcode with modifiers -> how often it stands in the text
};

// ---- Launches ------------------------------------------------------------------------------------------

/// When asynchronous operations (copies, MMAs, tensor-memory loads and stores) take effect.
enum class Policy : uint8_t {
  kEager,   // at once
  kLazy,    // as late as the program's waits allow
  kRandom,  // in between, by the seed; warps interleave at random as well
};

/// Rounding inside an MMA; hardware documents none, so results must hold in both.
enum class Accumulate : uint8_t {
  kSequential,  // fp32 fused multiply-adds in order of k
  kExact,       // 16 products and the accumulator summed exactly, rounded once
};

/// In which order clusters start.
enum class Order : uint8_t { kAscending, kDescending, kRandom };

/// How strictly accesses must be ordered: csrc/emulator/README.md, "Ordering".
enum class Check : uint8_t {
  kOff,
  kDeployed,  // as widely used kernels do it: tcgen05 fences are taken as implied by barriers
  kStrict,    // the letter of the PTX ISA
};

/// Who runs in a kernel and who hands over to whom: what arrivals and waits are compared with when
/// Options::check is on. A role that no row names may neither signal nor wait.
struct Plan {
  enum class Done : uint8_t {
    kThreads,  // threads arrive
    kBytes,    // threads announce bytes, copies deliver them
    kCommit,   // tcgen05.commit
  };
  /// Which CTA holds the mbarriers that a role signals, in kernels of CTA pairs.
  enum class Holder : uint8_t {
    kOwn,     // the signaller's
    kLeader,  // the one of even rank, where both signal and it alone waits
    kBoth,    // both
    kPeer,    // the other one
  };
  struct Role {
    std::string name;
    uint32_t first_warp = 0;
    uint32_t warps = 0;
  };
  /// A ring of mbarriers, eight bytes apart.
  struct Barrier {
    std::string name;
    uint32_t offset = 0;  // of the first, in dynamic shared memory
    uint32_t stages = 1;
    uint32_t arrivals = 1;  // per phase: the count of mbarrier.init
    Done done = Done::kThreads;
    std::vector<std::string> signals;  // roles that arrive, announce bytes or commit
    std::vector<std::string> waits;    // roles that wait
    Holder holder = Holder::kOwn;
  };
  std::vector<Role> roles;
  std::vector<Barrier> barriers;
};

struct Options {
  Policy policy = Policy::kEager;
  uint64_t seed = 0;
  Accumulate accumulate = Accumulate::kSequential;
  Order order = Order::kAscending;
  float perturbation = 0;  // ex2, lg2, rcp, rsqrt, sqrt, tanh, sin, cos .approx: relative error up
                           // to this, by the seed; 0: the float nearest to the exact result
  bool random_election = false;     // elect.sync picks any lane; false: the lowest
  bool check_uninitialized = true;  // reading shared or tensor memory that was never written fails
  int threads = 0;                  // host threads; 0: one per core
  uint64_t max_steps = 0;           // warp instructions of the launch; 0: no bound
  uint64_t stall_steps = 20'000'000;  // warp instructions without any event (a barrier
  // phase, a copy, a changed word of memory) before it counts as hung
  int resident_clusters = 0;  // clusters in progress at a time when some poll; 0: 132 CTAs' worth
  bool trace = false;         // record Result::trace
  Check check = Check::kOff;
  uint32_t max_findings = 1;          // of the checker, before the launch fails with all of them
  std::map<std::string, Plan> plans;  // by kernel
  // Names of mbarriers by their address in shared memory (a CTA's own, 0x400 and up), for reports and
  // traces: the rows of a kernel's plan.
  std::map<uint32_t, std::string> barrier_names;
};

/// Global memory that a kernel may touch.
struct Region {
  const void* base = nullptr;
  size_t bytes = 0;
};

struct Launch {
  std::string kernel;
  Extent grid, block, cluster;
  size_t dynamic_shared_bytes = 0;
  std::span<const uint8_t> parameters;  // the parameter block
  // Grids before this one may still run: the check takes global memory as theirs until
  // griddepcontrol.wait.
  bool early_start = false;
  // Every access to global memory must lie in one of these (or in the module's own variables). Empty:
  // any memory that is mapped in this process.
  std::vector<Region> memory;
};

/// Counts of a launch, over all clusters.
struct Statistics {
  uint64_t warp_instructions = 0;
  uint64_t mma = 0;                                        // tcgen05.mma, and wgmma per warp
  uint64_t fma = 0;                                        // multiply-adds inside them
  uint64_t global_load_bytes = 0, global_store_bytes = 0;  // by copy engines
  uint64_t reduce_bytes = 0;                               // global reductions by copy engines
  uint64_t shared_operand_bytes = 0;                       // shared memory read by MMAs
  uint64_t shared_store_bytes = 0;                         // shared memory written by threads
  uint64_t cluster_copy_bytes = 0;                         // shared memory to another CTA's
  uint64_t clusters = 0;
  double seconds = 0;

  FA4_EMULATOR_API Statistics& operator+=(const Statistics& part);
};

/// One warp's record; options.trace.
struct WarpTrace {
  uint32_t cluster = 0, cta = 0, warp = 0;  // cluster of the grid, CTA in it, warp of the CTA
  std::map<std::string, uint64_t> classes;  // instruction class -> warp instructions
  struct Wait {
    uint32_t line = 0;   // of the PTX
    std::string what;    // "mbarrier 0x400 parity 1"
    uint64_t begin = 0;  // in warp instructions of the cluster
    uint64_t end = 0;
  };
  std::vector<Wait> waits;
};

struct Result {
  Statistics statistics;
  std::vector<WarpTrace> trace;
  /// trace and statistics as JSON text.
  FA4_EMULATOR_API std::string json() const;
};

/// A PTX file, parsed and lowered. Immutable and shared by launches.
class FA4_EMULATOR_API Module {
 public:
  /// Parses and lowers the text. invalid_value: it is not PTX; unsupported: it holds an instruction that
  /// is not modelled. Messages name file, line and text of the line.
  static Status load(std::string_view text, std::string_view file, std::unique_ptr<Module>* result);
  ~Module();
  Module(const Module&) = delete;
  Module& operator=(const Module&) = delete;

  const std::vector<KernelInfo>& kernels() const;
  const std::string& target() const;  // "sm_100f"

  /// Runs a kernel to its end. runtime failures carry the report: what went wrong, the line of the
  /// PTX, block and warp, and for a deadlock every waiting warp.
  Status launch(const Launch& launch, const Options& options, Result* result) const;

 private:
  Module();
  struct Content;
  std::unique_ptr<Content> content_;
};

// ---- Launches through the driver table ------------------------------------------------------------
// fa4_emulator_table (csrc/emulator/driver.h) gives host code that was written for a GPU the functions
// of the CUDA driver API on an emulated one. What those functions have no argument for is said here.

/// Options of launches through the table, of every thread. At first the defaults.
FA4_EMULATOR_API void set_driver_options(const Options& options);
FA4_EMULATOR_API Options driver_options();

/// PTX texts by kernel: a launch through the table, of any thread, runs the kernel of that name in
/// its text instead of the one that the host code loaded; its parameters must have the same sizes.
/// Takes the place of all texts that were set before; {}: none. A text that cannot be loaded
/// (Module::load), or that holds no kernel of its name (invalid_value), changes nothing.
FA4_EMULATOR_API Status set_driver_images(const std::map<std::string, std::string>& images);

/// Counts of the launches that went through the table and succeeded, summed since the last call;
/// seconds add up too.
FA4_EMULATOR_API Statistics take_statistics();

/// Launches of this thread may touch the region, and from now on nothing but what was noted.
/// forget_memory: any memory again.
FA4_EMULATOR_API void note_memory(const Region& region);
FA4_EMULATOR_API void forget_memory();

}  // namespace fa4::emulator
