// SM100 backward of a CTA pair whose steps are serial: the mma role of the leader, which issues every
// product of both.
#pragma once

#include "csrc/sm100/bwd/block.cuh"
#include "csrc/sm100/bwd/mma.cuh"
#include "flash_attn4/device/umma.cuh"

namespace fa4::sm100 {

/// State of the thread that issues. S, dP and dQ of a step lie over each other in tensor memory:
///
///     S(0) dP(0) dV(0) dK(0) dQ(0) | S(1) dP(1) dV(1) dK(1) dQ(1) | ...
///
/// dP is computed while weights are, dV while their gradients are, and dS crosses during dK.
template <BwdConfig kConfig>
struct BwdSerialIssuer {
  using Plan = BwdPlan<kConfig>;

  const BwdBlock<kConfig>& b;
  uint32_t tmem;
  uint32_t parity = 0;        // of all barriers: flips with a step
  uint32_t clean_parity = 0;  // flips with what is cleaned

  /// Until both CTAs have cleaned what has landed.
  FA4_D void clean() {
    b.template arrive<kBwdLanded>(0);
    b.template wait<kBwdClean>(0, clean_parity);
    clean_parity ^= 1;
  }

  /// S = K Q^T, over dQ of the step before.
  FA4_D void scores() {
    b.template wait<kBwdQFull>(0, parity);
    b.template wait<kBwdDqEmpty>(0, parity ^ kWriter);
    ptx::tcgen05_fence_after();
    umma_abt<Plan::kHeadDim, 2>(tmem + Plan::tmem_s(), b.k(), Plan::key_layout(), b.q(0),
                                Plan::query_layout(), Plan::score_product());
    b.template commit<kBwdSFull>(0);
    b.template commit<kBwdQEmpty>(0);
  }

  /// dP = V dO^T, over half of S.
  FA4_D void weight_gradients(bool cleaned) {
    b.template wait<kBwdDoutFull>(0, parity);
    if (cleaned) {
      b.template wait<kBwdDouttFull>(0, parity);
      clean();
    }
    b.template wait<kBwdSRead>(0, parity);
    ptx::tcgen05_fence_after();
    umma_abt<Plan::kHeadDimV, 2>(tmem + Plan::tmem_dp(), b.v(), Plan::key_layout(), b.dout(0),
                                 Plan::query_layout(), Plan::score_product());
    b.template commit<kBwdDpFull>(0);
  }

  /// dV += P dO.
  FA4_D void dv(bool accumulate) {
    b.template wait<kBwdDouttFull>(0, parity);
    b.template wait<kBwdPFull>(0, parity);
    ptx::tcgen05_fence_after();
    add_key_product<Plan, true>(tmem, Plan::tmem_dv(), b.doutt(), accumulate);
  }

  /// dK += dS Q.
  FA4_D void dk(bool accumulate, bool cleaned) {
    b.template wait<kBwdQtFull>(0, parity);
    if (cleaned) clean();
    b.template wait<kBwdDsFull>(0, parity);
    ptx::tcgen05_fence_after();
    add_key_product<Plan, false>(tmem, Plan::tmem_dk(), b.qt(), accumulate);
    b.template commit<kBwdQtEmpty>(0);
  }

  /// dQ = dS^T K over the keys of both CTAs, each the queries that it has; over dS, which dK has
  /// read. Its own part of dS in shared memory, and tensor memory, were waited for by dk.
  FA4_D void dq() {
    b.template wait<kBwdDsWhole>(0, parity);
    umma_atb<Plan::kTileKeys, 2>(tmem + Plan::tmem_dq(), b.ds(), Plan::ds_layout(), b.kt(),
                                 Plan::kt_layout(), Plan::query_product());
    b.template commit<kBwdDqFull>(0);
    b.template commit<kBwdDoutEmpty>(0);
  }
};

/// One thread, of the leader.
/// Waits: q_full dout_full qt_full doutt_full clean s_read p_full ds_full ds_whole dq_empty.
/// Signals: q_empty dout_empty qt_empty landed s_full dp_full dq_full dv_full dk_full.
template <BwdConfig kConfig>
FA4_D void role_serial_mma(const BwdBlock<kConfig>& b) {
  BwdSerialIssuer<kConfig> issuer{b, b.tmem()};
  const Interval clean = b.clean_blocks();
  BwdStep step = BwdStep::first(b);
  bool ragged = b.ragged_keys();  // keys come with the first step
  bool accumulate = false;
#pragma unroll 1
  for (int left = b.steps(); left > 0; --left) {
    const bool cleaned = ragged || !clean.contains(step.block);
    issuer.scores();
    issuer.weight_gradients(cleaned);
    issuer.dv(accumulate);
    if (left == 1) b.template commit<kBwdDvFull>(0);
    issuer.dk(accumulate, cleaned);
    if (left == 1) b.template commit<kBwdDkFull>(0);
    issuer.dq();
    issuer.parity ^= 1;
    step.advance(b);
    ragged = false;
    accumulate = true;
  }
}

}  // namespace fa4::sm100
