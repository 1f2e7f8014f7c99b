// One warp: fragments of lanes, and the loop that runs them.
//
// Lanes that part at a branch are fragments. The one with the lowest pc runs, and fragments that meet
// at a pc become one, so that lanes which part meet again behind the branch. A fragment that waits,
// or that spins, lets the others go on.
#include <algorithm>

#include "csrc/emulator/check/checker.h"
#include "csrc/emulator/machine/machine.h"

namespace fa4::emulator {

namespace {

/// Branches backwards before a fragment lets the warp's other fragments run.
constexpr uint32_t kSpinBranches = 64;

bool may_run(const Fragment& fragment, uint64_t events) {
  return !fragment.blocked || (!fragment.converging && fragment.seen_events != events);
}

void update_merge_pc(Warp& w) {
  w.merge_pc = UINT32_MAX;
  for (const Fragment& f : w.parked) {
    const bool meets = !f.blocked || f.converging;
    if (meets && !f.resting) w.merge_pc = std::min(w.merge_pc, f.pc);
  }
}

/// Joins parked fragments that stand where the current one does.
void merge_at(Warp& w, uint32_t pc) {
  for (size_t i = 0; i < w.parked.size();) {
    Fragment& f = w.parked[i];
    if (f.pc == pc && !f.arrived && !w.current.arrived && (!f.blocked || f.converging)) {
      w.current.mask |= f.mask;
      w.parked.erase(w.parked.begin() + static_cast<std::ptrdiff_t>(i));
    } else {
      ++i;
    }
  }
}

/// Makes the runnable fragment with the lowest pc the current one. False: none can run.
bool choose_fragment(Warp& w) {
  const uint64_t events = w.cta->cluster->events;
  Fragment* best = nullptr;
  for (const bool resting : {false, true}) {
    for (Fragment& f : w.parked) {
      if (f.resting != resting || !may_run(f, events)) continue;
      if (best == nullptr || f.pc < best->pc) best = &f;
    }
    if (best != nullptr) break;
  }
  if (best == nullptr) return false;
  w.current = *best;
  w.current.blocked = w.current.converging = w.current.resting = false;
  w.parked.erase(w.parked.begin() + (best - w.parked.data()));
  w.pc = w.current.pc;
  merge_at(w, w.pc);
  update_merge_pc(w);
  return true;
}

void park(Warp& w) {
  if (w.current.mask == 0) return;
  w.parked.push_back(w.current);
  w.current = Fragment{};
}

/// The current fragment has reached a pc where others stand, or passed one that may run.
void regroup(Warp& w) {
  merge_at(w, w.pc);
  update_merge_pc(w);
  const bool others_first = std::any_of(w.parked.begin(), w.parked.end(), [&w](const Fragment& f) {
    return !f.blocked && !f.resting && f.pc < w.pc;
  });
  if (!others_first) return;
  w.current.pc = w.pc;
  park(w);
  choose_fragment(w);
}

/// Lanes that waited for the whole warp may be complete now that some have exited.
void retry_converging(Warp& w) {
  for (Fragment& f : w.parked) {
    if (f.converging) f.blocked = f.converging = false;
  }
  update_merge_pc(w);
}

/// Acts on an instruction that did not simply go on. False: the warp's turn is over.
bool handle_outcome(Warp& w) {
  const Outcome outcome = w.outcome;
  w.outcome = Outcome::kNext;
  Cluster& cluster = *w.cta->cluster;
  if (outcome == Outcome::kExit) {
    w.live &= ~w.exec;
    w.current.mask &= ~w.exec;
    const auto count = static_cast<uint32_t>(__builtin_popcount(w.exec));
    w.cta->live_threads -= count;
    cluster.live_threads -= count;
    // At the cluster barrier only threads that live are counted.
    cluster.barrier.arrived -=
        static_cast<uint32_t>(__builtin_popcount(w.exec & w.cluster_arrived));
    w.cluster_arrived &= ~w.exec;
    if (w.live == 0) finish_tensor_memory_accesses(w);
    if (w.live == 0 && cluster.checker != nullptr) cluster.checker->warp_exits(w);
    cluster.notify();
    retry_converging(w);
    return w.current.mask != 0 || choose_fragment(w);
  }
  if (outcome == Outcome::kBlocked) {
    w.current.pc = w.pc - 1;
    w.current.blocked = true;
    w.current.seen_events = cluster.events;
    if (w.current.wait_begin == 0) w.current.wait_begin = 1 + cluster.steps;
    park(w);
    update_merge_pc(w);
    return choose_fragment(w);
  }
  w.polls = true;  // kYield
  const bool others = std::any_of(w.parked.begin(), w.parked.end(), [&cluster](const Fragment& f) {
    return !f.resting && may_run(f, cluster.events);
  });
  if (!others) return false;
  w.current.pc = w.pc;
  w.current.resting = true;
  park(w);
  update_merge_pc(w);
  return choose_fragment(w);
}

void record_wait(Warp& w, const Op& op) {
  const uint64_t end = w.cta->cluster->steps;
  const std::string what = op.wait_text != nullptr ? op.wait_text(w, op, w.exec) : "";
  w.waits.push_back({op.line, what, w.current.wait_begin - 1, end});
  w.current.wait_begin = 0;
}

template <bool kTrace>
uint32_t run(Warp& w, uint32_t budget) {
  const Op* const ops = w.code->ops.data();
  uint32_t done = 0;
  while (done < budget) {
    if (w.pc >= w.merge_pc) [[unlikely]] {
      regroup(w);
    }
    const Op& op = ops[w.pc++];
    uint32_t exec = w.current.mask;
    if (op.guard != kNoPred) {
      exec &= op.guard_negated ? ~w.preds[op.guard] : w.preds[op.guard];
      if (exec == 0) {
        ++done;
        continue;
      }
    }
    w.exec = exec;
    op.run(w, op);
    if constexpr (kTrace) {
      if (w.outcome != Outcome::kBlocked) {
        ++w.class_counts[static_cast<size_t>(op.op_class)];
        if (w.current.wait_begin != 0) record_wait(w, op);
      }
    }
    if (w.outcome != Outcome::kNext) [[unlikely]] {
      if (w.outcome != Outcome::kBlocked) ++done;
      if (!handle_outcome(w)) break;
      continue;
    }
    ++done;
  }
  return done;
}

}  // namespace

bool runnable(const Warp& w) {
  if (w.finished()) return false;
  if (w.current.mask != 0) return true;
  const uint64_t events = w.cta->cluster->events;
  return std::any_of(w.parked.begin(), w.parked.end(),
                     [events](const Fragment& f) { return may_run(f, events); });
}

uint32_t run_warp(Warp& w, uint32_t budget) {
  w.polls = false;
  if (!w.parked.empty()) {
    for (Fragment& f : w.parked) f.resting = false;
    if (w.current.mask != 0) {
      w.current.pc = w.pc;
      park(w);
    }
    if (!choose_fragment(w)) return 0;
  } else if (w.current.mask == 0) {
    return 0;
  }
  const uint32_t done =
      w.cta->cluster->options->trace ? run<true>(w, budget) : run<false>(w, budget);
  w.instructions += done;
  return done;
}

bool converged(Warp& w, uint32_t wanted) {
  wanted &= w.live;
  if ((w.exec & wanted) == wanted) return true;
  if ((w.current.mask & wanted) == wanted) {
    throw Fault("all of " + lanes_text(wanted) +
                " must execute this instruction together, its guard lets " + lanes_text(w.exec) +
                " do so");
  }
  w.current.converging = true;
  w.block();
  return false;
}

/// Splits the current fragment at a branch that the lanes of exec take.
void branch(Warp& w, uint32_t target) {
  const bool backward = target < w.pc;
  const uint32_t others = w.current.mask & ~w.exec;
  if (others != 0) {
    Fragment stays;
    stays.mask = others;
    stays.pc = w.pc;
    w.current.mask = w.exec;
    w.parked.push_back(stays);
    update_merge_pc(w);
  }
  w.pc = target;
  if (backward && !w.parked.empty() && ++w.current.spins > kSpinBranches) {
    w.current.spins = 0;
    w.outcome = Outcome::kYield;
  }
}

}  // namespace fa4::emulator
