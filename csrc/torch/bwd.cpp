// bwd and varlen_bwd: op arguments -> BwdParams.
#include "csrc/torch/ops.h"

namespace fa4::torch_ops {

namespace {

struct Backward : Common {
  const Tensor *dout, *q, *k, *v, *out, *lse;
  const OptionalTensor* dlse;
  bool deterministic;
};

/// Everything but results.
BwdParams read_backward(const Backward& call, const Argument& q, const Argument& k,
                        const Argument& v) {
  BwdParams p;
  read_problem(call, q, k, v, /*paged=*/false, &p);
  const Argument dout(call.op, "dout", *call.dout), out(call.op, "out", *call.out);
  const Argument lse(call.op, "lse", *call.lse);
  check_out(dout, q, p);
  check_out(out, q, p);
  check_lse(lse, q, p);
  p.q = {q.data(), strides_of(q)};
  p.k = {k.data(), strides_of(k)};
  p.v = {v.data(), strides_of(v)};
  p.dout = {dout.data(), strides_of(dout)};
  p.out = {out.data(), strides_of(out)};
  p.lse = {static_cast<const float*>(lse.data()), lse_strides_of(lse)};
  if (*call.dlse) {
    const Argument dlse(call.op, "dlse", **call.dlse);
    check_lse(dlse, q, p);
    p.dlse = {static_cast<const float*>(dlse.data()), lse_strides_of(dlse)};
  }
  p.deterministic = call.deterministic;
  return p;
}

struct GradientBuffers {
  const Tensor *dq, *dk, *dv;
  const Tensor* dsink;  // null without a sink
};

void run_backward(const Backward& call, const Argument& q, BwdParams* p,
                  const GradientBuffers& into) {
  const Argument dq(call.op, "dq", *into.dq), dk(call.op, "dk", *into.dk),
      dv(call.op, "dv", *into.dv);
  p->dq = {dq.mutable_data(), strides_of(dq)};
  p->dk = {dk.mutable_data(), strides_of(dk)};
  p->dv = {dv.mutable_data(), strides_of(dv)};
  if (into.dsink) p->dsink = Argument(call.op, "dsink", *into.dsink).mutable_data();
  raise_unless_ok(call.op, fa4::bwd(*p, context_of(q)));
}

Gradients backward(const Backward& call) {
  const MemoryScope memory;
  const Argument q(call.op, "q", *call.q), k(call.op, "k", *call.k), v(call.op, "v", *call.v);
  BwdParams p = read_backward(call, q, k, v);
  Tensor dq = empty_like(q), dk = empty_like(k), dv = empty_like(v);
  Tensor dsink = p.sink ? empty_tensor(q, {p.heads_q}, torch_dtype(p.sink_dtype))
                        : empty_tensor(q, {0}, aoti_torch_dtype_float32());
  run_backward(call, q, &p, {&dq, &dk, &dv, p.sink ? &dsink : nullptr});
  return {std::move(dq), std::move(dk), std::move(dv), std::move(dsink)};
}

void check_gradient(const Argument& gradient, const Argument& of) {
  gradient.want_same_device(of);
  gradient.want_same_dtype(of);
  gradient.want_rank(of.rank, "of its operand");
  for (int64_t i = 0; i < of.rank; ++i) gradient.want_size(i, of.size[i], "this dimension");
  gradient.want_contiguous_last_dim();
  gradient.want_no_overlap();
}

void backward_into(const Backward& call, const Tensor& dq, const Tensor& dk, const Tensor& dv,
                   const OptionalTensor& dsink) {
  const MemoryScope memory;
  const Argument q(call.op, "q", *call.q), k(call.op, "k", *call.k), v(call.op, "v", *call.v);
  BwdParams p = read_backward(call, q, k, v);
  check_gradient(Argument(call.op, "dq", dq), q);
  check_gradient(Argument(call.op, "dk", dk), k);
  check_gradient(Argument(call.op, "dv", dv), v);
  if ((p.sink != nullptr) != dsink.has_value()) {
    raise(call.op, Code::kInvalidValue,
          std::string("dsink: must be given exactly when learnable_sink is, got ") +
              (dsink ? "a tensor" : "None"));
  }
  if (dsink) {
    check_gradient(Argument(call.op, "dsink", *dsink),
                   Argument(call.op, "learnable_sink", **call.learnable_sink));
  }
  run_backward(call, q, &p, {&dq, &dk, &dv, dsink ? &*dsink : nullptr});
}

}  // namespace

Gradients bwd(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse,
              OptionalTensor dlse, std::optional<double> softmax_scale, bool causal,
              int64_t window_left, int64_t window_right, double softcap,
              OptionalTensor learnable_sink, OptionalTensor seqused_k, bool deterministic) {
  const Common call = dense_call("bwd", softmax_scale, causal, window_left, window_right, softcap,
                                 learnable_sink, seqused_k);
  return backward({call, &dout, &q, &k, &v, &out, &lse, &dlse, deterministic});
}

void bwd_out(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, OptionalTensor dlse,
             std::optional<double> softmax_scale, bool causal, int64_t window_left,
             int64_t window_right, double softcap, OptionalTensor learnable_sink,
             OptionalTensor seqused_k, bool deterministic, Tensor dq, Tensor dk, Tensor dv,
             OptionalTensor dsink) {
  const Common call = dense_call("bwd_out", softmax_scale, causal, window_left, window_right,
                                 softcap, learnable_sink, seqused_k);
  backward_into({call, &dout, &q, &k, &v, &out, &lse, &dlse, deterministic}, dq, dk, dv, dsink);
}

Gradients varlen_bwd(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse,
                     Tensor cu_seqlens_q, Tensor cu_seqlens_k, int64_t max_seqlen_q,
                     int64_t max_seqlen_k, OptionalTensor dlse, std::optional<double> softmax_scale,
                     bool causal, int64_t window_left, int64_t window_right, double softcap,
                     OptionalTensor learnable_sink, OptionalTensor seqused_q,
                     OptionalTensor seqused_k, bool deterministic) {
  const Common call =
      packed_call(dense_call("varlen_bwd", softmax_scale, causal, window_left, window_right,
                             softcap, learnable_sink, seqused_k),
                  cu_seqlens_q, &cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqused_q);
  return backward({call, &dout, &q, &k, &v, &out, &lse, &dlse, deterministic});
}

void varlen_bwd_out(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse,
                    Tensor cu_seqlens_q, Tensor cu_seqlens_k, int64_t max_seqlen_q,
                    int64_t max_seqlen_k, OptionalTensor dlse, std::optional<double> softmax_scale,
                    bool causal, int64_t window_left, int64_t window_right, double softcap,
                    OptionalTensor learnable_sink, OptionalTensor seqused_q,
                    OptionalTensor seqused_k, bool deterministic, Tensor dq, Tensor dk, Tensor dv,
                    OptionalTensor dsink) {
  const Common call =
      packed_call(dense_call("varlen_bwd_out", softmax_scale, causal, window_left, window_right,
                             softcap, learnable_sink, seqused_k),
                  cu_seqlens_q, &cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqused_q);
  backward_into({call, &dout, &q, &k, &v, &out, &lse, &dlse, deterministic}, dq, dk, dv, dsink);
}

}  // namespace fa4::torch_ops
