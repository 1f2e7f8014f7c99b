// tcgen05.mma (sm_100): operands from shared and tensor memory, both majors, one CTA and a pair.
//
// The host prepares operands as images of shared or tensor memory and describes them: kernels only
// add addresses.
#include "ptx.cuh"

namespace {

struct Plan {
  uint64_t a_descriptor;  // without addresses
  uint64_t b_descriptor;
  uint32_t a_bytes;  // images of one CTA
  uint32_t b_bytes;
  uint32_t instruction;
  uint32_t columns;      // of D in tensor memory
  int k_steps;           // of 16
  int accumulate;        // the first step adds to what D holds
  uint32_t commit_mask;  // of a pair: CTAs whose barrier the commit signals; 0: the leader alone
  uint32_t disabled[4];  // lanes that keep D
};

constexpr uint32_t kTmemA = 256;  // column of A

__device__ __forceinline__ uint32_t quarter() {
  return (warp_index() % 4) << 21;
}

/// from: 128 lanes of `columns` cells, into tensor memory at `to`.
__device__ __forceinline__ void to_tmem(uint32_t to, const uint32_t* from, uint32_t columns) {
  for (uint32_t column = 0; column < columns; column += 8) {
    uint32_t x[8];
    for (int i = 0; i < 8; ++i) x[i] = from[threadIdx.x * columns + column + i];
    ptx::tmem_store(to + quarter() + column, x);
  }
  ptx::tmem_wait_st();
}
__device__ __forceinline__ void from_tmem(uint32_t* to, uint32_t from, uint32_t columns) {
  for (uint32_t column = 0; column < columns; column += 8) {
    uint32_t x[8];
    ptx::tmem_load(x, from + quarter() + column);
    ptx::tmem_wait_ld();
    for (int i = 0; i < 8; ++i) to[threadIdx.x * columns + column + i] = x[i];
  }
}

enum class Form { kSharedA, kTmemA, kLanesDisabled };

template <int kGroup, Form kForm>
__device__ __forceinline__ void issue(const Plan& plan, uint32_t tmem, uint32_t at,
                                      const uint32_t* offsets) {
  const uint32_t b_at = at + ((plan.a_bytes + 1023) & ~1023u);
  for (int step = 0; step < plan.k_steps; ++step) {
    const uint64_t a = plan.a_descriptor + descriptor_address(at + offsets[2 * step]);
    const uint64_t b = plan.b_descriptor + descriptor_address(b_at + offsets[2 * step + 1]);
    const int add = step > 0 || plan.accumulate;
    if constexpr (kForm == Form::kSharedA) {
      ptx::mma_ss<kGroup>(tmem, a, b, plan.instruction, add);
    } else if constexpr (kForm == Form::kTmemA) {
      ptx::mma_ts<kGroup>(tmem, tmem + kTmemA + 8 * step, b, plan.instruction, add);
    } else {
      asm volatile(
          "{\n.reg .pred p;\nsetp.ne.b32 p, %4, 0;\n"
          "tcgen05.mma.cta_group::1.kind::f16 [%0], %1, %2, %3, {%5, %6, %7, %8}, p;\n}" ::"r"(
              tmem),
          "l"(a), "l"(b), "r"(plan.instruction), "r"(add), "r"(plan.disabled[0]),
          "r"(plan.disabled[1]), "r"(plan.disabled[2]), "r"(plan.disabled[3])
          : "memory");
    }
  }
}

template <int kGroup>
__device__ __forceinline__ void group_sync() {
  ptx::tcgen05_fence_before();
  if constexpr (kGroup == 1) __syncthreads();
  if constexpr (kGroup == 2) ptx::cluster_sync();
  ptx::tcgen05_fence_after();
}

/// d: 128 lanes of plan.columns cells per CTA, in and out.
template <int kGroup, Form kForm>
__device__ __forceinline__ void multiply(const uint8_t* a, const uint8_t* b,
                                         const uint32_t* offsets, uint32_t* d, const Plan& plan) {
  __shared__ uint64_t full, done;
  __shared__ uint32_t tmem_address;
  constexpr bool kFromTmem = kForm == Form::kTmemA;
  const uint32_t rank = kGroup == 2 ? ptx::cluster_ctarank() : 0;
  const uint32_t full_bar = ptx::shared_address(&full);
  const uint32_t done_bar = ptx::shared_address(&done);
  const uint32_t at = ptx::shared_address(aligned_shared());
  init_one(full_bar, 1);
  init_one(done_bar, 1);
  if (warp_index() == 0) {
    ptx::tmem_alloc<kGroup>(ptx::shared_address(&tmem_address), 512);
    ptx::tmem_relinquish<kGroup>();
  }
  if (threadIdx.x == 0) {
    const uint32_t a_bytes = kFromTmem ? 0 : plan.a_bytes;
    ptx::mbarrier_arrive_expect_tx(full_bar, a_bytes + plan.b_bytes);
    if (!kFromTmem) ptx::bulk_load(at, a + rank * a_bytes, a_bytes, full_bar);
    ptx::bulk_load(at + ((plan.a_bytes + 1023) & ~1023u), b + rank * plan.b_bytes, plan.b_bytes,
                   full_bar);
  }
  ptx::mbarrier_wait(full_bar, 0);
  ptx::tcgen05_fence_before();
  __syncthreads();
  ptx::tcgen05_fence_after();
  const uint32_t tmem = tmem_address;
  d += rank * 128 * plan.columns;
  to_tmem(tmem, d, plan.columns);
  if (kFromTmem) {
    const uint32_t cells = 8 * plan.k_steps;
    to_tmem(tmem + kTmemA, reinterpret_cast<const uint32_t*>(a) + rank * 128 * cells, cells);
  }
  group_sync<kGroup>();
  if (rank == 0 && threadIdx.x == 0) {
    issue<kGroup, kForm>(plan, tmem, at, offsets);
    if (kGroup == 2 && plan.commit_mask != 0) {
      ptx::mma_commit_pair(done_bar, static_cast<uint16_t>(plan.commit_mask));
    } else {
      ptx::mma_commit<kGroup>(done_bar);
    }
  }
  if (rank == 0 || (plan.commit_mask >> rank & 1) != 0) ptx::mbarrier_wait(done_bar, 0);
  group_sync<kGroup>();
  from_tmem(d, tmem, plan.columns);
  group_sync<kGroup>();
  if (warp_index() == 0) ptx::tmem_dealloc<kGroup>(tmem, 512);
}

}  // namespace

#define MMA_KERNEL(name, group, form)                                                             \
  KERNEL __launch_bounds__(128) name(const uint8_t* a, const uint8_t* b, const uint32_t* offsets, \
                                     uint32_t* d, const __grid_constant__ Plan plan) {            \
    multiply<group, form>(a, b, offsets, d, plan);                                                \
  }
MMA_KERNEL(mma_ss, 1, Form::kSharedA)
MMA_KERNEL(mma_ts, 1, Form::kTmemA)
MMA_KERNEL(mma_ss_masked, 1, Form::kLanesDisabled)
MMA_KERNEL(mma_ss_pair, 2, Form::kSharedA)
MMA_KERNEL(mma_ts_pair, 2, Form::kTmemA)
