// Register allocation: liveness over the control flow, then a linear scan over live intervals.
#include <algorithm>
#include <functional>
#include <queue>
#include <set>

#include "csrc/emulator/lower/lowering.h"
#include "csrc/emulator/lower/wgmma_registers.h"
#include "csrc/emulator/machine/machine.h"

namespace fa4::emulator {

namespace {

using Bits = std::vector<uint64_t>;

bool test(const Bits& bits, uint32_t i) {
  return (bits[i / 64] >> (i % 64) & 1) != 0;
}
void set(Bits& bits, uint32_t i) {
  bits[i / 64] |= uint64_t{1} << (i % 64);
}

struct LiveBlock : Block {
  Bits uses, kills, live_in, live_out;
  Bits pending_out;  // registers that tcgen05.ld has yet to write
  bool waits = false;
};

struct Interval {
  uint32_t first = UINT32_MAX, last = 0;
  void cover(uint32_t position) {
    first = std::min(first, position);
    last = std::max(last, position);
  }
};

class Flow {
 public:
  Flow(std::vector<Draft>& drafts, const Code& code, uint32_t planes)
      : drafts_(drafts), code_(code), planes_(planes), words_((planes + 63) / 64) {
    find_blocks();
    find_pending();
    find_liveness();
    find_wgmma_hazards(drafts, {blocks_.begin(), blocks_.end()}, planes);
  }

  std::vector<Interval> intervals() const {
    std::vector<Interval> result(planes_);
    for (const LiveBlock& block : blocks_) {
      for (uint32_t i = 0; i < planes_; ++i) {
        if (test(block.live_in, i)) result[i].cover(block.begin);
        if (test(block.live_out, i)) result[i].cover(block.end - 1);
      }
      for (uint32_t pc = block.begin; pc < block.end; ++pc) {
        for (const VirtualPlane plane : drafts_[pc].reads) result[plane].cover(pc);
        for (const VirtualPlane plane : drafts_[pc].writes) result[plane].cover(pc);
      }
    }
    return result;
  }

 private:
  /// Where an instruction goes on, besides the next one.
  std::vector<uint32_t> targets(const Draft& draft) const {
    if (draft.op.mode == kBranchIndexed) return code_.branch_targets[draft.op.extra];
    if (draft.op.mode == kBranch) return {static_cast<uint32_t>(draft.op.imm)};
    return {};
  }
  static bool is_branch(const Draft& draft) {
    return draft.op.op_class == OpClass::kControl && draft.op.mode != 0;
  }
  static bool falls_through(const Draft& draft) {
    return !is_branch(draft) || draft.op.guard != kNoPred;
  }

  void find_blocks() {
    std::vector<bool> leader(drafts_.size() + 1, false);
    leader[0] = true;
    for (uint32_t pc = 0; pc < drafts_.size(); ++pc) {
      if (!is_branch(drafts_[pc])) continue;
      leader[pc + 1] = true;
      for (const uint32_t target : targets(drafts_[pc])) leader[target] = true;
    }
    // Sets of registers per block: what a compiler writes stays below by far.
    constexpr uint64_t kMostWords = 1 << 24;
    const auto leaders = static_cast<uint64_t>(std::count(leader.begin(), leader.end(), true));
    if (leaders * words_ > kMostWords) {
      throw Unmodelled("kernels with " + std::to_string(leaders) + " basic blocks and " +
                       std::to_string(planes_) + " registers");
    }
    std::vector<uint32_t> block_of(drafts_.size(), 0);
    for (uint32_t pc = 0; pc < drafts_.size(); ++pc) {
      if (leader[pc]) {
        blocks_.emplace_back();
        blocks_.back().begin = pc;
      }
      blocks_.back().end = pc + 1;
      block_of[pc] = static_cast<uint32_t>(blocks_.size() - 1);
    }
    for (LiveBlock& block : blocks_) {
      const Draft& last = drafts_[block.end - 1];
      if (is_branch(last)) {
        for (const uint32_t target : targets(last)) block.successors.push_back(block_of[target]);
      }
      if (falls_through(last) && block.end < drafts_.size()) {
        block.successors.push_back(block_of[block.end]);
      }
      for (Bits* bits :
           {&block.uses, &block.kills, &block.live_in, &block.live_out, &block.pending_out}) {
        bits->assign(words_, 0);
      }
    }
  }

  /// tcgen05.ld writes its registers at the next tcgen05.wait::ld, which therefore counts as a use of
  /// them: until then their places may hold nothing else.
  void find_pending() {
    const bool any =
        std::any_of(drafts_.begin(), drafts_.end(), [](const Draft& d) { return d.pending_load; });
    if (!any) return;
    std::vector<Bits> pending_in(blocks_.size(), Bits(words_, 0));
    for (bool changed = true; changed;) {
      changed = false;
      for (size_t b = 0; b < blocks_.size(); ++b) {
        Bits pending = pending_in[b];
        walk_pending(blocks_[b], pending, /*add_uses=*/false);
        for (const uint32_t next : blocks_[b].successors) {
          for (size_t k = 0; k < words_; ++k) {
            const uint64_t merged = pending_in[next][k] | pending[k];
            changed |= merged != pending_in[next][k];
            pending_in[next][k] = merged;
          }
        }
      }
    }
    for (size_t b = 0; b < blocks_.size(); ++b) walk_pending(blocks_[b], pending_in[b], true);
  }

  void walk_pending(const Block& block, Bits& pending, bool add_uses) {
    for (uint32_t pc = block.begin; pc < block.end; ++pc) {
      Draft& draft = drafts_[pc];
      const auto is_pending = [&pending](VirtualPlane plane) { return test(pending, plane); };
      if (add_uses && !draft.waits_loads) {
        draft.needs_loads = std::any_of(draft.reads.begin(), draft.reads.end(), is_pending) ||
                            std::any_of(draft.writes.begin(), draft.writes.end(), is_pending);
      }
      if (draft.pending_load) {
        for (const VirtualPlane plane : draft.writes) set(pending, plane);
      }
      if (!draft.waits_loads) continue;
      if (add_uses) {
        for (uint32_t i = 0; i < planes_; ++i) {
          if (test(pending, i)) draft.reads.push_back(i);
        }
      }
      std::fill(pending.begin(), pending.end(), 0);
    }
  }

  void find_liveness() {
    for (LiveBlock& block : blocks_) {
      for (uint32_t pc = block.begin; pc < block.end; ++pc) {
        const Draft& draft = drafts_[pc];
        for (const VirtualPlane plane : draft.reads) {
          if (!test(block.kills, plane)) set(block.uses, plane);
        }
        // Under a guard the old value may survive.
        if (draft.op.guard != kNoPred) continue;
        for (const VirtualPlane plane : draft.writes) set(block.kills, plane);
      }
    }
    for (bool changed = true; changed;) {
      changed = false;
      for (size_t b = blocks_.size(); b-- > 0;) {
        LiveBlock& block = blocks_[b];
        for (size_t k = 0; k < words_; ++k) {
          uint64_t out = 0;
          for (const uint32_t next : block.successors) out |= blocks_[next].live_in[k];
          const uint64_t in = block.uses[k] | (out & ~block.kills[k]);
          changed |= in != block.live_in[k] || out != block.live_out[k];
          block.live_in[k] = in;
          block.live_out[k] = out;
        }
      }
    }
  }

  std::vector<Draft>& drafts_;
  const Code& code_;
  uint32_t planes_;
  size_t words_;
  std::vector<LiveBlock> blocks_;
};

/// Slots by a linear scan: an interval takes the lowest slot that is free from its beginning on.
std::vector<PlaneRef> assign_slots(const std::vector<Interval>& intervals, uint32_t* count) {
  std::vector<uint32_t> order;
  for (uint32_t i = 0; i < intervals.size(); ++i) {
    if (intervals[i].first != UINT32_MAX) order.push_back(i);
  }
  std::sort(order.begin(), order.end(),
            [&](uint32_t a, uint32_t b) { return intervals[a].first < intervals[b].first; });
  using Ending = std::pair<uint32_t, uint32_t>;  // last position, slot
  std::priority_queue<Ending, std::vector<Ending>, std::greater<>> busy;
  std::set<uint32_t> free;
  std::vector<PlaneRef> slots(intervals.size(), 0);
  *count = 0;
  for (const uint32_t i : order) {
    // A slot is free after the last position of its interval, not at it: a result never takes the
    // place of an operand of the same instruction.
    while (!busy.empty() && busy.top().first < intervals[i].first) {
      free.insert(busy.top().second);
      busy.pop();
    }
    uint32_t slot = *count;
    if (free.empty()) {
      ++*count;
    } else {
      slot = *free.begin();
      free.erase(free.begin());
    }
    slots[i] = static_cast<PlaneRef>(slot);
    busy.emplace(intervals[i].last, slot);
  }
  return slots;
}

}  // namespace

void allocate_registers(Lowering& lowering) {
  Code& code = *lowering.code_;
  std::vector<Draft>& drafts = lowering.drafts_;
  std::vector<Interval> intervals = Flow(drafts, code, lowering.planes_).intervals();
  for (const auto& [fill, plane] : lowering.fills_)
    intervals[plane].cover(0);  // set before the first
  intervals[lowering.scratch_].cover(0);
  const std::vector<PlaneRef> slots = assign_slots(intervals, &code.planes);
  if (code.planes >= kConstant || code.constants.size() / kWarpLanes >= kConstant) {
    throw Unmodelled("kernels with more than 32767 live registers");
  }
  const auto slot = [&slots](VirtualPlane plane) {
    if (plane == kNoPlane) return PlaneRef{0};
    return (plane & kConstantPlane) != 0
               ? static_cast<PlaneRef>(kConstant | (plane & ~kConstantPlane))
               : slots[plane];
  };
  for (auto& [fill, plane] : lowering.fills_) {
    code.fills.push_back(fill);
    code.fills.back().plane = slot(plane);
  }
  code.ops.reserve(drafts.size());
  for (const Draft& draft : drafts) {
    Op op = draft.op;
    for (size_t k = 0; k < draft.r.size(); ++k) op.r[k] = slot(draft.r[k]);
    op.list = static_cast<uint32_t>(code.lists.size());
    op.list_count = static_cast<uint16_t>(draft.list.size());
    for (const VirtualPlane plane : draft.list) code.lists.push_back(slot(plane));
    if (draft.needs_loads) {
      code.handlers_after_loads.emplace(static_cast<uint32_t>(code.ops.size()), op.run);
      op.run = run_after_loads;
    }
    if (draft.wgmma_hazard.kind != WgmmaHazard::kNone) {
      code.wgmma_hazards[static_cast<uint32_t>(code.ops.size())] = {draft.wgmma_hazard, op.run};
      op.run = run_wgmma_hazard;
    }
    code.ops.push_back(op);
  }
  code.info.register_slots = code.planes;
}

}  // namespace fa4::emulator
