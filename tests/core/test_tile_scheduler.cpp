// Tile orders against nested loops, and slots of packed sequences against their lengths.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <numeric>
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

/// Of each group of the order, whether it passes its tiles from the last to the first. The last
/// group is as `descending` says; turning, every other one is as the group behind it is not.
std::vector<bool> directions(const TileOrder& order) {
  const int groups = ceil_div(order.heads * order.batch, order.group);
  std::vector<bool> down(groups, order.descending);
  for (int group = groups - 2; group >= 0; --group)
    down[group] = order.turning ? !down[group + 1] : order.descending;
  return down;
}

/// The order as loops: groups, then tiles, then the pairs of the group.
std::vector<Tile> listed(const TileOrder& order) {
  std::vector<Tile> list;
  const int pairs = order.heads * order.batch;
  int first = 0;
  for (const bool down : directions(order)) {
    for (int step = 0; step < order.tiles; ++step)
      for (int pair = first; pair < std::min(first + order.group, pairs); ++pair)
        list.push_back(
            {pair / order.heads, pair % order.heads, down ? order.tiles - 1 - step : step});
    first += order.group;
  }
  return list;
}

TEST(TileOrder, EqualsTheLoops) {
  const auto check = [](int tiles, int heads, int batch, int group, bool descending, bool turning) {
    const TileOrder order{tiles, heads, batch, group, descending, turning};
    const std::vector<Tile> list = listed(order);
    ASSERT_EQ(order.count(), static_cast<int64_t>(list.size()));
    for (int linear = 0; linear < order.count(); ++linear) {
      const Tile got = order.at(linear);
      const Tile want = list[linear];
      ASSERT_TRUE(got.batch == want.batch && got.head == want.head && got.tile == want.tile)
          << "position " << linear << " of " << tiles << " x " << heads << " x " << batch
          << " in groups of " << group << (descending ? ", descending" : "")
          << (turning ? ", turning" : "") << ": got " << got.batch << " " << got.head << " "
          << got.tile << ", expected " << want.batch << " " << want.head << " " << want.tile;
    }
  };
  for_each_combination(check, from_to(0, 4), from_to(0, 4), from_to(0, 3), from_to(1, 14),
                       std::array{false, true}, std::array{false, true});
}

TEST(TileOrder, DefaultIsStatic) {
  const TileOrder order{.tiles = 3, .heads = 2, .batch = 2};
  const Tile tile = order.at(7);
  EXPECT_EQ(tile.batch, 1);
  EXPECT_EQ(tile.head, 0);
  EXPECT_EQ(tile.tile, 1);
}

/// What TileOrder::at says, with products of 64 bits.
Tile wide_at(const TileOrder& order, int64_t linear) {
  const int64_t pairs = int64_t{order.heads} * order.batch;
  const int64_t index = linear / (int64_t{order.group} * order.tiles);
  const int64_t first = index * order.group;
  const int64_t in_group = std::min<int64_t>(order.group, pairs - first);
  const int64_t step = (linear - first * order.tiles) / in_group;
  const int64_t pair = first + (linear - first * order.tiles) % in_group;
  const int64_t behind = (pairs - 1) / order.group - index;  // groups that follow
  const bool down = order.descending != (order.turning && behind % 2 == 1);
  return {static_cast<int32_t>(pair / order.heads), static_cast<int32_t>(pair % order.heads),
          static_cast<int32_t>(down ? order.tiles - 1 - step : step)};
}

TEST(TileOrder, PositionsNearTheLimitAreRight) {
  const auto check = [](int tiles_log2, int heads_log2, int group) {
    const int tiles = 1 << tiles_log2, heads = 1 << heads_log2;
    const int batch = 1 << (30 - tiles_log2 - heads_log2);
    const TileOrder order{tiles, heads, batch, std::min(group, heads * batch), true, true};
    ASSERT_EQ(order.count(), TileOrder::kMaxTiles);
    const int64_t count = TileOrder::kMaxTiles;
    const int64_t group_tiles = int64_t{order.group} * tiles;
    const int64_t last_border = (count - 1) / group_tiles * group_tiles;
    for (int64_t around : {int64_t{0}, group_tiles, count / 2, last_border, count}) {
      const int64_t first = std::max<int64_t>(around - 70, 0);
      for (int64_t linear = first; linear < std::min(around + 70, count); ++linear) {
        const Tile got = order.at(static_cast<int32_t>(linear));
        const Tile want = wide_at(order, linear);
        ASSERT_TRUE(got.batch == want.batch && got.head == want.head && got.tile == want.tile)
            << "position " << linear << " of " << tiles << " x " << heads << " x " << batch
            << " in groups of " << order.group << ": got " << got.batch << " " << got.head << " "
            << got.tile << ", expected " << want.batch << " " << want.head << " " << want.tile;
      }
    }
    const Tile last = order.at(order.count() - 1);
    ASSERT_TRUE(last.batch == batch - 1 && last.head == heads - 1 && last.tile == 0);
  };
  for_each_combination(check, std::array{0, 1, 14, 20, 24}, std::array{0, 3, 6},
                       std::array{1, 3, 16, 1000, 1 << 30});
}

/// Blocks of keys that the busiest of `blocks` persistent blocks works on, over those of the mean.
double busiest(const TileOrder& order, int length, int blocks) {
  constexpr int kTile = 128;
  std::vector<int64_t> work(blocks, 0);
  for (int block = 0; block < blocks; ++block)
    for (int linear = block; linear < order.count(); linear += blocks) {
      const int row = order.at(linear).tile * kTile;
      work[block] +=
          kv_range(row, row + kTile, kTile, length, length, make_window(true, -1, -1)).size();
    }
  const auto sum = static_cast<double>(std::accumulate(work.begin(), work.end(), int64_t{0}));
  return static_cast<double>(*std::max_element(work.begin(), work.end())) * blocks / sum;
}

TEST(TileOrder, TurningGroupsGiveEqualWork) {
  // 2048 tiles of causal attention, 16 heads and 16384 tokens, on the 132 SMs of an H100. What is
  // left, 3.1 %, is 16 tiles instead of the mean of 15.5 where all tiles are short.
  constexpr int kBlocks = 132;
  double one_direction = 0;
  for (int length = 512; length <= 16384; length *= 2)
    for (int group_tiles : {256, 512, 1024}) {
      TileOrder order{.tiles = length / 128, .heads = 16, .batch = 16384 / length};
      order.group = group_tiles / order.tiles;
      order.descending = true;
      one_direction = std::max(one_direction, busiest(order, length, kBlocks));
      order.turning = true;
      EXPECT_LT(busiest(order, length, kBlocks), 1.032)
          << length << " rows in groups of " << order.group;
    }
  EXPECT_NEAR(one_direction, 1.295, 0.001);
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
  EXPECT_FALSE(order.turning);
}

TEST(QueryTileOrder, GroupsAreOneToHalfOfThePairs) {
  const Window causal = make_window(true, -1, -1);
  EXPECT_EQ(query_tile_order(4, 3, 2, 0, causal).group, 1);
  EXPECT_EQ(query_tile_order(4, 3, 2, 2, causal).group, 2);
  EXPECT_EQ(query_tile_order(4, 3, 2, 5, causal).group, 3);
  EXPECT_EQ(query_tile_order(4, 3, 1, 7, causal).group, 2);
  EXPECT_EQ(query_tile_order(4, 3, 0, 7, causal).group, 1);
}

/// Keys that the tiles of `order` see, position by position; -1 for a partial tile, which may see
/// fewer than its place suggests.
std::vector<int> keys_in_order(const TileOrder& order, int tile_rows, int seqlen_q, int seqlen_k,
                               Window window) {
  std::vector<int> keys;
  for (int linear = 0; linear < order.count(); ++linear) {
    const int row = order.at(linear).tile * tile_rows;
    const bool partial = row + tile_rows > seqlen_q;
    keys.push_back(partial ? -1
                           : kv_range(row, row + tile_rows, 1, seqlen_q, seqlen_k, window).size());
  }
  return keys;
}

TEST(QueryTileOrder, OneSidedWindowsEndWithTheShortestAndNeverJump) {
  static constexpr int kTileRows = 2, kPairs = 9, kGroup = 4;  // groups of 4, 4 and 1
  const auto check = [](int seqlen_q, int seqlen_k, Window window) {
    const TileOrder order = query_tile_order(ceil_div(seqlen_q, kTileRows), 3, 3, kGroup, window);
    ASSERT_EQ(order.group, kGroup);
    ASSERT_TRUE(order.turning);
    const std::vector<int> keys = keys_in_order(order, kTileRows, seqlen_q, seqlen_k, window);
    const int last_group = order.tiles * (kPairs - 1);  // its first position
    for (int linear = 1; linear < order.count(); ++linear) {
      SCOPED_TRACE(testing::Message()
                   << "position " << linear << ", " << seqlen_q << " x " << seqlen_k << ", window "
                   << window.left << " " << window.right);
      ASSERT_LE(std::abs(order.at(linear).tile - order.at(linear - 1).tile), 1);
      if (keys[linear] < 0 || keys[linear - 1] < 0) continue;
      ASSERT_LE(std::abs(keys[linear] - keys[linear - 1]), kTileRows);
      ASSERT_TRUE(linear <= last_group || keys[linear] <= keys[linear - 1]);
    }
    for (int border : {order.tiles * kGroup, order.tiles * 2 * kGroup})
      ASSERT_EQ(order.at(border).tile, order.at(border - 1).tile);
  };
  for (int reach = 0; reach <= 10; ++reach)
    for_each_combination(check, from_to(1, 12), from_to(0, 12),
                         std::array{Window{-1, reach}, Window{reach, -1}});
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

TEST(VarlenTile, SlotsAreTheTilesOfAnOrder) {
  const int32_t offsets[] = {0, 300, 300, 400};
  const TileOrder order{
      .tiles = static_cast<int32_t>(varlen_slots(400, 3, 128)), .heads = 2, .batch = 1};
  std::vector<std::array<int, 3>> found;
  for (int linear = 0; linear < order.count(); ++linear) {
    const Tile place = order.at(linear);
    const VarlenTile tile = varlen_tile(place.tile, offsets, 3, 128);
    if (tile.tile * 128 < seq_span(tile.batch, 0, offsets, nullptr).length)
      found.push_back({place.head, tile.batch, tile.tile});
  }
  const std::vector<std::array<int, 3>> want = {{0, 0, 0}, {0, 0, 1}, {0, 0, 2}, {0, 2, 0},
                                                {1, 0, 0}, {1, 0, 1}, {1, 0, 2}, {1, 2, 0}};
  EXPECT_EQ(found, want);
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
