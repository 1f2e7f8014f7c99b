// Backward on the GPU: dsink[head] = -sum over rows of 2^(sink - lse) D, with sink and lse in log2
// units. One block of threads per head adds in a fixed order, so the bits do not change from run to
// run. Rows that have no sink in their sum have lse2 = +inf, and weigh nothing.
#pragma once

#include "csrc/common/bwd_args.h"
#include "csrc/common/rows.cuh"
#include "flash_attn4/core/softmax.h"
#include "flash_attn4/device/device.cuh"
#include "flash_attn4/device/ptx/griddepcontrol.cuh"
#include "flash_attn4/device/ptx/math.cuh"

namespace fa4 {

/// Kernel body: kBwdSinkThreads threads.
FA4_D void bwd_sink_body(const BwdSinkArgs& args) {
  constexpr int kWarps = kBwdSinkThreads / 32;
  __shared__ float sums[kWarps];
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();
  const int head = blockIdx.x;
  const float sign = -args.lse2_sign;
  const float sink = load_scalar(args.sink_dtype, args.sink, head) * kLog2e;
  const int64_t first = head * args.rows.acc_rows;
  const auto* lse2 = reinterpret_cast<const float4*>(args.lse2 + first);
  const auto* delta = reinterpret_cast<const float4*>(args.delta + first);
  float sum = 0.0f;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < args.rows.acc_rows / 4; i += kBwdSinkThreads) {
    const float4 l = lse2[i], d = delta[i];
    sum += ptx::ex2(fmaf(sign, l.x, sink)) * d.x + ptx::ex2(fmaf(sign, l.y, sink)) * d.y +
           ptx::ex2(fmaf(sign, l.z, sink)) * d.z + ptx::ex2(fmaf(sign, l.w, sink)) * d.w;
  }
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(kAllLanes, sum, lanes);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  float total = 0.0f;
  for (float of_warp : sums) total += of_warp;
  store_scalar(args.sink_dtype, args.dsink, head, 0.0f - total);
}

}  // namespace fa4
