// The sequences of a batch: where they lie, what lies between them, and the tiles they fall into.
#pragma once

#include <cstdint>
#include <vector>

#include "csrc/cpu/kernels.h"
#include "flash_attn4/core/seqlen.h"
#include "flash_attn4/params.h"
#include "flash_attn4/status.h"

namespace fa4::cpu {

/// Queries or keys of the batch.
struct Side {
  int64_t batch;
  int64_t capacity;  // rows per sequence of a dense tensor, bound of the lengths of a packed one
  int64_t total;     // rows of a packed tensor
  const int32_t* cu_seqlens;
  const int32_t* seqused;

  SeqSpan span(int64_t sequence) const { return seq_span(sequence, capacity, cu_seqlens, seqused); }
  /// Offset, in elements, of a tensor's first row of a sequence.
  int64_t offset(const Strides& stride, int64_t sequence) const {
    return cu_seqlens == nullptr ? sequence * stride.batch : cu_seqlens[sequence] * stride.row;
  }
  /// Rows of the tensor from the first row of a sequence that no other sequence owns.
  int64_t owned(int64_t sequence) const {
    return cu_seqlens == nullptr ? capacity : cu_seqlens[sequence + 1] - cu_seqlens[sequence];
  }
};

Side query_side(const Problem& problem);
Side key_side(const Problem& problem);

/// Checks the contents of cu_seqlens and seqused.
Status check_sequences(const Problem& problem);

/// Checks the entries of page_table that the sequences use.
Status check_pages(const FwdParams& params);

/// Every row that belongs to no sequence: body(offset of the row, number of rows), where the offset
/// is that of `stride` without head.
template <class Body>
void for_each_unused(const Side& side, const Strides& stride, Body body) {
  for (int64_t sequence = 0; sequence < side.batch; ++sequence) {
    const int64_t used = side.span(sequence).length;
    const int64_t owned = side.owned(sequence);
    if (used < owned) body(side.offset(stride, sequence) + used * stride.row, owned - used);
  }
  if (side.cu_seqlens == nullptr) return;
  const int64_t end = side.cu_seqlens[side.batch];
  if (end < side.total) body(end * stride.row, side.total - end);
}

/// Sets the unused rows of a tensor to zero.
void zero_unused(const Side& side, DType dtype, const View<void>& tensor, int64_t heads,
                 int64_t dim);

/// Number `tile` of the `tiles` tiles that a sequence has per KV head.
struct TileIndex {
  int64_t sequence;
  int64_t head;
  int64_t tile;
  int64_t tiles;
};

/// The tiles of a call in the order in which threads draw them: the sequences with the most work
/// first, each head by head. Kept per thread, so that small calls allocate nothing.
class TileOrder {
 public:
  void clear(int64_t heads);
  void add(int64_t sequence, int64_t tiles, double work);
  void finish();

  int64_t size() const { return entries_.empty() ? 0 : entries_.back().end; }
  double work() const { return work_; }
  TileIndex at(int64_t index) const;

 private:
  struct Entry {
    double work;  // of all heads
    int64_t sequence;
    int64_t tiles;
    int64_t end;  // tiles of all heads up to and with this entry
  };

  int64_t heads_ = 1;
  double work_ = 0.0;
  std::vector<Entry> entries_;
};

}  // namespace fa4::cpu
