// Two kernels with the loop of attention in miniature, whose listing tests of tools/sass.py read:
//
//     nvcc -std=c++20 -O3 -gencode=arch=compute_90a,code=sm_90a -cubin -o loops.cubin loops.cu
//     nvdisasm -c loops.cubin > loops.txt
//
// In `late` a barrier stands between the exponentials and the wait for the second product; in
// `hoisted` nothing does, and the compiler moves the wait up.
#include <cstdint>

namespace {

__device__ __forceinline__ void fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

/// S (64 x 16) = A B.
__device__ __forceinline__ void scores(float (&d)[8], uint64_t a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7}, %8, "
      "%9, 0, 1, 1, 0, 0;"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
        "+f"(d[7])
      : "l"(a), "l"(b));
}
/// O (64 x 8) += A B.
__device__ __forceinline__ void output(float (&d)[4], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0, %1, %2, %3}, {%4, %5, %6, %7}, %8, "
      "1, 1, 1, 1;"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

__device__ __forceinline__ float ex2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ uint32_t packed(float low, float high) {
  uint32_t y;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
}
template <int kCount>
__device__ __forceinline__ void hold(float (&d)[kCount]) {
#pragma unroll
  for (float& x : d) asm volatile("" : "+f"(x)::"memory");
}
__device__ __forceinline__ void wait_barrier(uint32_t bar, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\nagain%=:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra again%=;\n}" ::"r"(bar),
      "r"(parity)
      : "memory");
}

template <bool kLate>
__device__ __forceinline__ void loop(float* out, uint64_t q, uint64_t k, uint64_t v, uint32_t bar,
                                     int steps) {
  float s[8], o[4] = {};
  uint32_t p[4] = {threadIdx.x, 1, 2, 3};
  float sum = 0;
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    fence();
    scores(s, q, k + step);
    commit();
    output(o, p, v + step);
    commit();
    wait<1>();
    hold(s);
#pragma unroll
    for (float& x : s) sum += x = ex2(x);
    hold(s);
    if (kLate) wait_barrier(bar, step & 1);
    wait<0>();
    hold(o);
#pragma unroll
    for (int i = 0; i < 4; ++i) p[i] = packed(s[2 * i], s[2 * i + 1]);
    if (__any_sync(~0u, sum > 100.0f)) {
#pragma unroll
      for (float& x : o) x *= 0.5f;
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) out[i * 128 + threadIdx.x] = o[i] * sum;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(128)
    late(float* out, uint64_t q, uint64_t k, uint64_t v, uint32_t bar, int steps) {
  loop<true>(out, q, k, v, bar, steps);
}
extern "C" __global__ void __launch_bounds__(128)
    hoisted(float* out, uint64_t q, uint64_t k, uint64_t v, uint32_t bar, int steps) {
  loop<false>(out, q, k, v, bar, steps);
}
