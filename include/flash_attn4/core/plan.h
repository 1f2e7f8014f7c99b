// The words of a kernel's plan: who runs, how they hand over. Plain C++: the kernel, its launcher,
// tests and the emulator read the same tables.
#pragma once

#include <cstdint>

#include "flash_attn4/core/types.h"

namespace fa4 {

/// A group of warps with one job.
struct RoleRow {
  const char* name;
  int first_warp;
  int warps;
  int registers;  // per thread, by setmaxnreg of its warpgroup
};

/// What completes the phase of an mbarrier, beside the number of arrivals.
enum class Done : uint8_t {
  kThreads,    // threads that have finished reading or writing
  kTmaBytes,   // one thread announces bytes; the copy engine delivers them
  kMmaCommit,  // the tensor core, when it has finished (SM100)
};

/// Which CTA holds the mbarriers that a role signals. CTAs of a pair have the same barriers at the
/// same places; who waits does so in its own CTA.
enum class Holder : uint8_t {
  kOwn,     // the signaller's
  kLeader,  // the one of even rank, whichever of the two signals: it alone waits
  kBoth,    // both: one signals for both
  kPeer,    // the other one
};

/// A ring of mbarriers that hands one kind of buffer from one side to the other.
struct BarrierRow {
  const char* name;  // <buffer>_<state>
  int stages;
  int arrivals;      // per phase
  uint32_t signals;  // roles that arrive
  Done done;
  uint32_t waits;  // roles that wait
  Holder holder = Holder::kOwn;
};

/// The rows of a kernel, in the order of its enum of barriers.
template <int kRows>
struct BarrierTable {
  BarrierRow row[kRows];

  /// Position of a row's first mbarrier among all mbarriers of the block.
  FA4_HD constexpr int first(int index) const {
    int count = 0;
    for (int i = 0; i < index; ++i) count += row[i].stages;
    return count;
  }
  FA4_HD constexpr int count() const { return first(kRows); }
};

}  // namespace fa4
