// SM100 forward, softmax role: scores of a half to weights, one row per thread.
#pragma once

#include "csrc/common/fwd_rows.cuh"
#include "csrc/common/fwd_scores.cuh"
#include "csrc/sm100/fwd/block.cuh"
#include "flash_attn4/core/mask.h"
#include "flash_attn4/core/softmax.h"
#include "flash_attn4/device/exp2.cuh"
#include "flash_attn4/device/ptx/compiler.cuh"
#include "flash_attn4/device/ptx/math.cuh"
#include "flash_attn4/device/ptx/tcgen05.cuh"

namespace fa4::sm100 {

constexpr int kFragment = 32;  // columns per load of scores, and per store of weights

/// Address of columns from `column` on in the lanes of this warp.
FA4_D uint32_t tmem_address(uint32_t base, int warp, uint32_t column) {
  return base + (static_cast<uint32_t>(warp % 4) << 21) + column;
}

/// Largest of a row. Four chains: one alone would be as long as the exponentials.
template <int kN>
FA4_D float row_max(const float (&s)[kN]) {
  static_assert(kN % 8 == 0);
  float chain[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) chain[i] = fmaxf(s[2 * i], s[2 * i + 1]);
#pragma unroll
  for (int i = 8; i < kN; i += 2) {
    float& largest = chain[i / 2 % 4];
    largest = ptx::max3(largest, s[i], s[i + 1]);
  }
  return ptx::max3(fmaxf(chain[0], chain[1]), chain[2], chain[3]);
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

/// Scores of keys that the row does not see become -inf. `keys` are key indices of the sequence, the
/// block starts at key `first_key`.
template <int kN>
FA4_D void mask_scores(float (&s)[kN], const Interval& keys, int first_key) {
  const int first = keys.first - first_key;
  const int last = keys.last - first_key;
#pragma unroll
  for (int word = 0; word < kN; word += 32) {
    const uint32_t visible = low_bits(last - word) & ~low_bits(first - word);
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      float& score = s[word + i];
      score = (visible & 1u << i) != 0 ? score : kMinusInfinity;
    }
  }
}

/// Scores become tanh(score * scale).
template <int kN>
FA4_D void cap_scores(float (&s)[kN], float scale) {
  // A branch around each group, always taken because scale is positive: ptxas would else begin all
  // scores at once and spill.
  constexpr int kGroup = 8;
#pragma unroll
  for (int group = 0; group < kN; group += kGroup) {
    if (scale < -1.0f - group) continue;
#pragma unroll
    for (int i = group; i < group + kGroup; ++i) s[i] = tanh_accurate(s[i] * scale);
  }
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
  uint32_t s_parity = 0;
  uint32_t stat_parity = kWriter;
  float reference = kMinusInfinity;  // log2 units
  float sum = 0.0f;

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

  /// To the correction warp of the same rows.
  FA4_D void send(float factor_or_sum, float with_reference) {
    b.template wait<kStatEmpty>(pair_of_warps(), stat_parity);
    stat_parity ^= 1;
    b.stat(half, row()) = {factor_or_sum, with_reference};
    b.template release<kStatFull>(pair_of_warps());
  }

  /// s becomes the weights, in place, and the rounded ones go to tensor memory.
  FA4_D void weigh(float (&s)[kN]) {
    const float2 scale = {b.args.scale_log2, b.args.scale_log2};
    const float minus = -usable_reference(reference);
#pragma unroll
    for (int fragment = 0; fragment < kN / kFragment; ++fragment) {
      uint32_t p[kFragment / 2];
#pragma unroll
      for (int pair = 0; pair < kFragment / 2; ++pair) {
        float* x = s + fragment * kFragment + 2 * pair;
        float2 weight = __ffma2_rn(float2{x[0], x[1]}, scale, float2{minus, minus});
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

  /// One block of keys. `opens`: the first of its tile.
  FA4_D void step(const QueryTile& tile, int block, bool opens) {
    float s[kN];
    load_scores(s);
    if (b.args.softcap || tile.blocks.needs_mask(block)) change_scores(s, tile, block);
    const float before = reference;
    reference = next_reference(before, row_max<kN>(s) * b.args.scale_log2, kConfig.slack_log2);
    // Both may be -inf: their difference would be NaN.
    const float factor = reference == before ? 1.0f : ptx::ex2(before - reference);
    if (!opens) send(factor, 0.0f);  // the correction begins while the exponentials run
    weigh(s);
    sum = sum * factor + row_sum<kN>(s);
  }
};

/// A warpgroup for each half.
/// Waits: tile_full s_full stat_empty.  Signals: tile_empty p_early p_late stat_full.
template <FwdConfig kConfig>
FA4_D void role_softmax(const Block<kConfig>& b, int warp) {
  using Plan = FwdPlan<kConfig>;
  Softmax<kConfig> softmax{b, warp / 4, warp % 4, b.tmem()};
  Ring<Plan::kTileStages> ring(kReader);
  for (;; ring.advance()) {
    b.template wait<kTileFull>(ring.stage, ring.parity);
    const QueryTile& tile = b.tile(ring.stage);
    if (tile.valid == 0) return;
    const int first = tile.blocks.first;
    const int last = tile.blocks.last - 1;
    softmax.reference = kMinusInfinity;
    softmax.sum = 0.0f;
#pragma unroll 1
    for (int block = last; block >= first; --block) softmax.step(tile, block, block == last);
    softmax.send(softmax.sum, softmax.reference);
    b.template release<kTileEmpty>(ring.stage);
  }
}

}  // namespace fa4::sm100
