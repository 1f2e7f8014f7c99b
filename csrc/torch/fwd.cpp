// fwd and varlen_fwd: op arguments -> FwdParams.
#include "csrc/torch/ops.h"

namespace fa4::torch_ops {

namespace {

struct Forward : Common {
  const OptionalTensor* page_table;
  int64_t num_splits;
};

struct Operands {
  Operands(const char* op, const Tensor& q, const Tensor& k, const Tensor& v)
      : q(op, "q", q), k(op, "k", k), v(op, "v", v) {}

  Argument q, k, v;
};

/// Keys and values in pages: page_table, and what k's shape means then.
void read_pages(const Forward& call, const Argument& q, const Argument& k, FwdParams* p) {
  if (!*call.seqused_k) {
    raise(call.op, Code::kInvalidValue, "seqused_k: must be given with page_table, got None");
  }
  const Argument table(call.op, "page_table", **call.page_table);
  table.want_same_device(q);
  table.want_int32();
  table.want_rank(2, "(batch, pages per sequence)");
  table.want_size(0, p->batch, "batch");
  table.want_contiguous_last_dim();
  p->page_table = static_cast<const int32_t*>(table.data());
  p->page_table_stride = table.stride[0];
  p->num_pages = k.size[0];
  p->page_size = k.size[1];
  if (p->page_size < 1) k.fail(Code::kInvalidValue, "page_size must be >= 1, got 0");
  p->seqlen_k = table.size[1] * p->page_size;
}

/// Everything but the addresses of q, k, v and results.
FwdParams read_forward(const Forward& call, const Operands& in) {
  const bool paged = call.page_table->has_value();
  if (call.packed() && !paged && call.cu_seqlens_k == nullptr) {
    raise(call.op, Code::kInvalidValue, "cu_seqlens_k: must be given without page_table, got None");
  }
  if (paged && call.cu_seqlens_k != nullptr) {
    raise(call.op, Code::kInvalidValue, "cu_seqlens_k: must be None with page_table, got a tensor");
  }
  FwdParams p;
  read_problem(call, in.q, in.k, in.v, paged, &p);
  if (paged) read_pages(call, in.q, in.k, &p);
  p.num_splits = call.num_splits;
  return p;
}

void run_forward(const Forward& call, const Operands& in, FwdParams* p, const Argument& out,
                 const Argument& lse) {
  const bool paged = p->page_table != nullptr;
  ReadableOperands readable;
  p->q = readable.view(in.q, p->dtype);
  p->k = paged ? Input{in.k.data(), strides_of(in.k)} : readable.view(in.k, p->dtype);
  p->v = paged ? Input{in.v.data(), strides_of(in.v)} : readable.view(in.v, p->dtype);
  p->out = {out.mutable_data(), strides_of(out)};
  p->lse = {static_cast<float*>(lse.mutable_data()), lse_strides_of(lse)};
  raise_unless_ok(call.op, fa4::fwd(*p, context_of(in.q)));
}

OutLse forward(const Forward& call, const Tensor& q, const Tensor& k, const Tensor& v) {
  const MemoryScope memory;
  const Operands in(call.op, q, k, v);
  FwdParams p = read_forward(call, in);
  const int32_t f32 = aoti_torch_dtype_float32();
  Tensor out = call.packed()
                   ? empty_tensor(in.q, {p.total_q, p.heads_q, p.head_dim_v}, in.q.dtype)
                   : empty_tensor(in.q, {p.batch, p.seqlen_q, p.heads_q, p.head_dim_v}, in.q.dtype);
  Tensor lse = call.packed() ? empty_tensor(in.q, {p.heads_q, p.total_q}, f32)
                             : empty_tensor(in.q, {p.batch, p.heads_q, p.seqlen_q}, f32);
  run_forward(call, in, &p, {call.op, "out", out}, {call.op, "lse", lse});
  return {std::move(out), std::move(lse)};
}

void forward_into(const Forward& call, const Tensor& q, const Tensor& k, const Tensor& v,
                  const Tensor& out_tensor, const Tensor& lse_tensor) {
  const MemoryScope memory;
  const Operands in(call.op, q, k, v);
  FwdParams p = read_forward(call, in);
  const Argument out(call.op, "out", out_tensor), lse(call.op, "lse", lse_tensor);
  check_out(out, in.q, p);
  check_lse(lse, in.q, p);
  out.want_no_overlap();
  lse.want_no_overlap();
  run_forward(call, in, &p, out, lse);
}

}  // namespace

OutLse fwd(Tensor q, Tensor k, Tensor v, std::optional<double> softmax_scale, bool causal,
           int64_t window_left, int64_t window_right, double softcap, OptionalTensor learnable_sink,
           OptionalTensor seqused_k, OptionalTensor page_table, int64_t num_splits) {
  const Common call = dense_call("fwd", softmax_scale, causal, window_left, window_right, softcap,
                                 learnable_sink, seqused_k);
  return forward({call, &page_table, num_splits}, q, k, v);
}

void fwd_out(Tensor q, Tensor k, Tensor v, std::optional<double> softmax_scale, bool causal,
             int64_t window_left, int64_t window_right, double softcap,
             OptionalTensor learnable_sink, OptionalTensor seqused_k, OptionalTensor page_table,
             int64_t num_splits, Tensor out, Tensor lse) {
  const Common call = dense_call("fwd_out", softmax_scale, causal, window_left, window_right,
                                 softcap, learnable_sink, seqused_k);
  forward_into({call, &page_table, num_splits}, q, k, v, out, lse);
}

OutLse varlen_fwd(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_q, OptionalTensor cu_seqlens_k,
                  int64_t max_seqlen_q, int64_t max_seqlen_k, std::optional<double> softmax_scale,
                  bool causal, int64_t window_left, int64_t window_right, double softcap,
                  OptionalTensor learnable_sink, OptionalTensor seqused_q, OptionalTensor seqused_k,
                  OptionalTensor page_table, int64_t num_splits) {
  const Common call = packed_call(dense_call("varlen_fwd", softmax_scale, causal, window_left,
                                             window_right, softcap, learnable_sink, seqused_k),
                                  cu_seqlens_q, cu_seqlens_k ? &*cu_seqlens_k : nullptr,
                                  max_seqlen_q, max_seqlen_k, seqused_q);
  return forward({call, &page_table, num_splits}, q, k, v);
}

void varlen_fwd_out(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_q, OptionalTensor cu_seqlens_k,
                    int64_t max_seqlen_q, int64_t max_seqlen_k, std::optional<double> softmax_scale,
                    bool causal, int64_t window_left, int64_t window_right, double softcap,
                    OptionalTensor learnable_sink, OptionalTensor seqused_q,
                    OptionalTensor seqused_k, OptionalTensor page_table, int64_t num_splits,
                    Tensor out, Tensor lse) {
  const Common call = packed_call(dense_call("varlen_fwd_out", softmax_scale, causal, window_left,
                                             window_right, softcap, learnable_sink, seqused_k),
                                  cu_seqlens_q, cu_seqlens_k ? &*cu_seqlens_k : nullptr,
                                  max_seqlen_q, max_seqlen_k, seqused_q);
  forward_into({call, &page_table, num_splits}, q, k, v, out, lse);
}

}  // namespace fa4::torch_ops
