// Backward on the GPU, before the main kernel: lse2 and D of every row, and dq's accumulator to 0.
//
// Bound by memory: O and dO are read once. Eight lanes share a row, 128 bytes of it at once.
#pragma once

#include "csrc/common/bwd_args.h"
#include "csrc/common/rows.cuh"
#include "flash_attn4/core/softmax.h"
#include "flash_attn4/device/device.cuh"
#include "flash_attn4/device/ptx/griddepcontrol.cuh"

namespace fa4 {

namespace bwd_prepare {

constexpr int kRowLanes = 8;

template <DType kDType>
FA4_D float dot(const uint4& a, const uint4& b) {
  const uint32_t a_words[4] = {a.x, a.y, a.z, a.w}, b_words[4] = {b.x, b.y, b.z, b.w};
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 x = unpack<kDType>(a_words[i]), y = unpack<kDType>(b_words[i]);
    sum = fmaf(x.x, y.x, fmaf(x.y, y.y, sum));
  }
  return sum;
}

/// A lane's part of D, without dlse.
template <DType kDType>
FA4_D float dot_of_row(const BwdPrepareArgs& args, int64_t out, int64_t dout, int lane) {
  float sum = 0.0f;
#pragma unroll 2
  for (int column = 8 * lane; column < args.head_dim_v; column += 8 * kRowLanes) {
    sum += dot<kDType>(load_unit(args.out, out + column, args.vector_loads),
                       load_unit(args.dout, dout + column, args.vector_loads));
  }
  return sum;
}

FA4_D int64_t offset_of(const Strides& stride, const RowBlock& block, int row, int head) {
  return block.batch * stride.batch + int64_t{block.first_row + row} * stride.row +
         head * stride.head;
}

/// lse2 and D of one row, by the lanes that share it. Both are valid in all of them.
template <DType kDType>
FA4_D float2 row_statistics(const BwdPrepareArgs& args, const RowBlock& block, int row, int head,
                            int lane) {
  float lse = kMinusInfinity, delta = 0.0f;
  if (row < block.used) {
    lse = args.lse[offset_of(args.lse_stride, block, row, head)];
    delta = dot_of_row<kDType>(args, offset_of(args.out_stride, block, row, head),
                               offset_of(args.dout_stride, block, row, head), lane);
    if (args.dlse != nullptr && lane == 0) {
      delta -= args.dlse[offset_of(args.dlse_stride, block, row, head)];
    }
  }
#pragma unroll
  for (int lanes = kRowLanes / 2; lanes > 0; lanes /= 2) {
    delta += __shfl_xor_sync(kAllLanes, delta, lanes);
  }
  // Selected, not multiplied: what was read of a row that sees nothing may be NaN.
  const bool weighs = lse != kMinusInfinity;
  return {weighs ? lse * kLog2e : -kMinusInfinity, weighs ? delta : 0.0f};
}

}  // namespace bwd_prepare

/// Kernel body: kBwdRowThreads threads.
template <DType kDType>
FA4_D void bwd_prepare_body(const BwdPrepareArgs& args) {
  using namespace bwd_prepare;
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();
  const BwdRows& rows = args.rows;
  const int index = static_cast<int>(blockIdx.x) / rows.heads;
  const int head = static_cast<int>(blockIdx.x) - index * rows.heads;
  const RowBlock block = row_block(rows, index);
  const int64_t first = head * rows.acc_rows + int64_t{index} * rows.block_m;

  // A block without rows has no turn in the main kernel, and the finish kernel does not read it.
  if (block.used > 0) {
    auto* accumulator = reinterpret_cast<float4*>(args.dq_accumulator + first * args.acc_columns);
    const int units = rows.block_m * args.acc_columns / 4;
    for (int i = threadIdx.x; i < units; i += kBwdRowThreads) accumulator[i] = float4{};
    for (int i = threadIdx.x; args.turns != nullptr && i < args.turns_per_block;
         i += kBwdRowThreads) {
      args.turns[(head * rows.blocks() + index) * args.turns_per_block + i] = 0;
    }
  }
  const int lane = static_cast<int>(threadIdx.x) % kRowLanes;
#pragma unroll 2
  for (int row = threadIdx.x / kRowLanes; row < rows.block_m; row += kBwdRowThreads / kRowLanes) {
    const float2 statistics = row_statistics<kDType>(args, block, row, head, lane);
    if (lane != 0) continue;
    args.lse2[first + row] = args.lse2_sign * statistics.x;
    args.delta[first + row] = statistics.y;
  }
}

}  // namespace fa4
