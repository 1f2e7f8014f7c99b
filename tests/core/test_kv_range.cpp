// Block ranges of tiles against the visible sets of their rows or keys, for all small sizes.
#include <gtest/gtest.h>

#include <array>
#include <cstdint>

#include "combinations.h"
#include "flash_attn4/core/kv_range.h"

namespace fa4 {
namespace {

constexpr int kMaxLength = 9;
constexpr int kMaxReach = 10;
constexpr int kBlockSizes[] = {1, 2, 3, 4, 5, 8, 16};

using Set = uint32_t;  // bit i: index i
constexpr Set kEverything = ~Set{0};

constexpr Set range_set(int first, int last) {
  return ((Set{1} << last) - 1) & ~((Set{1} << first) - 1);
}

/// What a tile may expect of its range: the blocks of `length` indices that meet `any`, the union
/// of what its rows see, and no mask exactly where a whole block lies in `all`, their intersection.
testing::AssertionResult check(BlockRange range, Set any, Set all, int length, int block_size) {
  if (any == 0) {
    if (range.size() == 0 && range.first == range.last) return testing::AssertionSuccess();
    return testing::AssertionFailure() << "a tile that sees nothing visits blocks";
  }
  for (int block = 0; block * block_size < length; ++block) {
    const int first = block * block_size;
    const bool whole = first + block_size <= length;
    const Set members = range_set(first, whole ? first + block_size : length);
    const bool visits = range.first <= block && block < range.last;
    if (visits != ((members & any) != 0))
      return testing::AssertionFailure() << "visits block " << block << ": " << visits;
    const bool full = whole && (members & ~all) == 0;
    if (visits && range.needs_mask(block) == full)
      return testing::AssertionFailure() << "masks block " << block << ": " << !full;
  }
  if (range.first < 0 || range.last * block_size >= length + block_size)
    return testing::AssertionFailure() << "visits blocks outside of the sequence";
  return testing::AssertionSuccess();
}

/// Checks the ranges of the tiles [first, last) with one `first` over `tile_length` indices, each
/// of which sees the set `visible[index]` of `length` indices.
template <class Range>
void check_tiles(const std::array<Set, kMaxLength>& visible, int first, int tile_length, int length,
                 const Range& range_of) {
  Set any = 0;
  Set all = kEverything;
  for (int last = first; last <= tile_length + 2; ++last) {
    if (last > first && last <= tile_length) {
      any |= visible[last - 1];
      all &= visible[last - 1];
    }
    for (int block_size : kBlockSizes)
      ASSERT_TRUE(check(range_of(first, last, block_size), any, all, length, block_size))
          << "tile " << first << " " << last << " of " << tile_length << ", " << length
          << " indices in blocks of " << block_size;
  }
}

template <class Body>
void for_each_problem(const Body& body) {
  for_each_combination(
      [&](int seqlen_q, int seqlen_k, int left, int right) {
        SCOPED_TRACE(testing::Message() << "seqlen_q " << seqlen_q << ", seqlen_k " << seqlen_k
                                        << ", window " << left << " " << right);
        body(seqlen_q, seqlen_k, Window{left, right});
      },
      from_to(0, kMaxLength), from_to(0, kMaxLength), from_to(-1, kMaxReach),
      from_to(-1, kMaxReach));
}

TEST(KvRange, VisitsAndMasksExactlyWhatTheRowsNeed) {
  for_each_problem([](int seqlen_q, int seqlen_k, Window window) {
    std::array<Set, kMaxLength> keys{};
    for (int row = 0; row < seqlen_q; ++row) {
      const Interval visible = visible_keys(row, seqlen_q, seqlen_k, window);
      keys[row] = visible.empty() ? 0 : range_set(visible.first, visible.last);
    }
    const auto range = [&](int first, int last, int block_size) {
      return kv_range(first, last, block_size, seqlen_q, seqlen_k, window);
    };
    for (int first = 0; first <= seqlen_q + 1; ++first)
      check_tiles(keys, first, seqlen_q, seqlen_k, range);
  });
}

TEST(QRange, VisitsAndMasksExactlyWhatTheKeysNeed) {
  for_each_problem([](int seqlen_q, int seqlen_k, Window window) {
    std::array<Set, kMaxLength> rows{};
    for (int key = 0; key < seqlen_k; ++key) {
      const Interval visible = visible_rows(key, seqlen_q, seqlen_k, window);
      rows[key] = visible.empty() ? 0 : range_set(visible.first, visible.last);
    }
    const auto range = [&](int first, int last, int block_size) {
      return q_range(first, last, block_size, seqlen_q, seqlen_k, window);
    };
    for (int first = 0; first <= seqlen_k + 1; ++first)
      check_tiles(rows, first, seqlen_k, seqlen_q, range);
  });
}

TEST(KvRange, CausalTileMasksItsDiagonalOnly) {
  const Window causal = make_window(true, -1, -1);
  const BlockRange range = kv_range(256, 384, 128, 1024, 1024, causal);
  EXPECT_EQ(range.first, 0);
  EXPECT_EQ(range.last, 3);
  EXPECT_FALSE(range.needs_mask(1));
  EXPECT_TRUE(range.needs_mask(2));
}

TEST(KvRange, LongestSequencesDoNotOverflow) {
  constexpr int32_t kMax = INT32_MAX;
  const Window causal = make_window(true, -1, -1);
  const BlockRange range = kv_range(kMax - 127, kMax, 128, kMax, kMax, causal);
  EXPECT_EQ(range.first, 0);
  EXPECT_EQ(range.last, kMax / 128 + 1);
  EXPECT_EQ(range.full_last, kMax / 128);
  const BlockRange window = kv_range(kMax - 1, kMax, 128, kMax, kMax, Window{0, kMax});
  EXPECT_EQ(window.first, kMax / 128);
  EXPECT_EQ(window.size(), 1);
}

}  // namespace
}  // namespace fa4
