// SM90 forward: what the launcher hands to the kernel. Plain C++.
#pragma once

#include <cstdint>

#include "flash_attn4/core/query_tile.h"
#include "flash_attn4/core/tensor_map.h"
#include "flash_attn4/core/types.h"
#include "flash_attn4/params.h"

namespace fa4::sm90 {

/// Tensor maps have five dimensions, innermost first:
///     q, out   {head_dim, heads in a tile's rows, rows, tile heads, batch}
///     k, v     {head_dim, rows, KV heads, batch}                            (four)
/// with boxes of 64 columns (128 bytes, the swizzle). Packed tensors have batch 1.
struct FwdArgs {
  TensorMap q, k, v, out;
  QueryTiling tiling;
  int32_t packed_heads;  // query heads in the rows of a tile: 1, or heads_q / heads_k
  int32_t tiles;         // tiling.order.count()

  float score_scale;  // softcap: factor before the tanh; else unused
  float scale_log2;   // factor from scores (softcap: from their tanh) to log2 units
  bool softcap;
  bool clear_value_tail;  // value rows past a sequence's end may hold anything, NaN included
  bool tensor_store;      // out through its tensor map; else row by row
  bool vector_store;      // rows of out begin at multiples of 16 bytes
  DType sink_dtype;
  const void* sink;  // heads_q logits, or null

  void* out_data;
  float* lse_data;
  Strides out_stride;
  Strides lse_stride;
  int32_t head_dim_v;
};

}  // namespace fa4::sm90
