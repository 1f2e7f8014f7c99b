// bwd and varlen_bwd: op arguments -> BwdParams.
#include "csrc/torch/ops.h"

namespace fa4::torch_ops {

namespace {

struct Backward : Common {
  const Tensor *dout, *q, *k, *v, *out, *lse;
  const OptionalTensor* dlse;
  bool deterministic;
};

struct Operands {
  explicit Operands(const Backward& call)
      : q(call.op, "q", *call.q),
        k(call.op, "k", *call.k),
        v(call.op, "v", *call.v),
        dout(call.op, "dout", *call.dout) {}

  Argument q, k, v, dout;
};

/// Everything but the addresses of q, k, v, dout and results.
BwdParams read_backward(const Backward& call, const Operands& in) {
  const Argument& q = in.q;
  BwdParams p;
  read_problem(call, q, in.k, in.v, /*paged=*/false, &p);
  const Argument out(call.op, "out", *call.out), lse(call.op, "lse", *call.lse);
  check_out(in.dout, q, p);
  check_out(out, q, p);
  check_lse(lse, q, p);
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

/// The memory that kernels of a GPU want beside operands and results. It may be freed before they
/// have run, because torch gives it to later work of the same stream only.
OptionalTensor give_workspace(const Backward& call, const Argument& q, const Context& context,
                              BwdParams* p) {
  if (!runs_on_gpu(q)) return std::nullopt;
  raise_unless_ok(call.op, fa4::bwd_workspace_bytes(*p, context, &p->workspace_bytes));
  Tensor workspace = empty_tensor(q, {p->workspace_bytes}, aoti_torch_dtype_uint8());
  p->workspace = workspace.mutable_data_ptr();
  return workspace;
}

void run_backward(const Backward& call, const Operands& in, BwdParams* p,
                  const GradientBuffers& into) {
  ReadableOperands readable;
  p->q = readable.view(in.q, p->dtype);
  p->k = readable.view(in.k, p->dtype);
  p->v = readable.view(in.v, p->dtype);
  p->dout = readable.view(in.dout, p->dtype);
  const Argument dq(call.op, "dq", *into.dq), dk(call.op, "dk", *into.dk),
      dv(call.op, "dv", *into.dv);
  p->dq = {dq.mutable_data(), strides_of(dq)};
  p->dk = {dk.mutable_data(), strides_of(dk)};
  p->dv = {dv.mutable_data(), strides_of(dv)};
  if (into.dsink) p->dsink = Argument(call.op, "dsink", *into.dsink).mutable_data();
  const Context context = context_of(in.q);
  const OptionalTensor workspace = give_workspace(call, in.q, context, p);
  raise_unless_ok(call.op, fa4::bwd(*p, context));
}

Gradients backward(const Backward& call) {
  const MemoryScope memory;
  const Operands in(call);
  BwdParams p = read_backward(call, in);
  Tensor dq = empty_like(in.q), dk = empty_like(in.k), dv = empty_like(in.v);
  Tensor dsink = p.sink ? empty_tensor(in.q, {p.heads_q}, torch_dtype(p.sink_dtype))
                        : empty_tensor(in.q, {0}, aoti_torch_dtype_float32());
  run_backward(call, in, &p, {&dq, &dk, &dv, p.sink ? &dsink : nullptr});
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
  const Operands in(call);
  BwdParams p = read_backward(call, in);
  check_gradient(Argument(call.op, "dq", dq), in.q);
  check_gradient(Argument(call.op, "dk", dk), in.k);
  check_gradient(Argument(call.op, "dv", dv), in.v);
  if ((p.sink != nullptr) != dsink.has_value()) {
    raise(call.op, Code::kInvalidValue,
          std::string("dsink: must be given exactly when learnable_sink is, got ") +
              (dsink ? "a tensor" : "None"));
  }
  if (dsink) {
    check_gradient(Argument(call.op, "dsink", *dsink),
                   Argument(call.op, "learnable_sink", **call.learnable_sink));
  }
  run_backward(call, in, &p, {&dq, &dk, &dv, dsink ? &*dsink : nullptr});
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
