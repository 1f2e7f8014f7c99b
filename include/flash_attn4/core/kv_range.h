// Which blocks a tile visits, and which of them need a mask.
#pragma once

#include <cstdint>

#include "flash_attn4/core/mask.h"
#include "flash_attn4/core/types.h"

namespace fa4 {

/// Blocks [first, last) that a tile visits; of these, [full_first, full_last) are visible to every
/// row of the tile and lie within the sequence, so they need no mask. All are block indices.
struct BlockRange {
  int32_t first;
  int32_t last;
  int32_t full_first;
  int32_t full_last;

  FA4_HD constexpr int32_t size() const { return last > first ? last - first : 0; }
  FA4_HD constexpr bool needs_mask(int32_t block) const {
    return block < full_first || block >= full_last;
  }
};

namespace detail {

/// Blocks that touch the union `any` of the rows' intervals; full where they lie in the
/// intersection `all`.
FA4_HD constexpr BlockRange block_range(Interval any, Interval all, int32_t block_size) {
  if (any.empty()) return {0, 0, 0, 0};
  BlockRange range{};
  range.first = any.first / block_size;
  range.last = (any.last - 1) / block_size + 1;
  range.full_first =
      all.empty() ? range.last : static_cast<int32_t>(ceil_div<int64_t>(all.first, block_size));
  range.full_last = all.empty() ? range.last : all.last / block_size;
  range.full_first = clamp_to(range.full_first, range.first, range.last);
  range.full_last = clamp_to(range.full_last, range.full_first, range.last);
  return range;
}

}  // namespace detail

/// KV blocks of `block_size` keys for the query rows [row_first, row_last) of one sequence.
/// Rows at or past seqlen_q do not count. Both interval ends move monotonically with the row, so
/// the first and the last row bound all rows between them. Empty (first == last) when no row sees
/// a key.
FA4_HD constexpr BlockRange kv_range(int32_t row_first, int32_t row_last, int32_t block_size,
                                     int32_t seqlen_q, int32_t seqlen_k, Window window) {
  row_last = min_of(row_last, seqlen_q);
  if (row_first >= row_last) return {0, 0, 0, 0};
  const Interval low = visible_keys(row_first, seqlen_q, seqlen_k, window);
  const Interval high = visible_keys(row_last - 1, seqlen_q, seqlen_k, window);
  return detail::block_range({low.first, high.last}, {high.first, low.last}, block_size);
}

/// Query blocks of `block_size` rows that the keys [key_first, key_last) of one sequence visit: the
/// inverse of kv_range, for the backward. Keys at or past seqlen_k do not count.
FA4_HD constexpr BlockRange q_range(int32_t key_first, int32_t key_last, int32_t block_size,
                                    int32_t seqlen_q, int32_t seqlen_k, Window window) {
  key_last = min_of(key_last, seqlen_k);
  if (key_first >= key_last) return {0, 0, 0, 0};
  const Interval low = visible_rows(key_first, seqlen_q, seqlen_k, window);
  const Interval high = visible_rows(key_last - 1, seqlen_q, seqlen_k, window);
  return detail::block_range({low.first, high.last}, {high.first, low.last}, block_size);
}

}  // namespace fa4
