// Query tiles against brute force: every row of the tensor belongs to one tile row, and the blocks
// of a tile hold exactly the keys that its rows see. All small sizes, dense and packed.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "combinations.h"
#include "flash_attn4/core/query_tile.h"

namespace fa4 {
namespace {

using Lengths = std::vector<int32_t>;

/// A call as a user sees it, and how its kernel cuts it.
struct Call {
  bool packed = false;
  Lengths lengths_q;  // rows present; dense: all equal
  Lengths lengths_k;
  int spare = 0;  // packed: rows of q that belong to no sequence
  std::optional<Lengths> used_q;
  std::optional<Lengths> used_k;
  int heads_k = 1;
  int group = 1;  // query heads per KV head
  bool pack_heads = false;
  int tile_rows = 4;
  int block_n = 2;
  int heads_per_group = 1;  // of the order
  Window window{Window::kUnbounded, Window::kUnbounded};

  int batch() const { return static_cast<int>(lengths_q.size()); }
  int packed_heads() const { return pack_heads ? group : 1; }
  int queries() const { return tile_rows / packed_heads(); }
  int counted_q(int sequence) const { return (used_q ? *used_q : lengths_q)[sequence]; }
  int counted_k(int sequence) const { return (used_k ? *used_k : lengths_k)[sequence]; }

  std::string text() const {
    const auto list = [](const Lengths& values) { return testing::PrintToString(values); };
    return std::string(packed ? "packed " : "dense ") + list(lengths_q) + " x " + list(lengths_k) +
           (used_q ? ", used_q " + list(*used_q) : "") +
           (used_k ? ", used_k " + list(*used_k) : "") + ", spare " + std::to_string(spare) +
           ", KV heads " + std::to_string(heads_k) + " x " + std::to_string(group) +
           (pack_heads ? " packed" : "") + ", tile rows " + std::to_string(tile_rows) + ", block " +
           std::to_string(block_n) + ", window " + std::to_string(window.left) + " " +
           std::to_string(window.right);
  }
};

Lengths offsets_of(const Lengths& lengths) {
  Lengths offsets{0};
  for (int32_t length : lengths) offsets.push_back(offsets.back() + length);
  return offsets;
}

/// What a launcher makes of a call; the arrays that the tiling points to live here.
struct Launch {
  Lengths offsets_q, offsets_k;
  QueryTiling tiling;

  explicit Launch(const Call& call)
      : offsets_q(offsets_of(call.lengths_q)), offsets_k(offsets_of(call.lengths_k)) {
    QueryTiling& t = tiling;
    t.seqused_q = call.used_q ? call.used_q->data() : nullptr;
    t.seqused_k = call.used_k ? call.used_k->data() : nullptr;
    t.batch = call.batch();
    t.queries = call.queries();
    t.heads_per_kv = call.pack_heads ? 1 : call.group;
    t.block_n = call.block_n;
    t.window = call.window;
    const int heads = call.heads_k * call.group / call.packed_heads();
    if (call.packed) {
      t.cu_seqlens_q = offsets_q.data();
      t.cu_seqlens_k = offsets_k.data();
      // Bounds that a user gives: nothing may depend on them.
      t.seqlen_q = 1000;
      t.seqlen_k = 2000;
      t.total_q = offsets_q.back() + call.spare;
      const int64_t slots = varlen_slots(t.total_q, t.batch, t.queries);
      t.order = {.tiles = static_cast<int32_t>(slots), .heads = heads, .batch = 1};
    } else {
      t.seqlen_q = call.lengths_q[0];
      t.seqlen_k = call.lengths_k[0];
      t.order = query_tile_order(ceil_div(t.seqlen_q, t.queries), heads, t.batch,
                                 call.heads_per_group, call.window);
    }
  }
};

/// Whether query `row` of a sequence sees `key`: the definition, in no way shared with the library.
bool sees(const Call& call, int sequence, int row, int key) {
  const int length_q = call.counted_q(sequence);
  const int length_k = call.counted_k(sequence);
  if (row >= length_q || key >= length_k) return false;
  const int place = row + length_k - length_q;
  const bool left = call.window.left < 0 || key >= place - call.window.left;
  const bool right = call.window.right < 0 || key <= place + call.window.right;
  return left && right;
}

/// A row of the tensor q, out or lse: place in it and in its sequence.
struct Place {
  int batch;  // coordinate
  int row;
  int sequence;
  int query;
};

std::vector<Place> all_rows(const Call& call) {
  std::vector<Place> places;
  int row = 0;
  for (int sequence = 0; sequence < call.batch(); ++sequence) {
    const bool last = call.packed && sequence + 1 == call.batch();
    const int rows = call.lengths_q[sequence] + (last ? call.spare : 0);
    if (!call.packed) row = 0;
    for (int query = 0; query < rows; ++query)
      places.push_back({call.packed ? 0 : sequence, row++, sequence, query});
  }
  return places;
}

/// Tile rows that own a (row of the tensor, query head), as the kernel's comment defines them.
std::vector<QueryTile> owners(const Call& call, const std::vector<QueryTile>& tiles,
                              const Place& place, int head) {
  const int packed = call.packed_heads();
  std::vector<QueryTile> found;
  for (const QueryTile& tile : tiles) {
    for (int row = 0; row < call.queries() * packed; ++row) {
      const int query = tile.first_query + row / packed;
      if (query >= tile.q_owned) continue;
      if (tile.batch == place.batch && tile.q_row + query == place.row &&
          tile.head * packed + row % packed == head)
        found.push_back(tile);
    }
  }
  return found;
}

void check_owner(const Call& call, const QueryTile& tile, const Place& place, int head) {
  const Lengths offsets_k = offsets_of(call.lengths_k);
  ASSERT_EQ(tile.q_length, call.counted_q(place.sequence));
  ASSERT_EQ(tile.k_length, call.counted_k(place.sequence));
  ASSERT_EQ(tile.k_row, call.packed ? offsets_k[place.sequence] : 0);
  ASSERT_EQ(place.row - tile.q_row, place.query);
  ASSERT_EQ(tile.kv_head, head / call.group);
  if (place.query >= call.counted_q(place.sequence)) return;
  const Interval keys = tile.keys_of(place.query);
  for (int key = 0; key < call.counted_k(place.sequence); ++key)
    ASSERT_EQ(keys.contains(key), sees(call, place.sequence, place.query, key)) << "key " << key;
  ASSERT_TRUE(keys.empty() || (keys.first >= 0 && keys.last <= tile.k_length));
}

/// The blocks of a tile of `sequence` against the keys that its queries see.
void check_blocks(const Call& call, const QueryTile& tile, int sequence) {
  const int first = tile.first_query;
  const int last = std::min(first + call.queries(), call.counted_q(sequence));
  bool visits_any = false;
  for (int block = 0; block * call.block_n < call.counted_k(sequence); ++block) {
    bool any = false;
    bool all = true;
    for (int query = first; query < last; ++query) {
      for (int key = block * call.block_n; key < (block + 1) * call.block_n; ++key) {
        const bool visible = sees(call, sequence, query, key);
        any |= visible;
        all &= visible;
      }
    }
    const bool visits = tile.blocks.first <= block && block < tile.blocks.last;
    ASSERT_EQ(visits, any) << "block " << block << " of the tile at query " << first;
    ASSERT_TRUE(!visits || tile.blocks.needs_mask(block) != all)
        << "block " << block << " of the tile at query " << first;
    visits_any |= visits;
  }
  ASSERT_EQ(tile.blocks.size() > 0, visits_any) << "query " << first;
  ASSERT_LT((tile.blocks.last - 1) * call.block_n, std::max(call.counted_k(sequence), 1));
}

/// Sequence of a tile of a packed call: the last one that starts at its rows and keys.
int sequence_of(const Call& call, const Launch& launch, const QueryTile& tile) {
  if (!call.packed) return tile.batch;
  for (int sequence = call.batch() - 1; sequence >= 0; --sequence) {
    const int end =
        sequence + 1 == call.batch() ? launch.tiling.total_q : launch.offsets_q[sequence + 1];
    if (launch.offsets_q[sequence] == tile.q_row && end - tile.q_row == tile.q_owned &&
        launch.offsets_k[sequence] == tile.k_row && call.counted_k(sequence) == tile.k_length)
      return sequence;
  }
  ADD_FAILURE() << "the tile at row " << tile.q_row << " belongs to no sequence";
  return 0;
}

void check(const Call& call) {
  SCOPED_TRACE(call.text());
  const Launch launch(call);
  const int64_t count = launch.tiling.order.count();
  std::vector<QueryTile> tiles;
  int idle = 0;
  for (int64_t linear = 0; linear < count; ++linear) {
    const QueryTile tile = query_tile(launch.tiling, linear);
    ASSERT_EQ(tile.valid, 1);
    ASSERT_TRUE(0 <= tile.head && 0 <= tile.first_query && tile.first_query % call.queries() == 0);
    check_blocks(call, tile, sequence_of(call, launch, tile));
    idle += tile.idle();
    ASSERT_TRUE(!tile.idle() || tile.blocks.size() == 0) << "an idle tile visits blocks";
    tiles.push_back(tile);
  }
  const int heads = call.heads_k * call.group;
  ASSERT_LE(idle, call.packed ? call.batch() * heads / call.packed_heads() : 0);
  for (const Place& place : all_rows(call)) {
    for (int head = 0; head < heads; ++head) {
      const std::vector<QueryTile> found = owners(call, tiles, place, head);
      ASSERT_EQ(found.size(), 1u) << "row " << place.row << " of batch " << place.batch << ", head "
                                  << head;
      check_owner(call, found[0], place, head);
    }
  }
  for (int64_t past : {count, count + 1, count + 1000, int64_t{INT32_MAX}})
    ASSERT_EQ(query_tile(launch.tiling, static_cast<int32_t>(past)).valid, 0);
}

const std::array kWindows = {Window{-1, -1}, Window{-1, 0}, Window{2, 0}, Window{1, 2},
                             Window{-1, 1},  Window{3, -1}, Window{0, 0}};

/// (KV heads, query heads per KV head, packed, rows of a tile): also rows that heads do not divide.
using Heads = std::tuple<int, int, bool, int>;
const std::array kHeads = {
    Heads{1, 1, false, 1}, Heads{1, 1, false, 3}, Heads{2, 1, false, 4},
    Heads{2, 3, false, 2}, Heads{1, 2, true, 4},  Heads{2, 2, true, 2},
    Heads{2, 3, true, 4},  Heads{1, 3, true, 8},  Heads{1, 5, true, 8},
};

Call with_heads(Call call, const Heads& heads) {
  std::tie(call.heads_k, call.group, call.pack_heads, call.tile_rows) = heads;
  call.heads_per_group = call.heads_k;
  return call;
}

/// Rows that count: all, none, or some, by sequence.
std::optional<Lengths> used_of(const Lengths& lengths, int kind) {
  if (kind == 0) return std::nullopt;
  Lengths used = lengths;
  for (size_t i = 0; i < used.size(); ++i)
    used[i] = kind == 1 ? used[i] / 2 : i % 2 == 0 ? 0 : used[i];
  return used;
}

TEST(QueryTile, DenseRowsAreOwnedOnce) {
  const auto check_one = [](int batch, int seqlen_q, int seqlen_k, const Heads& heads,
                            Window window, int used) {
    Call call;
    call.lengths_q = Lengths(batch, seqlen_q);
    call.lengths_k = Lengths(batch, seqlen_k);
    call.used_k = used_of(call.lengths_k, used);
    call.window = window;
    call.block_n = 1 + (seqlen_q + seqlen_k) % 4;
    check(with_heads(call, heads));
  };
  for_each_combination(check_one, from_to(1, 2), from_to(0, 7), from_to(0, 7), kHeads, kWindows,
                       from_to(0, 2));
}

TEST(QueryTile, PackedRowsAreOwnedOnce) {
  const auto check_one = [](const Lengths& lengths, const Heads& heads, Window window, int spare,
                            int used) {
    Call call;
    call.packed = true;
    call.lengths_q = lengths;
    call.spare = spare;
    for (size_t i = 0; i < lengths.size(); ++i)  // shorter, equal, longer, none
      call.lengths_k.push_back((2 * lengths[i] + 3 * static_cast<int>(i)) % 7);
    call.used_q = used_of(call.lengths_q, used % 3);
    call.used_k = used_of(call.lengths_k, used / 3);
    call.window = window;
    call.block_n = 1 + (lengths[0] + spare) % 3;
    check(with_heads(call, heads));
  };
  const auto check_lengths = [&](auto... lengths) {
    for_each_combination(check_one, std::array{Lengths{lengths...}}, kHeads, kWindows,
                         std::array{0, 1, 5}, std::array{0, 1, 5, 6});
  };
  const std::vector<int> lengths = {0, 1, 2, 3, 5};
  for_each_combination(check_lengths, lengths);
  for_each_combination(check_lengths, lengths, lengths);
  for_each_combination(check_lengths, lengths, lengths, lengths);
}

TEST(QueryTile, OneSequenceInEveryTile) {
  // Many short sequences: a tile has rows of one of them only.
  Call call;
  call.packed = true;
  call.lengths_q = {1, 1, 0, 1, 2, 0, 0, 1, 1, 1, 7, 1};
  call.lengths_k = {1, 2, 3, 0, 2, 1, 0, 5, 1, 1, 7, 9};
  for (const Heads& heads : kHeads)
    for (Window window : kWindows) {
      call.window = window;
      check(with_heads(call, heads));
    }
}

TEST(QueryTile, TheHopperTiles) {
  // 128 and 192 rows, blocks of 128 keys; 5 heads leave rows of the tile to nobody.
  for (const Heads& heads : {Heads{1, 1, false, 128}, Heads{1, 4, true, 128},
                             Heads{1, 5, true, 128}, Heads{1, 3, true, 192}}) {
    for (Window window : {Window{-1, -1}, Window{-1, 0}, Window{100, 7}}) {
      Call call;
      call.block_n = 128;
      call.window = window;
      call.lengths_q = {257, 257};
      call.lengths_k = {300, 300};
      check(with_heads(call, heads));
      call.packed = true;
      call.lengths_q = {128, 0, 130};
      call.lengths_k = {129, 60, 128};
      check(with_heads(call, heads));
    }
  }
}

TEST(QueryTile, NoSequences) {
  Call call;
  call.lengths_q = {3};
  call.lengths_k = {3};
  Launch launch(call);
  launch.tiling.order.batch = 0;
  EXPECT_EQ(query_tile(launch.tiling, 0).valid, 0);
}

TEST(QueryTile, LongestSequencesDoNotOverflow) {
  // Rows up to here can be launched: two tiles stay free behind them.
  constexpr int32_t kTileRows = 192;
  constexpr int32_t kMaxRows = (1 << 30) - 2 * kTileRows;
  QueryTiling t;
  t.batch = 1;
  t.seqlen_q = kMaxRows;
  t.seqlen_k = kMaxRows;
  t.queries = kTileRows;
  t.block_n = 128;
  t.window = make_window(true, -1, -1);
  const int32_t tiles = ceil_div(t.seqlen_q, t.queries);
  t.order = query_tile_order(tiles, 1, 1, 1, t.window);
  const QueryTile tile = query_tile(t, 0);  // causal: the last tile comes first
  EXPECT_EQ(tile.first_query, (tiles - 1) * kTileRows);
  EXPECT_FALSE(tile.idle());
  EXPECT_EQ(tile.blocks.first, 0);
  EXPECT_EQ(tile.blocks.last, ceil_div(kMaxRows, 128));

  // The first sequence ends in the middle of a tile, the second one with a tile: one slot is idle.
  const Lengths offsets = {0, kTileRows - 1, kMaxRows / kTileRows * kTileRows};
  t.cu_seqlens_q = t.cu_seqlens_k = offsets.data();
  t.batch = 2;
  t.total_q = offsets[2];
  t.order = {
      .tiles = static_cast<int32_t>(varlen_slots(t.total_q, 2, t.queries)), .heads = 1, .batch = 1};
  const QueryTile idle = query_tile(t, t.order.count() - 1);
  EXPECT_TRUE(idle.valid != 0 && idle.idle());
  EXPECT_GT(idle.first_query + t.queries, t.total_q);
  const QueryTile last = query_tile(t, t.order.count() - 2);
  EXPECT_EQ(last.q_row, kTileRows - 1);
  EXPECT_EQ(last.q_owned - last.first_query, 1);
}

TEST(QueryTile, KeysOfTheLongestSequencesDoNotOverflow) {
  constexpr int kMaxRows = (1 << 30) - 512;
  const auto check = [](int seqlen_q, int seqlen_k, int left, int right) {
    QueryTiling t;
    t.batch = 1;
    t.seqlen_q = seqlen_q;
    t.seqlen_k = seqlen_k;
    t.queries = 192;
    t.block_n = 128;
    t.window = {left, right};
    t.order = query_tile_order(ceil_div(seqlen_q, t.queries), 1, 1, 1, t.window);
    const QueryTile tile = query_tile(t, 0);
    for (int query : {0, seqlen_q / 2, seqlen_q - 1}) {
      const Interval got = tile.keys_of(query);
      const Interval want = visible_keys(query, seqlen_q, seqlen_k, t.window);
      ASSERT_EQ(got.size(), want.size()) << "query " << query << " of " << seqlen_q << ", "
                                         << seqlen_k << " keys, window " << left << " " << right;
      ASSERT_TRUE(want.empty() || got.first == want.first);
    }
  };
  const std::array lengths = {1, 1000, kMaxRows};
  const std::array windows = {-1, 0, 999, kMaxRows - 1, 1 << 30, INT32_MAX};
  for_each_combination(check, lengths, lengths, windows, windows);
}

}  // namespace
}  // namespace fa4
