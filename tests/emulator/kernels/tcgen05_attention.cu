// The hand-over of attention on sm_100, without a softmax: S = Q K^T in tensor memory, P = bf16(S)
// over the upper half of S, O += P V. Roles, barriers and aliases are those of a real kernel, for
// one CTA and for a pair; values are small integers, so everything is exact.
//
//   warps 0-3   convert S to P, one row per thread; at the end write O
//   warp 4      issues MMAs, owns tensor memory
//   warp 5      loads Q once, then K0 V0 K1 V1 ... through a ring
#include "ptx.cuh"

namespace {

constexpr int kRows = 128;  // queries of a CTA
constexpr int kKeys = 64;   // of a block
constexpr int kStages = 3;
constexpr uint32_t kQBytes = kRows * 128;
constexpr uint32_t kTmemS = 0;  // 64 columns of f32; P, 32 columns of bf16 pairs, in the upper half
constexpr uint32_t kTmemP = 32;
constexpr uint32_t kTmemO = 128;

struct Shared {
  uint64_t q_full, full[kStages], empty[kStages], s_full, p_full, o_full;
  uint32_t tmem;
};

struct Params {
  uint64_t k_major;   // descriptor of Q and K without address
  uint64_t mn_major;  // of V
  uint32_t s_instruction;
  uint32_t o_instruction;
  int blocks;  // of keys
};

/// What differs between one CTA and a pair: sizes of a CTA's share of K and V.
template <int kGroup>
struct Form {
  static constexpr int kKRows = kKeys / kGroup;  // a CTA of a pair holds half of the keys of K
  static constexpr int kOColumns = 64 * kGroup;  // and 64 columns of V
  static constexpr uint32_t kSlotBytes = kKeys * 128;
  static constexpr uint32_t kKBytes = kKRows * 128;
};

template <int kGroup>
__device__ __forceinline__ void commit(uint32_t bar) {
  if constexpr (kGroup == 1) ptx::mma_commit<1>(bar);
  if constexpr (kGroup == 2) ptx::mma_commit_pair(bar, 0b11);
}

template <int kGroup>
__device__ __forceinline__ void load_tile(uint32_t to, const TensorMap* map, int column, int row,
                                          uint32_t bar) {
  if constexpr (kGroup == 1) ptx::tensor_load<2>(to, map, Coordinates{column, row}, bar);
  if constexpr (kGroup == 2) ptx::tensor_load_pair(to, map, column, row, bar);
}

/// Waits: empty. Signals: q_full, full, on the leader in a pair.
template <int kGroup>
__device__ __forceinline__ void role_load(Shared& shared, uint32_t tiles, const TensorMap* maps[3],
                                          int blocks) {
  using F = Form<kGroup>;
  const uint32_t rank = kGroup == 2 ? ptx::cluster_ctarank() : 0;
  const int cluster = static_cast<int>(blockIdx.x) / kGroup;
  const uint32_t q_full = ptx::shared_address(&shared.q_full);
  if (rank == 0) ptx::mbarrier_arrive_expect_tx(q_full, kGroup * kQBytes);
  load_tile<kGroup>(tiles, maps[0], 0, static_cast<int>(blockIdx.x) * kRows, q_full);
  for (int i = 0; i < 2 * blocks; ++i) {
    const bool is_v = i % 2 == 1;
    const int stage = i % kStages;
    const uint32_t full = ptx::shared_address(&shared.full[stage]);
    const uint32_t to = tiles + kQBytes + stage * F::kSlotBytes;
    const int row = (cluster * blocks + i / 2) * kKeys;
    ptx::mbarrier_wait(ptx::shared_address(&shared.empty[stage]), i / kStages % 2 ^ 1);
    if (rank == 0) {
      ptx::mbarrier_arrive_expect_tx(full, kGroup * (is_v ? F::kSlotBytes : F::kKBytes));
    }
    if (is_v) {
      load_tile<kGroup>(to, maps[2], static_cast<int>(rank) * 64, row, full);
    } else {
      load_tile<kGroup>(to, maps[1], 0, row + static_cast<int>(rank) * F::kKRows, full);
    }
  }
}

/// Waits: q_full, full, p_full. Signals: empty, s_full, o_full, in both CTAs of a pair.
template <int kGroup>
__device__ __forceinline__ void role_mma(Shared& shared, uint32_t tiles, const Params& params) {
  using F = Form<kGroup>;
  const uint32_t tmem = shared.tmem;
  const uint64_t q = params.k_major + descriptor_address(tiles);
  ptx::mbarrier_wait(ptx::shared_address(&shared.q_full), 0);
  for (int i = 0; i < 2 * params.blocks; ++i) {
    const bool is_v = i % 2 == 1;
    const int stage = i % kStages;
    const uint32_t slot = tiles + kQBytes + stage * F::kSlotBytes;
    ptx::mbarrier_wait(ptx::shared_address(&shared.full[stage]), i / kStages % 2);
    if (is_v) ptx::mbarrier_wait(ptx::shared_address(&shared.p_full), i / 2 % 2);
    ptx::tcgen05_fence_after();
    for (int step = 0; step < 4; ++step) {
      if (is_v) {
        const uint64_t v = params.mn_major + descriptor_address(slot + 2048 * step);
        ptx::mma_ts<kGroup>(tmem + kTmemO, tmem + kTmemP + 8 * step, v, params.o_instruction,
                            i > 1 || step > 0);
      } else {
        // S(i+1) over P(i): the product that reads P was issued before, by this thread.
        const uint64_t k = params.k_major + descriptor_address(slot + 32 * step);
        ptx::mma_ss<kGroup>(tmem + kTmemS, q + 2 * step, k, params.s_instruction, step > 0);
      }
    }
    commit<kGroup>(ptx::shared_address(&shared.empty[stage]));
    if (!is_v) commit<kGroup>(ptx::shared_address(&shared.s_full));
  }
  commit<kGroup>(ptx::shared_address(&shared.o_full));
}

/// Waits: s_full, o_full. Signals: p_full, on the leader in a pair.
template <int kGroup>
__device__ __forceinline__ void role_convert(Shared& shared, int blocks, float* out) {
  constexpr int kOColumns = Form<kGroup>::kOColumns;
  const uint32_t lanes = shared.tmem + (warp_index() << 21);
  const uint32_t p_full = ptx::shared_address(&shared.p_full);
  for (int block = 0; block < blocks; ++block) {
    ptx::mbarrier_wait(ptx::shared_address(&shared.s_full), block % 2);
    ptx::tcgen05_fence_after();
    uint32_t low[32], high[32], p[32];
    ptx::tmem_load(low, lanes + kTmemS);
    ptx::tmem_load(high, lanes + kTmemS + 32);
    ptx::tmem_wait_ld();
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      const uint32_t* s = i < 16 ? low + 2 * i : high + 2 * i - 32;
      asm("cvt.rn.bf16x2.f32 %0, %1, %2;"
          : "=r"(p[i])
          : "f"(__uint_as_float(s[1])), "f"(__uint_as_float(s[0])));
    }
    ptx::tmem_store(lanes + kTmemP, p);
    ptx::tmem_wait_st();
    ptx::tcgen05_fence_before();
    if (kGroup == 1) ptx::mbarrier_arrive(p_full);
    if (kGroup == 2) ptx::mbarrier_arrive_remote(ptx::mapa(p_full, 0));
  }
  ptx::mbarrier_wait(ptx::shared_address(&shared.o_full), 0);
  ptx::tcgen05_fence_after();
  float* row = out + (blockIdx.x * kRows + threadIdx.x) * kOColumns;
  for (int column = 0; column < kOColumns; column += 32) {
    uint32_t o[32];
    ptx::tmem_load(o, lanes + kTmemO + column);
    ptx::tmem_wait_ld();
#pragma unroll
    for (int i = 0; i < 32; ++i) row[column + i] = __uint_as_float(o[i]);
  }
}

template <int kGroup>
__device__ __forceinline__ void cta_or_cluster_sync() {
  __syncwarp();
  ptx::tcgen05_fence_before();
  if constexpr (kGroup == 1) __syncthreads();
  if constexpr (kGroup == 2) ptx::cluster_sync();
  ptx::tcgen05_fence_after();
}

template <int kGroup>
__device__ __forceinline__ void attention(const TensorMap* maps[3], float* out,
                                          const Params& params) {
  __shared__ Shared shared;
  const uint32_t tiles = ptx::shared_address(aligned_shared());
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(ptx::shared_address(&shared.q_full), 1);
    for (int stage = 0; stage < kStages; ++stage) {
      ptx::mbarrier_init(ptx::shared_address(&shared.full[stage]), 1);
      ptx::mbarrier_init(ptx::shared_address(&shared.empty[stage]), 1);
    }
    ptx::mbarrier_init(ptx::shared_address(&shared.s_full), 1);
    ptx::mbarrier_init(ptx::shared_address(&shared.p_full), kGroup * kRows);
    ptx::mbarrier_init(ptx::shared_address(&shared.o_full), 1);
    ptx::fence_mbarrier_init();
  }
  if (warp_index() == 4) {
    ptx::tmem_alloc<kGroup>(ptx::shared_address(&shared.tmem), 512);
    ptx::tmem_relinquish<kGroup>();
  }
  cta_or_cluster_sync<kGroup>();
  const bool leads = kGroup == 1 || ptx::cluster_ctarank() == 0;
  if (warp_index() < 4) {
    role_convert<kGroup>(shared, params.blocks, out);
  } else if (warp_index() == 4) {
    if (leads && ptx::elect()) role_mma<kGroup>(shared, tiles, params);
  } else if (ptx::elect()) {
    role_load<kGroup>(shared, tiles, maps, params.blocks);
  }
  cta_or_cluster_sync<kGroup>();
  if (warp_index() == 4) ptx::tmem_dealloc<kGroup>(shared.tmem, 512);
}

}  // namespace

KERNEL __launch_bounds__(192)
    attention_one(const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k,
                  const __grid_constant__ TensorMap v, float* out,
                  const __grid_constant__ Params params) {
  const TensorMap* maps[3] = {&q, &k, &v};
  attention<1>(maps, out, params);
}

KERNEL __launch_bounds__(192) __cluster_dims__(2, 1, 1)
    attention_pair(const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k,
                   const __grid_constant__ TensorMap v, float* out,
                   const __grid_constant__ Params params) {
  const TensorMap* maps[3] = {&q, &k, &v};
  attention<2>(maps, out, params);
}
