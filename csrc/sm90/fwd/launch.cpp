#include "csrc/sm90/fwd/launch.h"

#include <string>

#include "csrc/common/fwd_launch.h"
#include "csrc/sm90/fwd/plan.h"

namespace fa4::sm90 {

namespace {

// For keys and values of the heads whose tiles pass together, bytes. An H100 has 50 MB of L2 cache,
// and queries and results pass through it as well.
constexpr int64_t kL2Budget = int64_t{8} << 20;

template <DType kDType, int kHeadDim>
constexpr FwdPlanRow plan_row() {
  using Plan = FwdPlan<fwd_config(kDType, kHeadDim)>;
  return {.dtype = kDType,
          .head_dim = kHeadDim,
          .head_dim_v = kHeadDim,
          .boxes = 1,
          .box_rows = Plan::kBlockM,
          .out_rows = Plan::out_layout().rows,
          .block_n = Plan::kBlockN,
          .value_rows = Plan::kBlockN,
          .swizzle = Plan::q_layout().swizzle,
          .threads = Plan::kThreads,
          .shared_bytes = Plan::kSharedBytes,
          .l2_budget = kL2Budget};
}

constexpr FwdPlanRow kPlans[] = {
    plan_row<DType::kBFloat16, 64>(),
    plan_row<DType::kFloat16, 64>(),
    plan_row<DType::kBFloat16, 128>(),
    plan_row<DType::kFloat16, 128>(),
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

}  // namespace fa4::sm90
