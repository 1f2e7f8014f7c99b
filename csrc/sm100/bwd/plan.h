// Plan of the SM100 backward kernel: who runs, what they own, how they hand over.
// Plain C++: kernel, launcher, CPU tests and emulator read this file.
#pragma once

#include <cstdint>

#include "flash_attn4/core/descriptors.h"
#include "flash_attn4/core/dq_layout.h"
#include "flash_attn4/core/key_tile.h"
#include "flash_attn4/core/plan.h"
#include "flash_attn4/core/types.h"

namespace fa4::sm100 {

/// What is compiled into a kernel. Everything else is a run-time value.
struct BwdConfig {
  DType dtype;      // of q, k, v, dout and the gradients
  int head_dim;     // of all of them; smaller ones are padded with zeros by the copy engine
  int dout_stages;  // of dout; q has two, because scores run a step ahead
  int dq_columns;   // of dq that are added at once
  int reduce_registers;
  int compute_registers;
};

/// The configuration per head dim.
FA4_HD constexpr BwdConfig bwd_config(DType dtype, int head_dim) {
  if (head_dim == 64) return {dtype, 64, 2, 64, 112, 160};
  if (head_dim == 96) return {dtype, 96, 2, 96, 120, 160};
  return {dtype, 128, 1, 64, 152, 144};
}

// ---- Roles -------------------------------------------------------------------------------------
enum BwdRole : uint32_t {
  kBwdReduce = 1,
  kBwdCompute = 2,
  kBwdMma = 4,
  kBwdLoad = 8,
  kBwdReaders = kBwdMma | kBwdCompute  // of queries and dout
};

// ---- Barriers: one row is one ring of mbarriers ------------------------------------------------
enum BwdBar : int {
  kBwdQFull,
  kBwdQEmpty,
  kBwdQClean,
  kBwdDoutFull,
  kBwdDoutEmpty,
  kBwdDoutClean,
  kBwdSFull,
  kBwdPFull,
  kBwdDpFull,
  kBwdDsFull,
  kBwdDqFull,
  kBwdDqEmpty,
  kBwdDvFull,
  kBwdDkFull,
  kBwdDkvEmpty,
  kBwdNumBars
};

template <BwdConfig kConfig>
struct BwdPlan {
  // ---- Tile ---------------------------------------------------------------------------- elements
  // Scores are transposed: a row per key, which is a lane of tensor memory, a column per query.
  static constexpr int kBlockM = 128;  // queries per step
  static constexpr int kBlockN = 128;  // keys
  static constexpr int kHeadDim = kConfig.head_dim;
  static constexpr int kGroups = 2;                        // warpgroups that compute
  static constexpr int kGroupQueries = kBlockM / kGroups;  // ... a part of the columns each
  static constexpr int kQStages = 2;
  static constexpr int kDoutStages = kConfig.dout_stages;
  static constexpr int kDqColumns = kConfig.dq_columns;
  using DqLayout = DqLayoutSm100;

  // 96 columns are no whole spans of 128 bytes, and a product wants whole ones.
  static constexpr Swizzle kSwizzle = kHeadDim % 64 == 0 ? Swizzle::k128B : Swizzle::k64B;
  static constexpr int kSpanColumns = static_cast<int>(span_bytes(kSwizzle)) / 2;
  FA4_HD static constexpr TileLayout key_layout() { return {kBlockN, kSwizzle}; }
  FA4_HD static constexpr TileLayout query_layout() { return {kBlockM, kSwizzle}; }
  /// Of dS: a row per key, a column per query. A span holds the queries of one warpgroup.
  FA4_HD static constexpr TileLayout ds_layout() { return {kBlockN, Swizzle::k128B}; }
  static_assert(kGroupQueries == 64);

  // ---- Roles -----------------------------------------------------------------------------------
  static constexpr int kReduceRegisters = kConfig.reduce_registers;
  static constexpr int kComputeRegisters = kConfig.compute_registers;
  static constexpr int kOtherRegisters = 512 - kReduceRegisters - kGroups * kComputeRegisters;
  // clang-format off
  static constexpr RoleRow kRoles[] = {
      // name     first warp  warps  registers per thread
      {"reduce",   0,         4,     kReduceRegisters},
      {"compute",  4,         8,     kComputeRegisters},  // warps 4-7: queries 0-63, 8-11: 64-127
      {"mma",     12,         1,     kOtherRegisters},
      {"load",    13,         1,     kOtherRegisters},
  };
  // clang-format on
  // Two more warps idle: tensor memory is reached by whole warpgroups.
  static constexpr int kThreads = 512;
  static constexpr int kReduceWarps = 4;
  static constexpr int kFirstComputeWarp = 4;
  static constexpr int kComputeWarps = 8;
  static constexpr int kMmaWarp = 12;
  static constexpr int kLoadWarp = 13;
  static_assert(kOtherRegisters % 8 == 0 && kOtherRegisters >= 24);

  // ---- Tensor memory ---------------------------------------------- 128 lanes of 32-bit columns
  //                  hd64        hd96        hd128
  //     dP, f32      0 ..127     0 ..127     0 ..127
  //     dQ, f32    128 ..191    96 ..191     0 ..127
  //     dV, f32    192 ..255   192 ..287   128 ..255
  //     S, f32     256 ..383   288 ..415   256 ..383
  //     dK, f32    384 ..447   416 ..511   384 ..511
  // P lies over S and dS over dP, two per column: those of a warpgroup over the lower half of the
  // columns that it reads itself, so no warp waits for another one before it stores.
  FA4_HD static constexpr uint32_t tmem_dp() { return 0; }
  FA4_HD static constexpr uint32_t tmem_dq() {
    return kHeadDim == 64 ? kBlockM : kHeadDim == 96 ? kBlockM - 32 : 0;
  }
  FA4_HD static constexpr uint32_t tmem_dv() {
    return max_of<uint32_t>(kBlockM, tmem_dq() + kHeadDim);
  }
  FA4_HD static constexpr uint32_t tmem_s() { return tmem_dv() + kHeadDim; }
  FA4_HD static constexpr uint32_t tmem_dk() { return tmem_s() + kBlockM; }
  /// Of the queries of one warpgroup, from their scores (tmem_s) or gradients (tmem_dp) on.
  FA4_HD static constexpr uint32_t tmem_operand(uint32_t scores, int group) {
    return scores + kGroupQueries * group;
  }
  static_assert(tmem_dk() + kHeadDim <= 512, "tensor memory has 512 columns");
  // Where dQ leaves dS alone it is computed ahead of dK, and read while dK is computed.
  static constexpr bool kDqFirst =
      tmem_dq() >= tmem_operand(tmem_dp(), kGroups - 1) + kGroupQueries / 2;
  // Where it leaves dP alone, dP need not wait until it has been read.
  static constexpr bool kDqApart = tmem_dq() >= tmem_dp() + kBlockM;

  // ---- Products --------------------------------------------------------------------------------
  FA4_HD static constexpr uint32_t product(int n, Major a_major, Major b_major) {
    return umma_instruction_descriptor({.operand = kConfig.dtype,
                                        .accumulator = DType::kFloat32,
                                        .m = 128,
                                        .n = static_cast<uint32_t>(n),
                                        .a_major = a_major,
                                        .b_major = b_major});
  }
  /// S = K Q^T and dP = V dO^T.
  FA4_HD static constexpr uint32_t score_product() {
    return product(kBlockM, Major::kK, Major::kK);
  }
  /// dV += P dO and dK += dS Q.
  FA4_HD static constexpr uint32_t key_product() {
    return product(kHeadDim, Major::kK, Major::kMN);
  }
  /// dQ = dS^T K.
  FA4_HD static constexpr uint32_t query_product() {
    return product(kHeadDim, Major::kMN, Major::kMN);
  }

  // ---- Barriers --------------------------------------------------------------------------------
  // Threads arrive by one lane per warp, after the warp has met. lse2 and delta come with q, keys
  // with the first q, values with the first dout; *_clean is for what came with *_full.
  // clang-format off
  static constexpr BarrierTable<kBwdNumBars> kBarriers{{
      // name          stages       arrivals       signals      done               waits
      {"q_full",       kQStages,    1,             kBwdLoad,    Done::kTmaBytes,   kBwdReaders},
      {"q_empty",      kQStages,    1,             kBwdMma,     Done::kMmaCommit,  kBwdLoad},
      {"q_clean",      1,           kComputeWarps, kBwdCompute, Done::kThreads,    kBwdMma},
      {"dout_full",    kDoutStages, 1,             kBwdLoad,    Done::kTmaBytes,   kBwdReaders},
      {"dout_empty",   kDoutStages, 1,             kBwdMma,     Done::kMmaCommit,  kBwdLoad},
      {"dout_clean",   1,           kComputeWarps, kBwdCompute, Done::kThreads,    kBwdMma},
      {"s_full",       1,           1,             kBwdMma,     Done::kMmaCommit,  kBwdCompute},
      {"p_full",       1,           kComputeWarps, kBwdCompute, Done::kThreads,    kBwdMma},
      {"dp_full",      1,           1,             kBwdMma,     Done::kMmaCommit,  kBwdCompute},
      {"ds_full",      1,           kComputeWarps, kBwdCompute, Done::kThreads,    kBwdMma},
      {"dq_full",      1,           1,             kBwdMma,     Done::kMmaCommit,  kBwdReduce},
      {"dq_empty",     1,           kReduceWarps,  kBwdReduce,  Done::kThreads,    kBwdMma},
      {"dv_full",      1,           1,             kBwdMma,     Done::kMmaCommit,  kBwdCompute},
      {"dk_full",      1,           1,             kBwdMma,     Done::kMmaCommit,  kBwdCompute},
      {"dkv_empty",    1,           kComputeWarps, kBwdCompute, Done::kThreads,    kBwdMma},
  }};
  // clang-format on
  // Waits we do without, and why that is safe:
  //   s, p empty     S of step i + 1 is issued behind dV of step i by the same thread, after p_full
  //                  of step i, so S(i) was read and P(i) stored. dV(i) still reads P(i) where
  //                  S(i + 1) comes to lie: we rely on products taking effect in issue order, as
  //                  the forward does (csrc/sm100/fwd/plan.h).
  //   dp, ds empty   likewise dP(i + 1), and dQ(i) where it lies over dS(i), behind dK(i), which
  //                  was issued after ds_full of step i.
  //   ds in shared   dQ(i - 1), which reads it, was issued before dP(i): the commit to dp_full of
  //   memory, empty  step i covers it, and dS(i) is written after a wait for that.
  //   lse2, delta    both were read before ds_full of their step; q_empty is a commit behind it.
  //   q_clean,       one stage: rows of step i + 1 are cleaned after S(i) (q) or dP(i) (dout) was
  //   dout_clean     complete, so mma had waited for the cleaning of step i.

  // ---- Shared memory --------------------------------------------------------------------- bytes
  static constexpr uint32_t kKeyBytes = 2 * kBlockN * kHeadDim;    // K or V
  static constexpr uint32_t kQueryBytes = 2 * kBlockM * kHeadDim;  // Q or dO of one step
  static constexpr uint32_t kDsBytes = 2 * kBlockN * kBlockM;
  static constexpr uint32_t kDqBytes = 4 * DqLayout::kSliceRows * kDqColumns;  // staged by a warp
  static constexpr uint32_t kStatBytes = 4 * kBlockM;  // lse2 or delta of one step
  static constexpr uint32_t kKOffset = 0;
  static constexpr uint32_t kVOffset = kKOffset + kKeyBytes;
  static constexpr uint32_t kQOffset = kVOffset + kKeyBytes;
  static constexpr uint32_t kDoutOffset = kQOffset + kQStages * kQueryBytes;
  static constexpr uint32_t kDsOffset = kDoutOffset + kDoutStages * kQueryBytes;
  static constexpr uint32_t kDqOffset = kDsOffset + kDsBytes;
  static constexpr uint32_t kLseOffset = kDqOffset + kReduceWarps * kDqBytes;
  static constexpr uint32_t kDeltaOffset = kLseOffset + kQStages * kStatBytes;
  static constexpr uint32_t kTileOffset = kDeltaOffset + kQStages * kStatBytes;
  static constexpr uint32_t kBarOffset = kTileOffset + static_cast<uint32_t>(sizeof(KeyTile));
  static constexpr uint32_t kTmemOffset = kBarOffset + 8 * kBarriers.count();  // its address
  static constexpr uint32_t kSharedBytes = kTmemOffset + 16;
  static_assert(kSharedBytes <= 232448, "what one block of an SM100 may have");
};

}  // namespace fa4::sm100
