// mbarrier: arrivals of threads and bytes of the copy engine, in phases. `bar` is a shared address.
#pragma once

#include "flash_attn4/device/device.cuh"

namespace fa4::ptx {

FA4_D void mbarrier_init(uint32_t bar, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(arrivals) : "memory");
}

/// Makes inits visible to the copy engine and to other CTAs of the cluster.
FA4_D void fence_mbarrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

/// One arrival; what the thread wrote and read before is ordered before the phase's end.
FA4_D void mbarrier_arrive(uint32_t bar) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}

/// The same at an mbarrier of any CTA of the cluster, whose address is cluster_address's. With the
/// scope of a CTA, as CUTLASS does it: .release.cluster would be a fence of the whole GPU, and waits
/// with .acquire.cluster would drop the L1 cache. For tensor memory between its fences, and for
/// shared memory that the asynchronous proxy reads.
FA4_D void mbarrier_arrive_cluster(uint32_t bar) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(bar) : "memory");
}

/// One arrival that also announces `bytes` from the copy engine in this phase.
FA4_D void mbarrier_arrive_expect_tx(uint32_t bar, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes)
               : "memory");
}

/// The same at an mbarrier of any CTA of the cluster, see mbarrier_arrive_cluster.
FA4_D void mbarrier_arrive_expect_tx_cluster(uint32_t bar, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cluster.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes)
               : "memory");
}

/// Whether the phase of this parity has completed; suspends the thread for a while if not.
FA4_D bool mbarrier_try_wait_parity(uint32_t bar, uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
      "selp.b32 %0, 1, 0, p;\n"
      "}"
      : "=r"(done)
      : "r"(bar), "r"(parity)
      : "memory");
  return done != 0;
}

}  // namespace fa4::ptx
