#include "csrc/emulator/machine/mbarrier.h"

#include <cstring>

#include "csrc/emulator/check/checker.h"
#include "csrc/emulator/machine/grid.h"
#include "csrc/emulator/machine/machine.h"

namespace fa4::emulator {

namespace {

// Bits of the object: 0 phase, 1-20 pending, 21-40 expected, 41-62 bytes (two's complement). Bit 63
// is 0, which the poison of unwritten memory is not.
constexpr int32_t kMaxBytes = (1 << 20) - 1;
constexpr uint32_t kMaxPending = (1 << 20) - 1;

uint64_t pack(const MbarrierState& s) {
  const auto bytes = static_cast<uint64_t>(static_cast<uint32_t>(s.bytes) & 0x3fffffu);
  return uint64_t{s.phase} | uint64_t{s.pending} << 1 | uint64_t{s.expected} << 21 | bytes << 41;
}

MbarrierState unpack(uint64_t word) {
  const auto bytes = static_cast<uint32_t>(word >> 41 & 0x3fffffu);
  return {(word & 1) != 0, static_cast<uint32_t>(word >> 1 & 0xfffffu),
          static_cast<uint32_t>(word >> 21 & 0xfffffu), static_cast<int32_t>(bytes << 10) >> 10};
}

uint8_t* object(Cta& cta, uint32_t offset) {
  if (offset % 8 != 0) {
    throw Fault("mbarrier: address must be a multiple of 8, got " + hex(offset));
  }
  return cta.shared.at(offset, 8);
}

uint64_t load(Cta& cta, uint32_t offset) {
  uint64_t word = 0;
  std::memcpy(&word, object(cta, offset), 8);
  if (word >> 63 != 0) {
    throw Fault("mbarrier: there is no initialised barrier at " + hex(offset) + " of CTA " +
                std::to_string(cta.rank));
  }
  return word;
}

void add_bytes(MbarrierState* state, int64_t bytes, uint32_t offset) {
  bytes += state->bytes;
  if (bytes > kMaxBytes || bytes < -kMaxBytes) {
    throw Fault("mbarrier: pending bytes must stay within " + std::to_string(kMaxBytes) + ", got " +
                std::to_string(bytes) + " at " + hex(offset));
  }
  state->bytes = static_cast<int32_t>(bytes);
}

void store(Cta& cta, uint32_t offset, MbarrierState state) {
  if (state.pending == 0 && state.bytes == 0) {
    state.phase = !state.phase;
    state.pending = state.expected;
    cta.cluster->notify();
    if (auto* const checker = cta.cluster->checker.get()) checker->phase_complete(cta, offset);
  }
  const uint64_t word = pack(state);
  std::memcpy(object(cta, offset), &word, 8);
}

}  // namespace

void mbarrier_init(Cta& cta, uint32_t offset, uint32_t count, uint32_t line) {
  if (count == 0 || count > kMbarrierMaxCount) {
    throw Fault("mbarrier.init: count must be 1 to " + std::to_string(kMbarrierMaxCount) +
                ", got " + std::to_string(count));
  }
  MbarrierState state;
  state.pending = state.expected = count;
  const uint64_t word = pack(state);
  std::memcpy(object(cta, offset), &word, 8);
  cta.mbarriers[offset] = {line, count};
  cta.cluster->notify();
}

void mbarrier_invalidate(Cta& cta, uint32_t offset) {
  load(cta, offset);
  std::memcpy(object(cta, offset), &kPoison32, 4);
  std::memcpy(object(cta, offset) + 4, &kPoison32, 4);
  cta.mbarriers.erase(offset);
}

MbarrierState mbarrier_state(Cta& cta, uint32_t offset) {
  return unpack(load(cta, offset));
}

uint64_t mbarrier_arrive(Cta& cta, uint32_t offset, uint32_t count, int32_t bytes, bool drop) {
  const uint64_t token = load(cta, offset);
  MbarrierState state = unpack(token);
  if (count > state.pending) {
    throw Fault("mbarrier: more arrivals than expected: " + std::to_string(count) + " more at " +
                mbarrier_text(cta, offset));
  }
  if (drop && count > state.expected) {
    throw Fault("mbarrier: more arrivals dropped than expected: " + std::to_string(count) + " at " +
                mbarrier_text(cta, offset));
  }
  add_bytes(&state, bytes, offset);
  state.pending -= count;
  if (drop) state.expected -= count;
  store(cta, offset, state);
  return token;
}

void mbarrier_add_pending(Cta& cta, uint32_t offset) {
  MbarrierState state = unpack(load(cta, offset));
  if (state.pending == kMaxPending)
    throw Fault("mbarrier: too many arrivals pending at " + mbarrier_text(cta, offset));
  ++state.pending;
  store(cta, offset, state);
}

void mbarrier_expect(Cta& cta, uint32_t offset, int64_t bytes) {
  MbarrierState state = unpack(load(cta, offset));
  add_bytes(&state, bytes, offset);
  store(cta, offset, state);
}

void mbarrier_complete(Cta& cta, uint32_t offset, int32_t bytes) {
  mbarrier_expect(cta, offset, -int64_t{bytes});
}

bool mbarrier_passed(Cta& cta, uint32_t offset, bool parity) {
  return mbarrier_state(cta, offset).phase != parity;
}

bool token_phase(uint64_t token) {
  return unpack(token).phase;
}

uint32_t token_pending(uint64_t token) {
  return unpack(token).pending;
}

std::string mbarrier_text(Cta& cta, uint32_t offset) {
  const auto found = cta.mbarriers.find(offset);
  const std::string name =
      check::barrier_name(*cta.cluster->options, cta.cluster->grid->code, offset);
  std::string text = "mbarrier " + hex(offset) + (name.empty() ? "" : " " + name);
  if (found == cta.mbarriers.end()) return text + " (not initialised)";
  const MbarrierState state = mbarrier_state(cta, offset);
  return text + " (init in line " + std::to_string(found->second.line) + "): phase " +
         std::to_string(state.phase) + " in progress, " + std::to_string(state.pending) + " of " +
         std::to_string(state.expected) + " arrivals and " + std::to_string(state.bytes) +
         " bytes pending";
}

void check_mbarriers_settled(Cta& cta) {
  for (const auto& [offset, init] : cta.mbarriers) {
    uint64_t word = 0;
    std::memcpy(&word, cta.shared.at(offset, 8), 8);
    const MbarrierState state = unpack(word);
    // The memory may serve for data by now; then the expected count is hardly the barrier's.
    if (word >> 63 != 0 || state.expected != init.count || state.bytes == 0) continue;
    throw Fault("transaction mismatch at the end of the kernel: " + mbarrier_text(cta, offset));
  }
}

}  // namespace fa4::emulator
