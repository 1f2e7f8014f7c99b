// fwd and varlen_fwd: op arguments -> FwdParams.
#include "csrc/torch/ops.h"

namespace fa4::torch_ops {

namespace {

struct Forward : Common {
  const OptionalTensor* page_table;
  int64_t num_splits;
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

/// Everything but results.
FwdParams read_forward(const Forward& call, const Argument& q, const Argument& k,
                       const Argument& v) {
  const bool paged = call.page_table->has_value();
  if (call.packed() && !paged && call.cu_seqlens_k == nullptr) {
    raise(call.op, Code::kInvalidValue, "cu_seqlens_k: must be given without page_table, got None");
  }
  if (paged && call.cu_seqlens_k != nullptr) {
    raise(call.op, Code::kInvalidValue, "cu_seqlens_k: must be None with page_table, got a tensor");
  }
  FwdParams p;
  read_problem(call, q, k, v, paged, &p);
  if (paged) read_pages(call, q, k, &p);
  p.q = {q.data(), strides_of(q)};
  p.k = {k.data(), strides_of(k)};
  p.v = {v.data(), strides_of(v)};
  p.num_splits = call.num_splits;
  return p;
}

void run_forward(const Forward& call, const Argument& q, FwdParams* p, const Tensor& out,
                 const Tensor& lse) {
  const Argument out_argument(call.op, "out", out);
  const Argument lse_argument(call.op, "lse", lse);
  p->out = {out_argument.mutable_data(), strides_of(out_argument)};
  p->lse = {static_cast<float*>(lse_argument.mutable_data()), lse_strides_of(lse_argument)};
  raise_unless_ok(call.op, fa4::fwd(*p, context_of(q)));
}

OutLse forward(const Forward& call, const Tensor& q_tensor, const Tensor& k_tensor,
               const Tensor& v_tensor) {
  const MemoryScope memory;
  const Argument q(call.op, "q", q_tensor), k(call.op, "k", k_tensor), v(call.op, "v", v_tensor);
  FwdParams p = read_forward(call, q, k, v);
  const int32_t f32 = aoti_torch_dtype_float32();
  Tensor out = call.packed()
                   ? empty_tensor(q, {p.total_q, p.heads_q, p.head_dim_v}, q.dtype)
                   : empty_tensor(q, {p.batch, p.seqlen_q, p.heads_q, p.head_dim_v}, q.dtype);
  Tensor lse = call.packed() ? empty_tensor(q, {p.heads_q, p.total_q}, f32)
                             : empty_tensor(q, {p.batch, p.heads_q, p.seqlen_q}, f32);
  run_forward(call, q, &p, out, lse);
  return {std::move(out), std::move(lse)};
}

void forward_into(const Forward& call, const Tensor& q_tensor, const Tensor& k_tensor,
                  const Tensor& v_tensor, const Tensor& out, const Tensor& lse) {
  const MemoryScope memory;
  const Argument q(call.op, "q", q_tensor), k(call.op, "k", k_tensor), v(call.op, "v", v_tensor);
  FwdParams p = read_forward(call, q, k, v);
  const Argument out_buffer(call.op, "out", out), lse_buffer(call.op, "lse", lse);
  check_out(out_buffer, q, p);
  check_lse(lse_buffer, q, p);
  out_buffer.want_no_overlap();
  lse_buffer.want_no_overlap();
  run_forward(call, q, &p, out, lse);
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
