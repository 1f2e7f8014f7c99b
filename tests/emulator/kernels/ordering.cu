// Idioms of handing over memory, for the checker. `without` names one step that is left out; 0:
// none.
#include "ptx.cuh"

namespace {

constexpr uint32_t kBuffer = 64;  // where data begins, behind mbarriers

DEVICE uint32_t* words_at(uint32_t offset) {
  return reinterpret_cast<uint32_t*>(dynamic_shared + offset);
}

}  // namespace

/// Warp 0 writes a buffer twice, warp 1 reads it each time.
KERNEL threads_hand_over(uint32_t* out, int without) {
  const uint32_t full = ptx::shared_address(dynamic_shared), empty = full + 8;
  uint32_t* const buffer = words_at(kBuffer);
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(full, 32);
    ptx::mbarrier_init(empty, 32);
  }
  if (without != 1) __syncthreads();
  for (uint32_t round = 0; round < 2; ++round) {
    if (warp_index() == 0) {
      if (without != 2) ptx::mbarrier_wait(empty, (round + 1) % 2);
      buffer[lane_index()] = round;
      ptx::mbarrier_arrive(full);
    } else {
      if (without != 3) ptx::mbarrier_wait(full, round % 2);
      out[32 * round + lane_index()] = buffer[lane_index()];
      ptx::mbarrier_arrive(empty);
    }
  }
}

/// All threads fill a buffer, a copy takes it to global memory; the buffer is filled again.
KERNEL copy_takes_what_threads_wrote(uint32_t* out, int without) {
  uint32_t* const buffer = words_at(kBuffer);
  for (uint32_t round = 0; round < 2; ++round) {
    buffer[threadIdx.x] = round;
    if (without != 1 && (without != 2 || warp_index() == 0)) ptx::fence_proxy_async();
    if (without != 3) __syncthreads();
    if (threadIdx.x == 0) {
      ptx::bulk_store(out + round * blockDim.x, ptx::shared_address(buffer), 4 * blockDim.x);
      if (without != 4) ptx::bulk_commit_group();
      if (without != 5 && (without != 6 || round == 0)) ptx::bulk_wait_group_read<0>();
    }
    if (without != 7) __syncthreads();
  }
}

/// A ring of one stage from the copy engine to the threads of warp 1. Rows full and empty of the
/// plan.
KERNEL copies_hand_over(const uint32_t* in, uint32_t* out, int rounds, int without) {
  const uint32_t full = ptx::shared_address(dynamic_shared), empty = full + 8;
  uint32_t* const buffer = words_at(kBuffer);
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(full, 1);
    ptx::mbarrier_init(empty, without == 7 ? 2 : 1);
    if (without != 1) ptx::fence_mbarrier_init();
  }
  __syncthreads();
  for (int round = 0; round < rounds; ++round) {
    if (threadIdx.x == 0) {
      if (without != 2) ptx::mbarrier_wait(empty, (round + 1) % 2);
      if (without == 3) {
        ptx::mbarrier_arrive(full);
      } else {
        ptx::mbarrier_arrive_expect_tx(full, 128);
      }
      ptx::bulk_load(ptx::shared_address(buffer), in + 32 * round, 128, full);
    } else if (warp_index() == 1) {
      if (without != 4) ptx::mbarrier_wait(full, (round + (without == 8 ? 1 : 0)) % 2);
      out[32 * round + lane_index()] = buffer[lane_index()];
      if (without != 9) __syncwarp();
      if (lane_index() == 0 && without != 5) ptx::mbarrier_arrive(empty);
      if (lane_index() == 0 && without == 7) ptx::mbarrier_arrive(empty);
    } else if (warp_index() == 2 && without == 6) {
      ptx::mbarrier_wait(full, round % 2);
    }
  }
}

/// Of warp 0 one lane tells warp 1 that all have written, of warp 2 one lane copies what all have
/// written.
KERNEL one_lane_hands_over(uint32_t* out, int without) {
  const uint32_t full = ptx::shared_address(dynamic_shared);
  uint32_t* const buffer = words_at(kBuffer) + 32 * (warp_index() / 2);
  if (threadIdx.x == 0) ptx::mbarrier_init(full, 1);
  __syncthreads();
  if (warp_index() == 0) {
    buffer[lane_index()] = lane_index();
    if (without != 1) __syncwarp();
    if (lane_index() == 0) ptx::mbarrier_arrive(full);
  } else if (warp_index() == 1) {
    ptx::mbarrier_wait(full, 0);
    out[lane_index()] = buffer[lane_index()];
  } else {
    buffer[lane_index()] = lane_index();
    ptx::fence_proxy_async();
    if (without != 2) __syncwarp();
    if (lane_index() == 0) {
      ptx::bulk_store(out + 32, ptx::shared_address(buffer), 128);
      ptx::bulk_commit_group();
      ptx::bulk_wait_group_read<0>();
    }
  }
}

/// A flag says that a copy is in global memory.
KERNEL flag_follows_copy(uint32_t* out, int without) {
  uint32_t* const buffer = words_at(kBuffer);
  buffer[threadIdx.x] = threadIdx.x;
  ptx::fence_proxy_async();
  __syncwarp();
  if (threadIdx.x == 0) {
    ptx::bulk_store(out, ptx::shared_address(buffer), 128);
    ptx::bulk_commit_group();
    if (without != 0) ptx::bulk_wait_group_read<0>();
    if (without != 1) ptx::bulk_wait_group<0>();  // also of a copy whose source has been read
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(out + 32) : "memory");
  }
}

/// One lane of a warp waits for what all of them then do.
KERNEL one_lane_waits(const uint32_t* in, uint32_t* out, int without) {
  const uint32_t full = ptx::shared_address(dynamic_shared);
  uint32_t* const buffer = words_at(kBuffer);
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(full, 1);
    ptx::fence_mbarrier_init();
    ptx::mbarrier_arrive_expect_tx(full, 128);
    ptx::bulk_load(ptx::shared_address(buffer), in, 128, full);
    ptx::mbarrier_wait(full, 0);
  }
  if (without != 1) __syncwarp();
  out[threadIdx.x] = buffer[threadIdx.x];
  __syncwarp();
  if (threadIdx.x == 0) {
    ptx::bulk_store(out, ptx::shared_address(buffer), 128);
    ptx::bulk_commit_group();
    ptx::bulk_wait_group_read<0>();
  }
  if (without != 2) __syncwarp();
  buffer[threadIdx.x] = 0;
}

/// A warp arrives at an mbarrier whose count is that of a warp, or less.
KERNEL warp_arrives(uint32_t* out, int without) {
  const uint32_t full = ptx::shared_address(dynamic_shared);
  if (threadIdx.x == 0) ptx::mbarrier_init(full, without == 1 ? 24 : 32);
  __syncthreads();
  ptx::mbarrier_arrive(full);
  ptx::mbarrier_wait(full, 0);
  out[threadIdx.x] = threadIdx.x;
}

/// Warp 0 goes on, warp 1 waits: a named barrier.
KERNEL named_barrier_hand_over(uint32_t* out, int without) {
  uint32_t* const buffer = words_at(kBuffer);
  if (warp_index() == 0) {
    if (without == 1) ptx::bar_arrive(1, 64);  // too early
    buffer[lane_index()] = lane_index();
    if (without != 1) ptx::bar_arrive(1, without == 2 ? 96 : 64);
  } else {
    ptx::bar_sync(1, 64);
    out[lane_index()] = buffer[lane_index()];
  }
}

/// Lanes of a warp read what others of it wrote: behind a barrier of the warp, behind an mbarrier
/// at which all of them arrive, and what one lane wrote for all.
KERNEL lanes_hand_over(uint32_t* out, int without) {
  const uint32_t met = ptx::shared_address(dynamic_shared);
  uint32_t* const buffer = words_at(kBuffer);
  const uint32_t lane = lane_index();
  if (lane == 0) ptx::mbarrier_init(met, 32);
  buffer[lane] = lane;
  if (without != 1) __syncwarp();
  out[lane] = buffer[31 - lane];
  __syncwarp();
  buffer[lane] = lane + 1;
  ptx::mbarrier_arrive(met);
  if (without != 2) ptx::mbarrier_wait(met, 0);
  out[32 + lane] = buffer[31 - lane];
  __syncwarp();
  if (lane == 5) buffer[0] = 7;
  if (without != 3) __syncwarp();
  out[64 + lane] = buffer[0];
}

/// Two warps take turns and pass them on without waiting. The first turn is warp 0's.
KERNEL warps_take_turns(uint32_t* out, int rounds, int without) {
  const uint32_t warp = warp_index();
  if (warp == 1) ptx::bar_arrive(1, 64);
  for (int round = 0; round < rounds; ++round) {
    if (round != 0 || without == 0) ptx::bar_sync(1 + warp, 64);
    if (round == 0 && without == 2) ptx::bar_arrive(1 + warp, 64);
    out[threadIdx.x] = round;
    ptx::bar_arrive(2 - warp, 64);
  }
}

/// cp.async of every thread, read by its neighbour in the next warp.
KERNEL thread_copies_hand_over(const uint32_t* in, uint32_t* out, int without) {
  uint32_t* const buffer = words_at(kBuffer);
  const uint32_t to = ptx::shared_address(buffer + 4 * threadIdx.x);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(in + 4 * threadIdx.x)
               : "memory");
  if (without != 1) asm volatile("cp.async.commit_group;" ::: "memory");
  if (without != 2) asm volatile("cp.async.wait_group 0;" ::: "memory");
  if (without != 3) __syncthreads();
  out[threadIdx.x] = buffer[4 * ((threadIdx.x + 32) % blockDim.x)];
}

/// Every CTA of a pair writes into the other, reads what it got, and leaves when the other has.
KERNEL peers_hand_over(uint32_t* out, int without) {
  uint32_t* const buffer = words_at(kBuffer);
  const uint32_t rank = ptx::cluster_ctarank();
  if (without == 1) ptx::cluster_arrive_relaxed();
  ptx::mapa_generic(buffer, rank ^ 1)[threadIdx.x] = 100 * rank + threadIdx.x;
  if (without != 1) ptx::cluster_arrive();
  ptx::cluster_wait();
  out[32 * blockIdx.x + threadIdx.x] =
      without == 2 ? ptx::mapa_generic(buffer, rank ^ 1)[threadIdx.x] : buffer[threadIdx.x];
  if (without == 3) ptx::cluster_sync();
}

/// Warps 0 of a pair arrive at mbarriers of their own CTA, of the leader, of both and of each other;
/// warps 1 wait. The rows own, leader, both and peer of the plan, in this order.
KERNEL pair_arrives(uint32_t* out, int without) {
  const uint32_t own = ptx::shared_address(dynamic_shared), leader = own + 8, both = own + 16,
                 peer = own + 24;
  const uint32_t rank = ptx::cluster_ctarank();
  if (threadIdx.x == 0) {
    for (uint32_t bar : {own, leader, both, peer})
      ptx::mbarrier_init(bar, bar == leader && without == 0 ? 2 : 1);
    ptx::fence_mbarrier_init();
  }
  ptx::cluster_sync();
  if (threadIdx.x == 0) {
    ptx::mbarrier_arrive(own);
    ptx::mbarrier_arrive_remote(ptx::mapa(leader, without == 1 ? rank : 0));
    ptx::mbarrier_arrive_remote(ptx::mapa(peer, rank ^ 1));
    for (uint32_t to = 0; to < 2 && rank == 0; ++to)
      ptx::mbarrier_arrive_remote(ptx::mapa(both, to));
  } else if (threadIdx.x == 32) {
    for (uint32_t bar : {own, leader, both, peer})
      if (bar != leader || rank == 0 || without == 1) ptx::mbarrier_wait(bar, 0);
    out[blockIdx.x] = 1;
  }
  ptx::cluster_sync();
}

/// Reads what nobody wrote, beside what somebody did.
KERNEL unwritten(uint32_t* out) {
  uint32_t* const buffer = words_at(kBuffer);
  if (threadIdx.x < 32) buffer[threadIdx.x] = threadIdx.x;
  __syncthreads();
  out[threadIdx.x] = buffer[threadIdx.x];
}
