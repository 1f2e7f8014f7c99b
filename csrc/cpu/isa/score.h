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

/// What the rows of a panel see of a block of keys.
enum class View : uint8_t { kNothing, kPart, kAll };

/// View of the panel that starts at `row` of the keys [key, key + keys). The ends of the rows'
/// intervals rise with the row, so the first and the last row bound all between them.
FA4_INLINE View panel_view(const Tile& tile, int row, int32_t key, int keys) {
  const int last = min_of(row + kPanel, tile.rows) - 1;
  if (key >= tile.key_last[last] || key + keys <= tile.key_first[row]) return View::kNothing;
  const bool all = key >= tile.key_first[last] && key + keys <= tile.key_last[row];
  return all ? View::kAll : View::kPart;
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
