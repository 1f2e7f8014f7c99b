// SM100 backward, mma role: issues every product of the block.
#pragma once

#include "csrc/sm100/bwd/block.cuh"
#include "flash_attn4/device/umma.cuh"

namespace fa4::sm100 {

/// D += A B of a step: A is P (kWeights) or dS in tensor memory, B all of its queries or dO. Their
/// columns are those of both CTAs of a pair, half and half.
template <class Plan, bool kWeights>
FA4_D void add_key_product(uint32_t tmem, uint32_t d, uint32_t queries, bool accumulate) {
  constexpr int kSteps = Plan::kGroupQueries / 16;
#pragma unroll
  for (int group = 0; group < Plan::kGroups; ++group) {
    const int first = group * kSteps;
    const uint32_t a = kWeights ? Plan::tmem_p(group) : Plan::tmem_ds(group);
    const TileLayout layout = kWeights ? Plan::doutt_layout() : Plan::qt_layout();
    const uint32_t product = kWeights ? Plan::value_product() : Plan::key_product();
    umma_ab<Plan::kCtas>(tmem + d, tmem + a - 8 * first, queries, layout, product, 0, first,
                         first + kSteps, accumulate);
  }
}

/// State of the thread that issues. Scores run a step ahead:
///
///     S(0) dP(0) dV(0) | S(1) dK(0) dQ(0) dP(1) dV(1) | ... | S(n) dK(n-1) ... dV(n) | dK(n) dQ(n)
///
/// dQ comes before dK where the plan says so.
template <BwdConfig kConfig>
struct BwdIssuer {
  using Plan = BwdPlan<kConfig>;

  const BwdBlock<kConfig>& b;
  uint32_t tmem;
  Ring<Plan::kQStages> q_ring{kReader};  // at the step of S
  Ring<Plan::kDoutStages> dout_ring{kReader};
  uint32_t parity = 0;  // of dS, and of P: flips with a step
  uint32_t dq_parity = Plan::kDqApart ? kWriter : kReader;
  uint32_t clean_parity = 0;  // flips with a step whose rows are cleaned

  /// S = K Q^T.
  FA4_D void scores(bool cleaned) {
    b.template wait<kBwdQFull>(q_ring.stage, q_ring.parity);
    if (cleaned) b.template wait<kBwdQClean>(0, clean_parity);
    umma_abt<Plan::kHeadDim>(tmem + Plan::tmem_s(), b.k(), Plan::key_layout(), b.q(q_ring.stage),
                             Plan::query_layout(), Plan::score_product());
    ptx::tcgen05_commit(b.template bar<kBwdSFull>(0));
    q_ring.advance();
  }

  /// dP = V dO^T.
  FA4_D void weight_gradients(bool cleaned) {
    b.template wait<kBwdDoutFull>(dout_ring.stage, dout_ring.parity);
    if (cleaned) {
      b.template wait<kBwdDoutClean>(0, clean_parity);
      clean_parity ^= 1;
    }
    umma_abt<Plan::kHeadDimV>(tmem + Plan::tmem_dp(), b.v(), Plan::key_layout(),
                              b.dout(dout_ring.stage), Plan::query_layout(), Plan::score_product());
    ptx::tcgen05_commit(b.template bar<kBwdDpFull>(0));
  }

  /// dV += P dO.
  FA4_D void dv(bool accumulate) {
    b.template wait<kBwdPFull>(0, parity);
    ptx::tcgen05_fence_after();
    add_key_product<Plan, true>(tmem, Plan::tmem_dv(), b.dout(dout_ring.stage), accumulate);
    ptx::tcgen05_commit(b.template bar<kBwdDoutEmpty>(dout_ring.stage));
    dout_ring.advance();
  }

  /// dK += dS Q, of the step whose queries are at `stage`.
  FA4_D void dk(int stage, bool accumulate) {
    add_key_product<Plan, false>(tmem, Plan::tmem_dk(), b.q(stage), accumulate);
    ptx::tcgen05_commit(b.template bar<kBwdQEmpty>(stage));
  }

  /// dQ = dS^T K.
  FA4_D void dq() {
    umma_atb<Plan::kBlockN>(tmem + Plan::tmem_dq(), b.ds(), Plan::ds_layout(), b.k(),
                            Plan::key_layout(), Plan::query_product());
    ptx::tcgen05_commit(b.template bar<kBwdDqFull>(0));
  }
  /// Until dQ of the step before this one has been read.
  FA4_D void wait_dq_read() {
    b.template wait<kBwdDqEmpty>(0, dq_parity);
    dq_parity ^= 1;
    ptx::tcgen05_fence_after();
  }

  /// dK and dQ, of the step whose queries are at `stage`.
  FA4_D void score_gradients(int stage, bool accumulate) {
    if (Plan::kDqApart) wait_dq_read();
    b.template wait<kBwdDsFull>(0, parity);
    parity ^= 1;
    ptx::tcgen05_fence_after();
    if (Plan::kDqFirst) dq();
    dk(stage, accumulate);
    if (!Plan::kDqFirst) dq();
  }
};

/// One thread.
/// Waits: q_full q_clean dout_full dout_clean p_full ds_full dq_empty dkv_empty.
/// Signals: q_empty dout_empty s_full dp_full dq_full dv_full dk_full.
template <BwdConfig kConfig>
FA4_D void role_mma(const BwdBlock<kConfig>& b) {
  using Plan = BwdPlan<kConfig>;
  BwdIssuer<kConfig> issuer{b, b.tmem()};
  const Interval clean = b.clean_blocks();
  BwdStep step = BwdStep::first(b);
  const bool cleaned = b.ragged_keys() || !clean.contains(step.block);
  issuer.scores(cleaned);
  issuer.weight_gradients(cleaned);
  issuer.dv(false);
  bool accumulate = false;
  int stage = 0;
#pragma unroll 1
  for (int left = b.steps() - 1; left > 0; --left) {
    step.advance(b);
    const bool cleaned = !clean.contains(step.block);
    const int next_stage = issuer.q_ring.stage;
    issuer.scores(cleaned);
    issuer.score_gradients(stage, accumulate);
    if (!Plan::kDqApart) issuer.wait_dq_read();
    issuer.weight_gradients(cleaned);
    issuer.dv(true);
    accumulate = true;
    stage = next_stage;
  }
  ptx::tcgen05_commit(b.template bar<kBwdDvFull>(0));
  issuer.score_gradients(stage, accumulate);
  ptx::tcgen05_commit(b.template bar<kBwdDkFull>(0));
  // Tensor memory is given back when everything has been read.
  issuer.wait_dq_read();
  b.template wait<kBwdDkvEmpty>(0, 0);
  ptx::tcgen05_fence_after();  // it is freed behind what others did with it
}

}  // namespace fa4::sm100
