// Atomic operations on global and shared memory, and hand-over between CTAs through global memory.
#include "ptx.cuh"

// Every thread applies the operation to one of `cells` places; old values go to out.
#define ATOMIC(name, T, constraint, text)                                  \
  KERNEL name(T* cell, const T* in, T* out, int cells) {                   \
    const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); \
    T old;                                                                 \
    asm volatile(text                                                      \
                 : "=" constraint(old)                                     \
                 : "l"(cell + i % cells), constraint(in[i])                \
                 : "memory");                                              \
    out[i] = old;                                                          \
  }
ATOMIC(atom_add_u32, uint32_t, "r", "atom.global.add.u32 %0, [%1], %2;")
ATOMIC(atom_add_u64, uint64_t, "l", "atom.global.add.u64 %0, [%1], %2;")
ATOMIC(atom_add_f32, float, "f", "atom.global.add.f32 %0, [%1], %2;")
ATOMIC(atom_min_s32, int, "r", "atom.global.min.s32 %0, [%1], %2;")
ATOMIC(atom_max_s32, int, "r", "atom.global.max.s32 %0, [%1], %2;")
ATOMIC(atom_max_u64, uint64_t, "l", "atom.global.max.u64 %0, [%1], %2;")
ATOMIC(atom_and_b32, uint32_t, "r", "atom.global.and.b32 %0, [%1], %2;")
ATOMIC(atom_or_b32, uint32_t, "r", "atom.global.or.b32 %0, [%1], %2;")
ATOMIC(atom_xor_b32, uint32_t, "r", "atom.global.xor.b32 %0, [%1], %2;")
ATOMIC(atom_exch_b32, uint32_t, "r", "atom.global.exch.b32 %0, [%1], %2;")
ATOMIC(atom_inc_u32, uint32_t, "r", "atom.global.inc.u32 %0, [%1], %2;")
ATOMIC(atom_dec_u32, uint32_t, "r", "atom.global.dec.u32 %0, [%1], %2;")
ATOMIC(atom_generic_add_u32, uint32_t, "r", "atom.relaxed.gpu.add.u32 %0, [%1], %2;")

#define REDUCTION(name, T, constraint, text)                                 \
  KERNEL name(T* cell, const T* in, int cells) {                             \
    const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);   \
    asm volatile(text::"l"(cell + i % cells), constraint(in[i]) : "memory"); \
  }
REDUCTION(red_add_u32, uint32_t, "r", "red.global.add.u32 [%0], %1;")
REDUCTION(red_add_u64, uint64_t, "l", "red.global.add.u64 [%0], %1;")
REDUCTION(red_add_f32, float, "f", "red.relaxed.gpu.global.add.f32 [%0], %1;")
REDUCTION(red_max_s32, int, "r", "red.global.max.s32 [%0], %1;")
REDUCTION(red_add_f16x2, uint32_t, "r", "red.global.add.noftz.f16x2 [%0], %1;")
REDUCTION(red_add_bf16x2, uint32_t, "r", "red.global.add.noftz.bf16x2 [%0], %1;")

/// Four floats at once: what dQ without shared memory would use.
KERNEL red_add_v4_f32(float* cell, const float* in, int cells) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(cell + 4 * (i % cells)),
               "f"(in[4 * i]), "f"(in[4 * i + 1]), "f"(in[4 * i + 2]), "f"(in[4 * i + 3])
               : "memory");
}
KERNEL red_add_v2_f32(float* cell, const float* in, int cells) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  asm volatile("red.relaxed.gpu.global.add.v2.f32 [%0], {%1, %2};" ::"l"(cell + 2 * (i % cells)),
               "f"(in[2 * i]), "f"(in[2 * i + 1])
               : "memory");
}

/// The shared-memory forms, each on its own word.
KERNEL shared_atomics(const uint32_t* in, uint32_t* out) {
  __shared__ uint32_t cell[8];
  __shared__ float sum;
  __shared__ uint64_t wide;
  if (threadIdx.x < 8) cell[threadIdx.x] = threadIdx.x == 2 || threadIdx.x == 4 ? ~0u : 0;
  if (threadIdx.x == 0) {
    sum = 0;
    wide = 0;
  }
  __syncthreads();
  const uint32_t value = in[threadIdx.x];
  const uint32_t at = ptx::shared_address(cell);
  uint32_t old;
  asm volatile("atom.shared.add.u32 %0, [%1], %2;" : "=r"(old) : "r"(at), "r"(value) : "memory");
  asm volatile("red.shared.max.u32 [%0], %1;" ::"r"(at + 4), "r"(value) : "memory");
  asm volatile("red.shared.min.u32 [%0], %1;" ::"r"(at + 8), "r"(value) : "memory");
  asm volatile("red.shared.or.b32 [%0], %1;" ::"r"(at + 12), "r"(value) : "memory");
  asm volatile("red.shared.and.b32 [%0], %1;" ::"r"(at + 16), "r"(value) : "memory");
  asm volatile("red.shared.xor.b32 [%0], %1;" ::"r"(at + 20), "r"(value) : "memory");
  asm volatile("red.shared.add.f32 [%0], %1;" ::"r"(ptx::shared_address(&sum)),
               "f"(static_cast<float>(value))
               : "memory");
  asm volatile("red.shared.add.u64 [%0], %1;" ::"r"(ptx::shared_address(&wide)),
               "l"(uint64_t{value} << 20)
               : "memory");
  asm volatile("atom.shared.inc.u32 %0, [%1], 9;" : "=r"(old) : "r"(at + 24) : "memory");
  __syncthreads();
  if (threadIdx.x < 7) out[threadIdx.x] = cell[threadIdx.x];
  if (threadIdx.x == 7) out[7] = __float_as_uint(sum);
  if (threadIdx.x == 8) out[8] = static_cast<uint32_t>(wide);
  if (threadIdx.x == 9) out[9] = static_cast<uint32_t>(wide >> 32);
  out[10 + threadIdx.x] = old <= 9;  // inc wraps to 0 after 9
}

/// Addition of floats by compare-and-swap, 32 and 64 bit.
KERNEL compare_and_swap(uint32_t* word, uint64_t* wide) {
  uint32_t seen = *static_cast<volatile uint32_t*>(word), expected;
  do {
    expected = seen;
    asm volatile("atom.global.cas.b32 %0, [%1], %2, %3;"
                 : "=r"(seen)
                 : "l"(word), "r"(expected), "r"(expected + threadIdx.x)
                 : "memory");
  } while (seen != expected);
  uint64_t seen_wide = *static_cast<volatile uint64_t*>(wide), expected_wide;
  do {
    expected_wide = seen_wide;
    asm volatile("atom.acq_rel.gpu.global.cas.b64 %0, [%1], %2, %3;"
                 : "=l"(seen_wide)
                 : "l"(wide), "l"(expected_wide), "l"(expected_wide + (uint64_t{threadIdx.x} << 32))
                 : "memory");
  } while (seen_wide != expected_wide);
}

/// CTAs append to a value in the order of their index: wait for the turn, work, release the next.
KERNEL semaphore_order(int* turn, uint32_t* value) {
  if (threadIdx.x == 0) {
    int seen = -1;
    while (seen != static_cast<int>(blockIdx.x)) {
      asm volatile("ld.acquire.gpu.global.b32 %0, [%1];" : "=r"(seen) : "l"(turn) : "memory");
    }
  }
  __syncthreads();
  const uint32_t before = value[threadIdx.x];
  value[threadIdx.x] = before * 3 + blockIdx.x;
  __syncthreads();
  if (threadIdx.x == 0) {
    asm volatile("red.release.gpu.global.add.s32 [%0], %1;" ::"l"(turn), "r"(1) : "memory");
  }
}

/// The last CTA to arrive adds up what all have written.
KERNEL last_block(uint32_t* parts, uint32_t* counter, uint32_t* out) {
  __shared__ uint32_t arrived;
  if (threadIdx.x == 0) {
    parts[blockIdx.x] = (blockIdx.x + 1) * (blockIdx.x + 1);
    __threadfence();
    arrived = atomicAdd(counter, 1);
  }
  __syncthreads();
  if (arrived + 1 != gridDim.x) return;
  __threadfence();
  if (threadIdx.x == 0) {
    uint32_t sum = 0;
    for (uint32_t i = 0; i < gridDim.x; ++i) sum += static_cast<volatile uint32_t*>(parts)[i];
    *out = sum;
  }
}

/// Loads and stores of every width, with cache operators and through the generic space.
KERNEL memory_widths(const uint8_t* in, uint8_t* out) {
  __shared__ alignas(16) uint8_t tile[64];
  const uint32_t at = ptx::shared_address(tile);
  uint32_t byte, a, b, c, d;
  uint16_t half;
  uint64_t x, y;
  asm volatile("ld.global.u8 %0, [%1];" : "=r"(byte) : "l"(in));
  asm volatile("st.shared.u8 [%0], %1;" ::"r"(at), "r"(byte) : "memory");
  asm volatile("ld.global.s8 %0, [%1+1];" : "=r"(byte) : "l"(in));
  asm volatile("st.shared.u8 [%0+1], %1;" ::"r"(at), "r"(byte >> 8) : "memory");
  asm volatile("ld.global.nc.u16 %0, [%1+2];" : "=h"(half) : "l"(in));
  asm volatile("st.shared.u16 [%0+2], %1;" ::"r"(at), "h"(half) : "memory");
  asm volatile("ld.global.ca.u32 %0, [%1+4];" : "=r"(a) : "l"(in));
  asm volatile("st.shared.b32 [%0+4], %1;" ::"r"(at), "r"(a) : "memory");
  asm volatile("ld.global.cg.u64 %0, [%1+8];" : "=l"(x) : "l"(in));
  asm volatile("st.volatile.shared.b64 [%0+8], %1;" ::"r"(at), "l"(x) : "memory");
  asm volatile("ld.global.v2.u32 {%0, %1}, [%2+16];" : "=r"(a), "=r"(b) : "l"(in));
  asm volatile("st.shared.v2.b32 [%0+16], {%1, %2};" ::"r"(at), "r"(b), "r"(a) : "memory");
  asm volatile("ld.global.nc.L1::no_allocate.v4.b32 {%0, %1, %2, %3}, [%4+32];"
               : "=r"(a), "=r"(b), "=r"(c), "=r"(d)
               : "l"(in));
  asm volatile("st.shared.v4.b32 [%0+32], {%1, %2, %3, %4};" ::"r"(at), "r"(d), "r"(c), "r"(b),
               "r"(a)
               : "memory");
  asm volatile("ld.relaxed.gpu.global.b64 %0, [%1+24];" : "=l"(x) : "l"(in));
  asm volatile("st.shared.b64 [%0+24], %1;" ::"r"(at), "l"(x) : "memory");
  asm volatile("ld.volatile.global.v2.u64 {%0, %1}, [%2+48];" : "=l"(x), "=l"(y) : "l"(in));
  asm volatile("st.shared.v2.u64 [%0+48], {%1, %2};" ::"r"(at), "l"(y), "l"(x) : "memory");
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(a), "=r"(b), "=r"(c), "=r"(d)
               : "r"(at));
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(out), "r"(a), "r"(b), "r"(c), "r"(d)
               : "memory");
  asm volatile("ld.v2.u64 {%0, %1}, [%2];" : "=l"(x), "=l"(y) : "l"(tile + 16));
  asm volatile("st.global.cs.v2.u64 [%0+16], {%1, %2};" ::"l"(out), "l"(x), "l"(y) : "memory");
  asm volatile("ld.shared::cta.v2.u64 {%0, %1}, [%2+32];" : "=l"(x), "=l"(y) : "r"(at));
  asm volatile("st.relaxed.gpu.global.b64 [%0+32], %1;" ::"l"(out), "l"(x) : "memory");
  asm volatile("st.wt.b64 [%0+40], %1;" ::"l"(out), "l"(y) : "memory");
  asm volatile("ld.shared.s16 %0, [%1+48];" : "=r"(a) : "r"(at));
  asm volatile("st.global.b32 [%0+48], %1;" ::"l"(out), "r"(a) : "memory");
  asm volatile("ld.shared.u8 %0, [%1+52];" : "=r"(a) : "r"(at));
  asm volatile("st.global.b8 [%0+52], %1;" ::"l"(out), "r"(a) : "memory");
}
