// Visible keys and rows against the definition of attention windows, for all small sizes.
#include <gtest/gtest.h>

#include <cstdint>

#include "combinations.h"
#include "flash_attn4/core/mask.h"

namespace fa4 {
namespace {

constexpr int kMaxLength = 9;
constexpr int kMaxReach = 10;  // beyond every length

/// The definition, one pair at a time.
bool sees(int row, int key, int seqlen_q, int seqlen_k, Window window) {
  const int distance = key - (row + seqlen_k - seqlen_q);
  return (window.left == -1 || distance >= -window.left) &&
         (window.right == -1 || distance <= window.right);
}

template <class Body>
void for_each_problem(const Body& body) {
  for_each_combination([&](int seqlen_q, int seqlen_k, int left,
                           int right) { body(seqlen_q, seqlen_k, Window{left, right}); },
                       from_to(0, kMaxLength), from_to(0, kMaxLength), from_to(-1, kMaxReach),
                       from_to(-1, kMaxReach));
}

TEST(VisibleKeys, MatchesDefinition) {
  for_each_problem([](int seqlen_q, int seqlen_k, Window window) {
    for (int row = 0; row < seqlen_q; ++row) {
      const Interval keys = visible_keys(row, seqlen_q, seqlen_k, window);
      ASSERT_GE(keys.first, 0);
      ASSERT_LE(keys.last, seqlen_k);
      int count = 0;
      for (int key = 0; key < seqlen_k; ++key) {
        const bool visible = sees(row, key, seqlen_q, seqlen_k, window);
        count += visible;
        ASSERT_EQ(keys.contains(key), visible)
            << "row " << row << " of " << seqlen_q << ", key " << key << " of " << seqlen_k
            << ", window " << window.left << " " << window.right;
      }
      ASSERT_EQ(keys.size(), count);
      ASSERT_EQ(keys.empty(), count == 0);
    }
  });
}

TEST(VisibleRows, IsTheInverseOfVisibleKeys) {
  for_each_problem([](int seqlen_q, int seqlen_k, Window window) {
    for (int key = 0; key < seqlen_k; ++key) {
      const Interval rows = visible_rows(key, seqlen_q, seqlen_k, window);
      ASSERT_GE(rows.first, 0);
      ASSERT_LE(rows.last, seqlen_q);
      for (int row = 0; row < seqlen_q; ++row) {
        ASSERT_EQ(rows.contains(row), visible_keys(row, seqlen_q, seqlen_k, window).contains(key))
            << "row " << row << " of " << seqlen_q << ", key " << key << " of " << seqlen_k
            << ", window " << window.left << " " << window.right;
      }
    }
  });
}

TEST(VisibleKeys, CausalIsAlignedToTheEnd) {
  const Window causal = make_window(true, -1, -1);
  EXPECT_EQ(visible_keys(0, 2, 5, causal).last, 4);
  EXPECT_EQ(visible_keys(1, 2, 5, causal).last, 5);
  EXPECT_TRUE(visible_keys(2, 5, 2, causal).empty());
  EXPECT_EQ(visible_keys(3, 5, 2, causal).last, 1);
}

TEST(VisibleKeys, LongestSequencesAndWindowsDoNotOverflow) {
  constexpr int32_t kMax = INT32_MAX;
  const Interval last = visible_keys(kMax - 1, kMax, kMax, Window{kMax, kMax});
  EXPECT_EQ(last.first, 0);
  EXPECT_EQ(last.last, kMax);
  const Interval diagonal = visible_keys(kMax - 1, kMax, kMax, Window{0, 0});
  EXPECT_EQ(diagonal.first, kMax - 1);
  EXPECT_EQ(diagonal.last, kMax);
  EXPECT_TRUE(visible_keys(0, kMax, 1, Window{kMax, 0}).empty());
  const Interval rows = visible_rows(kMax - 1, 1, kMax, Window{kMax, kMax});
  EXPECT_EQ(rows.first, 0);
  EXPECT_EQ(rows.last, 1);
}

TEST(MakeWindow, CausalEndsAtTheRowItself) {
  EXPECT_EQ(make_window(true, -1, -1).right, 0);
  EXPECT_EQ(make_window(true, -1, 7).right, 0);
  EXPECT_EQ(make_window(true, 3, -1).left, 3);
  EXPECT_EQ(make_window(false, -1, 7).right, 7);
}

TEST(MakeWindow, NegativeIsUnboundedAndLargeIsClamped) {
  EXPECT_FALSE(make_window(false, -1, -1).bounded());
  EXPECT_FALSE(make_window(false, -5, INT64_MIN).bounded());
  EXPECT_TRUE(make_window(false, 0, -1).bounded());
  EXPECT_TRUE(make_window(true, -1, -1).bounded());
  const Window wide = make_window(false, INT64_MAX, int64_t{INT32_MAX} + 1);
  EXPECT_EQ(wide.left, INT32_MAX);
  EXPECT_EQ(wide.right, INT32_MAX);
}

}  // namespace
}  // namespace fa4
