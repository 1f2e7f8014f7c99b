// tcgen05: products whose accumulator, and maybe one operand, lies in tensor memory (SM100).
//
// Tensor memory has 128 lanes of 512 columns of 32 bits; an address is lane << 16 | column. All of
// it is asynchronous, and ordered by what is written here:
//   product, product     in issue order, when one thread issues both
//   product, then load   tcgen05_commit to an mbarrier; wait for it; tcgen05_fence_after
//   store, then product  tcgen05_wait_st; tcgen05_fence_before; arrive; wait; tcgen05_fence_after
//   load, then product   tcgen05_wait_ld; tcgen05_fence_before; arrive; wait; tcgen05_fence_after
// Warp w of the CTA may touch lanes 32 * (w % 4) to 32 * (w % 4) + 31. PTX ISA: tcgen05.
#pragma once

#include "flash_attn4/device/device.cuh"

namespace fa4::ptx {

/// All 512 columns; waits until they are free. Their address goes to shared memory at `to`. By one
/// warp, of each CTA of a pair, which also frees them. Gives up the right to allocate again.
template <int kCtas = 1>
FA4_D void tcgen05_alloc_all(uint32_t to) {
  asm volatile("tcgen05.alloc.cta_group::%1.sync.aligned.shared::cta.b32 [%0], 512;" ::"r"(to),
               "n"(kCtas)
               : "memory");
  asm volatile("tcgen05.relinquish_alloc_permit.cta_group::%0.sync.aligned;" ::"n"(kCtas));
}

template <int kCtas = 1>
FA4_D void tcgen05_dealloc_all(uint32_t address) {
  asm volatile("tcgen05.dealloc.cta_group::%1.sync.aligned.b32 %0, 512;" ::"r"(address), "n"(kCtas)
               : "memory");
}

/// What this thread has done with tensor memory comes before its next arrival.
FA4_D void tcgen05_fence_before() {
  asm volatile("tcgen05.fence::before_thread_sync;" ::: "memory");
}

/// What this thread does with tensor memory from here on comes after its last wait.
FA4_D void tcgen05_fence_after() {
  asm volatile("tcgen05.fence::after_thread_sync;" ::: "memory");
}

/// One step of 16 in k: D[tmem] = A B, or D += A B. a and b are descriptors of shared memory,
/// instruction is that of umma_instruction_descriptor. By one thread, the same one every time; of a
/// pair, by one of its leader: rows of A and D are then half and half in the two CTAs, and so are
/// columns of B, at the same addresses.
template <int kCtas = 1>
FA4_D void tcgen05_mma_ss(uint32_t d, uint64_t a, uint64_t b, uint32_t instruction,
                          bool accumulate) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %4, 0;\n"
      "tcgen05.mma.cta_group::%5.kind::f16 [%0], %1, %2, %3, p;\n"
      "}" ::"r"(d),
      "l"(a), "l"(b), "r"(instruction), "r"(static_cast<int>(accumulate)), "n"(kCtas)
      : "memory");
}

/// The same with A in tensor memory: lane = row, column c = elements 2 c and 2 c + 1 of k.
template <int kCtas = 1>
FA4_D void tcgen05_mma_ts(uint32_t d, uint32_t a, uint64_t b, uint32_t instruction,
                          bool accumulate) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %4, 0;\n"
      "tcgen05.mma.cta_group::%5.kind::f16 [%0], [%1], %2, %3, p;\n"
      "}" ::"r"(d),
      "r"(a), "l"(b), "r"(instruction), "r"(static_cast<int>(accumulate)), "n"(kCtas)
      : "memory");
}

/// One arrival at `bar` when all products that this thread has issued are complete.
FA4_D void tcgen05_commit(uint32_t bar) {
  asm volatile(
      "tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [%0];" ::"r"(bar)
      : "memory");
}

/// The same for a pair: one arrival at `bar` of each of its CTAs. Behind products alone: a commit
/// with nothing under way is said to reach the own CTA only.
FA4_D void tcgen05_commit_pair(uint32_t bar) {
  asm volatile(
      "tcgen05.commit.cta_group::2.mbarrier::arrive::one.shared::cluster.multicast::cluster.b64 "
      "[%0], %1;" ::"r"(bar),
      "h"(static_cast<uint16_t>(3))
      : "memory");
}

/// Until the loads of this thread have filled their registers. The compiler does not know that they
/// are empty before: ptx::hold keeps uses behind the wait.
FA4_D void tcgen05_wait_ld() {
  asm volatile("tcgen05.wait::ld.sync.aligned;" ::: "memory");
}

/// Until the stores of this thread are in tensor memory.
FA4_D void tcgen05_wait_st() {
  asm volatile("tcgen05.wait::st.sync.aligned;" ::: "memory");
}

// Shape 32x32b: lane l of the warp takes columns address, address + 1, ... of lane l of its 32, one
// per register. By a whole warp, with the same address in all lanes.
// clang-format off
#define FA4_X8(constraint, i) \
  constraint(x[i]), constraint(x[i + 1]), constraint(x[i + 2]), constraint(x[i + 3]), \
  constraint(x[i + 4]), constraint(x[i + 5]), constraint(x[i + 6]), constraint(x[i + 7])
#define FA4_NAMES_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define FA4_NAMES_16 FA4_NAMES_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define FA4_NAMES_32 FA4_NAMES_16 \
  ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
// clang-format on

/// 32 columns of floats.
FA4_D void tcgen05_ld_x32(float* x, uint32_t address) {
  asm volatile("tcgen05.ld.sync.aligned.32x32b.x32.b32 {" FA4_NAMES_32 "}, [%32];"
               : FA4_X8("=f", 0), FA4_X8("=f", 8), FA4_X8("=f", 16), FA4_X8("=f", 24)
               : "r"(address)
               : "memory");
}

/// 16 columns.
FA4_D void tcgen05_ld_x16(float* x, uint32_t address) {
  asm volatile("tcgen05.ld.sync.aligned.32x32b.x16.b32 {" FA4_NAMES_16 "}, [%16];"
               : FA4_X8("=f", 0), FA4_X8("=f", 8)
               : "r"(address)
               : "memory");
}

/// 16 columns, of floats or of words.
FA4_D void tcgen05_st_x16(uint32_t address, const float* x) {
  asm volatile("tcgen05.st.sync.aligned.32x32b.x16.b32 [%16], {" FA4_NAMES_16 "};" ::FA4_X8("f", 0),
               FA4_X8("f", 8), "r"(address)
               : "memory");
}
FA4_D void tcgen05_st_x16(uint32_t address, const uint32_t* x) {
  asm volatile("tcgen05.st.sync.aligned.32x32b.x16.b32 [%16], {" FA4_NAMES_16 "};" ::FA4_X8("r", 0),
               FA4_X8("r", 8), "r"(address)
               : "memory");
}

/// 8 columns.
FA4_D void tcgen05_st_x8(uint32_t address, const uint32_t* x) {
  asm volatile("tcgen05.st.sync.aligned.32x32b.x8.b32 [%8], {" FA4_NAMES_8 "};" ::FA4_X8("r", 0),
               "r"(address)
               : "memory");
}

#undef FA4_X8
#undef FA4_NAMES_8
#undef FA4_NAMES_16
#undef FA4_NAMES_32

}  // namespace fa4::ptx
