// Barriers of warps, CTAs and clusters, and the register pool.
#include <string>

#include "csrc/emulator/check/checker.h"
#include "csrc/emulator/isa/families.h"
#include "csrc/emulator/machine/machine.h"

namespace fa4::emulator {

using ptx::Operand;

namespace {

uint32_t first_value(const Warp& w, PlaneRef ref) {
  return w.source(ref)[w.first_lane()];
}

// ---- bar, barrier: sixteen per CTA -----------------------------------------------------------------------

/// Op::mode: what happens at the barrier, and whether the whole warp does it together.
enum : uint8_t {
  kSync = 0,
  kArrive = 1,
  kRedAnd = 2,
  kRedOr = 3,
  kRedPopc = 4,
  kActionMask = 7,
  kAligned = 8
};

std::string named_barrier_text(const Warp& w, const Op& op, uint32_t lanes) {
  const auto lane = static_cast<uint32_t>(__builtin_ctz(lanes));
  const uint32_t id = w.source(op.r[kA])[lane] & 15;
  const NamedBarrier& b = w.cta->barriers[id];
  return "barrier " + std::to_string(id) + ": " + std::to_string(b.arrived) + " of " +
         std::to_string(b.expected) + " threads have arrived";
}

/// Threads that the barrier waits for: the count of the instruction, or all that have not exited.
uint32_t expected_threads(const Warp& w, const Op& op) {
  if (op.extra == 0) return (w.cta->live_threads + kWarpLanes - 1) / kWarpLanes * kWarpLanes;
  const uint32_t count = first_value(w, op.r[kB]);
  if (count == 0 || count % kWarpLanes != 0 || count > 1024) {
    throw Fault("barrier: the thread count must be a multiple of 32 up to 1024, got " +
                std::to_string(count));
  }
  return count;
}

void complete(Warp& w, NamedBarrier& b) {
  b.last_and = b.votes_and;
  b.last_or = b.votes_or;
  b.last_count = b.votes_count;
  b.arrived = b.expected = 0;
  ++b.generation;
  w.cta->cluster->notify();
  if (auto* const checker = w.cta->cluster->checker.get())
    checker->barrier_complete(*w.cta, static_cast<uint32_t>(&b - w.cta->barriers.data()));
}

void arrive(Warp& w, const Op& op, NamedBarrier& b, uint32_t id) {
  const uint32_t expected = expected_threads(w, op);
  if (b.arrived == 0) {
    b.expected = expected;
    b.votes_and = 1;
    b.votes_or = b.votes_count = 0;
  } else if (b.expected != expected && op.extra != 0) {
    throw Fault("barrier " + std::to_string(id) + ": threads wait for a count of " +
                std::to_string(b.expected) + ", this instruction gives " +
                std::to_string(expected));
  }
  if (op.p[2] != kNoPred) {
    const uint32_t votes = (op.source_negated ? ~w.pred(op.p[2]) : w.pred(op.p[2])) & w.exec;
    b.votes_and &= votes == w.exec ? 1 : 0;
    b.votes_or |= votes != 0 ? 1 : 0;
    b.votes_count += static_cast<uint32_t>(__builtin_popcount(votes));
  }
  // A warp counts as a whole, lanes that have exited included.
  b.arrived += (op.mode & kAligned) != 0
                   ? kWarpLanes
                   : static_cast<uint32_t>(__builtin_popcount(w.exec | ~w.live));
  if (auto* const checker = w.cta->cluster->checker.get())
    checker->barrier_arrive(w, op, id, (op.mode & kActionMask) != kArrive);
  if (b.arrived > b.expected) {
    throw Fault("barrier " + std::to_string(id) + ": " + std::to_string(b.arrived) +
                " threads have arrived, it expects " + std::to_string(b.expected));
  }
  if (b.arrived == b.expected) complete(w, b);
}

void finish_reduction(Warp& w, const Op& op, const NamedBarrier& b) {
  const uint8_t action = op.mode & kActionMask;
  if (action == kRedPopc) {
    for (uint32_t lanes = w.exec; lanes != 0; lanes &= lanes - 1) {
      w.target(op.r[kD])[__builtin_ctz(lanes)] = b.last_count;
    }
  } else if (action != kSync) {
    w.set_pred(op.p[0], (action == kRedAnd ? b.last_and : b.last_or) != 0 ? kAllLanes : 0);
  }
}

void run_named_barrier(Warp& w, const Op& op) {
  if ((op.mode & kAligned) != 0 && !converged(w, kAllLanes)) return;
  const uint32_t id = first_value(w, op.r[kA]);
  if (id > 15) throw Fault("barrier: the number must be 0 to 15, got " + std::to_string(id));
  NamedBarrier& b = w.cta->barriers[id];
  if ((op.mode & kActionMask) == kArrive) return arrive(w, op, b, id);
  if (!w.current.arrived) {
    w.current.token = b.generation;
    arrive(w, op, b, id);
    w.current.arrived = true;
  } else if (op.extra == 0 && b.arrived != 0 && b.generation == w.current.token) {
    // Threads may have exited since; then fewer are waited for.
    b.expected = expected_threads(w, op);
    if (b.arrived >= b.expected) complete(w, b);
  }
  if (b.generation == w.current.token) return w.block();
  w.current.arrived = false;
  if (auto* const checker = w.cta->cluster->checker.get()) checker->barrier_passed(w, id);
  finish_reduction(w, op, b);
}

// ---- bar.warp.sync ---------------------------------------------------------------------------------------

void run_warp_barrier(Warp& w, const Op& op) {
  if (!converged(w, first_value(w, op.r[kA]))) return;
  if (auto* const checker = w.cta->cluster->checker.get()) checker->warp_synced(w);
}

// ---- barrier.cluster -------------------------------------------------------------------------------------

/// Op::mode.
enum : uint8_t { kAlignedBarrier = 1, kRelaxed = 2 };

std::string cluster_barrier_text(const Warp& w, const Op&, uint32_t) {
  const Cluster& c = *w.cta->cluster;
  return "the cluster barrier: " + std::to_string(c.barrier.arrived) + " of " +
         std::to_string(c.live_threads) + " threads have arrived";
}

void complete_if_all(Cluster& c) {
  if (c.barrier.arrived < c.live_threads) return;
  c.barrier.arrived = 0;
  ++c.barrier.generation;
  c.notify();
  if (c.checker != nullptr) c.checker->cluster_complete();
}

void run_cluster_arrive(Warp& w, const Op& op) {
  if ((op.mode & kAlignedBarrier) != 0 && !converged(w, kAllLanes)) return;
  Cluster& c = *w.cta->cluster;
  if ((w.cluster_arrived & w.exec) != 0) {
    throw Fault("barrier.cluster.arrive: " + lanes_text(w.cluster_arrived & w.exec) +
                " have already arrived and not waited");
  }
  if (c.checker != nullptr) c.checker->cluster_arrive(w, (op.mode & kRelaxed) != 0);
  w.cluster_token = c.barrier.generation;
  w.cluster_arrived |= w.exec;
  c.barrier.arrived += static_cast<uint32_t>(__builtin_popcount(w.exec));
  complete_if_all(c);
}

void run_cluster_wait(Warp& w, const Op& op) {
  if ((op.mode & kAlignedBarrier) != 0 && !converged(w, kAllLanes)) return;
  Cluster& c = *w.cta->cluster;
  if ((w.cluster_arrived & w.exec) != w.exec) {
    throw Fault("barrier.cluster.wait: " + lanes_text(w.exec & ~w.cluster_arrived) +
                " have not arrived");
  }
  complete_if_all(c);  // threads that exited since are not waited for
  if (c.barrier.generation == w.cluster_token) return w.block();
  w.cluster_arrived &= ~w.exec;
  if (c.checker != nullptr) c.checker->cluster_passed(w);
}

// ---- setmaxnreg ------------------------------------------------------------------------------------------

std::string register_text(const Warp& w, const Op& op, uint32_t) {
  return std::to_string(op.imm) + " registers per thread, " + std::to_string(w.cta->register_pool) +
         " are free in the CTA's pool";
}

void run_setmaxnreg(Warp& w, const Op& op) {
  if (!converged(w, kAllLanes)) return;
  const auto wanted = static_cast<uint32_t>(op.imm);
  Cta& cta = *w.cta;
  if (op.mode == 0) {  // dec
    if (wanted > w.register_limit) {
      throw Fault("setmaxnreg.dec: must not exceed the present " +
                  std::to_string(w.register_limit) + ", got " + std::to_string(wanted));
    }
    cta.register_pool += w.register_limit - wanted;
    cta.cluster->notify();
  } else {
    if (wanted < w.register_limit) {
      throw Fault("setmaxnreg.inc: must not be below the present " +
                  std::to_string(w.register_limit) + ", got " + std::to_string(wanted));
    }
    if (wanted - w.register_limit > cta.register_pool) return w.block();
    cta.register_pool -= wanted - w.register_limit;
  }
  w.register_limit = wanted;
}

void lower_named_barrier(Lowering& l) {
  const bool is_bar = l.part(0) == "bar";
  Draft& draft = l.emit(run_named_barrier, OpClass::kBarrier);
  uint8_t action = l.has("arrive") ? kArrive : kSync;
  size_t next = 0;
  if (l.has("red")) {
    action = l.has("popc") ? kRedPopc : l.has("and") ? kRedAnd : kRedOr;
    if (action == kRedPopc) {
      l.writes(draft, kD, l.operand(next++), 4);
    } else {
      l.writes_pred(draft, 0, l.operand(next++));
    }
  }
  l.reads(draft, kA, l.operand(next++), 4);
  if (next < l.operand_count() && !l.is_pred(l.operand(next))) {
    l.reads(draft, kB, l.operand(next++), 4);
    draft.op.extra = 1;
  }
  if (next < l.operand_count()) l.reads_pred(draft, l.operand(next));
  draft.op.mode = action | (is_bar || l.has("aligned") ? kAligned : 0);
  draft.op.wait_text = named_barrier_text;
}

}  // namespace

void lower_barrier(Lowering& l) {
  if (l.part(1) == "warp") {
    Draft& draft = l.emit(run_warp_barrier, OpClass::kBarrier);
    l.reads(draft, kA, l.operand(0), 4);
  } else if (l.has("cluster")) {
    const bool arrives = l.has("arrive");
    Draft& draft = l.emit(arrives ? run_cluster_arrive : run_cluster_wait, OpClass::kBarrier);
    draft.op.mode = static_cast<uint8_t>((l.has("aligned") ? kAlignedBarrier : 0) |
                                         (l.has("relaxed") ? kRelaxed : 0));
    draft.op.wait_text = cluster_barrier_text;
  } else {
    lower_named_barrier(l);
  }
}

void lower_setmaxnreg(Lowering& l) {
  Draft& draft = l.emit(run_setmaxnreg, OpClass::kOther);
  draft.op.mode = l.has("inc");
  draft.op.imm = l.immediate(l.operand(0));
  draft.op.wait_text = register_text;
  if (draft.op.imm < 24 || draft.op.imm > 256 || draft.op.imm % 8 != 0) {
    l.unmodelled("the count must be a multiple of 8 from 24 to 256");
  }
}

}  // namespace fa4::emulator
