// Online softmax with conditional rescaling, one row at a time.
//
// A row is visited block by block. With a reference r (log2 units) the row keeps
//     sum = sum_j 2^(x_j - r)      O = sum_j 2^(x_j - r) v_j      x_j = s_j * scale * log2(e)
// and the result is O / sum, lse = ln(2) * (r + log2(sum)).
//
// Any finite r gives the same result in exact arithmetic: changing r to r' multiplies sum and O by
// the same 2^(r - r'), which cancels in O / sum and shifts log2(sum) by exactly what r' adds. The
// classic choice r = running maximum only guards against overflow. So the reference may lag behind
// the maximum as long as 2^(x - r) stays in range, and the read-modify-write of O is skipped while
// it lags by at most `slack`. With slack 8 no weight exceeds 2^8 = 256 (fp16 and bf16 hold that;
// fp16 ends at 65504) and sum <= 256 * seqlen_k, harmless in fp32. The cost is that the largest
// weight is no longer exactly 1 and gets rounded with the others: 2-5 % RMSE on normal data, 19 %
// at most on peaked data. The decision depends on the scores alone, so it is deterministic. slack 0
// gives the classic algorithm.
//
// A kernel may ask the sums of the weights instead of the maximum (csrc/sm90/fwd/softmax.cuh): the
// reference then stays until a sum tells that some weight exceeds 2^slack, and weights reach 2^13.
#pragma once

#include <cmath>
#include <limits>

#include "flash_attn4/core/types.h"

namespace fa4 {

constexpr float kLog2e = 1.44269504088896340736f;
constexpr float kLn2 = 0.69314718055994530942f;
constexpr float kRescaleSlackLog2 = 8.0f;
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

/// Next reference of a row whose reference is `reference` and whose new block has maximum
/// `block_max`; both log2 units, -inf where nothing visible was seen yet. The first visible block
/// always sets it, and so does a NaN: the row's sum and O become NaN with the factor.
FA4_HD constexpr float next_reference(float reference, float block_max, float slack_log2) {
  return block_max - reference <= slack_log2 ? reference : block_max;
}

/// x - reference with a reference of -inf read as 0: a row without visible keys so far has weights
/// 2^(-inf - 0) = 0 instead of the NaN of -inf - (-inf).
FA4_HD constexpr float usable_reference(float reference) {
  return reference == kMinusInfinity ? 0.0f : reference;
}

/// Log-sum-exp in natural units: -inf for a row that saw no key, as log2(0) is; NaN stays NaN.
FA4_HD inline float row_lse(float reference, float sum) {
  return kLn2 * (reference + std::log2(sum));
}

/// Adds the learnable sink, a logit without a value vector, to a finished row: `sink_log2` is its
/// logit times log2(e). Returns the factor for O. A row without keys takes the sink as its
/// reference: sum = 1, lse = sink, and O stays 0.
FA4_HD inline float add_sink(float& reference, float& sum, float sink_log2) {
  if (reference == kMinusInfinity) {
    reference = sink_log2;
    sum += 1.0f;  // to 1; a row of NaN scores has a NaN sum here, and keeps it
    return 1.0f;
  }
  // A sink far above the scores would overflow 2^(sink - reference) if it did not take over.
  const float next = next_reference(reference, sink_log2, kRescaleSlackLog2);
  const float factor = std::exp2(reference - next);
  sum = sum * factor + std::exp2(sink_log2 - next);
  reference = next;
  return factor;
}

/// Factor that turns the accumulated O into the result; 0 for a row that saw no key. A NaN sum
/// gives NaN.
FA4_HD constexpr float final_scale(float sum) {
  return sum == 0.0f ? 0.0f : 1.0f / sum;
}

}  // namespace fa4
