// Launch of the forward kernels of every GPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "csrc/common/operands.h"
#include "csrc/dispatch/kernel_list.h"
#include "flash_attn4/core/descriptors.h"
#include "flash_attn4/flash_attn4.h"

namespace fa4 {

/// What a launch has to know of a kernel's plan.
struct FwdPlanRow {
  DType dtype;          // of q, k, v and out
  int32_t head_dim;     // of q and k: the most that the kernel serves
  int32_t head_dim_v;   // of v and out, likewise
  int32_t boxes;        // boxes of q in a tile of query rows
  int32_t box_rows;     // rows of such a box: queries times the heads packed into it
  int32_t out_rows;     // rows of a box of out; 0: the kernel never stores through a tensor map
  int32_t block_n;      // keys per step, a box of k
  int32_t value_rows;   // keys per box of v: block_n, or a part of it
  Swizzle swizzle;      // of all tiles; boxes are as wide as its span
  unsigned threads;     // of a block
  size_t shared_bytes;  // of a block
  int64_t l2_budget;    // bytes of keys and values of the heads whose tiles pass together
  // CTAs that share a tile, each with as many of its boxes; a box of k is for one of them.
  int32_t ctas = 1;
  // Predicted, where a kernel has several forms: of a step, and how much longer one with a mask is.
  double step_clocks = 0.0;
  double mask_clocks = 0.0;
};

/// Whether two tiles of every plan fit kFreeRows: to be asserted of a table of plans.
constexpr bool fits_free_rows(std::span<const FwdPlanRow> plans) {
  for (const FwdPlanRow& plan : plans) {
    if (2 * int64_t{plan.boxes} * plan.box_rows > kFreeRows) return false;
  }
  return true;
}

/// The plan of `kernel` for this element type, or null.
const FwdPlanRow* find_plan(std::span<const FwdPlanRow> plans, DType dtype,
                            const KernelRow& kernel);

/// Clocks that a call is predicted to take on `sms` SMs, for comparing forms of a kernel: infinite
/// where some of a pair's CTAs would have no rows. Packed sequences count with their mean lengths.
double fwd_clocks(const FwdPlanRow& plan, const FwdParams& params, int sms);

/// Runs `kernel`, whose plan is `plan`, on a call that has passed its checks. q, k and v have to be
/// readable, see gpu::readable.
Status launch_fwd(const KernelRow& kernel, const FwdPlanRow& plan, const FwdParams& params,
                  const Context& context);

}  // namespace fa4
