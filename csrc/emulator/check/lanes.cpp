// What lanes of one warp know of each other's writes to shared memory.
#include <string>

#include "csrc/emulator/check/checker.h"
#include "csrc/emulator/isa/access.h"
#include "csrc/emulator/machine/special.h"

namespace fa4::emulator::check {

namespace {

constexpr uint32_t kWord = SharedShadow::kWord;
constexpr uint8_t kTogether = kWarpLanes;  // in place of a lane: the warp as a whole

}  // namespace

/// Whether it is a write of the warp itself, which a lane that has not written does not know of: no
/// barrier of the warp has come since, nor has the warp heard of it from others.
bool Checker::unmet(const Party& p, Epoch write) const {
  const bool own = write.agent() == p.index || write.agent() == agent(kLanes, p);
  return own && write.time() >= p.together && write.time() > p.met;
}

uint8_t Checker::lane_of(uint32_t pc, uint32_t lane) const {
  const bool matrix = code_.kernel->instructions[pc].parts[0].ends_with("matrix");
  return matrix ? kTogether : static_cast<uint8_t>(lane);
}

void Checker::lanes_write(Warp& w, const Op& op, uint32_t lanes, uint32_t bytes) {
  Party& p = party(w);
  const auto space = static_cast<AccessSpace>(op.space);
  p.writers.resize(state(*w.cta).shared.end() / kWord);
  for (; lanes != 0; lanes &= lanes - 1) {
    const auto lane = static_cast<uint32_t>(__builtin_ctz(lanes));
    const uint64_t address = lane_address(w, op, lane, kA);
    if (!is_shared(space, address) || rank_of(address) != w.cta->rank) continue;
    const uint32_t begin = offset_of(address), end = begin + bytes;
    if (end > p.writers.size() * kWord) continue;  // the access itself faults
    const uint8_t writer = lane_of(pc_of(w, op), lane);
    for (uint32_t at = begin; at < end; at += kWord) p.writers[at / kWord] = writer;
  }
}

/// Behind an access that met such a write: whether one of its lanes reads what another has written.
void Checker::lanes_read(Warp& w, const Op& op, uint32_t lanes, uint32_t bytes) {
  const Party& p = party(w);
  const SharedShadow& shadow = state(*w.cta).shared;
  const uint32_t pc = pc_of(w, op);
  const auto space = static_cast<AccessSpace>(op.space);
  for (; lanes != 0; lanes &= lanes - 1) {
    const auto lane = static_cast<uint32_t>(__builtin_ctz(lanes));
    const uint64_t address = lane_address(w, op, lane, kA);
    if (!is_shared(space, address) || rank_of(address) != w.cta->rank) continue;
    const uint32_t begin = offset_of(address), end = begin + bytes;
    if (end > shadow.end()) continue;
    for (uint32_t at = begin; at < end; at += kWord) {
      const Epoch write = shadow.at(at).write;
      if (write.none() || !unmet(p, write)) continue;
      const uint8_t both = facts(pc) & facts(write.pc()), either = facts(pc) | facts(write.pc());
      // An allocation writes its address for the whole warp, which executes it as one.
      if ((both & kSynchronizes) != 0 || (either & (kNarrow | kAllocates)) != 0) continue;
      const uint8_t writer = p.writers[at / kWord];
      if (writer != kTogether && writer == lane_of(pc, lane)) continue;
      lane_race(p, op, write, at, lane);
      break;
    }
  }
}

void Checker::lane_race(const Party& p, const Op& op, Epoch write, uint32_t offset, uint32_t lane) {
  const uint8_t writer = p.writers[offset / kWord];
  const uint32_t pc = pc_of(*p.warp, op);
  found("lanes " + std::to_string(op.line) + " " + std::to_string(write.pc()),
        warp_text(p) + ", " + line_text(pc) + ", lane " + std::to_string(lane) +
            ", reads shared memory at " + hex(offset) + " that " +
            (writer == kTogether ? "the warp" : "lane " + std::to_string(writer)) + ", " +
            line_text(write.pc()) +
            ", writes: no bar.warp.sync between them, nor another barrier of the warp" +
            quote("the write", write.pc()));
}

}  // namespace fa4::emulator::check
