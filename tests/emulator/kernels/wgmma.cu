// wgmma (sm_90a): operands from shared memory and registers, both majors, groups in flight.
//
// The host prepares operands as images of shared memory and describes them: kernels only add
// addresses.
#include "ptx.cuh"

namespace {

/// Images of A (64 rows) and B, and what a descriptor says of them apart from the address.
struct Operands {
  uint64_t a_descriptor;
  uint64_t b_descriptor;
  uint32_t a_bytes;
  uint32_t b_bytes;
  uint32_t a_step;  // bytes from one step of 16 along K to the second of a pair
  uint32_t b_step;
  int k_pairs;     // pairs of steps
  int accumulate;  // the first step adds to what D holds
};

__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit_group() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void wgmma_wait_group() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Operands of the assembly after R registers of D: A, B, the predicate, the majors.
#define WGMMA_SS(function, type, N, R, A, B, P, TA, TB)                                      \
  template <int kMnMajorA, int kMnMajorB>                                                    \
  __device__ __forceinline__ void function(float (&d)[R], uint64_t a, uint64_t b, int add) { \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #P                                     \
                 ", 0;\n"                                                                    \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." type "." type             \
                 " {" REGISTERS_##R "}, %" #A ", %" #B ", p, 1, 1, %" #TA ", %" #TB ";\n}"   \
                 : OPERANDS_##R("+f", d, 0)                                                  \
                 : "l"(a), "l"(b), "r"(add), "n"(kMnMajorA), "n"(kMnMajorB));                \
  }
WGMMA_SS(wgmma_bf16, "bf16", 8, 4, 4, 5, 6, 7, 8)
WGMMA_SS(wgmma_bf16, "bf16", 64, 32, 32, 33, 34, 35, 36)
WGMMA_SS(wgmma_bf16, "bf16", 96, 48, 48, 49, 50, 51, 52)
WGMMA_SS(wgmma_bf16, "bf16", 128, 64, 64, 65, 66, 67, 68)
WGMMA_SS(wgmma_bf16, "bf16", 256, 128, 128, 129, 130, 131, 132)
WGMMA_SS(wgmma_f16, "f16", 64, 32, 32, 33, 34, 35, 36)

#define WGMMA_RS(function, type, N, R, A0, A1, A2, A3, B, P, TB)                                  \
  template <int kMnMajorB>                                                                        \
  __device__ __forceinline__ void function(float (&d)[R], const uint32_t* a, uint64_t b,          \
                                           int add) {                                             \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #P                                          \
                 ", 0;\n"                                                                         \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." type "." type                  \
                 " {" REGISTERS_##R "}, {%" #A0 ", %" #A1 ", %" #A2 ", %" #A3 "}, %" #B           \
                                    ", p, 1, 1, %" #TB ";\n}"                                     \
                 : OPERANDS_##R("+f", d, 0)                                                       \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(kMnMajorB)); \
  }
WGMMA_RS(wgmma_rs_bf16, "bf16", 8, 4, 4, 5, 6, 7, 8, 9, 10)
WGMMA_RS(wgmma_rs_bf16, "bf16", 64, 32, 32, 33, 34, 35, 36, 37, 38)
WGMMA_RS(wgmma_rs_bf16, "bf16", 128, 64, 64, 65, 66, 67, 68, 69, 70)
WGMMA_RS(wgmma_rs_bf16, "bf16", 256, 128, 128, 129, 130, 131, 132, 133, 134)
WGMMA_RS(wgmma_rs_f16, "f16", 64, 32, 32, 33, 34, 35, 36, 37, 38)

/// Row and column of accumulator register i of this thread.
__device__ __forceinline__ int fragment_row(int i) {
  const int thread = static_cast<int>(threadIdx.x) % 128;
  return 16 * (thread / 32) + thread % 32 / 4 + 8 * (i / 2 % 2);
}
__device__ __forceinline__ int fragment_column(int i) {
  return 8 * (i / 4) + 2 * (static_cast<int>(threadIdx.x) % 4) + i % 2;
}

template <int kRegisters>
__device__ __forceinline__ void load_fragments(float (&d)[kRegisters], const float* from) {
#pragma unroll
  for (int i = 0; i < kRegisters; ++i) {
    d[i] = from[fragment_row(i) * 2 * kRegisters + fragment_column(i)];
  }
}
template <int kRegisters>
__device__ __forceinline__ void store_fragments(const float (&d)[kRegisters], float* to) {
#pragma unroll
  for (int i = 0; i < kRegisters; ++i) {
    to[fragment_row(i) * 2 * kRegisters + fragment_column(i)] = d[i];
  }
}

/// Both images in shared memory, B at the next multiple of 1024; returns the address of A.
__device__ __forceinline__ uint32_t load_images(const uint8_t* a, const uint8_t* b,
                                                const Operands& operands) {
  __shared__ uint64_t full;
  const uint32_t bar = ptx::shared_address(&full);
  const uint32_t to = ptx::shared_address(aligned_shared());
  init_one(bar, 1);
  if (threadIdx.x == 0) {
    ptx::mbarrier_arrive_expect_tx(bar, operands.a_bytes + operands.b_bytes);
    if (operands.a_bytes != 0) ptx::bulk_load(to, a, operands.a_bytes, bar);
    ptx::bulk_load(to + ((operands.a_bytes + 1023) & ~1023u), b, operands.b_bytes, bar);
  }
  ptx::mbarrier_wait(bar, 0);
  return to;
}

}  // namespace

// offsets: for each pair of steps the bytes from the image to A and to B.
#define SS_KERNEL(type, N, ta, tb)                                                                 \
  KERNEL __launch_bounds__(128)                                                                    \
      wgmma_ss_##type##_n##N##_##ta##tb(const uint8_t* a, const uint8_t* b,                        \
                                        const uint32_t* offsets, float* out, Operands operands) {  \
    float d[N / 2];                                                                                \
    const uint32_t at = load_images(a, b, operands);                                               \
    const uint32_t b_at = at + ((operands.a_bytes + 1023) & ~1023u);                               \
    load_fragments(d, out);                                                                        \
    _Pragma("unroll 1") for (int pair = 0; pair < operands.k_pairs; ++pair) {                      \
      const uint64_t a_first = operands.a_descriptor + descriptor_address(at + offsets[2 * pair]); \
      const uint64_t b_first =                                                                     \
          operands.b_descriptor + descriptor_address(b_at + offsets[2 * pair + 1]);                \
      const uint64_t a_second = a_first + (operands.a_step >> 4);                                  \
      const uint64_t b_second = b_first + (operands.b_step >> 4);                                  \
      wgmma_fence();                                                                               \
      wgmma_##type<ta, tb>(d, a_first, b_first, pair > 0 || operands.accumulate);                  \
      wgmma_##type<ta, tb>(d, a_second, b_second, 1);                                              \
      wgmma_commit_group();                                                                        \
      wgmma_wait_group<0>();                                                                       \
    }                                                                                              \
    store_fragments(d, out);                                                                       \
  }
#define SS_KERNELS(N)      \
  SS_KERNEL(bf16, N, 0, 0) \
  SS_KERNEL(bf16, N, 0, 1)
SS_KERNELS(8)
SS_KERNELS(64)
SS_KERNELS(96)
SS_KERNELS(128)
SS_KERNELS(256)
SS_KERNEL(bf16, 64, 1, 0)
SS_KERNEL(bf16, 64, 1, 1)
SS_KERNEL(bf16, 128, 1, 1)
SS_KERNEL(f16, 64, 0, 0)
SS_KERNEL(f16, 64, 1, 1)

// a: 64 rows of 32 k_pairs elements, dense in global memory.
#define RS_KERNEL(type, N, tb)                                                                    \
  KERNEL __launch_bounds__(128)                                                                   \
      wgmma_rs_##type##_n##N##_##tb(const uint32_t* a, const uint8_t* b, const uint32_t* offsets, \
                                    float* out, Operands operands) {                              \
    float d[N / 2];                                                                               \
    const uint32_t b_at = load_images(nullptr, b, operands);                                      \
    const int words = 16 * operands.k_pairs; /* of a row */                                       \
    const uint32_t* row = a + fragment_row(0) * words + static_cast<int>(threadIdx.x) % 4;        \
    load_fragments(d, out);                                                                       \
    _Pragma("unroll 1") for (int pair = 0; pair < operands.k_pairs; ++pair) {                     \
      uint32_t x[8];                                                                              \
      for (int i = 0; i < 8; ++i) x[i] = row[16 * pair + 4 * (i / 2) + (i % 2) * 8 * words];      \
      const uint64_t first =                                                                      \
          operands.b_descriptor + descriptor_address(b_at + offsets[2 * pair + 1]);               \
      const uint64_t second = first + (operands.b_step >> 4);                                     \
      wgmma_fence();                                                                              \
      wgmma_rs_##type<tb>(d, x, first, pair > 0 || operands.accumulate);                          \
      wgmma_rs_##type<tb>(d, x + 4, second, 1);                                                   \
      wgmma_commit_group();                                                                       \
      wgmma_wait_group<0>();                                                                      \
    }                                                                                             \
    store_fragments(d, out);                                                                      \
  }
RS_KERNEL(bf16, 8, 0)
RS_KERNEL(bf16, 64, 0)
RS_KERNEL(bf16, 64, 1)
RS_KERNEL(bf16, 128, 1)
RS_KERNEL(bf16, 256, 0)
RS_KERNEL(f16, 64, 1)

/// Two products in flight: the first is stored while the second may still run.
KERNEL __launch_bounds__(128)
    wgmma_two_groups(const uint8_t* a, const uint8_t* b, float* out, Operands operands) {
  float first[32], second[32];
  const uint32_t at = load_images(a, b, operands);
  const uint32_t b_at = at + ((operands.a_bytes + 1023) & ~1023u);
  const uint64_t a_base = operands.a_descriptor + descriptor_address(at);
  const uint64_t b_base = operands.b_descriptor + descriptor_address(b_at);
  const uint32_t second_tile = operands.b_bytes / 2;
#pragma unroll
  for (int i = 0; i < 32; ++i) first[i] = second[i] = 0;
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    wgmma_bf16<0, 0>(first, a_base + 2 * step, b_base + 2 * step, step > 0);
  }
  wgmma_commit_group();
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    wgmma_bf16<0, 0>(second, a_base + 2 * step, b_base + (second_tile >> 4) + 2 * step, step > 0);
  }
  wgmma_commit_group();
  wgmma_wait_group<1>();
  store_fragments(first, out);
  wgmma_wait_group<0>();
  store_fragments(second, out + 64 * 64);
}

/// The hand-over of attention without a softmax: S = Q K^T, P = bf16(S), O += P V. Two warpgroups
/// with 64 query rows each. Images of 128 B swizzle: Q 128 x 64, then per block K and V 64 x 64.
KERNEL __launch_bounds__(256)
    wgmma_attention(const uint8_t* q, const uint8_t* kv, float* out, Operands operands) {
  constexpr uint32_t kTileBytes = 64 * 128;
  const uint32_t at = load_images(q, kv, operands);
  const uint32_t group = threadIdx.x / 128;
  const uint64_t q_base = operands.a_descriptor + descriptor_address(at + group * kTileBytes);
  float o[32];
#pragma unroll
  for (int i = 0; i < 32; ++i) o[i] = 0;
  const int blocks = static_cast<int>(operands.b_bytes / (2 * kTileBytes));
  for (int block = 0; block < blocks; ++block) {
    const uint32_t k_at = at + operands.a_bytes + 2 * block * kTileBytes;
    const uint64_t k_base = operands.a_descriptor + descriptor_address(k_at);
    const uint64_t v_base = operands.b_descriptor + descriptor_address(k_at + kTileBytes);
    float s[32];
#pragma unroll
    for (int i = 0; i < 32; ++i) s[i] = 0;
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      wgmma_bf16<0, 0>(s, q_base + 2 * step, k_base + 2 * step, step > 0);
    }
    wgmma_commit_group();
    wgmma_wait_group<0>();
    uint32_t p[16];
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(p[i]) : "f"(s[2 * i + 1]), "f"(s[2 * i]));
    }
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      // A step of 16 keys is 16 rows of V: 2048 bytes.
      wgmma_rs_bf16<1>(o, p + 4 * step, v_base + 128 * step, 1);
    }
    wgmma_commit_group();
    wgmma_wait_group<0>();
  }
  store_fragments(o, out + group * 64 * 64);
}
