#include "csrc/dispatch/select.h"

namespace fa4 {

namespace {

using std::to_string;

uint32_t problem_features(const Problem& p) {
  uint32_t features = 0;
  const auto require = [&](bool asked, Feature feature) { features |= asked ? bit(feature) : 0; };
  require(p.heads_q != p.heads_k, Feature::kGqa);
  require(p.causal, Feature::kCausal);
  require(p.window_left >= 0 || (!p.causal && p.window_right >= 0), Feature::kWindow);
  require(p.softcap > 0.0f, Feature::kSoftcap);
  require(p.sink != nullptr, Feature::kSink);
  require(p.cu_seqlens_q != nullptr || p.cu_seqlens_k != nullptr, Feature::kVarlen);
  require(p.seqused_q != nullptr || p.seqused_k != nullptr, Feature::kSeqused);
  return features;
}

std::string wanted_range(const char* name, int64_t value, DimRange range) {
  return std::string(name) + " is " + to_string(value) + " (serves " + to_string(range.min) + ".." +
         to_string(range.max) + ")";
}

/// `first`, or a form of it further down the list.
const KernelRow& best_form(const KernelRow& first, const Request& request, const Place& place,
                           const Cost& cost) {
  const KernelRow* best = &first;
  for (const KernelRow& kernel : kernel_list()) {
    if (&kernel == &first || !is_form_of(kernel, first)) continue;
    if (mismatch(kernel, request, place).any()) continue;
    const bool better =
        request.ctas != 0 ? kernel.ctas == request.ctas : cost(kernel) < cost(*best);
    if (better) best = &kernel;
  }
  return *best;
}

}  // namespace

Request request_of(const FwdParams& params) {
  uint32_t features = problem_features(params);
  if (params.page_table != nullptr) features |= bit(Feature::kPaged);
  // 0 is the kernel's choice; one without splits chooses 1.
  if (params.num_splits > 1) features |= bit(Feature::kSplits);
  return {Op::kFwd, params.dtype, params.head_dim, params.head_dim_v, features};
}

Request request_of(const BwdParams& params) {
  uint32_t features = problem_features(params);
  if (params.dlse.data != nullptr) features |= bit(Feature::kDlse);
  if (params.deterministic) features |= bit(Feature::kDeterministic);
  return {Op::kBwd, params.dtype, params.head_dim, params.head_dim_v, features};
}

Request request_of(const CombineParams& params) {
  return {Op::kCombine, params.partial_dtype, 8, params.head_dim_v, 0};
}

Mismatch mismatch(const KernelRow& kernel, const Request& request, const Place& place) {
  const auto outside = [](int64_t value, DimRange range) {
    return value < range.min || value > range.max;
  };
  Mismatch found;
  found.place = kernel.target == Target::kCpu
                    ? !place.cpu
                    : place.cpu || !target_runs_on(kernel.target, place.major, place.minor);
  found.dtype = (kernel.dtypes & bit(request.dtype)) == 0;
  found.head_dim = outside(request.head_dim, kernel.head_dim);
  found.head_dim_v = outside(request.head_dim_v, kernel.head_dim_v);
  found.features = request.features & ~kernel.features;
  return found;
}

std::string describe(const Mismatch& mismatch, const KernelRow& kernel, const Request& request) {
  std::string text;
  const auto add = [&](const std::string& reason) { text += (text.empty() ? "" : ", ") + reason; };
  if (mismatch.place) add(std::string("runs on ") + target_name(kernel.target));
  if (mismatch.dtype) add(std::string("dtype is ") + dtype_name(request.dtype));
  if (mismatch.head_dim) add(wanted_range("head_dim", request.head_dim, kernel.head_dim));
  if (mismatch.head_dim_v) add(wanted_range("head_dim_v", request.head_dim_v, kernel.head_dim_v));
  for (int i = 0; i < kNumFeatures; ++i) {
    const auto feature = static_cast<Feature>(i);
    if ((mismatch.features & bit(feature)) != 0) add(std::string("no ") + feature_name(feature));
  }
  return text;
}

Status select_kernel(const Request& request, const Place& place, const Cost& cost,
                     const KernelRow** result) {
  bool any_runs_here = false;
  for (const KernelRow& kernel : kernel_list()) {
    if (kernel.op != request.op) continue;
    const Mismatch found = mismatch(kernel, request, place);
    any_runs_here |= !found.place;
    if (!found.any()) {
      *result = &best_form(kernel, request, place, cost);
      return {};
    }
  }
  std::string reasons;
  for (const KernelRow& kernel : kernel_list()) {
    const Mismatch found = mismatch(kernel, request, place);
    if (kernel.op != request.op || (any_runs_here && found.place)) continue;
    reasons += (reasons.empty() ? "" : "; ") + std::string(kernel.name) + ": " +
               describe(found, kernel, request);
  }
  return Status::unsupported(std::string("no ") + op_name(request.op) +
                             " kernel for this call on " + place.description + ": " + reasons);
}

Status select_kernel(const Request& request, const Place& place, const KernelRow** result) {
  return select_kernel(request, place, [](const KernelRow&) { return 0.0; }, result);
}

}  // namespace fa4
