#include "csrc/dispatch/kernel_list.h"

namespace fa4 {

#include "kernel_list.inc"

std::span<const KernelRow> kernel_list() {
  return kRows;
}

const KernelRow* find_kernel(Op op, Target target, DType dtype) {
  for (const KernelRow& kernel : kRows) {
    if (kernel.op == op && kernel.target == target && (kernel.dtypes & bit(dtype)) != 0) {
      return &kernel;
    }
  }
  return nullptr;
}

const char* op_name(Op op) {
  constexpr const char* kNames[] = {"fwd",         "bwd",        "combine",
                                    "bwd_prepare", "bwd_finish", "bwd_sink"};
  return kNames[static_cast<int>(op)];
}

const char* target_name(Target target) {
  constexpr const char* kNames[] = {"cpu", "sm90a", "sm100f"};
  return kNames[static_cast<int>(target)];
}

const char* feature_name(Feature feature) {
  constexpr const char* kNames[] = {"gqa",    "causal", "window",       "softcap",
                                    "sink",   "varlen", "seqused",      "paged",
                                    "splits", "dlse",   "deterministic"};
  static_assert(sizeof(kNames) / sizeof(kNames[0]) == kNumFeatures);
  return kNames[static_cast<int>(feature)];
}

}  // namespace fa4
