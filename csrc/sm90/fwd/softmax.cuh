// SM90 forward: softmax on accumulator fragments.
//
// A thread holds two rows of its warpgroup's scores, `row` and `row + 8`; a row lies in the four
// lanes of a quad. Register i belongs to row i / 2 % 2; its column is column(i / 4 * 2 + i % 2) in
// the order of elements of a row: e = 0, 1, 2, ... -> columns 2 q, 2 q + 1, 8 + 2 q, ... for lane q
// of the quad.
#pragma once

#include "flash_attn4/core/mask.h"
#include "flash_attn4/core/softmax.h"
#include "flash_attn4/device/device.cuh"
#include "flash_attn4/device/ptx/compiler.cuh"
#include "flash_attn4/device/ptx/math.cuh"

namespace fa4::sm90 {

constexpr int kRows = 2;  // of a thread

/// Row of the tile that holds row `row` of a thread; warp is that in the consumer.
FA4_D int fragment_row(int consumer, int warp, int lane, int row) {
  return 64 * consumer + 16 * warp + lane / 4 + 8 * row;
}

/// Register of element e of row `row`.
FA4_D constexpr int fragment_index(int row, int e) {
  return 4 * (e / 2) + 2 * row + e % 2;
}

/// Running state of a thread's rows; see core/softmax.h.
struct RowState {
  float reference[kRows] = {kMinusInfinity, kMinusInfinity};  // log2 units
  float sum[kRows] = {0.0f, 0.0f};  // of this thread's columns; the quad's sum is taken at the end

  /// Whether a row of the warp has seen no key yet.
  FA4_D bool any_new() const {
    return __any_sync(kAllLanes,
                      reference[0] == kMinusInfinity || reference[1] == kMinusInfinity) != 0;
  }
};

/// How many elements of a row lie in columns below `column`, for lane q of the quad.
FA4_D int elements_below(int column, int q) {
  const int shifted = max_of(column - 2 * q, 0);
  return 2 * (shifted / 8) + min_of(shifted % 8, 2);
}

/// The lowest `count` of 32 bits; none for a negative count, all for one past 31.
FA4_D uint32_t low_bits(int count) {
  return count <= 0 ? 0u : count >= 32 ? ~0u : (1u << count) - 1;
}

/// Scores of keys that a row does not see become -inf. `keys` are key indices of the sequence, the
/// block starts at key `first_key`.
template <int kN>
FA4_D void mask_scores(float (&s)[kN / 2], const Interval (&keys)[kRows], int first_key, int lane) {
  const int q = lane % 4;
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    const int first = elements_below(keys[row].first - first_key, q);
    const int last = elements_below(keys[row].last - first_key, q);
#pragma unroll
    for (int word = 0; word < kN / 4; word += 32) {
      const uint32_t visible = low_bits(last - word) & ~low_bits(first - word);
#pragma unroll
      for (int e = 0; e < 32 && word + e < kN / 4; ++e) {
        float& score = s[fragment_index(row, word + e)];
        score = (visible & 1u << e) != 0 ? score : kMinusInfinity;
      }
    }
  }
}

/// Scores become tanh(score * scale). From exponential and reciprocal: tanh.approx is off by 5e-4.
template <int kN>
FA4_D void cap_scores(float (&s)[kN / 2], float scale) {
  // A branch around each group, always taken because scale is positive: ptxas would else begin all
  // scores at once and spill.
  constexpr int kGroup = 16;
  const float factor = 2.0f * kLog2e * scale;
#pragma unroll
  for (int group = 0; group < kN / 2; group += kGroup) {
    if (scale < -1.0f - group) continue;
#pragma unroll
    for (int i = group; i < group + kGroup; ++i) {
      s[i] = 1.0f - 2.0f * ptx::rcp(ptx::ex2(s[i] * factor) + 1.0f);
    }
  }
}

/// Maximum over the quad's columns of a row.
template <int kN>
FA4_D float row_max(const float (&s)[kN / 2], int row) {
  // Two chains: one alone would be as long as the exponentials.
  float even = s[fragment_index(row, 0)];
  float odd = s[fragment_index(row, 1)];
#pragma unroll
  for (int e = 2; e < kN / 4; e += 2) {
    even = fmaxf(even, s[fragment_index(row, e)]);
    odd = fmaxf(odd, s[fragment_index(row, e + 1)]);
  }
  float largest = fmaxf(even, odd);
  largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 1));
  return fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 2));
}

/// Largest sum of a thread's weights of one row and block with which a reference may stay. The sum
/// of kN / 4 weights exceeds it only if one of them exceeds 2^kRescaleSlackLog2; and none exceeds
/// it, which fp16 holds.
template <int kN>
constexpr float kLargestSum = (1 << static_cast<int>(kRescaleSlackLog2)) * (kN / 4);
static_assert(kLargestSum<128> <= 8192.0f);

/// Weights 2^(score * scale_log2 - reference) with the references as they are, rounded into p. No
/// maximum is needed for that: what is needed is that no weight is too large, and the sums tell.
/// False, and rows unchanged, where they are too large, or NaN, or a row has no reference yet.
template <DType kDType, int kN>
FA4_D bool weigh(uint32_t (&p)[kN / 4], const float (&s)[kN / 2], RowState& rows,
                 float scale_log2) {
  float sum[kRows];
#pragma unroll
  for (int i = 0; i < kN / 4; ++i) {  // pairs of registers, as the product takes them
    const int row = i % 2;
    const float low = ptx::ex2(fmaf(s[2 * i], scale_log2, -rows.reference[row]));
    const float high = ptx::ex2(fmaf(s[2 * i + 1], scale_log2, -rows.reference[row]));
    sum[row] = i < kRows ? low + high : sum[row] + low + high;
    p[i] = ptx::cvt_pack<kDType>(low, high);
  }
  const bool fits = sum[0] <= kLargestSum<kN> && sum[1] <= kLargestSum<kN>;
  if (!__all_sync(kAllLanes, fits)) return false;
#pragma unroll
  for (int row = 0; row < kRows; ++row) rows.sum[row] += sum[row];
  return true;
}

/// The same with references moved to the maximum where they lag behind by more than the slack.
/// Scores become weights, unrounded. Returns whether any row of the warp moved its reference; then
/// factor[row] is what O has to be multiplied with.
template <int kN>
FA4_D bool weigh_and_move(float (&s)[kN / 2], RowState& rows, float (&factor)[kRows],
                          float scale_log2) {
  float next[kRows];
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    next[row] =
        next_reference(rows.reference[row], row_max<kN>(s, row) * scale_log2, kRescaleSlackLog2);
    // Both may be -inf: their difference would be NaN.
    factor[row] =
        next[row] == rows.reference[row] ? 1.0f : ptx::ex2(rows.reference[row] - next[row]);
  }
  const bool moved =
      __any_sync(kAllLanes, next[0] != rows.reference[0] || next[1] != rows.reference[1]);
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    rows.reference[row] = next[row];
    rows.sum[row] *= factor[row];
    const float minus_reference = -usable_reference(next[row]);
#pragma unroll
    for (int e = 0; e < kN / 4; ++e) {
      float& score = s[fragment_index(row, e)];
      score = ptx::ex2(fmaf(score, scale_log2, minus_reference));
      rows.sum[row] += score;
    }
  }
  return moved;
}

/// Weights rounded to 16 bit in pairs: the A operand of their product with V.
template <DType kDType, int kN>
FA4_D void pack_weights(uint32_t (&p)[kN / 4], const float (&s)[kN / 2]) {
#pragma unroll
  for (int i = 0; i < kN / 4; ++i) p[i] = ptx::cvt_pack<kDType>(s[2 * i], s[2 * i + 1]);
}

}  // namespace fa4::sm90
