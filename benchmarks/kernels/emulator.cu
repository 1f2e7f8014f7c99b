// Kernels with the instruction mix of attention on SM100, for `run.py emulator`: a softmax warpgroup
// alone, and an MMA warp alone.
#include <cstdint>

namespace {

constexpr int kColumns = 128;  // scores of a row

__device__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ float max3(float a, float b, float c) {
  float d;
  asm("max.ftz.f32 %0, %1, %2, %3;" : "=f"(d) : "f"(a), "f"(b), "f"(c));
  return d;
}

__device__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ float2 fma2(float2 a, float2 b, float2 c) {
  uint64_t d;
  asm("fma.rn.ftz.f32x2 %0, %1, %2, %3;"
      : "=l"(d)
      : "l"(reinterpret_cast<uint64_t&>(a)), "l"(reinterpret_cast<uint64_t&>(b)),
        "l"(reinterpret_cast<uint64_t&>(c)));
  return reinterpret_cast<float2&>(d);
}

__device__ uint32_t pack(float low, float high) {
  uint32_t d;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
  return d;
}

__device__ void load32(uint32_t address, float* to) {
  uint32_t* r = reinterpret_cast<uint32_t*>(to);
  asm volatile(
      "tcgen05.ld.sync.aligned.32x32b.x32.b32 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, "
      "%12, "
      "%13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, "
      "%31}, [%32];"
      : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]), "=r"(r[4]), "=r"(r[5]), "=r"(r[6]),
        "=r"(r[7]), "=r"(r[8]), "=r"(r[9]), "=r"(r[10]), "=r"(r[11]), "=r"(r[12]), "=r"(r[13]),
        "=r"(r[14]), "=r"(r[15]), "=r"(r[16]), "=r"(r[17]), "=r"(r[18]), "=r"(r[19]), "=r"(r[20]),
        "=r"(r[21]), "=r"(r[22]), "=r"(r[23]), "=r"(r[24]), "=r"(r[25]), "=r"(r[26]), "=r"(r[27]),
        "=r"(r[28]), "=r"(r[29]), "=r"(r[30]), "=r"(r[31])
      : "r"(address));
}

__device__ void store16(uint32_t address, const uint32_t* r) {
  asm volatile(
      "tcgen05.st.sync.aligned.32x32b.x16.b32 [%0], {%1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, "
      "%12, "
      "%13, %14, %15, %16};" ::"r"(address),
      "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]), "r"(r[4]), "r"(r[5]), "r"(r[6]), "r"(r[7]),
      "r"(r[8]), "r"(r[9]), "r"(r[10]), "r"(r[11]), "r"(r[12]), "r"(r[13]), "r"(r[14]), "r"(r[15])
      : "memory");
}

__device__ uint32_t allocate_tensor_memory(uint32_t* slot) {
  if (threadIdx.x < 32) {
    asm volatile("tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%0], 512;" ::"r"(
                     shared_address(slot))
                 : "memory");
  }
  __syncthreads();
  return *slot;
}

__device__ void free_tensor_memory(uint32_t address) {
  __syncthreads();
  if (threadIdx.x < 32) {
    asm volatile("tcgen05.dealloc.cta_group::1.sync.aligned.b32 %0, 512;" ::"r"(address));
  }
}

/// One row of 128 scores per thread: its maximum so far, exponentials, their sum, bf16 weights back.
__device__ void softmax_step(uint32_t base, float scale, float& largest, float& sum) {
  float score[kColumns];
  uint32_t weights[kColumns / 2];
  for (int part = 0; part < 4; ++part) load32(base + 32 * part, score + 32 * part);
  asm volatile("tcgen05.wait::ld.sync.aligned;" ::: "memory");
  for (int i = 0; i < kColumns; i += 2) largest = max3(largest, score[i], score[i + 1]);
  const float2 factor = {scale, scale}, shift = {-largest * scale, -largest * scale};
  for (int i = 0; i < kColumns; i += 2) {
    const float2 x = fma2({score[i], score[i + 1]}, factor, shift);
    const float low = exp2_approx(x.x), high = exp2_approx(x.y);
    sum += low + high;
    weights[i / 2] = pack(low, high);
  }
  for (int part = 0; part < 4; ++part) store16(base + 256 + 16 * part, weights + 16 * part);
  asm volatile("tcgen05.wait::st.sync.aligned;" ::: "memory");
}

/// Scores of zero for every thread. Returns where the warp's lanes of tensor memory begin.
__device__ uint32_t prepare_scores(uint32_t* slot) {
  const uint32_t base = allocate_tensor_memory(slot) + (threadIdx.x / 32 << 21);
  const uint32_t zeros[16] = {};
  for (int part = 0; part < kColumns / 16; ++part) store16(base + 16 * part, zeros);
  asm volatile("tcgen05.wait::st.sync.aligned;" ::: "memory");
  return base;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(128, 1)
    softmax_rows(float* sums, int steps, float scale) {
  __shared__ uint32_t slot;
  const uint32_t base = prepare_scores(&slot);
  float largest = -INFINITY, sum = 0;
#pragma unroll 1
  for (int step = 0; step < steps; ++step) softmax_step(base, scale, largest, sum);
  sums[blockIdx.x * blockDim.x + threadIdx.x] = sum;
  free_tensor_memory(base & 0xffff);
}

/// The same with eight steps written out: about 5,000 instructions, to time parsing and lowering.
extern "C" __global__ void __launch_bounds__(128, 1) softmax_unrolled(float* sums, float scale) {
  __shared__ uint32_t slot;
  const uint32_t base = prepare_scores(&slot);
  float largest = -INFINITY, sum = 0;
#pragma unroll
  for (int step = 0; step < 8; ++step) softmax_step(base, scale, largest, sum);
  sums[blockIdx.x * blockDim.x + threadIdx.x] = sum;
  free_tensor_memory(base & 0xffff);
}

/// `steps` times: 128x128x64 of bf16 from shared memory (four instructions), a commit and its wait.
extern "C" __global__ void __launch_bounds__(128, 1) mma_chain(int steps) {
  extern __shared__ __align__(1024) uint8_t tiles[];  // A and B, 16 KiB each, 128-byte swizzle
  __shared__ uint64_t done;
  __shared__ uint32_t slot;
  for (int i = threadIdx.x; i < 2 * 16384 / 16; i += blockDim.x) {
    reinterpret_cast<uint4*>(tiles)[i] = {0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80};
  }
  const uint32_t d = allocate_tensor_memory(&slot);
  const uint32_t barrier = shared_address(&done);
  if (threadIdx.x == 0) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier) : "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    const uint64_t upper = 0x4000404000010000;  // 128-byte swizzle, 1024 bytes per eight rows
    const uint64_t a = upper | shared_address(tiles) >> 4,
                   b = upper | (shared_address(tiles) + 16384) >> 4;
    for (int step = 0; step < steps; ++step) {
      for (int k = 0; k < 4; ++k) {
        asm volatile(
            "{\n .reg .pred p;\n setp.ne.b32 p, %4, 0;\n"
            " tcgen05.mma.cta_group::1.kind::f16 [%0], %1, %2, %3, p;\n}" ::"r"(d),
            "l"(a + 2 * k), "l"(b + 2 * k), "r"(0x08200490), "r"(step + k)
            : "memory");
      }
      asm volatile(
          "tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [%0];" ::"r"(
              barrier)
          : "memory");
      asm volatile(
          "{\n .reg .pred p;\nwait:\n mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
          " @!p bra wait;\n}" ::"r"(barrier),
          "r"(step & 1)
          : "memory");
    }
  }
  free_tensor_memory(d);
}
