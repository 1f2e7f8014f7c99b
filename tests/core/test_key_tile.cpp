// Key tiles and the blocks of the accumulators' rows against brute force: every key of the tensor
// belongs to one tile, the blocks of a tile hold exactly the queries that see its keys, and no two
// rows share an accumulator. All small sizes, dense and packed.
#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "combinations.h"
#include "csrc/common/bwd_args.h"
#include "flash_attn4/core/key_tile.h"

namespace fa4 {
namespace {

using Lengths = std::vector<int32_t>;

/// A call as a user sees it, and how its kernels cut it.
struct Call {
  bool packed = false;
  Lengths lengths_q;  // rows present; dense: all equal
  Lengths lengths_k;
  int spare_q = 0;  // packed: rows that belong to no sequence
  int spare_k = 0;
  std::optional<Lengths> used_q;
  std::optional<Lengths> used_k;
  int heads_k = 1;
  int block_m = 2;
  int block_n = 3;
  Window window{Window::kUnbounded, Window::kUnbounded};

  int batch() const { return static_cast<int>(lengths_q.size()); }
  int counted_q(int sequence) const { return (used_q ? *used_q : lengths_q)[sequence]; }
  int counted_k(int sequence) const { return (used_k ? *used_k : lengths_k)[sequence]; }
  /// Rows from a sequence's first on that no other sequence has.
  int owned_q(int sequence) const {
    return lengths_q[sequence] + (packed && sequence + 1 == batch() ? spare_q : 0);
  }
  int owned_k(int sequence) const {
    return lengths_k[sequence] + (packed && sequence + 1 == batch() ? spare_k : 0);
  }

  std::string text() const {
    const auto list = [](const Lengths& values) { return testing::PrintToString(values); };
    return std::string(packed ? "packed " : "dense ") + list(lengths_q) + " x " + list(lengths_k) +
           (used_q ? ", used_q " + list(*used_q) : "") +
           (used_k ? ", used_k " + list(*used_k) : "") + ", spare " + std::to_string(spare_q) +
           " x " + std::to_string(spare_k) + ", KV heads " + std::to_string(heads_k) +
           ", blocks of " + std::to_string(block_m) + " x " + std::to_string(block_n) +
           ", window " + std::to_string(window.left) + " " + std::to_string(window.right);
  }
};

Lengths offsets_of(const Lengths& lengths) {
  Lengths offsets{0};
  for (int32_t length : lengths) offsets.push_back(offsets.back() + length);
  return offsets;
}

/// What a launcher makes of a call; the arrays that it points to live here.
struct Launch {
  Lengths offsets_q, offsets_k;
  KeyTiling tiling;
  BwdRows rows{};

  explicit Launch(const Call& call)
      : offsets_q(offsets_of(call.lengths_q)), offsets_k(offsets_of(call.lengths_k)) {
    KeyTiling& t = tiling;
    t.seqused_q = call.used_q ? call.used_q->data() : nullptr;
    t.seqused_k = call.used_k ? call.used_k->data() : nullptr;
    t.batch = call.batch();
    t.block_m = call.block_m;
    t.block_n = call.block_n;
    t.window = call.window;
    if (call.packed) {
      t.cu_seqlens_q = offsets_q.data();
      t.cu_seqlens_k = offsets_k.data();
      // Bounds that a user gives: nothing may depend on them.
      t.seqlen_q = 1000;
      t.seqlen_k = 2000;
      t.total_k = offsets_k.back() + call.spare_k;
      const int64_t slots = varlen_slots(t.total_k, t.batch, t.block_n);
      t.order = {.tiles = static_cast<int32_t>(slots), .heads = call.heads_k, .batch = 1};
      rows.total_q = offsets_q.back() + call.spare_q;
    } else {
      t.seqlen_q = call.lengths_q[0];
      t.seqlen_k = call.lengths_k[0];
      t.order = {.tiles = ceil_div(t.seqlen_k, t.block_n), .heads = call.heads_k, .batch = t.batch};
    }
    rows.cu_seqlens_q = t.cu_seqlens_q;
    rows.seqused_q = t.seqused_q;
    rows.batch = t.batch;
    rows.seqlen_q = t.seqlen_q;
    rows.block_m = t.block_m;
    rows.acc_rows = accumulator_rows(t.batch, t.seqlen_q, rows.total_q, call.packed, call.block_m);
  }

  int acc_row(const Call& call, int sequence) const {
    return accumulator_row(sequence, tiling.seqlen_q, call.packed ? offsets_q[sequence] : 0,
                           call.packed, call.block_m);
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

/// What the tile says of its sequence and of each of its keys.
void check_keys(const Call& call, const Launch& launch, const KeyTile& tile, int sequence) {
  ASSERT_EQ(tile.batch, call.packed ? 0 : sequence);
  ASSERT_EQ(tile.k_row, call.packed ? launch.offsets_k[sequence] : 0);
  ASSERT_EQ(tile.q_row, call.packed ? launch.offsets_q[sequence] : 0);
  ASSERT_EQ(tile.k_length, call.counted_k(sequence));
  ASSERT_EQ(tile.q_length, call.counted_q(sequence));
  ASSERT_EQ(tile.k_owned, call.owned_k(sequence));
  ASSERT_EQ(tile.acc_row, launch.acc_row(call, sequence));
  for (int key = tile.first_key; key < tile.first_key + call.block_n; ++key) {
    const Interval queries = tile.queries_of(key);
    for (int query = 0; query < tile.q_length; ++query) {
      ASSERT_EQ(queries.contains(query), sees(call, sequence, query, key))
          << "query " << query << ", key " << key;
    }
    ASSERT_TRUE(queries.empty() || (queries.first >= 0 && queries.last <= tile.q_length));
  }
}

/// The blocks of a tile against the queries that see its keys.
void check_blocks(const Call& call, const KeyTile& tile, int sequence) {
  bool visits_any = false;
  const int last_key = min_of(tile.first_key + call.block_n, tile.k_length);
  for (int block = 0; block * call.block_m < tile.q_length; ++block) {
    bool any = false;
    bool all = true;
    for (int query = block * call.block_m; query < (block + 1) * call.block_m; ++query) {
      for (int key = tile.first_key; key < last_key; ++key) {
        const bool visible = sees(call, sequence, query, key);
        any |= visible;
        all &= visible;
      }
    }
    const bool visits = tile.blocks.first <= block && block < tile.blocks.last;
    ASSERT_EQ(visits, any) << "block " << block << " of the tile at key " << tile.first_key;
    ASSERT_TRUE(!visits || tile.blocks.needs_mask(block) != all)
        << "block " << block << " of the tile at key " << tile.first_key;
    // A block counts its turns from the first or the last of these tiles on.
    const BlockRange tiles = kv_range(block * call.block_m, (block + 1) * call.block_m,
                                      call.block_n, tile.q_length, tile.k_length, call.window);
    const int index = tile.first_key / call.block_n;
    ASSERT_EQ(visits, tiles.first <= index && index < tiles.last) << "block " << block;
    visits_any |= visits;
  }
  ASSERT_EQ(tile.blocks.size() > 0, visits_any) << "key " << tile.first_key;
}

/// Every key of the tensor is in one tile.
void check_tiles(const Call& call, const Launch& launch) {
  std::set<std::vector<int>> keys;  // sequence, key, head
  const int32_t count = launch.tiling.order.count();
  for (int32_t linear = 0; linear < count; ++linear) {
    const KeyTile tile = key_tile(launch.tiling, linear);
    ASSERT_EQ(tile.valid, 1);
    ASSERT_TRUE(tile.first_key >= 0 && tile.first_key % call.block_n == 0);
    int sequence = tile.batch;
    if (call.packed) {
      sequence = varlen_tile(launch.tiling.order.at(linear).tile, launch.offsets_k.data(),
                             call.batch(), call.block_n)
                     .batch;
    }
    check_keys(call, launch, tile, sequence);
    check_blocks(call, tile, sequence);
    if (testing::Test::HasFatalFailure()) return;
    ASSERT_TRUE(!tile.idle() || tile.blocks.size() == 0) << "an idle tile visits blocks";
    const int last = min_of(tile.first_key + call.block_n, tile.k_owned);
    for (int key = tile.first_key; key < last; ++key) {
      const std::vector<int> place = {sequence, key, tile.kv_head};
      ASSERT_TRUE(keys.insert(place).second) << testing::PrintToString(place);
    }
  }
  size_t present = 0;
  for (int sequence = 0; sequence < call.batch(); ++sequence) present += call.owned_k(sequence);
  ASSERT_EQ(keys.size(), present * call.heads_k);
  for (int32_t past : {count, count + 1, count + 1000, INT32_MAX})
    ASSERT_EQ(key_tile(launch.tiling, past).valid, 0);
}

/// Every query has a row of the accumulators for itself, and row_block knows it.
void check_rows(const Call& call, const Launch& launch) {
  std::vector<int> owner(launch.rows.acc_rows, -1);  // row of the tensor * batch + coordinate
  const auto name = [&](int batch, int row) { return row * call.batch() + batch; };
  size_t written = 0;
  for (int block = 0; block < launch.rows.blocks(); ++block) {
    const RowBlock found = row_block(launch.rows, block);
    ASSERT_TRUE(0 <= found.used && found.used <= found.owned && found.owned <= call.block_m);
    for (int row = 0; row < found.owned; ++row, ++written)
      owner[block * call.block_m + row] = name(found.batch, found.first_row + row);
  }
  size_t present = 0;
  for (int sequence = 0; sequence < call.batch(); ++sequence) {
    const int first = call.packed ? launch.offsets_q[sequence] : 0;
    for (int query = 0; query < call.owned_q(sequence); ++query, ++present) {
      const int row = launch.acc_row(call, sequence) + query;
      ASSERT_LT(row, launch.rows.acc_rows) << "sequence " << sequence;
      ASSERT_EQ(owner[row], name(call.packed ? 0 : sequence, first + query));
      const RowBlock found = row_block(launch.rows, row / call.block_m);
      ASSERT_EQ(row % call.block_m < found.used, query < call.counted_q(sequence))
          << "query " << query << " of sequence " << sequence;
    }
    ASSERT_EQ(launch.acc_row(call, sequence) % call.block_m, 0);
  }
  ASSERT_EQ(written, present) << "rows that no block owns, or two";
}

void check(const Call& call) {
  SCOPED_TRACE(call.text());
  const Launch launch(call);
  check_tiles(call, launch);
  if (!testing::Test::HasFatalFailure()) check_rows(call, launch);
}

const std::array kWindows = {Window{-1, -1}, Window{-1, 0}, Window{2, 0}, Window{1, 2},
                             Window{-1, 1},  Window{3, -1}, Window{0, 0}};

/// Rows that count: all, half, or none and all by turns.
std::optional<Lengths> used_of(const Lengths& lengths, int kind) {
  if (kind == 0) return std::nullopt;
  Lengths used = lengths;
  for (size_t i = 0; i < used.size(); ++i)
    used[i] = kind == 1 ? used[i] / 2 : i % 2 == 0 ? 0 : used[i];
  return used;
}

TEST(KeyTile, DenseKeysAreOwnedOnce) {
  const auto check_one = [](int batch, int seqlen_q, int seqlen_k, int block_m, int block_n,
                            Window window, int used) {
    Call call;
    call.lengths_q = Lengths(batch, seqlen_q);
    call.lengths_k = Lengths(batch, seqlen_k);
    call.used_k = used_of(call.lengths_k, used);
    call.used_q = used_of(call.lengths_q, (used + seqlen_k) % 3);
    call.heads_k = 1 + seqlen_q % 2;
    call.block_m = block_m;
    call.block_n = block_n;
    call.window = window;
    check(call);
  };
  for_each_combination(check_one, from_to(1, 2), from_to(1, 7), from_to(0, 7), from_to(1, 4),
                       from_to(1, 4), kWindows, from_to(0, 2));
}

TEST(KeyTile, PackedKeysAreOwnedOnce) {
  const auto check_one = [](const Lengths& lengths, int block_m, Window window, int spare,
                            int used) {
    Call call;
    call.packed = true;
    call.lengths_q = lengths;
    call.spare_q = spare;
    call.spare_k = 5 - spare;
    for (size_t i = 0; i < lengths.size(); ++i)  // shorter, equal, longer, none
      call.lengths_k.push_back((2 * lengths[i] + 3 * static_cast<int>(i)) % 7);
    call.used_q = used_of(call.lengths_q, used % 3);
    call.used_k = used_of(call.lengths_k, used / 3);
    call.window = window;
    call.block_m = block_m;
    call.block_n = 1 + (lengths[0] + spare) % 3;
    check(call);
  };
  const auto check_lengths = [&](auto... lengths) {
    for_each_combination(check_one, std::array{Lengths{lengths...}}, from_to(1, 4), kWindows,
                         std::array{0, 1, 5}, std::array{0, 1, 5, 6});
  };
  const std::vector<int> lengths = {0, 1, 2, 3, 5};
  for_each_combination(check_lengths, lengths);
  for_each_combination(check_lengths, lengths, lengths);
  for_each_combination(check_lengths, lengths, lengths, lengths);
}

TEST(KeyTile, OneSequenceInEveryTileAndBlock) {
  Call call;
  call.packed = true;
  call.lengths_q = {1, 1, 0, 1, 2, 0, 0, 1, 1, 1, 7, 1};
  call.lengths_k = {1, 2, 3, 0, 2, 1, 0, 5, 1, 1, 7, 9};
  for (int block : {1, 2, 4, 8}) {
    call.block_m = call.block_n = block;
    for (Window window : kWindows) {
      call.window = window;
      check(call);
    }
  }
}

TEST(KeyTile, TheHopperTiles) {
  for (int block_m : {64, 128}) {
    for (Window window : {Window{-1, -1}, Window{-1, 0}, Window{100, 7}}) {
      Call call;
      call.block_m = block_m;
      call.block_n = 128;
      call.window = window;
      call.lengths_q = {257, 257};
      call.lengths_k = {300, 300};
      check(call);
      call.packed = true;
      call.lengths_q = {128, 0, 130};
      call.lengths_k = {129, 60, 128};
      check(call);
    }
  }
}

TEST(KeyTile, LongestSequencesDoNotOverflow) {
  constexpr int kMaxRows = (1 << 30) - 512;
  const auto check = [](int seqlen_q, int seqlen_k, int left, int right) {
    KeyTiling t;
    t.batch = 1;
    t.seqlen_q = seqlen_q;
    t.seqlen_k = seqlen_k;
    t.block_m = 64;
    t.block_n = 128;
    t.window = {left, right};
    t.order = {.tiles = ceil_div(seqlen_k, t.block_n), .heads = 1, .batch = 1};
    for (int index : {0, t.order.tiles - 1}) {
      const KeyTile tile = key_tile(t, index);
      ASSERT_FALSE(tile.idle());
      for (int key : {tile.first_key, tile.first_key + 127}) {
        if (key >= seqlen_k) continue;
        const Interval got = tile.queries_of(key);
        const Interval want = visible_rows(key, seqlen_q, seqlen_k, t.window);
        ASSERT_EQ(got.size(), want.size())
            << "key " << key << " of " << seqlen_k << ", " << seqlen_q << " queries, window "
            << left << " " << right;
        ASSERT_TRUE(want.empty() || got.first == want.first);
      }
    }
  };
  const std::array lengths = {1, 1000, kMaxRows};
  const std::array windows = {-1, 0, 999, kMaxRows - 1, 1 << 30, INT32_MAX};
  for_each_combination(check, lengths, lengths, windows, windows);
}

}  // namespace
}  // namespace fa4
