// SM100 forward, softmax role: scores of a half to weights, one row per thread.
#pragma once

#include <cstddef>
#include <limits>

#include "csrc/common/fwd_rows.cuh"
#include "csrc/sm100/fwd/block.cuh"
#include "csrc/sm100/scores.cuh"
#include "flash_attn4/core/softmax.h"
#include "flash_attn4/device/exp2.cuh"
#include "flash_attn4/device/ptx/compiler.cuh"
#include "flash_attn4/device/ptx/math.cuh"
#include "flash_attn4/device/ptx/shared.cuh"
#include "flash_attn4/device/ptx/tcgen05.cuh"

namespace fa4::sm100 {

constexpr int kFragment = 32;  // columns per load of scores, and per store of weights

/// Largest of a row, NaN where the row holds one: an emulated exponential would drop it. Four chains,
/// because each instruction waits for the one before it in its chain.
template <int kN>
FA4_D float row_max(const float (&s)[kN]) {
  static_assert(kN % 2 == 0 && kN > 12);
  float chain[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) chain[i] = ptx::max3_nan(s[3 * i], s[3 * i + 1], s[3 * i + 2]);
#pragma unroll
  for (int i = 12; i < kN; i += 2) {
    float& largest = chain[i / 2 % 4];
    largest = ptx::max3_nan(largest, s[i], s[i + 1]);
  }
  return ptx::max3_nan(ptx::max3_nan(chain[0], chain[1], chain[2]), chain[3], chain[3]);
}

/// Sum of a row, two columns at a time.
template <int kN>
FA4_D float row_sum(const float (&p)[kN]) {
  float2 chain[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) chain[i] = {p[2 * i], p[2 * i + 1]};
#pragma unroll
  for (int i = 8; i < kN; i += 2) {
    float2& sum = chain[i / 2 % 4];
    sum = __fadd2_rn(sum, float2{p[i], p[i + 1]});
  }
  const float2 sum = __fadd2_rn(__fadd2_rn(chain[0], chain[1]), __fadd2_rn(chain[2], chain[3]));
  return sum.x + sum.y;
}

/// Whether the exponentials of pair `pair` of fragment `fragment` are taken on the FMA units.
FA4_D constexpr bool emulates(Emulation emulation, int fragment, int pair) {
  constexpr int kPairs = kFragment / 2;
  return fragment >= emulation.first && fragment < 3 &&
         (pair + 1) * emulation.pairs / kPairs != pair * emulation.pairs / kPairs;
}

/// State of one softmax thread.
template <FwdConfig kConfig>
struct Softmax {
  using Plan = FwdPlan<kConfig>;
  static constexpr int kN = Plan::kBlockN;

  const Block<kConfig>& b;
  int half;
  int warp;  // of the half
  uint32_t tmem;
  uint32_t stat;  // address of this row's RowStat
  uint32_t s_parity = 0;
  uint32_t stat_parity = kWriter;
  float lead = kNoLead;  // the reference, negated; log2 units
  float sum = 0.0f;

  static constexpr float kNoLead = std::numeric_limits<float>::max();  // no key was visible yet

  FA4_D int row() const { return 32 * warp + lane_index(); }
  FA4_D int pair_of_warps() const { return 4 * half + warp; }

  FA4_D void load_scores(float (&s)[kN]) {
    b.template wait<kSFull>(half, s_parity);
    s_parity ^= 1;
    ptx::tcgen05_fence_after();
#pragma unroll
    for (int column = 0; column < kN; column += kFragment) {
      ptx::tcgen05_ld_x32(s + column, tmem_address(tmem, warp, Plan::tmem_s(half) + column));
    }
    ptx::tcgen05_wait_ld();
    ptx::hold(s);
  }

  FA4_D void change_scores(float (&s)[kN], const QueryTile& tile, int block) {
    if (b.args.softcap) cap_scores<kN>(s, b.args.score_scale);
    if (tile.blocks.needs_mask(block)) {
      const Place at = place(b.args, tile, half, row());
      mask_scores<kN>(s, tile.keys_of(at.query), block * kN);
    }
  }

  /// To the correction warp of the same rows. A factor needs no wait for the message before: see
  /// stat in the plan.
  FA4_D void send_factor(float factor) {
    ptx::store_shared(stat + offsetof(RowStat, factor_or_sum), factor);
    ptx::tcgen05_fence_before();  // what s_full said of O is passed on
    b.template release<kStatFull>(pair_of_warps());
    stat_parity ^= 1;
  }
  FA4_D void send_result() {
    b.template wait<kStatEmpty>(pair_of_warps(), stat_parity);
    ptx::store_shared(stat + offsetof(RowStat, factor_or_sum), sum);
    ptx::store_shared(stat + offsetof(RowStat, reference),
                      lead == kNoLead ? kMinusInfinity : -lead);
    b.template release<kStatFull>(pair_of_warps());
    stat_parity ^= 1;
  }

  /// s becomes the weights, in place, and the rounded ones go to tensor memory.
  FA4_D void weigh(float (&s)[kN]) {
    const float2 scale = {b.args.scale_log2, b.args.scale_log2};
#pragma unroll
    for (int fragment = 0; fragment < kN / kFragment; ++fragment) {
      // A branch that is never taken, because scale is positive: ptxas would else take exponentials
      // of the last fragment before it stores the first ones, and the product would wait for them.
      if (scale.x < -1.0f - fragment) continue;
      uint32_t p[kFragment / 2];
#pragma unroll
      for (int pair = 0; pair < kFragment / 2; ++pair) {
        float* x = s + fragment * kFragment + 2 * pair;
        float2 weight = __ffma2_rn(float2{x[0], x[1]}, scale, float2{lead, lead});
        if (emulates(kConfig.emulation, fragment, pair)) {
          weight = exp2_polynomial_pair<kConfig.emulation.degree>(weight);
        } else {
          weight = {ptx::ex2(weight.x), ptx::ex2(weight.y)};
        }
        p[pair] = ptx::cvt_pack<kConfig.dtype>(weight.x, weight.y);
        x[0] = weight.x;
        x[1] = weight.y;
      }
      const uint32_t column = Plan::tmem_p(half) + fragment * kFragment / 2;
      ptx::tcgen05_st_x16(tmem_address(tmem, warp, column), p);
      if (fragment + 1 == kConfig.early_fragments) signal_weights<kPEarly>();
    }
    if (kConfig.early_fragments < kN / kFragment) signal_weights<kPLate>();
  }
  template <Bar kBar>
  FA4_D void signal_weights() {
    ptx::tcgen05_wait_st();
    ptx::tcgen05_fence_before();
    b.template release<kBar>(half);
  }

  /// The step from reference to next_reference (core/softmax.h), negated: returns the factor for sum
  /// and O. Without a visible key so far the factor is 0 and weights of -inf are; a NaN stays NaN; of
  /// an infinite score, whose weight would be inf - inf, the lead becomes NaN as well.
  FA4_D float follow(float largest) {
    const float next = -b.args.scale_log2 * largest;
    const float fall = next - lead;
    if (fall >= -static_cast<float>(kConfig.slack_log2)) return 1.0f;
    lead = fmaf(next, 0.0f, next);
    return ptx::ex2(fall);
  }

  /// One block of keys. `opens`: the first of its tile. `changes`: its scores are changed before the
  /// softmax, by mask or softcap.
  FA4_D void step(const QueryTile& tile, int block, bool opens, bool changes) {
    float s[kN];
    load_scores(s);
    if (changes) change_scores(s, tile, block);
    const float factor = follow(row_max<kN>(s));
    if (!opens) send_factor(factor);  // the correction begins while the exponentials run
    weigh(s);
    sum = sum * factor + row_sum<kN>(s);
  }
};

/// A warpgroup for each half.
/// Waits: tile_full s_full stat_empty.  Signals: tile_empty p_early p_late stat_full.
template <FwdConfig kConfig>
FA4_D void role_softmax(const Block<kConfig>& b, int warp) {
  using Plan = FwdPlan<kConfig>;
  const int half = warp / 4, row = 32 * (warp % 4) + lane_index();
  uint32_t stat = b.address + b.stat_offset(half, row);
  ptx::keep_here(stat);  // not computed anew in every step
  Softmax<kConfig> softmax{b, half, warp % 4, b.tmem(), stat};
  Ring<Plan::kTileStages> ring(kReader);
  for (;; ring.advance()) {
    b.template wait<kTileFull>(ring.stage, ring.parity);
    const QueryTile& tile = b.tile(ring.stage);
    if (tile.valid == 0) return;
    // Blocks whose scores stay as they are, for one comparison that needs no memory.
    const int unchanged_first = tile.blocks.full_first;
    const uint32_t unchanged =
        b.args.softcap ? 0 : max_of(tile.blocks.full_last - unchanged_first, 0);
    const int first = tile.blocks.first;
    const int last = tile.blocks.last - 1;
    softmax.lead = softmax.kNoLead;
    softmax.sum = 0.0f;
#pragma unroll 1
    for (int block = last; block >= first; --block) {
      const bool changes = static_cast<uint32_t>(block - unchanged_first) >= unchanged;
      softmax.step(tile, block, block == last, changes);
    }
    softmax.send_result();
    b.template release<kTileEmpty>(ring.stage);
  }
}

}  // namespace fa4::sm100
