// Forward on GPUs: what the launcher hands to the kernel. Plain C++.
#pragma once

#include <cstdint>

#include "flash_attn4/core/query_tile.h"
#include "flash_attn4/core/tensor_map.h"
#include "flash_attn4/core/types.h"
#include "flash_attn4/params.h"

namespace fa4 {

/// Dimensions of the tensor maps, innermost first:
///     q, out   {head_dim, heads in a tile's rows, rows, tile heads, batch}
///     k, v     {head_dim, rows, KV heads, batch}
/// with boxes as wide as the swizzle: 64 columns with 128 bytes, 32 with 64. Packed tensors have
/// batch 1.
///
/// A tile of query rows consists of one or more boxes of q, and each box starts with a query: row r
/// of box i is query first_query + i * box_queries + r / packed_heads, of the head that the
/// remainder names. Rows of a box behind its queries belong to none.
struct FwdArgs {
  TensorMap q, k, v, out;  // out: with tensor_store alone
  QueryTiling tiling;
  int32_t packed_heads;  // query heads in the rows of a tile: 1, or heads_q / heads_k
  int32_t box_queries;   // queries in a box of q; tiling.queries is a multiple

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

}  // namespace fa4
