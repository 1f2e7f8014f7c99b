// Combine of KV splits: what host and device agree on. Plain C++.
#pragma once

#include <cstdint>

#include "flash_attn4/core/types.h"
#include "flash_attn4/params.h"

namespace fa4 {

/// A warp merges one (batch, row, head).
constexpr int kCombineWarps = 4;
constexpr int kCombineThreads = 32 * kCombineWarps;
/// Blocks that share an SM: 40 registers per thread and three quarters of its threads. Left to itself,
/// ptxas aims at all of them and spills.
constexpr int kCombineBlocksPerSm = 12;
constexpr int kCombineMaxSplits = 256;
/// Elements a lane reads at once where strides and addresses allow it: 16 bytes of fp32.
constexpr int kCombineVector = 4;

struct CombineArgs {
  const void* out_partial;
  const float* lse_partial;
  void* out;
  float* lse;
  Strides out_partial_stride;
  Strides lse_partial_stride;
  Strides out_stride;
  Strides lse_stride;
  int64_t out_partial_split_stride;
  int64_t lse_partial_split_stride;
  int64_t results;  // batch * rows * heads
  int32_t rows;
  int32_t heads;
  int32_t num_splits;
  int32_t head_dim_v;
  DType out_dtype;
  bool vectorized;  // rows of out_partial and out start on multiples of kCombineVector elements
};

}  // namespace fa4
