// Time of the happens-before checker: agents, what they have done, and who knows of it.
//
// An agent is something whose operations complete in order as far as anyone can see: a warp, the
// copies that complete on one mbarrier, the tensor core as one warp uses it. Each counts its own
// time. A clock says up to which time of every agent its owner may rely on.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace fa4::emulator::check {

/// One operation: who, when, and which instruction it was. 0: none.
class Epoch {
 public:
  static constexpr int kAgentBits = 13, kPcBits = 19;
  constexpr Epoch() = default;
  constexpr Epoch(uint32_t agent, uint32_t pc, uint32_t time)
      : bits_(uint64_t{agent} << (32 + kPcBits) | uint64_t{pc} << 32 | time) {}
  constexpr uint32_t agent() const { return static_cast<uint32_t>(bits_ >> (32 + kPcBits)); }
  constexpr uint32_t pc() const {
    return static_cast<uint32_t>(bits_ >> 32) & ((1u << kPcBits) - 1);
  }
  constexpr uint32_t time() const { return static_cast<uint32_t>(bits_); }
  constexpr uint64_t bits() const { return bits_; }
  constexpr bool none() const { return bits_ == 0; }
  constexpr bool operator==(const Epoch&) const = default;

 private:
  uint64_t bits_ = 0;
};

class Clock {
 public:
  uint32_t at(uint32_t agent) const { return agent < times_.size() ? times_[agent] : 0; }
  /// Raises the time of an agent; never lowers it.
  void raise(uint32_t agent, uint32_t time) {
    if (agent >= times_.size()) times_.resize((agent + 16) / 16 * 16);
    times_[agent] = std::max(times_[agent], time);
  }
  /// Back to `time`, where the agent's owner tells less than it knows.
  void lower(uint32_t agent, uint32_t time) {
    if (at(agent) > time) times_[agent] = time;
  }
  void join(const Clock& other) {
    if (times_.size() < other.times_.size()) times_.resize(other.times_.size());
    const uint32_t* const from = other.times_.data();
    uint32_t* const to = times_.data();
    for (size_t i = 0; i < other.times_.size(); ++i) to[i] = std::max(to[i], from[i]);
  }
  bool knows(Epoch epoch) const { return at(epoch.agent()) >= epoch.time(); }
  void clear() { times_.clear(); }

 private:
  std::vector<uint32_t> times_;
};

/// What passes from one party to another at a barrier.
///   seen     operations that come before, for ordinary accesses
///   proxied  of these, the ordinary ones that copies and MMAs may rely on too: those before a
///            proxy fence
///   tensor   accesses to tensor memory that others may rely on (agents of their own)
///   grids    whether griddepcontrol.wait comes before
struct Knowledge {
  Clock seen, proxied, tensor;
  bool grids = false;
  void join(const Knowledge& other) {
    seen.join(other.seen);
    proxied.join(other.proxied);
    tensor.join(other.tensor);
    grids |= other.grids;
  }
  void clear() {
    seen.clear();
    proxied.clear();
    tensor.clear();
    grids = false;
  }
};

}  // namespace fa4::emulator::check
