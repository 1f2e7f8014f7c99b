// SM100 backward of a CTA pair, load role: what a CTA has of keys, values, queries and dout.
#pragma once

#include "csrc/sm100/bwd/block.cuh"
#include "flash_attn4/device/ptx/tma.cuh"

namespace fa4::sm100 {

/// Copies of a step; who calls has waited for the buffer. All stages are single ones, but for row
/// statistics.
template <BwdConfig kConfig>
struct BwdPairLoader {
  using Plan = BwdPlan<kConfig>;

  static constexpr bool kOwnMaps = Plan::kAcrossSwizzle != Plan::kSwizzle;       // of qt and kt
  static constexpr int kAcrossRows = kOwnMaps ? Plan::kBlockM : Plan::kOwnRows;  // of a box of qt

  const BwdBlock<kConfig>& b;

  /// kRows rows and kColumns columns from `row` and `column` on, in boxes of kBoxRows rows.
  template <int kRows, int kBoxRows, int kColumns>
  FA4_D void load(uint32_t to, TileLayout layout, const TensorMap* map, uint32_t bar, int column,
                  int row, int head) {
#pragma unroll
    for (int c = 0; c < kColumns; c += static_cast<int>(layout.span_columns())) {
#pragma unroll
      for (int r = 0; r < kRows; r += kBoxRows) {
        ptx::tensor_load_4d_pair(to + layout.unswizzled_offset(r, c), map, bar, column + c, row + r,
                                 head, b.tile.batch);
      }
    }
  }
  /// All rows of a step, half of the columns.
  template <int kColumns>
  FA4_D void load_across(uint32_t to, TileLayout layout, const TensorMap* map, uint32_t bar,
                         const BwdStep& step) {
    constexpr int kBoxRows = kColumns == Plan::kOwnColumns ? kAcrossRows : Plan::kOwnRows;
    load<Plan::kBlockM, kBoxRows, kColumns>(
        to, layout, map, bar, static_cast<int>(b.rank()) * kColumns, row_of(step), step.head);
  }
  /// This CTA's keys, of k or v.
  template <int kColumns>
  FA4_D void load_keys(uint32_t to, const TensorMap* map, uint32_t bar) {
    load<Plan::kBlockN, Plan::kBlockN, kColumns>(to, Plan::key_layout(), map, bar, 0,
                                                 b.tile.k_row + b.first_key(), b.tile.kv_head);
  }
  FA4_D int row_of(const BwdStep& step) const { return b.tile.q_row + step.block * Plan::kBlockM; }

  FA4_D void load_q(const BwdStep& step, bool first) {
    const uint32_t bar = b.template signal_bar<kBwdQFull>(0);
    b.template announce<kBwdQFull>(0, Plan::kQueryBytes + (first ? Plan::kKeyBytes : 0));
    if (first) load_keys<Plan::kHeadDim>(b.k(), &b.args.k, bar);
#pragma unroll
    for (int part = 0; part < Plan::kOwnRows / Plan::kQRows; ++part) {
      const int row = row_of(step) + Plan::q_part(static_cast<int>(b.rank()), part);
      const uint32_t to = b.q(0) + Plan::query_layout().unswizzled_offset(part * Plan::kQRows, 0);
      load<Plan::kQRows, Plan::kQRows, Plan::kHeadDim>(to, Plan::query_layout(), &b.args.q, bar, 0,
                                                       row, step.head);
    }
  }
  FA4_D void load_dout(const BwdStep& step, bool first) {
    const uint32_t bar = b.template signal_bar<kBwdDoutFull>(0);
    b.template announce<kBwdDoutFull>(0, Plan::kDoutBytes + (first ? Plan::kValueBytes : 0));
    if (first) load_keys<Plan::kHeadDimV>(b.v(), &b.args.v, bar);
    const int row = row_of(step) + static_cast<int>(b.rank()) * Plan::kOwnRows;
    load<Plan::kOwnRows, Plan::kOwnRows, Plan::kHeadDimV>(b.dout(0), Plan::query_layout(),
                                                          &b.args.dout, bar, 0, row, step.head);
  }
  FA4_D void load_doutt(const BwdStep& step) {
    const uint32_t bar = b.template signal_bar<kBwdDouttFull>(0);
    b.template announce<kBwdDouttFull>(0, Plan::kDouttBytes);
    load_across<Plan::kOwnValueColumns>(b.doutt(), Plan::doutt_layout(), &b.args.dout, bar, step);
  }
  FA4_D void load_qt(const BwdStep& step, bool first) {
    const uint32_t bar = b.template signal_bar<kBwdQtFull>(0);
    b.template announce<kBwdQtFull>(0, Plan::kQtBytes + (first ? Plan::kKtBytes : 0));
    if (first) {
      load<Plan::kTileKeys, Plan::kBlockN, Plan::kOwnColumns>(
          b.kt(), Plan::kt_layout(), kOwnMaps ? &b.args.kt : &b.args.k, bar,
          static_cast<int>(b.rank()) * Plan::kOwnColumns, b.tile.k_row + b.tile.first_key,
          b.tile.kv_head);
    }
    load_across<Plan::kOwnColumns>(b.qt(), Plan::qt_layout(), kOwnMaps ? &b.args.qt : &b.args.q,
                                   bar, step);
  }
  FA4_D void load_stats(const BwdStep& step, int stage) {
    const int64_t acc_row = b.acc_row(step.head, step.block);
    const uint32_t bar = b.template bar<kBwdStatFull>(stage);
    ptx::mbarrier_arrive_expect_tx(bar, 2 * Plan::kStatBytes);
    ptx::bulk_load(b.lse2(stage), b.args.lse2 + acc_row, Plan::kStatBytes, bar);
    ptx::bulk_load(b.delta(stage), b.args.delta + acc_row, Plan::kStatBytes, bar);
  }
};

/// One thread of each CTA. Everything in the order in which products ask for it.
/// Waits: q_empty dout_empty doutt_empty qt_empty.
/// Signals: q_full dout_full doutt_full qt_full stat_full.
template <BwdConfig kConfig>
FA4_D void role_pair_load(const BwdBlock<kConfig>& b) {
  BwdPairLoader<kConfig> loader{b};
  BwdStep step = BwdStep::first(b);
  loader.load_q(step, true);
  loader.load_stats(step, 0);
  loader.load_dout(step, true);
  loader.load_doutt(step);
  int stage = 1;
  uint32_t parity = 0;           // of q, dout, doutt: flips with a step
  uint32_t qt_parity = kWriter;  // a step behind
  bool first = true;
  for (int left = b.steps() - 1; left > 0; --left) {
    const BwdStep before = step;
    step.advance(b);
    b.template wait<kBwdQEmpty>(0, parity);
    loader.load_q(step, false);
    // The statistics of two steps before have been read, too.
    b.template wait<kBwdQtEmpty>(0, qt_parity);
    loader.load_stats(step, stage);
    loader.load_qt(before, first);
    b.template wait<kBwdDoutEmpty>(0, parity);
    loader.load_dout(step, false);
    b.template wait<kBwdDouttEmpty>(0, parity);
    loader.load_doutt(step);
    stage ^= 1;
    parity ^= 1;
    qt_parity ^= 1;
    first = false;
  }
  b.template wait<kBwdQtEmpty>(0, qt_parity);
  loader.load_qt(step, first);
}

}  // namespace fa4::sm100
