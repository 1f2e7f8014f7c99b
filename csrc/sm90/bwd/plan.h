// Plan of the SM90 backward kernel: who runs, what they own, how they hand over.
// Plain C++: kernel, launcher, CPU tests and emulator read this file.
#pragma once

#include <cstdint>

#include "flash_attn4/core/descriptors.h"
#include "flash_attn4/core/dq_layout.h"
#include "flash_attn4/core/key_tile.h"
#include "flash_attn4/core/plan.h"
#include "flash_attn4/core/types.h"

namespace fa4::sm90 {

/// What is compiled into a kernel. Everything else is a run-time value.
struct BwdConfig {
  DType dtype;   // of q, k, v, dout and the gradients
  int head_dim;  // of all of them; smaller ones are padded with zeros by the copy engine
  int block_m;   // queries per step
  int stages;    // of queries: q, lse2, dout and delta
};

/// The configuration per head dim: sweeps in docs/kernels/bwd_sm90.md.
FA4_HD constexpr BwdConfig bwd_config(DType dtype, int head_dim) {
  return head_dim == 64 ? BwdConfig{dtype, 64, 128, 2} : BwdConfig{dtype, 128, 64, 3};
}

// ---- Roles -------------------------------------------------------------------------------------
enum BwdRole : uint32_t { kBwdConsumer = 1, kBwdLoad = 2, kBwdOrder = 4 };

// ---- Barriers: one row is one ring of mbarriers ------------------------------------------------
enum BwdBar : int {
  kBwdKvFull,
  kBwdQueriesFull,
  kBwdQueriesEmpty,
  kBwdDqTurn,
  kBwdDqAdded,
  kBwdNumBars
};

// Hardware barriers by id; 0 is __syncthreads.
//     kBwdTurn + w    the turn of consumer w to issue its products; 256 threads
//     kBwdGroup + w   the threads of consumer w; 128 threads
//     kBwdBoth        both consumers; 256 threads
enum BwdNamedBarrier : int { kBwdTurn = 1, kBwdGroup = 3, kBwdBoth = 5 };

template <BwdConfig kConfig>
struct BwdPlan {
  // ---- Tile ---------------------------------------------------------------------------- elements
  static constexpr int kConsumers = 2;  // warpgroups of 64 keys each
  static constexpr int kBlockN = 64 * kConsumers;
  static constexpr int kBlockM = kConfig.block_m;
  static constexpr int kHeadDim = kConfig.head_dim;
  static constexpr int kStages = kConfig.stages;
  // Whether S of the next step is issued ahead of a step's other products, so that its exponentials
  // run under them. With 128 queries per step the registers do not suffice, and then the turn is
  // passed on before the products have been waited for.
  static constexpr bool kScoresFirst = kBlockM == 64;
  // dS is written, then in the products of one consumer and of the other; one more stage where a
  // consumer passes the turn before it has waited for them.
  static constexpr int kDsStages = kScoresFirst ? 3 : 4;

  FA4_HD static constexpr TileLayout key_layout() { return {kBlockN, Swizzle::k128B}; }
  FA4_HD static constexpr TileLayout query_layout() { return {kBlockM, Swizzle::k128B}; }
  /// Of dS, transposed: a row per key, a column per query.
  FA4_HD static constexpr TileLayout ds_layout() { return {kBlockN, Swizzle::k128B}; }

  // Each consumer computes half of dq, half of its rows or of its columns: a slice of the accumulator.
  using DqLayout = DqLayoutSm90;
  static constexpr bool kDqByRows = kBlockM == kConsumers * DqLayout::kSliceRows;
  static constexpr int kDqRows = kDqByRows ? kBlockM / kConsumers : kBlockM;
  static constexpr int kDqColumns = kDqByRows ? kHeadDim : kHeadDim / kConsumers;
  static_assert(kDqRows == DqLayout::kSliceRows && kDqColumns == DqLayout::kSliceColumns);

  // ---- Roles -----------------------------------------------------------------------------------
  static constexpr int kConsumerWarps = 4 * kConsumers;
  static constexpr int kOrderWarp = kConsumerWarps + 1;
  static constexpr int kThreads = 128 * (kConsumers + 1);
  static constexpr int kConsumerRegisters = 240;
  static constexpr int kProducerRegisters = 24;
  // clang-format off
  static constexpr RoleRow kRoles[] = {
      // name       first warp      warps           registers per thread
      {"consumer",  0,              kConsumerWarps, kConsumerRegisters},
      {"load",      kConsumerWarps, 1,              kProducerRegisters},
      {"order",     kOrderWarp,     kConsumers,     kProducerRegisters},
  };
  // clang-format on
  // One more warp idles: setmaxnreg acts on whole warpgroups
  static_assert(kConsumers * kConsumerRegisters + kProducerRegisters <= 168 * (kConsumers + 1),
                "setmaxnreg cannot hand out more than the launch got");
  // dk, dv, S and dP stay in registers while products are in flight, and P where S is issued first;
  // else it takes the place of S. With fewer registers beside them ptxas serialises the products
  // (C7512).
  static_assert(kHeadDim + kBlockM + (kScoresFirst ? kBlockM / 4 : 0) <=
                kConsumerRegisters - 28);  // 28: found with ptxas 12.8 to 13.0

  // ---- Barriers --------------------------------------------------------------------------------
  // One lane per consumer warp releases a buffer, after its own wait for the products that read it.
  // clang-format off
  static constexpr BarrierTable<kBwdNumBars> kBarriers{{
      // name           stages      arrivals        signals       done             waits
      {"kv_full",       1,          1,              kBwdLoad,     Done::kTmaBytes, kBwdConsumer},
      {"queries_full",  kStages,    1,              kBwdLoad,     Done::kTmaBytes, kBwdConsumer},
      {"queries_empty", kStages,    kConsumerWarps, kBwdConsumer, Done::kThreads,  kBwdLoad},
      // Deterministic mode alone; one of each consumer.
      {"dq_turn",       kConsumers, 1,              kBwdOrder,    Done::kThreads,  kBwdConsumer},
      {"dq_added",      kConsumers, 4,              kBwdConsumer, Done::kThreads,  kBwdOrder},
  }};
  // clang-format on
  // Waits we do without, and why that is safe:
  //   dS full     a consumer writes dS of step i before its turn of step i, and both consumers read
  //               it in their turns of step i + 1: every turn between comes after the other's.
  //   dS empty    dS of step i + 3 is written after the turn of step i + 2. In that of step i + 1
  //               both consumers waited for the products that read dS of step i, and then passed.
  //               Where they wait after passing, the other knows it a turn later: hence 4 stages.

  // ---- Shared memory --------------------------------------------------------------------- bytes
  static constexpr uint32_t kKeyBytes = 2 * kBlockN * kHeadDim;    // K or V
  static constexpr uint32_t kQueryBytes = 2 * kBlockM * kHeadDim;  // Q or dO of one step
  static constexpr uint32_t kDsBytes = 2 * kBlockN * kBlockM;
  static constexpr uint32_t kStatBytes = 4 * kBlockM;  // lse2 or delta of one step
  static constexpr uint32_t kStepBytes = 2 * (kQueryBytes + kStatBytes);
  static constexpr uint32_t kKOffset = 0;
  static constexpr uint32_t kVOffset = kKOffset + kKeyBytes;
  static constexpr uint32_t kQOffset = kVOffset + kKeyBytes;
  static constexpr uint32_t kDoutOffset = kQOffset + kStages * kQueryBytes;
  static constexpr uint32_t kDsOffset = kDoutOffset + kStages * kQueryBytes;
  static constexpr uint32_t kLseOffset = kDsOffset + kDsStages * kDsBytes;
  static constexpr uint32_t kDeltaOffset = kLseOffset + kStages * kStatBytes;
  static constexpr uint32_t kTileOffset = kDeltaOffset + kStages * kStatBytes;
  static constexpr uint32_t kBarOffset = kTileOffset + static_cast<uint32_t>(sizeof(KeyTile));
  static constexpr uint32_t kSharedBytes = kBarOffset + 8 * kBarriers.count();
  static_assert(kSharedBytes <= 232448, "what one block of an SM90 may have");
};

}  // namespace fa4::sm90
