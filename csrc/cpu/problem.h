// What forward and backward derive alike from a Problem.
#pragma once

#include <cstdint>
#include <vector>

#include "csrc/cpu/kernels.h"
#include "csrc/cpu/sequences.h"
#include "flash_attn4/core/mask.h"
#include "flash_attn4/params.h"

namespace fa4::cpu {

/// One element as float32, and back.
float load_scalar(DType dtype, const void* data, int64_t index);
void store_scalar(DType dtype, float value, void* data, int64_t index);

/// A problem with its derived values.
struct Call {
  const Problem& problem;
  Side q, k;
  Window window;
  ScoreFunction score;
  int64_t group;  // query heads per KV head

  explicit Call(const Problem& problem);

  /// Packed query rows of a sequence and KV head.
  int64_t packed_rows(int64_t sequence) const { return q.span(sequence).length * group; }
  /// Multiply-adds of one product S = Q K^T of a sequence, all heads.
  double pairs(int64_t sequence) const;

  /// The part of a tensor that belongs to a sequence and a KV head.
  QueryRows rows(const View<const void>& tensor, int64_t sequence, int64_t head) const;
  QueryRows rows(const View<void>& tensor, int64_t sequence, int64_t head) const;
  QueryScalars scalars(const View<const float>& tensor, int64_t sequence, int64_t head) const;
  QueryScalars scalars(const View<float>& tensor, int64_t sequence, int64_t head) const;
  KeyRows keys(const View<const void>& tensor, int64_t sequence, int64_t head) const;

  /// Address of an element of one of the call's tensors.
  void* element(const void* data, int64_t index) const;
  /// The sinks as float32 in log2 units.
  void load_sinks(std::vector<float>& sinks_log2) const;

  /// Fills all of Tile but the tensors, for packed rows [first_row, first_row + rows); writes the
  /// rows' visible keys into work when the tile needs a mask.
  void describe(Tile& tile, int64_t sequence, int64_t first_row, int rows, Workspace& work) const;
};

}  // namespace fa4::cpu
