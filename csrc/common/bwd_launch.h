// Launch of the backward kernels of every GPU: prepare, main, finish, sink (csrc/common/bwd_args.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "csrc/dispatch/kernel_list.h"
#include "flash_attn4/core/descriptors.h"
#include "flash_attn4/flash_attn4.h"

namespace fa4 {

/// What a launch has to know of a main kernel's plan.
struct BwdPlanRow {
  DType dtype;          // of q, k, v, dout and the gradients
  int32_t head_dim;     // of q and k: the most that the kernel serves
  int32_t head_dim_v;   // of v and dout, likewise
  int32_t block_m;      // queries per step
  int32_t block_n;      // keys per tile
  int32_t acc_columns;  // of dq's accumulator
  int32_t turns;        // counters of turns per block of queries: parts of dq that are added apart
  unsigned threads;     // of a block
  size_t shared_bytes;  // of a block
  int64_t l2_budget;    // bytes of what the tiles that pass together read and add to
  float lse2_sign = 1.0f;            // -1: the kernel takes lse2 negated
  Swizzle swizzle = Swizzle::k128B;  // of boxes, which are as wide as its span
  // CTAs that share a tile. A box of q and of dout has block_m rows, one of k and of v block_n, of a
  // pair half of them.
  int32_t ctas = 1;
  int32_t q_rows = 0;  // of a box of q, if it has fewer
  // Of qt and kt, if it differs: boxes of all block_m rows of q, and of k as above.
  Swizzle across_swizzle = swizzle;
  double step_clocks = 0.0;  // predicted, where a kernel has several forms
};

/// Whether launches may rely on these plans: to be asserted of a table of them.
constexpr bool fits_launch(std::span<const BwdPlanRow> plans) {
  for (const BwdPlanRow& plan : plans) {
    const bool fits = plan.block_m <= 256 && plan.block_n <= 256 && plan.acc_columns % 32 == 0 &&
                      plan.acc_columns >= plan.head_dim;
    if (!fits) return false;
  }
  return true;
}

/// The plan of `kernel` for this element type, or null.
const BwdPlanRow* find_plan(std::span<const BwdPlanRow> plans, DType dtype,
                            const KernelRow& kernel);

/// Clocks that a call is predicted to take on `sms` SMs, for comparing forms of a kernel: infinite
/// where some of a pair's CTAs would have no keys. Packed sequences count with their mean lengths.
double bwd_clocks(const BwdPlanRow& plan, const BwdParams& params, int sms);

/// What bwd_workspace_bytes tells of a call that has passed its checks.
Status workspace_bytes(const BwdPlanRow& plan, const BwdParams& params, int64_t* bytes);

/// Runs `kernel`, whose plan is `plan`, and what belongs around it, on a call that has passed its
/// checks. q, k, v and dout have to be readable, see gpu::readable.
Status launch_bwd(const KernelRow& kernel, const BwdPlanRow& plan, const BwdParams& params,
                  const Context& context);

}  // namespace fa4
