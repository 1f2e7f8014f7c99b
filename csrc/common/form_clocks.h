// Clocks that a call is predicted to take with one form of a kernel. For comparing forms: what they
// have in common is left out.
#pragma once

#include <cmath>
#include <cstdint>

#include "csrc/common/operands.h"
#include "flash_attn4/core/kv_range.h"
#include "flash_attn4/core/types.h"

namespace fa4 {

/// Rows of a sequence; of packed ones, whose lengths lie on the device, the mean.
inline int32_t mean_rows(const Problem& p, int64_t rows, int64_t total) {
  return static_cast<int32_t>(packed(p) ? total / max_of<int64_t>(p.batch, 1) : rows);
}

struct MeanTile {
  double steps;
  double masked;  // of the steps: those that have a mask
};

/// Of many tiles sixteen, spread evenly and the same from both ends; without a window all are alike.
/// steps_of(tile): a BlockRange.
template <class StepsOf>
MeanTile mean_tile(int32_t tiles, const Window& window, const StepsOf& steps_of) {
  const int32_t looked_at = window.bounded() ? min_of(tiles, 16) : 1;
  int64_t steps = 0, masked = 0;
  for (int32_t i = 0; i < looked_at; ++i) {
    const int64_t from_end = min_of(i, looked_at - 1 - i);
    const auto tile = static_cast<int32_t>((2 * from_end + 1) * tiles / (2 * looked_at));
    const BlockRange blocks = steps_of(i == from_end ? tile : tiles - 1 - tile);
    steps += blocks.size();
    masked += blocks.size() - (blocks.full_last - blocks.full_first);
  }
  return {static_cast<double>(steps) / looked_at, static_cast<double>(masked) / looked_at};
}

/// Tiles of all sequences of a head. The last one of a packed sequence is full by half.
inline double tile_count(const Problem& p, int32_t tiles, int64_t total, int32_t tile_rows) {
  return packed(p) ? static_cast<double>(total) / tile_rows + 0.5 * static_cast<double>(p.batch)
                   : static_cast<double>(tiles * p.batch);
}

/// How many tiles one worker, an SM or a pair of them, computes behind each other. Tiles of one
/// length go round together; others fill each other's gaps.
inline double rounds_of(double tiles, int workers, bool alike) {
  const double rounds = tiles / max_of(workers, 1);
  return alike ? std::ceil(rounds) : max_of(rounds, 1.0);
}

}  // namespace fa4
