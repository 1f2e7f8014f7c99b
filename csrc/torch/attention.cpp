// fwd and bwd, dense and packed: op arguments -> parameters of the C++ API.
#include <cmath>

#include "csrc/torch/ops.h"

namespace fa4::torch_ops {

namespace {

/// Arguments that forward and backward share, dense or packed.
struct Common {
  const char* op;
  const Tensor* cu_seqlens_q = nullptr;  // null: dense
  const Tensor* cu_seqlens_k = nullptr;  // null: dense or paged
  int64_t max_seqlen_q = 0;
  int64_t max_seqlen_k = 0;
  std::optional<double> softmax_scale;
  bool causal;
  int64_t window_left;
  int64_t window_right;
  double softcap;
  const OptionalTensor* learnable_sink;
  const OptionalTensor* seqused_q = nullptr;
  const OptionalTensor* seqused_k = nullptr;

  bool packed() const { return cu_seqlens_q != nullptr; }
};

struct Forward : Common {
  const OptionalTensor* page_table;
  int64_t num_splits;
};

/// A 1-d int32 tensor of `count` entries on q's device.
const int32_t* metadata(const Argument& argument, const Argument& q, int64_t count,
                        const char* shape) {
  argument.want_same_device(q);
  argument.want_int32();
  argument.want_rank(1, shape);
  argument.want_size(0, count, "number of entries");
  argument.want_contiguous_last_dim();
  return static_cast<const int32_t*>(argument.data());
}

int64_t batch_of(const Common& common, const Argument& q) {
  if (!common.packed()) return q.size[0];
  const Argument offsets(common.op, "cu_seqlens_q", *common.cu_seqlens_q);
  offsets.want_rank(1, "(batch + 1,)");
  if (offsets.size[0] < 1) {
    offsets.fail(Code::kInvalidValue, "must have batch + 1 >= 1 entries, got 0");
  }
  return offsets.size[0] - 1;
}

/// Shapes, types and devices of q, k, v; fills everything of the problem but sequence metadata.
void read_operands(const Common& common, const Argument& q, const Argument& k, const Argument& v,
                   bool paged, Problem* p) {
  const int64_t rank = common.packed() ? 3 : 4;
  const char* shape_q =
      common.packed() ? "(total_q, heads_q, head_dim)" : "(batch, seqlen_q, heads_q, head_dim)";
  const char* shape_k = paged             ? "(num_pages, page_size, heads_k, head_dim)"
                        : common.packed() ? "(total_k, heads_k, head_dim)"
                                          : "(batch, seqlen_k, heads_k, head_dim)";
  if (!q.device_known)
    q.fail(Code::kUnsupported, "must be on cpu or cuda, got another device type");
  q.want_rank(rank, shape_q);
  const int64_t rank_k = paged ? 4 : rank;
  for (const Argument* a : {&k, &v}) {
    a->want_rank(rank_k, shape_k);
    a->want_same_device(q);
    a->want_same_dtype(q);
  }
  p->dtype = q.float_dtype();
  for (const Argument* a : {&q, &k, &v}) a->want_contiguous_last_dim();
  p->batch = batch_of(common, q);
  if (!common.packed() && !paged) k.want_size(0, p->batch, "batch");
  k.want_size(rank_k - 1, q.size[rank - 1], "head_dim");
  for (int64_t i = 0; i < rank_k - 1; ++i)
    v.want_size(i, k.size[i], "every dimension but the last of k");
  p->heads_q = q.size[rank - 2];
  p->heads_k = k.size[rank_k - 2];
  p->head_dim = q.size[rank - 1];
  p->head_dim_v = v.size[rank_k - 1];
  p->total_q = common.packed() ? q.size[0] : 0;
  p->total_k = common.packed() && !paged ? k.size[0] : 0;
  p->seqlen_q = common.packed() ? common.max_seqlen_q : q.size[1];
  p->seqlen_k = common.packed() ? common.max_seqlen_k : k.size[1];
}

void read_sequences(const Common& common, const Argument& q, Problem* p) {
  if (common.cu_seqlens_q) {
    p->cu_seqlens_q = metadata(Argument(common.op, "cu_seqlens_q", *common.cu_seqlens_q), q,
                               p->batch + 1, "(batch + 1,)");
  }
  if (common.cu_seqlens_k) {
    p->cu_seqlens_k = metadata(Argument(common.op, "cu_seqlens_k", *common.cu_seqlens_k), q,
                               p->batch + 1, "(batch + 1,)");
  }
  if (common.seqused_q && *common.seqused_q) {
    p->seqused_q =
        metadata(Argument(common.op, "seqused_q", **common.seqused_q), q, p->batch, "(batch,)");
  }
  if (common.seqused_k && *common.seqused_k) {
    p->seqused_k =
        metadata(Argument(common.op, "seqused_k", **common.seqused_k), q, p->batch, "(batch,)");
  }
}

void read_scores(const Common& common, const Argument& q, Problem* p) {
  const double scale =
      common.softmax_scale.value_or(1.0 / std::sqrt(static_cast<double>(p->head_dim)));
  p->softmax_scale = static_cast<float>(scale);
  p->softcap = static_cast<float>(common.softcap);
  p->causal = common.causal;
  p->window_left = common.window_left;
  p->window_right = common.window_right;
  if (!*common.learnable_sink) return;
  const Argument sink(common.op, "learnable_sink", **common.learnable_sink);
  sink.want_same_device(q);
  p->sink_dtype = sink.float_dtype();
  sink.want_rank(1, "(heads_q,)");
  sink.want_size(0, p->heads_q, "heads_q");
  sink.want_contiguous_last_dim();
  p->sink = sink.data();
}

/// Everything but results.
FwdParams read_forward(const Forward& call, const Argument& q, const Argument& k,
                       const Argument& v) {
  const bool paged = call.page_table->has_value();
  FwdParams p;
  if (call.packed() && !paged && call.cu_seqlens_k == nullptr) {
    raise(call.op, Code::kInvalidValue, "cu_seqlens_k: must be given without page_table, got None");
  }
  if (paged && call.cu_seqlens_k != nullptr) {
    raise(call.op, Code::kInvalidValue, "cu_seqlens_k: must be None with page_table, got a tensor");
  }
  read_operands(call, q, k, v, paged, &p);
  if (paged) {
    const Argument table(call.op, "page_table", **call.page_table);
    table.want_same_device(q);
    table.want_int32();
    table.want_rank(2, "(batch, pages per sequence)");
    table.want_size(0, p.batch, "batch");
    table.want_contiguous_last_dim();
    p.page_table = static_cast<const int32_t*>(table.data());
    p.page_table_stride = table.stride[0];
    p.num_pages = k.size[0];
    p.page_size = k.size[1];
    if (p.page_size < 1) k.fail(Code::kInvalidValue, "page_size must be >= 1, got 0");
    p.seqlen_k = table.size[1] * p.page_size;
    if (!*call.seqused_k) {
      raise(call.op, Code::kInvalidValue, "seqused_k: must be given with page_table, got None");
    }
  }
  read_sequences(call, q, &p);
  read_scores(call, q, &p);
  p.q = {q.data(), strides_of(q)};
  p.k = {k.data(), strides_of(k)};
  p.v = {v.data(), strides_of(v)};
  p.num_splits = call.num_splits;
  return p;
}

/// A tensor shaped and typed like out must be, with dimension sizes `want`.
void check_buffer(const Argument& buffer, const Argument& like,
                  std::initializer_list<int64_t> want) {
  buffer.want_same_device(like);
  buffer.want_rank(static_cast<int64_t>(want.size()), "of the result");
  int64_t i = 0;
  for (const int64_t size : want) buffer.want_size(i++, size, "this dimension");
}

void check_out(const Argument& out, const Argument& q, const Problem& p) {
  const bool packed = q.rank == 3;
  out.want_same_dtype(q);
  if (packed) check_buffer(out, q, {p.total_q, p.heads_q, p.head_dim_v});
  if (!packed) check_buffer(out, q, {p.batch, p.seqlen_q, p.heads_q, p.head_dim_v});
  out.want_contiguous_last_dim();
}

void check_lse(const Argument& lse, const Argument& q, const Problem& p) {
  lse.want_float32();
  if (q.rank == 3) check_buffer(lse, q, {p.heads_q, p.total_q});
  if (q.rank == 4) check_buffer(lse, q, {p.batch, p.heads_q, p.seqlen_q});
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
  const Argument q(call.op, "q", q_tensor), k(call.op, "k", k_tensor), v(call.op, "v", v_tensor);
  FwdParams p = read_forward(call, q, k, v);
  check_out(Argument(call.op, "out", out), q, p);
  check_lse(Argument(call.op, "lse", lse), q, p);
  run_forward(call, q, &p, out, lse);
}

struct Backward : Common {
  const Tensor *dout, *q, *k, *v, *out, *lse;
  const OptionalTensor* dlse;
  bool deterministic;
};

/// Everything but results.
BwdParams read_backward(const Backward& call, const Argument& q, const Argument& k,
                        const Argument& v) {
  BwdParams p;
  read_operands(call, q, k, v, /*paged=*/false, &p);
  read_sequences(call, q, &p);
  read_scores(call, q, &p);
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
  p->dsink = into.dsink ? into.dsink->mutable_data_ptr() : nullptr;
  raise_unless_ok(call.op, fa4::bwd(*p, context_of(q)));
}

Tensor empty_like_argument(const Argument& a) {
  return a.rank == 4 ? empty_tensor(a, {a.size[0], a.size[1], a.size[2], a.size[3]}, a.dtype)
                     : empty_tensor(a, {a.size[0], a.size[1], a.size[2]}, a.dtype);
}

Gradients backward(const Backward& call) {
  const Argument q(call.op, "q", *call.q), k(call.op, "k", *call.k), v(call.op, "v", *call.v);
  BwdParams p = read_backward(call, q, k, v);
  Tensor dq = empty_like_argument(q), dk = empty_like_argument(k), dv = empty_like_argument(v);
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
}

void backward_into(const Backward& call, const Tensor& dq, const Tensor& dk, const Tensor& dv,
                   const OptionalTensor& dsink) {
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

const Tensor* pointer(const OptionalTensor& tensor) {
  return tensor ? &*tensor : nullptr;
}

}  // namespace

OutLse fwd(Tensor q, Tensor k, Tensor v, std::optional<double> softmax_scale, bool causal,
           int64_t window_left, int64_t window_right, double softcap, OptionalTensor learnable_sink,
           OptionalTensor seqused_k, OptionalTensor page_table, int64_t num_splits) {
  return forward({{.op = "fwd",
                   .softmax_scale = softmax_scale,
                   .causal = causal,
                   .window_left = window_left,
                   .window_right = window_right,
                   .softcap = softcap,
                   .learnable_sink = &learnable_sink,
                   .seqused_k = &seqused_k},
                  &page_table,
                  num_splits},
                 q, k, v);
}

void fwd_out(Tensor q, Tensor k, Tensor v, std::optional<double> softmax_scale, bool causal,
             int64_t window_left, int64_t window_right, double softcap,
             OptionalTensor learnable_sink, OptionalTensor seqused_k, OptionalTensor page_table,
             int64_t num_splits, Tensor out, Tensor lse) {
  forward_into({{.op = "fwd_out",
                 .softmax_scale = softmax_scale,
                 .causal = causal,
                 .window_left = window_left,
                 .window_right = window_right,
                 .softcap = softcap,
                 .learnable_sink = &learnable_sink,
                 .seqused_k = &seqused_k},
                &page_table,
                num_splits},
               q, k, v, out, lse);
}

OutLse varlen_fwd(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_q, OptionalTensor cu_seqlens_k,
                  int64_t max_seqlen_q, int64_t max_seqlen_k, std::optional<double> softmax_scale,
                  bool causal, int64_t window_left, int64_t window_right, double softcap,
                  OptionalTensor learnable_sink, OptionalTensor seqused_q, OptionalTensor seqused_k,
                  OptionalTensor page_table, int64_t num_splits) {
  return forward({{.op = "varlen_fwd",
                   .cu_seqlens_q = &cu_seqlens_q,
                   .cu_seqlens_k = pointer(cu_seqlens_k),
                   .max_seqlen_q = max_seqlen_q,
                   .max_seqlen_k = max_seqlen_k,
                   .softmax_scale = softmax_scale,
                   .causal = causal,
                   .window_left = window_left,
                   .window_right = window_right,
                   .softcap = softcap,
                   .learnable_sink = &learnable_sink,
                   .seqused_q = &seqused_q,
                   .seqused_k = &seqused_k},
                  &page_table,
                  num_splits},
                 q, k, v);
}

void varlen_fwd_out(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_q, OptionalTensor cu_seqlens_k,
                    int64_t max_seqlen_q, int64_t max_seqlen_k, std::optional<double> softmax_scale,
                    bool causal, int64_t window_left, int64_t window_right, double softcap,
                    OptionalTensor learnable_sink, OptionalTensor seqused_q,
                    OptionalTensor seqused_k, OptionalTensor page_table, int64_t num_splits,
                    Tensor out, Tensor lse) {
  forward_into({{.op = "varlen_fwd_out",
                 .cu_seqlens_q = &cu_seqlens_q,
                 .cu_seqlens_k = pointer(cu_seqlens_k),
                 .max_seqlen_q = max_seqlen_q,
                 .max_seqlen_k = max_seqlen_k,
                 .softmax_scale = softmax_scale,
                 .causal = causal,
                 .window_left = window_left,
                 .window_right = window_right,
                 .softcap = softcap,
                 .learnable_sink = &learnable_sink,
                 .seqused_q = &seqused_q,
                 .seqused_k = &seqused_k},
                &page_table,
                num_splits},
               q, k, v, out, lse);
}

Gradients bwd(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse,
              OptionalTensor dlse, std::optional<double> softmax_scale, bool causal,
              int64_t window_left, int64_t window_right, double softcap,
              OptionalTensor learnable_sink, OptionalTensor seqused_k, bool deterministic) {
  return backward({{.op = "bwd",
                    .softmax_scale = softmax_scale,
                    .causal = causal,
                    .window_left = window_left,
                    .window_right = window_right,
                    .softcap = softcap,
                    .learnable_sink = &learnable_sink,
                    .seqused_k = &seqused_k},
                   &dout,
                   &q,
                   &k,
                   &v,
                   &out,
                   &lse,
                   &dlse,
                   deterministic});
}

void bwd_out(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, OptionalTensor dlse,
             std::optional<double> softmax_scale, bool causal, int64_t window_left,
             int64_t window_right, double softcap, OptionalTensor learnable_sink,
             OptionalTensor seqused_k, bool deterministic, Tensor dq, Tensor dk, Tensor dv,
             OptionalTensor dsink) {
  backward_into({{.op = "bwd_out",
                  .softmax_scale = softmax_scale,
                  .causal = causal,
                  .window_left = window_left,
                  .window_right = window_right,
                  .softcap = softcap,
                  .learnable_sink = &learnable_sink,
                  .seqused_k = &seqused_k},
                 &dout,
                 &q,
                 &k,
                 &v,
                 &out,
                 &lse,
                 &dlse,
                 deterministic},
                dq, dk, dv, dsink);
}

Gradients varlen_bwd(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse,
                     Tensor cu_seqlens_q, Tensor cu_seqlens_k, int64_t max_seqlen_q,
                     int64_t max_seqlen_k, OptionalTensor dlse, std::optional<double> softmax_scale,
                     bool causal, int64_t window_left, int64_t window_right, double softcap,
                     OptionalTensor learnable_sink, OptionalTensor seqused_q,
                     OptionalTensor seqused_k, bool deterministic) {
  return backward({{.op = "varlen_bwd",
                    .cu_seqlens_q = &cu_seqlens_q,
                    .cu_seqlens_k = &cu_seqlens_k,
                    .max_seqlen_q = max_seqlen_q,
                    .max_seqlen_k = max_seqlen_k,
                    .softmax_scale = softmax_scale,
                    .causal = causal,
                    .window_left = window_left,
                    .window_right = window_right,
                    .softcap = softcap,
                    .learnable_sink = &learnable_sink,
                    .seqused_q = &seqused_q,
                    .seqused_k = &seqused_k},
                   &dout,
                   &q,
                   &k,
                   &v,
                   &out,
                   &lse,
                   &dlse,
                   deterministic});
}

void varlen_bwd_out(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse,
                    Tensor cu_seqlens_q, Tensor cu_seqlens_k, int64_t max_seqlen_q,
                    int64_t max_seqlen_k, OptionalTensor dlse, std::optional<double> softmax_scale,
                    bool causal, int64_t window_left, int64_t window_right, double softcap,
                    OptionalTensor learnable_sink, OptionalTensor seqused_q,
                    OptionalTensor seqused_k, bool deterministic, Tensor dq, Tensor dk, Tensor dv,
                    OptionalTensor dsink) {
  backward_into({{.op = "varlen_bwd_out",
                  .cu_seqlens_q = &cu_seqlens_q,
                  .cu_seqlens_k = &cu_seqlens_k,
                  .max_seqlen_q = max_seqlen_q,
                  .max_seqlen_k = max_seqlen_k,
                  .softmax_scale = softmax_scale,
                  .causal = causal,
                  .window_left = window_left,
                  .window_right = window_right,
                  .softcap = softcap,
                  .learnable_sink = &learnable_sink,
                  .seqused_q = &seqused_q,
                  .seqused_k = &seqused_k},
                 &dout,
                 &q,
                 &k,
                 &v,
                 &out,
                 &lse,
                 &dlse,
                 deterministic},
                dq, dk, dv, dsink);
}

}  // namespace fa4::torch_ops
