// Where parties hand over: mbarriers, barriers of the CTA and of the cluster.
#include <utility>

#include "csrc/emulator/check/checker.h"

namespace fa4::emulator::check {

// ---- mbarriers
//      ------------------------------------------------------------------------------------

Checker::Mbarrier* Checker::find(Cta& cta, uint32_t offset) {
  auto& all = state(cta).mbarriers;
  const auto found = all.find(offset);
  return found == all.end() ? nullptr : &found->second;
}

void Checker::mbarrier_init(Warp& w, const Op& op, Cta& cta, uint32_t offset, uint32_t count) {
  Party& p = party(w);
  Mbarrier& b = state(cta).mbarriers[offset];
  const uint32_t agent = b.agent, copies = b.copies;
  b = Mbarrier{};
  b.agent = agent;  // copies of a barrier that was here before keep their numbers
  b.copies = copies;
  b.init = {p.index, pc_of(w, op), time(p)};
  b.plan = plan_place(offset);
  p.unfenced.emplace_back(cta.rank, offset);
  check_planned_init(w, op, offset, b, count);
}

void Checker::mbarrier_inval(Cta& cta, uint32_t offset) {
  state(cta).mbarriers.erase(offset);
}

/// The init must come before every use. Copies, commits and other CTAs see it behind a fence only.
void Checker::check_ready(Warp& w, const Op& op, Cta& cta, uint32_t offset, Mbarrier& b,
                          bool async) {
  const Party& p = party(w);
  const auto text = [&](const std::string& lacks) {
    return warp_text(p) + ", " + line_text(pc_of(w, op)) + ", uses " + name_of(cta.rank, offset) +
           ", which " + warp_text(party_of(b.init)) + " initialises in " + line_text(b.init.pc()) +
           ": " + lacks + quote("the init", b.init.pc());
  };
  const std::string key = std::to_string(op.line) + " " + std::to_string(b.init.pc());
  // fence.mbarrier_init carries inits over a cluster barrier at which threads arrive relaxed.
  const bool carried = b.fenced && p.cluster_barriers > b.fenced_at;
  if (!knows(p, b.init, is_alone(w.exec)) && !carried)
    found("init " + key, text("no barrier orders the init before the use"));
  if ((async || cta.rank != w.cta->rank) && !b.fenced) {
    found("fence " + key, text(std::string("no fence.mbarrier_init follows the init, before ") +
                               (async ? "the asynchronous proxy" : "another CTA") + " may use it"));
  }
}

/// A count that lanes of one instruction exceed moves all later phases.
void Checker::check_arrival(Warp& w, const Op& op, Cta& cta, uint32_t offset, Mbarrier& b) {
  const Party& p = party(w);
  const Epoch arrival{p.index, pc_of(w, op), time(p)};
  if (!(b.arrival == arrival)) {
    b.arrival = arrival;
    b.arrival_phases = b.phases;
  } else if (b.phases != b.arrival_phases && strict_) {
    found("split " + std::to_string(op.line),
          warp_text(p) + ", " + line_text(pc_of(w, op)) + ", arrives at " +
              name_of(cta.rank, offset) +
              " in two phases at once: some lanes complete one, the others count for the next" +
              quote("the init", b.init.pc()));
  }
}

void Checker::mbarrier_arrive(Warp& w, const Op& op, Cta& cta, uint32_t offset, Arrival kind) {
  Mbarrier* const b = find(cta, offset);
  if (b == nullptr) return;  // the arrival itself faults
  check_ready(w, op, cta, offset, *b, false);
  check_planned_signal(w, op, cta, *b, Plan::Done::kThreads, kind);
  if (kind != Arrival::kThread) b->bytes_announced = true;
  Party& p = party(w);
  if (cta.rank != w.cta->rank) use(cta, {p.index, pc_of(w, op), time(p)}, w, op);
  if (kind == Arrival::kBytes) return;
  check_arrival(w, op, cta, offset, *b);
  if (b->teller == p.index && b->told_at == time(p)) return;
  tell(p, &b->arriving, is_alone(w.exec));
  b->teller = p.index;
  b->told_at = time(p);
}

void Checker::arrived(Warp& w) {
  tick(party(w));
}

void Checker::mbarrier_waited(Warp& w, const Op& op, Cta& cta, uint32_t offset) {
  Mbarrier* const b = find(cta, offset);
  if (b == nullptr) return;
  check_ready(w, op, cta, offset, *b, false);
  check_planned_wait(w, op, *b);
  Party& p = party(w);
  hear(p, b->done, is_alone(w.exec));
  if (b->waits.size() <= p.index) b->waits.resize(parties_.size());
  b->waits[p.index] = {pc_of(w, op), b->phases, true};
}

void Checker::promise(Warp& w, const Op& op, Cta& cta, uint32_t offset, bool commit) {
  Mbarrier* const b = find(cta, offset);
  if (b == nullptr) return;
  check_ready(w, op, cta, offset, *b, true);
  const Party& p = party(w);
  if (!commit) return;
  check_planned_signal(w, op, cta, *b, Plan::Done::kCommit, Arrival::kThread);
  if (cta.rank != w.cta->rank)
    use(cta, {agent(kMmas, p), pc_of(w, op), p.queues[kMmas].last()}, w, op);
}

void Checker::deliver(Cta& cta, uint32_t offset, const Parcel& parcel) {
  Mbarrier* const b = find(cta, offset);
  if (b == nullptr || parcel == nullptr) return;
  b->arriving.join(*parcel);
  b->teller = UINT32_MAX;
}

void Checker::phase_complete(Cta& cta, uint32_t offset) {
  Mbarrier* const b = find(cta, offset);
  if (b == nullptr) return;
  b->done.join(b->arriving);
  b->arriving.clear();
  ++b->phases;
  b->teller = UINT32_MAX;
  b->bytes_announced = false;
}

// ---- Barriers of the CTA
//      --------------------------------------------------------------------------

/// Who arrives without waiting and arrives again may count twice for one phase, in which somebody
/// else then does not count, unless it knows that all others of that phase have arrived.
void Checker::check_barrier_arrival(const Party& p, const Op& op, uint32_t id,
                                    const Meeting& meeting) {
  const auto& before = p.unwaited[id];
  if (before == nullptr || !strict_) return;
  bool over = before != meeting.members;
  for (uint32_t i = 0; over && i < parties_.size(); ++i) {
    over = knows(p, {i, 0, before->at(i)}, true);
  }
  if (over) return;
  found("again " + std::to_string(op.line) + " " + std::to_string(id),
        warp_text(p) + ", " + line_text(pc_of(*p.warp, op)) + ", arrives at barrier " +
            std::to_string(id) +
            " again, and nothing tells it that the phase for which it arrived before, without "
            "waiting, is complete: no barrier between them that all others of that phase signal");
}

void Checker::barrier_arrive(Warp& w, const Op& op, uint32_t id, bool waits) {
  Party& p = party(w);
  Meeting& meeting = state(*w.cta).barriers[id];
  const bool whole = (w.exec | ~w.live) == kAllLanes;  // else its fragments arrive one by one
  if (whole) check_barrier_arrival(p, op, id, meeting);
  if (meeting.members == nullptr) meeting.members = std::make_shared<Clock>();
  meeting.members->raise(p.index, time(p));
  p.unwaited[id] = waits || !whole ? nullptr : meeting.members;
  tell(p, &meeting.arriving);
  warp_synced(w);
}

void Checker::barrier_complete(Cta& cta, uint32_t id) {
  Meeting& meeting = state(cta).barriers[id];
  meeting.done = std::move(meeting.arriving);
  meeting.arriving.clear();
  meeting.members.reset();
}

void Checker::barrier_passed(Warp& w, uint32_t id) {
  hear(party(w), state(*w.cta).barriers[id].done);
}

// ---- The barrier of the cluster
//      -------------------------------------------------------------------

void Checker::cluster_arrive(Warp& w, bool relaxed) {
  // Widely used kernels initialise an mbarrier behind their last fence, and arrive relaxed.
  if (!relaxed || !strict_) fence_mbarrier_init(w);
  if (relaxed) return;
  Party& p = party(w);
  tell(p, &cluster_barrier_.arriving);
  warp_synced(w);
}

void Checker::cluster_complete() {
  cluster_barrier_.done = std::move(cluster_barrier_.arriving);
  cluster_barrier_.arriving.clear();
}

void Checker::cluster_passed(Warp& w) {
  Party& p = party(w);
  hear(p, cluster_barrier_.done);
  p.cluster_barriers = cluster_.barrier.generation;
}

}  // namespace fa4::emulator::check
