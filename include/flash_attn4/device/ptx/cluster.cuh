// CTAs of a cluster.
#pragma once

#include "flash_attn4/device/device.cuh"

namespace fa4::ptx {

/// Address in the cluster's shared memory of what the CTA of rank `rank` has where this one has
/// `address`.
FA4_D uint32_t cluster_address(uint32_t address, uint32_t rank) {
  uint32_t there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  return there;
}

/// Arrives at the barrier of all threads of the cluster. By whole warps.
FA4_D void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}

/// Until all threads of the cluster have arrived.
FA4_D void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

}  // namespace fa4::ptx
