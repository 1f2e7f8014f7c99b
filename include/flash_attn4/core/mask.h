// Which keys a query may attend to. Causal attention is the window (left = unbounded, right = 0).
#pragma once

#include <cstdint>

#include "flash_attn4/core/types.h"

namespace fa4 {

/// Half-open interval [first, last) of indices; empty when first >= last.
struct Interval {
  int32_t first;
  int32_t last;

  FA4_HD constexpr bool empty() const { return first >= last; }
  FA4_HD constexpr int32_t size() const { return empty() ? 0 : last - first; }
  FA4_HD constexpr bool contains(int32_t index) const { return first <= index && index < last; }
};

/// Reach of a query to the left and right of its own position, in tokens.
struct Window {
  int32_t left;   // kUnbounded or >= 0
  int32_t right;  // kUnbounded or >= 0

  static constexpr int32_t kUnbounded = -1;
  FA4_HD constexpr bool bounded() const { return left != kUnbounded || right != kUnbounded; }
};

/// Window of a call. Causal attention never looks right; values beyond 2^31 - 1 are clamped, which
/// no sequence can tell from the exact value.
FA4_HD constexpr Window make_window(bool causal, int64_t left, int64_t right) {
  constexpr int64_t kMax = INT32_MAX;
  if (causal) right = 0;
  return {static_cast<int32_t>(left < 0 ? Window::kUnbounded : min_of(left, kMax)),
          static_cast<int32_t>(right < 0 ? Window::kUnbounded : min_of(right, kMax))};
}

/// Keys that query `row` may attend to.
///   row          query index in its sequence, [0, seqlen_q)
/// Queries are aligned to the end of the keys: row r stands at key r + seqlen_k - seqlen_q.
/// Empty when the row sees nothing; such a row yields out = 0, lse = -inf.
FA4_HD constexpr Interval visible_keys(int32_t row, int32_t seqlen_q, int32_t seqlen_k,
                                       Window window) {
  const int64_t position = int64_t{row} + seqlen_k - seqlen_q;
  const int64_t first = window.left == Window::kUnbounded ? 0 : position - window.left;
  const int64_t last = window.right == Window::kUnbounded ? seqlen_k : position + window.right + 1;
  return {static_cast<int32_t>(clamp_to<int64_t>(first, 0, seqlen_k)),
          static_cast<int32_t>(clamp_to<int64_t>(last, 0, seqlen_k))};
}

/// Queries that see key `key`: the inverse of visible_keys, for loops over query rows.
FA4_HD constexpr Interval visible_rows(int32_t key, int32_t seqlen_q, int32_t seqlen_k,
                                       Window window) {
  const int64_t position = int64_t{key} - seqlen_k + seqlen_q;
  const int64_t first = window.right == Window::kUnbounded ? 0 : position - window.right;
  const int64_t last = window.left == Window::kUnbounded ? seqlen_q : position + window.left + 1;
  return {static_cast<int32_t>(clamp_to<int64_t>(first, 0, seqlen_q)),
          static_cast<int32_t>(clamp_to<int64_t>(last, 0, seqlen_q))};
}

}  // namespace fa4
