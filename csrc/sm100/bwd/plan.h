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
  DType dtype;     // of q, k, v, dout and the gradients
  int head_dim;    // of q and k; smaller ones are padded with zeros by the copy engine
  int head_dim_v;  // of v and dout
  int ctas;        // that share a tile: 1, or 2, a pair
  int q_stages;    // two where what scores read, a step ahead, is what dk reads
  int dout_stages;
  int dq_columns;  // of dq that are added at once
  int reduce_registers;
  int compute_registers;
};

/// The configuration per head dim of q and k, and number of CTAs that share a tile. 192, whose
/// values have 128, is for pairs alone.
FA4_HD constexpr BwdConfig bwd_config(DType dtype, int head_dim, int ctas = 1) {
  if (head_dim == 64) return {dtype, 64, 64, 1, 2, 2, 64, 112, 160};
  if (head_dim == 96) return {dtype, 96, 96, 1, 2, 2, 96, 120, 160};
  if (head_dim == 192) return {dtype, 192, 128, 2, 1, 1, 48, 136, 152};
  if (ctas == 2) return {dtype, 128, 128, 2, 1, 1, 32, 104, 160};
  return {dtype, 128, 128, 1, 2, 1, 64, 152, 144};
}

// ---- Roles -------------------------------------------------------------------------------------
enum BwdRole : uint32_t {
  kBwdReduce = 1,
  kBwdCompute = 2,
  kBwdMma = 4,
  kBwdLoad = 8,
  kBwdRelay = 16,
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
  kBwdQtFull,
  kBwdQtEmpty,
  kBwdDouttFull,
  kBwdDouttEmpty,
  kBwdStatFull,
  kBwdLanded,
  kBwdClean,
  kBwdSFull,
  kBwdSRead,
  kBwdPFull,
  kBwdDpFull,
  kBwdDsFull,
  kBwdDsLanded,
  kBwdDsWhole,
  kBwdDqFull,
  kBwdDqEmpty,
  kBwdDqSent,
  kBwdDvFull,
  kBwdDkFull,
  kBwdDkvEmpty,
  kBwdNumBars
};

template <BwdConfig kConfig>
struct BwdPlan {
  // ---- Tile ---------------------------------------------------------------------------- elements
  // Scores are transposed: a row per key, which is a lane of tensor memory, a column per query.
  // Of a pair each CTA has keys of its own, and the queries are those of both. Of what products
  // read as B it has a half: of Q and dO half of the rows, for S and dP, and all rows of half of
  // the columns, "qt" and "doutt", for dK and dV; of all keys half of the columns, "kt", for dQ.
  static constexpr int kCtas = kConfig.ctas;
  static constexpr bool kPair = kCtas == 2;
  static constexpr int kBlockM = 128;  // queries per step
  static constexpr int kBlockN = 128;  // keys of a CTA
  static constexpr int kTileKeys = kCtas * kBlockN;
  static constexpr int kHeadDim = kConfig.head_dim;
  static constexpr int kHeadDimV = kConfig.head_dim_v;
  static constexpr int kOwnRows = kBlockM / kCtas;            // of Q and dO in this CTA
  static constexpr int kOwnColumns = kHeadDim / kCtas;        // of qt and kt; of dq in a thread
  static constexpr int kOwnValueColumns = kHeadDimV / kCtas;  // of doutt
  static constexpr int kGroups = 2;                           // warpgroups that compute
  static constexpr int kGroupQueries = kBlockM / kGroups;     // ... a part of the columns each
  // Where S and dP do not both fit tensor memory beside dV and dK, every product of a step waits
  // for what the one before has left, and no product of the next step begins before the last.
  static constexpr bool kSerial = kHeadDim + kHeadDimV + 2 * kBlockM > 512;
  static_assert(!kSerial || kPair, "dQ of a pair fits in, half of the columns wide");
  static constexpr bool kAhead = kPair && !kSerial;  // dP of the next step goes ahead of dQ
  // Rows of Q that lie next to each other in a CTA: see tmem_s.
  static constexpr int kQRows = kSerial ? kGroupQueries / 2 : kOwnRows;
  static constexpr int kQStages = kConfig.q_stages;
  static constexpr int kStatStages = kSerial ? 1 : 2;
  static constexpr int kDoutStages = kConfig.dout_stages;
  static constexpr int kDqColumns = kConfig.dq_columns;
  using DqLayout = DqLayoutSm100;

  // 96 columns are no whole spans of 128 bytes, and a product wants whole ones: of rows, and of what
  // a pair has of the columns of qt and kt.
  static constexpr Swizzle kSwizzle = kHeadDim % 64 == 0 ? Swizzle::k128B : Swizzle::k64B;
  static constexpr Swizzle kAcrossSwizzle = kOwnColumns % 64 == 0 ? Swizzle::k128B : Swizzle::k64B;
  static constexpr int kSpanColumns = static_cast<int>(span_bytes(kSwizzle)) / 2;
  static_assert(kOwnValueColumns % kSpanColumns == 0);
  FA4_HD static constexpr TileLayout key_layout() { return {kBlockN, kSwizzle}; }     // K, V
  FA4_HD static constexpr TileLayout query_layout() { return {kOwnRows, kSwizzle}; }  // Q, dO
  FA4_HD static constexpr TileLayout qt_layout() { return {kBlockM, kAcrossSwizzle}; }
  FA4_HD static constexpr TileLayout doutt_layout() { return {kBlockM, kSwizzle}; }
  FA4_HD static constexpr TileLayout kt_layout() { return {kTileKeys, kAcrossSwizzle}; }
  /// Query of a step with which part `part` of a CTA's Q begins, kQRows of them.
  FA4_HD static constexpr int q_part(int rank, int part) {
    return rank * kQRows + part * kGroupQueries;
  }
  /// Of dS: a row per key, a column per query. A span holds the queries of one warpgroup. Of a pair
  /// the keys are those of both CTAs, and the queries are a CTA's half.
  FA4_HD static constexpr TileLayout ds_layout() { return {kTileKeys, Swizzle::k128B}; }
  /// Of dS on its way to the other CTA.
  FA4_HD static constexpr TileLayout sent_layout() { return {kBlockN, Swizzle::k128B}; }
  static_assert(kGroupQueries == 64);
  static_assert(!kPair || kOwnRows == kGroupQueries,
                "a warpgroup keeps its dS, the other sends it");

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
      {"relay",   14,         kCtas - 1, kOtherRegisters},
  };
  // clang-format on
  // The warps that are left idle: tensor memory is reached by whole warpgroups.
  static constexpr int kThreads = 512;
  static constexpr int kReduceWarps = 4;
  static constexpr int kFirstComputeWarp = 4;
  static constexpr int kComputeWarps = 8;
  static constexpr int kMmaWarp = 12;
  static constexpr int kLoadWarp = 13;
  static constexpr int kRelayWarp = 14;
  static constexpr int kTurns = kCtas * kReduceWarps;  // per block of queries
  static_assert(kOtherRegisters % 8 == 0 && kOtherRegisters >= 24);

  // ---- Tensor memory ---------------------------------------------- 128 lanes of 32-bit columns
  //                  hd64        hd96        hd128     pair, hd128   pair, hd192/128
  //     dP, f32      0 ..127     0 ..127     0 ..127     0 ..127       384 ..511
  //     dQ, f32    128 ..191    96 ..191     0 ..127   288 ..351       416 ..511
  //     dV, f32    192 ..255   192 ..287   128 ..255   128 ..255         0 ..127
  //     S, f32     256 ..383   288 ..415   256 ..383   256 ..383       320 ..447
  //     dK, f32    384 ..447   416 ..511   384 ..511   384 ..511       128 ..319
  // P lies over S and dS over dP, two per column: those of a warpgroup over the lower half of the
  // columns that it reads itself, so no warp waits for another one before it stores. Of a pair P of
  // the second warpgroup lies over the upper half, and dQ between the two: half of the queries, the
  // lower half of their columns in lanes 0-63, the upper one in lanes 64-127.
  // Serial: dP lies over the upper half of S, P has the lower one. So that each warpgroup has
  // columns of its own in both halves, S has the queries 0-31, 64-95, 32-63, 96-127 in this order:
  // that of the rows of Q, the first 64 of which are the leader's.
  FA4_HD static constexpr uint32_t tmem_dp() { return kSerial ? tmem_s() + kBlockM / 2 : 0; }
  FA4_HD static constexpr uint32_t tmem_dq() {
    if (kSerial) return 512 - kOwnColumns;
    if (kPair) return tmem_s() + kGroupQueries / 2;
    return kHeadDim == 64 ? kBlockM : kHeadDim == 96 ? kBlockM - 32 : 0;
  }
  FA4_HD static constexpr uint32_t tmem_dv() {
    if (kSerial) return 0;
    return kPair ? kBlockM : max_of<uint32_t>(kBlockM, tmem_dq() + kHeadDim);
  }
  FA4_HD static constexpr uint32_t tmem_s() {
    return tmem_dv() + kHeadDimV + (kSerial ? kHeadDim : 0);
  }
  FA4_HD static constexpr uint32_t tmem_dk() {
    return kSerial ? tmem_dv() + kHeadDimV : tmem_s() + kBlockM;
  }
  /// S of 32 queries of a warpgroup, from its query `query` on: 0 or 32.
  FA4_HD static constexpr uint32_t tmem_s(int group, int query) {
    return tmem_s() + (kSerial ? 2 * query + kQRows * group : query + kGroupQueries * group);
  }
  /// ... dP of its queries; dS, the operand, over it.
  FA4_HD static constexpr uint32_t tmem_dp(int group) { return tmem_dp() + kGroupQueries * group; }
  FA4_HD static constexpr uint32_t tmem_ds(int group) { return tmem_dp(group); }
  /// ... P, the operand.
  FA4_HD static constexpr uint32_t tmem_p(int group) {
    return tmem_s(group, 0) + (kAhead ? kGroupQueries / 2 * group : 0);
  }
  static_assert(!kAhead || tmem_dq() + kOwnColumns <= tmem_p(1), "dQ lies between the parts of P");
  static_assert(!kSerial || (tmem_p(1) + kGroupQueries / 2 == tmem_dp() && tmem_dq() >= tmem_dp()),
                "dP and dQ leave P alone");
  static_assert(tmem_dk() + kHeadDim <= 512 && tmem_dp() + kBlockM <= 512,
                "tensor memory has 512 columns");
  // Where dQ leaves dS alone it is computed ahead of dK, and read while dK is computed.
  static constexpr bool kDqFirst = !kPair && tmem_dq() >= tmem_ds(kGroups - 1) + kGroupQueries / 2;
  // Where it leaves dP alone, dP need not wait until it has been read.
  static constexpr bool kDqApart = tmem_dq() >= tmem_dp() + kBlockM;

  // ---- Products --------------------------------------------------------------------------------
  FA4_HD static constexpr uint32_t product(int m, int n, Major a_major, Major b_major) {
    return umma_instruction_descriptor({.operand = kConfig.dtype,
                                        .accumulator = DType::kFloat32,
                                        .m = static_cast<uint32_t>(m),
                                        .n = static_cast<uint32_t>(n),
                                        .a_major = a_major,
                                        .b_major = b_major});
  }
  /// S = K Q^T and dP = V dO^T.
  FA4_HD static constexpr uint32_t score_product() {
    return product(kTileKeys, kBlockM, Major::kK, Major::kK);
  }
  /// dV += P dO.
  FA4_HD static constexpr uint32_t value_product() {
    return product(kTileKeys, kHeadDimV, Major::kK, Major::kMN);
  }
  /// dK += dS Q.
  FA4_HD static constexpr uint32_t key_product() {
    return product(kTileKeys, kHeadDim, Major::kK, Major::kMN);
  }
  /// dQ = dS^T K.
  FA4_HD static constexpr uint32_t query_product() {
    return product(kBlockM, kHeadDim, Major::kMN, Major::kMN);
  }

  // ---- Barriers --------------------------------------------------------------------------------
  // Threads arrive by one lane per warp, after the warp has met. lse2 and delta come with q, of a
  // pair on their own; keys with the first q, values with the first dout, kt with the first qt.
  // *_clean is for what came with *_full. Of a pair only the leader issues products: what they wait
  // for it holds, and both arrive there; what they complete is told in both CTAs. Neither compute
  // sees there when something has landed that has to be cleaned, so mma tells: landed, and clean.
  // Serial: qt lies over q, what is sent of dS over dout, dq on its way over doutt (below).
  static constexpr Holder kOwn = Holder::kOwn;
  static constexpr Holder kPeer = kPair ? Holder::kPeer : Holder::kOwn;
  static constexpr Holder kLeader = kPair ? Holder::kLeader : Holder::kOwn;
  static constexpr Holder kBoth = kPair ? Holder::kBoth : Holder::kOwn;
  static constexpr int kOfPair = kCtas - 1;          // one stage of what only a pair has
  static constexpr int kOfOne = 2 - kCtas;           // ... of what it has not
  static constexpr int kOfSerial = kSerial ? 1 : 0;  // ... of what serial steps have
  static constexpr int kOfAhead = kAhead ? 1 : 0;    // ... of what other pairs have
  static constexpr int kComputers = kCtas * kComputeWarps;
  static constexpr int kStats = kPair ? kStatStages : 0;
  static constexpr uint32_t kReaders = kPair ? uint32_t{kBwdMma} : uint32_t{kBwdReaders};
  static constexpr uint32_t kDqReaders = kBwdReduce | (kAhead ? kBwdCompute : 0u);
  // clang-format off
  static constexpr BarrierTable<kBwdNumBars> kBarriers{{
      // name         stages       arrivals    signals      done              waits        holder
      {"q_full",      kQStages,    1,          kBwdLoad,    Done::kTmaBytes,  kReaders,    kLeader},
      {"q_empty",     kQStages,    1,          kBwdMma,     Done::kMmaCommit, kBwdLoad,    kBoth},
      {"q_clean",     kOfOne,      kComputers, kBwdCompute, Done::kThreads,   kBwdMma,     kOwn},
      {"dout_full",   kDoutStages, 1,          kBwdLoad,    Done::kTmaBytes,  kReaders,    kLeader},
      {"dout_empty",  kDoutStages, 1,          kBwdMma,     Done::kMmaCommit, kBwdLoad,    kBoth},
      {"dout_clean",  kOfOne,      kComputers, kBwdCompute, Done::kThreads,   kBwdMma,     kOwn},
      {"qt_full",     kOfPair,     1,          kBwdLoad,    Done::kTmaBytes,  kBwdMma,     kLeader},
      {"qt_empty",    kOfPair,     1,          kBwdMma,     Done::kMmaCommit, kBwdLoad,    kBoth},
      {"doutt_full",  kOfPair,     1,          kBwdLoad,    Done::kTmaBytes,  kBwdMma,     kLeader},
      {"doutt_empty", kOfAhead,    1,          kBwdMma,     Done::kMmaCommit, kBwdLoad,    kBoth},
      {"stat_full",   kStats,      1,          kBwdLoad,    Done::kTmaBytes,  kBwdCompute, kOwn},
      {"landed",      kOfPair,     1,          kBwdMma,     Done::kThreads,   kBwdCompute, kBoth},
      {"clean",       kOfPair,     kComputers, kBwdCompute, Done::kThreads,   kBwdMma,     kLeader},
      {"s_full",      1,           1,          kBwdMma,     Done::kMmaCommit, kBwdCompute, kBoth},
      {"s_read",      kOfPair,     kComputers, kBwdCompute, Done::kThreads,   kBwdMma,     kLeader},
      {"p_full",      1,           kComputers, kBwdCompute, Done::kThreads,   kBwdMma,     kLeader},
      {"dp_full",     1,           1,          kBwdMma,     Done::kMmaCommit, kBwdCompute, kBoth},
      {"ds_full",     1,           kComputers, kBwdCompute, Done::kThreads,   kBwdMma,     kLeader},
      {"ds_landed",   kOfPair,     4,          kBwdCompute, Done::kTmaBytes,  kBwdRelay,   kPeer},
      {"ds_whole",    kOfPair,     kCtas,      kBwdRelay,   Done::kThreads,   kBwdMma,     kLeader},
      {"dq_full",     1,           1,          kBwdMma,     Done::kMmaCommit, kDqReaders,  kBoth},
      {"dq_empty",    1,           kTurns,     kBwdReduce,  Done::kThreads,   kBwdMma,     kLeader},
      {"dq_sent",     kOfSerial,   4,          kBwdReduce,  Done::kThreads,   kBwdLoad,    kOwn},
      {"dv_full",     1,           1,          kBwdMma,     Done::kMmaCommit, kBwdCompute, kBoth},
      {"dk_full",     1,           1,          kBwdMma,     Done::kMmaCommit, kBwdCompute, kBoth},
      {"dkv_empty",   kOfOne,      kComputers, kBwdCompute, Done::kThreads,   kBwdMma,     kOwn},
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
  // Of a pair whose dQ(i) is issued behind dP(i + 1):
  //   ds in shared   waited for: dq_full of step i, before dS(i + 1) is stored. dS of both CTAs was
  //   memory, sent   whole by then, so copies had read what they sent, and is multiplied.
  //   lse2, delta    both stages: those of step i + 2 are loaded behind qt_empty of step i.
  //   s, empty       waited for: dQ(i) lies over S(i + 1), after its s_read; S(i + 2) comes after
  //                  dq_empty of step i.
  // Of serial steps, S(i) dP(i) dV(i) dK(i) dQ(i), all of them issued by one thread:
  //   p, dp, ds      S(i + 1) waits for dq_empty of step i, behind a commit of all its products, dP(i)
  //   empty          for s_read. dQ(i) comes to lie over dS(i), which dK(i) before it reads: again in
  //                  issue order. dP(i) was read before ds_full.
  //   ds in shared   dQ(i - 1) was issued before dP(i): dp_full of step i covers it in both CTAs,
  //   memory, empty  and with it ds_whole of step i - 1, so copies had read what they sent.
  //   q over qt      q_empty of step i is waited for before qt of step i is loaded, qt_empty before q
  //                  of step i + 1. Both are commits that reach both CTAs.
  //   sent over      dP(i), which reads dout, is complete in both CTAs at dp_full, which every
  //   dout           computing thread waits for before it stores dS(i). dout_empty is a commit behind
  //                  dQ(i), which came after ds_whole: what was sent had been read by then.
  //   dq over doutt  dV(i) was issued before dQ(i): dq_full covers it. doutt of step i + 1 is loaded
  //                  after dq_sent, that is, after the copy engine has read all that was staged.
  //   lse2, delta    one stage: those of step i + 1 are loaded behind qt_empty of step i.

  // ---- Shared memory --------------------------------------------------------------------- bytes
  static constexpr uint32_t kKeyBytes = 2 * kBlockN * kHeadDim;     // K
  static constexpr uint32_t kValueBytes = 2 * kBlockN * kHeadDimV;  // V
  static constexpr uint32_t kQueryBytes = 2 * kOwnRows * kHeadDim;  // Q of one step
  static constexpr uint32_t kDoutBytes = 2 * kOwnRows * kHeadDimV;  // dO
  static constexpr uint32_t kQtBytes = kPair ? 2 * kBlockM * kOwnColumns : 0;
  static constexpr uint32_t kDouttBytes = kPair ? 2 * kBlockM * kOwnValueColumns : 0;
  static constexpr uint32_t kKtBytes = kPair ? 2 * kTileKeys * kOwnColumns : 0;
  static constexpr uint32_t kDsBytes = 2 * kBlockN * kBlockM;
  static constexpr uint32_t kSentBytes = kPair ? 2 * kBlockN * kOwnRows : 0;
  static constexpr uint32_t kSentWarpBytes = kSentBytes / 4;
  static constexpr uint32_t kDqBytes = 4 * DqLayout::kSliceRows * kDqColumns;  // staged by a warp
  static constexpr uint32_t kStagedBytes = kReduceWarps * kDqBytes;
  static constexpr uint32_t kStatBytes = 4 * kBlockM;  // lse2 or delta of one step
  static constexpr uint32_t kKOffset = 0;
  static constexpr uint32_t kVOffset = kKOffset + kKeyBytes;
  static constexpr uint32_t kQOffset = kVOffset + kValueBytes;
  static constexpr uint32_t kDoutOffset = kQOffset + kQStages * kQueryBytes;
  static constexpr uint32_t kDoutEnd = kDoutOffset + kDoutStages * kDoutBytes;
  // Serial: a step reads Q, then qt; dO, then dS is sent; doutt, then dq is staged.
  static constexpr uint32_t kQtOffset = kSerial ? kQOffset : kDoutEnd;
  static constexpr uint32_t kDouttOffset = kSerial ? kDoutEnd : kQtOffset + kQtBytes;
  static constexpr uint32_t kKtOffset =
      kDouttOffset + (kSerial ? max_of(kDouttBytes, kStagedBytes) : kDouttBytes);
  static constexpr uint32_t kDsOffset = kKtOffset + kKtBytes;
  static constexpr uint32_t kDsEnd = kDsOffset + kDsBytes;
  static constexpr uint32_t kSentOffset = kSerial ? kDoutOffset : kDsEnd;
  static constexpr uint32_t kDqOffset = kSerial ? kDouttOffset : kSentOffset + kSentBytes;
  static constexpr uint32_t kLseOffset = kSerial ? kDsEnd : kDqOffset + kStagedBytes;
  static_assert(!kSerial || (kQtBytes <= kQueryBytes && kSentBytes <= kDoutBytes));
  static constexpr uint32_t kDeltaOffset = kLseOffset + kStatStages * kStatBytes;
  static constexpr uint32_t kTileOffset = kDeltaOffset + kStatStages * kStatBytes;
  static constexpr uint32_t kBarOffset = kTileOffset + static_cast<uint32_t>(sizeof(KeyTile));
  static constexpr uint32_t kTmemOffset = kBarOffset + 8 * kBarriers.count();  // its address
  static constexpr uint32_t kSharedBytes = kTmemOffset + 16;
  // dv and dk on their way, over what no product reads any more.
  static constexpr uint32_t kDvStagedOffset = kPair ? kVOffset : kDoutOffset;
  static constexpr uint32_t kDkStagedOffset = kPair ? kKOffset : kQOffset;
  static_assert(kSharedBytes <= 232448, "what one block of an SM100 may have");

  // ---- Traffic of a step in one CTA ---------------------------------------------------- bytes
  // What products read of shared memory: S K and Q, dP V and dO, dV and dK what they read across its
  // rows, dQ dS and keys. What is copied to it from global memory, and from the other CTA; what
  // threads store to it.
  static constexpr uint32_t kAcrossBytes =
      kPair ? kQtBytes + kDouttBytes : kQueryBytes + kDoutBytes;  // Q for dK, dO for dV
  static constexpr uint32_t kOperandBytes = kKeyBytes + kQueryBytes + kValueBytes + kDoutBytes +
                                            kAcrossBytes + kDsBytes +
                                            (kPair ? kKtBytes : kKeyBytes);
  static constexpr uint32_t kCopyBytes =
      kQueryBytes + kDoutBytes + kQtBytes + kDouttBytes + 2 * kStatBytes;
  static constexpr uint32_t kStoreBytes = kDsBytes + 4 * kBlockM * kOwnColumns;
  // What is added to dq in global memory.
  static constexpr uint32_t kReduceBytes = 4 * kBlockM * kOwnColumns;
};

}  // namespace fa4::sm100
