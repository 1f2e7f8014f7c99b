#include "csrc/torch/problem.h"

#include <cmath>

#include "csrc/dispatch/gpu.h"

namespace fa4::torch_ops {

namespace {

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
  constexpr const char* kShapesK[] = {"(batch, seqlen_k, heads_k, head_dim)",
                                      "(total_k, heads_k, head_dim)",
                                      "(num_pages, page_size, heads_k, head_dim)"};
  constexpr const char* kShapesV[] = {"(batch, seqlen_k, heads_k, head_dim_v)",
                                      "(total_k, heads_k, head_dim_v)",
                                      "(num_pages, page_size, heads_k, head_dim_v)"};
  const int layout = paged ? 2 : common.packed() ? 1 : 0;
  if (!q.device_known)
    q.fail(Code::kUnsupported, "must be on cpu or cuda, got another device type");
  q.want_rank(rank, shape_q);
  const int64_t rank_k = paged ? 4 : rank;
  k.want_rank(rank_k, kShapesK[layout]);
  v.want_rank(rank_k, kShapesV[layout]);
  for (const Argument* a : {&k, &v}) {
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

/// A tensor shaped and typed like out must be, with dimension sizes `want`.
void check_buffer(const Argument& buffer, const Argument& like,
                  std::initializer_list<int64_t> want) {
  buffer.want_same_device(like);
  buffer.want_rank(static_cast<int64_t>(want.size()), "of the result");
  int64_t i = 0;
  for (const int64_t size : want) buffer.want_size(i++, size, "this dimension");
}

}  // namespace

void read_problem(const Common& common, const Argument& q, const Argument& k, const Argument& v,
                  bool paged, Problem* p) {
  read_operands(common, q, k, v, paged, p);
  read_sequences(common, q, p);
  read_scores(common, q, p);
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

Input ReadableOperands::view(const Argument& operand, DType dtype) {
  if (!runs_on_gpu(operand) || gpu::readable(dtype, operand.tensor->const_data_ptr(),
                                             operand.rank - 1, operand.size, operand.stride)) {
    return {operand.data(), strides_of(operand)};
  }
  const Tensor& copy = copies_.emplace_back(empty_like(operand));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_copy_(copy.get(), operand.tensor->get(), 0));
  const Argument copied(operand.op, operand.name, copy);
  return {copied.data(), strides_of(copied)};
}

}  // namespace fa4::torch_ops
