// SM100 backward of a CTA pair: the mma role of the leader, which issues every product of both, and
// the relay role, which tells it that dS has crossed. serial_mma.cuh has the order for head dims
// whose steps are serial.
#pragma once

#include "csrc/sm100/bwd/block.cuh"
#include "csrc/sm100/bwd/mma.cuh"
#include "flash_attn4/device/umma.cuh"

namespace fa4::sm100 {

/// State of the thread that issues. Scores run a step ahead, and dQ, whose dS crosses between the
/// CTAs, comes behind dP of the next step:
///
///     S(0) dP(0) dV(0) | S(1) dK(0) dP(1) dQ(0) dV(1) | ... | S(n) ... dQ(n-1) dV(n) | dK(n) dQ(n)
template <BwdConfig kConfig>
struct BwdPairIssuer {
  using Plan = BwdPlan<kConfig>;

  const BwdBlock<kConfig>& b;
  uint32_t tmem;
  uint32_t q_parity = 0;      // of q: flips with S
  uint32_t dout_parity = 0;   // of dout: flips with dP
  uint32_t p_parity = 0;      // of doutt and P: flips with dV
  uint32_t ds_parity = 0;     // of qt and dS: flips with dK
  uint32_t whole_parity = 0;  // of dS of both CTAs, and of what s_read says: flips with dQ
  uint32_t dq_parity = kWriter;
  uint32_t clean_parity = 0;  // flips with what is cleaned

  /// Until both CTAs have cleaned what has landed.
  FA4_D void clean() {
    b.template arrive<kBwdLanded>(0);
    b.template wait<kBwdClean>(0, clean_parity);
    clean_parity ^= 1;
  }

  /// S = K Q^T, over dQ of the step before the last.
  FA4_D void scores(bool cleaned) {
    b.template wait<kBwdQFull>(0, q_parity);
    q_parity ^= 1;
    if (cleaned) clean();
    umma_abt<Plan::kHeadDim, 2>(tmem + Plan::tmem_s(), b.k(), Plan::key_layout(), b.q(0),
                                Plan::query_layout(), Plan::score_product());
    b.template commit<kBwdSFull>(0);
    b.template commit<kBwdQEmpty>(0);
  }

  /// dP = V dO^T.
  FA4_D void weight_gradients(bool cleaned) {
    b.template wait<kBwdDoutFull>(0, dout_parity);
    dout_parity ^= 1;
    if (cleaned) {
      b.template wait<kBwdDouttFull>(0, p_parity);
      clean();
    }
    umma_abt<Plan::kHeadDimV, 2>(tmem + Plan::tmem_dp(), b.v(), Plan::key_layout(), b.dout(0),
                                 Plan::query_layout(), Plan::score_product());
    b.template commit<kBwdDpFull>(0);
    b.template commit<kBwdDoutEmpty>(0);
  }

  /// dV += P dO.
  FA4_D void dv(bool accumulate) {
    b.template wait<kBwdDouttFull>(0, p_parity);
    b.template wait<kBwdPFull>(0, p_parity);
    p_parity ^= 1;
    ptx::tcgen05_fence_after();
    add_key_product<Plan, true>(tmem, Plan::tmem_dv(), b.doutt(), accumulate);
    b.template commit<kBwdDouttEmpty>(0);
  }

  /// dK += dS Q.
  FA4_D void dk(bool accumulate, bool cleaned) {
    b.template wait<kBwdQtFull>(0, ds_parity);
    if (cleaned) clean();
    b.template wait<kBwdDsFull>(0, ds_parity);
    ds_parity ^= 1;
    ptx::tcgen05_fence_after();
    add_key_product<Plan, false>(tmem, Plan::tmem_dk(), b.qt(), accumulate);
    b.template commit<kBwdQtEmpty>(0);
  }

  /// dQ = dS^T K over the keys of both CTAs, each the queries that it has. Its own part of dS was
  /// waited for by dk.
  FA4_D void dq(bool last) {
    b.template wait<kBwdDsWhole>(0, whole_parity);
    if (!last) b.template wait<kBwdSRead>(0, whole_parity);
    whole_parity ^= 1;
    ptx::tcgen05_fence_after();
    umma_atb<Plan::kTileKeys, 2>(tmem + Plan::tmem_dq(), b.ds(), Plan::ds_layout(), b.kt(),
                                 Plan::kt_layout(), Plan::query_product());
    b.template commit<kBwdDqFull>(0);
  }
  /// Until dQ of the last step that has one has been read.
  FA4_D void wait_dq_read() {
    b.template wait<kBwdDqEmpty>(0, dq_parity);
    dq_parity ^= 1;
    ptx::tcgen05_fence_after();
  }
};

/// One thread, of the leader.
/// Waits: q_full dout_full qt_full doutt_full clean s_read p_full ds_full ds_whole dq_empty.
/// Signals: q_empty dout_empty qt_empty doutt_empty landed s_full dp_full dq_full dv_full dk_full.
template <BwdConfig kConfig>
FA4_D void role_pair_mma(const BwdBlock<kConfig>& b) {
  BwdPairIssuer<kConfig> issuer{b, b.tmem()};
  const Interval clean = b.clean_blocks();
  BwdStep step = BwdStep::first(b);
  bool cleaned = b.ragged_keys() || !clean.contains(step.block);
  issuer.scores(cleaned);
  issuer.weight_gradients(cleaned);
  issuer.dv(false);
  bool accumulate = false;
#pragma unroll 1
  for (int left = b.steps() - 1; left > 0; --left) {
    step.advance(b);
    const bool cleans_next = !clean.contains(step.block);
    issuer.wait_dq_read();
    issuer.scores(cleans_next);
    issuer.dk(accumulate, cleaned);
    issuer.weight_gradients(cleans_next);
    issuer.dq(false);
    issuer.dv(true);
    accumulate = true;
    cleaned = cleans_next;
  }
  b.template commit<kBwdDvFull>(0);
  issuer.dk(accumulate, cleaned);
  b.template commit<kBwdDkFull>(0);
  issuer.wait_dq_read();
  issuer.dq(true);
}

/// One thread of each CTA: waits end in the own CTA, and the leader has to know of both.
/// Waits: ds_landed.  Signals: ds_whole.
template <BwdConfig kConfig>
FA4_D void role_relay(const BwdBlock<kConfig>& b) {
  uint32_t parity = 0;
#pragma unroll 1
  for (int left = b.steps(); left > 0; --left, parity ^= 1) {
    b.template wait<kBwdDsLanded>(0, parity);
    b.template arrive<kBwdDsWhole>(0);
  }
}

}  // namespace fa4::sm100
