// Copies without a tensor map: bulk copies between global memory, shared memory and that of another
// CTA, bulk reductions, and cp.async.
#include "ptx.cuh"

namespace {

constexpr uint32_t kChunkBytes = 2048;  // staging buffer of the reduction ring

/// A word that tells CTA and place.
__device__ __forceinline__ uint32_t pattern(uint32_t rank, uint32_t index) {
  return rank << 16 | index;
}

}  // namespace

/// One barrier for several copies, whose bytes are announced after they were issued: the count of
/// bytes is below zero if they arrive at once.
KERNEL bulk_load(const uint8_t* in, uint8_t* out, uint32_t bytes, int parts) {
  __shared__ uint64_t full;
  const uint32_t bar = ptx::shared_address(&full);
  uint8_t* tile = aligned_shared();
  init_one(bar, 1);
  if (threadIdx.x == 0) {
    const uint32_t part = bytes / parts;
    for (int i = 0; i < parts; ++i) {
      ptx::bulk_load(ptx::shared_address(tile + i * part), in + i * part, part, bar);
    }
    ptx::mbarrier_arrive_expect_tx(bar, bytes);
  }
  ptx::mbarrier_wait(bar, 0);
  copy_words(out, tile, bytes);
}

/// Bytes announced before and between the copies, apart from the arrival.
KERNEL bulk_load_announced(const uint8_t* in, uint8_t* out, uint32_t bytes) {
  __shared__ uint64_t full;
  const uint32_t bar = ptx::shared_address(&full);
  uint8_t* tile = aligned_shared();
  init_one(bar, 2);
  if (threadIdx.x == 0) {
    const uint32_t half = bytes / 2;
    ptx::mbarrier_expect_tx(bar, half);
    ptx::bulk_load(ptx::shared_address(tile), in, half, bar);
    ptx::mbarrier_arrive(bar);
    ptx::bulk_load(ptx::shared_address(tile + half), in + half, half, bar);
    ptx::mbarrier_expect_tx(bar, half);
    ptx::mbarrier_arrive(bar);
  }
  ptx::mbarrier_wait(bar, 0);
  copy_words(out, tile, bytes);
}

KERNEL bulk_store(const uint8_t* in, uint8_t* out, uint32_t bytes) {
  uint8_t* tile = aligned_shared();
  copy_words(tile, in, bytes);
  ptx::fence_proxy_async();
  __syncthreads();
  if (threadIdx.x == 0) {
    ptx::bulk_store(out, ptx::shared_address(tile), bytes);
    ptx::bulk_commit_group();
    ptx::bulk_wait_group_read<0>();
    // The source has been read: what is written now must not reach the destination.
    for (uint32_t i = 0; i < bytes / 4; ++i) reinterpret_cast<uint32_t*>(tile)[i] = 0xdeadbeef;
    ptx::bulk_wait_group<0>();
  }
}

/// A flag in global memory is released after the copy is complete; CTA 1 acquires it and reads.
KERNEL bulk_store_then_flag(const uint8_t* in, uint8_t* staged, uint8_t* out, uint32_t bytes,
                            int* flag) {
  if (blockIdx.x == 0) {
    uint8_t* tile = aligned_shared();
    copy_words(tile, in, bytes);
    ptx::fence_proxy_async();
    __syncthreads();
    if (threadIdx.x == 0) {
      ptx::bulk_store(staged, ptx::shared_address(tile), bytes);
      ptx::bulk_commit_group();
      ptx::bulk_wait_group<0>();
      asm volatile("st.release.gpu.global.b32 [%0], %1;" ::"l"(flag), "r"(1) : "memory");
    }
    return;
  }
  int seen = 0;
  while (seen == 0) {
    asm volatile("ld.acquire.gpu.global.b32 %0, [%1];" : "=r"(seen) : "l"(flag) : "memory");
  }
  copy_words(out, staged, bytes);
}

KERNEL bulk_reduce_f32(const uint8_t* in, uint8_t* out, uint32_t bytes) {
  uint8_t* tile = aligned_shared();
  copy_words(tile, in + blockIdx.x * bytes, bytes);
  ptx::fence_proxy_async();
  __syncthreads();
  if (threadIdx.x == 0) {
    ptx::bulk_reduce_add_f32(out, ptx::shared_address(tile), bytes);
    ptx::bulk_commit_group();
    ptx::bulk_wait_group<0>();
  }
}

KERNEL bulk_reduce_bf16(const uint8_t* in, uint8_t* out, uint32_t bytes) {
  uint8_t* tile = aligned_shared();
  copy_words(tile, in + blockIdx.x * bytes, bytes);
  ptx::fence_proxy_async();
  __syncthreads();
  if (threadIdx.x == 0) {
    ptx::bulk_reduce_add_bf16(out, ptx::shared_address(tile), bytes);
    ptx::bulk_commit_group();
    ptx::bulk_wait_group<0>();
  }
}

/// As the backward pass adds dQ: 128 threads fill one of two buffers, the engine reads the other.
KERNEL __launch_bounds__(128)
    bulk_reduce_ring(const uint8_t* in, uint8_t* out, int chunks, int rounds) {
  uint8_t* staging = aligned_shared();
  for (int step = 0; step < chunks * rounds; ++step) {
    const uint32_t place = step % chunks * kChunkBytes;
    uint8_t* tile = staging + step % 2 * kChunkBytes;
    if (threadIdx.x == 0) ptx::bulk_wait_group_read<1>();
    ptx::bar_sync(1, 128);
    copy_words(tile, in + place, kChunkBytes);
    ptx::fence_proxy_async();
    ptx::bar_sync(1, 128);
    if (threadIdx.x == 0) {
      ptx::bulk_reduce_add_f32(out + place, ptx::shared_address(tile), kChunkBytes);
      ptx::bulk_commit_group();
    }
  }
  if (threadIdx.x == 0) ptx::bulk_wait_group<0>();
}

/// Each CTA sends its words to the next one, whose barrier counts the bytes. Who announces them:
/// the receiver, or the sender from afar.
KERNEL bulk_copy_to_peer(uint32_t* out, uint32_t words, int sender_announces) {
  __shared__ uint64_t full;
  const uint32_t bar = ptx::shared_address(&full);
  const uint32_t rank = ptx::cluster_ctarank();
  const uint32_t next = (rank + 1) % ptx::cluster_nctarank();
  uint32_t* sent = reinterpret_cast<uint32_t*>(aligned_shared());
  uint32_t* received = sent + words;
  init_one(bar, 1);
  if (threadIdx.x == 0 && !sender_announces) ptx::mbarrier_arrive_expect_tx(bar, 4 * words);
  for (uint32_t i = threadIdx.x; i < words; i += blockDim.x) sent[i] = pattern(rank, i);
  ptx::fence_proxy_async();
  ptx::cluster_sync();
  if (threadIdx.x == 0) {
    const uint32_t remote = ptx::mapa(bar, next);
    if (sender_announces) ptx::mbarrier_arrive_expect_tx_remote(remote, 4 * words);
    ptx::bulk_copy_to_peer(ptx::mapa(ptx::shared_address(received), next),
                           ptx::shared_address(sent), 4 * words, remote);
  }
  ptx::mbarrier_wait(bar, 0);
  copy_words(out + blockIdx.x * words, received, 4 * words);
  ptx::cluster_sync();
}

/// 16 bytes per thread, of which source_bytes[i] are read and the rest is zero. cp.async arrives on
/// an mbarrier, counted in its expected arrivals (noinc) or on top of them.
KERNEL cp_async_zero_fill(const uint8_t* in, uint8_t* out, const uint32_t* source_bytes,
                          int noinc) {
  __shared__ alignas(16) uint8_t tile[16 * 128];
  __shared__ uint64_t full;
  const uint32_t bar = ptx::shared_address(&full);
  init_one(bar, 128);
  const uint32_t i = threadIdx.x;
  asm volatile(
      "cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(ptx::shared_address(tile + 16 * i)),
      "l"(in + 16 * i), "r"(source_bytes[i])
      : "memory");
  if (noinc) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(bar) : "memory");
  } else {
    asm volatile("cp.async.mbarrier.arrive.shared::cta.b64 [%0];" ::"r"(bar) : "memory");
    ptx::mbarrier_arrive(bar);
  }
  ptx::mbarrier_wait(bar, 0);
  const uint4* from = reinterpret_cast<const uint4*>(tile);
  reinterpret_cast<uint4*>(out)[i] = from[i ^ 1];  // what the neighbour copied
}

/// Groups of a thread: 4, 8 and 16 bytes; all but the newest group are complete after wait_group 1.
KERNEL cp_async_groups(const uint8_t* in, uint8_t* out) {
  __shared__ alignas(16) uint8_t tile[2][16 * 128];
  const uint32_t i = threadIdx.x;
  const uint32_t first = ptx::shared_address(tile[0] + 16 * i);
  const uint32_t second = ptx::shared_address(tile[1] + 16 * i);
  const uint8_t* from = in + 16 * i;
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(first), "l"(from) : "memory");
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(first + 8), "l"(from + 8)
               : "memory");
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, 0;" ::"r"(first + 12), "l"(from + 12)
               : "memory");
  asm volatile("cp.async.commit_group;" ::: "memory");
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(second), "l"(from + 2048)
               : "memory");
  asm volatile("cp.async.commit_group;" ::: "memory");
  asm volatile("cp.async.wait_group 1;" ::: "memory");
  reinterpret_cast<uint4*>(out)[i] = reinterpret_cast<const uint4*>(tile[0])[i];
  asm volatile("cp.async.wait_all;" ::: "memory");
  reinterpret_cast<uint4*>(out)[128 + i] = reinterpret_cast<const uint4*>(tile[1])[i];
}
