#include "csrc/emulator/lower/wgmma_registers.h"

#include <algorithm>
#include <string>

namespace fa4::emulator {

namespace {

/// A wgmma that is under way, as one of its registers sees it.
struct InFlight {
  uint32_t pc = 0;
  uint8_t age = 0;  // 0: none; 1: not committed; 1 + n: n groups were committed since
  bool any() const { return age != 0; }
  void commit() {
    if (age != 0 && age < UINT8_MAX) ++age;
  }
  void wait(int64_t groups) {
    if (age > 1 && age - 1 > groups) age = 0;
  }
  /// Of two paths the one on which it is younger.
  bool merge(const InFlight& other) {
    if (!other.any() || (any() && age <= other.age)) return false;
    *this = other;
    return true;
  }
};

struct Register {
  InFlight written, read;  // by a wgmma
  uint32_t used = 0;       // since the last fence: 1 + the instruction that did
  bool merge(const Register& other) {
    bool changed = written.merge(other.written);
    changed |= read.merge(other.read);
    if (used != 0 || other.used == 0) return changed;
    used = other.used;
    return true;
  }
};

constexpr uint32_t kUntracked = UINT32_MAX;
constexpr uint32_t kBeforeFirst = UINT32_MAX;  // Register::used when the kernel begins

class Registers {
 public:
  Registers(std::vector<Draft>& drafts, const std::vector<Block>& blocks, uint32_t planes)
      : drafts_(drafts), blocks_(blocks), index_(planes, kUntracked) {
    track();
  }

  void run() {
    constexpr uint64_t kMost = 1 << 26;
    if (uint64_t{count_} * blocks_.size() > kMost) {
      throw Unmodelled("kernels with " + std::to_string(blocks_.size()) + " basic blocks and " +
                       std::to_string(count_) + " registers of wgmma");
    }
    in_.assign(blocks_.size(), {});
    in_[0].assign(count_, Register{{}, {}, kBeforeFirst});
    for (bool changed = true; changed;) {
      changed = false;
      for (size_t b = 0; b < blocks_.size(); ++b) {
        if (in_[b].empty()) continue;  // not reached yet
        state_ = in_[b];
        walk(blocks_[b], /*report=*/false);
        for (const uint32_t next : blocks_[b].successors) changed |= merge(in_[next]);
      }
    }
    for (size_t b = 0; b < blocks_.size(); ++b) {
      if (in_[b].empty()) continue;
      state_ = in_[b];
      walk(blocks_[b], /*report=*/true);
    }
  }

 private:
  bool add(VirtualPlane plane) {
    if ((plane & kConstantPlane) != 0 || index_[plane] != kUntracked) return false;
    index_[plane] = count_++;
    return true;
  }
  static bool copies(const Draft& draft) {
    return draft.op.op_class == OpClass::kMove && draft.op.guard == kNoPred &&
           !draft.reads.empty() && draft.reads.size() == draft.writes.size();
  }
  /// Registers of wgmma, and copies of them: ptxas gives these the same place.
  void track() {
    for (const Draft& draft : drafts_) {
      if (draft.wgmma != Draft::Wgmma::kMma) continue;
      for (const VirtualPlane plane : draft.list) add(plane);
    }
    for (bool changed = true; changed;) {
      changed = false;
      for (const Draft& draft : drafts_) {
        if (!copies(draft)) continue;
        for (size_t i = 0; i < draft.reads.size(); ++i) {
          if (index_[draft.reads[i]] != kUntracked) changed |= add(draft.writes[i]);
        }
      }
    }
  }

  bool merge(std::vector<Register>& to) const {
    if (to.empty()) {
      to = state_;
      return true;
    }
    bool changed = false;
    for (uint32_t i = 0; i < count_; ++i) changed |= to[i].merge(state_[i]);
    return changed;
  }

  Register* find(VirtualPlane plane) {
    if ((plane & kConstantPlane) != 0 || index_[plane] == kUntracked) return nullptr;
    return &state_[index_[plane]];
  }

  void walk(const Block& block, bool report) {
    for (uint32_t pc = block.begin; pc < block.end; ++pc) {
      Draft& draft = drafts_[pc];
      WgmmaHazard hazard;
      switch (draft.wgmma) {
        case Draft::Wgmma::kFence:
          for (Register& r : state_) r.used = 0;
          break;
        case Draft::Wgmma::kCommit:
          for (Register& r : state_) {
            r.written.commit();
            r.read.commit();
          }
          break;
        case Draft::Wgmma::kWait:
          for (Register& r : state_) {
            r.written.wait(draft.op.imm);
            r.read.wait(draft.op.imm);
          }
          break;
        case Draft::Wgmma::kMma:
          multiply(draft, pc, &hazard);
          break;
        case Draft::Wgmma::kNone:
          use(draft, pc, &hazard);
      }
      if (report) draft.wgmma_hazard = hazard;
    }
  }

  static void note(WgmmaHazard* hazard, WgmmaHazard::Kind kind, uint32_t pc) {
    if (hazard->kind == WgmmaHazard::kNone) *hazard = {kind, pc};
  }

  void multiply(const Draft& draft, uint32_t pc, WgmmaHazard* hazard) {
    for (size_t i = 0; i < draft.list.size(); ++i) {
      Register* const r = find(draft.list[i]);
      if (r == nullptr) continue;
      const bool accumulator = i < draft.writes.size();
      if (accumulator && r->read.any()) note(hazard, WgmmaHazard::kOverwrites, r->read.pc);
      if (!accumulator && r->written.any()) note(hazard, WgmmaHazard::kUses, r->written.pc);
      if (r->used == kBeforeFirst) note(hazard, WgmmaHazard::kFirst, pc);
      if (r->used != 0) note(hazard, WgmmaHazard::kNoFence, r->used - 1);
      (accumulator ? r->written : r->read) = {pc, 1};
    }
  }

  void use(const Draft& draft, uint32_t pc, WgmmaHazard* hazard) {
    // The compiler copies accumulators wherever it likes; ptxas makes one register of both.
    if (copies(draft) && find(draft.reads[0]) != nullptr) {
      for (size_t i = 0; i < draft.reads.size(); ++i) {
        const Register* const from = find(draft.reads[i]);
        Register* const to = find(draft.writes[i]);
        if (from != nullptr && to != nullptr) *to = *from;
      }
      return;
    }
    for (const VirtualPlane plane : draft.reads) {
      Register* const r = find(plane);
      if (r == nullptr) continue;
      if (r->written.any()) note(hazard, WgmmaHazard::kUses, r->written.pc);
      r->used = pc + 1;
    }
    // It also puts constants into them behind the fence.
    const bool constant = draft.op.op_class == OpClass::kMove && draft.reads.empty();
    for (const VirtualPlane plane : draft.writes) {
      Register* const r = find(plane);
      if (r == nullptr) continue;
      if (r->written.any()) note(hazard, WgmmaHazard::kUses, r->written.pc);
      if (r->read.any()) note(hazard, WgmmaHazard::kOverwrites, r->read.pc);
      if (!constant) r->used = pc + 1;
    }
  }

  std::vector<Draft>& drafts_;
  const std::vector<Block>& blocks_;
  std::vector<uint32_t> index_;  // of a plane among those that are tracked
  uint32_t count_ = 0;
  std::vector<std::vector<Register>> in_;  // by block
  std::vector<Register> state_;
};

}  // namespace

void find_wgmma_hazards(std::vector<Draft>& drafts, const std::vector<Block>& blocks,
                        uint32_t planes) {
  const bool any = std::any_of(drafts.begin(), drafts.end(), [](const Draft& draft) {
    return draft.wgmma == Draft::Wgmma::kMma;
  });
  if (any) Registers(drafts, blocks, planes).run();
}

}  // namespace fa4::emulator
