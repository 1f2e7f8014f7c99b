// SM90 backward, consumer role: all products and gradients of 64 keys, and a slice of every dq.
#pragma once

#include "csrc/sm90/bwd/block.cuh"
#include "csrc/sm90/bwd/store.cuh"
#include "csrc/sm90/fragments.cuh"
#include "flash_attn4/device/gmma.cuh"
#include "flash_attn4/device/ptx/compiler.cuh"
#include "flash_attn4/device/ptx/global.cuh"
#include "flash_attn4/device/ptx/named_barrier.cuh"
#include "flash_attn4/device/ptx/tma.cuh"

namespace fa4::sm90 {

/// State of one consumer thread. Scores are transposed: a row per key, a column per query, so that
/// P and dS are operands of the products for dv and dk as they stand.
///
/// The consumers take turns at the tensor core; while one computes weights, the other's products
/// run. A turn of step i, where S is issued first:
///
///     S(i + 1) = K Q             its exponentials run under what follows
///     dq(i - 1) = dS(i - 1) K    both consumers' dS are there, each computes a half
///     dv += P(i) dO(i)
///     dk += dS(i) Q(i)
///     dP(i + 1) = V dO
///
/// Elsewhere dv, dk and dq are waited for, and S and dP of the next step follow them.
template <BwdConfig kConfig, bool kSoftcap>
struct BwdConsumer {
  using Plan = BwdPlan<kConfig>;
  static constexpr int kM = Plan::kBlockM;
  static constexpr int kD = Plan::kHeadDim;
  static constexpr int kDqColumns = Plan::kDqColumns;
  static constexpr DType kDType = kConfig.dtype;

  const BwdBlock<kConfig>& b;
  int consumer;
  int warp;  // of the consumer

  Ring<Plan::kStages> ring{kReader};  // at the step of S and dP
  int ds_stage = 0;                   // of that step
  BwdStep step;
  int dq_block = 0;        // of the accumulator: that of the dq that comes next
  int dq_block_next = 0;   // ... and of the one after it, which is the step before
  uint32_t dq_parity = 0;  // of this consumer's turn to add, where turns are kept

  float s[kM / 2];  // scores, then weights (softcap: tanh of the scores)
  float dp[kM / 2];
  float dk[kD / 2];
  float dv[kD / 2];
  uint32_t p[kM / 4];  // weights, rounded

  // Where S is in flight beside dq, dq takes the registers of dP: with its own ptxas spills. It must
  // fit them exactly: in a part of them ptxas serialises the products.
  using Dq = float[kDqColumns / 2];
  static_assert(!Plan::kScoresFirst || kDqColumns == kM);
  float own_dq[Plan::kScoresFirst ? 1 : kDqColumns / 2];
  FA4_D Dq& dq() {
    if constexpr (Plan::kScoresFirst) return dp;
    if constexpr (!Plan::kScoresFirst) return own_dq;
  }

  FA4_D BwdConsumer(const BwdBlock<kConfig>& block_, int warp_)
      : b(block_), consumer(warp_ / 4), warp(warp_ % 4), step(BwdStep::first(block_)) {}

  FA4_D void take_turn() { ptx::bar_sync(kBwdTurn + consumer, 256); }
  FA4_D void pass_turn() { ptx::bar_arrive(kBwdTurn + (consumer ^ 1), 256); }

  /// Stage of the queries and dout of the step before, whose dk and dv come next.
  FA4_D int stage_before() const { return ring.stage == 0 ? Plan::kStages - 1 : ring.stage - 1; }
  /// Stage of dS, `steps` before.
  FA4_D int ds_stage_before(int steps) const {
    return ds_stage < steps ? ds_stage + Plan::kDsStages - steps : ds_stage - steps;
  }

  // ---- Products --------------------------------------------------------------------------------
  /// Descriptor of an operand, computed where it is used: those of all steps of all products would
  /// else be kept through the loop, and spill.
  FA4_D static uint64_t operand(uint32_t address, TileLayout tile, Major major) {
    ptx::keep_here(address);
    return gmma_operand(address, tile, major);
  }
  FA4_D uint32_t own_rows(uint32_t tile) const {
    return tile + Plan::key_layout().unswizzled_offset(64 * consumer, 0);
  }

  FA4_D void issue_s() {
    ptx::wgmma_fence();  // s has been read and written
    gmma_abt<kDType, kM, kD>(
        s, operand(own_rows(b.k()), Plan::key_layout(), Major::kK), Plan::key_layout(),
        operand(b.q(ring.stage), Plan::query_layout(), Major::kK), Plan::query_layout());
    ptx::wgmma_commit_group();
  }
  FA4_D void issue_dp() {
    ptx::wgmma_fence();  // dp has been read
    gmma_abt<kDType, kM, kD>(
        dp, operand(own_rows(b.v()), Plan::key_layout(), Major::kK), Plan::key_layout(),
        operand(b.dout(ring.stage), Plan::query_layout(), Major::kK), Plan::query_layout());
    ptx::wgmma_commit_group();
  }
  FA4_D void issue_dv(bool accumulate) {
    ptx::wgmma_fence();  // p has been written
    gmma_ab<kDType, kD, kM>(dv, p,
                            operand(b.dout(stage_before()), Plan::query_layout(), Major::kMN),
                            Plan::query_layout(), accumulate);
    ptx::wgmma_commit_group();
  }
  FA4_D void issue_dk(bool accumulate) {
    ptx::wgmma_fence();
    const uint32_t ds =
        b.ds(ds_stage_before(1)) + Plan::ds_layout().unswizzled_offset(64 * consumer, 0);
    gmma_ss<kDType, kD, kM, Major::kK, Major::kMN>(
        dk, operand(ds, Plan::ds_layout(), Major::kK), Plan::ds_layout(),
        operand(b.q(stage_before()), Plan::query_layout(), Major::kMN), Plan::query_layout(),
        accumulate);
    ptx::wgmma_commit_group();
  }
  /// This consumer's rows or columns of dS K.
  FA4_D void issue_dq(int stage) {
    const int row = Plan::kDqByRows ? Plan::kDqRows * consumer : 0;
    const int column = Plan::kDqByRows ? 0 : kDqColumns * consumer;
    const uint32_t ds = b.ds(stage) + Plan::ds_layout().unswizzled_offset(0, row);
    const uint32_t k = b.k() + Plan::key_layout().unswizzled_offset(0, column);
    ptx::wgmma_fence();
    gmma_ss<kDType, kDqColumns, Plan::kBlockN, Major::kMN, Major::kMN>(
        dq(), operand(ds, Plan::ds_layout(), Major::kMN), Plan::ds_layout(),
        operand(k, Plan::key_layout(), Major::kMN), Plan::key_layout(), false);
    ptx::wgmma_commit_group();
  }

  // ---- dq --------------------------------------------------------------------------------------
  FA4_D void add_dq() {
    ptx::hold(dq());
    using Layout = typename Plan::DqLayout;
    const Dq& x = dq();
    float* to = b.args.dq_accumulator + int64_t{dq_block} * (kM * kD) +
                consumer * Layout::kSliceFloats +
                Layout::fragment_offset(32 * warp + lane_index(), 0);
#pragma unroll
    for (int i = 0; i < kDqColumns / 2; i += 4) {
      ptx::red_add_v4(to + Layout::fragment_offset(0, i), x[i], x[i + 1], x[i + 2], x[i + 3]);
    }
  }

  // ---- Weights and their gradients -------------------------------------------------------------
  FA4_D float2 pair_of(const float* rows, int j) const {
    return *reinterpret_cast<const float2*>(rows + 8 * j + lane_index() % 4 * 2);
  }

  FA4_D void mask() {
    int lane = lane_index();
    ptx::keep_here(lane);  // few blocks need a mask: not worth registers in between
    Interval queries[kRows];
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      queries[row] = b.tile.queries_of(b.first_key() + fragment_row(consumer, warp, lane, row));
    }
    mask_scores<kM>(s, queries, step.block * kM, lane);
  }

  /// Scores become weights.
  FA4_D void weigh() {
    if constexpr (kSoftcap) cap_scores<kM>(s, b.args.score_scale);
    if (b.tile.blocks.needs_mask(step.block)) mask();
    if constexpr (kSoftcap) return;  // the tanh is needed once more
    const float* lse2 = b.lse2(ring.stage);
#pragma unroll
    for (int j = 0; j < kM / 8; ++j) {
      const float2 lse = pair_of(lse2, j);
#pragma unroll
      for (int i = 0; i < 4; ++i) s[4 * j + i] = weight(s[4 * j + i], i % 2 == 0 ? lse.x : lse.y);
    }
  }
  FA4_D float weight(float score, float lse2) const {
    return ptx::ex2(fmaf(score, b.args.scale_log2, -lse2));
  }

  /// From weights and dP: the operands P, in registers, and dS, in shared memory. 16 queries at a
  /// time, so that P takes the place of what has been used up.
  FA4_D void differentiate() {
    const float* lse2 = b.lse2(ring.stage);
    const float* delta = b.delta(ring.stage);
    // On their way while dP is waited for, as many as there are registers for; of 128 queries eight
    // were no faster than four.
    constexpr int kAhead = kSoftcap ? 0 : Plan::kScoresFirst ? kM / 8 : 4;
    float2 deltas[kAhead + 1];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) deltas[j] = pair_of(delta, j);
    ptx::wgmma_wait_group<0>();
    ptx::hold(dp);
    const int row = 64 * consumer + 16 * warp + lane_index() % 16;
    const uint32_t to = b.ds(ds_stage) + Plan::ds_layout().unswizzled_offset(row, 0);
#pragma unroll
    for (int column = 0; column < kM; column += 16) {
      uint32_t ds[4];
#pragma unroll
      for (int pair = 0; pair < 4; ++pair) {
        const int i = column / 2 + 2 * pair;
        const float2 d = i / 4 < kAhead ? deltas[i / 4] : pair_of(delta, i / 4);
        float2 gradient;
        if constexpr (kSoftcap) {
          const float2 lse = pair_of(lse2, i / 4);
          gradient = {capped_gradient(s[i], dp[i], lse.x, d.x),
                      capped_gradient(s[i + 1], dp[i + 1], lse.y, d.y)};
        } else {
          gradient = {s[i] * (dp[i] - d.x), s[i + 1] * (dp[i + 1] - d.y)};
        }
        p[i / 2] = ptx::cvt_pack<kDType>(s[i], s[i + 1]);
        ds[pair] = ptx::cvt_pack<kDType>(gradient.x, gradient.y);
      }
      ptx::stmatrix_x4(
          swizzled(to + 2 * (column % 64) + column / 64 * Plan::ds_layout().chunk_bytes() +
                       lane_index() / 16 * 16,
                   Swizzle::k128B),
          ds);
    }
    ptx::fence_proxy_async();  // products read what these stores wrote
  }
  /// With softcap s is still the tanh of a score: it becomes the weight.
  FA4_D float capped_gradient(float& s, float dp, float lse2, float delta) const {
    const float tanh = s;
    s = weight(tanh, lse2);
    return s == 0.0f ? 0.0f : s * (dp - delta) * fmaf(-tanh, tanh, 1.0f);  // masked: tanh is -inf
  }

  // ---- Steps -----------------------------------------------------------------------------------
  /// Rows [first, last) of two tiles become 0. By both consumers, before any product reads them.
  FA4_D void clear_rows(uint32_t offset_a, uint32_t offset_b, TileLayout layout, int first,
                        int last) {
    for (int unit = threadIdx.x; unit < (last - first) * (kD / 8); unit += 128 * Plan::kConsumers) {
      const uint32_t offset = layout.offset(first + unit / (kD / 8), unit % (kD / 8) * 8);
      *reinterpret_cast<uint4*>(b.shared + offset_a + offset) = uint4{};
      *reinterpret_cast<uint4*>(b.shared + offset_b + offset) = uint4{};
    }
    ptx::fence_proxy_async();  // products read what these stores wrote
    ptx::bar_sync(kBwdBoth, 128 * Plan::kConsumers);
  }
  /// Queries that see no key, or lie behind the sequence's last, may hold NaN. Their weights are 0,
  /// but 0 times NaN is not. The first ones see none where there are more queries than keys.
  FA4_D void wait_queries() {
    b.template wait<kBwdQueriesFull>(ring.stage, ring.parity);
    const uint32_t q = b.q_offset(ring.stage), dout = b.dout_offset(ring.stage);
    const int first_query = step.block * kM;
    const int blind = 1 - b.tile.last_shift - first_query;
    if (blind > 0) clear_rows(q, dout, Plan::query_layout(), 0, min_of(blind, kM));
    const int left = b.tile.q_length - first_query;
    if (b.args.clear_query_tail && left < kM) clear_rows(q, dout, Plan::query_layout(), left, kM);
  }
  FA4_D void wait_keys() {
    b.template wait<kBwdKvFull>(0, 0);
    const int left = b.tile.k_length - b.first_key();
    if (b.args.clear_key_tail && left < Plan::kBlockN) {
      clear_rows(Plan::kKOffset, Plan::kVOffset, Plan::key_layout(), left, Plan::kBlockN);
    }
  }

  FA4_D void next_step() {
    dq_block_next = b.acc_block(step.head, step.block);
    ring.advance();
    step.advance(b);
    ds_stage = ds_stage + 1 == Plan::kDsStages ? 0 : ds_stage + 1;
  }
  /// Ordered: before and after the addition of a dq, outside the products in flight, in whose midst
  /// ptxas takes no branch (C7514).
  FA4_D void wait_dq_turn() {
    if (b.args.turns == nullptr) return;
    b.template wait<kBwdDqTurn>(consumer, dq_parity);
    dq_parity ^= 1;
  }
  FA4_D void release_dq() {
    if (b.args.turns != nullptr) b.template release<kBwdDqAdded>(consumer);
  }
  FA4_D void release_queries() { b.template release<kBwdQueriesEmpty>(stage_before()); }

  FA4_D void start();
  template <bool kFirst>
  FA4_D void turn();
  template <bool kFirst>
  FA4_D void turn_scores_first();
  template <bool kFirst>
  FA4_D void turn_scores_last();
  template <bool kFirst>
  FA4_D void last_turn();
  FA4_D void finish_dq();
  FA4_D void run();
};

/// S and dP of the first step.
template <BwdConfig kConfig, bool kSoftcap>
FA4_D void BwdConsumer<kConfig, kSoftcap>::start() {
  wait_keys();
  wait_queries();
  take_turn();
  issue_s();
  issue_dp();
  pass_turn();
  ptx::wgmma_wait_group<1>();
  ptx::hold(s);
  weigh();
  differentiate();
  next_step();
}

/// dk and dv of the step before, dq of the one before that unless kFirst, S and dP of the next.
template <BwdConfig kConfig, bool kSoftcap>
template <bool kFirst>
FA4_D void BwdConsumer<kConfig, kSoftcap>::turn() {
  if constexpr (Plan::kScoresFirst) turn_scores_first<kFirst>();
  if constexpr (!Plan::kScoresFirst) turn_scores_last<kFirst>();
  next_step();
}

template <BwdConfig kConfig, bool kSoftcap>
template <bool kFirst>
FA4_D void BwdConsumer<kConfig, kSoftcap>::turn_scores_first() {
  wait_queries();
  if constexpr (!kFirst) wait_dq_turn();
  take_turn();
  issue_s();
  if constexpr (!kFirst) issue_dq(ds_stage_before(2));
  issue_dv(!kFirst);
  issue_dk(!kFirst);
  if constexpr (!kFirst) {
    ptx::wgmma_wait_group<2>();
    add_dq();  // while dv and dk are in the tensor core
  }
  issue_dp();  // takes dq's registers
  pass_turn();
  dq_block = dq_block_next;
  ptx::wgmma_wait_group<3>();  // S: all but dv, dk and dP
  ptx::hold(s);
  weigh();
  ptx::wgmma_wait_group<1>();  // dv and dk
  ptx::hold(p);
  release_queries();
  if constexpr (!kFirst) release_dq();
  differentiate();
}

template <BwdConfig kConfig, bool kSoftcap>
template <bool kFirst>
FA4_D void BwdConsumer<kConfig, kSoftcap>::turn_scores_last() {
  if constexpr (!kFirst) wait_dq_turn();
  take_turn();
  issue_dv(!kFirst);
  issue_dk(!kFirst);
  if constexpr (!kFirst) issue_dq(ds_stage_before(2));
  pass_turn();
  ptx::wgmma_wait_group<0>();
  ptx::hold(p);
  if constexpr (!kFirst) add_dq();
  release_queries();
  wait_queries();
  issue_s();
  issue_dp();
  dq_block = dq_block_next;
  ptx::wgmma_wait_group<1>();  // S
  ptx::hold(s);
  weigh();
  // Its branch keeps the wait for dP behind the exponentials: ptxas would move it ahead of them.
  if constexpr (!kFirst) release_dq();
  differentiate();
}

template <BwdConfig kConfig, bool kSoftcap>
template <bool kFirst>
FA4_D void BwdConsumer<kConfig, kSoftcap>::last_turn() {
  if constexpr (!kFirst) wait_dq_turn();
  take_turn();
  if constexpr (!kFirst) issue_dq(ds_stage_before(2));
  issue_dv(!kFirst);
  issue_dk(!kFirst);
  pass_turn();
  if constexpr (!kFirst) {
    ptx::wgmma_wait_group<2>();
    add_dq();
  }
  ptx::wgmma_wait_group<0>();
  ptx::hold(p);
  if constexpr (!kFirst) release_dq();
  dq_block = dq_block_next;
}

/// dq of the last step.
template <BwdConfig kConfig, bool kSoftcap>
FA4_D void BwdConsumer<kConfig, kSoftcap>::finish_dq() {
  wait_dq_turn();
  take_turn();
  issue_dq(ds_stage_before(1));
  pass_turn();
  ptx::wgmma_wait_group<0>();
  add_dq();
  release_dq();
}

template <BwdConfig kConfig, bool kSoftcap>
FA4_D void BwdConsumer<kConfig, kSoftcap>::run() {
  if (consumer == 1) pass_turn();  // the first turn is consumer 0's
  const int steps = b.steps();
  start();
  if (steps == 1) {
    last_turn<true>();
  } else {
    turn<true>();
#pragma unroll 1
    for (int left = steps - 2; left > 0; --left) turn<false>();
    last_turn<false>();
  }
  finish_dq();
  ptx::hold(dk);
  ptx::hold(dv);
  store_gradients(b, consumer, warp, dk, dv);
}

/// A warpgroup. Calls with softcap have a loop of their own: a branch per score costs 12 %.
/// Waits: kv_full queries_full dq_turn.  Signals: queries_empty dq_added.
template <BwdConfig kConfig>
FA4_D void role_consumer(const BwdBlock<kConfig>& b, int warp) {
  if (b.args.softcap) return BwdConsumer<kConfig, true>(b, warp).run();
  BwdConsumer<kConfig, false>(b, warp).run();
}

}  // namespace fa4::sm90
