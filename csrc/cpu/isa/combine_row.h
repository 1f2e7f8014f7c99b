// Weighted sum of the partial results of one row.
#pragma once

#include "csrc/cpu/isa/rows.h"

namespace fa4::cpu {
namespace {

void combine_row(const CombineRow& row) {
  alignas(64) float result[kMaxHeadDim];
  zero_row(result, row.head_dim_v);
  with_type(row.partial_dtype, [&](auto type) {
    for (int split = 0; split < row.num_splits; ++split) {
      const float weight = row.weight[split];
      if (weight == 0.0f) continue;
      const void* partial = element(row.partial_dtype, row.partial, split * row.split_stride);
      for (int i = 0; i < row.head_dim_v; i += 8) {
        store(result + i, load<Vec8>(result + i) + weight * load8<type.value>(partial, i));
      }
    }
  });
  store_row(row.out_dtype, result, 1.0f, row.out, row.head_dim_v);
}

}  // namespace
}  // namespace fa4::cpu
