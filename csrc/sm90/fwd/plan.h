// Plan of the SM90 forward kernel: who runs, what they own, how they hand over.
// Plain C++: kernel, launcher, CPU tests and emulator read this file.
#pragma once

#include <cstdint>

#include "flash_attn4/core/descriptors.h"
#include "flash_attn4/core/plan.h"
#include "flash_attn4/core/query_tile.h"
#include "flash_attn4/core/types.h"

namespace fa4::sm90 {

/// What is compiled into a kernel. Everything else is a run-time value.
struct FwdConfig {
  DType dtype;    // of q, k, v and out
  int head_dim;   // of q, k, v; smaller ones are padded with zeros by the copy engine
  int consumers;  // warpgroups of 64 query rows each
  int block_n;    // keys per step
  int kv_stages;  // of K, and of V
  // Sets of rounded weights: with two, weights are written while the product with the set before
  // reads it; with one they wait for that product, and more keys per step fit the registers.
  int weight_sets;
};

/// The configuration per head dim: sweeps in docs/kernels/fwd_sm90.md.
FA4_HD constexpr FwdConfig fwd_config(DType dtype, int head_dim) {
  return head_dim == 64 ? FwdConfig{dtype, 64, 3, 128, 2, 1} : FwdConfig{dtype, 128, 2, 128, 2, 2};
}

// ---- Roles -------------------------------------------------------------------------------------
enum Role : uint32_t { kConsumer = 1, kLoad = 2, kSchedule = 4, kWorkers = kConsumer | kLoad };

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
  kNumBars
};

// Hardware barriers by id; 0 is __syncthreads.
//     kOrder + w     the turn of consumer w to issue its products; 256 threads
//     kStage + w     the threads of consumer w around its output staging; 128 threads
//     kTail          all consumers: the rows behind the last key are cleared
enum NamedBarrier : int { kOrder = 1, kStage = 4, kTail = 7 };

template <FwdConfig kConfig>
struct FwdPlan {
  // ---- Tile ---------------------------------------------------------------------------- elements
  static constexpr int kBlockM = 64 * kConfig.consumers;  // query rows
  static constexpr int kBlockN = kConfig.block_n;
  static constexpr int kHeadDim = kConfig.head_dim;
  static constexpr int kChunks = kHeadDim / 64;  // of 64 columns: 128 bytes, one swizzle span
  static constexpr int kQStages = 2;  // the next tile's queries land while this tile is computed
  static constexpr int kKvStages = kConfig.kv_stages;
  static constexpr int kTileStages = 5;  // sent, output, scores, look-up, and one ahead

  FA4_HD static constexpr TileLayout q_layout() { return {kBlockM, Swizzle::k128B}; }
  FA4_HD static constexpr TileLayout kv_layout() { return {kBlockN, Swizzle::k128B}; }
  /// Of one consumer's output.
  FA4_HD static constexpr TileLayout out_layout() { return {64, Swizzle::k128B}; }

  static_assert(kConfig.consumers == 2 || kConfig.consumers == 3, "turns; ids of NamedBarrier");

  // ---- Roles -----------------------------------------------------------------------------------
  static constexpr int kConsumerWarps = 4 * kConfig.consumers;
  static constexpr int kThreads = 128 * (kConfig.consumers + 1);
  static constexpr int kConsumerRegisters = kConfig.consumers == 3 ? 160 : 232;
  static constexpr int kProducerRegisters = kConfig.consumers == 3 ? 32 : 40;
  // clang-format off
  static constexpr RoleRow kRoles[] = {
      // name        first warp          warps           registers per thread
      {"consumer",   0,                  kConsumerWarps, kConsumerRegisters},
      {"load",       kConsumerWarps,     1,              kProducerRegisters},
      {"schedule",   kConsumerWarps + 1, 1,              kProducerRegisters},
  };
  // clang-format on
  // Two more warps idle: setmaxnreg acts on whole warpgroups
  static_assert(kConfig.consumers * kConsumerRegisters + kProducerRegisters <=
                    (65536 / kThreads / 8 * 8) * (kConfig.consumers + 1),
                "setmaxnreg cannot hand out more than the launch got");
  // Scores, weights and output stay in registers while products are in flight; with fewer registers
  // beside them ptxas serialises the products (C7512).
  static_assert(kBlockN / 2 + kConfig.weight_sets * (kBlockN / 4) + kHeadDim / 2 <=
                kConsumerRegisters - 28);  // 28: found with ptxas 12.8 to 13.0

  // ---- Barriers --------------------------------------------------------------------------------
  // One lane per consumer warp releases a buffer, after its own wait for the products that read it.
  // clang-format off
  static constexpr BarrierTable<kNumBars> kBarriers{{
      // name         stages       arrivals            signals    done              waits
      {"tile_full",   kTileStages, 1,                  kSchedule, Done::kThreads,  kWorkers},
      {"tile_empty",  kTileStages, kConsumerWarps + 1, kWorkers,  Done::kThreads,  kSchedule},
      {"q_full",      kQStages,    1,                  kLoad,     Done::kTmaBytes,  kConsumer},
      {"q_empty",     kQStages,    kConsumerWarps,     kConsumer, Done::kThreads,   kLoad},
      {"k_full",      kKvStages,   1,                  kLoad,     Done::kTmaBytes,  kConsumer},
      {"k_empty",     kKvStages,   kConsumerWarps,     kConsumer, Done::kThreads,   kLoad},
      {"v_full",      kKvStages,   1,                  kLoad,     Done::kTmaBytes,  kConsumer},
      {"v_empty",     kKvStages,   kConsumerWarps,     kConsumer, Done::kThreads,   kLoad},
  }};
  // clang-format on
  // Waits we do without, and why that is safe:
  //   scores and weights   the threads that read them issue the product that overwrites them, after
  //                        the wait for the product that read them
  //   staged output        the threads of a consumer that stage the next tile have passed kStage,
  //                        to which the thread that copies came after its copies had read
  //   tile slots           a consumer looks at the slots of at most four tiles, and releases the
  //                        oldest before it waits for a fifth

  // ---- Shared memory --------------------------------------------------------------------- bytes
  static constexpr uint32_t kQBytes = 2 * kBlockM * kHeadDim;
  static constexpr uint32_t kKvBytes = 2 * kBlockN * kHeadDim;  // K or V of one step
  static constexpr uint32_t kOutBytes = 2 * 64 * kHeadDim;      // of one consumer
  static constexpr uint32_t kQOffset = 0;
  static constexpr uint32_t kKOffset = kQOffset + kQStages * kQBytes;
  static constexpr uint32_t kVOffset = kKOffset + kKvStages * kKvBytes;
  static constexpr uint32_t kOutOffset = kVOffset + kKvStages * kKvBytes;
  static constexpr uint32_t kTileOffset = kOutOffset + kConfig.consumers * kOutBytes;
  static constexpr uint32_t kBarOffset =
      kTileOffset + kTileStages * static_cast<uint32_t>(sizeof(QueryTile));
  static constexpr uint32_t kSharedBytes = kBarOffset + 8 * kBarriers.count();
  static_assert(kSharedBytes <= 232448, "what one block of an SM90 may have");
};

}  // namespace fa4::sm90
