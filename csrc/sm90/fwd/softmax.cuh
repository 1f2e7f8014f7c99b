// SM90 forward: softmax on accumulator fragments (csrc/sm90/fragments.cuh).
#pragma once

#include "csrc/sm90/fragments.cuh"
#include "flash_attn4/core/softmax.h"
#include "flash_attn4/device/device.cuh"
#include "flash_attn4/device/ptx/compiler.cuh"
#include "flash_attn4/device/ptx/math.cuh"

namespace fa4::sm90 {

/// Running state of a thread's rows; see core/softmax.h.
struct RowState {
  float reference[kRows] = {kMinusInfinity, kMinusInfinity};  // log2 units
  float sum[kRows] = {0.0f, 0.0f};  // of this thread's columns; the quad's sum is taken at the end
};

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

/// Weights 2^(score * scale_log2 - reference), rounded into p; sum: of this thread's, unrounded. A
/// reference of -inf gives weights that are infinite or NaN.
template <DType kDType, int kN>
FA4_D void weigh(uint32_t (&p)[kN / 4], float (&sum)[kRows], const float (&s)[kN / 2],
                 const float (&reference)[kRows], float scale_log2) {
  static_assert(kLargestSum<kN> <= 32768.0f, "weights must fit fp16");
#pragma unroll
  for (int i = 0; i < kN / 4; ++i) {  // pairs of registers, as the product takes them
    const int row = i % 2;
    const float low = ptx::ex2(fmaf(s[2 * i], scale_log2, -reference[row]));
    const float high = ptx::ex2(fmaf(s[2 * i + 1], scale_log2, -reference[row]));
    sum[row] = i < kRows ? low + high : sum[row] + low + high;
    p[i] = ptx::cvt_pack<kDType>(low, high);
  }
}

/// Moves the references of rows whose weights, with sums `sum`, are too large, or NaN, or infinite
/// because the row had no reference. Where one moves, factor is what its O and sum have to be
/// multiplied with, else 1. Every row decides by its own weights: its result does not depend on the
/// rows that share the warp. Returns whether any row of the warp moved.
template <int kN>
FA4_D bool move_references(const float (&s)[kN / 2], RowState& rows, const float (&sum)[kRows],
                           float (&factor)[kRows], float scale_log2) {
  bool moved = false;
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    const uint32_t fit = __ballot_sync(kAllLanes, sum[row] <= kLargestSum<kN>);
    const bool stays = (fit >> (lane_index() & ~3) & 0xf) == 0xf;  // by the four lanes of a quad
    const float block_max = row_max<kN>(s, row) * scale_log2;
    const float next = stays ? rows.reference[row] : fmaxf(rows.reference[row], block_max);
    // Both may be -inf: their difference would be NaN.
    const bool same = next == rows.reference[row];
    factor[row] = same ? 1.0f : ptx::ex2(rows.reference[row] - next);
    rows.reference[row] = next;
    rows.sum[row] *= factor[row];
    moved |= !same;
  }
  return __any_sync(kAllLanes, moved);
}

/// Weights of a block and the rows' new state. No maximum is needed for weights: what is needed is
/// that none is too large, and the sums tell. Only where they are, references move and the weights
/// are taken once more. `opens`: the block is the first of its tile, no row has a reference yet.
/// Returns whether a reference moved; factor as above.
template <DType kDType, int kN>
FA4_D bool online_softmax(uint32_t (&p)[kN / 4], const float (&s)[kN / 2], RowState& rows,
                          bool opens, float (&factor)[kRows], float scale_log2) {
  constexpr float kInfinity = -kMinusInfinity;
  float sum[kRows] = {kInfinity, kInfinity};
  if (!opens) weigh<kDType, kN>(p, sum, s, rows.reference, scale_log2);
  const bool fits = sum[0] <= kLargestSum<kN> && sum[1] <= kLargestSum<kN>;
  bool moved = false;
  if (!__all_sync(kAllLanes, fits)) {
    moved = move_references<kN>(s, rows, sum, factor, scale_log2);
    const float usable[kRows] = {usable_reference(rows.reference[0]),
                                 usable_reference(rows.reference[1])};
    weigh<kDType, kN>(p, sum, s, usable, scale_log2);
  }
#pragma unroll
  for (int row = 0; row < kRows; ++row) rows.sum[row] += sum[row];
  return moved;
}

}  // namespace fa4::sm90
