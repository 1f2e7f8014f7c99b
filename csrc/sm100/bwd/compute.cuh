// SM100 backward, compute role: scores to weights, their gradients, and dk and dv at the end.
#pragma once

#include "csrc/sm100/bwd/block.cuh"
#include "csrc/sm100/bwd/store.cuh"
#include "csrc/sm100/scores.cuh"
#include "flash_attn4/device/ptx/compiler.cuh"
#include "flash_attn4/device/ptx/math.cuh"
#include "flash_attn4/device/ptx/shared.cuh"
#include "flash_attn4/device/ptx/tcgen05.cuh"
#include "flash_attn4/device/ptx/tma.cuh"

namespace fa4::sm100 {

/// State of one compute thread: a key, and the queries of its warpgroup.
template <BwdConfig kConfig>
struct BwdCompute {
  using Plan = BwdPlan<kConfig>;
  static constexpr int kN = Plan::kGroupQueries;
  static constexpr DType kDType = kConfig.dtype;

  const BwdBlock<kConfig>& b;
  int group;
  int warp;        // of the warpgroup
  uint32_t tmem;   // in this warp's lanes
  uint32_t ds_to;  // address of this key's dS in shared memory
  uint32_t step = 0;
  uint32_t clean_parity = 0;  // of a pair: flips with what is cleaned
  int block;                  // of queries, of this step

  // Blocks [plain, plain + plain_count) need no mask and no cleaning: one comparison in registers.
  int plain;
  uint32_t plain_count;

  float s[kN];  // scores, then weights (softcap: tanh of the scores)

  FA4_D BwdCompute(const BwdBlock<kConfig>& block_, int warp_)
      : b(block_),
        group(warp_ / 4),
        warp(warp_ % 4),
        tmem(tmem_address(block_.tmem(), warp_, 0)),
        ds_to(ds_address()),
        block(block_.tile.blocks.first) {
    const Interval clean = b.clean_blocks();
    plain = max_of(clean.first, b.tile.blocks.full_first);
    const int last = b.masks_all() ? 0 : min_of(clean.last, b.tile.blocks.full_last);
    plain_count = static_cast<uint32_t>(max_of(last - plain, 0));
    ptx::keep_here(ds_to);  // not computed anew in every step
  }

  FA4_D int key() const { return 32 * warp + lane_index(); }
  /// Whether this warpgroup's dS goes to the other CTA of the pair.
  FA4_D bool sends() const { return Plan::kPair && group != static_cast<int>(b.rank()); }
  FA4_D uint32_t ds_address() const {
    if constexpr (Plan::kPair) {
      const int first = static_cast<int>(b.rank()) * Plan::kBlockN;
      return b.address + (sends() ? Plan::kSentOffset + Plan::sent_layout().offset(key(), 0)
                                  : Plan::kDsOffset + Plan::ds_layout().offset(first + key(), 0));
    } else {
      return b.ds() + Plan::ds_layout().offset(key(), group * kN);
    }
  }
  FA4_D bool is_plain(int block) const {
    return static_cast<uint32_t>(block - plain) < plain_count;
  }
  FA4_D int next_block() const {
    return block + 1 < b.tile.blocks.last ? block + 1 : b.tile.blocks.first;
  }

  // Where buffers of a step are in their rings.
  FA4_D static int q_stage(uint32_t step) { return static_cast<int>(step % Plan::kQStages); }
  FA4_D static int stat_stage(uint32_t step) { return static_cast<int>(step % Plan::kStatStages); }
  FA4_D static int dout_stage(uint32_t step) { return static_cast<int>(step % Plan::kDoutStages); }

  // ---- Rows that do not count ------------------------------------------------------------------
  /// Rows [first, last) of the tile at `offset`, of kColumns columns, become 0. By the threads of
  /// both warpgroups.
  template <int kColumns>
  FA4_D void clear_rows(uint32_t offset, TileLayout layout, int first, int last) {
    constexpr int kUnits = kColumns / 8;  // of 16 bytes, per row
    const int thread = static_cast<int>(threadIdx.x) - 32 * Plan::kFirstComputeWarp;
#pragma unroll 1
    for (int unit = thread; unit < (last - first) * kUnits; unit += 32 * Plan::kComputeWarps) {
      const uint32_t at = layout.offset(first + unit / kUnits, unit % kUnits * 8);
      *reinterpret_cast<uint4*>(b.shared + offset + at) = uint4{};
    }
  }
  /// Of a tile of kRows queries, which begins at query `first`.
  template <int kRows, int kColumns>
  FA4_D void clear_queries(uint32_t offset, TileLayout layout, int first) {
    const int blind = clamp_to(b.blind_queries() - first, 0, kRows);
    const int count = clamp_to(b.queries_that_count() - first, 0, kRows);
    clear_rows<kColumns>(offset, layout, 0, blind);
    clear_rows<kColumns>(offset, layout, count, kRows);
  }
  /// Of a tile of kRows keys, which begins at key `first`.
  template <int kRows, int kColumns>
  FA4_D void clear_keys(uint32_t offset, TileLayout layout, int first) {
    if (!b.ragged_keys()) return;
    clear_rows<kColumns>(offset, layout, clamp_to(b.tile.k_length - first, 0, kRows), kRows);
  }
  /// Q or dO of a block, what this CTA has of it.
  template <int kColumns>
  FA4_D void clear_own_queries(uint32_t offset, int block) {
    const int first = block * Plan::kBlockM + static_cast<int>(b.rank()) * Plan::kOwnRows;
    clear_queries<Plan::kOwnRows, kColumns>(offset, Plan::query_layout(), first);
  }
  /// K or V.
  template <int kColumns>
  FA4_D void clear_own_keys(uint32_t offset) {
    clear_keys<Plan::kBlockN, kColumns>(offset, Plan::key_layout(), b.first_key());
  }
  FA4_D bool cleans(uint32_t step, int block) const {
    return (step == 0 && b.ragged_keys()) || !b.clean_blocks().contains(block);
  }
  /// Until mma has told a pair that what is to be cleaned next has landed.
  FA4_D void wait_landed() {
    b.template wait<kBwdLanded>(0, clean_parity);
    clean_parity ^= 1;
  }
  /// Queries of a step, and the keys with the first.
  FA4_D void clean_q(uint32_t step, int block) {
    if (!cleans(step, block)) return;
    if constexpr (Plan::kPair) {
      wait_landed();
    } else {
      b.template wait<kBwdQFull>(q_stage(step), step / Plan::kQStages % 2);
    }
    clear_own_queries<Plan::kHeadDim>(b.q_offset(q_stage(step)), block);
    if (step == 0) clear_own_keys<Plan::kHeadDim>(Plan::kKOffset);
    ptx::fence_proxy_async();  // products read what these stores wrote
    b.template release<Plan::kPair ? kBwdClean : kBwdQClean>(0);
  }
  /// The gradients of out that come with them, and the values.
  FA4_D void clean_dout(uint32_t step, int block) {
    if (!cleans(step, block)) return;
    if constexpr (Plan::kPair) {
      wait_landed();
      clear_queries<Plan::kBlockM, Plan::kOwnValueColumns>(Plan::kDouttOffset, Plan::doutt_layout(),
                                                           block * Plan::kBlockM);
    } else {
      b.template wait<kBwdDoutFull>(dout_stage(step), step / Plan::kDoutStages % 2);
    }
    clear_own_queries<Plan::kHeadDimV>(b.dout_offset(dout_stage(step)), block);
    if (step == 0) clear_own_keys<Plan::kHeadDimV>(Plan::kVOffset);
    ptx::fence_proxy_async();
    b.template release<Plan::kPair ? kBwdClean : kBwdDoutClean>(0);
  }
  /// Of a pair: half of the columns of the queries, and of the keys of both CTAs.
  FA4_D void clean_qt(uint32_t step, int block) {
    if (!cleans(step, block)) return;
    wait_landed();
    clear_queries<Plan::kBlockM, Plan::kOwnColumns>(Plan::kQtOffset, Plan::qt_layout(),
                                                    block * Plan::kBlockM);
    if (step == 0) {
      clear_keys<Plan::kTileKeys, Plan::kOwnColumns>(Plan::kKtOffset, Plan::kt_layout(),
                                                     b.tile.first_key);
    }
    ptx::fence_proxy_async();
    b.template release<kBwdClean>(0);
  }

  // ---- Weights ---------------------------------------------------------------------------------
  FA4_D void load_scores() {
    constexpr BwdBar kStats = Plan::kPair ? kBwdStatFull : kBwdQFull;
    b.template wait<kStats>(stat_stage(step), step / Plan::kStatStages % 2);  // lse2 and delta
    b.template wait<kBwdSFull>(0, step % 2);
    ptx::tcgen05_fence_after();
#pragma unroll
    for (int query = 0; query < kN; query += 32) {
      ptx::tcgen05_ld_x32(s + query, tmem + Plan::tmem_s(group, query));
    }
    ptx::tcgen05_wait_ld();
    ptx::hold(s);
    // dQ of the step before may come to lie here; serial: dP of this one.
    if (Plan::kPair && (Plan::kSerial || step > 0)) {
      ptx::tcgen05_fence_before();
      b.template release<kBwdSRead>(0);
    }
  }

  FA4_D void mask() {
    if (!b.masks_all() && !b.tile.blocks.needs_mask(block)) return;
    const int key = b.first_key() + this->key();
    mask_scores<kN>(s, b.tile.queries_of(key), block * Plan::kBlockM + group * kN);
  }

  /// Of four queries whose lse2, negated, are in shared memory at `lse2`.
  FA4_D void weigh_four(const float* x, uint32_t lse2, float (&p)[4]) {
    const float2 scale = {b.args.scale_log2, b.args.scale_log2};
    const float4 lse = ptx::load_shared_v4(lse2);
    const float2 low = __ffma2_rn(float2{x[0], x[1]}, scale, float2{lse.x, lse.y});
    const float2 high = __ffma2_rn(float2{x[2], x[3]}, scale, float2{lse.z, lse.w});
    p[0] = ptx::ex2(low.x);
    p[1] = ptx::ex2(low.y);
    p[2] = ptx::ex2(high.x);
    p[3] = ptx::ex2(high.y);
  }

  /// Weights to tensor memory, rounded, over the scores. With softcap s stays the tanh of the
  /// scores, which is needed once more.
  template <bool kCapped>
  FA4_D void weigh() {
    const uint32_t lse2 = b.lse2(stat_stage(step)) + 4 * kN * group;
    const uint32_t to = tmem + Plan::tmem_p(group);
#pragma unroll
    for (int column = 0; column < kN; column += 32) {
      uint32_t words[16];
#pragma unroll
      for (int i = 0; i < 32; i += 4) {
        float* x = s + column + i;
        float p[4];
        weigh_four(x, lse2 + 4 * (column + i), p);
        words[i / 2] = ptx::cvt_pack<kDType>(p[0], p[1]);
        words[i / 2 + 1] = ptx::cvt_pack<kDType>(p[2], p[3]);
#pragma unroll
        for (int k = 0; k < 4 && !kCapped; ++k) x[k] = p[k];
      }
      ptx::tcgen05_st_x16(to + column / 2, words);
    }
    ptx::tcgen05_wait_st();
    ptx::tcgen05_fence_before();
    b.template release<kBwdPFull>(0);
  }

  // ---- Their gradients -------------------------------------------------------------------------
  /// dS = P (dP - delta), of four queries.
  FA4_D void differentiate_four(const float* p, const float* dp, uint32_t delta, float (&ds)[4]) {
    const float4 d = ptx::load_shared_v4(delta);
    const float2 minus = {-1.0f, -1.0f};  // packed operands have no sign of their own
    float2 low = __ffma2_rn(float2{d.x, d.y}, minus, float2{dp[0], dp[1]});
    float2 high = __ffma2_rn(float2{d.z, d.w}, minus, float2{dp[2], dp[3]});
    low = __fmul2_rn(float2{p[0], p[1]}, low);
    high = __fmul2_rn(float2{p[2], p[3]}, high);
    ds[0] = low.x;
    ds[1] = low.y;
    ds[2] = high.x;
    ds[3] = high.y;
  }
  /// With softcap x is the tanh of scores; where they are masked it is -inf, and dS is 0.
  FA4_D void differentiate_capped(const float* x, const float* dp, uint32_t lse2, uint32_t delta,
                                  float (&ds)[4]) {
    float p[4];
    weigh_four(x, lse2, p);
    differentiate_four(p, dp, delta, ds);
#pragma unroll
    for (int k = 0; k < 4; ++k) ds[k] = p[k] == 0.0f ? 0.0f : ds[k] * fmaf(-x[k], x[k], 1.0f);
  }

  /// dS to tensor memory, over dP, for dk, and to shared memory for dq.
  template <bool kCapped>
  FA4_D void differentiate() {
    b.template wait<kBwdDpFull>(0, step % 2);
    // Where it lies in shared memory, of this CTA and of the other one, dQ has read the last.
    if (Plan::kAhead && step > 0) b.template wait<kBwdDqFull>(0, (step - 1) % 2);
    ptx::tcgen05_fence_after();
    const uint32_t lse2 = b.lse2(stat_stage(step)) + 4 * kN * group;
    const uint32_t delta = b.delta(stat_stage(step)) + 4 * kN * group;
    const uint32_t at = tmem + Plan::tmem_dp(group);
    static_assert(Plan::tmem_ds(1) == Plan::tmem_dp(1), "stored as it is read");
    constexpr int kStep = 16;  // columns at a time: the next are read meanwhile
    float dp[2][kStep];
    ptx::tcgen05_ld_x16(dp[0], at);
#pragma unroll
    for (int column = 0; column < kN; column += kStep) {
      float (&now)[kStep] = dp[column / kStep % 2];
      ptx::tcgen05_wait_ld();
      ptx::hold(now);
      if (column + kStep < kN) {
        ptx::tcgen05_ld_x16(dp[(column / kStep + 1) % 2], at + column + kStep);
      }
      uint32_t words[kStep / 2];
#pragma unroll
      for (int i = 0; i < kStep; i += 4) {
        const float* x = s + column + i;
        const uint32_t offset = 4 * (column + i);
        float ds[4];
        if constexpr (kCapped) {
          differentiate_capped(x, now + i, lse2 + offset, delta + offset, ds);
        } else {
          differentiate_four(x, now + i, delta + offset, ds);
        }
        words[i / 2] = ptx::cvt_pack<kDType>(ds[0], ds[1]);
        words[i / 2 + 1] = ptx::cvt_pack<kDType>(ds[2], ds[3]);
      }
      ptx::tcgen05_st_x8(at + column / 2, words);
#pragma unroll
      for (int i = 0; i < kStep / 2; i += 4) {
        ptx::store_shared_v4(ds_to ^ 2 * (column + 2 * i), words[i], words[i + 1], words[i + 2],
                             words[i + 3]);
      }
    }
    ptx::tcgen05_wait_st();
    ptx::fence_proxy_async();  // dq reads what these stores wrote
    ptx::tcgen05_fence_before();
    b.template release<kBwdDsFull>(0);
    if (Plan::kPair && sends()) send_ds();
  }

  /// To the other CTA of the pair, beside that one's own dS. A warp's keys are one run of bytes.
  /// All lanes have stored theirs: they have met to signal ds_full.
  FA4_D void send_ds() {
    if (!ptx::elect_sync()) return;
    const uint32_t bar = b.template signal_bar<kBwdDsLanded>(0);
    const uint32_t first = b.rank() * Plan::kBlockN + 32 * warp;
    const uint32_t to =
        ptx::cluster_address(b.ds() + Plan::ds_layout().unswizzled_offset(first, 0), b.rank() ^ 1);
    ptx::mbarrier_arrive_expect_tx_cluster(bar, Plan::kSentWarpBytes);
    ptx::bulk_copy_cluster(to, b.address + Plan::kSentOffset + warp * Plan::kSentWarpBytes,
                           Plan::kSentWarpBytes, bar);
  }

  template <bool kCapped>
  FA4_D void steps();
  template <bool kCapped>
  FA4_D void serial_steps();
  FA4_D void run();
};

template <BwdConfig kConfig>
template <bool kCapped>
FA4_D void BwdCompute<kConfig>::steps() {
#pragma unroll 1
  for (int left = b.steps(); left > 0; --left) {
    load_scores();
    if (kCapped) cap_scores<kN>(s, b.args.score_scale);
    if (!is_plain(block)) mask();
    weigh<kCapped>();
    // Rows of the next step: its scores are wanted before this step is done.
    const int next = next_block();
    const bool cleans_next = left > 1 && !is_plain(next);
    if (cleans_next) clean_q(step + 1, next);
    differentiate<kCapped>();
    if (Plan::kPair && !is_plain(block)) clean_qt(step, block);
    ++step;
    block = next;
    if (cleans_next) clean_dout(step, block);
  }
}

/// Rows of a step are cleaned in it: no product of the next one begins before its last. Q and K are
/// read for scores alone, and those of rows that do not count are masked: NaN may stay in them.
template <BwdConfig kConfig>
template <bool kCapped>
FA4_D void BwdCompute<kConfig>::serial_steps() {
#pragma unroll 1
  for (int left = b.steps(); left > 0; --left) {
    const bool plain = is_plain(block);
    load_scores();
    if (!plain) clean_dout(step, block);
    if (kCapped) cap_scores<kN>(s, b.args.score_scale);
    if (!plain) mask();
    weigh<kCapped>();
    differentiate<kCapped>();
    if (!plain) clean_qt(step, block);
    ++step;
    block = next_block();
  }
}

template <BwdConfig kConfig>
FA4_D void BwdCompute<kConfig>::run() {
  if constexpr (Plan::kSerial) {
    b.args.softcap ? serial_steps<true>() : serial_steps<false>();
  } else {
    clean_q(0, block);
    clean_dout(0, block);
    b.args.softcap ? steps<true>() : steps<false>();
  }
  store_gradients(b, group, warp, tmem);
}

/// Two warpgroups.
/// Waits: s_full dp_full dv_full dk_full, q_full dout_full; of a pair stat_full landed dq_full.
/// Signals: p_full ds_full, q_clean dout_clean dkv_empty; of a pair clean s_read ds_landed.
template <BwdConfig kConfig>
FA4_D void role_compute(const BwdBlock<kConfig>& b, int warp) {
  BwdCompute<kConfig>(b, warp - BwdPlan<kConfig>::kFirstComputeWarp).run();
}

}  // namespace fa4::sm100
