#include "csrc/common/combine_launch.h"

#include "csrc/common/combine.h"
#include "csrc/driver/launch.h"

namespace fa4 {

namespace {

/// Whether every row that starts at a multiple of these strides can be read kCombineVector elements
/// at once.
bool rows_aligned(const void* base, DType dtype, const Strides& stride, int64_t split_stride) {
  const auto multiple = [](int64_t value) { return value % kCombineVector == 0; };
  const auto address = reinterpret_cast<uintptr_t>(base);
  return address % (kCombineVector * dtype_bytes(dtype)) == 0 && multiple(stride.batch) &&
         multiple(stride.row) && multiple(stride.head) && multiple(split_stride);
}

}  // namespace

Status launch_combine(const KernelRow& kernel, const CombineParams& params,
                      const Context& context) {
  CombineArgs args{};
  args.out_partial = params.out_partial.data;
  args.lse_partial = params.lse_partial.data;
  args.out = params.out.data;
  args.lse = params.lse.data;
  args.out_partial_stride = params.out_partial.stride;
  args.lse_partial_stride = params.lse_partial.stride;
  args.out_stride = params.out.stride;
  args.lse_stride = params.lse.stride;
  args.out_partial_split_stride = params.out_partial_split_stride;
  args.lse_partial_split_stride = params.lse_partial_split_stride;
  args.results = params.batch * params.rows * params.heads;
  args.rows = static_cast<int32_t>(params.rows);
  args.heads = static_cast<int32_t>(params.heads);
  args.num_splits = static_cast<int32_t>(params.num_splits);
  args.head_dim_v = static_cast<int32_t>(params.head_dim_v);
  args.out_dtype = params.out_dtype;
  args.vectorized = rows_aligned(args.out_partial, params.partial_dtype, args.out_partial_stride,
                                 args.out_partial_split_stride) &&
                    rows_aligned(args.out, params.out_dtype, args.out_stride, 0);

  const int64_t blocks = ceil_div<int64_t>(args.results, kCombineWarps);
  if (blocks > INT32_MAX) {  // the largest grid
    return Status::unsupported("out_partial: must have at most " +
                               std::to_string(int64_t{INT32_MAX} * kCombineWarps) + " rows, got " +
                               std::to_string(args.results));
  }
  driver::Launch request;
  request.grid.x = static_cast<unsigned>(blocks);
  request.threads = kCombineThreads;
  request.device = context.device.ordinal;
  request.stream = context.stream;
  request.args = &args;
  return driver::launch(kernel.name, kernel.image, request);
}

}  // namespace fa4
