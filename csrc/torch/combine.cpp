#include "csrc/torch/ops.h"

namespace fa4::torch_ops {

namespace {

DType dtype_of(torch::headeronly::ScalarType type) {
  using torch::headeronly::ScalarType;
  if (type == ScalarType::Float) return DType::kFloat32;
  if (type == ScalarType::Half) return DType::kFloat16;
  if (type == ScalarType::BFloat16) return DType::kBFloat16;
  raise("combine", Code::kInvalidType,
        std::string("out_dtype: must be float16, bfloat16 or float32, got ") +
            dtype_text(torch::stable::detail::to<int32_t>(torch::stable::detail::from(type))));
}

}  // namespace

// Shapes: (splits, batch, row, head, dim) and (splits, batch, row, head), or without batch.
OutLse combine(Tensor out_partial, Tensor lse_partial,
               std::optional<torch::headeronly::ScalarType> out_dtype) {
  const MemoryScope memory;
  const Argument o("combine", "out_partial", out_partial);
  const Argument l("combine", "lse_partial", lse_partial);
  if (o.rank != 4 && o.rank != 5) {
    o.fail(Code::kInvalidValue,
           "must have shape (splits, batch, seqlen, heads, head_dim) or "
           "(splits, total, heads, head_dim), got " +
               shape_text(o));
  }
  l.want_same_device(o);
  l.want_float32();
  o.want_contiguous_last_dim();
  l.want_rank(o.rank - 1, "of out_partial without head_dim");
  for (int64_t i = 0; i < l.rank; ++i) l.want_size(i, o.size[i], "every dimension of out_partial");

  CombineParams params;
  const bool dense = o.rank == 5;
  const int64_t first = dense ? 2 : 1;  // dimension of the rows
  params.partial_dtype = o.float_dtype();
  params.out_dtype = out_dtype ? dtype_of(*out_dtype) : params.partial_dtype;
  params.num_splits = o.size[0];
  params.batch = dense ? o.size[1] : 1;
  params.rows = o.size[first];
  params.heads = o.size[first + 1];
  params.head_dim_v = o.size[first + 2];
  params.out_partial.data = o.data();
  params.out_partial_split_stride = o.stride[0];
  params.out_partial.stride = {dense ? o.stride[1] : 0, o.stride[first], o.stride[first + 1]};
  params.lse_partial.data = static_cast<const float*>(l.data());
  params.lse_partial_split_stride = l.stride[0];
  params.lse_partial.stride = {dense ? l.stride[1] : 0, l.stride[first], l.stride[first + 1]};

  const int32_t dtype = torch_dtype(params.out_dtype);
  const int64_t b = params.batch, r = params.rows, h = params.heads, d = params.head_dim_v;
  Tensor out = dense ? empty_tensor(o, {b, r, h, d}, dtype) : empty_tensor(o, {r, h, d}, dtype);
  Tensor lse = dense ? empty_tensor(o, {b, r, h}, aoti_torch_dtype_float32())
                     : empty_tensor(o, {r, h}, aoti_torch_dtype_float32());
  params.out.data = out.mutable_data_ptr();
  params.out.stride = {r * h * d, h * d, d};
  params.lse.data = static_cast<float*>(lse.mutable_data_ptr());
  params.lse.stride = {r * h, h, 1};
  raise_unless_ok("combine", fa4::combine(params, context_of(o)));
  return {std::move(out), std::move(lse)};
}

}  // namespace fa4::torch_ops
