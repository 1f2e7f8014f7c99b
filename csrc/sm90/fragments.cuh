// Accumulator fragments of wgmma, as a warpgroup's threads hold them.
//
// A thread holds two rows of its warpgroup's 64, `row` and `row + 8`; a row lies in the four lanes
// of a quad. Register i belongs to row i / 2 % 2, as element e = i / 4 * 2 + i % 2 of that row; the
// elements e = 0, 1, 2, 3, ... of lane q of the quad are columns 2 q, 2 q + 1, 8 + 2 q, 9 + 2 q,
// ...
#pragma once

#include "csrc/common/fwd_scores.cuh"
#include "flash_attn4/core/descriptors.h"
#include "flash_attn4/core/mask.h"
#include "flash_attn4/core/softmax.h"
#include "flash_attn4/device/device.cuh"
#include "flash_attn4/device/ptx/math.cuh"
#include "flash_attn4/device/ptx/stmatrix.cuh"

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

/// How many elements of a row lie in columns below `column`, for lane q of the quad.
FA4_D int elements_below(int column, int q) {
  const int shifted = max_of(column - 2 * q, 0);
  return 2 * (shifted / 8) + min_of(shifted % 8, 2);
}

/// Scores outside the interval of their row become -inf. Intervals are indices in the sequence, the
/// block starts at index `origin`.
template <int kN>
FA4_D void mask_scores(float (&s)[kN / 2], const Interval (&visible_of)[kRows], int origin,
                       int lane) {
  const int q = lane % 4;
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    const int first = elements_below(visible_of[row].first - origin, q);
    const int last = elements_below(visible_of[row].last - origin, q);
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

/// Scores become tanh(score * scale).
template <int kN>
FA4_D void cap_scores(float (&s)[kN / 2], float scale) {
  // A branch around each group, always taken because scale is positive: ptxas would else begin all
  // scores at once and spill.
  constexpr int kGroup = 8;
#pragma unroll
  for (int group = 0; group < kN / 2; group += kGroup) {
    if (scale < -1.0f - group) continue;
#pragma unroll
    for (int i = group; i < group + kGroup; ++i) s[i] = tanh_accurate(s[i] * scale);
  }
}

/// Stores fragments, rounded to pairs, as rows of the tile at shared address `to` in its swizzle:
/// words[i] are registers 2 i and 2 i + 1. `row` is that of the warp's first. By a whole warp.
template <int kN>
FA4_D void store_fragment(uint32_t to, TileLayout tile, int row, const uint32_t (&words)[kN / 4],
                          int lane) {
#pragma unroll
  for (int column = 0; column < kN; column += 16) {
    const uint32_t (&matrix)[4] = reinterpret_cast<const uint32_t (&)[4]>(words[column / 4]);
    ptx::stmatrix_x4(to + tile.offset(row + lane % 16, column + lane / 16 * 8), matrix);
  }
}

}  // namespace fa4::sm90
