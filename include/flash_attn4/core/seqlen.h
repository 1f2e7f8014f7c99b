// Where one sequence of a batch starts and how many of its rows count.
#pragma once

#include <cstdint>

#include "flash_attn4/core/types.h"

namespace fa4 {

/// Rows [first_row, first_row + length) of a tensor belong to the sequence.
/// Dense tensors have a batch dimension of their own: first_row is 0 there.
struct SeqSpan {
  int64_t first_row;
  int32_t length;
};

/// Span of sequence `batch`.
///   capacity     rows per sequence of a dense tensor; ignored when cu_seqlens is given
///   cu_seqlens   batch + 1 running offsets of a packed tensor, or null
///   seqused      rows that count per sequence, at most the rows present, or null for all of them
FA4_HD constexpr SeqSpan seq_span(int64_t batch, int64_t capacity, const int32_t* cu_seqlens,
                                  const int32_t* seqused) {
  SeqSpan span{0, static_cast<int32_t>(capacity)};
  if (cu_seqlens != nullptr) {
    span.first_row = cu_seqlens[batch];
    span.length = cu_seqlens[batch + 1] - cu_seqlens[batch];
  }
  if (seqused != nullptr) span.length = seqused[batch];
  return span;
}

}  // namespace fa4
