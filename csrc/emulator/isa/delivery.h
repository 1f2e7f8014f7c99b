// Where copies into shared memory go, and which mbarriers hear of it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "csrc/emulator/check/checker.h"
#include "csrc/emulator/machine/machine.h"
#include "csrc/emulator/machine/mbarrier.h"

namespace fa4::emulator {

/// An address of shared memory with the CTA it names.
struct SharedPlace {
  Cta* cta = nullptr;
  uint32_t offset = 0;
  uint8_t* bytes(size_t count) const { return cta->shared.at(offset, count); }
};

inline SharedPlace shared_place(Cluster& cluster, uint64_t address) {
  const auto low =
      static_cast<uint32_t>(address);  // a generic address keeps the shared one in its low word
  return {&cluster.cta_of_address(low), offset_of(low)};
}

/// What copies into shared memory have in common: where the data goes and which barriers hear of
/// it.
struct Delivery {
  std::vector<SharedPlace> targets;
  std::vector<SharedPlace> barriers;
  std::vector<uint32_t> numbers;  // the checker's, by target

  /// Tells the checker of a copy of so many bytes; `source` is where they come from, if that is
  /// shared memory.
  void tell(Warp& w, const Op& op, uint32_t bytes, const SharedPlace* source) {
    check::Checker* const checker = w.cta->cluster->checker.get();
    if (checker != nullptr && source == nullptr) checker->global_access(w, op);
    for (size_t i = 0; checker != nullptr && i < targets.size(); ++i) {
      const SharedPlace &to = targets[i], &barrier = barriers[i];
      numbers.push_back(
          checker->copy_in(w, op, *to.cta, to.offset, bytes, *barrier.cta, barrier.offset));
      if (source != nullptr) {
        checker->copy_source(w, op, *source->cta, source->offset, bytes, *barrier.cta,
                             barrier.offset, numbers.back());
      }
    }
  }

  void signal(uint32_t bytes) const {
    for (size_t i = 0; i < barriers.size(); ++i) {
      const SharedPlace& barrier = barriers[i];
      if (!numbers.empty()) {
        barrier.cta->cluster->checker->copy_complete(*barrier.cta, barrier.offset, numbers[i]);
      }
      mbarrier_complete(*barrier.cta, barrier.offset, static_cast<int32_t>(bytes));
    }
  }
};

/// Where a multicast goes: the same offsets in every CTA of the mask. Copies of a CTA pair may
/// signal the barrier of one CTA of the pair for both.
inline Delivery delivery(Cluster& cluster, uint64_t target, uint64_t barrier, int mask, bool pair) {
  const SharedPlace to = shared_place(cluster, target), signal = shared_place(cluster, barrier);
  if (mask < 0) return {{to}, {signal}, {}};
  Delivery result;
  for (uint32_t rank = 0; rank < 16; ++rank) {
    if ((mask >> rank & 1) == 0) continue;
    if (rank >= cluster.ctas.size()) {
      throw Fault("multicast: the mask names CTA " + std::to_string(rank) + " of a cluster of " +
                  std::to_string(cluster.ctas.size()));
    }
    const uint32_t signal_rank = pair ? (rank & ~1u) | (signal.cta->rank & 1) : rank;
    result.targets.push_back({&cluster.ctas[rank], to.offset});
    result.barriers.push_back({&cluster.ctas[signal_rank], signal.offset});
  }
  return result;
}

}  // namespace fa4::emulator
