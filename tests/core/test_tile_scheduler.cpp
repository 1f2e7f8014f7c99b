// Tile orders against nested loops, and slots of packed sequences against their lengths.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "combinations.h"
#include "flash_attn4/core/kv_range.h"
#include "flash_attn4/core/seqlen.h"
#include "flash_attn4/core/tile_scheduler.h"

namespace fa4 {
namespace {

/// The order as loops: groups, then tiles, then the pairs of the group.
std::vector<Tile> listed(const TileOrder& order) {
  std::vector<Tile> list;
  const int64_t pairs = order.heads * order.batch;
  for (int64_t first = 0; first < pairs; first += order.group)
    for (int64_t step = 0; step < order.tiles; ++step)
      for (int64_t pair = first; pair < std::min(first + order.group, pairs); ++pair)
        list.push_back({static_cast<int32_t>(pair / order.heads),
                        static_cast<int32_t>(pair % order.heads),
                        static_cast<int32_t>(order.descending ? order.tiles - 1 - step : step)});
  return list;
}

TEST(TileOrder, EqualsTheLoops) {
  const auto check = [](int tiles, int heads, int batch, int group, bool descending) {
    const TileOrder order{tiles, heads, batch, group, descending};
    const std::vector<Tile> list = listed(order);
    ASSERT_EQ(order.count(), static_cast<int64_t>(list.size()));
    for (int64_t linear = 0; linear < order.count(); ++linear) {
      const Tile got = order.at(linear);
      const Tile want = list[linear];
      ASSERT_TRUE(got.batch == want.batch && got.head == want.head && got.tile == want.tile)
          << "position " << linear << " of " << tiles << " x " << heads << " x " << batch
          << " in groups of " << group << ": got " << got.batch << " " << got.head << " "
          << got.tile << ", expected " << want.batch << " " << want.head << " " << want.tile;
    }
  };
  for_each_combination(check, from_to(0, 4), from_to(0, 4), from_to(0, 3), from_to(1, 14),
                       std::array{false, true});
}

TEST(TileOrder, DefaultIsStatic) {
  const TileOrder order{.tiles = 3, .heads = 2, .batch = 2};
  const Tile tile = order.at(7);
  EXPECT_EQ(tile.batch, 1);
  EXPECT_EQ(tile.head, 0);
  EXPECT_EQ(tile.tile, 1);
}

TEST(TileOrder, CountsBeyond32Bit) {
  const TileOrder order{1 << 20, 64, 1024, 16, true};
  const Tile last = order.at(order.count() - 1);
  EXPECT_EQ(order.count(), int64_t{1} << 36);
  EXPECT_EQ(last.batch, 1023);
  EXPECT_EQ(last.head, 63);
  EXPECT_EQ(last.tile, 0);
}

TEST(HeadsPerGroup, IsTheLargestPowerOfTwoWithinTheBudget) {
  const auto check = [](int kv_heads, int ratio, int bytes, int budget) {
    int best = 1;
    for (int group = 1; group < 2 * kv_heads; group *= 2)
      if (group * bytes <= budget) best = group;
    ASSERT_EQ(heads_per_group(kv_heads, ratio, bytes, budget), best * ratio)
        << kv_heads << " heads of " << bytes << " bytes, budget " << budget;
  };
  for_each_combination(check, from_to(1, 40), std::array{1, 3, 8}, from_to(0, 30), from_to(0, 100));
}

TEST(QueryTileOrder, WithoutAWindowIsStatic) {
  const TileOrder order = query_tile_order(4, 6, 2, 8, Window{-1, -1});
  EXPECT_EQ(order.group, 1);
  EXPECT_FALSE(order.descending);
}

TEST(QueryTileOrder, OneSidedWindowsComeLongestFirst) {
  constexpr int kTileRows = 2;
  const auto check = [](int seqlen_q, int seqlen_k, Window window) {
    const TileOrder order =
        query_tile_order(ceil_div(seqlen_q, kTileRows), 3, 2, /*group=*/4, window);
    ASSERT_EQ(order.group, 4);
    int before = std::numeric_limits<int>::max();
    for (int64_t linear = 0; linear < order.tiles * order.group; ++linear) {
      const int row = order.at(linear).tile * kTileRows;
      if (row + kTileRows > seqlen_q) continue;  // a partial tile may be shorter
      const int keys = kv_range(row, row + kTileRows, 1, seqlen_q, seqlen_k, window).size();
      ASSERT_LE(keys, before) << seqlen_q << " " << seqlen_k << ", window " << window.left << " "
                              << window.right;
      before = keys;
    }
  };
  for (int reach = 0; reach <= 10; ++reach)
    for_each_combination(check, from_to(1, 12), from_to(0, 12),
                         std::array{Window{-1, reach}, Window{reach, -1}});
}

TEST(StridedTiles, BlocksShareThePositions) {
  const auto check = [](int count, int blocks) {
    std::vector<int> visits(count, 0);
    for (int block = 0; block < blocks; ++block)
      for (StridedTiles tiles{block, blocks, count}; !tiles.done(); tiles.advance())
        ++visits[tiles.linear];
    ASSERT_EQ(std::count(visits.begin(), visits.end(), 1), count);
  };
  for_each_combination(check, from_to(0, 20), from_to(1, 7));
}

/// Checks that the slots hold every tile of every sequence once, and at most one idle slot for each
/// sequence; `spare` rows at the end of the tensor belong to none.
void check_slots(const std::vector<int32_t>& lengths, int tile_rows, int spare) {
  const int batch = static_cast<int>(lengths.size());
  std::vector<int32_t> offsets{0};
  for (int32_t length : lengths) offsets.push_back(offsets.back() + length);
  const int64_t slots = varlen_slots(offsets.back() + spare, batch, tile_rows);

  std::set<std::pair<int, int>> tiles;
  std::vector<int> idle(batch, 0);
  for (int slot = 0; slot < slots; ++slot) {
    const VarlenTile tile = varlen_tile(slot, offsets.data(), batch, tile_rows);
    ASSERT_TRUE(0 <= tile.batch && tile.batch < batch && tile.tile >= 0);
    if (tile.tile * tile_rows < seq_span(tile.batch, 0, offsets.data(), nullptr).length) {
      ASSERT_TRUE(tiles.emplace(tile.batch, tile.tile).second) << "slot " << slot;
    } else {
      ++idle[tile.batch];
    }
  }
  size_t needed = 0;
  for (int sequence = 0; sequence < batch; ++sequence) {
    needed += ceil_div(lengths[sequence], tile_rows);
    const int tail = sequence + 1 == batch ? ceil_div(spare, tile_rows) : 0;
    ASSERT_LE(idle[sequence], 1 + tail);
  }
  ASSERT_EQ(tiles.size(), needed);
}

TEST(VarlenTile, SlotsHoldEveryTileOnce) {
  const auto check = [](const std::vector<int32_t>& lengths) {
    for_each_combination(
        [&](int tile_rows, int spare) {
          SCOPED_TRACE(testing::PrintToString(lengths) + " in tiles of " +
                       std::to_string(tile_rows));
          check_slots(lengths, tile_rows, spare);
        },
        from_to(1, 4), from_to(0, 3));
  };
  const std::vector<int> lengths = from_to(0, 5);
  const auto check_some = [&](auto... some) { check({some...}); };
  for_each_combination(check_some, lengths);
  for_each_combination(check_some, lengths, lengths);
  for_each_combination(check_some, lengths, lengths, lengths);
  for_each_combination(check_some, lengths, lengths, lengths, lengths);
}

TEST(VarlenTile, CombinesWithAnOrderLongestFirst) {
  const int32_t offsets[] = {0, 300, 300, 400};
  const TileOrder order = query_tile_order(varlen_slots(400, 3, 128), /*heads=*/2, /*batch=*/1,
                                           /*group=*/2, make_window(true, -1, -1));
  std::vector<std::pair<int, int>> first_head;
  for (int64_t linear = 0; linear < order.count(); linear += 2) {
    const VarlenTile tile = varlen_tile(order.at(linear).tile, offsets, 3, 128);
    if (tile.tile * 128 < seq_span(tile.batch, 0, offsets, nullptr).length)
      first_head.emplace_back(tile.batch, tile.tile);
  }
  const std::vector<std::pair<int, int>> want = {{2, 0}, {0, 2}, {0, 1}, {0, 0}};
  EXPECT_EQ(first_head, want);
}

TEST(VarlenTile, FullIndexRange) {
  const int32_t offsets[] = {0, INT32_MAX - 10, INT32_MAX};
  const int64_t slots = varlen_slots(INT32_MAX, 2, 128);
  const VarlenTile last = varlen_tile(static_cast<int32_t>(slots - 1), offsets, 2, 128);
  EXPECT_EQ(last.batch, 1);
  EXPECT_EQ(last.tile, 0);
}

}  // namespace
}  // namespace fa4
