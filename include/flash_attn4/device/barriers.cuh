// Barriers of a plan on the device: set-up from the table, rings, waits, arrivals.
#pragma once

#include "flash_attn4/core/plan.h"
#include "flash_attn4/device/device.cuh"
#include "flash_attn4/device/ptx/elect.cuh"
#include "flash_attn4/device/ptx/global.cuh"
#include "flash_attn4/device/ptx/mbarrier.cuh"

// Debug builds (FA4_DEBUG_WAITS) bound every wait: a barrier that never completes is named, then
// traps.
#ifdef FA4_DEBUG_WAITS
#include <cstdio>
#endif

namespace fa4 {

/// Position in a ring of kStages buffers, and the parity of the phase to wait for. A reader starts
/// with parity 0: the first phase ends when the buffer was filled. A writer starts with parity 1:
/// the phase before the first counts as complete, all buffers are free.
template <int kStages>
struct Ring {
  int stage = 0;
  uint32_t parity;

  FA4_D explicit Ring(uint32_t first_parity) : parity(first_parity) {}
  FA4_D void advance() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

constexpr uint32_t kReader = 0;
constexpr uint32_t kWriter = 1;

/// Until the phase of this parity of the mbarrier at `bar` has completed.
FA4_D void wait_parity(uint32_t bar, uint32_t parity, [[maybe_unused]] const char* name,
                       [[maybe_unused]] int stage) {
#ifdef FA4_DEBUG_WAITS
  for (int tries = 0; !ptx::mbarrier_try_wait_parity(bar, parity); ++tries) {
    if (tries < 1'000'000) continue;
    printf("fa4: block %d, warp %d: %s[%d] does not complete phase of parity %u\n", blockIdx.x,
           threadIdx.x / 32, name, stage, parity);
    __trap();
  }
#else
  while (!ptx::mbarrier_try_wait_parity(bar, parity)) {
  }
#endif
}

/// Until the counter in global memory has this value. By one thread.
FA4_D void wait_counter(const int32_t* counter, int32_t value) {
#ifdef FA4_DEBUG_WAITS
  for (int tries = 0; ptx::load_acquire(counter) != value; ++tries) {
    if (tries < 10'000'000) continue;
    printf("fa4: block %d, warp %d: a counter does not reach %d\n", blockIdx.x, threadIdx.x / 32,
           value);
    __trap();
  }
#else
  while (ptx::load_acquire(counter) != value) {
  }
#endif
}

/// Sets up the mbarriers of Plan::kBarriers from address `base` on. By one thread; the others may
/// use them after a __syncthreads, those of the other CTA of a pair after a barrier of the cluster.
template <class Plan>
FA4_D void init_barriers(uint32_t base) {
  constexpr auto kTable = Plan::kBarriers;
  uint32_t bar = base;
#pragma unroll
  for (const BarrierRow& row : kTable.row) {
    for (int stage = 0; stage < row.stages; ++stage, bar += 8)
      ptx::mbarrier_init(bar, row.arrivals);
  }
  ptx::fence_mbarrier_init();
}

/// Plan::kBarriers as a block reaches its own; what roles see of their block begins with this.
/// Bar: the plan's enum of them.
template <class Plan, class Bar>
struct BlockBarriers {
  uint32_t address;  // of the block's shared memory, as PTX takes it

  template <Bar kBar>
  FA4_D static uint32_t bar_offset(int stage) {
    constexpr int kFirst = Plan::kBarriers.first(kBar);
    return Plan::kBarOffset + 8 * (kFirst + stage);
  }
  template <Bar kBar>
  FA4_D uint32_t bar(int stage) const {
    return address + bar_offset<kBar>(stage);
  }
  template <Bar kBar>
  FA4_D void wait(int stage, uint32_t parity) const {
    constexpr const char* kName = Plan::kBarriers.row[kBar].name;
    wait_parity(bar<kBar>(stage), parity, kName, stage);
  }
  template <Bar kBar>
  FA4_D void arrive(int stage) const {
    ptx::mbarrier_arrive(bar<kBar>(stage));
  }
  /// By a whole warp that is done: one lane arrives for all.
  template <Bar kBar>
  FA4_D void release(int stage) const {
    __syncwarp();
    if (ptx::elect_sync()) arrive<kBar>(stage);
  }
};

}  // namespace fa4
