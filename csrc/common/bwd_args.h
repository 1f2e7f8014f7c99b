// Backward on GPUs: what the launcher hands to the kernels. Plain C++.
//
//     prepare   D = sum(O * dO) - dlse and lse in log2 units of every row; dq's accumulator to 0
//     main      dk and dv of a tile of keys, and their part of dq into the accumulator
//     finish    dq = accumulator * softmax_scale, rounded
//     sink      dsink from lse2 and D
//
// Row statistics and the accumulator have `acc_rows` rows per query head, head after head; where a
// sequence begins is in core/key_tile.h. Rows of a block behind the sequence's last have lse2 =
// +inf, so that their weights are 0, and D = 0; the same holds for rows whose lse is -inf. A row
// that sees no key but has a sink is like any other: its lse is the sink. A main kernel may want lse2
// negated (lse2_sign = -1), to add it.
#pragma once

#include <cstdint>

#include "flash_attn4/core/key_tile.h"
#include "flash_attn4/core/tensor_map.h"
#include "flash_attn4/core/types.h"
#include "flash_attn4/params.h"

namespace fa4 {

/// Threads of a block of the prepare and the finish kernel, and of the sink kernel.
constexpr int kBwdRowThreads = 256;
constexpr int kBwdSinkThreads = 512;

/// The sequences of a call's queries, for the kernels that pass over rows.
struct BwdRows {
  const int32_t* cu_seqlens_q;
  const int32_t* seqused_q;
  int32_t batch;
  int32_t seqlen_q;
  int32_t total_q;
  int32_t heads;  // query heads
  int32_t block_m;
  int64_t acc_rows;

  FA4_HD constexpr int64_t blocks() const { return acc_rows / block_m; }
};

/// A block of the accumulators' rows, and the rows of the tensors that it stands for.
struct RowBlock {
  int32_t batch;      // batch coordinate of the tensors: 0 when they are packed
  int32_t first_row;  // of the tensors
  int32_t used;       // rows that count
  int32_t owned;      // rows that have to be written: those of no sequence go to the last one
};

/// Block `index`, [0, rows.blocks()).
FA4_HD constexpr RowBlock row_block(const BwdRows& rows, int32_t index) {
  const bool packed = rows.cu_seqlens_q != nullptr;
  int32_t sequence = 0;
  int32_t of_sequence = 0;
  if (packed) {
    const VarlenTile found = varlen_tile(index, rows.cu_seqlens_q, rows.batch, rows.block_m);
    sequence = found.batch;
    of_sequence = found.tile;
  } else {
    const int32_t per_sequence = ceil_div(rows.seqlen_q, rows.block_m);
    sequence = index / per_sequence;
    of_sequence = index - sequence * per_sequence;
  }
  const SeqSpan span = seq_span(sequence, rows.seqlen_q, rows.cu_seqlens_q, rows.seqused_q);
  const auto start = static_cast<int32_t>(span.first_row);
  const int32_t first = of_sequence * rows.block_m;
  int32_t owned = rows.seqlen_q;
  if (packed) {
    owned = (sequence + 1 == rows.batch ? rows.total_q : rows.cu_seqlens_q[sequence + 1]) - start;
  }
  return {packed ? 0 : sequence, start + first, clamp_to(span.length - first, 0, rows.block_m),
          clamp_to(owned - first, 0, rows.block_m)};
}

// Prepare, finish: one block of threads per block of rows and head, heads passing first.
struct BwdPrepareArgs {
  BwdRows rows;
  int32_t head_dim_v;
  int32_t acc_columns;  // of dq's accumulator: the kernel's head dim
  bool vector_loads;    // rows of out and dout begin at multiples of 16 bytes
  const void* out;
  const void* dout;
  const float* lse;
  const float* dlse;  // or null
  Strides out_stride, dout_stride, lse_stride, dlse_stride;
  float lse2_sign = 1.0f;
  float* lse2;
  float* delta;
  float* dq_accumulator;
  int32_t* turns;           // of BwdArgs, to 0; or null
  int32_t turns_per_block;  // and head
};

/// Dimensions of the tensor maps, innermost first:
///     q, dout   {head_dim, rows, query heads, batch}, boxes of block_m rows
///     k, v      {head_dim, rows, KV heads, batch}, boxes of block_n rows
///     qt, kt    q and k once more, where a pair of CTAs reads their columns in narrower spans
/// of a pair boxes of half of the rows, if its plan does not say otherwise.
struct BwdArgs {
  TensorMap q, k, v, dout;
  KeyTiling tiling;
  int32_t group;  // query heads per KV head
  int64_t acc_rows;

  float score_scale;    // softcap: factor before the tanh; else unused
  float scale_log2;     // factor from scores (softcap: from their tanh) to log2 units
  float softmax_scale;  // of dk
  bool softcap;
  bool clear_query_tail;  // rows of q and dout past a sequence's end may hold anything
  bool clear_key_tail;    // rows of k and v
  bool vector_store;      // rows of dk and dv begin at multiples of 16 bytes

  const float* lse2;
  const float* delta;
  float* dq_accumulator;
  // Deterministic: how many tiles of keys have added to a block of a head's queries, a counter for
  // each part of dq that is added apart; null: in any order. Part i of the block at row r of the
  // accumulators, heads counted in: i + r / block_m * parts.
  int32_t* turns;

  void* dk;
  void* dv;
  Strides dk_stride, dv_stride;
  int32_t head_dim;
  int32_t head_dim_v;

  TensorMap qt, kt;
};

struct BwdFinishArgs {
  BwdRows rows;
  int32_t head_dim;
  int32_t acc_columns;
  bool vector_store;
  float scale;
  const float* dq_accumulator;  // null: every row becomes 0
  void* dq;
  Strides dq_stride;
};

struct BwdSinkArgs {
  BwdRows rows;
  DType sink_dtype;
  const void* sink;
  float lse2_sign = 1.0f;
  const float* lse2;
  const float* delta;
  void* dsink;
};

}  // namespace fa4
