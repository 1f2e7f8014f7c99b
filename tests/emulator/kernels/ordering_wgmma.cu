// Idioms around wgmma (sm_90a), for the checker. `without` names one step that is left out; 0:
// none.
#include "ptx.cuh"

namespace {

DEVICE void multiply(float (&d)[4], uint64_t b) {
  const uint32_t zero = 0;
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0, %1, %2, %3}, {%4, %4, %4, %4}, %5, "
      "1, 1, 1, 0;"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(zero), "l"(b)
      : "memory");
}

}  // namespace

/// The threads write B, multiply, and write B again. One warpgroup multiplies, another warp writes.
KERNEL wgmma_hand_over(float* out, int without) {
  const uint32_t address = ptx::shared_address(dynamic_shared);
  // Two core matrices of 128 bytes along K, no swizzle.
  const uint64_t b = descriptor_address(address) | uint64_t{128 >> 4} << 16;
  float d[4] = {};
  for (int round = 0; round < 2; ++round) {
    if (warp_index() == 4) {
      reinterpret_cast<uint64_t*>(dynamic_shared)[lane_index()] = 0;
      if (without != 1) ptx::fence_proxy_async();
    }
    if (without != 2) __syncthreads();
    if (warp_index() < 4) {
      multiply(d, b);
      if (without != 3) asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
      if (without != 4) asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    }
    if (without != 5) __syncthreads();
  }
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  for (int i = 0; i < 4; ++i) out[4 * threadIdx.x + i] = d[i];
}
