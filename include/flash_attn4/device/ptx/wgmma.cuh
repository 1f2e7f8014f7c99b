// wgmma: D (64 x N, fp32 registers) += A (64 x 16) * B (16 x N), by the 128 threads of a warpgroup.
//
// Asynchronous: between the issue and the wait that covers it nobody may touch the registers of D
// and A nor change the operands in shared memory. Register i of D in thread t of the warpgroup (w =
// t / 32, l = t % 32) is row 16 w + l / 4 + 8 (i / 2 % 2), column 8 (i / 4) + 2 (l % 4) + i % 2. As
// A the same thread holds rows l / 4 and l / 4 + 8 at k = 2 (l % 4), + 1 in a[0] and a[1], at k + 8
// in a[2] and a[3]: registers 8 j .. 8 j + 7 of D, rounded to 16 bit in pairs, are the A operand of
// k-step j.
#pragma once

#include "flash_attn4/core/descriptors.h"
#include "flash_attn4/device/device.cuh"

namespace fa4::ptx {

/// Before the first wgmma after other code wrote registers of A or D.
FA4_D void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

/// Closes the group of the wgmmas issued so far.
FA4_D void wgmma_commit_group() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/// Until at most kPending of the newest groups are in flight.
template <int kPending>
FA4_D void wgmma_wait_group() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// The operands of an instruction: names in its text, registers of D bound to them.
// clang-format off
#define FA4_D8(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), \
                  "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define FA4_NAMES_16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define FA4_NAMES_32 FA4_NAMES_16 \
  ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define FA4_NAMES_64 FA4_NAMES_32 \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define FA4_REGISTERS_16 FA4_D8(0), FA4_D8(8)
#define FA4_REGISTERS_32 FA4_REGISTERS_16, FA4_D8(16), FA4_D8(24)
#define FA4_REGISTERS_64 FA4_REGISTERS_32, FA4_D8(32), FA4_D8(40), FA4_D8(48), FA4_D8(56)
#define FA4_WGMMA(n, count, type, flag, operands, ...)                        \
  asm volatile(                                                               \
      "{\n.reg .pred p;\nsetp.ne.b32 p, " flag ", 0;\n"                       \
      "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type         \
      " {" FA4_NAMES_##count "}, " operands ";\n}"                            \
      : FA4_REGISTERS_##count                                                 \
      : __VA_ARGS__, "r"(static_cast<int>(accumulate)))
#define FA4_WGMMA_SS(n, count, type, a_b, flag, majors)                     \
  FA4_WGMMA(n, count, type, flag, a_b ", p, 1, 1, " majors, "l"(a), "l"(b), \
            "n"(static_cast<int>(kA)), "n"(static_cast<int>(kB)))
#define FA4_WGMMA_RS(n, count, type, a_b, flag)       \
  FA4_WGMMA(n, count, type, flag, a_b ", p, 1, 1, 1", \
            "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))

/// Both operands in shared memory, with their majors; a and b are descriptors. accumulate false:
/// D = A * B.
template <DType kDType, int kN, Major kA, Major kB>
FA4_D void wgmma_ss(float (&d)[kN / 2], uint64_t a, uint64_t b, bool accumulate) {
  static_assert(kN == 32 || kN == 64 || kN == 128);
  constexpr bool kBf16 = kDType == DType::kBFloat16;
  if constexpr (kN == 32 && kBf16) FA4_WGMMA_SS(32, 16, "bf16", "%16, %17", "%20", "%18, %19");
  if constexpr (kN == 32 && !kBf16) FA4_WGMMA_SS(32, 16, "f16", "%16, %17", "%20", "%18, %19");
  if constexpr (kN == 64 && kBf16) FA4_WGMMA_SS(64, 32, "bf16", "%32, %33", "%36", "%34, %35");
  if constexpr (kN == 64 && !kBf16) FA4_WGMMA_SS(64, 32, "f16", "%32, %33", "%36", "%34, %35");
  if constexpr (kN == 128 && kBf16) FA4_WGMMA_SS(128, 64, "bf16", "%64, %65", "%68", "%66, %67");
  if constexpr (kN == 128 && !kBf16) FA4_WGMMA_SS(128, 64, "f16", "%64, %65", "%68", "%66, %67");
}

/// A in registers, B in shared memory, MN-major.
template <DType kDType, int kN>
FA4_D void wgmma_rs(float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
  static_assert(kN == 64 || kN == 128);
  constexpr bool kBf16 = kDType == DType::kBFloat16;
  if constexpr (kN == 64 && kBf16) FA4_WGMMA_RS(64, 32, "bf16", "{%32, %33, %34, %35}, %36", "%37");
  if constexpr (kN == 64 && !kBf16) FA4_WGMMA_RS(64, 32, "f16", "{%32, %33, %34, %35}, %36", "%37");
  if constexpr (kN == 128 && kBf16)
    FA4_WGMMA_RS(128, 64, "bf16", "{%64, %65, %66, %67}, %68", "%69");
  if constexpr (kN == 128 && !kBf16)
    FA4_WGMMA_RS(128, 64, "f16", "{%64, %65, %66, %67}, %68", "%69");
}

#undef FA4_D8
#undef FA4_NAMES_16
#undef FA4_NAMES_32
#undef FA4_NAMES_64
#undef FA4_REGISTERS_16
#undef FA4_REGISTERS_32
#undef FA4_REGISTERS_64
#undef FA4_WGMMA
#undef FA4_WGMMA_SS
#undef FA4_WGMMA_RS
// clang-format on

}  // namespace fa4::ptx
