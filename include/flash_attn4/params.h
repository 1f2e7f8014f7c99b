// What a call of the C++ API is given: addresses, strides, sizes. No ownership.
#pragma once

#include <cstdint>

#include "flash_attn4/core/types.h"

namespace fa4 {

/// Strides in elements of a (batch, row, head, dim) tensor whose last dimension is contiguous.
/// Packed tensors (row, head, dim) have no batch stride. An lse is addressed the same way.
struct Strides {
  int64_t batch = 0;
  int64_t row = 0;
  int64_t head = 0;
};

template <class T>
struct View {
  T* data = nullptr;
  Strides stride;
};
using Input = View<const void>;
using Output = View<void>;
using InputF32 = View<const float>;
using OutputF32 = View<float>;

/// What forward and backward have in common: sizes, sequence metadata, score function.
struct Problem {
  DType dtype = DType::kFloat32;  // of q, k, v, out and their gradients
  int64_t batch = 0;
  // Rows per sequence; packed: an upper bound; paged keys: pages per sequence * page_size.
  int64_t seqlen_q = 0;
  int64_t seqlen_k = 0;
  int64_t heads_q = 0;
  int64_t heads_k = 0;     // divides heads_q
  int64_t head_dim = 0;    // of q and k
  int64_t head_dim_v = 0;  // of v and out

  // Packed tensors: batch + 1 running offsets, and the rows of the whole tensor. Null: dense.
  const int32_t* cu_seqlens_q = nullptr;
  const int32_t* cu_seqlens_k = nullptr;
  int64_t total_q = 0;
  int64_t total_k = 0;
  // Rows that count per sequence (batch entries), at most the rows present. Null: all of them.
  const int32_t* seqused_q = nullptr;
  const int32_t* seqused_k = nullptr;

  float softmax_scale = 1.0f;  // finite, > 0
  float softcap = 0.0f;        // scores become softcap * tanh(score / softcap); 0: off
  bool causal = false;         // aligned to the end of the keys
  int64_t window_left = -1;    // tokens; -1: unbounded
  int64_t window_right = -1;
  const void* sink = nullptr;  // heads_q logits of a key without value, or null
  DType sink_dtype = DType::kFloat32;
};

/// On a GPU q, k and v are read by its copy engine: addresses must be multiples of 16 bytes, and
/// strides of dimensions longer than 1 multiples of 8 elements, or fwd returns kUnsupported. out and
/// lse may lie anywhere. The torch ops copy what does not fit.
struct FwdParams : Problem {
  Input q, k, v;  // paged: k and v are (page, row in page, head, dim), stride.batch is of pages
  Output out;     // rows that belong to no sequence become 0
  OutputF32 lse;  // natural logarithm; -inf where a row sees no key and has no sink

  const int32_t* page_table = nullptr;  // (batch, pages per sequence); null: not paged
  int64_t page_table_stride = 0;
  int64_t num_pages = 0;  // pages in k and v
  int64_t page_size = 0;

  int64_t num_splits = 1;  // KV splits; 0: chosen by a heuristic
};

/// On a GPU what FwdParams says of q, k and v holds for them and dout; the rest may lie anywhere.
struct BwdParams : Problem {
  Input dout, q, k, v, out;
  InputF32 lse;
  InputF32 dlse;          // gradient of lse; data may be null
  Output dq, dk, dv;      // rows that belong to no sequence become 0
  void* dsink = nullptr;  // heads_q values of sink_dtype, when sink is given
  bool deterministic = false;

  // Scratch memory of the device, at a multiple of 16 bytes, in use until the call's kernels have
  // run; what it holds does not matter. bwd_workspace_bytes tells how much. The CPU needs none.
  void* workspace = nullptr;
  int64_t workspace_bytes = 0;
};

/// Merges the results of attention over disjoint parts of the keys.
/// Rows are addressed as (outer, row, head) through Strides: batch = outer.
struct CombineParams {
  int64_t num_splits = 0;  // 1..256
  int64_t batch = 0;
  int64_t rows = 0;
  int64_t heads = 0;
  int64_t head_dim_v = 0;
  DType partial_dtype = DType::kFloat32;
  DType out_dtype = DType::kFloat32;
  Input out_partial;
  int64_t out_partial_split_stride = 0;
  InputF32 lse_partial;  // -inf: the split saw no key, its out_partial is not read into the result
  int64_t lse_partial_split_stride = 0;
  Output out;
  OutputF32 lse;
};

}  // namespace fa4
