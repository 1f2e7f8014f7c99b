// From raw scores to log2 units, and which lanes see a key.
#pragma once

#include "csrc/cpu/isa/vec.h"
#include "csrc/cpu/kernels.h"
#include "flash_attn4/core/softmax.h"

namespace fa4::cpu {
namespace {

/// tanh with a relative error of 3e-7; NaN stays NaN. Near 0, where 1 - 2 / (e^2y + 1) would
/// cancel, an odd polynomial: y + y^3 p(y^2), minimax on |y| <= 0.65 with a relative error of 7e-9.
FA4_INLINE Vec tanh(Vec y) {
  const Vec magnitude = y < 0.0f ? -y : y;
  const Vec square = y * y;
  Vec p = splat(-0.005515161f);
  p = p * square + 0.020469418f;
  p = p * square - 0.053688023f;
  p = p * square + 0.1333083f;
  p = p * square - 0.3333326f;
  const Vec small = y + y * square * p;
  const Vec exponent = magnitude * (2.0f * kLog2e);
  const Vec large = 1.0f - 2.0f / (exp2(exponent > 60.0f ? splat(60.0f) : exponent) + 1.0f);
  return magnitude <= 0.65f ? small : (y < 0.0f ? -large : large);
}

/// The part [first, last) of a block of keys that the rows of a panel see, counted from the block's
/// first key.
struct PanelKeys {
  int first;  // a multiple of kGroup
  int last;
  bool masked;  // not every row sees all of it

  FA4_INLINE bool empty() const { return first >= last; }
};

/// Keys of the block [key, key + keys) for the panel that starts at `row`. The ends of the rows'
/// intervals rise with the row, so the first and the last row bound all between them. `masked`: not
/// every row of the tile sees the whole block.
FA4_INLINE PanelKeys panel_keys(const Tile& tile, bool masked, int row, int32_t key, int keys) {
  if (!masked) return {0, keys, false};
  const int last_row = min_of(row + kPanel, tile.rows) - 1;
  const int first = max_of(tile.key_first[row] - key, 0) / kGroup * kGroup;
  const int last = min_of(tile.key_last[last_row] - key, keys);
  const bool all = key + first >= tile.key_first[last_row] && key + last <= tile.key_last[row];
  return {first, last, !all};
}

/// Keys that the rows in the lanes see: [first, last).
struct VisibleLanes {
  IVec first;
  IVec last;

  FA4_INLINE VisibleLanes(const Tile& tile, int row)
      : first(load<IVec>(tile.key_first + row)), last(load<IVec>(tile.key_last + row)) {}
  FA4_INLINE Vec select(int32_t key, Vec value, float otherwise) const {
    return ((key >= first) & (key < last)) ? value : splat(otherwise);
  }
};

}  // namespace
}  // namespace fa4::cpu
