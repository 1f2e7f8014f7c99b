// Merge of partial results: out = sum of 2^(lse_s - lse) out_s.
#include <cmath>

#include "csrc/cpu/backend.h"
#include "csrc/cpu/merge.h"
#include "csrc/cpu/parallel.h"
#include "flash_attn4/core/softmax.h"

namespace fa4::cpu {
namespace {

// Rows that a thread draws at once.
constexpr int64_t kRowsPerItem = 64;

void combine_one(const CombineParams& p, int64_t index) {
  const int64_t head = index % p.heads;
  const int64_t row = index / p.heads % p.rows;
  const int64_t outer = index / p.heads / p.rows;
  const auto at = [&](const Strides& s) { return outer * s.batch + row * s.row + head * s.head; };
  CombineRow merge{};
  merge.partial_dtype = p.partial_dtype;
  merge.out_dtype = p.out_dtype;
  merge.head_dim_v = static_cast<int>(p.head_dim_v);
  merge.num_splits = static_cast<int>(p.num_splits);
  merge.partial = static_cast<const char*>(p.out_partial.data) +
                  at(p.out_partial.stride) * dtype_bytes(p.partial_dtype);
  merge.split_stride = p.out_partial_split_stride;
  merge.out = static_cast<char*>(p.out.data) + at(p.out.stride) * dtype_bytes(p.out_dtype);
  p.lse.data[at(p.lse.stride)] =
      merge_row(merge, p.lse_partial.data + at(p.lse_partial.stride), p.lse_partial_split_stride);
}

}  // namespace

float merge_row(CombineRow& row, const float* lse, int64_t lse_stride) {
  float weight[kMaxSplits];
  float maximum = kMinusInfinity;
  for (int s = 0; s < row.num_splits; ++s) {
    weight[s] = lse[s * lse_stride];
    maximum = weight[s] > maximum ? weight[s] : maximum;
  }
  const float reference = usable_reference(maximum);
  float sum = 0.0f;
  for (int s = 0; s < row.num_splits; ++s) {
    weight[s] = std::exp(weight[s] - reference);  // exactly 0 for a split that saw nothing
    sum += weight[s];
  }
  const float scale = final_scale(sum);
  for (int s = 0; s < row.num_splits; ++s) weight[s] *= scale;
  row.weight = weight;
  kernels().combine_row(row);
  return sum == 0.0f ? kMinusInfinity : reference + std::log(sum);
}

Status combine(const CombineParams& params, const Context& context) {
  const int64_t rows = params.batch * params.rows * params.heads;
  const double work = static_cast<double>(rows) * params.num_splits * params.head_dim_v;
  return for_each_item(context, ceil_div(rows, kRowsPerItem), work, [&](int64_t item) {
    const int64_t end = min_of(rows, (item + 1) * kRowsPerItem);
    for (int64_t row = item * kRowsPerItem; row < end; ++row) combine_one(params, row);
  });
}

}  // namespace fa4::cpu
