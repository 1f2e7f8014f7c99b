#include "csrc/python/plans.h"

#include <pybind11/stl.h>

#include <array>
#include <span>
#include <string_view>
#include <utility>

#include "csrc/dispatch/kernel_list.h"
#include "csrc/sm100/bwd/plan.h"
#include "csrc/sm100/fwd/plan.h"
#include "csrc/sm90/bwd/plan.h"
#include "csrc/sm90/fwd/plan.h"
#include "flash_attn4/core/plan.h"

namespace py = pybind11;

namespace fa4::python {

namespace {

/// The tables of a plan, and the kernel they belong to.
struct PlanRow {
  Op op;
  Target target;
  DType dtype;
  int head_dim;  // the largest that the kernel serves
  std::span<const RoleRow> roles;
  std::span<const BarrierRow> barriers;
  uint32_t bar_offset;
  int ctas;  // that share a tile
  // Of a step in one CTA, where the plan tells: what products read of shared memory, what is copied
  // to it; backward: what threads store to it, what the other CTA sends, what is added to dq.
  uint32_t operand_bytes = 0;
  uint32_t copy_bytes = 0;
  uint32_t store_bytes = 0;
  uint32_t exchange_bytes = 0;
  uint32_t reduce_bytes = 0;
};

// ---- Roles: bit i of signals and waits stands for row i ------------------------------------------
using RoleBits = std::span<const std::pair<uint32_t, std::string_view>>;

constexpr bool in_order(std::span<const RoleRow> roles, RoleBits bits) {
  if (roles.size() != bits.size()) return false;
  for (size_t i = 0; i < roles.size(); ++i) {
    if (bits[i].first != 1u << i || bits[i].second != roles[i].name) return false;
  }
  return true;
}

template <size_t kRows>
using RoleList = std::array<std::pair<uint32_t, std::string_view>, kRows>;

constexpr RoleList<3> kFwdSm90{
    {{sm90::kConsumer, "consumer"}, {sm90::kLoad, "load"}, {sm90::kSchedule, "schedule"}}};
constexpr RoleList<3> kBwdSm90{
    {{sm90::kBwdConsumer, "consumer"}, {sm90::kBwdLoad, "load"}, {sm90::kBwdOrder, "order"}}};
constexpr RoleList<6> kFwdSm100{{{sm100::kSoftmax, "softmax"},
                                 {sm100::kCorrection, "correction"},
                                 {sm100::kMma, "mma"},
                                 {sm100::kLoad, "load"},
                                 {sm100::kStore, "store"},
                                 {sm100::kSchedule, "schedule"}}};
constexpr RoleList<5> kBwdSm100{{{sm100::kBwdReduce, "reduce"},
                                 {sm100::kBwdCompute, "compute"},
                                 {sm100::kBwdMma, "mma"},
                                 {sm100::kBwdLoad, "load"},
                                 {sm100::kBwdRelay, "relay"}}};

// ---- The plans -----------------------------------------------------------------------------------

template <class Plan>
constexpr PlanRow plan_row(Op op, Target target, DType dtype, int ctas = 1) {
  return {op,  target, dtype, Plan::kHeadDim, Plan::kRoles, Plan::kBarriers.row, Plan::kBarOffset,
          ctas};
}

template <DType kDType, int kHeadDim>
constexpr PlanRow fwd_sm90() {
  using Plan = sm90::FwdPlan<sm90::fwd_config(kDType, kHeadDim)>;
  static_assert(in_order(Plan::kRoles, kFwdSm90));
  return plan_row<Plan>(Op::kFwd, Target::kSm90a, kDType);
}

template <DType kDType, int kHeadDim>
constexpr PlanRow bwd_sm90() {
  using Plan = sm90::BwdPlan<sm90::bwd_config(kDType, kHeadDim)>;
  static_assert(in_order(Plan::kRoles, kBwdSm90));
  return plan_row<Plan>(Op::kBwd, Target::kSm90a, kDType);
}

template <DType kDType, int kHeadDim, int kCtas = 1>
constexpr PlanRow fwd_sm100() {
  using Plan = sm100::FwdPlan<sm100::fwd_config(kDType, kHeadDim, kCtas)>;
  static_assert(in_order(Plan::kRoles, kFwdSm100));
  PlanRow row = plan_row<Plan>(Op::kFwd, Target::kSm100f, kDType, kCtas);
  row.operand_bytes = Plan::kOperandBytes;
  row.copy_bytes = Plan::kCopyBytes;
  return row;
}

template <DType kDType, int kHeadDim, int kCtas = 1>
constexpr PlanRow bwd_sm100() {
  using Plan = sm100::BwdPlan<sm100::bwd_config(kDType, kHeadDim, kCtas)>;
  static_assert(in_order(Plan::kRoles, kBwdSm100));
  PlanRow row = plan_row<Plan>(Op::kBwd, Target::kSm100f, kDType, kCtas);
  row.operand_bytes = Plan::kOperandBytes;
  row.copy_bytes = Plan::kCopyBytes;
  row.store_bytes = Plan::kStoreBytes;
  row.exchange_bytes = Plan::kSentBytes;
  row.reduce_bytes = Plan::kReduceBytes;
  return row;
}

constexpr PlanRow kPlans[] = {
    fwd_sm90<DType::kBFloat16, 64>(),      fwd_sm90<DType::kFloat16, 64>(),
    fwd_sm90<DType::kBFloat16, 128>(),     fwd_sm90<DType::kFloat16, 128>(),
    bwd_sm90<DType::kBFloat16, 64>(),      bwd_sm90<DType::kFloat16, 64>(),
    bwd_sm90<DType::kBFloat16, 128>(),     bwd_sm90<DType::kFloat16, 128>(),
    fwd_sm100<DType::kBFloat16, 64>(),     fwd_sm100<DType::kFloat16, 64>(),
    fwd_sm100<DType::kBFloat16, 96>(),     fwd_sm100<DType::kFloat16, 96>(),
    fwd_sm100<DType::kBFloat16, 128>(),    fwd_sm100<DType::kFloat16, 128>(),
    fwd_sm100<DType::kBFloat16, 192>(),    fwd_sm100<DType::kFloat16, 192>(),
    fwd_sm100<DType::kBFloat16, 128, 2>(), fwd_sm100<DType::kFloat16, 128, 2>(),
    fwd_sm100<DType::kBFloat16, 192, 2>(), fwd_sm100<DType::kFloat16, 192, 2>(),
    bwd_sm100<DType::kBFloat16, 64>(),     bwd_sm100<DType::kFloat16, 64>(),
    bwd_sm100<DType::kBFloat16, 96>(),     bwd_sm100<DType::kFloat16, 96>(),
    bwd_sm100<DType::kBFloat16, 128>(),    bwd_sm100<DType::kFloat16, 128>(),
    bwd_sm100<DType::kBFloat16, 128, 2>(), bwd_sm100<DType::kFloat16, 128, 2>(),
    bwd_sm100<DType::kBFloat16, 192, 2>(), bwd_sm100<DType::kFloat16, 192, 2>(),
};

const PlanRow* find_plan(const KernelRow& kernel) {
  for (const PlanRow& plan : kPlans) {
    if (plan.op == kernel.op && plan.target == kernel.target &&
        (kernel.dtypes & bit(plan.dtype)) != 0 && plan.head_dim == kernel.head_dim.max &&
        plan.ctas == kernel.ctas) {
      return &plan;
    }
  }
  return nullptr;
}

// ---- As Python data ------------------------------------------------------------------------------

py::list role_names(std::span<const RoleRow> roles, uint32_t bits) {
  py::list names;
  for (size_t i = 0; i < roles.size(); ++i) {
    if ((bits & 1u << i) != 0) names.append(roles[i].name);
  }
  return names;
}

/// A role that a configuration has no use for has no warps, and no row.
py::list role_dicts(const PlanRow& plan) {
  py::list rows;
  for (const RoleRow& role : plan.roles) {
    if (role.warps == 0) continue;
    py::dict row;
    row["name"] = role.name;
    row["first_warp"] = role.first_warp;
    row["warps"] = role.warps;
    rows.append(std::move(row));
  }
  return rows;
}

/// A ring that a configuration has no use for has no stages, and no row.
py::list barrier_dicts(const PlanRow& plan) {
  constexpr const char* kDone[] = {"threads", "bytes", "commit"};       // of enum Done
  constexpr const char* kHolder[] = {"own", "leader", "both", "peer"};  // of enum Holder
  py::list rows;
  uint32_t offset = plan.bar_offset;
  for (const BarrierRow& barrier : plan.barriers) {
    if (barrier.stages == 0) continue;
    py::dict row;
    row["name"] = barrier.name;
    row["offset"] = offset;
    row["stages"] = barrier.stages;
    row["arrivals"] = barrier.arrivals;
    row["done"] = kDone[static_cast<int>(barrier.done)];
    row["signals"] = role_names(plan.roles, barrier.signals);
    row["waits"] = role_names(plan.roles, barrier.waits);
    row["holder"] = kHolder[static_cast<int>(barrier.holder)];
    rows.append(std::move(row));
    offset += 8 * static_cast<uint32_t>(barrier.stages);
  }
  return rows;
}

}  // namespace

py::dict kernel_plans() {
  py::dict plans;
  for (const KernelRow& kernel : kernel_list()) {
    const PlanRow* const plan = find_plan(kernel);
    if (plan == nullptr) continue;
    py::dict row;
    row["roles"] = role_dicts(*plan);
    row["barriers"] = barrier_dicts(*plan);
    row["operand_bytes"] = plan->operand_bytes;
    row["copy_bytes"] = plan->copy_bytes;
    row["store_bytes"] = plan->store_bytes;
    row["exchange_bytes"] = plan->exchange_bytes;
    row["reduce_bytes"] = plan->reduce_bytes;
    plans[kernel.name] = std::move(row);
  }
  return plans;
}

}  // namespace fa4::python
