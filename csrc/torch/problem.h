// What forward and backward read alike: operands, sequences, score options.
#pragma once

#include <vector>

#include "csrc/torch/arguments.h"

namespace fa4::torch_ops {

using OptionalTensor = std::optional<Tensor>;

/// Arguments that forward and backward share, dense or packed.
struct Common {
  const char* op = nullptr;
  const Tensor* cu_seqlens_q = nullptr;  // null: dense
  const Tensor* cu_seqlens_k = nullptr;  // null: dense or paged
  int64_t max_seqlen_q = 0;
  int64_t max_seqlen_k = 0;
  std::optional<double> softmax_scale;
  bool causal = false;
  int64_t window_left = -1;
  int64_t window_right = -1;
  double softcap = 0.0;
  const OptionalTensor* learnable_sink = nullptr;
  const OptionalTensor* seqused_q = nullptr;
  const OptionalTensor* seqused_k = nullptr;

  bool packed() const { return cu_seqlens_q != nullptr; }
};

/// The score options of an op, in the order of the schemas.
inline Common dense_call(const char* op, std::optional<double> softmax_scale, bool causal,
                         int64_t window_left, int64_t window_right, double softcap,
                         const OptionalTensor& learnable_sink, const OptionalTensor& seqused_k) {
  Common common;
  common.op = op;
  common.softmax_scale = softmax_scale;
  common.causal = causal;
  common.window_left = window_left;
  common.window_right = window_right;
  common.softcap = softcap;
  common.learnable_sink = &learnable_sink;
  common.seqused_k = &seqused_k;
  return common;
}

/// Makes the call one over packed tensors; cu_seqlens_k is null for paged keys.
inline Common packed_call(Common common, const Tensor& cu_seqlens_q, const Tensor* cu_seqlens_k,
                          int64_t max_seqlen_q, int64_t max_seqlen_k,
                          const OptionalTensor& seqused_q) {
  common.cu_seqlens_q = &cu_seqlens_q;
  common.cu_seqlens_k = cu_seqlens_k;
  common.max_seqlen_q = max_seqlen_q;
  common.max_seqlen_k = max_seqlen_k;
  common.seqused_q = &seqused_q;
  return common;
}

/// Checks shapes, types and devices of q, k, v and fills all of the problem but addresses of q, k,
/// v.
void read_problem(const Common& common, const Argument& q, const Argument& k, const Argument& v,
                  bool paged, Problem* p);

/// Requires the shape and type of out, or of lse, of this problem.
void check_out(const Argument& out, const Argument& q, const Problem& p);
void check_lse(const Argument& lse, const Argument& q, const Problem& p);

/// Operands as the call's device reads them. One that a GPU cannot read where it is (gpu::readable)
/// is copied; pages of keys are no such operand, because there are many more of them than a call
/// uses. Copies live as long as this; a kernel may still read them afterwards, because torch gives
/// their memory to later work of the same stream only.
class ReadableOperands {
 public:
  Input view(const Argument& operand, DType dtype);

 private:
  std::vector<Tensor> copies_;
};

}  // namespace fa4::torch_ops
