// SM100: scores of a row on their way from tensor memory to weights, in both directions.
#pragma once

#include "csrc/common/fwd_scores.cuh"
#include "flash_attn4/core/mask.h"
#include "flash_attn4/core/softmax.h"
#include "flash_attn4/device/device.cuh"

namespace fa4::sm100 {

/// Address of columns from `column` on in the lanes of this warp.
FA4_D uint32_t tmem_address(uint32_t base, int warp, uint32_t column) {
  return base + (static_cast<uint32_t>(warp % 4) << 21) + column;
}

/// Scores outside the interval become -inf. `visible` are indices in the sequence, the scores begin
/// at index `origin`.
template <int kN>
FA4_D void mask_scores(float (&s)[kN], const Interval& visible, int origin) {
  const int first = visible.first - origin;
  const int last = visible.last - origin;
#pragma unroll
  for (int word = 0; word < kN; word += 32) {
    const uint32_t bits = low_bits(last - word) & ~low_bits(first - word);
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      float& score = s[word + i];
      score = (bits & 1u << i) != 0 ? score : kMinusInfinity;
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

}  // namespace fa4::sm100
