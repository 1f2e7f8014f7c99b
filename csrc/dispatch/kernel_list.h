// The kernels of this build as data. Rows are generated from kernel_list.py.
#pragma once

#include <cstdint>
#include <span>

#include "csrc/driver/image.h"
#include "flash_attn4/core/types.h"

namespace fa4 {

// The first three are calls of the API; the others are parts of a backward on a GPU, which no call
// chooses.
enum class Op : uint8_t { kFwd, kBwd, kCombine, kBwdPrepare, kBwdFinish, kBwdSink };
enum class Target : uint8_t { kCpu, kSm90a, kSm100f };
enum class Feature : uint8_t {
  kGqa,
  kCausal,
  kWindow,
  kSoftcap,
  kSink,
  kVarlen,
  kSeqused,
  kPaged,
  kSplits,
  kDlse,
  kDeterministic,
};
constexpr int kNumFeatures = 11;

constexpr uint32_t bit(DType dtype) {
  return 1u << static_cast<int>(dtype);
}
constexpr uint32_t bit(Feature feature) {
  return 1u << static_cast<int>(feature);
}

const char* op_name(Op op);
const char* target_name(Target target);
const char* feature_name(Feature feature);

/// Inclusive range of a head dimension; all kernels want multiples of 8.
struct DimRange {
  int min;
  int max;
};

struct KernelRow {
  const char* name;
  Op op;
  Target target;
  uint32_t dtypes;  // bit(DType)
  DimRange head_dim;
  DimRange head_dim_v;
  uint32_t features;  // bit(Feature)
  driver::Image image;
  int ctas = 1;  // that share a tile: see is_form_of
};

/// Every kernel of this build.
std::span<const KernelRow> kernel_list();

/// Whether two kernels serve the same calls in another way: with one CTA per tile, or a pair.
constexpr bool is_form_of(const KernelRow& a, const KernelRow& b) {
  return a.op == b.op && a.target == b.target && a.dtypes == b.dtypes &&
         a.head_dim.max == b.head_dim.max && a.head_dim_v.max == b.head_dim_v.max;
}

/// The kernel of an operation that has one per target and element type; null: not in this build.
const KernelRow* find_kernel(Op op, Target target, DType dtype);

/// Whether machine code for `target` runs on a device of compute capability major.minor.
constexpr bool target_runs_on(Target target, int major, int minor) {
  return target == Target::kSm90a ? major == 9 && minor == 0
                                  : target == Target::kSm100f && major == 10;
}

}  // namespace fa4
