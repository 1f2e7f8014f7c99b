// Plan of the SM100 forward kernel: who runs, what they own, how they hand over.
// Plain C++: kernel, launcher, CPU tests and emulator read this file.
#pragma once

#include <cstdint>

#include "flash_attn4/core/descriptors.h"
#include "flash_attn4/core/plan.h"
#include "flash_attn4/core/query_tile.h"
#include "flash_attn4/core/types.h"

namespace fa4::sm100 {

/// Which exponentials are taken on the FMA units, and how well. A row has four fragments of 16
/// pairs of columns; the last fragment stays with the special function unit, because its weights
/// are waited for. A NaN shows nowhere else (core/exp2.h); the maximum sees to it that one anywhere
/// in a row reaches all of the row's exponentials.
struct Emulation {
  int pairs;  // of each fragment, spread evenly; 0: none
  int first;  // fragment with which it begins
  int degree;
};

/// What is compiled into a kernel. Everything else is a run-time value.
struct FwdConfig {
  DType dtype;     // of q, k, v and out
  int head_dim;    // of q and k; smaller ones are padded with zeros by the copy engine
  int head_dim_v;  // of v and out
  int ctas;        // that share a tile: 1, or 2, a pair
  int k_stages;
  int v_stages;
  int value_rows;  // keys per stage of V: all of a step, or half of them
  int out_stages;  // of staged output, a span of columns each; 0: rows leave from registers
  Emulation emulation;
  int early_fragments;  // of weights, that the product with V begins with: 3, or 4 for all
  int slack_log2;       // by which weights may exceed 1 before O is rescaled: core/softmax.h
};

/// The configuration per head dim and number of CTAs that share a tile. Shares of emulated
/// exponentials: docs/kernels/fwd_sm100.md.
FA4_HD constexpr FwdConfig fwd_config(DType dtype, int head_dim, int ctas = 1) {
  FwdConfig config{dtype, head_dim, head_dim, ctas, 2, 2, 128, 2, {6, 1, 3}, 3, 8};
  if (head_dim == 64) {
    config.k_stages = config.v_stages = 4;
    config.emulation = {6, 0, 3};
  }
  if (head_dim == 96) {
    config.k_stages = 3;
    config.out_stages = 6;  // its spans are half as wide
    config.emulation = {5, 0, 3};
  }
  if (head_dim == 192) {  // queries and keys leave no room for more
    config.head_dim_v = 128;
    config.value_rows = 64;
    config.out_stages = 0;
    config.emulation = {2, 1, 3};
  }
  if (ctas == 2) {  // each has half of the keys and of the columns of the values: room for more
    config.k_stages = config.v_stages = 4;
    if (head_dim == 192) {
      config.k_stages = 2;
      config.v_stages = 3;
      config.value_rows = 128;
      config.out_stages = 2;
    }
  }
#ifdef FA4_PLAIN_SOFTMAX  // for tests of schedules: nothing that trades accuracy for speed
  config.emulation = {0, 0, 3};
  config.early_fragments = 4;
  config.slack_log2 = 0;
#endif
  return config;
}

// ---- Roles -------------------------------------------------------------------------------------
enum Role : uint32_t {
  kSoftmax = 1,
  kCorrection = 2,
  kMma = 4,
  kLoad = 8,
  kStore = 16,
  kSchedule = 32,
  kWorkers = kSoftmax | kCorrection | kMma | kLoad | kStore
};

// ---- Barriers: one row is one ring of mbarriers ------------------------------------------------
enum Bar : int {
  kTileFull,
  kTileEmpty,
  kQFull,
  kQEmpty,
  kKFull,
  kKEmpty,
  kVFull,
  kVEmpty,
  kVLanded,
  kVClean,
  kSFull,
  kPEarly,
  kPLate,
  kStatFull,
  kStatEmpty,
  kORescaled,
  kOFull,
  kOEmpty,
  kOutFull,
  kOutEmpty,
  kNumBars
};

template <FwdConfig kConfig>
struct FwdPlan {
  // ---- Tile ---------------------------------------------------------------------------- elements
  // A block works on two halves of a tile in turn: one is in the softmax while the other multiplies.
  // Of a pair each CTA has its own two halves; products join the same half of both.
  static constexpr int kCtas = kConfig.ctas;
  static constexpr bool kPair = kCtas == 2;
  static constexpr int kHalves = 2;
  static constexpr int kHalfRows = 128;  // query rows, one per softmax thread
  static constexpr int kBlockN = 128;    // keys per step
  static constexpr int kHeadDim = kConfig.head_dim;
  static constexpr int kHeadDimV = kConfig.head_dim_v;
  static constexpr int kKStages = kConfig.k_stages;
  static constexpr int kVStages = kConfig.v_stages;
  static constexpr int kValueRows = kConfig.value_rows;
  static constexpr int kValueParts = kBlockN / kValueRows;
  static constexpr int kOutStages = kConfig.out_stages;
  static constexpr int kKeyRows = kBlockN / kCtas;         // keys of a step in this CTA
  static constexpr int kValueColumns = kHeadDimV / kCtas;  // columns of the values in this CTA
  static_assert(!kPair || kValueParts == 1, "v_landed tells of a whole step");
  static constexpr int kTileStages = 5;  // stored, corrected, in products, and two ahead

  // 96 columns are no whole spans of 128 bytes, and a product wants whole ones.
  static constexpr Swizzle kSwizzle =
      kHeadDim % 64 == 0 && kHeadDimV % 64 == 0 ? Swizzle::k128B : Swizzle::k64B;
  FA4_HD static constexpr TileLayout q_layout() { return {kHalfRows, kSwizzle}; }
  FA4_HD static constexpr TileLayout k_layout() { return {kKeyRows, kSwizzle}; }
  FA4_HD static constexpr TileLayout v_layout() { return {kValueRows, kSwizzle}; }
  FA4_HD static constexpr TileLayout out_layout() { return {kHalfRows, kSwizzle}; }
  static constexpr int kSpanColumns = static_cast<int>(span_bytes(kSwizzle)) / 2;

  /// Exponentials of the special function unit that a row takes before its first weights are handed
  /// over, the factor included.
  static constexpr int kEarlyExponentials =
      32 * kConfig.early_fragments + 1 -
      2 * kConfig.emulation.pairs * (3 - kConfig.emulation.first);

  // ---- Roles -----------------------------------------------------------------------------------
  static constexpr int kSoftmaxRegisters = 192;
  static constexpr int kCorrectionRegisters = 72;
  static constexpr int kOtherRegisters = 56;
  // clang-format off
  static constexpr RoleRow kRoles[] = {
      // name        first warp  warps  registers per thread
      {"softmax",     0,         8,     kSoftmaxRegisters},  // warps 0-3: half 0, 4-7: half 1
      {"correction",  8,         4,     kCorrectionRegisters},
      {"mma",        12,         1,     kOtherRegisters},
      {"load",       13,         1,     kOtherRegisters},
      {"store",      14,         1,     kOtherRegisters},
      {"schedule",   15,         1,     kOtherRegisters},
  };
  // clang-format on
  static constexpr int kThreads = 512;
  static constexpr int kFirstCorrectionWarp = 8;
  static constexpr int kMmaWarp = 12;
  static constexpr int kLoadWarp = 13;
  static constexpr int kStoreWarp = 14;
  static constexpr int kScheduleWarp = 15;
  static constexpr int kWorkerWarps = 15;  // that look at tiles
  static_assert(2 * kSoftmaxRegisters + kCorrectionRegisters + kOtherRegisters == 512,
                "four warpgroups share 65536 registers: 512 per lane");

  // ---- Tensor memory ---------------------------------------------- 128 lanes of 32-bit columns
  //      0 ..127   S of half 0, f32            128 ..255   S of half 1
  //     64 ..127   P of half 0, two per column  192 ..255   P of half 1
  //    256 ..      O of half 0, f32; then O of half 1
  // P lies over the upper half of its S: a thread stores it when it holds the whole row of S.
  FA4_HD static constexpr uint32_t tmem_s(int half) { return kBlockN * half; }
  FA4_HD static constexpr uint32_t tmem_p(int half) { return tmem_s(half) + kBlockN / 2; }
  FA4_HD static constexpr uint32_t tmem_o(int half) { return kBlockN * kHalves + kHeadDimV * half; }
  static_assert(kBlockN * kHalves + kHeadDimV * kHalves <= 512, "tensor memory has 512 columns");

  // ---- Products --------------------------------------------------------------------------------
  FA4_HD static constexpr uint32_t score_product() {
    return umma_instruction_descriptor({.operand = kConfig.dtype,
                                        .accumulator = DType::kFloat32,
                                        .m = kCtas * kHalfRows,
                                        .n = kBlockN,
                                        .a_major = Major::kK,
                                        .b_major = Major::kK});
  }
  FA4_HD static constexpr uint32_t output_product() {
    return umma_instruction_descriptor({.operand = kConfig.dtype,
                                        .accumulator = DType::kFloat32,
                                        .m = kCtas * kHalfRows,
                                        .n = kHeadDimV,
                                        .a_major = Major::kK,
                                        .b_major = Major::kMN});
  }

  // ---- Barriers --------------------------------------------------------------------------------
  // Threads arrive by one lane per warp, after the warp has met. stat_*: softmax warp and correction
  // warp of the same rows hand over on their own. Of a pair only the leader issues products: what
  // they wait for it holds, and both arrive there; what they complete is told in both CTAs.
  static constexpr Holder kOwn = Holder::kOwn;
  static constexpr Holder kLead = kPair ? Holder::kLeader : Holder::kOwn;
  static constexpr Holder kBoth = kPair ? Holder::kBoth : Holder::kOwn;
  static constexpr uint32_t kValueUsers = kPair ? kMma : kMma | kCorrection;
  // clang-format off
  static constexpr BarrierTable<kNumBars> kBarriers{{
      // name        stages       arrivals      signals      done              waits        holder
      {"tile_full",  kTileStages, 1,            kSchedule,   Done::kThreads,   kWorkers,    kOwn},
      {"tile_empty", kTileStages, kWorkerWarps, kWorkers,    Done::kThreads,   kSchedule,   kOwn},
      {"q_full",     kHalves,     1,            kLoad,       Done::kTmaBytes,  kMma,        kLead},
      {"q_empty",    kHalves,     1,            kMma,        Done::kMmaCommit, kLoad,       kBoth},
      {"k_full",     kKStages,    1,            kLoad,       Done::kTmaBytes,  kMma,        kLead},
      {"k_empty",    kKStages,    1,            kMma,        Done::kMmaCommit, kLoad,       kBoth},
      {"v_full",     kVStages,    1,            kLoad,       Done::kTmaBytes,  kValueUsers, kLead},
      {"v_empty",    kVStages,    1,            kMma,        Done::kMmaCommit, kLoad,       kBoth},
      {"v_landed",   kCtas - 1,   1,            kMma,        Done::kThreads,   kCorrection, kBoth},
      {"v_clean",    1,           4 * kCtas,    kCorrection, Done::kThreads,   kMma,        kLead},
      {"s_full",     kHalves,     1,            kMma,        Done::kMmaCommit, kSoftmax,    kBoth},
      {"p_early",    kHalves,     4 * kCtas,    kSoftmax,    Done::kThreads,   kMma,        kLead},
      {"p_late",     kHalves,     4 * kCtas,    kSoftmax,    Done::kThreads,   kMma,        kLead},
      {"stat_full",  4 * kHalves, 1,            kSoftmax,    Done::kThreads,   kCorrection, kOwn},
      {"stat_empty", 4 * kHalves, 1,            kCorrection, Done::kThreads,   kSoftmax,    kOwn},
      {"o_rescaled", kHalves,     4 * kCtas,    kCorrection, Done::kThreads,   kMma,        kLead},
      {"o_full",     kHalves,     1,            kMma,        Done::kMmaCommit, kCorrection, kBoth},
      {"o_empty",    kHalves,     4 * kCtas,    kCorrection, Done::kThreads,   kMma,        kLead},
      {"out_full",   kOutStages,  4,            kCorrection, Done::kThreads,   kStore,      kOwn},
      {"out_empty",  kOutStages,  1,            kStore,      Done::kThreads,   kCorrection, kOwn},
  }};
  // clang-format on
  // Waits we do without, and why that is safe:
  //   s, empty    the scores of step i + 1 of a half are issued behind the output of step i by the
  //               same thread, after p_early and p_late, so the softmax had read S(i) and stored
  //               all of P(i). That output still reads P(i) where S(i + 1) comes to lie: we rely on
  //               products taking effect in issue order, as FlashAttention-4 and CUTLASS do. The ISA
  //               grants it for reads of A before writes of D in its newest text, and for equal
  //               accumulators before that.
  //   o, rescale  the correction touches O of a half after stat_full of step i, which the softmax
  //               signals after s_full of step i. That commit covers everything issued before the
  //               scores of step i, the output of step i - 1 included.
  //   stat        a factor overwrites the message before without a wait for stat_empty: s_full of the
  //               step follows o_rescaled, or o_empty, of the step before, which the correction
  //               signals behind its reading. The result at a tile's end does wait.
  //   q           the scores of the tile's last step are committed to q_empty; products before them
  //               in issue order are covered.
  //   tile slots  every role leaves a slot when it is done with its tile, and holds one at a time.

  // ---- Shared memory --------------------------------------------------------------------- bytes
  static constexpr uint32_t kQBytes = 2 * kHalfRows * kHeadDim;  // of one half
  static constexpr uint32_t kKBytes = 2 * kKeyRows * kHeadDim;   // of one step
  static constexpr uint32_t kVBytes = 2 * kValueRows * kValueColumns;
  static constexpr uint32_t kOutBytes = kHalfRows * span_bytes(kSwizzle);
  // Of a step in this CTA: what products read, in each half queries, keys and values; and what is
  // copied from global memory.
  static constexpr uint32_t kOperandBytes = kHalves * (kQBytes + kKBytes + kValueParts * kVBytes);
  static constexpr uint32_t kCopyBytes = kKBytes + kValueParts * kVBytes;
  static constexpr uint32_t kQOffset = 0;
  static constexpr uint32_t kKOffset = kQOffset + kHalves * kQBytes;
  static constexpr uint32_t kVOffset = kKOffset + kKStages * kKBytes;
  static constexpr uint32_t kOutOffset = kVOffset + kVStages * kVBytes;
  static constexpr uint32_t kStatOffset = kOutOffset + kOutStages * kOutBytes;
  static constexpr uint32_t kStatBytes = kHalves * kHalfRows * 8;  // two floats per row
  static constexpr uint32_t kTileOffset = kStatOffset + kStatBytes;
  static constexpr uint32_t kBarOffset =
      kTileOffset + kTileStages * static_cast<uint32_t>(sizeof(QueryTile));
  static constexpr uint32_t kTmemOffset = kBarOffset + 8 * kBarriers.count();  // its address
  static constexpr uint32_t kSharedBytes = kTmemOffset + 16;
  static_assert(kSharedBytes <= 232448, "what one block of an SM100 may have");
};

}  // namespace fa4::sm100
