// mbarrier objects: eight bytes of shared memory.
//
// A phase is complete when no arrival and no byte is pending. Then the phase bit flips and the pending
// arrivals start again from the expected count. Bytes may complete before they are expected, so the
// byte count is negative for a while.
#pragma once

#include <cstdint>
#include <string>

namespace fa4::emulator {

struct Cta;

struct MbarrierState {
  bool phase = false;     // parity of the phase in progress
  uint32_t pending = 0;   // arrivals
  uint32_t expected = 0;  // arrivals per phase
  int32_t bytes = 0;      // pending
};

constexpr uint32_t kMbarrierMaxCount = (1u << 20) - 1;

/// All functions take the address without its rank, and fault on what is no initialised barrier.
void mbarrier_init(Cta& cta, uint32_t offset, uint32_t count, uint32_t line);
void mbarrier_invalidate(Cta& cta, uint32_t offset);
MbarrierState mbarrier_state(Cta& cta, uint32_t offset);

/// Arrives `count` times, after expecting `bytes` more. With `drop` the expected count of later phases
/// falls as well. Returns the token: the state before.
uint64_t mbarrier_arrive(Cta& cta, uint32_t offset, uint32_t count, int32_t bytes, bool drop);
/// One more arrival in the phase in progress: cp.async.mbarrier.arrive without .noinc.
void mbarrier_add_pending(Cta& cta, uint32_t offset);
void mbarrier_expect(Cta& cta, uint32_t offset, int64_t bytes);
void mbarrier_complete(Cta& cta, uint32_t offset, int32_t bytes);

/// Whether the phase of this parity is complete: whether the one in progress has the other parity.
bool mbarrier_passed(Cta& cta, uint32_t offset, bool parity);

/// Phase and pending count in a token.
bool token_phase(uint64_t token);
uint32_t token_pending(uint64_t token);

/// Faults on a barrier whose bytes do not add up when the CTA has exited and all copies are done.
void check_mbarriers_settled(Cta& cta);

/// "mbarrier 0x400 (init in line 70): phase 1 in progress, 1 of 2 arrivals and 4096 bytes pending"
std::string mbarrier_text(Cta& cta, uint32_t offset);

}  // namespace fa4::emulator
