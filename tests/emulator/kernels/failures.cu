// Kernels that are wrong, one mistake each. The emulator must name it; none is meant for a GPU.
#include <cassert>

#include "ptx.cuh"

// ---- Memory -------------------------------------------------------------------------------------

KERNEL global_store(uint32_t* out, int64_t index) {
  if (threadIdx.x == 5) out[index] = 1;
}
KERNEL global_load(const uint32_t* in, uint32_t* out, int64_t index) {
  out[threadIdx.x] = in[index];
}
KERNEL global_misaligned(const uint8_t* in, uint32_t* out) {
  asm volatile("ld.global.u32 %0, [%1];" : "=r"(out[threadIdx.x]) : "l"(in + 2));
}
KERNEL global_reduce(float* out, int64_t index) {
  atomicAdd(out + index, 1.0f);
}
KERNEL shared_store(uint32_t offset) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(ptx::shared_address(dynamic_shared) + offset), "r"(1)
               : "memory");
}
KERNEL shared_misaligned(uint32_t* out) {
  uint32_t a, b;
  for (uint32_t i = threadIdx.x; i < 16; i += 32)
    reinterpret_cast<uint32_t*>(dynamic_shared)[i] = i;
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];"
               : "=r"(a), "=r"(b)
               : "r"(ptx::shared_address(dynamic_shared) + 4));
  out[threadIdx.x] = a + b;
}
KERNEL shared_uninitialized(uint32_t* out) {
  uint32_t* words = reinterpret_cast<uint32_t*>(dynamic_shared);
  if (threadIdx.x < 31) words[threadIdx.x] = 1;
  __syncwarp();
  out[threadIdx.x] = words[threadIdx.x];
}
KERNEL shared_remote(uint32_t rank) {
  const uint32_t to = ptx::mapa(ptx::shared_address(dynamic_shared), rank);
  asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(to), "r"(1) : "memory");
}
KERNEL local_store(const int* in, int* out, int64_t index) {
  volatile int table[16];
  for (int i = 0; i < 16; ++i) table[i] = in[i];
  table[index] = 1;
  out[threadIdx.x] = table[in[threadIdx.x] & 15];
}

// ---- Warps and control --------------------------------------------------------------------------

KERNEL divergent_ldmatrix(uint32_t* out) {
  uint32_t* words = reinterpret_cast<uint32_t*>(dynamic_shared);
  for (uint32_t i = threadIdx.x; i < 128; i += 32) words[i] = i;
  __syncwarp();
  if (threadIdx.x < 16) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
                 : "=r"(out[threadIdx.x])
                 : "r"(ptx::shared_address(words + 4 * threadIdx.x))
                 : "memory");
  }
  __syncwarp();
  out[threadIdx.x] += words[threadIdx.x];
}
KERNEL divergent_cluster_arrive(uint32_t* out) {
  if (threadIdx.x % 2 == 0) ptx::cluster_arrive();
  out[threadIdx.x] = threadIdx.x;
  ptx::cluster_wait();
}
KERNEL failed_assert(const int* in) {
  assert(in[threadIdx.x] < 4);
}
KERNEL trapped(const int* in) {
  if (in[threadIdx.x] == 7) asm volatile("trap;");
}
KERNEL endless_loop(uint32_t* out) {
  uint32_t value = threadIdx.x;
  while (out[32] == 0) asm volatile("add.u32 %0, %0, 1;" : "+r"(value));
  out[threadIdx.x] = value;
}
KERNEL endless_poll(const uint32_t* flag, uint32_t* out) {
  uint32_t seen = 0;
  while (seen == 0) {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(flag) : "memory");
  }
  out[threadIdx.x] = seen;
}

// ---- Barriers -----------------------------------------------------------------------------------

KERNEL mbarrier_deadlock(uint32_t* out) {
  __shared__ uint64_t barrier;
  const uint32_t bar = ptx::shared_address(&barrier);
  init_one(bar, 33);
  if (warp_index() == 0) ptx::mbarrier_arrive(bar);  // 32 of 33
  ptx::mbarrier_wait(bar, 0);
  out[threadIdx.x] = 1;
}
KERNEL missing_bytes(const uint8_t* in, uint32_t* out) {
  __shared__ alignas(16) uint8_t tile[256];
  __shared__ uint64_t barrier;
  const uint32_t bar = ptx::shared_address(&barrier);
  init_one(bar, 1);
  if (threadIdx.x == 0) {
    ptx::mbarrier_arrive_expect_tx(bar, 256);
    ptx::bulk_load(ptx::shared_address(tile), in, 128, bar);
  }
  ptx::mbarrier_wait(bar, 0);
  out[threadIdx.x] = tile[threadIdx.x];
}
KERNEL too_many_bytes(const uint8_t* in, uint32_t* out) {
  __shared__ alignas(16) uint8_t tile[256];
  __shared__ uint64_t barrier;
  const uint32_t bar = ptx::shared_address(&barrier);
  init_one(bar, 1);
  if (threadIdx.x == 0) {
    ptx::bulk_load(ptx::shared_address(tile), in, 256, bar);
    ptx::mbarrier_arrive_expect_tx(bar, 128);
  }
  ptx::mbarrier_wait(bar, 0);
  out[threadIdx.x] = tile[threadIdx.x];
}
KERNEL arrival_overflow(uint32_t* out) {
  __shared__ uint64_t barrier;
  const uint32_t bar = ptx::shared_address(&barrier);
  init_one(bar, 2);
  if (threadIdx.x == 0) ptx::mbarrier_arrive(bar, 3);
  out[threadIdx.x] = 1;
}
KERNEL uninitialized_barrier(uint32_t* out) {
  __shared__ uint64_t barrier;
  if (threadIdx.x == 0) ptx::mbarrier_arrive(ptx::shared_address(&barrier));
  out[threadIdx.x] = 1;
}
KERNEL named_barrier_deadlock(uint32_t* out) {
  if (warp_index() == 0) ptx::bar_sync(5, 64);
  if (warp_index() == 1) ptx::bar_sync(6, 64);
  out[threadIdx.x] = 1;
}
KERNEL cluster_barrier_deadlock(uint32_t* out) {
  __shared__ uint64_t barrier;
  const uint32_t bar = ptx::shared_address(&barrier);
  init_one(bar, 1);
  if (ptx::cluster_ctarank() == 1) ptx::mbarrier_wait(bar, 0);  // nobody arrives
  ptx::cluster_sync();
  out[threadIdx.x] = 1;
}
KERNEL bulk_size(const uint8_t* in, uint32_t bytes) {
  __shared__ uint64_t barrier;
  const uint32_t bar = ptx::shared_address(&barrier);
  init_one(bar, 1);
  if (threadIdx.x == 0) {
    ptx::mbarrier_arrive_expect_tx(bar, bytes);
    ptx::bulk_load(ptx::shared_address(dynamic_shared), in, bytes, bar);
  }
  ptx::mbarrier_wait(bar, 0);
}
KERNEL tensor_box(const __grid_constant__ TensorMap map, uint32_t bytes, uint32_t offset) {
  __shared__ uint64_t barrier;
  const uint32_t bar = ptx::shared_address(&barrier);
  init_one(bar, 1);
  if (threadIdx.x == 0) {
    ptx::mbarrier_arrive_expect_tx(bar, bytes);
    ptx::tensor_load<2>(ptx::shared_address(aligned_shared()) + offset, &map, Coordinates{}, bar);
  }
  ptx::mbarrier_wait(bar, 0);
}

// ---- Tensor memory ------------------------------------------------------------------------------

#if HAS_SM100
enum Mistake : int {
  kNone,
  kColumns,
  kUninitialized,
  kQuadrant,
  kLeak,
  kOtherAddress,
  kOtherColumns,
  kCount,
  kAfterRelinquish,
  kShape,
};

/// Allocates 64 columns, fills 32 of them, and errs.
KERNEL __launch_bounds__(128) tmem_mistake(uint32_t* out, int mistake) {
  __shared__ uint32_t address;
  const uint32_t to = ptx::shared_address(&address);
  if (warp_index() == 0) {
    ptx::tmem_alloc<1>(to, mistake == kCount ? 48 : 64);
    if (mistake == kAfterRelinquish) {
      ptx::tmem_relinquish<1>();
      ptx::tmem_alloc<1>(to, 32);
    }
  }
  __syncthreads();
  const uint32_t tmem = address;
  const uint32_t lanes = (warp_index() ^ (mistake == kQuadrant ? 1 : 0)) << 21;
  uint32_t x[8] = {1, 2, 3, 4, 5, 6, 7, 8};
  for (uint32_t column = 0; column < 32; column += 8) ptx::tmem_store(tmem + lanes + column, x);
  ptx::tmem_wait_st();
  const uint32_t column = mistake == kColumns ? 60 : mistake == kUninitialized ? 28 : 0;
  ptx::tmem_load(x, tmem + lanes + column);
  ptx::tmem_wait_ld();
  out[threadIdx.x] = x[7];
  if (mistake == kShape && threadIdx.x == 0) {  // M = 112 does not exist
    ptx::mma_ss<1>(tmem, 0x4000404000010000, 0x4000404000010000, 0x07080490, 0);
  }
  ptx::tcgen05_fence_before();
  __syncthreads();
  if (warp_index() != 0 || mistake == kLeak) return;
  ptx::tmem_dealloc<1>(tmem + (mistake == kOtherAddress ? 32 : 0),
                       mistake == kOtherColumns ? 32 : 64);
}
#endif
