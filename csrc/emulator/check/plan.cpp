// Conformance to the plan of the kernel: who signals, who waits, how a phase is done.
#include <algorithm>

#include "csrc/emulator/check/checker.h"
#include "csrc/emulator/machine/grid.h"

namespace fa4::emulator::check {

namespace {

std::string row_name(const Plan::Barrier& row, uint32_t stage) {
  return row.stages == 1 ? row.name : row.name + "[" + std::to_string(stage) + "]";
}

PlanPlace place_in(const Plan& plan, uint32_t begin, uint32_t offset) {
  for (const Plan::Barrier& row : plan.barriers) {
    const uint32_t first = begin + row.offset;
    if (offset >= first && offset < first + 8 * row.stages && (offset - first) % 8 == 0)
      return {&row, (offset - first) / 8};
  }
  return {};
}

std::string list(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text.empty() ? "nobody" : text;
}

bool holds(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

const char* done_text(Plan::Done done) {
  return done == Plan::Done::kThreads ? "arrivals of threads"
         : done == Plan::Done::kBytes ? "bytes of copies"
                                      : "tcgen05.commit";
}

bool held_by(Plan::Holder holder, uint32_t rank, uint32_t signaller) {
  switch (holder) {
    case Plan::Holder::kOwn:
      return rank == signaller;
    case Plan::Holder::kLeader:
      return rank == (signaller & ~1u);
    case Plan::Holder::kBoth:
      return (rank ^ signaller) <= 1;
    default:
      return rank == (signaller ^ 1u);
  }
}

const char* holder_text(Plan::Holder holder) {
  constexpr const char* kTexts[] = {"its own CTA", "the leader of the pair",
                                    "the two CTAs of its pair", "its peer"};
  return kTexts[static_cast<int>(holder)];
}

}  // namespace

std::string barrier_name(const Options& options, const Code& code, uint32_t offset) {
  const auto name = options.barrier_names.find(offset);
  if (name != options.barrier_names.end()) return name->second;
  const auto plan = options.plans.find(code.info.name);
  if (plan != options.plans.end()) {
    const PlanPlace place = place_in(plan->second, code.dynamic_shared_begin(), offset);
    if (place.row != nullptr) return row_name(*place.row, place.stage);
  }
  return "";
}

void Checker::load_plan() {
  roles_.resize(warps_);
  const auto found = cluster_.options->plans.find(code_.info.name);
  if (found == cluster_.options->plans.end()) return;
  plan_ = &found->second;
  for (const Plan::Role& role : plan_->roles) {
    for (uint32_t i = 0; i < role.warps && role.first_warp + i < warps_; ++i)
      roles_[role.first_warp + i] = role.name;
  }
}

PlanPlace Checker::plan_place(uint32_t offset) const {
  if (plan_ == nullptr) return {};
  return place_in(*plan_, code_.dynamic_shared_begin(), offset);
}

const std::string& Checker::role_of(const Warp& w) const {
  return roles_[w.index];
}

void Checker::check_planned_init(Warp& w, const Op& op, uint32_t offset, const Mbarrier& b,
                                 uint32_t count) {
  if (plan_ == nullptr) return;
  const std::string key = "plan " + std::to_string(op.line);
  const Plan::Barrier* const row = b.plan.row;
  if (row == nullptr) {
    found(key, "plan: no row declares the mbarrier at " + hex(offset) + ", which " +
                   warp_text(party(w)) + " initialises in " + line_text(pc_of(w, op)));
  } else if (row->arrivals != count) {
    found(key + row->name, "plan: " + row_name(*row, b.plan.stage) + " expects " +
                               std::to_string(row->arrivals) + " arrivals, mbarrier.init in " +
                               line_text(pc_of(w, op)) + " says " + std::to_string(count));
  }
}

void Checker::check_planned_signal(Warp& w, const Op& op, const Cta& cta, const Mbarrier& b,
                                   Plan::Done how, Arrival kind) {
  const Plan::Barrier* const row = b.plan.row;
  if (row == nullptr) return;
  const auto report = [&](const std::string& problem) {
    found("plan " + std::to_string(op.line) + row->name,
          "plan: " + row_name(*row, b.plan.stage) + ": " + warp_text(party(w)) + " " + problem +
              " in " + line_text(pc_of(w, op)));
  };
  const char* const act = how == Plan::Done::kCommit  ? "commits"
                          : how == Plan::Done::kBytes ? "issues a copy"
                          : kind == Arrival::kBytes   ? "announces bytes"
                                                      : "arrives";
  if (!holds(row->signals, role_of(w)))
    return report(std::string(act) + ", the plan lets " + list(row->signals) + " signal,");
  if (!held_by(row->holder, cta.rank, w.cta->rank)) {
    return report(std::string(act) + " at the one of CTA " + std::to_string(cta.rank) +
                  ", the plan says " + holder_text(row->holder) + ",");
  }
  const bool announces = how == Plan::Done::kThreads && kind != Arrival::kThread;
  const Plan::Done done = announces ? Plan::Done::kBytes : how;
  const bool arrives_after_announcing =
      how == Plan::Done::kThreads && row->done == Plan::Done::kBytes && b.bytes_announced;
  if (done != row->done && !arrives_after_announcing) {
    report(std::string(announces ? "announces bytes" : act) + ", the plan completes it by " +
           done_text(row->done) + ",");
  }
}

void Checker::check_planned_wait(Warp& w, const Op& op, const Mbarrier& b) {
  const Plan::Barrier* const row = b.plan.row;
  if (row == nullptr) return;
  const bool follows = row->holder == Plan::Holder::kLeader && w.cta->rank % 2 != 0;
  if (holds(row->waits, role_of(w)) && !follows) return;
  found("plan " + std::to_string(op.line) + row->name,
        "plan: " + row_name(*row, b.plan.stage) + ": " + warp_text(party(w)) + " waits in " +
            line_text(pc_of(w, op)) + ", the plan lets " + list(row->waits) +
            (row->holder == Plan::Holder::kLeader ? " of the pair's leader wait" : " wait"));
}

}  // namespace fa4::emulator::check
