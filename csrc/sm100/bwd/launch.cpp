#include "csrc/sm100/bwd/launch.h"

#include <string>

#include "csrc/common/bwd_launch.h"
#include "csrc/sm100/bwd/plan.h"
#include "csrc/sm100/clocks.h"

namespace fa4::sm100 {

namespace {

// For queries, gradients of out and accumulators of dq of the heads whose tiles pass together,
// bytes. A B200 has 126 MB of L2 cache in two parts. Not measured.
constexpr int64_t kL2Budget = int64_t{32} << 20;

/// Clocks of a step, predicted as docs/kernels/bwd_sm100.md does it: the tensor core's, or those of
/// everything that passes through shared memory.
template <class Plan>
constexpr double step_clocks() {
  // Of 128 columns and 16 of the inner dimension: S, dP and dQ; dV and dK.
  constexpr int kSharedProducts = (2 * Plan::kHeadDim + Plan::kHeadDimV) / 16;
  constexpr int kTmemProducts = (Plan::kHeadDim + Plan::kHeadDimV) / 16;
  const double products = kSharedProducts * kSharedProductClocks[Plan::kCtas - 1] +
                          kTmemProducts * kTmemProductClocks[Plan::kCtas - 1];
  const double shared = (Plan::kOperandBytes + Plan::kStoreBytes + Plan::kReduceBytes +
                         2 * Plan::kSentBytes + Plan::kCopyBytes) /
                        kSharedBytesPerClock;
  return max_of(products, shared) * (Plan::kPair ? kPairMargin : 1.0);
}

template <DType kDType, int kHeadDim, int kCtas = 1>
constexpr BwdPlanRow plan_row() {
  using Plan = BwdPlan<bwd_config(kDType, kHeadDim, kCtas)>;
  return {.dtype = kDType,
          .head_dim = kHeadDim,
          .head_dim_v = Plan::kHeadDimV,
          .block_m = Plan::kBlockM,
          .block_n = Plan::kTileKeys,
          .acc_columns = Plan::kHeadDim,
          .turns = Plan::kTurns,
          .threads = Plan::kThreads,
          .shared_bytes = Plan::kSharedBytes,
          .l2_budget = kL2Budget,
          .lse2_sign = -1.0f,
          .swizzle = Plan::kSwizzle,
          .ctas = Plan::kCtas,
          .q_rows = Plan::kQRows,
          .across_swizzle = Plan::kAcrossSwizzle,
          .step_clocks = step_clocks<Plan>()};
}

constexpr BwdPlanRow kPlans[] = {
    plan_row<DType::kBFloat16, 64>(),     plan_row<DType::kFloat16, 64>(),
    plan_row<DType::kBFloat16, 96>(),     plan_row<DType::kFloat16, 96>(),
    plan_row<DType::kBFloat16, 128>(),    plan_row<DType::kFloat16, 128>(),
    plan_row<DType::kBFloat16, 128, 2>(), plan_row<DType::kFloat16, 128, 2>(),
    plan_row<DType::kBFloat16, 192, 2>(), plan_row<DType::kFloat16, 192, 2>(),
};
static_assert(fits_launch(kPlans));

Status plan_of(const KernelRow& kernel, DType dtype, const BwdPlanRow** plan) {
  *plan = find_plan(kPlans, dtype, kernel);
  if (*plan != nullptr) return {};
  return Status::runtime(std::string(kernel.name) + ": is listed without plan");
}

}  // namespace

double bwd_clocks(const KernelRow& kernel, const BwdParams& params, int sms) {
  const BwdPlanRow* plan = find_plan(kPlans, params.dtype, kernel);
  return plan == nullptr ? 0.0 : fa4::bwd_clocks(*plan, params, sms);
}

Status bwd_workspace_bytes(const KernelRow& kernel, const BwdParams& params, int64_t* bytes) {
  const BwdPlanRow* plan = nullptr;
  if (Status s = plan_of(kernel, params.dtype, &plan); !s.ok()) return s;
  return workspace_bytes(*plan, params, bytes);
}

Status launch_bwd(const KernelRow& kernel, const BwdParams& params, const Context& context) {
  const BwdPlanRow* plan = nullptr;
  if (Status s = plan_of(kernel, params.dtype, &plan); !s.ok()) return s;
  return fa4::launch_bwd(kernel, *plan, params, context);
}

}  // namespace fa4::sm100
