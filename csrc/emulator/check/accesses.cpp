// Accesses to shared memory: by threads, and by copies on their behalf.
#include <algorithm>

#include "csrc/emulator/check/checker.h"
#include "csrc/emulator/isa/access.h"

namespace fa4::emulator::check {

// ---- Order
//      ----------------------------------------------------------------------------------------

bool Checker::ordered(const Access& x, Epoch earlier, bool earlier_writes) {
  return x.tensor ? tensor_ordered(x, earlier, earlier_writes)
                  : shared_ordered(x, earlier, earlier_writes);
}

bool Checker::shared_ordered(const Access& x, Epoch earlier, bool earlier_writes) {
  const uint32_t kind = earlier.agent() / static_cast<uint32_t>(parties_.size());
  const bool by_thread = kind == kThreads || kind == kLanes || kind == kThreadCopies;
  // What threads wrote is seen by the asynchronous proxy behind a proxy fence. That a copy
  // overwrites it takes one too by the letter.
  const bool proxied = x.async && by_thread && earlier_writes && (!x.writes || strict_);
  // A copy that a lane issues takes what the others wrote before their last barrier.
  const bool apart = strict_ && x.async && x.alone && earlier.agent() == x.by->index &&
                     earlier_writes && earlier.time() >= x.by->together;
  if (!apart && (proxied ? x.by->proxied : x.by->seen).knows(earlier)) return true;
  if (!apart && x.alone && (proxied ? x.by->lane_proxied : x.by->lane_seen).knows(earlier))
    return true;
  // Reductions into the same place may come in any order. Atomics do not race with each other. Of
  // two narrow accesses to a word it is not known whether they meet.
  const uint8_t both = facts(x.epoch.pc()) & facts(earlier.pc());
  if ((both & kReduces) != 0) return earlier_writes && x.writes;
  if (x.async || (kind != kThreads && kind != kLanes)) return false;
  return (both & (kSynchronizes | kNarrow)) != 0;
}

void Checker::touch(Cell& cell, Access& x, const Location& at) {
  if (x.reads && (cell.write.none() || (x.tensor && (facts(cell.write.pc()) & kAllocates) != 0))) {
    unwritten(x, at);
  } else if (!(cell.write == x.known_write)) {
    if (!cell.write.none() && !ordered(x, cell.write, true)) race(x, cell.write, true, at);
    x.known_write = cell.write;
    x.unmet |= x.reads && !x.async && !x.tensor && unmet(*x.by, cell.write);
  }
  if (x.writes) {
    if (cell.readers != x.known_readers) {
      for (const Epoch reader : readers_.of(cell.readers)) {
        if (!ordered(x, reader, false)) race(x, reader, false, at);
      }
      x.known_readers = cell.readers;
    }
    cell.write = x.epoch;
    cell.readers = 0;
    return;
  }
  if (cell.readers != x.from) {
    x.from = cell.readers;
    x.to = readers_.with(cell.readers, x.epoch);
  }
  cell.readers = x.to;
}

void Checker::over_shared(Access& x, Cta& cta, uint32_t offset, uint32_t bytes) {
  if (offset + size_t{bytes} > cta.shared.end()) return;  // the access itself faults
  const auto visit = [&](Cell& cell, uint32_t place) {
    touch(cell, x, {cta.rank, std::max(place, offset), 0, 0});
  };
  state(cta).shared.each(offset, bytes, x.writes, visit);
}

void Checker::over_units(Access& x, Cta& cta, const uint32_t* units, uint32_t count) {
  SharedShadow& shadow = state(cta).shared;
  std::vector<Cell>& cells = shadow.units();
  for (uint32_t i = 0; i < count; ++i) {
    const uint32_t index = units[i] / SharedShadow::kUnit;
    if (index < cells.size() && cells[index].words == 0) {
      touch(cells[index], x, {cta.rank, units[i], 0, 0});
    } else {
      over_shared(x, cta, units[i], SharedShadow::kUnit);
    }
  }
}

void Checker::compact_readers() {
  std::vector<std::vector<Cell>*> cells;
  for (CtaState& s : ctas_) {
    cells.push_back(&s.shared.units());
    cells.push_back(&s.shared.words());
    cells.push_back(&s.tensor.cells);
  }
  readers_.compact(cells);
}

// ---- Threads
//      --------------------------------------------------------------------------------------

Checker::Access Checker::ordinary(Warp& w, const Op& op, bool writes) {
  if (readers_.crowded()) compact_readers();
  Access x;
  x.by = &party(w);
  x.epoch = {x.by->index, pc_of(w, op), time(*x.by)};
  x.writes = writes;
  x.reads = !writes;
  x.alone = is_alone(w.exec);
  return x;
}

void Checker::access(Warp& w, const Op& op, uint32_t lanes, uint32_t bytes, bool writes) {
  const auto space = static_cast<AccessSpace>(op.space);
  if (space == AccessSpace::kGlobal) {
    if (writes) check_release(w, op);
    return global_access(w, op);
  }
  if (space != AccessSpace::kShared && space != AccessSpace::kGeneric) return;
  const uint8_t facts_here = facts(pc_of(w, op));
  if ((facts_here & kAcquires) != 0) synchronize(w, op, lanes, true, false);
  Access x = ordinary(w, op, writes);
  if (is_alone(lanes)) {
    x.epoch = {agent(kLanes, *x.by), pc_of(w, op), time(*x.by)};
    x.alone = true;
  } else {
    x.by->apart = true;
    x.alone = false;
  }
  const uint32_t all = lanes;
  bool global = false;
  uint32_t begin = 0, end = 0;
  const auto flush = [&] {
    if (begin == end || rank_of(begin) >= ctas_.size()) return;
    Cta& cta = cluster_.ctas[rank_of(begin)];
    if (cta.rank != w.cta->rank) use(cta, x.epoch, w, op);
    over_shared(x, cta, offset_of(begin), end - begin);
  };
  for (; lanes != 0; lanes &= lanes - 1) {
    const uint64_t address = lane_address(w, op, static_cast<uint32_t>(__builtin_ctz(lanes)), kA);
    if (!is_shared(space, address)) {
      global |= (address & kWindowMask) != kLocalWindow;
      continue;
    }
    const auto at = static_cast<uint32_t>(address);
    if (at == end && begin != end) {
      end += bytes;
    } else if (at < begin || at + bytes > end) {
      flush();
      begin = at;
      end = at + bytes;
    }
  }
  flush();
  if (strict_ && writes) lanes_write(w, op, all, bytes);
  if (strict_ && x.unmet) lanes_read(w, op, all, bytes);
  if (global) {
    if (writes) check_release(w, op);
    global_access(w, op);
  }
  if ((facts_here & kReleases) != 0) synchronize(w, op, w.exec, false, true);
}

/// Atomics, volatile, relaxed, acquiring and releasing accesses hand over like a barrier of that
/// address: fences beside them are not looked at.
void Checker::synchronize(Warp& w, const Op& op, uint32_t lanes, bool acquires, bool releases) {
  Party& p = party(w);
  uint32_t last = UINT32_MAX;
  for (; lanes != 0; lanes &= lanes - 1) {
    const uint64_t address = lane_address(w, op, static_cast<uint32_t>(__builtin_ctz(lanes)), kA);
    if (!is_shared(static_cast<AccessSpace>(op.space), address)) continue;
    const auto at = static_cast<uint32_t>(address);
    if (at == last) continue;
    last = at;
    Knowledge& flag = flags_[at];
    if (acquires) hear(p, flag, is_alone(w.exec));
    if (releases) tell(p, &flag, is_alone(w.exec));
  }
  if (releases) tick(p);
}

void Checker::write_shared(Warp& w, const Op& op, Cta& cta, uint32_t offset, uint32_t bytes) {
  Access x = ordinary(w, op, true);
  over_shared(x, cta, offset, bytes);
}

// ---- Copies that complete on an mbarrier
//      ----------------------------------------------------------

uint32_t Checker::agent_of(Mbarrier& b, const Cta& cta, uint32_t offset) {
  if (b.agent == 0) {
    b.agent = static_cast<uint32_t>(kKinds * parties_.size() + barrier_agents_.size());
    barrier_agents_.emplace_back(cta.rank, offset);
  }
  return b.agent;
}

uint32_t Checker::copy_in(Warp& w, const Op& op, Cta& to, uint32_t offset, uint32_t bytes,
                          Cta& barrier_cta, uint32_t barrier) {
  Mbarrier* const b = find(barrier_cta, barrier);
  if (b == nullptr) return 0;  // faults when it completes
  check_ready(w, op, barrier_cta, barrier, *b, true);
  check_planned_signal(w, op, barrier_cta, *b, Plan::Done::kBytes, Arrival::kBytes);
  Access x = ordinary(w, op, true);
  x.async = true;
  x.epoch = {agent_of(*b, barrier_cta, barrier), pc_of(w, op), ++b->copies};
  b->pending.push_back(b->copies);
  use(to, x.epoch, w, op);
  over_shared(x, to, offset, bytes);
  return b->copies;
}

void Checker::copy_source(Warp& w, const Op& op, Cta& from, uint32_t offset, uint32_t bytes,
                          Cta& barrier_cta, uint32_t barrier, uint32_t number) {
  Mbarrier* const b = find(barrier_cta, barrier);
  if (b == nullptr) return;
  Access x = ordinary(w, op, false);
  x.async = true;
  x.epoch = {agent_of(*b, barrier_cta, barrier), pc_of(w, op), number};
  use(from, x.epoch, w, op);
  over_shared(x, from, offset, bytes);
}

/// What waits for the phase knows of this copy and of all before it, unless some of these are under
/// way: they belong to a later phase.
void Checker::copy_complete(Cta& barrier_cta, uint32_t barrier, uint32_t number) {
  Mbarrier* const b = find(barrier_cta, barrier);
  if (b == nullptr || number == 0) return;
  std::erase(b->pending, number);
  const uint32_t upto = b->pending.empty() ? b->copies : b->pending.front() - 1;
  b->arriving.seen.raise(agent_of(*b, barrier_cta, barrier), upto);
}

// ---- Copies in groups of the issuing thread
//      -------------------------------------------------------

void Checker::copy_out(Warp& w, const Op& op, Cta& from, uint32_t offset, uint32_t bytes,
                       bool clipped) {
  global_access(w, op);
  Access x = ordinary(w, op, false);
  x.async = true;
  x.reads = !clipped;
  x.epoch = {agent(kBulkCopies, *x.by), pc_of(w, op), x.by->queues[kBulkCopies].issue(time(*x.by))};
  use(from, x.epoch, w, op);
  over_shared(x, from, offset, bytes);
}

uint32_t Checker::last_bulk_copy(Warp& w) {
  return party(w).queues[kBulkCopies].last();
}

void Checker::bulk_waited(Warp& w, uint32_t number, bool reads) {
  Party& p = party(w);
  learn(p, kBulkCopies, number, is_alone(w.exec));
  if (!reads) p.bulk_complete = std::max(p.bulk_complete, number);
}

void Checker::thread_copy(Warp& w, const Op& op, uint32_t address, uint32_t bytes) {
  global_access(w, op);
  if (rank_of(address) >= ctas_.size()) return;
  Access x = ordinary(w, op, true);
  x.epoch = {agent(kThreadCopies, *x.by), pc_of(w, op),
             x.by->queues[kThreadCopies].issue(time(*x.by))};
  over_shared(x, cluster_.ctas[rank_of(address)], offset_of(address), bytes);
}

uint32_t Checker::last_thread_copy(Warp& w) {
  return party(w).queues[kThreadCopies].last();
}

void Checker::thread_copies_waited(Warp& w, uint32_t number) {
  learn(party(w), kThreadCopies, number, is_alone(w.exec));
}

/// By the letter the arrival of cp.async.mbarrier.arrive hands over the copies alone.
Parcel Checker::thread_copies_parcel(Warp& w) {
  Party& p = party(w);
  auto parcel = std::make_shared<Knowledge>();
  if (!strict_) {
    tell(p, parcel.get());
    tick(p);
  }
  parcel->seen.raise(agent(kThreadCopies, p), p.queues[kThreadCopies].last());
  return parcel;
}

}  // namespace fa4::emulator::check
