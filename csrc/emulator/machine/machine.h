// State of the machine while a kernel runs: clusters, CTAs, warps.
//
// A cluster is the unit of isolation: one host thread runs it, its warps in turn, and touches nothing
// of another cluster but global memory. The asynchronous engines of a cluster are agents.h.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "csrc/emulator/machine/agents.h"
#include "csrc/emulator/machine/code.h"
#include "csrc/emulator/machine/fault.h"
#include "csrc/emulator/machine/memory.h"
#include "csrc/emulator/machine/op.h"
#include "csrc/emulator/machine/random.h"
#include "flash_attn4/emulator.h"

// Handlers that are compiled per instruction set must not leave copies of these for the linker to share.
#define FA4_INLINE __attribute__((always_inline)) inline

namespace fa4::emulator {

namespace check {
class Checker;
}

struct Cluster;
struct Cta;
class Grid;

/// Lanes of a warp that stand at one instruction.
struct Fragment {
  uint32_t pc = 0;
  uint32_t mask = 0;
  bool blocked = false;      // at an instruction that waits
  bool converging = false;   // ... for the other lanes to arrive there
  bool resting = false;      // spins; others go first in this turn
  bool arrived = false;      // has counted itself at the barrier it waits for
  uint64_t time_limit = 0;   // 1 + Cluster::time_limits when a try_wait began; 0: none does
  uint64_t token = 0;        // what the waiting instruction remembers between attempts
  uint64_t seen_events = 0;  // events of the cluster at the last attempt
  uint64_t wait_begin = 0;   // 1 + step of the first attempt; 0: does not wait
  uint32_t spins = 0;        // branches backwards since other fragments last had their chance
};

/// How an instruction ended.
enum class Outcome : uint8_t {
  kNext,     // go on at pc
  kBlocked,  // not done: try again when something has happened
  kYield,    // done; let other warps run, because this one polls
  kExit,     // the lanes of exec are gone
};

/// Asynchronous copies of one thread that were committed together.
struct CopyGroup {
  uint32_t pending = 0;  // copies that are not done
  uint32_t unread = 0;   // ... that have not read their source
  uint32_t number = 0;   // of its last copy, by the checker's count
};

struct CopyGroups {
  std::shared_ptr<CopyGroup> open = std::make_shared<CopyGroup>();
  std::deque<std::shared_ptr<CopyGroup>> committed;  // oldest first, without those that are done
  uint32_t number = 0;  // of the last copy of the last one, by the checker's count
};

struct Warp {
  // ---- registers
  uint32_t* planes = nullptr;     // own registers
  const uint32_t* bases[2] = {};  // planes, constants: selected by the top bit of a PlaneRef
  uint32_t* preds = nullptr;
  FA4_INLINE const uint32_t* source(PlaneRef ref) const {
    return bases[ref >> 15] + (ref & ~kConstant) * kWarpLanes;
  }
  FA4_INLINE uint32_t* target(PlaneRef ref) { return planes + ref * kWarpLanes; }

  // ---- control
  uint32_t exec = 0;  // lanes that execute the current instruction
  uint32_t pc = 0;    // of the next instruction; a handler that does not change it goes on
  uint32_t merge_pc = UINT32_MAX;  // reaching it, fragments are looked at again
  Outcome outcome = Outcome::kNext;
  Fragment current;  // pc is stale while it runs
  std::vector<Fragment> parked;
  uint32_t live = 0;   // lanes that have not exited
  uint32_t carry = 0;  // the carry flag of add.cc and its kin, by lane

  // ---- place
  Cta* cta = nullptr;
  const Code* code = nullptr;
  uint32_t index = 0;                           // in the CTA
  std::vector<uint8_t> local;                   // local memory, lane after lane
  std::map<uint32_t, CopyGroups> bulk_groups;   // by lane: cp.async.bulk
  std::map<uint32_t, CopyGroups> async_groups;  // by lane: cp.async
  std::vector<PendingLoad> tmem_loads;          // tcgen05.ld before wait::ld
  std::vector<PendingStore> tmem_stores;        // tcgen05.st before wait::st
  std::vector<PendingWgmma> wgmma_open;         // since the last wgmma.commit_group
  std::vector<std::vector<PendingWgmma>> wgmma_groups;
  uint64_t wgmma_commits = 0;    // groups committed so far
  uint32_t register_limit = 0;   // registers per thread: setmaxnreg
  uint32_t cluster_arrived = 0;  // lanes that are at the cluster barrier and have not waited
  uint64_t cluster_token = 0;    // its generation then

  std::vector<uint32_t> register_storage;
  std::vector<uint32_t> pred_storage;
  uint64_t instructions = 0;
  std::array<uint64_t, static_cast<size_t>(OpClass::kCount)> class_counts{};
  std::vector<WarpTrace::Wait> waits;
  AddressRange last_range;  // of global memory: where the last access lay
  bool polls = false;       // the last turn ended at a test that failed

  FA4_INLINE uint32_t pred(PredRef ref) const { return preds[ref]; }
  FA4_INLINE void set_pred(PredRef ref, uint32_t value) {
    preds[ref] = (preds[ref] & ~exec) | (value & exec);
  }
  uint32_t first_lane() const { return static_cast<uint32_t>(__builtin_ctz(exec)); }
  bool finished() const { return live == 0; }

  /// The instruction has to wait; it is tried again at its pc.
  void block() { outcome = Outcome::kBlocked; }
};

struct NamedBarrier {
  uint32_t expected = 0;  // threads; 0: nobody has arrived
  uint32_t arrived = 0;
  uint64_t generation = 0;
  uint32_t votes_and = 0, votes_or = 0, votes_count = 0;  // bar.red, of the running generation
  uint32_t last_and = 0, last_or = 0, last_count = 0;     // ... of the completed one
};

/// Tensor memory of a CTA: 512 columns of 128 lanes, a column contiguous.
struct TensorMemory {
  static constexpr uint32_t kColumns = 512, kLanes = 128;
  std::vector<uint32_t> cells;
  std::vector<std::pair<uint32_t, uint32_t>> allocations;  // first column, columns
  bool may_allocate = true;
  int cta_group = 0;  // of the first tcgen05 instruction; 0: none yet

  uint32_t* column(uint32_t index) { return cells.data() + size_t{index} * kLanes; }
  /// Whether columns [first, first + count) lie in one allocation.
  bool allocated(uint32_t first, uint32_t count) const;
  /// First free run of so many columns; kColumns where there is none.
  uint32_t find_free(uint32_t count) const;
};

struct Cta {
  Cluster* cluster = nullptr;
  uint32_t rank = 0;                // in the cluster
  std::array<uint32_t, 3> index{};  // %ctaid
  SharedMemory shared;
  TensorMemory tmem;
  std::vector<Warp> warps;
  uint32_t live_threads = 0;
  uint32_t register_pool = 0;  // registers per thread, summed over warps, that nobody holds
  std::array<NamedBarrier, 16> barriers;
  struct BarrierInit {
    uint32_t line = 0, count = 0;
  };
  std::map<uint32_t, BarrierInit> mbarriers;  // by address: how it was initialised
};

struct ClusterBarrier {
  uint32_t arrived = 0;  // threads
  uint64_t generation = 0;
};

struct Cluster {
  Cluster();
  ~Cluster();

  Grid* grid = nullptr;
  const Options* options = nullptr;
  uint64_t number = 0;  // in the grid
  std::vector<Cta> ctas;
  ClusterBarrier barrier;
  uint32_t live_threads = 0;
  Agents agents;
  std::vector<std::vector<float>> spare_buffers;  // operands of MMAs, kept for the next ones
  Random random;
  uint64_t steps = 0;              // warp instructions so far
  uint64_t time_limits = 0;        // how often the time limits of try_wait have passed
  uint64_t time_limit_events = 0;  // events when they passed last
  uint32_t idle_time_limits = 0;   // how often they have passed since then without an event
  uint64_t events = 0;             // whatever may let a waiting warp go on
  uint64_t seen_events = 0;        // events at event_step
  uint64_t event_step = 0;         // steps when events was last seen to change
  uint64_t seen_progress = 0;      // of the grid, likewise
  Statistics statistics;
  std::unique_ptr<check::Checker> checker;  // null unless Options::check is on

  Cta& cta_of_address(uint32_t shared_address);
  void notify() { ++events; }
};

/// The CTA whose shared memory an address of the shared::cluster window names.
constexpr uint32_t rank_of(uint32_t shared_address) {
  return shared_address >> 24;
}
constexpr uint32_t offset_of(uint32_t shared_address) {
  return shared_address & 0xffffffu;
}

// ---- Running (warp.cpp, cluster.cpp) --------------------------------------------------------------------

/// Runs at most `budget` instructions of a warp. Returns the instructions run.
uint32_t run_warp(Warp& warp, uint32_t budget);

/// Whether the warp can run: a fragment that is not blocked, or one whose wait may have ended.
bool runnable(const Warp& warp);

/// Lanes of exec go to `target`, the others of the fragment stay.
void branch(Warp& warp, uint32_t target);

/// Completes tcgen05.ld and .st of the warp that nothing has waited for.
void finish_tensor_memory_accesses(Warp& warp);

/// Handler of an instruction that uses a register of a tcgen05.ld before tcgen05.wait::ld: hardware makes
/// it wait for that load, and widely used kernels rely on that. Completes the loads, then runs the
/// instruction's own handler.
void run_after_loads(Warp& warp, const Op& op);
/// Tells the checker of Code::wgmma_hazards, then runs the instruction.
void run_wgmma_hazard(Warp& warp, const Op& op);

/// For instructions that all `wanted` lanes execute together. False: the fragment waits for others.
bool converged(Warp& warp, uint32_t wanted);

/// Sets up a cluster's memory, registers and warps for its kernel.
void start_cluster(Cluster& cluster);

enum class Progress : uint8_t { kDone, kPolling, kRunning };
/// Runs a cluster until it is done, has run `budget` instructions, or only polls.
Progress run_cluster(Cluster& cluster, uint64_t budget);

/// Throws the report of a cluster in which nothing has happened for too long.
[[noreturn]] void report_hung(const Cluster& cluster);

/// Every waiting warp with what it waits for.
std::string waiting_report(const Cluster& cluster);

}  // namespace fa4::emulator
