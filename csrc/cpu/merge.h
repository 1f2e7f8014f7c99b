// Merging of partial results over disjoint parts of the keys, one row at a time.
#pragma once

#include <cstdint>

#include "csrc/cpu/kernels.h"

namespace fa4::cpu {

constexpr int kMaxSplits = 256;

/// Writes row.out from row.num_splits (at most kMaxSplits) partial results whose lse are lse_stride
/// apart, and returns the lse of the whole. Fills row.weight itself.
float merge_row(CombineRow& row, const float* lse, int64_t lse_stride);

}  // namespace fa4::cpu
