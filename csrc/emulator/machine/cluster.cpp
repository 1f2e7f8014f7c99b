// One cluster: its set-up, the turns of its warps, and what is said when none can go on.
#include <algorithm>
#include <cstring>

#include "csrc/emulator/check/checker.h"
#include "csrc/emulator/machine/grid.h"
#include "csrc/emulator/machine/machine.h"
#include "csrc/emulator/machine/mbarrier.h"
#include "csrc/emulator/machine/special.h"

namespace fa4::emulator {

namespace {

/// Instructions of a warp's turn: short enough that warps run side by side, long enough that
/// switching costs little.
constexpr uint32_t kTurn = 128;
/// Instructions without an event after which a cluster lets others of the grid run: it may wait for
/// one of them.
constexpr uint64_t kPatience = 100'000;

void start_registers(Warp& w) {
  const Code& code = *w.code;
  w.register_storage.assign(size_t{code.planes} * kWarpLanes + 16, kPoison32);
  // Planes begin on cache lines.
  const auto address = reinterpret_cast<uintptr_t>(w.register_storage.data());
  w.planes = w.register_storage.data() + (64 - address % 64) % 64 / 4;
  w.bases[0] = w.planes;
  w.bases[1] = code.constants.data();
  w.pred_storage.assign(code.preds + 1, 0);
  w.preds = w.pred_storage.data();
  for (const Fill& fill : code.fills) {
    uint32_t* const plane = w.target(fill.plane);
    for (uint32_t lane = 0; lane < kWarpLanes; ++lane) {
      const uint64_t value = fill_value(w, fill, lane);
      plane[lane] = static_cast<uint32_t>(fill.high ? value >> 32 : value);
    }
  }
}

void start_warp(Cta& cta, uint32_t index, uint32_t threads) {
  Warp& w = cta.warps[index];
  const Code& code = cta.cluster->grid->code;
  w.cta = &cta;
  w.code = &code;
  w.index = index;
  const uint32_t lanes = std::min<uint32_t>(kWarpLanes, threads - index * kWarpLanes);
  w.live = lanes == kWarpLanes ? kAllLanes : (1u << lanes) - 1;
  w.current.mask = w.live;
  const uint32_t declared = code.kernel->max_registers;
  w.register_limit = declared != 0 ? declared : std::min<uint32_t>(255, 65536 / threads / 8 * 8);
  w.local.assign(size_t{code.local_bytes} * kWarpLanes, 0xa5);
  start_registers(w);
}

void start_cta(Cluster& cluster, uint32_t rank) {
  const Grid& grid = *cluster.grid;
  Cta& cta = cluster.ctas[rank];
  cta.cluster = &cluster;
  cta.rank = rank;
  cta.index = grid.first_cta(cluster.number);
  const Extent& extent = grid.launch.cluster;
  cta.index[0] += rank % extent.x;
  cta.index[1] += rank / extent.x % extent.y;
  cta.index[2] += rank / extent.x / extent.y;
  cta.shared.reset(grid.code.dynamic_shared_begin() - SharedMemory::kBase +
                   grid.launch.dynamic_shared_bytes);
  const auto threads = static_cast<uint32_t>(grid.launch.block.count());
  cta.live_threads = threads;
  cluster.live_threads += threads;
  cta.warps.resize((threads + kWarpLanes - 1) / kWarpLanes);
  for (uint32_t i = 0; i < cta.warps.size(); ++i) start_warp(cta, i, threads);
}

/// One turn of one warp. Returns whether it ran anything and did not merely poll.
bool take_turn(Cluster& cluster, Warp& warp, uint32_t budget) {
  const uint64_t events = cluster.events;
  uint32_t ran = 0;
  try {
    ran = run_warp(warp, budget);
    cluster.agents.settle();
  } catch (const OperationFault&) {
    throw;  // whose turn it is says nothing about it
  } catch (const Fault& fault) {
    throw Fault(std::string(fault.what()) + where_text(warp));
  }
  cluster.steps += ran;
  cluster.statistics.warp_instructions += ran;
  return ran > 0 && !(warp.polls && cluster.events == events);
}

bool turns_in_order(Cluster& cluster) {
  bool progress = false;
  for (Cta& cta : cluster.ctas) {
    for (Warp& warp : cta.warps) {
      if (runnable(warp)) progress |= take_turn(cluster, warp, kTurn);
    }
  }
  return progress;
}

/// As many turns as there are warps, of warps chosen at random, with steps of agents between them.
bool turns_at_random(Cluster& cluster) {
  bool progress = false;
  std::vector<Warp*> ready;
  for (Cta& cta : cluster.ctas) {
    for (Warp& warp : cta.warps) {
      if (runnable(warp)) ready.push_back(&warp);
    }
  }
  for (size_t left = ready.size(); left > 0; --left) {
    std::swap(ready[cluster.random.below(static_cast<uint32_t>(left))], ready[left - 1]);
    Warp& warp = *ready[left - 1];
    const uint32_t budget = 1 + cluster.random.below(cluster.random.one_in(4) ? 4 * kTurn : 16);
    if (runnable(warp)) progress |= take_turn(cluster, warp, budget);
    if (cluster.agents.step_random()) cluster.notify();
  }
  return progress;
}

std::string block_text(const Cta& cta) {
  return "block (" + std::to_string(cta.index[0]) + ", " + std::to_string(cta.index[1]) + ", " +
         std::to_string(cta.index[2]) + ")";
}

std::string fragment_text(const Warp& w, const Fragment& f) {
  std::string text = "  " + block_text(*w.cta) + " warp " + std::to_string(w.index) + ", " +
                     lanes_text(f.mask) + ": " + place_text(*w.code, f.pc);
  if (f.converging) return text + "\n    waits for the other lanes of the warp to arrive here";
  const Op& op = w.code->ops[f.pc];
  if (f.blocked && op.wait_text != nullptr)
    text += "\n    waits for " + op.wait_text(w, op, f.mask);
  return text;
}

}  // namespace

std::string place_text(const Code& code, uint32_t pc) {
  if (pc >= code.kernel->instructions.size()) return "the end of the kernel";
  const ptx::Place& place = code.kernel->instructions[pc].place;
  std::string text = "line " + std::to_string(place.line);
  if (place.source_line != 0 && place.source_file < code.module->files.size()) {
    text += " (" + code.module->files[place.source_file] + ":" + std::to_string(place.source_line) +
            ")";
  }
  return text + ": " + std::string(code.module->line(place.line));
}

std::string where_text(const Warp& w) {
  const uint32_t pc = w.pc == 0 ? 0 : w.pc - 1;
  return "\n  at " + place_text(*w.code, pc) + "\n  in kernel " + w.code->info.name + ", " +
         block_text(*w.cta) + ", warp " + std::to_string(w.index) + ", " + lanes_text(w.exec);
}

Cluster::Cluster() = default;
Cluster::~Cluster() = default;

Cta& Cluster::cta_of_address(uint32_t shared_address) {
  const uint32_t rank = rank_of(shared_address);
  if (rank >= ctas.size()) {
    throw Fault("shared memory: address " + hex(shared_address) + " names CTA " +
                std::to_string(rank) + " of a cluster of " + std::to_string(ctas.size()));
  }
  return ctas[rank];
}

bool TensorMemory::allocated(uint32_t first, uint32_t count) const {
  return std::any_of(allocations.begin(), allocations.end(), [=](const auto& allocation) {
    return first >= allocation.first && first + count <= allocation.first + allocation.second;
  });
}

uint32_t TensorMemory::find_free(uint32_t count) const {
  for (uint32_t first = 0; first + count <= kColumns; first += count) {
    const bool taken = std::any_of(allocations.begin(), allocations.end(), [=](const auto& a) {
      return first < a.first + a.second && a.first < first + count;
    });
    if (!taken) return first;
  }
  return kColumns;
}

void start_cluster(Cluster& cluster) {
  const Grid& grid = *cluster.grid;
  const Options& options = grid.options;
  cluster.options = &options;
  cluster.random = Random(mix(options.seed) ^ mix(cluster.number));
  cluster.agents.reset(options.policy, mix(options.seed + 1) ^ mix(cluster.number));
  cluster.ctas.resize(grid.launch.cluster.count());
  for (uint32_t rank = 0; rank < cluster.ctas.size(); ++rank) start_cta(cluster, rank);
  if (options.check != Check::kOff) cluster.checker = std::make_unique<check::Checker>(cluster);
}

std::string waiting_report(const Cluster& cluster) {
  std::string text;
  for (const Cta& cta : cluster.ctas) {
    for (const Warp& w : cta.warps) {
      if (w.current.mask != 0) {
        Fragment running = w.current;
        running.pc = w.pc;
        text += "\n" + fragment_text(w, running);
      }
      for (const Fragment& f : w.parked) text += "\n" + fragment_text(w, f);
    }
  }
  for (const std::string& pending : cluster.agents.pending()) text += "\n  pending: " + pending;
  return text;
}

void report_hung(const Cluster& cluster) {
  throw Fault("hung: " + std::to_string(cluster.options->stall_steps) +
              " warp instructions without a barrier phase, a copy or a changed word of memory" +
              waiting_report(cluster));
}

namespace {

/// Notices events; faults when there has been none for too long.
void check_progress(Cluster& cluster) {
  const uint64_t progress = cluster.grid->progress.load(std::memory_order_relaxed);
  if (cluster.events != cluster.seen_events || progress != cluster.seen_progress) {
    cluster.seen_events = cluster.events;
    cluster.seen_progress = progress;
    cluster.event_step = cluster.steps;
  } else if (cluster.steps - cluster.event_step > cluster.options->stall_steps) {
    report_hung(cluster);
  }
}

/// Lets every try_wait answer no. False when several times in a row nothing has come of it: each try_wait
/// is in a loop that only asks again.
bool pass_time_limits(Cluster& cluster) {
  constexpr uint32_t kMostIdle = 8;
  const bool idle = cluster.events == cluster.time_limit_events;
  cluster.idle_time_limits = idle ? cluster.idle_time_limits + 1 : 0;
  if (cluster.idle_time_limits > kMostIdle) return false;
  ++cluster.time_limits;
  cluster.notify();
  cluster.time_limit_events = cluster.events;
  return true;
}

Progress run_turns(Cluster& cluster, uint64_t budget) {
  const uint64_t end = cluster.steps + budget;
  const bool random = cluster.options->policy == Policy::kRandom;
  uint64_t slice_events = cluster.events;
  uint64_t slice_step = cluster.steps;
  uint32_t idle_rounds = 0;
  while (cluster.live_threads > 0) {
    const uint64_t events = cluster.events;
    const bool progress = random ? turns_at_random(cluster) : turns_in_order(cluster);
    idle_rounds = cluster.events != events ? 0 : idle_rounds + 1;
    // Nothing else can happen, or warps spin on memory: time for a copy or an MMA.
    if ((!progress && cluster.events == events) || idle_rounds % 64 == 63) {
      const uint64_t steps = cluster.steps;
      const bool stepped = cluster.agents.step_oldest();
      if (stepped) cluster.notify();
      const bool stuck = !progress && !stepped && cluster.steps == steps;
      if (stuck && !polling(cluster) && !pass_time_limits(cluster))
        throw Fault("deadlock: no warp can go on" + waiting_report(cluster));
    }
    check_progress(cluster);
    if (cluster.events != slice_events) {
      slice_events = cluster.events;
      slice_step = cluster.steps;
      cluster.grid->progress.fetch_add(1, std::memory_order_relaxed);
    } else if (cluster.steps - slice_step > kPatience) {
      return Progress::kPolling;
    }
    if (cluster.steps >= end) return Progress::kRunning;
  }
  while (cluster.agents.step_oldest()) {
  }
  return Progress::kDone;
}

}  // namespace

Progress run_cluster(Cluster& cluster, uint64_t budget) {
  try {
    return run_turns(cluster, budget);
  } catch (const OperationFault& fault) {
    const Code& code = cluster.grid->code;
    throw Fault(std::string(fault.what()) + "\n  in " + fault.operation + ", issued at line " +
                std::to_string(fault.line) + ": " + std::string(code.module->line(fault.line)) +
                "\n  in kernel " + code.info.name);
  }
}

}  // namespace fa4::emulator
