// Registration of the ops. Names, argument names and order are a contract: schemas may grow by
// trailing arguments with defaults, nothing else.
#include "csrc/torch/ops.h"

namespace {

using namespace fa4::torch_ops;

// clang-format off
#define FA4_SCORES \
  "float? softmax_scale=None, bool causal=False, SymInt window_left=-1, SymInt window_right=-1, " \
  "float softcap=0.0, Tensor? learnable_sink=None, "
#define FA4_FWD \
  "Tensor q, Tensor k, Tensor v, " FA4_SCORES \
  "Tensor? seqused_k=None, Tensor? page_table=None, SymInt num_splits=1"
#define FA4_VARLEN_FWD \
  "Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_q, Tensor? cu_seqlens_k, SymInt max_seqlen_q, " \
  "SymInt max_seqlen_k, " FA4_SCORES \
  "Tensor? seqused_q=None, Tensor? seqused_k=None, Tensor? page_table=None, SymInt num_splits=1"
#define FA4_BWD \
  "Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor? dlse=None, " FA4_SCORES \
  "Tensor? seqused_k=None, bool deterministic=False"
#define FA4_VARLEN_BWD \
  "Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor cu_seqlens_q, " \
  "Tensor cu_seqlens_k, SymInt max_seqlen_q, SymInt max_seqlen_k, Tensor? dlse=None, " FA4_SCORES \
  "Tensor? seqused_q=None, Tensor? seqused_k=None, bool deterministic=False"
#define FA4_GRADIENTS "*, Tensor(a!) dq, Tensor(b!) dk, Tensor(c!) dv, Tensor(d!)? dsink=None"

STABLE_TORCH_LIBRARY(fa4, m) {
  m.def("fwd(" FA4_FWD ") -> (Tensor out, Tensor lse)");
  m.def("varlen_fwd(" FA4_VARLEN_FWD ") -> (Tensor out, Tensor lse)");
  m.def("bwd(" FA4_BWD ") -> (Tensor dq, Tensor dk, Tensor dv, Tensor dsink)");
  m.def("varlen_bwd(" FA4_VARLEN_BWD ") -> (Tensor dq, Tensor dk, Tensor dv, Tensor dsink)");
  m.def("combine(Tensor out_partial, Tensor lse_partial, ScalarType? out_dtype=None) "
        "-> (Tensor out, Tensor lse)");
  m.def("fwd_out(" FA4_FWD ", *, Tensor(a!) out, Tensor(b!) lse) -> ()");
  m.def("varlen_fwd_out(" FA4_VARLEN_FWD ", *, Tensor(a!) out, Tensor(b!) lse) -> ()");
  m.def("bwd_out(" FA4_BWD ", " FA4_GRADIENTS ") -> ()");
  m.def("varlen_bwd_out(" FA4_VARLEN_BWD ", " FA4_GRADIENTS ") -> ()");
}
// clang-format on

void register_kernels(torch::stable::detail::StableLibrary& m) {
  m.impl("fwd", TORCH_BOX(&fwd));
  m.impl("varlen_fwd", TORCH_BOX(&varlen_fwd));
  m.impl("bwd", TORCH_BOX(&bwd));
  m.impl("varlen_bwd", TORCH_BOX(&varlen_bwd));
  m.impl("combine", TORCH_BOX(&combine));
  m.impl("fwd_out", TORCH_BOX(&fwd_out));
  m.impl("varlen_fwd_out", TORCH_BOX(&varlen_fwd_out));
  m.impl("bwd_out", TORCH_BOX(&bwd_out));
  m.impl("varlen_bwd_out", TORCH_BOX(&varlen_bwd_out));
}

STABLE_TORCH_LIBRARY_IMPL(fa4, CPU, m) {
  register_kernels(m);
}
STABLE_TORCH_LIBRARY_IMPL(fa4, CUDA, m) {
  register_kernels(m);
}

}  // namespace
