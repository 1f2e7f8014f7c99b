// Tensor copies: boxes in and out, rings of stages, multicast, reductions.
#include "ptx.cuh"

namespace {

template <int kRank>
__device__ __forceinline__ void load_and_dump(const TensorMap& map, const Coordinates& at,
                                              uint8_t* out, uint32_t bytes, uint32_t offset) {
  __shared__ uint64_t full;
  const uint32_t bar = ptx::shared_address(&full);
  uint8_t* tile = aligned_shared() + offset;
  init_one(bar, 1);
  if (threadIdx.x == 0) {
    ptx::mbarrier_arrive_expect_tx(bar, bytes);
    ptx::tensor_load<kRank>(ptx::shared_address(tile), &map, at, bar);
  }
  ptx::mbarrier_wait(bar, 0);
  copy_words(out, tile, bytes);
}

template <int kRank>
__device__ __forceinline__ void fill_and_store(const TensorMap& map, const Coordinates& at,
                                               const uint8_t* in, uint32_t bytes, uint32_t offset) {
  uint8_t* tile = aligned_shared() + offset;
  copy_words(tile, in, bytes);
  ptx::fence_proxy_async();
  __syncthreads();
  if (threadIdx.x == 0) {
    ptx::tensor_store<kRank>(&map, at, ptx::shared_address(tile));
    ptx::bulk_commit_group();
    ptx::bulk_wait_group<0>();
  }
}

constexpr int kStages = 3;
constexpr uint32_t kBoxBytes = 4096;  // 32 rows of 128 bytes
constexpr int kBoxRows = 32;

}  // namespace

#define LOAD_KERNEL(rank)                                                             \
  KERNEL tensor_load_##rank##d(const __grid_constant__ TensorMap map, Coordinates at, \
                               uint8_t* out, uint32_t bytes, uint32_t offset) {       \
    load_and_dump<rank>(map, at, out, bytes, offset);                                 \
  }
LOAD_KERNEL(1)
LOAD_KERNEL(2)
LOAD_KERNEL(3)
LOAD_KERNEL(4)
LOAD_KERNEL(5)

#define STORE_KERNEL(rank)                                                             \
  KERNEL tensor_store_##rank##d(const __grid_constant__ TensorMap map, Coordinates at, \
                                const uint8_t* in, uint32_t bytes, uint32_t offset) {  \
    fill_and_store<rank>(map, at, in, bytes, offset);                                  \
  }
STORE_KERNEL(1)
STORE_KERNEL(2)
STORE_KERNEL(3)
STORE_KERNEL(4)
STORE_KERNEL(5)

/// Warp 4 loads `steps` boxes through a ring, warps 0 to 3 write them out as they lie in memory.
KERNEL __launch_bounds__(160)
    tensor_ring(const __grid_constant__ TensorMap map, uint8_t* out, int steps) {
  __shared__ uint64_t full[kStages], empty[kStages];
  uint8_t* tiles = aligned_shared();
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      ptx::mbarrier_init(ptx::shared_address(&full[stage]), 1);
      ptx::mbarrier_init(ptx::shared_address(&empty[stage]), 4);  // one lane per consumer warp
    }
    ptx::fence_mbarrier_init();
  }
  __syncthreads();
  if (warp_index() == 4) {
    if (!ptx::elect()) return;
    for (int step = 0; step < steps; ++step) {
      const int stage = step % kStages;
      const uint32_t bar = ptx::shared_address(&full[stage]);
      // The first round waits for a phase that never began: parity 1 passes at once.
      ptx::mbarrier_wait_loop(ptx::shared_address(&empty[stage]), step / kStages % 2 ^ 1);
      ptx::mbarrier_arrive_expect_tx(bar, kBoxBytes);
      const Coordinates at{0, step * kBoxRows};
      ptx::tensor_load<2>(ptx::shared_address(tiles + stage * kBoxBytes), &map, at, bar);
    }
    return;
  }
  for (int step = 0; step < steps; ++step) {
    const int stage = step % kStages;
    ptx::mbarrier_wait_loop(ptx::shared_address(&full[stage]), step / kStages % 2);
    const uint32_t* tile = reinterpret_cast<const uint32_t*>(tiles + stage * kBoxBytes);
    uint32_t* to = reinterpret_cast<uint32_t*>(out + step * kBoxBytes);
    for (uint32_t i = threadIdx.x; i < kBoxBytes / 4; i += 128) to[i] = tile[i];
    __syncwarp();
    if (lane_index() == 0) ptx::mbarrier_arrive(ptx::shared_address(&empty[stage]));
  }
}

/// Every CTA loads its share of the rows into all CTAs of the cluster and dumps the whole tile.
KERNEL tensor_multicast(const __grid_constant__ TensorMap map, uint8_t* out, uint32_t share_bytes,
                        int share_rows) {
  __shared__ uint64_t full;
  const uint32_t bar = ptx::shared_address(&full);
  const uint32_t rank = ptx::cluster_ctarank();
  const uint32_t ranks = ptx::cluster_nctarank();
  uint8_t* tile = aligned_shared();
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(bar, 1);
    ptx::fence_mbarrier_init();
    ptx::mbarrier_arrive_expect_tx(bar, ranks * share_bytes);
  }
  ptx::cluster_sync();  // every barrier exists before the first byte arrives
  if (threadIdx.x == 0) {
    const uint32_t to = ptx::shared_address(tile + rank * share_bytes);
    const int row = static_cast<int>(ptx::clusterid_x() * ranks + rank) * share_rows;
    ptx::tensor_load_multicast(to, &map, 0, row, bar, static_cast<uint16_t>((1u << ranks) - 1));
  }
  ptx::mbarrier_wait(bar, 0);
  copy_words(out + blockIdx.x * ranks * share_bytes, tile, ranks * share_bytes);
  ptx::cluster_sync();  // no CTA leaves while a copy of its own may still write to another
}

/// CTA 0 loads into the CTAs of the mask; they dump, the others do nothing.
KERNEL tensor_multicast_mask(const __grid_constant__ TensorMap map, uint8_t* out, uint32_t bytes,
                             uint32_t mask) {
  __shared__ uint64_t full;
  const uint32_t bar = ptx::shared_address(&full);
  const uint32_t rank = ptx::cluster_ctarank();
  uint8_t* tile = aligned_shared();
  const bool receives = (mask >> rank & 1) != 0;
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(bar, 1);
    ptx::fence_mbarrier_init();
    if (receives) ptx::mbarrier_arrive_expect_tx(bar, bytes);
  }
  ptx::cluster_sync();
  if (rank == 0 && threadIdx.x == 0) {
    ptx::tensor_load_multicast(ptx::shared_address(tile), &map, 0, 0, bar,
                               static_cast<uint16_t>(mask));
  }
  if (receives) {
    ptx::mbarrier_wait(bar, 0);
    copy_words(out + rank * bytes, tile, bytes);
  }
  ptx::cluster_sync();
}

/// The ring of a cluster: each CTA loads its share of every box into all CTAs. A slot is free when
/// the consumers of all CTAs have released it, so they arrive on every CTA's empty barrier.
KERNEL __launch_bounds__(64)
    tensor_multicast_ring(const __grid_constant__ TensorMap map, uint8_t* out, int steps) {
  __shared__ uint64_t full[kStages], empty[kStages];
  const uint32_t rank = ptx::cluster_ctarank();
  const uint32_t ranks = ptx::cluster_nctarank();
  const uint32_t share_bytes = kBoxBytes / ranks;
  const int share_rows = kBoxRows / static_cast<int>(ranks);
  uint8_t* tiles = aligned_shared();
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      ptx::mbarrier_init(ptx::shared_address(&full[stage]), 1);
      ptx::mbarrier_init(ptx::shared_address(&empty[stage]), ranks);
    }
    ptx::fence_mbarrier_init();
  }
  ptx::cluster_sync();
  const bool loads = warp_index() == 1 && ptx::elect();
  for (int step = 0; loads && step < steps; ++step) {
    const int stage = step % kStages;
    const uint32_t bar = ptx::shared_address(&full[stage]);
    ptx::mbarrier_wait(ptx::shared_address(&empty[stage]), step / kStages % 2 ^ 1);
    ptx::mbarrier_arrive_expect_tx(bar, kBoxBytes);
    const uint32_t to = ptx::shared_address(tiles + stage * kBoxBytes + rank * share_bytes);
    const int row = step * kBoxRows + static_cast<int>(rank) * share_rows;
    ptx::tensor_load_multicast(to, &map, 0, row, bar, static_cast<uint16_t>((1u << ranks) - 1));
  }
  for (int step = 0; warp_index() == 0 && step < steps; ++step) {
    const int stage = step % kStages;
    ptx::mbarrier_wait(ptx::shared_address(&full[stage]), step / kStages % 2);
    const uint32_t* tile = reinterpret_cast<const uint32_t*>(tiles + stage * kBoxBytes);
    uint32_t* to = reinterpret_cast<uint32_t*>(out + (rank * steps + step) * kBoxBytes);
    for (uint32_t i = threadIdx.x; i < kBoxBytes / 4; i += 32) to[i] = tile[i];
    __syncwarp();
    if (threadIdx.x < ranks) {
      ptx::mbarrier_arrive_remote(ptx::mapa(ptx::shared_address(&empty[stage]), threadIdx.x));
    }
  }
  __syncwarp();
  ptx::cluster_sync();
}

/// Two staging buffers: a buffer is filled again as soon as the copy engine has read it.
KERNEL tensor_store_ring(const __grid_constant__ TensorMap map, const uint8_t* in, int steps) {
  uint8_t* staging = aligned_shared();
  for (int step = 0; step < steps; ++step) {
    uint8_t* tile = staging + step % 2 * kBoxBytes;
    if (threadIdx.x == 0) ptx::bulk_wait_group_read<1>();
    __syncthreads();
    copy_words(tile, in + step * kBoxBytes, kBoxBytes);
    ptx::fence_proxy_async();
    __syncthreads();
    if (threadIdx.x == 0) {
      ptx::tensor_store<2>(&map, Coordinates{0, step * kBoxRows}, ptx::shared_address(tile));
      ptx::bulk_commit_group();
    }
  }
  if (threadIdx.x == 0) ptx::bulk_wait_group<0>();
}

/// Every CTA adds the same box to the same place; the map says which type.
KERNEL tensor_reduce_add(const __grid_constant__ TensorMap map, Coordinates at, const uint8_t* in,
                         uint32_t bytes) {
  uint8_t* tile = aligned_shared();
  copy_words(tile, in, bytes);
  ptx::fence_proxy_async();
  __syncthreads();
  if (threadIdx.x == 0) {
    ptx::tensor_reduce_add(&map, at.c[0], at.c[1], ptx::shared_address(tile));
    ptx::bulk_commit_group();
    ptx::bulk_wait_group<0>();
  }
}

/// Prefetches of the map, of a box and of plain memory change nothing; then a load with a hint.
KERNEL tensor_load_prefetched(const __grid_constant__ TensorMap map, const uint8_t* global,
                              uint8_t* out, uint32_t bytes) {
  __shared__ uint64_t full;
  const uint32_t bar = ptx::shared_address(&full);
  uint8_t* tile = aligned_shared();
  init_one(bar, 1);
  if (threadIdx.x == 0) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
    asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global.tile [%0, {%1, %2}];" ::"l"(&map),
                 "r"(0), "r"(0)
                 : "memory");
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(global), "r"(bytes) : "memory");
    asm volatile("prefetch.global.L2 [%0];" ::"l"(global) : "memory");
    ptx::mbarrier_arrive_expect_tx(bar, bytes);
    ptx::tensor_load_hinted(ptx::shared_address(tile), &map, 0, 0, bar);
  }
  ptx::mbarrier_wait(bar, 0);
  copy_words(out, tile, bytes);
}
