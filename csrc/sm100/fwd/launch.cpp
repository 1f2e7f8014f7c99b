#include "csrc/sm100/fwd/launch.h"

#include <string>

#include "csrc/common/fwd_launch.h"
#include "csrc/sm100/fwd/plan.h"

namespace fa4::sm100 {

namespace {

// For keys and values of the heads whose tiles pass together, bytes. A B200 has 126 MB of L2 cache
// in two parts, and queries and results pass through it as well. Not measured.
constexpr int64_t kL2Budget = int64_t{32} << 20;

template <DType kDType, int kHeadDim>
constexpr FwdPlanRow plan_row() {
  using Plan = FwdPlan<fwd_config(kDType, kHeadDim)>;
  return {.dtype = kDType,
          .head_dim = Plan::kHeadDim,
          .head_dim_v = Plan::kHeadDimV,
          .boxes = Plan::kHalves,
          .box_rows = Plan::kHalfRows,
          .out_rows = Plan::kOutStages > 0 ? Plan::kHalfRows : 0,
          .block_n = Plan::kBlockN,
          .value_rows = Plan::kValueRows,
          .swizzle = Plan::kSwizzle,
          .threads = Plan::kThreads,
          .shared_bytes = Plan::kSharedBytes,
          .l2_budget = kL2Budget};
}

constexpr FwdPlanRow kPlans[] = {
    plan_row<DType::kBFloat16, 64>(),  plan_row<DType::kFloat16, 64>(),
    plan_row<DType::kBFloat16, 96>(),  plan_row<DType::kFloat16, 96>(),
    plan_row<DType::kBFloat16, 128>(), plan_row<DType::kFloat16, 128>(),
    plan_row<DType::kBFloat16, 192>(), plan_row<DType::kFloat16, 192>(),
};
static_assert(fits_free_rows(kPlans));

}  // namespace

Status launch_fwd(const KernelRow& kernel, const FwdParams& params, const Context& context) {
  const FwdPlanRow* plan = find_plan(kPlans, params.dtype, kernel);
  if (plan == nullptr) {
    return Status::runtime(std::string(kernel.name) + ": is listed without plan");
  }
  return fa4::launch_fwd(kernel, *plan, params, context);
}

}  // namespace fa4::sm100
