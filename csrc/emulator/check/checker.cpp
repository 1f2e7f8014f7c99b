#include "csrc/emulator/check/checker.h"

#include <algorithm>

#include "csrc/emulator/machine/grid.h"

namespace fa4::emulator::check {

Checker::Checker(Cluster& cluster)
    : cluster_(cluster),
      code_(cluster.grid->code),
      strict_(cluster.options->check == Check::kStrict),
      warps_(static_cast<uint32_t>(cluster.ctas[0].warps.size())),
      facts_(code_.ops.size()) {
  parties_.resize(warps_ * cluster.ctas.size());
  for (Cta& cta : cluster.ctas) {
    ctas_.emplace_back(cta.shared.end());
    ctas_.back().live_warps = warps_;
    for (Warp& w : cta.warps) {
      Party& p = party(w);
      p.warp = &w;
      p.index = cta.rank * warps_ + w.index;
      p.seen.raise(p.index, 1);
      p.seen.raise(agent(kLanes, p), 1);
      p.grids = !cluster.grid->launch.early_start;
    }
  }
  load_plan();
}

/// Joins what a party may pass on. The party's time goes on with tick, so that later accesses are
/// not taken for earlier ones. A lane alone does not know how far the others are since the last
/// barrier of their warp.
void Checker::tell(Party& p, Knowledge* to, bool alone) {
  const uint32_t told = to->seen.at(p.index), told_proxied = to->proxied.at(p.index);
  to->seen.join(p.seen);
  to->proxied.join(p.proxied);
  to->seen.join(p.lane_seen);
  to->proxied.join(p.lane_proxied);
  if (alone && p.apart && strict_) {
    to->seen.lower(p.index, std::max(told, p.together - 1));
    to->proxied.lower(p.index, std::max(told_proxied, p.together - 1));
  }
  to->tensor.join(!strict_ ? p.tensor : alone ? p.tensor_together : p.tensor_told);
  to->grids |= p.grids;
}

/// What a lane alone hears, the others know behind the next barrier of their warp.
void Checker::hear(Party& p, const Knowledge& from, bool alone) {
  const bool apart = alone && strict_;
  (apart ? p.lane_seen : p.seen).join(from.seen);
  (apart ? p.lane_proxied : p.proxied).join(from.proxied);
  p.grids |= from.grids;
  if (!alone) p.met = std::max(p.met, from.seen.at(p.index));
  if (!strict_) return p.tensor.join(from.tensor);
  p.tensor_heard.join(from.tensor);
  p.tensor_told.join(from.tensor);
  p.tensor_together.join(from.tensor);
}

void Checker::learn(Party& p, AgentKind kind, uint32_t number, bool alone) {
  (alone && strict_ ? p.lane_seen : p.seen).raise(agent(kind, p), number);
  p.queues[kind].wait(number, time(p));
}

// ---- Fences
//      ---------------------------------------------------------------------------------------

void Checker::fence_proxy(Warp& w) {
  Party& p = party(w);
  p.proxied.join(p.seen);
  if (is_alone(w.exec)) p.lane_proxied.join(p.lane_seen);
  tick(p);
  fence_mbarrier_init(w);  // it is the stronger of the two
}

void Checker::fence_mbarrier_init(Warp& w) {
  Party& p = party(w);
  for (const auto& [rank, offset] : p.unfenced) {
    const auto found = ctas_[rank].mbarriers.find(offset);
    if (found == ctas_[rank].mbarriers.end()) continue;
    found->second.fenced = true;
    found->second.fenced_at = cluster_.barrier.generation + (w.cluster_arrived != 0 ? 1 : 0);
  }
  p.unfenced.clear();
}

void Checker::warp_synced(Warp& w) {
  Party& p = party(w);
  tick(p);
  p.together = time(p);
  p.apart = false;
  p.seen.join(p.lane_seen);
  p.proxied.join(p.lane_proxied);
  p.lane_seen.clear();
  p.lane_proxied.clear();
  p.tensor_together.join(p.tensor_told);
}

// ---- Grids before this one
//      ------------------------------------------------------------------------

void Checker::grids_waited(Warp& w) {
  party(w).grids = true;
}

void Checker::global_access(Warp& w, const Op& op) {
  const Party& p = party(w);
  if (p.grids || !strict_) return;
  const auto& parts = code_.kernel->instructions[pc_of(w, op)].parts;
  if (std::find(parts.begin(), parts.end(), "param") != parts.end()) return;
  found("grids " + std::to_string(op.line),
        warp_text(p) + ", " + line_text(pc_of(w, op)) +
            ", uses global memory that the grids before this one may still write: no "
            "griddepcontrol.wait before it, and the launch lets this grid start early");
}

/// Who sees a flag that is released takes what it stands for as done, copies of tiles included.
void Checker::check_release(Warp& w, const Op& op) {
  const Party& p = party(w);
  const Queue& copies = p.queues[kBulkCopies];
  if (!strict_ || copies.last() <= p.bulk_complete) return;
  const auto& parts = code_.kernel->instructions[pc_of(w, op)].parts;
  const auto has = [&parts](std::string_view part) {
    return std::find(parts.begin(), parts.end(), part) != parts.end();
  };
  if (!has("release") && !has("acq_rel")) return;
  found("release " + std::to_string(op.line),
        warp_text(p) + ", " + line_text(pc_of(w, op)) +
            ", releases a flag in global memory while a bulk copy of it may still write there: no "
            "cp.async.bulk.wait_group between them, without .read");
}

// ---- The end of a CTA
//      -----------------------------------------------------------------------------

/// An operation needs the CTA's shared memory until it is complete.
void Checker::use(Cta& cta, Epoch epoch, const Warp& w, const Op& op) {
  CtaState& s = state(cta);
  if (s.exited) {
    found("exit " + std::to_string(op.line),
          "CTA " + std::to_string(cta.rank) + " has exited, " + warp_text(party(w)) +
              " still uses its shared memory in " + line_text(pc_of(w, op)) +
              ": no cluster barrier keeps it alive");
  }
  if (s.users.size() <= epoch.agent()) s.users.resize(epoch.agent() + 1);
  s.users[epoch.agent()] = epoch;
}

void Checker::warp_exits(Warp& w) {
  CtaState& s = state(*w.cta);
  s.exit.join(party(w).seen);
  s.exit.join(party(w).lane_seen);
  if (--s.live_warps != 0) return;
  s.exited = true;
  for (const Epoch user : s.users) {
    if (user.none() || s.exit.knows(user)) continue;
    // Widely used kernels leave their last stores of tiles alone.
    const bool store = user.agent() / parties_.size() == kBulkCopies;
    if (store && !strict_) continue;
    const bool remote =
        user.agent() < kKinds * parties_.size() && party_of(user).warp->cta->rank != w.cta->rank;
    found("exit " + std::to_string(user.pc()),
          "CTA " + std::to_string(w.cta->rank) + " exits while " + actor(user, false) + ", " +
              line_text(user.pc()) + ", may still use its shared memory: none of its warps " +
              (remote ? "has waited for that CTA (a cluster barrier)"
                      : "has waited until it is complete") +
              quote("the use", user.pc()));
  }
}

std::string Checker::take_findings() {
  std::string text;
  for (const std::string& finding : findings_) text += (text.empty() ? "" : "\n") + finding;
  findings_.clear();
  return text;
}

void Checker::finish() {
  if (!findings_.empty()) throw Fault(take_findings());
}

// ---- Instructions
//      ---------------------------------------------------------------------------------

uint8_t Checker::facts(uint32_t pc) {
  uint8_t& facts = facts_[pc];
  if (facts != 0) return facts;
  facts = kLooked;
  if (pc >= code_.kernel->instructions.size()) return facts;
  const auto& parts = code_.kernel->instructions[pc].parts;
  const auto has = [&parts](std::string_view part) {
    return std::find(parts.begin(), parts.end(), part) != parts.end();
  };
  const bool atomic = parts[0] == "atom" || parts[0] == "red";
  const bool flag =
      has("volatile") || has("relaxed") || has("acquire") || has("release") || has("acq_rel");
  if (atomic || flag) facts |= kSynchronizes;
  if (atomic || (flag && parts[0] == "ld")) facts |= kAcquires;
  if (atomic || (flag && parts[0] == "st")) facts |= kReleases;
  if (parts[0] == "tcgen05" && parts[1] == "alloc") facts |= kAllocates;
  if (parts[0] == "tcgen05" && parts[1] == "dealloc") facts |= kFrees;
  if ((parts[0] == "cp" && parts[1] == "reduce") || (parts[0] == "red" && has("async")))
    facts |= kReduces;
  if (code_.ops[pc].width != 0 && code_.ops[pc].width < 4) facts |= kNarrow;
  return facts;
}

}  // namespace fa4::emulator::check
