#include "csrc/sm100/fwd/launch.h"

#include <string>

#include "csrc/common/fwd_launch.h"
#include "csrc/sm100/clocks.h"
#include "csrc/sm100/fwd/plan.h"

namespace fa4::sm100 {

namespace {

// For keys and values of the heads whose tiles pass together, bytes. A B200 has 126 MB of L2 cache
// in two parts, and queries and results pass through it as well. Not measured.
constexpr int64_t kL2Budget = int64_t{32} << 20;

// Clocks of a step, predicted as docs/kernels/fwd_sm100.md does it. From scores to weights: an
// exponential is 8 clocks of a warp, hand-overs, reads and the maximum are the rest. A mask takes 215
// instructions of a warp, of 2 clocks.
constexpr double kExponentialClocks = 8.0, kHandOverClocks = 516.0;
constexpr double kMaskClocks = 430.0;

template <class Plan>
constexpr double step_clocks() {
  const int form = Plan::kCtas - 1;
  const double products = Plan::kHalves * (Plan::kHeadDim / 16 * kSharedProductClocks[form] +
                                           Plan::kBlockN / 16 * kTmemProductClocks[form]);
  const double chain =
      products / 2 + Plan::kEarlyExponentials * kExponentialClocks + kHandOverClocks;
  const double shared = (Plan::kOperandBytes + Plan::kCopyBytes) / kSharedBytesPerClock;
  return max_of(max_of(products, chain), shared) * (Plan::kPair ? kPairMargin : 1.0);
}

template <DType kDType, int kHeadDim, int kCtas = 1>
constexpr FwdPlanRow plan_row() {
  using Plan = FwdPlan<fwd_config(kDType, kHeadDim, kCtas)>;
  return {.dtype = kDType,
          .head_dim = Plan::kHeadDim,
          .head_dim_v = Plan::kHeadDimV,
          .boxes = Plan::kCtas * Plan::kHalves,
          .box_rows = Plan::kHalfRows,
          .out_rows = Plan::kOutStages > 0 ? Plan::kHalfRows : 0,
          .block_n = Plan::kBlockN,
          .value_rows = Plan::kValueRows,
          .swizzle = Plan::kSwizzle,
          .threads = Plan::kThreads,
          .shared_bytes = Plan::kSharedBytes,
          .l2_budget = kL2Budget,
          .ctas = Plan::kCtas,
          .step_clocks = step_clocks<Plan>(),
          .mask_clocks = kMaskClocks};
}

constexpr FwdPlanRow kPlans[] = {
    plan_row<DType::kBFloat16, 64>(),     plan_row<DType::kFloat16, 64>(),
    plan_row<DType::kBFloat16, 96>(),     plan_row<DType::kFloat16, 96>(),
    plan_row<DType::kBFloat16, 128>(),    plan_row<DType::kFloat16, 128>(),
    plan_row<DType::kBFloat16, 192>(),    plan_row<DType::kFloat16, 192>(),
    plan_row<DType::kBFloat16, 128, 2>(), plan_row<DType::kFloat16, 128, 2>(),
    plan_row<DType::kBFloat16, 192, 2>(), plan_row<DType::kFloat16, 192, 2>(),
};
static_assert(fits_free_rows(kPlans));

}  // namespace

double fwd_clocks(const KernelRow& kernel, const FwdParams& params, int sms) {
  const FwdPlanRow* plan = find_plan(kPlans, params.dtype, kernel);
  return plan == nullptr ? 0.0 : fa4::fwd_clocks(*plan, params, sms);
}

Status launch_fwd(const KernelRow& kernel, const FwdParams& params, const Context& context) {
  const FwdPlanRow* plan = find_plan(kPlans, params.dtype, kernel);
  if (plan == nullptr) {
    return Status::runtime(std::string(kernel.name) + ": is listed without plan");
  }
  return fa4::launch_fwd(kernel, *plan, params, context);
}

}  // namespace fa4::sm100
