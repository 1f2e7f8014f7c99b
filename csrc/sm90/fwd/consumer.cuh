// SM90 forward, consumer role: both products and the softmax of 64 query rows.
#pragma once

#include "csrc/sm90/fwd/block.cuh"
#include "csrc/sm90/fwd/softmax.cuh"
#include "csrc/sm90/fwd/store.cuh"
#include "flash_attn4/device/gmma.cuh"
#include "flash_attn4/device/ptx/compiler.cuh"

namespace fa4::sm90 {

/// One block of keys of one tile.
struct Item {
  int tile;   // stage of its tile
  int block;  // blocks count down
  int flags;  // one register for all

  static constexpr int kOpens = 1;    // the first of its tile
  static constexpr int kCloses = 2;   // the last of its tile
  static constexpr int kChanges = 4;  // its scores are changed before the softmax: mask, softcap
  static constexpr int kValid = 8;    // not set: past the end of the list

  FA4_D bool opens() const { return (flags & kOpens) != 0; }
  FA4_D bool closes() const { return (flags & kCloses) != 0; }
  FA4_D bool changes() const { return (flags & kChanges) != 0; }
  FA4_D bool valid() const { return (flags & kValid) != 0; }
};

/// State of one consumer thread.
///
/// A consumer works through a list of items that goes on over tile borders. In each step the scores
/// of an item and the output of the item before are in flight together; the softmax runs under the
/// output's product and under the products of the other consumers.
///
///     step        0        1              2              3
///     tensor      S0       S1, O+=P0 V0   S2, O+=P1 V1   S0', O+=P2 V2   (' is the next tile)
///     threads       P0       P1             P2             P0', store O
template <FwdConfig kConfig>
struct Consumer {
  using Plan = FwdPlan<kConfig>;
  static constexpr int kN = Plan::kBlockN;
  static constexpr int kD = Plan::kHeadDim;

  using Weights = uint32_t[kN / 4];  // rounded, as the A operand of the product with V

  const Block<kConfig>& b;
  int consumer;  // which warpgroup
  Store<kConfig> store;

  Ring<Plan::kTileStages> tile_ring{kReader};  // at the tile of `next`
  Ring<Plan::kQStages> q_ring{kReader};
  Ring<Plan::kKvStages> k_ring{kReader};
  Ring<Plan::kKvStages> v_ring{kReader};
  Item item;                // of the scores
  Item next;                // known while the products of the step run, not at its end
  bool accumulate = false;  // the output in flight is not the first of its tile
  int out_stage = 0;        // tile whose output is accumulated

  float s[kN / 2];  // scores
  float o[kD / 2];  // output, unscaled
  RowState rows;

  FA4_D Consumer(const Block<kConfig>& block_, int warp)
      : b(block_), consumer(warp / 4), store{block_, warp / 4, warp % 4} {}

  // Turns: one consumer after the other issues its products, so that they do not fall into step.
  // 256: the threads of this consumer, which wait, and of the one before, which arrive.
  FA4_D void take_turn() { ptx::bar_sync(kOrder + consumer, 256); }
  FA4_D void pass_turn() { ptx::bar_arrive(kOrder + (consumer + 1) % kConfig.consumers, 256); }

  // ---- The list --------------------------------------------------------------------------------
  FA4_D const QueryTile& tile() const { return b.tile(item.tile); }

  FA4_D Item item_at(int stage, int block, int opens) const {
    const QueryTile& tile = b.tile(stage);
    const bool changes = b.args.softcap || tile.blocks.needs_mask(block);
    return {stage, block,
            opens | (block == tile.blocks.first ? Item::kCloses : 0) |
                (changes ? Item::kChanges : 0) | (tile.valid != 0 ? Item::kValid : 0)};
  }
  /// The first item of the tile at tile_ring.
  FA4_D Item first_item() {
    b.template wait<kTileFull>(tile_ring.stage, tile_ring.parity);
    return item_at(tile_ring.stage, b.tile(tile_ring.stage).blocks.last - 1, Item::kOpens);
  }
  FA4_D Item item_after(const Item& at) {
    if (!at.closes()) return item_at(at.tile, at.block - 1, 0);
    tile_ring.advance();
    return first_item();
  }

  // ---- Products --------------------------------------------------------------------------------
  /// S = Q K^T for the keys at k_ring.
  FA4_D void issue_scores(uint32_t zero = 0) {
    ptx::wgmma_fence();  // the softmax has read and written s
    gmma_abt<kConfig.dtype, kN, kD>(
        s,
        gmma_operand(b.q(q_ring.stage) + Plan::q_layout().unswizzled_offset(64 * consumer, 0),
                     Plan::q_layout(), Major::kK),
        Plan::q_layout(), gmma_operand(b.k(k_ring.stage) + zero, Plan::kv_layout(), Major::kK),
        Plan::kv_layout());
    ptx::wgmma_commit_group();
  }
  /// O += P V for the values at v_ring.
  FA4_D void issue_output(Weights& p) {
    ptx::wgmma_fence();  // the softmax has written p, a rescale o
    gmma_ab<kConfig.dtype, kD, kN>(o, p,
                                   gmma_operand(b.v(v_ring.stage), Plan::kv_layout(), Major::kMN),
                                   Plan::kv_layout(), accumulate);
    ptx::wgmma_commit_group();
  }

  FA4_D void wait_q() { b.template wait<kQFull>(q_ring.stage, q_ring.parity); }
  FA4_D void wait_k() { b.template wait<kKFull>(k_ring.stage, k_ring.parity); }
  FA4_D void wait_v() { b.template wait<kVFull>(v_ring.stage, v_ring.parity); }
  FA4_D void release_k() {
    b.template release<kKEmpty>(k_ring.stage);
    k_ring.advance();
    if (item.closes()) {  // no more scores of this tile
      b.template release<kQEmpty>(q_ring.stage);
      q_ring.advance();
    }
  }
  /// The output in flight is complete.
  FA4_D void wait_output(Weights& p) {
    ptx::wgmma_wait_group<0>();
    ptx::hold(o);
    ptx::hold(p);
    b.template release<kVEmpty>(v_ring.stage);
    v_ring.advance();
  }

  // ---- Scores ----------------------------------------------------------------------------------
  FA4_D void change_scores() {
    if (b.args.softcap) cap_scores<kN>(s, b.args.score_scale);
    if (tile().blocks.needs_mask(item.block)) mask();
  }

  FA4_D void mask() {
    int lane = lane_index();
    ptx::keep_here(lane);  // few blocks need a mask: not worth registers in between
    Interval keys[kRows];
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      const int tile_row = fragment_row(consumer, store.warp, lane, row);
      keys[row] = tile().keys_of(place(b.args, tile(), 0, tile_row).query);
    }
    mask_scores<kN>(s, keys, item.block * kN, lane);
  }

  /// Value rows behind the last key become 0: their weights are, but 0 times NaN is not. Only the
  /// last block of a tile has such rows, and it comes first.
  FA4_D void clear_value_tail() {
    wait_v();
    const int first = tile().k_length - item.block * kN;
    for (int unit = threadIdx.x; unit < (kN - first) * (kD / 8); unit += 128 * kConfig.consumers) {
      const int row = first + unit / (kD / 8);
      const uint32_t offset = Plan::kv_layout().offset(row, unit % (kD / 8) * 8);
      *reinterpret_cast<uint4*>(b.shared + Plan::kVOffset + v_ring.stage * Plan::kKvBytes +
                                offset) = uint4{};
    }
    ptx::fence_proxy_async();  // wgmma reads what these stores wrote
    ptx::bar_sync(kTail, 128 * kConfig.consumers);
  }
  /// Whether the item's values have rows behind the last key that may hold anything.
  FA4_D bool ragged() const {
    return b.args.clear_value_tail && (item.block + 1) * kN > tile().k_length;
  }

  FA4_D void run();
  FA4_D void start(Weights& p);
  FA4_D void step(Weights& before, Weights& p);
  FA4_D void finish(Weights& p);
};

/// The first scores of all: nothing else is in flight.
template <FwdConfig kConfig>
FA4_D void Consumer<kConfig>::start(Weights& p) {
  float factor[kRows];
  out_stage = item.tile;
  wait_q();
  wait_k();
  // The grid is flat, which the compiler does not know: it would keep these descriptors for the
  // loop, spill them, and load them where a computation takes as long.
  issue_scores(/*zero=*/blockIdx.z);
  next = item_after(item);
  ptx::wgmma_wait_group<0>();
  ptx::hold(s);
  release_k();
  if (item.changes()) change_scores();
  online_softmax<kConfig.dtype, kN>(p, s, rows, /*opens=*/true, factor, b.args.scale_log2);
  if (ragged()) clear_value_tail();
}

/// Scores of the item at hand, whose weights go to p; output of the item before.
template <FwdConfig kConfig>
FA4_D void Consumer<kConfig>::step(Weights& before, Weights& p) {
  float factor[kRows];
  if (item.opens()) wait_q();
  wait_k();
  take_turn();
  issue_scores();
  wait_v();
  issue_output(before);
  pass_turn();
  // What follows until the wait is hidden by the products.
  next = item_after(item);
  if (store.pending != store.kNone) store.send();
  if (item.opens()) {  // the output in flight is the last of its tile
    store.finish_rows(b.tile(out_stage), rows);
    rows = RowState{};
  }
  ptx::wgmma_wait_group<1>();  // the scores: of the two groups in flight the older one
  ptx::hold(s);
  release_k();
  if (item.changes()) change_scores();
  if (kConfig.weight_sets == 1) wait_output(before);
  const bool moved =
      online_softmax<kConfig.dtype, kN>(p, s, rows, item.opens(), factor, b.args.scale_log2);
  if (kConfig.weight_sets == 2) wait_output(before);
  accumulate = !item.opens();
  if (item.opens()) {
    store.write(out_stage, o);
    out_stage = item.tile;
    if (ragged()) clear_value_tail();
  } else if (moved) {
#pragma unroll
    for (int i = 0; i < kD / 2; ++i) o[i] *= factor[i / 2 % 2];
  }
}

/// The last output of all.
template <FwdConfig kConfig>
FA4_D void Consumer<kConfig>::finish(Weights& p) {
  wait_v();
  issue_output(p);
  if (store.pending != store.kNone) store.send();
  store.finish_rows(b.tile(out_stage), rows);
  wait_output(p);
  store.write(out_stage, o);
  store.send();
  store.drain();
}

template <FwdConfig kConfig>
FA4_D void Consumer<kConfig>::run() {
  if (consumer == kConfig.consumers - 1) pass_turn();  // the first turn is consumer 0's
  item = first_item();
  if (!item.valid()) return;
  Weights even, odd;
  start(even);
  while (next.valid()) {
    item = next;
    if (kConfig.weight_sets == 1) {
      step(even, even);
      continue;
    }
    step(even, odd);
    if (!next.valid()) return finish(odd);
    item = next;
    step(odd, even);
  }
  finish(even);
}

/// A warpgroup.
/// Waits: tile_full q_full k_full v_full.  Signals: tile_empty q_empty k_empty v_empty.
template <FwdConfig kConfig>
FA4_D void role_consumer(const Block<kConfig>& b, int warp) {
  Consumer<kConfig>(b, warp).run();
}

}  // namespace fa4::sm90
