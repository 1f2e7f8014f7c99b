// Combine of KV splits on the GPU: O = sum_k w_k O_k / sum_k w_k with w_k = exp(lse_k - max lse),
// lse = max lse + ln(sum_k w_k).
//
// Bound by memory: every partial is read once, nothing is reused. A warp owns one result row; its
// weights lie in shared memory, so no warp waits for another. A split of weight 0 is skipped, not
// multiplied: its partial output may be garbage.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "csrc/common/combine.h"
#include "flash_attn4/core/softmax.h"

namespace fa4 {

namespace combine_detail {

constexpr unsigned kAllLanes = 0xffffffffu;

/// kCount elements as fp32; kCount is 1 or kCombineVector, then the address is aligned to all of
/// them.
template <class Element, int kCount>
__device__ __forceinline__ void load(const Element* from, float (&to)[kCount]) {
  struct alignas(sizeof(Element) * kCount) Pack {
    Element element[kCount];
  };
  const Pack pack = *reinterpret_cast<const Pack*>(from);
  for (int i = 0; i < kCount; ++i) to[i] = static_cast<float>(pack.element[i]);
}

template <class Element, int kCount>
__device__ __forceinline__ void store(Element* to, const float (&from)[kCount]) {
  struct alignas(sizeof(Element) * kCount) Pack {
    Element element[kCount];
  };
  Pack pack;
  for (int i = 0; i < kCount; ++i) pack.element[i] = static_cast<Element>(from[i]);
  *reinterpret_cast<Pack*>(to) = pack;
}

template <int kCount>
__device__ __forceinline__ void store_as(DType dtype, void* base, int64_t offset,
                                         const float (&value)[kCount]) {
  switch (dtype) {
    case DType::kFloat32:
      return store(static_cast<float*>(base) + offset, value);
    case DType::kFloat16:
      return store(static_cast<__half*>(base) + offset, value);
    case DType::kBFloat16:
      return store(static_cast<__nv_bfloat16*>(base) + offset, value);
  }
}

__device__ __forceinline__ int64_t offset_of(const Strides& stride, int64_t batch, int64_t row,
                                             int64_t head) {
  return batch * stride.batch + row * stride.row + head * stride.head;
}

/// Normalised weights of the splits of one row, by the lanes of a warp. Returns the row's lse.
__device__ __forceinline__ float split_weights(const CombineArgs& args, int64_t lse_offset,
                                               int lane, float* weight) {
  float largest = kMinusInfinity;
  for (int split = lane; split < args.num_splits; split += 32) {
    weight[split] = args.lse_partial[lse_offset + split * args.lse_partial_split_stride];
    largest = fmaxf(largest, weight[split]);
  }
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, lanes));
  }
  const float reference =
      usable_reference(largest);  // no split saw a key: every weight is exp(-inf)
  float sum = 0.0f;
  for (int split = lane; split < args.num_splits; split += 32) {
    weight[split] = exp2f((weight[split] - reference) * kLog2e);
    sum += weight[split];
  }
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(kAllLanes, sum, lanes);
  const float scale = final_scale(sum);
  for (int split = lane; split < args.num_splits; split += 32) weight[split] *= scale;
  __syncwarp();  // every lane reads every weight from here on
  return sum == 0.0f ? kMinusInfinity : reference + kLn2 * log2f(sum);
}

/// Weighted sum over the splits for one result row, kCount elements per lane and pass.
template <class Partial, int kCount>
__device__ __forceinline__ void combine_row(const CombineArgs& args, const Partial* partial,
                                            int64_t out_offset, int lane, const float* weight) {
  for (int column = lane * kCount; column < args.head_dim_v; column += 32 * kCount) {
    float sum[kCount] = {};
#pragma unroll 4
    for (int split = 0; split < args.num_splits; ++split) {
      if (weight[split] == 0.0f) continue;
      float value[kCount];
      load(partial + split * args.out_partial_split_stride + column, value);
      for (int i = 0; i < kCount; ++i) sum[i] += weight[split] * value[i];
    }
    store_as(args.out_dtype, args.out, out_offset + column, sum);
  }
}

}  // namespace combine_detail

/// Kernel body: kCombineWarps warps per block, one per result row.
template <class Partial>
__device__ __forceinline__ void combine_body(const CombineArgs& args) {
  using namespace combine_detail;
  __shared__ float weights[kCombineWarps][kCombineMaxSplits];
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const int64_t result = int64_t{blockIdx.x} * kCombineWarps + warp;
  if (result >= args.results) return;  // whole warps leave, so shuffles and __syncwarp stay full
  const int64_t head = result % args.heads;
  const int64_t row = result / args.heads % args.rows;
  const int64_t batch = result / args.heads / args.rows;

  float* weight = weights[warp];
  const float lse =
      split_weights(args, offset_of(args.lse_partial_stride, batch, row, head), lane, weight);
  if (lane == 0) args.lse[offset_of(args.lse_stride, batch, row, head)] = lse;

  const Partial* partial = static_cast<const Partial*>(args.out_partial) +
                           offset_of(args.out_partial_stride, batch, row, head);
  const int64_t out_offset = offset_of(args.out_stride, batch, row, head);
  if (args.vectorized) {
    combine_row<Partial, kCombineVector>(args, partial, out_offset, lane, weight);
  } else {
    combine_row<Partial, 1>(args, partial, out_offset, lane, weight);
  }
}

}  // namespace fa4
