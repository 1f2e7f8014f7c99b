// Idioms of tensor memory (sm_100), for the checker. `without` names one step that is left out; 0:
// none.
#include "ptx.cuh"

namespace {

constexpr uint32_t kS = 0, kP = 32, kO = 128;  // columns; P lies over a part of S
// M = 128, N = 64, bf16 operands, fp32 accumulators.
constexpr uint32_t kInstruction = 8u << 24 | 8u << 17 | 1u << 10 | 1u << 7 | 1u << 4;
constexpr uint32_t kNarrow = 8u << 24 | 4u << 17 | 1u << 10 | 1u << 7 | 1u << 4;  // N = 32

/// K-major, no swizzle: core matrices of 128 bytes, two along K.
DEVICE uint64_t descriptor(uint32_t address) {
  return descriptor_address(address) | uint64_t{128 >> 4} << 16 | uint64_t{256 >> 4} << 32 |
         uint64_t{1} << 46;
}

DEVICE uint32_t quarter() {
  return (warp_index() % 4) << 21;
}

}  // namespace

/// Warp 4 multiplies: S = A B, then O = P B, then S anew. Warps 0 to 3 turn S into P, and read O.
/// Rows s_full, p_full and o_full of the plan.
KERNEL __launch_bounds__(160) tensor_memory_hand_over(uint32_t* out, int without) {
  __shared__ uint32_t tmem_address;
  const uint32_t s_full = ptx::shared_address(dynamic_shared), p_full = s_full + 8;
  const uint32_t o_full = s_full + 16;
  const uint32_t a = ptx::shared_address(aligned_shared()) + 1024, b = a + 4096;
  const bool one_lane = without == 16 || without == 17;  // of each warp signals p_full
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(s_full, 1);
    ptx::mbarrier_init(p_full, one_lane ? 4 : 128);
    ptx::mbarrier_init(o_full, 1);
    ptx::fence_mbarrier_init();
  }
  if (warp_index() == 4) {
    ptx::tmem_alloc<1>(ptx::shared_address(&tmem_address), 256);
    ptx::tmem_relinquish<1>();
  }
  for (uint32_t i = threadIdx.x; i < 6144 / 4; i += 160) {
    asm volatile("st.shared.u32 [%0], 0;" ::"r"(a + 4 * i) : "memory");
  }
  if (without != 1) ptx::fence_proxy_async();
  __syncthreads();
  const uint32_t tmem = tmem_address;
  if (warp_index() == 4) {
    if (lane_index() == 0) {
      ptx::mma_ss<1>(tmem + kS, descriptor(a), descriptor(b), kInstruction, 0);
      if (without != 14) ptx::mma_commit<1>(s_full);
      if (without == 13) {  // A is what the MMA before writes
        ptx::mma_ts<1>(tmem + kO, tmem + kS, descriptor(b), kInstruction, 0);
      }
      if (without != 2) ptx::mbarrier_wait(p_full, 0);
      if (without != 3) ptx::tcgen05_fence_after();
      ptx::mma_ts<1>(tmem + kO, tmem + kP, descriptor(b), kInstruction, 0);
      ptx::mma_ss<1>(tmem + kS, descriptor(a), descriptor(b), kInstruction, 0);
      if (without == 12) {  // another shape behind it
        ptx::mma_ss<1>(tmem + kS, descriptor(a), descriptor(b), kNarrow, 0);
      }
      ptx::mma_commit<1>(o_full);
      if (without == 14) ptx::mma_commit<1>(s_full);
    }
    __syncwarp();
  } else {
    uint32_t x[32];
    if (without != 4 && without != 14) ptx::mbarrier_wait(s_full, 0);
    if (without != 5) ptx::tcgen05_fence_after();
    ptx::tmem_load(x, tmem + quarter() + kS + 32);
    if (without != 6) ptx::tmem_wait_ld();
    uint32_t p[8] = {};
    ptx::tmem_store(tmem + quarter() + kP, p);
    if (without != 7) ptx::tmem_wait_st();
    if (without != 8) ptx::tcgen05_fence_before();
    if (without == 17) __syncwarp();
    if (!one_lane || lane_index() == 0) ptx::mbarrier_arrive(p_full);
    if (without != 9) ptx::mbarrier_wait(o_full, 0);
    ptx::tcgen05_fence_after();
    ptx::tmem_load(x, tmem + quarter() + kO);
    if (without != 10 && without != 15) ptx::tmem_wait_ld();
    if (without != 11) ptx::tcgen05_fence_before();
    for (int i = 0; i < 32 && without != 10; ++i) out[32 * threadIdx.x + i] = x[i];
  }
  __syncthreads();
  if (warp_index() == 4) ptx::tmem_dealloc<1>(tmem, 256);
}
