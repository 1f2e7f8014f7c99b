// Dynamic scheduling on sm_100: a running CTA takes over blocks of the grid that have not started.
#include "ptx.cuh"

namespace {

struct Answer {
  bool granted;
  uint32_t x, y, z;
};

__device__ __forceinline__ Answer decode(uint32_t response) {
  uint32_t canceled;
  Answer answer{};
  asm volatile(
      "{\n"
      ".reg .b128 response;\n"
      ".reg .pred p;\n"
      "ld.shared.b128 response, [%4];\n"
      "clusterlaunchcontrol.query_cancel.is_canceled.pred.b128 p, response;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "@p clusterlaunchcontrol.query_cancel.get_first_ctaid.v4.b32.b128 {%1, %2, %3, _}, "
      "response;\n"
      "}"
      : "=r"(canceled), "+r"(answer.x), "+r"(answer.y), "+r"(answer.z)
      : "r"(response)
      : "memory");
  answer.granted = canceled != 0;
  return answer;
}

}  // namespace

/// Each block of the grid is counted once, by whichever CTA works on it.
KERNEL steal_blocks(uint32_t* count, uint32_t* stolen) {
  __shared__ uint4 response;
  __shared__ uint64_t barrier;
  const uint32_t bar = ptx::shared_address(&barrier);
  init_one(bar, 1);
  Answer tile{true, blockIdx.x, blockIdx.y, blockIdx.z};
  for (uint32_t round = 0; tile.granted; ++round) {
    if (threadIdx.x == 0) {
      ptx::mbarrier_arrive_expect_tx(bar, 16);
      asm volatile(
          "clusterlaunchcontrol.try_cancel.async.shared::cta.mbarrier::complete_tx::bytes.b128 "
          "[%0], [%1];" ::"r"(ptx::shared_address(&response)),
          "r"(bar)
          : "memory");
      atomicAdd(count + tile.y * gridDim.x + tile.x, 1);
      if (round > 0) atomicAdd(stolen, 1);
    }
    ptx::mbarrier_wait(bar, round & 1);
    tile = decode(ptx::shared_address(&response));
    ptx::fence_proxy_async();  // the next answer overwrites what was read here
    __syncthreads();
  }
}

/// The same for clusters: CTA 0 asks, all CTAs get the answer.
KERNEL __cluster_dims__(2, 1, 1) steal_clusters(uint32_t* count) {
  __shared__ uint4 response;
  __shared__ uint64_t barrier;
  const uint32_t bar = ptx::shared_address(&barrier);
  const uint32_t rank = ptx::cluster_ctarank();
  init_one(bar, 1);
  ptx::cluster_sync();
  Answer tile{true, blockIdx.x - rank, blockIdx.y, blockIdx.z};
  for (uint32_t round = 0; tile.granted; ++round) {
    if (threadIdx.x == 0) ptx::mbarrier_arrive_expect_tx(bar, 16);
    ptx::cluster_sync();  // both barriers expect the bytes
    if (threadIdx.x == 0) {
      if (rank == 0) {
        asm volatile(
            "clusterlaunchcontrol.try_cancel.async.shared::cta.mbarrier::complete_tx::bytes"
            ".multicast::cluster::all.b128 [%0], [%1];" ::"r"(ptx::shared_address(&response)),
            "r"(bar)
            : "memory");
      }
      atomicAdd(count + tile.x + rank, 1);
    }
    ptx::mbarrier_wait(bar, round & 1);
    tile = decode(ptx::shared_address(&response));
    ptx::fence_proxy_async();
  }
  ptx::cluster_sync();
}
